"""The DNS Push server core: DSO sessions and what they subscribe to (RFC 8490, RFC 8765). Pure: no I/O, no clocks.

Driven by levels like the LLQ machine: a change only marks who watches the names it touched; when a session is served,
the zone is asked what it says now, and the client is sent the difference to what it was told. A stream whose peer does
not read is passed over until it does, and then hears the net difference only. Invariant: whoever is neither dirty nor
paused was told what `lookup` says. Mistakes that the RFCs call fatal end in `Abort`; the driver resets the connection.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocol.constants import HEADER_OCTETS, Class, Rcode, Type, is_meta_type
from protocol.dso import (
    PUSH_REMOVE_ONE,
    PUSH_REMOVE_SET,
    DsoMessage,
    DsoType,
    PushedRecord,
    Tlv,
    decode_dso,
    decode_keepalive,
    decode_reconfirm,
    decode_subscribe,
    decode_unsubscribe,
    encode_dso,
    encode_push,
    keepalive,
    padding_for,
    retry_delay,
)
from protocol.errors import DecodeError, EncodeError
from protocol.message import Question
from protocol.name import fold
from server.zone.model import RR, Change

CLOSE_SECONDS: Final = 5.0  # after a Retry Delay the client has this long to close (RFC 8490 §6.6.1)
ERROR_RETRY_MS: Final = 300_000  # RFC 8765 §6.2.2 recommends five minutes for errors that may pass
FULL_RETRY_MS: Final = 60_000  # one minute for SERVFAIL
LASTING_RETRY_MS: Final = 3_600_000  # and an hour for what this server does not do
GOODBYE_STEP_MS: Final = 100  # between the returns of clients sent away together (RFC 8490 §6.6.1.1): ten a second
GOODBYE_SPREAD_MS: Final = 60_000
_SLICE: Final = 200  # sessions served in one call, so that queries get their turn in between


@dataclass(frozen=True, slots=True, kw_only=True)
class DsoLimits:
    """Timeouts of RFC 8490 §6 in seconds, and how much may be subscribed to."""

    inactivity_seconds: int = 15
    keepalive_seconds: int = 300
    maximum_subscriptions: int = 100_000
    maximum_per_session: int = 1_000


@dataclass(slots=True)
class DsoCounters:
    """What happened since the start."""

    sessions: int = 0
    subscribed: int = 0
    refused: int = 0
    pushes: int = 0
    aborted: int = 0
    oversized: int = 0
    """Records that fit no PUSH message even alone and were left out."""


class SendDso(NamedTuple):
    """Put a message on the stream."""

    via: int
    wire: bytes


class Abort(NamedTuple):
    """Reset the connection: the peer did what RFC 8490 calls a fatal error, or went silent."""

    via: int
    reason: str


Effect = SendDso | Abort
Record = tuple[int, bytes]  # type and rdata: what tells records of one owner name apart
View = Mapping[Record, RR]  # what a topic's records are, with their TTLs; never changed once made
_NOTHING: Final[View] = {}


@dataclass(slots=True, eq=False)
class _Topic:
    """A question that someone watches, and what the zone last said to it. `pushes`: PUSH messages by view, shared."""

    key: bytes
    rtype: int
    rclass: int
    watches: dict["_Watch", None] = field(default_factory=dict)
    view: View = field(default_factory=lambda: _NOTHING)
    is_stale: bool = True
    pushes: dict[int, tuple[View, list[bytes]]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Watch:
    """One SUBSCRIBE. `told` is the view its client has."""

    session: "_Session"
    message_id: int
    topic: _Topic
    told: View


@dataclass(slots=True, eq=False)
class _Session:
    via: int
    heard_at: float
    active_at: float
    watches: dict[int, _Watch] = field(default_factory=dict)
    topics: set[tuple[bytes, int, int]] = field(default_factory=set)
    dirty: dict[_Watch, None] = field(default_factory=dict)
    is_paused: bool = False
    closes_at: float | None = None


Lookup = Callable[[bytes, int], list[RR]]
Admit = Callable[[Question], Rcode]


class DsoMachine:
    """All DSO sessions of a server. `via` numbers a TLS connection; `now` is monotonic seconds.

    `lookup(key, type)` gives the records at exactly this folded owner name that a stranger may see: of the type or the
    CNAME in their place, all of them for ANY. `admit` says NOERROR or why a question may not be subscribed to.
    """

    def __init__(self, limits: DsoLimits, *, lookup: Lookup, admit: Admit) -> None:
        self._limits = limits
        self._lookup = lookup
        self._admit = admit
        self._sessions: dict[int, _Session] = {}
        self._topics: dict[bytes, dict[tuple[int, int], _Topic]] = {}
        self._dirty: dict[_Session, None] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._effects: list[Effect] = []
        self._subscriptions = 0
        self.counters = DsoCounters()

    # -- what the driver asks ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Subscriptions."""
        return self._subscriptions

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    def has_session(self, via: int) -> bool:
        """Whether this connection is a DSO session, so that its timeouts are RFC 8490's and nobody else's."""
        return via in self._sessions

    def is_leaving(self, via: int) -> bool:
        """Whether the client was asked to leave: what it sent meanwhile is ignored in silence (RFC 8490 §6.6.1.1)."""
        session = self._sessions.get(via)
        return session is not None and session.closes_at is not None

    def take_effects(self) -> list[Effect]:
        """What to do now, in order. Work that is left makes `next_deadline` say "at once"."""
        effects, self._effects = self._effects, []
        return effects

    def next_deadline(self) -> float | None:
        """When to call `handle_deadline`: a moment long past when sessions wait for their turn."""
        if self._dirty:
            return 0.0
        return self._deadlines[0][0] if self._deadlines else None

    def handle_deadline(self, now: float) -> None:
        """Serve sessions that something changed for, and end those that went silent."""
        for _ in range(min(_SLICE, len(self._dirty))):
            session = next(iter(self._dirty))
            self._serve(session)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, via = heapq.heappop(self._deadlines)
            known = self._sessions.get(via)
            if known is None:
                continue
            if self._deadline(known) <= now:
                self.abort(via, "no sign of the client for too long")
            else:
                self._arm(known)

    # -- what happens on a connection ----------------------------------------------------------------------------------

    def receive(self, via: int, wire: bytes, now: float) -> None:
        """Take a DSO message that came on a TLS connection."""
        if self.is_leaving(via):
            return
        session = self._sessions.get(via)
        if session is not None:
            session.heard_at = now
        message_id = int.from_bytes(wire[:2], "big")
        is_response = bool(wire[2] & 0x80)
        if is_response:
            self.abort(via, "a response, though this server asks nothing")
            return
        if not message_id and session is None:
            self.abort(via, "a unidirectional message before a session")
            return
        try:
            message = decode_dso(wire)
            primary = message.primary
            if primary is None:
                raise DecodeError("a stateful operation without a TLV", HEADER_OCTETS)
        except DecodeError as error:
            self._refuse(via, message_id, Rcode.FORMERR, ERROR_RETRY_MS, error.reason, pads=False)
            return
        if any(tlv.type in _KNOWN and tlv.type != DsoType.PADDING for tlv in message.tlvs[1:]):
            self.abort(via, "a TLV where it may not stand")
        elif message_id:
            self._request(via, session, message, primary, now)
        elif session is not None:
            self._unidirectional(session, message, primary, now)

    def note_message(self, via: int, now: float) -> None:
        """An ordinary DNS message came on the connection: a session is neither idle nor silent."""
        session = self._sessions.get(via)
        if session is not None:
            session.heard_at = session.active_at = now

    def abort(self, via: int, reason: str) -> None:
        """End a connection that broke a rule of these RFCs, here or in an ordinary message."""
        self.counters.aborted += 1
        self.stream_closed(via)
        self._effects.append(Abort(via, reason))

    def stream_closed(self, via: int) -> None:
        session = self._sessions.pop(via, None)
        if session is None:
            return
        for message_id in list(session.watches):
            self._forget(session, message_id)
        self._dirty.pop(session, None)

    def stream_paused(self, via: int) -> None:
        session = self._sessions.get(via)
        if session is not None:
            session.is_paused = True
            self._dirty.pop(session, None)

    def stream_resumed(self, via: int) -> None:
        session = self._sessions.get(via)
        if session is not None:
            session.is_paused = False
            if session.dirty:
                self._dirty[session] = None

    def publish(self, change: Change) -> bool:
        """Mark whoever watches a name that a committed change touched. Whether anyone watches anything."""
        if not self._topics:
            return False
        for rr in (*change.removed, *change.added):
            topics = self._topics.get(fold(rr.owner))
            if topics is None:
                continue
            for topic in topics.values():
                if not topic.is_stale and (topic.rtype in (rr.rtype, Type.ANY) or rr.rtype == Type.CNAME):
                    self._mark(topic)
        return True

    def close(self, retry_ms: int, now: float) -> None:
        """Ask every client to leave and not to come back for a while, `retry_ms` or more (RFC 8490 §6.6.1).

        Nothing is said to them after that.
        """
        self._dirty.clear()
        for number, session in enumerate(self._sessions.values()):
            delay = retry_ms + number * GOODBYE_STEP_MS % GOODBYE_SPREAD_MS
            self._effects.append(SendDso(session.via, encode_dso(0, (retry_delay(delay),))))
            session.dirty.clear()
            session.closes_at = now + CLOSE_SECONDS
            heapq.heappush(self._deadlines, (session.closes_at, session.via))

    # -- requests ------------------------------------------------------------------------------------------------------

    def _request(self, via: int, session: _Session | None, message: DsoMessage, primary: Tlv, now: float) -> None:
        pads = message.additional(DsoType.PADDING) is not None
        if primary.type == DsoType.KEEPALIVE:
            try:
                decode_keepalive(primary)
            except DecodeError as error:
                self._refuse(via, message.id, Rcode.FORMERR, ERROR_RETRY_MS, error.reason, pads=pads)
                return
            self._establish(via, now)
            limits = self._limits
            values = keepalive(limits.inactivity_seconds * 1000, limits.keepalive_seconds * 1000)
            self._respond(via, message.id, Rcode.NOERROR, [values], pads=pads)
        elif primary.type == DsoType.SUBSCRIBE:
            self._subscribe(via, session, message, primary, now, pads=pads)
        elif primary.type in _KNOWN:
            self.abort(via, "a request of a kind that clients do not make")
        else:
            reason = f"DSO-TYPE {primary.type} is not implemented"
            self._refuse(via, message.id, Rcode.DSOTYPENI, LASTING_RETRY_MS, reason, pads=pads)

    def _subscribe(
        self, via: int, session: _Session | None, message: DsoMessage, primary: Tlv, now: float, *, pads: bool
    ) -> None:
        try:
            question = decode_subscribe(primary)
        except DecodeError as error:
            self._refuse(via, message.id, Rcode.FORMERR, ERROR_RETRY_MS, error.reason, pads=pads)
            return
        place = fold(question.name), question.rtype, question.rclass
        if session is not None and (message.id in session.watches or place in session.topics):
            self.abort(via, "the same subscription twice")  # RFC 8765 §6.2.1
            return
        rcode = self._judge(question)
        if rcode == Rcode.NOERROR and self._is_full(session):
            rcode = Rcode.SERVFAIL
        if rcode != Rcode.NOERROR:
            delay = {Rcode.NOTIMP: LASTING_RETRY_MS, Rcode.SERVFAIL: FULL_RETRY_MS}.get(rcode, ERROR_RETRY_MS)
            self._refuse(via, message.id, rcode, delay, "not to be subscribed to", pads=pads)
            return
        session = self._establish(via, now)
        if session.dirty and not session.is_paused:
            self._serve(session)  # so that all a session was told is of one moment
        self._respond(via, message.id, Rcode.NOERROR, [], pads=pads)
        topic = self._topics.setdefault(place[0], {}).setdefault(place[1:], _Topic(*place))
        watch = _Watch(session, message.id, topic, _NOTHING)
        session.watches[message.id] = watch
        session.topics.add(place)
        session.active_at = now
        topic.watches[watch] = None
        self._subscriptions += 1
        self.counters.subscribed += 1
        session.dirty[watch] = None
        if session.is_paused:
            return
        self._serve(session)

    def _judge(self, question: Question) -> Rcode:
        if question.rclass not in (Class.IN, Class.ANY):
            return Rcode.NOTAUTH
        if is_meta_type(question.rtype) and question.rtype != Type.ANY:
            return Rcode.NOTIMP
        return self._admit(question)

    def _is_full(self, session: _Session | None) -> bool:
        limits = self._limits
        return self._subscriptions >= limits.maximum_subscriptions or (
            session is not None and len(session.watches) >= limits.maximum_per_session
        )

    def _unidirectional(self, session: _Session, message: DsoMessage, primary: Tlv, now: float) -> None:
        try:
            if primary.type == DsoType.UNSUBSCRIBE:
                message_id = decode_unsubscribe(primary)
                if message_id in session.watches:
                    self._forget(session, message_id)
                session.active_at = now
                self._arm(session)
                return
            if primary.type == DsoType.RECONFIRM:
                decode_reconfirm(primary)  # our data is what was committed: nothing to look into (RFC 8765 §6.5)
                session.active_at = now
                return
        except DecodeError as error:
            self.abort(session.via, error.reason)
            return
        self.abort(session.via, "a unidirectional message of a kind that clients do not send")

    def _establish(self, via: int, now: float) -> _Session:
        session = self._sessions.get(via)
        if session is None:
            session = self._sessions[via] = _Session(via, now, now)
            self.counters.sessions += 1
            self._arm(session)
        return session

    def _forget(self, session: _Session, message_id: int) -> None:
        watch = session.watches.pop(message_id)
        topic = watch.topic
        session.topics.discard((topic.key, topic.rtype, topic.rclass))
        session.dirty.pop(watch, None)
        del topic.watches[watch]
        self._subscriptions -= 1
        if not topic.watches:
            at_name = self._topics[topic.key]
            del at_name[topic.rtype, topic.rclass]
            if not at_name:
                del self._topics[topic.key]

    # -- replies and ends ----------------------------------------------------------------------------------------------

    def _respond(self, via: int, message_id: int, rcode: Rcode, tlvs: list[tuple[int, bytes]], *, pads: bool) -> None:
        if pads:
            size = len(encode_dso(message_id, tlvs))
            tlvs = [*tlvs, padding_for(size)]
        self._effects.append(SendDso(via, encode_dso(message_id, tlvs, is_response=True, rcode=rcode)))

    def _refuse(self, via: int, message_id: int, rcode: Rcode, delay_ms: int, reason: str, *, pads: bool) -> None:
        """An error reply with the time to stay away (RFC 8765 §6.2.2); what wants no reply can only be aborted."""
        if not message_id:
            self.abort(via, reason)
            return
        self.counters.refused += 1
        self._respond(via, message_id, rcode, [retry_delay(delay_ms)], pads=pads)

    def _deadline(self, session: _Session) -> float:
        """When the session is to be aborted unless something comes (RFC 8490 §6.4, §6.5)."""
        limits = self._limits
        moments = [session.heard_at + 2 * limits.keepalive_seconds]
        if not session.watches:
            moments.append(session.active_at + max(CLOSE_SECONDS, 2 * limits.inactivity_seconds))
        if session.closes_at is not None:
            moments.append(session.closes_at)
        return min(moments)

    def _arm(self, session: _Session) -> None:
        heapq.heappush(self._deadlines, (self._deadline(session), session.via))
        if len(self._deadlines) > 4 * len(self._sessions) + 64:  # mostly of sessions that ended or spoke since
            self._deadlines = [(self._deadline(known), via) for via, known in self._sessions.items()]
            heapq.heapify(self._deadlines)

    # -- changes -------------------------------------------------------------------------------------------------------

    def _mark(self, topic: _Topic) -> None:
        topic.is_stale = True
        for watch in topic.watches:
            session = watch.session
            if session.closes_at is not None:
                continue
            session.dirty[watch] = None
            if not session.is_paused:
                self._dirty[session] = None

    def _serve(self, session: _Session) -> None:
        """Tell one session the net difference for all that changed, each record once (RFC 8765 §6.3.1)."""
        self._dirty.pop(session, None)
        dirty, session.dirty = session.dirty, {}
        changed: list[_Watch] = []
        for watch in dirty:
            topic = watch.topic
            if topic.is_stale:
                self._renew(topic)
            if watch.told is not topic.view:
                changed.append(watch)
        if not changed:
            return
        if len(changed) == 1:
            messages = self._shared_push(changed[0])
        else:
            merged: dict[tuple[bytes, int, int, int, bytes], PushedRecord] = {}
            for is_removal in (True, False):
                for watch in changed:
                    for record in _difference(watch.topic, watch.told):
                        if (record.ttl > 0x7FFFFFFF) is is_removal:
                            identity = (watch.topic.key, record.rtype, record.rclass, is_removal, record.rdata)
                            merged.setdefault(identity, record)
            messages = self._encode(list(merged.values()))
        for watch in changed:
            watch.told = watch.topic.view
        for wire in messages:
            self.counters.pushes += 1
            self._effects.append(SendDso(session.via, wire))

    def _renew(self, topic: _Topic) -> None:
        topic.is_stale = False
        view = {(rr.rtype, rr.rdata): rr for rr in self._lookup(topic.key, topic.rtype)}
        if view.keys() == topic.view.keys() and all(view[key].ttl == topic.view[key].ttl for key in view):
            return  # the same object stays, so that views compare by identity
        topic.view = view
        topic.pushes.clear()

    def _shared_push(self, watch: _Watch) -> list[bytes]:
        """The messages from a client's view to the zone's, made once for all who have that view."""
        topic, told = watch.topic, watch.told
        known = topic.pushes.get(id(told))
        if known is None:
            messages = self._encode(_difference(topic, told))
            known = topic.pushes[id(told)] = told, messages  # holding `told` keeps its id from being used again
        return known[1]

    def _encode(self, records: list[PushedRecord]) -> list[bytes]:
        try:
            return encode_push(records)
        except EncodeError:
            fitting = [record for record in records if len(record.rdata) < _LARGEST_RDATA]
            self.counters.oversized += len(records) - len(fitting)
            return encode_push(fitting)


_KNOWN: Final = frozenset(DsoType)
_LARGEST_RDATA: Final = 16382 - HEADER_OCTETS - 4 - 255 - 10


def _difference(topic: _Topic, told: View) -> list[PushedRecord]:
    """Removals first, in their most compact form, then additions and records whose TTL is another one now."""
    view = topic.view
    gone = [rr for key, rr in told.items() if key not in view]
    records: list[PushedRecord] = []
    if gone:
        left = {rtype for rtype, _ in told.keys() & view.keys()}
        types = dict.fromkeys(rr.rtype for rr in gone)
        if topic.rtype == Type.ANY and not view and len(types) > 1:
            records.append(PushedRecord(gone[0].owner, Type.ANY, Class.IN, PUSH_REMOVE_SET, b""))
        else:
            for rtype in types:
                of_type = [rr for rr in gone if rr.rtype == rtype]
                if rtype in left:
                    records += [PushedRecord(rr.owner, rtype, Class.IN, PUSH_REMOVE_ONE, rr.rdata) for rr in of_type]
                else:
                    records.append(PushedRecord(of_type[0].owner, rtype, Class.IN, PUSH_REMOVE_SET, b""))
    for key, rr in view.items():
        had = told.get(key)
        if had is None or had.ttl != rr.ttl:
            records.append(PushedRecord(rr.owner, rr.rtype, Class.IN, rr.ttl, rr.rdata))
    return records
