"""Answers from a snapshot: what is found, what is denied, what is delegated, what has lapsed."""

import pytest

from protocol.constants import Rcode, Type
from protocol.name import fold, to_text
from server.answer import MAX_CHAIN, Answer, resolve
from server.zone.model import RR
from server.zone.zone import Zone, Zones
from tests.support.builders import name, rdata, stored, zone_of_records, zone_of_text

TEXT = """
    members.example. 300 NS ns.members.example.
    ns.members.example. 300 A 192.0.2.53
    mac.members.example. 120 A 192.0.2.1
    mac.members.example. 120 AAAA 2001:db8::1
    mac.members.example. 120 TYPE65500 \\# 2 abcd
    deep.empty.members.example. 120 TXT below
    srv.members.example. 120 SRV 0 0 4500 Mac.members.example.
    mx.members.example. 120 MX 10 mac.members.example.
    alias.members.example. 120 CNAME Mac.members.example.
    second.members.example. 120 CNAME alias.members.example.
    out.members.example. 120 CNAME www.example.net.
    dangling.members.example. 120 CNAME absent.members.example.
    into.members.example. 120 CNAME host.cut.members.example.
    loop1.members.example. 120 CNAME loop2.members.example.
    loop2.members.example. 120 CNAME loop1.members.example.
    self.members.example. 120 CNAME self.members.example.
    *.wild.members.example. 120 TXT wild
    *.wild.members.example. 120 CAA 0 issue ca.example
    real.wild.members.example. 120 A 192.0.2.9
    below.ent.wild.members.example. 120 A 192.0.2.10
    *.aliased.members.example. 120 CNAME mac.members.example.
    x.*.starless.members.example. 120 TXT x
    cut.members.example. 300 NS ns.cut.members.example.
    cut.members.example. 300 NS ns.elsewhere.example.
    cut.members.example. 300 DS 1 8 2 0000000000000000000000000000000000000000000000000000000000000000
    ns.cut.members.example. 300 A 192.0.2.54
    *.cut.members.example. 300 TXT occluded
    old.members.example. 300 DNAME members.example.
    old.members.example. 300 TXT beside
    under.old.members.example. 300 TXT occluded
    far.members.example. 300 DNAME example.net.
"""


@pytest.fixture(scope="module")
def zone() -> Zone:
    return zone_of_text(TEXT, soa_ttl=300, minimum=60)


def ask(zone: Zone, owner: str, rtype: str, now: int = 0) -> Answer:
    return resolve(zone, name(owner), Type[rtype], now)


def texts(records: list[RR]) -> list[str]:
    return [f"{to_text(rr.owner)} {Type(rr.rtype).name}" for rr in records]


@pytest.mark.rfc("1034", "4.3.2")
@pytest.mark.rfc("4592", "2.2.2")
@pytest.mark.rfc("1034", "3.6.2")
@pytest.mark.rfc("8764", "4")
@pytest.mark.rfc("1035", "2.3.3")
@pytest.mark.rfc("2782", "-")
@pytest.mark.rfc("4035", "3.1.4.1")
@pytest.mark.parametrize(
    ("owner", "rtype", "rcode", "answers"),
    [
        ("mac.members.example.", "A", 0, ["mac.members.example. A"]),
        ("MAC.Members.example.", "A", 0, ["MAC.Members.example. A"]),
        ("members.example.", "SOA", 0, ["members.example. SOA"]),
        ("members.example.", "NS", 0, ["members.example. NS"]),
        ("mac.members.example.", "TXT", 0, []),
        ("empty.members.example.", "TXT", 0, []),
        ("wild.members.example.", "TXT", 0, []),
        ("absent.members.example.", "TXT", 3, []),
        ("x.absent.members.example.", "TXT", 3, []),
        ("below.mac.members.example.", "A", 3, []),
        ("any.wild.members.example.", "TXT", 0, ["any.wild.members.example. TXT"]),
        ("a.b.wild.members.example.", "TXT", 0, ["a.b.wild.members.example. TXT"]),
        ("any.wild.members.example.", "A", 0, []),
        ("real.wild.members.example.", "TXT", 0, []),
        ("ent.wild.members.example.", "TXT", 0, []),
        ("x.ent.wild.members.example.", "TXT", 3, []),
        ("x.real.wild.members.example.", "TXT", 3, []),
        ("*.wild.members.example.", "TXT", 0, ["*.wild.members.example. TXT"]),
        ("any.starless.members.example.", "TXT", 0, []),
        ("x.*.starless.members.example.", "TXT", 0, ["x.*.starless.members.example. TXT"]),
        ("any.aliased.members.example.", "A", 0, ["any.aliased.members.example. CNAME", "mac.members.example. A"]),
        ("any.aliased.members.example.", "CNAME", 0, ["any.aliased.members.example. CNAME"]),
        ("alias.members.example.", "A", 0, ["alias.members.example. CNAME", "mac.members.example. A"]),
        ("alias.members.example.", "CNAME", 0, ["alias.members.example. CNAME"]),
        ("alias.members.example.", "TXT", 0, ["alias.members.example. CNAME"]),
        (
            "second.members.example.",
            "AAAA",
            0,
            ["second.members.example. CNAME", "alias.members.example. CNAME", "mac.members.example. AAAA"],
        ),
        ("out.members.example.", "A", 0, ["out.members.example. CNAME"]),
        ("dangling.members.example.", "A", 3, ["dangling.members.example. CNAME"]),
        ("loop1.members.example.", "A", 2, ["loop1.members.example. CNAME", "loop2.members.example. CNAME"]),
        ("self.members.example.", "A", 2, ["self.members.example. CNAME"]),
        ("old.members.example.", "TXT", 0, ["old.members.example. TXT"]),
        ("old.members.example.", "DNAME", 0, ["old.members.example. DNAME"]),
        ("cut.members.example.", "DS", 0, ["cut.members.example. DS"]),
    ],
)
def test_answer(zone: Zone, owner: str, rtype: str, rcode: int, answers: list[str]) -> None:
    answer = ask(zone, owner, rtype)
    assert answer.rcode == rcode
    assert [text.lower() for text in texts(answer.answers)] == [text.lower() for text in answers]
    assert answer.is_authoritative
    ended = bool(answers) and (rtype == "CNAME" or not answers[-1].endswith("CNAME"))
    follows_out = owner.startswith(("out", "loop", "self"))
    expected = [] if ended or follows_out else ["members.example. SOA"]
    assert texts(answer.authority) == expected


def test_the_owner_is_spelt_as_asked(zone: Zone) -> None:
    assert ask(zone, "MaC.members.EXAMPLE.", "A").answers[0].owner == name("MaC.members.EXAMPLE.")


@pytest.mark.rfc("2308", "3")
@pytest.mark.rfc("2308", "4")
@pytest.mark.parametrize(("soa_ttl", "minimum", "ttl"), [(300, 60, 60), (30, 60, 30), (60, 60, 60), (300, 0, 0)])
def test_a_negative_answer_is_cached_no_longer_than_soa_and_minimum_say(soa_ttl: int, minimum: int, ttl: int) -> None:
    zone = zone_of_text(TEXT, soa_ttl=soa_ttl, minimum=minimum)
    for owner in ("absent.members.example.", "mac.members.example."):
        assert [rr.ttl for rr in ask(zone, owner, "TXT").authority] == [ttl]
    assert ask(zone, "members.example.", "SOA").answers[0].ttl == soa_ttl


@pytest.mark.rfc("1034", "4.3.2")
@pytest.mark.rfc("2181", "6.1")
@pytest.mark.parametrize("owner", ["cut.members.example.", "host.cut.members.example.", "a.b.cut.members.example."])
@pytest.mark.parametrize("rtype", ["A", "NS", "TXT", "ANY"])
def test_below_a_cut_there_is_only_the_referral_with_glue(zone: Zone, owner: str, rtype: str) -> None:
    answer = ask(zone, owner, rtype)
    assert (answer.rcode, answer.is_authoritative, answer.answers) == (Rcode.NOERROR, False, [])
    assert texts(answer.authority) == ["cut.members.example. NS"] * 2
    assert texts(answer.additional) == ["ns.cut.members.example. A"]


@pytest.mark.rfc("4035", "3.1.4.1")
def test_ds_below_a_cut_is_referred(zone: Zone) -> None:
    assert not ask(zone, "x.cut.members.example.", "DS").is_authoritative


@pytest.mark.rfc("9471", "3.2")
def test_a_referral_has_the_addresses_of_hosts_in_other_delegations_too() -> None:
    text = """
        one.members.example. 60 NS ns.one.members.example.
        one.members.example. 60 NS ns.two.members.example.
        ns.one.members.example. 60 A 192.0.2.1
        two.members.example. 60 NS ns.two.members.example.
        ns.two.members.example. 60 A 192.0.2.2
    """
    additional = texts(ask(zone_of_text(text), "www.one.members.example.", "A").additional)
    assert additional == ["ns.one.members.example. A", "ns.two.members.example. A"]


@pytest.mark.rfc("1034", "4.3.2")
@pytest.mark.rfc("1035", "4.1.1")
@pytest.mark.rfc("6604", "2.1")
def test_a_cname_into_a_delegation_ends_in_the_referral(zone: Zone) -> None:
    answer = ask(zone, "into.members.example.", "A")
    assert texts(answer.answers) == ["into.members.example. CNAME"]
    assert texts(answer.authority) == ["cut.members.example. NS"] * 2
    assert answer.is_authoritative


@pytest.mark.rfc("6672", "2.2")
@pytest.mark.rfc("6672", "2.4")
def test_a_dname_rewrites_what_lies_below_it(zone: Zone) -> None:
    answer = ask(zone, "Mac.old.members.example.", "A")
    assert texts(answer.answers) == [
        "old.members.example. DNAME",
        "Mac.old.members.example. CNAME",
        "Mac.members.example. A",
    ]
    assert answer.answers[1].rdata == name("Mac.members.example.")
    assert answer.answers[1].ttl == 300
    assert texts(ask(zone, "under.old.members.example.", "TXT").answers)[0] == "old.members.example. DNAME"
    assert ask(zone, "under.old.members.example.", "TXT").rcode == Rcode.NXDOMAIN


def test_a_dname_that_leads_out_is_where_the_answer_ends(zone: Zone) -> None:
    answer = ask(zone, "a.b.far.members.example.", "A")
    assert [rr.rdata for rr in answer.answers] == [name("example.net."), name("a.b.example.net.")]
    assert (answer.rcode, answer.authority) == (Rcode.NOERROR, [])


@pytest.mark.rfc("6672", "2.2")
def test_a_name_that_a_dname_makes_too_long_is_yxdomain() -> None:
    target = ".".join(["t" * 60] * 3) + "."
    zone = zone_of_text(f"d.members.example. 60 DNAME {target}")
    fits = f"{'x' * 63}.d.members.example."
    assert ask(zone, fits, "A").rcode == Rcode.NOERROR
    answer = ask(zone, f"{'x' * 63}.{'y' * 10}.d.members.example.", "A")
    assert answer.rcode == Rcode.YXDOMAIN
    assert texts(answer.answers) == ["d.members.example. DNAME"]


def test_a_dname_onto_itself_ends() -> None:
    zone = zone_of_text("d.members.example. 60 DNAME x.d.members.example.")
    answer = ask(zone, "a.d.members.example.", "A")
    assert [rr.rtype for rr in answer.answers] == [Type.DNAME, *[Type.CNAME] * MAX_CHAIN]


def test_a_long_chain_is_cut_off() -> None:
    lines = [f"c{i}.members.example. 60 CNAME c{i + 1}.members.example." for i in range(MAX_CHAIN * 2)]
    answer = ask(zone_of_text("\n".join(lines)), "c0.members.example.", "A")
    assert len(answer.answers) == MAX_CHAIN
    assert answer.rcode == Rcode.NOERROR


@pytest.mark.rfc("1035", "3.3.11")
@pytest.mark.rfc("1035", "3.3.9")
def test_hosts_named_in_srv_mx_and_ns_come_with_their_addresses(zone: Zone) -> None:
    for owner, rtype in (("srv.members.example.", "SRV"), ("mx.members.example.", "MX")):
        assert [text.lower() for text in texts(ask(zone, owner, rtype).additional)] == [
            "mac.members.example. a",
            "mac.members.example. aaaa",
        ]
    assert texts(ask(zone, "members.example.", "NS").additional) == ["ns.members.example. A"]


@pytest.mark.rfc("8482", "4.1")
@pytest.mark.rfc("8482", "4")
def test_any_is_answered_with_one_rrset(zone: Zone) -> None:
    assert len({rr.rtype for rr in ask(zone, "mac.members.example.", "ANY").answers}) == 1
    assert ask(zone, "absent.members.example.", "ANY").rcode == Rcode.NXDOMAIN
    assert ask(zone, "empty.members.example.", "ANY").answers == []
    assert ask(zone_of_text("a.members.example. 1 A 192.0.2.1"), "members.example.", "ANY").answers[0].rtype == Type.SOA


@pytest.mark.rfc("3597", "2")
def test_a_type_we_have_no_name_for_is_data_like_any_other(zone: Zone) -> None:
    answer = resolve(zone, name("mac.members.example."), 65500, 0)
    assert [rr.rdata for rr in answer.answers] == [b"\xab\xcd"]


LEASED = [
    stored("mac.members.example. 120 A 192.0.2.1", expires_at=1000),
    stored("mac.members.example. 120 A 192.0.2.2", expires_at=1100),
    stored("*.wild.members.example. 120 TXT x", expires_at=1000),
    stored("alias.members.example. 120 CNAME mac.members.example.", expires_at=1000),
    stored("srv.members.example. 120 SRV 0 0 1 mac.members.example."),
    stored("up.members.example. 120 TXT x", expires_at=1000),
    stored("down.up.members.example. 120 TXT x"),
]


def test_the_answered_ttl_is_capped_by_the_lease_that_is_left() -> None:
    zone = zone_of_records(LEASED)
    for now, ttl in ((800, 120), (900, 100), (999, 1)):
        assert {rr.ttl for rr in ask(zone, "mac.members.example.", "A", now).answers} == {ttl}
    assert {rr.ttl for rr in ask(zone, "srv.members.example.", "SRV", 950).additional} == {50}
    assert ask(zone, "x.wild.members.example.", "TXT", 990).answers[0].ttl == 10
    assert ask(zone, "alias.members.example.", "A", 990).answers[0].ttl == 10


@pytest.mark.rfc("9664", "7")
def test_what_has_lapsed_is_not_answered_even_before_it_is_swept() -> None:
    zone = zone_of_records(LEASED)
    assert [rr.rdata for rr in ask(zone, "mac.members.example.", "A", 1000).answers] == [rdata("A", "192.0.2.2")]
    for owner, rtype in (("mac", "A"), ("mac", "ANY"), ("alias", "A"), ("x.wild", "TXT"), ("*.wild", "TXT")):
        answer = ask(zone, f"{owner}.members.example.", rtype, 1100)
        assert (answer.rcode, answer.answers, texts(answer.authority)) == (
            Rcode.NXDOMAIN,
            [],
            ["members.example. SOA"],
        )
    assert ask(zone, "srv.members.example.", "SRV", 1100).additional == []
    above = ask(zone, "up.members.example.", "TXT", 1100)
    assert (above.rcode, above.answers) == (Rcode.NOERROR, []), "it still stands above a name"


@pytest.mark.rfc("4035", "3.1.4.1")
@pytest.mark.rfc("2136", "7.19")
@pytest.mark.rfc("1034", "4.3.2")
def test_the_deepest_zone_answers_and_ds_belongs_to_the_parent() -> None:
    parent = zone_of_text("carol.members.example. 60 NS ns.members.example.")
    child = zone_of_text("carol.members.example. 60 NS ns.members.example.", apex="carol.members.example.", zone_id=2)
    zones = Zones([parent, child])
    inside = fold(name("x.carol.members.example."))
    assert zones.enclosing(inside) is child
    assert zones.enclosing(child.apex) is child
    assert zones.enclosing(child.apex, Type.DS) is parent
    assert zones.enclosing(inside, Type.DS) is child
    assert zones.enclosing(parent.apex, Type.DS) is parent, "no zone of ours lies above"
    assert zones.enclosing(fold(name("example."))) is None
    assert zones.enclosing(b"\0") is None
    orphan = ask(child, "carol.members.example.", "DS")
    assert (orphan.rcode, orphan.is_authoritative, texts(orphan.authority)) == (0, True, ["carol.members.example. SOA"])


def test_a_root_zone_answers_for_every_name() -> None:
    zone = zone_of_text("com. 60 NS a.gtld.example.", apex=".")
    assert Zones([zone]).enclosing(fold(name("x.y."))) is zone
    assert ask(zone, "absent.", "A").rcode == Rcode.NXDOMAIN
    assert not ask(zone, "www.com.", "A").is_authoritative
