"""When leases lapse: a queue by moment that costs nothing per refresh and O(due) per lapse.

Each owner name with a leased record stands in one bucket, at or before its earliest lapse. A refresh moves no bucket:
when the old moment comes the owner is found not due and put at its new one. Only a lease that ends earlier than the
one queued is queued again.
"""

import heapq
from collections.abc import Callable

from protocol.name import fold
from server.zone.draft import Draft
from server.zone.node import Node, RRset, earliest_lapse


class LeaseQueue:
    """Owners (zone apex, folded owner name) by the second at which to look at them, seconds since 1970."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[tuple[bytes, bytes]]] = {}
        self._moments: list[int] = []
        self._queued: dict[tuple[bytes, bytes], int] = {}

    def __len__(self) -> int:
        """Owner names with a lease running."""
        return len(self._queued)

    def watch(self, apex: bytes, key: bytes, node: Node | None) -> None:
        """Note the leases of a node as it now stands."""
        at = earliest_lapse(node) if node else 0
        if at:
            self.watch_at(apex, key, at)

    def watch_at(self, apex: bytes, key: bytes, at: int) -> None:
        entry = (apex, key)
        queued = self._queued.get(entry)
        if queued is not None and queued <= at:
            return
        self._queued[entry] = at
        bucket = self._buckets.get(at)
        if bucket is None:
            self._buckets[at] = [entry]
            heapq.heappush(self._moments, at)
        else:
            bucket.append(entry)

    def next_moment(self) -> int | None:
        """The earliest second at which something may lapse."""
        return self._moments[0] if self._moments else None

    def due_by(self, moment: int) -> int:
        """How many owners are to be looked at until then: those whose lease may end, refreshed ones among them."""
        return sum(self._queued.get(entry) == at for at in self._moments if at <= moment for entry in self._buckets[at])

    def take_due(
        self, now: int, limit: int, node_of: Callable[[bytes, bytes], Node | None]
    ) -> list[tuple[bytes, bytes]]:
        """At most `limit` owners with a record lapsed at `now`; those refreshed meanwhile are queued again.

        No more than twice as many are looked at, so that a crowd which was refreshed holds nobody up either: while
        `next_moment` is in the past there is more to do. What is taken must be lapsed and `watch`ed by the caller (or
        put back with `watch_at` when that fails).
        """
        due: list[tuple[bytes, bytes]] = []
        looks = 2 * limit
        while self._moments and self._moments[0] <= now and len(due) < limit and looks:
            moment = self._moments[0]
            bucket = self._buckets[moment]
            while bucket and len(due) < limit and looks:
                looks -= 1
                entry = bucket.pop()
                if self._queued.get(entry) != moment:
                    continue
                del self._queued[entry]
                node = node_of(*entry)
                at = earliest_lapse(node) if node else 0
                if at and at <= now:
                    due.append(entry)
                elif at:
                    self.watch_at(*entry, at)
            if not bucket:
                del self._buckets[moment]
                heapq.heappop(self._moments)
        return due


def lapse(draft: Draft, key: bytes, now: int) -> None:
    """Remove from one owner name every record whose lease has ended."""
    node = draft.node(key)
    if node is None:
        return
    for rrset in list(node.rrsets.values()):
        live: RRset | None = rrset.live(now)
        if live is None:
            draft.drop(fold(key), rrset.rtype)
        elif live is not rrset:
            draft.put(node.owner, live)
