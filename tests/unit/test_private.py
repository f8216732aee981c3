"""A member's names move between the service zone and a zone of its own: records, leases, keys, journals."""

from dataclasses import replace

import pytest

from protocol.constants import Type
from protocol.name import fold, from_text, to_text
from server import members
from server.discovery import NameServer, domain_records
from server.keys import add_key
from server.operation import Service
from server.private import set_private
from server.store.api import Store, ZoneRow
from server.store.memory import MemoryStore
from server.zone.model import RR, StoredRR
from tests.support.zones import all_records, commit_of

ZONE = from_text("members.example.")
DOMAIN = from_text("alice.members.example.")
SERVER = NameServer(from_text("ns.members.example."), ("192.0.2.1",), 53, 853)
NOW = 1_700_000_000
MAC = StoredRR(from_text("Mac.alice.members.example."), Type.A, 60, b"\xc0\x00\x02\x09", NOW + 3600)
TXT = StoredRR(from_text("Mac.alice.members.example."), Type.TXT, 90, b"\x01x", None)
APEX = StoredRR(DOMAIN, Type.A, 60, b"\xc0\x00\x02\x0a", None)


async def make(server: NameServer = SERVER, *, private: bool = False) -> Store:
    store = MemoryStore()
    await members.ensure_service_zone(store, Service(ZONE, server), now=NOW)
    await members.add_member(store, "alice", private=private, now=NOW)
    await members.add_member(store, "malice", private=False, now=NOW)
    await add_key(store, "alice", "phone", now=NOW)
    return store


async def zone(store: Store, apex: bytes) -> ZoneRow | None:
    return next((row for row in await store.load_zones() if row.apex == apex), None)


async def put(store: Store, apex: bytes, *records: StoredRR) -> None:
    row = await zone(store, apex)
    assert row is not None
    await store.commit([await commit_of(store, row.id, row.serial, records)])


async def rows(store: Store, apex: bytes) -> set[StoredRR]:
    row = await zone(store, apex)
    assert row is not None
    return set(await all_records(store, row.id))


def below(records: set[StoredRR], domain: bytes) -> set[StoredRR]:
    return {record for record in records if fold(record.owner).endswith(domain) and b"malice" not in record.owner}


async def check_journals(store: Store) -> None:
    """Every zone's journal leads step by step to its serial, and says what its records say."""
    for row in await store.load_zones():
        held: dict[tuple[bytes, int, bytes], int] = {}
        serial = None
        for entry in await store.journal(zone_id=row.id):
            change = entry.change
            assert serial in (None, change.serial_from)
            serial = change.serial_to
            for rr in change.removed[1:]:
                del held[fold(rr.owner), rr.rtype, rr.rdata]
            for rr in change.added[1:]:
                held[fold(rr.owner), rr.rtype, rr.rdata] = rr.ttl
        assert serial == row.serial
        records = await rows(store, row.apex)
        assert held == {(fold(item.owner), item.rtype, item.rdata): item.ttl for item in records}


async def test_there_and_back_again() -> None:
    store = await make()
    await put(store, ZONE, MAC, TXT, APEX)
    before, keys = await rows(store, ZONE), await store.keys()
    moved = await set_private(store, "Alice", True, now=NOW + 5)
    assert (moved.row.private, moved.records) == (True, 3)
    assert [row.private for row in await store.members()] == [True, False]
    delegation = StoredRR(DOMAIN, Type.NS, 3600, SERVER.host, None)
    assert below(await rows(store, ZONE), DOMAIN) == {delegation}
    assert await rows(store, DOMAIN) == {*below(before, DOMAIN), delegation}
    own = await zone(store, DOMAIN)
    assert own is not None and own.kind == "member"
    await check_journals(store)

    more = MAC._replace(owner=from_text("new.alice.members.example."))
    await put(store, DOMAIN, more)
    assert (await set_private(store, "alice", False, now=NOW + 6)).records == 4
    assert await zone(store, DOMAIN) is None
    assert await rows(store, ZONE) == {*before, more}
    assert await store.keys() == keys
    await check_journals(store)

    await set_private(store, "alice", True, now=NOW + 6)
    again = await zone(store, DOMAIN)
    assert again is not None and again.serial > own.serial, "secondaries of the member's own see it go on"


@pytest.mark.parametrize("server", [SERVER, replace(SERVER, push=True)], ids=["llq", "push"])
async def test_it_is_as_if_made_so(server: NameServer) -> None:
    """Made private and turned is what is made open, and the other way round."""
    turned, made = await make(server), await make(server, private=True)
    await set_private(turned, "alice", True, now=NOW)
    for apex in (ZONE, DOMAIN):
        assert await rows(turned, apex) == await rows(made, apex)
    await set_private(made, "alice", False, now=NOW)
    await set_private(turned, "alice", False, now=NOW)
    assert await rows(turned, ZONE) == await rows(made, ZONE) == await rows(await make(server), ZONE)


async def test_what_cannot_be() -> None:
    store = await make()
    with pytest.raises(ValueError, match="open already"):
        await set_private(store, "alice", False, now=NOW)
    with pytest.raises(ValueError, match="no member"):
        await set_private(store, "carol", True, now=NOW)
    await put(store, ZONE, StoredRR(DOMAIN, Type.CNAME, 60, from_text("mac.alice.members.example."), None))
    with pytest.raises(ValueError, match="has a CNAME"):
        await set_private(store, "alice", True, now=NOW)
    assert await zone(store, DOMAIN) is None
    assert [row.private for row in await store.members()] == [False, False]


async def test_a_name_server_inside_the_domain_stays_reachable() -> None:
    inside = NameServer(from_text("ns.alice.members.example."), ("192.0.2.1", "2001:db8::1"), 53, None)
    store = MemoryStore()
    await members.ensure_service_zone(store, Service(ZONE, SERVER), now=NOW)
    await members.add_member(store, "alice", private=False, now=NOW)
    await members.ensure_service_zone(store, Service(ZONE, inside), now=NOW)
    await set_private(store, "alice", True, now=NOW)
    glue = {(to_text(item.owner), item.rtype) for item in below(await rows(store, ZONE), DOMAIN)}
    host = "ns.alice.members.example."
    assert glue == {(to_text(DOMAIN), Type.NS), (host, Type.A), (host, Type.AAAA)}
    assert {item.rtype for item in await rows(store, DOMAIN) if fold(item.owner) == inside.host} == {1, 28}
    await set_private(store, "alice", False, now=NOW)
    assert {item.rtype for item in await rows(store, ZONE) if fold(item.owner) == inside.host} == {1, 28}
    await check_journals(store)


def test_the_delegation_comes_first_of_what_the_service_keeps() -> None:
    """`set_private` leans on it."""
    records = domain_records(DOMAIN, SERVER, is_zone=True)
    assert records[0] == RR(DOMAIN, Type.NS, 3600, SERVER.host)
