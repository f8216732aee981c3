"""Drafts: stacked, dropped without a trace, compared with what they stand on."""

import pytest

from protocol.constants import Type
from protocol.name import fold
from protocol.rdata import soa_serial
from server.zone.draft import Draft, commit_of, publish
from server.zone.model import Actor
from server.zone.node import Node, RRset, encode_node
from server.zone.zone import Zone
from tests.support.builders import content, name, rdata, soa_rdata, stored, zone_of_records, zone_of_text
from tests.support.zones import stored_nodes

ACTOR = Actor("update", "admin.")
TEXT = """
    members.example. 300 NS ns.members.example.
    mac.members.example. 60 A 192.0.2.1
    mac.members.example. 60 TXT hello
"""
MAC = name("mac.members.example.")
KEY = fold(MAC)


def a_set(*hosts: int, ttl: int = 60, at: int = 0) -> RRset:
    return RRset(Type.A, ttl, tuple(rdata("A", f"192.0.2.{host}") for host in hosts), (at,) * len(hosts))


@pytest.mark.rfc("2136", "3.7")
def test_nothing_shows_in_the_zone_until_it_is_published() -> None:
    zone = zone_of_text(TEXT)
    before = content(zone)
    batch = Draft(zone)
    batch.put(MAC, a_set(2))
    batch.drop(KEY, Type.TXT)
    commit = commit_of(zone, batch, [])
    assert commit is not None
    assert content(zone) == before
    assert [key for key, _ in publish(zone, batch, commit)] == [KEY]
    assert content(zone)[KEY, Type.A] == (60, frozenset({rdata("A", "192.0.2.2")}))
    assert (KEY, Type.TXT) not in content(zone)


def test_a_dropped_draft_leaves_the_one_below_alone() -> None:
    batch = Draft(zone_of_text(TEXT))
    upper = Draft(batch)
    upper.put(MAC, a_set(9))
    upper.serial = 77
    assert batch.rrset(KEY, Type.A) == a_set(1)
    assert not batch.differences().by_key
    assert batch.serial == 1


def test_a_draft_sees_through_those_below_it() -> None:
    batch = Draft(zone_of_text(TEXT))
    first = Draft(batch)
    first.put(MAC, a_set(1, 2))
    batch.fold_in(first, first.differences())
    second = Draft(batch)
    assert second.rrset(KEY, Type.A) == a_set(1, 2)
    assert second.rrset(KEY, Type.TXT) is not None
    second.drop(KEY, Type.A)
    second.drop(KEY, Type.TXT)
    assert second.node(KEY) is None
    assert batch.node(KEY) is not None


def test_only_the_lease_moving_is_no_content() -> None:
    zone = zone_of_records([stored("mac.members.example. 60 A 192.0.2.1", expires_at=500)])
    batch = Draft(zone)
    batch.put(MAC, a_set(1, at=900))
    differences = batch.differences()
    assert differences.renewed == [KEY] and not differences.is_content
    commit = commit_of(zone, batch, [])
    assert commit is not None
    (change,) = commit.nodes
    assert (change.key, change.owner, change.before) == (KEY, MAC, zone.stored(KEY))
    assert change.after == encode_node(Node(MAC, {Type.A: a_set(1, at=900)}))
    assert (commit.serial_from, commit.serial_to, commit.changes, commit.soa) == (1, 1, (), None)


def test_a_ttl_change_is_a_removal_and_an_addition() -> None:
    zone = zone_of_text(TEXT)
    draft = Draft(zone)
    draft.put(MAC, a_set(1, ttl=90))
    differences = draft.differences()
    assert [(rr.ttl, rr.rdata[-1]) for rr in differences.removed] == [(60, 1)]
    assert [(rr.ttl, rr.rdata[-1]) for rr in differences.added] == [(90, 1)]
    assert not differences.renewed


def test_names_in_rdata_that_differ_in_case_alone_are_the_same_record() -> None:
    zone = zone_of_text("x.members.example. 60 SRV 0 0 1 Host.example.")
    draft = Draft(zone)
    draft.put(name("x.members.example."), RRset(Type.SRV, 60, (rdata("SRV", "0 0 1 host.EXAMPLE."),), (0,)))
    differences = draft.differences()
    assert not differences.is_content and not differences.renewed


def test_a_change_begins_with_the_old_and_the_new_soa() -> None:
    zone = zone_of_text(TEXT)
    draft = Draft(zone)
    draft.put(MAC, a_set(1, 2))
    change = draft.change(draft.differences(), 2, at=5, actor=ACTOR)
    assert (change.apex, change.serial_from, change.serial_to, change.at, change.actor) == (zone.apex, 1, 2, 5, ACTOR)
    assert [soa_serial(rrs[0].rdata) for rrs in (change.removed, change.added)] == [1, 2]
    assert [rr.rdata for rr in change.added[1:]] == [rdata("A", "192.0.2.2")]
    assert len(change.removed) == 1


def test_a_new_soa_goes_into_the_commit_without_its_serial() -> None:
    zone = zone_of_text(TEXT)
    draft = Draft(zone)
    draft.soa_template, draft.soa_ttl, draft.serial = soa_rdata(40, minimum=9), 77, 40
    differences = draft.differences()
    assert differences.is_content
    commit = commit_of(zone, draft, [draft.change(differences, 40, at=5, actor=ACTOR)])
    assert commit is not None
    assert commit.soa == (soa_rdata(0, minimum=9), 77)
    list(publish(zone, draft, commit))
    assert zone.soa == soa_rdata(40, minimum=9)
    assert zone.soa_rr().ttl == 77


def test_changes_that_cancel_out_in_a_batch_still_move_the_serial() -> None:
    zone = zone_of_text(TEXT)
    batch = Draft(zone)
    changes = []
    for rrset in (a_set(1, 2), a_set(1)):
        upper = Draft(batch)
        upper.put(MAC, rrset)
        found = upper.differences()
        changes.append(upper.change(found, batch.serial + 1, at=5, actor=ACTOR))
        batch.fold_in(upper, found)
    commit = commit_of(zone, batch, changes)
    assert commit is not None
    assert (commit.serial_from, commit.serial_to) == (1, 3)
    assert not commit.nodes and len(commit.changes) == 2


def test_a_batch_of_nothing_commits_nothing() -> None:
    zone = zone_of_text(TEXT)
    batch = Draft(zone)
    batch.put(MAC, a_set(1))
    assert commit_of(zone, batch, []) is None


def test_the_case_of_an_owner_is_that_of_its_first_record() -> None:
    zone = zone_of_text("Mac.members.example. 60 A 192.0.2.1")
    draft = Draft(zone)
    draft.put(name("MAC.members.example."), RRset(Type.TXT, 60, (b"\x01x",), (0,)))
    node = draft.node(KEY)
    assert node is not None and node.owner == name("Mac.members.example.")


def test_the_soa_is_seen_at_the_apex_only() -> None:
    draft = Draft(zone_of_text(TEXT))
    soa = draft.rrset(draft.apex, Type.SOA)
    assert soa is not None and soa_serial(soa.rdatas[0]) == 1
    assert draft.rrset(KEY, Type.SOA) is None


def test_records_of_a_zone_begin_with_its_soa_and_leave_out_what_lapsed() -> None:
    zone: Zone = zone_of_records(
        [stored("a.members.example. 60 A 192.0.2.1", expires_at=10), stored("b.members.example. 60 A 192.0.2.2")]
    )
    assert [rr.rtype for rr in zone.records(9)] == [Type.SOA, Type.A, Type.A]
    assert [rr.owner for rr in zone.records(10)] == [zone.apex, name("b.members.example.")]


class CountingZone(Zone):
    """Counts how often a node is taken apart."""

    looks = 0

    def node(self, key: bytes) -> Node | None:
        CountingZone.looks += 1
        return super().node(key)


def test_a_node_is_taken_apart_once_however_often_it_is_asked_for() -> None:
    """Else 4,000 prerequisites on one large name would stop the server for a second."""
    plain = zone_of_text(TEXT)
    zone = CountingZone(plain.id, plain.apex, plain.serial, plain.soa_template, plain.soa_ttl)
    zone.load(stored_nodes([stored("mac.members.example. 60 A 192.0.2.1")]))
    draft = Draft(Draft(zone))
    for _ in range(100):
        assert draft.rrset(KEY, Type.A) == a_set(1)
    draft.put(MAC, a_set(1, 2))
    assert [rr.rdata for rr in draft.differences().added] == [rdata("A", "192.0.2.2")]
    assert CountingZone.looks == 1
