"""What was promised and what may be told, judged by packets and by the feed of changes alone."""

from collections.abc import Callable
from typing import Final, NamedTuple

from protocol.constants import Opcode, Type
from protocol.edns import LLQ_EVENT_REMOVE_TTL
from protocol.message import Message
from protocol.name import fold
from protocol.rdata import canonical
from server.zone.model import Change
from tests.sim.fleet.air import LATE_SECONDS
from tests.support.simloop import Address
from tests.support.zones import RowKey

EVENT_SECONDS: Final = 14.0 + LATE_SECONDS  # an event tells again for 14 s what was true when it was made
BUSY_SECONDS: Final = 10.0  # how long an update may wait for the writer
ROUNDED_SECONDS: Final = 1.0  # leases end at whole seconds, never too soon
PENDING_SECONDS: Final = 600.0  # no copy of an update is under way for longer
_TOLD: Final = (Type.A, Type.SRV, Type.PTR, Type.TXT)
_KEYS_KEPT: Final = 50_000


class _Pending(NamedTuple):
    """An update under way."""

    added: list[RowKey]
    lease: float
    since: float


class Truth:
    """Times are the loop's.

    `kept_until`: what the owner was told of, and until when at least. `told_until`: until when the server may tell of a
    record.
    """

    def __init__(self, now: Callable[[], float], note: Callable[[str], None]) -> None:
        self._now = now
        self._note = note
        self.kept_until: dict[RowKey, float] = {}
        self.told_until: dict[RowKey, float] = {}
        self.checked = 0
        self._promises: dict[tuple[bytes, int], set[RowKey]] = {}
        self._pending: dict[tuple[Address, int], _Pending] = {}
        self._keys: dict[tuple[bytes, int, bytes], RowKey] = {}

    def underway(self, place: Address, id: int, added: list[RowKey], lease: float) -> None:
        self._pending[place, id] = _Pending(added, lease, self._now())

    def update_sent(
        self, gone: list[RowKey], replaced: list[tuple[bytes, int]], added: list[RowKey], lease: float
    ) -> None:
        """From now on the server may have done it: what it deletes is owed no more, what it adds no longer."""
        for key in added:
            if key in self.kept_until:
                self.kept_until[key] = min(self.kept_until[key], self._now() + lease)
        for key in gone:
            self.kept_until.pop(key, None)
        for place in replaced:
            for key in self._promises.pop(place, ()):
                self.kept_until.pop(key, None)

    def arrives(self, source: Address, data: bytes) -> None:
        """At the server: from now on it may tell of it until the lease ends, or the former one, should it refuse."""
        if (data[2] >> 3 & 0xF) == Opcode.UPDATE:
            found = self._pending.get((source, int.from_bytes(data[:2], "big")))
            if found is not None:
                until = self._now() + BUSY_SECONDS + found.lease
                for key in found.added:
                    self.told_until[key] = max(until, self.told_until.get(key, 0.0))

    def acknowledged(self, added: list[RowKey], sent_at: float, lease: float) -> None:
        """It began after it was sent and before now."""
        for key in added:
            self.kept_until[key] = sent_at + lease
            self.told_until[key] = self._now() + ROUNDED_SECONDS + lease
            self._promises.setdefault(key[:2], set()).add(key)

    def told(self, message: Message, wire: bytes, sent_at: float, *, is_event: bool) -> None:
        """A reply or an event: nothing in it has lapsed, nor does it say that a record lives longer than it does."""
        slack = EVENT_SECONDS if is_event else 1.0
        for record in message.answers:
            if record.ttl == LLQ_EVENT_REMOVE_TTL or record.rtype not in _TOLD:
                continue
            key = self._key(record.name, record.rtype, record.rdata(wire))
            until = self.told_until.get(key, 0.0)
            self.checked += 1
            if sent_at >= until + slack:
                self._note(f"told of {key}, which lapsed {sent_at - until:.1f} s before")
            elif record.ttl > until - sent_at + slack:
                self._note(f"told of {key} with TTL {record.ttl}, {until - sent_at:.1f} s before it lapses")

    def _key(self, name: bytes, rtype: int, rdata: bytes) -> RowKey:
        what = name, rtype, rdata
        key = self._keys.get(what)
        if key is None:
            if len(self._keys) >= _KEYS_KEPT:
                self._keys.clear()
            key = self._keys[what] = RowKey(fold(name), rtype, canonical(rtype, rdata))
        return key

    def changed(self, change: Change) -> None:
        """Nothing promised goes."""
        added = {(rr.owner, rr.rtype, rr.rdata) for rr in change.added}
        for rr in change.removed:
            if rr.rtype == Type.SOA or (rr.owner, rr.rtype, rr.rdata) in added:
                continue
            until = self.kept_until.get(self._key(rr.owner, rr.rtype, rr.rdata), 0.0)
            if until > self._now():
                self._note(f"lost {rr} by {change.actor}, {until - self._now():.1f} s too early")

    def check_kept(self, holds: Callable[[RowKey], bool]) -> None:
        now = self._now()
        for key, until in list(self.kept_until.items()):
            if until <= now:
                del self.kept_until[key]
            elif not holds(key):
                self._note(f"lost {key}, {until - now:.1f} s too early")

    def forget_old(self) -> None:
        """What can matter no more."""
        now = self._now()
        self._pending = {key: found for key, found in self._pending.items() if found.since > now - PENDING_SECONDS}
        self.told_until = {key: until for key, until in self.told_until.items() if until > now - 86400}
        self._promises = {
            place: {key for key in keys if key in self.kept_until} for place, keys in self._promises.items()
        }
