"""The update engine against a model that is a plain dict, over random batches of random updates.

The model applies RFC 2136 §3 and the lease rules record by record, with no drafts, nodes or blobs. After every batch
the zone, the store's rows, the journal, the serial and the count of children must agree with it.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.constants import Class, Rcode, Type
from protocol.edns import UpdateLease
from protocol.message import decode
from protocol.name import fold, parent
from protocol.rdata import canonical, soa_serial, soa_with_serial
from server.policy import UNLIMITED
from server.writer import Outcome, PendingUpdate
from server.zone.model import Actor
from server.zone.node import earliest_lapse
from server.zone.update import read_update
from server.zone.zone import Zone
from tests.support.builders import (
    ZONE,
    Content,
    Core,
    Item,
    content,
    name,
    rdata,
    rebuild,
    replay,
    rows_of,
    soa_rdata,
    update_message,
    zone_of_text,
)

APEX: Final = fold(name(ZONE))
START: Final = """
    members.example. 300 NS ns.members.example.
    a.members.example. 60 A 192.0.2.1
    a.members.example. 60 TXT "kept"
    c.b.a.members.example. 60 TXT "deep"
    alias.members.example. 60 CNAME a.members.example.
"""
OWNERS: Final = [
    name(text) for text in (ZONE, *(f"{label}.{ZONE}" for label in ("a", "A", "b.a", "c.b.a", "*.a", "alias", "x.y")))
]
RDATAS: Final = {
    Type.A: [rdata("A", f"192.0.2.{last}") for last in (1, 2, 3)],
    Type.TXT: [rdata("TXT", text) for text in ('"kept"', '"deep"', '"new" "er"')],
    Type.NS: [rdata("NS", f"{host}.members.example.") for host in ("ns", "ns2", "NS2")],
    Type.CNAME: [rdata("CNAME", f"{label}.members.example.") for label in ("a", "A", "b")],
    Type.DNAME: [rdata("DNAME", f"{label}.elsewhere.example.") for label in ("p", "q")],
    Type.SRV: [rdata("SRV", f"0 0 4500 {label}.members.example.") for label in ("t", "T", "u")],
    Type.SOA: [soa_rdata(serial, minimum) for serial, minimum in ((1, 60), (3, 60), (50, 30), (2**31, 60), (0, 60))],
    Type.HTTPS: [b"\x00\x01\x00", b""],
}
TYPES: Final = sorted(RDATAS)
BESIDE_CNAME: Final = {int(Type.CNAME), int(Type.RRSIG), int(Type.NSEC)}


def newer(one: int, other: int) -> bool:
    return one != other and (one - other) % 2**32 < 2**31


@dataclass
class Model:
    """`sets`: (folded owner, type) -> TTL and canonical rdata -> moment of lapse (0: permanent)."""

    serial: int
    soa: bytes
    soa_ttl: int
    sets: dict[tuple[bytes, int], tuple[int, dict[bytes, int]]] = field(default_factory=dict)

    def content(self) -> Content:
        found: Content = {key: (ttl, frozenset(rows)) for key, (ttl, rows) in self.sets.items()}
        found[APEX, Type.SOA] = (
            self.soa_ttl,
            frozenset({canonical(Type.SOA, soa_with_serial(self.soa, 0))}),
        )
        return found

    def lapse(self, now: int) -> None:
        before = self.content()
        for key in list(self.sets):
            ttl, rows = self.sets[key]
            live = {data: at for data, at in rows.items() if at == 0 or at > now}
            self._set(key, ttl, live)
        if self.content() != before:
            self.serial = self.serial + 1 & 0xFFFFFFFF or 1

    def update(self, prerequisites: list[Item], ops: list[Item], expires: int) -> Rcode:
        rcode = self.judge(prerequisites)
        if rcode != Rcode.NOERROR:
            return rcode
        if expires and any(op[:3] == (op.owner, Type.NS, Class.IN) and fold(op.owner) == APEX for op in ops):
            return Rcode.REFUSED
        before, serial = self.content(), self.serial
        for op in ops:
            self.apply(op, expires)
        if self.serial == serial and self.content() != before:
            self.serial = serial + 1 & 0xFFFFFFFF or 1
        return Rcode.NOERROR

    def judge(self, prerequisites: list[Item]) -> Rcode:
        used = {owner for owner, _ in self.sets} | {APEX}
        kinds = {*self.sets, (APEX, int(Type.SOA))}
        exact: dict[tuple[bytes, int], set[bytes]] = {}
        for item in prerequisites:
            owner = fold(item.owner)
            if item.rclass == Class.IN:
                exact.setdefault((owner, item.rtype), set()).add(canonical(item.rtype, item.rdata))
            elif item.rtype == Type.ANY:
                if (owner in used) != (item.rclass == Class.ANY):
                    return Rcode.NXDOMAIN if item.rclass == Class.ANY else Rcode.YXDOMAIN
            elif ((owner, item.rtype) in kinds) != (item.rclass == Class.ANY):
                return Rcode.NXRRSET if item.rclass == Class.ANY else Rcode.YXRRSET
        for key, wanted in exact.items():
            have = set(self.sets[key][1]) if key in self.sets else set()
            if key == (APEX, Type.SOA):
                have = {canonical(Type.SOA, soa_with_serial(self.soa, self.serial))}
            if have != wanted:
                return Rcode.NXRRSET
        return Rcode.NOERROR

    def apply(self, op: Item, expires: int) -> None:
        owner = fold(op.owner)
        key = (owner, op.rtype)
        if op.rclass == Class.ANY:
            for kind in [k for o, k in self.sets if o == owner] if op.rtype == Type.ANY else [op.rtype]:
                if not (owner == APEX and kind in (Type.SOA, Type.NS)):
                    self.sets.pop((owner, kind), None)
            return
        data = canonical(op.rtype, op.rdata)
        if op.rtype == Type.SOA:
            if op.rclass == Class.IN and owner == APEX and newer(soa_serial(op.rdata) or 1, self.serial):
                self.soa, self.soa_ttl, self.serial = op.rdata, op.ttl, soa_serial(op.rdata) or 1
            return
        ttl, rows = self.sets.get(key, (op.ttl, {}))
        if op.rclass == Class.NONE:
            if not (owner == APEX and op.rtype == Type.NS and len(rows) == 1):
                self._set(key, ttl, {have: at for have, at in rows.items() if have != data})
            return
        kinds = {k for o, k in self.sets if o == owner} | ({int(Type.SOA)} if owner == APEX else set())
        if (op.rtype == Type.CNAME and kinds - BESIDE_CNAME) or (op.rtype not in BESIDE_CNAME and Type.CNAME in kinds):
            return
        old = rows.get(data)
        keeps = old is not None and old == 0 and bool(expires)
        if op.rtype in (Type.CNAME, Type.DNAME):
            rows = {}
        assert old is not None or not keeps
        self._set(key, op.ttl, {**rows, data: old if keeps and old is not None else expires})

    def _set(self, key: tuple[bytes, int], ttl: int, rows: dict[bytes, int]) -> None:
        self.sets.pop(key, None)
        if rows:
            self.sets[key] = (ttl, rows)


@st.composite
def prerequisites(draw: st.DrawFn) -> Item:
    owner = draw(st.sampled_from(OWNERS))
    rclass = draw(st.sampled_from([Class.IN, Class.ANY, Class.NONE]))
    rtype = draw(st.sampled_from(TYPES if rclass == Class.IN else [*TYPES, Type.ANY]))
    return Item(owner, rtype, rclass, 0, draw(st.sampled_from(RDATAS[rtype])) if rclass == Class.IN else b"")


@st.composite
def ops(draw: st.DrawFn) -> Item:
    owner = draw(st.sampled_from(OWNERS))
    rclass = draw(st.sampled_from([Class.IN, Class.IN, Class.ANY, Class.NONE]))
    if rclass == Class.ANY:
        return Item(owner, draw(st.sampled_from([*TYPES, Type.ANY])), rclass, 0, b"")
    rtype = draw(st.sampled_from(TYPES))
    ttl = draw(st.sampled_from([60, 60, 120])) if rclass == Class.IN else 0
    return Item(owner, rtype, rclass, ttl, draw(st.sampled_from(RDATAS[rtype])))


LEASES: Final = st.sampled_from([None, 1800, 2400, 7200])
UPDATES: Final = st.tuples(
    st.one_of(st.just([]), st.lists(prerequisites(), max_size=2)), st.lists(ops(), max_size=5), LEASES
)
WAITS: Final = st.sampled_from([0.0, 0.4, 1799.6, 2000.0, 7200.0])
BATCHES: Final = st.lists(st.tuples(WAITS, st.lists(UPDATES, max_size=4)), min_size=1, max_size=6)


def check_index(zone: Zone) -> None:
    """`children` and `cuts` as anyone would count them from the names alone."""
    existing = {zone.apex}
    for key in zone.nodes:
        while key != zone.apex:
            existing.add(key)
            key = parent(key)
    children: dict[bytes, int] = {}
    for key in existing - {zone.apex}:
        children[parent(key)] = children.get(parent(key), 0) + 1
    assert dict(zone.children.items()) == children
    nodes = {key: zone.node(key) for key in zone.nodes}
    assert zone.cuts == {
        key
        for key, node in nodes.items()
        if node and (Type.DNAME in node.rrsets or (Type.NS in node.rrsets and key != zone.apex))
    }


def queue(core: Core, update: tuple[list[Item], list[Item], int | None], outcomes: list[Outcome]) -> None:
    wants, changes, lease = update
    parsed = read_update(decode(update_message(changes, wants)), APEX)
    wish = None if lease is None else UpdateLease(lease)
    assert core.writer.submit(PendingUpdate(APEX, parsed, wish, UNLIMITED, Actor("update"), outcomes.append))


@settings(max_examples=250, deadline=None)
@given(batches=BATCHES)
def test_random_batches_leave_what_the_model_holds(
    batches: list[tuple[float, list[tuple[list[Item], list[Item], int | None]]]],
) -> None:
    first = zone_of_text(START)
    core = Core([zone_of_text(START)])
    zone = core.zone
    model = Model(1, soa_rdata(1), 300, {key: (ttl, dict.fromkeys(rows, 0)) for key, (ttl, rows) in _sets(first)})
    for wait, batch in batches:
        core.clock.now += wait
        now = int(core.clock.now)
        serial, commits = model.serial, len(core.store.commits)
        held = copy.deepcopy(model.sets)
        model.lapse(now)
        outcomes: list[Outcome] = []
        expected: list[tuple[Rcode, int]] = []
        for update in batch:
            wants, changes, lease = update
            queue(core, update, outcomes)
            expires = 0 if lease is None else math.ceil(core.clock.now) + lease
            rcode = model.update(wants, changes, expires)
            expected.append((rcode, model.serial if rcode == Rcode.NOERROR else 0))
        core.write()
        assert [(outcome.rcode, outcome.serial_to) for outcome in outcomes] == expected
        assert content(zone) == model.content()
        assert zone.serial == model.serial
        row = core.store.zones[zone.id]
        assert (row.serial, soa_with_serial(row.soa, 0), row.soa_ttl) == (
            zone.serial,
            soa_with_serial(zone.soa_template, 0),
            zone.soa_ttl,
        )
        leases = {(key, data): at for key, (_, rows) in model.sets.items() for data, at in rows.items()}
        stored_rows = core.store.rows[zone.id]
        assert {((r.owner_key, r.rtype), r.rdata_key): rr.expires_at or 0 for r, rr in stored_rows.items()} == leases
        assert {key: rr.ttl for key, rr in stored_rows.items()} == {key: rr.ttl for key, rr in rows_of(zone).items()}
        assert content(rebuild(row, stored_rows)) == content(zone)
        assert replay(first, core.changes) == content(zone)
        assert core.changes == core.store.journal[zone.id]
        if model.serial == serial:
            assert not any(commit.changes for commit in core.store.commits[commits:])
            assert (len(core.store.commits) > commits) == (held != model.sets)
        check_index(zone)
        lapses = [earliest_lapse(node) for node in map(zone.node, zone.nodes) if node]
        moment = core.leases.next_moment()
        assert not any(lapses) or (moment is not None and moment <= min(at for at in lapses if at))


def _sets(zone: Zone) -> list[tuple[tuple[bytes, int], tuple[int, frozenset[bytes]]]]:
    return [(key, held) for key, held in content(zone).items() if key[1] != Type.SOA]
