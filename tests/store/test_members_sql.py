"""Members end to end on a database file: the command line's work, seen by a server that runs."""

from pathlib import Path

from protocol.name import from_text
from server import members
from server.discovery import NameServer
from server.keys import ensure_admin_key
from server.operation import Service
from server.store.sql import SqlStore
from tests.store.conftest import Opener
from tests.support.zones import all_records

ZONE = from_text("members.example.")
SERVICE = Service(ZONE, NameServer(from_text("ns.members.example."), ("192.0.2.1",), 53, 853))


async def test_the_command_lines_work_is_noticed_and_followed(opener: Opener) -> None:
    server = await opener()
    zone = await members.ensure_service_zone(server, SERVICE, now=1000)
    seen = await server.generation()
    command_line = await opener()
    alice = await members.add_member(command_line, "alice", private=False, now=1001)
    assert await server.generation() != seen
    changes = await server.changes_since(zone.id, zone.serial)
    assert changes is not None
    assert len(changes) == 1
    assert len(changes[0].added) == 1 + 13
    seen = await server.generation()
    bob = await members.add_member(command_line, "bob", private=True, now=1002, password="correct horse")
    assert await server.generation() != seen
    assert [row.key for row in await server.keys()] == [alice, bob]
    assert [row.kind for row in await server.load_zones()] == ["service", "member"]
    assert (await members.show_member(server, "bob")).keys[0].kdf is not None


async def test_a_member_removed_while_the_server_ran_is_gone_from_it(opener: Opener) -> None:
    server, command_line = await opener(), await opener()
    zone = await members.ensure_service_zone(server, SERVICE, now=1000)
    before = await all_records(server, zone.id)
    await members.add_member(command_line, "alice", private=False, now=1001)
    await members.add_member(command_line, "bob", private=True, now=1001)
    for name in ("alice", "bob"):
        await members.remove_member(command_line, name, now=1002)
    assert await all_records(server, zone.id) == before
    assert await server.keys() == []
    assert len(await server.load_zones()) == 1


async def test_members_survive_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/homing.db"
    store = await SqlStore.open(url)
    await members.ensure_service_zone(store, SERVICE, now=1000)
    key = await members.add_member(store, "alice", private=True, now=1001)
    admin = await ensure_admin_key(store, now=1001)
    await store.close()
    store = await SqlStore.open(url, create=False)
    assert {row.key for row in await store.keys()} == {key, admin}
    assert (await members.ensure_service_zone(store, SERVICE, now=2000)).serial == 1002
    assert await ensure_admin_key(store, now=2000) == admin
    await store.close()
