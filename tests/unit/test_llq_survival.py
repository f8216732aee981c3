"""Over a restart: what is written of subscriptions, what is read back, and what clients are then told."""

from collections.abc import Callable, Sequence

import pytest

from protocol.edns import LlqError
from protocol.message import Question
from protocol.name import from_text
from server.metrics import Metrics
from server.peer import Peer
from server.push import survival
from server.push.ledger import Ledger
from server.push.limits import LlqLimits
from server.push.llq_machine import LlqMachine
from server.push.sending import SendEvent
from server.push.survival import Survival
from server.store.api import StoreError, SubscriptionChanges, SubscriptionRow
from server.store.memory import MemoryStore
from server.writer import load_zone
from server.zone.model import RR, StoredRR, ZoneCommit
from server.zone.zone import Zones
from tests.support.clock import FakeClock
from tests.support.llq import CLIENT, NAME, OTHER, STREAM, a_record, edits, question, refresh, setup
from tests.support.llq import Host as BareHost
from tests.support.zones import APEX, add_zone, commit_of

PLACES = ("192.0.2.53:53", "[2001:db8::53]:53")
KEY = from_text("laptop.alice.members.example")


class Flaky(MemoryStore):
    """Fails on demand, and counts transactions."""

    failures = 0
    saves = 0

    async def save_subscriptions(self, node: str, changes: SubscriptionChanges) -> None:
        self.saves += 1
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        await super().save_subscriptions(node, changes)


class Node:
    """A machine with what keeps it, over a store that outlives it."""

    def __init__(self, store: Flaky, clock: FakeClock, may_watch: Callable[[Question, bytes | None], bool]) -> None:
        self.store = store
        self.clock = clock
        self.zones = Zones()
        self.ledger = Ledger()
        self.host = BareHost()
        self.host.machine = self.machine = LlqMachine(
            LlqLimits(),
            b"only for tests",
            lookup=self.lookup,
            entropy=lambda: 0x1234,
            event_listener=lambda peer: 1,
            ledger=self.ledger,
        )
        self.host.now = clock.monotonic()
        self.survival = Survival(
            self.machine,
            self.ledger,
            node="",
            store=store,
            zones=self.zones,
            clock=clock,
            metrics=Metrics(),
            places=PLACES,
            listener_of=lambda peer: 1,
            may_watch=may_watch,
        )

    def lookup(self, asked: Question) -> list[RR]:
        zone = self.zones.enclosing(asked.name)
        rrset = zone.rrset(asked.name, asked.rtype, 0) if zone else None
        return [RR(asked.name, rrset.rtype, rrset.ttl, rdata) for rdata in rrset.rdatas] if rrset else []

    async def load(self) -> None:
        for row in await self.store.load_zones():
            self.zones.add(await load_zone(self.store, row))

    async def commit(self, puts: Sequence[RR] = (), deletes: Sequence[RR] = ()) -> None:
        """A change that this node serves."""
        commit = await commit_elsewhere(self.store, puts, deletes)
        for row in await self.store.load_zones():
            self.zones.add(await load_zone(self.store, row))
        self.machine.publish(commit.changes[0], now=self.host.now)

    def settle(self) -> list[SendEvent]:
        return self.host.settle(20)


async def commit_elsewhere(store: MemoryStore, puts: Sequence[RR] = (), deletes: Sequence[RR] = ()) -> ZoneCommit:
    (row,) = await store.load_zones()
    commit = await commit_of(
        store,
        row.id,
        row.serial,
        tuple(StoredRR(*rr, None) for rr in puts),
        tuple(StoredRR(*rr, None) for rr in deletes),
    )
    await store.sibling().commit([commit])
    return commit


class World:
    """One store, one clock, and nodes one after another."""

    def __init__(self) -> None:
        self.store = Flaky()
        self.clock = FakeClock(unix=1_800_000_000.0)
        self.refused: set[bytes | None] = set()

    async def start(self) -> Node:
        node = Node(self.store, self.clock, lambda question, key: key not in self.refused)
        await node.load()
        await node.survival.restore(7200)
        return node

    async def rows(self) -> list[SubscriptionRow]:
        return (await self.store.subscriptions("")).rows


@pytest.fixture
async def world() -> World:
    made = World()
    await add_zone(made.store)
    assert (await made.store.load_zones())[0].apex == APEX
    return made


async def test_identity_lease_and_peer_come_back(world: World) -> None:
    node = await world.start()
    name = NAME.replace(b"mac", b"Mac")
    llq_id = node.host.establish(question(name), peer=CLIENT, key=KEY, lease=1800)
    await node.survival.save()
    (row,) = await world.rows()
    assert row == SubscriptionRow(
        NAME, 1, llq_id, name, CLIENT.address, CLIENT.port, PLACES[1], KEY, 1_800_001_800, is_stream_born=False
    )
    world.clock.advance(1000)
    again = await world.start()
    assert len(again.machine) == 1
    assert again.host.ask((question(), refresh(llq_id)), key=None).options[0].error == LlqError.NO_SUCH_LLQ
    assert again.host.ask((question(), refresh(llq_id, 900)), peer=OTHER, key=KEY).options[0].lease == 900
    again.host.run(890)
    assert len(again.machine) == 1
    again.host.run(20)
    assert len(again.machine) == 0


async def test_a_challenge_response_repeated_after_the_restart_is_answered(world: World) -> None:
    node = await world.start()
    llq_id = node.host.establish()
    await node.survival.save()
    again = await world.start()
    reply = again.host.ask((question(), setup(llq_id)))
    assert (reply.options[0].error, reply.options[0].llq_id, len(again.machine)) == (0, llq_id, 1)


async def test_changes_of_the_downtime_are_told_at_once_and_only_those(world: World) -> None:
    node = await world.start()
    await node.commit([a_record(1), a_record(2)])
    for port in (1, 2):
        node.host.establish(peer=CLIENT._replace(port=port))
    await node.survival.save()
    assert (await world.start()).settle() == []
    await commit_elsewhere(world.store, [a_record(3)], [a_record(1)])
    events = (await world.start()).settle()
    assert sorted(event.peer.port for event in events) == [1, 2]
    assert {str(edits(event.wire)) for event in events} == {str(([a_record(1).rdata], [a_record(3).rdata]))}


async def test_what_was_told_after_the_last_save_and_undone_since_is_made_good(world: World) -> None:
    node = await world.start()
    await node.commit([a_record(1)])
    node.host.establish()
    await node.survival.save()
    await node.commit([a_record(2)], [a_record(1)])
    (told,) = node.settle()
    assert edits(told.wire) == ([a_record(1).rdata], [a_record(2).rdata])
    await commit_elsewhere(world.store, [a_record(1)], [a_record(2)])
    (event,) = (await world.start()).settle()
    assert edits(event.wire) == ([a_record(2).rdata], [a_record(1).rdata])


async def test_an_event_under_way_at_the_crash_is_sent_anew_under_another_id(world: World) -> None:
    node = await world.start()
    node.host.establish()
    await node.commit([a_record(1)])
    ((_, lost),) = node.host.run(0.5)
    await node.survival.save()
    world.clock.advance(10)
    again = await world.start()
    (event,) = again.settle()
    assert edits(event.wire) == edits(lost.wire)
    assert event.message_id != lost.message_id
    await again.survival.save()
    assert (await world.start()).settle() == []


async def test_an_event_in_the_second_of_the_restart_has_an_id_of_its_own(world: World) -> None:
    """Else its client would take it for the last one of the process before, sent again."""
    node = await world.start()
    node.host.establish()
    await node.commit([a_record(1)])
    ((moment, told),) = node.host.run(1.5)
    node.host.acknowledge(told)
    await node.survival.save()
    await commit_elsewhere(world.store, [], [a_record(1)])
    again = await world.start()
    again.host.now = moment
    (event,) = again.settle()
    assert (edits(event.wire), event.signed_at) == (([a_record(1).rdata], []), told.signed_at)
    assert event.message_id != told.message_id


async def test_an_event_of_the_former_process_that_was_overtaken_is_made_good(world: World) -> None:
    """Its remove arrives after the add of the process that followed: the ack tells."""
    node = await world.start()
    await node.commit([a_record(1)])
    node.host.establish()
    await node.survival.save()
    await node.commit([], [a_record(1)])
    ((_, late),) = node.host.run(0.5)
    await commit_elsewhere(world.store, [a_record(1)])
    world.clock.advance(10)
    again = await world.start()
    assert [edits(event.wire) for event in again.host.settle(5)] == [([], [a_record(1).rdata])]
    again.host.acknowledge(late, OTHER)
    assert again.host.settle(5) == []
    assert not again.host.acknowledge(late)
    assert [edits(event.wire) for event in again.host.settle(5)] == [([], [a_record(1).rdata])]
    again.host.run(60)
    again.host.acknowledge(late)
    assert again.host.settle(5) == []


async def test_a_change_within_the_window_at_the_crash_is_not_lost(world: World) -> None:
    node = await world.start()
    node.host.establish()
    await node.commit([a_record(1)])
    await node.survival.save()
    (event,) = (await world.start()).settle()
    assert edits(event.wire) == ([], [a_record(1).rdata])


async def test_a_pruned_journal_leaves_the_stored_view(world: World) -> None:
    node = await world.start()
    await node.commit([a_record(1)])
    node.host.establish()
    await node.survival.save()
    await commit_elsewhere(world.store, [a_record(2)])
    world.store._data.journal.clear()
    (event,) = (await world.start()).settle()
    assert edits(event.wire) == ([], [a_record(2).rdata])


async def test_streams_without_an_event_port_are_not_kept(world: World) -> None:
    node = await world.start()
    node.host.establish(question(rtype=28), peer=STREAM)
    kept = node.host.ask((question(), setup(error=5353)), peer=STREAM).options[0].llq_id
    await node.survival.save()
    (row,) = await world.rows()
    assert (row.llq_id, row.address, row.port, row.is_stream_born) == (kept, STREAM.address, 5353, True)
    again = await world.start()
    await again.commit([a_record(1)])
    (event,) = again.settle()
    assert event.peer == Peer("udp", STREAM.address, 5353, 1)
    later = STREAM._replace(via=99)
    assert again.host.ask((question(), refresh(kept)), peer=later).options[0].error == 0
    await again.commit([a_record(2)])
    (event,) = again.settle()
    assert event.peer == later


async def test_what_a_broken_stream_may_have_lost_counts_over_the_restart_too(world: World) -> None:
    node = await world.start()
    node.host.ask((question(), setup(error=5353)), peer=STREAM)
    await node.commit([a_record(1)])
    assert len(node.settle()) == 1
    await node.survival.save()
    (event,) = (await world.start()).settle()
    assert edits(event.wire) == ([], [a_record(1).rdata])
    node.clock.advance(60)
    await node.survival.save()
    assert (await world.start()).settle() == []


async def test_ends_are_written(world: World) -> None:
    node = await world.start()
    llq_id = node.host.establish()
    other = node.host.establish(peer=OTHER)
    await node.survival.save()
    node.host.ask((question(), refresh(llq_id, 0)))
    await node.survival.save()
    assert [row.llq_id for row in await world.rows()] == [other]
    node.host.ask((question(), refresh(other, 0)), peer=OTHER)
    await node.survival.save()
    saved = await world.store.subscriptions("")
    assert (saved.rows, saved.topics) == ([], [])
    node.host.establish()  # gone before it was ever written
    node.machine.end_where(lambda *_: True)
    await node.survival.save()
    assert await world.rows() == []


async def test_what_must_not_go_on_is_dropped_from_the_store(world: World) -> None:
    node = await world.start()
    node.host.establish(lease=900)
    node.host.establish(key=KEY)
    kept = node.host.establish(question(rtype=28))
    await node.survival.save()
    world.clock.advance(901)
    world.refused = {KEY}
    again = await world.start()
    assert len(again.machine) == 1
    assert [row.llq_id for row in await world.rows()] == [kept]
    assert [(row.owner, row.rtype) for row in (await world.store.subscriptions("")).topics] == [(NAME, 28)]


async def test_a_clock_that_went_back_prolongs_no_lease_beyond_its_bound(world: World) -> None:
    node = await world.start()
    node.host.establish()
    await node.survival.save()
    world.clock = FakeClock(unix=1_700_000_000.0)
    again = await world.start()
    again.host.run(7201)
    assert len(again.machine) == 0
    # And a client that starts anew is not taken for a straggler of its former self.
    node = await world.start()
    node.host.establish()
    assert node.machine.counters.replaced == 1


async def test_an_unknown_listener_is_replaced_by_one_of_the_clients_family(world: World) -> None:
    node = await world.start()
    node.host.establish()
    node.host.establish(peer=Peer("udp", "2001:db8::7", 4000, 0))
    await node.survival.save()
    rows = [row._replace(listener="198.51.100.1:53") for row in await world.rows()]
    await world.store.save_subscriptions("", SubscriptionChanges(rows=rows))
    again = await world.start()
    await again.commit([a_record(1)])
    assert {(event.peer.address, event.peer.via) for event in again.settle()} == {
        (CLIENT.address, 0),
        ("2001:db8::7", 1),
    }


async def test_what_could_not_be_written_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "_PAGE_ROWS", 2)
    node = await world.start()
    ids = {node.host.establish(question(rtype=28 + number)) for number in range(7)}
    for _ in range(9):
        world.store.failures = 1
        await node.survival.save()
    assert {row.llq_id for row in await world.rows()} < ids
    await node.survival.save()
    assert {row.llq_id for row in await world.rows()} == ids
    assert len((await world.store.subscriptions("")).topics) == 7
    assert len(node.ledger) == 0


async def test_rows_are_written_in_transactions_of_bounded_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "_PAGE_ROWS", 10)
    node = await world.start()
    for port in range(95):
        node.host.establish(peer=CLIENT._replace(port=1 + port))
    await node.survival.save()
    assert world.store.saves == 1 + 10 + 1  # topic, subscriptions, marks


async def test_a_change_that_reaches_all_writes_one_row(world: World) -> None:
    node = await world.start()
    for port in range(50):
        node.host.establish(peer=CLIENT._replace(port=1 + port))
    await node.survival.save()
    await node.commit([a_record(1)])
    assert len(node.settle()) == 50
    assert len(node.ledger) == 1
    await node.survival.save()
    assert len(node.ledger) == 0


async def test_without_subscriptions_nothing_is_written(world: World) -> None:
    node = await world.start()
    await node.commit([a_record(1)])
    await node.survival.save()
    assert world.store.saves == 0


async def test_a_ledger_that_is_not_kept_notes_nothing() -> None:
    host = BareHost()
    ledger = Ledger(is_kept=False)
    host.machine._ledger = ledger
    host.establish()
    host.change(add=[a_record(1)])
    host.settle()
    assert len(ledger) == 0


def test_message_ids_of_events_do_not_repeat_within_an_hour() -> None:
    host = BareHost()
    host.establish()
    seen: list[int] = []
    for number in range(1000):
        host.change(**{("remove" if number % 2 else "add"): [a_record(0)]})
        seen += [event.message_id for event in host.settle(0.5 if number % 3 else 5)]
    assert len(seen) == len(set(seen)) == 1000
    assert len({id >> 8 for id in seen}) > 10
