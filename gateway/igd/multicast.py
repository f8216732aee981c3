"""The sockets of SSDP: one that hears the group on internal interfaces, and one on each internal address.

The address's own socket answers and announces, so that port 1900 is the source, and hears searches sent to it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Final

from .ssdp import GROUP, PORT, SEARCH_OCTETS

BURST: Final = 32
TTL: Final = 2
_IP_PKTINFO: Final = 8  # linux/in.h; Python 3.11 has no name for it
_PKTINFO: Final = struct.Struct("=I4s4s")

Heard = Callable[[bytes, tuple[str, int], int, bool], None]
"""Takes a datagram, its sender, the index of the interface it came by, and whether it was sent to the group."""


class _Socket:
    def __init__(self, host: str, heard: Heard, counters: Counter[str]) -> None:
        self._host = socket.inet_aton(host)
        self._heard = heard
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._prepare(host)
            self._socket.bind((host, PORT))
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._read)

    def _prepare(self, host: str) -> None:
        pass

    def close(self) -> None:
        """Free the port."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        for _ in range(BURST):
            try:
                # One octet more than is read, so that what is too long is seen to be.
                datagram, ancillary, _, peer = self._socket.recvmsg(SEARCH_OCTETS + 1, 64)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            for level, kind, content in ancillary:
                if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                    interface, _, destination = _PKTINFO.unpack_from(content)
                    if destination == self._host:
                        self._heard(datagram, peer, interface, destination == socket.inet_aton(GROUP))


class GroupSocket(_Socket):
    """Hears the group, on the interfaces that joined."""

    def __init__(self, heard: Heard, counters: Counter[str]) -> None:
        """Raises OSError."""
        super().__init__(GROUP, heard, counters)

    def _prepare(self, host: str) -> None:
        # Else Linux hands over what came by any interface that any program joined on.
        self._socket.setsockopt(socket.IPPROTO_IP, 49, 0)  # IP_MULTICAST_ALL

    def join(self, interface: int) -> None:
        """Hear the group on an interface, too. Raises OSError."""
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(interface))

    def leave(self, interface: int) -> None:
        """No longer; nothing if the interface is gone."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, _membership(interface))


class AddressSocket(_Socket):
    """Sends from one internal address."""

    def __init__(self, host: str, interface: int, heard: Heard, counters: Counter[str]) -> None:
        """Raises OSError."""
        self._interface = interface
        super().__init__(host, heard, counters)

    def _prepare(self, host: str) -> None:
        multicast_from = struct.pack("=4s4si", bytes(4), socket.inet_aton(host), self._interface)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, multicast_from)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, TTL)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)

    def send(self, datagram: bytes, peer: tuple[str, int]) -> None:
        """Send one datagram; what cannot be sent now is lost."""
        try:
            self._socket.sendto(datagram, peer)
        except OSError:
            self._counters["unsent"] += 1


def _membership(interface: int) -> bytes:
    return struct.pack("=4s4si", socket.inet_aton(GROUP), bytes(4), interface)
