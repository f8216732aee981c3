"""PCP requests against the table, octets in and octets out: every rule of a server, one row or test each."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from gateway.mappings import Answer, Change, Changed, Install, Key, Limits, MappingTable, Moved, Transport
from gateway.natpmp import MapTicket, NatPmpFrontEnd, Peer
from gateway.pcp import LONG_ERROR_SECONDS, MappingUpdates, PcpFrontEnd, PcpTicket, Requester
from protocol import natpmp
from protocol.pcp import (
    Address,
    Filter,
    MapBody,
    Opcode,
    Option,
    PreferFailure,
    Request,
    Response,
    ResultCode,
    ThirdParty,
    UnknownOption,
    decode_response,
)

A = Peer(0, "192.168.1.10", 40000)
B = Peer(0, "192.168.1.11", 40001)
SIX = Peer(0, "2001:db8::10", 40000)
EXTERNAL = IPv4Address("198.51.100.7")
NOWHERE = IPv4Address(0)
EPOCH = 5002
NONCE, OTHER_NONCE = b"nonce of one", b"another one."
TCP, UDP, SCTP = 6, 17, 132
LONG, SHORT = 1800, 30


class Desk:
    """Both front ends and one table, with a back end that accepts everything but the ports in `taken`."""

    def __init__(
        self,
        limits: Limits | None = None,
        address: str | None = str(EXTERNAL),
        third_party: bool = False,
        pinholes: bool = False,
    ) -> None:
        self.now = 0.0
        self.taken: set[int] = set()
        self.moved: list[Moved] = []
        self.changes: list[Change] = []
        self.table = MappingTable(limits or Limits(), now=-EPOCH)
        self.table.set_external_address(address, now=0.0)
        own = frozenset({"192.168.1.1", "2001:db8::1"})
        self.front_end = PcpFrontEnd(self.table, third_party=third_party, pinholes=pinholes, own_addresses=own)
        self.natpmp = NatPmpFrontEnd(self.table)
        self.settle()

    def settle(self) -> list[bytes]:
        replies = []
        while effects := self.table.take_effects():
            for effect in effects:
                match effect:
                    case Install(number, mapping):
                        self.table.installed(number, mapping.external_port not in self.taken, now=self.now)
                    case Answer(ticket):
                        assert isinstance(ticket, PcpTicket | MapTicket)
                        replies.append(ticket.reply(effect, self.table.strict_epoch(self.now)))
                    case Moved():
                        self.moved.append(effect)
                    case Changed(change):
                        self.changes.append(change)
                    case _:
                        pass
        return replies

    def send(self, octets: bytes, peer: Peer = A) -> bytes | None:
        at_once = self.front_end.receive(octets, peer, draw=0, now=self.now)
        replies = self.settle()
        if at_once is not None:
            assert replies == []
            return at_once
        assert len(replies) <= 1
        return replies[0] if replies else None

    def ask(self, request: Request, peer: Peer = A) -> Response:
        reply = self.send(request.encode(), peer)
        assert reply is not None
        response = decode_response(reply)
        assert response.epoch == self.table.strict_epoch(self.now)
        assert response.opcode == request.opcode
        if request.body is not None:
            assert response.body is not None
            for field in ("nonce", "protocol", "internal_port"):
                assert getattr(response.body, field) == getattr(request.body, field)
        if response.result:
            assert reply[24:] == request.encode()[24:]
        return response

    def map(self, request: Request, peer: Peer = A) -> str:
        """Send a MAP; gives result, external port and lifetime as text, and the address if it is not all zeros."""
        response = self.ask(request, peer)
        assert response.body is not None
        text = f"{response.result}: {response.body.external_port} {response.lifetime}"
        address = response.body.external_address
        return text if address in (EXTERNAL, NOWHERE) else f"{text} {address}"

    def map_natpmp(self, internal: int, suggested: int = 0, lifetime: int = 3600, peer: Peer = A) -> str:
        request = natpmp.MapRequest(
            opcode=natpmp.Opcode.MAP_TCP, internal_port=internal, suggested_port=suggested, lifetime=lifetime
        )
        assert self.natpmp.receive(request.encode(), peer, draw=0, now=self.now) is None
        (reply,) = self.settle()
        response = natpmp.decode_response(reply)
        assert isinstance(response, natpmp.MapResponse)
        return f"{response.result}: {response.external_port} {response.lifetime}"


def mapping(
    internal: int = 80,
    external: int = 0,
    lifetime: int = 3600,
    *options: Option,
    protocol: int = TCP,
    nonce: bytes = NONCE,
    peer: Peer = A,
    address: Address = NOWHERE,
) -> Request:
    body = MapBody(
        nonce=nonce,
        protocol=protocol,
        internal_port=internal,
        external_port=external,
        external_address=address,
    )
    client = ip_address(peer.host)
    return Request(opcode=Opcode.MAP, lifetime=lifetime, client=client, body=body, options=options)


STRANGER = IPv4Address("203.0.113.9")


def some_filter(prefix_length: int = 128, port: int = 0, address: Address = STRANGER) -> Filter:
    return Filter(prefix_length=prefix_length, remote_port=port, address=address)


def one_peer(number: int) -> Filter:
    return some_filter(address=IPv4Address("203.0.113.0") + number)


ANNOUNCE = Request(opcode=Opcode.ANNOUNCE, lifetime=0, client=IPv4Address(A.host))
CLIENT = IPv4Address(A.host)
MAP = mapping(80, 8080).encode()


def announce_with(*options: Option) -> bytes:
    return replace(ANNOUNCE, options=options).encode()


# RFC 6887 §8.2 in its order, with what comes before deciding: datagram, then result and lifetime, None for no answer.
ORDER: list[tuple[str, bytes, tuple[int, int] | None]] = [
    ("empty", b"", None),
    ("one octet", b"\2", None),
    ("a response", bytes((2, 0x81)) + MAP[2:], None),
    ("a response of another version", bytes((7, 0x81)), None),
    ("version 0", b"\0\0", (1, LONG)),
    ("version 1", b"\1\0", (1, LONG)),
    ("version 3", b"\3\1" + MAP[2:], (1, LONG)),
    ("version 255, no multiple of 4", b"\xff\x7f" + bytes(61), (1, LONG)),
    ("header cut short", MAP[:23], None),
    ("MAP cut short", MAP[:56], (3, LONG)),
    ("no multiple of 4", MAP + b"\0", (3, LONG)),
    ("too long", MAP + bytes(1044), (3, LONG)),
    ("too long and of another address", MAP[:8] + bytes(16) + MAP[24:] + bytes(1044), (3, LONG)),
    ("of another address", mapping(peer=B).encode(), (12, LONG)),
    ("of another address, unknown opcode", b"\2\3" + mapping(peer=B).encode()[2:], (12, LONG)),
    ("an IPv4 address not written as one", MAP[:8] + bytes(12) + CLIENT.packed + MAP[24:], (12, LONG)),
    ("PEER", b"\2\2" + MAP[2:] + bytes(20), (4, LONG)),
    ("unknown opcode", b"\2\x7f" + MAP[2:], (4, LONG)),
    ("unknown opcode with broken options", b"\2\3" + MAP[2:] + b"\x01\0\xff\xff", (4, LONG)),
    ("option past the end", MAP + b"\x80\0\0\4", (6, LONG)),
    ("option past the end behind an unknown one", MAP + b"\x7f\0\0\0\x80\0\0\4", (6, LONG)),
    ("option of a wrong length", MAP + b"\2\0\0\1\0\0\0\0", (6, LONG)),
    ("option twice", MAP + b"\2\0\0\0" * 2, (6, LONG)),
    ("unknown before a broken one", MAP + b"\x7f\0\0\0" + b"\2\0\0\0" * 2, (5, LONG)),
    ("a broken one before unknown", MAP + b"\2\0\0\0" * 2 + b"\x7f\0\0\0", (6, LONG)),
    ("unknown option, mandatory", MAP + b"\x7f\0\0\0", (5, LONG)),
    ("option 0", MAP + b"\0\0\0\0", (5, LONG)),
    ("option of PCP authentication", MAP + b"\4\0\0\0", (5, LONG)),
    ("THIRD_PARTY, off", mapping(80, 0, 60, ThirdParty(IPv4Address(B.host))).encode(), (5, LONG)),
    ("THIRD_PARTY of a wrong length, off", MAP + b"\1\0\0\0", (5, LONG)),
    ("FILTER to delete", mapping(80, 0, 0, some_filter()).encode(), (6, LONG)),
    ("FILTER of a wrong length", MAP + b"\3\0\0\4\0\0\0\0", (6, LONG)),
    ("FILTER with an impossible prefix", mapping(80, 0, 60, some_filter(129)).encode(), (6, LONG)),
    ("FILTER of IPv4 with a prefix of IPv6", mapping(80, 0, 60, some_filter(95)).encode(), (6, LONG)),
    (
        "FILTER of IPv6 for IPv4",
        mapping(80, 0, 60, some_filter(64, address=IPv6Address("2001:db8::"))).encode(),
        (6, LONG),
    ),
    ("FILTER on ANNOUNCE", announce_with(some_filter()), (6, LONG)),
    ("more FILTERs than there may be", mapping(80, 0, 60, *map(one_peer, range(17))).encode(), (13, LONG)),
    ("PREFER_FAILURE without a port", mapping(80, 0, 60, PreferFailure()).encode(), (6, LONG)),
    ("PREFER_FAILURE to delete", mapping(80, 8080, 0, PreferFailure()).encode(), (6, LONG)),
    ("PREFER_FAILURE on ANNOUNCE", announce_with(PreferFailure()), (6, LONG)),
    ("unknown option on ANNOUNCE", announce_with(UnknownOption(99, b"")), (5, LONG)),
    ("a port of no protocol", mapping(80, 8080, 60, protocol=0).encode(), (3, LONG)),
    ("a port of no protocol, to delete", mapping(80, 0, 0, protocol=0).encode(), (3, LONG)),
    ("SCTP", mapping(80, 8080, 60, protocol=SCTP).encode(), (9, LONG)),
    ("SCTP, to delete", mapping(80, 8080, 0, protocol=SCTP).encode(), (9, LONG)),
    ("SCTP, all ports", mapping(0, 0, 60, protocol=SCTP).encode(), (9, LONG)),
    ("all ports of TCP", mapping(0, 0, 60).encode(), (9, LONG)),
    ("all ports of UDP", mapping(0, 0, 60, protocol=UDP).encode(), (9, LONG)),
    ("the whole host", mapping(0, 0, 60, protocol=0).encode(), (9, LONG)),
    ("PREFER_FAILURE for PCP's own port", mapping(80, 5351, 60, PreferFailure(), protocol=UDP).encode(), (11, SHORT)),
    ("PREFER_FAILURE for a reserved port", mapping(80, 80, 60, PreferFailure()).encode(), (11, SHORT)),
]


@pytest.mark.rfc("6887", "8.2")
@pytest.mark.rfc("6887", "11.1")
@pytest.mark.rfc("6887", "11.3")
@pytest.mark.rfc("6887", "13")
@pytest.mark.rfc("6887", "13.1")
@pytest.mark.rfc("6887", "13.2")
@pytest.mark.rfc("6887", "15.1")
@pytest.mark.rfc("6887", "5")
@pytest.mark.rfc("6887", "7.2")
@pytest.mark.rfc("6887", "7.3")
@pytest.mark.rfc("6887", "7.4")
@pytest.mark.rfc("6887", "8.1")
@pytest.mark.parametrize(("octets", "expected"), [row[1:] for row in ORDER], ids=[row[0] for row in ORDER])
def test_refusals_in_order(octets: bytes, expected: tuple[int, int] | None) -> None:
    desk = Desk()
    reply = desk.send(octets)
    assert desk.table.mappings() == []
    if expected is None:
        assert reply is None
        assert desk.front_end.counters == {"malformed": 1}
        return
    assert reply is not None
    result, lifetime = expected
    assert reply[:4] == bytes((2, octets[1] | 0x80, 0, result))
    assert reply[4:12] == lifetime.to_bytes(4, "big") + EPOCH.to_bytes(4, "big")
    padded = octets[:1100] + bytes(max(24 - len(octets), -len(octets[:1100]) % 4))
    assert reply[24:] == padded[24:]
    assert reply[12:24] == (padded[12:24] if result in (1, 3, 4, 6) else bytes(12))


@pytest.mark.rfc("6887", "9")
def test_a_natpmp_client_reads_the_refusal_of_its_version_as_one() -> None:
    """Where PCP alone is spoken: octets 2 and 3 are NAT-PMP's result 1."""
    reply = Desk().send(b"\0\0")
    assert reply is not None
    assert reply[2:4] == natpmp.ResultCode.UNSUPPORTED_VERSION.to_bytes(2, "big")
    assert len(reply) == 24


@pytest.mark.rfc("6887", "14.1")
@pytest.mark.rfc("6887", "14")
def test_announce() -> None:
    desk = Desk()
    assert desk.ask(ANNOUNCE) == Response(opcode=0, result=0, lifetime=0, epoch=EPOCH)
    desk.now = 90.0
    assert desk.ask(replace(ANNOUNCE, lifetime=77)) == Response(opcode=0, result=0, lifetime=0, epoch=EPOCH + 90)
    assert desk.send(announce_with(UnknownOption(200, b"ignored"))) == desk.front_end.announcement(now=90.0)


@pytest.mark.rfc("6887", "11.1")
@pytest.mark.rfc("6887", "7.2")
def test_map_golden() -> None:
    desk = Desk()
    request = bytes.fromhex(
        "0201 0000 00000258 00000000000000000000ffff c0a8010a"
        "000102030405060708090a0b 06 000000 1f90 2382 00000000000000000000ffff 00000000"
    )
    response = bytes.fromhex(
        "0281 0000 00000258 0000138a 000000000000000000000000"
        "000102030405060708090a0b 06 000000 1f90 2382 00000000000000000000ffff c6336407"
    )
    assert desk.send(request) == response
    assert desk.send(request) == response
    assert [(each.key, each.origin.value) for each in desk.table.mappings()] == [
        (Key(Transport.TCP, A.host, 8080), "pcp")
    ]


@pytest.mark.rfc("6887", "11.3")
def test_map_for_udp_makes_no_twin() -> None:
    desk = Desk()
    assert desk.map(mapping(80, 8080, protocol=UDP)) == "0: 8080 3600"
    assert [each.key.transport for each in desk.table.mappings()] == [Transport.UDP]


@pytest.mark.rfc("6887", "11.3")
@pytest.mark.rfc("6887", "10")
@pytest.mark.rfc("6887", "15")
@pytest.mark.rfc("6887", "7.4")
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (mapping(80, 0), "0: 1024 3600"),
        (mapping(80, 8080, address=EXTERNAL), "0: 8080 3600"),
        (mapping(80, 8080, address=IPv4Address("203.0.113.1")), "0: 8080 3600"),
        (mapping(80, 8080, address=IPv6Address("2001:db8::1")), "0: 8080 3600"),
        (mapping(80, 8080, address=IPv6Address("::")), "0: 8080 3600"),
        (mapping(80, 443), "0: 1024 3600"),
        (mapping(80, 5350, protocol=UDP), "0: 1024 3600"),
        (mapping(80, 5351, protocol=UDP), "0: 1024 3600"),
        (mapping(80, 8080, 1), "0: 8080 120"),
        (mapping(80, 8080, 0xFFFFFFFF), "0: 8080 86400"),
        (mapping(80, 8080, 3600, PreferFailure()), "0: 8080 3600"),
        (mapping(80, 8080, 3600, PreferFailure(), address=EXTERNAL), "0: 8080 3600"),
        (mapping(80, 8080, 3600, PreferFailure(), address=IPv6Address("::")), "0: 8080 3600"),
        (
            mapping(80, 8080, 3600, PreferFailure(), address=IPv4Address("203.0.113.1")),
            "11: 8080 30 203.0.113.1",
        ),
        (mapping(80, 8080, 3600, UnknownOption(128, b"abc")), "0: 8080 3600"),
    ],
)
def test_a_first_request(request_: Request, expected: str) -> None:
    desk = Desk()
    assert desk.map(request_) == expected


@pytest.mark.rfc("6887", "8.2")
def test_a_success_carries_the_options_that_were_processed() -> None:
    response = Desk().ask(mapping(80, 8080, 3600, UnknownOption(200, b"x"), PreferFailure()))
    assert response.options == (PreferFailure(),)
    assert response.body is not None
    assert response.body.external_address == EXTERNAL


@pytest.mark.rfc("6887", "11.3")
@pytest.mark.rfc("6887", "15.1")
@pytest.mark.rfc("6887", "18.1")
@pytest.mark.rfc("6887", "7.4")
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (mapping(80, 8080, 7200), "0: 8080 7200"),
        (mapping(80, 9090, 7200), "0: 8080 7200"),
        (mapping(80, 0, 200), "0: 8080 200"),
        (mapping(80, 8080, 7200, PreferFailure()), "0: 8080 7200"),
        (mapping(80, 9090, 7200, PreferFailure()), "11: 9090 3540"),
        (mapping(80, 8080, 7200, nonce=OTHER_NONCE), "2: 8080 3540"),
        (mapping(80, 8080, 0, nonce=OTHER_NONCE), "2: 8080 3540"),
        (mapping(80, 9090, 7200, PreferFailure(), nonce=OTHER_NONCE), "2: 9090 3540"),
        (mapping(80, 8080, 0), "0: 8080 0"),
        (mapping(80, 0, 0), "0: 0 0"),
        (mapping(80, 8080, 0, protocol=UDP), "0: 8080 0"),
        (mapping(81, 0, 0), "0: 0 0"),
        (mapping(0, 0, 0), "0: 0 0"),
        (mapping(0, 0, 0, protocol=0), "0: 0 0"),
        (mapping(81, 8080, 3600), "0: 1024 3600"),
        (mapping(81, 8080, 3600, PreferFailure()), "11: 8080 3660"),
    ],
)
def test_a_request_after_another(request_: Request, expected: str) -> None:
    """The one before mapped TCP port 80 to 8080 a minute ago, for an hour."""
    desk = Desk()
    desk.map(mapping(80, 8080))
    desk.now = 60.0
    assert desk.map(request_) == expected
    is_deleted = request_.lifetime == 0 and request_ in (mapping(80, 8080, 0), mapping(80, 0, 0))
    found = desk.table.find(Key(Transport.TCP, A.host, 80))
    assert (found is None) == is_deleted
    if found is not None and expected.startswith("2:"):
        assert (found.expires_at, found.nonce) == (3600.0, NONCE)


@pytest.mark.rfc("6887", "8.1")
def test_other_hosts_have_their_own() -> None:
    desk = Desk()
    desk.map(mapping(80, 8080))
    assert desk.map(mapping(80, 0, 0, peer=B), B) == "0: 0 0"
    assert desk.map(mapping(80, 8080, peer=B), B) == "0: 1024 3600"
    assert desk.map(mapping(80, 8080, protocol=UDP, peer=B), B) == "0: 1024 3600"
    assert len(desk.table.mappings()) == 3


@pytest.mark.rfc("6887", "11.3")
@pytest.mark.rfc("6887", "10")
@pytest.mark.rfc("6887", "15.1")
def test_a_static_mapping() -> None:
    desk = Desk()
    desk.table.add_static(Key(Transport.TCP, A.host, 80), 443)
    desk.settle()
    assert desk.map(mapping(80, 8080)) == "0: 443 4294967295"
    assert desk.map(mapping(80, 8080, nonce=OTHER_NONCE)) == "0: 443 4294967295"
    assert desk.map(mapping(80, 8080, 60, PreferFailure())) == "11: 8080 30"
    assert desk.map(mapping(80, 0, 0)) == f"2: 0 {LONG_ERROR_SECONDS}"
    assert desk.map(mapping(81, 443, 60, PreferFailure())) == "11: 443 30"
    (found,) = desk.table.mappings()
    assert found.nonce is None


@pytest.mark.rfc("6887", "7.4")
@pytest.mark.rfc("6887", "11.3")
@pytest.mark.rfc("6887", "17.2")
@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(per_host=1), "10: 8081 30"),
        (Limits(total=1), "8: 8081 30"),
        (Limits(lowest_port=8080, highest_port=8080), "8: 8081 30"),
    ],
)
def test_no_room(limits: Limits, expected: str) -> None:
    desk = Desk(limits)
    desk.map(mapping(80, 8080))
    assert desk.map(mapping(81, 8081)) == expected
    assert len(desk.table.mappings()) == 1


def test_no_external_address() -> None:
    desk = Desk(address=None)
    assert desk.map(mapping(80, 8080)) == "7: 8080 30"
    assert desk.map(mapping(80, 0, 0)) == "0: 0 0"
    assert desk.ask(ANNOUNCE).result == ResultCode.SUCCESS


@pytest.mark.rfc("6887", "11.3")
def test_a_port_that_the_back_end_cannot_have() -> None:
    desk = Desk()
    desk.taken = {8080}
    assert desk.map(mapping(80, 8080, 60, PreferFailure())) == "11: 8080 30"
    assert desk.table.mappings() == []
    assert desk.map(mapping(80, 8080)).startswith("0: ")
    assert desk.map(mapping(81, 8080)) != "0: 8080 3600"


def test_the_external_address_itself_is_not_mapped() -> None:
    desk = Desk()
    peer = Peer(0, str(EXTERNAL), 40000)
    assert desk.map(mapping(80, 8080, peer=peer), peer) == "2: 8080 1800"


@pytest.mark.rfc("6887", "15")
def test_a_freed_port_rests_for_others() -> None:
    desk = Desk()
    desk.map(mapping(80, 8080))
    assert desk.map(mapping(80, 0, 0)) == "0: 0 0"
    desk.now = 100.0
    assert desk.map(mapping(81, 8080, 3600, PreferFailure())) == "11: 8080 20"
    assert desk.map(mapping(80, 8080, 3600, PreferFailure(), nonce=OTHER_NONCE)) == "11: 8080 20"
    assert desk.map(mapping(80, 8080, 3600, PreferFailure(), peer=B), B) == "11: 8080 20"
    assert desk.map(mapping(80, 8080, peer=B), B) == "0: 1024 3600"
    assert desk.map(mapping(80, 8080)) == "0: 8080 3600"
    desk.map(mapping(80, 0, 0))
    desk.now = 220.0
    assert desk.map(mapping(81, 8080)) == "0: 8080 3600"


@pytest.mark.rfc("6887", "15")
def test_a_lapsed_port_rests_too() -> None:
    desk = Desk()
    desk.map(mapping(80, 8080, 120))
    desk.now = 130.0
    assert desk.map(mapping(80, 8080, peer=B), B) == "0: 1024 3600"


def test_a_resting_port_is_given_when_there_is_no_other() -> None:
    desk = Desk(Limits(lowest_port=8080, highest_port=8081))
    desk.map(mapping(80, 8080))
    desk.map(mapping(80, 0, 0))
    assert desk.map(mapping(80, 8080, peer=B), B) == "0: 8081 3600"
    assert desk.map(mapping(81, 8080, peer=B), B) == "0: 8080 3600"


# -- beside NAT-PMP ------------------------------------------------------------------------------------------------


def test_a_natpmp_mapping_takes_on_the_first_nonce() -> None:
    desk = Desk()
    assert desk.map_natpmp(80, 8080) == "0: 8080 3600"
    assert desk.map(mapping(80, 9090)) == "0: 8080 3600"
    assert desk.map(mapping(80, 9090, nonce=OTHER_NONCE)) == "2: 9090 3600"
    (found,) = desk.table.mappings()
    assert (found.origin.value, found.nonce) == ("natpmp", NONCE)


def test_a_natpmp_mapping_is_deleted_by_pcp() -> None:
    desk = Desk()
    desk.map_natpmp(80, 8080)
    assert desk.map(mapping(80, 0, 0)) == "0: 0 0"
    assert desk.table.mappings() == []


def test_natpmp_renews_what_pcp_made_and_does_no_harm_to_it() -> None:
    desk = Desk()
    desk.map(mapping(80, 8080))
    assert desk.map_natpmp(80, 9090, 600) == "0: 8080 600"
    (found,) = desk.table.mappings()
    assert (found.expires_at, found.nonce) == (3600.0, NONCE)
    assert desk.map_natpmp(80, 9090, 7200) == "0: 8080 7200"
    assert desk.map_natpmp(80, 0, 0) == "2: 8080 0"
    assert desk.map_natpmp(0, 0, 0) == "2: 0 0"
    (found,) = desk.table.mappings()
    assert found.expires_at == 7200.0
    assert desk.map(mapping(80, 0, 0)) == "0: 0 0"


def test_a_port_of_one_protocol_is_taken_for_the_other() -> None:
    desk = Desk()
    desk.map_natpmp(80, 8080)
    assert desk.map(mapping(80, 8080, peer=B), B) == "0: 1024 3600"
    desk.map(mapping(81, 8081))
    assert desk.map_natpmp(81, 8081, peer=B) == "0: 1025 3600"


# -- THIRD_PARTY ---------------------------------------------------------------------------------------------------


@pytest.mark.rfc("6887", "13.1")
def test_third_party() -> None:
    desk = Desk(third_party=True)
    response = desk.ask(mapping(80, 8080, 3600, ThirdParty(IPv4Address(B.host))))
    assert (response.result, response.options) == (0, (ThirdParty(IPv4Address(B.host)),))
    assert [each.key for each in desk.table.mappings()] == [Key(Transport.TCP, B.host, 80)]
    assert desk.map(mapping(80, 8080, nonce=OTHER_NONCE, peer=B), B) == "2: 8080 3600"
    assert desk.map(mapping(80, 0, 0, ThirdParty(IPv4Address(B.host)))) == "0: 0 0"
    assert desk.table.mappings() == []


@pytest.mark.rfc("6887", "13.1")
@pytest.mark.parametrize(
    ("third", "result"),
    [
        (A.host, 3),
        ("192.168.1.1", 2),
        ("127.0.0.1", 2),
        ("169.254.1.1", 2),
        ("0.0.0.0", 2),
        ("224.0.0.1", 2),
        ("255.255.255.255", 2),
        ("8.8.8.8", 2),
        ("2001:db8::11", 9),
    ],
)
def test_third_parties_that_get_nothing(third: str, result: int) -> None:
    desk = Desk(third_party=True)
    assert desk.ask(mapping(80, 8080, 3600, ThirdParty(ip_address(third)))).result == result
    assert desk.table.mappings() == []


def test_third_party_of_a_wrong_length() -> None:
    desk = Desk(third_party=True)
    reply = desk.send(MAP + b"\1\0\0\4\0\0\0\0")
    assert reply is not None
    assert reply[3] == ResultCode.MALFORMED_OPTION


# -- IPv6 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", [3600, 0])
def test_a_back_end_that_opens_no_ipv6_firewall(lifetime: int) -> None:
    assert Desk().map(mapping(80, 80, lifetime, peer=SIX), SIX) == "9: 80 1800"


@pytest.mark.rfc("6887", "11")
def test_a_pinhole_is_the_hosts_own_port_and_address() -> None:
    desk = Desk(pinholes=True, address=None)
    anywhere = IPv6Address("2001:db8:ffff::7")
    assert desk.map(mapping(80, 8080, peer=SIX, address=anywhere), SIX) == f"0: 80 3600 {SIX.host}"
    assert desk.map(mapping(80, 8080, 60, peer=SIX), SIX) == f"0: 80 120 {SIX.host}"
    assert desk.map(mapping(80, nonce=OTHER_NONCE, peer=SIX), SIX).startswith("2: ")
    assert desk.map(mapping(81, 82, 60, PreferFailure(), peer=SIX), SIX) == "11: 82 30"
    assert desk.map(mapping(82, 82, 60, PreferFailure(), peer=SIX), SIX) == f"0: 82 120 {SIX.host}"
    assert desk.map(mapping(80, 0, 0, peer=SIX, address=IPv6Address("::")), SIX) == "0: 0 0 ::"
    assert {found.key for found in desk.table.mappings()} == {Key(Transport.TCP, SIX.host, 82)}


def test_a_pinhole_with_filters() -> None:
    desk = Desk(pinholes=True)
    network = some_filter(48, 443, IPv6Address("2001:db8:5::"))
    assert desk.map(mapping(80, 0, 60, network, peer=SIX), SIX) == f"0: 80 120 {SIX.host}"
    (found,) = desk.table.mappings()
    assert found.filters == (("2001:db8:5::/48", 443),)
    assert desk.map(mapping(80, 0, 60, some_filter(), peer=SIX), SIX).startswith("6: ")


def test_addresses_of_the_link_are_no_end_of_a_pinhole() -> None:
    link = Peer(0, "fe80::10%eth0", 40000)
    client = IPv6Address("fe80::10")
    request = replace(mapping(80, peer=SIX), client=client)
    assert Desk(pinholes=True).map(request, link) == "2: 0 1800"


@pytest.mark.parametrize(
    ("third", "result"),
    [("2001:db8::11", 0), ("2001:db8::1", 2), ("2001:db8:0:1::11", 2), ("fe80::11", 2), (SIX.host, 3)],
)
def test_third_parties_of_ipv6_are_neighbours(third: str, result: int) -> None:
    desk = Desk(pinholes=True, third_party=True)
    request = mapping(80, 0, 60, ThirdParty(IPv6Address(third)), peer=SIX)
    assert desk.ask(request, SIX).result == result


# -- FILTER --------------------------------------------------------------------------------------------------------


@pytest.mark.rfc("6887", "13.3")
def test_filters_of_one_request_and_of_the_next() -> None:
    desk = Desk()
    first = some_filter(96 + 24, 0, IPv4Address("203.0.113.9"))
    response = desk.ask(mapping(80, 0, 60, first, one_peer(1)))
    assert response.options == (first, one_peer(1))
    assert desk.table.mappings()[0].filters == (("203.0.113.0/24", 0), ("203.0.113.1/32", 0))
    desk.ask(mapping(80, 0, 60, some_filter(port=80)))
    assert len(desk.table.mappings()[0].filters) == 3
    desk.ask(mapping(80, 0, 60))
    assert len(desk.table.mappings()[0].filters) == 3
    desk.ask(mapping(80, 0, 60, one_peer(2), some_filter(0, 0, NOWHERE), one_peer(3)))
    assert desk.table.mappings()[0].filters == (("203.0.113.3/32", 0),)
    assert desk.ask(mapping(80, 0, 60, *map(one_peer, range(10, 26)))).result == ResultCode.EXCESSIVE_REMOTE_PEERS
    assert desk.table.mappings()[0].filters == (("203.0.113.3/32", 0),)
    assert desk.ask(mapping(80, 0, 60, some_filter(0), *map(one_peer, range(10, 26)))).result == ResultCode.SUCCESS
    desk.ask(mapping(80, 0, 60, some_filter(0)))
    assert desk.table.mappings()[0].filters == ()


def test_natpmp_leaves_filters_as_they_are() -> None:
    desk = Desk()
    desk.ask(mapping(80, 8080, 60, some_filter()))
    assert desk.map_natpmp(80) == "0: 8080 3600"
    assert len(desk.table.mappings()[0].filters) == 1


# -- mapping updates -----------------------------------------------------------------------------------------------


@pytest.mark.rfc("6887", "14.2")
def test_a_moved_mapping_names_its_last_requester() -> None:
    desk = Desk(third_party=True)
    desk.map(mapping(80, 8080))
    later = A._replace(port=50000)
    desk.map(mapping(80, 8080, 1800), later)
    desk.map(mapping(81, 8081, 3600, ThirdParty(IPv4Address(B.host))))
    desk.map_natpmp(82, 8082)
    desk.now = 100.0
    desk.table.set_external_address("203.0.113.9", now=desk.now)
    desk.settle()
    assert [(moved.mapping.key.port, moved.requester) for moved in desk.moved] == [
        (80, Requester(later, False)),
        (81, Requester(A, True)),
    ]
    updates = []
    for moved in desk.moved:
        assert isinstance(moved.requester, Requester)
        octets = moved.requester.update(moved.mapping, moved.external_address, epoch=0, now=desk.now)
        updates.append(decode_response(octets))
    body = mapping(80, 8080, address=IPv4Address("203.0.113.9")).body
    assert body is not None
    assert updates == [
        Response(opcode=1, result=0, lifetime=1700, epoch=0, body=body),
        Response(
            opcode=1,
            result=0,
            lifetime=3500,
            epoch=0,
            body=replace(body, internal_port=81, external_port=8081),
            options=(ThirdParty(IPv4Address(B.host)),),
        ),
    ]


def test_nobody_is_told_while_there_is_no_address() -> None:
    desk = Desk()
    desk.map(mapping(80, 8080))
    desk.table.set_external_address(None, now=0.0)
    desk.settle()
    assert desk.moved == []
    desk.table.set_external_address(str(EXTERNAL), now=0.0)
    desk.settle()
    assert len(desk.moved) == 1


ONE, TWO = Key(Transport.TCP, A.host, 80), Key(Transport.TCP, B.host, 80)
FROM_A, FROM_B = Requester(A, False), Requester(B, False)


@pytest.mark.rfc("6887", "14.2")
@pytest.mark.rfc("6887", "14")
def test_an_update_is_sent_three_times() -> None:
    updates = MappingUpdates()
    assert updates.next_deadline() is None
    updates.begin(ONE, FROM_A, now=10.0)
    sent = []
    while (deadline := updates.next_deadline()) is not None:
        assert updates.take_due(now=deadline - 0.01) == []
        assert updates.take_due(now=deadline) == [(ONE, FROM_A)]
        sent.append(deadline)
    assert sent == [10.0, 10.25, 10.75]


@pytest.mark.rfc("6887", "14.2")
def test_a_late_update_is_followed_by_a_whole_gap() -> None:
    updates = MappingUpdates()
    updates.begin(ONE, FROM_A, now=0.0)
    assert len(updates.take_due(now=5.0)) == 1
    assert updates.next_deadline() == 5.25


@pytest.mark.rfc("6887", "14.2")
def test_a_refreshed_mapping_needs_no_update() -> None:
    updates = MappingUpdates()
    updates.begin(ONE, FROM_A, now=0.0)
    updates.begin(TWO, FROM_B, now=0.0)
    updates.take_due(now=0.0)
    updates.end(ONE)
    updates.end(ONE)
    assert updates.take_due(now=1.0) == [(TWO, FROM_B)]


def test_another_move_begins_the_series_anew() -> None:
    updates = MappingUpdates()
    updates.begin(ONE, FROM_A, now=0.0)
    updates.take_due(now=0.0)
    updates.take_due(now=0.25)
    updates.begin(ONE, FROM_B, now=0.3)
    assert [updates.take_due(now=at) for at in (0.3, 0.55, 1.05)] == [[(ONE, FROM_B)]] * 3
    assert updates.next_deadline() is None


def test_counters_name_what_arrived() -> None:
    desk = Desk()
    for octets in (MAP, ANNOUNCE.encode(), b"\1\0", b"\2", MAP + b"\x7f\0\0\0", mapping(peer=B).encode()):
        desk.send(octets)
    assert desk.front_end.counters == {
        "map": 1,
        "announce": 1,
        "foreign version": 1,
        "malformed": 1,
        "refused: UNSUPP_OPTION": 1,
        "refused: ADDRESS_MISMATCH": 1,
    }
