"""Mapping requests a second and how long one takes, beside miniupnpd, in the same network namespaces.

A client on the LAN asks by NAT-PMP for new mappings while some are there already, and takes each back: one by one, then
with several under way. Ours are carried by nftables and are durable (SQLite, synchronous FULL) when they are answered;
miniupnpd runs without its debug flag and keeps nothing on disk. Either gateway has one processor, the client another.
A ratio takes our best rate and miniupnpd's best, whichever way of asking gave it. Needs root, nft and miniupnpd:
python -m bench.mapping_requests
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers import LOAD_CPU, SERVER_CPU
from tests.support.miniupnpd import CHAINS, WAN_ADDRESS, WAN_PEER
from tests.support.namespaces import LAN_HOST, LAN_LINK, LAN_ROUTER, WAN_LINK, Network, ip, made
from tests.support.router import gateway

ROWS: Final = (1, 100, 1000, 5000)
UNDER_WAY: Final = (4, 32, 256)
"""Requests that wait for their answers at a time."""
ONE_BY_ONE: Final = 300
SLOW: Final = 1000
"""miniupnpd is not measured with more rows: it takes minutes to make 5,000."""
SECONDS: Final = 1.0
"""Spent on each way of asking at each count of rows, at most."""
PATIENCE: Final = 0.25
"""As a client of RFC 6886 waits first; what was lost is asked again."""
FIRST: Final = 2000
"""Internal and external port of the first of the rows that are there already."""
FRESH: Final = 20000
LIFETIME: Final = 7200
_REQUEST: Final = struct.Struct("!BBHHHI")
BOUNDS: Final = (
    "[natpmp]\nrequests_per_second = 0\n[limits]\nmappings = 60000\nmappings_per_host = 60000\n[igd]\nenabled = false\n"
)


class Client:
    """Sends map requests and counts their answers; every request is asked again until it is answered."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(True)
        # By the kernel: Python's own timeout would cost a call more for each answer.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(PATIENCE * 1e6)))
        self.repeated = 0

    def ask(self, ports: range, lifetime: int, *, under_way: int = 1) -> float:
        """Ask for all these ports, so many at a time; the seconds that took."""
        requests = iter(
            [(port, _REQUEST.pack(0, 1, 0, port, port if lifetime else 0, lifetime)) for port in reversed(ports)]
        )
        waiting: dict[int, bytes] = {}
        send, receive = self._socket.send, self._socket.recv
        begun = time.perf_counter()
        for port, request in requests:
            waiting[port] = request
            send(request)
            if len(waiting) == under_way:
                break
        while waiting:
            try:
                answer = receive(100)
            except BlockingIOError:
                self.repeated += len(waiting)
                for request in waiting.values():
                    send(request)
                continue
            if waiting.pop(int.from_bytes(answer[8:10], "big"), None) is None:
                continue  # the second answer to what was asked twice
            if answer[2:4] != b"\0\0" or len(answer) != 16:
                raise RuntimeError(f"refused: {answer.hex()}")
            port, request = next(requests, (0, b""))
            if port:
                waiting[port] = request
                send(request)
        return time.perf_counter() - begun


@dataclass(frozen=True)
class Result:
    """What one gateway reached with so many rows there: seconds of single requests, mappings made a second."""

    rows: int
    makes: list[float]
    ends: list[float]
    rates: dict[int, float]

    @property
    def best(self) -> float:
        """The highest rate of making mappings; one by one counts too."""
        return max(1 / statistics.mean(self.makes), *self.rates.values())


def measure(client: Client, rows: tuple[int, ...]) -> Iterator[Result]:
    """For each count of rows: single requests first, then several under way."""
    present = 0
    for count in rows:
        client.ask(range(FIRST + present, FIRST + count), LIFETIME, under_way=8)
        present = count
        makes, ends = [], []
        deadline = time.monotonic() + SECONDS
        for port in range(FRESH, FRESH + ONE_BY_ONE):
            makes.append(client.ask(range(port, port + 1), LIFETIME))
            ends.append(client.ask(range(port, port + 1), 0))
            if time.monotonic() > deadline:
                break
        yield Result(count, makes, ends, {under_way: together(client, under_way) for under_way in UNDER_WAY})


def together(client: Client, under_way: int) -> float:
    """Mappings made a second, in rounds that leave the number of rows nearly what it was."""
    number = 2 * under_way
    seconds, rounds = 0.0, 0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        # Other ports each round: those of the one before rest.
        first = FRESH + 1000 + rounds % 20 * number
        seconds += client.ask(range(first, first + number), LIFETIME, under_way=under_way)
        client.ask(range(first, first + number), 0, under_way=under_way)
        rounds += 1
    return rounds * number / seconds


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


Server = Callable[[Network, Path], contextlib.AbstractContextManager[None]]
SERVERS: Final[dict[str, tuple[Server, int]]] = {"homing": (ours, 60000), "miniupnpd": (theirs, SLOW)}
"""How to run each, and how many rows it is asked to have at most."""


def results_of(server: Server, network: Network, directory: Path, rows: tuple[int, ...]) -> Iterator[Result]:
    """Start a gateway on its processor and measure it from another."""
    directory.mkdir()
    os.sched_setaffinity(0, {int(SERVER_CPU)})
    with server(network, directory), network.udp(network.lan, LAN_HOST) as sock:
        os.sched_setaffinity(0, {int(LOAD_CPU)})
        sock.connect((LAN_ROUTER, 5351))
        client = Client(sock)
        yield from measure(client, rows)
        if client.repeated:
            print(f"{client.repeated} requests asked again", file=sys.stderr)


def line(name: str, result: Result) -> str:
    times = [f"{_milliseconds(each)}" for each in (result.makes, result.ends)]
    rates = "".join(f"{result.rates[under_way]:12,.0f}" for under_way in UNDER_WAY)
    return f"{name:9} {result.rows:8}  {times[0]}  {times[1]}{rates}"


def _milliseconds(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    at_99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"{statistics.median(ordered) * 1000:8.3f} {at_99 * 1000:8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--only", choices=SERVERS, help="one gateway, without ratios")
    arguments = parser.parse_args()
    rows = tuple(arguments.rows)
    names = [arguments.only] if arguments.only else list(SERVERS)
    head = "".join(f"{f'/s, {under_way}':>12}" for under_way in UNDER_WAY)
    print(f"gateway   mappings  ms to make: p50, p99  ms to end: p50, p99{head} under way")
    best: dict[int, list[float]] = {}
    with made("hb") as network, tempfile.TemporaryDirectory() as scratch:
        for namespace, link, address in ((network.router, WAN_LINK, WAN_ADDRESS), (network.wan, "eth0", WAN_PEER)):
            ip("-n", namespace, "address", "flush", "dev", link)
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
        for name in names:
            server, most = SERVERS[name]
            counts = tuple(count for count in rows if count <= most)
            for result in results_of(server, network, Path(scratch) / name, counts):
                print(line(name, result), flush=True)
                best.setdefault(result.rows, []).append(result.best)
    for count, (first, *others) in best.items():
        for other in others:
            print(f"{count} mappings: {first:,.0f} made a second to {other:,.0f}, {first / other:.1f} times")


if __name__ == "__main__":
    main()
