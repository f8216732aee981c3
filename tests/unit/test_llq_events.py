"""Plans: removes before adds, one packet, views that end up at the zone."""

import pytest

from protocol.message import decode
from protocol.name import from_text
from server.push.events import NOTHING, Item, event_room, make_plan

NAME = from_text("mac.alice.members.example")


def items(*numbers: int) -> frozenset[Item]:
    return frozenset(Item(1, number.to_bytes(4, "big")) for number in numbers)


def test_between_two_bounds_everything_is_said() -> None:
    zone = items(1, 2, 3)
    plan = make_plan(NAME, 1, items(1), items(1, 2, 4), dict.fromkeys(zone, 60), zone, 1000)
    wire = plan.wire(513, 99)
    told = [(rr.ttl, rr.raw(wire)[3]) for rr in decode(wire).answers]
    assert told == [(0xFFFFFFFF, 4), (60, 2), (60, 3)]
    assert plan.sure is plan.maybe is zone
    assert wire[:2] == b"\x02\x01"
    assert wire[-12:] == (99).to_bytes(8, "big") + bytes(4)


def test_nothing_to_say_is_no_record() -> None:
    zone = items(1)
    assert make_plan(NAME, 1, zone, zone, dict.fromkeys(zone, 60), zone, 1000).records == 0


@pytest.mark.parametrize("room", [60, 80, 200, 1000])
def test_plans_in_a_row_reach_the_zone(room: int) -> None:
    zone = items(*range(50))
    sure, maybe = items(*range(40, 60)), items(*range(30, 70))
    for _ in range(200):
        plan = make_plan(NAME, 1, sure, maybe, dict.fromkeys(zone, 60), zone, room)
        assert len(plan.wire(0, 0)) <= room + 33
        assert plan.records
        sure, maybe = plan.sure, plan.maybe
        assert sure <= maybe
        if sure is zone:
            break
    assert sure is maybe is zone


def test_a_record_too_large_is_passed_over_wherever_it_stands() -> None:
    big = Item(1, b"\0" * 500)
    for other in (b"\0\0\0\1", b"\xff\0\0\1"):
        zone = frozenset({big, Item(1, other)})
        sure = maybe = NOTHING
        told = 0
        for _ in range(3):
            plan = make_plan(NAME, 1, sure, maybe, dict.fromkeys(zone, 60), zone, 300)
            told += plan.records
            sure, maybe = plan.sure, plan.maybe
        assert (told, sure) == (1, zone)


def test_a_signature_needs_room() -> None:
    assert event_room(1232, None) == 1232 - 33
    assert event_room(1232, NAME) == 1232 - 33 - 122 - len(NAME)
