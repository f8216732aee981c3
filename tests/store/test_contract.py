"""What every store does alike."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from protocol.constants import Type
from protocol.name import from_text
from protocol.tsig import MD5, SHA256, Key
from server.policy_settings import rule_from_text
from server.store import reading
from server.store.api import (
    KeyRow,
    NodeMoved,
    Store,
    StoreError,
    SubscriptionChanges,
    SubscriptionRow,
    Subscriptions,
    Superseded,
    TopicRow,
)
from server.zone.model import Renewal, StoredRR
from tests.store.conftest import Opener
from tests.support.zones import APEX, LONG_TEXT, SOA, aaaa, add_zone, all_records, commit_of, renewal_of, row_key

MAC = aaaa("Mac.alice.members.example.", 1, 5000)
NAS = aaaa("nas.bob.members.example.", 2)


async def test_a_zone_is_found_as_it_was_made(store: Store) -> None:
    zone_id = await add_zone(store, serial=0xFFFFFFFF)
    assert await store.load_zones() == [(zone_id, APEX, "service", None, 0xFFFFFFFF, SOA, 60)]
    with pytest.raises(StoreError, match="already"):
        await add_zone(store)


async def test_a_commit_shows_in_records_serial_and_journal(store: Store) -> None:
    zone_id = await add_zone(store)
    commit = await commit_of(store, zone_id, 1, (MAC, NAS))
    await store.commit([commit])
    assert (await store.load_zones())[0].serial == 2
    assert await all_records(store, zone_id) == [MAC, NAS]
    assert await store.changes_since(zone_id, 1) == list(commit.changes)
    assert [row.change for row in await store.journal()] == list(commit.changes)


async def test_put_replaces_a_row_whole_and_delete_takes_it(store: Store) -> None:
    zone_id = await add_zone(store)
    await store.commit([await commit_of(store, zone_id, 1, (MAC, NAS))])
    moved = MAC._replace(owner=from_text("MAC.alice.members.example."), ttl=4294967295, expires_at=None)
    await store.commit([await commit_of(store, zone_id, 2, (moved,), (NAS,))])
    assert await all_records(store, zone_id) == [moved]


async def test_leases_move_without_a_serial(store: Store) -> None:
    zone_id = await add_zone(store)
    await store.commit([await commit_of(store, zone_id, 1, (MAC,))])
    await store.commit([await renewal_of(store, zone_id, 2, [MAC._replace(expires_at=9000)])])
    assert await all_records(store, zone_id) == [MAC._replace(expires_at=9000)]
    assert (await store.load_zones())[0].serial == 2
    assert await store.changes_since(zone_id, 2) == []


async def test_a_new_soa_is_kept(store: Store) -> None:
    zone_id = await add_zone(store)
    soa = SOA[:-1] + b"\x07"
    await store.commit([await commit_of(store, zone_id, 1, soa=(soa, 300))])
    row = (await store.load_zones())[0]
    assert (row.serial, row.soa, row.soa_ttl) == (2, soa, 300)


async def test_a_superseded_serial_rolls_back_every_zone_of_the_batch(store: Store) -> None:
    first = await add_zone(store)
    second = await add_zone(store, from_text("other.example."))
    await store.commit([await commit_of(store, second, 1, (NAS,))])
    with pytest.raises(Superseded) as caught:
        await store.commit([await commit_of(store, first, 1, (MAC,)), await commit_of(store, second, 1, (MAC,))])
    assert caught.value.zone_id == second
    assert await all_records(store, first) == []
    assert [row.serial for row in await store.load_zones()] == [1, 2]
    assert len(await store.journal()) == 1


async def test_nobody_overwrites_what_another_wrote_unseen(opener: Opener) -> None:
    """The node, not the serial alone, is compared: a renewal moves no serial, and no lapse or renewal loses it."""
    one, two = await opener(), await opener()
    zone_id = await add_zone(one)
    txt = MAC._replace(rtype=Type.TXT, rdata=b"\x01x")
    await one.commit([await commit_of(one, zone_id, 1, (MAC, txt, NAS))])
    gone = await commit_of(one, zone_id, 2, (), (MAC, txt))
    changed = await commit_of(one, zone_id, 2, (NAS._replace(ttl=90), MAC._replace(ttl=90)))
    renewed = await renewal_of(one, zone_id, 2, [txt._replace(expires_at=8000)])
    known = await commit_of(one, zone_id, 2, (MAC._replace(owner=from_text("new.members.example.")),))
    await two.commit([await renewal_of(two, zone_id, 2, [MAC._replace(expires_at=9000)])])
    for commit in (gone, changed, renewed):
        with pytest.raises(NodeMoved) as caught:
            await one.commit([commit])
        assert caught.value.zone_id == zone_id
    assert set(await all_records(one, zone_id)) == {MAC._replace(expires_at=9000), txt, NAS}
    assert len(await one.journal()) == 1
    await one.commit([known])
    with pytest.raises(NodeMoved):
        await one.commit([replace(known, serial_from=3, serial_to=4, changes=())])  # no longer new
    both = [MAC._replace(expires_at=9000), txt._replace(expires_at=8000)]
    await one.commit([await renewal_of(one, zone_id, 3, both)])
    assert set(both) < set(await all_records(two, zone_id))


async def test_leases_move_only_at_the_serial_they_were_read_at(opener: Opener) -> None:
    """Else a renewal that comes after another process's deletion would be acknowledged and be nothing."""
    one, two = await opener(), await opener()
    zone_id = await add_zone(one)
    await one.commit([await commit_of(one, zone_id, 1, (MAC,))])
    renewed = await renewal_of(one, zone_id, 2, [MAC._replace(expires_at=9000)])
    await two.commit([await commit_of(two, zone_id, 2, (), (MAC,))])
    with pytest.raises(Superseded):
        await one.commit([renewed])


async def test_the_journal_is_pruned_from_its_oldest_end_by_age_and_size(store: Store) -> None:
    first = await add_zone(store)
    second = await add_zone(store, from_text("other.example."))
    assert await store.journal_span() == (0, 0)
    for serial in range(1, 11):  # made at 1001, 1001, 1002, 1002, ...
        await store.commit([await commit_of(store, first, serial)])
        await store.commit([await commit_of(store, second, serial)])
    low, high = await store.journal_span()
    assert await store.prune(before=0, keep=100, limit=100) == 0
    assert await store.prune(before=1003, keep=100, limit=3) == 3, "in bounded steps"
    assert await store.prune(before=1003, keep=100, limit=3) == 1
    assert await store.prune(before=0, keep=6, limit=100) == 10
    assert await store.journal_span() == (high - 5, high)
    assert low < high
    for zone_id in (first, second):
        assert await store.changes_since(zone_id, 7) is None
        assert [change.serial_from for change in await store.changes_since(zone_id, 8) or ()] == [8, 9, 10]
    assert await store.prune(before=2000, keep=6, limit=100) == 6
    assert (await store.journal_span(), await store.changes_since(first, 11)) == ((0, 0), [])
    await store.commit([await commit_of(store, first, 11)])
    assert (await store.journal_span())[0] > high, "ids only grow"


async def test_two_stores_renew_the_same_names_in_opposite_orders(opener: Opener) -> None:
    """Rows are locked as they are written: without one order for all, two writers would wait for each other."""
    one, two = await opener(), await opener()
    zone_id = await add_zone(one)
    records = [aaaa(f"h{number}.members.example.", number, 5000) for number in range(300)]
    await one.commit([await commit_of(one, zone_id, 1, tuple(records))])

    async def renew(store: Store, order: list[StoredRR], at: int) -> None:
        ends = [record._replace(expires_at=at) for record in order]
        with suppress(NodeMoved):  # who comes second knows the names as they were
            await store.commit([await renewal_of(store, zone_id, 2, ends, Renewal(at, "k.", ""))])

    for at in range(6000, 6010):
        await asyncio.gather(renew(one, records, at), renew(two, records[::-1], at))
    assert {record.expires_at for record in await all_records(one, zone_id)} == {6009}


async def test_the_last_renewal_of_a_name_is_kept_until_it_is_old(store: Store) -> None:
    zone_id = await add_zone(store)
    await store.commit([await commit_of(store, zone_id, 1, (MAC,))])
    owner = row_key(MAC).owner_key
    assert await store.renewal(zone_id, owner) is None
    for at in (2000, 3000):
        renewal = Renewal(at, "alice.members.example.", f"192.0.2.{at // 1000}")
        await store.commit([await renewal_of(store, zone_id, 2, [MAC._replace(expires_at=at + 3600)], renewal)])
    assert await store.renewal(zone_id, owner) == renewal
    await store.commit([await commit_of(store, zone_id, 2, (MAC._replace(ttl=90, expires_at=6600),))])
    assert await store.renewal(zone_id, owner) == renewal, "a change is no renewal"
    assert await store.forget_renewals(9000) == 0, "the name is there"
    await store.commit([await commit_of(store, zone_id, 3, (), (MAC,))])
    assert await store.renewal(zone_id, owner) == renewal, "who let it lapse is asked afterwards"
    await store.commit([await commit_of(store, zone_id, 4, (MAC,))])
    await store.commit([await commit_of(store, zone_id, 5, (), (MAC,))])
    assert await store.renewal(zone_id, owner) == renewal
    assert await store.forget_renewals(3000) == 0
    assert await store.forget_renewals(3001) == 1
    assert await store.renewal(zone_id, owner) is None


async def test_what_is_remembered_is_found_again(opener: Opener) -> None:
    one, two = await opener(), await opener()
    await one.remember("position", "7")
    await one.remember("position", "8")
    assert await two.meta("position") == "8"


async def test_a_removed_zone_is_superseded_and_leaves_nothing(store: Store) -> None:
    zone_id = await add_zone(store)
    await store.commit([await commit_of(store, zone_id, 1, (MAC,))])
    async with store.transaction() as transaction:
        await transaction.remove_zone(zone_id)
    with pytest.raises(Superseded):
        await store.commit([await commit_of(store, zone_id, 2, (NAS,))])
    assert await store.load_zones() == []
    assert await all_records(store, zone_id) == []
    assert await store.journal() == []
    assert await store.changes_since(zone_id, 1) is None
    assert await add_zone(store) != zone_id


async def test_an_empty_commit_is_nothing(store: Store, opener: Opener) -> None:
    other = await opener()
    before = await other.generation()
    await store.commit([])
    assert await other.generation() == before


async def test_two_stores_that_read_one_serial_do_not_both_move_it(opener: Opener) -> None:
    """The lost update of read-then-write: one of them must hear of it."""
    one, two = await opener(), await opener()
    zone_id = await add_zone(one)
    for serial in range(1, 11):
        results = await asyncio.gather(
            one.commit([await commit_of(one, zone_id, serial, (aaaa("a.members.example.", serial),))]),
            two.commit([await commit_of(two, zone_id, serial, (aaaa("b.members.example.", serial),))]),
            return_exceptions=True,
        )
        assert sorted(type(result) for result in results if result is not None) == [Superseded]
    assert (await two.load_zones())[0].serial == 11
    assert len(await all_records(one, zone_id)) == 10
    changes = await one.changes_since(zone_id, 1)
    assert changes is not None
    assert [change.serial_to for change in changes] == list(range(2, 12))


async def test_generation_moves_for_others_only(opener: Opener) -> None:
    one, two = await opener(), await opener()
    zone_id = await add_zone(one)
    seen_by_one, seen_by_two = await one.generation(), await two.generation()
    await one.commit([await commit_of(one, zone_id, 1, (MAC,))])
    assert await one.generation() == seen_by_one
    assert await two.generation() != seen_by_two
    await two.commit([await commit_of(two, zone_id, 2, (NAS,))])
    assert await one.generation() != seen_by_one


async def test_nodes_come_by_folded_owner_and_only_those_asked_for(store: Store) -> None:
    zone_id = await add_zone(store)
    many = tuple(aaaa(f"h{number}.alice.members.example.", number) for number in range(1200))
    await store.commit([await commit_of(store, zone_id, 1, (MAC, NAS, *many))])
    wanted = [from_text("mac.alice.members.example."), from_text("none.members.example.")]
    found = await store.load_nodes(zone_id, wanted)
    assert {owner: list(node.records()) for owner, node in found.items()} == {wanted[0]: [MAC]}
    assert len(await store.load_nodes(zone_id, [record.owner for record in many])) == 1200
    assert await store.load_nodes(zone_id, []) == {}


async def test_a_subtree_is_cut_at_labels(store: Store) -> None:
    zone_id = await add_zone(store)
    inside = ("alice.members.example.", "mac.alice.members.example.", "\\255.\\000.Alice.members.example.")
    outside = (
        "members.example.",
        "malice.members.example.",
        "alice\\000.members.example.",
        "alice\\001.members.example.",
        "alice-2.members.example.",
        "alicf.members.example.",
    )
    records = tuple(aaaa(name, number) for number, name in enumerate((*inside, *outside)))
    await store.commit([await commit_of(store, zone_id, 1, records)])
    found = await store.load_subtree(zone_id, from_text("alice.members.example."))
    assert {owner: next(node.records()) for owner, node in found.items()} == {
        from_text(name).lower(): record for name, record in zip(inside, records, strict=False)
    }


async def test_records_come_in_canonical_order(store: Store) -> None:
    zone_id = await add_zone(store)
    ordered = ["members.example.", "a.members.example.", "yljkjljk.a.members.example.", "z.a.members.example."]
    ordered += ["\\001.z.members.example.", "*.z.members.example.", "\\200.z.members.example."]  # RFC 4034 §6.1
    records = tuple(aaaa(name, 1) for name in ordered)
    await store.commit([await commit_of(store, zone_id, 1, records[::-1])])
    assert await all_records(store, zone_id) == list(records)


async def test_a_zone_comes_in_lists(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_NODES", 5)
    zone_id = await add_zone(store, from_text("."))
    for count in (1, 4, 5, 6, 11):
        names = [".", *(f"{chr(97 + number)}.members.example." for number in range(count - 1))]
        present = await all_records(store, zone_id)
        records = [aaaa(name, number) for number, name in enumerate(names)]
        fresh = tuple(record for record in records if record not in present)
        await store.commit([await commit_of(store, zone_id, (await store.load_zones())[0].serial, fresh)])
        assert await all_records(store, zone_id) == records


async def test_long_rdata_is_told_apart(store: Store) -> None:
    zone_id = await add_zone(store)
    texts = [StoredRR(APEX, 16, 60, LONG_TEXT * 30 + bytes((1, number)), None) for number in range(3)]
    await store.commit([await commit_of(store, zone_id, 1, tuple(texts))])
    await store.commit([await commit_of(store, zone_id, 2, (), (texts[1],))])
    assert {record.rdata for record in await all_records(store, zone_id)} == {texts[0].rdata, texts[2].rdata}


async def test_the_journal_pages_and_knows_how_far_it_reaches(store: Store) -> None:
    zone_id = await add_zone(store)
    other = await add_zone(store, from_text("other.example."))
    for serial in range(1, 8):
        await store.commit([await commit_of(store, zone_id, serial, (aaaa("a.members.example.", serial),))])
    await store.commit([await commit_of(store, other, 1, (NAS,))])
    first = await store.journal(limit=3, zone_id=zone_id)
    rest = await store.journal(after=first[-1].id, zone_id=zone_id)
    assert [row.change.serial_from for row in (*first, *rest)] == list(range(1, 8))
    assert [row.zone_id for row in await store.journal(after=rest[-1].id)] == [other]
    changes = await store.changes_since(zone_id, 5)
    assert changes is not None
    assert [change.serial_from for change in changes] == [5, 6, 7]
    assert await store.changes_since(zone_id, 99) is None


async def test_a_zone_replays_from_its_journal(store: Store) -> None:
    zone_id = await add_zone(store)
    await store.commit([await commit_of(store, zone_id, 1, (MAC, NAS))])
    await store.commit([await commit_of(store, zone_id, 2, (MAC._replace(ttl=5),), (MAC,))])
    records = set()
    for change in await store.changes_since(zone_id, 1) or ():
        records -= set(change.removed[1:])
        records |= set(change.added[1:])
    # the delete comes before the put of the same row
    assert records == {(NAS.owner, 28, 60, NAS.rdata), (MAC.owner, 28, 5, MAC.rdata)}


async def test_members_and_their_keys(store: Store) -> None:
    domain = from_text("alice.members.example.")
    async with store.transaction() as transaction:
        member_id = await transaction.add_member("alice", domain, private=True, created_at=7)
        zone_id = await transaction.add_zone(domain, kind="member", member_id=member_id, serial=1, soa=SOA, soa_ttl=60)
        own = KeyRow(Key(domain, SHA256, b"s" * 32), member_id, 7, kdf='{"kdf": "scrypt"}')
        admin = KeyRow(Key(from_text("_admin.members.example."), MD5, b"a" * 16), None, 7)
        await transaction.add_key(own)
        await transaction.add_key(admin)
    assert await store.members() == [(member_id, "alice", domain, True, 7)]
    assert await store.keys() == [admin, own]
    with pytest.raises(StoreError, match="already"):
        async with store.transaction() as transaction:
            await transaction.add_member("alice", domain, private=False, created_at=8)
    with pytest.raises(StoreError, match="already"):
        async with store.transaction() as transaction:
            await transaction.add_key(own)
    async with store.transaction() as transaction:
        await transaction.remove_member(member_id)
    assert await store.members() == []
    assert await store.keys() == [admin]
    assert zone_id not in [row.id for row in await store.load_zones()]


async def test_a_revoked_key_stays_listed_until_its_name_is_given_again(store: Store) -> None:
    name = from_text("mac.alice.members.example.")
    old, new = (KeyRow(Key(name, SHA256, secret * 32), None, 1) for secret in (b"o", b"n"))
    async with store.transaction() as transaction:
        await transaction.add_key(old)
        assert await transaction.revoke_key(name, 50)
        assert not await transaction.revoke_key(name, 60)
    assert await store.keys() == [replace(old, revoked_at=50)]
    async with store.transaction() as transaction:
        await transaction.add_key(new)
    assert await store.keys() == [new]


async def test_a_key_ends_when_it_is_told_to(store: Store) -> None:
    name = from_text("mac.alice.members.example.")
    old, new = (KeyRow(Key(name, SHA256, secret * 32), None, at) for secret, at in ((b"o", 1), (b"n", 70)))
    async with store.transaction() as transaction:
        await transaction.add_key(old)
        assert await transaction.set_key_expiry(name, 70)
        assert not await transaction.set_key_expiry(from_text("gone."), 70)
    (row,) = await store.keys()
    assert row == replace(old, expires_at=70)
    assert [row.is_valid(now) for now in (69, 70)] == [True, False]
    with pytest.raises(StoreError, match="already"):
        async with store.transaction() as transaction:
            await transaction.add_key(replace(new, created_at=69))
    async with store.transaction() as transaction:
        await transaction.add_key(new)
    assert await store.keys() == [new]


async def test_a_key_keeps_its_rules_in_order(store: Store) -> None:
    name = from_text("mac.alice.members.example.")
    origin = from_text("alice.members.example.")
    every = rule_from_text(
        'effect = "allow", actions = ["update", "transfer"], match = "pattern", owner = "*.x", types = ["SRV", "PTR"], '
        'target = "y", lease = "optional", default_lease_seconds = 60, records_per_name = 0, names_per_member = 2',
        origin,
    )
    deny = rule_from_text('effect = "deny", match = "self"', origin)
    async with store.transaction() as transaction:
        await transaction.add_key(KeyRow(Key(name, SHA256, b"o" * 32), None, 1, rules=(every, deny)))
    assert [row.rules for row in await store.keys()] == [(every, deny)]
    async with store.transaction() as transaction:
        assert await transaction.set_rules(name, (deny,))
        assert not await transaction.set_rules(from_text("gone."), (deny,))
    assert [row.rules for row in await store.keys()] == [(deny,)]
    async with store.transaction() as transaction:
        await transaction.revoke_key(name, 50)
        await transaction.add_key(KeyRow(Key(name, SHA256, b"n" * 32), None, 60))
    assert [row.rules for row in await store.keys()] == [()]


async def test_operations_are_counted(store: Store) -> None:
    assert await store.operations() == 0
    for number in (1, 2, 3):
        async with store.transaction() as transaction:
            await transaction.count_operation()
            assert await transaction.operations() == number
    with pytest.raises(ValueError, match="stop"):
        async with store.transaction() as transaction:
            await transaction.count_operation()
            raise ValueError("stop")
    assert await store.operations() == 3


async def test_a_member_changes_its_kind(store: Store) -> None:
    async with store.transaction() as transaction:
        member = await transaction.add_member("alice", from_text("alice."), private=False, created_at=1)
        await transaction.set_private(member, True)
    assert [row.private for row in await store.members()] == [True]


async def test_last_use_only_goes_forward(store: Store) -> None:
    name = from_text("alice.members.example.")
    async with store.transaction() as transaction:
        await transaction.add_key(KeyRow(Key(name, SHA256, b"s" * 32), None, 1))
    await store.touch_keys({name: 100, from_text("gone.example."): 100})
    await store.touch_keys({name: 90})
    await store.touch_keys({})
    assert (await store.keys())[0].last_used_at == 100


async def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    zone_id = await add_zone(store)
    with pytest.raises(ValueError, match="stop"):
        async with store.transaction() as transaction:
            await transaction.apply([await commit_of(transaction, zone_id, 1, (MAC,))])
            await transaction.set_meta("service", "x")
            assert [row.serial for row in await transaction.load_zones()] == [2]
            raise ValueError("stop")
    assert await all_records(store, zone_id) == []
    assert await store.meta("service") is None
    await store.commit([await commit_of(store, zone_id, 1, (MAC,))])


async def test_meta_is_replaced(store: Store) -> None:
    for value in ("a", "b"):
        async with store.transaction() as transaction:
            await transaction.set_meta("service", value)
    assert await store.meta("service") == "b"


async def test_reading_sees_one_moment(store: Store, opener: Opener) -> None:
    other = await opener()
    zone_id = await add_zone(store)
    async with store.reading() as reader:
        assert (await reader.load_zones())[0].serial == 1
        await other.commit([await commit_of(other, zone_id, 1, (MAC,))])
        assert await all_records(reader, zone_id) == []
        assert (await reader.load_zones())[0].serial == 1
    assert await all_records(store, zone_id) == [MAC]


async def test_a_cancelled_commit_runs_to_its_end(store: Store) -> None:
    zone_id = await add_zone(store)
    for serial in range(1, 9):
        commit = await commit_of(store, zone_id, serial, (aaaa("a.members.example.", serial),))
        task = asyncio.create_task(store.commit([commit]))
        for _ in range(serial):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await store.load_zones())[0].serial == serial + 1
        assert len(await all_records(store, zone_id)) == serial


async def test_a_cancelled_transaction_leaves_nothing_and_the_store_works_on(store: Store) -> None:
    zone_id = await add_zone(store)
    entered = asyncio.Event()

    async def hold() -> None:
        async with store.transaction() as transaction:
            await transaction.apply([await commit_of(transaction, zone_id, 1, (MAC,))])
            entered.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(hold())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.commit([await commit_of(store, zone_id, 1, (NAS,))])
    assert await all_records(store, zone_id) == [NAS]


MAC_OWNER = from_text("mac.alice.members.example.")
TOPIC = TopicRow(MAC_OWNER, 28, b"\0\x1c\0\x01a", None)
LLQ = SubscriptionRow(
    MAC_OWNER,
    28,
    0xFFFFFFFF00000001,
    from_text("Mac.alice.members.example."),
    "2001:db8::7",
    40000,
    "[::]:5352",
    from_text("mac.alice.members.example."),
    1_800_000_000,
    is_stream_born=True,
)


def content(found: Subscriptions) -> tuple[set[TopicRow], set[SubscriptionRow], dict[int, int]]:
    return set(found.topics), set(found.rows), found.marks


async def test_subscriptions_are_put_replaced_and_deleted(store: Store, opener: Opener) -> None:
    plain = LLQ._replace(llq_id=1, name=MAC_OWNER, key_name=None, is_stream_born=False)
    other = TopicRow(MAC_OWNER, 1, b"", b"\0\1\0\0")
    await store.save_subscriptions("", SubscriptionChanges([TOPIC, other], [LLQ, plain], marks={1: 4294967295, 2: 7}))
    assert content(await store.subscriptions("")) == ({TOPIC, other}, {LLQ, plain}, {1: 4294967295, 2: 7})
    moved, widened = LLQ._replace(port=1, expires_at=2), TOPIC._replace(maybe=b"\0\1\0\0")
    again = SubscriptionChanges(
        [widened], [moved], [(MAC_OWNER, 28, 1), (MAC_OWNER, 28, 99)], [(MAC_OWNER, 1), (MAC_OWNER, 99)], {2: 8}
    )
    await store.save_subscriptions("", again)
    assert content(await (await opener()).subscriptions("")) == ({widened}, {moved}, {1: 4294967295, 2: 8})


async def test_nodes_keep_their_subscriptions_apart_and_tell_nobody(store: Store, opener: Opener) -> None:
    other = await opener()
    generations = await store.generation(), await other.generation()
    for node in ("", "second"):
        await store.save_subscriptions(node, SubscriptionChanges([TOPIC], [LLQ], marks={1: 1}))
    await store.save_subscriptions("", SubscriptionChanges(ended=[LLQ[:3]], deserted=[TOPIC[:2]]))
    assert content(await store.subscriptions("")) == (set(), set(), {1: 1})
    assert content(await store.subscriptions("second")) == ({TOPIC}, {LLQ}, {1: 1})
    assert content(await store.subscriptions("third")) == (set(), set(), {})
    assert await store.generation() == generations[0]


async def test_subscriptions_by_the_thousand(store: Store) -> None:
    rows = [LLQ._replace(llq_id=number) for number in range(1, 3001)]
    await store.save_subscriptions("", SubscriptionChanges([TOPIC], rows))
    assert content(await store.subscriptions("")) == ({TOPIC}, set(rows), {})
    await store.save_subscriptions("", SubscriptionChanges())
    await store.save_subscriptions("", SubscriptionChanges(ended=[row[:3] for row in rows]))
    assert (await store.subscriptions("")).rows == []
