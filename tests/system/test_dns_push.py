"""DNS Push on a running server: a TLS client of a few lines hears of updates that dnspython sends."""

import base64
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.update
import pytest

from protocol.constants import Class, Rcode, Type
from protocol.dso import (
    PUSH_REMOVE_SET,
    DsoMessage,
    DsoType,
    PushedRecord,
    decode_dso,
    decode_push,
    encode_dso,
    keepalive,
    subscribe,
)
from protocol.message import Question
from protocol.name import from_text
from tests.support.processes import Running, homing, server_config, start, tls_tables

SECONDS = 10.0
MAC = from_text("mac.alice.members.example.")


@dataclass
class Target:
    running: Running
    ca_file: Path
    key: dns.tsig.Key

    def update(self, *deletes: str, **adds: str) -> None:
        """`name_TYPE=rdata` adds at name.alice; `name` deletes everything there."""
        update = dns.update.UpdateMessage("members.example.", keyring=self.key)
        for name in deletes:
            update.delete(f"{name}.alice.members.example.")
        for place, rdata in adds.items():
            name, rtype = place.split("_")
            update.add(f"{name}.alice.members.example.", 120, rtype, rdata)
        update.use_edns(0, options=[dns.edns.GenericOption(2, (1800).to_bytes(4, "big"))])
        reply = dns.query.tcp(update, "127.0.0.1", port=self.running.port, timeout=SECONDS)
        assert reply.rcode() == dns.rcode.NOERROR


class Client:
    """One stream; messages framed by their length."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def send(self, wire: bytes) -> None:
        self.sock.sendall(len(wire).to_bytes(2, "big") + wire)

    def read(self) -> bytes:
        """The next message; b"" when the server has ended the connection."""
        while len(self._buffer) < 2 or len(self._buffer) < 2 + int.from_bytes(self._buffer[:2], "big"):
            try:
                data = self.sock.recv(65536)
            except (ConnectionResetError, ssl.SSLEOFError):
                return b""
            if not data:
                return b""
            self._buffer += data
        size = 2 + int.from_bytes(self._buffer[:2], "big")
        wire, self._buffer = self._buffer[2:size], self._buffer[size:]
        return wire

    def message(self) -> DsoMessage:
        return decode_dso(self.read())

    def pushed(self) -> list[PushedRecord]:
        return decode_push(self.message())

    def subscribe(self, message_id: int, name: bytes, rtype: int) -> DsoMessage:
        self.send(encode_dso(message_id, [subscribe(Question(name, rtype, Class.IN))]))
        return self.message()


@contextmanager
def over_tls(target: Target) -> Iterator[Client]:
    context = ssl.create_default_context(cafile=str(target.ca_file))
    context.set_alpn_protocols(["dot"])
    with (
        socket.create_connection(("127.0.0.1", target.running.tls_port), SECONDS) as sock,
        context.wrap_socket(sock, server_hostname="ns.members.example") as wrapped,
    ):
        yield Client(wrapped)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("push")
    ca_file, tls = tls_tables(directory)
    config = server_config(
        directory,
        dns={
            **tls,
        },
        metrics={"listen": "127.0.0.1:0"},
    )
    found = json.loads(homing("member", "add", "alice", "--json", "--config", config).out)
    found = found.get("key", found)
    assert homing("member", "add", "bob", "--private", "--config", config).code == 0
    key = dns.tsig.Key(found["name"], base64.b64decode(found["secret"]), found["algorithm"])
    with start("serve", config) as running:
        yield Target(running, ca_file, key)


@pytest.mark.rfc("8765", "6.1")
@pytest.mark.rfc("8764", "1.1")
@pytest.mark.rfc("8764", "A")
def test_the_service_is_announced_for_the_zone_and_open_members(target: Target) -> None:
    def push_service(domain: str) -> str:
        query = dns.message.make_query(f"_dns-push-tls._tcp.{domain}", "SRV")
        reply = dns.query.udp(query, "127.0.0.1", port=target.running.port, timeout=SECONDS)
        return str(reply.answer[0][0])

    wanted = f"0 0 {target.running.tls_port} ns.members.example."
    assert push_service("members.example.") == push_service("alice.members.example.") == wanted
    assert push_service("bob.members.example.") == "0 0 0 ."


@pytest.mark.rfc("8765", "6.3")
@pytest.mark.rfc("8765", "3")
@pytest.mark.rfc("8765", "6.3.1")
def test_changes_are_pushed_as_they_are_committed(target: Target) -> None:
    with over_tls(target) as client, over_tls(target) as other:
        assert client.subscribe(1, MAC, Type.A).rcode == Rcode.NOERROR
        assert client.subscribe(2, MAC, Type.SRV).rcode == Rcode.NOERROR
        assert other.subscribe(1, MAC, Type.ANY).rcode == Rcode.NOERROR
        target.update(mac_A="203.0.113.7", mac_AAAA="fd00::1")
        assert [(r.rtype, r.ttl) for r in client.pushed()] == [(Type.A, 120)]
        assert {r.rtype for r in other.pushed()} == {Type.A, Type.AAAA}
        target.update("mac", mac_A="203.0.113.8")
        assert [(r.rtype, r.ttl) for r in client.pushed()] == [(Type.A, PUSH_REMOVE_SET), (Type.A, 120)]
        other.pushed()
        # ordinary queries go on beside the session
        client.send(dns.message.make_query("mac.alice.members.example.", "A").to_wire())
        assert dns.message.from_wire(client.read()).answer[0][0].address == "203.0.113.8"
        target.update("mac")
        assert [(r.rtype, r.ttl) for r in client.pushed()] == [(Type.A, PUSH_REMOVE_SET)]


@pytest.mark.rfc("8765", "7")
def test_private_names_and_names_of_others_are_refused_alike(target: Target) -> None:
    with over_tls(target) as client:
        for number, name in enumerate(("bob.members.example.", "x.y.bob.members.example."), start=1):
            reply = client.subscribe(number, from_text(name), Type.A)
            assert (reply.rcode, reply.tlvs[0].type) == (Rcode.REFUSED, DsoType.RETRY_DELAY)
        assert client.subscribe(9, from_text("elsewhere.example."), Type.A).rcode == Rcode.NOTAUTH


@pytest.mark.rfc("8765", "4")
@pytest.mark.rfc("8490", "11")
@pytest.mark.rfc("8765", "5")
def test_without_tls_there_are_no_stateful_operations(target: Target) -> None:
    with socket.create_connection(("127.0.0.1", target.running.port), SECONDS) as sock:
        client = Client(sock)
        client.send(encode_dso(3, [keepalive(1, 2)]))
        assert client.read()[:4] == bytes.fromhex("0003 b004")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(SECONDS)
        udp.sendto(encode_dso(3, [keepalive(1, 2)]), ("127.0.0.1", target.running.port))
        assert udp.recv(512)[:4] == bytes.fromhex("0003 b004")


@pytest.mark.rfc("8490", "5.4")
@pytest.mark.rfc("8490", "7.1.2")
@pytest.mark.rfc("8490", "5.3.1")
@pytest.mark.rfc("8490", "5.4.6")
@pytest.mark.rfc("8490", "5.3")
def test_what_is_fatal_resets_the_connection_and_no_other(target: Target) -> None:
    query = dns.message.make_query("mac.alice.members.example.", "A", use_edns=0)
    query.use_edns(0, options=[dns.edns.GenericOption(11, b"")])
    with over_tls(target) as bystander:
        bystander.subscribe(1, MAC, Type.AAAA)
        for fatal in (encode_dso(0, [(DsoType.PUSH, b"")]), query.to_wire()):
            with over_tls(target) as client:
                client.send(encode_dso(1, [keepalive(1, 2)]))
                client.message()
                client.send(fatal)
                with pytest.raises(ConnectionResetError):
                    socket.socket.recv(client.sock, 1)  # below TLS, which takes a reset for an end
        target.update(mac_AAAA="fd00::7")
        assert bystander.pushed()[0].rtype == Type.AAAA
        target.update("mac")


@pytest.mark.rfc("8490", "6.6.1")
def test_a_server_that_stops_says_when_to_come_back(tmp_path: Path) -> None:
    ca_file, tls = tls_tables(tmp_path)
    config = server_config(
        tmp_path,
        dns={
            **tls,
        },
    )
    with start("serve", config) as running:
        target = Target(running, ca_file, dns.tsig.Key("x.", b"x"))
        with over_tls(target) as client:
            client.subscribe(1, MAC, Type.A)
            assert running.stop() == 0
            message = client.message()
            assert (message.id, message.tlvs[0].type) == (0, DsoType.RETRY_DELAY)
            assert client.read() == b""


def test_what_is_open_shows_in_the_metrics(target: Target) -> None:
    with over_tls(target) as client:
        client.subscribe(1, MAC, Type.A)
        deadline = time.monotonic() + SECONDS
        while True:
            with socket.create_connection(target.running.listening["metrics"][0], SECONDS) as sock:
                sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                with sock.makefile() as body:
                    lines = body.read().splitlines()
            if "homing_push_subscriptions 1.0" in lines:  # those of earlier tests may still be closing
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert any(line.startswith('homing_dso_events_total{kind="pushes"}') for line in lines)
