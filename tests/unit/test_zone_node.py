"""Nodes: what lapses, what is answered, whose case wins."""

import pytest

from protocol.constants import Type
from protocol.name import fold
from server.zone.node import (
    Node,
    RRset,
    decode_node,
    earliest_lapse,
    encode_node,
    find_rrset,
    node_from_records,
    to_blob,
)
from server.zone.zone import Zone
from tests.support.builders import name, stored


def a_set(*expires: int, ttl: int = 120) -> RRset:
    return RRset(Type.A, ttl, tuple(bytes((192, 0, 2, last)) for last in range(len(expires))), expires)


@pytest.mark.parametrize(
    ("expires", "now", "left"),
    [((0, 0), 10**9, 2), ((100,), 99, 1), ((100,), 100, 0), ((100, 0), 100, 1), ((100, 200), 150, 1), ((5, 5), 6, 0)],
)
def test_a_record_lapses_at_its_second_not_before(expires: tuple[int, ...], now: int, left: int) -> None:
    live = a_set(*expires).live(now)
    assert (len(live.rdatas) if live else 0) == left


def test_a_set_with_nothing_lapsed_is_itself() -> None:
    rrset = a_set(0, 500)
    assert rrset.live(499) is rrset


@pytest.mark.parametrize(
    ("expires", "now", "ttl"), [((0,), 50, 120), ((1000,), 50, 120), ((100,), 50, 50), ((100, 0, 300), 99, 1)]
)
def test_the_answered_ttl_never_outlives_the_shortest_lease(expires: tuple[int, ...], now: int, ttl: int) -> None:
    assert a_set(*expires).answered_ttl(now) == ttl


def test_the_earliest_lapse_passes_over_permanent_records() -> None:
    txt = RRset(Type.TXT, 60, (b"\x01x",), (300,))
    assert earliest_lapse(Node(b"\0", {Type.A: a_set(0, 400), Type.TXT: txt})) == 300
    assert earliest_lapse(Node(b"\0", {Type.A: a_set(0)})) == 0


def test_a_node_without_records_has_no_blob() -> None:
    zone = Zone(1, b"\0", 1, bytes(22), 60)
    zone.put(b"\1a\0", Node(b"\1a\0", {}))
    assert not zone.nodes


def test_the_case_of_an_owner_takes_a_bit_an_octet_up_to_its_last_capital() -> None:
    plain, mixed = name("auto-ff.example."), name("Auto-FF.example.")
    key = fold(mixed)
    rrsets = {int(Type.A): a_set(0)}
    data = encode_node(Node(mixed, rrsets))
    small, large = to_blob(key, plain, data), to_blob(key, mixed, data)

    assert len(large) == len(small) + 1
    assert decode_node(key, large).owner == mixed


def test_one_rrset_is_found_behind_larger_ones() -> None:
    big = RRset(Type.TXT, 1, (b"\xff" * 700, b""), (0, 9))
    blob = to_blob(b"\0", b"\0", encode_node(Node(b"\0", {Type.TXT: big, Type.A: a_set(7)})))
    assert find_rrset(blob, Type.A) == a_set(7)
    assert find_rrset(blob, Type.AAAA) is None


def test_rows_of_one_owner_make_one_node() -> None:
    rows = [
        stored("Mac.example. 60 A 192.0.2.1", expires_at=900),
        stored("mac.example. 60 TXT hello"),
        stored("mac.example. 120 A 192.0.2.2"),
    ]
    node = node_from_records(rows)
    assert node.owner == name("Mac.example.")
    assert node.rrsets[Type.A] == RRset(Type.A, 120, (rows[0].rdata, rows[2].rdata), (900, 0))
    assert node.rrsets[Type.TXT].expires == (0,)
