"""Answers as RFC 1034 §4.3.2 and those that sharpened it ask for, by octets; dnspython reads them too."""

import dns.flags
import dns.message
import dns.rdatatype
import pytest

from protocol.constants import AA, RA, RD, TC, Rcode
from protocol.edns import Opt
from tests.support.builders import UDP, Core, Seen, query_message, rdata, soa_rdata, zone_of_text

TEXT = """
    members.example. 300 NS ns.members.example.
    ns.members.example. 300 A 192.0.2.53
    mac.members.example. 120 A 192.0.2.1
    below.empty.members.example. 120 A 192.0.2.2
    alias.members.example. 120 CNAME mac.members.example.
    gone.members.example. 120 CNAME absent.members.example.
    out.members.example. 120 CNAME www.example.net.
    *.wild.members.example. 120 TXT wild
    host.wild.members.example. 120 A 192.0.2.3
    cut.members.example. 300 NS ns.cut.members.example.
    ns.cut.members.example. 300 A 192.0.2.54
    old.members.example. 300 DNAME members.example.
    srv.members.example. 120 SRV 0 0 4500 mac.members.example.
"""
SOA = ("members.example.", 60, "SOA", soa_rdata())


@pytest.fixture(scope="module")
def core() -> Core:
    return Core([zone_of_text(TEXT, soa_ttl=300, minimum=60)])


def ask(core: Core, owner: str, rtype: str = "A", *, edns: Opt | None = None) -> Seen:
    """One query; dnspython must read the reply as we do."""
    reply = core.ask(query_message(owner, rtype, edns=edns), UDP)
    theirs = dns.message.from_wire(reply.wire)
    assert int(theirs.rcode()) == int(reply.rcode)
    assert bool(theirs.flags & dns.flags.AA) == reply.flag(AA)
    for section, ours in ((theirs.answer, reply.answers), (theirs.authority, reply.authority)):
        read = sorted(
            (rrset.name.to_text().lower(), rrset.ttl, dns.rdatatype.to_text(rrset.rdtype), rr.to_wire())
            for rrset in section
            for rr in rrset
        )
        assert read == sorted((owner.lower(), ttl, kind, data) for owner, ttl, kind, data in ours)
    return reply


@pytest.mark.rfc("1034", "4.3.2")
def test_step_3a_data_at_the_name(core: Core) -> None:
    reply = ask(core, "mac.members.example.")
    assert reply.answers == [("mac.members.example.", 120, "A", rdata("A", "192.0.2.1"))]
    assert reply.flag(AA) and not reply.flag(RA) and reply.flag(RD)


@pytest.mark.rfc("1034", "4.3.2")
@pytest.mark.rfc("9460", "2.3")
def test_step_3a_a_cname_is_followed_in_the_zone(core: Core) -> None:
    reply = ask(core, "alias.members.example.")
    assert [(owner, kind) for owner, _, kind, _ in reply.answers] == [
        ("alias.members.example.", "CNAME"),
        ("mac.members.example.", "A"),
    ]


@pytest.mark.rfc("1034", "4.3.2")
@pytest.mark.rfc("9471", "3.1")
def test_step_3b_a_delegation_is_referred_with_glue(core: Core) -> None:
    reply = ask(core, "www.cut.members.example.")
    assert (reply.rcode, reply.flag(AA), reply.answers) == (Rcode.NOERROR, False, [])
    assert [kind for _, _, kind, _ in reply.authority] == ["NS"]
    assert reply.additional == [("ns.cut.members.example.", 300, "A", rdata("A", "192.0.2.54"))]


@pytest.mark.rfc("1034", "4.3.2")
def test_step_3b_glue_is_no_authoritative_answer(core: Core) -> None:
    reply = ask(core, "ns.cut.members.example.")
    assert not reply.flag(AA) and not reply.answers


@pytest.mark.rfc("1034", "4.3.3")
def test_step_3c_a_wildcard_answers_in_the_name_asked_for(core: Core) -> None:
    assert ask(core, "Any.wild.members.example.", "TXT").answers[0][0] == "Any.wild.members.example."


@pytest.mark.rfc("4592", "2.2.1")
def test_a_wildcard_does_not_stand_in_for_a_name_that_exists(core: Core) -> None:
    assert ask(core, "host.wild.members.example.", "TXT").answers == []
    assert ask(core, "x.host.wild.members.example.", "TXT").rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("4592", "2.2.2")
@pytest.mark.rfc("8020", "2")
def test_an_empty_non_terminal_exists(core: Core) -> None:
    reply = ask(core, "empty.members.example.")
    assert (reply.rcode, reply.answers, reply.authority) == (Rcode.NOERROR, [], [SOA])


@pytest.mark.rfc("2308", "2.1")
@pytest.mark.rfc("2181", "7.1")
@pytest.mark.rfc("2308", "3")
@pytest.mark.rfc("1035", "4.1.1")
def test_nxdomain_has_the_soa(core: Core) -> None:
    reply = ask(core, "absent.members.example.")
    assert (reply.rcode, reply.answers, reply.authority) == (Rcode.NXDOMAIN, [], [SOA])
    assert reply.flag(AA)


@pytest.mark.rfc("2308", "2.1")
@pytest.mark.rfc("6604", "3")
def test_the_rcode_is_that_of_the_end_of_the_chain(core: Core) -> None:
    reply = ask(core, "gone.members.example.")
    assert reply.rcode == Rcode.NXDOMAIN
    assert [kind for _, _, kind, _ in reply.answers] == ["CNAME"]
    assert reply.authority == [SOA]


@pytest.mark.rfc("2308", "2.2")
@pytest.mark.rfc("2308", "3")
@pytest.mark.rfc("8764", "4")
def test_nodata_has_the_soa(core: Core) -> None:
    reply = ask(core, "mac.members.example.", "TXT")
    assert (reply.rcode, reply.answers, reply.authority) == (Rcode.NOERROR, [], [SOA])


@pytest.mark.rfc("2308", "3")
@pytest.mark.parametrize(("soa_ttl", "minimum", "ttl"), [(300, 60, 60), (20, 60, 20)])
def test_the_ttl_of_a_negative_answer_is_the_smaller_of_two(soa_ttl: int, minimum: int, ttl: int) -> None:
    core = Core([zone_of_text(TEXT, soa_ttl=soa_ttl, minimum=minimum)])
    assert ask(core, "absent.members.example.").authority[0][1] == ttl


@pytest.mark.rfc("6672", "3.1")
@pytest.mark.rfc("4035", "3")
def test_a_dname_comes_with_the_cname_it_makes(core: Core) -> None:
    reply = ask(core, "mac.old.members.example.")
    assert [(owner, ttl, kind) for owner, ttl, kind, _ in reply.answers] == [
        ("old.members.example.", 300, "DNAME"),
        ("mac.old.members.example.", 300, "CNAME"),
        ("mac.members.example.", 120, "A"),
    ]


@pytest.mark.rfc("4343", "4.1")
@pytest.mark.rfc("1035", "2.3.3")
def test_the_case_of_the_question_is_kept(core: Core) -> None:
    wire = core.ask(query_message("mAc.MeMbErS.eXaMpLe.")).wire
    assert wire.count(b"\x03mAc\x07MeMbErS\x07eXaMpLe\x00") == 1


@pytest.mark.rfc("2782", "-")
@pytest.mark.rfc("8764", "4")
@pytest.mark.rfc("6281", "3")
def test_the_addresses_of_an_srv_target_are_added(core: Core) -> None:
    reply = ask(core, "srv.members.example.", "SRV")
    assert reply.additional == [("mac.members.example.", 120, "A", rdata("A", "192.0.2.1"))]


@pytest.mark.rfc("8482", "4.1")
@pytest.mark.rfc("8482", "7")
@pytest.mark.rfc("1035", "3.2.3")
def test_any_is_one_rrset(core: Core) -> None:
    reply = ask(core, "mac.members.example.", "ANY")
    assert len(reply.answers) == 1 and not reply.flag(TC)


@pytest.mark.rfc("6891", "6.1.1")
@pytest.mark.parametrize("owner", ["mac", "absent", "out", "www.cut"])
def test_an_opt_is_answered_with_an_opt(core: Core, owner: str) -> None:
    assert ask(core, f"{owner}.members.example.", edns=Opt(4096)).message.opt is not None
    assert ask(core, f"{owner}.members.example.").message.opt is None


@pytest.mark.rfc("6891", "6.1.3")
def test_a_version_we_do_not_speak_is_badvers(core: Core) -> None:
    reply = core.ask(query_message("mac.members.example.", edns=Opt(1232, version=1)))
    assert (reply.rcode, reply.answers) == (Rcode.BADVERS, [])
    assert reply.message.opt is not None and reply.message.opt.version == 0


@pytest.mark.rfc("6891", "6.2.3")
@pytest.mark.rfc("6891", "6.2.5")
def test_a_payload_size_below_512_counts_as_512() -> None:
    core = Core([zone_of_text("\n".join(f"x.members.example. 1 A 192.0.2.{last}" for last in range(1, 27)))])
    reply = core.ask(query_message("x.members.example.", edns=Opt(100)))
    assert len(reply.answers) == 26 and 400 < len(reply.wire) <= 512
