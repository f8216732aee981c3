"""Dynamic updates, sentence by sentence (RFC 2136, UPDATE), by octets in and octets out."""

import pytest

from protocol.constants import AA, QR, RD, Class, Opcode, Rcode, Type
from protocol.message import Question, encode
from protocol.name import fold
from protocol.rdata import soa_serial
from server.store.api import StoreError
from server.zone.node import RRset
from tests.support.builders import (
    ADMIN,
    ALICE,
    TCP,
    ZONE,
    Content,
    Core,
    Item,
    add,
    content,
    delete_name,
    delete_rr,
    delete_rrset,
    name,
    name_in_use,
    name_not_in_use,
    rdata,
    rrset_absent,
    rrset_equals,
    rrset_exists,
    seen,
    soa_rdata,
    update_message,
    zone_of_text,
)

APEX = fold(name(ZONE))
TEXT = """
    members.example. 300 NS ns.members.example.
    members.example. 300 MX 10 ns.members.example.
    ns.members.example. 300 A 192.0.2.53
    mac.members.example. 60 A 192.0.2.1
    mac.members.example. 60 A 192.0.2.2
    mac.members.example. 60 TXT hello
    deep.empty.members.example. 60 TXT below
    *.wild.members.example. 60 TXT wild
    alias.members.example. 60 CNAME mac.members.example.
    srv.members.example. 60 SRV 0 0 1 Mac.members.example.
"""


@pytest.fixture
def core() -> Core:
    return Core([zone_of_text(TEXT)])


def unchanged(core: Core) -> bool:
    return content(core.zone) == content(zone_of_text(TEXT)) and core.zone.serial == 1 and not core.store.commits


def a_set(core: Core, owner: str, rtype: str) -> RRset | None:
    return core.zone.rrset(fold(name(owner)), Type[rtype], int(core.clock.now))


def count(core: Core, owner: str, rtype: str) -> int:
    rrset = a_set(core, owner, rtype)
    return len(rrset.rdatas) if rrset else 0


# Header and zone section


@pytest.mark.rfc("2136", "2.2")
@pytest.mark.parametrize("flags", [RD, 0x0780, 0x0070, 0x07F0])
def test_the_seven_reserved_bits_are_ignored(core: Core, flags: int) -> None:
    wire = update_message([add("new.members.example.", 60, "A", "192.0.2.9")], flags=flags)
    assert core.ask(core.signed(wire, ADMIN)).rcode == Rcode.NOERROR


@pytest.mark.rfc("2136", "3.8")
def test_the_reply_has_id_and_opcode_of_the_request_and_qr_set(core: Core) -> None:
    reply = core.ask(core.signed(update_message(id=0xBEEF), ADMIN))
    header = reply.message.header
    assert (header.id, header.opcode, header.flags & (QR | AA)) == (0xBEEF, Opcode.UPDATE, QR)


@pytest.mark.rfc("2136", "3.8")
def test_of_the_request_the_zone_section_alone_comes_back(core: Core) -> None:
    reply = core.update(delete_name("mac.members.example."), prerequisites=[name_in_use("mac.members.example.")])
    assert [(fold(each.name), each.rtype, each.rclass) for each in reply.message.questions] == [
        (APEX, Type.SOA, Class.IN)
    ]
    assert (reply.answers, reply.authority, reply.additional) == ([], [], [])


@pytest.mark.rfc("2136", "2.6")
def test_additional_data_is_not_stored_and_does_no_harm(core: Core) -> None:
    """Neither glue from outside nor what lies in the zone, nor what would be malformed as an update."""
    extra = [
        add("ns.elsewhere.example.", 60, "A", "192.0.2.7"),
        add("mac.members.example.", 60, "A", "192.0.2.7"),
        Item(name("mac.members.example."), Type.A, Class.CH, 60, b"odd"),
    ]
    ops = [add("cut.members.example.", 60, "NS", "ns.elsewhere.example.")]
    zone = [Question(APEX, Type.SOA, Class.IN)]
    assert core.ask(core.signed(encode(7, Opcode.UPDATE << 11, zone, [], ops, extra), ADMIN)).rcode == Rcode.NOERROR
    assert core.query("x.cut.members.example.").additional == []
    assert count(core, "mac.members.example.", "A") == 2


@pytest.mark.rfc("2136", "3.1.1")
@pytest.mark.rfc("2136", "2.3")
@pytest.mark.parametrize(
    "questions",
    [[], [Question(APEX, Type.A, Class.IN)], [Question(APEX, Type.SOA, Class.IN)] * 2],
    ids=["none", "not SOA", "two"],
)
def test_a_zone_section_that_is_not_one_soa_is_formerr(core: Core, questions: list[Question]) -> None:
    wire = core.signed(encode(7, Opcode.UPDATE << 11, questions), ADMIN)
    assert core.ask(wire).rcode == Rcode.FORMERR


@pytest.mark.rfc("2136", "3.1.2")
@pytest.mark.parametrize("zone", ["example.", "mac.members.example.", "other.example.", "."])
def test_a_zone_that_is_not_exactly_ours_is_notauth(core: Core, zone: str) -> None:
    reply = core.update(zone=zone)
    assert reply.rcode == Rcode.NOTAUTH
    assert reply.message.tsig is not None, "the signature was good"


@pytest.mark.rfc("2136", "3.1.2")
def test_a_zone_of_another_class_is_notauth(core: Core) -> None:
    wire = encode(7, Opcode.UPDATE << 11, [Question(APEX, Type.SOA, Class.CH)])
    assert core.ask(core.signed(wire, ADMIN)).rcode == Rcode.NOTAUTH


# Prerequisites


@pytest.mark.rfc("2136", "3.2.5")
@pytest.mark.rfc("2136", "2.4.3")
@pytest.mark.rfc("2136", "3.2.1")
@pytest.mark.rfc("2136", "3.2.2")
@pytest.mark.rfc("2136", "3.2.4")
@pytest.mark.parametrize(
    ("item", "rcode"),
    [
        (name_in_use("mac.members.example."), 0),
        (name_in_use("MAC.members.example."), 0),
        (name_in_use(ZONE), 0),
        (name_in_use("absent.members.example."), 3),
        (name_not_in_use("absent.members.example."), 0),
        (name_not_in_use("mac.members.example."), 6),
        (name_not_in_use(ZONE), 6),
        (rrset_exists("mac.members.example.", "TXT"), 0),
        (rrset_exists(ZONE, "SOA"), 0),
        (rrset_exists("mac.members.example.", "AAAA"), 8),
        (rrset_exists("absent.members.example.", "A"), 8),
        (rrset_absent("mac.members.example.", "AAAA"), 0),
        (rrset_absent("absent.members.example.", "A"), 0),
        (rrset_absent("mac.members.example.", "A"), 7),
        (rrset_absent(ZONE, "SOA"), 7),
        (rrset_equals("mac.members.example.", "TXT", "hello"), 0),
        (rrset_equals("mac.members.example.", "TXT", "other"), 8),
        (rrset_equals("mac.members.example.", "A", "192.0.2.1"), 8),
        (rrset_equals("srv.members.example.", "SRV", "0 0 1 mac.MEMBERS.example."), 0),
        (rrset_equals(ZONE, "SOA", "ns.members.example. hostmaster.members.example. 1 3600 600 86400 60"), 0),
        (rrset_equals(ZONE, "SOA", "ns.members.example. hostmaster.members.example. 2 3600 600 86400 60"), 8),
    ],
)
def test_a_prerequisite_by_its_rcode(core: Core, item: Item, rcode: int) -> None:
    new = add("new.members.example.", 60, "A", "192.0.2.9")
    assert core.update(new, prerequisites=[item]).rcode == rcode
    assert unchanged(core) == (rcode != 0)


@pytest.mark.rfc("2136", "2.4.2")
@pytest.mark.rfc("2136", "3.2.3")
@pytest.mark.parametrize(
    ("hosts", "rcode"), [("12", 0), ("21", 0), ("112", 0), ("1", 8), ("123", 8), ("3", 8)], ids=lambda value: str(value)
)
def test_a_value_dependent_prerequisite_is_equality_of_sets(core: Core, hosts: str, rcode: int) -> None:
    items = [rrset_equals("mac.members.example.", "A", f"192.0.2.{host}") for host in hosts]
    assert core.update(prerequisites=items).rcode == rcode


@pytest.mark.rfc("2136", "2.4.4")
@pytest.mark.rfc("2136", "2.4.5")
@pytest.mark.parametrize("owner", ["empty.members.example.", "wild.members.example.", "any.wild.members.example."])
def test_empty_non_terminals_and_what_a_wildcard_would_make_are_not_in_use(core: Core, owner: str) -> None:
    assert core.update(prerequisites=[name_in_use(owner)]).rcode == Rcode.NXDOMAIN
    assert core.update(prerequisites=[name_not_in_use(owner)]).rcode == Rcode.NOERROR
    assert core.update(prerequisites=[rrset_exists(owner, "TXT")]).rcode == Rcode.NXRRSET


@pytest.mark.rfc("2136", "2.4.1")
def test_a_prerequisite_does_not_follow_a_cname(core: Core) -> None:
    assert core.update(prerequisites=[rrset_exists("alias.members.example.", "A")]).rcode == Rcode.NXRRSET


@pytest.mark.rfc("2136", "3.2.5")
def test_what_the_loop_finds_comes_before_what_the_sets_show(core: Core) -> None:
    differs = rrset_equals("mac.members.example.", "TXT", "other")
    absent = name_in_use("absent.members.example.")
    assert core.update(prerequisites=[differs, absent]).rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("2136", "3.2.1")
@pytest.mark.parametrize(
    "item", [name_in_use("mac.members.example."), rrset_equals("mac.members.example.", "TXT", "hello")]
)
def test_a_prerequisite_with_a_ttl_is_formerr(core: Core, item: Item) -> None:
    assert core.update(prerequisites=[item._replace(ttl=1)]).rcode == Rcode.FORMERR


@pytest.mark.rfc("2136", "3.2")
def test_a_prerequisite_outside_the_zone_is_notzone(core: Core) -> None:
    assert core.update(prerequisites=[name_in_use("mac.elsewhere.example.")]).rcode == Rcode.NOTZONE


@pytest.mark.rfc("2136", "3.2")
def test_an_update_of_prerequisites_alone_is_a_question(core: Core) -> None:
    assert core.update(prerequisites=[name_in_use("mac.members.example.")]).rcode == Rcode.NOERROR
    assert unchanged(core)


@pytest.mark.rfc("2136", "3.3")
@pytest.mark.rfc("2136", "8")
@pytest.mark.rfc("3007", "2")
@pytest.mark.rfc("9664", "8")
@pytest.mark.rfc("4703", "6")
@pytest.mark.rfc("6281", "7.2")
def test_one_who_may_not_update_is_refused(core: Core) -> None:
    assert core.update(delete_name("mac.members.example."), by=ALICE).rcode == Rcode.REFUSED
    assert core.update(delete_name("mac.members.example."), by=None).rcode == Rcode.REFUSED
    assert unchanged(core)


@pytest.mark.rfc("2136", "3.3")
@pytest.mark.parametrize("item", [name_in_use("mac.bob.members.example."), name_not_in_use("mac.bob.members.example.")])
def test_a_prerequisite_tells_nothing_to_one_who_may_not_update(core: Core, item: Item) -> None:
    assert core.update(prerequisites=[item], by=ALICE).rcode == Rcode.REFUSED


# Prescan


@pytest.mark.rfc("2136", "3.4.1")
def test_a_change_outside_the_zone_is_notzone(core: Core) -> None:
    assert core.update(add("mac.elsewhere.example.", 60, "A", "192.0.2.1")).rcode == Rcode.NOTZONE


@pytest.mark.rfc("2136", "3.4.1.3")
def test_the_whole_section_is_looked_at_before_anything_changes(core: Core) -> None:
    bad = delete_rrset("mac.members.example.", "A")._replace(ttl=5)
    good = add("new.members.example.", 60, "A", "192.0.2.9")
    assert core.update(good, delete_name("mac.members.example."), bad).rcode == Rcode.FORMERR
    assert unchanged(core)


# Update


@pytest.mark.rfc("2136", "3.4.2.2")
def test_an_added_record_is_answered_after_the_reply(core: Core) -> None:
    assert core.update(add("New.members.example.", 60, "A", "192.0.2.9")).rcode == Rcode.NOERROR
    reply = core.query("new.members.example.")
    assert reply.answers == [("new.members.example.", 60, "A", rdata("A", "192.0.2.9"))]


@pytest.mark.rfc("2136", "3.4.2.2")
@pytest.mark.rfc("2181", "5")
@pytest.mark.rfc("4034", "6.3")
def test_a_duplicate_is_taken_as_a_replacement(core: Core) -> None:
    core.update(add("mac.members.example.", 99, "A", "192.0.2.1"))
    rrset = a_set(core, "mac.members.example.", "A")
    assert rrset is not None and (rrset.ttl, len(rrset.rdatas)) == (99, 2)
    assert core.zone.serial == 2


@pytest.mark.rfc("2136", "3.4.2.2")
@pytest.mark.rfc("2136", "3.6")
@pytest.mark.rfc("1034", "3.6.2")
@pytest.mark.rfc("2181", "10.1")
@pytest.mark.rfc("4035", "2.5")
@pytest.mark.parametrize(
    "op",
    [
        add("mac.members.example.", 60, "CNAME", "other.members.example."),
        add("alias.members.example.", 60, "A", "192.0.2.9"),
        add(ZONE, 60, "CNAME", "other.members.example."),
        Item(APEX, Type.SOA, Class.IN, 60, soa_rdata(1, minimum=5)),
        Item(APEX, Type.SOA, Class.IN, 60, soa_rdata(0xFFFFFFFF, minimum=5)),
        Item(APEX, Type.SOA, Class.IN, 60, soa_rdata(0x80000001, minimum=5)),
        Item(name("mac.members.example."), Type.SOA, Class.IN, 60, soa_rdata(9)),
    ],
)
def test_an_add_that_would_break_the_zone_is_ignored(core: Core, op: Item) -> None:
    assert core.update(op).rcode == Rcode.NOERROR
    assert unchanged(core)


@pytest.mark.rfc("2136", "3.4.2.2")
def test_a_cname_takes_the_place_of_a_cname(core: Core) -> None:
    core.update(add("alias.members.example.", 60, "CNAME", "other.members.example."))
    rrset = a_set(core, "alias.members.example.", "CNAME")
    assert rrset is not None and rrset.rdatas == (name("other.members.example."),)


@pytest.mark.rfc("2136", "3.4.2.2")
def test_a_newer_soa_replaces_the_old_one_and_its_serial(core: Core) -> None:
    core.update(Item(APEX, Type.SOA, Class.IN, 77, soa_rdata(0x7FFFFFFF, minimum=5)))
    reply = core.query(ZONE, "SOA")
    assert reply.answers == [(ZONE, 77, "SOA", soa_rdata(0x7FFFFFFF, minimum=5))]


@pytest.mark.rfc("2136", "3.4.2.3")
def test_an_rrset_is_deleted(core: Core) -> None:
    core.update(delete_rrset("mac.members.example.", "A"))
    assert (count(core, "mac.members.example.", "A"), count(core, "mac.members.example.", "TXT")) == (0, 1)


@pytest.mark.rfc("2136", "3.4.2.3")
def test_all_of_a_name_is_deleted(core: Core) -> None:
    core.update(delete_name("Mac.members.example."))
    assert core.query("mac.members.example.", "TXT").rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("2136", "3.4.2.3")
@pytest.mark.rfc("2136", "7.13")
@pytest.mark.parametrize("op", [delete_rrset(ZONE, "SOA"), delete_rrset(ZONE, "NS")])
def test_soa_and_ns_of_the_zone_cannot_be_deleted(core: Core, op: Item) -> None:
    assert core.update(op).rcode == Rcode.NOERROR
    assert unchanged(core)


@pytest.mark.rfc("2136", "3.4.2.3")
def test_deleting_the_name_of_the_zone_spares_soa_and_ns(core: Core) -> None:
    core.update(delete_name(ZONE))
    assert (count(core, ZONE, "SOA"), count(core, ZONE, "NS"), count(core, ZONE, "MX")) == (1, 1, 0)


@pytest.mark.rfc("2136", "3.4.2.4")
def test_one_record_is_deleted(core: Core) -> None:
    core.update(delete_rr("mac.members.example.", "A", "192.0.2.1"))
    rrset = a_set(core, "mac.members.example.", "A")
    assert rrset is not None and rrset.rdatas == (rdata("A", "192.0.2.2"),)
    core.update(delete_rr("srv.members.example.", "SRV", "0 0 1 MAC.members.example."))
    assert count(core, "srv.members.example.", "SRV") == 0


@pytest.mark.rfc("2136", "3.4.2.4")
@pytest.mark.rfc("2136", "2.5.2")
@pytest.mark.rfc("2136", "2.5.3")
@pytest.mark.rfc("2136", "2.5.4")
@pytest.mark.parametrize(
    "op",
    [
        delete_rr(ZONE, "NS", "ns.members.example."),
        delete_rr(ZONE, "SOA", "ns.members.example. hostmaster.members.example. 1 3600 600 86400 60"),
        delete_rr("mac.members.example.", "A", "192.0.2.77"),
        delete_rr("absent.members.example.", "A", "192.0.2.77"),
        delete_rrset("absent.members.example.", "A"),
        delete_name("absent.members.example."),
    ],
)
def test_deleting_the_last_ns_the_soa_or_what_is_not_there_is_ignored(core: Core, op: Item) -> None:
    assert core.update(op).rcode == Rcode.NOERROR
    assert unchanged(core)


@pytest.mark.rfc("2136", "3.4.2.4")
@pytest.mark.rfc("2136", "7.13")
def test_the_last_ns_below_the_apex_can_be_deleted(core: Core) -> None:
    core.update(add("cut.members.example.", 60, "NS", "ns.cut.members.example."))
    assert core.query("x.cut.members.example.").authority
    core.update(delete_rr("cut.members.example.", "NS", "ns.cut.members.example."))
    assert core.query("x.cut.members.example.").rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("2136", "3.4.2")
def test_records_are_taken_in_their_order(core: Core) -> None:
    swap = [add(ZONE, 300, "NS", "ns2.members.example."), delete_rr(ZONE, "NS", "ns.members.example.")]
    core.update(*reversed(swap))
    assert count(core, ZONE, "NS") == 2, "the old one was still the last when its deletion came"
    core.update(delete_rr(ZONE, "NS", "ns.members.example."))
    assert count(core, ZONE, "NS") == 1
    core.update(delete_name("mac.members.example."), add("mac.members.example.", 60, "A", "192.0.2.3"))
    assert (count(core, "mac.members.example.", "A"), count(core, "mac.members.example.", "TXT")) == (1, 0)


@pytest.mark.rfc("2136", "7.14")
@pytest.mark.parametrize(
    "op",
    [
        add("a.members.example.", 60, "CNAME", "absent.members.example."),
        add("a.members.example.", 60, "SRV", "0 0 1 alias.members.example."),
        add("a.members.example.", 60, "NS", "absent.a.members.example."),
        add("a.members.example.", 60, "MX", "0 far.example.net."),
    ],
)
def test_no_sense_is_asked_of_what_is_added(core: Core, op: Item) -> None:
    assert core.update(op).rcode == Rcode.NOERROR
    rrset = core.zone.rrset(fold(op.owner), op.rtype, int(core.clock.now))
    assert rrset is not None and rrset.rdatas == (op.rdata,)


@pytest.mark.rfc("2136", "7.16")
@pytest.mark.rfc("4592", "2.2.3")
def test_the_last_record_takes_its_name_along_unless_there_are_names_below(core: Core) -> None:
    core.update(add("empty.members.example.", 60, "TXT", "for now"))
    core.update(delete_rr("empty.members.example.", "TXT", "for now"))
    reply = core.query("empty.members.example.", "TXT")
    assert (reply.rcode, reply.answers) == (Rcode.NOERROR, [])
    core.update(delete_rr("deep.empty.members.example.", "TXT", "below"))
    for owner in ("deep.empty.members.example.", "empty.members.example."):
        assert core.query(owner, "TXT").rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("2136", "7.18")
def test_names_below_a_cut_are_kept_and_seen_again(core: Core) -> None:
    core.update(add("empty.members.example.", 60, "NS", "ns.example.net."))
    assert core.query("deep.empty.members.example.", "TXT").answers == []
    assert count(core, "deep.empty.members.example.", "TXT") == 1
    core.update(delete_rrset("empty.members.example.", "NS"))
    assert core.query("deep.empty.members.example.", "TXT").answers


# Serial, atomicity, durability


@pytest.mark.rfc("2136", "3.7")
def test_of_two_claims_to_a_name_one_fails(core: Core) -> None:
    """Both come before either is written, and are written together: the second sees the first."""
    replies: list[bytes] = []
    for last in (8, 9):
        claim = add("new.members.example.", 60, "A", f"192.0.2.{last}")
        wire = update_message([claim], [name_not_in_use("new.members.example.")], id=last)
        core.dispatcher.handle(core.signed(wire, ADMIN), TCP, replies.append)
    assert replies == []
    core.write()
    assert [seen(reply).rcode for reply in replies] == [Rcode.NOERROR, Rcode.YXDOMAIN]
    assert core.query("new.members.example.").answers == [("new.members.example.", 60, "A", rdata("A", "192.0.2.8"))]


@pytest.mark.rfc("2136", "3.6")
@pytest.mark.rfc("2136", "2.5.1")
def test_the_serial_moves_once_per_update_that_changes_the_zone(core: Core) -> None:
    core.update(add("new.members.example.", 60, "A", "192.0.2.9"), add("new.members.example.", 60, "TXT", "x"))
    assert core.zone.serial == 2
    core.update(add("new.members.example.", 60, "A", "192.0.2.9"))
    assert core.zone.serial == 2
    core.update(delete_name("new.members.example."))
    assert core.zone.serial == 3
    assert soa_serial(core.query(ZONE, "SOA").answers[0][3]) == 3


@pytest.mark.rfc("2136", "3.6")
def test_a_serial_in_the_update_is_not_incremented_again(core: Core) -> None:
    soa = Item(APEX, Type.SOA, Class.IN, 60, soa_rdata(50))
    core.update(soa, add("new.members.example.", 60, "A", "192.0.2.9"))
    assert core.zone.serial == 50


@pytest.mark.rfc("2136", "7.11")
def test_the_serial_goes_round_past_zero() -> None:
    core = Core([zone_of_text(TEXT, serial=0xFFFFFFFF)])
    core.update(delete_name("mac.members.example."))
    assert core.zone.serial == 1


@pytest.mark.rfc("2136", "3.5")
@pytest.mark.rfc("1995", "2")
def test_nothing_is_answered_or_acknowledged_that_is_not_on_disk(core: Core) -> None:
    asked: list[Rcode] = []
    replies: list[bytes] = []

    async def while_the_disk_works() -> None:
        asked.append(core.query("new.members.example.").rcode)
        assert not replies

    core.store.before_commit = while_the_disk_works
    wire = core.signed(update_message([add("new.members.example.", 60, "A", "192.0.2.9")]), ADMIN)
    core.dispatcher.handle(wire, TCP, replies.append)
    core.write()
    assert asked == [Rcode.NXDOMAIN]
    assert len(replies) == 1 and core.query("new.members.example.").rcode == Rcode.NOERROR


@pytest.mark.rfc("2136", "3.4.2.1")
def test_a_failure_of_the_store_undoes_everything(core: Core) -> None:
    before: Content = content(core.zone)
    core.store.failures.append(StoreError("disk full"))
    assert core.update(delete_name("mac.members.example.")).rcode == Rcode.SERVFAIL
    assert content(core.zone) == before and core.zone.serial == 1
    assert core.query("mac.members.example.").answers
