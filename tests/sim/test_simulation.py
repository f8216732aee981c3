"""Whole worlds from seeds: storms, quiet periods, and everything checked after each; and proof that the checks bite.

A failing seed is printed; `HOMING_SIM_SEEDS=100 pytest tests/sim` runs more of them, `HOMING_SIM_FIRST=17` other ones.
"""

import hashlib
import os

import pytest

from tests.sim import checks, internet
from tests.sim.trouble import CALM, Storm
from tests.sim.world import inhabited

FIRST_SEED = int(os.environ.get("HOMING_SIM_FIRST", "1"))
SEEDS = int(os.environ.get("HOMING_SIM_SEEDS", "10"))
STORMS = 8
LIMIT_SECONDS = 1e6


class Violated(AssertionError):
    """A world in which something was not as it must be."""


async def _live(net: internet.Internet, seed: int, storms: int) -> None:
    log: list[str] = []
    async with inhabited(seed, net, CALM) as world:
        journal = checks.Journal()
        await checks.quiet(world, journal)
        for _ in range(storms):
            _raise_if_violated(seed, world.observer.violations, log)
            storm = Storm(world, world.rng.uniform(600.0, 5400.0))
            log = storm.log
            await storm.rage()
            await checks.quiet(world, journal)
    _raise_if_violated(seed, world.observer.violations, log)
    assert world.observer.answers_checked > 0
    assert world.observer.updates_acknowledged > 0


def _raise_if_violated(seed: int, violations: list[str], log: list[str]) -> None:
    if violations:
        raise Violated("\n".join((f"seed {seed}:", *violations, "after:", *log)))


def live(seed: int, storms: int = STORMS) -> internet.Internet:
    """One world from beginning to end: about a day."""
    net = internet.Internet(seed)
    internet.run(_live(net, seed, storms), net, limit_seconds=LIMIT_SECONDS)
    return net


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_a_day_of_storms(seed: int) -> None:
    live(seed)


def test_the_same_seed_is_the_same_world() -> None:
    def digest() -> str:
        packets = hashlib.sha256()
        for packet in live(1, storms=2).trace:
            packets.update(repr(packet).encode())
        return packets.hexdigest()

    assert digest() == digest()
