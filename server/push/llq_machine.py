"""The Long-Lived Query server core (RFC 8764, with RFC 6281 §5.3 bounds). Pure: no I/O, clocks, entropy, logging.

Requests, leases, streams and restarts are here, events in `event_queue`; these two change a subscription's state, by
the table of `llq_states`. Time and entropy come as arguments; what to send is fetched with `take_effects`. Invariant:
after every quiet period each subscription is SETTLED on what `lookup` says, or GONE, its end counted.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

from protocol.constants import Class, EdnsOption, Type, is_meta_type
from protocol.edns import LLQ_VERSION, LlqError, LlqOpcode, LlqOption, Opt, llq_options
from protocol.errors import DecodeError
from protocol.message import Message, Question
from protocol.name import fold
from server.peer import Peer
from server.push.challenge import Challenger, is_older
from server.push.event_queue import EventQueue, Lookup
from server.push.events import UNKNOWN_STAMP, Item, Items
from server.push.ledger import Bounds, Ledger, topic_bounds
from server.push.limits import MAX_QUESTIONS, Counters, LlqLimits, TokenBucket
from server.push.llq_states import Input, step
from server.push.sending import SendEvents
from server.push.subscriptions import AT_RISK_SECONDS, Register, State, Subscription, Topic, View, network_of
from server.zone.model import RR, Change

_SLICE: Final = 256  # events made in one call, so that queries get their turn in between

Admit = Callable[[Question], LlqError]


class Restored(NamedTuple):
    """A subscription as a former process left it; `expires_at` is on this one's monotonic clock."""

    question: Question  # its name in the client's case
    llq_id: int
    peer: Peer
    key_name: bytes | None
    expires_at: float
    is_stream_born: bool
    sure: Items
    maybe: Items


class _Part(NamedTuple):
    """The records from `start` on, `length` of them, answer this subscription's question."""

    subscription: Subscription
    is_new: bool
    start: int
    length: int


@dataclass(slots=True)
class LlqReply:
    """What to answer: RCODE NOERROR, AA, the questions echoed, these options first in the OPT, these records.

    The caller writes the leading answers that fit, then calls `LlqMachine.answered` with how many: the rest follows as
    events. `options` are in question order.
    """

    options: list[LlqOption] = field(default_factory=list)
    answers: list[RR] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)


@dataclass(slots=True)
class _Request:
    peer: Peer
    key_name: bytes | None
    admit: Admit
    now: float
    unix: int
    reply: LlqReply = field(default_factory=LlqReply)

    @property
    def is_udp(self) -> bool:
        return self.peer.transport == "udp"


class LlqMachine:
    """All subscriptions of a server.

    `lookup` gives the records at exactly a question's owner name, of its type or CNAME, as queries see them now.
    `entropy` gives 64 random bits. `event_listener` names the UDP listener from which a stream client's event port can
    be reached, None when there is none. `ledger` notes what a store must be told. `now` is monotonic seconds, `unix`
    seconds since 1970: of requests on a clock that no step moves, of events the wall clock, for their signatures. After
    any call, what to send waits in `take_effects` and the next moment to call `handle_deadline` is `next_deadline`.
    """

    def __init__(
        self,
        limits: LlqLimits,
        secret: bytes,
        *,
        lookup: Lookup,
        entropy: Callable[[], int],
        event_listener: Callable[[Peer], int | None] = lambda peer: None,
        ledger: Ledger | None = None,
    ) -> None:
        self.counters = Counters()
        self._ledger = Ledger(is_kept=False) if ledger is None else ledger
        self._limits = limits
        self._challenger = Challenger(secret)
        self._lookup = lookup
        self._entropy = entropy
        self._event_listener = event_listener
        self._register = Register()
        self._bucket = TokenBucket(limits.setups_per_second, limits.setup_burst)
        self._leases: list[tuple[float, int, Subscription]] = []
        self._ticket = count()
        self._events = EventQueue(limits, self.counters, self._register, lookup=lookup, end=self._end)

    def __len__(self) -> int:
        return len(self._register)

    def has_stream(self, via: int) -> bool:
        """Whether a subscription lives on this connection."""
        return self._register.has_stream(via)

    def next_deadline(self) -> float | None:
        """The moment something is due, maybe past; None when nothing ever is."""
        moments = self._events.moments()
        if self._leases:
            moments.append(self._leases[0][0])
        return min(moments, default=None)

    def take_effects(self) -> list[SendEvents]:
        return self._events.take_effects()

    # Requests

    def query(
        self,
        questions: Sequence[Question],
        opt: Opt,
        peer: Peer,
        key_name: bytes | None,
        *,
        admit: Admit,
        now: float,
        unix: int,
    ) -> LlqReply:
        """Answer a set-up, challenge response, refresh or cancel, each question for itself.

        `admit` is the server's policy for a new subscription to a question: NO_ERROR, or the error to answer with.
        `key_name` is the folded name of the key whose signature held. Nothing the peer sends raises.
        """
        raw = opt.all(EdnsOption.LLQ)
        request = _Request(peer, key_name, admit, now, unix)
        options = request.reply.options
        if len(raw) != len(questions) or not 0 < len(raw) <= MAX_QUESTIONS:
            told = (raw or [b""])[: max(1, min(len(questions), MAX_QUESTIONS))]  # never more than the request had
            options += [_error(LlqError.FORMAT_ERR, _read(data)) for data in told]
        else:
            seen: set[tuple[bytes, int, int]] = set()
            for question, data in zip(questions, raw, strict=True):
                what = (fold(question.name), question.rtype, question.rclass)
                option = _read(data)
                is_repeated = what in seen and option is not None and option.opcode == LlqOpcode.SETUP
                seen.add(what)
                options.append(
                    _error(LlqError.FORMAT_ERR, option) if is_repeated else self._one(question, option, request)
                )
        self.counters.refused += sum(1 for option in options if option.error)
        return request.reply

    def answered(self, reply: LlqReply, written: int, *, now: float) -> None:
        """Take note that the reply carried the first `written` of its answers; what was left out follows at once."""
        for part in reply.parts:
            subscription = part.subscription
            if subscription.state is State.GONE:
                continue
            got = frozenset(
                Item(rr.rtype, rr.rdata) for rr in reply.answers[part.start : min(part.start + part.length, written)]
            )
            items = subscription.topic.items
            got = items if got == items else got
            if part.is_new:
                subscription.sure = subscription.maybe = got
            else:
                self._widen(subscription, got)
            if not subscription.is_current:
                self._events.make_due(subscription, now)

    def _widen(self, subscription: Subscription, got: frozenset[Item]) -> None:
        """The client may take the repeated answers for the truth, or ignore them, before or after other events."""
        items = subscription.topic.items
        sure, maybe = subscription.sure & got, subscription.maybe | got
        subscription.sure = items if sure == items else sure
        subscription.maybe = items if maybe == items else maybe
        self._ledger.touched(subscription.topic)
        event = subscription.outstanding
        if event is not None:
            subscription.outstanding = event.known_up_to(got, got)

    def _one(self, question: Question, option: LlqOption | None, request: _Request) -> LlqOption:
        if option is None:
            return _error(LlqError.FORMAT_ERR, None)
        if option.version != LLQ_VERSION:
            return _error(LlqError.BAD_VERS, option)
        if option.opcode == LlqOpcode.REFRESH:
            return self._refresh(question, option, request)
        if option.opcode != LlqOpcode.SETUP or (request.is_udp and option.error):
            return _error(LlqError.FORMAT_ERR, option)
        if is_meta_type(question.rtype) or question.rclass in (0, Class.NONE, Class.ANY):
            return _error(LlqError.FORMAT_ERR, option)
        return self._set_up(question, option, request)

    def _set_up(self, question: Question, option: LlqOption, request: _Request) -> LlqOption:
        verdict = LlqError.UNKNOWN_ERR if question.rclass != Class.IN else request.admit(question)
        if verdict == LlqError.STATIC:
            request.reply.answers += self._lookup(question)
        if verdict != LlqError.NO_ERROR:
            return _error(verdict, option)
        held = self._live(self._register.of(request.peer, question, request.key_name), request.now)
        if option.llq_id:
            if held is not None and held.llq_id == option.llq_id:
                return self._answer_again(question, held, request)
            return self._meet(question, option, held, request)
        if request.is_udp:
            return self._challenge(question, option, held, request)
        wait = self._full(question, held, request)
        if wait:
            return _error(LlqError.SERV_FULL, option, wait)
        return self._establish(
            question, self._fresh_id(question), self._clamp(option.lease), held, request, option.error
        )

    def _challenge(
        self, question: Question, option: LlqOption, held: Subscription | None, request: _Request
    ) -> LlqOption:
        wait = self._full(question, held, request)
        if wait:
            return _error(LlqError.SERV_FULL, option, wait)
        lease = self._clamp(option.lease)
        self.counters.challenges += 1
        met = None if held is None or held.is_stream_born else held.llq_id
        llq_id = self._challenger.issue(request.peer, question, lease, request.key_name, unix=request.unix, held=met)
        return LlqOption(LLQ_VERSION, LlqOpcode.SETUP, LlqError.NO_ERROR, llq_id, lease)

    def _meet(self, question: Question, option: LlqOption, held: Subscription | None, request: _Request) -> LlqOption:
        """A challenge response. One older than what the client holds is a straggler and must not replace it."""
        limits = self._limits
        is_good = (
            request.is_udp
            and limits.minimum_lease_seconds <= option.lease <= limits.maximum_lease_seconds
            and self._challenger.is_met(
                option.llq_id, request.peer, question, option.lease, request.key_name, unix=request.unix
            )
        )
        is_straggler = (
            held is not None and not held.is_stream_born and is_older(option.llq_id, held.llq_id, unix=request.unix)
        )
        if not is_good or is_straggler:
            return _error(LlqError.UNKNOWN_ERR, option)
        wait = self._full(question, held, request)
        if not wait and self._register.find(option.llq_id, question) is not None:
            wait = 1  # two clients drew the same ID for one question; the next step draws anew
        if wait:
            return _error(LlqError.SERV_FULL, option, wait)
        return self._establish(question, option.llq_id, option.lease, held, request, 0)

    def _establish(
        self,
        question: Question,
        llq_id: int,
        lease: int,
        held: Subscription | None,
        request: _Request,
        event_port: int,
    ) -> LlqOption:
        if held is not None:
            self._end(held, Input.REPLACED)
        self._bucket.take()
        topic = self._register.topic_for(question)
        peer, now = request.peer, request.now
        subscription = Subscription(
            llq_id, topic, topic.spelling(question.name), peer, network_of(peer.address), request.key_name, now + lease
        )
        subscription.event_port = event_port
        subscription.is_stream_born = not request.is_udp
        step(subscription, Input.CHALLENGE_MET if request.is_udp else Input.STREAM_SETUP)
        self._register.add(subscription)
        self._watch_lease(subscription)
        self._ledger.changed(subscription)
        self._ledger.touched(topic)
        self.counters.established += 1
        self._add_answers(question, subscription, request, is_new=True)
        return LlqOption(LLQ_VERSION, LlqOpcode.SETUP, LlqError.NO_ERROR, llq_id, lease)

    def _answer_again(self, question: Question, held: Subscription, request: _Request) -> LlqOption:
        step(held, Input.ASKED_AGAIN)
        self.counters.answered_again += 1
        self._add_answers(question, held, request, is_new=False)
        left = math.ceil(held.expires_at - request.now)
        return LlqOption(LLQ_VERSION, LlqOpcode.SETUP, LlqError.NO_ERROR, held.llq_id, left)

    def _add_answers(self, question: Question, subscription: Subscription, request: _Request, *, is_new: bool) -> None:
        """Current records, each owner written as the question has it so that it compresses."""
        topic, answers = subscription.topic, request.reply.answers
        records = topic.own(self._lookup(topic.question))
        topic.renew(records)
        request.reply.parts.append(_Part(subscription, is_new, len(answers), len(records)))
        answers.extend(rr._replace(owner=question.name) for rr in records)

    def _refresh(self, question: Question, option: LlqOption, request: _Request) -> LlqOption:
        """Renew or, with lease 0, end. The question, and the key or else the address, must be the subscription's."""
        held = self._live(self._register.find(option.llq_id, question), request.now)
        if held is None or held.key_name != request.key_name:
            return _error(LlqError.NO_SUCH_LLQ, option)
        if held.key_name is None and held.peer.address != request.peer.address:
            return _error(LlqError.NO_SUCH_LLQ, option)
        if option.lease == 0:
            self._end(held, Input.CANCELLED)
            return option._replace(error=LlqError.NO_ERROR, lease=0)
        if request.admit(question) != LlqError.NO_ERROR:
            self._end(held, Input.REVOKED)
            return _error(LlqError.NO_SUCH_LLQ, option)
        lease = self._clamp(option.lease)
        step(held, Input.REFRESHED)
        held.expires_at = request.now + lease
        self._watch_lease(held)
        self.counters.refreshed += 1
        if held.is_stream_born and not request.is_udp:
            self._come_back(held, request, option.error)
        self._ledger.changed(held)
        return option._replace(error=LlqError.NO_ERROR, lease=lease)

    def _come_back(self, held: Subscription, request: _Request, event_port: int) -> None:
        """A client whose stream had closed refreshes on another: events go there while it is open."""
        held.event_port = event_port or held.event_port
        if held.is_on_stream or self._register.of(request.peer, held.topic.question, held.key_name) is not None:
            return
        event = held.outstanding
        held.outstanding = None
        step(held, Input.MOVED)
        self._register.move(held, request.peer)
        if event is not None:
            self._events.send_on_stream(held, event, request.now)

    def _clamp(self, lease: int) -> int:
        return max(self._limits.minimum_lease_seconds, min(lease, self._limits.maximum_lease_seconds))

    def _fresh_id(self, question: Question) -> int:
        while True:
            llq_id = self._entropy() & 0xFFFFFFFFFFFFFFFF
            if llq_id and self._register.find(llq_id, question) is None:
                return llq_id

    def _full(self, question: Question, held: Subscription | None, request: _Request) -> int:
        """Seconds to wait before a set-up can be taken; 0 when it can. One that replaces another needs no room."""
        if held is None:
            limits, register = self._limits, self._register
            topic = register.topic(fold(question.name), question.rtype)
            if len(register) >= limits.maximum_subscriptions:
                self.counters.limited_total += 1
                return limits.retry_seconds
            if register.count_of_network(network_of(request.peer.address)) >= limits.maximum_per_address:
                self.counters.limited_per_address += 1
                return limits.retry_seconds
            if topic is not None and len(topic.subscriptions) >= limits.maximum_per_question:
                self.counters.limited_per_question += 1
                return limits.retry_seconds
        wait = self._bucket.wait(request.now)
        if wait:
            self.counters.limited_rate += 1
        return wait

    def _live(self, subscription: Subscription | None, now: float) -> Subscription | None:
        """None for one whose lease ran out a moment ago."""
        if subscription is not None and subscription.expires_at <= now:
            self._end(subscription, Input.LAPSED)
            return None
        return subscription

    # Acknowledgements, changes, streams

    def ack(self, message: Message, peer: Peer, *, now: float) -> bool:
        """Take a response for the acknowledgement of an event; False when it matches none.

        It must come from where the event went, with its message ID and LLQ-ID; no question is required. For events on
        a stream none is needed; some clients send one over UDP, to the stream's port: known by LLQ-ID and question.
        """
        try:
            options = llq_options(message.opt)
        except DecodeError:
            options = []
        matched = False
        for option in options:
            if option.opcode == LlqOpcode.EVENT:
                waiting = self._register.awaiting(message.id, option.llq_id, peer)
                if waiting is not None:
                    self._events.acked(waiting, now)
                    matched = True
                else:
                    self._overtaken(message.questions, option.llq_id, peer, now)
                    matched |= self._confirms_stream(message.questions, option.llq_id, peer)
        if not matched:
            self.counters.stray_acks += 1
        return matched

    def _overtaken(self, questions: Sequence[Question], llq_id: int, peer: Peer, now: float) -> None:
        """An ack of an event that the process before this one sent: its client may have applied it after ours."""
        held = self._register.find(llq_id, questions[0]) if len(questions) == 1 else None
        if held is None or held.inherited is None or held.peer[:3] != peer[:3]:
            return
        before = held.inherited
        if now > before.until:
            held.inherited = None
            return
        held.sure, held.maybe = held.sure & before.sure, held.maybe | before.maybe
        if held.outstanding is not None:
            held.outstanding = held.outstanding.known_up_to(before.sure, before.maybe)
        self._ledger.touched(held.topic)
        self._events.review(held, now)

    def _confirms_stream(self, questions: Sequence[Question], llq_id: int, peer: Peer) -> bool:
        if len(questions) != 1:
            return False
        held = self._register.find(llq_id, questions[0])
        return held is not None and held.is_stream_born and held.peer.address == peer.address

    def publish(self, change: Change, *, now: float) -> bool:
        """Note a change that queries already see: open or prolong the window of every question it touches.

        Whether there was one.
        """
        if not len(self._register):
            return False
        touched: dict[Topic, None] = {}
        last: bytes | None = None
        types: dict[int, Topic] = {}
        for records in (change.removed, change.added):
            for owner, rtype, _, _ in records:
                if owner is not last:
                    last = owner
                    types = self._register.topics_at(fold(owner))
                if not types:
                    continue
                if rtype == Type.CNAME:
                    touched.update(dict.fromkeys(types.values()))
                elif rtype in types:
                    touched[types[rtype]] = None
        for topic in touched:
            self._ledger.touched(topic)
            self._events.touch(topic, now)
        return bool(touched)

    def stream_closed(self, via: int, *, now: float) -> None:
        """A connection is gone: its subscriptions go on over UDP where the client told a port, and end otherwise."""
        self._events.forget_stream(via)
        for subscription in self._register.on_stream(via):
            listener = self._event_listener(subscription.peer) if subscription.event_port else None
            if listener is None:
                self._end(subscription, Input.CLOSED)
                continue
            peer = Peer("udp", subscription.peer.address, subscription.event_port, listener)
            older = self._register.of(peer, subscription.topic.question, subscription.key_name)
            if older is not None:
                self._end(older, Input.REPLACED)
            step(subscription, Input.MOVED)
            self._register.move(subscription, peer)
            self._ledger.changed(subscription)
            for view in subscription.recent_views:
                if now - view.until <= AT_RISK_SECONDS:
                    subscription.sure &= view.sure
                    subscription.maybe |= view.maybe
            subscription.recent_views = ()
            self._events.moved(subscription, now)

    def stream_paused(self, via: int) -> None:
        """The connection's buffer is full: later changes merge until `stream_resumed`."""
        self._events.pause(via)

    def stream_resumed(self, via: int, *, now: float) -> None:
        self._events.resume(via, now)

    def revoke_key(self, key_name: bytes) -> None:
        """End every subscription signed with this key."""
        self.end_where(lambda question, name: name == key_name)

    def end_where(self, holds_no_more: Callable[[Question, bytes | None], bool]) -> None:
        """End every subscription of whose question and key name this is true."""
        for subscription in self._register:
            if holds_no_more(subscription.topic.question, subscription.key_name):
                self._end(subscription, Input.REVOKED)

    # Over a restart

    def topic_at(self, owner: bytes, rtype: int) -> Topic | None:
        return self._register.topic(owner, rtype)

    def bounds(self, topic: Topic, *, now: float) -> Bounds:
        """What the watchers of a topic that outlive this process hold. Later events bring only later changes."""
        self._events.renew(topic)
        return topic_bounds(topic, now)

    def restore(self, saved: Restored, *, now: float) -> bool:
        """Take up a subscription of a former process; False when its place is taken.

        Limits do not count: it was let in once. What it has to be told follows at once.
        """
        question, register = saved.question, self._register
        topic = register.topic_for(question)
        if register.find(saved.llq_id, question) or register.of(saved.peer, question, saved.key_name):
            return False
        subscription = Subscription(
            saved.llq_id,
            topic,
            topic.spelling(question.name),
            saved.peer,
            network_of(saved.peer.address),
            saved.key_name,
            saved.expires_at,
            event_port=saved.peer.port if saved.is_stream_born else 0,
            is_stream_born=saved.is_stream_born,
            stamp=UNKNOWN_STAMP,
            is_saved=True,
        )
        self._events.renew(topic)
        topic.is_stored = True
        items = topic.items
        subscription.sure = items if saved.sure == items else saved.sure
        subscription.maybe = items if saved.maybe == items else saved.maybe
        if not subscription.is_current:
            subscription.inherited = View(now + AT_RISK_SECONDS, subscription.sure, subscription.maybe)
        step(subscription, Input.RESTORED)
        register.add(subscription)
        self._watch_lease(subscription)
        self._ledger.touched(topic)
        self.counters.restored += 1
        if not subscription.is_current:
            self._events.make_due(subscription, now)
        return True

    # Time

    def handle_deadline(self, *, now: float, unix: int, most: int = _SLICE) -> None:
        """Do what is due, at most `most` things; `next_deadline` stays in the past while more is."""
        while most > 0 and self._leases and self._leases[0][0] <= now:
            self._lease_due(heapq.heappop(self._leases)[2], now)
            most -= 1
        self._events.handle(now, unix, most)

    def _schedule(self, at: float, subscription: Subscription) -> None:
        """Entries that came to nothing stay until their time, but never more of them than live ones and some."""
        heapq.heappush(self._leases, (at, next(self._ticket), subscription))
        if len(self._leases) > 1024 + 4 * len(self._register):
            self._leases = [entry for entry in self._leases if _is_awaited(entry)]
            heapq.heapify(self._leases)

    def _watch_lease(self, subscription: Subscription) -> None:
        """A lease that grew is looked at again when its earlier end comes."""
        if not subscription.alarm_at or subscription.expires_at < subscription.alarm_at:
            subscription.alarm_at = subscription.expires_at
            self._schedule(subscription.alarm_at, subscription)

    def _lease_due(self, subscription: Subscription, now: float) -> None:
        if subscription.state is State.GONE or subscription.alarm_at > now:
            return
        if subscription.expires_at <= now:
            self._end(subscription, Input.LAPSED)
            return
        subscription.alarm_at = subscription.expires_at
        self._schedule(subscription.alarm_at, subscription)

    def _end(self, subscription: Subscription, reason: Input) -> None:
        step(subscription, reason)
        self._register.remove(subscription)
        self._ledger.ended(subscription)
        name = reason.name.lower()
        setattr(self.counters, name, getattr(self.counters, name) + 1)


def _is_awaited(entry: tuple[float, int, Subscription]) -> bool:
    at, _, subscription = entry
    return subscription.state is not State.GONE and subscription.alarm_at == at


def _read(data: bytes) -> LlqOption | None:
    """One option; None when it has not 18 octets."""
    try:
        return llq_options(Opt(options=((EdnsOption.LLQ, data),)))[0]
    except DecodeError:
        return None


def _error(error: LlqError, option: LlqOption | None, retry: int = 0) -> LlqOption:
    """The refusal of one option: ID 0 for a set-up, the request's own for a refresh; LEASE 0 but for SERV-FULL."""
    if option is not None and option.opcode == LlqOpcode.REFRESH:
        return LlqOption(LLQ_VERSION, LlqOpcode.REFRESH, error, option.llq_id, 0)
    return LlqOption(LLQ_VERSION, LlqOpcode.SETUP, error, 0, retry)
