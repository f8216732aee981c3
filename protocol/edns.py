"""EDNS(0) (RFC 6891) and the options this system speaks: LLQ, Update Lease, extended errors.

OPT:     00 | 0029 | payload size | ext-RCODE version DO Z | RDLENGTH | {code u16, length u16, data}...
LLQ:     version u16 | opcode u16 | error u16 | LLQ-ID u64 | LEASE u32                      (RFC 8764 §3.2)
Lease:   LEASE u32 [ KEY-LEASE u32 ]                                                         (RFC 9664 §4)
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from protocol.constants import EdnsOption, Type
from protocol.errors import DecodeError, EncodeError

_LLQ: Final = struct.Struct("!HHHQI")
_OPTION_HEAD: Final = struct.Struct("!HH")
_OPT_FIXED: Final = struct.Struct("!BHHBBHH")
_DO: Final = 0x8000
LLQ_VERSION: Final = 1
LLQ_EVENT_REMOVE_TTL: Final = 0xFFFFFFFF  # TTL of a removed record in an event (RFC 8764 §6.2: -1)


@dataclass(frozen=True, slots=True)
class Opt:
    """An OPT record. `options` keeps order and repeats; `payload_size` is as sent and may be 0 from LLQ clients."""

    payload_size: int = 1232
    extended_rcode: int = 0
    version: int = 0
    dnssec_ok: bool = False
    options: tuple[tuple[int, bytes], ...] = ()

    def encode(self) -> bytes:
        flags = _DO if self.dnssec_ok else 0
        try:
            data = b"".join(_OPTION_HEAD.pack(code, len(value)) + value for code, value in self.options)
            fixed = _OPT_FIXED.pack(0, Type.OPT, self.payload_size, self.extended_rcode, self.version, flags, len(data))
        except struct.error as error:
            raise EncodeError(f"OPT does not fit its fields: {error}") from error
        return fixed + data

    def all(self, code: int) -> list[bytes]:
        """Data of every option with this code, in order."""
        return [value for option, value in self.options if option == code]


def decode_opt(rclass: int, ttl: int, wire: bytes, offset: int, length: int) -> Opt:
    """OPT from its class, TTL and rdata; `DecodeError` for an option that runs past it."""
    options: list[tuple[int, bytes]] = []
    position, end = offset, offset + length
    while position < end:
        if position + 4 > end:
            raise DecodeError("EDNS option header runs past the OPT", position)
        code, size = _OPTION_HEAD.unpack_from(wire, position)
        position += 4
        if position + size > end:
            raise DecodeError("EDNS option runs past the OPT", position)
        options.append((code, wire[position : position + size]))
        position += size
    return Opt(rclass, ttl >> 24, ttl >> 16 & 0xFF, bool(ttl & _DO), tuple(options))


class LlqOpcode(IntEnum):
    SETUP = 1
    REFRESH = 2
    EVENT = 3


class LlqError(IntEnum):
    NO_ERROR = 0
    SERV_FULL = 1
    STATIC = 2
    FORMAT_ERR = 3
    NO_SUCH_LLQ = 4
    BAD_VERS = 5
    UNKNOWN_ERR = 6


class LlqOption(NamedTuple):
    """`opcode` and `error` are raw: Apple clients put a UDP port into `error` on streams. `lease` in seconds."""

    version: int
    opcode: int
    error: int
    llq_id: int
    lease: int

    def encode(self) -> tuple[int, bytes]:
        return EdnsOption.LLQ, _LLQ.pack(*self)


def llq_options(opt: Opt | None) -> list[LlqOption]:
    """Every LLQ option of an OPT, in question order; `DecodeError` for one that has not 18 octets."""
    found: list[LlqOption] = []
    for data in opt.all(EdnsOption.LLQ) if opt else ():
        if len(data) != _LLQ.size:
            raise DecodeError("LLQ option has not 18 octets", 0)
        found.append(LlqOption(*_LLQ.unpack(data)))
    return found


class UpdateLease(NamedTuple):
    """Seconds wished or granted; `key_lease` is None for the 4-octet form, which must be answered in kind."""

    lease: int
    key_lease: int | None = None

    def encode(self) -> tuple[int, bytes]:
        if self.key_lease is None:
            return EdnsOption.UPDATE_LEASE, struct.pack("!I", self.lease)
        return EdnsOption.UPDATE_LEASE, struct.pack("!II", self.lease, self.key_lease)


def update_lease(opt: Opt | None) -> UpdateLease | None:
    """The Update Lease option; `DecodeError` for a wrong length or a second one (RFC 9664 is silent: D-numbered)."""
    found = opt.all(EdnsOption.UPDATE_LEASE) if opt else []
    if not found:
        return None
    if len(found) > 1:
        raise DecodeError("second Update Lease option", 0)
    if len(found[0]) == 4:
        return UpdateLease(*struct.unpack("!I", found[0]))
    if len(found[0]) == 8:
        return UpdateLease(*struct.unpack("!II", found[0]))
    raise DecodeError("Update Lease option has neither 4 nor 8 octets", 0)


def extended_error(code: int, text: str) -> tuple[int, bytes]:
    """An EDE option (RFC 8914 §2); the text is cut at 200 octets, at a character's edge."""
    data = text.encode("utf-8")[:200].decode("utf-8", "ignore").encode("utf-8")
    return EdnsOption.EDE, struct.pack("!H", code) + data


def extended_errors(opt: Opt | None) -> list[tuple[int, str]]:
    """(info code, text) of every EDE option: what a client shows."""
    return [
        (int.from_bytes(data[:2], "big"), data[2:].rstrip(b"\0").decode("utf-8", "replace"))
        for data in (opt.all(EdnsOption.EDE) if opt else ())
        if len(data) >= 2
    ]
