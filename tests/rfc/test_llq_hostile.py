"""Malformed, replayed, foreign and stale messages at every phase of a subscription: one table, none does it harm.

Each row is a message that its subscriber did not send, or sent long ago. It is put to the server at each phase; the
subscription must stand exactly as before, the answer be no larger than what was asked, and the rest of the life must
go on as if nothing had been.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from protocol.constants import AA, QR, Class
from protocol.edns import LlqError, LlqOpcode, LlqOption, Opt
from protocol.message import Question, encode
from protocol.name import from_text
from server.peer import Peer
from server.push.sending import SendEvent
from tests.support.llq import CLIENT, OTHER, STREAM, Host, a_record, edits, question, refresh, setup

KEY: Final = from_text("laptop.alice.members.example")
OTHER_KEY: Final = from_text("phone.bob.members.example")
ELSEWHERE: Final = from_text("nas.alice.members.example")
OTHER_STREAM: Final = STREAM._replace(via=77, port=50077)
OTHERS_STREAM: Final = Peer("tls", OTHER.address, 50078, 78)
SAME_HOST: Final = CLIENT._replace(port=CLIENT.port + 1)
NOT_KNOWN: Final = 0xDEADBEEF0BADF00D


@dataclass
class Life:
    """A subscriber at some phase, its key or none, and a bystander who watches the same name."""

    host: Host
    peer: Peer
    key: bytes | None
    llq_id: int = 0
    lease: int = 7200
    former_id: int = 0
    event: SendEvent | None = None
    former_event: SendEvent | None = None

    @property
    def id_of_event(self) -> int:
        return self.event.message_id if self.event is not None else 0x1111


Message = tuple[list[Question], list[tuple[int, bytes]], Peer, bytes | None]
Row = tuple[Callable[[Life], Message], LlqError | None]


def one(option: LlqOption, peer: Peer, key: bytes | None, asked: Question | None = None) -> Message:
    return [asked or question()], [option.encode()], peer, key


def spoofed(life: Life) -> Peer:
    """A datagram with the subscriber's address in it."""
    return life.peer._replace(transport="udp", via=CLIENT.via)


E = LlqError
REQUESTS: Final[dict[str, Row]] = {
    # Set-up
    "a set-up by somebody else": (lambda life: one(setup(), OTHER, None), E.NO_ERROR),
    "a set-up with the subscriber's address forged": (lambda life: one(setup(), spoofed(life), life.key), E.NO_ERROR),
    "the same under another key": (lambda life: one(setup(), spoofed(life), OTHER_KEY), E.NO_ERROR),
    "a set-up from another port of its machine": (lambda life: one(setup(), SAME_HOST, life.key), E.NO_ERROR),
    "a set-up of version 2": (lambda life: one(setup(version=2), spoofed(life), life.key), E.BAD_VERS),
    "a set-up with an error in it": (lambda life: one(setup(error=1), spoofed(life), life.key), E.FORMAT_ERR),
    "a set-up for type ANY": (lambda life: one(setup(), spoofed(life), life.key, question(rtype=255)), E.FORMAT_ERR),
    "a set-up for class NONE": (
        lambda life: one(setup(), spoofed(life), life.key, question(rclass=Class.NONE)),
        E.FORMAT_ERR,
    ),
    # Challenge response
    "its LLQ-ID met from elsewhere": (lambda life: one(setup(life.llq_id), OTHER, life.key), E.UNKNOWN_ERR),
    "its LLQ-ID met from another port": (lambda life: one(setup(life.llq_id), SAME_HOST, life.key), E.UNKNOWN_ERR),
    "its LLQ-ID met under another key": (lambda life: one(setup(life.llq_id), spoofed(life), OTHER_KEY), E.UNKNOWN_ERR),
    "its LLQ-ID met on a stream of somebody else": (
        lambda life: one(setup(life.llq_id), OTHERS_STREAM, life.key),
        E.UNKNOWN_ERR,
    ),
    "a guessed LLQ-ID": (lambda life: one(setup(life.llq_id ^ 1), spoofed(life), life.key), E.UNKNOWN_ERR),
    "an LLQ-ID of another time": (
        lambda life: one(setup(life.llq_id ^ 1 << 40), spoofed(life), life.key),
        E.UNKNOWN_ERR,
    ),
    "its LLQ-ID with another lease, for another question": (
        lambda life: one(setup(life.llq_id, 7199), spoofed(life), life.key, question(ELSEWHERE)),
        E.UNKNOWN_ERR,
    ),
    "the challenge response of its former self": (
        lambda life: one(setup(life.former_id, life.lease), spoofed(life), life.key),
        E.UNKNOWN_ERR,
    ),
    # Refresh and cancel
    "a refresh from elsewhere": (lambda life: one(refresh(life.llq_id), OTHER, OTHER_KEY), E.NO_SUCH_LLQ),
    "a cancel from elsewhere": (lambda life: one(refresh(life.llq_id, 0), OTHER, None), E.NO_SUCH_LLQ),
    "a cancel under another key": (lambda life: one(refresh(life.llq_id, 0), life.peer, OTHER_KEY), E.NO_SUCH_LLQ),
    "a cancel on a stream of somebody else": (
        lambda life: one(refresh(life.llq_id, 0), OTHERS_STREAM, OTHER_KEY),
        E.NO_SUCH_LLQ,
    ),
    "a cancel with another name": (
        lambda life: one(refresh(life.llq_id, 0), life.peer, life.key, question(ELSEWHERE)),
        E.NO_SUCH_LLQ,
    ),
    "a cancel with another type": (
        lambda life: one(refresh(life.llq_id, 0), life.peer, life.key, question(rtype=28)),
        E.NO_SUCH_LLQ,
    ),
    "a cancel with another class": (
        lambda life: one(refresh(life.llq_id, 0), life.peer, life.key, question(rclass=Class.CH)),
        E.NO_SUCH_LLQ,
    ),
    "a cancel with a guessed LLQ-ID": (
        lambda life: one(refresh(life.llq_id ^ 1, 0), life.peer, life.key),
        E.NO_SUCH_LLQ,
    ),
    "a cancel with LLQ-ID 0": (lambda life: one(refresh(0, 0), life.peer, life.key), E.NO_SUCH_LLQ),
    "the cancel of its former self": (
        lambda life: one(refresh(life.former_id, 0), life.peer, life.key),
        E.NO_SUCH_LLQ,
    ),
    "a cancel of version 0": (
        lambda life: one(LlqOption(0, LlqOpcode.REFRESH, 0, life.llq_id, 0), life.peer, life.key),
        E.BAD_VERS,
    ),
    # What is no LLQ message at all
    "an event sent to the server": (
        lambda life: one(LlqOption(1, LlqOpcode.EVENT, 0, life.llq_id, 0), life.peer, life.key),
        E.FORMAT_ERR,
    ),
    "an unknown opcode": (lambda life: one(LlqOption(1, 9, 0, life.llq_id, 0), life.peer, life.key), E.FORMAT_ERR),
    "an option cut short": (
        lambda life: ([question()], [(1, refresh(life.llq_id, 0).encode()[1][:17])], life.peer, life.key),
        E.FORMAT_ERR,
    ),
    "an option too long": (
        lambda life: ([question()], [(1, refresh(life.llq_id, 0).encode()[1] + b"\0")], life.peer, life.key),
        E.FORMAT_ERR,
    ),
    "two options for one question": (
        lambda life: ([question()], [refresh(life.llq_id, 0).encode()] * 2, life.peer, life.key),
        E.FORMAT_ERR,
    ),
    "two questions for one option": (
        lambda life: ([question(), question(ELSEWHERE)], [refresh(life.llq_id, 0).encode()], life.peer, life.key),
        E.FORMAT_ERR,
    ),
    "no question": (lambda life: ([], [refresh(life.llq_id, 0).encode()], life.peer, life.key), E.FORMAT_ERR),
}


def ack(
    life: Life, peer: Peer, *, id: int | None = None, llq_id: int | None = None, opcode: int = LlqOpcode.EVENT
) -> tuple[bytes, Peer]:
    option = LlqOption(1, opcode, 0, life.llq_id if llq_id is None else llq_id, 0)
    wire = encode(life.id_of_event if id is None else id, QR | AA, [question()], opt=Opt(options=(option.encode(),)))
    return wire, peer


ACKS: Final[dict[str, Callable[[Life], tuple[bytes, Peer]]]] = {
    "an ack from elsewhere": lambda life: ack(life, OTHER),
    "an ack from another port": lambda life: ack(life, SAME_HOST._replace(address="192.0.2.8")),
    "an ack with a guessed message ID": lambda life: ack(life, life.peer, id=life.id_of_event ^ 1),
    "an ack with a guessed LLQ-ID": lambda life: ack(life, life.peer, llq_id=life.llq_id ^ 1),
    "the ack of an earlier event": lambda life: ack(
        life, life.peer, id=life.former_event.message_id if life.former_event else 0x2222
    ),
    "the ack of its former self's event": lambda life: ack(life, life.peer, llq_id=life.former_id),
    "a response that is no ack": lambda life: ack(life, life.peer, opcode=LlqOpcode.REFRESH),
    "a response without option": lambda life: (encode(life.id_of_event, QR, [question()], opt=Opt()), life.peer),
    "a response with an option cut short": lambda life: (
        encode(life.id_of_event, QR, [question()], opt=Opt(options=((1, bytes(17)),))),
        life.peer,
    ),
}


# Phases. Each begins with a subscriber that started anew once, so that there is a former self to replay.


def challenged(life: Life) -> None:
    life.llq_id = NOT_KNOWN
    life.former_id = NOT_KNOWN ^ 2
    life.host.raw([question()], [setup().encode()], CLIENT, life.key)


def established(life: Life) -> None:
    life.former_id = life.host.establish(peer=life.peer, key=life.key)
    life.llq_id = life.host.establish(peer=life.peer, key=life.key)
    assert life.llq_id != life.former_id


def told(life: Life) -> None:
    """It has had an event, acknowledged where that is due."""
    established(life)
    life.host.change(add=[a_record(1)])
    (life.former_event,) = [event for event in life.host.settle(1) if event.peer == life.peer]


def waiting(life: Life) -> None:
    """Its second event is under way."""
    told(life)
    life.host.change(add=[a_record(2)])
    life.event = next(event for _, event in life.host.run(0.5) if event.peer == life.peer)


def changing(life: Life) -> None:
    """A change waits for its window to close."""
    told(life)
    life.host.change(add=[a_record(2)])


PHASES: Final[dict[str, Callable[[Life], None]]] = {
    "challenged": challenged,
    "established": established,
    "told": told,
    "event under way": waiting,
    "change in its window": changing,
}


def lives(phase: str, peer: Peer, key: bytes | None) -> Life:
    host = Host()
    host.now = 103.0
    host.establish(peer=Peer("udp", "203.0.113.5", 5000, 1))
    life = Life(host, peer, key)
    PHASES[phase](life)
    return life


def standing(host: Host) -> list[tuple[object, ...]]:
    """Everything the server holds of everyone."""
    return [
        (
            *(held.llq_id, held.peer, held.key_name, held.expires_at, held.state, held.sure, held.maybe, held.stamp),
            held.outstanding and (held.outstanding.stamp, held.outstanding.plan),
        )
        for held in host.machine._register
    ]


def octets(questions: list[Question], options: list[tuple[int, bytes]], answers: int = 0) -> int:
    return sum(len(asked.name) + 4 for asked in questions) + sum(4 + len(data) for _, data in options) + answers


def finish(life: Life) -> None:
    """The rest of its life is as it would have been: it hears of the next change, once, and its cancel is known."""
    life.host.settle(20)
    life.host.change(add=[a_record(9)])
    events = [event for event in life.host.settle(5) if event.peer == life.peer]
    if life.llq_id == NOT_KNOWN:
        assert events == []
        return
    (event,) = events
    assert edits(event.wire) == ([], [a_record(9).rdata])
    (option,) = life.host.ask((question(), refresh(life.llq_id, 0)), peer=life.peer, key=life.key).options
    assert option.error == LlqError.NO_ERROR


WAYS: Final = [(CLIENT, None), (CLIENT, KEY), (STREAM, KEY)]


@pytest.mark.rfc("8764", "8")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", REQUESTS)
def test_no_request_of_others_changes_a_subscription(name: str, phase: str) -> None:
    build, expected = REQUESTS[name]
    for peer, key in WAYS:
        if phase == "challenged" and peer is STREAM:
            continue  # nothing to challenge there
        life = lives(phase, peer, key)
        before = standing(life.host)
        questions, options, sender, by = build(life)
        reply = life.host.raw(questions, options, sender, by)
        life.host.machine.answered(reply, len(reply.answers), now=life.host.now)
        if phase != "challenged" or expected not in (E.UNKNOWN_ERR, E.NO_SUCH_LLQ):
            assert {option.error for option in reply.options} == {expected}
        assert len(reply.options) <= max(1, len(options))
        assert reply.answers == []
        assert standing(life.host) == before
        finish(life)


@pytest.mark.rfc("8764", "8")
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "challenged"])
@pytest.mark.parametrize("name", ACKS)
def test_no_ack_of_others_settles_an_event(name: str, phase: str) -> None:
    for peer, key in WAYS:
        life = lives(phase, peer, key)
        before = standing(life.host)
        wire, sender = ACKS[name](life)
        life.host.handle(wire, sender)
        assert standing(life.host) == before
        finish(life)


@pytest.mark.rfc("8764", "8")
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "challenged"])
def test_its_own_messages_replayed_do_no_more_than_they_did(phase: str) -> None:
    """A copy of the last challenge response or refresh may be answered again; it ends nothing and loses nothing."""
    for key in (None, KEY):
        life = lives(phase, CLIENT, key)
        for option in (setup(life.llq_id), refresh(life.llq_id), setup()):
            before = [row[:3] for row in standing(life.host)]
            life.host.ask((question(), option), peer=CLIENT, key=key)
            assert [row[:3] for row in standing(life.host)] == before
        life.host.settle(20)
        life.host.change(add=[a_record(9)])
        assert len([event for event in life.host.settle(5) if event.peer == CLIENT]) == 1


@pytest.mark.rfc("8764", "8")
def test_who_is_gone_is_not_brought_back_by_a_refresh_or_an_ack() -> None:
    for end in ("cancelled", "lapsed"):
        life = lives("event under way", CLIENT, None)
        if end == "cancelled":
            life.host.ask((question(), refresh(life.llq_id, 0)))
        else:
            life.host.settle(5)
            life.host.ask((question(), refresh(life.llq_id, 900)))
            life.host.settle(901)
        before = standing(life.host)
        for option in (refresh(life.llq_id), refresh(life.llq_id, 0)):
            assert life.host.ask((question(), option)).options[0].error == LlqError.NO_SUCH_LLQ
        life.host.handle(*ack(life, CLIENT))
        assert standing(life.host) == before
        life.host.change(add=[a_record(9)])
        assert [event for event in life.host.settle(5) if event.peer == CLIENT] == []
