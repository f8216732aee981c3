"""The NAT-PMP client core in virtual time against a scripted gateway (RFC 6886 §3, RFC 6281 §4)."""

import random
from ipaddress import IPv4Address

import pytest

from client_stub.mapping_core import Changed, Closed, NatKind, NatState, Send
from client_stub.natpmp_client import NatPmpClient, NatSettings
from protocol.natpmp import (
    AddressRequest,
    AddressResponse,
    ErrorResponse,
    MapRequest,
    MapResponse,
    Opcode,
    decode_request,
)

GATEWAY = IPv4Address("10.0.0.1")
OUTSIDE = IPv4Address("203.0.113.7")
OTHER = IPv4Address("203.0.113.8")
MAPPED = NatState(NatKind.MAPPED, OUTSIDE, 40000)


class Gateway:
    """Answers as it should; `address`, `started_at`, `result` and `is_silent` are the script."""

    def __init__(self):
        self.address = OUTSIDE
        self.port = 40000
        self.started_at = -1000.0
        self.result = 0
        self.lifetime_max = 86400
        self.is_silent = False

    def epoch(self, now):
        return int(now - self.started_at)

    def announcement(self, now):
        return AddressResponse(result=0, epoch=self.epoch(now), address=self.address).encode()

    def answer(self, datagram, now):
        request = decode_request(datagram)
        if isinstance(request, AddressRequest):
            address = self.address if self.result == 0 else IPv4Address(0)
            return AddressResponse(result=self.result, epoch=self.epoch(now), address=address).encode()
        assert isinstance(request, MapRequest)
        deleting = request.lifetime == 0
        return MapResponse(
            opcode=request.opcode,
            result=self.result,
            epoch=self.epoch(now),
            internal_port=request.internal_port,
            external_port=0 if deleting or self.result else self.port,
            lifetime=0 if self.result else min(request.lifetime, self.lifetime_max),
        ).encode()


class Wire:
    """Runs the core in virtual time and keeps what it sent and said. `lost` decides per datagram; copies come twice."""

    def __init__(self, seed=1, copies=1, lost=lambda: False, **settings):
        self.now = 0.0
        self.gateway = Gateway()
        self.client = NatPmpClient(GATEWAY, NatSettings(internal_port=4500, **settings), random.Random(seed))
        self.sent = []
        self.said = []
        self.copies = copies
        self.lost = lost

    def start(self):
        self.client.start(now=self.now)
        self.drain()
        return self

    def drain(self):
        while effects := self.client.take_effects():
            for effect in effects:
                match effect:
                    case Send(datagram):
                        self.sent.append((self.now, decode_request(datagram)))
                        if not self.gateway.is_silent and not self.lost():
                            answer = self.gateway.answer(datagram, self.now)
                            for _ in range(self.copies):
                                self.client.receive(answer, GATEWAY, now=self.now)
                    case Changed(state):
                        self.said.append((self.now, state))
                    case Closed():
                        self.said.append((self.now, "closed"))

    def run_until(self, end):
        while (deadline := self.client.next_deadline()) is not None and deadline <= end:
            assert deadline >= self.now
            self.now = deadline
            self.client.handle_deadline(now=self.now)
            self.drain()
        self.now = end

    def announce(self, source=GATEWAY):
        self.client.receive(self.gateway.announcement(self.now), source, now=self.now)
        self.drain()

    def requests_since(self, time):
        return [request for at, request in self.sent if at >= time]


def map_request(port=40000, lifetime=3600):
    return MapRequest(opcode=Opcode.MAP_UDP, internal_port=4500, suggested_port=port, lifetime=lifetime)


@pytest.mark.rfc("6886", "3.1")
def test_asks_address_then_mapping_and_says_both_at_once():
    wire = Wire(suggested_port=4500).start()
    assert wire.sent == [(0.0, AddressRequest()), (0.0, map_request(4500))]
    assert wire.said == [(0.0, MAPPED)]
    assert wire.client.lapses_at == 3600


@pytest.mark.rfc("6281", "4.2")
@pytest.mark.rfc("6886", "3.3")
def test_renews_at_half_life_with_the_granted_port():
    wire = Wire().start()
    wire.run_until(1799.9)
    assert len(wire.sent) == 2
    wire.run_until(1801)
    assert wire.sent[2:] == [(1800.0, AddressRequest()), (1800.0, map_request())]
    assert len(wire.said) == 1


def test_renewal_follows_the_granted_lifetime():
    wire = Wire()
    wire.gateway.lifetime_max = 200
    wire.start().run_until(450)
    assert [at for at, request in wire.sent if isinstance(request, MapRequest)] == [0, 100, 200, 300, 400]


@pytest.mark.rfc("6886", "3.1")
@pytest.mark.rfc("6886", "3.3")
@pytest.mark.rfc("6281", "4.1")
@pytest.mark.rfc("6281", "4.2")
def test_nine_tries_doubling_then_a_public_network():
    wire = Wire()
    wire.gateway.is_silent = True
    wire.start().run_until(127.7)
    assert [at for at, _ in wire.sent] == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75]
    assert wire.said == []
    wire.run_until(127.8)
    assert [(at, state.kind) for at, state in wire.said] == [(127.75, NatKind.PUBLIC)]


def test_port_unreachable_ends_the_tries_at_once_and_an_announcement_begins_anew():
    wire = Wire()
    wire.gateway.is_silent = True
    wire.start()
    wire.client.unreachable(now=0.0)
    wire.drain()
    assert wire.said[-1][1].kind is NatKind.PUBLIC
    wire.gateway.is_silent = False
    wire.run_until(50)
    wire.announce()
    assert wire.said[-1] == (50, MAPPED)


@pytest.mark.rfc("6886", "3.2.1")
def test_changed_address_is_told_after_the_mapping_was_confirmed():
    wire = Wire().start()
    wire.run_until(100)
    wire.gateway.address = OTHER
    wire.gateway.is_silent = True
    wire.announce()
    assert wire.requests_since(100) == [map_request()]
    assert len(wire.said) == 1
    wire.gateway.is_silent = False
    wire.run_until(101)
    assert wire.said[1:] == [(100.25, NatState(NatKind.MAPPED, OTHER, 40000))]
    wire.announce()  # the second of ten says nothing new
    assert wire.requests_since(101) == []


@pytest.mark.rfc("6886", "3.2")
@pytest.mark.rfc("6886", "3.2.1")
@pytest.mark.rfc("6886", "3.3")
def test_announcement_from_a_stranger_is_ignored():
    wire = Wire().start()
    wire.gateway.address = OTHER
    wire.announce(source=IPv4Address("10.0.0.66"))
    assert len(wire.sent) == 2


@pytest.mark.rfc("6886", "3.6")
@pytest.mark.rfc("6886", "3.7")
@pytest.mark.rfc("6281", "4.2")
@pytest.mark.parametrize("seed", range(5))
def test_lost_epoch_waits_at_random_then_asks_for_the_same_port(seed):
    wire = Wire(seed=seed).start()
    wire.run_until(100)
    wire.gateway.started_at = 99.0
    wire.announce()
    wire.run_until(100.25)
    wire.announce()  # the next copy of the series must not restart the wait
    wire.run_until(106)
    mapped = [at for at, request in wire.sent if at >= 100 and request == map_request()]
    assert len(mapped) == 1
    assert 100 <= mapped[0] <= 105
    assert wire.said[-1] == (mapped[0], MAPPED)
    assert len(wire.said) == 2, "the confirmed mapping is told again, for a republication"


def test_loss_delay_is_configurable():
    wire = Wire(loss_delay_max=0.2).start()
    wire.run_until(100)
    wire.gateway.started_at = 99.0
    wire.announce()
    wire.run_until(100.3)
    assert map_request() in wire.requests_since(100)


@pytest.mark.parametrize("text", ["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1"])
def test_private_outside_is_nat_behind_nat(text):
    wire = Wire()
    wire.gateway.address = IPv4Address(text)
    wire.start()
    assert wire.said[-1][1].kind is NatKind.NAT_BEHIND_NAT


@pytest.mark.rfc("6886", "3.5")
def test_refusal_is_told_and_tried_again_later():
    wire = Wire(failure_retry=60)
    wire.gateway.result = 3
    wire.start().run_until(59)
    assert [state.kind for _, state in wire.said] == [NatKind.FAILED]
    assert "network failure" in wire.said[0][1].reason
    assert len(wire.sent) == 1
    wire.gateway.result = 0
    wire.run_until(61)
    assert wire.said[-1] == (60, MAPPED)


def test_a_gateway_of_another_kind_is_a_failure_not_a_public_network():
    wire = Wire()
    wire.gateway.is_silent = True
    wire.start()
    wire.client.receive(ErrorResponse(opcode=0, result=1, epoch=5).encode(), GATEWAY, now=0)
    wire.drain()
    assert wire.said[-1][1].kind is NatKind.FAILED


def test_silent_gateway_at_renewal_ends_in_lapse_and_recovery():
    wire = Wire().start()
    wire.run_until(100)
    wire.gateway.is_silent = True
    wire.run_until(3599)
    assert len(wire.said) == 1
    wire.run_until(3601)
    assert wire.said[-1][0] == 3600
    assert wire.said[-1][1].kind is NatKind.SEARCHING
    wire.gateway.is_silent = False
    wire.run_until(5000)
    assert wire.said[-1][1] == MAPPED


@pytest.mark.rfc("6886", "3.1")
@pytest.mark.rfc("6886", "3.4")
@pytest.mark.rfc("6281", "4.2")
def test_shutdown_deletes_the_mapping():
    wire = Wire().start()
    wire.client.shutdown(now=0)
    wire.drain()
    assert wire.sent[-1][1] == map_request(0, 0)
    assert wire.said[-1][1] == "closed"
    assert wire.client.next_deadline() is None


@pytest.mark.rfc("6886", "3.1")
def test_shutdown_gives_up_on_a_silent_gateway_and_needs_nothing_without_a_mapping():
    wire = Wire().start()
    wire.gateway.is_silent = True
    wire.client.shutdown(now=0)
    wire.drain()
    wire.run_until(10)
    assert wire.said[-1] == (1.75, "closed")
    assert [request.lifetime for _, request in wire.sent[2:]] == [0, 0, 0]
    early = Wire()
    early.client.shutdown(now=0)
    early.drain()
    assert (early.sent, early.said) == ([], [(0.0, "closed")])


@pytest.mark.parametrize("octets", [b"", b"\0", b"\0\x80\0\0", b"\2" * 60, bytes(12), b"\0\x81\0\0" + bytes(4)])
def test_garbage_changes_nothing(octets):
    wire = Wire()
    wire.gateway.is_silent = True
    wire.start()
    wire.client.receive(octets, GATEWAY, now=0)
    assert wire.client.take_effects() == []


@pytest.mark.parametrize("seed", range(40))
def test_converges_under_loss_and_duplication(seed):
    rng = random.Random(seed)
    wire = Wire(seed=seed, copies=2, lost=lambda: rng.random() < 0.3).start()
    wire.run_until(200)
    assert wire.client.state == MAPPED
    wire.gateway.address = OTHER
    wire.gateway.port = 41000
    wire.gateway.started_at = 199.0
    for _ in range(10):
        if rng.random() < 0.7:
            wire.announce()
        wire.run_until(wire.now + 10)
    assert wire.client.state == NatState(NatKind.MAPPED, OTHER, 41000), f"seed {seed}"
