"""Answers by the RFCs that came after 1034: wildcards, DNAME, aliases and DNSSEC types, service bindings, EDE."""

import pytest

from protocol.constants import AA, TC, Class, Ede, Rcode, Type
from protocol.edns import Opt
from protocol.message import Question, encode
from tests.support.builders import ADMIN, Core, Seen, add, query_message, rdata, update_message, zone_of_text

TEXT = """
    members.example. 300 NS ns.members.example.
    ns.members.example. 300 A 192.0.2.53
    mac.members.example. 120 A 192.0.2.1
    mac.members.example. 120 AAAA 2001:db8::1
    alias.members.example. 120 CNAME mac.members.example.
    alias.members.example. 120 KEY 512 3 13 AwEAAQ==
    one.members.example. 120 CNAME two.members.example.
    two.members.example. 120 CNAME one.members.example.
    old.members.example. 300 DNAME new.members.example.
    host.new.members.example. 120 A 192.0.2.2
    loop.members.example. 300 DNAME loop.members.example.
    *.wild.members.example. 120 A 192.0.2.3
    *.wild.members.example. 120 MX 10 mac.members.example.
    taken.wild.members.example. 120 TXT here
    *.to.members.example. 120 CNAME host.new.members.example.
    deep.*.star.members.example. 120 TXT below
    srv.members.example. 120 SRV 0 0 1 any.wild.members.example.
    glue.members.example. 120 SRV 0 0 1 ns.cut.members.example.
    far.members.example. 120 SRV 0 0 1 host.example.net.
    none.members.example. 120 SRV 0 0 0 .
    web.members.example. 120 HTTPS 1 mac.members.example. alpn=h2
    own.members.example. 120 HTTPS 1 . alpn=h2
    own.members.example. 120 A 192.0.2.4
    to-own.members.example. 120 HTTPS 0 own.members.example.
    *.bound.members.example. 120 HTTPS 1 . alpn=h2
    *.bound.members.example. 120 A 192.0.2.5
    cut.members.example. 300 NS ns.cut.members.example.
    cut.members.example. 300 DS 1 13 2 0000000000000000000000000000000000000000000000000000000000000000
    ns.cut.members.example. 300 A 192.0.2.54
    odd.members.example. 60 TYPE65280 \\# 3 010203
"""


@pytest.fixture
def core() -> Core:
    return Core([zone_of_text(TEXT)])


def ask(core: Core, owner: str, rtype: str | int = "A") -> Seen:
    return core.query(f"{owner}.members.example.", rtype)


def names(reply: Seen, section: str = "answers") -> list[str]:
    return [f"{owner.removesuffix('.members.example.')} {rtype}" for owner, _, rtype, _ in getattr(reply, section)]


@pytest.mark.rfc("1034", "3.6.2")
@pytest.mark.parametrize(
    ("owner", "answers"),
    [("one", ["one CNAME", "two CNAME"]), ("x.loop", ["loop DNAME", "x.loop CNAME"])],
)
def test_aliases_in_a_loop_are_told_once_and_signalled_as_an_error(core: Core, owner: str, answers: list[str]) -> None:
    reply = ask(core, owner)
    assert (reply.rcode, names(reply)) == (Rcode.SERVFAIL, answers)


@pytest.mark.rfc("4035", "2.5")
@pytest.mark.rfc("4035", "3")
@pytest.mark.parametrize("rtype", ["KEY", "RRSIG", "NSEC"])
def test_types_that_may_stand_beside_a_cname_are_asked_of_the_alias(core: Core, rtype: str) -> None:
    reply = ask(core, "alias", rtype)
    assert (reply.rcode, names(reply)) == (Rcode.NOERROR, ["alias KEY"] if rtype == "KEY" else [])


@pytest.mark.rfc("6672", "3.2")
@pytest.mark.rfc("6672", "3.1")
@pytest.mark.parametrize(
    ("rtype", "answers"),
    [
        ("A", ["old DNAME", "host.old CNAME", "host.new A"]),
        ("CNAME", ["old DNAME", "host.old CNAME"]),
        ("ANY", ["old DNAME", "host.old CNAME"]),
    ],
)
def test_the_cname_that_a_dname_makes_is_followed_unless_it_is_what_was_asked(
    core: Core, rtype: str, answers: list[str]
) -> None:
    reply = ask(core, "host.old", rtype)
    assert (reply.rcode, names(reply)) == (Rcode.NOERROR, answers)


@pytest.mark.rfc("6672", "2.3")
def test_the_owner_of_a_dname_is_not_rewritten(core: Core) -> None:
    assert (ask(core, "old").rcode, names(ask(core, "old", "DNAME"))) == (Rcode.NOERROR, ["old DNAME"])


@pytest.mark.rfc("4592", "3.3.1")
@pytest.mark.rfc("1034", "4.3.3")
@pytest.mark.rfc("4592", "2.1.1")
@pytest.mark.rfc("4592", "2.1.2")
@pytest.mark.rfc("4592", "2.2.1")
@pytest.mark.rfc("4592", "2.3")
@pytest.mark.rfc("4592", "3.3.3")
@pytest.mark.rfc("4592", "4.3")
@pytest.mark.rfc("4592", "4.9")
@pytest.mark.parametrize(
    ("owner", "rtype", "rcode", "answers"),
    [
        ("x.wild", "A", 0, ["x.wild A"]),
        ("a.b.wild", "A", 0, ["a.b.wild A"]),
        ("x.wild", "TXT", 0, []),
        ("taken.wild", "A", 0, []),
        ("x.taken.wild", "A", 3, []),
        ("*.wild", "A", 0, ["*.wild A"]),
        ("x.*.wild", "A", 3, []),
        ("x.to", "A", 0, ["x.to CNAME", "host.new A"]),
        ("x.star", "TXT", 0, []),
        ("deep.*.star", "TXT", 0, ["deep.*.star TXT"]),
        ("x.cut", "A", 0, []),
    ],
)
def test_the_source_of_synthesis_is_the_wildcard_at_the_closest_encloser(
    core: Core, owner: str, rtype: str, rcode: int, answers: list[str]
) -> None:
    reply = ask(core, owner, rtype)
    assert (reply.rcode, names(reply)) == (rcode, answers)


@pytest.mark.rfc("4592", "2.2.1")
def test_a_wildcard_reaches_into_no_delegation() -> None:
    core = Core([zone_of_text("*.members.example. 60 A 192.0.2.1\ncut.members.example. 60 NS ns.example.net.")])
    reply = ask(core, "www.cut")
    assert (reply.rcode, reply.answers, names(reply, "authority")) == (Rcode.NOERROR, [], ["cut NS"])
    assert names(ask(core, "www.other")) == ["www.other A"]


@pytest.mark.rfc("4592", "4.5")
def test_a_wildcard_srv_is_data_as_any() -> None:
    core = Core(
        [zone_of_text("*.members.example. 60 SRV 0 0 1 mac.members.example.\nmac.members.example. 60 A 192.0.2.1")]
    )
    reply = ask(core, "_x._tcp", "SRV")
    assert (names(reply), names(reply, "additional")) == (["_x._tcp SRV"], ["mac A"])


@pytest.mark.rfc("2181", "10.2")
def test_several_pointers_at_a_name() -> None:
    core = Core([zone_of_text("\n".join(f"1.members.example. 60 PTR host{n}.members.example." for n in (1, 2)))])
    assert names(ask(core, "1", "PTR")) == ["1 PTR", "1 PTR"]


@pytest.mark.rfc("6672", "2.3")
def test_beside_a_delegation_a_dname_rewrites_nothing() -> None:
    """At the apex it does: there NS delegates nothing."""
    core = Core(
        [zone_of_text("cut.members.example. 60 NS ns.example.net.\ncut.members.example. 60 DNAME example.net.")]
    )
    reply = ask(core, "x.cut")
    assert (reply.answers, names(reply, "authority"), reply.flag(AA)) == ([], ["cut NS"], False)
    apex = Core([zone_of_text("members.example. 60 NS ns.example.net.\nmembers.example. 60 DNAME example.net.")])
    assert [kind for _, _, kind, _ in ask(apex, "x").answers] == ["DNAME", "CNAME"]


@pytest.mark.rfc("6672", "2.1")
@pytest.mark.rfc("6672", "2.5")
def test_a_dname_goes_out_whole_and_must_have_its_target(core: Core) -> None:
    reply = ask(core, "x.old")
    assert rdata("DNAME", "new.members.example.") in reply.wire
    apex = "members.example."
    empty = update_message([add(f"d.{apex}", 60, "DNAME", apex)._replace(rdata=b"")])
    assert core.ask(core.signed(empty, ADMIN)).rcode == Rcode.FORMERR


@pytest.mark.rfc("6672", "5.2")
@pytest.mark.parametrize(("owner", "rtype"), [("alias", "DNAME"), ("old", "CNAME")])
def test_dname_and_cname_are_not_added_beside_each_other(core: Core, owner: str, rtype: str) -> None:
    assert core.update(add(f"{owner}.members.example.", 60, rtype, "elsewhere.example.")).rcode == Rcode.NOERROR
    assert not core.store.commits


@pytest.mark.rfc("1034", "4.3.2")
@pytest.mark.rfc("2782", "-")
@pytest.mark.parametrize(
    ("owner", "rtype", "additional"),
    [
        ("srv", "SRV", ["any.wild A"]),
        ("x.wild", "MX", ["mac A", "mac AAAA"]),
        ("far", "SRV", []),
        ("none", "SRV", []),
        ("srv", "ANY", []),
    ],
)
def test_step_6_adds_the_addresses_of_hosts_that_the_answer_names(
    core: Core, owner: str, rtype: str, additional: list[str]
) -> None:
    assert names(ask(core, owner, rtype), "additional") == additional


@pytest.mark.rfc("2181", "5.4.1")
def test_glue_is_given_with_a_referral_and_not_beside_data_of_ours(core: Core) -> None:
    assert names(ask(core, "glue", "SRV"), "additional") == []
    assert names(ask(core, "www.cut"), "additional") == ["ns.cut A"]


@pytest.mark.rfc("9460", "4.1")
@pytest.mark.rfc("9460", "2.5.2")
@pytest.mark.parametrize(
    ("owner", "additional"),
    [
        ("web", ["mac A", "mac AAAA"]),
        ("own", ["own A"]),
        ("to-own", ["own A", "own HTTPS"]),
        ("x.bound", ["x.bound A"]),
    ],
)
def test_a_service_binding_comes_with_addresses_and_bindings_of_its_target(
    core: Core, owner: str, additional: list[str]
) -> None:
    assert names(ask(core, owner, "HTTPS"), "additional") == additional


@pytest.mark.rfc("3597", "2")
@pytest.mark.rfc("3597", "3")
def test_a_type_that_nobody_knows_is_data(core: Core) -> None:
    reply = ask(core, "odd", 65280)
    assert reply.answers == [("odd.members.example.", 60, "TYPE65280", b"\1\2\3")]
    assert (ask(core, "odd", 65281).rcode, names(ask(core, "odd", 65281))) == (Rcode.NOERROR, [])


@pytest.mark.rfc("3597", "3")
@pytest.mark.rfc("3597", "4")
@pytest.mark.rfc("1035", "2.3.3")
@pytest.mark.rfc("2782", "-")
@pytest.mark.rfc("4034", "3.1.7")
@pytest.mark.rfc("4034", "4.1.1")
@pytest.mark.parametrize(
    ("rtype", "text"),
    [
        ("SRV", "0 0 1 MaC.members.example."),
        ("MX", "0 MaC.members.example."),
        ("RP", "MaC.members.example. MaC.members.example."),
        ("NAPTR", '0 0 "u" "E2U" "" MaC.members.example.'),
        ("SVCB", "1 MaC.members.example. alpn=h2"),
        ("NSEC", "MaC.members.example. A"),
        ("RRSIG", "A 13 3 60 20300101000000 20200101000000 1 MaC.members.example. AAAA"),
    ],
)
def test_names_in_rdata_go_out_as_they_came_case_and_all(core: Core, rtype: str, text: str) -> None:
    """Nor are they compressed, though the question has most of their octets."""
    core.update(add("new.members.example.", 60, rtype, text))
    assert rdata(rtype, text) in ask(core, "new", rtype).wire


@pytest.mark.rfc("8914", "2")
@pytest.mark.rfc("8914", "4.21")
@pytest.mark.parametrize(
    ("wire", "rcode", "code", "words"),
    [
        (query_message("www.example.net.", edns=Opt()), 5, Ede.NOT_AUTHORITATIVE, "is in no zone served here"),
        (query_message("mac.members.example.", rclass=Class.CH, edns=Opt()), 5, Ede.NOT_SUPPORTED, "class IN"),
        (query_message("mac.members.example.", "MAILB", edns=Opt()), 4, Ede.NOT_SUPPORTED, "MAILB"),
        (query_message("one.members.example.", edns=Opt()), 2, Ede.INVALID_DATA, "aliases in a loop"),
        (query_message("mac.members.example.", flags=0x1000, edns=Opt()), 4, Ede.NOT_SUPPORTED, "opcode 2"),
    ],
)
def test_what_is_refused_says_why(core: Core, wire: bytes, rcode: int, code: int, words: str) -> None:
    reply = core.ask(wire)
    assert reply.rcode == rcode
    assert [number for number, _ in reply.errors] == [code] and words in reply.errors[0][1]


@pytest.mark.rfc("8914", "4.1")
@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (encode(1, 0, [Question(b"\0", Type.A, Class.IN)] * 2, opt=Opt()), "a query has one question"),
        (
            update_message([add("mac.members.example.", 60, "A", "192.0.2.1")._replace(rdata=b"x")]),
            "mac.members.example. A",
        ),
        (encode(1, 0x2800, [Question(b"\0", Type.A, Class.IN)], opt=Opt()), "zone section"),
    ],
)
def test_a_format_error_says_what_is_wrong(core: Core, wire: bytes, words: str) -> None:
    reply = core.ask(core.signed(wire, ADMIN))
    assert reply.rcode == Rcode.FORMERR
    assert [code for code, _ in reply.errors] == [Ede.OTHER] and words in reply.errors[0][1]


@pytest.mark.rfc("1035", "4.1.4")
def test_targets_of_ns_and_cname_are_written_compressed(core: Core) -> None:
    reply = ask(core, "alias")
    assert reply.wire.count(b"\x07members") == 1
    assert names(reply) == ["alias CNAME", "mac A"]
    referral = ask(core, "www.cut")
    assert referral.wire.count(b"\x03cut") == 1
    assert referral.authority[0][3] == b"\x02ns\x03cut\x07members\x07example\x00"


@pytest.mark.rfc("2181", "9")
@pytest.mark.rfc("2181", "5.1")
def test_tc_is_set_when_a_whole_rrset_does_not_fit_and_no_part_of_it_is_sent() -> None:
    lines = "\n".join(f"big.members.example. 60 TXT {n:03}{'x' * 90}" for n in range(20))
    core = Core([zone_of_text(lines)])
    reply = ask(core, "big", "TXT")
    assert reply.flag(TC) and reply.answers == []
    assert rdata("TXT", f"007{'x' * 90}") not in reply.wire
