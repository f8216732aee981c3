"""A UDP socket on one internal address that hears only what came in on that address's own interface.

Linux delivers a packet for an internal address whatever interface it came by, the external one included. RFC 6886 §3
and RFC 6887 §8.2 forbid to answer that, so each datagram's interface and destination are checked (IP_PKTINFO,
IPV6_PKTINFO). An IPv6 address of link scope is written with its interface, `fe80::1%eth0`, and so are senders.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable

from .config import Endpoint
from .errors import StartError

BURST = 128
"""Datagrams read in one turn of the loop."""
MAX_DATAGRAM = 2048
"""A request has 12 octets (PCP: 1100 at most). More is cut off, so no echo is longer than this."""
RECEIVE_BUFFER_OCTETS = 1024 * 1024

_IP_PKTINFO = 8  # linux/in.h; Python 3.11 has no name for it
_PKTINFO = struct.Struct("=I4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_HOP_LIMIT = 1
"""Announcements do not leave the link."""


class Listener:
    """The socket of one internal address; announcements leave from it too, so that they come from the request port."""

    def __init__(
        self,
        endpoint: Endpoint,
        receive: Callable[[bytes, str, int], None],
        counters: Counter[str],
        *,
        interface: int = 0,
    ) -> None:
        """Bind. `receive` gets datagram, source host and source port; `interface` is the index that an IPv6 address
        announces on. Raises `StartError`."""
        self._receive = receive
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self.is_ipv6 = ":" in endpoint.host
        family = socket.AF_INET6 if self.is_ipv6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_OCTETS)
            if self.is_ipv6:
                self._prepare_ipv6(interface)
            else:
                self._prepare_ipv4(endpoint.host)
            self._socket.bind(_socket_address(endpoint))
        except OSError as error:
            self._socket.close()
            raise StartError(f"{'PCP' if self.is_ipv6 else 'NAT-PMP'} on {endpoint}: {error.strerror}") from None
        self.asked = endpoint
        """As it was asked for, with a port 0 still in it."""
        self.endpoint = Endpoint(endpoint.host, self._socket.getsockname()[1])
        self._destination = socket.inet_pton(family, endpoint.host.partition("%")[0])
        self._interfaces: frozenset[int] = frozenset()
        self._way: list[tuple[int, int, bytes]] | None = None
        """What the kernel said of the latest datagram that came by a right way: that of the next one, mostly."""

    @property
    def interfaces(self) -> frozenset[int]:
        """Indices of the interfaces by which requests may come. Addresses move, so this is kept up to date."""
        return self._interfaces

    @interfaces.setter
    def interfaces(self, interfaces: frozenset[int]) -> None:
        self._interfaces = interfaces
        self._way = None

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
            self._socket.sendto(datagram, _socket_address(endpoint) if self.is_ipv6 else endpoint)
        except OSError:
            self._counters["unsent"] += 1

    def _read(self) -> None:
        for _ in range(BURST):
            try:
                datagram, ancillary, _, sender = self._socket.recvmsg(MAX_DATAGRAM, 64)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            if ancillary != self._way:
                if not self._is_internal(ancillary):
                    self._counters["not internal"] += 1
                    continue
                self._way = ancillary
            host = sender[0]
            if self.is_ipv6 and sender[3] and "%" not in host:
                host += f"%{sender[3]}"
            self._receive(datagram, host, sender[1])

    def _prepare_ipv4(self, host: str) -> None:
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOP_LIMIT)

    def _prepare_ipv6(self, interface: int) -> None:
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOP_LIMIT)

    def _is_internal(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        for level, kind, content in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                interface, _, destination = _PKTINFO.unpack_from(content)
                return destination == self._destination and interface in self._interfaces
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                destination, interface = _PKTINFO6.unpack_from(content)
                return destination == self._destination and interface in self._interfaces
        return False


def _socket_address(endpoint: tuple[str, int]) -> tuple[str, int] | tuple[str, int, int, int]:
    """For bind and sendto, which take the interface of an address of link scope as a number of its own."""
    host, port = endpoint
    address, percent, interface = host.partition("%")
    if not percent:
        return host, port
    return address, port, 0, int(interface) if interface.isdigit() else socket.if_nametoindex(interface)
