"""DNS Push and the DSO sessions it lives in (RFC 8490, RFC 8765), against the pure core."""

from dataclasses import dataclass, field

import pytest

from protocol.constants import Class, Rcode, Type
from protocol.dso import (
    PUSH_REMOVE_ONE,
    PUSH_REMOVE_SET,
    DsoType,
    PushedRecord,
    decode_dso,
    decode_keepalive,
    decode_push,
    decode_retry_delay,
    encode_dso,
    keepalive,
    reconfirm,
    retry_delay,
    subscribe,
    unsubscribe,
)
from protocol.message import Question
from protocol.name import from_text
from server.push.dso_machine import Abort, DsoLimits, DsoMachine
from server.zone.model import RR, Actor, Change
from tests.support.builders import ZONE, rdata

HOME = from_text(ZONE)
MAC = from_text("mac.alice.members.example.")
PC = from_text("pc.alice.members.example.")
VIA = 7


@dataclass
class Rig:
    """A machine over a zone of plain records that a test edits."""

    limits: DsoLimits = field(default_factory=DsoLimits)
    content: dict[bytes, list[RR]] = field(default_factory=dict)
    refused: dict[bytes, Rcode] = field(default_factory=dict)
    now: float = 100.0
    lookups: int = 0

    def __post_init__(self) -> None:
        self.machine = DsoMachine(
            self.limits,
            lookup=self._lookup,
            admit=lambda question: self.refused.get(question.name.lower(), Rcode.NOERROR),
        )

    def _lookup(self, key: bytes, rtype: int) -> list[RR]:
        self.lookups += 1
        records = self.content.get(key, [])
        return [rr for rr in records if rtype in (rr.rtype, Type.ANY) or rr.rtype == Type.CNAME]

    def change(self, removed: list[RR], added: list[RR]) -> None:
        for rr in removed:
            self.content[rr.owner.lower()].remove(rr)
        for rr in added:
            self.content.setdefault(rr.owner.lower(), []).append(rr)
        self.machine.publish(Change(HOME, 1, 2, 0, Actor("update"), tuple(removed), tuple(added)))
        self.machine.handle_deadline(self.now)

    def ask(self, message_id: int, *tlvs: tuple[int, bytes], via: int = VIA) -> None:
        self.machine.receive(via, encode_dso(message_id, tlvs), self.now)

    def subscribe(self, message_id: int, name: bytes, rtype: int, via: int = VIA) -> None:
        self.ask(message_id, subscribe(Question(name, rtype, Class.IN)), via=via)

    def wires(self, via: int = VIA) -> list[bytes]:
        """What was sent to one connection since last asked; none was aborted."""
        effects = self.machine.take_effects()
        assert not [effect for effect in effects if isinstance(effect, Abort)]
        return [effect.wire for effect in effects if not isinstance(effect, Abort) and effect.via == via]

    def pushed(self, via: int = VIA) -> list[PushedRecord]:
        """The records of every PUSH since last asked, replies left out."""
        messages = [decode_dso(wire) for wire in self.wires(via)]
        return [record for message in messages if not message.id for record in decode_push(message)]

    def reply(self) -> tuple[int, int, int]:
        """ID, RCODE and the Retry Delay in ms (0: none) of the one reply since last asked."""
        (wire,) = self.wires()
        message = decode_dso(wire)
        assert message.is_response
        delays = [decode_retry_delay(tlv) for tlv in message.tlvs if tlv.type == DsoType.RETRY_DELAY]
        return message.id, message.rcode, sum(delays)

    def aborts(self) -> bool:
        """Whether the last thing that happened was an abort, and the session went with it."""
        effects = self.machine.take_effects()
        return bool(effects) and isinstance(effects[-1], Abort) and not self.machine.has_session(VIA)


def a(name: bytes, address: str, ttl: int = 120) -> RR:
    return RR(name, Type.A, ttl, rdata("A", address))


def aaaa(name: bytes, address: str) -> RR:
    return RR(name, Type.AAAA, 120, rdata("AAAA", address))


@pytest.mark.rfc("8490", "5.1")
@pytest.mark.rfc("8490", "3")
@pytest.mark.rfc("8490", "5.1.1")
@pytest.mark.rfc("8490", "5.2")
@pytest.mark.rfc("8490", "5.4.1")
@pytest.mark.rfc("8490", "5.4.2")
@pytest.mark.rfc("8490", "7.1")
def test_a_keepalive_opens_a_session_and_tells_the_servers_times() -> None:
    rig = Rig(DsoLimits(inactivity_seconds=20, keepalive_seconds=60))
    rig.ask(5, keepalive(1, 2))
    (wire,) = rig.wires()
    message = decode_dso(wire)
    assert (message.id, message.is_response, message.rcode) == (5, True, Rcode.NOERROR)
    assert message.primary is not None
    assert decode_keepalive(message.primary) == (20_000, 60_000)
    assert rig.machine.has_session(VIA)


@pytest.mark.rfc("8765", "6.2")
@pytest.mark.rfc("8765", "6.3")
@pytest.mark.rfc("8490", "5.1")
@pytest.mark.rfc("8490", "5.5")
@pytest.mark.rfc("8490", "6.1")
@pytest.mark.rfc("8490", "7.1")
@pytest.mark.rfc("8765", "6")
@pytest.mark.rfc("8765", "6.2.1")
@pytest.mark.rfc("8765", "6.2.2")
@pytest.mark.rfc("8764", "1.1")
def test_subscribe_answers_then_pushes_what_is_there() -> None:
    rig = Rig(content={MAC: [a(MAC, "203.0.113.7"), aaaa(MAC, "fd00::1")]})
    rig.subscribe(9, MAC, Type.A)
    reply, push = rig.wires()
    assert reply == encode_dso(9, [], is_response=True)
    assert decode_push(decode_dso(push)) == [PushedRecord(MAC, Type.A, Class.IN, 120, rdata("A", "203.0.113.7"))]


@pytest.mark.rfc("8765", "6.2.2")
@pytest.mark.rfc("8765", "6.2.1")
@pytest.mark.rfc("8765", "6.3.1")
def test_a_name_that_does_not_exist_yet_may_be_subscribed_to_and_gets_no_empty_push() -> None:
    rig = Rig()
    rig.subscribe(9, MAC, Type.A)
    assert rig.reply() == (9, Rcode.NOERROR, 0)
    rig.change([], [a(MAC, "203.0.113.7")])
    assert rig.pushed() == [PushedRecord(MAC, Type.A, Class.IN, 120, rdata("A", "203.0.113.7"))]


@pytest.mark.rfc("8765", "6.3.1")
def test_removals_come_first_and_in_their_most_compact_form() -> None:
    one, two, three = (a(MAC, f"203.0.113.{number}") for number in (1, 2, 3))
    rig = Rig(content={MAC: [one, two, aaaa(MAC, "fd00::1")]})
    rig.subscribe(9, MAC, Type.A)
    rig.wires()
    rig.change([one], [])
    assert rig.pushed() == [PushedRecord(MAC, Type.A, Class.IN, PUSH_REMOVE_ONE, one.rdata)]
    rig.change([two], [three])
    assert rig.pushed() == [
        PushedRecord(MAC, Type.A, Class.IN, PUSH_REMOVE_SET, b""),
        PushedRecord(MAC, Type.A, Class.IN, 120, three.rdata),
    ]


@pytest.mark.rfc("8765", "6.3.1")
@pytest.mark.rfc("8765", "6.2.1")
def test_a_whole_name_goes_in_one_record_for_who_watches_all_of_it() -> None:
    rig = Rig(content={MAC: [a(MAC, "203.0.113.1"), aaaa(MAC, "fd00::1")]})
    rig.subscribe(9, MAC, Type.ANY)
    assert len(rig.pushed()) == 2
    rig.change(list(rig.content[MAC]), [])
    assert rig.pushed() == [PushedRecord(MAC, Type.ANY, Class.IN, PUSH_REMOVE_SET, b"")]


@pytest.mark.rfc("8765", "6.3.1")
def test_a_record_that_two_subscriptions_want_is_pushed_once() -> None:
    rig = Rig()
    rig.subscribe(1, MAC, Type.A)
    rig.subscribe(2, MAC, Type.ANY)
    rig.subscribe(3, PC, Type.A)
    rig.wires()
    rig.machine.publish(Change(HOME, 1, 2, 0, Actor("update"), (), (a(MAC, "203.0.113.1"), a(PC, "203.0.113.2"))))
    rig.content = {MAC: [a(MAC, "203.0.113.1")], PC: [a(PC, "203.0.113.2")]}
    rig.machine.handle_deadline(rig.now)
    (wire,) = rig.wires()
    assert [record.name for record in decode_push(decode_dso(wire))] == [MAC, PC]


@pytest.mark.rfc("8765", "6.2.2")
def test_an_alias_is_told_whatever_type_was_asked() -> None:
    alias = RR(MAC, Type.CNAME, 60, PC)
    rig = Rig()
    rig.subscribe(1, MAC, Type.AAAA)
    rig.wires()
    rig.change([], [alias])
    assert rig.pushed() == [PushedRecord(MAC, Type.CNAME, Class.IN, 60, PC)]


def test_another_ttl_is_told_as_the_record_again_and_no_change_as_nothing() -> None:
    rig = Rig(content={MAC: [a(MAC, "203.0.113.1")]})
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.change([a(MAC, "203.0.113.1")], [a(MAC, "203.0.113.1", ttl=60)])
    assert rig.pushed() == [PushedRecord(MAC, Type.A, Class.IN, 60, rdata("A", "203.0.113.1"))]
    rig.change([a(MAC, "203.0.113.1", ttl=60)], [a(MAC, "203.0.113.1", ttl=60)])
    assert rig.pushed() == []


def test_names_compare_without_case_and_types_that_nobody_watches_are_not_looked_up() -> None:
    rig = Rig()
    rig.subscribe(1, from_text("MAC.Alice.members.example."), Type.A)
    rig.wires()
    before = rig.lookups
    rig.change([], [aaaa(MAC, "fd00::1")])
    assert rig.lookups == before
    rig.change([], [a(MAC, "203.0.113.1")])
    assert len(rig.pushed()) == 1


@pytest.mark.rfc("8765", "6.4")
@pytest.mark.rfc("8765", "6.4.1")
def test_unsubscribe_ends_it_and_an_unknown_id_is_ignored() -> None:
    rig = Rig()
    rig.subscribe(1, MAC, Type.A)
    rig.subscribe(2, PC, Type.A)
    rig.ask(0, unsubscribe(1))
    rig.ask(0, unsubscribe(77))
    rig.wires()
    rig.change([], [a(MAC, "203.0.113.1"), a(PC, "203.0.113.2")])
    assert [record.name for record in rig.pushed()] == [PC]
    assert len(rig.machine) == 1
    rig.subscribe(1, MAC, Type.A)  # ID and question are free again
    assert [record.name for record in rig.pushed()] == [MAC]


@pytest.mark.rfc("8765", "6.5")
@pytest.mark.rfc("8490", "5.4.3")
@pytest.mark.rfc("8490", "5.5")
def test_reconfirm_is_taken_without_an_answer() -> None:
    rig = Rig()
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.ask(0, reconfirm(Question(MAC, Type.A, Class.IN), b"\x0a\0\0\1"))
    assert rig.wires() == []


FATAL_REQUESTS = {
    "SUBSCRIBE that wants no reply": (0, subscribe(Question(PC, Type.A, Class.IN))),
    "the same question twice": (2, subscribe(Question(from_text("MAC.alice.members.example."), Type.A, Class.IN))),
    "an ID in use": (1, subscribe(Question(PC, Type.A, Class.IN))),
    "PUSH from a client": (0, (DsoType.PUSH, b"")),
    "PUSH as a request": (3, (DsoType.PUSH, b"")),
    "UNSUBSCRIBE as a request": (3, unsubscribe(1)),
    "RECONFIRM as a request": (3, reconfirm(Question(MAC, Type.A, Class.IN), b"")),
    "UNSUBSCRIBE of another length": (0, (DsoType.UNSUBSCRIBE, b"\0")),
    "RECONFIRM of a broken name": (0, (DsoType.RECONFIRM, b"\x3f")),
    "Keepalive that wants no reply": (0, keepalive(1, 2)),
    "Retry Delay from a client": (3, retry_delay(1)),
    "Padding alone": (3, (DsoType.PADDING, b"")),
    "an unknown unidirectional message": (0, (0xF000, b"")),
}


@pytest.mark.rfc("8490", "5.4")
@pytest.mark.rfc("8765", "6.2.1")
@pytest.mark.rfc("8490", "5.3.1")
@pytest.mark.rfc("8490", "5.4.1")
@pytest.mark.rfc("8490", "5.4.3")
@pytest.mark.rfc("8490", "5.4.5")
@pytest.mark.rfc("8490", "5.5.2")
@pytest.mark.rfc("8490", "5.5.3")
@pytest.mark.rfc("8490", "6.6.1")
@pytest.mark.rfc("8490", "7.1")
@pytest.mark.rfc("8490", "7.2.1")
@pytest.mark.rfc("8490", "8.2")
@pytest.mark.rfc("8765", "6.3")
@pytest.mark.parametrize(("message_id", "tlv"), FATAL_REQUESTS.values(), ids=FATAL_REQUESTS.keys())
def test_fatal_messages_end_the_session(message_id: int, tlv: tuple[int, bytes]) -> None:
    rig = Rig()
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.ask(message_id, tlv)
    assert rig.aborts()
    assert len(rig.machine) == 0


@pytest.mark.rfc("8490", "5.4")
@pytest.mark.rfc("8490", "5.4.1")
@pytest.mark.rfc("8490", "5.5.2")
@pytest.mark.rfc("8765", "6.2")
@pytest.mark.rfc("8765", "6.4")
@pytest.mark.rfc("8765", "6.5")
def test_responses_are_fatal_and_so_is_a_second_tlv_that_only_may_come_first() -> None:
    rig = Rig()
    rig.ask(1, keepalive(1, 2))
    rig.machine.receive(VIA, encode_dso(1, [], is_response=True), rig.now)
    assert rig.aborts()
    rig.ask(1, keepalive(1, 2), subscribe(Question(MAC, Type.A, Class.IN)))
    assert rig.aborts()


@pytest.mark.rfc("8490", "5.1")
@pytest.mark.rfc("8490", "11.1")
@pytest.mark.rfc("8490", "5.4.3")
def test_before_a_session_unidirectional_messages_are_fatal_and_errors_open_none() -> None:
    rig = Rig()
    rig.ask(0, unsubscribe(1))
    assert rig.aborts()
    rig.ask(4, (0xF000, b""))
    assert rig.reply() == (4, Rcode.DSOTYPENI, 3_600_000)
    assert not rig.machine.has_session(VIA)


@pytest.mark.rfc("8765", "6.2.2")
@pytest.mark.rfc("8490", "7.2.2")
@pytest.mark.rfc("8765", "6.2.1")
@pytest.mark.parametrize(
    ("tlv", "rcode"),
    [
        ((DsoType.SUBSCRIBE, MAC), Rcode.FORMERR),
        (subscribe(Question(MAC, Type.A, Class.CH)), Rcode.NOTAUTH),
        (subscribe(Question(MAC, Type.AXFR, Class.IN)), Rcode.NOTIMP),
        (subscribe(Question(PC, Type.A, Class.IN)), Rcode.REFUSED),
        ((DsoType.KEEPALIVE, b"\0"), Rcode.FORMERR),
        ((0xF000, b""), Rcode.DSOTYPENI),
    ],
)
def test_errors_carry_a_time_to_stay_away(tlv: tuple[int, bytes], rcode: Rcode) -> None:
    rig = Rig(refused={PC: Rcode.REFUSED})
    rig.ask(4, tlv)
    found = rig.reply()
    assert found[:2] == (4, rcode)
    assert found[2] in (300_000, 3_600_000)


@pytest.mark.rfc("8490", "5.4")
@pytest.mark.rfc("8490", "5.4.6")
def test_counts_that_are_not_zero_are_formerr() -> None:
    rig = Rig()
    wire = bytearray(encode_dso(4, [keepalive(1, 2)]))
    wire[5] = 1
    rig.machine.receive(VIA, bytes(wire), rig.now)
    assert rig.reply()[:2] == (4, Rcode.FORMERR)


@pytest.mark.rfc("8765", "6.2.2")
def test_limits_are_servfail_with_a_time_to_stay_away() -> None:
    rig = Rig(DsoLimits(maximum_per_session=1, maximum_subscriptions=2))
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.subscribe(2, PC, Type.A)
    assert rig.reply() == (2, Rcode.SERVFAIL, 60_000)
    rig.subscribe(1, MAC, Type.A, via=8)
    rig.wires()
    rig.subscribe(1, MAC, Type.A, via=9)
    assert [decode_dso(wire).rcode for wire in rig.wires(9)] == [Rcode.SERVFAIL]
    assert not rig.machine.has_session(9)


@pytest.mark.rfc("8490", "7.3")
@pytest.mark.rfc("8490", "5.4.6")
def test_padding_asked_for_is_padding_given() -> None:
    rig = Rig()
    rig.ask(1, keepalive(1, 2), (DsoType.PADDING, b"\0"))
    rig.ask(2, (0xF000, b""), (DsoType.PADDING, b""))
    rig.ask(3, subscribe(Question(MAC, Type.A, Class.IN)), (DsoType.PADDING, b""))
    assert [len(wire) % 468 for wire in rig.wires()] == [0, 0, 0]


@pytest.mark.rfc("8490", "6.4")
@pytest.mark.rfc("8490", "6.4.1")
def test_a_session_without_subscriptions_ends_after_twice_its_inactivity() -> None:
    rig = Rig(DsoLimits(inactivity_seconds=15))
    rig.ask(1, keepalive(1, 2))
    rig.wires()
    rig.now += 20
    rig.ask(2, keepalive(1, 2))  # resets the keepalive timer only
    rig.machine.handle_deadline(rig.now + 9.9)
    rig.wires()
    rig.machine.handle_deadline(rig.now + 10)
    assert rig.aborts()


@pytest.mark.rfc("8490", "6.4")
@pytest.mark.rfc("8490", "6.5")
@pytest.mark.rfc("8490", "6.5.1")
def test_a_subscription_keeps_a_session_until_nothing_is_heard_for_two_intervals() -> None:
    rig = Rig(DsoLimits(inactivity_seconds=15, keepalive_seconds=60))
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.machine.handle_deadline(rig.now + 119)
    rig.now += 119
    rig.ask(2, keepalive(1, 2))
    rig.machine.handle_deadline(rig.now + 119)
    rig.wires()
    rig.machine.handle_deadline(rig.now + 120)
    assert rig.aborts()


def test_an_ordinary_query_counts_as_activity() -> None:
    rig = Rig(DsoLimits(inactivity_seconds=15, keepalive_seconds=60))
    rig.ask(1, keepalive(1, 2))
    rig.wires()
    rig.machine.note_message(VIA, rig.now + 25)
    rig.machine.handle_deadline(rig.now + 40)
    assert rig.wires() == []
    assert rig.machine.has_session(VIA)


@pytest.mark.rfc("8490", "6.6.1")
@pytest.mark.rfc("8490", "5.5.3")
@pytest.mark.rfc("8490", "7.2.1")
def test_a_server_that_stops_asks_its_clients_to_leave_and_aborts_who_stays() -> None:
    rig = Rig()
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.machine.close(5_000, rig.now)
    (wire,) = rig.wires()
    assert wire == encode_dso(0, [retry_delay(5_000)])
    rig.machine.handle_deadline(rig.now + 4.9)
    assert rig.wires() == []
    rig.machine.handle_deadline(rig.now + 5)
    assert rig.aborts()


@pytest.mark.rfc("8490", "6.6.1")
@pytest.mark.rfc("8490", "6.6.1.1")
def test_nothing_is_said_to_who_was_asked_to_leave_and_nothing_taken() -> None:
    rig = Rig()
    rig.subscribe(1, MAC, Type.A)
    rig.machine.close(5_000, rig.now)
    rig.wires()
    rig.subscribe(2, PC, Type.A)
    rig.ask(3, keepalive(1, 2))
    rig.ask(0, unsubscribe(1))
    rig.change([], [a(MAC, "203.0.113.1")])
    rig.machine.stream_paused(VIA)
    rig.machine.stream_resumed(VIA)
    assert rig.wires() == [] and rig.machine.next_deadline() == rig.now + 5


@pytest.mark.rfc("8490", "6.6.1.1")
def test_clients_sent_away_together_come_back_one_after_the_other() -> None:
    rig = Rig()
    for via in range(700):
        rig.ask(1, keepalive(1, 2), via=via)
    rig.machine.take_effects()
    rig.machine.close(5_000, rig.now)
    told = [decode_dso(effect.wire).primary for effect in rig.machine.take_effects() if not isinstance(effect, Abort)]
    delays = [decode_retry_delay(tlv) for tlv in told if tlv is not None]
    assert delays[:3] == [5_000, 5_100, 5_200]
    assert len(delays) == 700 and len(set(delays)) == 600 and max(delays) < 65_000


@pytest.mark.rfc("8490", "5.4.5")
@pytest.mark.rfc("8490", "5.5.3")
def test_a_tlv_nobody_knows_is_an_error_in_front_and_ignored_behind() -> None:
    """The error does not repeat it, and the session goes on."""
    rig = Rig()
    rig.ask(1, keepalive(1, 2), (0xF001, b"more"), (0xF002, b""))
    assert rig.reply() == (1, Rcode.NOERROR, 0)
    rig.ask(2, (0xF000, b"what"))
    (wire,) = rig.wires()
    message = decode_dso(wire)
    assert (message.id, message.rcode, [tlv.type for tlv in message.tlvs]) == (
        2,
        Rcode.DSOTYPENI,
        [DsoType.RETRY_DELAY],
    )
    rig.subscribe(3, MAC, Type.A)
    assert rig.reply() == (3, Rcode.NOERROR, 0)


@pytest.mark.rfc("8490", "5.4.2")
def test_what_has_no_tlv_is_formerr_or_fatal() -> None:
    rig = Rig()
    rig.ask(4)
    assert rig.reply()[:2] == (4, Rcode.FORMERR)
    rig.ask(5, keepalive(1, 2))
    rig.wires()
    rig.ask(0)
    assert rig.aborts()


@pytest.mark.rfc("8490", "5.4.1")
def test_reserved_bits_and_the_rcode_of_a_request_are_ignored_and_come_back_0() -> None:
    rig = Rig()
    wire = bytearray(encode_dso(1, [keepalive(1, 2)]))
    wire[2] |= 0x07
    wire[3] = 0xFF
    rig.machine.receive(VIA, bytes(wire), rig.now)
    (reply,) = rig.wires()
    assert reply[2:4] == b"\xb0\0"


def test_a_client_that_does_not_read_hears_the_net_difference_later() -> None:
    one, two = a(MAC, "203.0.113.1"), a(MAC, "203.0.113.2")
    rig = Rig(content={MAC: [one]})
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.machine.stream_paused(VIA)
    rig.change([one], [two])
    rig.change([two], [one])
    rig.change([], [two])
    rig.subscribe(2, PC, Type.A)
    assert [decode_dso(wire).id for wire in rig.wires()] == [2]
    rig.machine.stream_resumed(VIA)
    rig.machine.handle_deadline(rig.now)
    assert rig.pushed() == [PushedRecord(MAC, Type.A, Class.IN, 120, two.rdata)]


def test_who_comes_during_a_change_and_who_was_there_end_with_the_same() -> None:
    one, two = a(MAC, "203.0.113.1"), a(MAC, "203.0.113.2")
    rig = Rig(content={MAC: [one]})
    rig.subscribe(1, MAC, Type.A, via=1)
    rig.machine.take_effects()
    rig.content[MAC] = [two]
    rig.machine.publish(Change(HOME, 1, 2, 0, Actor("update"), (one,), (two,)))
    rig.subscribe(1, MAC, Type.A, via=2)  # before the first was served
    assert [record.rdata for record in rig.pushed(via=2)] == [two.rdata]
    assert rig.machine.next_deadline() == 0.0
    rig.machine.handle_deadline(rig.now)
    assert [record.rdata for record in rig.pushed(via=1)] == [b"", two.rdata]


def test_many_watchers_share_one_message_and_take_turns() -> None:
    rig = Rig()
    for via in range(1000):
        rig.subscribe(1, MAC, Type.A, via=via)
    rig.machine.take_effects()
    before = rig.lookups
    rig.content[MAC] = [a(MAC, "203.0.113.1")]
    rig.machine.publish(Change(HOME, 1, 2, 0, Actor("update"), (), (a(MAC, "203.0.113.1"),)))
    rounds = 0
    wires: list[bytes] = []
    while rig.machine.next_deadline() == 0.0:
        rig.machine.handle_deadline(rig.now)
        rounds += 1
        wires += [effect.wire for effect in rig.machine.take_effects() if not isinstance(effect, Abort)]
    assert rig.lookups == before + 1
    assert rounds == 5
    assert len(wires) == 1000
    assert all(wire is wires[0] for wire in wires)


def test_a_closed_stream_leaves_nothing_behind() -> None:
    rig = Rig()
    rig.subscribe(1, MAC, Type.A)
    rig.wires()
    rig.machine.stream_closed(VIA)
    rig.change([], [a(MAC, "203.0.113.1")])
    assert rig.wires() == []
    assert len(rig.machine) == rig.machine.sessions == 0
