"""dig and kdig, which we did not write, ask the lab's server."""

import re

import pytest

from tests.support.foreign import LabProcess, call, status

FAMILIES = [
    f"_dns-{service}{tail}"
    for service in ("update", "llq", "query")
    for tail in ("._udp", "._tcp", "-tls._tcp", "-tls._udp")
]


@pytest.mark.rfc("6281", "5")
@pytest.mark.rfc("6281", "5.2")
@pytest.mark.parametrize("domain", ["members.example", "alice.members.example", "bob.members.example"])
def test_discovery_is_readable_without_a_key_everywhere(lab: LabProcess, domain: str) -> None:
    for family in FAMILIES:
        text = lab.dig(f"{family}.{domain}", "SRV")
        port = lab.tls_port if "-tls" in family else lab.port
        assert status(text) == "NOERROR", family
        assert f"SRV\t0 0 {port} ns.members.example." in re.sub(r"SRV\s+", "SRV\t", text), text
    push = "0 0 0 ." if domain.startswith("bob.") else f"0 0 {lab.tls_port} ns.members.example."
    assert push in lab.dig(f"_dns-push-tls._tcp.{domain}", "SRV", "+short")


@pytest.mark.rfc("2308", "3")
def test_negative_answers_carry_the_soa(lab: LabProcess) -> None:
    absent = lab.dig("nobody.alice.members.example", "A")
    assert status(absent) == "NXDOMAIN"
    assert re.search(r"members\.example\.\s+60\s+IN\s+SOA", absent)
    empty = lab.dig("_udp.alice.members.example", "A")
    assert status(empty) == "NOERROR"
    assert "ANSWER: 0, AUTHORITY: 1" in empty


def test_names_outside_are_refused_with_a_reason(lab: LabProcess) -> None:
    text = lab.dig("www.example.org", "A")
    assert status(text) == "REFUSED"
    assert "EDE: 20 (Not Authoritative)" in text
    assert status(lab.dig("version.bind", "TXT", "CH")) == "REFUSED"


@pytest.mark.rfc("4343", "4")
def test_case_is_echoed(lab: LabProcess) -> None:
    assert "NS.mEmBeRs.ExAmPlE." in lab.dig("NS.mEmBeRs.ExAmPlE", "A")


@pytest.mark.rfc("6891", "6.1.3")
def test_unknown_edns_version_is_badvers(lab: LabProcess) -> None:
    assert status(lab.dig("members.example", "SOA", "+edns=1", "+noednsneg")) == "BADVERS"


@pytest.mark.rfc("6281", "7.2")
def test_a_private_member_shows_nothing_without_a_key(lab: LabProcess) -> None:
    lab.nsupdate("admin", "zone bob.members.example", "update add here.bob.members.example 300 A 192.0.2.9")
    refusals = [
        lab.dig(f"{name}.bob.members.example", "A", "+noedns", "+noall", "+comments") for name in ("here", "gone")
    ]
    assert [status(text) for text in refusals] == ["REFUSED", "REFUSED"]
    plain = [re.sub(r"id: \d+|\S+\.bob\.members\.example", "", text) for text in refusals]
    assert plain[0] == plain[1]
    assert status(lab.dig("here.bob.members.example", "A", "-y", lab.key("alice"))) == "REFUSED"
    assert "192.0.2.9" in lab.dig("here.bob.members.example", "A", "-y", lab.key("bob"))
    assert status(lab.dig("bob.members.example", "SOA")) == "NOERROR"
    assert "ns.members.example." in lab.dig("bob.members.example", "NS", "+short")


@pytest.mark.rfc("7858", "3.1")
@pytest.mark.rfc("6281", "7.2")
def test_kdig_over_tls_with_the_authority_pinned(lab: LabProcess) -> None:
    lab.nsupdate("admin", "zone bob.members.example", "update add tls.bob.members.example 300 A 192.0.2.8")
    tls = (
        f"@{lab.address}", "-p", str(lab.tls_port), "+tls-ca=" + lab.facts["ca_file"],
        "+tls-hostname=ns.members.example",
    )  # fmt: skip
    text = call("kdig", *tls, "-y", lab.key("bob"), "tls.bob.members.example", "A")
    assert "192.0.2.8" in text and "TLS session (TLS1." in text
    assert "status: REFUSED" in call("kdig", *tls, "tls.bob.members.example", "A")


def test_a_large_answer_comes_truncated_then_whole_over_tcp(lab: LabProcess) -> None:
    adds = [f"update add big.alice.members.example 300 TXT {n:03d}{'x' * 90}" for n in range(30)]
    lab.nsupdate("admin", "zone members.example", *adds, options=["-v"])
    short = lab.dig("big.alice.members.example", "TXT", "+ignore")
    assert re.search(r"flags: qr aa tc", short)
    assert "ANSWER: 30" in lab.dig("big.alice.members.example", "TXT")
    assert "ANSWER: 30" in lab.dig("+tcp", "big.alice.members.example", "TXT").replace("ANSWER:30", "ANSWER: 30")


def test_unknown_types_wildcards_and_any(lab: LabProcess) -> None:
    lab.nsupdate(
        "admin",
        "zone members.example",
        "update add odd.alice.members.example 300 TYPE65280 \\# 3 010203",
        "update add *.wild.alice.members.example 300 A 192.0.2.77",
    )
    assert "\\# 3 010203" in lab.dig("odd.alice.members.example", "TYPE65280", "+short")
    assert lab.dig("any.thing.wild.alice.members.example", "A", "+short").strip() == "192.0.2.77"
    assert "ANSWER: 1" in lab.dig("odd.alice.members.example", "ANY", "+notcp")


def test_dig_prints_the_llq_challenge(lab: LabProcess) -> None:
    text = lab.dig("ns.members.example", "A", "+ednsopt=1:000100010000000000000000000000001C20")
    found = re.search(r"LLQ: Version: 1, Opcode: 1, Error: 0, Identifier: (\d+), Lifetime: 7200", text)
    assert found and int(found.group(1)) != 0, text
    assert "ANSWER: 0" in text
