"""What a principal may read and change, as a table."""

import pytest

from protocol.constants import Class, Ede, Rcode, Type
from protocol.message import decode
from protocol.name import fold
from server.authz import may_read, may_update
from server.keyring import Principal
from server.request import Refusal
from server.zone.update import read_update
from server.zone.zone import Zone
from tests.support.builders import (
    MEMBERS,
    PRIVATE_TEXT,
    SERVICE_TEXT,
    ZONE,
    Item,
    add,
    delete_name,
    delete_rr,
    delete_rrset,
    name,
    name_in_use,
    rrset_equals,
    update_message,
    zone_of_text,
)

ADMIN, ALICE, BOB, CAROL = MEMBERS
OPEN = zone_of_text(SERVICE_TEXT)
PRIVATE = zone_of_text(PRIVATE_TEXT, apex="carol.members.example.", member_id=3, zone_id=2)


def reads(who: Principal | None, zone: Zone, owner: str, rtype: int) -> Refusal | None:
    try:
        may_read(who, zone, fold(name(owner)), rtype)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize("who", [None, ALICE, BOB, CAROL, ADMIN])
@pytest.mark.parametrize("owner", ["mac.alice.members.example.", "absent.members.example.", ZONE])
def test_an_open_zone_is_read_by_all(who: Principal | None, owner: str) -> None:
    assert reads(who, OPEN, owner, Type.A) is None


@pytest.mark.parametrize("who", [CAROL, ADMIN])
@pytest.mark.parametrize("owner", ["secret.carol.members.example.", "absent.carol.members.example."])
def test_a_private_zone_is_read_by_its_member_and_admins(who: Principal, owner: str) -> None:
    assert reads(who, PRIVATE, owner, Type.A) is None


@pytest.mark.rfc("6281", "7.2")
@pytest.mark.parametrize("who", [None, ALICE])
@pytest.mark.parametrize(
    ("owner", "rtype", "is_open"),
    [
        ("carol.members.example.", Type.SOA, True),
        ("carol.members.example.", Type.NS, True),
        ("carol.members.example.", Type.A, False),
        ("carol.members.example.", Type.ANY, False),
        ("_dns-update._udp.carol.members.example.", Type.SRV, True),
        ("_dns-update-tls._udp.carol.members.example.", Type.SRV, True),
        ("_dns-llq-tls._tcp.carol.members.example.", Type.SRV, True),
        ("_dns-query-tls._tcp.carol.members.example.", Type.SRV, True),
        ("_dns-push-tls._tcp.carol.members.example.", Type.SRV, True),
        ("x._dns-update._udp.carol.members.example.", Type.SRV, False),
        ("_udp.carol.members.example.", Type.A, True),
        ("_autotunnel._udp.carol.members.example.", Type.SRV, False),
        ("_dns-update._udp.mac.carol.members.example.", Type.SRV, False),
        ("secret.carol.members.example.", Type.A, False),
        ("secret.carol.members.example.", Type.SOA, False),
        ("absent.carol.members.example.", Type.A, False),
    ],
)
def test_others_read_only_what_leads_to_a_private_zone(
    who: Principal | None, owner: str, rtype: int, is_open: bool
) -> None:
    assert (reads(who, PRIVATE, owner, rtype) is None) == is_open


def test_the_refusal_of_a_private_zone_is_one_and_the_same() -> None:
    refusals = {
        (refusal.rcode, refusal.reason, refusal.ede)
        for who in (None, ALICE)
        for owner in ("secret", "absent", "a.b.c")
        for refusal in [reads(who, PRIVATE, f"{owner}.carol.members.example.", Type.A)]
        if refusal
    }
    assert len(refusals) == 1
    ((rcode, reason, ede),) = refusals
    assert (rcode, ede) == (Rcode.REFUSED, Ede.PROHIBITED)
    assert "secret" not in reason


def changes(
    who: Principal | None, *ops: Item, prerequisites: tuple[Item, ...] = (), zone: Zone = OPEN, leased: bool = True
) -> str:
    """Empty, or the sentence of the refusal."""
    update = read_update(decode(update_message(ops, prerequisites)), zone.apex)
    try:
        may_update(who, zone, update, leased=leased)
    except Refusal as refusal:
        assert (refusal.rcode, refusal.ede) == (Rcode.REFUSED, Ede.PROHIBITED)
        return refusal.reason
    return ""


MAC = "mac.alice.members.example."


@pytest.mark.rfc("3007", "3")
@pytest.mark.rfc("3007", "3.1")
@pytest.mark.parametrize(
    "op",
    [
        add(MAC, 60, "A", "192.0.2.1"),
        add("MAC.ALICE.members.example.", 60, "AAAA", "fd00::1"),
        add("alice.members.example.", 60, "TXT", "x"),
        add("*.alice.members.example.", 60, "A", "192.0.2.1"),
        add(f"_autotunnel._udp.{MAC}", 60, "SRV", "0 0 4500 elsewhere.example."),
        Item(name(MAC), 65500, Class.IN, 60, b"x"),
        delete_name(MAC),
        delete_name("alice.members.example."),
        delete_rrset(MAC, "A"),
        delete_rr(MAC, "A", "192.0.2.1"),
    ],
)
def test_a_member_changes_user_types_in_its_own_domain(op: Item) -> None:
    assert changes(ALICE, op) == ""
    assert changes(BOB, op) != ""
    assert changes(ADMIN, op) == ""
    assert changes(None, op) != ""


@pytest.mark.rfc("3007", "3")
@pytest.mark.parametrize(
    "op",
    [
        add("mac.bob.members.example.", 60, "A", "192.0.2.1"),
        delete_name("bob.members.example."),
        add("x.members.example.", 60, "A", "192.0.2.1"),
        add("xalice.members.example.", 60, "A", "192.0.2.1"),
        delete_name(ZONE),
    ],
)
def test_a_member_changes_nothing_elsewhere(op: Item) -> None:
    reason = changes(ALICE, add(MAC, 60, "A", "192.0.2.1"), op)
    assert "alice.members.example. and below" in reason
    assert "alice-laptop" in reason


@pytest.mark.rfc("3007", "3.1")
@pytest.mark.rfc("3007", "2")
@pytest.mark.rfc("3007", "3.1.1")
@pytest.mark.parametrize(
    "rtype", ["SOA", "NS", "DNAME", "SIG", "KEY", "NXT", "DS", "RRSIG", "NSEC", "DNSKEY", "NSEC3", "CDS", "CDNSKEY"]
)
def test_types_that_are_no_users_own_are_refused_in_every_form(rtype: str) -> None:
    assert rtype in changes(ALICE, delete_rrset(MAC, rtype))
    assert changes(ADMIN, delete_rrset(MAC, rtype)) == ""


@pytest.mark.parametrize("prefix", ["_dns-update._udp", "_dns-llq-tls._tcp", "_dns-query._udp", "_DNS-Push-TLS._tcp"])
def test_discovery_names_are_kept_by_the_service(prefix: str) -> None:
    owner = f"{prefix}.alice.members.example."
    for op in (add(owner, 60, "SRV", "0 0 1 evil.example."), delete_name(owner), delete_rrset(owner, "SRV")):
        assert "kept by the service" in changes(ALICE, op)
    assert changes(ADMIN, delete_name(owner)) == ""


@pytest.mark.rfc("6281", "5.2")
def test_a_member_brings_a_lease_to_what_it_adds() -> None:
    op = add(MAC, 60, "A", "192.0.2.1")
    assert "lease" in changes(ALICE, op, leased=False)
    assert changes(ALICE, delete_name(MAC), leased=False) == ""
    assert changes(ADMIN, op, leased=False) == ""


def test_prerequisites_are_held_to_the_same_domain() -> None:
    for item in (name_in_use("bob.members.example."), rrset_equals("x.bob.members.example.", "A", "192.0.2.1")):
        assert "bob" in changes(ALICE, prerequisites=(item,))
        assert changes(ADMIN, prerequisites=(item,)) == ""
    assert changes(ALICE, prerequisites=(name_in_use(MAC),)) == ""


def test_a_private_zone_is_changed_by_its_member_alone() -> None:
    op = add("new.carol.members.example.", 60, "A", "192.0.2.1")
    assert changes(CAROL, op, zone=PRIVATE) == ""
    assert changes(ADMIN, op, zone=PRIVATE) == ""
    assert "no say" in changes(ALICE, op, zone=PRIVATE)
    assert "no say" in changes(ALICE, zone=PRIVATE), "an empty update asks whether it may, too"
