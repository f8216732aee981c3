"""NAT-PMP requests against the table, octets in and octets out: every case the RFC names, with exact lengths."""

from __future__ import annotations

import pytest

from gateway.mappings import Answer, Install, Key, Limits, MappingTable, Transport
from gateway.natpmp import MapTicket, NatPmpFrontEnd, Peer
from protocol.natpmp import RESPONSE_BIT, MapRequest, MapResponse, Opcode, decode_response

A = Peer(0, "192.168.1.10", 40000)
B = Peer(0, "192.168.1.11", 40000)
EPOCH = 5002


class Desk:
    """Front end and table with a back end that accepts everything."""

    def __init__(self, limits: Limits | None = None, address: str | None = "198.51.100.7") -> None:
        self.now = 0.0
        self.table = MappingTable(limits or Limits(), epoch=EPOCH, now=0.0)
        self.table.set_external_address(address, now=0.0)
        self.front_end = NatPmpFrontEnd(self.table)
        self.settle()

    def settle(self) -> list[bytes]:
        replies = []
        while effects := self.table.take_effects():
            for effect in effects:
                if isinstance(effect, Install):
                    self.table.installed(effect.number, True, now=self.now)
                elif isinstance(effect, Answer):
                    assert isinstance(effect.ticket, MapTicket)
                    replies.append(effect.ticket.reply(effect, self.table.epoch(self.now)))
        return replies

    def send(self, request: str | bytes, peer: Peer = A) -> bytes | None:
        octets = bytes.fromhex(request) if isinstance(request, str) else request
        at_once = self.front_end.receive(octets, peer, draw=0, now=self.now)
        replies = self.settle()
        if at_once is not None:
            assert replies == []
            return at_once
        assert len(replies) <= 1
        return replies[0] if replies else None

    def map(self, internal: int, suggested: int = 0, lifetime: int = 3600, *, udp: bool = True, peer: Peer = A) -> str:
        """Send a map request; gives result, internal port, external port and lifetime as text."""
        opcode = Opcode.MAP_UDP if udp else Opcode.MAP_TCP
        request = MapRequest(opcode=opcode, internal_port=internal, suggested_port=suggested, lifetime=lifetime)
        reply = self.send(request.encode(), peer)
        assert reply is not None
        assert len(reply) == 16
        assert reply[1] == opcode | RESPONSE_BIT
        response = decode_response(reply)
        assert isinstance(response, MapResponse)
        assert response.epoch == self.table.epoch(self.now)
        return f"{response.result}: {response.internal_port} {response.external_port} {response.lifetime}"


@pytest.mark.rfc("6886", "3.2")
@pytest.mark.rfc("6281", "4.3")
def test_external_address() -> None:
    assert Desk().send("0000") == bytes.fromhex("0080 0000 0000138a c6336407")


@pytest.mark.rfc("6886", "3.5")
@pytest.mark.rfc("6886", "3.2")
def test_no_external_address_is_result_3() -> None:
    desk = Desk(address=None)
    assert desk.send("0000") == bytes.fromhex("0080 0003 0000138a 00000000")
    assert desk.send("0002 0000 1f90 2382 00000258") == bytes.fromhex("0082 0003 0000138a 1f90 0000 00000000")


@pytest.mark.rfc("6886", "3.3")
def test_map_golden() -> None:
    desk = Desk()
    reply = bytes.fromhex("0082 0000 0000138a 1f90 2382 00000258")
    assert desk.send("0002 0000 1f90 2382 00000258") == reply
    assert desk.send("0002 0000 1f90 2382 00000258") == reply
    assert desk.send("0002 0000 1f90 0000 00000000") == bytes.fromhex("0082 0000 0000138a 1f90 0000 00000000")
    assert desk.table.mappings() == []


@pytest.mark.rfc("6886", "3.3")
def test_mapping_goes_to_the_sender_of_the_packet() -> None:
    desk = Desk()
    desk.map(4500, 4500, peer=B)
    assert [mapping.key for mapping in desk.table.mappings()] == [Key(Transport.UDP, B.host, 4500)]


@pytest.mark.rfc("6886", "3.3")
def test_repeated_request_with_another_suggestion_keeps_the_port() -> None:
    desk = Desk()
    assert desk.map(4500, 4500) == "0: 4500 4500 3600"
    desk.now = 60.0
    assert desk.map(4500, 6000) == "0: 4500 4500 3600"


@pytest.mark.rfc("6886", "3.3")
@pytest.mark.rfc("6281", "4.2")
def test_second_client_and_companion() -> None:
    desk = Desk()
    assert desk.map(4500, 4500) == "0: 4500 4500 3600"
    assert desk.map(4500, 4500, peer=B) == "0: 4500 1024 3600"
    assert desk.map(4500, 4500, udp=False, peer=B) == "0: 4500 1024 3600"
    assert desk.map(4500, 4500, udp=False) == "0: 4500 4500 3600"


@pytest.mark.rfc("6886", "3.3")
def test_udp_and_tcp_are_mapped_apart() -> None:
    desk = Desk()
    desk.map(4500, 4500)
    assert [mapping.key.transport for mapping in desk.table.mappings()] == [Transport.UDP]
    desk.map(22, 2222, udp=False)
    assert sorted(mapping.key.transport for mapping in desk.table.mappings()) == [Transport.TCP, Transport.UDP]


@pytest.mark.rfc("6886", "3.3")
def test_lifetime_is_clamped() -> None:
    desk = Desk()
    assert desk.map(4500, 4500, 0xFFFFFFFF) == "0: 4500 4500 86400"
    assert desk.map(4500, 4500, 1) == "0: 4500 4500 1"


@pytest.mark.rfc("6886", "3.3")
@pytest.mark.rfc("6886", "3.4")
@pytest.mark.rfc("6281", "4.2")
def test_lapsed_mapping_is_gone() -> None:
    desk = Desk()
    desk.map(4500, 4500, 120)
    desk.now = 120.0
    assert desk.map(4500, 0, 0) == "0: 4500 0 0"
    desk.now = 240.0
    assert desk.map(4500, 4500, peer=B) == "0: 4500 4500 3600"


@pytest.mark.rfc("6886", "3.5")
@pytest.mark.parametrize("limits", [Limits(total=1), Limits(per_host=1), Limits(lowest_port=2000, highest_port=2000)])
def test_full_table_is_result_4(limits: Limits) -> None:
    desk = Desk(limits)
    desk.map(1, 2000)
    assert desk.map(2) == "4: 2 0 0"


@pytest.mark.rfc("6886", "3.4")
def test_deletion_of_the_unknown_succeeds() -> None:
    assert Desk().map(4500, 0, 0) == "0: 4500 0 0"


@pytest.mark.rfc("6886", "3.4")
def test_deletion_ignores_the_suggested_port() -> None:
    desk = Desk()
    desk.map(4500, 4500)
    assert desk.map(4500, 4500, 0) == "0: 4500 0 0"
    assert desk.table.mappings() == []


@pytest.mark.rfc("6886", "3.4")
def test_nobody_deletes_what_another_host_has() -> None:
    desk = Desk()
    desk.map(4500, 4500)
    assert desk.map(4500, 0, 0, peer=B) == "0: 4500 0 0"
    assert desk.map(0, 0, 0, peer=B) == "0: 0 0 0"
    assert len(desk.table.mappings()) == 1


@pytest.mark.rfc("6886", "3.4")
def test_delete_all_for_tcp_leaves_udp() -> None:
    desk = Desk()
    desk.map(1)
    desk.map(2, udp=False)
    desk.map(3, udp=False)
    assert desk.map(0, 0, 0, udp=False) == "0: 0 0 0"
    assert [mapping.key.port for mapping in desk.table.mappings()] == [1]


@pytest.mark.rfc("6886", "3.4")
def test_static_mapping_is_not_deleted() -> None:
    desk = Desk()
    desk.table.add_static(Key(Transport.TCP, A.host, 80), 8080)
    desk.settle()
    desk.map(81, 8081, udp=False)
    assert desk.map(80, 0, 0, udp=False) == "2: 80 8080 0"
    assert desk.map(0, 0, 0, udp=False) == "2: 0 0 0"
    assert [mapping.key.port for mapping in desk.table.mappings()] == [80]


@pytest.mark.parametrize(("suggested", "lifetime"), [(0, 3600), (80, 3600), (80, 0)])
def test_internal_port_0_means_nothing_but_delete_all(suggested: int, lifetime: int) -> None:
    desk = Desk()
    desk.map(1)
    assert desk.map(0, suggested, lifetime) == "2: 0 0 0"
    assert len(desk.table.mappings()) == 1


@pytest.mark.rfc("6886", "3.5")
@pytest.mark.rfc("6886", "3")
@pytest.mark.parametrize(
    ("request_hex", "reply_hex"),
    [
        ("0100", "0000 0001 0000138a"),
        ("0301 0000 1194 1194 00000e10", "0000 0001 0000138a"),
        ("ff7f", "0000 0001 0000138a"),
        # PCP clients drop answers without the response bit, so they get one.
        ("0200", "0080 0001 0000138a"),
        ("0201 0000 00000258 " + "00" * 52, "0081 0001 0000138a"),
    ],
)
def test_other_versions_are_refused_in_8_octets(request_hex: str, reply_hex: str) -> None:
    assert Desk().send(request_hex) == bytes.fromhex(reply_hex)


@pytest.mark.rfc("6886", "3.5")
@pytest.mark.parametrize(
    ("request_hex", "reply_hex"),
    [
        ("004d 0000 0102 0304 0506", "00cd 0005 0102 0304 0506"),
        ("0003 0000 1194 1194 00000e10", "0083 0005 1194 1194 00000e10"),
        ("004d", "00cd 0005 0000138a"),
    ],
)
def test_unknown_opcodes_are_echoed_with_result_5(request_hex: str, reply_hex: str) -> None:
    assert Desk().send(request_hex) == bytes.fromhex(reply_hex)


@pytest.mark.rfc("6886", "3.5")
@pytest.mark.parametrize(
    "request_hex",
    ["", "00", "0080", "0081 0000 00000000 1194 1194 00000e10", "00ff", "01ff", "0280", "0001", "0002 0000 1194"],
)
def test_what_gets_no_answer(request_hex: str) -> None:
    desk = Desk()
    assert desk.send(request_hex) is None
    assert desk.front_end.counters == {"malformed": 1}
    assert desk.table.mappings() == []


def test_longer_requests_are_read_as_far_as_they_go() -> None:
    desk = Desk()
    assert desk.send("0000 ffff") == bytes.fromhex("0080 0000 0000138a c6336407")
    assert desk.send("0001 0000 1194 1194 00000e10 00000000") == bytes.fromhex("0081 0000 0000138a 1194 1194 00000e10")


@pytest.mark.rfc("6886", "3.6")
@pytest.mark.rfc("6886", "3.2")
@pytest.mark.rfc("6886", "3.3")
def test_epoch_moves_on_with_time() -> None:
    desk = Desk()
    desk.now = 90.0
    assert desk.send("0000") == bytes.fromhex("0080 0000 000013e4 c6336407")


def test_counters_name_what_arrived() -> None:
    desk = Desk()
    for request in ("0000", "0001 0000 1194 1194 00000e10", "0200", "004d", "00"):
        desk.send(request)
    assert desk.front_end.counters == {
        "address": 1,
        "map": 1,
        "foreign version": 1,
        "unknown opcode": 1,
        "malformed": 1,
    }
