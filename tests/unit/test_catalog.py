"""The catalog zone is made from the zones of the store, and only moves when they do."""

import pytest

from protocol.constants import Type
from protocol.name import fold
from protocol.rdata import soa_serial
from server.catalog import CATALOG, ensure_catalog
from server.discovery import NameServer
from server.members import add_member, ensure_service_zone
from server.operation import Service
from server.store.api import ZoneRow
from server.store.memory import MemoryStore
from tests.support.builders import T0, ZONE, name, rdata
from tests.support.zones import all_records

APEX = name("Catalog.invalid.")


async def made_store() -> MemoryStore:
    store = MemoryStore()
    await ensure_service_zone(store, Service(name(ZONE), NameServer(name(f"ns.{ZONE}"), (), 53, None)), now=T0)
    return store


async def catalog(store: MemoryStore) -> tuple[ZoneRow, dict[bytes, tuple[int, int, bytes]]]:
    row = next(row for row in await store.load_zones() if row.kind == CATALOG)
    records = await all_records(store, row.id)
    return row, {rr.owner: (rr.rtype, rr.ttl, rr.rdata) for rr in records}


@pytest.mark.rfc("9432", "4.1")
@pytest.mark.rfc("9432", "4.2.1")
@pytest.mark.rfc("9432", "4")
@pytest.mark.rfc("9432", "7")
async def test_it_names_every_public_zone_and_no_private_one() -> None:
    store = await made_store()
    await add_member(store, "bob", private=True, now=T0)
    await add_member(store, "alice", private=False, now=T0)
    await ensure_catalog(store, APEX, now=T0)
    row, records = await catalog(store)
    service = next(row for row in await store.load_zones() if row.kind == "service")
    assert records == {
        fold(APEX): (Type.NS, 0, name("invalid.")),
        name("version.catalog.invalid."): (Type.TXT, 0, rdata("TXT", '"2"')),
        name(f"z{service.id}.zones.catalog.invalid."): (Type.PTR, 0, name(ZONE)),
    }
    assert row.serial == T0 + 1 and soa_serial(row.soa) == 0


@pytest.mark.rfc("9432", "4")
async def test_it_has_a_serial_and_a_journal_and_rests_while_nothing_changes() -> None:
    store = await made_store()
    await ensure_catalog(store, APEX, now=T0)
    (row, records), before = await catalog(store), store._data.commits
    await ensure_catalog(store, APEX, now=T0 + 60)
    assert (await catalog(store), store._data.commits) == ((row, records), before)
    async with store.transaction() as transaction:
        soa = next(row for row in await store.load_zones()).soa
        second = await transaction.add_zone(
            name("other.example."), kind="service", member_id=None, serial=1, soa=soa, soa_ttl=60
        )
    await ensure_catalog(store, APEX, now=T0 + 120)
    changes = await store.changes_since(row.id, row.serial)
    assert changes is not None and len(changes) == 1
    assert [rr.rdata for rr in changes[0].added[1:]] == [name("other.example.")]
    async with store.transaction() as transaction:
        await transaction.remove_zone(second)
    await ensure_catalog(store, APEX, now=T0 + 180)
    assert (await catalog(store))[1] == records


async def test_another_name_is_another_zone_and_none_is_none() -> None:
    store = await made_store()
    await ensure_catalog(store, None, now=T0)
    await ensure_catalog(store, APEX, now=T0)
    await ensure_catalog(store, name("other.invalid."), now=T0)
    assert (await catalog(store))[0].apex == name("other.invalid.")
    assert len(await store.load_zones()) == 2
    await ensure_catalog(store, None, now=T0)
    assert [row.kind for row in await store.load_zones()] == ["service"]


async def test_a_name_that_is_taken_is_refused() -> None:
    store = await made_store()
    with pytest.raises(ValueError, match="that is a zone of this database"):
        await ensure_catalog(store, name(ZONE), now=T0)
