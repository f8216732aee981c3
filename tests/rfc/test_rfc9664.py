"""Update leases (RFC 9664), with the bounds of RFC 6281 §5.2, by octets in and octets out."""

import pytest

from protocol.constants import Rcode, Type
from protocol.edns import UpdateLease
from protocol.name import fold
from server.zone.model import ZoneCommit
from tests.support.builders import (
    ALICE,
    UDP,
    Core,
    Item,
    add,
    content,
    delete_name,
    delete_rr,
    name,
    name_in_use,
    name_not_in_use,
    query_message,
    rdata,
    rebuild,
    replay,
    rows_of,
    seen,
    zone_of_text,
)
from tests.support.builders import SERVICE_TEXT as TEXT

MAC = "new.alice.members.example."
A = add(MAC, 120, "A", "192.0.2.9")
B = add(MAC, 120, "A", "192.0.2.10")
KEY = Item(name(MAC), Type.KEY, 1, 60, b"\x02\x00\x03\x0dkey")


@pytest.fixture
def core() -> Core:
    return Core()


def later(core: Core, seconds: float) -> None:
    """Let time pass and the writer do what is due."""
    core.clock.now += seconds
    core.write()


def expires(core: Core, owner: str = MAC, rtype: Type = Type.A) -> list[int]:
    """Seconds left of each record's lease, 0 for permanent."""
    rrset = core.zone.rrset(fold(name(owner)), rtype, 0)
    return [at - int(core.clock.now) if at else 0 for at in rrset.expires] if rrset else []


@pytest.mark.rfc("9664", "4.3")
def test_a_granted_lease_is_told_on_success_only(core: Core) -> None:
    assert core.update(A, by=ALICE, lease=5400).lease == UpdateLease(5400)
    refused = core.update(A, by=ALICE, lease=5400, prerequisites=[name_not_in_use(MAC)])
    assert (refused.rcode, refused.lease) == (Rcode.YXDOMAIN, None)


@pytest.mark.rfc("9664", "4.3")
def test_no_option_in_the_request_none_in_the_reply(core: Core) -> None:
    assert core.update(A).lease is None
    assert core.update(delete_name(MAC), by=ALICE).lease is None


@pytest.mark.rfc("9664", "4.3")
@pytest.mark.parametrize("wish", [UpdateLease(5400), UpdateLease(5400, 7000)])
def test_the_form_of_the_option_is_that_of_the_request(core: Core, wish: UpdateLease) -> None:
    assert core.update(A, lease=wish).lease == wish


@pytest.mark.rfc("6281", "5.2")
@pytest.mark.rfc("9664", "4.3")
@pytest.mark.rfc("9664", "8")
@pytest.mark.parametrize(
    ("wish", "grant"),
    [(1, 1800), (1799, 1800), (1800, 1800), (5400, 5400), (7200, 7200), (7201, 7200), (2**31, 7200), (2**32 - 1, 7200)],
)
def test_a_wish_is_kept_between_half_an_hour_and_two_hours(core: Core, wish: int, grant: int) -> None:
    assert core.update(A, by=ALICE, lease=wish).lease == UpdateLease(grant)
    assert expires(core) == [grant]


@pytest.mark.rfc("9664", "4.3")
def test_records_and_keys_have_leases_of_their_own(core: Core) -> None:
    core.update(A, KEY, lease=UpdateLease(1800, 7000))
    assert (expires(core), expires(core, rtype=Type.KEY)) == ([1800], [7000])
    core.update(delete_name(MAC))
    core.update(A, KEY, lease=UpdateLease(1900))
    assert (expires(core), expires(core, rtype=Type.KEY)) == ([1900], [1900])


@pytest.mark.rfc("9664", "7")
@pytest.mark.rfc("6281", "5.2")
def test_a_lapsed_record_is_not_answered_and_then_removed_as_a_change(core: Core) -> None:
    core.update(A, by=ALICE, lease=1800)
    core.clock.now += 1799.9
    assert core.query(MAC).answers[0][1] == 1
    core.clock.now += 0.1
    sent: list[bytes] = []
    core.dispatcher.handle(query_message(MAC), UDP, sent.append)
    assert seen(sent[0]).rcode == Rcode.NXDOMAIN
    assert core.zone.serial == 2, "the writer has not had its turn yet"
    core.write()
    assert core.zone.serial == 3
    change = core.changes[-1]
    assert (change.actor.kind, [rr.rdata for rr in change.removed[1:]]) == ("lapse", [A.rdata])
    assert content(core.zone) == content(zone_of_text(TEXT))
    later(core, 100000)
    assert core.zone.serial == 3, "nothing lapses twice"


@pytest.mark.rfc("9664", "7")
def test_a_lapsed_record_is_not_seen_by_a_prerequisite(core: Core) -> None:
    core.update(A, by=ALICE, lease=1800)
    core.clock.now += 1800
    assert core.update(by=ALICE, prerequisites=[name_in_use(MAC)]).rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("9664", "5.3")
@pytest.mark.parametrize("with_delete", [False, True])
def test_a_refresh_moves_the_lease_but_not_the_serial(core: Core, with_delete: bool) -> None:
    """Also when the client deletes and adds the same again, as many do."""
    core.update(A, B, by=ALICE, lease=1800)
    deletes = [delete_name(MAC)] if with_delete else []
    for _ in range(3):
        later(core, 1440)
        reply = core.update(*deletes, A, B, by=ALICE, lease=1800)
        assert (reply.rcode, reply.lease) == (Rcode.NOERROR, UpdateLease(1800))
        assert expires(core) == [1800, 1800]
    assert (core.zone.serial, len(core.changes)) == (2, 1)
    refresh = core.store.commits[-1]
    assert isinstance(refresh, ZoneCommit)
    assert (refresh.changes, refresh.soa) == ((), None)
    assert len(refresh.nodes) == 1 and refresh.serial_from == refresh.serial_to == 2
    later(core, 1799)
    assert len(core.query(MAC).answers) == 2
    later(core, 1)
    assert core.query(MAC).rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("9664", "5.3")
def test_a_refresh_that_adds_again_what_had_lapsed_moves_the_serial(core: Core) -> None:
    core.update(A, by=ALICE, lease=1800)
    core.clock.now += 1800
    core.update(A, by=ALICE, lease=1800)
    assert core.zone.serial == 4
    assert [change.actor.kind for change in core.changes] == ["update", "lapse", "update"]
    assert expires(core) == [1800]


@pytest.mark.rfc("9664", "5.3")
def test_a_refresh_of_a_part_leaves_the_rest_its_lease(core: Core) -> None:
    core.update(A, B, by=ALICE, lease=1800)
    later(core, 600)
    core.update(B, by=ALICE, lease=3600)
    assert sorted(expires(core)) == [1200, 3600]
    later(core, 1200)
    assert [data for _, _, _, data in core.query(MAC).answers] == [B.rdata]


@pytest.mark.rfc("9664", "5.3")
def test_a_smaller_lease_replaces_the_larger(core: Core) -> None:
    core.update(A, by=ALICE, lease=7200)
    core.update(A, by=ALICE, lease=1800)
    later(core, 1800)
    assert core.query(MAC).rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("9664", "4.3")
def test_deleting_one_record_leaves_the_leases_of_the_others(core: Core) -> None:
    core.update(A, B, by=ALICE, lease=1800)
    core.update(delete_rr(MAC, "A", "192.0.2.9"), by=ALICE, lease=7200)
    assert expires(core) == [1800]


@pytest.mark.rfc("9664", "4.3")
def test_a_deleted_record_does_not_lapse_later(core: Core) -> None:
    core.update(A, by=ALICE, lease=1800)
    core.update(delete_name(MAC), by=ALICE)
    serial = core.zone.serial
    later(core, 10000)
    assert (core.zone.serial, core.leases.next_moment()) == (serial, None)


@pytest.mark.rfc("9664", "4.3")
def test_a_failed_update_leaves_leases_alone(core: Core) -> None:
    core.update(A, by=ALICE, lease=1800)
    for more in ({"prerequisites": [name_not_in_use(MAC)]}, {"zone": "example."}):
        assert core.update(A, by=ALICE, lease=7200, **more).rcode != Rcode.NOERROR
    assert core.update(A, by=None, lease=7200).rcode == Rcode.REFUSED
    assert expires(core) == [1800]


def test_a_permanent_record_stays_permanent_when_a_member_adds_it_again(core: Core) -> None:
    kept = add("mac.alice.members.example.", 120, "A", "192.0.2.1")
    core.update(kept, by=ALICE, lease=1800)
    assert expires(core, "mac.alice.members.example.") == [0]
    later(core, 7200)
    assert core.query("mac.alice.members.example.").answers


@pytest.mark.rfc("9664", "4.1")
def test_an_admins_update_is_permanent_without_the_option(core: Core) -> None:
    core.update(A)
    assert expires(core) == [0]
    core.update(B, lease=1800)
    core.update(B)
    assert expires(core) == [0, 0], "and makes a leased record permanent"


@pytest.mark.rfc("6281", "5.2")
def test_an_answered_ttl_is_no_longer_than_the_lease_left(core: Core) -> None:
    core.update(A, B, by=ALICE, lease=1800)
    later(core, 1750)
    assert {ttl for _, ttl, _, _ in core.query(MAC).answers} == {50}


def test_only_deletions_with_an_option_are_granted_too(core: Core) -> None:
    assert core.update(delete_name(MAC), by=ALICE, lease=5400).lease == UpdateLease(5400)
    assert core.zone.serial == 1


def test_a_restart_keeps_leases_and_what_lapsed_meanwhile_goes_first(core: Core) -> None:
    core.update(A, by=ALICE, lease=1800)
    core.update(add("long.alice.members.example.", 60, "A", "192.0.2.11"), by=ALICE, lease=7200)
    row, rows = core.store.zones[1], core.store.rows[1]
    again = Core([rebuild(row, rows)])
    again.clock.now = core.clock.now + 1800
    assert again.query(MAC).rcode == Rcode.NXDOMAIN
    assert rows_of(again.zone) == {key: rr for key, rr in rows.items() if key.owner_key != fold(name(MAC))}
    assert expires(again, "long.alice.members.example.") == [5400]
    assert [rr.rdata for rr in again.changes[0].removed[1:]] == [rdata("A", "192.0.2.9")]
    assert replay(rebuild(row, rows), again.changes) == content(again.zone)
