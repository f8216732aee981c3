"""Brings subscriptions over a restart: writes them about once a second, reads them back before anything is served.

Nothing here is on the way of a query or an event. What the last second before a crash did not write is made good from
the journal: for each zone a mark says up to which serial the stored bounds of its topics take changes into account,
and every record that changed since may be with a client or not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Final

import structlog

from protocol.constants import Class, Type
from protocol.message import Question
from protocol.name import fold
from server.metrics import Metrics
from server.peer import Peer
from server.push.events import NOTHING, Item, Items
from server.push.ledger import Ledger
from server.push.llq_machine import LlqMachine, Restored
from server.push.subscriptions import Subscription
from server.store.api import Reader, Store, StoreError, SubscriptionChanges, SubscriptionRow, Subscriptions
from server.store.packing import unpack_items
from server.system import Clock
from server.zone.zone import Zones

SAVE_SECONDS: Final = 0.8  # so that with the time it takes the store is at most one second behind
_PAGE_ROWS: Final = 1000  # in one transaction, so that updates get their turn in between

log = structlog.get_logger(__name__)

Place = tuple[bytes, int]
_Bounds = dict[Place, tuple[Items, Items]]


class Survival:
    """Keeps one machine's subscriptions in the store, under the name of this node.

    `places` are the UDP listeners' addresses by number, as configured. `listener_of` is the UDP listener that will
    serve a subscription after its stream. `may_watch` is policy for (question, key name).
    """

    def __init__(
        self,
        machine: LlqMachine,
        ledger: Ledger,
        *,
        node: str,
        store: Store,
        zones: Zones,
        clock: Clock,
        metrics: Metrics,
        places: Sequence[str],
        listener_of: Callable[[Peer], int | None],
        may_watch: Callable[[Question, bytes | None], bool],
    ) -> None:
        self._machine = machine
        self._ledger = ledger
        self._node = node
        self._store = store
        self._zones = zones
        self._clock = clock
        self._metrics = metrics
        self._places = places
        self._listener_of = listener_of
        self._may_watch = may_watch
        self._marks: dict[int, int] = {}
        self._is_used = False

    # Writing

    async def save(self) -> None:
        """Write what is not in the store yet; what fails is logged, counted and tried again next time."""
        if not len(self._ledger) and not self._is_used:
            return
        self._is_used = len(self._machine) > 0
        marks = {zone.id: zone.serial for zone in self._zones}  # before the topics: what comes later is in the journal
        pages = self._ledger.take(
            lambda topic: self._machine.bounds(topic, now=self._clock.monotonic()),
            self._row,
            self._machine.topic_at,
            _PAGE_ROWS,
        )
        with closing(pages):
            for page in pages:
                try:
                    await self._store.save_subscriptions(self._node, page.changes)
                except BaseException as error:
                    self._ledger.put_back(page)
                    if not isinstance(error, StoreError):
                        raise
                    self._failed(error)
                    return
        moved = {number: serial for number, serial in marks.items() if self._marks.get(number) != serial}
        try:
            if moved:
                await self._store.save_subscriptions(self._node, SubscriptionChanges(marks=moved))
        except StoreError as error:
            self._failed(error)
            return
        self._marks = marks

    def _failed(self, error: StoreError) -> None:
        self._metrics.store_errors.inc()
        log.error("cannot save subscriptions, will try again", error=str(error))

    def _row(self, subscription: Subscription) -> SubscriptionRow:
        peer, topic = subscription.peer, subscription.topic
        via: int | None = peer.via
        if subscription.is_on_stream:
            via = self._listener_of(peer)
        return SubscriptionRow(
            topic.owner,
            topic.rtype,
            subscription.llq_id,
            subscription.name,
            peer.address,
            subscription.event_port if subscription.is_on_stream else peer.port,
            self._places[via] if via is not None and via < len(self._places) else "",
            subscription.key_name,
            round(self._clock.lease() + subscription.expires_at - self._clock.monotonic()),
            subscription.is_stream_born,
        )

    # Reading

    async def restore(self, longest_seconds: float) -> None:
        """Take up what a former process left; zones and keys are loaded, nothing is served yet.

        No lease goes on for longer than `longest_seconds`, whatever the clock did meanwhile.
        """
        async with self._store.reading() as reader:
            saved = await reader.subscriptions(self._node)
            bounds = await self._widened(reader, saved)
        self._marks = saved.marks
        now, offset = self._clock.monotonic(), self._clock.monotonic() - self._clock.lease()
        dropped = SubscriptionChanges()
        taken: set[Place] = set()
        for row in saved.rows:
            seconds = min(row.expires_at + offset - now, longest_seconds)
            if seconds > 0 and self._restore(row, now + seconds, bounds, now):
                taken.add((row.owner, row.rtype))
            else:
                dropped.ended.append((row.owner, row.rtype, row.llq_id))
        dropped.deserted += [place for place in bounds if place not in taken]
        self._is_used = bool(saved.rows or saved.topics)
        if dropped.ended or dropped.deserted:
            await self._store.save_subscriptions(self._node, dropped)
        if saved.rows:
            log.info("subscriptions taken up", taken=len(self._machine), dropped=len(dropped.ended))

    def _restore(self, row: SubscriptionRow, expires_at: float, bounds: _Bounds, now: float) -> bool:
        question = Question(row.name, row.rtype, Class.IN)
        via = self._listener(row)
        if via is None or not self._may_watch(question, row.key_name):
            return False
        sure, maybe = bounds.get((row.owner, row.rtype), (NOTHING, NOTHING))
        peer = Peer("udp", row.address, row.port, via)
        restored = Restored(question, row.llq_id, peer, row.key_name, expires_at, row.is_stream_born, sure, maybe)
        return self._machine.restore(restored, now=now)

    def _listener(self, row: SubscriptionRow) -> int | None:
        """The same address if it is still served, else the first of the client's family."""
        if row.listener in self._places:
            return self._places.index(row.listener)
        is_v6 = ":" in row.address
        return next((number for number, place in enumerate(self._places) if place.startswith("[") == is_v6), None)

    async def _widened(self, reader: Reader, saved: Subscriptions) -> _Bounds:
        """The stored bounds, widened by every record that the journal has since they were written."""
        bounds: _Bounds = {}
        types: dict[bytes, set[int]] = {}
        for row in saved.topics:
            sure = _items(row.sure)
            bounds[row.owner, row.rtype] = sure, sure if row.maybe is None else _items(row.maybe)
            types.setdefault(row.owner, set()).add(row.rtype)
        for zone in self._zones:
            mark = saved.marks.get(zone.id)
            if mark is None or mark == zone.serial or not types:
                continue
            for change in await reader.changes_since(zone.id, mark) or ():
                for rr in (*change.removed, *change.added):
                    item = frozenset((Item(rr.rtype, rr.rdata),))
                    for place in _watched(types, fold(rr.owner), rr.rtype):
                        sure, maybe = bounds[place]
                        bounds[place] = sure - item, maybe | item
        return bounds


def _watched(types: dict[bytes, set[int]], owner: bytes, rtype: int) -> Iterator[Place]:
    """The topics that a record of this type at this name belongs to: an alias to all there."""
    for watched in types.get(owner, ()):
        if rtype in (watched, Type.CNAME):
            yield owner, watched


def _items(packed: bytes) -> Items:
    return frozenset(Item(rtype, rdata) for rtype, rdata in unpack_items(packed))
