"""The PCP codec: golden octets, every way to be malformed, the client's epoch rule (RFC 6887 §7, §8, §11, §13)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from protocol.errors import DecodeError, EncodeError
from protocol.pcp import (
    BrokenRequest,
    EpochWatch,
    Filter,
    ForeignVersionRequest,
    MapBody,
    Opcode,
    PreferFailure,
    Request,
    Response,
    ResultCode,
    ThirdParty,
    UnknownOption,
    UnreadableOption,
    decode_request,
    decode_response,
    refuse,
)

CLIENT = IPv4Address("10.77.0.2")
NONCE = bytes(range(12))
HEAD = "0201 0000 00000258 00000000000000000000ffff 0a4d0002"
BODY = "000102030405060708090a0b 06 000000 1f90 2382 00000000000000000000ffff 00000000"
MAP = MapBody(nonce=NONCE, protocol=6, internal_port=8080, external_port=9090, external_address=IPv4Address("0.0.0.0"))
MAP_REQUEST = Request(opcode=Opcode.MAP, lifetime=600, client=CLIENT, body=MAP)
ANNOUNCE_HEAD = "0200 0000 00000000 00000000000000000000ffff 0a4d0002"


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.rfc("6887", "11.1")
@pytest.mark.rfc("6887", "13.2")
@pytest.mark.rfc("6887", "5")
@pytest.mark.rfc("6887", "7.1")
def test_map_request_golden() -> None:
    assert MAP_REQUEST.encode() == octets(HEAD + BODY)
    assert decode_request(octets(HEAD + BODY)) == MAP_REQUEST
    assert len(octets(HEAD + BODY)) == 60


@pytest.mark.rfc("6887", "14.1")
@pytest.mark.rfc("6887", "14.1.2")
def test_announce_golden() -> None:
    request = Request(opcode=Opcode.ANNOUNCE, lifetime=0, client=CLIENT)
    assert request.encode() == octets(ANNOUNCE_HEAD)
    assert decode_request(request.encode()) == request
    response = Response(opcode=Opcode.ANNOUNCE, result=0, lifetime=0, epoch=5002)
    assert response.encode() == octets("0280 0000 00000000 0000138a 000000000000000000000000")
    assert decode_response(response.encode()) == response


@pytest.mark.rfc("6887", "11.1")
def test_map_response_golden() -> None:
    body = replace(MAP, external_address=IPv4Address("198.51.100.7"))
    response = Response(
        opcode=Opcode.MAP, result=0, lifetime=600, epoch=5002, body=body, options=(PreferFailure(), ThirdParty(CLIENT))
    )
    wire = octets(
        "0281 0000 00000258 0000138a 000000000000000000000000"
        "000102030405060708090a0b 06 000000 1f90 2382 00000000000000000000ffff c6336407"
        "02000000 01000010 00000000000000000000ffff 0a4d0002"
    )
    assert response.encode() == wire
    assert decode_response(wire) == response


@pytest.mark.rfc("6887", "5")
def test_ipv6_addresses_stay_what_they_are() -> None:
    request = replace(MAP_REQUEST, client=IPv6Address("2001:db8::1"))
    assert request.encode()[8:24] == IPv6Address("2001:db8::1").packed
    assert decode_request(request.encode()) == request


@pytest.mark.rfc("6887", "13")
@pytest.mark.rfc("6887", "13.3")
@pytest.mark.rfc("6887", "7.3")
@pytest.mark.parametrize(
    ("option", "wire"),
    [
        (ThirdParty(IPv4Address("10.0.0.9")), "01000010 00000000000000000000ffff 0a000009"),
        (ThirdParty(IPv6Address("2001:db8::9")), "01000010 20010db8000000000000000000000009"),
        (PreferFailure(), "02000000"),
        (
            Filter(prefix_length=120, remote_port=25, address=IPv4Address("192.0.2.0")),
            "03000014 00 78 0019 00000000000000000000ffff c0000200",
        ),
        (
            Filter(prefix_length=0, remote_port=0, address=IPv6Address("::")),
            "03000014 00 00 0000 00000000000000000000000000000000",
        ),
        (UnknownOption(128, b"abcde"), "80000005 6162636465 000000"),
        (UnknownOption(0, b""), "00000000"),
        (UnknownOption(127, b"\1"), "7f000001 01000000"),
    ],
)
def test_options_golden(option: ThirdParty | PreferFailure | Filter | UnknownOption, wire: str) -> None:
    request = replace(MAP_REQUEST, options=(option,))
    assert request.encode() == octets(HEAD + BODY + wire)
    assert decode_request(request.encode()) == request


@pytest.mark.rfc("6887", "7.1")
@pytest.mark.rfc("6887", "11.1")
@pytest.mark.rfc("6887", "13.3")
@pytest.mark.rfc("6887", "7.3")
@pytest.mark.parametrize(
    ("sent", "same"),
    [
        ("0201 ffff" + HEAD[9:] + BODY, HEAD + BODY),
        (HEAD + BODY.replace("06 000000", "06 ffffff"), HEAD + BODY),
        (
            HEAD + BODY + "01ff0010 00000000000000000000ffff 0a000009",
            HEAD + BODY + "01000010" + "00" * 10 + "ffff 0a000009",
        ),
        (HEAD + BODY + "03ff0014 ff" + "00" * 19, HEAD + BODY + "03000014" + "00" * 20),
        (HEAD + BODY + "02ff0000", HEAD + BODY + "02000000"),
    ],
    ids=["header", "MAP", "THIRD_PARTY", "FILTER", "PREFER_FAILURE"],
)
def test_reserved_bits_of_a_request_are_ignored(sent: str, same: str) -> None:
    assert decode_request(octets(sent)) == decode_request(octets(same))
    assert octets(sent) != octets(same)


def test_only_codes_under_128_are_mandatory() -> None:
    assert UnknownOption(127, b"").is_mandatory
    assert not UnknownOption(128, b"").is_mandatory


@pytest.mark.rfc("6887", "13")
@pytest.mark.parametrize(
    ("head", "options", "expected"),
    [
        (HEAD + BODY, "01000004 0a000009", (UnreadableOption(1),)),
        (HEAD + BODY, "02000001 00000000", (UnreadableOption(2),)),
        (HEAD + BODY, "03000010" + "00" * 16, (UnreadableOption(3),)),
        (HEAD + BODY, "03000014 00 5f 0000 00000000000000000000ffff c0000200", (UnreadableOption(3),)),
        (HEAD + BODY, "03000014 00 81 0000 20010db8000000000000000000000000", (UnreadableOption(3),)),
        (HEAD + BODY, "02000000 02000000", (PreferFailure(), UnreadableOption(2))),
        (ANNOUNCE_HEAD, "02000000", (UnreadableOption(2),)),
        (ANNOUNCE_HEAD, "7e000000", (UnknownOption(126, b""),)),
    ],
)
def test_options_that_cannot_be_read_are_named(head: str, options: str, expected: tuple[object, ...]) -> None:
    request = decode_request(octets(head + options))
    assert isinstance(request, Request)
    assert request.fault is None
    assert request.options == expected


def test_filters_may_be_many() -> None:
    each = Filter(prefix_length=128, remote_port=0, address=CLIENT)
    request = replace(MAP_REQUEST, options=(each,) * 43)
    assert decode_request(request.encode()) == request


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.rfc("6887", "7.3")
@pytest.mark.parametrize("options", ["01000010 00000000", "80ffff00", "02000001"])
def test_an_option_that_runs_past_the_end_is_a_fault(options: str) -> None:
    request = decode_request(octets(HEAD + BODY + options))
    assert isinstance(request, Request)
    assert request.fault is ResultCode.MALFORMED_OPTION
    assert request.body == MAP


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.parametrize("opcode", [2, 3, 77, 127])
def test_unknown_opcodes_are_a_fault(opcode: int) -> None:
    request = decode_request(bytes((2, opcode)) + octets(HEAD + BODY)[2:] + octets("01ffffff"))
    assert request == Request(opcode=opcode, lifetime=600, client=CLIENT, fault=ResultCode.UNSUPP_OPCODE)


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        ("", "shorter"),
        ("02", "shorter"),
        ("0280", "response"),
        ("0181" + "00" * 58, "response"),
        ("0201", "header"),
        (HEAD[:-2], "header"),
    ],
)
def test_what_is_dropped(wire: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_request(octets(wire))


@pytest.mark.rfc("6887", "9")
@pytest.mark.rfc("6886", "1.1")
@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_other_versions_are_told_before_the_length_is_looked_at(version: int) -> None:
    assert decode_request(bytes((version, 0))) == ForeignVersionRequest(version)


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.parametrize(
    "wire",
    [octets(HEAD), octets(HEAD + BODY)[:-4], octets(HEAD + BODY) + b"\0", octets(HEAD + BODY) + bytes(1044)],
)
def test_impossible_lengths(wire: bytes) -> None:
    assert decode_request(wire) == BrokenRequest(Opcode.MAP)


@pytest.mark.rfc("6887", "7")
def test_1100_octets_are_the_most() -> None:
    longest = octets(HEAD + BODY) + octets("80000000") * 260
    assert len(longest) == 1100
    request = decode_request(longest)
    assert isinstance(request, Request)
    assert len(request.options) == 260
    with pytest.raises(EncodeError):
        replace(MAP_REQUEST, options=(UnknownOption(128, b""),) * 261).encode()


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.rfc("6887", "7.3")
def test_a_refusal_is_the_request_sent_back() -> None:
    wire = octets(HEAD + BODY + "80000000")
    refusal = refuse(wire, ResultCode.NOT_AUTHORIZED, lifetime=1800, epoch=5002)
    assert refusal == octets("0281 0002 00000708 0000138a 000000000000000000000000" + BODY + "80000000")
    assert decode_response(refusal) == Response(opcode=Opcode.MAP, result=2, lifetime=1800, epoch=5002, body=MAP)


@pytest.mark.rfc("6887", "7.2")
@pytest.mark.parametrize("result", [result for result in ResultCode if result])
def test_part_of_the_address_comes_back_where_nothing_was_read(result: ResultCode) -> None:
    refusal = refuse(octets(HEAD + BODY), result, lifetime=30, epoch=1)
    is_unread = result in (1, 3, 4, 6)
    assert refusal[12:24] == (octets("000000000000ffff0a4d0002") if is_unread else bytes(12))


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.parametrize(("length", "expected"), [(2, 24), (23, 24), (25, 28), (61, 64), (1100, 1100), (2048, 1100)])
def test_refusals_are_whole_headers_and_multiples_of_4(length: int, expected: int) -> None:
    refusal = refuse(bytes((1, 1)) + bytes(length - 2), ResultCode.UNSUPP_VERSION, lifetime=1800, epoch=7)
    assert len(refusal) == expected
    assert refusal[:12] == octets("0281 0001 00000708 00000007")


@pytest.mark.rfc("6887", "8.3")
@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        ("0080 0001 0000138a", "length"),
        ("0280" + "00" * 21, "length"),
        ("0280" + "00" * 23, "length"),
        ("0280" + "00" * 1102, "length"),
        ("0180" + "00" * 22, "version"),
        ("0200" + "00" * 22, "request"),
        ("0281" + "00" * 22, "without its body"),
        ("0280" + "00" * 22 + "0100ffff", "past the end"),
    ],
)
def test_responses_that_are_dropped(wire: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_response(octets(wire))


def test_responses_of_other_opcodes_have_no_body() -> None:
    wire = octets("0282 0004 00000708 0000138a 000000000000000000000000" + BODY)
    assert decode_response(wire) == Response(opcode=2, result=4, lifetime=1800, epoch=5002)


@pytest.mark.rfc("6887", "7.2")
def test_reserved_octets_of_a_response_are_ignored() -> None:
    wire = octets("0280 ff00 00000000 0000138a 0102030405060708090a0b0c")
    assert decode_response(wire) == Response(opcode=0, result=0, lifetime=0, epoch=5002)


@pytest.mark.parametrize(
    "broken",
    [
        replace(MAP_REQUEST, body=None),
        Request(opcode=Opcode.ANNOUNCE, lifetime=0, client=CLIENT, body=MAP),
        replace(MAP_REQUEST, lifetime=1 << 32),
        replace(MAP_REQUEST, body=replace(MAP, nonce=b"short")),
        replace(MAP_REQUEST, body=replace(MAP, internal_port=65536)),
        replace(MAP_REQUEST, options=(UnreadableOption(2),)),
        replace(MAP_REQUEST, fault=ResultCode.MALFORMED_OPTION),
        replace(MAP_REQUEST, options=(UnknownOption(300, b""),)),
    ],
)
def test_what_cannot_be_written(broken: Request) -> None:
    with pytest.raises(EncodeError):
        broken.encode()


def test_a_nonce_is_not_shown() -> None:
    assert "nonce" not in repr(MAP_REQUEST)


@pytest.mark.rfc("6887", "8.5")
@pytest.mark.parametrize(
    ("epoch", "seconds", "is_lost"),
    [
        (1000, 0, False),
        (1100, 100, False),
        (999, 0, False),  # reordered
        (998, 0, True),
        (0, 1, True),
        (1160, 1160 - 1000 + 12, False),  # 2 s and a sixteenth are forgiven
        (1160, 1160 - 1000 + 13, True),
        (1160, 160 - 12, False),
        (1160, 160 - 13, True),
        (1003, 0, True),
        (1002, 0, False),
    ],
)
def test_the_epoch_rule(epoch: int, seconds: int, is_lost: bool) -> None:
    watch = EpochWatch()
    assert not watch.observe(1000, 50.0)
    assert watch.observe(epoch, 50.0 + seconds) is is_lost


@pytest.mark.rfc("6887", "8.5")
def test_the_epoch_rule_goes_by_the_response_before_lost_or_not() -> None:
    watch = EpochWatch()
    watch.observe(1000, 0.0)
    assert watch.observe(5, 1.0)
    assert not watch.observe(6, 2.0)
