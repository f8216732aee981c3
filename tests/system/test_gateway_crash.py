"""A gateway killed in the midst of its work: after the next start kernel, table and file say the same, and no client
has been told of a mapping that is not there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from homing.config_file import to_toml
from tests.support.gateways import ask_control
from tests.support.namespaces import LAN_HOST, LAN_LINK, LAN_ROUTER, WAN_LINK, Network, made
from tests.support.processes import Running, start

PORTS = range(10000, 10060)
SECONDS = 10.0
Ends = dict[tuple[str, int], tuple[str, int]]
"""External ends by transport and port, and the internal host and port that each leads to."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made(f"hk{os.getpid() % 100000}") as network:
        yield network


@contextmanager
def gateway(directory: Path) -> Iterator[Running]:
    config = directory / "gateway.toml"
    config.write_text(
        to_toml(
            {
                "backend": "nftables",
                "nftables": {"wan_interface": WAN_LINK},
                "natpmp": {"requests_per_second": 0},
                "lan": {"interfaces": [LAN_LINK]},
                "state": {"file": "state.sqlite"},
                "control": {"socket": "control"},
            }
        )
    )
    with start("gateway", config) as running:
        yield running


class Client:
    """Asks for mappings, deletes them, and keeps what it was told. `unsure` are those that nobody answered for."""

    def __init__(self, network: Network, seed: int) -> None:
        self.random = random.Random(seed)
        self.socket = network.udp(network.lan, LAN_HOST)
        self.socket.setblocking(True)
        self.mapped: dict[tuple[str, int], int] = {}
        self.unsure: set[tuple[str, int]] = set()
        self.epoch = 0

    def work(self, until: float) -> None:
        """Ask without a pause, several requests on their way at a time."""
        while (left := until - time.monotonic()) > 0:
            wanted = {}
            for port in self.random.sample(PORTS, 5):
                transport = self.random.choice(("udp", "tcp"))
                lifetime = self.random.choice((0, 600, 3600))
                wanted[transport, port] = lifetime
                self.send(transport, port, lifetime)
            self.hear(wanted, min(left, 0.5))

    def send(self, transport: str, port: int, lifetime: int) -> None:
        opcode = 1 if transport == "udp" else 2
        request = struct.pack(">BBHHHI", 0, opcode, 0, port, 0, lifetime)
        with contextlib.suppress(OSError):
            self.socket.sendto(request, (LAN_ROUTER, 5351))
        self.unsure.add((transport, port))

    def hear(self, wanted: dict[tuple[str, int], int], seconds: float) -> None:
        self.socket.settimeout(max(0.01, seconds))
        while wanted:
            try:
                reply = self.socket.recv(100)
            except OSError:
                return
            _, opcode, result, epoch, internal, external, lifetime = struct.unpack(">BBHIHHI", reply)
            assert result == 0
            end = ("udp" if opcode == 129 else "tcp", internal)
            if wanted.pop(end, None) is None:
                continue
            self.epoch = epoch
            self.unsure.discard(end)
            if lifetime:
                self.mapped[end] = external
            else:
                self.mapped.pop(end, None)


def in_kernel(network: Network) -> Ends:
    listing = json.loads(network.nft("-j", "list", "map", "inet", "homing", "inward"))
    elements = next(entry["map"] for entry in listing["nftables"] if "map" in entry).get("elem", [])
    found: Ends = {}
    for element in elements:
        key, value = element
        _, transport, port = key["concat"]
        host, inner = value["concat"]
        found[str(transport), int(port)] = (str(host), int(inner))
    return found


def in_table(directory: Path) -> Ends:
    found: Ends = {}
    for row in ask_control(directory / "control", do="list")["mappings"]:
        host, _, port = row["internal"].rpartition(":")
        found[row["transport"], row["external_port"]] = (host, int(port))
    return found


def in_file(directory: Path) -> Ends:
    with contextlib.closing(sqlite3.connect(directory / "state.sqlite")) as file:
        rows = file.execute("SELECT transport, external_port, host, internal_port FROM mapping").fetchall()
    return {({6: "tcp", 17: "udp"}[transport], outer): (host, inner) for transport, outer, host, inner in rows}


def agree(network: Network, directory: Path) -> Ends:
    """What all three say, once they say the same."""
    deadline = time.monotonic() + SECONDS
    while True:
        kernel, table, file = in_kernel(network), in_table(directory), in_file(directory)
        if kernel == table == file:
            return table
        assert time.monotonic() < deadline, (kernel, table, file)
        time.sleep(0.2)


def ask_epoch() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.sendto(b"\0\0", (LAN_ROUTER, 5351))
        return int.from_bytes(sock.recv(100)[4:8], "big")


@pytest.mark.rfc("6886", "3.6")
def test_killed_at_any_moment_it_comes_back_whole(network: Network, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    client = Client(network, seed)
    with client.socket:
        for round_ in range(4):
            with gateway(tmp_path) as running:
                epoch = ask_epoch()
                assert epoch >= client.epoch
                found = agree(network, tmp_path)
                by_inside = {(transport, inner): outer for (transport, outer), (_, inner) in found.items()}
                for end, external in client.mapped.items():
                    if end not in client.unsure:
                        assert by_inside.get(end) == external, (seed, end)
                for end in by_inside:
                    assert end in client.mapped or end in client.unsure, (seed, end)
                # What is unsure may be either way; from here on it is what the gateway has.
                client.mapped, client.unsure = dict(by_inside), set()
                began = time.monotonic()
                kill_at = began + client.random.uniform(0.05, 0.6)
                client.work(kill_at)
                if round_ % 2:
                    # At the very moment of an answer: what it promises has to be there.
                    client.socket.settimeout(0.01)
                    with contextlib.suppress(OSError):
                        while True:
                            client.socket.recv(100)
                    client.send("udp", 20000 + round_, 3600)
                    client.hear({("udp", 20000 + round_): 3600}, SECONDS)
                running.process.send_signal(signal.SIGKILL)
                running.process.wait(SECONDS)
        assert client.mapped


def test_a_lost_file_is_a_new_epoch_and_an_empty_kernel(network: Network, tmp_path: Path) -> None:
    """As after a reboot on a router whose state was in memory."""
    client = Client(network, 1)
    with client.socket:
        with gateway(tmp_path) as running:
            time.sleep(2)
            client.work(time.monotonic() + 0.3)
            assert ask_epoch() >= 2
            running.process.send_signal(signal.SIGKILL)
            running.process.wait(SECONDS)
        for name in ("state.sqlite", "state.sqlite-wal", "state.sqlite-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        with gateway(tmp_path):
            assert ask_epoch() <= 1
            assert agree(network, tmp_path) == {}
