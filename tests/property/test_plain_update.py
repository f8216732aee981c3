"""The short way of an update on a draft finds what the long way finds: the same nodes, rows and records."""

from collections import Counter
from typing import Final

import hypothesis.strategies as st
from hypothesis import given, settings

from protocol.constants import Class, Type
from protocol.name import fold
from server.zone.draft import Draft, NodeDifference
from server.zone.node import Node
from server.zone.plain_update import MAX_RECORDS, apply_plain
from server.zone.update import LeaseTerms, Update, UpdateOp, apply_update
from server.zone.zone import Zone
from tests.support.builders import name, rdata, stored, zone_of_records

OWNERS: Final = [name(text) for text in ("mac.members.example.", "MAC.members.example.", "new.members.example.")]
DATA: Final = {
    Type.A: [rdata("A", f"192.0.2.{last}") for last in range(1, 4)],
    Type.AAAA: [rdata("AAAA", f"2001:db8::{last}") for last in range(1, 3)],
    Type.TXT: [rdata("TXT", text) for text in ('"one"', '"ONE"', '""')],
    Type.SRV: [rdata("SRV", "0 0 4500 mac.members.example.")],
    Type.CNAME: [rdata("CNAME", "mac.members.example.")],
}


@st.composite
def operations(draw: st.DrawFn, types: tuple[Type, ...] = (Type.A, Type.AAAA, Type.TXT)) -> UpdateOp:
    owner = draw(st.sampled_from(OWNERS[:2]))
    rtype = draw(st.sampled_from(types))
    if draw(st.booleans()):
        return UpdateOp(owner, fold(owner), rtype, Class.ANY, 0, b"")
    ttl = draw(st.sampled_from((60, 300)))
    return UpdateOp(owner, fold(owner), rtype, Class.IN, ttl, draw(st.sampled_from(DATA[rtype])))


UPDATES: Final = st.lists(operations(), min_size=1, max_size=6).map(tuple)
MOMENTS: Final = st.sampled_from((0, 1_800_000_000, 1_800_007_200))


def zone() -> Zone:
    lines = ("60 A 192.0.2.1", "60 A 192.0.2.2", '300 TXT "one"', "60 SRV 0 0 4500 mac.members.example.")
    ends = (1_800_000_000, None, 1_800_000_000, None)
    return zone_of_records(
        stored(f"Mac.members.example. {line}", expires_at=at) for line, at in zip(lines, ends, strict=True)
    )


def long_way(batch: Draft, update: Update, expires: int) -> None:
    draft = Draft(batch)
    apply_update(draft, update, LeaseTerms(expires, expires))
    batch.fold_in(draft, draft.differences())


def net(batch: Draft) -> tuple[object, ...]:
    """What a commit would tell; lists without their order."""
    found = batch.differences()
    return Counter(found.removed), Counter(found.added), found.renewed


def content(node: Node | None) -> object:
    if node is None:
        return None
    return node.owner, {
        rtype: (rrset.ttl, set(zip(rrset.rdatas, rrset.expires, strict=True))) for rtype, rrset in node.rrsets.items()
    }


@settings(max_examples=400)
@given(st.lists(st.tuples(UPDATES, MOMENTS), min_size=1, max_size=4))
def test_a_batch_of_plain_updates_comes_to_the_same(updates: list[tuple[tuple[UpdateOp, ...], int]]) -> None:
    short, long = Draft(zone()), Draft(zone())
    key = updates[0][0][0].key
    for ops, expires in updates:
        update = Update(short.apex, (), ops)
        before = Draft(long)
        long_way(before, update, expires)
        found = apply_plain(short, update, expires)
        assert isinstance(found, NodeDifference)
        step = before.differences()
        assert Counter(found.removed) == Counter(step.removed)
        assert Counter(found.added) == Counter(step.added)
        assert found.moves_lease == bool(step.renewed)
        long_way(long, update, expires)
        assert content(short.node(key)) == content(long.node(key))
    assert net(short) == net(long)


@settings(max_examples=200)
@given(st.lists(operations(tuple(DATA)), min_size=1, max_size=6).map(tuple), MOMENTS)
def test_what_is_not_plain_is_left_untouched(ops: tuple[UpdateOp, ...], expires: int) -> None:
    batch = Draft(zone())
    is_plain = not {op.rtype for op in ops} & {Type.SRV, Type.CNAME}
    assert (apply_plain(batch, Update(batch.apex, (), ops), expires) is not None) == is_plain
    assert is_plain or not batch.touched


def test_left_to_the_long_way() -> None:
    batch = Draft(zone())

    def op(owner: str, rclass: int = Class.IN, rtype: int = Type.A, data: bytes = DATA[Type.A][0]) -> UpdateOp:
        return UpdateOp(name(owner), fold(name(owner)), rtype, rclass, 60, data)

    many = tuple(op("new.members.example.", data=bytes((10, 0, 0, last))) for last in range(MAX_RECORDS + 1))
    for ops in (
        (),
        (op("mac.members.example."), op("new.members.example.")),
        (op("members.example."),),
        (op("mac.members.example.", Class.NONE),),
        many,
    ):
        assert apply_plain(batch, Update(batch.apex, (), ops), 0) is None
    assert not batch.touched
    assert apply_plain(batch, Update(batch.apex, (), many[:-1]), 0) is not None
