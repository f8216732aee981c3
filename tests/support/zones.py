"""Builders of zone data for tests."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

from protocol.constants import Type
from protocol.name import fold, from_text
from protocol.rdata import canonical, soa_with_serial
from server.store.api import Reader, Store
from server.zone.model import RR, Actor, Change, NodeChange, Renewal, StoredRR, ZoneCommit
from server.zone.node import Node, StoredNode, check_node, encode_node, node_from_records

APEX = from_text("members.example.")
SOA = from_text("ns.members.example.") + from_text("hostmaster.members.example.") + bytes(20)
LONG_TEXT = b"\xff" + b"x" * 255 + b"\xff" + b"y" * 255


class RowKey(NamedTuple):
    """Identity of a record within its zone: folded owner, type, canonical rdata."""

    owner_key: bytes
    rtype: int
    rdata_key: bytes


Rows = dict[RowKey, StoredRR]


async def add_zone(store: Store, apex: bytes = APEX, serial: int = 1) -> int:
    async with store.transaction() as transaction:
        return await transaction.add_zone(apex, kind="service", member_id=None, serial=serial, soa=SOA, soa_ttl=60)


def aaaa(owner: str, number: int, expires_at: int | None = None, ttl: int = 60) -> StoredRR:
    return StoredRR(from_text(owner), Type.AAAA, ttl, number.to_bytes(16, "big"), expires_at)


def row_key(record: StoredRR) -> RowKey:
    return RowKey(fold(record.owner), record.rtype, canonical(record.rtype, record.rdata))


def soa_rr(serial: int, apex: bytes = APEX) -> RR:
    return RR(apex, Type.SOA, 60, soa_with_serial(SOA, serial))


def rows_of_nodes(nodes: Iterable[Node]) -> Rows:
    return {row_key(record): record for node in nodes for record in node.records()}


def nodes_of(records: Iterable[StoredRR]) -> dict[bytes, Node]:
    """Records of any order as nodes by folded owner."""
    ordered = sorted(records, key=lambda record: fold(record.owner))
    return {key: node_from_records(found) for key, found in groupby(ordered, key=lambda record: fold(record.owner))}


def stored_nodes(records: Iterable[StoredRR]) -> list[StoredNode]:
    """What a store yields of them."""
    return [check_node(node.owner, encode_node(node)) for node in nodes_of(records).values()]


def changed_nodes(
    before: Mapping[bytes, Node],
    puts: Iterable[StoredRR] = (),
    deletes: Iterable[StoredRR] = (),
    renewals: Mapping[bytes, Renewal] | None = None,
) -> tuple[NodeChange, ...]:
    """What putting and deleting these comes to where `before` stands."""
    rows = rows_of_nodes(before.values())
    touched = {fold(record.owner): record.owner for record in (*deletes, *puts)}
    for record in deletes:
        rows.pop(row_key(record), None)
    rows.update((row_key(record), record) for record in puts)
    after = nodes_of(rows.values())
    return tuple(
        NodeChange(
            key,
            after[key].owner if key in after else owner,
            encode_node(before[key]) if key in before else None,
            encode_node(after[key]) if key in after else None,
            (renewals or {}).get(key),
        )
        for key, owner in touched.items()
    )


async def commit_of(
    store: Reader,
    zone_id: int,
    serial: int,
    puts: tuple[StoredRR, ...] = (),
    deletes: tuple[StoredRR, ...] = (),
    soa: tuple[bytes, int] | None = None,
) -> ZoneCommit:
    """One step from `serial` to the next, with its journal entry, on what the store has now."""
    change = Change(
        APEX,
        serial,
        serial + 1,
        1000 + serial,
        Actor("update", "alice.members.example.", "192.0.2.1"),
        (soa_rr(serial), *(RR(*record[:4]) for record in deletes)),
        (soa_rr(serial + 1), *(RR(*record[:4]) for record in puts)),
    )
    before = await store.load_nodes(zone_id, {fold(record.owner) for record in (*puts, *deletes)})
    return ZoneCommit(zone_id, serial, serial + 1, changed_nodes(before, puts, deletes), (change,), soa)


async def renewal_of(
    store: Reader, zone_id: int, serial: int, records: Iterable[StoredRR], renewal: Renewal | None = None
) -> ZoneCommit:
    """Leases that move to those of the records, on what the store has now."""
    records = list(records)
    before = await store.load_nodes(zone_id, {fold(record.owner) for record in records})
    renewals = {} if renewal is None else dict.fromkeys(before, renewal)
    return ZoneCommit(zone_id, serial, serial, changed_nodes(before, records, renewals=renewals), ())


async def all_records(store: Reader, zone_id: int) -> list[StoredRR]:
    return [record async for nodes in store.load_zone(zone_id) for node in nodes for record in node.decode().records()]
