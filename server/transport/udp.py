"""UDP: datagrams in, datagrams out. Bounded by the socket's own buffers; nothing is kept per peer."""

import asyncio
from collections.abc import Callable
from typing import cast

from server.peer import Peer
from server.request import Send

Handle = Callable[[bytes, Peer, Send], None]


class UdpListener(asyncio.DatagramProtocol):
    """One bound address. `via` in the peers it reports is its number, so that replies and events leave from here."""

    def __init__(self, number: int, handle: Handle) -> None:
        self.number = number
        self._handle = handle
        self._transport: asyncio.DatagramTransport | None = None
        self._is_open = True

    @classmethod
    async def open(cls, number: int, address: str, port: int, handle: Handle) -> "UdpListener":
        """Bind; `OSError` when the address or port cannot be had."""
        loop = asyncio.get_running_loop()
        _, listener = await loop.create_datagram_endpoint(lambda: cls(number, handle), local_addr=(address, port))
        return listener

    @property
    def port(self) -> int:
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is no subclass

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self._is_open:
            return
        peer = Peer("udp", addr[0], addr[1], self.number)
        self._handle(data, peer, lambda wire: self.send(peer, wire) if wire else None)

    def error_received(self, exc: Exception) -> None:
        """An ICMP error for something we sent: the peer is gone, which retransmission limits already cover."""

    def send(self, peer: Peer, wire: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(wire, (peer.address, peer.port))

    def pause(self) -> None:
        """Take no more requests; replies to those under way still leave."""
        self._is_open = False

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
