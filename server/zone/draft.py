"""A zone with pending changes on top, invisible to readers until a commit publishes them.

Drafts stack: a batch is a draft on the zone, each update a draft on the batch. A refused update's draft is dropped and
leaves no trace; an accepted one is folded into the batch, so that later updates see it.
"""

from collections.abc import Iterator
from typing import Protocol

from protocol.constants import Type
from protocol.name import fold, is_at_or_below
from protocol.rdata import canonical, soa_with_serial
from server.zone.model import RR, Actor, Change, RowKey, StoredRR, ZoneCommit
from server.zone.node import Node, RRset, encode_node
from server.zone.zone import Zone


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
    """Pending changes over `base`. Nodes are replaced whole; RRsets are never changed in place."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.apex = base.apex
        self.serial = base.serial
        self.soa_template = base.soa_template
        self.soa_ttl = base.soa_ttl
        self.touched: dict[bytes, Node | None] = {}
        self._below: dict[bytes, Node | None] = {}

    def node(self, key: bytes) -> Node | None:
        """The node at a folded owner name as it would be."""
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
        if rtype == Type.SOA:
            if key != self.apex:
                return None
            return RRset(Type.SOA, self.soa_ttl, (soa_with_serial(self.soa_template, self.serial),), (0,))
        node = self.node(key)
        return None if node is None else node.rrsets.get(rtype)

    def put(self, owner: bytes, rrset: RRset) -> None:
        """Set one RRset; `owner` gives the case of a name that does not exist yet."""
        key = fold(owner)
        node = self.node(key)
        rrsets = dict(node.rrsets) if node else {}
        rrsets[rrset.rtype] = rrset
        self.touched[key] = Node(node.owner if node else owner, rrsets)

    def drop(self, key: bytes, rtype: int) -> None:
        """Take one RRset away; nothing happens when it is not there."""
        node = self.node(key)
        if node is None or rtype not in node.rrsets:
            return
        rrsets = {kind: rrset for kind, rrset in node.rrsets.items() if kind != rtype}
        self.touched[key] = Node(node.owner, rrsets) if rrsets else None

    def fold_in(self, upper: "Draft") -> None:
        """Take over what an accepted draft on top of this one holds."""
        self.touched.update(upper.touched)
        self.serial = upper.serial
        self.soa_template = upper.soa_template
        self.soa_ttl = upper.soa_ttl

    def differences(self) -> "Differences":
        """What this draft changes against its base."""
        return Differences(self)

    def change(self, differences: "Differences", serial: int, *, at: int, actor: Actor) -> Change:
        """Move to `serial` and describe the step from the base."""
        base = self.base
        old_soa = RR(base.apex, Type.SOA, base.soa_ttl, soa_with_serial(base.soa_template, base.serial))
        self.serial = serial
        new_soa = RR(self.apex, Type.SOA, self.soa_ttl, soa_with_serial(self.soa_template, serial))
        return Change(
            self.apex,
            base.serial,
            serial,
            at,
            actor,
            (old_soa, *differences.removed),
            (new_soa, *differences.added),
        )


class Differences:
    """Removed and added RRs, and records whose lease alone moved, found by comparing touched nodes with the base."""

    __slots__ = ("added", "deletes", "leased", "leases", "puts", "removed", "serial_changed", "soa_changed")

    def __init__(self, draft: Draft) -> None:
        self.removed: list[RR] = []
        self.added: list[RR] = []
        self.deletes: list[RowKey] = []
        self.leased: list[tuple[RowKey, int]] = []  # those of `deletes` that had a lease, and its end
        self.puts: list[tuple[RowKey, StoredRR]] = []
        self.leases: list[tuple[RowKey, int | None]] = []
        base = draft.base
        self.soa_changed = (draft.soa_ttl, soa_with_serial(draft.soa_template, 0)) != (
            base.soa_ttl,
            soa_with_serial(base.soa_template, 0),
        )
        self.serial_changed = draft.serial != base.serial
        for key, node in draft.touched.items():
            self._compare(key, draft.below(key), node)

    @property
    def is_content(self) -> bool:
        """Whether zone content changed, so that the serial must move (RFC 9664 §4.3: leases alone are not content)."""
        return bool(self.removed or self.added or self.soa_changed or self.serial_changed)

    @property
    def is_anything(self) -> bool:
        return self.is_content or bool(self.leases)

    def _compare(self, key: bytes, old: Node | None, new: Node | None) -> None:
        before = old.rrsets if old else {}
        after = new.rrsets if new else {}
        for rtype in before.keys() | after.keys():
            old_set, new_set = before.get(rtype), after.get(rtype)
            if old_set is new_set:
                continue
            old_rows = _rows(old_set)
            new_rows = _rows(new_set)
            for rdata_key, (ttl, rdata, at) in old_rows.items():
                if rdata_key not in new_rows:
                    assert old is not None
                    self.removed.append(RR(old.owner, rtype, ttl, rdata))
                    self.deletes.append(RowKey(key, rtype, rdata_key))
                    if at:
                        self.leased.append((self.deletes[-1], at))
            for rdata_key, (ttl, rdata, at) in new_rows.items():
                assert new is not None
                was = old_rows.get(rdata_key)
                row = RowKey(key, rtype, rdata_key)
                if was is None or was[0] != ttl:
                    if was is not None:
                        assert old is not None
                        self.removed.append(RR(old.owner, rtype, was[0], was[1]))
                    self.added.append(RR(new.owner, rtype, ttl, rdata))
                    self.puts.append((row, StoredRR(new.owner, rtype, ttl, rdata, at or None)))
                elif was[2] != at:
                    self.leases.append((row, at or None))


def _rows(rrset: RRset | None) -> dict[bytes, tuple[int, bytes, int]]:
    """Canonical rdata -> (TTL, rdata, expires)."""
    if rrset is None:
        return {}
    return {
        canonical(rrset.rtype, rdata): (rrset.ttl, rdata, at)
        for rdata, at in zip(rrset.rdatas, rrset.expires, strict=True)
    }


def commit_of(zone: Zone, batch: Draft, changes: list[Change], *, now: int = 0) -> ZoneCommit | None:
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
    )


def publish(zone: Zone, batch: Draft) -> Iterator[tuple[bytes, Node | None]]:
    """Make a committed batch what queries see; yields each touched node (the lease queue listens).

    The caller must exhaust it at once: there is no await between commit and the last node.
    """
    zone.serial = batch.serial
    zone.soa_template = batch.soa_template
    zone.soa_ttl = batch.soa_ttl
    for key, node in batch.touched.items():
        zone.replace(key, None if node is None else encode_node(key, node))
        yield key, node


def is_in_zone(key: bytes, apex: bytes) -> bool:
    """Whether a folded name lies in the zone (RFC 2136 §3.2: else NOTZONE)."""
    return is_at_or_below(key, apex)
