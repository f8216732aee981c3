"""From a master file to a zone of the database: sorted on disk, compared with what is there, written in one go.

Memory stays bounded whatever the size of either: runs of the file are sorted and kept in a temporary file, and so is
the difference. A difference of more than `STEP_RECORDS` is several steps of the journal (each whole names), one
transaction all the same.
"""

import heapq
import itertools
import os
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple

from homing.master_file import Include, Parser, Problem, Record, bounded_lines, record_text
from protocol.constants import Type
from protocol.name import fold, to_text
from protocol.rdata import canonical, soa_serial, soa_with_serial
from protocol.serial import is_newer, next_serial
from server import kdf
from server.catalog import CATALOG
from server.discovery import domain_records, service_records
from server.operation import Service, apply_draft, draft_on
from server.rdata_text import type_name
from server.store.api import Reader, Transaction, ZoneRow
from server.store.packing import order_key, pack_rrs, unpack_rrs
from server.zone.draft import Draft
from server.zone.model import RR, Actor, Change, StoredRR
from server.zone.node import RRset
from server.zone.update import MAX_RRSET_RECORDS, MAX_TYPES

STEP_RECORDS: Final = 10_000
SAMPLE_LINES: Final = 20
MAX_PROBLEMS: Final = 20  # shown; the others are counted
_RUN_RECORDS: Final = 50_000  # sorted at one time, some 30 MiB
_BLOCK_RECORDS: Final = 500
_SINGLETONS: Final = (Type.CNAME, Type.DNAME)
_BESIDE_CNAME: Final = frozenset((Type.CNAME, Type.RRSIG, Type.NSEC))
_IMPORT: Final = Actor("import")
_REMOVED, _ADDED, _BEFORE, _AFTER = range(4)  # kinds of a difference; the last two follow each other

Block = tuple[int, int]
"""Where in a `_RecordFile`, and how many octets."""


class _RecordFile:
    """Records with a number each, appended in blocks to a temporary file and read from any block on."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="homing-")  # noqa: SIM115  # closed by close()
        self._end = 0

    def append(self, items: Iterable[tuple[int, RR]]) -> Block:
        numbers, records = zip(*items, strict=True)
        data = struct.pack(f"!I{len(numbers)}Q", len(numbers), *numbers) + pack_rrs(records)
        self._file.write(data)
        block = (self._end, len(data))
        self._end += len(data)
        return block

    def read(self, block: Block) -> Iterator[tuple[int, RR]]:
        self._file.flush()
        data = os.pread(self._file.fileno(), block[1], block[0])
        (count,) = struct.unpack_from("!I", data)
        numbers = struct.unpack_from(f"!{count}Q", data, 4)
        return zip(numbers, unpack_rrs(data[4 + 8 * count :]), strict=True)

    def close(self) -> None:
        self._file.close()


class _Sorted(NamedTuple):
    """A record of the file under its place in canonical order."""

    order: bytes
    rtype: int
    rdata_key: bytes
    line: int
    rr: RR


def _sorted(line: int, rr: RR) -> _Sorted:
    return _Sorted(order_key(fold(rr.owner)), rr.rtype, canonical(rr.rtype, rr.rdata), line, rr)


class Problems:
    """Bounded: the first are kept, all are counted."""

    def __init__(self) -> None:
        self.shown: list[Problem] = []
        self.errors = 0
        self.warnings = 0

    def add(self, problem: Problem) -> None:
        if problem.is_warning:
            self.warnings += 1
        else:
            self.errors += 1
        if len(self.shown) < MAX_PROBLEMS:
            self.shown.append(problem)

    def lines(self, file: str) -> Iterator[str]:
        """`FILE:LINE: problem` for each that is kept, in the order of the file."""
        for line, text, is_warning in sorted(self.shown):
            yield f"{file}:{line}: {'warning: ' if is_warning else ''}{text}"
        more = self.errors + self.warnings - len(self.shown)
        if more:
            yield f"{file}: and {more} more"


@dataclass(slots=True)
class FileSet:
    """An RRset of the file: records by canonical rdata, and where it begins."""

    line: int
    ttl: int
    records: dict[bytes, RR] = field(default_factory=dict)


class FileName(NamedTuple):
    """An owner name of the file."""

    order: bytes
    owner: bytes
    sets: dict[int, FileSet]


class ZoneFile:
    """A master file, read and sorted. `soa` stands apart, as it does in the database."""

    def __init__(self, apex: bytes, include: Include | None = None) -> None:
        """`include` opens the files that $INCLUDE names; without it the directive is refused."""
        self.apex = apex
        self._include = include
        self.soa: RR | None = None
        self.records = 0
        self._spool = _RecordFile()
        self._runs: list[list[Block]] = []

    def __enter__(self) -> "ZoneFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spool.close()

    def read(self, stream: BinaryIO, problems: Problems, advance: Callable[[int], None]) -> None:
        """Take the file in; `advance` is told octets read."""

        def lines() -> Iterator[bytes]:
            octets = 0
            for number, line in enumerate(bounded_lines(stream)):
                yield line
                octets += len(line)
                if not number % 4096:
                    advance(octets)
                    octets = 0
            advance(octets)

        run: list[_Sorted] = []
        for item in Parser(self.apex, self._include).read(lines()):
            if isinstance(item, Problem):
                problems.add(item)
            elif item.rr.rtype == Type.SOA:
                self._take_soa(item, problems)
            else:
                self.records += 1
                run.append(_sorted(*item))
                if len(run) == _RUN_RECORDS:
                    self._write(run)
        if run:
            self._write(run)

    def _take_soa(self, item: Record, problems: Problems) -> None:
        if self.soa is not None:
            problems.add(Problem(item.line, "a second SOA"))
        self.soa = item.rr

    def _write(self, run: list[_Sorted]) -> None:
        run.sort()
        pairs = [(item.line, item.rr) for item in run]
        run.clear()
        self._runs.append(
            [
                self._spool.append(pairs[start : start + _BLOCK_RECORDS])
                for start in range(0, len(pairs), _BLOCK_RECORDS)
            ]
        )

    def _run(self, blocks: list[Block]) -> Iterator[_Sorted]:
        for block in blocks:
            for line, rr in self._spool.read(block):
                yield _sorted(line, rr)

    def names(self, problems: Problems) -> Iterator[FileName]:
        """Owner names in the order of the database, with what is wrong about them."""
        merged = heapq.merge(*(self._run(blocks) for blocks in self._runs))
        for order, items in itertools.groupby(merged, key=lambda item: item.order):
            sets: dict[int, FileSet] = {}
            owner = b""
            first = 0
            for item in items:
                if not first or item.line < first:
                    first, owner = item.line, item.rr.owner
                self._put(sets, item, problems)
            yield FileName(order, owner, sets)

    @staticmethod
    def _put(sets: dict[int, FileSet], item: _Sorted, problems: Problems) -> None:
        rr, line = item.rr, item.line
        present = sets.get(item.rtype)
        if present is None:
            if len(sets) >= MAX_TYPES:
                problems.add(Problem(line, f"{to_text(rr.owner)}: a name may have {MAX_TYPES} RRsets"))
                return
            present = sets[item.rtype] = FileSet(line, rr.ttl)
        if rr.ttl != present.ttl:
            least = min(rr.ttl, present.ttl)
            text = f"{_what(rr)}: an RRset has one TTL (RFC 2181 §5.2), {least} is taken"
            problems.add(Problem(max(line, present.line), text, is_warning=True))
            present.ttl = least
        if item.rdata_key in present.records:
            problems.add(Problem(line, f"{_what(rr)} is there twice", is_warning=True))
            return
        if present.records and item.rtype in _SINGLETONS:
            problems.add(Problem(line, f"{_what(rr)}: a name has one of that type only"))
            return
        if len(present.records) >= MAX_RRSET_RECORDS:
            problems.add(Problem(line, f"{_what(rr)}: an RRset may have {MAX_RRSET_RECORDS} records"))
            return
        present.records[item.rdata_key] = rr

    def check(self, problems: Problems) -> None:
        """What can be said without a database."""
        for name in self.names(problems):
            _check_cname(name, set(name.sets), problems)
        if self.soa is None and not problems.errors:
            problems.add(Problem(1, f"no SOA of {to_text(self.apex)}", is_warning=True))


def _what(rr: RR) -> str:
    return f"{to_text(rr.owner)} {type_name(rr.rtype)}"


def _check_cname(name: FileName, types: set[int], problems: Problems) -> None:
    """RFC 2181 §10.1: beside a CNAME there is nothing but its signatures."""
    if Type.CNAME in types and types - _BESIDE_CNAME:
        line = max(found.line for found in name.sets.values())
        others = " ".join(sorted(map(type_name, types - _BESIDE_CNAME)))
        problems.add(Problem(line, f"{to_text(name.owner)} has a CNAME and {others}"))


@dataclass(slots=True)
class Difference:
    """What an import would do to a zone at `serial`. `digest` tells two differences apart."""

    zone: ZoneRow
    soa: tuple[bytes, int] | None  # the file's, when it differs; its serial says nothing
    serial: int | None  # the file's, when it is newer
    added: int = 0
    removed: int = 0
    changed: int = 0
    unchanged: int = 0
    kept: int = 0
    digest: bytes = b""
    _spool: _RecordFile = field(default_factory=_RecordFile)
    _blocks: list[Block] = field(default_factory=list)
    _pending: list[tuple[int, RR]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.soa or self.serial is not None)

    def close(self) -> None:
        self._spool.close()

    def note(self, kind: int, rr: RR, expires_at: int | None = None) -> None:
        self._pending.append(((expires_at or 0) << 2 | kind, rr))

    def end_name(self) -> None:
        if len(self._pending) >= STEP_RECORDS:
            self._flush()

    def end(self) -> None:
        if self._pending:
            self._flush()
        described = (self.zone.id, self.soa, self.serial)
        self.digest = sha256(self.digest + repr(described).encode()).digest()

    def _flush(self) -> None:
        self._blocks.append(self._spool.append(self._pending))
        told = pack_rrs(rr for _, rr in self._pending)
        kinds = bytes(number & 3 for number, _ in self._pending)
        self.digest = sha256(self.digest + kinds + told).digest()
        self._pending = []

    def lines(self) -> Iterator[str]:
        """Records taken away with a `-`, put with a `+`, the SOA first."""
        zone = self.zone
        if self.soa is not None or self.serial is not None:
            rdata, ttl = self.soa or (zone.soa, zone.soa_ttl)
            serial = zone.serial if self.serial is None else self.serial
            yield "-" + record_text(zone.apex, zone.soa_ttl, Type.SOA, soa_with_serial(zone.soa, zone.serial))
            yield "+" + record_text(zone.apex, ttl, Type.SOA, soa_with_serial(rdata, serial))
        for block in self._blocks:
            for number, rr in self._spool.read(block):
                yield "-+"[number & 1] + record_text(rr.owner, rr.ttl, rr.rtype, rr.rdata)

    def steps(self) -> Iterator[list[tuple[int, RR]]]:
        """What each step of the journal holds; one empty step when the SOA alone changes."""
        if not self._blocks:
            yield []
        for block in self._blocks:
            yield list(self._spool.read(block))

    @property
    def step_count(self) -> int:
        return max(1, len(self._blocks))


async def kept_rrsets(reader: Reader, zone: ZoneRow, service: Service) -> frozenset[tuple[bytes, int]]:
    """(folded owner name, type) of what the service keeps in a zone: an import leaves it unless the file has it."""
    server = service.server
    kept: set[tuple[bytes, int]] = {(zone.apex, int(Type.NS))}
    if zone.member_id is not None:
        records = list(domain_records(zone.apex, server, is_zone=True))
    else:
        records = list(service_records(zone.apex, server))
        for member in await reader.members():
            found = domain_records(member.domain, server, is_zone=member.private)
            records += found[:1] if member.private else found  # of a zone of its own only the delegation is here
            kept.add((fold(kdf.owner_name(member.name.encode(), zone.apex)), int(Type.TXT)))
    kept.update((fold(record.owner), record.rtype) for record in records)
    return frozenset(kept)


async def compare(
    file: ZoneFile,
    reader: Reader,
    zone: ZoneRow,
    kept: frozenset[tuple[bytes, int]],
    problems: Problems,
    *,
    now: int,
    advance: Callable[[int], None],
) -> Difference:
    """What separates the zone as `reader` sees it from the file. Records whose lease has ended count as gone."""
    soa = file.soa
    described = None if soa is None else (soa_with_serial(soa.rdata, 0), soa.ttl)
    present = (soa_with_serial(zone.soa, 0), zone.soa_ttl)
    is_same = described is None or (
        canonical(Type.SOA, described[0]) == canonical(Type.SOA, present[0]) and described[1] == present[1]
    )
    serial = None if soa is None or not is_newer(soa_serial(soa.rdata), zone.serial) else soa_serial(soa.rdata)
    difference = Difference(zone, None if is_same else described, serial or None)
    names = file.names(problems)
    name = next(names, None)
    seen = 0
    async for owner, rows in _owners(reader, zone.id):
        order = order_key(fold(owner))
        while name is not None and name.order < order:
            _compare_name(difference, name, (), kept, problems, now)
            name, seen = next(names, None), seen + 1
        if name is not None and name.order == order:
            _compare_name(difference, name, rows, kept, problems, now)
            name = next(names, None)
        else:
            _compare_name(difference, FileName(order, owner, {}), rows, kept, problems, now)
        seen += 1
        if seen >= 1000:
            advance(seen)
            seen = 0
    while name is not None:
        _compare_name(difference, name, (), kept, problems, now)
        name, seen = next(names, None), seen + 1
        if seen >= 1000:
            advance(seen)
            seen = 0
    advance(seen)
    difference.end()
    return difference


async def _owners(reader: Reader, zone_id: int) -> AsyncIterator[tuple[bytes, Iterable[StoredRR]]]:
    async for nodes in reader.load_zone(zone_id):
        for stored in nodes:
            yield stored.owner, stored.decode().records()


def _compare_name(
    difference: Difference,
    name: FileName,
    rows: Iterable[StoredRR],
    kept: frozenset[tuple[bytes, int]],
    problems: Problems,
    now: int,
) -> None:
    present: dict[int, dict[bytes, StoredRR]] = {}
    owner = name.owner
    for row in rows:
        owner = row.owner  # the database's case stays
        present.setdefault(row.rtype, {})[canonical(row.rtype, row.rdata)] = row
    key = fold(owner)
    types = set(name.sets)
    for rtype in sorted(present.keys() | types):
        before, after = present.get(rtype, {}), name.sets.get(rtype)
        if after is None and (key, rtype) in kept:
            difference.kept += len(before)
            types.add(rtype)
            continue
        for rdata_key, row in before.items():
            if after is None or rdata_key not in after.records:
                difference.note(_REMOVED, RR(row.owner, rtype, row.ttl, row.rdata))
                difference.removed += 1
        if after is not None:
            _compare_set(difference, owner, rtype, before, after, now)
    _check_cname(name, types, problems)
    difference.end_name()


def _compare_set(
    difference: Difference, owner: bytes, rtype: int, before: dict[bytes, StoredRR], after: FileSet, now: int
) -> None:
    for rdata_key, rr in after.records.items():
        row = before.get(rdata_key)
        if row is None:
            difference.note(_ADDED, RR(owner, rtype, after.ttl, rr.rdata))
            difference.added += 1
            continue
        has_lapsed = row.expires_at is not None and row.expires_at <= now
        if row.ttl == after.ttl and not has_lapsed:
            difference.unchanged += 1
            continue
        lease = None if has_lapsed else row.expires_at
        difference.note(_BEFORE, RR(owner, rtype, row.ttl, row.rdata))
        difference.note(_AFTER, RR(owner, rtype, after.ttl, row.rdata), lease)
        difference.changed += 1


async def write(transaction: Transaction, difference: Difference, *, now: int, advance: Callable[[int], None]) -> int:
    """Carry a difference out; the zone's serial after it. `Superseded` when the zone is no longer at its serial."""
    zone = difference.zone
    serial = zone.serial
    template, soa_ttl = zone.soa, zone.soa_ttl
    left = difference.step_count
    for step in difference.steps():
        left -= 1
        present = zone._replace(serial=serial, soa=template, soa_ttl=soa_ttl)
        draft = await draft_on(transaction, present, {fold(rr.owner) for _, rr in step})
        old_soa = RR(zone.apex, Type.SOA, soa_ttl, soa_with_serial(template, serial))
        template, soa_ttl = difference.soa or (template, soa_ttl)
        wished = difference.serial
        following = wished if not left and wished is not None and is_newer(wished, serial) else next_serial(serial)
        new_soa = RR(zone.apex, Type.SOA, soa_ttl, soa_with_serial(template, following))
        draft.serial, draft.soa_template, draft.soa_ttl = following, template, soa_ttl
        removed, added = _carry_out(draft, step)
        change = Change(zone.apex, serial, following, now, _IMPORT, (old_soa, *removed), (new_soa, *added))
        await apply_draft(transaction, draft, change)
        serial = following
        advance(len(step))
    return serial


def _carry_out(draft: Draft, step: list[tuple[int, RR]]) -> tuple[list[RR], list[RR]]:
    """A step on a draft; what the journal says went and came."""
    removed: list[RR] = []
    added: list[RR] = []
    sets: dict[tuple[bytes, int], dict[bytes, tuple[bytes, int]]] = {}
    last: dict[tuple[bytes, int], RR] = {}  # of each RRset, whose TTL holds: what comes, comes after what goes
    for number, rr in step:
        kind, expires_at = number & 3, number >> 2
        place = fold(rr.owner), rr.rtype
        rows = sets.get(place)
        if rows is None:
            present = draft.rrset(*place)
            held = () if present is None else zip(present.rdatas, present.expires, strict=True)
            rows = sets[place] = {canonical(rr.rtype, rdata): (rdata, at) for rdata, at in held}
        key = canonical(rr.rtype, rr.rdata)
        last[place] = rr
        if kind in (_REMOVED, _BEFORE):
            removed.append(rr)
            if kind == _REMOVED:
                rows.pop(key, None)
            continue
        added.append(rr)
        # A lease moves without the serial: it may have been refreshed since the comparison.
        rows[key] = rr.rdata, rows.get(key, (b"", expires_at))[1] if expires_at else 0
    for place, rows in sets.items():
        if not rows:
            draft.drop(*place)
            continue
        rr = last[place]
        rdatas, expires = zip(*rows.values(), strict=True)
        draft.put(rr.owner, RRset(rr.rtype, rr.ttl, rdatas, expires))
    return removed, added


async def zone_row(reader: Reader, apex: bytes) -> ZoneRow:
    """A zone by its name; `ValueError` when there is none."""
    rows = await reader.load_zones()
    found = next((row for row in rows if row.apex == apex), None)
    if found is None:
        known = ", ".join(to_text(row.apex) for row in rows[:5])
        raise ValueError(f"there is no zone {to_text(apex)} in the database (there is {known or 'none'})")
    return found


async def changeable_row(reader: Reader, apex: bytes) -> ZoneRow:
    """The same for those who mean to change it; `ValueError` for the catalog, too."""
    found = await zone_row(reader, apex)
    if found.kind == CATALOG:
        raise ValueError(f"{to_text(apex)} is the catalog, which the server makes from its zones")
    return found
