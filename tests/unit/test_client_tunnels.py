"""Figure 3 of RFC 6281 over scripted RRsets, and the hello that tells whether the table speaks the truth."""

import random
from ipaddress import IPv4Address, IPv6Address

import pytest

from client_stub.identity import eui64, host_names, service_name
from client_stub.probe import (
    ANSWER,
    HELLO,
    PACKET_OCTETS,
    Prober,
    ProbeSettings,
    Reachability,
    ReachabilityChanged,
    SendTo,
    decode_packet,
    derive_probe_key,
    encode_packet,
)
from client_stub.tunnels import MAX_PEERS, TunnelChanged, TunnelState, TunnelTable, Unwatch, Watch
from client_stub.updates import srv_rdata
from protocol.constants import Class, Type
from protocol.message import Question
from protocol.name import from_text

NAMES = host_names("me", "alice.members.example", eui64(bytes(6)))
OWN = IPv6Address("fd00::1")
PEER = from_text("mac.alice.members.example")
INNER = IPv6Address("fd00::2")
TARGET = from_text("AutoTunnel-1.alice.members.example")
BROWSE = Question(NAMES.browse, Type.PTR, Class.IN)
AAAA = Question(PEER, Type.AAAA, Class.IN)
SRV = Question(service_name(PEER), Type.SRV, Class.IN)
A = Question(TARGET, Type.A, Class.IN)
X = IPv4Address("203.0.113.7")
Y = IPv4Address("203.0.113.8")


class Table:
    """A tunnel table with the set of questions it holds watched."""

    def __init__(self, hosts=()):
        self.core = TunnelTable(NAMES, OWN)
        self.watched = set()
        self.changes = []
        self.core.start(hosts)
        self.drain()

    def drain(self):
        for effect in self.core.take_effects():
            match effect:
                case Watch(question):
                    assert question not in self.watched
                    self.watched.add(question)
                case Unwatch(question):
                    self.watched.remove(question)
                case TunnelChanged():
                    self.changes.append(effect)

    def tell(self, question, *rdatas, now=0.0):
        assert question in self.watched
        self.core.update(question, rdatas, now=now)
        self.drain()

    def established(self):
        self.tell(BROWSE, service_name(PEER), NAMES.service)
        self.tell(AAAA, INNER.packed)
        self.tell(SRV, srv_rdata(40000, TARGET))
        self.tell(A, X.packed, now=5.0)
        return self


@pytest.mark.rfc("6281", "5.3")
def test_five_steps_give_a_row():
    table = Table()
    assert table.watched == {BROWSE}
    table.tell(BROWSE, service_name(PEER), NAMES.service)
    assert table.watched == {BROWSE, AAAA}, "ourselves are not watched"
    table.tell(AAAA, INNER.packed)
    assert table.core.rows()[0].state is TunnelState.RESOLVING
    table.tell(SRV, srv_rdata(40000, TARGET))
    assert table.watched == {BROWSE, AAAA, SRV, A}
    table.tell(A, X.packed, now=5.0)
    (row,) = table.core.rows()
    assert (row.peer, row.inner, row.outer_address, row.outer_port) == (PEER, INNER, X, 40000)
    assert (row.state, row.since) == (TunnelState.UP, 5.0)


@pytest.mark.rfc("6281", "5.3")
def test_moved_peer_is_followed_though_its_aaaa_stays():
    table = Table().established()
    table.tell(A, Y.packed, now=9.0)
    (row,) = table.core.rows()
    assert (row.outer_address, row.since) == (Y, 9.0)
    table.tell(SRV, srv_rdata(41000, TARGET), now=10.0)
    assert table.core.rows()[0].outer_port == 41000
    changes = len(table.changes)
    table.tell(A, Y.packed, now=11.0)
    assert len(table.changes) == changes


def test_new_target_is_watched_in_place_of_the_old():
    table = Table().established()
    other = from_text("AutoTunnel-2.alice.members.example")
    table.tell(SRV, srv_rdata(40000, other))
    assert Question(other, Type.A, Class.IN) in table.watched
    assert A not in table.watched
    assert table.core.rows()[0].state is TunnelState.RESOLVING


def test_address_in_use_is_kept_while_it_is_there():
    table = Table().established()
    lower = IPv4Address("198.51.100.1")
    table.tell(A, lower.packed, X.packed)
    assert table.core.rows()[0].outer_address == X
    table.tell(A, lower.packed)
    assert table.core.rows()[0].outer_address == lower


@pytest.mark.rfc("6281", "5.3")
def test_tunnel_to_ourselves_is_suppressed():
    table = Table(hosts=(PEER,))
    table.tell(AAAA, OWN.packed)
    assert table.core.rows() == ()
    assert SRV not in table.watched


def test_row_goes_with_its_records():
    table = Table().established()
    table.tell(A)
    assert table.core.rows()[0].state is TunnelState.RESOLVING
    table.tell(SRV)
    table.tell(AAAA)
    assert table.core.rows() == ()
    assert table.changes[-1] == TunnelChanged(PEER, None)
    assert table.watched == {BROWSE, AAAA}, "the peer may come back"


def test_peer_that_leaves_the_list_is_forgotten_unless_configured():
    table = Table().established()
    table.tell(BROWSE)
    assert (table.core.rows(), table.watched) == ((), {BROWSE})
    table = Table(hosts=(PEER,)).established()
    table.tell(BROWSE)
    assert table.watched == {BROWSE, AAAA, SRV, A}


def test_list_is_bounded_and_only_of_the_members_domain():
    table = Table()
    table.tell(BROWSE, service_name(from_text("mac.bob.members.example")), PEER, b"\0")
    assert table.watched == {BROWSE}
    many = [service_name(from_text(f"h{index}.alice.members.example")) for index in range(MAX_PEERS + 50)]
    table.tell(BROWSE, *many)
    assert len(table.watched) == 1 + MAX_PEERS


@pytest.mark.rfc("6281", "5.1")
def test_local_move_counts_established_tunnels():
    table = Table().established()
    assert table.core.move_local(OWN, (X, 1)) == 1
    assert table.core.move_local(OWN, (X, 1)) == 0


# The hello

KEY = derive_probe_key(b"secret")
PLACE = (X, 40000)


def probe_of(prober, now):
    prober.handle_deadline(now=now)
    return prober.take_effects()


def test_hello_and_answer_have_one_size_and_need_the_key():
    hello = encode_packet(KEY, HELLO, b"n" * 16)
    assert len(hello) == PACKET_OCTETS == len(encode_packet(KEY, ANSWER, b"n" * 16))
    assert decode_packet(KEY, hello) == (HELLO, b"n" * 16)
    assert decode_packet(derive_probe_key(b"other"), hello) is None
    for octets in (b"", hello[:-1], hello + b"\0", bytes([hello[0] ^ 1]) + hello[1:], encode_packet(KEY, 3, b"n" * 16)):
        assert decode_packet(KEY, octets) is None


def test_round_trip_between_two_machines():
    mine = Prober(ProbeSettings(), random.Random(1), b"secret")
    theirs = Prober(ProbeSettings(), random.Random(2), b"secret")
    mine.set_peer(PEER, PLACE, now=0)
    (hello,) = probe_of(mine, 0.0)
    assert hello.endpoint == PLACE
    theirs.receive(hello.datagram, (Y, 4500), now=0.01)
    (answer,) = theirs.take_effects()
    assert answer.endpoint == (Y, 4500)
    mine.receive(answer.datagram, PLACE, now=0.025)
    (change,) = mine.take_effects()
    assert change.reachability.rtt_ms == pytest.approx(25)
    mine.receive(answer.datagram, PLACE, now=0.5)
    assert mine.reachability(PEER).rtt_ms == pytest.approx(25), "a repeated answer counts once"
    assert mine.next_deadline() == pytest.approx(5.025)


def test_a_stranger_is_not_answered():
    prober = Prober(ProbeSettings(), random.Random(1), b"secret")
    prober.receive(encode_packet(derive_probe_key(b"other"), HELLO, b"n" * 16), PLACE, now=0)
    prober.receive(encode_packet(KEY, ANSWER, b"n" * 16), PLACE, now=0)
    assert prober.take_effects() == []


def test_silence_is_told_after_three_misses_and_then_probed_at_the_slow_pace():
    prober = Prober(ProbeSettings(every=5, wait=1), random.Random(1), b"secret")
    prober.set_peer(PEER, PLACE, now=0)
    sent, said = [], []
    while prober.next_deadline() <= 20:
        now = prober.next_deadline()
        for effect in probe_of(prober, now):
            (sent if isinstance(effect, SendTo) else said).append((now, effect))
    assert [now for now, _ in sent] == [0, 1, 2, 8, 14, 20]
    assert [(now, effect) for now, effect in said] == [(3, ReachabilityChanged(PEER, prober_silence(3)))]
    assert prober.reachability(PEER).is_silent


def prober_silence(missed):
    return Reachability(None, missed)


def test_moved_peer_is_probed_at_once_and_a_gone_one_no_more():
    prober = Prober(ProbeSettings(), random.Random(1), b"secret")
    prober.set_peer(PEER, PLACE, now=0)
    probe_of(prober, 0)
    prober.set_peer(PEER, PLACE, now=0.5)
    assert prober.next_deadline() == 1
    prober.set_peer(PEER, (Y, 40000), now=0.5)
    assert [effect.endpoint for effect in probe_of(prober, 0.5)] == [(Y, 40000)]
    prober.probe_all(now=0.6)
    assert len(probe_of(prober, 0.6)) == 1
    prober.set_peer(PEER, None, now=1)
    assert prober.next_deadline() is None
    assert prober.reachability(PEER) is None
