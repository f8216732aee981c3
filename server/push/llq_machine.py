"""The Long-Lived Query server core (RFC 8764, with RFC 6281 §5.3 bounds). Pure: no I/O, clocks, entropy, logging.

Everything that changes a subscription's state is in this file, by the table of `llq_states`. Time and entropy come as
arguments; what to send is fetched with `take_effects`. Invariant: after every quiet period each subscription is SETTLED
on what `lookup` says, or GONE, its end counted.

It is driven by levels, not edges: a change only marks a question; when its window closes the zone is asked what it says
now, and each client is sent the difference to what it holds. Merging and cancelling need no bookkeeping of their own.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final, NamedTuple

from protocol.constants import MAX_MESSAGE_OCTETS, Class, EdnsOption, Type, is_meta_type
from protocol.edns import LLQ_VERSION, LlqError, LlqOpcode, LlqOption, Opt, llq_options
from protocol.errors import DecodeError
from protocol.message import Message, Question
from protocol.name import fold
from server.peer import Peer
from server.push.challenge import Challenger, is_older
from server.push.events import Item, Items, event_room, make_plan
from server.push.ledger import Bounds, Ledger
from server.push.limits import MAX_QUESTIONS, RETRY_SECONDS, Counters, LlqLimits, TokenBucket
from server.push.llq_states import Input, step
from server.push.subscriptions import (
    UNKNOWN_STAMP,
    Outstanding,
    Register,
    State,
    Subscription,
    Topic,
    View,
    network_of,
)
from server.zone.model import RR, Change

AT_RISK_SECONDS: Final = 30.0  # events older than this on a stream that still lived are taken as received
_EVENTS_A_SECOND: Final = 16  # message IDs a second of one subscription; it may borrow from the next
_SLICE: Final = 200  # events made in one call, so that queries get their turn in between
_PLANS_KEPT: Final = 64
_VIEWS_KEPT: Final = 31

Lookup = Callable[[Question], list[RR]]
Admit = Callable[[Question], LlqError]


_Try = tuple[float, Subscription, Outstanding]  # when it is looked at again, and for which event
_Crowd = deque[Subscription]  # those of one question whose window closed, not yet looked at


class SendEvent(NamedTuple):
    """Send `wire` to `peer`, signed first when `key_name` is set: as a request, with time `signed_at` (unix seconds).

    A retransmission has the same wire and `signed_at`, so signing it again gives the same octets.
    """

    peer: Peer
    key_name: bytes | None
    message_id: int
    wire: bytes
    signed_at: int


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
        self._heap: list[tuple[float, int, Subscription | Topic]] = []
        # By number of tries: whoever was sent an event, in the order in which the next try is due, the wait being the
        # same for all of them. A timer wheel of three spokes; nothing is sorted.
        self._retries: tuple[deque[_Try], ...] = tuple(deque() for _ in RETRY_SECONDS)
        self._ticket = count()
        self._ready: deque[tuple[float, Subscription | _Crowd]] = deque()
        self._parked: dict[int, list[Subscription]] = {}
        self._effects: list[SendEvent] = []

    def __len__(self) -> int:
        return len(self._register)

    def has_stream(self, via: int) -> bool:
        """Whether a subscription lives on this connection."""
        return self._register.has_stream(via)

    def next_deadline(self) -> float | None:
        """The moment something is due, maybe past; None when nothing ever is."""
        queues: tuple[Sequence[tuple[Any, ...]], ...] = (self._heap, self._ready, *self._retries)
        moments: list[float] = [entries[0][0] for entries in queues if entries]
        return min(moments, default=None)

    def take_effects(self) -> list[SendEvent]:
        effects, self._effects = self._effects, []
        return effects

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
                self._make_due(subscription, now)

    def _widen(self, subscription: Subscription, got: frozenset[Item]) -> None:
        """The client may take the repeated answers for the truth, or ignore them, before or after other events."""
        items = subscription.topic.items
        sure, maybe = subscription.sure & got, subscription.maybe | got
        subscription.sure = items if sure == items else sure
        subscription.maybe = items if maybe == items else maybe
        self._ledger.touched(subscription.topic)
        event = subscription.outstanding
        if event is not None:
            event.plan = replace(event.plan, sure=event.plan.sure & got, maybe=event.plan.maybe | got)

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
            llq_id, topic, question.name, peer, network_of(peer.address), request.key_name, now + lease
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
            wire = event.plan.wire(event.message_id, held.llq_id)
            self._effects.append(SendEvent(held.peer, held.key_name, event.message_id, wire, event.signed_at))
            self._sent_on_stream(held, event, request.now)

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
                    self._acked(waiting, now)
                    matched = True
                else:
                    self._overtaken(message.questions, option.llq_id, peer, now)
                    matched |= self._confirms_stream(message.questions, option.llq_id, peer)
        if not matched:
            self.counters.stray_acks += 1
        return matched

    def _acked(self, subscription: Subscription, now: float) -> None:
        event = subscription.outstanding
        assert event is not None
        subscription.outstanding = None
        subscription.sure, subscription.maybe = event.plan.sure, event.plan.maybe
        step(subscription, Input.ACKED)
        self.counters.acks += 1
        if subscription.topic.window_opened_at is None and not subscription.is_current:
            self._make_due(subscription, now)

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
            plan = held.outstanding.plan
            held.outstanding.plan = replace(plan, sure=plan.sure & before.sure, maybe=plan.maybe | before.maybe)
        self._ledger.touched(held.topic)
        if held.topic.window_opened_at is None and not held.is_current:
            self._make_due(held, now)

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
            self._touch(topic, now)
        return bool(touched)

    def _touch(self, topic: Topic, now: float) -> None:
        self._ledger.touched(topic)
        topic.is_stale = True
        topic.last_change_at = now
        if topic.window_opened_at is None:
            topic.window_opened_at = now
            self._schedule(self._window_end(topic), topic)

    def _window_end(self, topic: Topic) -> float:
        assert topic.window_opened_at is not None
        limits = self._limits
        return min(topic.last_change_at + limits.quiet_seconds, topic.window_opened_at + limits.longest_wait_seconds)

    def stream_closed(self, via: int, *, now: float) -> None:
        """A connection is gone: its subscriptions go on over UDP where the client told a port, and end otherwise."""
        self._parked.pop(via, None)
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
            if subscription.state is State.DUE:
                self._ready.append((now, subscription))
            elif subscription.topic.window_opened_at is None and not subscription.is_current:
                self._make_due(subscription, now)

    def stream_paused(self, via: int) -> None:
        """The connection's buffer is full: later changes merge until `stream_resumed`."""
        self._parked.setdefault(via, [])

    def stream_resumed(self, via: int, *, now: float) -> None:
        for subscription in self._parked.pop(via, ()):
            if subscription.state is State.DUE:
                self._ready.append((now, subscription))

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
        self._renew(topic)
        items = topic.items
        sure = maybe = items
        is_settled = topic.window_opened_at is None
        for subscription in topic.subscriptions:
            if subscription.sure is items and subscription.maybe is items and not subscription.recent_views:
                is_settled &= subscription.state is State.SETTLED
                continue
            if not subscription.is_lasting:
                continue
            sure &= subscription.sure
            maybe |= subscription.maybe
            is_settled &= subscription.is_current
            if subscription.outstanding is not None:
                sure &= subscription.outstanding.plan.sure
                maybe |= subscription.outstanding.plan.maybe
            for view in subscription.recent_views:
                if now - view.until <= AT_RISK_SECONDS:
                    sure, maybe, is_settled = sure & view.sure, maybe | view.maybe, False
        return Bounds(sure, maybe, is_settled)

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
            question.name,
            saved.peer,
            network_of(saved.peer.address),
            saved.key_name,
            saved.expires_at,
            event_port=saved.peer.port if saved.is_stream_born else 0,
            is_stream_born=saved.is_stream_born,
            stamp=UNKNOWN_STAMP,
            is_saved=True,
        )
        self._renew(topic)
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
            self._make_due(subscription, now)
        return True

    # Time

    def handle_deadline(self, *, now: float, unix: int, most: int = _SLICE) -> None:
        """Do what is due, at most `most` things; `next_deadline` stays in the past while more is."""
        for _ in range(most - self._handle_moments(now, most)):
            if not self._ready:
                return
            subscription = self._next_ready()
            if subscription.state is State.DUE:
                self._flush_safely(subscription, now, unix)

    def _handle_moments(self, now: float, most: int) -> int:
        """Leases, windows and tries whose moment has come; how many, at most `most`."""
        done = 0
        while done < most and self._heap and self._heap[0][0] <= now:
            _, _, target = heapq.heappop(self._heap)
            if isinstance(target, Topic):
                self._window_due(target, now)
            else:
                self._lease_due(target, now)
            done += 1
        for spoke in self._retries:
            while done < most and spoke and spoke[0][0] <= now:
                _, subscription, event = spoke.popleft()
                self._retry_due(subscription, event, now)
                done += 1
        return done

    def _next_ready(self) -> Subscription:
        """The next in turn; a crowd gives one and goes to the back."""
        at, who = self._ready.popleft()
        if isinstance(who, Subscription):
            return who
        subscription = who.popleft()
        if who:
            self._ready.append((at, who))
        if subscription.state is State.SETTLED and not subscription.is_current:
            step(subscription, Input.CHANGED)
        return subscription

    def _schedule(self, at: float, target: Subscription | Topic) -> None:
        """Entries that came to nothing stay until their time, but never more of them than live ones and some."""
        heapq.heappush(self._heap, (at, next(self._ticket), target))
        if len(self._heap) > 1024 + 4 * len(self._register):
            self._heap = [entry for entry in self._heap if _is_awaited(entry)]
            heapq.heapify(self._heap)

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

    def _retry_due(self, subscription: Subscription, event: Outstanding, now: float) -> None:
        if subscription.outstanding is not event:
            return
        if subscription.tries == len(RETRY_SECONDS):
            self._end(subscription, Input.UNREACHABLE)
            return
        step(subscription, Input.RETRY)
        self.counters.retransmissions += 1
        self._transmit(subscription, event, now)

    def _window_due(self, topic: Topic, now: float) -> None:
        if topic.window_opened_at is None:
            return
        end = self._window_end(topic)
        if end > now:
            self._schedule(end, topic)
            return
        topic.window_opened_at = None
        if topic.subscriptions:
            self._renew(topic)
            self._ready.append((now, deque(topic.subscriptions)))

    def _make_due(self, subscription: Subscription, now: float) -> None:
        """Only a settled one: what awaits an ack is looked at again when that comes."""
        if subscription.state is State.SETTLED:
            step(subscription, Input.CHANGED)
            self._ready.append((now, subscription))

    def _renew(self, topic: Topic) -> None:
        if topic.is_stale:
            topic.renew(topic.own(self._lookup(topic.question)))

    def _flush_safely(self, subscription: Subscription, now: float, unix: int) -> None:
        """A fault of ours (in `lookup`, say) goes up, but leaves the subscription where the next change moves it on."""
        try:
            self._flush(subscription, now, unix)
        except Exception:
            if subscription.state is State.DUE:
                step(subscription, Input.NOTHING_NEW)
            raise

    def _flush(self, subscription: Subscription, now: float, unix: int) -> None:
        """Send the difference between what the client holds and what the zone says, as far as one message goes."""
        peer, topic = subscription.peer, subscription.topic
        if subscription.is_on_stream and peer.via in self._parked:
            self._parked[peer.via].append(subscription)
            return
        self._renew(topic)
        if subscription.is_current:
            step(subscription, Input.NOTHING_NEW)
            return
        limit = MAX_MESSAGE_OCTETS if subscription.is_on_stream else self._limits.udp_octets
        room = event_room(limit, subscription.key_name)
        views = (subscription.name, subscription.sure, subscription.maybe, room)
        plan = topic.plans.get(views)
        if plan is None:
            if len(topic.plans) >= _PLANS_KEPT:
                topic.plans.clear()
            plan = topic.plans[views] = make_plan(
                subscription.name, topic.rtype, subscription.sure, subscription.maybe, topic.ttls, topic.items, room
            )
        self.counters.oversized += plan.oversized
        if not plan.records:
            subscription.sure, subscription.maybe = plan.sure, plan.maybe
            step(subscription, Input.NOTHING_NEW)
            return
        self.counters.events += 1
        event = Outstanding(_event_id(subscription, unix), plan, unix)
        if subscription.is_on_stream:
            wire = plan.wire(event.message_id, subscription.llq_id)
            self._effects.append(SendEvent(peer, subscription.key_name, event.message_id, wire, unix))
            self._sent_on_stream(subscription, event, now)
        else:
            step(subscription, Input.SENT)
            subscription.outstanding = event
            subscription.tries = 0
            self._transmit(subscription, event, now)

    def _transmit(self, subscription: Subscription, event: Outstanding, now: float) -> None:
        wire = event.plan.wire(event.message_id, subscription.llq_id)
        self._effects.append(
            SendEvent(subscription.peer, subscription.key_name, event.message_id, wire, event.signed_at)
        )
        tries = subscription.tries
        waiting = self._retries[tries]
        waiting.append((now + RETRY_SECONDS[tries], subscription, event))
        subscription.tries = tries + 1
        if len(waiting) > 1024 + 4 * len(self._register):  # mostly of events acknowledged since
            awaited = [each for each in waiting if each[1].outstanding is each[2]]
            waiting.clear()
            waiting.extend(awaited)

    def _sent_on_stream(self, subscription: Subscription, event: Outstanding, now: float) -> None:
        """A stream delivers in order or breaks: the event counts as received, but may yet be lost for a while."""
        view = View(now, subscription.sure, subscription.maybe)
        recent = [item for item in subscription.recent_views if now - item.until <= AT_RISK_SECONDS]
        subscription.recent_views = (*recent[-_VIEWS_KEPT:], view)
        subscription.sure, subscription.maybe = event.plan.sure, event.plan.maybe
        step(subscription, Input.SENT_ON_STREAM)
        if subscription.topic.window_opened_at is None and not subscription.is_current:
            self._make_due(subscription, now)

    def _end(self, subscription: Subscription, reason: Input) -> None:
        step(subscription, reason)
        self._register.remove(subscription)
        self._ledger.ended(subscription)
        name = reason.name.lower()
        setattr(self.counters, name, getattr(self.counters, name) + 1)


def _event_id(subscription: Subscription, unix: int) -> int:
    """A message ID that no event of this subscription had within an hour: by it clients know what they have applied.

    Random ones repeat: with 20 remembered, one event in 3,000 would be taken for an old one. This one goes with time,
    so over a restart too, and is not to be guessed without the LLQ-ID. The first after a restart is one of the second
    to come: in this one the process before may have told of something already.
    """
    second = unix + 1 if subscription.stamp == UNKNOWN_STAMP else unix
    subscription.stamp = max(subscription.stamp + 1, second * _EVENTS_A_SECOND)
    return (subscription.stamp ^ subscription.llq_id) & 0xFFFF


def _is_awaited(entry: tuple[float, int, Subscription | Topic]) -> bool:
    at, _, target = entry
    if isinstance(target, Topic):
        return target.window_opened_at is not None and bool(target.subscriptions)
    return target.state is not State.GONE and target.alarm_at == at


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
