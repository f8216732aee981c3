"""Two servers on one PostgreSQL database: what one is told both serve; no lease ends while either renews it."""

import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.edns
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
import pytest

from homing.lab_ports import free_port
from tests.support.postgres import start_postgres
from tests.support.processes import Running, homing_here, server_config, start

ADDRESS = "127.0.0.1"
ZONE = "members.example."


class Pair:
    def __init__(self, servers: list[Running], config: Path) -> None:
        self.servers = servers
        key = homing_here("member", "add", "alice", "--json", "--config", config).json
        self.keyring = dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])})
        for server in servers:
            self._wait_for_key(server)

    def _wait_for_key(self, server: Running) -> None:
        """The key was made by a command: a running server hears of it in a moment."""
        query = dns.message.make_query(ZONE, "SOA")
        query.use_tsig(self.keyring)
        deadline = time.monotonic() + 10
        while True:
            try:
                dns.query.udp(query, ADDRESS, port=server.port, timeout=5)
            except dns.tsig.PeerBadKey:
                assert time.monotonic() < deadline, server.log[-2000:]
                time.sleep(0.1)
            else:
                return

    def add(self, server: Running, host: str, text: str, lease: int, rtype: str = "A") -> None:
        update = dns.update.UpdateMessage(ZONE, keyring=self.keyring)
        update.add(f"{host}.alice", 60, rtype, text)
        update.use_edns(0, options=[dns.edns.GenericOption(2, struct.pack("!I", lease))])
        reply = dns.query.udp(update, ADDRESS, port=server.port, timeout=10)
        assert reply.rcode() == dns.rcode.NOERROR, reply

    def has(self, server: Running, host: str, rtype: str = "A") -> bool:
        query = dns.message.make_query(f"{host}.alice.{ZONE}", rtype)
        return bool(dns.query.udp(query, ADDRESS, port=server.port, timeout=5).answer)

    def wait(self, server: Running, host: str, *, present: bool) -> None:
        deadline = time.monotonic() + 15
        while self.has(server, host) is not present:
            assert time.monotonic() < deadline, server.log[-2000:]
            time.sleep(0.05)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        url = stack.enter_context(start_postgres())
        servers = []
        for number in range(2):
            directory = tmp_path / str(number)
            directory.mkdir()
            config = server_config(
                directory,
                database={"url": url, "master_key_file": str(tmp_path / "master.key")},
                zone={"addresses": [ADDRESS], "advertise_port": 53},
                dns={"listen": [f"{ADDRESS}:{free_port(ADDRESS)}"]},
                lease={"minimum_seconds": 1},
            )
            servers.append(stack.enter_context(start("serve", config)))
        yield Pair(servers, config)


def test_a_lease_renewed_through_one_does_not_end_on_the_other(pair: Pair) -> None:
    """Not even when each renews a record of its own at one name."""
    one, two = pair.servers
    pair.add(one, "mac", "192.0.2.1", lease=3)
    pair.add(two, "mac", "theirs", lease=3, rtype="TXT")
    pair.add(two, "nas", "192.0.2.2", lease=3)
    pair.wait(two, "mac", present=True)
    pair.wait(one, "nas", present=True)
    end = time.monotonic() + 9
    lapsed = 0
    while time.monotonic() < end:
        pair.add(one, "mac", "192.0.2.1", lease=3)
        pair.add(two, "mac", "theirs", lease=3, rtype="TXT")
        time.sleep(0.5)
        lapsed += not (pair.has(one, "mac") and pair.has(two, "mac", "TXT"))
    assert not lapsed
    pair.wait(two, "mac", present=True)  # each read it again when it met what the other wrote
    assert pair.has(one, "mac", "TXT")
    for server in pair.servers:
        pair.wait(server, "nas", present=False)
        pair.wait(server, "mac", present=False)  # nobody renews it any more
    assert "fault" not in one.log + two.log


def test_one_goes_on_when_the_other_dies(pair: Pair) -> None:
    one, two = pair.servers
    pair.add(one, "mac", "192.0.2.1", lease=3600)
    one.process.kill()
    one.process.wait()
    pair.wait(two, "mac", present=True)
    pair.add(two, "nas", "192.0.2.2", lease=3600)
    assert pair.has(two, "nas")
