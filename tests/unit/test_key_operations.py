"""Keys as an operator makes, takes over, replaces and ends them, on the store in memory."""

import pytest

from protocol.name import from_text, to_text
from protocol.tsig import SHA256, Key, algorithm_from_text
from server import members
from server.discovery import NameServer
from server.keys import (
    ACME_RULE,
    KeyTerms,
    add_admin_key,
    add_key,
    change_rules,
    find_key,
    host_rules,
    import_key,
    revoke_key,
    rotate_key,
    set_key_expiry,
)
from server.operation import Service
from server.policy_settings import rule_from_text
from server.store.api import KeyRow, Store
from server.store.memory import MemoryStore

ZONE = from_text("members.example.")
DOMAIN = from_text("alice.members.example.")
PHONE = from_text("phone.alice.members.example.")
NOW = 1_700_000_000
DAY = 86400


@pytest.fixture
async def store() -> Store:
    made = MemoryStore()
    service = Service(ZONE, NameServer(from_text("ns.members.example."), ("192.0.2.1",), 53, 853))
    await members.ensure_service_zone(made, service, now=NOW)
    await members.add_member(made, "alice", private=False, now=NOW)
    await members.add_member(made, "malice", private=False, now=NOW)
    await add_key(made, "alice", "phone", now=NOW)
    return made


async def row(store: Store, name: str) -> KeyRow:
    return (await find_key(store, from_text(name)))[0]


@pytest.mark.rfc("8945", "6")
@pytest.mark.rfc("8945", "8")
async def test_what_is_made_for_a_key_is_sha256_and_as_long_as_its_hash(store: Store) -> None:
    """Where a MAC is cut by its name, too: the hash below it has its whole length."""
    usual = (await row(store, "phone.alice.members.example.")).key
    assert (usual.algorithm, len(usual.secret)) == (SHA256, 32)
    for algorithm, octets in (("hmac-sha256-128", 32), ("hmac-sha384-192", 48), ("hmac-sha512", 64)):
        terms = KeyTerms(algorithm=algorithm_from_text(algorithm))
        assert len((await add_key(store, "alice", algorithm, now=NOW, terms=terms)).secret) == octets


async def test_a_key_takes_anothers_place_and_both_hold_for_a_while(store: Store) -> None:
    await change_rules(store, PHONE, lambda rules, origin: [rule_from_text('owner = "phone"', origin)])
    done = await rotate_key(store, PHONE, now=NOW + 10, overlap_seconds=DAY, terms=KeyTerms(expires_at=NOW + 90 * DAY))
    assert to_text(done.key.name) == "phone-2.alice.members.example."
    assert done.old_expires_at == NOW + 10 + DAY
    old, new = await row(store, "phone.alice.members.example."), await row(store, "phone-2.alice.members.example.")
    assert old.key.secret != new.key.secret
    assert (new.member_id, new.rules, new.expires_at) == (old.member_id, old.rules, NOW + 90 * DAY)
    assert len(new.rules) == 1
    for at, valid in ((NOW + 10, (True, True)), (NOW + 10 + DAY, (False, True))):
        assert (old.is_valid(at), new.is_valid(at)) == valid
    again = await rotate_key(store, new.key.name, now=NOW + 20, overlap_seconds=0)
    assert to_text(again.key.name) == "phone-3.alice.members.example."
    assert again.old_expires_at == NOW + 20
    with pytest.raises(ValueError, match="no valid key"):
        await rotate_key(store, new.key.name, now=NOW + 20, overlap_seconds=0)


async def test_an_overlap_makes_no_key_live_longer(store: Store) -> None:
    await set_key_expiry(store, PHONE, NOW + 60, now=NOW)
    assert (await rotate_key(store, PHONE, now=NOW, overlap_seconds=DAY)).old_expires_at == NOW + 60


async def test_names_of_the_keys_that_take_places(store: Store) -> None:
    assert to_text((await rotate_key(store, DOMAIN, now=NOW, overlap_seconds=0)).key.name) == (
        "key-2.alice.members.example."
    )
    admin = await add_admin_key(store, "ops", now=NOW)
    assert to_text(admin.name) == "ops._admin.members.example."
    assert to_text((await rotate_key(store, admin.name, now=NOW, overlap_seconds=0)).key.name) == (
        "ops-2._admin.members.example."
    )
    long = Key(from_text(f"{'x' * 63}.alice.members.example."), SHA256, b"s" * 32)
    await import_key(store, long, "alice", now=NOW)
    assert to_text((await rotate_key(store, long.name, now=NOW, overlap_seconds=0)).key.name).startswith(
        "x" * 61 + "-2."
    )
    await revoke_key(store, from_text("key-2.alice.members.example."), now=NOW)
    await add_key(store, "alice", None, now=NOW)
    assert to_text((await rotate_key(store, DOMAIN, now=NOW, overlap_seconds=0)).key.name) == (
        "key-3.alice.members.example."
    ), "a name that a key had is not given again"


async def test_a_key_of_a_password_is_not_rotated(store: Store) -> None:
    key = await members.add_member(store, "carol", private=False, now=NOW, password="correct horse")
    with pytest.raises(ValueError, match="made from a password"):
        await rotate_key(store, key.name, now=NOW, overlap_seconds=0)


async def test_an_expired_key_leaves_its_name_free(store: Store) -> None:
    await set_key_expiry(store, PHONE, NOW + 60, now=NOW)
    with pytest.raises(ValueError, match="already"):
        await add_key(store, "alice", "phone", now=NOW + 59)
    await add_key(store, "alice", "phone", now=NOW + 60)
    assert (await row(store, "phone.alice.members.example.")).expires_at is None
    with pytest.raises(ValueError, match="no valid key"):
        await set_key_expiry(store, from_text("nobody."), None, now=NOW)


async def test_keys_made_elsewhere(store: Store) -> None:
    sha512 = algorithm_from_text("hmac-sha512")
    await import_key(store, Key(from_text("kea-key."), sha512, b"s" * 64), None, now=NOW)
    assert (await row(store, "kea-key.")).member_id is None
    theirs = Key(from_text("nas.alice.members.example."), SHA256, b"s" * 32)
    with pytest.raises(ValueError, match="for keys of member alice"):
        await import_key(store, theirs, None, now=NOW)
    with pytest.raises(ValueError, match="for keys of member alice"):
        await import_key(store, theirs, "malice", now=NOW)
    await import_key(store, theirs, "alice", now=NOW, terms=KeyTerms(rules=(ACME_RULE,), expires_at=NOW + 5))
    found = await row(store, "nas.alice.members.example.")
    assert (found.key, len(found.rules), found.expires_at) == (theirs, 1, NOW + 5)
    with pytest.raises(ValueError, match="already"):
        await import_key(store, theirs, "alice", now=NOW)


async def test_rules_given_with_a_key_are_completed_with_the_members_domain_or_the_zone(store: Store) -> None:
    terms = KeyTerms(rules=(ACME_RULE, *host_rules("Mac")))
    await add_key(store, "alice", "mac", now=NOW, terms=terms)
    await add_admin_key(store, "acme", now=NOW, terms=KeyTerms(rules=(ACME_RULE,)))
    first, second, third, fourth = (await row(store, "mac.alice.members.example.")).rules
    assert first.owner == "_acme-challenge.**.alice.members.example."
    assert (second.owner, third.target) == ("mac.alice.members.example.", "mac.alice.members.example.")
    assert fourth.owner is None
    assert (await row(store, "acme._admin.members.example.")).rules[0].owner == "_acme-challenge.**.members.example."
    with pytest.raises(ValueError, match="nonsense"):
        await add_key(store, "alice", "nas", now=NOW, terms=KeyTerms(rules=("nonsense = 1",)))
    with pytest.raises(ValueError, match="host name"):
        host_rules("a.b")


def test_terms_show_no_password() -> None:
    assert "horse" not in repr(KeyTerms(password="correct horse"))
