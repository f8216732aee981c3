"""The journal's old end: what is older or more than the configuration keeps goes, a bounded step at a time.

Nobody who follows is broken by it: a secondary that is further behind gets the zone, another process loads it again,
and those who read the past say how far back it reaches.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from server.config import JournalSettings
from server.metrics import Metrics
from server.store.api import Store, StoreError
from server.system import Clock

FIRST_SECONDS: Final = 1.0
EVERY_SECONDS: Final = 300.0
STEP_ENTRIES: Final = 1000  # a few milliseconds in which updates wait
BREATH_SECONDS: Final = 0.05
_DAY: Final = 86_400
_ANY: Final = 1 << 62

log = structlog.get_logger(__name__)


async def prune_journal(
    store: Store,
    settings: JournalSettings,
    *,
    clock: Clock,
    metrics: Metrics,
    pause: Callable[[float], Awaitable[bool]],
) -> None:
    """Prune now and then until `pause` (wait so many seconds) says that the server stops; once a day renewals, too."""
    wait = FIRST_SECONDS
    renewals_at = 0
    while not await pause(wait):
        wait = EVERY_SECONDS
        now = int(clock.lease())
        try:
            metrics.pruned.inc(await prune_once(store, settings, now=now))
            if settings.keep_days and now - renewals_at >= _DAY:
                renewals_at = now
                await store.forget_renewals(now - int(settings.keep_days * _DAY))
        except StoreError as error:
            metrics.store_errors.inc()
            log.error("cannot prune the journal", error=str(error))


async def prune_once(store: Store, settings: JournalSettings, *, now: int) -> int:
    """Delete all that need not be kept at `now`; the number of entries that went."""
    before = now - int(settings.keep_days * _DAY) if settings.keep_days else -_ANY
    keep = settings.keep_changes or _ANY
    total = 0
    while True:
        count = await store.prune(before=before, keep=keep, limit=STEP_ENTRIES)
        total += count
        if count < STEP_ENTRIES:
            break
        await asyncio.sleep(BREATH_SECONDS)
    if total:
        log.info("journal pruned", entries=total)
    return total
