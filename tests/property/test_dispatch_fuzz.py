"""Anything at all through the pipeline: no fault of ours, at most one reply, and one that can be read and fits."""

import struct
from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.constants import HEADER_OCTETS, QR, Class, EdnsOption, Opcode, Rcode, Type
from protocol.edns import LlqOption, Opt, UpdateLease
from protocol.errors import DecodeError
from protocol.message import OptError, Question, decode, encode
from protocol.name import fold
from server.config import LlqSettings
from server.peer import Peer
from server.push.service import PushService
from server.reply import UDP_PAYLOAD
from tests.support import simloop
from tests.support.builders import (
    ADMIN,
    ALICE,
    CAROL,
    T0,
    TCP,
    UDP,
    ZONE,
    Core,
    Item,
    add,
    delete_name,
    delete_rr,
    name,
    name_in_use,
    query_message,
    rows_of,
    rrset_equals,
    signed,
    update_message,
)
from tests.support.entropy import SeededEntropy

MAC: Final = "mac.alice.members.example."
NEW: Final = add("new.alice.members.example.", 60, "A", "192.0.2.9")
LLQ: Final = Opt(0, options=(LlqOption(1, 1, 0, 0, 7200).encode(),))


def seeds() -> list[bytes]:
    plain = [
        query_message(MAC),
        query_message("absent.members.example.", "TXT", edns=Opt(4096, dnssec_ok=True)),
        query_message("secret.carol.members.example.", "ANY", edns=Opt(512)),
        query_message(ZONE, "SOA", edns=Opt(1232, options=((int(EdnsOption.COOKIE), bytes(8)), (15, b"\0\1x")))),
        query_message(MAC, edns=LLQ),
        query_message(MAC, flags=QR, edns=LLQ),
        update_message([NEW, delete_name(MAC)], [name_in_use(MAC)], lease=5400),
        update_message([NEW], lease=UpdateLease(5400, 7000), zone="carol.members.example."),
        update_message(
            [delete_rr(MAC, "A", "192.0.2.1"), add(MAC, 60, "SRV", "0 0 1 mac.members.example.")],
            [rrset_equals(MAC, "A", "192.0.2.1")],
        ),
        encode(5, Opcode.NOTIFY << 11, [Question(name(ZONE), Type.SOA, Class.IN)]),
        encode(5, 0, [Question(name(MAC), Type.A, Class.IN), Question(name(MAC), Type.SRV, Class.IN)], opt=LLQ),
    ]
    return [*plain, *(signed(wire, by, T0)[0] for wire in plain for by in (ADMIN, ALICE, CAROL))]


SEEDS: Final = seeds()
octets_seen = st.sampled_from([0, 1, 2, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFE, 0xFF])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good message with some octets changed, cut out, doubled, or the end missing."""
    wire = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(wire)))
        kind = draw(st.sampled_from(["set", "set", "set", "cut", "insert", "end", "pointer"]))
        if kind == "set" and at < len(wire):
            wire[at] = draw(st.one_of(octets_seen, st.integers(0, 255)))
        elif kind == "cut":
            del wire[at : at + draw(st.integers(1, 12))]
        elif kind == "insert":
            wire[at:at] = draw(st.binary(max_size=12))
        elif kind == "end":
            del wire[at:]
        elif kind == "pointer":
            wire[at : at + 2] = struct.pack("!H", 0xC000 | draw(st.integers(0, len(wire))))
    return bytes(wire)


@st.composite
def assembled(draw: st.DrawFn) -> bytes:
    """Counts and sections that go together, with anything in them; then signed, or not."""
    owners = (ZONE, MAC, "x.carol.members.example.", "alice.members.example.", ".")
    owner = st.sampled_from([name(text) for text in owners])
    rtype = st.one_of(st.sampled_from([1, 2, 5, 6, 16, 28, 33, 41, 250, 251, 252, 255]), st.integers(0, 65535))
    rclass = st.sampled_from([1, 1, 3, 254, 255, 0])
    rdata = st.one_of(st.just(b""), st.binary(max_size=20))
    record = st.builds(Item, owner, rtype, rclass, st.sampled_from([0, 0, 60, 0xFFFFFFFF]), rdata)
    questions = draw(st.lists(st.builds(Question, owner, rtype, rclass), max_size=3))
    option = st.tuples(st.sampled_from([1, 2, 3, 10, 15]), st.binary(max_size=20))
    options = tuple(draw(st.lists(option, max_size=3)))
    opt = draw(st.none() | st.builds(Opt, st.integers(0, 65535), options=st.just(options)))
    answers, authority, additional = (draw(st.lists(record, max_size=3)) for _ in range(3))
    flags = draw(st.sampled_from([0, Opcode.UPDATE << 11, draw(st.integers(0, 0x7FFF))]))
    wire = encode(draw(st.integers(0, 65535)), flags, questions, answers, authority, additional, opt)
    by = draw(st.sampled_from([None, ADMIN, ALICE, CAROL]))
    return wire if by is None else signed(wire, by, T0)[0]


def check(wire: bytes) -> None:
    """By datagram and by stream, with the real push service, on a loop whose time stands still."""

    async def run() -> None:
        core = Core()
        core.dispatcher._push = PushService(
            LlqSettings(),
            zones=core.zones,
            keyring=core.keyring,
            clock=core.clock,
            entropy=SeededEntropy(),
            metrics=core.metrics,
            send=lambda peer, event: None,
            event_listener=lambda peer: 0,
        )
        for peer in (UDP, TCP):
            check_one(core, wire, peer)

    simloop.run(run())


def check_one(core: Core, wire: bytes, peer: Peer) -> None:
    sent = core.handle(wire, peer)
    assert len(sent) == 1
    (reply,) = sent
    is_silent = len(wire) < HEADER_OCTETS or bool(wire[2] & 0x80)
    assert (reply == b"") == is_silent
    assert core.metrics.faults.labels("dispatch")._value.get() == 0
    if reply:
        message = decode(reply)
        assert message.header.is_response
        assert (message.id, message.header.opcode) == (int.from_bytes(wire[:2], "big"), wire[2] >> 3 & 0xF)
        assert message.header.rcode != Rcode.SERVFAIL
        assert peer is TCP or len(reply) <= limit(wire)
    for zone in core.zones:
        assert rows_of(zone) == core.store.rows[zone.id]


def limit(wire: bytes) -> int:
    """No reply to a datagram is longer than the client allows, but for a question and a signature that fill 512."""
    try:
        request = decode(wire)
    except OptError as error:
        return 512 if error.questions else HEADER_OCTETS + len(Opt().encode())
    except DecodeError:
        return HEADER_OCTETS
    if request.opt is None:
        return 512 + 330
    size = request.opt.payload_size or (UDP_PAYLOAD if request.opt.all(EdnsOption.LLQ) else 512)
    return max(512 + 330, min(size, UDP_PAYLOAD))


@settings(max_examples=400, deadline=None)
@given(wire=mutated())
def test_good_messages_gone_bad(wire: bytes) -> None:
    check(wire)


@settings(max_examples=400, deadline=None)
@given(wire=assembled())
def test_well_formed_nonsense(wire: bytes) -> None:
    check(wire)


@settings(max_examples=200, deadline=None)
@given(wire=st.binary(max_size=300))
@example(wire=b"")
@example(wire=bytes(12))
@example(wire=b"\0" * 12 + b"\xc0\x0c" * 20)
@example(wire=struct.pack("!6H", 1, 0, 65535, 65535, 65535, 65535))
@example(wire=struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1")
def test_random_octets(wire: bytes) -> None:
    check(wire)


def test_the_seeds_are_good_and_no_more_is_needed_to_change_a_zone() -> None:
    fresh = Core()
    for wire in SEEDS:
        fresh.handle(wire)
    assert fresh.zone.serial > 1
    assert fresh.zones.at(fold(name("carol.members.example."))) is not None
    assert fresh.metrics.faults.labels("dispatch")._value.get() == 0
