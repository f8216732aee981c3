"""The life of Long-Lived Queries over real sockets: a scripted client that takes everything it hears apart by hand.

nsupdate makes the changes. Nothing of ours decodes an event here, so that our codecs do not vouch for themselves.
"""

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import dns.message
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import pytest

from protocol.constants import AA, QR, RD
from protocol.edns import LlqOption, Opt
from protocol.message import Question, encode
from protocol.name import from_text
from tests.support.foreign import LabProcess, status

SETUP, REFRESH, EVENT = 1, 2, 3
NO_SUCH_LLQ = 4
REMOVE_TTL: Final = 0xFFFFFFFF
WAIT_SECONDS: Final = 5.0
A: Final = 1


class Llq(NamedTuple):
    """RFC 8764 §3.2."""

    version: int
    opcode: int
    error: int
    llq_id: int
    lease: int


class Seen(NamedTuple):
    """One message, taken apart with struct. Records are (owner as text, type, class, raw TTL, rdata)."""

    wire: bytes
    id: int
    flags: int
    questions: list[tuple[str, int]]
    answers: list[tuple[str, int, int, int, bytes]]
    llqs: list[Llq]
    is_signed: bool

    @property
    def rcode(self) -> int:
        return self.flags & 0xF

    @property
    def llq(self) -> Llq:
        (only,) = self.llqs
        return only

    @property
    def edits(self) -> list[tuple[str, str]]:
        """An event's A records in order: `-` or `+`, and the address."""
        return [
            ("-" if ttl == REMOVE_TTL else "+", socket.inet_ntoa(rdata))
            for _, rtype, rclass, ttl, rdata in self.answers
            if (rtype, rclass) == (A, 1)
        ]


def take_apart(wire: bytes) -> Seen:
    """Header, question, answer, and of the additional section OPT and TSIG; every octet must belong to something."""
    message_id, flags, *counts = struct.unpack_from("!6H", wire)
    position = 12
    questions = []
    for _ in range(counts[0]):
        name, position = name_at(wire, position)
        questions.append((name, struct.unpack_from("!H", wire, position)[0]))
        position += 4
    records = []
    for _ in range(sum(counts[1:])):
        name, position = name_at(wire, position)
        rtype, rclass, ttl, length = struct.unpack_from("!HHIH", wire, position)
        position += 10
        records.append((name, rtype, rclass, ttl, wire[position : position + length]))
        position += length
    assert position == len(wire)
    llqs = []
    for _, rtype, _, _, rdata in records:
        while rtype == 41 and rdata:
            code, size = struct.unpack_from("!HH", rdata)
            if code == 1:
                llqs.append(Llq(*struct.unpack("!HHHQI", rdata[4 : 4 + size])))
            rdata = rdata[4 + size :]
    is_signed = bool(records) and records[-1][1] == 250
    return Seen(wire, message_id, flags, questions, records[: counts[1]], llqs, is_signed)


def name_at(wire: bytes, position: int) -> tuple[str, int]:
    labels = []
    end = None
    while size := wire[position]:
        if size >= 0xC0:
            end = end or position + 2
            position = struct.unpack_from("!H", wire, position)[0] & 0x3FFF
            continue
        labels.append(wire[position + 1 : position + 1 + size].decode())
        position += 1 + size
    return ".".join(labels).lower(), end or position + 1


def request(name: str, llq: Llq, message_id: int = 0x4242) -> bytes:
    """As Apple's clients ask: RD set, payload size 0."""
    opt = Opt(payload_size=0, options=(LlqOption(*llq).encode(),))
    return encode(message_id, RD, [Question(from_text(name), A, 1)], opt=opt)


def ack_of(event: Seen, llq_id: int | None = None, message_id: int | None = None) -> bytes:
    """The event's OPT back under its message ID, in a response."""
    llq = event.llq if llq_id is None else event.llq._replace(llq_id=llq_id)
    opt = Opt(payload_size=0, options=(LlqOption(*llq).encode(),))
    return encode(event.id if message_id is None else message_id, QR | AA, opt=opt)


@dataclass(slots=True)
class Subscriber:
    """A datagram client at one port."""

    lab: LabProcess
    sock: socket.socket

    def send(self, wire: bytes) -> None:
        self.sock.sendto(wire, (self.lab.address, self.lab.port))

    def hear(self, seconds: float = WAIT_SECONDS) -> Seen | None:
        """The next datagram, None when none comes in time; it must come from where we sent to."""
        self.sock.settimeout(max(0.001, seconds))
        try:
            wire, source = self.sock.recvfrom(65535)
        except TimeoutError:
            return None
        assert source == (self.lab.address, self.lab.port)
        return take_apart(wire)

    def ask(self, name: str, llq: Llq) -> Seen:
        self.send(request(name, llq))
        reply = self.hear()
        assert reply is not None
        assert (reply.id, reply.questions) == (0x4242, [(name, A)])
        return reply

    def subscribe(self, name: str, lease: int = 7200) -> Seen:
        """Four-way handshake; the ACK with its answers."""
        challenge = self.ask(name, Llq(1, SETUP, 0, 0, lease))
        assert challenge.rcode == 0 and challenge.answers == [] and challenge.llq.llq_id != 0
        done = self.ask(name, challenge.llq)
        assert done.rcode == 0 and done.llq == challenge.llq
        return done

    def event(self, llq_id: int) -> Seen:
        """The next event, which must be this LLQ's; not acknowledged."""
        event = self.hear()
        assert event is not None
        assert event.flags & 0x8000 and event.rcode == 0
        assert event.llq == Llq(1, EVENT, 0, llq_id, 0)
        return event


@contextlib.contextmanager
def subscriber(lab: LabProcess) -> Iterator[Subscriber]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield Subscriber(lab, sock)


def change(lab: LabProcess, *lines: str, zone: str = "members.example") -> float:
    """One update as admin; the moment before it."""
    before = time.monotonic()
    assert status(lab.nsupdate("admin", f"zone {zone}", *(f"update {line}" for line in lines))) == "NOERROR"
    return before


@pytest.mark.rfc("8764", "5.2")
@pytest.mark.rfc("6281", "5.3")
def test_handshake_answers_events_refresh_and_cancel(lab: LabProcess) -> None:
    name = "mac.alice.members.example"
    change(lab, f"add {name} 300 A 192.0.2.1", f"add {name} 300 A 192.0.2.2")
    with subscriber(lab) as client:
        asked = [client.ask(name, Llq(1, SETUP, 0, 0, 7200)).llq for _ in range(3)]
        assert asked[1] in (asked[0], asked[2])  # asked again: the same challenge, but for a step of its clock
        done = client.subscribe(name)
        assert done.flags & (AA | RD) == AA | RD
        assert sorted(done.edits) == [("+", "192.0.2.1"), ("+", "192.0.2.2")]
        llq_id = done.llq.llq_id

        change(lab, f"delete {name} A 192.0.2.1", f"add {name} 300 A 192.0.2.3")
        event = client.event(llq_id)
        assert event.edits == [("-", "192.0.2.1"), ("+", "192.0.2.3")]
        assert event.questions == [(name, A)]
        assert [(owner, ttl) for owner, _, _, ttl, _ in event.answers] == [(name, REMOVE_TTL), (name, 300)]
        client.send(ack_of(event))

        change(lab, f"delete {name}")
        event = client.event(llq_id)
        assert sorted(event.edits) == [("-", "192.0.2.2"), ("-", "192.0.2.3")]
        client.send(ack_of(event))

        renewed = client.ask(name, Llq(1, REFRESH, 0, llq_id, 3600))
        assert (renewed.llq, renewed.answers) == (Llq(1, REFRESH, 0, llq_id, 3600), [])
        assert client.ask(name, Llq(1, REFRESH, 0, llq_id, 1)).llq.lease == 900
        assert client.ask(name, Llq(1, REFRESH, 0, llq_id, 0)).llq == Llq(1, REFRESH, 0, llq_id, 0)
        assert client.ask(name, Llq(1, REFRESH, 0, llq_id, 7200)).llq == Llq(1, REFRESH, NO_SUCH_LLQ, llq_id, 0)
        change(lab, f"add {name} 300 A 192.0.2.4")
        assert client.hear(0.6) is None


@pytest.mark.rfc("8764", "5.2.3")
def test_a_challenge_proves_the_address_and_is_not_guessed(lab: LabProcess) -> None:
    name = "guess.alice.members.example"
    change(lab, f"add {name} 300 A 192.0.2.1")
    with subscriber(lab) as client, subscriber(lab) as thief:
        challenge = client.ask(name, Llq(1, SETUP, 0, 0, 7200)).llq
        for other, wrong in ((thief, challenge), (client, challenge._replace(llq_id=challenge.llq_id ^ 1))):
            refused = other.ask(name, wrong)
            assert refused.rcode == 0 and refused.llq.error != 0
            assert refused.answers == []


@pytest.mark.rfc("8764", "6")
def test_events_are_repeated_until_the_right_ack_and_then_the_client_is_gone(lab: LabProcess) -> None:
    name = "away.alice.members.example"
    with subscriber(lab) as silent, subscriber(lab) as polite, subscriber(lab) as thief:
        silent_id, polite_id = silent.subscribe(name).llq.llq_id, polite.subscribe(name).llq.llq_id
        start = change(lab, f"add {name} 300 A 192.0.2.1")
        heard = [silent.event(silent_id)]
        moments = [time.monotonic() - start]
        first = polite.event(polite_id)
        assert first.edits == [("+", "192.0.2.1")]
        polite.send(ack_of(first))
        thief.send(ack_of(heard[0]))  # right in everything but the port
        silent.send(ack_of(heard[0], llq_id=silent_id ^ 1))
        silent.send(ack_of(heard[0], message_id=heard[0].id ^ 1))
        while len(heard) < 3:
            heard.append(silent.event(silent_id))
            moments.append(time.monotonic() - start)
        gaps = [moments[1] - moments[0], moments[2] - moments[1]]
        assert gaps == [pytest.approx(2.0, abs=0.4), pytest.approx(4.0, abs=0.4)]
        assert len({event.wire for event in heard}) == 1
        alive = silent.ask(name, Llq(1, REFRESH, 0, silent_id, 7200)).llq
        assert alive.error == 0  # 8 s of grace after the third
        assert silent.hear(8.0 + moments[2] + start - time.monotonic() + 0.3) is None
        assert silent.ask(name, Llq(1, REFRESH, 0, silent_id, 7200)).llq.error == NO_SUCH_LLQ
        assert polite.hear(0.01) is None
        assert polite.ask(name, Llq(1, REFRESH, 0, polite_id, 7200)).llq.error == 0


def test_a_change_while_an_event_is_unacknowledged_follows_its_ack(lab: LabProcess) -> None:
    name = "queue.alice.members.example"
    with subscriber(lab) as client:
        llq_id = client.subscribe(name).llq.llq_id
        change(lab, f"add {name} 300 A 192.0.2.1")
        first = client.event(llq_id)
        change(lab, f"add {name} 300 A 192.0.2.2")
        change(lab, f"delete {name} A 192.0.2.1")
        assert client.hear(0.5) is None
        client.send(ack_of(first))
        second = client.event(llq_id)
        assert second.edits == [("-", "192.0.2.1"), ("+", "192.0.2.2")]
        assert second.id != first.id
        client.send(ack_of(second))


def test_unsubscribed_names_and_types_stay_silent(lab: LabProcess) -> None:
    with subscriber(lab) as client:
        client.subscribe("quiet.alice.members.example")
        change(lab, "add quiet.alice.members.example 300 TXT x", "add x.quiet.alice.members.example 300 A 192.0.2.1")
        assert client.hear(0.6) is None


# Streams


class Stream:
    """A TCP or TLS client: messages behind their length."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(WAIT_SECONDS)

    def send(self, wire: bytes) -> None:
        self.sock.sendall(struct.pack("!H", len(wire)) + wire)

    def hear(self) -> Seen:
        (length,) = struct.unpack("!H", self._exactly(2))
        return take_apart(self._exactly(length))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            assert piece, "closed"
            data += piece
        return data

    def ask(self, wire: bytes) -> Seen:
        self.send(wire)
        return self.hear()


@contextlib.contextmanager
def tcp(lab: LabProcess) -> Iterator[Stream]:
    with socket.create_connection((lab.address, lab.port), WAIT_SECONDS) as sock:
        yield Stream(sock)


@contextlib.contextmanager
def tls(lab: LabProcess) -> Iterator[Stream]:
    context = ssl.create_default_context(cafile=lab.facts["ca_file"])
    with (
        socket.create_connection((lab.address, lab.tls_port), WAIT_SECONDS) as sock,
        context.wrap_socket(sock, server_hostname="ns.members.example") as wrapped,
    ):
        yield Stream(wrapped)


class Connect(Protocol):
    __name__: str

    def __call__(self, lab: LabProcess) -> AbstractContextManager[Stream]: ...


@pytest.mark.parametrize("connect", [tcp, tls])
def test_a_stream_needs_no_challenge_and_carries_its_events(lab: LabProcess, connect: Connect) -> None:
    name = f"{connect.__name__}.alice.members.example"
    change(lab, f"add {name} 300 A 192.0.2.1")
    with connect(lab) as stream:
        done = stream.ask(request(name, Llq(1, SETUP, 0, 0, 7200)))
        assert (done.llq.opcode, done.llq.error, done.llq.lease) == (SETUP, 0, 7200)
        assert done.llq.llq_id and done.edits == [("+", "192.0.2.1")]
        change(lab, f"delete {name} A", f"add {name} 300 A 192.0.2.2")
        event = stream.hear()
        assert event.llq == Llq(1, EVENT, 0, done.llq.llq_id, 0)
        assert event.edits == [("-", "192.0.2.1"), ("+", "192.0.2.2")]
        stream.send(ack_of(event))
        ended = stream.ask(request(name, Llq(1, REFRESH, 0, done.llq.llq_id, 0)))
        assert ended.llq == Llq(1, REFRESH, 0, done.llq.llq_id, 0)


def test_a_stream_that_ends_leaves_its_events_to_the_port_it_named(lab: LabProcess) -> None:
    name = "roams.alice.members.example"
    with subscriber(lab) as events:
        port = events.sock.getsockname()[1]
        with tcp(lab) as stream, tcp(lab) as other:
            kept = stream.ask(request(name, Llq(1, SETUP, port, 0, 7200))).llq.llq_id
            lost = other.ask(request(name, Llq(1, SETUP, 0, 0, 7200))).llq.llq_id
        time.sleep(0.2)
        change(lab, f"add {name} 300 A 192.0.2.1")
        event = events.event(kept)
        assert event.edits == [("+", "192.0.2.1")]
        events.send(ack_of(event))
        assert events.ask(name, Llq(1, REFRESH, 0, kept, 0)).llq.error == 0
        assert events.ask(name, Llq(1, REFRESH, 0, lost, 7200)).llq.error == NO_SUCH_LLQ


# A private member


def signed(lab: LabProcess, who: str, wire: bytes) -> tuple[bytes, bytes]:
    """Signed by dnspython: (octets, MAC)."""
    key = lab.facts["keys"][who]
    message = dns.message.from_wire(wire)
    message.use_tsig(dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])}), key["name"])
    out = message.to_wire()
    assert message.mac
    return out, message.mac


def assert_signed(lab: LabProcess, who: str, seen: Seen, request_mac: bytes = b"") -> None:
    """The TSIG holds: as a response to `request_mac`, or as a request of its own. dnspython verifies."""
    key = lab.facts["keys"][who]
    ring = dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])})
    assert seen.is_signed
    message = dns.message.from_wire(seen.wire, keyring=ring, request_mac=request_mac)
    assert message.had_tsig and message.tsig_error == 0
    wrong = bytearray(seen.wire)
    wrong[20] ^= 0x20
    with pytest.raises(dns.tsig.BadSignature):
        dns.message.from_wire(bytes(wrong), keyring=ring, request_mac=request_mac)


@pytest.mark.rfc("6281", "7.2")
def test_a_private_member_over_udp_signed_all_along(lab: LabProcess) -> None:
    name = "desk.bob.members.example"
    change(lab, f"add {name} 300 A 192.0.2.1", zone="bob.members.example")
    with subscriber(lab) as client:

        def ask(llq: Llq) -> Seen:
            wire, mac = signed(lab, "bob", request(name, llq))
            client.send(wire)
            reply = client.hear()
            assert reply is not None and reply.rcode == 0
            assert_signed(lab, "bob", reply, mac)
            return reply

        challenge = ask(Llq(1, SETUP, 0, 0, 7200))
        done = ask(challenge.llq)
        assert done.edits == [("+", "192.0.2.1")]
        llq_id = done.llq.llq_id
        change(lab, f"delete {name} A", f"add {name} 300 A 192.0.2.2", zone="bob.members.example")
        event = client.event(llq_id)
        assert event.edits == [("-", "192.0.2.1"), ("+", "192.0.2.2")]
        assert_signed(lab, "bob", event)
        again = client.event(llq_id)
        assert again.wire == event.wire  # signature and all
        client.send(ack_of(event))
        unsigned = client.ask(name, Llq(1, REFRESH, 0, llq_id, 0))
        assert unsigned.llq.error == NO_SUCH_LLQ  # no stranger ends it
        assert ask(Llq(1, REFRESH, 0, llq_id, 0)).llq.error == 0


@pytest.mark.rfc("6281", "7.2")
def test_a_private_member_over_tls_signed_events_included(lab: LabProcess) -> None:
    name = "laptop.bob.members.example"
    with tls(lab) as stream:
        wire, mac = signed(lab, "bob", request(name, Llq(1, SETUP, 0, 0, 7200)))
        done = stream.ask(wire)
        assert_signed(lab, "bob", done, mac)
        assert done.llq.error == 0 and done.answers == []
        change(lab, f"add {name} 300 A 192.0.2.9", zone="bob.members.example")
        event = stream.hear()
        assert event.llq.llq_id == done.llq.llq_id and event.edits == [("+", "192.0.2.9")]
        assert_signed(lab, "bob", event)


@pytest.mark.parametrize("who", [None, "alice"])
def test_a_private_member_refuses_strangers(lab: LabProcess, who: str | None) -> None:
    wire = request("desk.bob.members.example", Llq(1, SETUP, 0, 0, 7200))
    wire = signed(lab, who, wire)[0] if who else wire
    with subscriber(lab) as client, tls(lab) as stream:
        client.send(wire)
        for reply in (client.hear(), stream.ask(wire)):
            assert reply is not None
            assert reply.rcode == dns.rcode.REFUSED
            assert reply.llqs == [] and reply.answers == []
