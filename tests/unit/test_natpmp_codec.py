"""NAT-PMP on the wire: golden packets, exact lengths, and what must not decode (RFC 6886 §3)."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from protocol.errors import DecodeError, EncodeError
from protocol.natpmp import (
    AddressRequest,
    AddressResponse,
    EpochWatch,
    ErrorResponse,
    ForeignVersionRequest,
    MapRequest,
    MapResponse,
    Opcode,
    Request,
    Response,
    UnknownOpcodeRequest,
    UnsupportedOpcodeResponse,
    decode_request,
    decode_response,
    refuse_opcode,
)

# Seen on the wire between Apple's mDNSResponder (C) and a gateway (G).
GOLDEN_REQUESTS: list[tuple[str, Request]] = [
    ("0000", AddressRequest()),
    (
        "0002 0000 1f90 2382 00000258",
        MapRequest(opcode=Opcode.MAP_TCP, internal_port=8080, suggested_port=9090, lifetime=600),
    ),
    (
        "0002 0000 1f90 0000 00000000",
        MapRequest(opcode=Opcode.MAP_TCP, internal_port=8080, suggested_port=0, lifetime=0),
    ),
]
GOLDEN_RESPONSES: list[tuple[str, Response]] = [
    ("0080 0000 0000138a c6336407", AddressResponse(result=0, epoch=5002, address=IPv4Address("198.51.100.7"))),
    ("0080 0000 00000000 c6336407", AddressResponse(result=0, epoch=0, address=IPv4Address("198.51.100.7"))),
    ("0081 0001 0000138a", ErrorResponse(opcode=0x81, result=1, epoch=5002)),
    (
        "0082 0000 0000138a 1f90 2382 00000258",
        MapResponse(opcode=Opcode.MAP_TCP, result=0, epoch=5002, internal_port=8080, external_port=9090, lifetime=600),
    ),
]


@pytest.mark.parametrize(("packet", "value"), GOLDEN_REQUESTS)
def test_golden_requests_both_ways(packet: str, value: AddressRequest | MapRequest) -> None:
    assert decode_request(bytes.fromhex(packet)) == value
    assert value.encode() == bytes.fromhex(packet)


@pytest.mark.parametrize(("packet", "value"), GOLDEN_RESPONSES)
def test_golden_responses_both_ways(packet: str, value: Response) -> None:
    assert decode_response(bytes.fromhex(packet)) == value
    assert value.encode() == bytes.fromhex(packet)


def test_apples_pcp_request_is_of_a_foreign_version() -> None:
    packet = bytes.fromhex("0201 0000 00000258 00000000000000000000ffff0a4d0002") + bytes(36)
    assert decode_request(packet) == ForeignVersionRequest(version=2, opcode=1)


@pytest.mark.rfc("6886", "3.5")
def test_version_error_reads_with_and_without_the_response_bit() -> None:
    assert decode_response(bytes.fromhex("0000 0001 00000007")) == ErrorResponse(opcode=0, result=1, epoch=7)
    assert decode_response(bytes.fromhex("0080 0001 00000007")) == ErrorResponse(opcode=128, result=1, epoch=7)


@pytest.mark.rfc("6886", "3.3")
def test_reserved_field_and_surplus_octets_are_ignored() -> None:
    packet = bytes.fromhex("0001 ffff 1194 0000 00000e10 aabbcc")
    assert decode_request(packet) == MapRequest(
        opcode=Opcode.MAP_UDP, internal_port=4500, suggested_port=0, lifetime=3600
    )


@pytest.mark.parametrize(
    ("packet", "offset"),
    [
        ("", 0),
        ("00", 1),
        ("0080", 1),
        ("0081 0000 00000000 1194 1194 00000e10", 1),
        ("0280", 1),
        ("01ff", 1),
        ("0001", 2),
        ("0001 0000 1194 0000 00000e", 11),
    ],
)
def test_requests_that_deserve_no_answer(packet: str, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_request(bytes.fromhex(packet))
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("packet", "offset"),
    [
        ("", 0),
        ("0080 00", 3),
        ("0280 0001 00000000", 0),
        ("0080 0000 0000", 6),
        ("0080 0000 00000000 c63364", 11),
        ("0081 0000 00000000 1194 1194 00000e", 15),
        ("0001 0000 1194 0000 00000e10", 1),
        ("0083 0000 00000000", 8),
    ],
)
def test_responses_that_are_none(packet: str, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_response(bytes.fromhex(packet))
    assert caught.value.offset == offset


def test_error_without_body_is_an_error_response() -> None:
    assert decode_response(bytes.fromhex("0081 0004 00000009")) == ErrorResponse(opcode=0x81, result=4, epoch=9)


@pytest.mark.rfc("6886", "3.5")
@pytest.mark.parametrize(
    ("request_hex", "response_hex"),
    [
        ("004d", "00cd 0005 00000007"),
        ("004d 1111 22", "00cd 0005 00000007"),
        ("004d 1111 2222 3333", "00cd 0005 2222 3333"),
        ("004d 1111 2222 3333 4444 5555", "00cd 0005 2222 3333 4444 5555"),
    ],
)
def test_unknown_opcode_goes_back_with_result_5(request_hex: str, response_hex: str) -> None:
    request = decode_request(bytes.fromhex(request_hex))
    assert isinstance(request, UnknownOpcodeRequest)
    response = refuse_opcode(request, 7)
    assert response.encode() == bytes.fromhex(response_hex)
    assert response.opcode == 77
    assert decode_response(response.encode()) == UnsupportedOpcodeResponse(response.octets)


@pytest.mark.parametrize(
    "value",
    [
        MapRequest(opcode=Opcode.MAP_UDP, internal_port=65536, suggested_port=0, lifetime=0),
        MapRequest(opcode=Opcode.MAP_UDP, internal_port=1, suggested_port=-1, lifetime=0),
        MapRequest(opcode=Opcode.MAP_UDP, internal_port=1, suggested_port=0, lifetime=1 << 32),
        MapRequest(opcode=Opcode.ADDRESS, internal_port=1, suggested_port=0, lifetime=0),
        MapResponse(opcode=Opcode.ADDRESS, result=0, epoch=0, internal_port=0, external_port=0, lifetime=0),
        ErrorResponse(opcode=256, result=0, epoch=0),
    ],
)
def test_what_does_not_fit_is_our_fault(value: MapRequest | MapResponse | ErrorResponse) -> None:
    with pytest.raises(EncodeError):
        value.encode()


@pytest.mark.rfc("6886", "3.6")
@pytest.mark.parametrize(
    ("first", "second", "lost"),
    [
        ((0, 0.0), (0, 0.0), False),
        ((100, 0.0), (180, 80.0), False),
        ((100, 0.0), (168, 80.0), False),  # exactly 7/8 of 80 s, less the 2 s forgiven
        ((100, 0.0), (167, 80.0), True),
        ((100, 0.0), (98, 0.0), False),
        ((100, 0.0), (97, 0.0), True),
        ((100, 0.0), (100000, 1.0), False),  # too large is no sign of loss
        ((100000, 0.0), (0, 10.0), True),
    ],
)
def test_epoch_watch(first: tuple[int, float], second: tuple[int, float], lost: bool) -> None:
    watch = EpochWatch()
    assert watch.observe(*first) is False
    assert watch.observe(*second) is lost


@pytest.mark.rfc("6886", "3.6")
def test_epoch_watch_reports_one_loss_once() -> None:
    watch = EpochWatch()
    assert [watch.observe(500, 0.0), watch.observe(1, 1.0), watch.observe(2, 2.0)] == [False, True, False]
