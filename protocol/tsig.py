"""TSIG (RFC 8945): sign and verify, time passed in.

    owner = key name | TSIG | ANY | 0 | RDLENGTH |
    algorithm name | time signed u48 | fudge u16 | MAC size u16 | MAC | original ID u16 | error u16 | other len | other

Digest: [request MAC with its length] | message without the TSIG, ARCOUNT one less, ID = original ID | TSIG variables.
Key and algorithm names are digested folded and whole; clients in the field write the owner name compressed.
"""

import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from protocol.constants import MAX_MESSAGE_OCTETS, Class, TsigError, Type
from protocol.errors import DecodeError, EncodeError
from protocol.message import Message, Record
from protocol.name import fold, from_text, read_name

FUDGE_SECONDS: Final = 300
_RR_FIXED: Final = struct.Struct("!HHIH")
_CLASS_AND_TTL: Final = b"\x00\xff\x00\x00\x00\x00"  # ANY, 0
_TAIL_OF_NONE: Final = bytes(4)  # no error, no other data
_TIMERS: Final = struct.Struct("!HIH")  # time signed (high, low), fudge
_FIXED: Final = struct.Struct("!HIHH")  # time signed (high, low), fudge, MAC size
_ONE_LESS: Final = {count.to_bytes(2, "big"): (count - 1).to_bytes(2, "big") for count in range(1, 16)}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`name` is the folded wire name; `digest` what `hmac` calls it.

    `size` is that of the whole MAC in octets, `minimum` of the shortest that may be sent: half the length of the hash
    function in use, never below 10 (RFC 8945 §5.2.2.1). `hash_size` is what a secret should have at least (§8).
    """

    text: str
    name: bytes
    digest: str
    size: int
    minimum: int
    hash_size: int


def _algorithm(text: str, digest: str, hash_size: int, size: int = 0) -> Algorithm:
    """`size`: for names that mean a hash cut short, such as hmac-sha256-128 (RFC 4868)."""
    return Algorithm(text, from_text(text), digest, size or hash_size, max(10, hash_size // 2), hash_size)


ALGORITHMS: Final = {
    item.name: item
    for item in (
        _algorithm("hmac-sha256", "sha256", 32),
        _algorithm("hmac-sha224", "sha224", 28),
        _algorithm("hmac-sha384", "sha384", 48),
        _algorithm("hmac-sha512", "sha512", 64),
        _algorithm("hmac-sha256-128", "sha256", 32, 16),
        _algorithm("hmac-sha384-192", "sha384", 48, 24),
        _algorithm("hmac-sha512-256", "sha512", 64, 32),
        _algorithm("hmac-sha1", "sha1", 20),
        _algorithm("hmac-md5.sig-alg.reg.int", "md5", 16),
    )
}
MD5: Final = ALGORITHMS[from_text("hmac-md5.sig-alg.reg.int")]
SHA256: Final = ALGORITHMS[from_text("hmac-sha256")]


def algorithm_from_text(text: str) -> Algorithm:
    """`ValueError` with the known names for anything else; `hmac-md5` is taken as its long name."""
    folded = text.lower().rstrip(".")
    if folded == "hmac-md5":
        return MD5
    for item in ALGORITHMS.values():
        if item.text == folded:
            return item
    known = ", ".join(item.text for item in ALGORITHMS.values())
    raise ValueError(f"unknown TSIG algorithm {text!r} (known: {known})")


@dataclass(frozen=True, slots=True)
class Key:
    """A shared secret under its name. `name` is wire form, folded on the way in; the secret never shows in `repr`."""

    name: bytes
    algorithm: Algorithm
    secret: bytes = field(repr=False)
    # RFC 2104 with both pads hashed once for all messages, a third of the time of a whole HMAC; and what stands around
    # times and MAC in the digest and in a TSIG with a whole MAC and no other data.
    _inner: Any = field(init=False, repr=False, compare=False)
    _outer: Any = field(init=False, repr=False, compare=False)
    variables: bytes = field(init=False, repr=False, compare=False)
    head: bytes = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)
    size_octets: bytes = field(init=False, repr=False, compare=False)
    times_at: int = field(init=False, repr=False, compare=False)
    common_octets: int = field(init=False, repr=False, compare=False)
    """Where in such a TSIG the times stand, and how long it is."""
    record_octets: int = field(init=False, repr=False, compare=False)
    """What a TSIG with this key adds to a message, BADTIME's other data included: what truncation keeps back."""

    def __post_init__(self) -> None:
        # The name goes into the digest: with upper-case letters every MAC of this key would be wrong (RFC 8945 §4.3.3).
        put = object.__setattr__
        put(self, "name", fold(self.name))
        algorithm = self.algorithm
        for field_name, pad in (("_inner", 0x36), ("_outer", 0x5C)):
            state = hashlib.new(algorithm.digest)
            secret = self.secret
            if len(secret) > state.block_size:
                secret = hashlib.new(algorithm.digest, secret).digest()
            state.update(bytes(octet ^ pad for octet in secret.ljust(state.block_size, b"\0")))
            put(self, field_name, state)
        put(self, "variables", self.name + _CLASS_AND_TTL + algorithm.name)
        rdlength = len(algorithm.name) + _FIXED.size + algorithm.size + len(_TAIL_OF_NONE) + 2
        put(self, "head", _RR_FIXED.pack(Type.TSIG, Class.ANY, 0, rdlength) + algorithm.name)
        put(self, "size", algorithm.size)
        put(self, "size_octets", algorithm.size.to_bytes(2, "big"))
        put(self, "times_at", len(self.name) + len(self.head))
        put(self, "common_octets", len(self.name) + _RR_FIXED.size + rdlength)
        put(self, "record_octets", self.common_octets + 6)

    def mac(self, data: bytes) -> bytes:
        """The whole MAC of the key's algorithm."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        mac: bytes = outer.digest()
        return mac[: self.size]

    def __deepcopy__(self, memo: object) -> "Key":
        return self  # hash states cannot be copied that way, and nothing here changes


class Tsig(NamedTuple):
    """The rdata of a TSIG record; `time_signed` in seconds since 1970."""

    key_name: bytes
    algorithm: bytes
    time_signed: int
    fudge: int
    mac: bytes
    original_id: int
    error: int
    other: bytes


def decode_tsig(record: Record, wire: bytes) -> Tsig:
    """Take a TSIG record apart; key and algorithm names come folded."""
    if record.rclass != Class.ANY or record.ttl != 0:
        raise DecodeError("TSIG class is not ANY or its TTL not 0", record.offset)
    end = record.rdata_offset + record.rdlength
    algorithm, position = read_name(wire, record.rdata_offset)
    if position + 10 > end:
        raise DecodeError("TSIG rdata too short", position)
    high, low, fudge, mac_size = _FIXED.unpack_from(wire, position)
    position += 10
    if position + mac_size + 6 > end:
        raise DecodeError("TSIG MAC runs past its rdata", position)
    mac = wire[position : position + mac_size]
    position += mac_size
    original_id, error, other_size = struct.unpack_from("!3H", wire, position)
    position += 6
    if position + other_size != end:
        raise DecodeError("TSIG other data does not end with the rdata", position)
    return Tsig(
        fold(record.name), fold(algorithm), high << 32 | low, fudge, mac, original_id, error, wire[position:end]
    )


def _variables(key_name: bytes, algorithm: bytes, time_signed: int, fudge: int, error: int, other: bytes) -> bytes:
    return b"".join(
        (
            key_name,
            _CLASS_AND_TTL,
            algorithm,
            struct.pack("!HIHHH", time_signed >> 32, time_signed & 0xFFFFFFFF, fudge, error, len(other)),
            other,
        )
    )


def _timers(time_signed: int, fudge: int) -> bytes:
    return _TIMERS.pack(time_signed >> 32, time_signed & 0xFFFFFFFF, fudge)


def _with_length(mac: bytes) -> bytes:
    return struct.pack("!H", len(mac)) + mac if mac else b""


def _stripped(message: Message, tsig: Tsig) -> bytes:
    """The message as it was before the TSIG went on."""
    assert message.tsig is not None
    wire = message.wire
    return b"".join(
        (
            struct.pack("!H", tsig.original_id),
            wire[2:10],
            struct.pack("!H", message.header.arcount - 1),
            wire[12 : message.tsig.offset],
        )
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification found. NOERROR: good. BADTIME and BADTRUNC had a good MAC and are answered signed."""

    error: TsigError
    tsig: Tsig

    @property
    def is_signable(self) -> bool:
        """Whether the reply may be signed with the key (RFC 8945 §5.3.2)."""
        return self.error in (TsigError.NOERROR, TsigError.BADTIME, TsigError.BADTRUNC)


def verify(
    message: Message,
    tsig: Tsig,
    key: Key | None,
    *,
    now: int,
    request_mac: bytes = b"",
    previous: bytes | None = None,
    minimum_mac: int = 0,
) -> Verdict:
    """Check key, MAC, time, truncation, in the order of RFC 8945 §5.2.

    `now` in seconds since 1970. `request_mac` is given when `message` is a response. `previous` is the prior MAC of a
    stream plus nothing else when `message` is a later one of a signed stream (then only the timers are digested).
    `minimum_mac` is local policy in octets (0: none); a whole MAC is never too short for it (§7). `DecodeError` for an
    impossible MAC size (§5.2.2.1).
    """
    if key is None or key.algorithm.name != tsig.algorithm:
        return Verdict(TsigError.BADKEY, tsig)
    size = len(tsig.mac)
    if size > key.algorithm.size or size < key.algorithm.minimum:
        assert message.tsig is not None
        raise DecodeError("TSIG MAC size is outside the algorithm's bounds", message.tsig.offset)
    if previous is None:
        data = (
            _with_length(request_mac)
            + _stripped(message, tsig)
            + _variables(tsig.key_name, tsig.algorithm, tsig.time_signed, tsig.fudge, tsig.error, tsig.other)
        )
    else:
        data = _with_length(previous) + _stripped(message, tsig) + _timers(tsig.time_signed, tsig.fudge)
    if not hmac.compare_digest(key.mac(data)[:size], tsig.mac):
        return Verdict(TsigError.BADSIG, tsig)
    if abs(now - tsig.time_signed) > tsig.fudge:
        return Verdict(TsigError.BADTIME, tsig)
    if size < min(minimum_mac, key.algorithm.size):
        return Verdict(TsigError.BADTRUNC, tsig)
    return Verdict(TsigError.NOERROR, tsig)


def common_name(wire: bytes, start: int) -> bytes:
    """The folded owner name of a TSIG that begins at `start`, if it is not compressed; else something no key has."""
    return fold(wire[start : wire.find(0, start) + 1])


def common_mac(wire: bytes, start: int, key: Key, *, now: int) -> bytes | None:
    """Size and MAC of a request's TSIG, when it is of the form most have and good; None when `verify` must look.

    That form: the record from octet `start` to the end of `wire`, its owner the uncompressed name of `key`, a whole MAC
    under that key's algorithm, no error, no other data, the ID of the message.
    """
    head = key.head
    if len(wire) != start + key.common_octets or not wire.startswith(head, start + len(key.name)):
        return None
    times_at = start + key.times_at
    mac_at = times_at + _FIXED.size
    end = mac_at + key.size
    count = _ONE_LESS.get(wire[10:12])
    high, low, fudge, size = _FIXED.unpack_from(wire, times_at)
    if (
        count is None
        or size != key.size
        or abs(now - (high << 32 | low)) > fudge
        or wire[end:] != wire[:2] + _TAIL_OF_NONE
    ):
        return None
    times = wire[times_at : mac_at - 2]
    data = b"".join((wire[:10], count, wire[12:start], key.variables, times, _TAIL_OF_NONE))
    return wire[mac_at - 2 : end] if hmac.compare_digest(key.mac(data), wire[mac_at:end]) else None


def verify_common(wire: bytes, start: int, key: Key, *, now: int) -> Tsig | None:
    """The same with all that the record says."""
    mac = common_mac(wire, start, key, now=now)
    if mac is None:
        return None
    high, low, fudge, _ = _FIXED.unpack_from(wire, start + key.times_at)
    said = (key.name, key.algorithm.name, high << 32 | low, fudge, mac[2:], wire[0] << 8 | wire[1], 0, b"")
    return tuple.__new__(Tsig, said)  # half the time of calling a NamedTuple


@lru_cache(maxsize=16)
def _times(now: int) -> bytes:
    return _TIMERS.pack(now >> 32, now & 0xFFFFFFFF, FUDGE_SECONDS)


def sign_reply(message_id: bytes, reply: bytes, key: Key, *, now: int, request_mac: bytes) -> bytes:
    """A reply, signed, both from octet 2 on; `request_mac` as `common_mac` gave it."""
    times = _times(now)
    mac = key.mac(b"".join((request_mac, message_id, reply, key.variables, times, _TAIL_OF_NONE)))
    count = ((reply[8] << 8 | reply[9]) + 1).to_bytes(2, "big")
    before = reply[:8], count, reply[10:]
    return b"".join((*before, key.name, key.head, times, key.size_octets, mac, message_id, _TAIL_OF_NONE))


def sign_common(wire: bytes, key: Key, *, now: int, request_mac: bytes | None) -> bytes:
    """`sign` without an error and under the message's own ID: the same octets, in a third of the time.

    `request_mac` is that of the request when `wire` is a reply to a signed one.
    """
    message_id = wire[:2]
    digested = _with_length(request_mac) if request_mac else b""
    return message_id + sign_reply(message_id, wire[2:], key, now=now, request_mac=digested)


def common_macs(wires: Iterable[bytes], key: Key, *, now: int) -> list[bytes]:
    """The MACs of messages as `sign_common` makes them for such that answer no signed request."""
    rest = b"".join((key.variables, _times(now), _TAIL_OF_NONE))
    mac = key.mac
    return [mac(wire + rest) for wire in wires]


def _append(wire: bytes, tsig: Tsig) -> bytes:
    rdata = b"".join(
        (
            tsig.algorithm,
            _FIXED.pack(tsig.time_signed >> 32, tsig.time_signed & 0xFFFFFFFF, tsig.fudge, len(tsig.mac)),
            tsig.mac,
            struct.pack("!3H", tsig.original_id, tsig.error, len(tsig.other)),
            tsig.other,
        )
    )
    count = int.from_bytes(wire[10:12], "big") + 1
    signed = b"".join(
        (
            wire[:10],
            struct.pack("!H", count),
            wire[12:],
            tsig.key_name,
            _RR_FIXED.pack(Type.TSIG, Class.ANY, 0, len(rdata)),
            rdata,
        )
    )
    if len(signed) > MAX_MESSAGE_OCTETS:
        raise EncodeError("no room for the TSIG in 65535 octets")
    return signed


def sign(
    wire: bytes,
    key: Key,
    *,
    now: int,
    request_mac: bytes = b"",
    previous: bytes | None = None,
    fudge: int = FUDGE_SECONDS,
    error: int = TsigError.NOERROR,
    other: bytes = b"",
    original_id: int | None = None,
) -> tuple[bytes, bytes]:
    """Sign `wire` (which has no TSIG): (signed message, its MAC).

    A response passes the MAC of its request. A later message of a stream passes the MAC of the one before as
    `previous`. For a BADTIME reply `now` and `fudge` are the client's and `other` our time (§5.2.3). `original_id` is
    the request's in a reply through a forwarder that gave it an ID of its own (§4.2); default the message's.
    """
    if original_id is None:
        original_id = int.from_bytes(wire[:2], "big")
        digested = wire
    else:
        digested = struct.pack("!H", original_id) + wire[2:]
    if previous is None:
        data = _with_length(request_mac) + digested + _variables(key.name, key.algorithm.name, now, fudge, error, other)
    else:
        data = _with_length(previous) + digested + _timers(now, fudge)
    mac = key.mac(data)
    return _append(wire, Tsig(key.name, key.algorithm.name, now, fudge, mac, original_id, error, other)), mac


def unsigned_error(wire: bytes, request: Tsig, error: TsigError) -> bytes:
    """Append the empty TSIG of a BADKEY or BADSIG reply: error set, no MAC (RFC 8945 §5.3.2)."""
    return _append(
        wire,
        Tsig(
            *(request.key_name, request.algorithm, request.time_signed, request.fudge),
            *(b"", request.original_id, error, b""),
        ),
    )
