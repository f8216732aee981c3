"""PCP requests and responses as values (RFC 6887), and the client's epoch check.

Pure codec, shared by whoever serves PCP and whoever asks. Every octet string decodes to a value or raises
`DecodeError`; a request that deserves an error response is a value, too. All numbers are big endian, lifetimes and
epochs are whole seconds, IPv4 addresses travel as ::ffff:a.b.c.d.

    request    | 0: version 2 | 1: opcode       | 2: reserved             | 4: lifetime | 8: client's address   | 24: |
    response   | 0: version 2 | 1: 128 + opcode | 2: reserved | 3: result | 4: lifetime | 8: epoch | 12: reserved| 24: |
    MAP        | 0: nonce | 12: protocol | 13: reserved | 16: internal port | 18: external port | 20: address        |
    option     | 0: code  | 1: reserved  | 2: length    | 4: content, filled up to a multiple of 4                   |
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from .errors import DecodeError, EncodeError

VERSION = 2
SERVER_PORT = 5351
ANNOUNCEMENT_GROUP_IPV6 = "ff02::1"
RESPONSE_BIT = 128
HEADER_OCTETS = 24
MAP_OCTETS = 36
NONCE_OCTETS = 12
LONGEST_OCTETS = 1100
"""Neither requests nor responses are longer (RFC 6887 §7)."""
LARGEST_LIFETIME = 0xFFFFFFFF
OPTIONAL_CODES = 128
"""Options from this code on may be ignored by a server that does not know them; below, they must not be."""

Address = IPv4Address | IPv6Address
NO_IPV4 = IPv4Address(0)

_REQUEST = struct.Struct("!BBHI16s")
_RESPONSE = struct.Struct("!BBBBII12x")
_MAP = struct.Struct("!12sB3xHH16s")
_OPTION = struct.Struct("!BxH")
_FILTER = struct.Struct("!xBH16s")


class Opcode(IntEnum):
    """What a request asks for; the response carries the same number plus 128. PEER is 2 (RFC 6887 §12), not coded."""

    ANNOUNCE = 0
    MAP = 1


class ResultCode(IntEnum):
    """RFC 6887 §7.4."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


UNPARSED_RESULTS = frozenset(
    {
        ResultCode.UNSUPP_VERSION,
        ResultCode.MALFORMED_REQUEST,
        ResultCode.UNSUPP_OPCODE,
        ResultCode.MALFORMED_OPTION,
    }
)
"""Errors of requests that were not read to their end: part of the client's address goes back (RFC 6887 §7.2)."""


class OptionCode(IntEnum):
    """RFC 6887 §13."""

    THIRD_PARTY = 1
    PREFER_FAILURE = 2
    FILTER = 3


@dataclass(frozen=True, slots=True)
class ThirdParty:
    """The mapping is for this host and not for the sender (RFC 6887 §13.1)."""

    address: Address

    @property
    def code(self) -> int:
        return OptionCode.THIRD_PARTY

    def encode(self) -> bytes:
        return _encode_option(self.code, _encode_address(self.address))


@dataclass(frozen=True, slots=True)
class PreferFailure:
    """Rather no mapping than another external port or address (RFC 6887 §13.2)."""

    @property
    def code(self) -> int:
        return OptionCode.PREFER_FAILURE

    def encode(self) -> bytes:
        return _encode_option(self.code, b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Only these remote peers may send; prefix length 0 drops the filters before it (RFC 6887 §13.3).

    The prefix length counts from the start of the 16 octets, so it is 96 to 128 for IPv4. Remote port 0 means all.
    """

    prefix_length: int
    remote_port: int
    address: Address

    @property
    def code(self) -> int:
        return OptionCode.FILTER

    def encode(self) -> bytes:
        content = _pack(_FILTER, self.prefix_length, self.remote_port, _encode_address(self.address))
        return _encode_option(self.code, content)


@dataclass(frozen=True, slots=True)
class UnknownOption:
    """An option that is not known here. Whether it may be ignored says its code."""

    code: int
    content: bytes

    @property
    def is_mandatory(self) -> bool:
        return self.code < OPTIONAL_CODES

    def encode(self) -> bytes:
        return _encode_option(self.code, self.content)


@dataclass(frozen=True, slots=True)
class UnreadableOption:
    """A known option of a wrong length or content, of another opcode, or once too often."""

    code: int


Option = ThirdParty | PreferFailure | Filter | UnknownOption
RequestOption = Option | UnreadableOption


@dataclass(frozen=True, slots=True, kw_only=True)
class MapBody:
    """The 36 octets of a MAP, alike in request and response (RFC 6887 §11.1).

    `external_port` and `external_address` are suggested by a request and assigned by a response. The nonce is what
    proves a mapping to be one's own, so it is not shown.
    """

    nonce: bytes = field(repr=False)
    protocol: int
    internal_port: int
    external_port: int
    external_address: Address

    def encode(self) -> bytes:
        if len(self.nonce) != NONCE_OCTETS:
            raise EncodeError("a nonce has 12 octets")
        return _pack(
            _MAP,
            self.nonce,
            self.protocol,
            self.internal_port,
            self.external_port,
            _encode_address(self.external_address),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of version 2 whose header, opcode data and option structure can be read.

    `body` is that of a MAP. With `fault` set, what follows the header has not been understood and this result is due,
    after the check of the client's address.
    """

    opcode: int
    lifetime: int
    client: Address
    body: MapBody | None = None
    options: tuple[RequestOption, ...] = ()
    fault: ResultCode | None = None

    def encode(self) -> bytes:
        """Write it, as a client does. Raises `EncodeError` for what only a decoder can have found."""
        if self.fault is not None:
            raise EncodeError("a request that was not understood")
        if (self.opcode == Opcode.MAP) != (self.body is not None):
            raise EncodeError("a MAP has a body, and nothing else has")
        head = _pack(_REQUEST, VERSION, self.opcode, 0, self.lifetime, _encode_address(self.client))
        options = []
        for option in self.options:
            if isinstance(option, UnreadableOption):
                raise EncodeError("an option that could not be read")
            options.append(option)
        return _bounded(head, self.body, options)


@dataclass(frozen=True, slots=True)
class ForeignVersionRequest:
    """A request of another version than 2, of which nothing more is known."""

    version: int


@dataclass(frozen=True, slots=True)
class BrokenRequest:
    """A request of version 2 with an impossible length: too long, no multiple of 4, or cut short for its opcode."""

    opcode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer or an announcement. `lifetime` of an error says how long the same request is of no use.

    `body` is that of a MAP; the error of an opcode that is not known here has neither body nor options.
    """

    opcode: int
    result: int
    lifetime: int
    epoch: int
    body: MapBody | None = None
    options: tuple[Option, ...] = ()

    def encode(self) -> bytes:
        """Write it. Errors are better written with `refuse`, which sends the request back as it came."""
        opcode = self.opcode | RESPONSE_BIT
        head = _pack(_RESPONSE, VERSION, opcode, 0, self.result, self.lifetime, self.epoch)
        return _bounded(head, self.body, self.options)


def decode_request(octets: bytes) -> Request | ForeignVersionRequest | BrokenRequest:
    """Read what a client sent, in the order that decides which answer is due (RFC 6887 §8.2).

    Raises `DecodeError` for whatever deserves no answer: under 2 octets, a response, or version 2 under 24 octets.
    """
    if len(octets) < 2:
        raise DecodeError("shorter than version and opcode", len(octets))
    version, opcode = octets[0], octets[1]
    if opcode & RESPONSE_BIT:
        raise DecodeError("a response, not a request", 1)
    if version != VERSION:
        return ForeignVersionRequest(version)
    if len(octets) < HEADER_OCTETS:
        raise DecodeError("request header cut short", len(octets))
    start = HEADER_OCTETS + (MAP_OCTETS if opcode == Opcode.MAP else 0)
    if len(octets) > LONGEST_OCTETS or len(octets) % 4 or len(octets) < start:
        return BrokenRequest(opcode)
    _, _, _, lifetime, client = _REQUEST.unpack_from(octets)
    head = {"opcode": opcode, "lifetime": lifetime, "client": _decode_address(client)}
    if opcode not in set(Opcode):
        return Request(**head, fault=ResultCode.UNSUPP_OPCODE)
    body = _decode_map(octets) if opcode == Opcode.MAP else None
    try:
        options = _decode_options(octets, start, opcode)
    except DecodeError:
        return Request(**head, body=body, fault=ResultCode.MALFORMED_OPTION)
    return Request(**head, body=body, options=options)


def decode_response(octets: bytes) -> Response:
    """Read what a server sent. The reserved octets are ignored, and so are options of an error.

    Raises `DecodeError` for what RFC 6887 §8.3 has a client drop. The 8 octets with which a NAT-PMP gateway refuses
    version 2 are no PCP: `protocol.natpmp.decode_response` reads them.
    """
    if len(octets) < HEADER_OCTETS or len(octets) > LONGEST_OCTETS or len(octets) % 4:
        raise DecodeError("impossible length", len(octets))
    if octets[0] != VERSION:
        raise DecodeError("not PCP version 2", 0)
    if not octets[1] & RESPONSE_BIT:
        raise DecodeError("a request, not a response", 1)
    _, opcode, _, result, lifetime, epoch = _RESPONSE.unpack_from(octets)
    opcode &= ~RESPONSE_BIT
    head = {"opcode": opcode, "result": result, "lifetime": lifetime, "epoch": epoch}
    body = None
    start = HEADER_OCTETS
    if opcode == Opcode.MAP and len(octets) >= HEADER_OCTETS + MAP_OCTETS:
        body = _decode_map(octets)
        start += MAP_OCTETS
    if result != ResultCode.SUCCESS:
        return Response(**head, body=body)
    if opcode not in set(Opcode):
        return Response(**head)
    if opcode == Opcode.MAP and body is None:
        raise DecodeError("success without its body", len(octets))
    options = _decode_options(octets, start, opcode)
    readable = tuple(option for option in options if not isinstance(option, UnreadableOption))
    return Response(**head, body=body, options=readable)


def refuse(request: bytes, result: ResultCode, *, lifetime: int, epoch: int) -> bytes:
    """Send a request back as an error response (RFC 6887 §8.2, §7.2).

    The copy is cut to 1100 octets, and filled up to a multiple of 4 and to a whole header, for without one there would
    be no room for lifetime and epoch.
    """
    octets = bytearray(request[:LONGEST_OCTETS])
    octets += bytes(max(HEADER_OCTETS - len(octets), -len(octets) % 4))
    octets[0] = VERSION
    octets[1] |= RESPONSE_BIT
    octets[2:12] = struct.pack("!BBII", 0, result, lifetime, epoch)
    if result not in UNPARSED_RESULTS:
        octets[12:HEADER_OCTETS] = bytes(12)
    return bytes(octets)


class EpochWatch:
    """Notices from a server's epochs that it lost its mappings or moved to another address (RFC 6887 §8.5).

    Feed it every response of one server, announcements included; begin a new one for another server. Other than with
    NAT-PMP, an epoch that is too far ahead is a sign of loss as well.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def observe(self, epoch: int, now: float) -> bool:
        """Tell whether the server's state was lost since the response before. `now` is monotonic seconds."""
        last = self._last
        self._last = (epoch, int(now))
        if last is None:
            return False
        last_epoch, last_now = last
        client_delta = int(now) - last_now
        server_delta = epoch - last_epoch
        return (
            server_delta < -1
            or client_delta + 2 < server_delta - server_delta // 16
            or server_delta + 2 < client_delta - client_delta // 16
        )


def _decode_map(octets: bytes) -> MapBody:
    nonce, protocol, internal_port, external_port, address = _MAP.unpack_from(octets, HEADER_OCTETS)
    return MapBody(
        nonce=nonce,
        protocol=protocol,
        internal_port=internal_port,
        external_port=external_port,
        external_address=_decode_address(address),
    )


def _decode_options(octets: bytes, at: int, opcode: int) -> tuple[RequestOption, ...]:
    """Read options in order. Raises `DecodeError` if one runs past the end; the end is a multiple of 4."""
    options: list[RequestOption] = []
    seen: set[int] = set()
    while at < len(octets):
        code, length = _OPTION.unpack_from(octets, at)
        at += _OPTION.size
        if at + length > len(octets):
            raise DecodeError("option runs past the end", at)
        options.append(_decode_option(code, octets[at : at + length], opcode, repeated=code in seen))
        seen.add(code)
        at += length + -length % 4
    return tuple(options)


def _decode_option(code: int, content: bytes, opcode: int, *, repeated: bool) -> RequestOption:
    if code not in set(OptionCode):
        return UnknownOption(code, bytes(content))
    if opcode == Opcode.MAP:
        if code == OptionCode.THIRD_PARTY and len(content) == 16 and not repeated:
            return ThirdParty(_decode_address(content))
        if code == OptionCode.PREFER_FAILURE and not content and not repeated:
            return PreferFailure()
        if code == OptionCode.FILTER and len(content) == _FILTER.size:
            prefix_length, remote_port, packed = _FILTER.unpack(content)
            address = _decode_address(packed)
            shortest = 96 if isinstance(address, IPv4Address) else 0
            if prefix_length == 0 or shortest <= prefix_length <= 128:
                return Filter(prefix_length=prefix_length, remote_port=remote_port, address=address)
    return UnreadableOption(code)


def _decode_address(octets: bytes) -> Address:
    address = IPv6Address(octets)
    return address.ipv4_mapped or address


def _encode_address(address: Address) -> bytes:
    if isinstance(address, IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def _encode_option(code: int, content: bytes) -> bytes:
    return _pack(_OPTION, code, len(content)) + content + bytes(-len(content) % 4)


def _bounded(head: bytes, body: MapBody | None, options: Iterable[Option]) -> bytes:
    octets = head + (body.encode() if body is not None else b"") + b"".join(option.encode() for option in options)
    if len(octets) > LONGEST_OCTETS:
        raise EncodeError("longer than 1100 octets")
    return octets


def _pack(layout: struct.Struct, *values: int | bytes) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise EncodeError(str(error)) from None
