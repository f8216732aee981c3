"""A zone with pending changes on top, invisible to readers until a commit publishes them.

Drafts stack: a batch is a draft on the zone, each update a draft on the batch. A refused update's draft is dropped and
leaves no trace; an accepted one is folded into the batch, so that later updates see it.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol, Self

from protocol.constants import Type
from protocol.name import fold, is_at_or_below
from protocol.rdata import canonical, soa_with_serial
from server.zone.model import RR, Actor, Change, NodeChange, Renewal, ZoneCommit
from server.zone.node import Node, RRset, encode_node
from server.zone.zone import Zone

_SOA: Final = int(Type.SOA)


class Base(Protocol):
    """What a draft stands on: a zone or another draft."""

    @property
    def apex(self) -> bytes: ...
    @property
    def serial(self) -> int: ...
    @property
    def soa_template(self) -> bytes: ...
    @property
    def soa_ttl(self) -> int: ...
    def node(self, key: bytes) -> Node | None: ...


class Draft:
    """Pending changes over `base`. A node it changes becomes its own copy first; RRsets are never changed in place."""

    __slots__ = ("_below", "_soa", "apex", "base", "serial", "soa_template", "soa_ttl", "touched")

    def __init__(self, base: Base) -> None:
        self.base = base
        self.apex = base.apex
        self.serial = base.serial
        self.soa_template = base.soa_template
        self.soa_ttl = base.soa_ttl
        self.touched: dict[bytes, Node | None] = {}
        self._below: dict[bytes, Node | None] = {}
        self._soa: RR | None = None  # what the last `advance` ended with, and the next begins with

    def node(self, key: bytes) -> Node | None:
        """The node at a folded owner name as it would be; not to be changed."""
        if key in self.touched:
            return self.touched[key]
        return self.below(key)

    def below(self, key: bytes) -> Node | None:
        """The node in the base, which stands still while a draft is on it: taken apart once, however often asked."""
        if key not in self._below:
            self._below[key] = self.base.node(key)
        return self._below[key]

    def rrset(self, key: bytes, rtype: int) -> RRset | None:
        """One RRset as it would be; the SOA at the apex included."""
        if rtype == _SOA:
            if key != self.apex:
                return None
            return RRset(Type.SOA, self.soa_ttl, (soa_with_serial(self.soa_template, self.serial),), (0,))
        node = self.node(key)
        return None if node is None else node.rrsets.get(rtype)

    def put(self, owner: bytes, rrset: RRset) -> None:
        """Set one RRset; `owner` gives the case of a name that does not exist yet."""
        key = fold(owner)
        node = self.touched.get(key)
        if node is None:
            base = None if key in self.touched else self.below(key)
            node = Node(owner, {}) if base is None else Node(base.owner, base.rrsets.copy())
            self.touched[key] = node
        node.rrsets[rrset.rtype] = rrset

    def drop(self, key: bytes, rtype: int) -> None:
        """Take one RRset away; nothing happens when it is not there."""
        node = self.touched.get(key)
        if node is None:
            base = None if key in self.touched else self.below(key)
            if base is None or rtype not in base.rrsets:
                return
            node = self.touched[key] = Node(base.owner, base.rrsets.copy())
        elif rtype not in node.rrsets:
            return
        del node.rrsets[rtype]
        if not node.rrsets:
            self.touched[key] = None

    def fold_in(self, upper: "Draft", found: "Differences") -> None:
        """Take over what an accepted draft on top of this one holds, and what it `found` to differ."""
        for key, difference in found.by_key.items():
            if difference.is_anything:
                self.touched[key] = upper.touched[key]
        self._soa = None
        self.serial = upper.serial
        self.soa_template = upper.soa_template
        self.soa_ttl = upper.soa_ttl

    def differences(self) -> "Differences":
        """What this draft changes against its base."""
        return Differences(self)

    def change(self, differences: "Differences", serial: int, *, at: int, actor: Actor) -> Change:
        """Move to `serial` and describe the step from the base."""
        base = self.base
        old_soa = _soa_rr(base)
        self.serial, self._soa = serial, None
        removed, added = (old_soa, *differences.removed), (_soa_rr(self), *differences.added)
        return Change(self.apex, base.serial, serial, at, actor, removed, added)

    def advance(self, found: "NodeDifference", serial: int, *, at: int, actor: Actor) -> Change:
        """Move to `serial` and describe the step, which was to touch what was `found`."""
        before, old_soa = self.serial, self._soa or _soa_rr(self)
        self.serial = serial
        soa = self._soa = _soa_rr(self)
        step = (self.apex, before, serial, at, actor, (old_soa, *found.removed), (soa, *found.added))
        return tuple.__new__(Change, step)


def _soa_rr(draft: Base) -> RR:
    soa = soa_with_serial(draft.soa_template, draft.serial)
    return tuple.__new__(RR, (draft.apex, _SOA, draft.soa_ttl, soa))


class NodeDifference:
    """What changed at one owner name: RRs, and whether a lease moved of one that stays as it was."""

    __slots__ = ("added", "moves_lease", "removed")

    def __init__(self) -> None:
        self.removed: list[RR] = []
        self.added: list[RR] = []
        self.moves_lease = False

    @property
    def is_anything(self) -> bool:
        return bool(self.removed or self.added or self.moves_lease)

    @classmethod
    def between(cls, old: Node | None, new: Node | None) -> Self:
        """What leads from one node to the other."""
        found = cls()
        before = old.rrsets if old else {}
        after = new.rrsets if new else {}
        old_owner, new_owner = old.owner if old else b"", new.owner if new else b""
        for rtype, old_set in before.items():
            new_set = after.get(rtype)
            if new_set is not old_set:
                found._compare(old_owner, new_owner, rtype, _rows(old_set), _rows(new_set))
        for rtype, new_set in after.items():
            if rtype not in before:
                found._compare(old_owner, new_owner, rtype, _NO_ROWS, _rows(new_set))
        return found

    def _compare(self, old_owner: bytes, new_owner: bytes, rtype: int, old_rows: "_Rows", new_rows: "_Rows") -> None:
        make = tuple.__new__  # half the time of calling a NamedTuple, and this runs for each record of each update
        for rdata_key, (ttl, rdata, _) in old_rows.items():
            if rdata_key not in new_rows:
                self.removed.append(make(RR, (old_owner, rtype, ttl, rdata)))
        for rdata_key, (ttl, rdata, at) in new_rows.items():
            was = old_rows.get(rdata_key)
            if was is None or was[0] != ttl:
                if was is not None:
                    self.removed.append(RR(old_owner, rtype, was[0], was[1]))
                self.added.append(make(RR, (new_owner, rtype, ttl, rdata)))
            elif was[2] != at:
                self.moves_lease = True


class Differences:
    """What a draft changes, name by name, found by comparing touched nodes with the base."""

    __slots__ = ("added", "by_key", "is_content", "removed")

    def __init__(self, draft: Draft) -> None:
        self.by_key: dict[bytes, NodeDifference] = {}
        self.removed: list[RR] = []
        self.added: list[RR] = []
        for key, node in draft.touched.items():
            difference = self.by_key[key] = NodeDifference.between(draft.below(key), node)
            self.removed += difference.removed
            self.added += difference.added
        # Whether the serial must move (RFC 9664 §5.3: leases alone are not content).
        self.is_content = bool(
            self.removed or self.added or draft.serial != draft.base.serial or _has_new_soa(draft, draft.base)
        )

    @property
    def renewed(self) -> list[bytes]:
        """The names of which a lease moved."""
        return [key for key, difference in self.by_key.items() if difference.moves_lease]


def _has_new_soa(draft: Draft, base: Base) -> bool:
    """Whether the SOA differs in more than its serial."""
    return draft.soa_ttl != base.soa_ttl or (
        draft.soa_template is not base.soa_template
        and soa_with_serial(draft.soa_template, 0) != soa_with_serial(base.soa_template, 0)
    )


_Rows = Mapping[bytes, tuple[int, bytes, int]]
_NO_ROWS: Final[_Rows] = {}


def _rows(rrset: RRset | None) -> _Rows:
    """Canonical rdata -> (TTL, rdata, expires)."""
    if rrset is None:
        return _NO_ROWS
    rtype, ttl, rdatas, expires = rrset
    if len(rdatas) == 1:
        rdata = rdatas[0]
        return {canonical(rtype, rdata): (ttl, rdata, expires[0])}
    return {canonical(rtype, rdata): (ttl, rdata, at) for rdata, at in zip(rdatas, expires, strict=True)}


def commit_of(
    zone: Zone, batch: Draft, changes: Sequence[Change], renewals: Mapping[bytes, Renewal] = MappingProxyType({})
) -> ZoneCommit | None:
    """The net effect of a batch on its zone; None when it has none. `renewals`: who renewed leases at which name."""
    nodes = []
    for key, node in batch.touched.items():
        before, after = zone.stored(key), encode_node(node) if node and node.rrsets else None
        if before != after:
            nodes.append(NodeChange(key, key if node is None else node.owner, before, after, renewals.get(key)))
    if not changes and not nodes:
        return None
    soa = (soa_with_serial(batch.soa_template, 0), batch.soa_ttl) if _has_new_soa(batch, zone) else None
    return ZoneCommit(zone.id, zone.serial, batch.serial, tuple(nodes), tuple(changes), soa)


def publish(zone: Zone, batch: Draft, commit: ZoneCommit) -> Iterator[tuple[bytes, Node | None]]:
    """Make a committed batch what queries see; yields each changed node (the lease queue listens).

    The caller must exhaust it at once: there is no await between commit and the last node.
    """
    zone.serial = batch.serial
    zone.soa_template = batch.soa_template
    zone.soa_ttl = batch.soa_ttl
    for change in commit.nodes:
        node = batch.touched[change.key]
        zone.put(change.key, node, change.after)
        yield change.key, node


def is_in_zone(key: bytes, apex: bytes) -> bool:
    """Whether a folded name lies in the zone (RFC 2136 §3.2: else NOTZONE)."""
    return is_at_or_below(key, apex)
