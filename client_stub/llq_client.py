"""Long-Lived Query client core (RFC 8764; on streams as deployed clients do it, without challenge).

Pure: both clocks come with each call as `Now`, entropy is a `random.Random`, octets leave as effects. An `LlqClient` is
all subscriptions over one channel: one UDP socket connected to one server, or one stream at a time. Invariant: a view
is what the last ACK + Answers said, edited by the events since; it ends when its lease lapses unrefreshed.

    WAITING -> SETUP -(challenge, UDP only)-> CHALLENGED -> ESTABLISHED -(80, 90, 95 %)-> refresh ... lapse -> SETUP
                 \\- no answer, refusal, no LLQ -> POLLING        STATIC error -> STATIC
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from protocol.constants import AA, QR, Class, Opcode, Rcode, TsigError, rcode_text
from protocol.edns import (
    LLQ_EVENT_REMOVE_TTL,
    LLQ_VERSION,
    LlqError,
    LlqOpcode,
    LlqOption,
    Opt,
    llq_options,
)
from protocol.errors import DecodeError
from protocol.message import Message, Question, Record, decode, encode
from protocol.name import fold
from protocol.rdata import canonical
from protocol.tsig import Key, decode_tsig, sign, verify

MAX_SUBSCRIPTIONS: Final = 1024
MAX_VIEW_RECORDS: Final = 1024
MAX_SEEN_EVENTS: Final = 64
MAX_ABANDONED: Final = 256
"""Set-ups on a stream that nobody wants any more and the server has not answered."""
SEEN_EVENT_SECONDS: Final = 30.0
"""A server repeats an event for 14 s (RFC 8764 §6); the network may add a little."""
_REFRESH_AT: Final = (0.80, 0.90, 0.95)


class Now(NamedTuple):
    """The same moment on both clocks: monotonic seconds for waits, seconds since 1970 for signatures."""

    monotonic: float
    unix: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LlqSettings:
    """Timing; all in seconds."""

    lease: int = 7200
    event_port: int = 0
    """On streams only: a UDP port for events once the stream is gone, told in LLQ-ERROR; 0 tells none."""
    setup_waits: tuple[float, ...] = (2.0, 4.0, 8.0)
    stream_wait: float = 10.0
    poll_every: float = 900.0
    retry_setup: float = 3600.0


class State(Enum):
    WAITING = "waiting"
    SETUP = "setup"
    CHALLENGED = "challenged"
    ESTABLISHED = "established"
    POLLING = "polling"
    STATIC = "static"


@dataclass(frozen=True, slots=True)
class Send:
    """Octets for the channel, already signed."""

    wire: bytes


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """The RRset of a question is now another one. `rdatas` is whole and sorted."""

    question: Question
    rdatas: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StateChanged:
    question: Question
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask this as an ordinary query and call `complete_poll`."""

    question: Question


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream is of no use any more: close it, open another."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """This service does not serve us: use another one, and come back in `seconds` at the earliest."""

    reason: str
    seconds: float


Effect = Send | ViewChanged | StateChanged | Poll | Broken


@dataclass(slots=True)
class _Request:
    """One request in flight. A copy is signed anew, so every MAC it went out with may be the answered one."""

    id: int
    opcode: LlqOpcode
    unsigned: bytes
    macs: list[bytes] = field(default_factory=list)
    sent: int = 0
    again_at: float = 0.0


@dataclass(slots=True)
class _Subscription:
    question: Question
    state: State = State.WAITING
    llq_id: int = 0
    lease: int = 0
    granted_at: float = 0.0
    request: _Request | None = None
    view: dict[bytes, bytes] = field(default_factory=dict)
    poll_at: float | None = None
    setup_at: float | None = None
    seen: deque[tuple[float, bytes]] = field(default_factory=deque)

    @property
    def lapses_at(self) -> float | None:
        return self.granted_at + self.lease if self.lease else None

    def deadline(self) -> float | None:
        times = [time for time in (self.lapses_at, self.poll_at, self.setup_at) if time is not None]
        if self.request is not None:
            times.append(self.request.again_at)
        return min(times, default=None)


def question_key(question: Question) -> Question:
    """The form to look questions up by."""
    return Question(fold(question.name), question.rtype, question.rclass)


class LlqClient:
    """Subscriptions over one channel to one server."""

    def __init__(self, settings: LlqSettings, rng: random.Random, key: Key | None = None) -> None:
        self._settings = settings
        self._rng = rng
        self._key = key
        self._subscriptions: dict[Question, _Subscription] = {}
        self._abandoned: dict[int, tuple[_Request, _Subscription]] = {}
        self._effects: list[Effect] = []
        self._is_open = False
        self._is_stream = False
        self._no_service = ""

    # What the driver and its user ask for

    def subscribe(self, question: Question, *, now: Now, view: Iterable[bytes] = ()) -> bool:
        """Begin to watch; False when the table is full. Watching twice is watching once (RFC 8764 §5.2.1).

        `view` is what was known by other means: it stands until it is confirmed or corrected, a lease at most.
        """
        key = question_key(question)
        if key in self._subscriptions:
            return True
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            return False
        subscription = self._subscriptions[key] = _Subscription(question)
        subscription.view = {canonical(question.rtype, rdata): rdata for rdata in view}
        if subscription.view:
            subscription.lease = self._settings.lease
            subscription.granted_at = now.monotonic
        if self._is_open:
            self._set_up(subscription, now)
        elif self._no_service:
            self._poll(subscription, now, self._no_service, retry_setup=False)
        return True

    def unsubscribe(self, question: Question, *, now: Now) -> None:
        """End watching; what the server holds is cancelled with a refresh of lease 0, sent once.

        A set-up on a stream is cancelled when its answer tells the LLQ-ID: else the server would keep it for a lease.
        """
        subscription = self._subscriptions.pop(question_key(question), None)
        if subscription is None or not self._is_open:
            return
        request = subscription.request
        if subscription.state in (State.ESTABLISHED, State.CHALLENGED):
            self._cancel(subscription, subscription.llq_id, now)
        elif subscription.state is State.SETUP and self._is_stream and request is not None:
            if len(self._abandoned) >= MAX_ABANDONED:
                del self._abandoned[next(iter(self._abandoned))]
            self._abandoned[request.id] = request, subscription

    def channel_opened(self, *, is_stream: bool, now: Now) -> None:
        """The socket or stream is there: set everything up on it. A stream needs no challenge."""
        self._is_open = True
        self._is_stream = is_stream
        self._abandoned.clear()
        self._no_service = ""
        for subscription in self._subscriptions.values():
            self._set_up(subscription, now)

    def channel_closed(self, *, now: Now) -> None:
        """The channel ended, and with a stream the server's side; views stay until their leases lapse."""
        self._is_open = False
        for subscription in self._subscriptions.values():
            subscription.request = None
            if subscription.state not in (State.POLLING, State.STATIC):
                self._enter(subscription, State.WAITING, "the channel closed")

    def leave(self, *, now: Now) -> None:
        """The driver takes another way: what the server holds for this one is given back, told once."""
        for subscription in self._subscriptions.values():
            if subscription.state in (State.ESTABLISHED, State.CHALLENGED):
                self._cancel(subscription, subscription.llq_id, now)

    def place_changed(self, *, now: Now) -> None:
        """The way to us is another one (new outer address, a NAT that forgot): what goes the old way is lost.

        Views stand until the new set-ups are answered.
        """
        if not self._is_open:
            return
        if self._is_stream:
            self._effects.append(Broken("our place changed"))
            return
        for subscription in self._subscriptions.values():
            if subscription.state not in (State.POLLING, State.STATIC):
                self._set_up(subscription, now)

    def no_service(self, *, now: Now, reason: str) -> None:
        """There is no LLQ server for now: poll. The driver looks for one again and says `channel_opened`."""
        self._is_open = False
        self._no_service = reason
        for subscription in self._subscriptions.values():
            if subscription.state is not State.POLLING or subscription.poll_at is None:
                self._poll(subscription, now, reason, retry_setup=False)

    def complete_poll(self, question: Question, rdatas: list[bytes] | None, *, now: Now) -> None:
        """Take a poll's answer; None is a poll that failed and changes nothing."""
        subscription = self._subscriptions.get(question_key(question))
        if subscription is None or subscription.state not in (State.POLLING, State.STATIC):
            return
        if rdatas is not None:
            subscription.lease = 0
            self._replace_view(subscription, rdatas)

    def view(self, question: Question) -> tuple[bytes, ...]:
        """The current RRset; empty for a question not watched."""
        subscription = self._subscriptions.get(question_key(question))
        return sorted_view(subscription.view) if subscription else ()

    def states(self) -> list[tuple[Question, State, float | None]]:
        """(question, state, monotonic time of lapse) of every subscription."""
        return [(item.question, item.state, item.lapses_at) for item in self._subscriptions.values()]

    # The core contract

    def next_deadline(self) -> float | None:
        times = [time for item in self._subscriptions.values() if (time := item.deadline()) is not None]
        return min(times, default=None)

    def handle_deadline(self, *, now: Now) -> None:
        for subscription in list(self._subscriptions.values()):
            deadline = subscription.deadline()
            if deadline is not None and now.monotonic >= deadline:
                self._handle_due(subscription, now)

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def receive(self, wire: bytes, *, now: Now) -> None:
        """Take one message of the channel; what does not belong to us, or is not signed as it must be, is dropped."""
        try:
            message = decode(wire)
            options = llq_options(message.opt)
            if not message.header.is_response or message.header.opcode != Opcode.QUERY:
                return
            if options and options[0].opcode == LlqOpcode.EVENT:
                self._receive_event(message, options, now)
            else:
                self._receive_response(message, options, now)
        except DecodeError:
            return

    # Requests

    def _set_up(self, subscription: _Subscription, now: Now) -> None:
        subscription.setup_at = subscription.poll_at = None
        error_field = self._settings.event_port if self._is_stream else 0
        self._enter(subscription, State.SETUP)
        request = self._request(subscription, LlqOpcode.SETUP, 0, self._settings.lease, error_field)
        subscription.request = request
        self._transmit(request, now)

    def _request(
        self, subscription: _Subscription, opcode: LlqOpcode, llq_id: int, lease: int, error_field: int = 0
    ) -> _Request:
        message_id = self._rng.getrandbits(16)
        option = LlqOption(LLQ_VERSION, opcode, error_field, llq_id, lease)
        wire = encode(message_id, 0, (subscription.question,), opt=Opt(options=(option.encode(),)))
        return _Request(message_id, opcode, wire)

    def _cancel(self, subscription: _Subscription, llq_id: int, now: Now) -> None:
        self._transmit(self._request(subscription, LlqOpcode.REFRESH, llq_id, 0), now)

    def _transmit(self, request: _Request, now: Now) -> None:
        wire = request.unsigned
        if self._key is not None:
            wire, mac = sign(wire, self._key, now=now.unix)
            request.macs.append(mac)
        self._effects.append(Send(wire))
        if request.opcode is LlqOpcode.SETUP:
            waits = (self._settings.stream_wait,) if self._is_stream else self._settings.setup_waits
            request.again_at = now.monotonic + waits[min(request.sent, len(waits) - 1)]
        request.sent += 1

    def _handle_due(self, subscription: _Subscription, now: Now) -> None:
        moment = now.monotonic
        lapses_at = subscription.lapses_at
        if lapses_at is not None and moment >= lapses_at:
            self._lapse(subscription, now)
            return
        request = subscription.request
        if request is not None and moment >= request.again_at:
            if request.opcode is LlqOpcode.REFRESH:
                self._try_refresh(subscription, request, now)
            elif self._is_stream:
                self._effects.append(Broken("no answer to a set-up"))
                subscription.request = None
            elif request.sent < len(self._settings.setup_waits):
                self._transmit(request, now)
            else:
                self._poll(subscription, now, "the server does not answer a set-up")
        if subscription.setup_at is not None and moment >= subscription.setup_at:
            subscription.setup_at = None
            if self._is_open:
                self._set_up(subscription, now)
        if subscription.poll_at is not None and moment >= subscription.poll_at:
            subscription.poll_at = moment + self._settings.poll_every
            self._effects.append(Poll(subscription.question))

    def _try_refresh(self, subscription: _Subscription, request: _Request, now: Now) -> None:
        self._transmit(request, now)
        share = _REFRESH_AT[request.sent] if request.sent < len(_REFRESH_AT) else 1.0
        request.again_at = subscription.granted_at + subscription.lease * share

    def _lapse(self, subscription: _Subscription, now: Now) -> None:
        subscription.lease = 0
        self._replace_view(subscription, [])
        if subscription.state in (State.POLLING, State.STATIC):
            return  # polls have not been answered since
        subscription.request = None
        if self._is_open:
            self._set_up(subscription, now)
        else:
            self._enter(subscription, State.WAITING, "the lease lapsed")

    def _poll(
        self, subscription: _Subscription, now: Now, reason: str, *, retry_setup: bool = True, wait: float = 0.0
    ) -> None:
        """Fall back to polling: once now, then at the slow pace; set up again after an hour or after `wait`."""
        subscription.request = None
        if retry_setup:
            subscription.setup_at = now.monotonic + (wait or self._settings.retry_setup)
        subscription.poll_at = now.monotonic + self._settings.poll_every
        self._effects.append(Poll(subscription.question))
        self._enter(subscription, State.POLLING, reason)

    def _enter(self, subscription: _Subscription, state: State, reason: str = "") -> None:
        if subscription.state is not state:
            subscription.state = state
            self._effects.append(StateChanged(subscription.question, state, reason))

    # Responses

    def _receive_response(self, message: Message, options: list[LlqOption], now: Now) -> None:
        subscription = self._asked(message)
        if subscription is None or subscription.request is None:
            self._cancel_abandoned(message, options, now)
            return
        request = subscription.request
        rcode = message.header.rcode
        if not self._is_authentic(message, request.macs, now.unix):
            # A refusal for a bad key comes unsigned; only the stream's own protection lets us believe it.
            if self._is_stream and message.tsig is None and rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
                self._poll(subscription, now, f"the server answers {rcode_text(rcode)}")
            elif self._is_stream and message.tsig is not None and rcode == Rcode.NOTAUTH:
                self._poll(subscription, now, "the server does not accept the key")
            return
        if rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            self._poll(subscription, now, f"the server answers {rcode_text(rcode)}")
        elif not options:
            self._poll(subscription, now, "the server knows no LLQ")
        elif options[0].version != LLQ_VERSION or options[0].opcode != request.opcode:
            return
        elif request.opcode is LlqOpcode.REFRESH:
            self._refreshed(subscription, options[0], now)
        else:
            self._set_up_answered(subscription, message, options[0], now)

    def _asked(self, message: Message) -> _Subscription | None:
        """The subscription whose request this answers: same ID, same question."""
        if len(message.questions) != 1:
            return None
        subscription = self._subscriptions.get(question_key(message.questions[0]))
        request = subscription.request if subscription is not None else None
        if request is None or request.id != message.id or not request.sent:
            return None
        return subscription

    def _cancel_abandoned(self, message: Message, options: list[LlqOption], now: Now) -> None:
        """The server took a set-up whose question nobody watches any more."""
        request, subscription = self._abandoned.get(message.id, (None, None))
        if request is None or subscription is None:
            return
        asked = [question_key(question) for question in message.questions]
        if asked == [question_key(subscription.question)] and self._is_authentic(message, request.macs, now.unix):
            del self._abandoned[message.id]
            if options and options[0].llq_id:
                self._cancel(subscription, options[0].llq_id, now)

    def _set_up_answered(self, subscription: _Subscription, message: Message, option: LlqOption, now: Now) -> None:
        if option.error == LlqError.SERV_FULL:
            wait = float(min(max(option.lease, 1), self._settings.lease))
            self._poll(subscription, now, "the server is full", wait=wait)
        elif option.error == LlqError.STATIC:
            self._static(subscription, message, now)
        elif option.error != LlqError.NO_ERROR or option.llq_id == 0 or option.lease == 0:
            self._poll(subscription, now, f"the server refuses the subscription (error {option.error})")
        elif subscription.state is State.SETUP and not self._is_stream:
            # A challenge and an empty ACK look alike: our own state tells them apart (RFC 8764 appendix A).
            subscription.llq_id = option.llq_id
            request = self._request(subscription, LlqOpcode.SETUP, option.llq_id, option.lease)
            subscription.request = request
            self._enter(subscription, State.CHALLENGED)
            self._transmit(request, now)
        elif subscription.state is State.CHALLENGED and option.llq_id != subscription.llq_id:
            return
        else:
            subscription.llq_id = option.llq_id
            subscription.seen.clear()
            self._grant(subscription, option.lease, now)
            self._enter(subscription, State.ESTABLISHED)
            self._replace_view(subscription, answers_of(message, subscription.question))

    def _static(self, subscription: _Subscription, message: Message, now: Now) -> None:
        """The data hardly changes: its TTL is the pace, and no set-up is tried again (RFC 8764 §5.2.3)."""
        subscription.request = None
        subscription.lease = 0
        ttls = [record.ttl for record in message.answers if record.ttl < 0x80000000]
        subscription.poll_at = now.monotonic + max(self._settings.poll_every, min(ttls, default=0))
        self._enter(subscription, State.STATIC, "the server calls the data static")
        self._replace_view(subscription, answers_of(message, subscription.question))

    def _grant(self, subscription: _Subscription, lease: int, now: Now) -> None:
        subscription.lease = lease
        subscription.granted_at = now.monotonic
        request = self._request(subscription, LlqOpcode.REFRESH, subscription.llq_id, self._settings.lease)
        request.again_at = now.monotonic + max(1.0, lease * _REFRESH_AT[0])
        subscription.request = request

    def _refreshed(self, subscription: _Subscription, option: LlqOption, now: Now) -> None:
        if option.llq_id != subscription.llq_id:
            return
        if option.error == LlqError.NO_ERROR and option.lease:
            self._grant(subscription, option.lease, now)
        elif option.error == LlqError.NO_SUCH_LLQ:
            self._set_up(subscription, now)  # the server lost it; the view stands until the new answers

    # Events

    def _receive_event(self, message: Message, options: list[LlqOption], now: Now) -> None:
        by_id = {item.llq_id: item for item in self._subscriptions.values() if item.state is State.ESTABLISHED}
        known = [option for option in options if option.llq_id in by_id and option.opcode == LlqOpcode.EVENT]
        if not known or message.header.rcode != Rcode.NOERROR:
            return
        event_mac = b""
        if self._key is not None:
            if message.tsig is not None:
                if not self._is_authentic(message, [b""], now.unix):
                    return
                event_mac = decode_tsig(message.tsig, message.wire).mac
            elif not self._is_stream:
                return
        asked = {question_key(question) for question in message.questions}
        taken: list[LlqOption] = []
        for option in known:
            subscription = by_id[option.llq_id]
            if asked and question_key(subscription.question) not in asked:
                continue
            taken.append(option)
            if not _is_repeated(subscription, message, now.monotonic):
                self._edit_view(subscription, message)
        if taken:
            self._acknowledge(message, taken, event_mac, now)

    def _edit_view(self, subscription: _Subscription, message: Message) -> None:
        before = dict(subscription.view)
        for record in _matching(message, subscription.question):
            rdata = record.rdata(message.wire)
            key = canonical(record.rtype, rdata)
            if record.ttl == LLQ_EVENT_REMOVE_TTL:
                subscription.view.pop(key, None)
            elif len(subscription.view) < MAX_VIEW_RECORDS:
                subscription.view[key] = rdata
        if subscription.view.keys() != before.keys():
            self._effects.append(ViewChanged(subscription.question, sorted_view(subscription.view)))

    def _replace_view(self, subscription: _Subscription, rdatas: list[bytes]) -> None:
        rtype = subscription.question.rtype
        view = {canonical(rtype, rdata): rdata for rdata in rdatas[:MAX_VIEW_RECORDS]}
        if view.keys() != subscription.view.keys():
            subscription.view = view
            self._effects.append(ViewChanged(subscription.question, sorted_view(view)))

    def _acknowledge(self, event: Message, options: list[LlqOption], event_mac: bytes, now: Now) -> None:
        opt = Opt(options=tuple(option.encode() for option in options))
        wire = encode(event.id, QR | AA, event.questions, opt=opt)
        if self._key is not None and event_mac:
            wire, _ = sign(wire, self._key, now=now.unix, request_mac=event_mac)
        self._effects.append(Send(wire))

    def _is_authentic(self, message: Message, macs: list[bytes], unix: int) -> bool:
        """Whether our key signed it, over one of the requests sent (`[b""]` for an event, which has none)."""
        if self._key is None:
            return True
        if message.tsig is None:
            return False
        tsig = decode_tsig(message.tsig, message.wire)
        if tsig.key_name != self._key.name:
            return False
        return any(
            verify(message, tsig, self._key, now=unix, request_mac=mac).error == TsigError.NOERROR for mac in macs
        )


def _matching(message: Message, question: Question) -> list[Record]:
    owner = fold(question.name)
    return [
        record
        for record in message.answers
        if record.rtype == question.rtype and record.rclass == Class.IN and fold(record.name) == owner
    ]


def answers_of(message: Message, question: Question) -> list[bytes]:
    """Rdata in the answer section that answers the question directly; `DecodeError` for malformed rdata."""
    return [record.rdata(message.wire) for record in _matching(message, question)]


def sorted_view(view: dict[bytes, bytes]) -> tuple[bytes, ...]:
    """The rdatas of a view in an order that does not depend on how they came."""
    return tuple(view[key] for key in sorted(view))


def _is_repeated(subscription: _Subscription, message: Message, now: float) -> bool:
    """Whether this very event was applied already; it is acknowledged again and otherwise ignored.

    Without this a copy that the network delivers late would undo what a newer event said.
    """
    seen = subscription.seen
    while seen and (seen[0][0] <= now or len(seen) >= MAX_SEEN_EVENTS):
        seen.popleft()
    end = message.tsig.offset if message.tsig is not None else len(message.wire)
    body = message.wire[:2] + message.wire[12:end]
    if any(body == known for _, known in seen):
        return True
    seen.append((now + SEEN_EVENT_SECONDS, body))
    return False
