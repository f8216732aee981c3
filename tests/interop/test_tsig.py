"""dig, kdig and dnspython sign with cut MACs, other algorithms and old times; a strict server says what is wrong."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
import pytest

from tests.support.foreign import call, status
from tests.support.processes import Running, homing, start_server

ZONE = "members.example."


@dataclass(slots=True)
class Strict:
    """A server that asks for MACs of 20 octets and takes updates in order to 5 seconds; keys by algorithm."""

    server: Running
    keys: dict[str, dict[str, Any]]

    def dig(self, algorithm: str, key: dict[str, Any], *more: str) -> str:
        return call("dig", "@127.0.0.1", "-p", str(self.server.port), ZONE, "SOA", "-y",
                    f"{algorithm}:{key['name']}:{key['secret']}", *more)  # fmt: skip

    def update(self, key: dict[str, Any], owner: str) -> dns.update.UpdateMessage:
        ring = dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])})
        update = dns.update.UpdateMessage(ZONE, keyring=ring)
        update.delete(owner)
        return update

    def send(self, wire: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(wire, ("127.0.0.1", self.server.port))
            return sock.recv(65535)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    directory = tmp_path_factory.mktemp("strict")
    with start_server(directory, dns={"minimum_mac_octets": 20, "replay_window_seconds": 5}) as server:
        keys = {}
        for number, algorithm in enumerate(("hmac-sha256", "hmac-sha512-256", "hmac-sha1")):
            done = homing("member", "add", f"m{number}", "--algorithm", algorithm, "--json", "--config", server.config)
            assert done.code == 0, done.err
            keys[algorithm] = done.json
        strict = Strict(server, keys)
        deadline = time.monotonic() + 20
        while status(strict.dig("hmac-sha1", keys["hmac-sha1"])) != "NOERROR":
            assert time.monotonic() < deadline, server.log
            time.sleep(0.1)
        yield strict


@pytest.mark.rfc("8945", "5.2.4")
@pytest.mark.parametrize(
    ("cut", "expected"),
    [("hmac-sha256", "NOERROR"), ("hmac-sha256-160", "NOERROR"), ("hmac-sha256-152", "NOTAUTH")],
)
def test_dig_cuts_its_mac(strict: Strict, cut: str, expected: str) -> None:
    text = strict.dig(cut, strict.keys["hmac-sha256"])
    assert status(text) == expected, text
    assert ("BADTRUNC" in text) == (expected == "NOTAUTH")
    assert "Couldn't verify" not in text or expected == "NOTAUTH"


@pytest.mark.rfc("8945", "5.2.2.1")
def test_a_mac_below_half_is_formerr(strict: Strict) -> None:
    key = strict.keys["hmac-sha256"]
    query = dns.message.make_query(ZONE, "SOA")
    query.use_tsig(dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])}))
    wire = query.to_wire()
    at = wire.rindex(b"\x00\x20") + 2  # the MAC, behind its size
    cut = wire[: at - 2] + b"\x00\x0f" + wire[at : at + 15] + wire[at + 32 :]
    rdlength = wire.rindex(b"\x0bhmac-sha256") - 2
    size = int.from_bytes(wire[rdlength : rdlength + 2], "big") - 17
    reply = strict.send(cut[:rdlength] + size.to_bytes(2, "big") + cut[rdlength + 2 :])
    assert reply[3] & 0xF == dns.rcode.FORMERR and reply[10:12] == b"\0\0"


@pytest.mark.rfc("8945", "6")
def test_dnspython_signs_with_an_algorithm_that_is_cut_by_its_name(strict: Strict) -> None:
    key = strict.keys["hmac-sha512-256"]
    query = dns.message.make_query(ZONE, "SOA")
    query.use_tsig(dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])}))
    reply = dns.query.udp(query, "127.0.0.1", port=strict.server.port, timeout=10)
    assert reply.rcode() == dns.rcode.NOERROR and reply.had_tsig
    text = strict.dig("hmac-sha512-256", key)  # BIND's tools mean hmac-sha512 by that
    assert status(text) == "NOTAUTH" and "BADKEY" in text


@pytest.mark.rfc("8945", "5.2.3")
def test_an_update_from_before_the_window_is_badtime(strict: Strict, monkeypatch: pytest.MonkeyPatch) -> None:
    key = strict.keys["hmac-sha256"]
    now = int(time.time())
    for offset, owner, expected in ((-20, "early.m0", 0), (0, "now.m0", 0), (-3, "close.m0", 0), (-10, "late.m0", 9)):
        monkeypatch.setattr("time.time", lambda offset=offset: float(now + offset))
        wire = strict.update(key, owner).to_wire()
        monkeypatch.undo()
        reply = strict.send(wire)
        assert reply[3] & 0xF == expected, owner
        if expected:
            assert reply[-10:-6] == b"\x00\x12\x00\x06", "BADTIME, and our time behind it"
