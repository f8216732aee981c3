"""A UDP socket on one internal address that hears only what came in on that address's own interface.

Linux delivers a packet for an internal address whatever interface it came by, the external one included. RFC 6886 §3
and RFC 6887 §8.2 forbid to answer that, so each datagram's interface and destination are checked (IP_PKTINFO).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable

from .config import Endpoint
from .errors import StartError

BURST = 64
"""Datagrams read in one turn of the loop."""
MAX_DATAGRAM = 2048
"""A request has 12 octets (PCP: 1100 at most). More is cut off, so no echo is longer than this."""
RECEIVE_BUFFER_OCTETS = 1024 * 1024

_IP_PKTINFO = 8  # linux/in.h; Python 3.11 has no name for it
_PKTINFO = struct.Struct("=I4s4s")


class Listener:
    """The socket of one internal address; announcements leave from it too, so that they come from the request port."""

    def __init__(self, endpoint: Endpoint, receive: Callable[[bytes, str, int], None], counters: Counter[str]) -> None:
        """Bind. `receive` gets datagram, source host and source port. Raises `StartError`."""
        self._receive = receive
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_OCTETS)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(endpoint.host))
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            self._socket.bind(endpoint)
        except OSError as error:
            self._socket.close()
            raise StartError(f"NAT-PMP on {endpoint}: {error.strerror}") from None
        self.asked = endpoint
        """As it was asked for, with a port 0 still in it."""
        host, port = self._socket.getsockname()
        self.endpoint = Endpoint(host, port)
        self._destination = socket.inet_aton(host)
        self.interfaces: frozenset[int] = frozenset()
        """Indices of the interfaces by which requests may come. Addresses move, so this is kept up to date."""

    def open(self) -> None:
        """Begin to hear."""
        self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        """Stop hearing and free the port."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def send(self, datagram: bytes, endpoint: tuple[str, int]) -> None:
        """Send one datagram; what cannot be sent now is lost, the client asks again."""
        try:
            self._socket.sendto(datagram, endpoint)
        except OSError:
            self._counters["unsent"] += 1

    def _read(self) -> None:
        for _ in range(BURST):
            try:
                datagram, ancillary, _, (host, port) = self._socket.recvmsg(MAX_DATAGRAM, 64)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            if not self._is_internal(ancillary):
                self._counters["not internal"] += 1
                continue
            self._receive(datagram, host, port)

    def _is_internal(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        for level, kind, content in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                interface, _, destination = _PKTINFO.unpack_from(content)
                return destination == self._destination and interface in self.interfaces
        return False
