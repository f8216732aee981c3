"""Mapping requests a second and how long one takes, beside miniupnpd, in the same network namespaces.

A client on the LAN asks by NAT-PMP for new mappings while some are there already, and takes each back. Ours are carried
by nftables and are durable (SQLite, synchronous FULL) when they are answered; miniupnpd runs without its debug flag and
keeps nothing on disk. Needs root, nft and miniupnpd: python -m bench.mapping_requests
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.support.miniupnpd import CHAINS, WAN_ADDRESS, WAN_PEER
from tests.support.namespaces import LAN_HOST, LAN_LINK, LAN_ROUTER, WAN_LINK, Network, ip, made
from tests.support.router import gateway

ROWS: Final = (1, 100, 1000, 5000)
ONE_BY_ONE: Final = 150
"""Mappings made with one request under way at a time, whose latency is the result."""
TOGETHER: Final = 600
"""Mappings made with several requests under way, whose rate is the result."""
WINDOW: Final = 32
PATIENCE: Final = 0.25
"""As a client of RFC 6886 waits first; what was lost is asked again."""
FIRST: Final = 2000
"""Internal and external port of the first of the rows that are there already."""
FRESH: Final = 20000
BOUNDS: Final = (
    "[natpmp]\nrequests_per_second = 0\n[limits]\nmappings = 60000\nmappings_per_host = 60000\n[igd]\nenabled = false\n"
)


class Client:
    """Sends map requests and counts their answers; every request is asked again until it is answered."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(PATIENCE)

    def ask(self, port: int, lifetime: int) -> None:
        """One request, answered."""
        self.ask_all([port], lifetime, window=1)

    def ask_all(self, ports: list[int], lifetime: int, *, window: int = WINDOW) -> None:
        """Ask for all ports, this many at a time."""
        waiting: dict[int, bytes] = {}
        left = ports[::-1]
        while waiting or left:
            while left and len(waiting) < window:
                port = left.pop()
                waiting[port] = struct.pack("!BBHHHI", 0, 1, 0, port, port if lifetime else 0, lifetime)
                self._socket.send(waiting[port])
            try:
                answer = self._socket.recv(100)
            except TimeoutError:
                for request in waiting.values():
                    self._socket.send(request)
                continue
            if len(answer) == 16 and waiting.pop(int.from_bytes(answer[8:10], "big"), None):
                result = int.from_bytes(answer[2:4], "big")
                if result:
                    raise RuntimeError(f"result {result}")


def measure(client: Client, rows: tuple[int, ...]) -> Iterator[tuple[int, float, float, float]]:
    """For each count of rows: median ms to make one more and to take it back, and mappings made a second together."""
    present = 0
    for count in rows:
        client.ask_all([FIRST + number for number in range(present, count)], 7200)
        present = count
        makes, ends = [], []
        for port in range(FRESH, FRESH + ONE_BY_ONE):
            for lifetime, times in ((7200, makes), (0, ends)):
                begun = time.perf_counter()
                client.ask(port, lifetime)
                times.append(time.perf_counter() - begun)
        ports = list(range(FRESH + ONE_BY_ONE, FRESH + ONE_BY_ONE + TOGETHER))
        begun = time.perf_counter()
        client.ask_all(ports, 7200)
        rate = TOGETHER / (time.perf_counter() - begun)
        client.ask_all(ports, 0)
        yield count, statistics.median(makes) * 1000, statistics.median(ends) * 1000, rate


@contextlib.contextmanager
def ours(network: Network, directory: Path) -> Iterator[None]:
    """`homing gateway` as shipped; only its bounds are higher."""
    with gateway(network, directory, BOUNDS, address=None):
        yield


@contextlib.contextmanager
def theirs(network: Network, directory: Path) -> Iterator[None]:
    """miniupnpd as a daemon, as a distribution starts it."""
    config, pid_file = directory / "miniupnpd.conf", directory / "miniupnpd.pid"
    config.write_text(
        f"ext_ifname={WAN_LINK}\nlistening_ip={LAN_LINK}\nport=0\nenable_natpmp=yes\nenable_upnp=no\nsecure_mode=yes\n"
        "uuid=11111111-2222-3333-4444-555555555555\nupnp_forward_chain=miniupnpd\n"
        "upnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n"
        "allow 1-65535 0.0.0.0/0 1-65535\n"
    )
    network.nft(CHAINS)
    program = shutil.which("miniupnpd", path="/usr/sbin:/usr/bin")
    if program is None:
        raise SystemExit("miniupnpd is not installed")
    subprocess.run(
        ["ip", "netns", "exec", network.router, program, "-f", str(config), "-P", str(pid_file)], check=True, timeout=10
    )
    deadline = time.monotonic() + 5
    while not pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        time.sleep(0.5)
        yield
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        time.sleep(0.5)
        network.nft("delete table inet filter")


def main() -> None:
    rows = tuple(int(text) for text in sys.argv[1:]) or ROWS
    servers: tuple[tuple[str, Callable[[Network, Path], contextlib.AbstractContextManager[None]]], ...] = (
        ("homing", ours),
        ("miniupnpd", theirs),
    )
    print("gateway    mappings  ms to make  ms to end  made a second")
    with made("hb") as network, tempfile.TemporaryDirectory() as scratch:
        for namespace, link, address in ((network.router, WAN_LINK, WAN_ADDRESS), (network.wan, "eth0", WAN_PEER)):
            ip("-n", namespace, "address", "flush", "dev", link)
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
        for name, server in servers:
            directory = Path(scratch) / name
            directory.mkdir()
            with server(network, directory), network.udp(network.lan, LAN_HOST) as sock:
                sock.connect((LAN_ROUTER, 5351))
                for count, making, ending, rate in measure(Client(sock), rows):
                    print(f"{name:9}  {count:8}  {making:10.3f}  {ending:9.3f}  {rate:13.0f}", flush=True)


if __name__ == "__main__":
    main()
