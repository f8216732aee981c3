"""UDP datagram by datagram through the event loop: works on every system."""

import asyncio
import contextlib
import socket
from typing import Any, Self, cast

from server.addresses import packed
from server.peer import Peer
from server.transport.ports import SOCKET_OCTETS, Fast, Handle


class PlainListener(asyncio.DatagramProtocol):
    """See `UdpListener`."""

    def __init__(self, number: int, handle: Handle, fast: Fast) -> None:
        self.number = number
        self._handle = handle
        self._fast = fast
        self._transport: asyncio.DatagramTransport | None = None
        self._is_open = True

    @classmethod
    async def open(cls, number: int, address: str, port: int, handle: Handle, fast: Fast) -> Self:
        """Bind; `OSError` when the address or port cannot be had."""
        loop = asyncio.get_running_loop()
        _, listener = await loop.create_datagram_endpoint(lambda: cls(number, handle, fast), local_addr=(address, port))
        return listener

    @property
    def port(self) -> int:
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is no subclass
        sock = transport.get_extra_info("socket")
        if sock is not None:
            grow_buffers(sock)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if not self._is_open:
            return
        reply = self._fast.find(data, packed(addr[0]))
        if reply is not None:
            if reply:
                self._send_to(addr, reply)
            return

        def send(wire: bytes) -> None:
            if wire:
                self._send_to(addr, wire)
                self._fast.offer(data[2:], wire)

        guard = self._fast.guard
        if guard.work is None:
            self._handle(data, Peer("udp", addr[0], addr[1], self.number), send)
            return
        if guard.work.begin() or guard.is_known(addr[0]):
            self._handle(data, Peer("udp", addr[0], addr[1], self.number), send)
        else:
            self._fast.overloaded()
        guard.work.end()

    def error_received(self, exc: Exception) -> None:
        """An ICMP error for something we sent: the peer is gone, which retransmission limits already cover."""

    def send(self, peer: Peer, wire: bytes) -> None:
        self._send_to((peer.address, peer.port), wire)

    def _send_to(self, address: tuple[Any, ...], wire: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(wire, address)

    def pause(self) -> None:
        self._is_open = False

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def grow_buffers(sock: socket.socket) -> None:
    """Ask for roomy buffers; what the system refuses, it refuses."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_OCTETS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_OCTETS)
