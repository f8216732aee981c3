"""Many light machines around the real server (`fleet/`), a few seeds of them; and proof that the checks bite.

`make sim SEEDS=200` runs many at full size; `HOMING_FLEET_SEEDS=20 pytest tests/sim/test_fleet.py` some at this one.
"""

import os
import re
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest

from protocol.constants import Opcode, Type
from protocol.message import Question, decode, encode
from protocol.name import from_text
from server.push.event_queue import EventQueue
from server.push.events import NOTHING
from server.push.llq_machine import LlqMachine
from server.push.survival import Survival
from server.store.api import Subscriptions
from server.zone.model import RR, Actor, Change
from server.zone.node import RRset
from tests.sim.fleet import life
from tests.sim.fleet.truth import Truth
from tests.sim.mutations import SHARED, Mutation, acknowledge_first, nothing, only_adds
from tests.support.zones import RowKey

SEEDS = int(os.environ.get("HOMING_FLEET_SEEDS", "2"))
HOSTS = 60
KEY = RowKey(from_text("mac.alice.members.example."), Type.A, bytes(4))
PLACE = ("192.0.2.1", 4000)
UPDATE = encode(7, Opcode.UPDATE << 11)
DAYS = 1  # a storm and its quiet


@pytest.mark.parametrize("seed", range(1, 1 + SEEDS))
def test_a_storm_and_its_quiet(seed: int) -> None:
    counts = life.run(seed, HOSTS, DAYS)
    for what in ("restored", "retransmissions", "events", "answers checked", "unseen changes"):
        assert counts[what] > 0, what


def test_the_same_seed_is_the_same_fleet() -> None:
    assert life.run(7, 20, DAYS) == life.run(7, 20, DAYS)


_acked, _restore, _widened = EventQueue.acked, LlqMachine.restore, Survival._widened


def _ack_without_merging(queue: EventQueue, subscription: Any, now: float) -> None:
    """What changed behind the outstanding event is forgotten."""
    with patch.object(queue, "make_due", nothing):
        _acked(queue, subscription, now)


def _restore_as_current(machine: LlqMachine, saved: Any, *, now: float) -> bool:
    """As if every client had heard of all that happened meanwhile."""
    said = frozenset((rr.rtype, rr.rdata) for rr in machine._lookup(saved.question))
    return _restore(machine, saved._replace(sure=said, maybe=said), now=now)


async def _not_widened(survival: Survival, reader: Any, saved: Subscriptions) -> Any:
    """As if nothing had happened between the last save and the crash."""
    return await _widened(survival, reader, Subscriptions(saved.topics, saved.rows, {}))


async def _keep_nothing(survival: Survival, reader: Any, saved: Subscriptions) -> Any:
    return dict.fromkeys(await _widened(survival, reader, saved), (NOTHING, NOTHING))


_live_records = RRset.live


MUTATIONS: dict[str, Mutation] = {
    **SHARED,
    "events are not sent again": ({"server.push.event_queue.EventQueue._retry_due": nothing}, "view of Question"),
    "what changes behind an event is lost": (
        {"server.push.event_queue.EventQueue.acked": _ack_without_merging},
        "view of Question",
    ),
    "events tell no removals": ({"server.push.event_queue.make_plan": only_adds}, "view of Question"),
    "a restart takes clients for informed": (
        {"server.push.llq_machine.LlqMachine.restore": _restore_as_current},
        "view of Question",
    ),
    "a restart trusts its last save": ({"server.push.survival.Survival._widened": _not_widened}, "view of Question"),
    "a restart forgets what clients hold": (
        {"server.push.survival.Survival._widened": _keep_nothing},
        "view of Question",
    ),
    "leases do not lapse": ({"server.writer.lapse": nothing}, "view of Question"),
    "leases end too soon": (
        {"server.zone.node.RRset.live": lambda rrset, now: _live_records(rrset, now + 4 * 3600)},
        "lost (RR|RowKey)",
    ),
    "updates are acknowledged before they are written": (
        {"server.writer.Writer.step": acknowledge_first},
        "lost (RR|RowKey)",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_bite(mutation: str) -> None:
    """Some fleet of a few notices, and says what is wrong."""
    replacements, complaint = MUTATIONS[mutation]
    found = []
    with ExitStack() as stack:
        for target, replacement in replacements.items():
            stack.enter_context(patch(target, replacement))
        for seed in range(1, 9):
            try:
                life.run(seed, 30, DAYS)
            except life.Violated as violated:
                found.append(str(violated))
                if re.search(complaint, found[-1]):
                    return
    pytest.fail(f"nobody noticed that {mutation}; noticed: {found}")


def _judged() -> tuple[Truth, list[float], list[str]]:
    now, notes = [0.0], []
    return Truth(lambda: now[0], notes.append), now, notes


def _tell(truth: Truth, sent_at: float) -> None:
    wire = encode(1, 0x8000, (Question(KEY.owner_key, KEY.rtype, 1),), ((*KEY[:2], 1, 120, KEY.rdata_key),))
    truth.told(decode(wire), wire, sent_at, is_event=False)


def test_a_refused_renewal_leaves_the_former_lease() -> None:
    """It asked for a shorter one; until the former ends the record may be told, and no longer."""
    truth, now, notes = _judged()
    for lease in (9000.0, 3000.0):
        truth.underway(PLACE, 7, [KEY], lease)
        truth.arrives(PLACE, UPDATE)
        if lease == 9000.0:
            truth.acknowledged([KEY], now[0], lease)
    _tell(truth, 8000.0)
    assert notes == []
    _tell(truth, 9002.0)
    assert len(notes) == 1


def test_an_acknowledged_lease_may_be_shorter_than_the_former() -> None:
    truth, now, notes = _judged()
    for lease in (9000.0, 3000.0):
        truth.underway(PLACE, 7, [KEY], lease)
        truth.arrives(PLACE, UPDATE)
        truth.acknowledged([KEY], now[0], lease)
    _tell(truth, 2800.0)
    assert notes == []
    _tell(truth, 3002.0)
    assert len(notes) == 1


def test_an_update_under_way_may_have_shortened_a_lease() -> None:
    """Its machine crashes before it hears: nothing longer is owed from then on, and nothing less."""
    truth, now, notes = _judged()
    truth.acknowledged([KEY], 0.0, 9000.0)
    now[0] = 100.0
    truth.update_sent([], [], [KEY], 3000.0)
    for now[0], is_lost in ((3101.0, False), (3099.0, True)):
        truth.changed(Change(from_text("example."), 1, 2, 0, Actor("lapse"), (RR(*KEY[:2], 120, KEY.rdata_key),), ()))
        assert bool(notes) is is_lost
