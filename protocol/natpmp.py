"""NAT-PMP requests and responses as values (RFC 6886), and the client's epoch check.

Pure codec, shared by the gateway and the client. Every octet string decodes to a value or raises `DecodeError`.
All numbers are big endian; lifetimes and epochs are whole seconds.

    request    | 0: version 0 | 1: opcode      | 2: reserved | 4: internal port | 6: suggested port | 8: lifetime |
    response   | 0: version 0 | 1: 128 + opcode | 2: result   | 4: epoch         | 8: ...                          |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from .errors import DecodeError, EncodeError

VERSION = 0
GATEWAY_PORT = 5351
"""Requests go to this UDP port of the gateway; announcements come from it (RFC 6886 §1.1)."""
ANNOUNCEMENT_PORT = 5350
ANNOUNCEMENT_GROUP = "224.0.0.1"
RESPONSE_BIT = 128
NO_ADDRESS = IPv4Address(0)

_HEAD = struct.Struct("!BBHI")  # version, opcode, result (or reserved), epoch
_ADDRESS = struct.Struct("!BBHI4s")
_MAP_REQUEST = struct.Struct("!BBHHHI")
_MAP_RESPONSE = struct.Struct("!BBHIHHI")


class Opcode(IntEnum):
    """What a request asks for; the response carries the same number plus 128."""

    ADDRESS = 0
    MAP_UDP = 1
    MAP_TCP = 2


_MAP_OPCODES = {int(opcode): opcode for opcode in (Opcode.MAP_UDP, Opcode.MAP_TCP)}


class ResultCode(IntEnum):
    """RFC 6886 §3.5. Clients treat any other number as fatal for the request."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """Ask for the external address: 2 octets (RFC 6886 §3.2)."""

    def encode(self) -> bytes:
        return bytes((VERSION, Opcode.ADDRESS))


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRequest:
    """Ask for a mapping, its renewal or (lifetime 0) its deletion: 12 octets (RFC 6886 §3.3, §3.4)."""

    opcode: Opcode
    internal_port: int
    suggested_port: int
    lifetime: int

    def encode(self) -> bytes:
        if self.opcode is Opcode.ADDRESS:
            raise EncodeError("a map request is for UDP or TCP")
        return _pack(_MAP_REQUEST, VERSION, self.opcode, 0, self.internal_port, self.suggested_port, self.lifetime)


@dataclass(frozen=True, slots=True)
class ForeignVersionRequest:
    """A request of another version (2 is PCP). Only the opcode octet is known to mean the same."""

    version: int
    opcode: int


@dataclass(frozen=True, slots=True)
class UnknownOpcodeRequest:
    """A version 0 request with an opcode of 3 to 127; its octets go back in the refusal."""

    octets: bytes


Request = AddressRequest | MapRequest | ForeignVersionRequest | UnknownOpcodeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressResponse:
    """The external address, as answer or as announcement: 12 octets. The address counts only on success."""

    result: int
    epoch: int
    address: IPv4Address

    def encode(self) -> bytes:
        return _pack(_ADDRESS, VERSION, RESPONSE_BIT, self.result, self.epoch, self.address.packed)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapResponse:
    """The outcome of a map request: 16 octets. `external_port` and `lifetime` are 0 where nothing is mapped."""

    opcode: Opcode
    result: int
    epoch: int
    internal_port: int
    external_port: int
    lifetime: int

    def encode(self) -> bytes:
        if self.opcode is Opcode.ADDRESS:
            raise EncodeError("a map response is for UDP or TCP")
        return _pack(
            _MAP_RESPONSE,
            VERSION,
            RESPONSE_BIT | self.opcode,
            self.result,
            self.epoch,
            self.internal_port,
            self.external_port,
            self.lifetime,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse:
    """An error without a body: 8 octets, as for an unsupported version (RFC 6886 §3.5).

    `opcode` is octet 1 as sent: the figure in the RFC has 0 there, other gateways set the response bit.
    """

    opcode: int
    result: int
    epoch: int

    def encode(self) -> bytes:
        return _pack(_HEAD, VERSION, self.opcode, self.result, self.epoch)


@dataclass(frozen=True, slots=True)
class UnsupportedOpcodeResponse:
    """A request that came back with result 5: the octets after the result are the request's own, not an epoch."""

    octets: bytes

    @property
    def opcode(self) -> int:
        """The opcode that was refused."""
        return self.octets[1] & ~RESPONSE_BIT

    def encode(self) -> bytes:
        return self.octets


Response = AddressResponse | MapResponse | ErrorResponse | UnsupportedOpcodeResponse


def decode_request(octets: bytes) -> Request:
    """Read what a client sent, in the order that decides which answer is due.

    Raises `DecodeError` for whatever deserves no answer: under 2 octets, a response (answering those would make two
    gateways talk forever), a map request cut short. Octets beyond the request are ignored.
    """
    if len(octets) < 2:
        raise DecodeError("shorter than version and opcode", len(octets))
    version, opcode = octets[0], octets[1]
    if opcode & RESPONSE_BIT:
        raise DecodeError("a response, not a request", 1)
    if version != VERSION:
        return ForeignVersionRequest(version, opcode)
    if opcode == Opcode.ADDRESS:
        return AddressRequest()
    asked = _MAP_OPCODES.get(opcode)
    if asked is None:
        return UnknownOpcodeRequest(bytes(octets))
    if len(octets) < _MAP_REQUEST.size:
        raise DecodeError("map request cut short", len(octets))
    _, _, _, internal_port, suggested_port, lifetime = _MAP_REQUEST.unpack_from(octets)
    return MapRequest(opcode=asked, internal_port=internal_port, suggested_port=suggested_port, lifetime=lifetime)


def decode_response(octets: bytes) -> Response:
    """Read what a gateway sent, errors in the forms that real gateways use included.

    An unsupported version may come with or without the response bit, an error may stop after the epoch.
    Octets beyond the response are ignored, except that a refused opcode keeps them (they are the request's).
    """
    if len(octets) < 4:
        raise DecodeError("shorter than version, opcode and result", len(octets))
    if octets[0] != VERSION:
        raise DecodeError("not NAT-PMP version 0", 0)
    opcode = octets[1]
    result = int.from_bytes(octets[2:4], "big")
    if opcode & RESPONSE_BIT and opcode & ~RESPONSE_BIT not in set(Opcode) and result == ResultCode.UNSUPPORTED_OPCODE:
        return UnsupportedOpcodeResponse(bytes(octets))
    if len(octets) < _HEAD.size:
        raise DecodeError("response cut short before the end of the epoch", len(octets))
    epoch = int.from_bytes(octets[4:8], "big")
    if result == ResultCode.UNSUPPORTED_VERSION:
        return ErrorResponse(opcode=opcode, result=result, epoch=epoch)
    if not opcode & RESPONSE_BIT:
        raise DecodeError("a request, not a response", 1)
    asked = opcode & ~RESPONSE_BIT
    if asked == Opcode.ADDRESS and len(octets) >= _ADDRESS.size:
        return AddressResponse(result=result, epoch=epoch, address=IPv4Address(octets[8:12]))
    if asked in (Opcode.MAP_UDP, Opcode.MAP_TCP) and len(octets) >= _MAP_RESPONSE.size:
        _, _, _, _, internal_port, external_port, lifetime = _MAP_RESPONSE.unpack_from(octets)
        return MapResponse(
            opcode=Opcode(asked),
            result=result,
            epoch=epoch,
            internal_port=internal_port,
            external_port=external_port,
            lifetime=lifetime,
        )
    if result == ResultCode.SUCCESS:
        raise DecodeError("success without its body", len(octets))
    return ErrorResponse(opcode=opcode, result=result, epoch=epoch)


def refuse_opcode(request: UnknownOpcodeRequest, epoch: int) -> UnsupportedOpcodeResponse:
    """Send the request back with the response bit and result 5 set (RFC 6886 §3.5).

    A request under 8 octets has no room for result and epoch: the answer is filled up to 8 octets with them.
    """
    octets = request.octets
    head = bytes((VERSION, octets[1] | RESPONSE_BIT)) + ResultCode.UNSUPPORTED_OPCODE.to_bytes(2, "big")
    rest = octets[4:] if len(octets) >= _HEAD.size else epoch.to_bytes(4, "big")
    return UnsupportedOpcodeResponse(head + rest)


class EpochWatch:
    """Notices from a gateway's epochs that it lost its mappings (RFC 6886 §3.6).

    Feed it every packet of one gateway, responses and announcements alike; begin a new one for another gateway.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def observe(self, epoch: int, now: float) -> bool:
        """Tell whether the gateway's state was lost since the packet before. `now` is monotonic seconds.

        The local clock is trusted to 7/8 only and 2 seconds are forgiven; an epoch that is too large is no sign of
        loss.
        """
        last = self._last
        self._last = (epoch, now)
        if last is None:
            return False
        last_epoch, last_now = last
        return epoch < last_epoch + (now - last_now) * 7 / 8 - 2


def _pack(layout: struct.Struct, *values: int | bytes) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise EncodeError(str(error)) from None
