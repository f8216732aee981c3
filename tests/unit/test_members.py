"""Members and keys on the store in memory: what each operation leaves in zones, keys and journal."""

import asyncio

import pytest

from homing import key_files
from protocol.constants import Type
from protocol.name import fold, from_text, to_text
from protocol.tsig import MD5, SHA256, Key
from server import kdf, members, operation
from server.discovery import NameServer, discovery_records
from server.keys import KeyTerms, add_key, ensure_admin_key, revoke_key
from server.operation import Service, read_service
from server.store.api import Store, Superseded, ZoneRow
from server.store.memory import MemoryStore
from server.zone.model import RR, StoredRR
from tests.support.zones import all_records, commit_of

ZONE = from_text("members.example.")
ALICE = from_text("alice.members.example.")
SERVICE = Service(ZONE, NameServer(from_text("ns.members.example."), ("192.0.2.1",), 53, 853))
NOW = 1_700_000_000


@pytest.fixture
async def store() -> Store:
    made = MemoryStore()
    await members.ensure_service_zone(made, SERVICE, now=NOW)
    return made


async def _content(store: Store, zone_id: int) -> set[RR]:
    return {RR(*record[:4]) for record in await all_records(store, zone_id)}


async def _check_journal(store: Store) -> None:
    """Every zone is what its journal says, each step by the operator and from one SOA to the next."""
    for zone in await store.load_zones():
        records: set[RR] = set()
        serial = NOW
        for change in await store.changes_since(zone.id, NOW) or ():
            assert change.actor.kind == "operator"
            assert change.apex == zone.apex
            assert change.serial_from == serial
            assert [change.removed[0].rtype, change.added[0].rtype] == [Type.SOA, Type.SOA]
            assert set(change.removed[1:]) <= records
            records = records - set(change.removed[1:]) | set(change.added[1:])
            serial = change.serial_to
        assert serial == zone.serial
        assert records == await _content(store, zone.id)


async def _zone(store: Store, apex: bytes) -> ZoneRow:
    return next(zone for zone in await store.load_zones() if zone.apex == apex)


def _names(records: set[RR], below: bytes) -> set[str]:
    return {to_text(record.owner) for record in records if record.owner.endswith(below)}


async def _update(store: Store, record: StoredRR) -> None:
    """What a client's update would have put there."""
    zone = await _zone(store, ZONE)
    commit = await commit_of(store, zone.id, zone.serial, (record,))
    await store.commit([commit])


async def test_the_first_start_makes_the_zone_and_the_second_writes_nothing(store: Store) -> None:
    zone = await _zone(store, ZONE)
    assert (zone.kind, zone.member_id, zone.serial) == ("service", None, NOW + 1)
    content = await _content(store, zone.id)
    assert content >= set(discovery_records(ZONE, SERVICE.server))
    assert RR(ZONE, Type.NS, 3600, from_text("ns.members.example.")) in content
    assert RR(from_text("ns.members.example."), Type.A, 3600, bytes((192, 0, 2, 1))) in content
    await _check_journal(store)
    assert isinstance(store, MemoryStore)
    other = store.sibling()
    before = await other.generation()
    assert await members.ensure_service_zone(store, SERVICE, now=NOW + 9) == zone
    assert await other.generation() == before


async def test_a_database_of_another_zone_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"serves zone members\.example\., not other\.example\."):
        await members.ensure_service_zone(store, Service(from_text("other.example."), SERVICE.server), now=NOW)


async def test_the_case_of_the_zones_name_does_not_matter(store: Store) -> None:
    loud = Service(from_text("Members.EXAMPLE."), SERVICE.server)
    assert await members.ensure_service_zone(store, loud, now=NOW + 9) == await _zone(store, ZONE)


async def test_members_need_a_zone() -> None:
    with pytest.raises(ValueError, match="start the server once"):
        await members.add_member(MemoryStore(), "alice", private=False, now=NOW)


async def test_new_ports_and_addresses_reach_every_member(store: Store) -> None:
    await members.add_member(store, "alice", private=False, now=NOW)
    await members.add_member(store, "bob", private=True, now=NOW)
    kept = StoredRR(from_text("mac.alice.members.example."), Type.A, 60, bytes(4), NOW + 60)
    await _update(store, kept)
    moved = NameServer(from_text("ns.members.example."), ("192.0.2.2", "2001:db8::2"), 5300, None)
    zone = await members.ensure_service_zone(store, Service(ZONE, moved), now=NOW + 1)
    content = await _content(store, zone.id)
    private = await _content(store, (await _zone(store, from_text("bob.members.example."))).id)
    for domain, records in (
        ("members.example.", content),
        ("alice.members.example.", content),
        ("bob.members.example.", private),
    ):
        wanted = set(discovery_records(from_text(domain), moved))
        assert {
            rr
            for rr in records
            if rr.rtype == Type.SRV and to_text(rr.owner).split("._", 1)[1].partition(".")[2] == domain
        } == wanted
    addresses = {record.rdata for record in content if record.owner == moved.host}
    assert addresses == {bytes((192, 0, 2, 2)), bytes.fromhex("20010db8000000000000000000000002")}
    assert RR(*kept[:4]) in content
    assert await read_service(store) == Service(ZONE, moved)


async def test_a_new_name_server_is_in_soa_ns_and_delegation(store: Store) -> None:
    await members.add_member(store, "bob", private=True, now=NOW)
    host = from_text("dns.provider.example.")
    await members.ensure_service_zone(store, Service(ZONE, NameServer(host, (), 53, None)), now=NOW + 1)
    for zone in await store.load_zones():
        assert zone.soa.startswith(host)
        assert {record.rdata for record in await _content(store, zone.id) if record.rtype == Type.NS} == {host}
    await _check_journal(store)


@pytest.mark.parametrize("ttl", [SERVICE.server.ttl, 77])
async def test_an_soa_that_an_administrator_chose_stays_when_the_service_moves(store: Store, ttl: int) -> None:
    zone = await _zone(store, ZONE)
    chosen = from_text("ns.members.example.") + from_text("me.members.example.") + bytes(16) + (42).to_bytes(4, "big")
    await store.commit([await commit_of(store, zone.id, zone.serial, soa=(chosen, ttl))])
    moved = NameServer(from_text("ns.members.example."), ("192.0.2.2",), 5300, None)
    after = await members.ensure_service_zone(store, Service(ZONE, moved), now=NOW + 1)
    assert (after.soa[-16:], after.soa_ttl) == (chosen[-16:], ttl)


async def test_what_an_update_changed_stays_over_a_restart(store: Store) -> None:
    zone = await _zone(store, ZONE)
    srv = next(rr for rr in discovery_records(ZONE, SERVICE.server) if rr.owner.startswith(b"\x08_dns-llq\x04_udp"))
    await store.commit([await commit_of(store, zone.id, zone.serial, (), (StoredRR(*srv, None),))])
    await members.ensure_service_zone(store, SERVICE, now=NOW + 1)
    assert srv not in await _content(store, zone.id)


@pytest.mark.rfc("6281", "2")
async def test_an_open_member_is_a_subtree_of_the_service_zone(store: Store) -> None:
    key = await members.add_member(store, "Alice", private=False, now=NOW)
    assert (key.name, key.algorithm, len(key.secret)) == (ALICE, SHA256, 32)
    assert [zone.apex for zone in await store.load_zones()] == [ZONE]
    content = await _content(store, (await _zone(store, ZONE)).id)
    assert {rr for rr in content if rr.owner.endswith(ALICE)} == set(discovery_records(ALICE, SERVICE.server))
    [(row, keys)] = await members.list_members(store)
    assert (row.name, row.domain, row.private, row.created_at) == ("alice", ALICE, False, NOW)
    assert [item.key for item in keys] == [key]
    await _check_journal(store)


@pytest.mark.rfc("6281", "2")
async def test_a_private_member_is_a_zone_of_its_own_with_a_delegation(store: Store) -> None:
    await members.add_member(store, "bob", private=True, now=NOW)
    domain = from_text("bob.members.example.")
    zone, parent = await _zone(store, domain), await _zone(store, ZONE)
    ns = RR(domain, Type.NS, 3600, SERVICE.server.host)
    assert zone.kind == "member"
    assert await _content(store, zone.id) == {ns, *discovery_records(domain, SERVICE.server)}
    assert {rr for rr in await _content(store, parent.id) if rr.owner.endswith(domain)} == {ns}
    await _check_journal(store)


@pytest.mark.parametrize("private", [False, True])
async def test_a_removed_member_leaves_nothing_and_hurts_no_neighbour(store: Store, private: bool) -> None:
    await members.add_member(store, "malice", private=private, now=NOW)
    before = await _content(store, (await _zone(store, ZONE)).id)
    await members.add_member(store, "alice", private=private, now=NOW, password="correct horse")
    await add_key(store, "alice", "mac", now=NOW)
    if not private:
        await _update(store, StoredRR(from_text("Deep.mac.Alice.members.example."), Type.A, 60, bytes(4), NOW + 60))
    assert (await members.remove_member(store, "ALICE", now=NOW + 1)).name == "alice"
    assert await _content(store, (await _zone(store, ZONE)).id) == before
    assert [row.name for row in await store.members()] == ["malice"]
    assert [to_text(row.key.name) for row in await store.keys()] == ["malice.members.example."]
    with pytest.raises(ValueError, match="no member 'alice'"):
        await members.remove_member(store, "alice", now=NOW + 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "one label"),
        ("_alice", "one label"),
        ("-alice", "one label"),
        ("alice-", "one label"),
        ("al.ice", "one label"),
        ("al ice", "one label"),
        ("alice\n", "one label"),
        ("älice", "one label"),
        ("a" * 64, "one label"),
        ("ns", "has records already"),
        ("bob", "there is a member bob already"),
        ("BOB", "there is a member bob already"),
    ],
)
async def test_a_name_that_cannot_be_is_refused_in_words(store: Store, name: str, words: str) -> None:
    await members.add_member(store, "bob", private=True, now=NOW)
    journal = await store.journal()
    with pytest.raises(ValueError, match=words):
        await members.add_member(store, name, private=False, now=NOW)
    assert await store.journal() == journal
    assert len(await store.keys()) == 1


async def test_a_member_does_not_inherit_records_an_update_made(store: Store) -> None:
    await _update(store, StoredRR(from_text("x.www.members.example."), Type.A, 60, bytes(4), None))
    with pytest.raises(ValueError, match=r"www\.members\.example\. has records already"):
        await members.add_member(store, "www", private=False, now=NOW)


async def test_a_name_too_long_for_its_discovery_names_is_refused() -> None:
    store = MemoryStore()
    zone = from_text(".".join(["z" * 61] * 3 + ["z" * 20]) + ".")
    await members.ensure_service_zone(store, Service(zone, SERVICE.server), now=NOW)
    await members.add_member(store, "a", private=False, now=NOW)
    with pytest.raises(ValueError, match="too long"):
        await members.add_member(store, "a" * 40, private=False, now=NOW)


async def test_device_keys_live_beside_each_other_until_revoked(store: Store) -> None:
    first = await members.add_member(store, "alice", private=False, now=NOW)
    mac = await add_key(store, "alice", "Mac", now=NOW + 1, terms=KeyTerms(algorithm=MD5))
    nas = await add_key(store, "Alice", "nas", now=NOW + 2)
    assert [to_text(key.name) for key in (mac, nas)] == ["mac.alice.members.example.", "nas.alice.members.example."]
    assert len(mac.secret) == 16
    assert len({first.secret, mac.secret, nas.secret}) == 3
    with pytest.raises(ValueError, match="already"):
        await add_key(store, "alice", "mac", now=NOW)
    await revoke_key(store, mac.name, now=NOW + 5)
    [(_, keys)] = await members.list_members(store)
    assert {to_text(row.key.name): row.revoked_at for row in keys} == {
        "alice.members.example.": None,
        "mac.alice.members.example.": NOW + 5,
        "nas.alice.members.example.": None,
    }
    with pytest.raises(ValueError, match="no valid key mac"):
        await revoke_key(store, mac.name, now=NOW + 6)
    again = await add_key(store, "alice", "mac", now=NOW + 7)
    assert again.secret != mac.secret
    with pytest.raises(ValueError, match="no member 'carol'"):
        await add_key(store, "carol", "mac", now=NOW)
    with pytest.raises(ValueError, match="device name"):
        await add_key(store, "alice", "_x", now=NOW)


@pytest.mark.rfc("6281", "7.2")
async def test_a_password_key_is_published_for_derivation_and_withdrawn_with_the_key(store: Store) -> None:
    key = await members.add_member(store, "alice", private=True, now=NOW, password="correct horse")
    zone = await _zone(store, ZONE)
    owner = kdf.owner_name(b"alice", ZONE)
    [txt] = (await store.load_nodes(zone.id, [owner]))[owner].records()
    assert kdf.derive("correct horse", kdf.parse_txt(txt.rdata)) == key.secret
    with pytest.raises(ValueError, match="revoke it first"):
        await add_key(store, "alice", None, now=NOW)
    await revoke_key(store, key.name, now=NOW + 1)
    assert await store.load_nodes(zone.id, [owner]) == {}
    new = await add_key(store, "alice", None, now=NOW + 2, terms=KeyTerms(password="battery staple"))
    [txt] = (await store.load_nodes(zone.id, [owner]))[owner].records()
    assert kdf.derive("battery staple", kdf.parse_txt(txt.rdata)) == new.secret
    with pytest.raises(ValueError, match="not a device's"):
        await add_key(store, "alice", "mac", now=NOW, terms=KeyTerms(password="battery staple"))
    await _check_journal(store)


async def test_show_gives_a_members_own_records(store: Store) -> None:
    await members.add_member(store, "alice", private=False, now=NOW)
    await members.add_member(store, "bob", private=True, now=NOW)
    record = StoredRR(from_text("Mac.alice.members.example."), Type.A, 60, bytes(4), NOW + 60)
    await _update(store, record)
    detail = await members.show_member(store, "alice")
    assert (detail.row.name, len(detail.keys), detail.records) == ("alice", 1, (record,))
    assert (await members.show_member(store, "bob")).records == ()
    with pytest.raises(ValueError, match="no member 'carol'"):
        await members.show_member(store, "carol")


async def test_the_admin_key_is_made_once_and_can_be_no_members(store: Store) -> None:
    first = await ensure_admin_key(store, now=NOW)
    assert await ensure_admin_key(store, now=NOW + 1) == first
    assert to_text(first.name) == "_admin.members.example."
    assert (await store.keys())[0].member_id is None
    await revoke_key(store, first.name, now=NOW + 2)
    assert (await ensure_admin_key(store, now=NOW + 3)).secret != first.secret


async def test_an_operation_tries_again_when_another_writer_came_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    original = members.commit_draft

    async def overtaken(*arguments: object) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise Superseded(1)
        await original(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(members, "commit_draft", overtaken)
    await members.add_member(store, "alice", private=False, now=NOW)
    assert [row.name for row in await store.members()] == ["alice"]
    assert len(await store.keys()) == 1
    tries = -1000
    with pytest.raises(Superseded):
        await members.add_member(store, "bob", private=False, now=NOW)
    assert tries == -1000 + operation._ATTEMPTS


async def test_many_at_once_are_all_there(store: Store) -> None:
    await asyncio.gather(
        *(members.add_member(store, f"m{index}", private=index % 2 == 0, now=NOW) for index in range(20))
    )
    assert len(await store.members()) == len(await store.keys()) == 20
    await _check_journal(store)


def test_keys_are_printed_in_the_forms_people_paste() -> None:
    key = Key(fold(ALICE), SHA256, b"\xfb" * 32)
    secret = "+/v7" * 10 + "+/s="
    assert key_files.bind_text(key) == (
        f'key "alice.members.example." {{\n\talgorithm hmac-sha256;\n\tsecret "{secret}";\n}};\n'
    )
    assert key_files.nsupdate_line(key) == f"nsupdate -y hmac-sha256:alice.members.example.:{secret}"
    assert key_files.key_json(key) == {"name": "alice.members.example.", "algorithm": "hmac-sha256", "secret": secret}
    assert key_files.key_json(Key(ALICE, MD5, b"x" * 16))["algorithm"] == "hmac-md5"
