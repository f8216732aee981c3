"""Broken datagrams, searches and calls by the thousand: no crash, no mapping, bounded memory, bounded replies.

`HOMING_FUZZ` sets how many (`make gateway-fuzz`: 100,000); the seed is fixed and shown on failure. Everything stays in
network namespaces made here; senders that are forged are inside of them as well.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway_cases import natpmp, option, pcp
from tests.support.igd import add, envelope
from tests.support.namespaces import LAN_HOST, LAN_ROUTER, Network, made
from tests.support.router import gateway, give_public_address, mappings

COUNT = int(os.environ.get("HOMING_FUZZ", "4000"))
SEED = 20260
GROWTH_KIB = 30_000
"""More than buffers and caches need, less than a leak of one object each would take at 100,000."""
UNLIMITED = "[natpmp]\nrequests_per_second = 0\n[igd]\nenabled = true\n"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made(f"hz{os.getpid() % 100000}") as network:
        give_public_address(network)
        yield network


def mutated(draw: random.Random, octets: bytes) -> bytes:
    """Octets changed, cut, repeated or made long."""
    data = bytearray(octets)
    for _ in range(draw.randint(1, 6)):
        if data and draw.random() < 0.7:
            data[draw.randrange(len(data))] = draw.randrange(256)
    kind = draw.random()
    if kind < 0.3:
        data = data[: draw.randint(0, len(data))]
    elif kind < 0.4:
        data = data * draw.randint(2, 30)
    elif kind < 0.45:
        data += draw.randbytes(draw.choice((1, 3, 1100, 8000)))
    return bytes(data)


def datagrams(draw: random.Random, count: int) -> Iterator[bytes]:
    """None of them may map: map requests are for another client, or of lifetime 0, or of no known opcode."""
    seeds = (
        b"\0\0",
        natpmp(1, 0, 0, 0),
        natpmp(77, 4500),
        pcp("192.168.78.99", 4500, 4500),
        pcp("192.168.78.99", 4500, 4500, options=option(3, bytes(20)) * 20),
        pcp("192.168.78.99", 4500, op=2),
        draw.randbytes(60),
    )
    for _ in range(count):
        octets = mutated(draw, draw.choice(seeds))
        is_map = octets[:1] == b"\0" and len(octets) >= 12 and octets[1] in (1, 2)
        is_own = octets[8:24] == bytes(10) + b"\xff\xff" + socket.inet_aton(LAN_HOST)
        yield b"\xff" + octets[1:] if is_map or is_own else octets


def memory(process: int) -> int:
    """KiB of a process in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1])


def drained(sock: socket.socket, most: int) -> int:
    """How many replies are there; each has to be within bounds."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            assert len(sock.recv(65536)) <= most
            count += 1
    return count


def alive(sock: socket.socket) -> None:
    """The gateway still answers."""
    sock.settimeout(5)
    sock.send(b"\0\0")
    while sock.recv(65536)[:4] != b"\0\x80\0\0":
        pass
    sock.setblocking(False)


def test_broken_datagrams(network: Network, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    with gateway(network, tmp_path, UNLIMITED) as log, network.udp(network.lan, LAN_HOST) as sock:
        sock.connect((LAN_ROUTER, 5351))
        alive(sock)
        process = int((tmp_path / "gateway.pid").read_text())
        sent = replies = 0
        before = memory(process)
        for octets in datagrams(draw, COUNT):
            with contextlib.suppress(BlockingIOError):
                sock.send(octets)
                sent += 1
            if sent % 64 == 0:
                alive(sock)
                replies += drained(sock, 2056)
        alive(sock)
        replies += drained(sock, 2056)
        assert replies <= sent, f"seed {SEED}"
        assert memory(process) - before < GROWTH_KIB, f"seed {SEED}"
        assert mappings(log) == [], f"seed {SEED}"
        assert "Traceback" not in log.read_text()


def test_forged_senders(network: Network, tmp_path: Path) -> None:
    """Requests that claim to come from elsewhere: broadcast, the gateway, the outside, loopback, nowhere."""
    draw = random.Random(SEED)
    sources = ["192.168.78.255", LAN_ROUTER, "127.0.0.1", "0.0.0.0", "224.0.0.1", "44.44.44.1", "255.255.255.255"]
    with gateway(network, tmp_path, UNLIMITED) as log, network.udp(network.lan, LAN_HOST) as sock:
        sock.connect((LAN_ROUTER, 5351))
        with network.at(network.lan):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw:
            for number in range(COUNT // 10):
                source = draw.choice(sources)
                body = natpmp(draw.choice((1, 2)), draw.randrange(1, 65536), 0, 3600)
                head = struct.pack("!HHHH", 40000, 5351, 8 + len(body), 0)
                packet = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(body), number & 0xFFFF, 0, 64, 17, 0)
                packet += socket.inet_aton(source) + socket.inet_aton(LAN_ROUTER) + head + body
                with contextlib.suppress(OSError):
                    raw.sendto(packet, (LAN_ROUTER, 0))
        alive(sock)
        assert [line for line in mappings(log) if "inside=192.168.78." not in line] == []
        assert "Traceback" not in log.read_text()


def test_broken_searches_and_calls(network: Network, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    search = (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 0\r\nST: ssdp:all\r\n\r\n'
    )
    body = envelope("AddPortMapping", add(8080, 80, "192.168.78.99"))
    call = (
        f"POST /control/WANIPConn1 HTTP/1.1\r\nHost: {LAN_ROUTER}:2869\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    with gateway(network, tmp_path, UNLIMITED) as log, network.udp(network.lan, LAN_HOST) as sock:
        process = int((tmp_path / "gateway.pid").read_text())
        with network.udp(network.lan, LAN_HOST) as searching:
            before = memory(process)
            for number in range(COUNT // 2):
                with contextlib.suppress(BlockingIOError):
                    searching.sendto(mutated(draw, search), (LAN_ROUTER, 1900))
                if number % 64 == 0:
                    drained(searching, 1500)
        for _ in range(COUNT // 20):
            with network.at(network.lan):
                stream = socket.socket()
            with stream, contextlib.suppress(OSError):
                stream.settimeout(0.3)
                stream.connect((LAN_ROUTER, 2869))
                octets = mutated(draw, call)
                stream.sendall(octets)
                if draw.random() < 0.5:
                    stream.shutdown(socket.SHUT_WR)
                    # Several calls in a row get several answers, none of them longer than its call.
                    assert len(stream.recv(65536)) < len(octets) + 1000, f"seed {SEED}"
        sock.connect((LAN_ROUTER, 5351))
        alive(sock)
        assert memory(process) - before < GROWTH_KIB, f"seed {SEED}"
        assert mappings(log) == [], f"seed {SEED}"
        assert "Traceback" not in log.read_text()
