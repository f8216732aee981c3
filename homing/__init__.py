"""The composition root: the `homing` command line and the lab. The only package that imports all the others."""
