"""Fill a homing database with the benchmark zone, through the store the product uses."""

import asyncio
import time
from itertools import islice
from pathlib import Path
from typing import Final

from bench.data import FLEET_KEY_NAME, KEY_NAME, KEY_SECRET, ZONE, stored_nodes, stored_records
from protocol.name import fold, from_text
from protocol.tsig import SHA256, Key
from server.discovery import NameServer, default_host
from server.members import add_member, ensure_service_zone
from server.operation import Service
from server.store.api import KeyRow
from server.store.sql import SqlStore
from server.zone.model import NodeChange, ZoneCommit

LEASE_SECONDS: Final = 7200
_CHUNK: Final = 20_000


def fill_database(file: Path, hosts: int, port: int, *, are_leased: bool = False) -> None:
    """A service zone with `hosts` machines and the benchmark's key (an administrator's)."""
    asyncio.run(_fill(file, hosts, port, are_leased))


async def _fill(file: Path, hosts: int, port: int, are_leased: bool) -> None:
    store = await SqlStore.open(f"sqlite+aiosqlite:///{file}")
    try:
        apex = from_text(ZONE)
        now = int(time.time())
        service = Service(apex, NameServer(default_host(apex), ("127.0.0.1",), port, None))
        await ensure_service_zone(store, service, now=now)
        label = FLEET_KEY_NAME.partition(".")[0]
        await add_member(store, label, now=now, private=False, token=lambda size: KEY_SECRET[:size])
        row = next(row for row in await store.load_zones() if row.apex == apex)
        async with store.transaction() as transaction:
            await transaction.add_key(KeyRow(Key(from_text(KEY_NAME), SHA256, KEY_SECRET), None, now))
        nodes = stored_nodes(stored_records(hosts, now + LEASE_SECONDS, are_leased=are_leased))
        serial = row.serial
        while chunk := list(islice(nodes, _CHUNK)):
            fresh = tuple(NodeChange(fold(node.owner), node.owner, None, node.data) for node in chunk)
            await store.commit([ZoneCommit(row.id, serial, serial + 1, fresh, ())])
            serial += 1
    finally:
        await store.close()
