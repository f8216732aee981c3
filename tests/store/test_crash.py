"""Killed between any two statements of a commit, the database holds the old state or the new one, whole."""

import asyncio
import signal
import sys
from pathlib import Path

from server.store.sql import SqlStore
from tests.support.zones import aaaa, add_zone, all_records, commit_of

ROOT = Path(__file__).parents[2]
STATEMENTS = 56  # BEGIN, serial, its renewal kept, delete, 50 inserts, journal, COMMIT


async def _commit_in_child(url: str, fatal_statement: int) -> bool:
    """Whether the child said that its commit was done before it died."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.store_child", url, str(fatal_statement)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    assert child.returncode == -signal.SIGKILL
    return output == b"committed\n"


async def test_a_kill_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/homing.db"
    store = await SqlStore.open(url)
    zone_id = await add_zone(store)
    old = aaaa("old.members.example.", 1)
    await store.commit([await commit_of(store, zone_id, 1, (old,))])
    await store.close()
    for fatal_statement in (3, 4, 30, STATEMENTS, STATEMENTS + 1):
        is_acknowledged = await _commit_in_child(url, fatal_statement)
        assert is_acknowledged == (fatal_statement > STATEMENTS)
        store = await SqlStore.open(url)
        records, serial = await all_records(store, zone_id), (await store.load_zones())[0].serial
        journal = await store.journal()
        await store.close()
        if is_acknowledged:
            assert (len(records), serial, len(journal)) == (50, 3, 2)
            assert old not in records
        else:
            assert (records, serial, len(journal)) == ([old], 2, 1)
