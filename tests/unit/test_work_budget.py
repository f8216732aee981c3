"""Time for slow answers: its share over the long run, a burst at first."""

from server.work_budget import BURST_SECONDS, WorkBudget


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def spent(budget: WorkBudget, clock: Clock, seconds: float, each: float, between: float = 0.0) -> float:
    """How much time the work got that asks for all of it."""
    got = 0.0
    end = clock.now + seconds
    while clock.now < end:
        if budget.begin():
            clock.now += each
            got += each
            budget.end()
        else:
            clock.now += 0.001
        clock.now += between
    return got


def test_a_flood_gets_its_share_and_no_more() -> None:
    clock = Clock()
    budget = WorkBudget(0.5, clock)
    first = spent(budget, clock, 1.0, 0.004)
    assert 0.5 < first < 0.5 + 2 * BURST_SECONDS
    assert 4.9 < spent(budget, clock, 10.0, 0.004) < 5.1


def test_what_asks_for_less_is_never_held_back() -> None:
    clock = Clock()
    budget = WorkBudget(0.5, clock)
    for _ in range(1000):
        assert budget.begin()
        clock.now += 0.004
        budget.end()
        clock.now += 0.006


def test_all_of_it() -> None:
    clock = Clock()
    budget = WorkBudget(1.0, clock)
    assert spent(budget, clock, 5.0, 0.01) > 4.99
