"""A member turns private beside a running server, over every way there is to ask."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update
import dns.xfr
import dns.zone
import pytest

from homing.certificates import ensure_certificates
from tests.support.processes import Running, homing_here, start_server

ZONE = "members.example."
ALICE = f"alice.{ZONE}"
NOTICED_SECONDS = 10.0


@dataclass
class House:
    """A server with an open member alice, her key and an administrator's."""

    server: Running
    ca_file: Path
    keys: dict[str, dns.tsig.Key] = field(default_factory=dict)

    def run(self, *arguments: str) -> Any:
        done = homing_here(*arguments, "--json", "--config", self.server.config)
        assert done.code == 0, done.err
        return done.json

    def make(self, nickname: str, *arguments: str) -> None:
        made = self.run(*arguments)
        self.keys[nickname] = dns.tsig.Key(dns.name.from_text(made["name"]), made["secret"], made["algorithm"])

    def ask(self, message: dns.message.Message, who: str | None = None, way: str = "udp") -> dns.message.Message:
        if who is not None:
            message.use_tsig(self.keys[who])
        port, timeout = self.server.port, 10.0
        if way == "udp":
            return dns.query.udp(message, "127.0.0.1", port=port, timeout=timeout)
        if way == "tcp":
            return dns.query.tcp(message, "127.0.0.1", port=port, timeout=timeout)
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with dns.query.make_ssl_socket(socket.AF_INET, socket.SOCK_STREAM, context, "127.0.0.1") as stream:
            stream.settimeout(timeout)
            stream.connect(("127.0.0.1", self.server.tls_port))
            stream.do_handshake()
            return dns.query.tcp(message, "127.0.0.1", timeout=timeout, sock=stream)

    def query(self, owner: str, rtype: str = "A", who: str | None = None, way: str = "udp") -> dns.message.Message:
        return self.ask(dns.message.make_query(owner, rtype, use_edns=0), who, way)

    def add(self, zone: str, owner: str, data: str, who: str = "alice") -> dns.message.Message:
        update = dns.update.UpdateMessage(zone)
        update.add(owner, 60, "A", data)
        update.use_edns(0, options=[dns.edns.GenericOption(2, (3600).to_bytes(4, "big"))])
        return self.ask(update, who, "tcp")

    def turn(self, state: str) -> None:
        """Make alice private or open, and wait until the server serves it so."""
        self.run("member", "private", "alice", state, "--yes")
        wanted = dns.rcode.REFUSED if state == "on" else dns.rcode.NXDOMAIN
        assert eventually(lambda: self.query(f"absent.{ALICE}").rcode() == wanted)

    def transfer(self, zone: str, who: str) -> dns.zone.Zone:
        found = dns.zone.Zone(zone)
        query, _ = dns.xfr.make_query(found, keyring=self.keys[who])
        dns.query.inbound_xfr("127.0.0.1", found, query, port=self.server.port, timeout=10, lifetime=20)
        return found


def eventually(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + NOTICED_SECONDS
    while time.monotonic() < deadline:
        try:
            if check():
                return True
        except dns.tsig.PeerError:
            pass
        time.sleep(0.05)
    return False


def sentence(reply: dns.message.Message) -> str:
    texts = [option.text for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    return texts[0] or "" if texts else ""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    files = ensure_certificates(tmp_path / "tls", [f"ns.{ZONE}"], ["127.0.0.1"])
    dns_table = {
        "listen": ["127.0.0.1:0"],
        "listen_tls": ["127.0.0.1:0"],
        "certificate_file": str(files.certificate_file),
        "key_file": str(files.key_file),
        "rate_limit": 0,
    }
    with start_server(tmp_path, dns=dns_table) as server:
        made = House(server, files.ca_file)
        made.make("alice", "member", "add", "alice")
        made.make("bob", "member", "add", "bob")
        made.make("admin", "key", "add", "--admin", "ops")
        assert eventually(lambda: made.add(ZONE, f"mac.{ALICE}", "192.0.2.1").rcode() == dns.rcode.NOERROR)
        assert made.add(ZONE, f"nas.{ALICE}", "192.0.2.2").rcode() == dns.rcode.NOERROR
        yield made


@pytest.mark.rfc("6281", "7.2")
def test_nobody_else_can_tell_which_names_there_are(house: House) -> None:
    house.turn("on")
    uniform = f"{ALICE} is private: sign with one of its keys"
    for way in ("udp", "tcp", "tls"):
        for who in (None, "bob"):
            replies = [
                house.query(owner, rtype, who, way)
                for owner in (f"mac.{ALICE}", f"absent.{ALICE}", f"x.y.mac.{ALICE}", ALICE)
                for rtype in ("A", "ANY", "TXT", "NSEC")
            ]
            assert {(reply.rcode(), sentence(reply)) for reply in replies} == {(dns.rcode.REFUSED, uniform)}
            assert not any(section for reply in replies for section in reply.sections[1:])
        assert house.query(f"mac.{ALICE}", "A", "alice", way).answer[0][0].address == "192.0.2.1"
        assert house.query(f"absent.{ALICE}", "A", "alice", way).rcode() == dns.rcode.NXDOMAIN
        assert house.query(ALICE, "SOA", None, way).answer
        assert house.query(f"_dns-update._udp.{ALICE}", "SRV", None, way).answer
    for owner in (f"mac.{ALICE}", f"absent.{ALICE}"):
        reply = house.add(ALICE, owner, "192.0.2.9", "bob")
        assert (reply.rcode(), sentence(reply)) == (
            dns.rcode.REFUSED,
            f"key bob.{ZONE} has no say in zone {ALICE}",
        )
        for signer in ("alice", "admin"):
            reply = house.add(ZONE, owner, "192.0.2.9", signer)
            assert (reply.rcode(), sentence(reply)) == (
                dns.rcode.NOTZONE,
                f"{owner} is in zone {ALICE}, send it there",
            )


@pytest.mark.rfc("1995", "4")
def test_transfers_show_a_delegation_and_the_zone_goes_to_its_own_keys(house: House) -> None:
    before = house.transfer(ZONE, "admin")
    held = dns.zone.Zone(ZONE)
    query, _ = dns.xfr.make_query(held, keyring=house.keys["admin"])
    dns.query.inbound_xfr("127.0.0.1", held, query, port=house.server.port, timeout=10, lifetime=20)
    house.turn("on")
    query, serial = dns.xfr.make_query(held, keyring=house.keys["admin"])
    assert serial is not None
    dns.query.inbound_xfr("127.0.0.1", held, query, port=house.server.port, timeout=10, lifetime=20)
    for seen in (house.transfer(ZONE, "admin"), held):
        names = {str(name) for name in seen if str(name).endswith("alice")}
        assert names == {"alice"}
        assert [rdataset.rdtype for rdataset in seen["alice"]] == [dns.rdatatype.NS]
    assert {str(name) for name in before if str(name).endswith("alice")} > {"mac.alice", "nas.alice"}

    for who in (None, "bob"):
        for rtype in ("AXFR", "IXFR"):
            query = dns.message.make_query(ALICE, rtype, use_edns=0)
            if rtype == "IXFR":
                soa = f"ns.{ZONE} hostmaster.{ALICE} 1 3600 600 1209600 60"
                query.authority.append(dns.rrset.from_text(ALICE, 0, "IN", "SOA", soa))
            reply = house.ask(query, who, "tcp")
            assert (reply.rcode(), reply.answer) == (dns.rcode.REFUSED, [])
    own = house.transfer(ALICE, "alice")
    assert {"mac", "nas"} <= {str(name) for name in own}


def test_leases_and_keys_stay_as_they_are(house: House) -> None:
    records = {row["owner"]: row["expires_at"] for row in house.run("member", "show", "alice")["records"]}
    house.turn("on")
    assert house.run("member", "show", "alice")["private"] is True
    assert {row["owner"]: row["expires_at"] for row in house.run("member", "show", "alice")["records"]} == records
    assert house.add(ALICE, f"new.{ALICE}", "192.0.2.3").rcode() == dns.rcode.NOERROR
    house.turn("off")
    assert house.query(f"new.{ALICE}").answer[0][0].address == "192.0.2.3"
    assert house.add(ZONE, f"mac.{ALICE}", "192.0.2.1").rcode() == dns.rcode.NOERROR
    assert house.add(ALICE, f"mac.{ALICE}", "192.0.2.1").rcode() == dns.rcode.NOTAUTH


def test_who_asks_meanwhile_sees_the_one_form_or_the_other(house: House) -> None:
    """Signed, the record is always there, the answer always authoritative: never a referral, never NXDOMAIN."""
    stop = threading.Event()
    seen: list[tuple[int, bool, int]] = []
    asked = [0]

    def ask() -> None:
        query = dns.message.make_query(f"mac.{ALICE}", "A")
        query.use_tsig(house.keys["alice"])
        while not stop.is_set():
            reply = dns.query.udp(query, "127.0.0.1", port=house.server.port, timeout=10)
            outcome = (reply.rcode(), bool(reply.flags & dns.flags.AA), len(reply.answer))
            asked[0] += 1
            if outcome not in seen:
                seen.append(outcome)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for state in ("on", "off", "on", "off"):
            house.turn(state)
    finally:
        stop.set()
        thread.join()
    assert asked[0] > 20
    assert seen == [(dns.rcode.NOERROR, True, 1)]


def llq(owner: str, opcode: int, llq_id: int) -> dns.message.Message:
    query = dns.message.make_query(owner, "A", use_edns=0)
    option = struct.pack("!HHHQI", 1, opcode, 0, llq_id, 7200)
    query.use_edns(0, options=[dns.edns.GenericOption(1, option)])
    return query


def llq_id(reply: dns.message.Message) -> int:
    data = next(option.to_wire() for option in reply.options if option.otype == 1)
    return int(struct.unpack("!HHHQI", data)[3])


def send(stream: socket.socket, message: dns.message.Message) -> None:
    wire = message.to_wire()
    stream.sendall(struct.pack("!H", len(wire)) + wire)


def read(stream: socket.socket, seconds: float) -> dns.message.Message | None:
    stream.settimeout(seconds)
    try:
        size = struct.unpack("!H", stream.recv(2, socket.MSG_WAITALL))[0]
        return dns.message.from_wire(stream.recv(size, socket.MSG_WAITALL))
    except TimeoutError:
        return None


@pytest.mark.rfc("6281", "7.2")
def test_a_stranger_who_watched_hears_no_more(house: House) -> None:
    """The control: of the member that stays open an event comes."""
    for signer, owner in (("bob", f"mac.bob.{ZONE}"), ("alice", f"mac.{ALICE}")):
        house.add(ZONE, owner, "192.0.2.1", signer)
    streams = {}
    for owner in (f"mac.bob.{ZONE}", f"mac.{ALICE}"):
        stream = streams[owner] = socket.create_connection(("127.0.0.1", house.server.port), 10)
        send(stream, llq(owner, 1, 0))
        first = read(stream, 10)
        assert first is not None
        if not first.answer:  # a challenge
            send(stream, llq(owner, 1, llq_id(first)))
            first = read(stream, 10)
        assert first is not None and first.answer, "it watches"
    house.turn("on")
    assert house.add(ALICE, f"mac.{ALICE}", "192.0.2.77").rcode() == dns.rcode.NOERROR
    assert house.add(ZONE, f"mac.bob.{ZONE}", "192.0.2.77", "bob").rcode() == dns.rcode.NOERROR
    event = read(streams[f"mac.bob.{ZONE}"], 10)
    assert event is not None and event.answer
    assert read(streams[f"mac.{ALICE}"], 2.0) is None, "an event would have come by now"
    for stream in streams.values():
        stream.close()


def test_keys_rotate_and_expire_beside_a_running_server(house: House, tmp_path: Path) -> None:
    house.make("phone", "key", "add", "alice", "--device", "phone", "--expires", "90d")

    def holds(nickname: str) -> bool:
        try:
            return house.query(f"mac.{ALICE}", "A", nickname, "tcp").rcode() == dns.rcode.NOERROR
        except dns.tsig.PeerBadKey:
            return False

    assert eventually(lambda: holds("phone"))
    house.make("phone-2", "key", "rotate", "phone.alice", "--overlap", "1h")
    assert eventually(lambda: holds("phone-2"))
    assert holds("phone"), "for an hour"
    house.run("key", "expire", "phone.alice", "1s")
    assert eventually(lambda: not holds("phone"))
    assert holds("phone-2")
    rows = {row["name"]: row for row in house.run("key", "list", "alice")}
    assert rows[f"phone.{ALICE}"]["valid"] is False
    assert rows[f"phone-2.{ALICE}"]["valid"] is True

    for form in ("bind", "knot"):
        done = homing_here("key", "export", "phone-2.alice", "--format", form, "--config", house.server.config)
        file = tmp_path / f"phone.{form}"
        file.write_text(done.out)
        taken = homing_here("key", "import", file, "--member", "alice", "--config", house.server.config)
        assert taken.err == f"homing: there is a key phone-2.{ALICE} already: revoke it first, or take another name\n"
        house.run("key", "revoke", "phone-2.alice")
        assert eventually(lambda: not holds("phone-2"))
        assert house.run("key", "import", str(file), "--member", "alice")["imported"] == [f"phone-2.{ALICE}"]
        assert eventually(lambda: holds("phone-2"))
