"""Packed journal entries, and the order of owner keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import DecodeError
from protocol.name import ROOT, canonical_key, fold, is_at_or_below
from server.store.packing import (
    order_key,
    pack_items,
    pack_rrs,
    subtree_bounds,
    unpack_items,
    unpack_rrs,
)
from server.zone.model import RR

labels = st.binary(min_size=1, max_size=6) | st.sampled_from([b"\0", b"\1", b"\2", b"a", b"a\0", b"a\1", b"\xff"])
names = st.lists(labels, max_size=6).map(
    lambda items: fold(b"".join(bytes((len(item),)) + item for item in items) + ROOT)
)
records = st.builds(RR, names, st.integers(0, 65535), st.integers(0, 0xFFFFFFFF), st.binary(max_size=300))


@given(st.lists(records, max_size=5))
def test_records_come_back_as_packed(items: list[RR]) -> None:
    assert unpack_rrs(pack_rrs(items)) == tuple(items)


@given(st.lists(records, min_size=1, max_size=3), st.data())
def test_a_cut_is_noticed_or_falls_between_records(items: list[RR], data: st.DataObject) -> None:
    packed = pack_rrs(items)
    cut = data.draw(st.integers(0, len(packed) - 1))
    try:
        kept = unpack_rrs(packed[:cut])
    except DecodeError:
        return
    assert kept == tuple(items[: len(kept)])


def test_cut_records_are_errors() -> None:
    packed = pack_rrs([RR(b"\1a\0", 1, 60, b"\xc0\0\2\1")])
    for cut in range(1, len(packed)):
        with pytest.raises(DecodeError):
            unpack_rrs(packed[:cut])


@given(names, names)
def test_owner_keys_sort_as_canonical_names(one: bytes, two: bytes) -> None:
    assert (order_key(one) < order_key(two)) == (canonical_key(one) < canonical_key(two))
    assert (order_key(one) == order_key(two)) == (one == two)


@given(names, names)
def test_a_subtree_lies_between_its_bounds(name: bytes, ancestor: bytes) -> None:
    for candidate in (name, name[:-1] + ancestor if len(name) + len(ancestor) < 255 else name):
        low, high = subtree_bounds(ancestor)
        assert (low <= order_key(candidate) < high) == is_at_or_below(candidate, ancestor)


def test_items_come_back_and_equal_sets_are_equal_octets() -> None:
    items = [(28, bytes(16)), (1, b"\1\2\3\4"), (16, b""), (16, b"x" * 65535)]
    assert unpack_items(pack_items(items)) == sorted(items)
    assert pack_items(frozenset(items)) == pack_items(reversed(items))
    assert unpack_items(b"") == []


@pytest.mark.parametrize("cut", [1, 3, 5, 7])
def test_items_cut_short_are_noticed(cut: int) -> None:
    with pytest.raises(DecodeError):
        unpack_items(pack_items([(1, b"\1\2\3\4")])[:cut])
