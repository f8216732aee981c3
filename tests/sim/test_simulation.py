"""Whole worlds from seeds: storms, quiet periods, and everything checked after each; and proof that the checks bite.

A failing seed is printed; `HOMING_SIM_SEEDS=100 pytest tests/sim` runs more of them, `HOMING_SIM_FIRST=17` other ones.
"""

import asyncio
import hashlib
import os
import re
from contextlib import ExitStack
from unittest.mock import patch

import pytest

from server.zone.node import RRset
from tests.sim import checks, internet
from tests.sim.mutations import SHARED, Mutation, acknowledge_first, nothing, only_adds
from tests.sim.trouble import CALM, PERFECT, Storm
from tests.sim.world import inhabited

FIRST_SEED = int(os.environ.get("HOMING_SIM_FIRST", "1"))
SEEDS = int(os.environ.get("HOMING_SIM_SEEDS", "10"))
STORMS = 5
LIMIT_SECONDS = 1e6
SEEDS_WITH_TWO_ROUTERS = (1, 3)


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


async def _renumber(net: internet.Internet, seed: int) -> None:
    async with inhabited(seed, net, PERFECT) as world:
        await asyncio.sleep(600)
        for router in world.routers:
            # The second time the provider takes the line away and gives the same address again: NATs forget.
            for address in (world.new_external_address(), None):
                assert router.gateway is not None
                again = address or router.lan.external_address
                router.lan.set_external_address(again)
                await router.gateway.set_external_address(address)
                await router.gateway.set_external_address(again)
                await asyncio.sleep(1.0)
                behind = [host for host in world.hosts if host.router is router]
                checks.check_tunnels(world, [host for host in world.hosts if host not in behind], behind)
                await asyncio.sleep(5.0)
                checks.check_tunnels(world, world.hosts, world.hosts)
                await asyncio.sleep(120.0)
    _raise_if_violated(seed, world.observer.violations, [])


@pytest.mark.parametrize("seed", SEEDS_WITH_TWO_ROUTERS)
def test_a_renumbered_router_is_followed_at_once(seed: int) -> None:
    """On a good network: other machines see it within a second, those behind it are back within some more."""
    net = internet.Internet(seed)
    internet.run(_renumber(net, seed), net, limit_seconds=LIMIT_SECONDS)


# What the product does against loss, lapse and restarts, taken away one by one: a simulation that does not notice is
# worth nothing.


_live_records = RRset.live


MUTATIONS: dict[str, Mutation] = {
    **SHARED,
    "events are not sent again": (
        {"server.push.event_queue.EventQueue._retry_due": nothing},
        "view of Question",
    ),
    "events tell no removals": (
        {"server.push.event_queue.make_plan": only_adds},
        "view of Question",
    ),
    "leases do not lapse": (
        {"server.writer.lapse": nothing},
        "lapsed and still there",
    ),
    "leases end too soon": (
        {"server.zone.node.RRset.live": lambda rrset, now: _live_records(rrset, now + 2700)},
        "lost RowKey",
    ),
    "updates are acknowledged before they are written": (
        {"server.writer.Writer.step": acknowledge_first},
        "lost RowKey",
    ),
    "serials stand still": (
        {"server.writer.next_serial": lambda serial: serial},
        "serial of",
    ),
    "mappings share external ports": (
        {"gateway.mappings.ExternalPorts.is_free": lambda *_, **__: True},
        "gateway",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_bite(mutation: str) -> None:
    """Some world of a few notices, and says what is wrong."""
    replacements, complaint = MUTATIONS[mutation]
    found = []
    with ExitStack() as stack:
        for target, replacement in replacements.items():
            stack.enter_context(patch(target, replacement))
        for seed in range(1, 9):
            try:
                live(seed, storms=2)
            except Violated as violated:
                found.append(str(violated))
                if re.search(complaint, found[-1]):
                    return
    pytest.fail(f"nobody noticed that {mutation}; noticed: {found}")
