"""The zone as queries see it: an index of immutable nodes, replaced node by node in one uninterrupted step.

Readers take what they need from it without an await in between, so each sees one serial; whoever must look longer (a
transfer) copies the index first. The SOA stands apart from the apex node because its serial moves with every commit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from protocol.constants import Type
from protocol.name import parent
from protocol.rdata import soa_with_serial
from server.zone.census import Census
from server.zone.children import Children
from server.zone.model import RR
from server.zone.node import (
    NEVER,
    Node,
    RRset,
    StoredNode,
    data_of,
    decode_node,
    encode_node,
    find_rrset,
    look_octets,
    look_of,
    to_blob,
    with_look,
)

_NS, _DNAME = int(Type.NS), int(Type.DNAME)


@dataclass(slots=True)
class Zone:
    """One zone in memory. `apex` and index keys are folded names. `member_id` is set for a private member's zone.

    `is_catalog`: it lists zones for secondaries, and nobody else has any use of it.
    """

    id: int
    apex: bytes
    serial: int
    soa_template: bytes
    soa_ttl: int
    member_id: int | None = None
    nodes: dict[bytes, bytes] = field(default_factory=dict)
    children: Children = field(init=False)
    cuts: set[bytes] = field(default_factory=set)  # owners of NS below the apex, and of DNAME
    is_catalog: bool = False
    _gone: dict[bytes, bytes] = field(default_factory=dict)  # when the lease queue looks for names that are no more
    _census: Census | None = None

    def __post_init__(self) -> None:
        self.children = Children(self.apex)

    @property
    def census(self) -> Census:
        """How many names each member has here: looked for when first asked for, counted from then on."""
        if self._census is None:
            self._census = Census(self.apex, self.nodes, is_private=self.is_private)
        return self._census

    @property
    def is_counted(self) -> bool:
        return self._census is not None

    @property
    def is_private(self) -> bool:
        return self.member_id is not None

    @property
    def is_open(self) -> bool:
        """Whether anyone may ask for anything in it."""
        return self.member_id is None and not self.is_catalog

    @property
    def soa(self) -> bytes:
        """SOA rdata with the current serial."""
        return soa_with_serial(self.soa_template, self.serial)

    def soa_rr(self) -> RR:
        return RR(self.apex, Type.SOA, self.soa_ttl, self.soa)

    def node(self, key: bytes) -> Node | None:
        """The node at a folded owner name; the apex node without its SOA."""
        blob = self.nodes.get(key)
        return None if blob is None else decode_node(key, blob)

    def rrset(self, key: bytes, rtype: int, now: int) -> RRset | None:
        """Records at a folded owner name that have not lapsed at `now`."""
        if rtype == Type.SOA:
            return RRset(Type.SOA, self.soa_ttl, (self.soa,), (0,)) if key == self.apex else None
        blob = self.nodes.get(key)
        found = None if blob is None else find_rrset(blob, rtype)
        return None if found is None else found.live(now)

    def exists(self, key: bytes) -> bool:
        """Whether a folded name exists: with records, as an empty non-terminal, or as the apex (RFC 8020)."""
        return key in self.nodes or key in self.children or key == self.apex

    def stored(self, key: bytes) -> bytes | None:
        """The octets by which the store knows what is at a folded owner name."""
        blob = self.nodes.get(key)
        return None if blob is None else data_of(blob)

    def put(self, key: bytes, node: Node | None, data: bytes | None = None) -> None:
        """Put one node in the place of what was at `key`, or take it away (None, or no records).

        `data`: its octets, if they were made already.
        """
        if node is None or not node.rrsets:
            blob = self.nodes.pop(key, None)
            if blob is not None:
                if not blob.startswith(NEVER):
                    self._gone[key] = blob[: len(NEVER)]
                self.children.unlink(key, self.nodes)
                if self._census is not None:
                    self._census.go(key)
            self.cuts.discard(key)
            return
        blob = self.nodes.get(key)
        if blob is None:
            self.children.link(key, self.nodes)
            if self._census is not None:
                self._census.come(key)
            look = self._gone.pop(key, NEVER) if self._gone else NEVER
        else:
            look = blob[: len(NEVER)]
        self.nodes[key] = to_blob(key, node.owner, encode_node(node) if data is None else data, look)
        self._note_cut(key, node)

    def _note_cut(self, key: bytes, node: Node) -> None:
        if _DNAME in node.rrsets or (_NS in node.rrsets and key != self.apex):
            self.cuts.add(key)
        elif self.cuts:
            self.cuts.discard(key)

    def look(self, key: bytes) -> int:
        """When the lease queue looks at a folded name next, seconds since 1970; 0 for never.

        It stands here because a dictionary of a million names would take as much as a tenth of the zone.
        """
        blob = self.nodes.get(key)
        return look_of(self._gone.get(key, NEVER) if blob is None else blob)

    def set_look(self, key: bytes, at: int) -> None:
        blob = self.nodes.get(key)
        if blob is not None:
            self.nodes[key] = with_look(blob, at)
        elif at:
            self._gone[key] = at.to_bytes(len(NEVER), "big")
        else:
            self._gone.pop(key, None)

    def looked_at(self) -> Iterator[bytes]:
        """The names that the lease queue will look at."""
        yield from (key for key, blob in self.nodes.items() if not blob.startswith(NEVER))
        yield from self._gone

    def load(self, nodes: Iterable[StoredNode], watch: Callable[[bytes, int], None] | None = None) -> None:
        """Fill a zone with names that it does not have.

        `watch` hears of each folded owner name with a lease, and when the first of them ends: its next look.
        """
        fresh: list[bytes] = []
        for stored in nodes:
            owner, data, lapses_at, may_cut = stored
            key = owner.lower()
            if watch is None or not lapses_at:
                self.nodes[key] = to_blob(key, owner, data)
            else:
                self.nodes[key] = to_blob(key, owner, data, look_octets(lapses_at))
                watch(key, lapses_at)
            if may_cut:
                self._note_cut(key, stored.decode())
            fresh.append(key)
        self.children.link_all(fresh, self.nodes)
        if self._census is not None:
            for key in fresh:
                self._census.come(key)

    def records(self, now: int) -> Iterator[RR]:
        """Every record not lapsed at `now`, SOA first: what a transfer sends."""
        yield self.soa_rr()
        for key, blob in list(self.nodes.items()):
            node = decode_node(key, blob)
            for rrset in node.rrsets.values():
                live = rrset.live(now)
                if live is not None:
                    for rdata in live.rdatas:
                        yield RR(node.owner, live.rtype, live.ttl, rdata)


class Zones:
    """All zones served, by folded apex."""

    def __init__(self, zones: Iterable[Zone] = ()) -> None:
        self._by_apex: dict[bytes, Zone] = {zone.apex: zone for zone in zones}

    def __iter__(self) -> Iterator[Zone]:
        return iter(self._by_apex.values())

    def __len__(self) -> int:
        return len(self._by_apex)

    @property
    def by_apex(self) -> Mapping[bytes, Zone]:
        """The zones by folded apex, live: one object for as long as this one."""
        return self._by_apex

    def at(self, apex: bytes) -> Zone | None:
        """The zone with exactly this folded apex."""
        return self._by_apex.get(apex)

    def add(self, zone: Zone) -> None:
        self._by_apex[zone.apex] = zone

    def remove(self, apex: bytes) -> None:
        self._by_apex.pop(apex, None)

    def enclosing(self, key: bytes, rtype: int = 0) -> Zone | None:
        """The deepest zone a folded name is in. DS at an apex belongs to the parent side (RFC 4035 §3.1.4.1)."""
        if rtype == Type.DS and key[0] and key in self._by_apex:
            above = self.enclosing(parent(key))
            if above is not None:
                return above
        while True:
            zone = self._by_apex.get(key)
            if zone is not None:
                return zone
            if not key[0]:
                return None
            key = key[key[0] + 1 :]
