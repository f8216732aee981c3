"""UDP datagram by datagram through the event loop: works on every system."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from typing import Any, Final, Self, cast

from server.addresses import packed
from server.peer import Peer
from server.transport.ports import SOCKET_OCTETS, Alike, Fast, Handle

IP_MTU_DISCOVER: Final = 10  # linux/in.h, linux/in6.h: the socket module has no names for them
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_PROBE: Final = 3  # "don't fragment" on every datagram, and no belief in what ICMP says of a path


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
            prepare_socket(sock)

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

    def send(self, peers: Sequence[Peer], alike: Alike) -> None:
        for peer, wire in zip(peers, alike.each(), strict=True):
            self._send_event((peer.address, peer.port), wire)

    def _send_event(self, address: tuple[Any, ...], wire: bytes) -> None:
        self._send_to(address, wire)

    def _send_to(self, address: tuple[Any, ...], wire: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(wire, address)

    def pause(self) -> None:
        self._is_open = False

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def prepare_socket(sock: socket.socket) -> None:
    """Ask for roomy buffers, and for datagrams that no router may cut to pieces; what the system refuses, it refuses.

    Pieces can be forged behind a true first one, and many networks drop them (RFC 9715 §3.1). What we send fits into
    1232 octets; on a path that is narrower still, a client falls back to TCP.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_OCTETS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_OCTETS)
    if sys.platform == "linux":
        v6 = sock.family == socket.AF_INET6
        with contextlib.suppress(OSError):
            level, name = (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if v6 else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
            sock.setsockopt(level, name, PMTUDISC_PROBE)
