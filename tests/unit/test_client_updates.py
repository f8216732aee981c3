"""The registration UPDATE as dnspython reads it, and the registrar in virtual time (RFC 9664 §4, §5, RFC 6281 §5.2)."""

import random
import time
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
import pytest

from client_stub.identity import eui64, host_names, parse_mac
from client_stub.updates import (
    Failed,
    Outcome,
    Published,
    Registrar,
    RegistrarSettings,
    Registration,
    SendUpdate,
    Withdrawn,
    deregistration_message,
    read_reply,
    registration_message,
)
from protocol.constants import OPCODE_SHIFT, QR, Opcode, Rcode
from protocol.edns import Opt, UpdateLease, extended_error
from protocol.errors import DecodeError
from protocol.message import decode, encode
from protocol.name import from_text
from protocol.tsig import SHA256, Key, sign

NAMES = host_names("mac", "alice.members.example", eui64(parse_mac("00:22:69:8E:34:2A")))
PLACE = Registration(
    names=NAMES,
    inner=IPv6Address("fd01::1"),
    outer=IPv4Address("203.0.113.7"),
    port=40000,
    text=(b"model=homing", b"v=1"),
)
ELSEWHERE = Registration(names=NAMES, inner=PLACE.inner, outer=IPv4Address("203.0.113.8"), port=40000, text=PLACE.text)
ZONE = from_text("members.example")
TUNNEL = "AutoTunnel-00-22-69-FF-FE-8E-34-2A.alice.members.example."
SERVICE = "_autotunnel._udp.mac.alice.members.example."


def updates_of(message):
    assert isinstance(message, dns.update.UpdateMessage)
    return [
        (
            str(rrset.name),
            dns.rdatatype.to_text(rrset.rdtype),
            rrset.deleting and rrset.deleting.name,
            [str(rd) for rd in rrset],
        )
        for rrset in message.update
    ]


@pytest.mark.rfc("6281", "5.2")
@pytest.mark.rfc("2136", "4.4")
@pytest.mark.rfc("9664", "4.2")
@pytest.mark.rfc("9664", "5.2")
@pytest.mark.rfc("2782", "-")
@pytest.mark.rfc("6281", "3")
def test_registration_as_dnspython_reads_it():
    message = dns.message.from_wire(registration_message(0x1234, ZONE, PLACE, 5400))
    assert message.id == 0x1234
    assert str(message.zone[0].name) == "members.example."
    assert message.prerequisite == []
    assert updates_of(message) == [
        ("mac.alice.members.example.", "AAAA", "ANY", []),
        ("mac.alice.members.example.", "AAAA", None, ["fd01::1"]),
        (TUNNEL, "AAAA", "ANY", []),
        (TUNNEL, "AAAA", None, ["fd01::1"]),
        (TUNNEL, "A", "ANY", []),
        (TUNNEL, "A", None, ["203.0.113.7"]),
        (TUNNEL, "TXT", "ANY", []),
        (TUNNEL, "TXT", None, ['"model=homing" "v=1"']),
        (SERVICE, "SRV", "ANY", []),
        (SERVICE, "SRV", None, [f"0 0 40000 {TUNNEL}"]),
        ("_autotunnel._udp.alice.members.example.", "PTR", None, [SERVICE]),
    ]
    (option,) = message.options
    assert (int(option.otype), option.to_wire()) == (2, bytes.fromhex("00001518"))
    ttls = {rrset.ttl for rrset in message.update if len(rrset)}
    assert ttls == {120}


def test_deregistration_takes_only_our_own_pointer():
    message = dns.message.from_wire(deregistration_message(7, ZONE, NAMES))
    assert updates_of(message) == [
        ("mac.alice.members.example.", "AAAA", "ANY", []),
        (TUNNEL, "AAAA", "ANY", []),
        (TUNNEL, "A", "ANY", []),
        (TUNNEL, "TXT", "ANY", []),
        (SERVICE, "SRV", "ANY", []),
        ("_autotunnel._udp.alice.members.example.", "PTR", "NONE", [SERVICE]),
    ]
    assert not message.options


def test_signature_verifies_with_dnspython():
    key = Key(from_text("alice.key"), SHA256, b"secret octets")
    wire, _ = sign(registration_message(9, ZONE, PLACE, 5400), key, now=int(time.time()))
    ring = {dns.name.from_text("alice.key"): dns.tsig.Key("alice.key", b"secret octets", "hmac-sha256")}
    assert dns.message.from_wire(wire, keyring=ring).had_tsig
    ring = {dns.name.from_text("alice.key"): dns.tsig.Key("alice.key", b"another secret", "hmac-sha256")}
    with pytest.raises(dns.tsig.BadSignature):
        dns.message.from_wire(wire, keyring=ring)


def reply(rcode=0, options=(), message_id=9, opcode=Opcode.UPDATE):
    flags = QR | opcode << OPCODE_SHIFT | rcode
    return decode(encode(message_id, flags, opt=Opt(options=options) if options else None))


@pytest.mark.rfc("9664", "4.2")
def test_reply_with_granted_lease():
    assert read_reply(reply(options=(UpdateLease(1800).encode(),)), 9, 5400) == Outcome(True, 1800)


@pytest.mark.rfc("9664", "4.2")
def test_reply_without_lease_counts_as_granted_as_wished():
    assert read_reply(reply(), 9, 5400) == Outcome(True, 5400)


@pytest.mark.rfc("8914", "3")
@pytest.mark.rfc("8914", "6")
def test_refusal_carries_its_explanation():
    outcome = read_reply(reply(Rcode.REFUSED, (extended_error(18, "not your name"),)), 9, 5400)
    assert outcome == Outcome(False, 0, "REFUSED: not your name")


@pytest.mark.parametrize("wrong", [{"message_id": 10}, {"opcode": Opcode.QUERY}, {"options": ((2, b"\0" * 5),)}])
def test_reply_to_something_else(wrong):
    with pytest.raises(DecodeError):
        read_reply(reply(**wrong), 9, 5400)


class Server:
    """Carries out what the registrar asks, in virtual time. `outcome` is the script; `took` what the update took."""

    def __init__(self, seed=1, **settings):
        self.registrar = Registrar(RegistrarSettings(**settings), random.Random(seed))
        self.outcome = Outcome(True, 5400)
        self.now = 0.0
        self.took = 0.0
        self.updates = []
        self.said = []

    def drain(self):
        while effects := self.registrar.take_effects():
            for effect in effects:
                if isinstance(effect, SendUpdate):
                    self.updates.append((self.now, effect.registration))
                    self.registrar.complete(effect.token, self.outcome, now=self.now + self.took)
                else:
                    self.said.append((self.now, effect))

    def run_until(self, end):
        self.drain()
        while (deadline := self.registrar.next_deadline()) is not None and deadline <= end:
            self.now = max(deadline, self.now)
            self.registrar.handle_deadline(now=self.now)
            self.drain()
        self.now = end

    def publish(self, registration):
        self.registrar.publish(registration, now=self.now)
        self.run_until(self.now)


@pytest.mark.rfc("9664", "4.2")
def test_first_registration_waits_a_random_while_and_later_ones_do_not():
    delays = []
    for seed in range(30):
        server = Server(seed)
        server.publish(PLACE)
        server.publish(ELSEWHERE)  # changed again before anything was sent: one update, with the newer place
        server.run_until(3)
        assert [registration for _, registration in server.updates] == [ELSEWHERE]
        delays.append(server.updates[0][0])
        server.publish(PLACE)
        assert server.updates[1] == (3, PLACE)
    assert 0 <= min(delays) < 0.5
    assert 2.5 < max(delays) <= 3


@pytest.mark.rfc("9664", "5.2")
@pytest.mark.rfc("6281", "5.2")
@pytest.mark.parametrize("granted", [1800, 5400, 7200])
def test_refresh_between_80_and_85_percent_of_the_grant(granted):
    for seed in range(20):
        server = Server(seed, first_delay_max=0)
        server.outcome = Outcome(True, granted)
        server.publish(PLACE)
        server.run_until(granted)
        (first, _), (second, again) = server.updates
        assert first == 0
        assert 0.80 * granted <= second <= 0.85 * granted
        assert again == PLACE
        assert [effect.is_refresh for _, effect in server.said] == [False, True]


@pytest.mark.rfc("9664", "5.2")
@pytest.mark.rfc("9664", "6")
def test_failed_refresh_is_tried_nine_times_before_the_lapse_and_goes_on_as_registration():
    server = Server(first_delay_max=0)
    server.publish(PLACE)
    server.outcome = Outcome(False, reason="timed out")
    server.run_until(5400)
    times = [at for at, _ in server.updates[1:]]
    assert len(times) in (10, 11)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert max(gaps[:8]) - min(gaps[:8]) < 1
    server.outcome = Outcome(True, 5400)
    server.run_until(6000)
    assert isinstance(server.said[-1][1], Published)
    assert not server.said[-1][1].is_refresh


def test_refused_registration_backs_off_and_is_bounded():
    server = Server(first_delay_max=0)
    server.outcome = Outcome(False, reason="REFUSED")
    server.publish(PLACE)
    server.run_until(3600)
    gaps = [effect.retry_in for _, effect in server.said if isinstance(effect, Failed)]
    assert gaps[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert set(gaps[9:]) == {300}


def test_newer_place_goes_out_as_soon_as_the_update_in_flight_is_answered():
    registrar = Registrar(RegistrarSettings(first_delay_max=0), random.Random(1))
    registrar.publish(PLACE, now=0)
    registrar.handle_deadline(now=0)
    (sent,) = registrar.take_effects()
    registrar.publish(ELSEWHERE, now=1)
    assert registrar.next_deadline() is None
    registrar.complete(sent.token + 1, Outcome(True, 5400), now=2)
    assert registrar.next_deadline() is None, "an answer to another update is none"
    registrar.complete(sent.token, Outcome(False, reason="lost"), now=2)
    assert registrar.next_deadline() == 1
    registrar.handle_deadline(now=2)
    assert registrar.take_effects()[-1].registration == ELSEWHERE


def test_withdrawal():
    server = Server(first_delay_max=0)
    server.publish(PLACE)
    server.registrar.withdraw(now=0)
    server.run_until(10_000)
    assert [registration for _, registration in server.updates] == [PLACE, None]
    assert server.said[-1] == (0, Withdrawn())
    assert server.registrar.lapses_at is None


def test_withdrawal_needs_no_update_before_the_first_and_gives_up_after_three():
    server = Server()
    server.registrar.publish(PLACE, now=0)
    server.registrar.withdraw(now=0)
    server.run_until(100)
    assert (server.updates, server.said) == ([], [(0, Withdrawn())])
    server = Server(first_delay_max=0)
    server.publish(PLACE)
    server.outcome = Outcome(False, reason="timed out")
    server.registrar.withdraw(now=0)
    server.run_until(100)
    assert len(server.updates) == 4
    assert server.said[-1] == (3, Withdrawn("timed out"))
