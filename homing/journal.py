"""The change journal as an operator asks it: what became of a name, what it was then, and the inverse of one step."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from homing.master_file import record_text
from protocol.constants import Type
from protocol.name import fold, is_at_or_below, to_text
from protocol.rdata import canonical, soa_with_serial
from protocol.serial import next_serial
from server.change_text import soa_described, told
from server.operation import OPERATOR, draft_on
from server.rdata_text import type_name
from server.store.api import PRUNED, JournalRow, Reader, ZoneRow
from server.zone.draft import Draft, commit_of
from server.zone.model import RR, Change, Renewal, StoredRR, ZoneCommit
from server.zone.node import RRset
from server.zone.zone import Zone

_PAGE_RECORDS: Final = 20_000  # in memory at a time, roughly: steps differ much in size
_FIRST_PAGE: Final = 20
_LONGEST_PAGE: Final = 2_000
_BESIDE_CNAME: Final = frozenset((Type.CNAME, Type.RRSIG, Type.NSEC))

Row = tuple[int, bytes]
"""Type and canonical rdata: a record at a given name. The SOA's rdata is left out, for there is one only."""


async def entries(reader: Reader, zone_id: int | None = None, after: int = 0) -> AsyncIterator[JournalRow]:
    """Entries with ids above `after`, oldest first, a page at a time."""
    limit = _FIRST_PAGE
    while True:
        page = await reader.journal(after=after, zone_id=zone_id, limit=limit)
        size = 0
        for entry in page:
            size += len(entry.change.removed) + len(entry.change.added)
            yield entry
        if len(page) < limit:
            return
        after = page[-1].id
        limit = min(limit * 2, _LONGEST_PAGE) if size * 2 < _PAGE_RECORDS else max(limit // 2, 1)


def enclosing(zones: Iterable[ZoneRow], key: bytes) -> ZoneRow | None:
    """The deepest zone a folded name is in."""
    return max(
        (zone for zone in zones if is_at_or_below(key, zone.apex)), key=lambda zone: len(zone.apex), default=None
    )


class Past(NamedTuple):
    """A step as far as it concerns one name."""

    change: Change
    removed: list[RR]
    added: list[RR]


@dataclass(slots=True)
class NameHistory:
    """What became of a folded name. `present` has the records stored now, lapsed ones too."""

    zone: ZoneRow
    key: bytes
    present: list[StoredRR]
    steps: list[Past] = field(default_factory=list)
    begins_at: int | None = None  # of the journal
    begins_from: int | None = None  # the serial its first step starts from
    is_pruned: bool = False  # whether steps before that are gone
    renewal: Renewal | None = None  # the last one


async def read_history(reader: Reader, zone: ZoneRow, key: bytes) -> NameHistory:
    """All the journal says of a name."""
    node = (await reader.load_nodes(zone.id, (key,))).get(key)
    found = NameHistory(zone, key, [] if node is None else list(node.records()))
    found.renewal = await reader.renewal(zone.id, key)
    found.is_pruned = await reader.meta(PRUNED) is not None
    async for entry in entries(reader, zone.id):
        if found.begins_at is None:
            found.begins_at, found.begins_from = entry.change.at, entry.change.serial_from
        removed, added = ([rr for rr in side if fold(rr.owner) == key] for side in told(entry.change))
        if removed or added:
            found.steps.append(Past(entry.change, removed, added))
    return found


def as_of(history: NameHistory, at: int) -> list[RR]:
    """The records of a name at a moment (seconds since 1970), by walking back from the present.

    `ValueError` when the journal begins later. The SOA has its present serial: the name's steps do not tell it.
    """
    if history.begins_at is None or at < history.begins_at:
        raise ValueError("the journal begins later than that")
    zone = history.zone
    state: dict[Row, RR] = {_row(rr): rr for rr in (RR(*row[:4]) for row in history.present)}
    if history.key == zone.apex:
        soa = RR(zone.apex, Type.SOA, zone.soa_ttl, soa_with_serial(zone.soa, zone.serial))
        state[_row(soa)] = soa
    kept = max((index for index, past in enumerate(history.steps, start=1) if past.change.at <= at), default=0)
    for past in reversed(history.steps[kept:]):
        for rr in past.added:
            state.pop(_row(rr), None)
        for rr in past.removed:
            state[_row(rr)] = rr
    return [state[row] for row in sorted(state)]


def _row(rr: RR) -> Row:
    return rr.rtype, b"" if rr.rtype == Type.SOA else canonical(rr.rtype, rr.rdata)


# --- the inverse of a step ---


class Undo(NamedTuple):
    """The inverse of a step, ready to commit: lines with - go, with + come."""

    commit: ZoneCommit
    lines: tuple[str, ...]
    entry: int  # the id of the step undone


async def find_step(reader: Reader, zone: ZoneRow, serial: int) -> int:
    """The id of the last step of a zone to `serial`; `ValueError` when the journal has none."""
    found = first = last = None
    async for entry in entries(reader, zone.id):
        first = entry.change.serial_from if first is None else first
        last = entry.change.serial_to
        if last == serial:
            found = entry.id
    if found is None:
        reach = "is empty" if last is None else f"goes from serial {first} to {last}"
        raise ValueError(f"no step of {to_text(zone.apex)} leads to serial {serial}: its journal {reach}")
    return found


async def plan_undo(reader: Reader, zone: ZoneRow, entry_id: int, *, now: int) -> Undo:
    """The inverse of one step; `ValueError` when something later stands in its way.

    What comes back is permanent: the journal knows no leases. What only gets its old TTL keeps its lease.
    """
    (undone, *_) = await reader.journal(after=entry_id - 1, zone_id=zone.id, limit=1)
    change = undone.change
    removed, added = told(change)
    domains = {member.domain: member.name for member in await reader.members()}
    for rr in (*removed, *added):
        if rr.rtype == Type.NS and fold(rr.owner) in domains and zone.member_id is None:
            raise ValueError(f"this step moved member {domains[fold(rr.owner)]}: use homing member private")
    touched = {(fold(rr.owner), _row(rr)) for rr in (*removed, *added)}
    async for entry in entries(reader, zone.id, after=entry_id):
        for rr in (rr for side in told(entry.change) for rr in side):
            if (fold(rr.owner), _row(rr)) in touched:
                raise ValueError(
                    f"{to_text(rr.owner)} {type_name(rr.rtype)} was changed again by the step to serial "
                    f"{entry.change.serial_to}: undo that first"
                )
    draft = await draft_on(reader, zone, {fold(rr.owner) for rr in (*removed, *added)})
    sets: dict[tuple[bytes, int], tuple[list[RR], list[RR]]] = {}
    for index, side in enumerate((removed, added)):
        for rr in side:
            sets.setdefault((fold(rr.owner), rr.rtype), ([], []))[index].append(rr)
    for (key, rtype), (come, go) in sets.items():
        if rtype == Type.SOA:
            draft.soa_ttl, draft.soa_template = soa_described(come[0])
        else:
            _restore(draft, key, rtype, come, go)
    for key, _ in sets:
        _check_name(draft, key)
    differences = draft.differences()
    if not differences.is_content:
        raise ValueError(f"the step to serial {change.serial_to} changed nothing but the serial")
    inverse = draft.change(differences, next_serial(zone.serial), at=now, actor=OPERATOR)
    assert isinstance(draft.base, Zone)
    commit = commit_of(draft.base, draft, [inverse])
    assert commit is not None
    gone, put = told(inverse)
    lines = (*("-" + rr_text(rr) for rr in gone), *("+" + rr_text(rr) for rr in put))
    return Undo(commit, lines, entry_id)


def rr_text(rr: RR) -> str:
    return record_text(rr.owner, rr.ttl, rr.rtype, rr.rdata)


def _restore(draft: Draft, key: bytes, rtype: int, come: list[RR], go: list[RR]) -> None:
    """Take `go` out of an RRset and put `come` in."""
    present = draft.rrset(key, rtype)
    what = f"{to_text(key)} {type_name(rtype)}"
    rows: dict[Row, tuple[int, bytes, int]] = {}
    if present is not None:
        for rdata, at in zip(present.rdatas, present.expires, strict=True):
            rows[rtype, canonical(rtype, rdata)] = (present.ttl, rdata, at)
    leases: dict[Row, int] = {}
    for rr in go:
        row = rows.pop(_row(rr), None)
        if row is None:
            raise ValueError(f"{what} is no longer there")
        leases[_row(rr)] = row[2]
    for rr in come:
        rows[_row(rr)] = (rr.ttl, rr.rdata, leases.get(_row(rr), 0))
    if len({ttl for ttl, _, _ in rows.values()}) > 1:
        raise ValueError(f"{what} has records with another TTL now: an RRset has one (RFC 2181 §5.2)")
    if not rows:
        draft.drop(key, rtype)
        return
    ttls, rdatas, expires = zip(*rows.values(), strict=True)
    draft.put((come or go)[0].owner, RRset(rtype, ttls[0], rdatas, expires))


def _check_name(draft: Draft, key: bytes) -> None:
    node = draft.node(key)
    types = set(node.rrsets) if node else set()
    if Type.CNAME in types and types - _BESIDE_CNAME:
        raise ValueError(f"{to_text(key)} would have a CNAME and other data")
    if key == draft.apex and Type.NS not in types:
        raise ValueError(f"{to_text(key)} would have no NS")
