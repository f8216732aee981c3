"""A process that commits to a SQLite store and kills itself at a chosen statement: `store_child.py URL STATEMENT`."""

import asyncio
import os
import signal
import sys
from typing import Any

from sqlalchemy import event

from server.store.sql import SqlStore
from tests.support.zones import aaaa, commit_of


async def main(url: str, fatal_statement: int) -> None:
    store = await SqlStore.open(url, create=False)
    zone_id = (await store.load_zones())[0].id
    seen = 0

    @event.listens_for(store._engine.sync_engine, "after_cursor_execute")
    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == fatal_statement:
            os.kill(os.getpid(), signal.SIGKILL)

    old = aaaa("old.members.example.", 1)
    new = tuple(aaaa(f"new{number}.members.example.", number) for number in range(50))
    await store.commit([commit_of(zone_id, 2, new, (old,))])
    print("committed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
