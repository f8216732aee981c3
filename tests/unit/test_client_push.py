"""The DNS Push client against the server's own core over a wire in memory, and against what only a bad server says."""

import random

import pytest

from client_stub.llq_client import Broken, Now, Send, State, StateChanged, Unusable, ViewChanged
from client_stub.push_client import PushClient, PushSettings
from protocol.constants import Class, Rcode, Type
from protocol.dso import (
    PUSH_REMOVE_ONE,
    PUSH_REMOVE_SET,
    DsoType,
    PushedRecord,
    encode_dso,
    encode_push,
    keepalive,
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
NAMES = [from_text(f"{label}.alice.{ZONE}") for label in ("mac", "pc", "nas")]
MAC = NAMES[0]
QUESTION = Question(MAC, Type.A, Class.IN)
UNIX = 1_700_000_000


class Pair:
    """Client and server core on one stream at a time."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.time = 0.0
        self.content: dict[bytes, dict[bytes, RR]] = {}
        self.refused: Rcode = Rcode.NOERROR
        self.machine = DsoMachine(
            DsoLimits(keepalive_seconds=30), lookup=self._lookup, admit=lambda question: self.refused
        )
        self.client = PushClient(PushSettings(), self.rng)
        self.views: dict[bytes, tuple[bytes, ...]] = {}
        self.broken: list[str] = []
        self.unusable: list[float] = []
        self.states: list[State] = []
        self.via = 0
        self.is_open = False

    @property
    def now(self) -> Now:
        return Now(self.time, UNIX + int(self.time))

    def _lookup(self, key: bytes, rtype: int) -> list[RR]:
        return list(self.content.get(key, {}).values()) if rtype == Type.A else []

    def open(self) -> None:
        self.via += 1
        self.is_open = True
        self.client.channel_opened(is_stream=True, now=self.now)
        self.exchange()

    def close(self) -> None:
        self.is_open = False
        self.machine.stream_closed(self.via)
        self.client.channel_closed(now=self.now)
        self.exchange()

    def change(self, name: bytes, addresses: set[str]) -> None:
        old = self.content.get(name, {})
        new = {rdata("A", text): RR(name, Type.A, 60, rdata("A", text)) for text in addresses}
        removed = tuple(rr for key, rr in old.items() if key not in new)
        added = tuple(rr for key, rr in new.items() if key not in old)
        self.content[name] = new
        self.machine.publish(Change(HOME, 1, 2, 0, Actor("update"), removed, added))

    def exchange(self) -> None:
        """Carry messages both ways until both are quiet."""
        busy = True
        while busy:
            busy = False
            for effect in self.client.take_effects():
                busy = True
                match effect:
                    case Send(wire):
                        if self.is_open:
                            self.machine.receive(self.via, wire, self.time)
                    case ViewChanged(question, rdatas):
                        self.views[question.name] = rdatas
                    case StateChanged(_, state):
                        self.states.append(state)
                    case Broken(reason):
                        self.broken.append(reason)
                    case Unusable(_, seconds):
                        self.unusable.append(seconds)
            for told in self.machine.take_effects():
                busy = True
                if isinstance(told, Abort):
                    self.broken.append(told.reason)
                elif self.is_open and told.via == self.via:
                    self.client.receive(told.wire, now=self.now)

    def run_for(self, seconds: float) -> None:
        end = self.time + seconds
        while True:
            self.exchange()
            due = [at for at in (self.client.next_deadline(), self.machine.next_deadline()) if at is not None]
            at = max(self.time, min(due, default=end))
            if at > end:
                break
            self.time = at
            self.client.handle_deadline(now=self.now)
            self.machine.handle_deadline(self.time)
            if at == end and not due:
                break
        self.time = end


def watching(*names: bytes) -> Pair:
    pair = Pair()
    for name in names or (MAC,):
        pair.client.subscribe(Question(name, Type.A, Class.IN), now=pair.now)
    pair.open()
    return pair


@pytest.mark.rfc("8765", "6.3.1")
def test_what_is_there_and_what_changes_is_seen() -> None:
    pair = Pair()
    pair.change(MAC, {"203.0.113.1", "203.0.113.2"})
    pair.client.subscribe(QUESTION, now=pair.now)
    pair.open()
    assert pair.states == [State.SETUP, State.ESTABLISHED]
    assert pair.views[MAC] == (rdata("A", "203.0.113.1"), rdata("A", "203.0.113.2"))
    pair.change(MAC, {"203.0.113.2", "203.0.113.3"})
    pair.run_for(1)
    assert pair.views[MAC] == (rdata("A", "203.0.113.2"), rdata("A", "203.0.113.3"))
    pair.change(MAC, set())
    pair.run_for(1)
    assert pair.views[MAC] == ()


@pytest.mark.rfc("8765", "6.2.1")
def test_a_name_in_another_case_is_the_same_name() -> None:
    pair = Pair()
    pair.client.subscribe(Question(from_text("MAC.Alice.members.example."), Type.A, Class.IN), now=pair.now)
    pair.client.subscribe(QUESTION, now=pair.now)
    pair.open()
    assert len(pair.machine) == 1


@pytest.mark.rfc("8490", "6.5")
@pytest.mark.rfc("8490", "5")
@pytest.mark.rfc("8490", "6.5.1")
@pytest.mark.rfc("8490", "7.1")
@pytest.mark.rfc("8765", "6.7")
def test_keepalives_hold_the_session_at_the_servers_pace() -> None:
    pair = watching()
    pair.run_for(3600)
    assert pair.broken == []
    assert pair.machine.has_session(pair.via)


@pytest.mark.rfc("8490", "6.6.3")
def test_a_view_outlives_a_broken_stream_and_is_corrected_on_the_next() -> None:
    pair = Pair()
    pair.change(MAC, {"203.0.113.1"})
    pair.client.subscribe(QUESTION, now=pair.now)
    pair.open()
    pair.close()
    pair.run_for(60)
    assert pair.client.view(QUESTION) == (rdata("A", "203.0.113.1"),)
    pair.change(MAC, set())
    pair.open()
    assert pair.client.view(QUESTION) == (rdata("A", "203.0.113.1"),)  # the server says nothing of nothing
    pair.run_for(1.1)
    assert pair.views[MAC] == ()
    pair.change(MAC, {"203.0.113.9"})
    pair.run_for(1)
    pair.close()
    pair.run_for(121)
    assert pair.views[MAC] == ()  # nobody can be asked any more


def test_what_was_known_by_other_means_stands_until_corrected() -> None:
    pair = Pair()
    pair.change(MAC, {"203.0.113.1"})
    pair.client.subscribe(QUESTION, now=pair.now, view=(rdata("A", "203.0.113.1"),))
    pair.open()
    pair.run_for(2)
    assert pair.views == {}


@pytest.mark.rfc("8490", "6.1")
@pytest.mark.rfc("8490", "9.3")
@pytest.mark.rfc("8765", "6.4.1")
def test_unsubscribing_frees_the_servers_side() -> None:
    pair = watching(*NAMES)
    pair.client.unsubscribe(QUESTION, now=pair.now)
    pair.exchange()
    assert len(pair.machine) == 2
    pair.client.subscribe(QUESTION, now=pair.now)
    pair.exchange()
    assert (len(pair.machine), pair.broken) == (3, [])


@pytest.mark.rfc("8490", "5.1")
@pytest.mark.rfc("8490", "5")
@pytest.mark.rfc("8490", "6.1")
@pytest.mark.parametrize("is_back", [False, True])
def test_before_the_first_answer_nothing_is_unsubscribed(is_back: bool) -> None:
    """It is made good as soon as the session stands, or not at all for what is watched again by then."""
    client = PushClient(PushSettings(), random.Random(1))
    client.subscribe(QUESTION, now=Now(0, UNIX))
    client.channel_opened(is_stream=True, now=Now(0, UNIX))
    opened, asked = (effect.wire for effect in client.take_effects() if isinstance(effect, Send))
    client.unsubscribe(QUESTION, now=Now(0, UNIX))
    if is_back:
        client.subscribe(QUESTION, now=Now(0, UNIX))
    assert client.take_effects() == []
    answer = encode_dso(int.from_bytes(opened[:2], "big"), [keepalive(15_000, 15_000)], is_response=True)
    client.receive(answer, now=Now(0, UNIX))
    told = [effect.wire for effect in client.take_effects() if isinstance(effect, Send)]
    assert told == ([] if is_back else [encode_dso(0, [unsubscribe(int.from_bytes(asked[:2], "big"))])])


@pytest.mark.parametrize(("rcode", "seconds"), [(Rcode.REFUSED, 300), (Rcode.NOTAUTH, 300)])
@pytest.mark.rfc("8765", "6.2.2")
@pytest.mark.rfc("8490", "7.2")
def test_a_refusal_says_how_long_to_stay_away(rcode: Rcode, seconds: float) -> None:
    pair = Pair()
    pair.refused = rcode
    pair.client.subscribe(QUESTION, now=pair.now)
    pair.open()
    assert pair.unusable == [seconds]


@pytest.mark.rfc("8490", "5.1.1")
@pytest.mark.rfc("8490", "6.6.3.3")
def test_a_server_without_dso_is_left_alone_for_an_hour() -> None:
    client = PushClient(PushSettings(), random.Random(1))
    client.channel_opened(is_stream=True, now=Now(0, UNIX))
    (asked,) = [effect.wire for effect in client.take_effects() if isinstance(effect, Send)]
    client.receive(encode_dso(int.from_bytes(asked[:2], "big"), [], is_response=True, rcode=4), now=Now(0, UNIX))
    (found,) = client.take_effects()
    assert isinstance(found, Unusable) and found.seconds == 3600


@pytest.mark.rfc("8490", "7.2.1")
@pytest.mark.rfc("8765", "6.2.2")
@pytest.mark.parametrize("rcode", [1, 2, 3, 9, 11, 15])
@pytest.mark.parametrize("is_response", [True, False])
def test_any_rcode_may_come_with_a_retry_delay(rcode: int, is_response: bool) -> None:
    client = PushClient(PushSettings(), random.Random(1))
    client.channel_opened(is_stream=True, now=Now(0, UNIX))
    (asked,) = [effect.wire for effect in client.take_effects() if isinstance(effect, Send)]
    message_id = int.from_bytes(asked[:2], "big") if is_response else 0
    client.receive(encode_dso(message_id, [retry_delay(9_000)], is_response=is_response, rcode=rcode), now=Now(0, UNIX))
    (found,) = client.take_effects()
    assert isinstance(found, Unusable) and found.seconds == 9


@pytest.mark.rfc("8490", "5.4.2")
def test_an_answer_to_a_keepalive_without_its_times_breaks_the_stream() -> None:
    for tlvs in ([], [(DsoType.PADDING, b"")], [(DsoType.KEEPALIVE, b"short")]):
        client = PushClient(PushSettings(), random.Random(1))
        client.channel_opened(is_stream=True, now=Now(0, UNIX))
        (asked,) = [effect.wire for effect in client.take_effects() if isinstance(effect, Send)]
        client.receive(encode_dso(int.from_bytes(asked[:2], "big"), tlvs, is_response=True), now=Now(0, UNIX))
        assert any(isinstance(effect, Broken) for effect in client.take_effects())


def established() -> PushClient:
    pair = watching()
    return pair.client


@pytest.mark.parametrize(
    "wire",
    [
        encode_dso(7, [keepalive(1, 2)]),
        encode_dso(0, []),
        encode_dso(0, [subscribe(QUESTION)]),
        encode_dso(0, [(DsoType.PUSH, b"")]),
        encode_dso(0, [(DsoType.PUSH, b"\x3f")]),
        encode_dso(0, [(DsoType.KEEPALIVE, b"\0")]),
        encode_push([PushedRecord(MAC, Type.ANY, Class.IN, 60, b"")])[0],
        encode_push([PushedRecord(MAC, Type.ANY, Class.IN, PUSH_REMOVE_ONE, b"")])[0],
        encode_push([PushedRecord(MAC, Type.A, Class.ANY, PUSH_REMOVE_ONE, bytes(4))])[0],
        encode_push([PushedRecord(MAC, Type.A, Class.IN, PUSH_REMOVE_SET, bytes(4))])[0],
        encode_dso(0, [(DsoType.PUSH, (MAC + b"\0\x01\0\x01\0\0\0\x3c\0\x04" + bytes(4)) * 500)]),
        encode_dso(0, [keepalive(15_000, 9_999)]),
    ],
)
@pytest.mark.rfc("8490", "5.4")
@pytest.mark.rfc("8490", "6.5.2")
@pytest.mark.rfc("8490", "7.1")
@pytest.mark.rfc("8765", "6.2")
@pytest.mark.rfc("8765", "6.3.1")
def test_what_only_a_broken_server_says_breaks_the_stream(wire: bytes) -> None:
    client = established()
    client.receive(wire, now=Now(1, UNIX))
    assert any(isinstance(effect, Broken) for effect in client.take_effects())


@pytest.mark.rfc("8490", "6.6.1")
@pytest.mark.rfc("8490", "6.6.3")
@pytest.mark.rfc("8490", "7.2.1")
def test_a_server_that_stops_is_left_alone_for_as_long_as_it_says() -> None:
    client = established()
    client.receive(encode_dso(0, [retry_delay(7_000)]), now=Now(1, UNIX))
    (found,) = client.take_effects()
    assert isinstance(found, Unusable) and found.seconds == 7


@pytest.mark.rfc("8765", "6.3.1")
@pytest.mark.rfc("8765", "6")
def test_records_with_a_ttl_that_means_nothing_and_of_other_names_are_passed_over() -> None:
    client = established()
    records = [
        PushedRecord(MAC, Type.A, Class.IN, 0x80000000, rdata("A", "203.0.113.1")),
        PushedRecord(NAMES[1], Type.A, Class.IN, 60, rdata("A", "203.0.113.1")),
        PushedRecord(MAC, Type.AAAA, Class.IN, 60, bytes(16)),
    ]
    for wire in encode_push(records):
        client.receive(wire, now=Now(1, UNIX))
    assert client.take_effects() == []


@pytest.mark.rfc("8490", "5.1.1")
def test_a_silent_server_is_given_up() -> None:
    client = PushClient(PushSettings(reply_wait=10), random.Random(1))
    client.subscribe(QUESTION, now=Now(0, UNIX))
    client.channel_opened(is_stream=True, now=Now(0, UNIX))
    client.take_effects()
    client.handle_deadline(now=Now(10, UNIX))
    assert any(isinstance(effect, Broken) for effect in client.take_effects())


@pytest.mark.parametrize("seed", range(40))
def test_after_any_history_of_changes_and_broken_streams_the_view_is_the_zone(seed: int) -> None:
    pair = Pair(seed)
    rng = random.Random(seed)
    for name in NAMES:
        pair.client.subscribe(Question(name, Type.A, Class.IN), now=pair.now)
    pair.open()
    for _ in range(60):
        match rng.randrange(6):
            case 0:
                pair.close()
                pair.run_for(rng.uniform(0, 200))
                pair.open()
            case 1:
                pair.run_for(rng.uniform(0, 100))
            case 2:
                question = Question(rng.choice(NAMES), Type.A, Class.IN)
                pair.client.unsubscribe(question, now=pair.now)
                pair.client.subscribe(question, now=pair.now)
            case _:
                addresses = {f"203.0.113.{rng.randrange(4)}" for _ in range(rng.randrange(4))}
                pair.change(rng.choice(NAMES), addresses)
                if rng.random() < 0.5:
                    pair.exchange()
    pair.run_for(2)
    assert pair.broken == []
    for name in NAMES:
        assert pair.client.view(Question(name, Type.A, Class.IN)) == tuple(sorted(pair.content.get(name, {})))
