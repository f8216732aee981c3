"""What every back end does, shown with packets between the namespaces lan - router - wan."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest

from gateway.backend.base import Backend
from gateway.backend.nftables import NftablesBackend
from gateway.backend.relay import Relay, RelayLimits
from gateway.backend.ruleset import NftablesOptions
from gateway.errors import InstallRefusedError
from gateway.mappings import Filter, Transport
from tests.support.namespaces import (
    LAN_HOST,
    LAN_OTHER,
    PORT,
    WAN_HOST,
    WAN_LINK,
    WAN_ROUTER,
    Network,
    accept,
    connect,
    hear,
    install,
    made,
    read,
)

CLOSED_SECONDS = 0.5
FRESH_PORTS = count(41001)
"""Of senders that are told apart by their port: the kernel remembers flows of an earlier test for a while."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made(f"hc{os.getpid() % 100000}") as network:
        yield network


@pytest.fixture(params=["relay", "nftables"])
async def backend(request: pytest.FixtureRequest, network: Network) -> AsyncIterator[Backend]:
    if request.param == "relay":
        backend: Backend = Relay(RelayLimits())
    else:
        backend = NftablesBackend(NftablesOptions(wan_interface=WAN_LINK))
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


async def udp_is_closed(network: Network) -> None:
    """A fresh sender gets a refusal from the router."""
    with network.udp(network.wan, WAN_HOST) as sender:
        await connect(sender, (WAN_ROUTER, PORT))
        sender.send(b"anyone")
        with pytest.raises(ConnectionRefusedError):
            await read(sender)


async def tcp_is_closed(network: Network) -> None:
    with network.tcp(network.wan, WAN_HOST) as sock, pytest.raises(ConnectionRefusedError):
        await connect(sock, (WAN_ROUTER, PORT))


async def test_udp_travels_both_ways(network: Network, backend: Backend) -> None:
    with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.wan, WAN_HOST) as outside:
        install(backend, inside.getsockname())
        outside.sendto(b"in", (WAN_ROUTER, PORT))
        datagram, peer = await hear(inside)
        assert datagram == b"in"
        inside.sendto(b"out", peer)
        assert await hear(outside) == (b"out", (WAN_ROUTER, PORT))


async def test_tcp_travels_both_ways_and_ends_by_halves(network: Network, backend: Backend) -> None:
    loop = asyncio.get_running_loop()
    with network.listener(network.lan, LAN_HOST) as server, network.tcp(network.wan, WAN_HOST) as outside:
        install(backend, server.getsockname(), Transport.TCP)
        await connect(outside, (WAN_ROUTER, PORT))
        with await accept(server) as inside:
            await loop.sock_sendall(outside, b"question")
            assert await read(inside) == b"question"
            outside.shutdown(socket.SHUT_WR)
            assert await read(inside) == b""
            await loop.sock_sendall(inside, b"answer")
            assert await read(outside) == b"answer"
            inside.shutdown(socket.SHUT_WR)
            assert await read(outside) == b""


async def test_the_external_address_works_from_inside(network: Network, backend: Backend) -> None:
    with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.lan, LAN_OTHER) as neighbour:
        install(backend, inside.getsockname())
        for sender in (neighbour, inside):  # a host reaches itself, too
            sender.sendto(b"round", (WAN_ROUTER, PORT))
            datagram, peer = await hear(inside)
            assert datagram == b"round"
            inside.sendto(b"back", peer)
            assert await hear(sender) == (b"back", (WAN_ROUTER, PORT))


async def test_tcp_from_inside_to_the_external_address(network: Network, backend: Backend) -> None:
    loop = asyncio.get_running_loop()
    with network.listener(network.lan, LAN_HOST) as server, network.tcp(network.lan, LAN_OTHER) as neighbour:
        install(backend, server.getsockname(), Transport.TCP)
        await connect(neighbour, (WAN_ROUTER, PORT))
        with await accept(server) as inside:
            await loop.sock_sendall(neighbour, b"question")
            assert await read(inside) == b"question"
            await loop.sock_sendall(inside, b"answer")
            assert await read(neighbour) == b"answer"


async def test_the_router_reaches_its_own_mappings(network: Network, backend: Backend) -> None:
    with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.router, WAN_ROUTER) as router:
        install(backend, inside.getsockname())
        router.sendto(b"local", (WAN_ROUTER, PORT))
        datagram, peer = await hear(inside)
        assert datagram == b"local"
        inside.sendto(b"back", peer)
        assert await hear(router) == (b"back", (WAN_ROUTER, PORT))


async def is_heard(inside: socket.socket, outside: socket.socket) -> bool:
    outside.sendto(b"knock", (WAN_ROUTER, PORT))
    try:
        datagram, peer = await hear(inside, 0.4)
    except TimeoutError:
        return False
    inside.sendto(datagram, peer)
    return await hear(outside) == (b"knock", (WAN_ROUTER, PORT))


@pytest.mark.rfc("6887", "13.3")
async def test_filters_let_in_whom_they_name(network: Network, backend: Backend) -> None:
    known, unknown = next(FRESH_PORTS), next(FRESH_PORTS)
    with (
        network.udp(network.lan, LAN_HOST) as inside,
        network.udp(network.wan, WAN_HOST, known) as friend,
        network.udp(network.wan, WAN_HOST, unknown) as other,
    ):
        here = Filter(f"{WAN_HOST}/32", 0)
        install(backend, inside.getsockname(), filters=(Filter(f"{WAN_HOST}/32", known), Filter("203.0.113.0/24", 0)))
        assert await is_heard(inside, friend)
        assert not await is_heard(inside, other)
        # Larger and smaller networks, with and without ports, one around the other.
        backend.restrict(1, (Filter("198.51.0.0/16", 40003), Filter("198.0.0.0/8", known), here))
        assert await is_heard(inside, other)
        assert await is_heard(inside, friend)
        # Who is out again is out at once, its flow included.
        backend.restrict(1, (Filter(f"{WAN_HOST}/32", known),))
        await asyncio.sleep(CLOSED_SECONDS)
        assert not await is_heard(inside, other)
        assert await is_heard(inside, friend)
        backend.restrict(1, ())
        await asyncio.sleep(CLOSED_SECONDS)
        assert await is_heard(inside, other)
        backend.restrict(99, (here,))
        backend.restrict(1, (Filter("203.0.113.0/24", 0),))
        backend.remove(1)
        install(backend, inside.getsockname())
        await asyncio.sleep(CLOSED_SECONDS)
        assert await is_heard(inside, other)


async def test_filters_for_connections(network: Network, backend: Backend) -> None:
    known, unknown = next(FRESH_PORTS), next(FRESH_PORTS)
    loop = asyncio.get_running_loop()
    with (
        network.listener(network.lan, LAN_HOST) as server,
        network.tcp(network.wan, WAN_HOST, known) as friend,
        network.tcp(network.wan, WAN_HOST, unknown) as other,
    ):
        install(backend, server.getsockname(), Transport.TCP, filters=(Filter(f"{WAN_HOST}/32", known),))
        await connect(friend, (WAN_ROUTER, PORT))
        with await accept(server) as inside:
            with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
                await connect(other, (WAN_ROUTER, PORT))
                await read(other)
                raise ConnectionResetError
            await loop.sock_sendall(friend, b"still")
            assert await read(inside) == b"still"
            backend.restrict(1, (Filter(f"{WAN_HOST}/32", 40003),))
            await asyncio.sleep(CLOSED_SECONDS)
            with pytest.raises((ConnectionResetError, TimeoutError, BrokenPipeError)):
                await loop.sock_sendall(friend, b"after")
                async with asyncio.timeout(1):
                    assert await loop.sock_recv(inside, 100) != b"after"
                raise ConnectionResetError


async def test_only_what_is_mapped_is_open(network: Network, backend: Backend) -> None:
    with network.udp(network.lan, LAN_HOST) as inside:
        await udp_is_closed(network)
        await tcp_is_closed(network)
        install(backend, inside.getsockname(), Transport.UDP)
        await tcp_is_closed(network)
        with network.udp(network.wan, WAN_HOST) as sender:
            await connect(sender, (WAN_ROUTER, PORT + 1))
            sender.send(b"anyone")
            with pytest.raises(ConnectionRefusedError):
                await read(sender)
        with pytest.raises(BlockingIOError):
            inside.recv(100)


async def test_one_port_leads_to_two_places_by_transport(network: Network, backend: Backend) -> None:
    with (
        network.udp(network.lan, LAN_HOST) as inside,
        network.listener(network.lan, LAN_HOST) as server,
        network.udp(network.wan, WAN_HOST) as datagrams,
        network.tcp(network.wan, WAN_HOST) as stream,
    ):
        install(backend, inside.getsockname(), Transport.UDP, number=1)
        install(backend, server.getsockname(), Transport.TCP, number=2)
        await connect(stream, (WAN_ROUTER, PORT))
        (await accept(server)).close()
        backend.remove(2)
        await tcp_is_closed(network)
        datagrams.sendto(b"still", (WAN_ROUTER, PORT))
        assert (await hear(inside))[0] == b"still"


async def test_a_removed_udp_mapping_is_closed_for_old_flows_too(network: Network, backend: Backend) -> None:
    with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.wan, WAN_HOST) as outside:
        install(backend, inside.getsockname())
        outside.sendto(b"before", (WAN_ROUTER, PORT))
        _, peer = await hear(inside)
        inside.sendto(b"flow", peer)
        await hear(outside)
        backend.remove(1)
        await udp_is_closed(network)
        await asyncio.sleep(CLOSED_SECONDS)
        outside.sendto(b"after", (WAN_ROUTER, PORT))
        with pytest.raises(TimeoutError):
            await hear(inside, 0.3)


async def test_a_removed_tcp_mapping_ends_its_connections(network: Network, backend: Backend) -> None:
    loop = asyncio.get_running_loop()
    with network.listener(network.lan, LAN_HOST) as server, network.tcp(network.wan, WAN_HOST) as outside:
        install(backend, server.getsockname(), Transport.TCP)
        await connect(outside, (WAN_ROUTER, PORT))
        with await accept(server) as inside:
            await loop.sock_sendall(outside, b"before")
            assert await read(inside) == b"before"
            backend.remove(1)
            await tcp_is_closed(network)
            await asyncio.sleep(CLOSED_SECONDS)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await loop.sock_sendall(outside, b"after")
                await read(outside)


async def test_a_removed_tcp_mapping_ends_its_connections_for_the_host_too(network: Network, backend: Backend) -> None:
    """The same port inside and outside, and the host speaks first."""
    loop = asyncio.get_running_loop()
    with network.listener(network.lan, LAN_HOST, PORT) as server, network.tcp(network.wan, WAN_HOST) as outside:
        install(backend, (LAN_HOST, PORT), Transport.TCP)
        await connect(outside, (WAN_ROUTER, PORT))
        with await accept(server) as inside:
            await loop.sock_sendall(inside, b"before")
            assert await read(outside) == b"before"
            backend.remove(1)
            await asyncio.sleep(CLOSED_SECONDS)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await loop.sock_sendall(inside, b"after")
                await read(inside)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await loop.sock_sendall(outside, b"after")
                await read(outside)
        # The next mapping of the same place is not hindered by the end of this one.
        install(backend, (LAN_HOST, PORT), Transport.TCP, number=2)
        with network.tcp(network.wan, WAN_HOST) as newcomer:
            await connect(newcomer, (WAN_ROUTER, PORT))
            with await accept(server) as inside:
                await loop.sock_sendall(inside, b"again")
                assert await read(newcomer) == b"again"


async def test_a_port_moves_to_another_host_with_its_flows(network: Network, backend: Backend) -> None:
    with (
        network.udp(network.lan, LAN_HOST) as first,
        network.udp(network.lan, LAN_OTHER) as second,
        network.udp(network.wan, WAN_HOST) as outside,
    ):
        install(backend, first.getsockname(), number=1)
        outside.sendto(b"one", (WAN_ROUTER, PORT))
        assert (await hear(first))[0] == b"one"
        backend.remove(1)
        install(backend, second.getsockname(), number=2)
        await asyncio.sleep(CLOSED_SECONDS)
        outside.sendto(b"two", (WAN_ROUTER, PORT))
        assert (await hear(second))[0] == b"two"


async def test_who_called_before_the_mapping_is_heard_after_it(network: Network, backend: Backend) -> None:
    with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.wan, WAN_HOST) as outside:
        outside.sendto(b"early", (WAN_ROUTER, PORT))
        await asyncio.sleep(0.05)
        install(backend, inside.getsockname())
        async with asyncio.timeout(CLOSED_SECONDS):
            while True:
                outside.sendto(b"again", (WAN_ROUTER, PORT))
                with contextlib.suppress(TimeoutError):
                    await hear(inside, 0.1)
                    break


async def test_refusals(network: Network, backend: Backend) -> None:
    inside = (LAN_HOST, 4500)
    with pytest.raises(InstallRefusedError):
        backend.check_address("192.0.2.1")
    backend.check_address(WAN_ROUTER)
    for transport in Transport:
        with pytest.raises(InstallRefusedError):
            install(backend, inside, transport, address="192.0.2.1")
    with network.udp(network.router, "0.0.0.0") as program, pytest.raises(InstallRefusedError):
        install(backend, inside, port=program.getsockname()[1])
    with network.listener(network.router, WAN_ROUTER) as program, pytest.raises(InstallRefusedError):
        install(backend, inside, Transport.TCP, port=program.getsockname()[1])
    install(backend, inside, number=7)
    with pytest.raises(InstallRefusedError):
        install(backend, (LAN_HOST, 4501), number=8)
    backend.remove(8)
    backend.remove(7)
    backend.remove(7)
    install(backend, (LAN_HOST, 4501), number=9)


async def test_the_end_closes_everything(network: Network, backend: Backend) -> None:
    with network.udp(network.lan, LAN_HOST) as inside, network.udp(network.wan, WAN_HOST) as outside:
        install(backend, inside.getsockname(), Transport.UDP, number=1)
        install(backend, inside.getsockname(), Transport.TCP, number=2)
        outside.sendto(b"before", (WAN_ROUTER, PORT))
        await hear(inside)
        await backend.stop()
        await udp_is_closed(network)
        await tcp_is_closed(network)
        outside.sendto(b"after", (WAN_ROUTER, PORT))
        with pytest.raises(TimeoutError):
            await hear(inside, 0.3)
