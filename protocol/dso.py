"""DNS Stateful Operations and DNS Push on the wire (RFC 8490, RFC 8765): messages, TLVs, pushed records.

      0               2               4 .. 12        12           14
      | ID (0: no     | QR, opcode 6, | four counts, | DSO-TYPE   | length     | data ...   next TLV ...
      | reply wanted) | RCODE         | all zero     |            |            |

The first TLV of a request says what it is about (primary); others add to it. Whether a mistake of the peer's is
answered or ends the connection is not decided here: `DecodeError` is all that decoding says.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from protocol.constants import HEADER_OCTETS, OPCODE_SHIFT, QR, Class, Opcode, Rcode
from protocol.errors import DecodeError, EncodeError
from protocol.message import Question, decode_header
from protocol.name import ROOT, read_name
from protocol.rdata import expand

PUSH_REMOVE_ONE: Final = 0xFFFFFFFF
"""TTL of a pushed record that is gone (RFC 8765 §6.3.1)."""
PUSH_REMOVE_SET: Final = 0xFFFFFFFE
"""TTL of a collective removal: an RRset, or with type ANY a whole name; no rdata (RFC 8765 §6.3.1)."""
PUSH_HIGHEST_TTL: Final = 0x7FFFFFFF
MAX_PUSH_OCTETS: Final = 16382
"""Octets of a PUSH message (RFC 8765 §6.3.1), so that every name in it can be pointed at."""
NO_LIMIT: Final = 0xFFFFFFFF
"""Milliseconds of a timeout that is switched off (RFC 8490 §7.1)."""
MIN_KEEPALIVE_MS: Final = 10_000
"""RFC 8490 §6.5.2: no interval may be shorter."""
PADDING_BLOCK: Final = 468

_TLV: Final = struct.Struct("!HH")
_HEADER: Final = struct.Struct("!HHQ")
_TYPE_CLASS: Final = struct.Struct("!HH")
_RR_FIXED: Final = struct.Struct("!HHIH")
_TIMEOUTS: Final = struct.Struct("!II")
_FLAGS: Final = Opcode.DSO << OPCODE_SHIFT


class DsoType(IntEnum):
    """DSO-TYPE (RFC 8490 §10.3, RFC 8765 §8)."""

    KEEPALIVE = 1
    RETRY_DELAY = 2
    PADDING = 3
    SUBSCRIBE = 0x40
    PUSH = 0x41
    UNSUBSCRIBE = 0x42
    RECONFIRM = 0x43


class Tlv(NamedTuple):
    """One type-length-value; `offset` is where its data begins in the message, for names that point back."""

    type: int
    data: bytes
    offset: int


class DsoMessage(NamedTuple):
    """A message whose TLVs were taken apart. `id` 0 without `is_response` is unidirectional."""

    wire: bytes
    id: int
    is_response: bool
    rcode: int
    tlvs: tuple[Tlv, ...]

    @property
    def primary(self) -> Tlv | None:
        return self.tlvs[0] if self.tlvs else None

    def additional(self, kind: int) -> Tlv | None:
        """The first TLV of this type that is not the primary one."""
        return next((tlv for tlv in self.tlvs[1:] if tlv.type == kind), None)


class PushedRecord(NamedTuple):
    """One record of a PUSH. `ttl` above PUSH_HIGHEST_TTL is a removal, or a value to ignore (RFC 8765 §6.3.1)."""

    name: bytes
    rtype: int
    rclass: int
    ttl: int
    rdata: bytes


def is_dso(wire: bytes) -> bool:
    """Whether a message of at least a header has opcode 6."""
    return len(wire) >= HEADER_OCTETS and (wire[2] >> 3) & 0xF == Opcode.DSO


def decode_dso(wire: bytes) -> DsoMessage:
    """Take a DSO message apart. `DecodeError` for counts that are not zero and TLVs that run past the end (§5.4)."""
    header = decode_header(wire)
    if wire[4:HEADER_OCTETS] != bytes(8):
        raise DecodeError("counts of a stateful operation are not zero", 4)
    tlvs: list[Tlv] = []
    position = HEADER_OCTETS
    end = len(wire)
    while position < end:
        if position + _TLV.size > end:
            raise DecodeError("TLV runs past the end", position)
        kind, length = _TLV.unpack_from(wire, position)
        position += _TLV.size
        if position + length > end:
            raise DecodeError("TLV data runs past the end", position)
        tlvs.append(Tlv(kind, wire[position : position + length], position))
        position += length
    return DsoMessage(wire, header.id, header.is_response, header.rcode, tuple(tlvs))


def encode_dso(
    message_id: int, tlvs: Iterable[tuple[int, bytes]], *, is_response: bool = False, rcode: int = Rcode.NOERROR
) -> bytes:
    """A message of these (type, data) pairs."""
    out = bytearray(_HEADER.pack(message_id, (QR if is_response else 0) | _FLAGS | rcode, 0))
    for kind, data in tlvs:
        out += _TLV.pack(kind, len(data)) + data
    return bytes(out)


def padding_for(size: int) -> tuple[int, bytes]:
    """A padding TLV that brings a message of `size` octets so far to a whole block (RFC 8490 §7.3, RFC 8467 §4.1)."""
    return DsoType.PADDING, bytes(-(size + _TLV.size) % PADDING_BLOCK)


def keepalive(inactivity_ms: int, interval_ms: int) -> tuple[int, bytes]:
    """The Keepalive TLV (RFC 8490 §7.1)."""
    return DsoType.KEEPALIVE, _TIMEOUTS.pack(inactivity_ms, interval_ms)


def decode_keepalive(tlv: Tlv) -> tuple[int, int]:
    """(inactivity timeout, keepalive interval) in milliseconds."""
    if len(tlv.data) != _TIMEOUTS.size:
        raise DecodeError("Keepalive is not 8 octets", tlv.offset)
    inactivity, interval = _TIMEOUTS.unpack(tlv.data)
    return inactivity, interval


def retry_delay(milliseconds: int) -> tuple[int, bytes]:
    """The Retry Delay TLV (RFC 8490 §7.2)."""
    return DsoType.RETRY_DELAY, milliseconds.to_bytes(4, "big")


def decode_retry_delay(tlv: Tlv) -> int:
    """Milliseconds to stay away."""
    if len(tlv.data) != 4:
        raise DecodeError("Retry Delay is not 4 octets", tlv.offset)
    return int.from_bytes(tlv.data, "big")


def subscribe(question: Question) -> tuple[int, bytes]:
    """The SUBSCRIBE TLV (RFC 8765 §6.2.1)."""
    return DsoType.SUBSCRIBE, question.name + _TYPE_CLASS.pack(question.rtype, question.rclass)


def decode_subscribe(tlv: Tlv) -> Question:
    """The question of a SUBSCRIBE; its name must not be compressed, so it is read from the TLV alone."""
    name, position = read_name(tlv.data, 0)
    if position != len(name) or position + _TYPE_CLASS.size != len(tlv.data):
        raise DecodeError("SUBSCRIBE is not a name, a type and a class", tlv.offset)
    return Question(name, *_TYPE_CLASS.unpack_from(tlv.data, position))


def unsubscribe(message_id: int) -> tuple[int, bytes]:
    """The UNSUBSCRIBE TLV for the SUBSCRIBE of this ID (RFC 8765 §6.4.1)."""
    return DsoType.UNSUBSCRIBE, message_id.to_bytes(2, "big")


def decode_unsubscribe(tlv: Tlv) -> int:
    """The message ID of the SUBSCRIBE that ends."""
    if len(tlv.data) != 2:
        raise DecodeError("UNSUBSCRIBE is not 2 octets", tlv.offset)
    return int.from_bytes(tlv.data, "big")


def reconfirm(question: Question, rdata: bytes) -> tuple[int, bytes]:
    """The RECONFIRM TLV (RFC 8765 §6.5.1)."""
    return DsoType.RECONFIRM, question.name + _TYPE_CLASS.pack(question.rtype, question.rclass) + rdata


def decode_reconfirm(tlv: Tlv) -> tuple[Question, bytes]:
    """The record that the client doubts."""
    name, position = read_name(tlv.data, 0)
    if position != len(name) or position + _TYPE_CLASS.size > len(tlv.data):
        raise DecodeError("RECONFIRM is not a name, a type, a class and rdata", tlv.offset)
    question = Question(name, *_TYPE_CLASS.unpack_from(tlv.data, position))
    return question, tlv.data[position + _TYPE_CLASS.size :]


def encode_push(records: Iterable[PushedRecord]) -> list[bytes]:
    """PUSH messages of these records in order, each of at most MAX_PUSH_OCTETS; owner names are compressed.

    `EncodeError` for a record that fits no PUSH message even alone.
    """
    messages: list[bytes] = []
    out = bytearray()
    known: dict[bytes, int] = {}

    def finish() -> None:
        if out:
            out[HEADER_OCTETS : HEADER_OCTETS + _TLV.size] = _TLV.pack(
                DsoType.PUSH, len(out) - HEADER_OCTETS - _TLV.size
            )
            messages.append(bytes(out))

    for record in records:
        while True:
            mark = len(out)
            if not mark:
                out += _HEADER.pack(0, _FLAGS, 0) + bytes(_TLV.size)
            _write_name(out, known, record.name)
            out += _RR_FIXED.pack(record.rtype, record.rclass, record.ttl, len(record.rdata)) + record.rdata
            if len(out) <= MAX_PUSH_OCTETS:
                break
            if not mark:
                raise EncodeError("record larger than a PUSH message")
            del out[mark:]
            finish()
            out.clear()
            known.clear()
    finish()
    return messages


def _write_name(out: bytearray, known: dict[bytes, int], name: bytes) -> None:
    """Write a name, its longest known suffix as a pointer. Every offset of a PUSH message can be pointed at."""
    position = 0
    while name[position]:
        suffix = name[position:]
        target = known.get(suffix)
        if target is not None:
            out += (0xC000 | target).to_bytes(2, "big")
            return
        known[suffix] = len(out)
        stop = position + 1 + name[position]
        out += name[position:stop]
        position = stop
    out += ROOT


def decode_push(message: DsoMessage) -> list[PushedRecord]:
    """The records of a PUSH; names in rdata whole, though a server may compress them (RFC 8765 §6.3.1)."""
    tlv = message.tlvs[0]
    wire = message.wire
    if len(wire) > MAX_PUSH_OCTETS:
        raise DecodeError("PUSH longer than 16382 octets", MAX_PUSH_OCTETS)
    position, end = tlv.offset, tlv.offset + len(tlv.data)
    records: list[PushedRecord] = []
    while position < end:
        name, position = read_name(wire, position)
        if position + _RR_FIXED.size > end:
            raise DecodeError("pushed record runs past its TLV", position)
        rtype, rclass, ttl, rdlength = _RR_FIXED.unpack_from(wire, position)
        position += _RR_FIXED.size
        if position + rdlength > end:
            raise DecodeError("pushed rdata runs past its TLV", position)
        if ttl == PUSH_REMOVE_SET and rdlength:
            raise DecodeError("collective removal with rdata", position)
        if (ttl <= PUSH_HIGHEST_TTL or ttl == PUSH_REMOVE_ONE) and Class.ANY in (rtype, rclass):
            raise DecodeError("pushed record of type or class ANY", position)
        rdata = expand(rtype, wire, position, rdlength) if ttl != PUSH_REMOVE_SET and rdlength else b""
        records.append(PushedRecord(name, rtype, rclass, ttl, rdata))
        position += rdlength
    if not records:
        raise DecodeError("PUSH without a record", tlv.offset)
    return records
