"""When leases lapse: on time, never early, at the cost of what is due."""

from protocol.constants import Type
from protocol.name import fold
from server.zone.draft import Draft
from server.zone.leases import LeaseQueue, lapse
from server.zone.node import Node, RRset
from server.zone.zone import Zone, Zones
from tests.support.builders import name, stored, zone_of_records

APEX = fold(name("members.example."))


class Watched(Zone):
    """Counts how often a node was looked at."""

    looks = 0

    def node(self, key: bytes) -> Node | None:
        self.looks += 1
        return super().node(key)


class Table:
    """A zone of names with one leased record each."""

    def __init__(self) -> None:
        self.zone = Watched(1, APEX, 1, bytes(22), 60)
        self.zones = Zones([self.zone])
        self.queue = LeaseQueue(self.zones)

    def grant(self, label: bytes, at: int) -> None:
        key = label + APEX
        node = Node(key, {Type.A: RRset(Type.A, 60, (b"\0\0\0\0",), (at,))})
        self.zone.put(key, node)
        self.queue.watch(APEX, key, node)

    def delete(self, label: bytes) -> None:
        self.zone.put(label + APEX, None)
        self.queue.watch(APEX, label + APEX, None)

    def due(self, now: int, limit: int = 1000) -> list[bytes]:
        taken = self.queue.take_due(now, limit)
        assert all(apex == APEX for apex, _ in taken)
        return sorted(key[: -len(APEX)] for _, key in taken)


def test_a_lease_is_due_at_its_second() -> None:
    table = Table()
    table.grant(b"\x01a", 100)
    assert table.queue.next_moment() == 100
    assert table.due(99) == []
    assert table.due(100) == [b"\x01a"]
    assert table.due(100) == []
    assert table.queue.next_moment() is None


def test_a_refreshed_lease_is_not_due_and_queued_at_its_new_moment() -> None:
    table = Table()
    table.grant(b"\x01a", 100)
    table.grant(b"\x01a", 300)
    assert table.queue.next_moment() == 100, "a refresh costs nothing"
    assert table.due(100) == []
    assert table.queue.next_moment() == 300
    assert table.due(300) == [b"\x01a"]


def test_a_shorter_lease_is_honoured() -> None:
    table = Table()
    table.grant(b"\x01a", 300)
    table.grant(b"\x01a", 100)
    assert table.due(100) == [b"\x01a"]
    table.delete(b"\x01a")
    assert table.due(300) == [], "the entry left at the old moment says nothing"
    assert len(table.queue) == 0


def test_a_name_queued_again_at_a_moment_it_was_queued_before_is_due_once() -> None:
    table = Table()
    for at in (300, 100):
        table.grant(b"\x01a", at)
    assert table.due(100) == [b"\x01a"]
    table.grant(b"\x01a", 300)
    assert table.due(300) == [b"\x01a"]
    assert len(table.queue) == 0


def test_a_deleted_name_is_forgotten_at_its_moment() -> None:
    table = Table()
    table.grant(b"\x01a", 100)
    table.delete(b"\x01a")
    assert table.due(100) == []
    assert len(table.queue) == 0 and table.queue.next_moment() is None


def test_a_name_deleted_and_granted_anew_is_queued_once() -> None:
    table = Table()
    for at in (100, 150, 200):
        table.grant(b"\x01a", at)
        table.delete(b"\x01a")
    table.grant(b"\x01a", 250)
    assert (len(table.queue), table.queue.next_moment()) == (1, 100)
    assert table.queue.watched() == {(APEX, b"\x01a" + APEX)}
    assert table.due(249) == []
    assert table.queue.next_moment() == 250
    assert table.due(250) == [b"\x01a"]


def test_a_zone_that_goes_takes_its_leases_along() -> None:
    table = Table()
    table.grant(b"\x01a", 100)
    table.grant(b"\x01b", 200)
    table.delete(b"\x01b")
    table.zones.remove(APEX)
    table.queue.forget(table.zone)
    assert (len(table.queue), table.queue.next_moment()) == (0, None)


def test_a_permanent_name_is_not_queued() -> None:
    table = Table()
    table.grant(b"\x01a", 0)
    assert len(table.queue) == 0


def test_names_are_taken_in_order_of_their_moments_and_no_more_than_asked() -> None:
    table = Table()
    for number in range(10):
        table.grant(bytes((1, 97 + number)), 100 + number // 4)
    assert {key[1] - 97 for key in table.due(200, 4)} == {0, 1, 2, 3}
    assert len(table.due(200, 3)) == 3
    assert table.queue.next_moment() == 101
    assert len(table.due(200)) == 3
    assert table.queue.next_moment() is None


def test_a_lapse_put_back_is_taken_again() -> None:
    table = Table()
    table.grant(b"\x01a", 100)
    assert table.due(105) == [b"\x01a"]
    table.queue.watch_at(APEX, b"\x01a" + APEX, 105)
    assert table.due(105) == [b"\x01a"]


def test_the_cost_is_that_of_what_is_due() -> None:
    table = Table()
    for number in range(5000):
        table.grant(b"\x02" + number.to_bytes(2, "big"), 100 + number % 2500)
    assert len(table.due(100)) == 2
    assert table.zone.looks == 2


def test_lapse_takes_away_what_ended_and_nothing_else() -> None:
    zone = zone_of_records(
        [
            stored("mac.members.example. 60 A 192.0.2.1", expires_at=100),
            stored("mac.members.example. 60 A 192.0.2.2", expires_at=200),
            stored("mac.members.example. 60 TXT gone", expires_at=100),
            stored("mac.members.example. 60 AAAA ::1"),
        ]
    )
    key = fold(name("mac.members.example."))
    draft = Draft(zone)
    lapse(draft, key, 99)
    assert not draft.touched
    lapse(draft, key, 100)
    node = draft.node(key)
    assert node is not None
    assert {rtype: rrset.expires for rtype, rrset in node.rrsets.items()} == {Type.A: (200,), Type.AAAA: (0,)}
    lapse(draft, b"\x06absent" + zone.apex, 100)
    assert set(draft.touched) == {key}


def test_a_crowd_that_was_refreshed_is_looked_at_a_bounded_number_at_a_time() -> None:
    """Millions of leases that were all renewed since: each call does its share, and says that there is more."""
    table = Table()
    for number in range(1000):
        table.grant(b"\x04%04d" % number, 100)
        table.grant(b"\x04%04d" % number, 200)
    rounds = 0
    while table.queue.next_moment() == 100:
        before = table.zone.looks
        assert table.due(100, 50) == []
        assert table.zone.looks - before <= 100
        rounds += 1
    assert (rounds, table.zone.looks) == (10, 1000)
    assert len(table.due(200, 5000)) == 1000
