"""Apple's client and server on the wire, put to our machine: same exchange, byte for byte where the sources agree."""

import pytest

from protocol.constants import AA, QR
from protocol.edns import LlqOpcode, LlqOption, Opt, llq_options
from protocol.message import decode, encode
from protocol.name import from_text
from server.peer import Peer
from server.zone.model import RR
from tests.support.golden import load
from tests.support.llq import CLIENT, Host, edits

SERVICE = from_text("_http._tcp.members.example")
FIRST, SECOND = (RR(SERVICE, 12, 1, from_text(f"{label}._http._tcp.members.example")) for label in ("first", "second"))


def option_of(wire: bytes) -> LlqOption:
    (option,) = llq_options(decode(wire).opt)
    return option


def with_id(wire: bytes, llq_id: int, lease: int) -> bytes:
    """The packet as that client would send it to us: our ID in the place of the other server's."""
    return wire[:-12] + llq_id.to_bytes(8, "big") + lease.to_bytes(4, "big")


@pytest.mark.rfc("8764", "5.2")
def test_an_apple_client_lives_a_whole_life_here() -> None:
    host = Host()
    host.change(add=[FIRST])
    challenge = host.handle(load("llq/apple-setup"), CLIENT)
    assert challenge is not None
    theirs = load("llq/dnsextd-challenge")
    llq_id = option_of(challenge).llq_id
    assert with_id(challenge, option_of(theirs).llq_id, 7200)[:4] == theirs[:2] + b"\x85\x00"  # we copy RD, they do not
    assert decode(challenge).questions == decode(theirs).questions
    ack = host.handle(with_id(load("llq/apple-challenge-response"), llq_id, 7200), CLIENT)
    assert ack is not None
    theirs = load("llq/dnsextd-ack-answers")
    message, other = decode(ack), decode(theirs)
    assert [(rr.name, rr.rtype, rr.ttl, rr.rdata(ack)) for rr in message.answers] == [
        (rr.name, rr.rtype, rr.ttl, rr.rdata(theirs)) for rr in other.answers
    ]
    assert option_of(ack) == option_of(theirs)._replace(llq_id=llq_id)

    host.change(add=[SECOND])
    ((_, event),) = host.run(1)
    theirs = load("llq/dnsextd-event-add")
    assert decode(event.wire).header[1:] == decode(theirs).header[1:]
    assert edits(event.wire)[1] == [rr.rdata(theirs) for rr in decode(theirs).answers]
    answer = event.wire[:2] + with_id(load("llq/apple-event-add-ack"), llq_id, 0)[2:]
    assert host.handle(answer, CLIENT) is None
    assert host.machine.counters.acks == 1

    host.change(remove=[SECOND])
    ((_, event),) = host.run(1)
    theirs = load("llq/dnsextd-event-remove")
    assert [(rr.ttl, rr.rdata(event.wire)) for rr in decode(event.wire).answers] == [
        (rr.ttl, rr.rdata(theirs)) for rr in decode(theirs).answers
    ]
    assert host.handle(event.wire[:2] + with_id(load("llq/apple-event-remove-ack"), llq_id, 0)[2:], CLIENT) is None

    done = host.handle(with_id(load("llq/apple-cancel"), llq_id, 0), CLIENT)
    assert done is not None
    theirs = load("llq/dnsextd-cancel-ack")
    assert option_of(done) == option_of(theirs)._replace(llq_id=llq_id)
    assert decode(done).header[2:] == decode(theirs).header[2:]
    assert (len(host.machine), host.machine.counters.cancelled) == (0, 1)


def test_an_apple_private_set_up_brings_its_event_port() -> None:
    host = Host()
    stream = Peer("tls", "192.0.2.7", 50000, 9)
    message = decode(load("llq/apple-private-setup"))
    assert option_of(message.wire) == LlqOption(1, LlqOpcode.SETUP, 5353, 0, 7200)
    reply = host.handle(message.wire, stream, limit=65535)
    assert reply is not None
    assert option_of(reply).error == 0
    host.machine.stream_closed(stream.via, now=host.now)
    owner = message.questions[0].name
    host.change(add=[RR(owner, 12, 60, FIRST.rdata)])
    (event,) = host.settle()
    assert event.peer[:3] == ("udp", "192.0.2.7", 5353)


PRIVATE = "055f68747470045f74637005616c696365076d656d62657273076578616d706c6500 000c 0001"
OPTION = "00002905a0000000000016 00010012 0001 000{} 0000 {:016x} {:08x}"


def test_the_answer_to_that_set_up_as_that_server_gives_it() -> None:
    """On record of it: ID, flags, counts, two PTRs of TTL 1, the option. RD is cleared here, for we copy it."""
    host = Host()
    stream = Peer("tls", "192.0.2.7", 50000, 9)
    asked = decode(load("llq/apple-private-setup"))
    owner = asked.questions[0].name
    host.change(add=[RR(owner, 12, 1, first.rdata) for first in (FIRST, SECOND)])
    reply = host.handle(bytes.fromhex("1914 0000") + asked.wire[4:], stream, limit=65535)
    assert reply is not None
    llq_id = option_of(reply).llq_id
    assert reply.startswith(bytes.fromhex("1914 8400 0001 0002 0000 0001" + PRIVATE))
    assert [(rr.name, rr.rtype, rr.ttl) for rr in decode(reply).answers] == [(owner, 12, 1)] * 2
    assert reply[-22:] == bytes.fromhex(OPTION.format(1, llq_id, 7200))[-22:]


def test_an_event_on_tls_acknowledged_by_udp() -> None:
    """As that client does it, from another port to the server's port for LLQs: taken, and answered by nothing."""
    host = Host()
    stream = Peer("tls", "192.0.2.7", 50000, 9)
    asked = decode(load("llq/apple-private-setup"))
    assert host.handle(asked.wire, stream, limit=65535) is not None
    host.change(add=[RR(asked.questions[0].name, 12, 1, FIRST.rdata)])
    ((_, event),) = host.run(1)
    llq_id = option_of(event.wire).llq_id
    opt = Opt(1440, options=(LlqOption(1, LlqOpcode.EVENT, 0, llq_id, 0).encode(),))
    wire = encode(0x1111, QR | AA, asked.questions, opt=opt)
    head = "1111 8400 0001 0000 0000 0001" + PRIVATE
    assert wire == bytes.fromhex(head + OPTION.format(3, llq_id, 0))
    assert host.handle(event.wire[:2] + wire[2:], Peer("udp", "192.0.2.7", 5353, 1)) is None
    assert host.machine.counters.stray_acks == 0


def test_answers_of_that_server_are_no_acks_here() -> None:
    host = Host()
    for packet in ("dnsextd-challenge", "dnsextd-ack-answers", "dnsextd-event-add", "apple-event-add-ack"):
        assert host.handle(load(f"llq/{packet}"), CLIENT) is None
    assert host.machine.counters.stray_acks == 4
