"""Gateways and their back ends in this process, for tests on sockets: start-up, loopback hosts, waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from gateway.app import Gateway
from gateway.backend.base import Backend
from gateway.config import GatewayConfig
from gateway.system import System
from gateway.views import Event
from protocol.natpmp import AddressRequest, MapRequest, MapResponse, Opcode, Response, decode_response

EXTERNAL, SECOND_EXTERNAL = "127.77.0.1", "127.77.0.2"
HOST_A, HOST_B = "127.0.0.11", "127.0.0.12"
WAIT = 5.0


def free_port(host: str, kind: int = socket.SOCK_DGRAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def config(directory: Path, **changes: Any) -> GatewayConfig:
    """A gateway on loopback; `changes` are whole tables."""
    sections: dict[str, Any] = {
        "natpmp": {"listen": ["127.0.0.1:0"], "announce_to": f"224.0.0.1:{free_port('0.0.0.0')}"},
        "external": {"address": EXTERNAL},
        "state": {"file": directory / "gateway.sqlite"},
    }
    return GatewayConfig.model_validate(sections | changes)


class ManualTime(System):
    """Both clocks stand where they are put; draws are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed = 0.0
        self.stepped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.elapsed

    def unix(self) -> float:
        return super().unix() + self.elapsed + self.stepped


@contextlib.asynccontextmanager
async def running(
    settings: GatewayConfig,
    events: list[Event] | None = None,
    system: System | None = None,
    backend: Backend | None = None,
) -> AsyncIterator[Gateway]:
    gateway = Gateway(settings, on_event=None if events is None else events.append, system=system, backend=backend)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


@contextlib.contextmanager
def udp(host: str, port: int = 0) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((host, port))
        yield sock


async def hear(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    """Receive one datagram. uvloop has no sock_recvfrom, so this works on readiness alone."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        async with asyncio.timeout(WAIT):
            await readable.wait()
    finally:
        loop.remove_reader(sock)
    datagram, peer = sock.recvfrom(65535)
    return datagram, peer


async def until(condition: Callable[[], object], seconds: float = WAIT) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def ask_control(path: Path, **request: Any) -> Any:
    """One request over a gateway's control socket; spares a start of the program."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(WAIT)
        sock.connect(str(path))
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as answers:
            answer = json.loads(answers.readline())
    assert answer.pop("ok"), answer
    return answer


async def ask(gateway: Gateway, request: AddressRequest | MapRequest, host: str = HOST_A) -> Response:
    (endpoint,) = gateway.natpmp_addresses
    with udp(host) as sock:
        sock.sendto(request.encode(), endpoint)
        reply, peer = await hear(sock)
        assert peer == endpoint
        return decode_response(reply)


async def map_port(
    gateway: Gateway,
    internal: int,
    suggested: int = 0,
    lifetime: int = 3600,
    *,
    tcp: bool = False,
    host: str = HOST_A,
) -> MapResponse:
    opcode = Opcode.MAP_TCP if tcp else Opcode.MAP_UDP
    request = MapRequest(opcode=opcode, internal_port=internal, suggested_port=suggested, lifetime=lifetime)
    response = await ask(gateway, request, host)
    assert isinstance(response, MapResponse)
    return response
