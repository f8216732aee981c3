"""IPv6 through the router: closed but for what PCP clients open, shown with packets and with requests over IPv6."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from protocol import pcp
from tests.support.namespaces import LAN_LINK, WAN_LINK, Network, ip, made
from tests.support.router import gateway, mappings

LAN_HOST, LAN_OTHER, LAN_ROUTER = "2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::1"
WAN_HOST, WAN_OTHER, WAN_ROUTER = "2001:db8:2::2", "2001:db8:2::3", "2001:db8:2::1"
PORT = 4500
WAIT = 5.0
QUIET = 0.4
NONCE = b"twelve octet"
OPEN_IPV6 = "[igd]\nenabled = false\n"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made(f"h6{os.getpid() % 100000}") as network:
        for name, link, addresses in (
            (network.router, LAN_LINK, (LAN_ROUTER,)),
            (network.router, WAN_LINK, (WAN_ROUTER,)),
            (network.lan, "eth0", (LAN_HOST, LAN_OTHER)),
            (network.wan, "eth0", (WAN_HOST, WAN_OTHER)),
        ):
            for address in addresses:
                ip("-n", name, "address", "add", f"{address}/64", "dev", link, "nodad")
        ip("-n", network.lan, "-6", "route", "add", "default", "via", LAN_ROUTER)
        ip("-n", network.wan, "-6", "route", "add", "default", "via", WAN_ROUTER)
        with network.at(network.router):
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        yield network


@pytest.fixture(scope="module")
def log(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("pinholes")
    with gateway(network, directory, OPEN_IPV6, nftables="ipv6 = true\n", address="198.51.100.1") as log:
        yield log


def udp(network: Network, name: str, host: str, port: int = 0) -> socket.socket:
    with network.at(name):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.settimeout(WAIT)
    sock.bind((host, port))
    return sock


def ask(sock: socket.socket, server: str, *options: pcp.Option, lifetime: int = 600) -> pcp.Response:
    request = pcp.Request(
        opcode=pcp.Opcode.MAP,
        lifetime=lifetime,
        client=IPv6Address(sock.getsockname()[0]),
        body=pcp.MapBody(
            nonce=NONCE, protocol=17, internal_port=PORT, external_port=0, external_address=IPv6Address(0)
        ),
        options=options,
    )
    address, _, index = server.partition("%")
    sock.sendto(request.encode(), (address, 5351, 0, int(index or 0)))
    datagram, peer = sock.recvfrom(2048)
    assert peer[:2] == (address, 5351)
    return pcp.decode_response(datagram)


def gets_through(inside: socket.socket, outside: socket.socket) -> bool:
    inside.settimeout(QUIET)
    outside.sendto(b"knock", (LAN_HOST, PORT))
    try:
        datagram, peer = inside.recvfrom(100)
    except TimeoutError:
        return False
    assert peer[:2] == outside.getsockname()[:2]
    inside.sendto(datagram, peer)
    return outside.recvfrom(100)[0] == b"knock"


def link_address(network: Network) -> str:
    """The router's on the LAN, which is what hosts have as their default router."""
    with network.at(network.lan):
        index = socket.if_nametoindex("eth0")
    with network.at(network.router):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            octets, *_, name = line.split()
            if name == LAN_LINK and octets.startswith("fe80"):
                return f"{IPv6Address(bytes.fromhex(octets))}%{index}"
    raise AssertionError("no address of the link")


@pytest.mark.rfc("6887", "11")
def test_a_pinhole_opens_is_filtered_and_closes(network: Network, log: Path) -> None:
    with (
        udp(network, network.lan, LAN_HOST, PORT) as inside,
        udp(network, network.lan, LAN_HOST) as client,
        udp(network, network.wan, WAN_HOST) as outside,
        udp(network, network.wan, WAN_OTHER) as other,
    ):
        assert not gets_through(inside, outside)
        inside.sendto(b"out", outside.getsockname())
        peer = outside.recvfrom(100)[1]
        outside.sendto(b"answer", peer)
        inside.settimeout(WAIT)
        assert inside.recv(100) == b"answer"
        assert not gets_through(inside, other)
        made = ask(client, LAN_ROUTER)
        assert made.result == pcp.ResultCode.SUCCESS
        assert made.body is not None
        assert (made.body.external_port, str(made.body.external_address)) == (PORT, LAN_HOST)
        assert gets_through(inside, other)
        network.nft("flush", "ruleset")
        deadline = time.monotonic() + WAIT
        while "inet homing" not in network.nft("list", "tables") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert gets_through(inside, other)
        only = pcp.Filter(prefix_length=128, remote_port=0, address=IPv6Address(WAN_HOST))
        restricted = ask(client, LAN_ROUTER, only)
        assert (restricted.result, restricted.options) == (pcp.ResultCode.SUCCESS, (only,))
        assert gets_through(inside, outside)
        assert not gets_through(inside, other)
        assert ask(client, LAN_ROUTER, lifetime=0).result == pcp.ResultCode.SUCCESS
        assert not gets_through(inside, other)
    made_and_deleted = [line.split()[:2] for line in mappings(log)]
    assert made_and_deleted[-2:] == [["mapping", "created"], ["mapping", "deleted"]]


def test_requests_to_the_address_of_the_link(network: Network, log: Path) -> None:
    with udp(network, network.lan, LAN_OTHER) as client:
        assert ask(client, link_address(network)).result == pcp.ResultCode.SUCCESS
        assert ask(client, link_address(network), lifetime=0).result == pcp.ResultCode.SUCCESS


def test_what_is_not_for_ipv6(network: Network, log: Path) -> None:
    with udp(network, network.lan, LAN_HOST) as client:
        # NAT-PMP is of IPv4: its version is refused, in words that its clients understand.
        client.sendto(b"\0\0", (LAN_ROUTER, 5351))
        assert client.recv(100)[:4] == b"\2\x80\0\1"
        request = pcp.Request(opcode=pcp.Opcode.ANNOUNCE, lifetime=0, client=IPv6Address(LAN_OTHER))
        client.sendto(request.encode(), (LAN_ROUTER, 5351))
        assert pcp.decode_response(client.recv(100)).result == pcp.ResultCode.ADDRESS_MISMATCH


@pytest.mark.rfc("6887", "8.2")
def test_the_outside_is_not_answered(network: Network, log: Path) -> None:
    with udp(network, network.wan, WAN_HOST) as client:
        client.settimeout(QUIET)
        for server in (LAN_ROUTER, WAN_ROUTER):
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                ask(client, server)


@pytest.mark.rfc("6887", "14.1")
def test_announcements_reach_the_link(network: Network, log: Path) -> None:
    with network.at(network.lan):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("::", 5350))
        sock.settimeout(WAIT)
        # An internal address that comes is told of the gateway.
        ip("-n", network.router, "address", "add", "fd00:1::1/64", "dev", LAN_LINK, "nodad")
        datagram, peer = sock.recvfrom(2048)
        assert pcp.decode_response(datagram).opcode == pcp.Opcode.ANNOUNCE
        assert peer[1] == 5351
        ip("-n", network.router, "address", "del", "fd00:1::1/64", "dev", LAN_LINK)
