"""Very many leases that end in the same second: how long until all are gone, and how long anyone else waits meanwhile.

    python -m bench.lapses --names 1000000

The real writer over SQLite; a ticker beside it measures for how long the event loop was held up.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from protocol.name import from_text
from server.config import LeaseSettings
from server.metrics import Metrics
from server.store.sql import SqlStore
from server.system import SystemClock
from server.writer import Writer, load_zone
from server.zone.leases import LeaseQueue
from server.zone.model import Actor, Change, NodeChange, ZoneCommit
from server.zone.node import Node, RRset, encode_node
from server.zone.zone import Zones

APEX: Final = from_text("members.example.")
SOA: Final = APEX + APEX + bytes(20)
CHUNK: Final = 20_000
TICK_SECONDS: Final = 0.001


async def fill(store: SqlStore, names: int, lapse_at: int) -> None:
    async with store.transaction() as transaction:
        zone_id = await transaction.add_zone(APEX, kind="service", member_id=None, serial=1, soa=SOA, soa_ttl=60)
    for start in range(0, names, CHUNK):
        owners = [from_text(f"h{number}.members.example.") for number in range(start, min(start + CHUNK, names))]
        data = encode_node(Node(owners[0], {1: RRset(1, 120, (b"\x7f\0\0\1",), (lapse_at,))}))
        fresh = tuple(NodeChange(owner, owner, None, data) for owner in owners)
        await store.commit([ZoneCommit(zone_id, 1 + start // CHUNK, 2 + start // CHUNK, fresh, ())])


async def ticker(pauses: list[float]) -> None:
    before = time.perf_counter()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = time.perf_counter()
        pauses.append(now - before - TICK_SECONDS)
        before = now


async def measure(names: int) -> dict[str, float]:
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="homing-lapses-") as directory:
        store = await SqlStore.open(f"sqlite:///{Path(directory)}/homing.db")
        lapse_at = int(clock.lease()) - 1
        await fill(store, names, lapse_at)
        zones = Zones()
        leases = LeaseQueue(zones)
        changes: list[Change] = []
        for row in await store.load_zones():
            zones.add(await load_zone(store, row))
        (zone,) = zones
        for key in zone.nodes:
            leases.watch(zone.apex, key, zone.node(key))
        writer = Writer(
            zones=zones,
            store=store,
            clock=clock,
            leases=leases,
            limits=LeaseSettings(),
            metrics=Metrics(),
            on_change=changes.append,
        )
        pauses: list[float] = []
        watch = asyncio.create_task(ticker(pauses))
        began = time.perf_counter()
        await writer.lapse_due()
        seconds = time.perf_counter() - began
        watch.cancel()
        assert not zone.nodes
        assert {change.actor for change in changes} == {Actor("lapse")}
        await store.close()
    pauses.sort()
    return {
        "names": names,
        "seconds": seconds,
        "names a second": names / seconds,
        "changes": len(changes),
        "longest pause, ms": pauses[-1] * 1000,
        "99th percentile, ms": pauses[int(len(pauses) * 0.99)] * 1000,
        "median, ms": pauses[len(pauses) // 2] * 1000,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lapses", description=__doc__)
    parser.add_argument("--names", type=int, default=1_000_000)
    for name, value in asyncio.run(measure(parser.parse_args().names)).items():
        print(f"{value:14,.1f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
