"""Answers kept ready, with what each of them rests on: see `fastpath`."""

import heapq
from typing import Final

from protocol.constants import Type
from server.zone.model import RR
from server.zone.node import FOREVER, Node, RRset, find_rrset
from server.zone.zone import Zone

MAX_READY: Final = 32_768  # answers in one generation
MAX_READY_OCTETS: Final = 8 * 1024 * 1024  # keys and answers of one generation
MAX_PER_NAME: Final = 8192  # answers of a generation that rest on one name, or on a zone: dropped in one step


class Generation:
    """Answers with what they depend on. `until`: the last second, since 1970, at which an answer is right."""

    __slots__ = ("answers", "by_name", "facts", "moments", "octets")

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {}
        self.facts: dict[bytes, tuple[tuple[bytes, ...], int]] = {}
        self.by_name: dict[bytes, bytes | set[bytes]] = {}
        self.moments: list[tuple[int, bytes]] = []
        self.octets = 0

    @property
    def is_full(self) -> bool:
        return len(self.answers) >= MAX_READY or self.octets >= MAX_READY_OCTETS

    def put(self, key: bytes, answer: bytes, names: tuple[bytes, ...], until: int) -> None:
        self.drop(key)
        by_name = self.by_name
        for name in names:
            have = by_name.get(name)
            if isinstance(have, set) and len(have) >= MAX_PER_NAME:
                return
        self.answers[key] = answer
        self.facts[key] = names, until
        self.octets += len(key) + len(answer)
        for name in names:
            have = by_name.get(name)
            if have is None:
                by_name[name] = key
            elif isinstance(have, set):
                have.add(key)
            else:
                by_name[name] = {have, key}
        if until != FOREVER:
            heapq.heappush(self.moments, (until, key))
            if len(self.moments) > 2 * MAX_READY:  # mostly of answers dropped since
                self.moments = [(at, held) for held, (_, at) in self.facts.items() if at != FOREVER]
                heapq.heapify(self.moments)

    def drop(self, key: bytes) -> None:
        answer = self.answers.pop(key, None)
        if answer is None:
            return
        self.octets -= len(key) + len(answer)
        names, _ = self.facts.pop(key)
        for name in names:
            have = self.by_name.get(name)
            if isinstance(have, set):
                have.discard(key)
                if not have:
                    del self.by_name[name]
            elif have == key:
                del self.by_name[name]

    def drop_name(self, name: bytes) -> None:
        have = self.by_name.get(name)
        if have is None:
            return
        for key in list(have) if isinstance(have, set) else (have,):
            self.drop(key)

    def drop_ended(self, now: int) -> None:
        moments = self.moments
        while moments and moments[0][0] < now:
            until, key = heapq.heappop(moments)
            facts = self.facts.get(key)
            if facts is not None and facts[1] == until:
                self.drop(key)


class TracedZone(Zone):
    """A zone that notes what an answer is made from: nodes by name, absence or the SOA.

    `until`: the last second at which the leases of what was looked at leave the answer as it is.
    """

    __slots__ = ("names", "now", "rests_on_zone", "until")

    def __init__(self, zone: Zone, now: int) -> None:
        super().__init__(
            zone.id,
            zone.apex,
            zone.serial,
            zone.soa_template,
            zone.soa_ttl,
            zone.member_id,
            zone.nodes,
            zone.cuts,
        )
        self.children = zone.children
        self.now = now
        self.names: set[bytes] = set()
        self.rests_on_zone = False
        self.until = FOREVER

    def _note(self, rrset: RRset) -> None:
        coming = [at for at in rrset.expires if at > self.now]
        if coming:
            self.until = min(self.until, min(coming) - max(rrset.ttl, 1))

    def node(self, key: bytes) -> Node | None:
        self.names.add(key)
        node = super().node(key)
        for rrset in node.rrsets.values() if node else ():
            self._note(rrset)
        return node

    def rrset(self, key: bytes, rtype: int, now: int) -> RRset | None:
        self.names.add(key)
        if rtype == Type.SOA and key == self.apex:
            self.rests_on_zone = True
        blob = self.nodes.get(key)
        found = None if blob is None else find_rrset(blob, rtype)
        if found is not None:
            self._note(found)
        return Zone.rrset(self, key, rtype, now)

    def exists(self, key: bytes) -> bool:
        if key not in self.nodes:
            self.rests_on_zone = True
        return Zone.exists(self, key)

    def soa_rr(self) -> RR:
        self.rests_on_zone = True
        return Zone.soa_rr(self)
