"""The DNS message envelope (RFC 1035 §4.1): every RR in order, raw, with its offsets.

Unlike general libraries it keeps what an UPDATE and an LLQ need: empty RRs, class ANY and NONE with their TTLs, TTL
0xFFFFFFFF, the offset where the TSIG RR begins. Compression is read anywhere and written for owner names and in NS and
CNAME.

      0               2               4        6        8        10       12
      | ID            | QR op AA.. rc | QDCOUNT| ANCOUNT| NSCOUNT| ARCOUNT| sections ...
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocol.constants import (
    HEADER_OCTETS,
    MAX_MESSAGE_OCTETS,
    OPCODE_MASK,
    OPCODE_SHIFT,
    QR,
    RCODE_MASK,
    Class,
    Type,
)
from protocol.edns import Opt, decode_opt
from protocol.errors import DecodeError, EncodeError
from protocol.name import ROOT, Suffixes, read_name
from protocol.rdata import expand

_HEADER: Final = struct.Struct("!6H")
_RR_FIXED: Final = struct.Struct("!HHIH")
_QUESTION_FIXED: Final = struct.Struct("!HH")
_MAX_POINTER: Final = 0x3FFF


class Header(NamedTuple):
    id: int
    flags: int
    qdcount: int
    ancount: int
    nscount: int
    arcount: int

    @property
    def is_response(self) -> bool:
        return bool(self.flags & QR)

    @property
    def opcode(self) -> int:
        return (self.flags & OPCODE_MASK) >> OPCODE_SHIFT

    @property
    def rcode(self) -> int:
        return self.flags & RCODE_MASK


class Question(NamedTuple):
    name: bytes
    rtype: int
    rclass: int


class Record(NamedTuple):
    """One RR as it stood in a message. `offset` is where its owner name begins, `rdata_offset` where its rdata does."""

    name: bytes
    rtype: int
    rclass: int
    ttl: int
    rdlength: int
    offset: int
    rdata_offset: int

    def raw(self, wire: bytes) -> bytes:
        """The rdata octets as they stand, names possibly compressed."""
        return wire[self.rdata_offset : self.rdata_offset + self.rdlength]

    def rdata(self, wire: bytes) -> bytes:
        """Rdata with names whole, checked against the form of its type; `DecodeError` otherwise."""
        return expand(self.rtype, wire, self.rdata_offset, self.rdlength)


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message. `opt` and `tsig` also stand in `additional`, in their places.

    An UPDATE names its sections zone, prerequisite, update, additional: here questions, answers, authority, additional.
    """

    wire: bytes
    header: Header
    questions: tuple[Question, ...]
    answers: tuple[Record, ...]
    authority: tuple[Record, ...]
    additional: tuple[Record, ...]
    opt: Opt | None
    tsig: Record | None

    @property
    def id(self) -> int:
        return self.header.id


class OptError(DecodeError):
    """The fault is in the OPT record: its sender knows EDNS, and all else could be read (RFC 6891 §7)."""

    def __init__(self, reason: str, offset: int, questions: tuple[Question, ...]) -> None:
        super().__init__(reason, offset)
        self.questions = questions


def decode_header(wire: bytes) -> Header:
    """The first 12 octets."""
    if len(wire) < HEADER_OCTETS:
        raise DecodeError("message shorter than its header", len(wire))
    return Header(*_HEADER.unpack_from(wire))


def decode(wire: bytes) -> Message:
    """Take a whole message apart.

    `DecodeError` for anything that does not parse, octets after the last section, more than one OPT or one that is not
    at the root (RFC 6891 §6.1.1, as `OptError`), and a TSIG that is not the last record of Additional (RFC 8945 §5.2).
    """
    header = decode_header(wire)
    if 5 * header.qdcount + 11 * (header.ancount + header.nscount + header.arcount) > len(wire) - HEADER_OCTETS:
        raise DecodeError("counts promise more than the message holds", 4)
    position = HEADER_OCTETS
    suffixes: Suffixes = {}
    questions: list[Question] = []
    for _ in range(header.qdcount):
        name, position = read_name(wire, position, suffixes)
        if position + 4 > len(wire):
            raise DecodeError("question runs past the end", position)
        questions.append(Question(name, *_QUESTION_FIXED.unpack_from(wire, position)))
        position += 4
    sections: list[tuple[Record, ...]] = []
    for count in (header.ancount, header.nscount, header.arcount):
        records, position = _read_section(wire, position, count, suffixes)
        sections.append(records)
    if position != len(wire):
        raise DecodeError("octets after the last section", position)
    answers, authority, additional = sections
    opt: Opt | None = None
    tsig: Record | None = None
    for index, record in enumerate(additional):
        if record.rtype == Type.OPT:
            try:
                if opt is not None:
                    raise DecodeError("second OPT record", record.offset)
                if record.name != ROOT:
                    raise DecodeError("OPT record not at the root", record.offset)
                opt = decode_opt(record.rclass, record.ttl, wire, record.rdata_offset, record.rdlength)
            except DecodeError as error:
                raise OptError(error.reason, error.offset, tuple(questions)) from None
        elif record.rtype == Type.TSIG:
            if index != len(additional) - 1:
                raise DecodeError("TSIG is not the last record", record.offset)
            tsig = record
    for record in answers + authority:
        if record.rtype in (Type.TSIG, Type.OPT):
            raise DecodeError("OPT or TSIG outside the additional section", record.offset)
    return Message(wire, header, tuple(questions), answers, authority, additional, opt, tsig)


def _read_section(wire: bytes, position: int, count: int, suffixes: Suffixes) -> tuple[tuple[Record, ...], int]:
    records: list[Record] = []
    end = len(wire)
    for _ in range(count):
        offset = position
        name, position = read_name(wire, position, suffixes)
        if position + 10 > end:
            raise DecodeError("record runs past the end", position)
        rtype, rclass, ttl, rdlength = _RR_FIXED.unpack_from(wire, position)
        position += 10
        if position + rdlength > end:
            raise DecodeError("rdata runs past the end", position)
        records.append(Record(name, rtype, rclass, ttl, rdlength, offset, position))
        position += rdlength
    return tuple(records), position


def encode_record(name: bytes, rtype: int, rclass: int, ttl: int, rdata: bytes) -> bytes:
    """One RR without compression."""
    return name + _packed(_RR_FIXED, rtype, rclass, ttl, len(rdata)) + rdata


def _packed(form: struct.Struct, *numbers: int) -> bytes:
    try:
        return form.pack(*numbers)
    except struct.error as error:
        raise EncodeError(f"a number does not fit its field: {error}") from error


@dataclass(slots=True)
class Builder:
    """Writes one message section by section, owner names compressed.

    `limit` is the size in octets that the caller may not pass; `add` returns False, and writes nothing, for a record
    that would. Octets kept back for OPT and TSIG are the caller's to subtract from `limit` first.
    """

    id: int
    flags: int
    limit: int = MAX_MESSAGE_OCTETS
    _out: bytearray = field(default_factory=lambda: bytearray(HEADER_OCTETS))
    _counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    _names: dict[bytes, int] = field(default_factory=dict)

    def question(self, name: bytes, rtype: int, rclass: int) -> None:
        if any(self._counts[1:]):
            raise EncodeError("sections must be written in order")
        fixed = _packed(_QUESTION_FIXED, rtype, rclass)
        self._write_name(name)
        self._out += fixed
        self._counts[0] += 1

    def answer(self, name: bytes, rtype: int, ttl: int, rdata: bytes, rclass: int = Class.IN) -> bool:
        return self.add(1, name, rtype, rclass, ttl, rdata)

    def authority(self, name: bytes, rtype: int, ttl: int, rdata: bytes, rclass: int = Class.IN) -> bool:
        return self.add(2, name, rtype, rclass, ttl, rdata)

    def additional(self, name: bytes, rtype: int, ttl: int, rdata: bytes, rclass: int = Class.IN) -> bool:
        return self.add(3, name, rtype, rclass, ttl, rdata)

    def add(self, section: int, name: bytes, rtype: int, rclass: int, ttl: int, rdata: bytes) -> bool:
        """Add to section 1 answer, 2 authority, 3 additional; sections are written in order."""
        if any(self._counts[section + 1 :]):
            raise EncodeError("sections must be written in order")
        if len(rdata) > self.limit:
            return False
        fixed = _packed(_RR_FIXED, rtype, rclass, ttl, len(rdata))
        mark = len(self._out)
        known = len(self._names)
        self._write_name(name)
        self._out += fixed
        self._out += rdata
        if len(self._out) > self.limit:
            del self._out[mark:]
            while len(self._names) > known:
                self._names.popitem()
            return False
        self._counts[section] += 1
        return True

    def add_alias(self, section: int, name: bytes, rtype: int, ttl: int, target: bytes) -> bool:
        """Add an RR of class IN whose rdata is one name, written compressed: NS or CNAME (RFC 3597 §4 allows those)."""
        point = self.checkpoint()
        if not self.add(section, name, rtype, Class.IN, ttl, b""):
            return False
        start = len(self._out)
        self._write_name(target)
        if len(self._out) > self.limit:
            self.rollback(point)
            return False
        self._out[start - 2 : start] = struct.pack("!H", len(self._out) - start)
        return True

    def opt(self, opt: Opt) -> None:
        """Append the OPT record, outside the limit that the caller has already reduced for it."""
        self._out += opt.encode()
        self._counts[3] += 1

    def checkpoint(self) -> tuple[int, tuple[int, ...], int]:
        """A point to `rollback` to: what came after it is taken out again."""
        return len(self._out), tuple(self._counts), len(self._names)

    def rollback(self, point: tuple[int, tuple[int, ...], int]) -> None:
        del self._out[point[0] :]
        self._counts[:] = point[1]
        while len(self._names) > point[2]:
            self._names.popitem()

    @property
    def size(self) -> int:
        return len(self._out)

    def count(self, section: int) -> int:
        return self._counts[section]

    def finish(self) -> bytes:
        if len(self._out) > MAX_MESSAGE_OCTETS:
            raise EncodeError("message longer than 65535 octets")
        self._out[:HEADER_OCTETS] = _packed(_HEADER, self.id, self.flags, *self._counts)
        return bytes(self._out)

    def _write_name(self, name: bytes) -> None:
        """Write a name, its longest known suffix (same case, so that case survives) as a pointer."""
        position = 0
        while name[position]:
            suffix = name[position:]
            target = self._names.get(suffix)
            if target is not None:
                self._out += struct.pack("!H", 0xC000 | target)
                return
            if len(self._out) <= _MAX_POINTER:
                self._names[suffix] = len(self._out)
            stop = position + 1 + name[position]
            self._out += name[position:stop]
            position = stop
        self._out += ROOT


def encode(
    id: int,
    flags: int,
    questions: Iterable[Question] = (),
    answers: Iterable[tuple[bytes, int, int, int, bytes]] = (),
    authority: Iterable[tuple[bytes, int, int, int, bytes]] = (),
    additional: Iterable[tuple[bytes, int, int, int, bytes]] = (),
    opt: Opt | None = None,
) -> bytes:
    """A message from plain (owner name, type, class, TTL, rdata) tuples: what clients and tests build."""
    builder = Builder(id, flags)
    for question in questions:
        builder.question(*question)
    for section, records in enumerate((answers, authority, additional), start=1):
        for name, rtype, rclass, ttl, rdata in records:
            if not builder.add(section, name, rtype, rclass, ttl, rdata):
                raise EncodeError("message longer than 65535 octets")
    if opt is not None:
        builder.opt(opt)
    return builder.finish()
