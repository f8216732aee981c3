"""When leases lapse: a queue by moment that costs nothing per refresh and O(due) per lapse.

Each owner name with a leased record stands in one bucket, at or before its earliest lapse. A refresh moves no bucket:
when the old moment comes the owner is found not due and put at its new one. Only a lease that ends earlier than the
one queued is queued again.
"""

import heapq

from protocol.name import fold
from server.zone.draft import Draft
from server.zone.node import Node, RRset, earliest_lapse
from server.zone.zone import Zone, Zones


class LeaseQueue:
    """Owners (zone apex, folded owner name) by the second at which to look at them, seconds since 1970.

    One place in a list an owner: there may be a million. That it has one, and when, the zone knows (`Zone.look`).
    """

    def __init__(self, zones: Zones) -> None:
        self._zones = zones
        self._buckets: dict[tuple[int, bytes], list[bytes]] = {}  # owner names by moment and apex
        self._moments: list[tuple[int, bytes]] = []
        self._count = 0

    def __len__(self) -> int:
        """Owner names with a lease running."""
        return self._count

    def watched(self) -> set[tuple[bytes, bytes]]:
        """All owners with a lease running."""
        return {(zone.apex, key) for zone in self._zones for key in zone.looked_at()}

    def watch(self, apex: bytes, key: bytes, node: Node | None) -> None:
        """Note the leases of a node as it now stands in its zone."""
        at = earliest_lapse(node) if node else 0
        if at:
            self.watch_at(apex, key, at)

    def watch_at(self, apex: bytes, key: bytes, at: int) -> None:
        zone = self._zones.at(apex)
        if zone is None:
            return
        present = zone.look(key)
        if not present:
            self._count += 1
        elif present <= at:
            return
        zone.set_look(key, at)
        self._put(apex, key, at)

    def loaded(self, apex: bytes, key: bytes, at: int) -> None:
        """As `watch_at`, for a name of a zone that is being loaded, whose look is set."""
        self._count += 1
        self._put(apex, key, at)

    def forget(self, zone: Zone) -> None:
        """A zone that is no more takes its owners along."""
        self._count -= sum(1 for _ in zone.looked_at())
        kept = [place for place in self._moments if place[1] != zone.apex]
        if len(kept) < len(self._moments):
            self._moments = kept
            heapq.heapify(self._moments)
            self._buckets = {place: self._buckets[place] for place in kept}

    def _put(self, apex: bytes, key: bytes, at: int) -> None:
        place = at, apex
        bucket = self._buckets.get(place)
        if bucket is None:
            bucket = self._buckets[place] = []
            heapq.heappush(self._moments, place)
        bucket.append(key)

    def next_moment(self) -> int | None:
        """The earliest second at which something may lapse."""
        return self._moments[0][0] if self._moments else None

    def due_by(self, moment: int) -> int:
        """How many owners are to be looked at until then: those whose lease may end, refreshed ones among them."""
        found = 0
        for at, apex in self._moments:
            zone = self._zones.at(apex) if at <= moment else None
            if zone is not None:
                found += sum(zone.look(key) == at for key in self._buckets[at, apex])
        return found

    def take_due(self, now: int, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` owners with a record lapsed at `now`; those refreshed meanwhile are queued again.

        No more than twice as many are looked at, so that a crowd which was refreshed holds nobody up either: while
        `next_moment` is in the past there is more to do. What is taken must be lapsed and `watch`ed by the caller (or
        put back with `watch_at` when that fails).
        """
        due: list[tuple[bytes, bytes]] = []
        looks = 2 * limit
        while self._moments and self._moments[0][0] <= now and len(due) < limit and looks:
            place = moment, apex = self._moments[0]
            bucket, zone = self._buckets[place], self._zones.at(apex)
            while bucket and len(due) < limit and looks:
                looks -= 1
                key = bucket.pop()
                if zone is None or zone.look(key) != moment:
                    continue
                zone.set_look(key, 0)
                self._count -= 1
                node = zone.node(key)
                at = earliest_lapse(node) if node else 0
                if at and at <= now:
                    due.append((apex, key))
                elif at:
                    self.watch_at(apex, key, at)
            if not bucket:
                del self._buckets[place]
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
