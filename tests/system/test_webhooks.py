"""Webhooks of a real server to a real receiver that fails at times: everything arrives, in order, signed."""

import base64
import json
import re
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
import pytest

from homing.certificates import ensure_certificates
from tests.support.processes import Running, homing, homing_here, server_config, start
from tests.support.receiver import Receiver, start_receiver

ZONE = "members.example."
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def config_of(directory: Path, url: str, **webhook: Any) -> Path:
    secret = directory / "webhook.secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    return server_config(
        directory,
        lease={"minimum_seconds": 1},
        zone={"advertise_port": 53},  # a port of its own after each restart would be a change
        webhook={"url": url, "secret_file": "webhook.secret", **webhook},
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with start_receiver(SECRET) as running:
        yield running
    assert running.problems == []


class Member:
    """Alice, whose key the server has learnt when this is made."""

    def __init__(self, config: Path, server: Running, name: str = "alice", *options: str) -> None:
        self.server = server
        self.domain = f"{name}.{ZONE}"
        key = homing_here("member", "add", name, *options, "--json", "--config", config).json
        self.keyring = dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])})
        deadline = time.monotonic() + 10
        while True:
            query = dns.message.make_query(self.domain, "SOA")
            query.use_tsig(self.keyring)
            try:
                reply = dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5)
                if reply.rcode() == dns.rcode.NOERROR and bool(reply.answer) is ("--private" in options):
                    return  # its key is known, and its zone where it has one
            except dns.tsig.PeerBadKey:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def add(self, host: str, text: str, *, lease: int | None = 3600, zone: str = ZONE) -> dns.rcode.Rcode:
        update = dns.update.UpdateMessage(zone, keyring=self.keyring)
        update.add(f"{host}.{self.domain}", 60, "A", text)
        if lease is not None:
            update.use_edns(0, options=[dns.edns.GenericOption(2, struct.pack("!I", lease))])
        return dns.query.tcp(update, "127.0.0.1", port=self.server.port, timeout=10).rcode()


def hosts(receiver: Receiver) -> list[str]:
    return [rr["data"] for event in receiver.of("change") for rr in event["added"] if rr["type"] == "A"]


def test_change_lapse_key_and_refusal_are_told(tmp_path: Path, receiver: Receiver) -> None:
    config = config_of(tmp_path, receiver.url)
    with start("serve", config) as server:
        alice = Member(config, server)
        assert alice.add("mac", "192.0.2.1", lease=2) == dns.rcode.NOERROR
        assert alice.add("mac", "192.0.2.9", lease=None) == dns.rcode.REFUSED
        bob = Member(config, server, "bob", "--private")
        assert bob.add("nas", "192.0.2.66", zone=bob.domain) == dns.rcode.NOERROR
        receiver.wait(lambda: bool(receiver.of("lapse") and receiver.of("refused") and len(receiver.of("key")) == 2))
    added = next(event for event in receiver.of("change") if event["actor"]["kind"] == "update")
    assert added["actor"]["key"] == f"alice.{ZONE}" and added["actor"]["peer"] == "127.0.0.1"
    assert added["added"] == [{"owner": f"mac.alice.{ZONE}", "ttl": 60, "type": "A", "data": "192.0.2.1"}]
    (lapsed,) = receiver.of("lapse")
    assert lapsed["removed"] == added["added"] and lapsed["serial_to"] > added["serial_to"]
    (refused,) = receiver.of("refused")
    assert (refused["key"], refused["rcode"]) == (f"alice.{ZONE}", "REFUSED") and "lease" in refused["reason"]
    assert [event["key"] for event in receiver.of("key")] == [f"alice.{ZONE}", f"bob.{ZONE}"]
    assert "192.0.2.66" not in json.dumps(receiver.taken), "private members' zones are not told of"
    assert SECRET not in server.log and "secret" not in json.dumps(receiver.taken)


def test_a_receiver_that_fails_at_times_gets_everything_in_order(tmp_path: Path, receiver: Receiver) -> None:
    codes = [500, 0, 302, 404, 204, 204, 503]
    receiver.answer = lambda number: codes[number] if number < len(codes) else 200
    config = config_of(tmp_path, receiver.url)
    with start("serve", config) as server:
        alice = Member(config, server)
        for number in range(30):
            assert alice.add(f"h{number}", f"192.0.2.{number}") == dns.rcode.NOERROR
        receiver.wait(lambda: len(hosts(receiver)) >= 30, 60)
        log = server.log
    assert hosts(receiver) == [f"192.0.2.{number}" for number in range(30)], "none lost, none twice, in order"
    ids = [event["id"] for event in receiver.taken]
    assert len(ids) == len(set(ids))
    first = [headers["webhook-id"] for headers, _ in receiver.requests[:5]]
    assert len(set(first)) == 1, "a repetition is the same delivery"
    assert "webhook not taken, will try again" in log and "webhook taken again" in log
    assert "redirects are not followed" in log


def test_what_happened_meanwhile_is_told_after_a_restart(tmp_path: Path) -> None:
    with start_receiver(SECRET) as receiver:
        port = receiver.port
        config = config_of(tmp_path, receiver.url)
        with start("serve", config) as server:
            alice = Member(config, server)
            alice.add("one", "192.0.2.1")
            receiver.wait(lambda: hosts(receiver) == ["192.0.2.1"])
    with start("serve", config) as server:  # the receiver is down
        alice.server = server
        alice.add("two", "192.0.2.2")
        deadline = time.monotonic() + 10
        while "webhook not taken" not in server.log:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = homing("status", "--json", "--config", config).json["webhook"]
        assert found["failing_since"] and found["error"]
        server.process.kill()
        server.process.wait()
    homing_here("key", "add", "alice", "--device", "phone", "--config", config)  # the server is down
    with start_receiver(SECRET, port=port) as receiver, start("serve", config) as server:
        alice.server = server
        alice.add("three", "192.0.2.3")
        receiver.wait(lambda: hosts(receiver)[-1:] == ["192.0.2.3"] and bool(receiver.of("key")))
        assert hosts(receiver) == ["192.0.2.2", "192.0.2.3"]
        assert [event["key"] for event in receiver.of("key")] == [f"phone.alice.{ZONE}"]


def test_what_was_pruned_before_it_was_told_is_said_to_be_missing(tmp_path: Path) -> None:
    with start_receiver(SECRET) as receiver:
        port = receiver.port
        config = config_of(tmp_path, receiver.url)
        with start("serve", config) as server:
            alice = Member(config, server)
            receiver.wait(lambda: bool(receiver.of("key")))
    config = server_config(tmp_path, zone={"advertise_port": 53}, journal={"keep_changes": 2})
    with start("serve", config) as server:  # without a webhook
        alice.server = server
        for number in range(6):
            alice.add(f"h{number}", f"192.0.2.{number}")
    with start("serve", config) as server:
        deadline = time.monotonic() + 10
        while "journal pruned" not in server.log:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with start_receiver(SECRET, port=port) as receiver, start("serve", config_of(tmp_path, receiver.url)):
        receiver.wait(lambda: len(hosts(receiver)) >= 2)
        (gap,) = receiver.of("gap")
        assert re.search(r"entries \d+ to \d+ of the journal were pruned before they were told", gap["text"])
        assert hosts(receiver) == ["192.0.2.4", "192.0.2.5"]


def test_only_what_was_asked_for_and_over_tls(tmp_path: Path) -> None:
    certificates = ensure_certificates(tmp_path / "tls", ["localhost"], ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate_file, certificates.key_file)
    with start_receiver(SECRET, tls=context) as receiver:
        url = f"https://127.0.0.1:{receiver.port}/"
        config = config_of(tmp_path, url, events=["change"], private=True, ca_file=str(certificates.ca_file))
        with start("serve", config) as server:
            bob = Member(config, server, "bob", "--private")
            assert bob.add("nas", "192.0.2.66", lease=1, zone=bob.domain) == dns.rcode.NOERROR
            receiver.wait(lambda: hosts(receiver) == ["192.0.2.66"])
            assert bob.add("nas", "192.0.2.67", zone=ZONE) != dns.rcode.NOERROR
        assert {event["type"] for event in receiver.taken} == {"change"}


@pytest.mark.parametrize(
    ("webhook", "says"),
    [
        ({"url": "ftp://example.org/"}, "url is not of the form"),
        ({"url": "https://user:pass@example.org/"}, "must not hold a user or password"),
        ({"url": "https://example.org/", "secret_file": "none"}, "cannot read"),
        ({"url": "https://example.org/", "secret_file": "short"}, "is not whsec_ and 24 to 64 octets"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(tmp_path: Path, webhook: dict[str, str], says: str) -> None:
    (tmp_path / "short").write_text("whsec_aGVsbG8=\n")
    (tmp_path / "short").chmod(0o600)
    done = homing("serve", "--config", server_config(tmp_path, webhook={"secret_file": "short", **webhook}))
    assert done.code in (1, 2) and says in done.err and "Traceback" not in done.err
