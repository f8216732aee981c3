"""A whole gateway with either back end: what a LAN host maps is open, and closed within a second of its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import GatewayConfig
from tests.support.gateways import hear, running
from tests.support.namespaces import (
    LAN_HOST,
    LAN_LINK,
    LAN_OTHER,
    LAN_ROUTER,
    WAN_HOST,
    WAN_LINK,
    WAN_ROUTER,
    Network,
    accept,
    connect,
    made,
    read,
)

INNER_PORT = 4500
SHORTEST = 2
"""Seconds of the shortest lifetime here."""
CLOSED_WITHIN = 1.0


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made(f"hp{os.getpid() % 100000}") as network:
        yield network


def config(directory: Path, backend: str) -> GatewayConfig:
    tables = {
        "backend": backend,
        "lan": {"interfaces": [LAN_LINK]},
        "external": {"interface": WAN_LINK},
        "limits": {"shortest_lifetime_seconds": SHORTEST},
        "state": {"file": str(directory / "state.sqlite")},
    }
    if backend == "nftables":
        tables["nftables"] = {"wan_interface": WAN_LINK}
    return GatewayConfig.model_validate(tables)


async def ask(client: socket.socket, opcode: int, lifetime: int, suggested: int = 0) -> int:
    """Map the inner port, or end that with lifetime 0; gives the external port."""
    client.sendto(struct.pack(">BBHHHI", 0, opcode, 0, INNER_PORT, suggested, lifetime), (LAN_ROUTER, 5351))
    reply, _ = await hear(client)
    _, answered, result, _, _, port, _ = struct.unpack(">BBHIHHI", reply)
    assert (answered, result) == (128 + opcode, 0)
    return int(port)


async def tcp_opens(network: Network, port: int) -> bool:
    with network.tcp(network.wan, WAN_HOST) as peer:
        try:
            await connect(peer, (WAN_ROUTER, port))
        except (OSError, TimeoutError):
            return False
    return True


async def is_closed(network: Network, port: int, since: float) -> None:
    """From a fresh source on the wan side neither transport gets in any more, a second after `since` at the latest."""
    await asyncio.sleep(max(0.0, since + CLOSED_WITHIN - time.monotonic()))
    assert not await tcp_opens(network, port)
    with network.udp(network.wan, WAN_HOST) as peer:
        await connect(peer, (WAN_ROUTER, port))
        peer.send(b"anyone")
        with pytest.raises(ConnectionRefusedError):
            await read(peer)


@pytest.mark.parametrize("end", ["deleted", "lapsed"])
@pytest.mark.parametrize("backend", ["relay", "nftables"])
async def test_from_mapping_to_closing(network: Network, tmp_path: Path, backend: str, end: str) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(network.udp(network.lan, LAN_HOST))
        inside = stack.enter_context(network.udp(network.lan, LAN_HOST, INNER_PORT))
        server = stack.enter_context(network.listener(network.lan, LAN_HOST, INNER_PORT))
        outside = stack.enter_context(network.udp(network.wan, WAN_HOST))
        neighbour = stack.enter_context(network.udp(network.lan, LAN_OTHER))
        async with running(config(tmp_path, backend)):
            lifetime = SHORTEST if end == "lapsed" else 3600
            mapped_at = time.monotonic()
            port = await ask(client, 1, lifetime)
            assert await ask(client, 2, lifetime, port) == port
            # UDP: in, and the reply from the mapped port; then from inside by the external address.
            outside.sendto(b"in", (WAN_ROUTER, port))
            datagram, peer = await hear(inside)
            assert datagram == b"in"
            inside.sendto(b"reply", peer)
            assert await hear(outside) == (b"reply", (WAN_ROUTER, port))
            neighbour.sendto(b"hairpin", (WAN_ROUTER, port))
            datagram, peer = await hear(inside)
            inside.sendto(datagram, peer)
            assert await hear(neighbour) == (b"hairpin", (WAN_ROUTER, port))
            if backend == "nftables":
                # The relay is not on the way of what a host sends by itself.
                with network.udp(network.wan, WAN_HOST) as stranger:
                    inside.sendto(b"fresh", stranger.getsockname())
                    assert await hear(stranger) == (b"fresh", (WAN_ROUTER, port))
            # TCP, with a connection that stays.
            standing = stack.enter_context(network.tcp(network.wan, WAN_HOST))
            await connect(standing, (WAN_ROUTER, port))
            connection = stack.enter_context(await accept(server))
            await loop.sock_sendall(standing, b"question")
            assert await read(connection) == b"question"
            assert not await tcp_opens(network, port + 1 if port < 65535 else port - 1)
            if end == "deleted":
                await ask(client, 1, 0)
                await ask(client, 2, 0)
                ended_at = time.monotonic()
            else:
                ended_at = max(time.monotonic(), mapped_at + SHORTEST)
            await is_closed(network, port, ended_at)
            # Who was connected learns of it, old flows included.
            outside.sendto(b"old flow", (WAN_ROUTER, port))
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await loop.sock_sendall(standing, b"still there?")
                assert await read(standing) == b""
            await asyncio.sleep(0.2)
            with pytest.raises(BlockingIOError):
                while True:
                    assert inside.recv(100) == b"hairpin"
