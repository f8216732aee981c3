"""How much of the journal stays."""

from server.config import JournalSettings
from server.pruning import STEP_ENTRIES, prune_once
from server.store.memory import MemoryStore
from tests.support.zones import add_zone, commit_of

DAY = 86_400


async def filled(count: int) -> MemoryStore:
    store = MemoryStore()
    zone_id = await add_zone(store)
    for serial in range(1, count + 1):  # made at 1001, 1002, ...
        await store.commit([await commit_of(store, zone_id, serial)])
    return store


async def kept(store: MemoryStore) -> int:
    return len(await store.journal(limit=10_000))


async def test_what_is_too_old_goes() -> None:
    store = await filled(10)
    settings = JournalSettings(keep_days=1, keep_changes=0)
    assert await prune_once(store, settings, now=1001 + DAY) == 0
    assert await prune_once(store, settings, now=1004 + DAY) == 3
    assert await kept(store) == 7


async def test_what_is_too_much_goes_in_steps() -> None:
    store = await filled(2 * STEP_ENTRIES + 10)
    assert await prune_once(store, JournalSettings(keep_days=0, keep_changes=5), now=0) == 2 * STEP_ENTRIES + 5
    assert await kept(store) == 5


async def test_without_bounds_all_stays() -> None:
    store = await filled(10)
    assert await prune_once(store, JournalSettings(keep_days=0, keep_changes=0), now=10**12) == 0
