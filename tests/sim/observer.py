"""What must be true at every moment, judged from the packets alone: acknowledged leases are kept, lapsed ones untold.

An observer notes violations instead of raising them: it is called from within the product, which survives exceptions.
All times are seconds since 1970 as leases count them.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.constants import Class, Opcode, Rcode, Type
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LlqOpcode, llq_options, update_lease
from protocol.message import Message, Record, decode
from protocol.name import fold
from protocol.rdata import canonical
from protocol.serial import is_newer
from server.zone.model import Change
from tests.support.simloop import Address
from tests.support.zones import RowKey

LONGEST_LEASE = 7200
EVENT_SECONDS = 14.0 + 3.0
"""An event tells again for 14 s what was true when it was made, and a packet takes its time."""
BUSY_SECONDS = 10.0
"""How long an update may wait for the writer."""
MAX_VIOLATIONS = 20


@dataclass(slots=True)
class _Update:
    sent_at: float
    added: list[RowKey] = field(default_factory=list)
    told_before: dict[RowKey, float] | None = None
    """What held for its records when it came to the server; None while it has not."""


class Observer:
    """Listens to every packet to and from the server.

    `kept_until`: records whose lease a client was told of, and until when at least. `told_until`: the last moment at
    which the server may still tell of a leased record.
    """

    def __init__(self, server: str, now: Callable[[], float]) -> None:
        self.violations: list[str] = []
        self.kept_until: dict[RowKey, float] = {}
        self.told_until: dict[RowKey, float] = {}
        self.permanent: set[RowKey] = set()
        self.serials: dict[bytes, int] = {}
        self.answers_checked = 0
        self.updates_acknowledged = 0
        self.update_acknowledged = asyncio.Event()
        self._server = server
        self._now = now
        self._updates: dict[tuple[object, int], _Update] = {}

    def note(self, text: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"at {self._now():.3f}: {text}")

    # Packets

    def sent(self, source: Address, destination: Address, data: bytes, stream: object) -> None:
        if destination[0] == self._server and stream is not None:
            message = decode(data)
            if message.header.opcode == Opcode.UPDATE:
                self._update_sent(message, stream)
        elif source[0] == self._server:
            message = decode(data)
            if message.header.opcode == Opcode.UPDATE:
                self._update_answered(message, stream)
            else:
                self._check_told(message)

    def arrived(self, source: Address, destination: Address, data: bytes, stream: object) -> None:
        if stream is None or len(data) < 12 or (data[2] >> 3 & 0xF) != Opcode.UPDATE:
            return
        if destination[0] == self._server:
            update = self._updates.get((stream, decode(data).id))
            if update is not None and update.told_before is None:
                update.told_before = {key: self.told_until.get(key, 0.0) for key in update.added}
                self._may_be_told(update, LONGEST_LEASE + BUSY_SECONDS)
        elif source[0] == self._server:
            message = decode(data)
            granted = update_lease(message.opt)
            update = self._updates.get((stream, message.id))
            if update is not None and message.header.rcode == Rcode.NOERROR and granted is not None:
                self.updates_acknowledged += 1
                self.update_acknowledged.set()
                for key in update.added:
                    self.kept_until[key] = update.sent_at + granted.lease

    def _update_sent(self, message: Message, stream: object) -> None:
        """From now on the server may have done it: what it deletes is owed no more."""
        update = self._updates[stream, message.id] = _Update(self._now())
        for record in message.authority:
            owner = fold(record.name)
            if record.rclass == Class.IN:
                update.added.append(_key(record, message))
            elif record.rclass == Class.NONE:
                self.kept_until.pop(RowKey(owner, record.rtype, canonical(record.rtype, record.rdata(message.wire))), 0)
            else:
                for key in [key for key in self.kept_until if key[:2] == (owner, record.rtype)]:
                    del self.kept_until[key]

    def _update_answered(self, message: Message, stream: object) -> None:
        update = self._updates.get((stream, message.id))
        granted = update_lease(message.opt)
        if update is None:
            return
        if message.header.rcode != Rcode.NOERROR:
            self.told_until.update(update.told_before or {})
        elif granted is not None:
            self._may_be_told(update, granted.lease)

    def _may_be_told(self, update: _Update, seconds: float) -> None:
        for key in update.added:
            self.told_until[key] = math.ceil(self._now()) + seconds

    def server_gone(self) -> None:
        """It was killed: what it had read may or may not be in the store, and will never be answered."""
        self._updates.clear()

    def _check_told(self, message: Message) -> None:
        now = self._now()
        # An event is repeated as it was; the moment that counts is that of its first transmission.
        slack = EVENT_SECONDS if _is_event(message) else 0.0
        for record in (*message.answers, *message.additional):
            if record.rtype in (Type.OPT, Type.TSIG, Type.SOA, Type.NS) or record.ttl == LLQ_EVENT_REMOVE_TTL:
                continue
            key = _key(record, message)
            if key in self.permanent:
                continue
            self.answers_checked += 1
            until = self.told_until.get(key, 0.0)
            if now >= until + slack:
                self.note(f"told of {key} which lapsed {now - until:.1f} s ago")
            elif record.ttl > until - now + slack + 1:
                self.note(f"told of {key} with TTL {record.ttl}, but it lapses in {until - now:.1f} s")

    # The zone

    def changed(self, change: Change) -> None:
        """The feed of committed changes: serials go forward without gaps."""
        known = self.serials.get(change.apex)
        if change.serial_from and known is not None and change.serial_from != known:
            self.note(f"serial of {change.apex!r} jumped from {known} to {change.serial_from}")
        if change.serial_from and not is_newer(change.serial_to, change.serial_from):
            self.note(f"serial of {change.apex!r} went from {change.serial_from} to {change.serial_to}")
        self.serials[change.apex] = change.serial_to

    def loaded(self, apex: bytes, serial: int) -> None:
        """A server starts with this serial: never behind what was published before."""
        known = self.serials.get(apex)
        if known is not None and known != serial and not is_newer(serial, known):
            self.note(f"zone {apex!r} was at serial {known} and starts at {serial}")
        self.serials[apex] = serial

    def check_kept(self, holds: Callable[[RowKey], bool]) -> None:
        """Every acknowledged record is there until its lease ends or its owner takes it back."""
        now = self._now()
        for key, until in list(self.kept_until.items()):
            if until <= now:
                del self.kept_until[key]
            elif not holds(key):
                self.note(f"lost {key}, which was acknowledged for {until - now:.1f} s more")
                del self.kept_until[key]


def _key(record: Record, message: Message) -> RowKey:
    return RowKey(fold(record.name), record.rtype, canonical(record.rtype, record.rdata(message.wire)))


def _is_event(message: Message) -> bool:
    options = llq_options(message.opt)
    return bool(options) and options[0].opcode == LlqOpcode.EVENT
