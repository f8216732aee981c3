"""Write docs/gateway-comparison.md: what homing and miniupnpd answer to the same requests, in the same namespaces.

As root, with nft and miniupnpd installed: python -m tools.gateway_comparison
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.mapping_requests import ours, theirs
from tests.support.gateway_cases import NATPMP, PCP, Case, Reply, answered, describe, mapped, natpmp
from tests.support.miniupnpd import WAN_ADDRESS, WAN_PEER
from tests.support.namespaces import LAN_HOST, LAN_OTHER, LAN_ROUTER, WAN_LINK, Network, ip, made

PAGE = Path(__file__).parent.parent / "docs" / "gateway-comparison.md"
HOSTS = (LAN_HOST, LAN_OTHER)
PATIENCE = 0.4
LISTEN_SECONDS = 8.0
Row = tuple[str, str, str, str, bool]
"""Name, section, expectation, what was answered, whether that is right."""


class Lan:
    """Two hosts, each with a socket of its own."""

    def __init__(self, network: Network, stack: contextlib.ExitStack) -> None:
        self._sockets = [stack.enter_context(network.udp(network.lan, host)) for host in HOSTS]

    def ask(self, host: int, octets: bytes, to: str = LAN_ROUTER) -> Reply:
        sock = self._sockets[host]
        sock.settimeout(PATIENCE)
        try:
            sock.sendto(octets, (to, 5351))
            return sock.recv(2048)
        except OSError:
            return None


def told(case: Case, lan: Lan) -> Row:
    got = case.run(lan.ask, HOSTS)
    words = "; ".join(describe(reply) for reply in got)
    return case.name, case.section, case.expected, words, case.is_right(got)


def around(network: Network, lan: Lan, heard: list[bytes]) -> Iterator[Row]:
    """What needs more than datagrams between hosts and the gateway's address."""
    reply = lan.ask(0, b"\0\0", WAN_ADDRESS)
    yield "a request to the external address", "3", "silence", describe(reply), reply is None
    with network.udp(network.wan, WAN_PEER) as outside:
        outside.settimeout(PATIENCE)
        got: Reply = None
        with contextlib.suppress(OSError):
            outside.sendto(b"\0\0", (LAN_ROUTER, 5351))
            got = outside.recv(100)
    yield "a request from outside to the internal address", "3", "silence", describe(got), got is None
    lan.ask(0, natpmp(1, 4700, 4700, 2))
    time.sleep(3.5)
    again = lan.ask(0, natpmp(1, 4700, 4701, 60))
    kept = mapped(again)[3]
    yield "after the lifetime", "3.3", "the mapping is gone, another suggestion is taken", f"port {kept}", kept == 4701
    count = sum(datagram[:4] == b"\0\x80\0\0" for datagram in heard)
    expected = "6 announcements at 0, 0.25, 0.75, 1.75, 3.75 and 7.75 s"
    yield f"{LISTEN_SECONDS:.0f} s from the start", "3.2.1", expected, f"{count} announcements", count == 6
    ip("-n", network.router, "address", "flush", "dev", WAN_LINK)
    time.sleep(2.0)
    replies = lan.ask(0, b"\0\0"), lan.ask(0, natpmp(1, 4702, 4702))
    words = "; ".join(describe(each) for each in replies)
    right = (replies[0] or b"")[2:4] == b"\0\3" and (replies[0] or b"")[8:] == bytes(4) and mapped(replies[1])[1] == 3
    yield "no external address", "3.5", "result 3 with 0.0.0.0, result 3 for a mapping", words, right
    announce = struct.pack("!BBHI", 2, 0, 0, 0) + bytes(10) + b"\xff\xff" + socket.inet_aton(LAN_HOST)
    reply = lan.ask(0, announce)
    yield "no external address, PCP ANNOUNCE", "RFC 6887 14.1", "SUCCESS", describe(reply), answered(reply, 0, 128)


def rows_of(
    network: Network, server: Callable[[Network, Path], contextlib.AbstractContextManager[None]], directory: Path
) -> list[Row]:
    ip("-n", network.router, "address", "add", f"{WAN_ADDRESS}/24", "dev", WAN_LINK)
    with contextlib.ExitStack() as stack:
        with network.at(network.lan):
            group = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        group.bind(("224.0.0.1", 5350))
        member = socket.inet_aton("224.0.0.1") + socket.inet_aton(LAN_HOST)
        group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        lan = Lan(network, stack)
        stack.enter_context(server(network, directory))
        begun = time.monotonic()
        heard = []
        while (left := begun + LISTEN_SECONDS - time.monotonic()) > 0:
            group.settimeout(left)
            with contextlib.suppress(TimeoutError):
                heard.append(group.recv(2048))
        rows = [told(case, lan) for case in (*NATPMP, *PCP)]
        rows += around(network, lan, heard)
    return rows


def page(left: list[Row], right: list[Row], version: str) -> str:
    lines = [
        "# What gateways answer",
        "",
        f"Made by `make gateway-comparison`: the same requests to `homing gateway` and to {version}, each with",
        "nftables in the same network namespaces. Sections are RFC 6886's, then RFC 6887's. Answers stand in the order",
        "of the requests; epochs are left out. ✗ marks what differs from the RFC.",
        "",
        "| request | § | the RFC | homing | miniupnpd |",
        "|---|---|---|---|---|",
    ]
    for ours_row, theirs_row in zip(left, right, strict=True):
        name, section, expected, words, ok = ours_row
        cells = [f"{'✓' if ok else '✗'} {words}", f"{'✓' if theirs_row[4] else '✗'} {theirs_row[3]}"]
        lines.append("| " + " | ".join([name, section, expected, *cells]) + " |")
    lines += [
        "",
        f"Right: homing {sum(row[4] for row in left)} of {len(left)}, miniupnpd {sum(row[4] for row in right)}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    with made("hq") as network, tempfile.TemporaryDirectory() as scratch:
        ip("-n", network.router, "address", "flush", "dev", WAN_LINK)
        ip("-n", network.wan, "address", "flush", "dev", "eth0")
        ip("-n", network.wan, "address", "add", f"{WAN_PEER}/24", "dev", "eth0")
        ip("-n", network.wan, "route", "add", "192.168.78.0/24", "via", WAN_ADDRESS)
        found = []
        for name, server in (("homing", ours), ("miniupnpd", theirs)):
            directory = Path(scratch) / name
            directory.mkdir()
            found.append(rows_of(network, server, directory))
    asked = subprocess.run(["miniupnpd", "--version"], capture_output=True, text=True, check=False)
    version = (asked.stdout or asked.stderr).split("\n")[0].split(" using")[0].strip() or "miniupnpd"
    PAGE.write_text(page(found[0], found[1], version if "miniupnpd" in version else f"miniupnpd {version}"))
    wrong = [row[0] for row in found[0] if not row[4]]
    print(f"{PAGE.name}: {len(found[0])} rows, homing wrong in {wrong or 'none'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
