"""What outlives a full pass is not visited by the next, and what starts is not visited at all."""

import gc
from collections.abc import Iterator

import pytest

from homing import collector


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.callbacks[:] = [each for each in gc.callbacks if each is not collector._freeze_survivors]
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.enable()
    collector._middle_passes = 0


def test_nothing_is_collected_before_it_settles() -> None:
    collector.pause()
    assert not gc.isenabled()
    collector.settle()
    assert gc.isenabled() and gc.get_threshold() == collector.THRESHOLDS
    assert gc.get_freeze_count() > 1000


def test_survivors_of_a_full_pass_are_frozen_and_dead_cycles_freed() -> None:
    collector.settle()
    kept = [[number] for number in range(1000)]
    before = gc.get_freeze_count()
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1
    assert gc.get_freeze_count() >= before + len(kept)


def test_a_frozen_cycle_is_found_once_it_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    collector.settle()
    gc.collect()
    del cycle
    assert gc.collect() == 0
    monkeypatch.setattr(collector, "MOST_LOOKED_AT_AGAIN", 0)
    collector.look_again()
    assert gc.get_freeze_count() > 0
    monkeypatch.setattr(collector, "MOST_LOOKED_AT_AGAIN", 1 << 40)
    collector.look_again()
    assert gc.collect() >= 1


def test_settling_twice_watches_once() -> None:
    collector.settle()
    collector.settle()
    assert gc.callbacks.count(collector._freeze_survivors) == 1


def test_what_outlives_a_long_pass_is_not_visited_again(monkeypatch: pytest.MonkeyPatch) -> None:
    collector.settle()
    kept = [[number] for number in range(1000)]
    before = gc.get_freeze_count()
    monkeypatch.setattr(collector, "LONG_SECONDS", 3600.0)
    collector.tick()
    assert gc.get_freeze_count() == before
    monkeypatch.setattr(collector, "LONG_SECONDS", 0.0)
    gc.collect(collector.MIDDLE)
    assert gc.get_freeze_count() >= before + len(kept)


def test_a_full_pass_comes_after_some_over_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself would wait until a quarter of all there is were new."""
    monkeypatch.setattr(collector, "LONG_SECONDS", 3600.0)
    collector.settle()
    full = gc.get_stats()[collector.FULL]["collections"]
    for _ in range(collector.FULL_AFTER):
        collector.tick()
        gc.collect(collector.MIDDLE)
    assert gc.get_stats()[collector.FULL]["collections"] == full
    collector.tick()
    collector.tick()
    assert gc.get_stats()[collector.FULL]["collections"] == full + 1


def test_new_containers_in_the_place_of_old_ones_are_looked_at() -> None:
    """Python itself would not: as many are freed as are made."""
    cache = [[number] for number in range(3 * collector.THRESHOLDS[0])]
    collector.settle()
    for number in range(len(cache)):
        cache[number] = [number]
    assert len(gc.get_objects(0)) >= len(cache)
    collector.tick()
    assert len(gc.get_objects(0)) < 100
    assert cache
