"""DNS Push client core (RFC 8765 over RFC 8490): subscriptions on one TLS stream at a time.

Pure, with the effects and the calls of `llq_client`, so that one driver serves both. Invariant: a view is what the
server pushed since its last NOERROR, or, until that is complete, what was known before.

A server says nothing when a name has no records. So for `settle` seconds after NOERROR the old view stands; what has
been pushed until then, maybe nothing, takes its place.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from client_stub.llq_client import (
    MAX_SUBSCRIPTIONS,
    MAX_VIEW_RECORDS,
    Broken,
    Now,
    Send,
    State,
    StateChanged,
    Unusable,
    ViewChanged,
    question_key,
    sorted_view,
)
from protocol.constants import Class, Rcode, Type, rcode_text
from protocol.dso import (
    MIN_KEEPALIVE_MS,
    NO_LIMIT,
    PUSH_HIGHEST_TTL,
    PUSH_REMOVE_ONE,
    PUSH_REMOVE_SET,
    DsoMessage,
    DsoType,
    PushedRecord,
    decode_dso,
    decode_keepalive,
    decode_push,
    decode_retry_delay,
    encode_dso,
    is_dso,
    keepalive,
    subscribe,
    unsubscribe,
)
from protocol.errors import DecodeError
from protocol.message import Question
from protocol.name import fold
from protocol.rdata import canonical

_WISHES: Final = (15_000, 300_000)
_DEFAULT_INTERVAL: Final = 15.0  # RFC 8490 §6.2: until the server has told its own
_LASTING: Final = frozenset((Rcode.NOTIMP, Rcode.DSOTYPENI))
_PASSING_SECONDS: Final = 300.0
_LASTING_SECONDS: Final = 3600.0  # RFC 8490 §6.6.3.3: a server without DSO is left alone for an hour


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSettings:
    """Timing; all in seconds."""

    reply_wait: float = 10.0
    settle: float = 1.0
    stale: float = 120.0
    """How long at least a view is good for once its stream is gone, if its records' TTLs are shorter."""


@dataclass(slots=True)
class _Watch:
    question: Question
    state: State = State.WAITING
    message_id: int = 0
    reply_by: float | None = None
    settles_at: float | None = None
    lapses_at: float | None = None
    view: dict[bytes, bytes] = field(default_factory=dict)
    coming: dict[bytes, bytes] = field(default_factory=dict)
    longest_ttl: int = 0

    def deadline(self) -> float | None:
        return min((at for at in (self.reply_by, self.settles_at, self.lapses_at) if at is not None), default=None)


class PushClient:
    """Subscriptions over one stream to one server. Carries no key: what needs one is not for DNS Push."""

    def __init__(self, settings: PushSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._watches: dict[Question, _Watch] = {}
        self._effects: list[Send | ViewChanged | StateChanged | Broken | Unusable] = []
        self._is_open = False
        self._is_established = False
        """The server answered on this stream: until then a client sends requests only (RFC 8490 §5.1)."""
        self._orphans: dict[Question, _Watch] = {}
        """Given up before that, to be unsubscribed from then."""
        self._keepalive_id = 0
        self._keepalive_by: float | None = None
        self._interval: float | None = _DEFAULT_INTERVAL
        self._spoken_at = 0.0

    # What the driver and its user ask for

    def subscribe(self, question: Question, *, now: Now, view: Iterable[bytes] = ()) -> bool:
        """Begin to watch; False when the table is full. `view` is what was known by other means."""
        key = question_key(question)
        if key in self._watches:
            return True
        if key in self._orphans:
            self._watches[key] = self._orphans.pop(key)
            return True
        if len(self._watches) >= MAX_SUBSCRIPTIONS:
            return False
        watch = self._watches[key] = _Watch(question)
        watch.view = {canonical(question.rtype, rdata): rdata for rdata in view}
        if watch.view:
            watch.lapses_at = now.monotonic + self._settings.stale
        if self._is_open:
            self._set_up(watch, now)
        return True

    def unsubscribe(self, question: Question, *, now: Now) -> None:
        key = question_key(question)
        watch = self._watches.pop(key, None)
        if watch is None or not self._is_open or watch.state not in (State.SETUP, State.ESTABLISHED):
            return
        if self._is_established:
            self._send(encode_dso(0, [unsubscribe(watch.message_id)]), now)
        else:
            self._orphans[key] = watch

    def channel_opened(self, *, is_stream: bool, now: Now) -> None:
        """A new TLS stream: ask for the server's times, then for everything that is watched."""
        assert is_stream
        self._is_open = True
        self._interval = _DEFAULT_INTERVAL
        self._keep_alive(now)
        for watch in self._watches.values():
            self._set_up(watch, now)

    def channel_closed(self, *, now: Now) -> None:
        """The stream ended, and every subscription with it; views stand for as long as a cache would keep them."""
        self._is_open = self._is_established = False
        self._orphans.clear()
        self._keepalive_by = None
        for watch in self._watches.values():
            watch.reply_by = watch.settles_at = None
            if watch.state is State.ESTABLISHED:
                watch.lapses_at = now.monotonic + max(self._settings.stale, watch.longest_ttl)
            self._enter(watch, State.WAITING, "the channel closed")

    def place_changed(self, *, now: Now) -> None:
        """The way to us is another one: a stream that began on the old one is lost."""
        if self._is_open:
            self._effects.append(Broken("our place changed"))

    def view(self, question: Question) -> tuple[bytes, ...]:
        watch = self._watches.get(question_key(question))
        return sorted_view(watch.view) if watch else ()

    def states(self) -> list[tuple[Question, State, float | None]]:
        """(question, state, None: a pushed view has no moment of lapse while its stream lives)."""
        return [(watch.question, watch.state, watch.lapses_at) for watch in self._watches.values()]

    # The core contract

    def next_deadline(self) -> float | None:
        times = [at for watch in self._watches.values() if (at := watch.deadline()) is not None]
        if self._is_open:
            times += [at for at in (self._keepalive_by, self._next_keepalive()) if at is not None]
        return min(times, default=None)

    def handle_deadline(self, *, now: Now) -> None:
        moment = now.monotonic
        for watch in self._watches.values():
            if watch.settles_at is not None and moment >= watch.settles_at:
                self._settle(watch)
            if watch.lapses_at is not None and moment >= watch.lapses_at:
                watch.lapses_at = None
                self._replace_view(watch, {})
            if watch.reply_by is not None and moment >= watch.reply_by:
                watch.reply_by = None
                self._effects.append(Broken("no answer to a SUBSCRIBE"))
        if not self._is_open:
            return
        next_keepalive = self._next_keepalive()
        if self._keepalive_by is not None:
            if moment >= self._keepalive_by:
                self._keepalive_by = None
                self._effects.append(Broken("no answer to a Keepalive"))
        elif next_keepalive is not None and moment >= next_keepalive:
            self._keep_alive(now)

    def take_effects(self) -> list[Send | ViewChanged | StateChanged | Broken | Unusable]:
        effects, self._effects = self._effects, []
        return effects

    def receive(self, wire: bytes, *, now: Now) -> None:
        """Take one message of the stream; what RFC 8490 calls fatal breaks it."""
        if not is_dso(wire):
            return
        try:
            message = decode_dso(wire)
            if message.is_response:
                self._responded(message, now)
            else:
                self._told(message, now)
        except DecodeError as error:
            self._effects.append(Broken(f"the server's message does not parse: {error}"))

    # Requests

    def _send(self, wire: bytes, now: Now) -> None:
        self._spoken_at = now.monotonic
        self._effects.append(Send(wire))

    def _new_id(self) -> int:
        taken = {watch.message_id for watch in self._known()} | {0, self._keepalive_id}
        while (found := self._rng.getrandbits(16)) in taken:
            pass
        return found

    def _keep_alive(self, now: Now) -> None:
        self._keepalive_id = self._new_id()
        self._keepalive_by = now.monotonic + self._settings.reply_wait
        self._send(encode_dso(self._keepalive_id, [keepalive(*_WISHES)]), now)

    def _next_keepalive(self) -> float | None:
        return None if self._interval is None else self._spoken_at + self._interval

    def _set_up(self, watch: _Watch, now: Now) -> None:
        watch.message_id = self._new_id()
        watch.reply_by = now.monotonic + self._settings.reply_wait
        watch.settles_at = None
        watch.coming = {}
        self._enter(watch, State.SETUP)
        self._send(encode_dso(watch.message_id, [subscribe(question_key(watch.question))]), now)

    # What the server says

    def _responded(self, message: DsoMessage, now: Now) -> None:
        watch = next((item for item in self._known() if item.message_id == message.id), None)
        if message.rcode == Rcode.NOERROR and (watch is not None or message.id == self._keepalive_id):
            self._establish(now)
        if message.id == self._keepalive_id and self._keepalive_by is not None:
            self._keepalive_by = None
            if message.rcode != Rcode.NOERROR:
                self._give_up(message)
            elif message.primary is None or message.primary.type != DsoType.KEEPALIVE:
                self._effects.append(Broken("an answer to a Keepalive without its times"))
            else:
                self._take_interval(decode_keepalive(message.primary)[1])
            return
        if watch is None or watch.reply_by is None or watch not in self._watches.values():
            return  # to a SUBSCRIBE that was given up meanwhile
        watch.reply_by = None
        if message.rcode != Rcode.NOERROR:
            self._give_up(message)
            return
        watch.lapses_at = None
        watch.longest_ttl = 0
        self._enter(watch, State.ESTABLISHED)
        watch.settles_at = now.monotonic + self._settings.settle

    def _known(self) -> list[_Watch]:
        """Every watch that the server of this stream may have."""
        return [*self._watches.values(), *self._orphans.values()]

    def _establish(self, now: Now) -> None:
        self._is_established = True
        for watch in self._orphans.values():
            self._send(encode_dso(0, [unsubscribe(watch.message_id)]), now)
        self._orphans.clear()

    def _give_up(self, message: DsoMessage) -> None:
        delay = message.tlvs[0] if message.tlvs and message.tlvs[0].type == DsoType.RETRY_DELAY else None
        seconds = _LASTING_SECONDS if message.rcode in _LASTING else _PASSING_SECONDS
        if delay is not None:
            seconds = decode_retry_delay(delay) / 1000
        self._effects.append(Unusable(f"the server answers {rcode_text(message.rcode)}", seconds))

    def _take_interval(self, milliseconds: int) -> None:
        if milliseconds < MIN_KEEPALIVE_MS:
            self._effects.append(Broken("a keepalive interval below ten seconds"))  # RFC 8490 §6.5.2
            return
        self._interval = None if milliseconds == NO_LIMIT else milliseconds / 1000

    def _told(self, message: DsoMessage, now: Now) -> None:
        primary = message.primary
        if primary is None or message.id:
            self._effects.append(Broken("a request from the server"))
        elif primary.type == DsoType.PUSH:
            self._pushed(decode_push(message))
        elif primary.type == DsoType.KEEPALIVE:
            self._take_interval(decode_keepalive(primary)[1])
        elif primary.type == DsoType.RETRY_DELAY:
            seconds = decode_retry_delay(primary) / 1000
            self._effects.append(Unusable("the server asks to stay away for a while", seconds))
        else:
            self._effects.append(Broken(f"a message of DSO-TYPE {primary.type}"))

    def _pushed(self, records: list[PushedRecord]) -> None:
        touched: dict[int, tuple[_Watch, dict[bytes, bytes]]] = {}
        for record in records:
            for watch in self._watches_of(record):
                _, view = touched.setdefault(id(watch), (watch, dict(self._content(watch))))
                self._edit(watch, view, record)
        for watch, view in touched.values():
            if watch.settles_at is None:
                self._replace_view(watch, view)
            else:  # the initial content: it is whole now, or more of it is on its way and edits it
                watch.coming = view
                self._settle(watch)

    def _content(self, watch: _Watch) -> dict[bytes, bytes]:
        return watch.view if watch.settles_at is None else watch.coming

    def _watches_of(self, record: PushedRecord) -> list[_Watch]:
        """Those that a record concerns: by name and type, or by a collective removal of the name."""
        owner = fold(record.name)
        is_whole_name = record.ttl == PUSH_REMOVE_SET and (record.rtype == Type.ANY or record.rclass == Class.ANY)
        return [
            watch
            for key, watch in self._watches.items()
            if watch.state is State.ESTABLISHED
            and key.name == owner
            and (key.rtype == record.rtype or is_whole_name)
            and record.rclass in (key.rclass, Class.ANY)
        ]

    def _edit(self, watch: _Watch, view: dict[bytes, bytes], record: PushedRecord) -> None:
        if record.ttl == PUSH_REMOVE_SET:
            view.clear()
            return
        key = canonical(watch.question.rtype, record.rdata)
        if record.ttl == PUSH_REMOVE_ONE:
            view.pop(key, None)
        elif record.ttl <= PUSH_HIGHEST_TTL and (key in view or len(view) < MAX_VIEW_RECORDS):
            view[key] = record.rdata
            watch.longest_ttl = max(watch.longest_ttl, record.ttl)

    def _settle(self, watch: _Watch) -> None:
        watch.settles_at = None
        coming, watch.coming = watch.coming, {}
        self._replace_view(watch, coming)

    def _replace_view(self, watch: _Watch, view: dict[bytes, bytes]) -> None:
        is_other = view.keys() != watch.view.keys()
        watch.view = view
        if is_other:
            self._effects.append(ViewChanged(watch.question, sorted_view(view)))

    def _enter(self, watch: _Watch, state: State, reason: str = "") -> None:
        if watch.state is not state:
            watch.state = state
            self._effects.append(StateChanged(watch.question, state, reason))
