"""The relay alone: bounds, idle flows, resets. What travels through a whole gateway is in test_gateway_app."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.backend.relay import Relay, RelayLimits
from gateway.errors import InstallRefusedError
from gateway.mappings import Install, Key, Mapping, Origin, Transport
from tests.support.gateways import EXTERNAL, HOST_A, WAIT, hear, udp, until

INSIDE = HOST_A


@contextlib.asynccontextmanager
async def relaying(**limits: Any) -> AsyncIterator[Relay]:
    relay = Relay(RelayLimits(**limits))
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


def install(relay: Relay, transport: Transport, inner_port: int, number: int = 1, address: str = EXTERNAL) -> int:
    """Install a mapping on a port that is free now; returns the port."""
    kind = socket.SOCK_DGRAM if transport is Transport.UDP else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((EXTERNAL, 0))
        port: int = probe.getsockname()[1]
    key = Key(transport, INSIDE, inner_port)
    mapping = Mapping(key=key, external_port=port, origin=Origin.NATPMP, expires_at=1e9)
    relay.install(Install(number, mapping, address))
    return port


async def test_an_idle_flow_ends_and_a_used_one_does_not() -> None:
    async with relaying(udp_idle_seconds=0.3) as relay:
        with udp(INSIDE) as inside, udp("127.0.0.1") as idle, udp("127.0.0.1") as busy:
            port = install(relay, Transport.UDP, inside.getsockname()[1])
            idle.sendto(b"idle", (EXTERNAL, port))
            await hear(inside)
            busy_flows = set()
            for _ in range(8):
                busy.sendto(b"busy", (EXTERNAL, port))
                busy_flows.add((await hear(inside))[1])
                await asyncio.sleep(0.1)
            assert len(busy_flows) == 1
            assert relay._udp is not None
            assert len(relay._udp) == 1
            await until(lambda: relay._udp is not None and len(relay._udp) == 0)


async def test_a_full_flow_table_gives_up_unanswered_flows_only() -> None:
    async with relaying(udp_flows=2) as relay:
        with contextlib.ExitStack() as stack:
            inside, answered, first, second = (
                stack.enter_context(udp(host)) for host in (INSIDE, "127.0.0.1", "127.0.0.1", "127.0.0.1")
            )
            outside = (EXTERNAL, install(relay, Transport.UDP, inside.getsockname()[1]))
            answered.sendto(b"a", outside)
            _, flow = await hear(inside)
            inside.sendto(b"yes", flow)
            assert (await hear(answered))[0] == b"yes"
            first.sendto(b"b", outside)
            await hear(inside)
            second.sendto(b"c", outside)
            _, second_flow = await hear(inside)
            assert relay.counters["udp flows evicted"] == 1
            inside.sendto(b"still", flow)
            assert (await hear(answered))[0] == b"still"
            inside.sendto(b"too", second_flow)
            assert (await hear(second))[0] == b"too"
            # All are answered now: a newcomer has to wait.
            first.sendto(b"d", outside)
            await until(lambda: relay.counters["udp flows refused"] == 1)


async def test_connections_beyond_the_limit_are_reset() -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(hold, INSIDE, 0)
    async with server, relaying(tcp_connections=1) as relay:
        outside = (EXTERNAL, install(relay, Transport.TCP, server.sockets[0].getsockname()[1]))
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            for sock in (first, second, third):
                sock.setblocking(False)
            await loop.sock_connect(first, outside)
            assert await loop.sock_recv(first, 1) == b"x"
            with pytest.raises(ConnectionResetError):  # it may come before the connecting has been noticed
                await loop.sock_connect(second, outside)
                await loop.sock_recv(second, 1)
            first.close()
            await until(lambda: relay._tcp is not None and len(relay._tcp) == 0)
            await loop.sock_connect(third, outside)
            assert await loop.sock_recv(third, 1) == b"x"


async def test_a_reset_outside_is_a_reset_inside() -> None:
    ended: asyncio.Queue[bool] = asyncio.Queue()

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            await reader.read()
            await ended.put(False)
        except ConnectionResetError:
            await ended.put(True)
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(inside, INSIDE, 0)
    async with server, relaying() as relay:
        outside = (EXTERNAL, install(relay, Transport.TCP, server.sockets[0].getsockname()[1]))
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, outside)
            assert await loop.sock_recv(sock, 1) == b"x"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with asyncio.timeout(WAIT):
            assert await ended.get()
        await until(lambda: relay._tcp is not None and len(relay._tcp) == 0)


async def test_refusals_leave_nothing_behind() -> None:
    async with relaying() as relay:
        with pytest.raises(InstallRefusedError):
            relay.check_address("192.0.2.1")
        for transport in Transport:
            with pytest.raises(InstallRefusedError):
                install(relay, transport, 4500, address="192.0.2.1")
        relay.remove(1)
        port = install(relay, Transport.UDP, 4500, 7)
        key = Key(Transport.UDP, INSIDE, 4501)
        again = Mapping(key=key, external_port=port, origin=Origin.NATPMP, expires_at=None)
        with pytest.raises(InstallRefusedError):
            relay.install(Install(8, again, EXTERNAL))
        relay.remove(7)
        relay.install(Install(9, again, EXTERNAL))


async def test_nobody_inside_costs_a_udp_sender_nothing_but_silence() -> None:
    async with relaying() as relay:
        with udp(INSIDE) as gone:
            port = gone.getsockname()[1]
        with udp("127.0.0.1") as sender:
            outside = (EXTERNAL, install(relay, Transport.UDP, port))
            sender.sendto(b"anyone", outside)
            await until(lambda: relay.counters["udp refused inside"] == 1)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
                late.setblocking(False)
                late.bind((INSIDE, port))
                sender.sendto(b"now", outside)
                assert (await hear(late))[0] == b"now"


@pytest.mark.parametrize(
    "scenario",
    [
        test_an_idle_flow_ends_and_a_used_one_does_not,
        test_a_full_flow_table_gives_up_unanswered_flows_only,
        test_connections_beyond_the_limit_are_reset,
        test_a_reset_outside_is_a_reset_inside,
        test_refusals_leave_nothing_behind,
        test_nobody_inside_costs_a_udp_sender_nothing_but_silence,
    ],
)
def test_under_uvloop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The two loops differ in when they read, pause and report, so what depends on that runs on both."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
