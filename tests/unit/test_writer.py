"""The writer in virtual time: commit before reply, one commit for a batch, lapses on time, failures of the store."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from protocol.constants import Rcode, Type
from protocol.edns import UpdateLease
from protocol.message import decode
from protocol.name import fold
from server.config import LeaseSettings
from server.metrics import Metrics
from server.policy import UNLIMITED, Grant
from server.store.api import StoreError, Superseded
from server.store.memory import MemoryStore
from server.writer import (
    FOLLOW_RETRY_SECONDS,
    MAX_BATCH,
    MAX_LAPSES,
    MAX_QUEUE,
    Outcome,
    PendingUpdate,
    Writer,
    load_zone,
)
from server.zone.leases import LeaseQueue
from server.zone.model import RR, Actor, Change, NodeChange, Renewal, StoredRR, ZoneCommit
from server.zone.node import Node, RRset, encode_node
from server.zone.update import read_update
from server.zone.zone import Zone, Zones
from tests.support import simloop
from tests.support.builders import (
    T0,
    ZONE,
    Core,
    Item,
    ManualClock,
    add,
    content,
    delete_name,
    name,
    name_in_use,
    name_not_in_use,
    rdata,
    replay,
    rows_of,
    soa_rdata,
    stored,
    update_message,
    zone_of_records,
    zone_of_text,
)
from tests.support.zones import changed_nodes, stored_nodes

APEX = fold(name(ZONE))
TEXT = """
    members.example. 300 NS ns.members.example.
    mac.members.example. 60 A 192.0.2.1
"""


def pending(
    done: Callable[[Outcome], None],
    *ops: Item,
    prerequisites: tuple[Item, ...] = (),
    lease: int | UpdateLease | None = None,
    grant: Grant = UNLIMITED,
    apex: bytes = APEX,
) -> PendingUpdate:
    wish = UpdateLease(lease) if type(lease) is int else lease
    update = read_update(decode(update_message(ops, prerequisites)), APEX)
    assert wish is None or isinstance(wish, UpdateLease)
    return PendingUpdate(apex, update, wish, grant, Actor("update", "k."), done)


def a(host: str, last: int = 9) -> Item:
    return add(f"{host}.members.example.", 60, "A", f"192.0.2.{last}")


def scenario(
    play: Callable[[Core], Awaitable[None]], zones: Callable[[], list[Zone]] = lambda: [zone_of_text(TEXT)]
) -> Core:
    """Run the writer beside `play` in virtual time, then stop it; the core as it was left."""

    async def run() -> Core:
        core = Core(zones(), time=asyncio.get_running_loop().time)
        async with asyncio.TaskGroup() as group:
            group.create_task(core.writer.run())
            await play(core)
            core.writer.stop()
        return core

    return simloop.run(run())


def slow_disk(core: Core, seconds: float = 1.0) -> None:
    async def work() -> None:
        await asyncio.sleep(seconds)

    core.store.before_commit = core.store.before_load = work


@pytest.mark.rfc("2136", "3.5")
def test_the_reply_comes_after_the_commit_and_the_publication() -> None:
    async def play(core: Core) -> None:
        slow_disk(core)
        seen: list[tuple[Rcode, bool, int]] = []

        def done(outcome: Outcome) -> None:
            seen.append((outcome.rcode, core.zone.exists(fold(name("new.members.example."))), len(core.store.commits)))

        assert core.writer.submit(pending(done, a("new")))
        await asyncio.sleep(0.9)
        assert seen == [] and not core.zone.exists(fold(name("new.members.example.")))
        await asyncio.sleep(0.2)
        assert seen == [(Rcode.NOERROR, True, 1)]

    core = scenario(play)
    assert [change.serial_to for change in core.changes] == [2]


def test_what_comes_while_the_disk_works_shares_the_next_commit() -> None:
    order: list[int] = []

    async def play(core: Core) -> None:
        slow_disk(core)
        for number in range(20):
            core.writer.submit(pending(lambda _, number=number: order.append(number), a(f"h{number}")))  # type: ignore[misc]
            await asyncio.sleep(0.052 if number else 0.5)
        await asyncio.sleep(3)

    core = scenario(play)
    assert [len(commit.changes) for commit in core.store.commits] == [1, 10, 9]
    assert order == list(range(20))
    assert core.zone.serial == 21
    assert core.metrics.batch.sum == 20


def test_batches_and_queue_are_bounded() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        item = pending(outcomes.append, prerequisites=(name_in_use(ZONE),))
        taken = [core.writer.submit(item) for _ in range(MAX_QUEUE + 5)]
        assert taken == [True] * MAX_QUEUE + [False] * 5

    core = scenario(play)
    assert len(outcomes) == MAX_QUEUE
    assert core.metrics.batch.count == MAX_QUEUE / MAX_BATCH


@pytest.mark.rfc("2136", "3.7")
def test_a_refused_update_leaves_no_trace_and_its_neighbours_stand() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        core.writer.submit(pending(outcomes.append, a("one")))
        refused = (name_not_in_use("one.members.example."),)
        core.writer.submit(pending(outcomes.append, delete_name("mac.members.example."), prerequisites=refused))
        core.writer.submit(pending(outcomes.append, a("two"), prerequisites=(name_in_use("one.members.example."),)))

    core = scenario(play)
    assert [(o.rcode, o.serial_from, o.serial_to) for o in outcomes] == [
        (Rcode.NOERROR, 1, 2),
        (Rcode.YXDOMAIN, 0, 0),
        (Rcode.NOERROR, 2, 3),
    ]
    assert len(core.store.commits) == 1
    assert {str(key[0][1:4], "ascii") for key in content(core.zone) if key[1] == Type.A} == {"mac", "one", "two"}
    assert replay(zone_of_text(TEXT), core.changes) == content(core.zone)


def test_an_update_beyond_a_bound_is_refused_alone() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        core.writer.submit(pending(outcomes.append, a("x"), add(ZONE, 60, "NS", "ns2.members.example."), lease=1800))
        core.writer.submit(pending(outcomes.append, a("y"), lease=1800))

    core = scenario(play)
    assert [outcome.rcode for outcome in outcomes] == [Rcode.REFUSED, Rcode.NOERROR]
    assert not core.zone.exists(fold(name("x.members.example.")))


@pytest.mark.rfc("2136", "3.6")
def test_an_update_that_changes_nothing_writes_nothing() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        core.writer.submit(pending(outcomes.append, add("mac.members.example.", 60, "A", "192.0.2.1")))
        core.writer.submit(pending(outcomes.append, a("new"), delete_name("new.members.example.")))

    core = scenario(play)
    assert [outcome.rcode for outcome in outcomes] == [Rcode.NOERROR, Rcode.NOERROR]
    assert (core.zone.serial, core.store.commits, core.changes) == (1, [], [])


# Leases


def test_a_record_lapses_at_its_granted_second_as_a_change() -> None:
    async def play(core: Core) -> None:
        outcomes: list[Outcome] = []
        await asyncio.sleep(0.4)
        core.writer.submit(pending(outcomes.append, a("new"), lease=10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert outcomes[0].lease == UpdateLease(1800)
        await asyncio.sleep(1800.5)
        assert core.zone.serial == 2, "0.1 s before its time"
        await asyncio.sleep(0.11)
        assert core.zone.serial == 3
        assert core.leases.next_moment() is None

    core = scenario(play)
    assert [(change.actor.kind, len(change.removed), len(change.added)) for change in core.changes] == [
        ("update", 1, 2),
        ("lapse", 2, 1),
    ]
    assert core.store.rows[1] == rows_of(zone_of_text(TEXT))


@pytest.mark.rfc("9664", "5.3")
def test_a_refresh_moves_the_lease_and_nothing_else() -> None:
    async def play(core: Core) -> None:
        for _ in range(5):
            core.writer.submit(pending(lambda _: None, a("new"), lease=1800))
            await asyncio.sleep(1440)
            assert core.zone.rrset(fold(name("new.members.example.")), Type.A, int(core.clock.now))
        assert core.zone.serial == 2

    core = scenario(play)
    assert len(core.changes) == 1
    assert len(core.store.commits) == 5
    owner = name("new.members.example.")
    before, after = (
        encode_node(Node(owner, {Type.A: RRset(Type.A, 60, (rdata("A", "192.0.2.9"),), (T0 + at + 1800,))}))
        for at in (3 * 1440, 4 * 1440)
    )
    change = NodeChange(fold(owner), owner, before, after, Renewal(T0 + 4 * 1440, "k.", ""))
    assert core.store.commits[-1] == ZoneCommit(1, 2, 2, (change,), ())


def test_a_shorter_lease_ends_earlier() -> None:
    async def play(core: Core) -> None:
        core.writer.submit(pending(lambda _: None, a("new"), lease=7200))
        await asyncio.sleep(1)
        core.writer.submit(pending(lambda _: None, a("new"), lease=1800))
        await asyncio.sleep(1801)
        assert not core.zone.exists(fold(name("new.members.example.")))

    scenario(play)


def test_lapses_come_in_order_and_are_not_lost_to_a_failing_store() -> None:
    async def play(core: Core) -> None:
        for index, lease in enumerate((1800, 1900, 2000)):
            core.writer.submit(pending(lambda _: None, a(f"h{index}"), lease=lease))
        await asyncio.sleep(1850)
        core.store.failures = [StoreError("disk full")] * 3
        await asyncio.sleep(49.9)
        assert core.metrics.store_errors._value.get() == 0
        await asyncio.sleep(0.5)
        assert core.metrics.store_errors._value.get() == 2
        assert core.query("h1.members.example.").rcode == Rcode.NXDOMAIN, "lapsed is lapsed, written or not"
        await asyncio.sleep(200)

    core = scenario(play)
    gone = [change.removed[1].owner for change in core.changes if change.actor.kind == "lapse"]
    assert gone == [name(f"h{index}.members.example.") for index in range(3)]
    assert core.store.rows[1] == rows_of(zone_of_text(TEXT))


def many_leased(count: int) -> list[Zone]:
    return [
        zone_of_records(
            [stored(f"h{number}.members.example. 60 A 192.0.2.9", expires_at=T0 + 10) for number in range(count)]
        )
    ]


def test_a_crowd_lapses_in_bounded_commits() -> None:
    async def play(core: Core) -> None:
        await asyncio.sleep(11)

    core = scenario(play, lambda: many_leased(2 * MAX_LAPSES + 1))
    assert [len(commit.nodes) for commit in core.store.commits] == [MAX_LAPSES, MAX_LAPSES, 1]
    assert not core.zone.nodes


def test_an_update_never_sees_what_lapsed_however_many_did() -> None:
    """More lapse at once than one commit takes, and the update comes in the same turn."""
    core = Core(many_leased(MAX_LAPSES + 50))
    core.clock.now += 10
    outcomes: list[Outcome] = []
    for number in range(MAX_LAPSES + 50):
        absent = (name_not_in_use(f"h{number}.members.example."),)
        core.writer.submit(pending(outcomes.append, a(f"h{number}"), prerequisites=absent, lease=1800))
    core.write()
    assert {outcome.rcode for outcome in outcomes} == {Rcode.NOERROR}
    assert replay(many_leased(MAX_LAPSES + 50)[0], core.changes) == content(core.zone, int(core.clock.now))
    added = sum(len(change.added) - 1 for change in core.changes)
    assert added == MAX_LAPSES + 50, "each came back as a new record"
    core.write()
    assert core.store.rows[1] == rows_of(core.zone)


def test_the_lease_of_a_key_is_its_own() -> None:
    key_op = Item(name("new.members.example."), Type.KEY, 1, 60, b"\x02\x00\x03\x0dkey")

    async def play(core: Core) -> None:
        outcomes: list[Outcome] = []
        core.writer.submit(pending(outcomes.append, a("new"), key_op, lease=UpdateLease(1800, 99999)))
        await asyncio.sleep(1801)
        assert outcomes[0].lease == UpdateLease(1800, 7200)
        node = core.zone.node(fold(name("new.members.example.")))
        assert node is not None and set(node.rrsets) == {Type.KEY}
        await asyncio.sleep(5400)
        assert core.zone.node(fold(name("new.members.example."))) is None

    scenario(play)


# The store fails, or others come first


@pytest.mark.rfc("2136", "3.4.2.1")
def test_a_failing_store_gives_servfail_and_publishes_nothing() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        core.store.failures = [StoreError("disk full")]
        core.writer.submit(pending(outcomes.append, a("new")))
        core.writer.submit(pending(outcomes.append, a("x"), prerequisites=(name_not_in_use("new.members.example."),)))
        await asyncio.sleep(0.1)
        assert [outcome.rcode for outcome in outcomes] == [Rcode.SERVFAIL] * 2, "even what rested on the first"
        assert (core.zone.serial, core.changes) == (1, [])
        core.writer.submit(pending(outcomes.append, a("new")))

    core = scenario(play)
    assert [outcome.rcode for outcome in outcomes][2:] == [Rcode.NOERROR]
    assert core.zone.serial == 2


def other_process(core: Core, *records: StoredRR) -> None:
    """Commits beside the writer, as another node would."""
    zone = Zone(1, APEX, *core.store.zones[1][4:7])
    old = zone.soa_rr()
    zone.serial += 1
    added = (zone.soa_rr(), *(RR(*record[:4]) for record in records))
    change = Change(APEX, zone.serial - 1, zone.serial, T0, Actor("update"), (old,), added)
    core.store._apply(ZoneCommit(1, zone.serial - 1, zone.serial, changed_nodes({}, records), (change,)))


def test_overtaken_by_another_process_it_catches_up_and_tries_again() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        other_process(core, stored("theirs.members.example. 60 A 192.0.2.7"))
        theirs = (name_in_use("theirs.members.example."),)
        core.writer.submit(pending(outcomes.append, a("ours"), prerequisites=theirs))
        core.writer.submit(pending(outcomes.append, a("both")))

    core = scenario(play)
    assert [(outcome.rcode, outcome.serial_to) for outcome in outcomes] == [(Rcode.NOERROR, 3), (Rcode.NOERROR, 4)]
    assert core.zone.exists(fold(name("theirs.members.example.")))
    assert core.store.rows[1] == rows_of(core.zone)
    assert core.changes == core.store.journal[1]


def test_overtaken_too_often_it_gives_up_with_servfail() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        core.store.failures = [Superseded(1)] * 5
        core.writer.submit(pending(outcomes.append, a("ours")))

    core = scenario(play)
    assert [outcome.rcode for outcome in outcomes] == [Rcode.SERVFAIL]
    assert (core.zone.serial, core.changes) == (1, [])


def test_a_store_that_fails_while_catching_up_does_not_end_the_writer() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        core.store.failures = [Superseded(1)]
        core.store.read_failures = [StoreError("gone")]
        core.writer.submit(pending(outcomes.append, a("ours")))
        await asyncio.sleep(1)
        assert [outcome.rcode for outcome in outcomes] == [Rcode.SERVFAIL]
        core.writer.submit(pending(outcomes.append, a("ours")))

    scenario(play)
    assert outcomes[-1].rcode == Rcode.NOERROR


def test_following_is_tried_again_until_the_store_answers() -> None:
    async def play(core: Core) -> None:
        other_process(core, stored("theirs.members.example. 60 A 192.0.2.7", expires_at=T0 + 1000))
        core.store.read_failures = [StoreError("gone")] * 3
        core.writer.follow()
        await asyncio.sleep(2.5 * FOLLOW_RETRY_SECONDS)
        assert not core.zone.exists(fold(name("theirs.members.example.")))
        await asyncio.sleep(FOLLOW_RETRY_SECONDS)
        assert core.zone.exists(fold(name("theirs.members.example.")))
        assert core.metrics.store_errors._value.get() == 3
        await asyncio.sleep(1000)
        assert not core.zone.exists(fold(name("theirs.members.example."))), "its lease was taken over too"

    core = scenario(play)
    assert core.changes == core.store.journal[1]


def test_zones_that_others_made_and_removed_come_and_go() -> None:
    carol = zone_of_text(
        "x.carol.members.example. 60 A 192.0.2.1", apex="carol.members.example.", zone_id=2, member_id=3, serial=8
    )

    async def play(core: Core) -> None:
        core.store.hold(carol)
        core.writer.follow()
        await asyncio.sleep(0.1)
        found = core.zones.at(carol.apex)
        assert found is not None and (found.member_id, content(found)) == (3, content(carol))
        del core.store.zones[2]
        core.writer.follow()
        await asyncio.sleep(0.1)
        assert core.zones.at(carol.apex) is None

    core = scenario(play)
    made, gone = core.changes
    assert (made.serial_from, made.serial_to, len(made.added)) == (0, 8, 2)
    assert (gone.serial_from, gone.serial_to, len(gone.removed)) == (8, 0, 2)


def test_a_zone_made_anew_or_with_a_pruned_journal_is_loaded_whole_before_the_old_one_goes() -> None:
    async def play(core: Core) -> None:
        fresh = zone_of_text("other.members.example. 60 A 192.0.2.1", serial=50)
        core.store.hold(fresh)
        core.writer.follow()
        await asyncio.sleep(0.1)
        assert content(core.zone) == content(fresh)
        core.store.zones[9] = core.store.zones.pop(1)._replace(id=9, serial=3)
        core.store.nodes[9], core.store.journal[9] = core.store.nodes.pop(1), []
        slow_disk(core)
        core.writer.follow()
        await asyncio.sleep(0.5)
        assert core.zone.id == 1, "it answers while the new one is read"
        await asyncio.sleep(1)

    core = scenario(play)
    assert (core.zone.id, core.zone.serial) == (9, 3)


def test_an_update_for_a_zone_that_is_gone_is_notauth() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        core.writer.submit(pending(outcomes.append, a("x"), apex=fold(name("gone.example."))))

    scenario(play)
    assert [outcome.rcode for outcome in outcomes] == [Rcode.NOTAUTH]


# Stopping


def test_stopping_finishes_the_queue_and_takes_no_more() -> None:
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        slow_disk(core)
        for number in range(3):
            core.writer.submit(pending(outcomes.append, a(f"h{number}")))
        core.writer.stop()
        assert not core.writer.submit(pending(outcomes.append, a("late")))

    core = scenario(play)
    assert len(outcomes) == 3 and core.zone.serial == 4


def test_stopping_does_not_wait_for_lapses_that_cannot_be_written() -> None:
    async def play(core: Core) -> None:
        core.store.failures = [StoreError("disk full")] * 1000
        await asyncio.sleep(11)
        core.writer.stop()
        before = core.clock.now
        await asyncio.sleep(1)
        assert len(core.store.failures) > 900 and core.clock.now == before + 1

    scenario(play, lambda: many_leased(1))


def test_an_idle_writer_sleeps() -> None:
    """No timer is set when nothing is leased: virtual time has nowhere to go."""

    async def run() -> None:
        core = Core([zone_of_text(TEXT)], time=asyncio.get_running_loop().time)
        await core.writer.run()

    with pytest.raises(simloop.Deadlock):
        simloop.run(run())


# The same over the store of the simulations


def test_what_is_loaded_after_a_restart_is_what_was_answered_before() -> None:
    async def run() -> None:
        store = MemoryStore()
        async with store.transaction() as transaction:
            zone_id = await transaction.add_zone(
                APEX, kind="service", member_id=None, serial=7, soa=soa_rdata(7), soa_ttl=300
            )
        (row,) = await store.load_zones()
        zone = await load_zone(store, row)
        changes: list[Change] = []
        zones = Zones([zone])
        writer = Writer(
            zones=zones,
            store=store,
            clock=ManualClock(),
            leases=LeaseQueue(zones),
            limits=LeaseSettings(),
            metrics=Metrics(),
            on_change=changes.append,
        )
        outcomes: list[Outcome] = []
        updates: list[tuple[list[Item], int | None]] = [
            ([a("mac"), a("mac", 10), add("mac.members.example.", 60, "TXT", "x")], 1800),
            ([add("mac.members.example.", 90, "A", "192.0.2.9")], 7200),
            ([a("other")], None),
            ([delete_name("other.members.example."), a("Third")], None),
        ]
        for ops, lease in updates:
            await writer.step([pending(outcomes.append, *ops, lease=lease)])
        assert {outcome.rcode for outcome in outcomes} == {Rcode.NOERROR}
        (row,) = await store.load_zones()
        again = await load_zone(store, row)
        assert row.serial == zone.serial == 11
        assert rows_of(again) == rows_of(zone)
        assert await store.changes_since(zone_id, 7) == changes

    work: Coroutine[Any, Any, None] = run()
    simloop.run(work)


def test_what_another_server_renewed_does_not_lapse() -> None:
    """A renewal through another server moves no serial: ours hears of it when it would let the record lapse."""

    async def play(core: Core) -> None:
        outcomes: list[Outcome] = []
        for host in ("one", "two"):
            core.writer.submit(pending(outcomes.append, a(host), lease=1800))
        await asyncio.sleep(100)
        theirs = stored("one.members.example. 60 A 192.0.2.9", expires_at=T0 + 5000)
        core.store.nodes[core.zone.id][fold(theirs.owner)] = stored_nodes([theirs])[0][:2]
        await asyncio.sleep(1701)
        assert [change.actor.kind for change in core.changes][-1] == "lapse"
        assert core.query("one.members.example.").rcode == Rcode.NOERROR
        assert core.query("two.members.example.").rcode == Rcode.NXDOMAIN
        await asyncio.sleep(4999 - 1801)
        assert core.query("one.members.example.").rcode == Rcode.NOERROR
        await asyncio.sleep(2)
        assert core.query("one.members.example.").rcode == Rcode.NXDOMAIN

    core = scenario(play)
    gone = [change.removed[1].owner for change in core.changes if change.actor.kind == "lapse"]
    assert gone == [name("two.members.example."), name("one.members.example.")]


def test_a_renewal_keeps_what_another_server_renewed_at_the_name() -> None:
    """It moves no serial either: ours writes on what it finds, reads the name again, and then renews its own record."""
    outcomes: list[Outcome] = []

    async def play(core: Core) -> None:
        text = add("one.members.example.", 60, "TXT", "theirs")
        core.writer.submit(pending(outcomes.append, a("one"), text, lease=1800))
        await asyncio.sleep(100)
        theirs = [
            stored("one.members.example. 60 A 192.0.2.9", expires_at=T0 + 1800),
            stored("one.members.example. 60 TXT theirs", expires_at=T0 + 9000),
        ]
        core.store.nodes[core.zone.id][theirs[0].owner] = stored_nodes(theirs)[0][:2]
        core.writer.submit(pending(outcomes.append, a("one"), lease=3600))

    core = scenario(play)
    assert [outcome.rcode for outcome in outcomes] == [Rcode.NOERROR, Rcode.NOERROR]
    leases = {row.rtype: rr.expires_at for row, rr in core.store.rows[1].items() if row.owner_key.startswith(b"\3one")}
    assert leases == {Type.A: T0 + 3700, Type.TXT: T0 + 9000}
    assert core.store.rows[1] == rows_of(core.zone)
    assert len(core.store.commits) == 2
