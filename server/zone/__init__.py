"""Zone data and the rules that change it: pure, no await, clock or SQL."""
