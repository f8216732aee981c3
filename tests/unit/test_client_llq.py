"""The LLQ client core in virtual time against a scripted server (RFC 8764; streams as in deployed clients)."""

import heapq
import itertools
import random
from ipaddress import IPv4Address

import pytest

from client_stub.llq_client import (
    MAX_SUBSCRIPTIONS,
    Broken,
    LlqClient,
    LlqSettings,
    Now,
    Poll,
    Send,
    State,
    StateChanged,
    ViewChanged,
)
from protocol.constants import AA, QR, Class, Rcode, Type
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LlqError, LlqOpcode, LlqOption, Opt, llq_options
from protocol.message import Question, decode, encode
from protocol.name import fold, from_text
from protocol.tsig import SHA256, Key, decode_tsig, sign, verify

OWNER = from_text("Mac.alice.members.example")
QUESTION = Question(OWNER, Type.A, Class.IN)
X, Y, Z = (IPv4Address(f"203.0.113.{n}").packed for n in (7, 8, 9))
KEY = Key(from_text("alice.key"), SHA256, b"secret")
EPOCH = 1_800_000_000


def response(request, option=None, answers=(), rcode=0, ttl=120):
    opt = Opt(options=(option.encode(),)) if option else None
    records = [(fold(OWNER), Type.A, Class.IN, ttl, rdata) for rdata in answers]
    return encode(request.id, QR | AA | rcode, request.questions, records, opt=opt)


class Server:
    """One LLQ server: `data` is the RRset of QUESTION. `error`, `rcode`, `knows_llq`, `is_silent` are the script."""

    def __init__(self, key=None, is_stream=False):
        self.key = key
        self.is_stream = is_stream
        self.data = {X}
        self.lease = 3600
        self.error = None
        self.error_lease = 0
        self.rcode = 0
        self.knows_llq = True
        self.is_silent = False
        self.ids = itertools.count(0x1111111111111111)
        self.established = {}
        self.acks = []
        self.requests = []
        self.event_macs = {}

    def take(self, wire, now):
        """The reply to one message, or None."""
        message = decode(wire)
        mac = b""
        if self.key is not None:
            tsig = decode_tsig(message.tsig, wire)
            mac = tsig.mac
            if message.header.is_response:
                event_mac = self.event_macs[message.id]
                assert verify(message, tsig, self.key, now=now.unix, request_mac=event_mac).error == 0
            else:
                assert verify(message, tsig, self.key, now=now.unix).error == 0
        (option,) = llq_options(message.opt)
        if message.header.is_response:
            self.acks.append((message.id, option))
            return None
        self.requests.append((now.monotonic, option, message.id))
        if self.is_silent:
            return None
        reply = self.answer(message, option)
        if reply is not None and self.key is not None:
            reply, _ = sign(reply, self.key, now=now.unix, request_mac=mac)
        return reply

    def answer(self, message, option):
        if self.rcode:
            return response(message, None, rcode=self.rcode)
        if not self.knows_llq:
            return response(message, None, self.data)
        if self.error is not None:
            refusal = LlqOption(1, option.opcode, self.error, option.llq_id, self.error_lease)
            return response(message, refusal, self.data if self.error == LlqError.STATIC else ())
        if option.opcode == LlqOpcode.REFRESH:
            if option.llq_id not in self.established:
                return response(message, LlqOption(1, 2, LlqError.NO_SUCH_LLQ, option.llq_id, 0))
            if option.lease == 0:
                del self.established[option.llq_id]
            return response(message, LlqOption(1, 2, 0, option.llq_id, min(option.lease, self.lease)))
        if option.llq_id == 0 and not self.is_stream:
            return response(message, LlqOption(1, 1, 0, next(self.ids), self.lease))
        llq_id = option.llq_id or next(self.ids)
        self.established[llq_id] = message.questions
        return response(message, LlqOption(1, 1, 0, llq_id, self.lease), sorted(self.data))

    def event(self, llq_id, removed=(), added=(), message_id=77, now=None, key=None):
        records = [(OWNER, Type.A, Class.IN, LLQ_EVENT_REMOVE_TTL, rdata) for rdata in removed]
        records += [(OWNER, Type.A, Class.IN, 120, rdata) for rdata in added]
        opt = Opt(options=(LlqOption(1, 3, 0, llq_id, 0).encode(),))
        wire = encode(message_id, QR | AA, (QUESTION,), records, opt=opt)
        key = key or self.key
        if key is not None:
            wire, self.event_macs[message_id] = sign(wire, key, now=now.unix)
        return wire


class Wire:
    """Joins client and server in virtual time, over a network that may lose, delay and copy."""

    def __init__(self, *, key=None, is_stream=False, seed=1, loss=0.0, copies=0.0, delay=0.0, **settings):
        self.rng = random.Random(seed)
        self.client = LlqClient(LlqSettings(**settings), random.Random(seed + 1000), key)
        self.server = Server(key, is_stream)
        self.is_stream = is_stream
        self.loss, self.copies, self.delay = loss, copies, delay
        self.time = 0.0
        self.flying = []
        self.order = itertools.count()
        self.said = []
        self.polls = []

    @property
    def now(self):
        return Now(self.time, EPOCH + int(self.time))

    def open(self):
        self.client.subscribe(QUESTION, now=self.now)
        self.client.channel_opened(is_stream=self.is_stream, now=self.now)
        self.run_until(self.time)
        return self

    def fly(self, wire, to_server):
        if self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.copies else 1):
            heapq.heappush(
                self.flying, (self.time + self.rng.uniform(0, self.delay), next(self.order), to_server, wire)
            )

    def drain(self):
        for effect in self.client.take_effects():
            match effect:
                case Send(wire):
                    self.fly(wire, True)
                case Poll():
                    self.polls.append(self.time)
                case _:
                    self.said.append((self.time, effect))

    def run_until(self, end):
        self.drain()
        while True:
            deadline = self.client.next_deadline()
            due = min(
                (time for time in (deadline, self.flying[0][0] if self.flying else None) if time is not None),
                default=None,
            )
            if due is None or due > end:
                self.time = max(self.time, end)
                return
            self.time = max(self.time, due)
            if self.flying and self.flying[0][0] <= due:
                _, _, to_server, wire = heapq.heappop(self.flying)
                if not to_server:
                    self.client.receive(wire, now=self.now)
                elif (reply := self.server.take(wire, self.now)) is not None:
                    self.fly(reply, False)
            else:
                self.client.handle_deadline(now=self.now)
            self.drain()

    def event(self, **what):
        (llq_id,) = list(self.server.established)[-1:]
        self.fly(self.server.event(llq_id, now=self.now, **what), False)
        self.run_until(self.time + self.delay)

    @property
    def view(self):
        return set(self.client.view(QUESTION))

    @property
    def state(self):
        return self.client.states()[0][1]


@pytest.mark.rfc("8764", "5.2")
@pytest.mark.rfc("8764", "5.2.3")
@pytest.mark.rfc("6281", "5.3")
def test_four_way_handshake_over_udp():
    wire = Wire().open()
    (_, setup, first_id), (_, answer, second_id) = wire.server.requests
    assert setup == LlqOption(1, LlqOpcode.SETUP, 0, 0, 7200)
    assert answer == LlqOption(1, LlqOpcode.SETUP, 0, 0x1111111111111111, 3600), "ID and granted lease are echoed"
    assert first_id != second_id
    assert (wire.state, wire.view) == (State.ESTABLISHED, {X})
    assert [effect.state for _, effect in wire.said if isinstance(effect, StateChanged)] == [
        State.SETUP,
        State.CHALLENGED,
        State.ESTABLISHED,
    ]


@pytest.mark.rfc("7858", "3.4")
def test_stream_needs_no_challenge_and_tells_its_event_port():
    wire = Wire(is_stream=True, event_port=5353).open()
    assert [option for _, option, _ in wire.server.requests] == [LlqOption(1, LlqOpcode.SETUP, 5353, 0, 7200)]
    assert (wire.state, wire.view) == (State.ESTABLISHED, {X})


@pytest.mark.rfc("6281", "7.2")
@pytest.mark.rfc("8945", "5.1")
@pytest.mark.parametrize("is_stream", [False, True])
def test_signed_from_set_up_to_event(is_stream):
    wire = Wire(key=KEY, is_stream=is_stream).open()
    assert (wire.state, wire.view) == (State.ESTABLISHED, {X})
    wire.event(removed=(X,), added=(Y,))
    assert wire.view == {Y}
    assert len(wire.server.acks) == 1
    stranger = Key(KEY.name, SHA256, b"guess")
    wire.event(removed=(Y,), message_id=78, key=stranger)
    assert (wire.view, len(wire.server.acks)) == ({Y}, 1)
    wire.run_until(4000)
    assert wire.server.requests[-1][1].opcode == LlqOpcode.REFRESH


@pytest.mark.rfc("8945", "5.4")
def test_unsigned_event_for_a_signed_subscription_is_ignored_on_udp():
    wire = Wire(key=KEY).open()
    (llq_id,) = wire.server.established
    wire.client.receive(Server().event(llq_id, removed=(X,)), now=wire.now)
    assert wire.client.take_effects() == []
    assert wire.view == {X}


@pytest.mark.rfc("8764", "6.3")
@pytest.mark.rfc("6281", "5.3")
def test_event_edits_and_is_acknowledged():
    wire = Wire().open()
    wire.event(removed=(X,), added=(Y, Z), message_id=0xBEEF)
    assert wire.view == {Y, Z}
    ((message_id, option),) = wire.server.acks
    assert (message_id, option) == (0xBEEF, LlqOption(1, LlqOpcode.EVENT, 0, 0x1111111111111111, 0))
    assert wire.said[-1][1] == ViewChanged(QUESTION, (Y, Z))


def test_late_copy_of_an_old_event_is_acknowledged_but_changes_nothing():
    wire = Wire().open()
    wire.event(added=(Y,), message_id=1)
    wire.event(removed=(Y,), message_id=2)
    wire.event(added=(Y,), message_id=1)
    assert wire.view == {X}
    assert [message_id for message_id, _ in wire.server.acks] == [1, 2, 1]
    wire.run_until(31)
    wire.event(added=(Y,), message_id=1)
    assert wire.view == {X, Y}, "the same ID much later is a new event"


@pytest.mark.rfc("8764", "6")
def test_event_with_an_unknown_id_is_neither_used_nor_acknowledged():
    wire = Wire().open()
    wire.client.receive(wire.server.event(0x2222, removed=(X,)), now=wire.now)
    assert wire.client.take_effects() == []
    assert wire.view == {X}


def test_records_of_other_names_and_types_are_not_ours():
    wire = Wire().open()
    (llq_id,) = wire.server.established
    opt = Opt(options=(LlqOption(1, 3, 0, llq_id, 0).encode(),))
    other = from_text("other.alice.members.example")
    records = [
        (other, Type.A, Class.IN, 1, Y),
        (OWNER, Type.TXT, Class.IN, 1, b"\1x"),
        (OWNER, Type.A, Class.ANY, 1, Y),
    ]
    wire.client.receive(encode(5, QR, (QUESTION,), records, opt=opt), now=wire.now)
    assert wire.view == {X}


def test_malformed_rdata_is_dropped_whole():
    wire = Wire().open()
    (llq_id,) = wire.server.established
    opt = Opt(options=(LlqOption(1, 3, 0, llq_id, 0).encode(),))
    records = [(OWNER, Type.A, Class.IN, 1, b"\1\2\3")]
    wire.client.receive(encode(5, QR, (QUESTION,), records, opt=opt), now=wire.now)
    assert wire.client.take_effects() == []
    assert wire.view == {X}


@pytest.mark.rfc("8764", "7.1")
@pytest.mark.rfc("8764", "5.3")
@pytest.mark.rfc("6281", "5.3")
def test_refresh_at_80_90_95_percent_then_new_set_up():
    wire = Wire().open()
    wire.server.is_silent = True
    wire.run_until(3599)
    refreshes = [(at, option.opcode, message_id) for at, option, message_id in wire.server.requests[2:]]
    assert [at for at, _, _ in refreshes] == [2880, 3240, 3420]
    assert {opcode for _, opcode, _ in refreshes} == {LlqOpcode.REFRESH}
    assert len({message_id for _, _, message_id in refreshes}) == 1
    assert wire.view == {X}
    wire.run_until(3600)
    assert wire.view == set(), "a lapsed lease ends the view"
    wire.server.is_silent = False
    wire.server.data = {Y}
    wire.run_until(3610)
    assert (wire.state, wire.view) == (State.ESTABLISHED, {Y})


@pytest.mark.rfc("8764", "5.3")
@pytest.mark.rfc("8764", "7.1")
def test_refresh_is_answered_without_answers_and_keeps_the_view():
    wire = Wire().open()
    wire.run_until(3 * 3600)
    assert (wire.state, wire.view) == (State.ESTABLISHED, {X})
    assert [at for at, option, _ in wire.server.requests if option.opcode == LlqOpcode.REFRESH] == [2880, 5760, 8640]
    assert wire.client.states()[0][2] == 8640 + 3600


def test_lost_subscription_is_set_up_anew_and_the_answers_replace():
    wire = Wire().open()
    wire.server.established.clear()
    wire.server.data = {Y, Z}
    wire.run_until(2880)
    assert (wire.state, wire.view) == (State.ESTABLISHED, {Y, Z})
    assert not wire.polls


@pytest.mark.rfc("8764", "5.1")
@pytest.mark.rfc("8764", "7.1")
def test_set_up_retries_then_polls_and_tries_again_in_an_hour():
    wire = Wire()
    wire.server.is_silent = True
    wire.open()
    wire.run_until(13)
    assert [at for at, _, _ in wire.server.requests] == [0, 2, 6]
    wire.run_until(3613)
    assert wire.state is State.POLLING
    assert wire.polls == [14, 914, 1814, 2714]
    assert len(wire.server.requests) == 3
    wire.server.is_silent = False
    wire.run_until(3620)
    assert (wire.state, wire.view) == (State.ESTABLISHED, {X})
    wire.run_until(7200)
    assert wire.polls == [14, 914, 1814, 2714], "no polls beside a subscription"


@pytest.mark.rfc("8764", "5.3")
def test_server_without_llq_is_polled_and_a_poll_gives_the_view():
    wire = Wire()
    wire.server.knows_llq = False
    wire.open()
    assert (wire.state, wire.polls) == (State.POLLING, [0])
    wire.client.complete_poll(QUESTION, [Y], now=wire.now)
    assert wire.view == {Y}
    wire.client.complete_poll(QUESTION, None, now=wire.now)
    assert wire.view == {Y}


@pytest.mark.parametrize("rcode", [Rcode.REFUSED, Rcode.FORMERR, Rcode.NOTIMP, Rcode.SERVFAIL])
def test_refusal_is_polled(rcode):
    wire = Wire()
    wire.server.rcode = rcode
    wire.open()
    assert (wire.state, wire.polls) == (State.POLLING, [0])


@pytest.mark.rfc("8765", "6.8")
@pytest.mark.rfc("8764", "4")
@pytest.mark.rfc("8764", "5.2.3")
def test_no_service_announced_is_polled():
    wire = Wire()
    wire.client.subscribe(QUESTION, now=wire.now)
    wire.client.no_service(now=wire.now, reason="none announced")
    wire.run_until(1000)
    assert (wire.state, wire.polls, wire.server.requests) == (State.POLLING, [0, 900], [])
    wire.client.subscribe(Question(OWNER, Type.TXT, Class.IN), now=wire.now)
    wire.run_until(1001)
    assert wire.polls == [0, 900, 1000], "a later one is polled at once"


@pytest.mark.rfc("8764", "5.2.3")
def test_full_server_is_asked_again_after_its_lease():
    wire = Wire()
    wire.server.error, wire.server.error_lease = LlqError.SERV_FULL, 60
    wire.open()
    assert wire.state is State.POLLING
    wire.server.error = None
    wire.run_until(59)
    assert len(wire.server.requests) == 1
    wire.run_until(60)
    assert wire.state is State.ESTABLISHED


@pytest.mark.rfc("8764", "5.2.3")
@pytest.mark.rfc("8764", "5.2.2")
def test_static_data_is_taken_and_not_asked_for_again():
    wire = Wire()
    wire.server.error = LlqError.STATIC
    wire.open()
    assert (wire.state, wire.view, wire.polls) == (State.STATIC, {X}, [])
    wire.run_until(899)
    assert len(wire.server.requests) == 1


@pytest.mark.rfc("8764", "A")
def test_late_challenge_does_not_wipe_the_view():
    wire = Wire().open()
    setup = Question(*QUESTION)
    _, _, setup_id = wire.server.requests[0]
    opt = Opt(options=(LlqOption(1, 1, 0, 0x1111111111111111, 3600).encode(),))
    wire.client.receive(encode(setup_id, QR, (setup,), opt=opt), now=wire.now)
    _, _, answer_id = wire.server.requests[1]
    wire.client.receive(encode(answer_id, QR, (setup,), opt=opt), now=wire.now)
    assert wire.view == {X}


def test_unsubscribing_cancels_once():
    wire = Wire().open()
    wire.client.unsubscribe(QUESTION, now=wire.now)
    wire.run_until(10)
    assert wire.server.requests[-1][1] == LlqOption(1, LlqOpcode.REFRESH, 0, 0x1111111111111111, 0)
    assert wire.server.established == {}
    assert (wire.client.states(), wire.client.next_deadline(), wire.view) == ([], None, set())


@pytest.mark.rfc("8764", "5.2.1")
def test_watching_twice_is_watching_once_and_the_table_is_bounded():
    client = LlqClient(LlqSettings(), random.Random(1))
    now = Now(0, EPOCH)
    assert client.subscribe(QUESTION, now=now)
    assert client.subscribe(Question(fold(OWNER), Type.A, Class.IN), now=now)
    assert len(client.states()) == 1
    results = [client.subscribe(Question(OWNER, 1000 + n, Class.IN), now=now) for n in range(MAX_SUBSCRIPTIONS)]
    assert results == [True] * (MAX_SUBSCRIPTIONS - 1) + [False]


@pytest.mark.rfc("7766", "6.2.4")
@pytest.mark.rfc("7858", "3.4")
def test_stream_that_breaks_keeps_the_view_until_the_lapse_and_sets_up_on_the_next():
    wire = Wire(is_stream=True).open()
    wire.client.channel_closed(now=wire.now)
    wire.server.data = {Y}
    wire.run_until(100)
    assert (wire.state, wire.view) == (State.WAITING, {X})
    wire.client.channel_opened(is_stream=True, now=wire.now)
    wire.run_until(101)
    assert (wire.state, wire.view) == (State.ESTABLISHED, {Y})
    wire.client.channel_closed(now=wire.now)
    wire.run_until(100 + 3601)
    assert (wire.state, wire.view) == (State.WAITING, set())


def test_stream_without_an_answer_is_called_broken():
    wire = Wire(is_stream=True)
    wire.server.is_silent = True
    wire.open()
    wire.run_until(11)
    assert [(at, type(effect)) for at, effect in wire.said][-1] == (10, Broken)


def test_key_refused_on_a_stream_ends_in_polling():
    wire = Wire(key=KEY, is_stream=True)
    wire.client.subscribe(QUESTION, now=wire.now)
    wire.client.channel_opened(is_stream=True, now=wire.now)
    sent = [effect for effect in wire.client.take_effects() if isinstance(effect, Send)]
    refusal = response(decode(sent[0].wire), rcode=Rcode.NOTAUTH)
    wire.client.receive(refusal, now=wire.now)
    assert wire.state is State.POLLING


@pytest.mark.parametrize("octets", [b"", b"\0" * 11, b"\0" * 12, b"\xff" * 40, encode(1, QR, (QUESTION,))])
def test_garbage_changes_nothing(octets):
    wire = Wire().open()
    wire.client.receive(octets, now=wire.now)
    assert wire.client.take_effects() == []
    assert wire.view == {X}


@pytest.mark.parametrize("seed", range(60))
def test_view_converges_over_a_bad_network(seed):
    """Loss, copies and reordering on every packet; the server repeats events as RFC 8764 §5.3 has it."""
    wire = Wire(key=KEY if seed % 2 else None, seed=seed, loss=0.15, copies=0.3, delay=1.5, retry_setup=30.0)
    wire.open()
    wire.run_until(60)
    for step in range(12):
        if wire.state is not State.ESTABLISHED or not wire.server.established:
            wire.run_until(wire.time + 60)
            continue
        (llq_id,) = list(wire.server.established)[-1:]
        before = set(wire.server.data)
        wire.server.data = set(wire.rng.sample([X, Y, Z], wire.rng.randint(0, 3)))
        event = wire.server.event(
            llq_id, before - wire.server.data, wire.server.data - before, message_id=1000 + step, now=wire.now
        )
        acked = len(wire.server.acks)
        for wait in (2, 4, 8):
            wire.fly(event, False)
            wire.run_until(wire.time + wait)
            if any(message_id == 1000 + step for message_id, _ in wire.server.acks[acked:]):
                assert wire.view == wire.server.data, f"seed {seed} step {step}"
                break
        else:
            del wire.server.established[llq_id]
    wire.loss = 0.0
    wire.run_until(wire.time + 2 * 3600)
    assert (wire.state, wire.view) == (State.ESTABLISHED, wire.server.data), f"seed {seed}"


def test_who_takes_another_way_gives_back_what_the_server_holds():
    wire = Wire().open()
    assert len(wire.server.established) == 1
    wire.client.leave(now=wire.now)
    wire.client.channel_closed(now=wire.now)
    wire.run_until(30)
    assert wire.server.established == {}
    assert wire.view == {X}
