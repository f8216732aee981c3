"""The PCP client core against our own PCP front end, both in virtual time (RFC 6887 §8, §11)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from client_stub.mapping_core import Changed, Closed, NatKind, NatState, Send
from client_stub.pcp_client import PcpClient, PcpSettings
from gateway.mappings import Answer, Install, Key, Limits, MappingTable, Moved, Transport
from gateway.natpmp import Peer
from gateway.pcp import PcpFrontEnd, PcpTicket, Requester
from protocol import natpmp, pcp

SERVER, SOURCE = IPv4Address("192.168.1.1"), IPv4Address("192.168.1.20")
OUTSIDE, OTHER = "203.0.113.7", "203.0.113.8"
NONCE = b"twelve bytes"
PEER = Peer(0, str(SOURCE), 40000)
KEY = Key(Transport.UDP, str(SOURCE), 4500)


class Wire:
    """Client and server with nothing between them; `is_lost` decides for each datagram to the server."""

    def __init__(self, *, address: str | None = OUTSIDE, seed: int = 1, **settings: Any) -> None:
        self.now = 1000.0
        self.started = self.now
        self.is_lost: Callable[[], bool] = lambda: False
        self.sent: list[float] = []
        self.said: list[NatState | str] = []
        self.client = PcpClient(SERVER, SOURCE, PcpSettings(internal_port=4500, **settings), random.Random(seed), NONCE)
        self.reboot(address)

    def reboot(self, address: str | None = OUTSIDE) -> None:
        """A server that knows nothing."""
        self.table = MappingTable(Limits(), now=self.now)
        self.front_end = PcpFrontEnd(self.table)
        self.table.set_external_address(address, now=self.now)

    def start(self) -> Wire:
        self.client.start(now=self.now)
        self.drain()
        return self

    def drain(self) -> None:
        while effects := self.client.take_effects():
            for effect in effects:
                match effect:
                    case Send(datagram):
                        self.sent.append(self.now - self.started)
                        if not self.is_lost():
                            self.serve(datagram)
                    case Changed(state):
                        self.said.append(state)
                    case Closed():
                        self.said.append("closed")

    def serve(self, datagram: bytes) -> None:
        reply = self.front_end.receive(datagram, PEER, draw=1, now=self.now)
        if reply is not None:
            self.client.receive(reply, SERVER, now=self.now)
        self.settle()

    def settle(self) -> None:
        while effects := self.table.take_effects():
            for effect in effects:
                match effect:
                    case Install(number):
                        self.table.installed(number, True, now=self.now)
                    case Answer(ticket=ticket):
                        assert isinstance(ticket, PcpTicket)
                        reply = ticket.reply(effect, self.table.strict_epoch(self.now))
                        self.client.receive(reply, SERVER, now=self.now)
                    case Moved(mapping, address, requester):
                        assert isinstance(requester, Requester)
                        update = requester.update(
                            mapping, address, epoch=self.table.strict_epoch(self.now), now=self.now
                        )
                        self.client.receive(update, SERVER, now=self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.client.next_deadline()) is not None and deadline <= end:
            assert deadline >= self.now
            self.now = deadline
            self.client.handle_deadline(now=self.now)
            self.drain()
        self.now = end

    def hear(self, datagram: bytes, source: IPv4Address = SERVER) -> None:
        self.client.receive(datagram, source, now=self.now)
        self.drain()

    def announce(self) -> None:
        self.hear(self.front_end.announcement(now=self.now))


def mapped(port: int, address: str = OUTSIDE) -> NatState:
    return NatState(NatKind.MAPPED, IPv4Address(address), port)


@pytest.mark.rfc("6887", "11.2.1")
@pytest.mark.rfc("6887", "11.4")
@pytest.mark.rfc("6887", "15")
@pytest.mark.rfc("6887", "4")
@pytest.mark.rfc("6887", "8.1")
def test_a_mapping_is_made_and_kept() -> None:
    wire = Wire(suggested_port=40000, lifetime=3600).start()
    assert wire.said == [mapped(40000)]
    wire.run(30 * 86400)
    assert wire.said == [mapped(40000)]
    assert wire.table.find(KEY) is not None
    gaps = [after - before for before, after in zip(wire.sent, wire.sent[1:], strict=False)]
    assert all(1800 <= gap <= 2250 for gap in gaps)
    assert len({round(gap, 3) for gap in gaps}) > 100  # drawn anew each time


@pytest.mark.rfc("6887", "8.1.1")
@pytest.mark.parametrize("seed", range(20))
def test_waits_double_around_three_seconds(seed: int) -> None:
    wire = Wire(seed=seed, tries=6)
    wire.is_lost = lambda: True
    wire.start().run(1000)
    gaps = [after - before for before, after in zip(wire.sent, wire.sent[1:], strict=False)][:5]
    for gap, wait in zip(gaps, (3, 6, 12, 24, 48), strict=True):
        assert 0.9 * wait <= gap <= 1.1 * wait
    assert wire.said == [NatState(NatKind.PUBLIC, reason="no answer")]


@pytest.mark.rfc("6887", "8.1.1")
def test_no_wait_is_longer_than_1024_seconds() -> None:
    wire = Wire(tries=14)
    wire.is_lost = lambda: True
    wire.start().run(20_000)
    gaps = [after - before for before, after in itertools.pairwise(wire.sent[:14])]
    assert 900 < max(gaps) <= 1024 * 1.1 and all(gap > 900 for gap in gaps[-4:])


@pytest.mark.rfc("6887", "8.1.1")
@pytest.mark.rfc("6887", "11.2.1")
@pytest.mark.rfc("6887", "11.4")
def test_a_renewal_asks_for_what_it_has_under_the_same_nonce() -> None:
    wire = Wire(lifetime=3600)
    asked: list[pcp.MapBody] = []

    def listen(datagram: bytes) -> None:
        request = pcp.decode_request(datagram)
        assert isinstance(request, pcp.Request) and request.body is not None
        asked.append(request.body)
        Wire.serve(wire, datagram)

    wire.serve = listen  # type: ignore[method-assign]
    wire.start().run(8000)
    (state,) = wire.said
    assert isinstance(state, NatState) and state.port and len(asked) > 2
    assert (asked[0].external_port, asked[0].external_address) == (0, IPv4Address("0.0.0.0"))
    assert {(body.external_port, str(body.external_address)) for body in asked[1:]} == {(state.port, OUTSIDE)}
    assert {body.nonce for body in asked} == {NONCE}


@pytest.mark.rfc("6887", "11.2.1")
def test_renewals_come_closer_until_the_lapse() -> None:
    wire = Wire(lifetime=3600).start()
    wire.is_lost = lambda: True
    wire.run(3601)
    renewals = [at for at in wire.sent[1:] if at < 3600]
    for at, (low, high) in zip(renewals, ((1800, 2250), (2700, 2925), (3150, 3262.5)), strict=False):
        assert low <= at <= high
    assert all(after - before >= 4 for before, after in itertools.pairwise(renewals))
    assert len(renewals) < 12
    assert wire.said[-1] == NatState(NatKind.SEARCHING, reason="the mapping lapsed")
    wire.is_lost = lambda: False
    wire.run(2000)
    assert isinstance(wire.said[-1], NatState)
    assert wire.said[-1].kind is NatKind.MAPPED


@pytest.mark.rfc("6887", "14.2")
@pytest.mark.rfc("6887", "8")
@pytest.mark.rfc("6887", "8.3")
def test_an_update_moves_the_mapping() -> None:
    wire = Wire(suggested_port=40000).start()
    wire.run(10)
    wire.table.set_external_address(OTHER, now=wire.now)
    wire.settle()
    wire.drain()
    assert wire.said == [mapped(40000), mapped(40000, OTHER)]


@pytest.mark.rfc("6887", "8.5")
@pytest.mark.rfc("6887", "14.1.3")
def test_a_lost_epoch_maps_again_within_five_seconds() -> None:
    wire = Wire(suggested_port=40000).start()
    wire.run(500)
    wire.announce()
    wire.run(10)
    assert len(wire.sent) == 1  # nothing was lost
    wire.reboot()
    wire.announce()
    assert wire.table.find(KEY) is None
    wire.run(5)
    assert wire.table.find(KEY) is not None
    assert wire.said == [mapped(40000), mapped(40000)]  # said again, for it was made again


@pytest.mark.rfc("6887", "11.4")
@pytest.mark.rfc("6887", "8.3")
def test_a_refusal_is_believed_for_as_long_as_it_says() -> None:
    wire = Wire(address=None).start()
    assert wire.said == [NatState(NatKind.FAILED, reason="the gateway says: network failure")]
    wire.table.set_external_address(OUTSIDE, now=wire.now)
    wire.run(29)
    assert len(wire.sent) == 1
    wire.run(2)
    assert isinstance(wire.said[-1], NatState)
    assert wire.said[-1].kind is NatKind.MAPPED


@pytest.mark.rfc("6887", "9")
@pytest.mark.rfc("6886", "1.1")
@pytest.mark.rfc("6887", "A")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            natpmp.ErrorResponse(opcode=128, result=natpmp.ResultCode.UNSUPPORTED_VERSION, epoch=7).encode(),
            "it speaks NAT-PMP only",
        ),
        (
            natpmp.ErrorResponse(opcode=0, result=natpmp.ResultCode.UNSUPPORTED_VERSION, epoch=7).encode(),
            "it speaks NAT-PMP only",
        ),
        (pcp.refuse(bytes(60), pcp.ResultCode.UNSUPP_VERSION, lifetime=0, epoch=7), "it refuses PCP version 2"),
    ],
)
def test_a_gateway_without_pcp_is_left_at_once(answer: bytes, reason: str) -> None:
    wire = Wire()
    wire.is_lost = lambda: True
    wire.start()
    wire.hear(answer)
    assert wire.said == [NatState(NatKind.PUBLIC, reason=reason)]


def test_nobody_there_is_noticed_at_once() -> None:
    wire = Wire()
    wire.is_lost = lambda: True
    wire.start()
    wire.client.unreachable(now=wire.now)
    wire.drain()
    assert wire.said == [NatState(NatKind.PUBLIC, reason="nobody listens there")]


def test_the_mapping_is_deleted_at_the_end() -> None:
    wire = Wire().start()
    wire.client.shutdown(now=wire.now)
    wire.drain()
    assert wire.said[-1] == "closed"
    assert wire.table.find(KEY) is None


def test_a_deletion_that_nobody_answers_is_given_up() -> None:
    wire = Wire().start()
    wire.is_lost = lambda: True
    wire.client.shutdown(now=wire.now)
    wire.drain()
    wire.run(60)
    assert wire.said[-1] == "closed"
    assert wire.client.next_deadline() is None


@pytest.mark.rfc("6887", "8.3")
@pytest.mark.rfc("6887", "11.2")
@pytest.mark.rfc("6887", "14.1.3")
def test_answers_that_are_not_ours_are_dropped() -> None:
    wire = Wire()
    wire.is_lost = lambda: True
    wire.start()

    def response(source: IPv4Address = SERVER, **changes: Any) -> None:
        body: dict[str, Any] = {
            "nonce": NONCE,
            "protocol": 17,
            "internal_port": 4500,
            "external_port": 1,
            "external_address": IPv4Address(OUTSIDE),
        }
        answer = pcp.Response(
            opcode=pcp.Opcode.MAP, result=0, lifetime=3600, epoch=1, body=pcp.MapBody(**body | changes)
        )
        wire.hear(answer.encode(), source)

    response(IPv4Address("192.168.1.9"))
    response(nonce=b"another one.")
    response(protocol=6)
    response(internal_port=4501)
    for cut in range(60):
        wire.hear(bytes(cut))
    assert wire.said == []
    response()
    assert wire.said == [mapped(1)]


def granted(lifetime: int, *options: pcp.Option) -> bytes:
    body = pcp.MapBody(
        nonce=NONCE, protocol=17, internal_port=4500, external_port=1, external_address=IPv4Address(OUTSIDE)
    )
    answer = pcp.Response(opcode=pcp.Opcode.MAP, result=0, lifetime=lifetime, epoch=1, body=body, options=options)
    return answer.encode()


@pytest.mark.rfc("6887", "7.3")
@pytest.mark.parametrize("code", [0, 99, 127, 128, 255])
def test_options_of_an_answer_that_are_unknown_are_ignored(code: int) -> None:
    """Those too that a server would have to refuse."""
    wire = Wire()
    wire.is_lost = lambda: True
    wire.start()
    wire.hear(granted(3600, pcp.UnknownOption(code, b"what")))
    assert wire.said == [mapped(1)]


@pytest.mark.rfc("6887", "8.3")
@pytest.mark.rfc("6887", "15")
def test_a_mapping_for_years_is_renewed_within_a_day() -> None:
    wire = Wire()
    wire.is_lost = lambda: True
    wire.start()
    wire.hear(granted(0xFFFFFFFF))
    wire.run(86400)
    assert any(86400 / 2 <= at <= 86400 * 5 / 8 for at in wire.sent)


def test_an_external_address_that_is_private_is_told() -> None:
    wire = Wire(address="100.64.0.9").start()
    assert isinstance(wire.said[-1], NatState)
    assert wire.said[-1].kind is NatKind.NAT_BEHIND_NAT


@pytest.mark.rfc("6887", "8.1.1")
@pytest.mark.parametrize("seed", range(10))
def test_with_every_second_datagram_lost_it_works_all_the_same(seed: int) -> None:
    wire = Wire(seed=seed, lifetime=600)
    lost = random.Random(seed)
    wire.is_lost = lambda: lost.random() < 0.5
    wire.start().run(86400)
    wire.is_lost = lambda: False
    wire.run(1000)
    assert wire.table.find(KEY) is not None, f"seed {seed}"
    assert wire.client.state.kind is NatKind.MAPPED, f"seed {seed}"
