"""One seed from beginning to end: storms and quiet periods in turn, the real server with a few things replaced."""

import asyncio
import contextlib
import gc
import logging
import time
from collections import Counter
from typing import Any, Final
from unittest.mock import patch

import structlog

from tests.sim.fleet.loop import FleetLoop
from tests.sim.fleet.troubles import STORM_SECONDS, Troubles
from tests.sim.fleet.world import Fleet, Store
from tests.sim.world import EXPECTED_ERRORS, nothing

SAVE_SECONDS: Final = 3.0  # less often than the product: a crash finds more that was not written
QUIET_SAVE_SECONDS: Final = 60.0  # nothing crashes then


class Violated(AssertionError):
    """Something was not as it must be."""


async def _live(fleet: Fleet, days: float) -> None:
    troubles = Troubles(fleet)
    await fleet.settle_in()
    fleet.check()
    for _ in range(max(1, round(days))):
        await troubles.storm(STORM_SECONDS)
        with patch("server.app.SAVE_SECONDS", QUIET_SAVE_SECONDS):
            await fleet.quiet()
        if fleet.violations:
            break
    await fleet.stop_server()
    if fleet.violations:
        raise Violated("\n".join((f"seed {fleet.seed}", *fleet.violations, "after:", *fleet.log)))


def run(seed: int, hosts: int, days: float) -> Counter[str]:
    """One world from beginning to end; what happened in it. `Violated` when something was wrong.

    Each day has a storm and its quiet.
    """

    def unexpected(_: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if event.get("event") not in (*EXPECTED_ERRORS, "cannot save subscriptions, will try again"):
            fleet.note(f"logged {method}: {event}")
        raise structlog.DropEvent

    async def open_store(*_: Any) -> Store:
        return fleet.store

    loop = FleetLoop(limit_seconds=days * 86400 + 10 * 86400)
    fleet = Fleet(seed, hosts, loop)
    loop.network = fleet.air
    logs = structlog.get_config()
    replacements: list[tuple[str, Any]] = [
        ("server.app.SqlStore.open", open_store),
        ("server.app.Server._listen_control", nothing),  # sockets of the real machine
        ("server.app.POLL_SECONDS", 60.0),
        ("server.app.KEY_USE_SECONDS", 600.0),
        ("server.app.SAVE_SECONDS", SAVE_SECONDS),
    ]
    with contextlib.ExitStack() as stack:
        for target, replacement in replacements:
            stack.enter_context(patch(target, replacement))
        structlog.configure(
            processors=[unexpected],
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            cache_logger_on_first_use=False,
        )
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(_live(fleet, days))
        finally:
            structlog.configure(**logs)
    if loop.failures:
        raise ExceptionGroup("exceptions that nobody took", loop.failures)
    fleet.counts["datagrams"] = fleet.air.sent
    fleet.counts["answers checked"] = fleet.truth.checked
    return fleet.counts


def report(seed: int, hosts: int, days: float) -> tuple[bool, str]:
    """In a process for such work alone: whether the seed was good, and a line on it."""
    began = time.process_time()
    gc.collect()
    gc.disable()  # cycles are few, and all that lives would be looked at again and again
    try:
        counts = run(seed, hosts, days)
    except Violated as violated:
        return False, f"seed {seed}: VIOLATED in {time.process_time() - began:.1f} s: {violated}"
    text = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
    return True, f"seed {seed}: good in {time.process_time() - began:.1f} s: {text}"
