"""Builders of zone data for tests."""

from protocol.constants import Type
from protocol.name import fold, from_text
from protocol.rdata import canonical, soa_with_serial
from server.store.api import Store
from server.zone.model import RR, Actor, Change, RowKey, StoredRR, ZoneCommit

APEX = from_text("members.example.")
SOA = from_text("ns.members.example.") + from_text("hostmaster.members.example.") + bytes(20)
LONG_TEXT = b"\xff" + b"x" * 255 + b"\xff" + b"y" * 255


async def add_zone(store: Store, apex: bytes = APEX, serial: int = 1) -> int:
    async with store.transaction() as transaction:
        return await transaction.add_zone(apex, kind="service", member_id=None, serial=serial, soa=SOA, soa_ttl=60)


def aaaa(owner: str, number: int, expires_at: int | None = None, ttl: int = 60) -> StoredRR:
    return StoredRR(from_text(owner), Type.AAAA, ttl, number.to_bytes(16, "big"), expires_at)


def row_key(record: StoredRR) -> RowKey:
    return RowKey(fold(record.owner), record.rtype, canonical(record.rtype, record.rdata))


def soa_rr(serial: int, apex: bytes = APEX) -> RR:
    return RR(apex, Type.SOA, 60, soa_with_serial(SOA, serial))


def commit_of(
    zone_id: int,
    serial: int,
    puts: tuple[StoredRR, ...] = (),
    deletes: tuple[StoredRR, ...] = (),
    soa: tuple[bytes, int] | None = None,
) -> ZoneCommit:
    """One step from `serial` to the next, with its journal entry."""
    change = Change(
        APEX,
        serial,
        serial + 1,
        1000 + serial,
        Actor("update", "alice.members.example.", "192.0.2.1"),
        (soa_rr(serial), *(RR(*record[:4]) for record in deletes)),
        (soa_rr(serial + 1), *(RR(*record[:4]) for record in puts)),
    )
    return ZoneCommit(
        zone_id,
        serial,
        serial + 1,
        tuple(row_key(record) for record in deletes),
        tuple((row_key(record), record) for record in puts),
        (),
        (change,),
        soa,
    )


async def all_records(store: Store, zone_id: int) -> list[StoredRR]:
    return [record async for rows in store.load_records(zone_id) for record in rows]
