"""Driver of the NAT-PMP and PCP clients: one socket to the gateway, one for announcements (RFC 6886 §3.2.1)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Protocol

import structlog

from client_stub import clock
from client_stub.mapping_core import Changed, Closed, Effect, NatState, Send

log = structlog.get_logger(__name__)


class Core(Protocol):
    """What asks the gateway: `NatPmpClient` or `PcpClient`."""

    @property
    def state(self) -> NatState: ...

    @property
    def lapses_at(self) -> float | None: ...

    def start(self, *, now: float) -> None: ...

    def receive(self, datagram: bytes, source: IPv4Address, *, now: float) -> None: ...

    def unreachable(self, *, now: float) -> None: ...

    def shutdown(self, *, now: float) -> None: ...

    def next_deadline(self) -> float | None: ...

    def handle_deadline(self, *, now: float) -> None: ...

    def take_effects(self) -> list[Effect]: ...


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes, IPv4Address], None], on_refused: Callable[[], None]) -> None:
        self._on_datagram = on_datagram
        self._on_refused = on_refused

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._on_datagram(data, IPv4Address(addr[0]))

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self._on_refused()


def announcement_socket(group: tuple[IPv4Address, int], interface: IPv4Address) -> socket.socket:
    """A socket that hears only what is sent to the group, shared with other clients of this machine.

    A unicast `group` is simply bound: a gateway that is told to announce there reaches us.
    """
    handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        handle.setblocking(False)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        handle.bind((str(group[0]), group[1]))
        if group[0].is_multicast:
            membership = struct.pack("=4s4si", group[0].packed, interface.packed, 0)
            handle.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError:
        handle.close()
        raise
    return handle


class NatDriver:
    """One mapping at one gateway, kept until `close` (which deletes it) or `abort` (which does not)."""

    def __init__(
        self,
        *,
        gateway: tuple[IPv4Address, int],
        source: IPv4Address,
        announcements: tuple[IPv4Address, int],
        interface: IPv4Address,
        core: Core,
        on_state: Callable[[NatState], None],
    ) -> None:
        self._gateway = gateway
        self._source = source
        self._announcements = announcements
        self._interface = interface
        self._core = core
        self._on_state = on_state
        self._timer = clock.Timer(self._on_timer)
        self._transports: list[asyncio.DatagramTransport] = []
        self._requests: asyncio.DatagramTransport | None = None
        self._closed = asyncio.Event()

    @property
    def state(self) -> NatState:
        return self._core.state

    @property
    def lapses_at(self) -> float | None:
        return self._core.lapses_at

    async def start(self) -> None:
        """Open the sockets and begin; `OSError` when the source address is not ours.

        Announcements that cannot be listened to are only logged: then a change is noticed at the next renewal.
        """
        loop = asyncio.get_running_loop()
        self._requests, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._take, self._on_refused),
            local_addr=(str(self._source), 0),
            remote_addr=(str(self._gateway[0]), self._gateway[1]),
        )
        self._transports.append(self._requests)
        try:
            heard = announcement_socket(self._announcements, self._interface)
            transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self._take, lambda: None), sock=heard)
            self._transports.append(transport)
        except OSError as error:
            log.warning("announcements are not heard", reason=str(error), group=str(self._announcements[0]))
        self._core.start(now=clock.monotonic())
        self._flush()

    async def close(self) -> None:
        """Delete the mapping, waiting for the answer or for the core to give up; then close."""
        self._core.shutdown(now=clock.monotonic())
        self._flush()
        try:
            await self._closed.wait()
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the sockets and say nothing."""
        self._timer.cancel()
        for transport in self._transports:
            transport.abort()
        self._transports.clear()
        self._requests = None

    def _take(self, datagram: bytes, source: IPv4Address) -> None:
        self._core.receive(datagram, source, now=clock.monotonic())
        self._flush()

    def _on_refused(self) -> None:
        self._core.unreachable(now=clock.monotonic())
        self._flush()

    def _on_timer(self) -> None:
        self._core.handle_deadline(now=clock.monotonic())
        self._flush()

    def _flush(self) -> None:
        for effect in self._core.take_effects():
            match effect:
                case Send(datagram):
                    if self._requests is not None:
                        self._requests.sendto(datagram)
                case Changed(state):
                    self._on_state(state)
                case Closed():
                    self._closed.set()
        if self._requests is not None:
            self._timer.arm(self._core.next_deadline())
