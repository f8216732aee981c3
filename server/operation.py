"""One thing an operator does: a transaction, a draft of each zone it touches, a step in each zone's journal.

The caller may be another process than the running server, which notices by the store's generation. Nothing here loads
a whole zone. `ValueError` in one plain sentence for what cannot be done; `now` is seconds since 1970.
"""

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from protocol.name import fold, from_text, is_at_or_below, to_text
from protocol.rdata import canonical
from protocol.serial import next_serial
from server.discovery import NameServer
from server.store.api import MemberRow, Reader, Store, Superseded, Transaction, ZoneRow
from server.zone.draft import Draft, commit_of
from server.zone.model import RR, Actor, Change
from server.zone.node import RRset
from server.zone.zone import Zone

OPERATOR: Final = Actor("operator")
SERVICE: Final = "service"
"""Kind of the service zone, and name under which the store keeps how its server is reached."""
_ATTEMPTS: Final = 8  # transactions tried when other processes keep moving the serial
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Service:
    """The service zone (its apex, folded once it is stored) and how its server is reached."""

    zone: bytes
    server: NameServer

    def to_json(self) -> str:
        server = self.server
        return json.dumps(
            {
                "zone": to_text(self.zone),
                "host": to_text(server.host),
                "addresses": list(server.addresses),
                "port": server.port,
                "tls_port": server.tls_port,
                "ttl": server.ttl,
                "push": server.push,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Service":
        data = json.loads(text)
        server = NameServer(
            from_text(data["host"]),
            tuple(data["addresses"]),
            data["port"],
            data["tls_port"],
            data["ttl"],
            data.get("push", False),  # a database from before DNS Push does not say
        )
        return cls(from_text(data["zone"]), server)


async def read_service(reader: Reader) -> Service:
    """The service as last started; `ValueError` before the first start."""
    stored = await reader.meta(SERVICE)
    if stored is None:
        raise ValueError("the database has no zone yet: start the server once")
    return Service.from_json(stored)


async def in_transaction(store: Store, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
    """Run `work` in a transaction, again from the start when another process moved a serial meanwhile."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with store.transaction() as transaction:
                done = await work(transaction)
                await transaction.count_operation()
                return done
        except Superseded:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def service_row(zones: Iterable[ZoneRow]) -> ZoneRow:
    return next(row for row in zones if row.kind == SERVICE)


async def find_member(reader: Reader, name: str) -> MemberRow:
    wanted = name.lower()
    for row in await reader.members():
        if row.name == wanted:
            return row
    raise ValueError(f"there is no member {name!r}")


async def draft_on(reader: Reader, row: ZoneRow, owners: Iterable[bytes]) -> Draft:
    """A draft on a zone of which only the named nodes are in memory."""
    zone = Zone(row.id, row.apex, row.serial, row.soa, row.soa_ttl, row.member_id)
    for key, node in (await reader.load_nodes(row.id, owners)).items():
        zone.put(key, node)
    return Draft(zone)


def add_record(draft: Draft, record: RR) -> None:
    """Add one permanent record; its TTL becomes that of the whole RRset."""
    assert is_at_or_below(fold(record.owner), draft.apex)
    present = draft.rrset(fold(record.owner), record.rtype)
    wanted = canonical(record.rtype, record.rdata)
    others = (
        [
            (rdata, at)
            for rdata, at in zip(present.rdatas, present.expires, strict=True)
            if canonical(record.rtype, rdata) != wanted
        ]
        if present
        else []
    )
    rdatas = (*(rdata for rdata, _ in others), record.rdata)
    draft.put(record.owner, RRset(record.rtype, record.ttl, rdatas, (*(at for _, at in others), 0)))


def remove_record(draft: Draft, record: RR) -> None:
    key = fold(record.owner)
    present = draft.rrset(key, record.rtype)
    if present is None:
        return
    wanted = canonical(record.rtype, record.rdata)
    kept = [
        (rdata, at)
        for rdata, at in zip(present.rdatas, present.expires, strict=True)
        if canonical(record.rtype, rdata) != wanted
    ]
    if kept:
        draft.put(
            record.owner,
            RRset(record.rtype, present.ttl, tuple(rdata for rdata, _ in kept), tuple(at for _, at in kept)),
        )
    else:
        draft.drop(key, record.rtype)


async def commit_draft(transaction: Transaction, draft: Draft, now: int) -> None:
    """Write a draft as one step of its zone's journal; nothing when it changes nothing."""
    found = draft.differences()
    if not found.is_content:
        return
    await apply_draft(transaction, draft, draft.change(found, next_serial(draft.serial), at=now, actor=OPERATOR))


async def apply_draft(transaction: Transaction, draft: Draft, change: Change) -> None:
    """Write a draft as the step that `change` tells."""
    assert isinstance(draft.base, Zone)
    commit = commit_of(draft.base, draft, [change])
    assert commit is not None
    await transaction.apply([commit])
