"""A zone with pending changes on top, invisible to readers until a commit publishes them.

Drafts stack: a batch is a draft on the zone, each update a draft on the batch. A refused update's draft is dropped and
leaves no trace; an accepted one is folded into the batch, so that later updates see it.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Protocol, Self

from protocol.constants import Type
from protocol.name import fold, is_at_or_below
from protocol.rdata import canonical, soa_with_serial
from server.zone.model import RR, Actor, Change, Renewal, RowKey, StoredRR, ZoneCommit
from server.zone.node import Node, RRset
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

    __slots__ = ("_below", "_found", "_soa", "apex", "base", "serial", "soa_template", "soa_ttl", "touched")

    def __init__(self, base: Base) -> None:
        self.base = base
        self.apex = base.apex
        self.serial = base.serial
        self.soa_template = base.soa_template
        self.soa_ttl = base.soa_ttl
        self.touched: dict[bytes, Node | None] = {}
        self._below: dict[bytes, Node | None] = {}
        # What one draft folded in found of a node that no other touched: compared with the base already.
        self._found: dict[bytes, NodeDifference] = {}
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
            self.take(key, upper.touched[key], difference)
        self._soa = None
        self.serial = upper.serial
        self.soa_template = upper.soa_template
        self.soa_ttl = upper.soa_ttl

    def differences(self) -> "Differences":
        """What this draft changes against its base."""
        return Differences(self, self._found)

    def change(self, differences: "Differences", serial: int, *, at: int, actor: Actor) -> Change:
        """Move to `serial` and describe the step from the base."""
        base = self.base
        old_soa = _soa_rr(base)
        self.serial, self._soa = serial, None
        removed, added = (old_soa, *differences.removed), (_soa_rr(self), *differences.added)
        return Change(self.apex, base.serial, serial, at, actor, removed, added)

    def take(self, key: bytes, node: Node | None, found: "NodeDifference") -> None:
        """Set one node as a whole; `found` says what it changes there."""
        if key in self.touched:
            self._found.pop(key, None)
        else:
            self._found[key] = found
        self.touched[key] = node

    def advance(self, found: "NodeDifference", serial: int, *, at: int, actor: Actor) -> Change:
        """Move to `serial` and describe the step, which was to `take` what was `found`."""
        before, old_soa = self.serial, self._soa or _soa_rr(self)
        self.serial = serial
        soa = self._soa = _soa_rr(self)
        step = (self.apex, before, serial, at, actor, (old_soa, *found.removed), (soa, *found.added))
        return tuple.__new__(Change, step)


def _soa_rr(draft: Base) -> RR:
    soa = soa_with_serial(draft.soa_template, draft.serial)
    return tuple.__new__(RR, (draft.apex, _SOA, draft.soa_ttl, soa))


class NodeDifference:
    """What changed at one owner name: RRs, rows of the store, and rows whose lease alone moved."""

    __slots__ = ("added", "deletes", "leased", "leases", "puts", "removed")

    def __init__(self) -> None:
        self.removed: list[RR] = []
        self.added: list[RR] = []
        self.deletes: list[RowKey] = []
        self.leased: list[tuple[RowKey, int]] = []  # those of `deletes` that had a lease, and its end
        self.puts: list[tuple[RowKey, StoredRR]] = []
        self.leases: list[tuple[RowKey, int | None]] = []

    @classmethod
    def between(cls, key: bytes, old: Node | None, new: Node | None) -> Self:
        """What leads from one node to the other."""
        found = cls()
        before = old.rrsets if old else {}
        after = new.rrsets if new else {}
        old_owner, new_owner = old.owner if old else b"", new.owner if new else b""
        for rtype, old_set in before.items():
            new_set = after.get(rtype)
            if new_set is not old_set:
                found._compare(key, old_owner, new_owner, rtype, _rows(old_set), _rows(new_set))
        for rtype, new_set in after.items():
            if rtype not in before:
                found._compare(key, old_owner, new_owner, rtype, _NO_ROWS, _rows(new_set))
        return found

    def _compare(
        self, key: bytes, old_owner: bytes, new_owner: bytes, rtype: int, old_rows: "_Rows", new_rows: "_Rows"
    ) -> None:
        make = tuple.__new__  # half the time of calling a NamedTuple, and this runs for each record of each update
        for rdata_key, (ttl, rdata, at) in old_rows.items():
            if rdata_key not in new_rows:
                row = make(RowKey, (key, rtype, rdata_key))
                self.removed.append(make(RR, (old_owner, rtype, ttl, rdata)))
                self.deletes.append(row)
                if at:
                    self.leased.append((row, at))
        for rdata_key, (ttl, rdata, at) in new_rows.items():
            was = old_rows.get(rdata_key)
            if was is None or was[0] != ttl:
                if was is not None:
                    self.removed.append(RR(old_owner, rtype, was[0], was[1]))
                self.added.append(make(RR, (new_owner, rtype, ttl, rdata)))
                stored = make(StoredRR, (new_owner, rtype, ttl, rdata, at or None))
                self.puts.append((make(RowKey, (key, rtype, rdata_key)), stored))
            elif was[2] != at:
                self.leases.append((make(RowKey, (key, rtype, rdata_key)), at or None))


class Differences:
    """What a draft changes, name by name, found by comparing touched nodes with the base."""

    __slots__ = ("added", "by_key", "is_content", "removed", "soa_changed")

    def __init__(self, draft: Draft, found: Mapping[bytes, NodeDifference]) -> None:
        base = draft.base
        self.by_key: dict[bytes, NodeDifference] = {}
        self.removed: list[RR] = []
        self.added: list[RR] = []
        for key, node in draft.touched.items():
            difference = self.by_key[key] = found.get(key) or NodeDifference.between(key, draft.below(key), node)
            self.removed += difference.removed
            self.added += difference.added
        self.soa_changed = draft.soa_ttl != base.soa_ttl or (
            draft.soa_template is not base.soa_template
            and soa_with_serial(draft.soa_template, 0) != soa_with_serial(base.soa_template, 0)
        )
        # Whether the serial must move (RFC 9664 §5.3: leases alone are not content).
        self.is_content = bool(self.removed or self.added or self.soa_changed or draft.serial != base.serial)

    @property
    def is_anything(self) -> bool:
        return self.is_content or any(each.leases for each in self.by_key.values())

    @property
    def deletes(self) -> list[RowKey]:
        return [row for each in self.by_key.values() for row in each.deletes]

    @property
    def puts(self) -> list[tuple[RowKey, StoredRR]]:
        return [row for each in self.by_key.values() for row in each.puts]

    @property
    def leased(self) -> list[tuple[RowKey, int]]:
        return [row for each in self.by_key.values() for row in each.leased]

    @property
    def leases(self) -> list[tuple[RowKey, int | None]]:
        return [row for each in self.by_key.values() for row in each.leases]


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
    zone: Zone, batch: Draft, changes: list[Change], *, now: int = 0, renewals: tuple[Renewal, ...] = ()
) -> ZoneCommit | None:
    """The net effect of a batch on its zone; None when it has none. What goes with a lease ended at `now` lapses."""
    net = batch.differences()
    if not changes and not net.is_anything:
        return None
    lapses = tuple((row, at) for row, at in net.leased if at <= now)
    lapsed = {row for row, _ in lapses}
    return ZoneCommit(
        zone.id,
        zone.serial,
        batch.serial,
        tuple(row for row in net.deletes if row not in lapsed) if lapsed else tuple(net.deletes),
        tuple(net.puts),
        tuple(net.leases),
        tuple(changes),
        (soa_with_serial(batch.soa_template, 0), batch.soa_ttl) if net.soa_changed else None,
        lapses,
        renewals,
    )


def publish(zone: Zone, batch: Draft) -> Iterator[tuple[bytes, Node | None]]:
    """Make a committed batch what queries see; yields each touched node (the lease queue listens).

    The caller must exhaust it at once: there is no await between commit and the last node.
    """
    zone.serial = batch.serial
    zone.soa_template = batch.soa_template
    zone.soa_ttl = batch.soa_ttl
    for key, node in batch.touched.items():
        zone.put(key, node)
        yield key, node


def is_in_zone(key: bytes, apex: bytes) -> bool:
    """Whether a folded name lies in the zone (RFC 2136 §3.2: else NOTZONE)."""
    return is_at_or_below(key, apex)
