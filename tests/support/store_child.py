"""A process that commits and kills itself when a chosen statement begins: `store_child.py URL STATEMENT`."""

import asyncio
import os
import signal
import sys

from server.store.sql import SqlStore
from tests.support.zones import aaaa, commit_of


async def main(url: str, fatal_statement: int) -> None:
    store = await SqlStore.open(url, create=False)
    zone_id = (await store.load_zones())[0].id
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == fatal_statement:
            os.kill(os.getpid(), signal.SIGKILL)

    await (await store._driver()).set_trace_callback(count)
    old = aaaa("old.members.example.", 1)
    new = tuple(aaaa(f"new{number}.members.example.", number) for number in range(50))
    await store.commit([await commit_of(store, zone_id, 2, new, (old,))])
    print("committed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
