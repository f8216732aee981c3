"""`homing serve` killed with SIGKILL: what it acknowledged is there after the restart, and leases still count."""

import base64
import json
import random
import signal
import socket
import sqlite3
import struct
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import dns.rcode
import dns.tsigkeyring
import dns.update

from protocol.constants import Opcode, Type
from protocol.edns import Opt, UpdateLease
from protocol.message import Question, encode
from protocol.name import from_text, to_text
from protocol.tsig import Key, algorithm_from_text, sign
from server.zone.model import StoredRR
from tests.support.databases import edit_leases, records_in
from tests.support.processes import Running, homing, server_config, start

ZONE = "members.example"
LEASE = 1800
DATABASE = "homing.db"


@dataclass(slots=True)
class Service:
    """A server's file with one member; started and killed as a test likes."""

    directory: Path
    config: Path
    key: dict[str, str]

    def update(self, running: Running, *records: tuple[str, int, str, str], lease: int = LEASE) -> dns.message.Message:
        """One leased update with alice's key over UDP; the reply, its signature verified."""
        ring = dns.tsigkeyring.from_text({self.key["name"]: (self.key["algorithm"], self.key["secret"])})
        update = dns.update.UpdateMessage(ZONE, keyring=ring)
        for record in records:
            update.add(*record)
        update.use_edns(0, options=[dns.edns.GenericOption(dns.edns.OptionType.make(2), struct.pack("!I", lease))])
        return dns.query.udp(update, "127.0.0.1", port=running.port, timeout=5)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.directory / DATABASE, timeout=5)) as connection, connection:
            return connection.execute(sql, values).fetchall()

    def expiry(self, name: str) -> int:
        (expires_at,) = [record.expires_at for record in self.records() if record.owner == from_text(name)]
        assert expires_at is not None
        return expires_at

    def records(self) -> list[StoredRR]:
        with closing(sqlite3.connect(self.directory / DATABASE, timeout=5)) as connection:
            return records_in(connection)


def service(directory: Path) -> Service:
    """A member is made before the server ever ran."""
    config = server_config(directory)
    made = homing("member", "add", "alice", "--json", "--config", config)
    assert made.code == 0, made.err
    found = json.loads(made.out)
    return Service(directory, config, found.get("key", found))


def kill(running: Running) -> None:
    running.process.kill()
    assert running.process.wait(5) == -signal.SIGKILL


def answer(running: Running, name: str) -> tuple[int, list[str]]:
    """(TTL or -1, addresses) as any resolver sees them."""
    reply = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", port=running.port, timeout=5)
    if not reply.answer:
        assert reply.rcode() == dns.rcode.NXDOMAIN
        return -1, []
    return reply.answer[0].ttl, [rdata.to_text() for rdata in reply.answer[0]]


def test_an_acknowledged_update_survives_and_its_lease_goes_on(tmp_path: Path) -> None:
    home = service(tmp_path)
    name = f"mac.alice.{ZONE}"
    with start("serve", home.config) as running:
        reply = home.update(running, ("mac.alice", 86400, "A", "192.0.2.7"))
        kill(running)
        assert reply.rcode() == dns.rcode.NOERROR
    acknowledged = time.time()
    expires_at = home.expiry(name)
    assert LEASE - 2 <= expires_at - acknowledged <= LEASE + 2
    sealing = (tmp_path / "homing.db.key").read_bytes()
    time.sleep(1.1)
    with start("serve", home.config) as running:
        ttl, addresses = answer(running, name)
        assert addresses == ["192.0.2.7"]
        assert expires_at - time.time() - 1 <= ttl <= expires_at - acknowledged  # the lease caps what was 86400
        assert home.expiry(name) == expires_at
        assert (tmp_path / "homing.db.key").read_bytes() == sealing
        assert home.update(running, ("mac.alice", 60, "A", "192.0.2.8")).rcode() == dns.rcode.NOERROR  # same keys
        assert answer(running, name) == (60, ["192.0.2.7", "192.0.2.8"])


def test_a_lease_that_ended_meanwhile_is_gone_before_the_first_answer(tmp_path: Path) -> None:
    home = service(tmp_path)
    with start("serve", home.config) as running:
        home.update(running, ("gone.alice", 60, "A", "192.0.2.1"), ("stays.alice", 60, "A", "192.0.2.2"))
        kill(running)
    serial = int(home.rows("SELECT serial FROM zone")[0][0])
    entry = int(home.rows("SELECT max(id) FROM change")[0][0])
    gone = from_text(f"gone.alice.{ZONE}")
    with closing(sqlite3.connect(home.directory / DATABASE)) as connection, connection:
        past = int(time.time()) - 3600
        edit_leases(connection, lambda record: past if record.owner == gone else record.expires_at)
    with start("serve", home.config) as running:
        assert answer(running, f"gone.alice.{ZONE}") == (-1, [])
        assert answer(running, f"stays.alice.{ZONE}") == (60, ["192.0.2.2"])
        soa = dns.query.udp(dns.message.make_query(ZONE, "SOA"), "127.0.0.1", port=running.port, timeout=5)
        assert soa.answer[0][0].serial > serial
    entries = home.rows("SELECT actor_kind, removed, added, serial_to FROM change WHERE id > ? ORDER BY id", entry)
    lapses = [found for found in entries if found[0] == "lapse"]
    assert len(lapses) == 1
    assert gone in lapses[0][1] and gone not in lapses[0][2]
    assert gone not in {record.owner for record in home.records()}
    assert home.rows("SELECT serial FROM zone")[0][0] == entries[-1][3]


# Killed at any moment


@dataclass(slots=True)
class Stream:
    """Updates one after the other, several under way at once, each adding one address at a name of its own."""

    key: Key
    count: int = 0
    waiting: dict[int, str] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)

    def next(self) -> bytes:
        self.count += 1
        name = f"n{self.count}.alice.{ZONE}"
        self.waiting[self.count] = name
        wire = encode(
            self.count,
            Opcode.UPDATE << 11,
            [Question(from_text(ZONE), Type.SOA, 1)],
            (),
            [(from_text(name), Type.A, 1, 300, self.count.to_bytes(4, "big"))],
            opt=Opt(options=(UpdateLease(LEASE).encode(),)),
        )
        return sign(wire, self.key, now=int(time.time()))[0]

    def run(self, running: Running, seconds: float, window: int = 12) -> None:
        """Until the moment has come, then kill; replies that had left by then still count."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", running.port))
            sock.settimeout(0.02)
            for _ in range(window):
                sock.send(self.next())
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if self._take(sock):
                    sock.send(self.next())
            kill(running)
            while self._take(sock):
                pass
        self.waiting.clear()

    def _take(self, sock: socket.socket) -> bool:
        try:
            reply = sock.recv(65535)
        except (TimeoutError, ConnectionRefusedError):
            return False
        assert reply[3] & 0xF == 0
        self.acknowledged.append(self.waiting.pop(int.from_bytes(reply[:2], "big")))
        return True


def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """Seeded moments; at the end the journal is one unbroken chain that says what the records are."""
    home = service(tmp_path)
    dice = random.Random(7)
    key = home.key
    stream = Stream(Key(from_text(key["name"]), algorithm_from_text(key["algorithm"]), base64.b64decode(key["secret"])))
    for _ in range(7):
        with start("serve", home.config) as running:
            assert unanswered(running, stream.acknowledged[-100:]) == []
            stream.run(running, dice.uniform(0.02, 0.3))
    assert len(stream.acknowledged) > 50
    with start("serve", home.config) as running:
        assert unanswered(running, stream.acknowledged) == []
    chain = home.rows("SELECT serial_from, serial_to FROM change WHERE serial_from > 0 ORDER BY id")
    assert all(first[1] == second[0] for first, second in pairwise(chain))
    assert home.rows("SELECT serial FROM zone") == [(chain[-1][1],)]
    assert sum(record.expires_at is not None for record in home.records()) >= len(stream.acknowledged)
    assert home.rows("PRAGMA integrity_check") == [("ok",)]


def unanswered(running: Running, names: Iterable[str]) -> list[str]:
    """Those of the names that the server does not know, asked one after the other."""
    missing = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", running.port))
        sock.settimeout(5)
        for name in names:
            sock.send(encode(1, 0, [Question(from_text(name), Type.A, 1)]))
            if int.from_bytes(sock.recv(512)[6:8], "big") != 1:
                missing.append(to_text(from_text(name)))
    return missing
