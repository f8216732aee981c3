"""The gateway on a router whose interfaces and addresses come, go and change: real netlink, in network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from client_stub.mapping_core import NatKind
from client_stub.nat import NatDriver
from client_stub.natpmp_client import NatPmpClient, NatSettings
from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.errors import StartError
from protocol import natpmp, pcp
from tests.support.gateways import hear, running, until
from tests.support.namespaces import LAN_HOST, LAN_LINK, LAN_ROUTER, WAN_HOST, WAN_LINK, WAN_ROUTER, Network, ip, made

NEW_WAN = "198.51.100.77"
GROUP = (IPv4Address("224.0.0.1"), 5350)
GROUP_ENDPOINT = ("224.0.0.1", 5350)


@pytest.fixture
def network() -> Iterator[Network]:
    with made(f"hs{os.getpid() % 100000}") as network:
        yield network


def config(directory: Path, **changes: Any) -> GatewayConfig:
    tables: dict[str, Any] = {
        "backend": "nftables",
        "nftables": {"wan_interface": WAN_LINK},
        "natpmp": {},
        "lan": {"interfaces": [LAN_LINK]},
        "state": {"file": str(directory / "state.sqlite")},
    }
    return GatewayConfig.model_validate(tables | changes)


def address(network: Network, action: str, text: str, link: str = WAN_LINK) -> None:
    ip("-n", network.router, "address", action, f"{text}/24", "dev", link)


async def asked(sock: socket.socket, router: str = LAN_ROUTER) -> natpmp.AddressResponse:
    sock.sendto(b"\0\0", (router, 5351))
    reply, peer = await hear(sock)
    assert peer == (router, 5351)
    response = natpmp.decode_response(reply)
    assert isinstance(response, natpmp.AddressResponse)
    return response


def pcp_map(port: int, nonce: bytes) -> bytes:
    body = pcp.MapBody(
        nonce=nonce, protocol=17, internal_port=port, external_port=0, external_address=IPv4Address("0.0.0.0")
    )
    return pcp.Request(opcode=pcp.Opcode.MAP, lifetime=3600, client=IPv4Address(LAN_HOST), body=body).encode()


@contextlib.asynccontextmanager
async def natpmp_clients(network: Network, count: int) -> AsyncIterator[list[NatDriver]]:
    """Clients on the LAN host, each with a mapping."""
    drivers = []
    try:
        for number in range(count):
            driver = NatDriver(
                gateway=(IPv4Address(LAN_ROUTER), 5351),
                source=IPv4Address(LAN_HOST),
                announcements=GROUP,
                interface=IPv4Address(LAN_HOST),
                core=NatPmpClient(
                    IPv4Address(LAN_ROUTER), NatSettings(internal_port=6000 + number), random.Random(number)
                ),
                on_state=lambda state: None,
            )
            with network.at(network.lan):
                await driver.start()
            drivers.append(driver)
        await until(lambda: all(driver.state.kind is NatKind.MAPPED for driver in drivers))
        yield drivers
    finally:
        for driver in drivers:
            driver.abort()


@pytest.mark.rfc("6886", "3.2.1")
@pytest.mark.rfc("6887", "14.2")
@pytest.mark.rfc("6887", "14.1.3")
async def test_renumbering_reaches_ten_clients_at_once(network: Network, tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway, natpmp_clients(network, 5) as drivers:
        with contextlib.ExitStack() as stack:
            pcp_clients = [stack.enter_context(network.udp(network.lan, LAN_HOST)) for _ in range(5)]
            ports = []
            for number, client in enumerate(pcp_clients):
                client.sendto(pcp_map(7000 + number, bytes([number] * 12)), (LAN_ROUTER, 5351))
                response = pcp.decode_response((await hear(client))[0])
                assert response.body is not None
                assert str(response.body.external_address) == WAN_ROUTER
                ports.append(response.body.external_port)
            assert len(gateway.mappings()) == 10
            before = time.monotonic()
            address(network, "del", WAN_ROUTER)
            address(network, "add", NEW_WAN)
            for client, port in zip(pcp_clients, ports, strict=True):
                update = pcp.decode_response((await hear(client))[0])
                assert update.body is not None
                assert (str(update.body.external_address), update.body.external_port) == (NEW_WAN, port)
            await until(lambda: all(str(driver.state.address) == NEW_WAN for driver in drivers))
            assert time.monotonic() - before < 2
            assert {driver.state.kind for driver in drivers} == {NatKind.MAPPED}
            # And what they know is true: packets arrive by the new address.
            inside = stack.enter_context(network.udp(network.lan, LAN_HOST, 7000))
            outside = stack.enter_context(network.udp(network.wan, WAN_HOST))
            outside.sendto(b"in", (NEW_WAN, ports[0]))
            assert (await hear(inside))[0] == b"in"


async def test_an_added_address_changes_nothing(network: Network, tmp_path: Path) -> None:
    """Several external addresses count as one, the one that there was (RFC 6886 §3.3)."""
    async with running(config(tmp_path)) as gateway:
        address(network, "add", NEW_WAN)
        address(network, "add", "192.168.78.9", LAN_LINK)
        await until(lambda: len(gateway.natpmp_addresses) == 2)
        assert gateway.external_address == WAN_ROUTER


async def test_loss_and_gain_of_the_address_are_told(network: Network, tmp_path: Path) -> None:
    address(network, "del", WAN_ROUTER)
    async with running(config(tmp_path)), natpmp_clients_waiting(network) as (client, member):
        response = await asked(client)
        assert (response.result, str(response.address)) == (natpmp.ResultCode.NETWORK_FAILURE, "0.0.0.0")
        address(network, "add", WAN_ROUTER)
        assert await announced(member, WAN_ROUTER)
        assert str((await asked(client)).address) == WAN_ROUTER
        ip("-n", network.router, "link", "set", WAN_LINK, "down")
        assert await announced(member, "0.0.0.0")
        client.sendto(struct.pack(">BBHHHI", 0, 1, 0, 4500, 0, 3600), (LAN_ROUTER, 5351))
        assert (await hear(client))[0][3] == natpmp.ResultCode.NETWORK_FAILURE
        ip("-n", network.router, "link", "set", WAN_LINK, "up")
        assert await announced(member, WAN_ROUTER)


@contextlib.asynccontextmanager
async def natpmp_clients_waiting(network: Network) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """A socket to ask with and one that hears announcements."""
    with network.udp(network.lan, LAN_HOST) as client, network.udp(network.lan, *GROUP_ENDPOINT) as member:
        join(member, LAN_HOST)
        yield client, member


def join(sock: socket.socket, host: str) -> None:
    membership = struct.pack("=4s4s", GROUP[0].packed, socket.inet_aton(host))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)


async def announced(member: socket.socket, text: str) -> bool:
    """Wait for an announcement of this address, by both protocols."""
    seen = False
    while True:
        datagram, (_, port) = await hear(member)
        assert port == 5351
        if datagram[0] == 0:
            response = natpmp.decode_response(datagram)
            assert isinstance(response, natpmp.AddressResponse)
            seen = seen or str(response.address) == text
        elif seen:
            assert pcp.decode_response(datagram).opcode == pcp.Opcode.ANNOUNCE
            return True


async def test_an_interface_that_comes_is_served_and_one_that_goes_is_not(network: Network, tmp_path: Path) -> None:
    settings = config(tmp_path, lan={"interfaces": [LAN_LINK, "guest0"]})
    async with running(settings) as gateway:
        assert [endpoint.host for endpoint in gateway.natpmp_addresses] == [LAN_ROUTER]
        ip(
            "link",
            "add",
            "guest0",
            "netns",
            network.router,
            "type",
            "veth",
            "peer",
            "name",
            "eth1",
            "netns",
            network.lan,
        )
        address(network, "add", "192.168.90.1", "guest0")
        ip("-n", network.lan, "address", "add", "192.168.90.2/24", "dev", "eth1")
        ip("-n", network.lan, "link", "set", "eth1", "up")
        with network.udp(network.lan, "192.168.90.2") as client, network.udp(network.lan, *GROUP_ENDPOINT) as member:
            join(member, "192.168.90.2")
            ip("-n", network.router, "link", "set", "guest0", "up")
            await until(lambda: len(gateway.natpmp_addresses) == 2)
            assert await announced(member, WAN_ROUTER)
            assert str((await asked(client, "192.168.90.1")).address) == WAN_ROUTER
            # By the one interface nobody gets an answer from the address of the other.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth1")
            client.sendto(b"\0\0", (LAN_ROUTER, 5351))
            await until(lambda: gateway.counters["not internal"] == 1)
        ip("-n", network.router, "link", "del", "guest0")
        await until(lambda: len(gateway.natpmp_addresses) == 1)


async def test_a_named_address_may_move_to_another_interface(network: Network, tmp_path: Path) -> None:
    settings = config(tmp_path, lan={}, natpmp={"listen": [f"{LAN_ROUTER}:5351", "192.168.90.1:5351"]})
    async with running(settings) as gateway:
        assert len(gateway.natpmp_addresses) == 1
        address(network, "add", "192.168.90.1", LAN_LINK)
        await until(lambda: len(gateway.natpmp_addresses) == 2)
        with network.udp(network.lan, LAN_HOST) as client:
            await asked(client, "192.168.90.1")
            address(network, "del", "192.168.90.1", LAN_LINK)
            address(network, "add", "192.168.90.1", LAN_LINK)
            async with asyncio.timeout(5):
                await asked(client, "192.168.90.1")


@pytest.mark.rfc("6886", "3")
@pytest.mark.rfc("6887", "8.2")
@pytest.mark.rfc("6886", "3.3")
async def test_nobody_outside_is_answered(network: Network, tmp_path: Path) -> None:
    """Neither at the external address nor at an internal one that routes lead to (VU#184540)."""
    async with running(config(tmp_path)) as gateway:
        with network.udp(network.wan, WAN_HOST) as sender:
            for request in (b"\0\0", pcp_map(1, bytes(12))):
                sender.sendto(request, (WAN_ROUTER, 5351))
                sender.sendto(request, (LAN_ROUTER, 5351))
            await until(lambda: gateway.counters["not internal"] == 2)
            with pytest.raises(BlockingIOError):
                sender.recv(100)
        # Should the outer interface get an internal address as well, nothing changes.
        address(network, "add", LAN_ROUTER)
        with network.udp(network.wan, WAN_HOST) as sender, network.udp(network.lan, LAN_HOST) as client:
            await asyncio.sleep(0.5)
            sender.sendto(b"\0\0", (LAN_ROUTER, 5351))
            await until(lambda: gateway.counters["not internal"] == 3)
            address(network, "del", LAN_ROUTER)
            await asked(client)


async def test_an_internal_address_on_the_outer_interface_is_refused(network: Network, tmp_path: Path) -> None:
    settings = config(tmp_path, lan={}, natpmp={"listen": [f"{WAN_ROUTER}:5351"]})
    with pytest.raises(StartError, match=f"an address of the external interface {WAN_LINK}"):
        await Gateway(settings).start()


async def test_no_internal_address_at_all_is_refused(network: Network, tmp_path: Path) -> None:
    settings = config(tmp_path, lan={}, natpmp={"listen": ["192.168.90.1:5351"]})
    with pytest.raises(StartError, match=r"^NAT-PMP on 192\.168\.90\.1:5351: "):
        await Gateway(settings).start()


async def test_a_command_gives_the_address(network: Network, tmp_path: Path) -> None:
    answer = tmp_path / "address"
    answer.write_text(WAN_ROUTER)
    command = [sys.executable, "-c", f"print(open({str(answer)!r}).read())"]
    external = {"command": command, "command_seconds": 1}
    async with running(config(tmp_path, external=external)) as gateway:
        await until(lambda: gateway.external_address == WAN_ROUTER)
        answer.write_text("192.0.2.55")  # not an address of this machine: mappings there would carry nothing
        await until(lambda: gateway.external_address is None)
        answer.write_text(WAN_ROUTER)
        await until(lambda: gateway.external_address == WAN_ROUTER)
