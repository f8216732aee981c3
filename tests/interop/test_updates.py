"""nsupdate and knsupdate, which we did not write, change the lab's zones; dnspython sends what they cannot."""

import base64
import socket
import struct
import time
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
import pytest

from tests.support.foreign import LabProcess, call, status


def keyring(lab: LabProcess, who: str, secret: str | None = None) -> dict[Any, Any]:
    key = lab.facts["keys"][who]
    return dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], secret or key["secret"])})


def leased(lab: LabProcess, who: str, lease: bytes, *records: tuple[str, int, str, str]) -> dns.message.Message:
    """An update of records with an Update Lease option of these octets, sent over UDP; the reply."""
    zone = "bob.members.example" if who == "bob" else "members.example"
    update = dns.update.UpdateMessage(zone, keyring=keyring(lab, who))
    for record in records:
        update.add(*record)
    update.use_edns(0, options=[dns.edns.GenericOption(2, lease)])
    return dns.query.udp(update, lab.address, port=lab.port, timeout=5)


def granted(reply: dns.message.Message) -> bytes | None:
    return next((option.to_wire() for option in reply.options if option.otype == 2), None)


def reason(reply: dns.message.Message) -> str:
    return next((option.to_text() for option in reply.options if option.otype == 15), "")


@pytest.mark.rfc("2136", "3.4.2")
@pytest.mark.parametrize("options", [(), ("-v",)], ids=["udp", "tcp"])
def test_nsupdate_adds_and_deletes_with_and_without_a_zone(lab: LabProcess, options: tuple[str, ...]) -> None:
    name = f"box{len(options)}.alice.members.example"
    assert status(lab.nsupdate("admin", f"update add {name} 300 A 192.0.2.1", options=options)) == "NOERROR"
    assert lab.dig(name, "A", "+short").strip() == "192.0.2.1"
    lines = ("zone members.example", f"update delete {name} A")
    assert status(lab.nsupdate("admin", *lines, options=options)) == "NOERROR"
    assert status(lab.dig(name, "A")) == "NXDOMAIN"


@pytest.mark.rfc("2136", "3.2.4")
@pytest.mark.parametrize(
    ("prerequisite", "expected"),
    [
        ("prereq yxdomain ns.members.example", "NOERROR"),
        ("prereq yxdomain none.members.example", "NXDOMAIN"),
        ("prereq nxdomain ns.members.example", "YXDOMAIN"),
        ("prereq nxdomain none.members.example", "NOERROR"),
        ("prereq yxrrset ns.members.example A", "NOERROR"),
        ("prereq yxrrset ns.members.example MX", "NXRRSET"),
        ("prereq nxrrset ns.members.example A", "YXRRSET"),
        ("prereq nxrrset ns.members.example MX", "NOERROR"),
        ("prereq yxrrset ns.members.example A 127.0.0.1", "NOERROR"),
        ("prereq yxrrset ns.members.example A 127.0.0.2", "NXRRSET"),
        ("prereq yxdomain ns.example.org", "NOTZONE"),
    ],
)
@pytest.mark.parametrize("program", ["nsupdate", "knsupdate"])
def test_prerequisites(lab: LabProcess, program: str, prerequisite: str, expected: str) -> None:
    send = lab.nsupdate if program == "nsupdate" else lab.knsupdate
    text = send("admin", "zone members.example.", prerequisite, "update add pre.alice.members.example. 300 A 192.0.2.3")
    assert status(text) == expected, text


def test_a_key_file_as_member_add_prints_it_works(lab: LabProcess, tmp_path: Path) -> None:
    key = lab.facts["keys"]["admin"]
    file = tmp_path / "admin.key"
    file.write_text(f'key "{key["name"]}" {{\n\talgorithm {key["algorithm"]};\n\tsecret "{key["secret"]}";\n}};\n')
    script = f"server {lab.address} {lab.port}\nupdate add byfile.alice.members.example 60 A 192.0.2.4\nsend\n"
    assert call("nsupdate", "-k", str(file), stdin=script) == ""
    assert lab.dig("byfile.alice.members.example", "A", "+short").strip() == "192.0.2.4"


@pytest.mark.rfc("9664", "4.3")
@pytest.mark.parametrize(
    ("wish", "answer"),
    [
        (struct.pack("!I", 5400), struct.pack("!I", 5400)),
        (struct.pack("!I", 10), struct.pack("!I", 1800)),
        (struct.pack("!I", 0xFFFFFFFF), struct.pack("!I", 7200)),
        (struct.pack("!II", 5400, 6000), struct.pack("!II", 5400, 6000)),
    ],
)
def test_leases_are_granted_within_bounds_and_answered_in_kind(lab: LabProcess, wish: bytes, answer: bytes) -> None:
    reply = leased(lab, "alice", wish, ("leased.alice", 9000, "A", "192.0.2.5"))
    assert reply.rcode() == dns.rcode.NOERROR
    assert granted(reply) == answer
    ttl = int(lab.dig("leased.alice.members.example", "A", "+noall", "+answer").split()[1])
    assert struct.unpack("!I", answer[:4])[0] - 3 <= ttl <= struct.unpack("!I", answer[:4])[0] + 1


@pytest.mark.rfc("9664", "4")
def test_a_lease_of_another_length_is_formerr(lab: LabProcess) -> None:
    reply = leased(lab, "alice", b"\0\0\0\0\x10", ("bad.alice", 60, "A", "192.0.2.5"))
    assert reply.rcode() == dns.rcode.FORMERR
    assert granted(reply) is None


def test_dnsperf_sends_leased_updates(lab: LabProcess, tmp_path: Path) -> None:
    data = tmp_path / "updates"
    data.write_text("members.example.\nadd perf.alice 300 A 192.0.2.66\nsend\n")
    text = call(
        "dnsperf", "-s", lab.address, "-p", str(lab.port), "-u", "-y", lab.key("alice"), "-E", "2:00001518",
        "-d", str(data), "-n", "3",
    )  # fmt: skip
    assert "NOERROR 3" in text, text
    assert lab.dig("perf.alice.members.example", "A", "+short").strip() == "192.0.2.66"


def test_a_members_add_without_a_lease_is_refused_and_says_so(lab: LabProcess) -> None:
    text = lab.nsupdate("alice", "zone members.example", "update add host.alice.members.example 300 A 192.0.2.1")
    assert status(text) == "REFUSED" and "TSIG" in text
    update = dns.update.UpdateMessage("members.example", keyring=keyring(lab, "alice"))
    update.add("host.alice", 300, "A", "192.0.2.1")
    update.use_edns(0)
    reply = dns.query.udp(update, lab.address, port=lab.port, timeout=5)
    assert reply.rcode() == dns.rcode.REFUSED and reply.had_tsig
    assert "must send an update lease" in reason(reply)
    assert status(lab.dig("host.alice.members.example", "A")) == "NXDOMAIN"


def test_bobs_key_at_alices_name_is_refused_and_says_why(lab: LabProcess) -> None:
    update = dns.update.UpdateMessage("members.example", keyring=keyring(lab, "bob"))
    update.add("host.alice", 300, "A", "192.0.2.1")
    update.use_edns(0, options=[dns.edns.GenericOption(2, struct.pack("!I", 5400))])
    reply = dns.query.udp(update, lab.address, port=lab.port, timeout=5)
    assert reply.rcode() == dns.rcode.REFUSED and reply.had_tsig
    assert "may touch bob.members.example. and below, not host.alice.members.example." in reason(reply)


def test_a_private_members_name_sent_to_the_parent_zone_is_notzone(lab: LabProcess) -> None:
    lines = ("zone members.example", "update add x.bob.members.example 300 A 192.0.2.1")
    assert status(lab.nsupdate("admin", *lines)) == "NOTZONE"


@pytest.mark.rfc("8945", "5.2.2")
def test_a_wrong_secret_is_badsig_and_the_reply_unsigned(lab: LabProcess) -> None:
    wrong = base64.b64encode(b"x" * 32).decode()
    update = dns.update.UpdateMessage("members.example", keyring=keyring(lab, "alice", wrong))
    update.add("host.alice", 300, "A", "192.0.2.1")
    with pytest.raises(dns.tsig.PeerBadSignature):
        dns.query.udp(update, lab.address, port=lab.port, timeout=5)
    key = lab.facts["keys"]["alice"]
    text = call("dig", f"@{lab.address}", "-p", str(lab.port), "members.example", "SOA", "-y",
                f"{key['algorithm']}:{key['name']}:{wrong}")  # fmt: skip
    assert status(text) == "NOTAUTH"
    assert " 300 0 " in text and "BADSIG" in text, text


@pytest.mark.rfc("8945", "5.2.1")
def test_an_unknown_key_is_badkey(lab: LabProcess) -> None:
    secret = base64.b64encode(b"x" * 32).decode()
    text = lab.dig("members.example", "SOA", "-y", f"hmac-sha256:nobody.members.example:{secret}")
    assert status(text) == "NOTAUTH" and "BADKEY" in text


@pytest.mark.rfc("8945", "5.2.3")
def test_a_clock_far_off_is_badtime_and_the_reply_signed(lab: LabProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    query = dns.message.make_query("members.example", "SOA")
    query.use_tsig(keyring(lab, "alice"))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 4000)
    wire = query.to_wire()
    monkeypatch.undo()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(wire, (lab.address, lab.port))
        reply = sock.recv(65535)
    assert reply[3] & 0xF == dns.rcode.NOTAUTH
    other = reply[-6:]
    assert abs(int.from_bytes(other, "big") - real()) < 10
    error, length = struct.unpack("!HH", reply[-10:-6])
    assert (error, length) == (18, 6)
    assert reply[-12 - 32 - 2 - 10 :].find(b"\x00\x20") >= 0  # MAC of 32 octets: signed


def test_knsupdate_as_a_member_over_tcp(lab: LabProcess) -> None:
    text = lab.knsupdate("admin", "zone members.example.", "update add kn.alice.members.example. 300 A 192.0.2.6",
                         options=["-v"])  # fmt: skip
    assert status(text) == "NOERROR", text
    text = lab.knsupdate("alice", "zone members.example.", "update delete kn.alice.members.example. A")
    assert status(text) == "NOERROR", text
    assert status(lab.dig("kn.alice.members.example", "A")) == "NXDOMAIN"


@pytest.mark.rfc("2136", "7.8")
def test_a_repeated_datagram_is_answered_the_same_and_changes_nothing(lab: LabProcess) -> None:
    """A reply may get lost; the prerequisite that held the first time must not fail the client the second time."""
    update = dns.update.UpdateMessage("members.example", keyring=keyring(lab, "admin"))
    update.absent("once.alice")
    update.add("once.alice", 300, "A", "192.0.2.1")
    wire = update.to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(wire, (lab.address, lab.port))
        first = sock.recv(65535)
        serial = lab.dig("members.example", "SOA", "+short")
        sock.sendto(wire, (lab.address, lab.port))
        assert sock.recv(65535) == first
    assert first[3] & 0xF == dns.rcode.NOERROR
    assert lab.dig("members.example", "SOA", "+short") == serial
