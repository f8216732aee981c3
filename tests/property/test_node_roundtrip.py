"""Nodes as blobs, and the zone's index of names, against plain Python."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.constants import Type
from protocol.errors import DecodeError
from protocol.name import fold, parent
from server.zone.node import (
    Node,
    RRset,
    check_node,
    data_of,
    decode_node,
    earliest_lapse,
    encode_node,
    find_rrset,
    has_type,
    to_blob,
)
from server.zone.zone import Zone
from tests.support.builders import ZONE, name, soa_rdata

APEX: Final = fold(name(ZONE))

_rows = st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 2**32 - 1)), min_size=1, max_size=4)


@st.composite
def rrsets(draw: st.DrawFn, rtype: int) -> RRset:
    rows = draw(_rows)
    ttl = draw(st.integers(0, 2**32 - 1))
    return RRset(rtype, ttl, tuple(data for data, _ in rows), tuple(at for _, at in rows))


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    labels = draw(st.lists(st.binary(min_size=1, max_size=63), max_size=3))
    owner = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    types = draw(st.lists(st.integers(1, 65535), min_size=1, max_size=5, unique=True))
    return Node(owner, {rtype: draw(rrsets(rtype)) for rtype in types})


@given(node=nodes(), absent=st.integers(1, 65535))
def test_a_node_comes_out_of_its_blob_as_it_went_in(node: Node, absent: int) -> None:
    key = fold(node.owner)
    data = encode_node(node)
    blob = to_blob(key, node.owner, data)
    assert decode_node(key, blob) == check_node(node.owner, data).decode() == node
    assert data_of(blob) == data
    for rtype, rrset in node.rrsets.items():
        assert find_rrset(blob, rtype) == rrset
    assert has_type(blob, absent) == (absent in node.rrsets)


@given(node=nodes(), now=st.integers(0, 2**32 - 1))
def test_what_is_live_is_what_has_not_lapsed(node: Node, now: int) -> None:
    for rrset in node.rrsets.values():
        live = rrset.live(now)
        kept = [row for row in zip(rrset.rdatas, rrset.expires, strict=True) if row[1] == 0 or row[1] > now]
        if live is None:
            assert not kept
            continue
        assert list(zip(live.rdatas, live.expires, strict=True)) == kept
        assert (live.rtype, live.ttl) == (rrset.rtype, rrset.ttl)
        longest = min((at - now for _, at in kept if at), default=live.ttl)
        assert live.answered_ttl(now) == min(live.ttl, longest)
        assert live.answered_ttl(now) > 0 or live.ttl == 0


_LABELS: Final = [b"\x01a", b"\x01b", b"\x02cc", b"\x01*"]
_owners = st.lists(st.sampled_from(_LABELS), max_size=4).map(lambda labels: b"".join(labels) + APEX)
_kinds = st.sampled_from([None, Type.A, Type.NS, Type.DNAME])


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(_owners, _kinds), max_size=40))
def test_the_index_of_names_is_what_the_names_say(steps: list[tuple[bytes, Type | None]]) -> None:
    """Empty non-terminals come and go with the names below them, in any order of adds and removes (RFC 4592 §2.2.2)."""
    zone = Zone(1, APEX, 1, soa_rdata(), 300)
    held: dict[bytes, Type] = {}
    for key, kind in steps:
        if kind is None:
            held.pop(key, None)
            zone.put(key, None)
        else:
            held[key] = kind
            zone.put(key, Node(key, {kind: RRset(kind, 60, (b"\0",), (0,))}))
        existing = {APEX}
        for owner in held:
            while owner != APEX:
                existing.add(owner)
                owner = parent(owner)
        counted: dict[bytes, int] = {}
        for owner in existing - {APEX}:
            counted[parent(owner)] = counted.get(parent(owner), 0) + 1
        assert dict(zone.children.items()) == counted
        assert set(zone.nodes) == set(held)
        assert all(zone.exists(owner) for owner in existing)
        assert not zone.exists(b"\x06absent" + APEX)
        assert zone.cuts == {
            owner for owner, type_ in held.items() if type_ is Type.DNAME or (type_ is Type.NS and owner != APEX)
        }


@given(node=nodes())
def test_a_node_is_loaded_as_it_is_published(node: Node) -> None:
    key = fold(node.owner)
    one, other = Zone(1, b"\0", 1, bytes(22), 60), Zone(1, b"\0", 1, bytes(22), 60)
    watched: dict[bytes, int] = {}
    one.load([check_node(node.owner, encode_node(node))], watched.__setitem__)
    other.put(key, node)
    earliest = earliest_lapse(node)
    assert one.look(key) == earliest
    one.set_look(key, 0)
    assert (one.nodes, one.cuts) == (other.nodes, other.cuts)
    assert list(one.children.items()) == list(other.children.items())
    assert watched == ({key: earliest} if earliest else {})


@given(node=nodes(), data=st.data())
def test_damage_is_told_or_leaves_a_node_that_is_stored_alike(node: Node, data: st.DataObject) -> None:
    """Whatever octets are read, they are refused or are those that the node they make is compared by."""
    octets = bytearray(encode_node(node))
    for at in data.draw(st.lists(st.integers(0, len(octets) - 1), max_size=3)):
        octets[at] = data.draw(st.integers(0, 255))
    damaged = bytes(octets[: data.draw(st.integers(0, len(octets)))])
    try:
        found = check_node(node.owner, damaged)
    except DecodeError:
        return
    assert encode_node(found.decode()) == damaged


@pytest.mark.parametrize("owner", [b"", b"\1", b"\1a", b"\1a\0\0", "mac", None])
def test_an_owner_that_is_no_name_is_told(owner: bytes) -> None:
    with pytest.raises(DecodeError):
        check_node(owner, encode_node(Node(b"\0", {1: RRset(1, 60, (bytes(4),), (0,))})))
