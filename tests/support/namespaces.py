"""Network namespaces lan - router - wan, entered by this very process: a socket stays in the one it was made in."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.backend.base import Backend
from gateway.mappings import Filter, Install, Key, Mapping, Origin, Transport

LAN_HOST, LAN_ROUTER = "192.168.78.2", "192.168.78.1"
LAN_OTHER = "192.168.78.3"
WAN_ROUTER, WAN_HOST = "198.51.100.1", "198.51.100.2"
WAN_LINK, LAN_LINK = "outer0", "inner0"
PORT = 40123
WAIT = 5.0
_CLONE_NEWNET = 0x40000000


def must_have(condition: bool, reason: str) -> None:
    """Skip where the machine cannot do it; under continuous integration that is a failure."""
    if not condition:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=WAIT)


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """Have this thread in a network namespace for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as stack:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, before)
        inside = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, inside)
        if libc.setns(inside, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            if libc.setns(before, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


class Network:
    """The three namespaces, by name."""

    def __init__(self, mark: str) -> None:
        self.lan, self.router, self.wan = f"{mark}l", f"{mark}r", f"{mark}w"

    def at(self, name: str) -> contextlib.AbstractContextManager[None]:
        return entered(Path("/run/netns") / name)

    def udp(self, name: str, host: str, port: int = 0) -> socket.socket:
        with self.at(name):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, port))
        sock.setblocking(False)
        return sock

    def listener(self, name: str, host: str, port: int = 0) -> socket.socket:
        with self.at(name):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()
        sock.setblocking(False)
        return sock

    def tcp(self, name: str, host: str, port: int = 0) -> socket.socket:
        """A socket to connect with."""
        with self.at(name):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.bind((host, port))
        sock.setblocking(False)
        return sock

    def nft(self, *arguments: str) -> str:
        """Run `nft` on the router, as its owner might."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.router, "nft", *arguments], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def made(mark: str) -> Iterator[Network]:
    """Make the namespaces, and remove them at the end."""
    must_have(os.geteuid() == 0, "network namespaces need root")
    for program in ("ip", "nft"):
        must_have(shutil.which(program) is not None, f"{program} is not installed")
    network = Network(mark)
    with ExitStack() as stack:
        for name in (network.lan, network.router, network.wan):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        for link, host, router_address, host_addresses in (
            (LAN_LINK, network.lan, LAN_ROUTER, (LAN_HOST, LAN_OTHER)),
            (WAN_LINK, network.wan, WAN_ROUTER, (WAN_HOST,)),
        ):
            ip("link", "add", link, "netns", network.router, "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("-n", network.router, "address", "add", f"{router_address}/24", "dev", link)
            ip("-n", network.router, "link", "set", link, "up")
            for address in host_addresses:
                ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
        ip("-n", network.lan, "route", "add", "default", "via", LAN_ROUTER)
        # The wan side knows a way to the internal addresses: only the router can refuse then.
        ip("-n", network.wan, "route", "add", "192.168.78.0/24", "via", WAN_ROUTER)
        with network.at(network.router):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            # Linux answers a closed port a few times a second only, which is no matter of these tests.
            Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
            # A router's own ruleset: the usual masquerading, and forwarding closed but for what is meant to pass.
            network.nft(ROUTER_RULES)
            yield network


ROUTER_RULES = f"""
table ip router {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{WAN_LINK}" masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "{LAN_LINK}" accept
    ct status dnat accept
  }}
}}
"""


def install(
    backend: Backend,
    inside: tuple[str, int],
    transport: Transport = Transport.UDP,
    port: int = PORT,
    number: int = 1,
    address: str = WAN_ROUTER,
    filters: tuple[Filter, ...] = (),
) -> None:
    mapping = Mapping(
        key=Key(transport, *inside), external_port=port, origin=Origin.NATPMP, expires_at=1e9, filters=filters
    )
    backend.install(Install(number, mapping, address))


async def hear(sock: socket.socket, seconds: float = WAIT) -> tuple[bytes, tuple[str, int]]:
    async with asyncio.timeout(seconds):
        datagram, peer = await asyncio.get_running_loop().sock_recvfrom(sock, 65535)
    return datagram, peer


async def accept(sock: socket.socket) -> socket.socket:
    async with asyncio.timeout(WAIT):
        connection, _ = await asyncio.get_running_loop().sock_accept(sock)
    return connection


async def read(sock: socket.socket) -> bytes:
    async with asyncio.timeout(WAIT):
        return await asyncio.get_running_loop().sock_recv(sock, 65535)


async def connect(sock: socket.socket, endpoint: tuple[str, int]) -> None:
    async with asyncio.timeout(WAIT):
        await asyncio.get_running_loop().sock_connect(sock, endpoint)
