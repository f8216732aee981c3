"""Reading an UPDATE: every row of the tables of prerequisites and update operations, and our own bounds."""

import pytest

from protocol.constants import Class, Opcode, Rcode, Type
from protocol.edns import UpdateLease
from protocol.message import Question, decode, encode
from protocol.name import fold
from server.zone.draft import Draft
from server.zone.node import RRset
from server.zone.update import (
    MAX_RRSET_RECORDS,
    MAX_TYPES,
    PERMANENT_TERMS,
    LeaseTerms,
    UpdateError,
    apply_update,
    granted,
    read_update,
    zone_of,
)
from server.zone.zone import Zone
from tests.support.builders import (
    ZONE,
    Item,
    add,
    content,
    delete_rr,
    name,
    rdata,
    soa_rdata,
    update_message,
    zone_of_text,
)

APEX = fold(name(ZONE))
MAC = name("mac.members.example.")
A = rdata("A", "192.0.2.1")
CH = Class.CH


def read(ops: list[Item], prerequisites: list[Item] | None = None) -> Rcode:
    """The RCODE of reading it."""
    try:
        read_update(decode(update_message(ops, prerequisites or [])), APEX)
    except UpdateError as error:
        assert error.reason
        return error.rcode
    return Rcode.NOERROR


META = [0, 41, 128, 249, 251, 252, 253, 254]

PREREQUISITES = [
    (Item(MAC, Type.ANY, Class.ANY, 0, b""), 0),
    (Item(MAC, Type.A, Class.ANY, 0, b""), 0),
    (Item(MAC, Type.ANY, Class.NONE, 0, b""), 0),
    (Item(MAC, Type.A, Class.NONE, 0, b""), 0),
    (Item(MAC, Type.A, Class.IN, 0, A), 0),
    (Item(MAC, 65500, Class.IN, 0, b"any"), 0),
    (Item(MAC, Type.A, Class.ANY, 1, b""), 1),
    (Item(MAC, Type.A, Class.ANY, 0x80000000, b""), 1),
    (Item(MAC, Type.A, Class.NONE, 77, b""), 1),
    (Item(MAC, Type.A, Class.IN, 60, A), 1),
    (Item(MAC, Type.A, Class.ANY, 0, A), 1),
    (Item(MAC, Type.ANY, Class.ANY, 0, b"x"), 1),
    (Item(MAC, Type.A, Class.NONE, 0, A), 1),
    (Item(MAC, Type.A, Class.IN, 0, b""), 1),
    (Item(MAC, Type.A, Class.IN, 0, A + b"x"), 1),
    (Item(MAC, Type.ANY, Class.IN, 0, b""), 1),
    (Item(MAC, Type.A, CH, 0, b""), 1),
    (Item(MAC, Type.A, 0, 0, b""), 1),
    (Item(name("mac.other.example."), Type.A, Class.ANY, 0, b""), 10),
    (Item(name("example."), Type.ANY, Class.NONE, 0, b""), 10),
    (Item(name("notmembers.example."), Type.ANY, Class.ANY, 0, b""), 10),
    (Item(name("mac.other.example."), Type.A, CH, 0, b""), 10),  # the zone is looked at before the class
    (Item(name("mac.other.example."), Type.A, Class.ANY, 5, b""), 1),  # and the TTL before the zone
    *((Item(MAC, meta, rclass, 0, b""), 1) for meta in META if meta != 41 for rclass in (Class.ANY, Class.NONE)),
]


@pytest.mark.rfc("2136", "3.2.1")
@pytest.mark.rfc("2136", "3.2.2")
@pytest.mark.rfc("2136", "3.2.3")
@pytest.mark.rfc("2136", "3.2.5")
@pytest.mark.parametrize(("item", "rcode"), PREREQUISITES)
def test_form_of_a_prerequisite(item: Item, rcode: int) -> None:
    assert read([], [item]) == rcode


OPS = [
    (Item(MAC, Type.A, Class.IN, 60, A), 0),
    (Item(MAC, Type.A, Class.IN, 0xFFFFFFFF, A), 0),
    (Item(MAC, 65500, Class.IN, 60, b""), 0),
    (Item(MAC, Type.A, Class.ANY, 0, b""), 0),
    (Item(MAC, Type.ANY, Class.ANY, 0, b""), 0),
    (Item(MAC, Type.A, Class.NONE, 0, A), 0),
    (Item(APEX, Type.SOA, Class.IN, 60, soa_rdata(9)), 0),
    (Item(MAC, Type.A, Class.IN, 60, b""), 1),
    (Item(MAC, Type.A, Class.IN, 60, A[:3]), 1),
    (Item(MAC, Type.TXT, Class.IN, 60, b"\x05abc"), 1),
    (Item(MAC, Type.CNAME, Class.IN, 60, b"\xc0\xff"), 1),
    (Item(MAC, Type.ANY, Class.IN, 60, b""), 1),
    (Item(MAC, Type.A, Class.ANY, 60, b""), 1),
    (Item(MAC, Type.A, Class.ANY, 0, A), 1),
    (Item(MAC, Type.ANY, Class.ANY, 1, b""), 1),
    (Item(MAC, Type.ANY, Class.ANY, 0, A), 1),
    (Item(MAC, Type.A, Class.NONE, 1, A), 1),
    (Item(MAC, Type.A, Class.NONE, 0, b""), 1),
    (Item(MAC, Type.ANY, Class.NONE, 0, b""), 1),
    (Item(MAC, Type.A, CH, 0, A), 1),
    (Item(name("mac.other.example."), Type.A, Class.IN, 60, A), 10),
    (Item(name("mac.other.example."), Type.A, CH, 60, A), 10),
    (Item(name("example."), Type.ANY, Class.ANY, 0, b""), 10),
    *((Item(MAC, meta, Class.IN, 0, b"x"), 1) for meta in META if meta != 41),
    *((Item(MAC, meta, Class.NONE, 0, b"x"), 1) for meta in META if meta != 41),
    *((Item(MAC, meta, Class.ANY, 0, b""), 1) for meta in META if meta != 41),
]


@pytest.mark.rfc("2136", "3.4.1.2")
@pytest.mark.rfc("2136", "3.4.1")
@pytest.mark.parametrize(("item", "rcode"), OPS)
def test_form_of_an_update_operation(item: Item, rcode: int) -> None:
    assert read([item]) == rcode


@pytest.mark.rfc("2136", "3.4.1")
def test_one_bad_operation_spoils_the_message() -> None:
    assert read([add("mac.members.example.", 60, "A", "192.0.2.1"), OPS[-1][0]]) == Rcode.FORMERR


@pytest.mark.rfc("2136", "3.4.2.4")
def test_a_name_compressed_in_the_rdata_of_a_deletion_is_made_whole() -> None:
    plain = update_message([Item(MAC, Type.CNAME, Class.NONE, 0, b"\xc0\x0c")])
    update = read_update(decode(plain), APEX)
    assert update.ops[0].rdata == APEX


@pytest.mark.rfc("2181", "8")
@pytest.mark.rfc("1035", "2.3.4")
def test_a_ttl_with_its_top_bit_set_is_zero() -> None:
    ttls = [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    update = read_update(decode(update_message([Item(MAC, Type.A, Class.IN, ttl, A) for ttl in ttls])), APEX)
    assert [op.ttl for op in update.ops] == [0x7FFFFFFF, 0, 0]


def test_rdata_that_would_fit_in_no_answer_is_refused() -> None:
    """A SIG's name may be a pointer in the request and 255 octets when expanded."""
    label = b"\x3f" + b"x" * 63
    first = Item(label * 3 + b"\x01a" + APEX, Type.A, Class.ANY, 0, b"")
    head = len(update_message([first], edns=False)) + 2 + 10
    longest = 65535 - head - 14
    sig = bytes(18) + b"\xc0\x21" + bytes(longest - 20)
    assert read([first, Item(APEX, Type.SIG, Class.IN, 0, sig)]) == Rcode.FORMERR
    assert read([first, Item(APEX, Type.SIG, Class.IN, 0, sig[:-2000])]) == Rcode.NOERROR


@pytest.mark.rfc("2136", "3.1.1")
@pytest.mark.parametrize(
    "questions", [[], [Question(APEX, Type.SOA, 1)] * 2, [Question(APEX, Type.A, 1)], [Question(APEX, Type.ANY, 1)]]
)
def test_the_zone_section_is_one_question_for_the_soa(questions: list[Question]) -> None:
    with pytest.raises(UpdateError) as caught:
        zone_of(decode(encode(1, Opcode.UPDATE << 11, questions)))
    assert caught.value.rcode == Rcode.FORMERR


def test_the_zone_is_named_without_regard_to_case() -> None:
    assert zone_of(decode(update_message(zone="MEMBERS.Example."))) == APEX


# What is applied


def apply(zone: Zone, *ops: Item, terms: LeaseTerms = PERMANENT_TERMS) -> Draft:
    draft = Draft(zone)
    apply_update(draft, read_update(decode(update_message(ops)), zone.apex), terms)
    return draft


TEXT = """
    members.example. 300 NS ns.members.example.
    mac.members.example. 60 A 192.0.2.1
"""


@pytest.mark.rfc("2136", "7.12")
@pytest.mark.rfc("2181", "5.2")
def test_an_rrset_has_one_ttl_that_of_the_last_add() -> None:
    draft = apply(zone_of_text(TEXT), add("mac.members.example.", 90, "A", "192.0.2.2"))
    assert draft.rrset(MAC, Type.A) == RRset(Type.A, 90, (A, rdata("A", "192.0.2.2")), (0, 0))


@pytest.mark.rfc("2136", "3.4.2.2")
def test_a_wks_takes_the_place_of_that_of_its_address_and_protocol() -> None:
    tcp, udp = bytes((192, 0, 2, 1, 6)), bytes((192, 0, 2, 1, 17))
    ops = [Item(MAC, Type.WKS, Class.IN, 60, data) for data in (tcp + b"\x01", udp + b"\x02", tcp + b"\x03")]
    rrset = apply(zone_of_text(TEXT), *ops).rrset(MAC, Type.WKS)
    assert rrset is not None
    assert rrset.rdatas == (udp + b"\x02", tcp + b"\x03")


def test_keys_and_other_records_have_leases_of_their_own() -> None:
    terms = LeaseTerms(100, 900)
    key_op = Item(MAC, Type.KEY, Class.IN, 60, b"\x02\x00\x03\x0dkey")
    draft = apply(zone_of_text(TEXT), add("mac.members.example.", 60, "TXT", "x"), key_op, terms=terms)
    txt, kept = draft.rrset(MAC, Type.TXT), draft.rrset(MAC, Type.KEY)
    assert txt is not None and txt.expires == (100,)
    assert kept is not None and kept.expires == (900,)


@pytest.mark.parametrize(
    ("was", "wish", "keeps_permanent", "becomes"),
    [
        (0, 100, True, 0),
        (0, 100, False, 100),
        (50, 100, True, 100),
        (500, 100, True, 100),
        (50, 0, True, 0),
        (0, 0, True, 0),
    ],
)
def test_the_lease_of_a_record_added_again(was: int, wish: int, keeps_permanent: bool, becomes: int) -> None:
    op = add("mac.members.example.", 60, "TXT", "x")
    zone = zone_of_text(TEXT)
    draft = apply(zone, op, terms=LeaseTerms(was, was))
    apply_update(draft, read_update(decode(update_message([op])), APEX), LeaseTerms(wish, wish, keeps_permanent))
    rrset = draft.rrset(MAC, Type.TXT)
    assert rrset is not None and rrset.expires == (becomes,)


def test_deleting_one_record_leaves_the_leases_of_the_others() -> None:
    draft = apply(zone_of_text(TEXT), add("mac.members.example.", 60, "A", "192.0.2.2"), terms=LeaseTerms(100, 100))
    apply_update(
        draft,
        read_update(decode(update_message([delete_rr("mac.members.example.", "A", "192.0.2.1")])), APEX),
        LeaseTerms(900, 900),
    )
    assert draft.rrset(MAC, Type.A) == RRset(Type.A, 60, (rdata("A", "192.0.2.2"),), (100,))


def test_the_ns_of_the_zone_cannot_be_leased() -> None:
    zone = zone_of_text(TEXT)
    with pytest.raises(UpdateError) as caught:
        apply(zone, add(ZONE, 60, "NS", "ns2.members.example."), terms=LeaseTerms(100, 100))
    assert caught.value.rcode == Rcode.REFUSED


@pytest.mark.rfc("2136", "7.11")
@pytest.mark.parametrize("number", [0, 1])
def test_a_serial_of_zero_is_never_taken(number: int) -> None:
    zone = zone_of_text(TEXT, serial=0xFFFFFFFF)
    draft = apply(zone, Item(APEX, Type.SOA, Class.IN, 60, soa_rdata(number)))
    assert draft.serial == 1


def many(count: int, first: int = 0) -> list[Item]:
    return [Item(MAC, Type.A, Class.IN, 60, (first + number).to_bytes(4, "big")) for number in range(count)]


def test_an_rrset_grows_to_its_bound_and_no_further() -> None:
    zone = zone_of_text("members.example. 300 NS ns.members.example.")
    rrset = apply(zone, *many(MAX_RRSET_RECORDS)).rrset(MAC, Type.A)
    assert rrset is not None and len(rrset.rdatas) == MAX_RRSET_RECORDS
    with pytest.raises(UpdateError) as caught:
        apply(zone, *many(MAX_RRSET_RECORDS + 1))
    assert caught.value.rcode == Rcode.REFUSED
    assert content(zone) == content(zone_of_text("members.example. 300 NS ns.members.example."))


def test_a_name_has_a_bounded_number_of_rrsets() -> None:
    zone = zone_of_text("members.example. 300 NS ns.members.example.")
    ops = [Item(MAC, 65000 + number, Class.IN, 60, b"x") for number in range(MAX_TYPES + 1)]
    apply(zone, *ops[:-1], ops[0])
    with pytest.raises(UpdateError):
        apply(zone, *ops)


@pytest.mark.parametrize(
    ("wish", "grant"),
    [
        (UpdateLease(10), UpdateLease(1800)),
        (UpdateLease(0), UpdateLease(1800)),
        (UpdateLease(5400), UpdateLease(5400)),
        (UpdateLease(100000), UpdateLease(7200)),
        (UpdateLease(0xFFFFFFFF), UpdateLease(7200)),
        (UpdateLease(5400, 10), UpdateLease(5400, 1800)),
        (UpdateLease(10, 0xFFFFFFFF), UpdateLease(1800, 14400)),
    ],
)
def test_a_wish_is_clamped_and_answered_in_its_form(wish: UpdateLease, grant: UpdateLease) -> None:
    assert granted(wish, 1800, 7200, 14400) == grant
