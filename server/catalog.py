"""The catalog zone (RFC 9432): which public zones there are, so that secondaries need to be told of one zone only.

It is a zone like the others, with a serial and a journal of its own, made from the zones of the store. Private members'
zones are never in it. A member zone's label comes from the number of its row, which no later zone ever has, so that a
zone removed and made again is another one to secondaries.
"""

import struct
from collections.abc import Iterable
from typing import Final

from protocol.constants import Type
from protocol.name import fold, from_text, to_text
from protocol.serial import next_serial
from server.operation import apply_draft
from server.store.api import Store, StoreError, Superseded, Transaction, ZoneRow
from server.zone.draft import Draft
from server.zone.model import RR, Actor
from server.zone.node import RRset
from server.zone.zone import Zone

CATALOG: Final = "catalog"
"""The kind of its row."""
_OPERATOR: Final = Actor("operator")
_INVALID: Final = from_text("invalid.")  # RFC 9432 §4.1: nobody resolves this zone
_TTL: Final = 0  # RFC 9432 §4.1: no resolver keeps it
_TIMES: Final = struct.pack("!5I", 0, 3600, 600, 0x7FFFFFFE, 0)  # it never expires for want of a refresh
_SOA: Final = _INVALID + _INVALID + _TIMES
_VERSION: Final = b"\x012"
_ATTEMPTS: Final = 8


def catalog_records(apex: bytes, zones: Iterable[ZoneRow]) -> list[RR]:
    """What the catalog at this folded apex holds for the zones of a store, its SOA left out."""
    records = [RR(apex, Type.NS, _TTL, _INVALID), RR(b"\x07version" + apex, Type.TXT, _TTL, _VERSION)]
    for row in zones:
        if row.member_id is None and row.kind != CATALOG:
            label = b"z%d" % row.id
            records.append(RR(bytes((len(label),)) + label + b"\x05zones" + apex, Type.PTR, _TTL, row.apex))
    return records


async def ensure_catalog(store: Store, apex: bytes | None, *, now: int) -> None:
    """Make the store's catalog what its zones say: at this apex, or none at all. Writes nothing when it is so already.

    The first serial is `now` (seconds since 1970). `ValueError` when there is another zone of that name.
    """
    apex = None if apex is None else fold(apex)
    for attempt in range(1, _ATTEMPTS + 1):
        async with store.reading() as reader:
            zones = await reader.load_zones()
            present = next((row for row in zones if row.kind == CATALOG), None)
            if apex is None and present is None:
                return
            if present is not None and present.apex == apex:
                pages = [nodes async for nodes in reader.load_zone(present.id)]
                held = {rr[:4] for nodes in pages for stored in nodes for rr in stored.decode().records()}
                if held == set(catalog_records(apex, zones)):
                    return
        try:
            async with store.transaction() as transaction:
                await _make(transaction, apex, now)
            return
        except Superseded:
            if attempt == _ATTEMPTS:
                raise


async def _make(transaction: Transaction, apex: bytes | None, now: int) -> None:
    zones = await transaction.load_zones()
    row = next((row for row in zones if row.kind == CATALOG), None)
    if row is not None and row.apex != apex:
        await transaction.remove_zone(row.id)
        row = None
    if apex is None:
        return
    if row is None:
        serial = (now & 0xFFFFFFFF) or 1
        try:
            zone_id = await transaction.add_zone(
                apex, kind=CATALOG, member_id=None, serial=serial, soa=_SOA, soa_ttl=_TTL
            )
        except StoreError:
            raise ValueError(f"the catalog cannot be {to_text(apex)}: that is a zone of this database") from None
        row = ZoneRow(zone_id, apex, CATALOG, None, serial, _SOA, _TTL)
    base = Zone(row.id, row.apex, row.serial, row.soa, row.soa_ttl)
    async for nodes in transaction.load_zone(row.id):
        base.load(nodes)
    draft = Draft(base)
    for key in base.nodes:
        draft.touched[key] = None
    for rr in catalog_records(apex, zones):
        draft.put(rr.owner, RRset(rr.rtype, rr.ttl, (rr.rdata,), (0,)))
    found = draft.differences()
    if not found.is_content:
        return
    await apply_draft(transaction, draft, draft.change(found, next_serial(draft.serial), at=now, actor=_OPERATOR))
