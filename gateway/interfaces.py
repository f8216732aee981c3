"""The machine's interfaces and their addresses, from the kernel (rtnetlink), and who is told when they change.

A change is only a reason to read everything again, so a lost event cannot leave a wrong picture. Message layouts:
linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from . import netlink
from .errors import StartError

SETTLE_SECONDS: Final = 0.1
"""Wait after a change: programs that set up interfaces make several at once."""
READ_TRIES: Final = 5
"""A listing that the kernel changed meanwhile is asked for again."""
RETRY_SECONDS: Final = 2.0
_WAIT_SECONDS: Final = 2.0

_NEW_LINK, _GET_LINK = 16, 18
_NEW_ADDRESS, _GET_ADDRESS = 20, 22
_GROUPS: Final = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_LINK_NAME: Final = 3
_ADDRESS_PEER, _ADDRESS_LOCAL, _ADDRESS_FLAGS = 1, 2, 8
_INTERRUPTED: Final = 0x10
_IFF_UP: Final = 0x1
_SECONDARY: Final = 0x01
_UNUSABLE: Final = 0x08 | 0x20 | 0x40  # duplicate found, deprecated, tentative
_SCOPE_LINK: Final = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """One address of one interface."""

    index: int
    interface: str
    address: IPv4Address | IPv6Address
    prefix_length: int
    is_up: bool
    """Whether the interface is switched on; the cable may be out all the same."""
    is_secondary: bool = False
    is_usable: bool = True
    """Neither deprecated nor still being checked for duplicates."""
    is_global: bool = True
    """Meant to be used beyond the link."""


Addresses = tuple[InterfaceAddress, ...]


class InterfaceWatch:
    """Reads addresses, and from `start` to `stop` tells of changes. The constructor raises `StartError`."""

    def __init__(self, on_change: Callable[[Addresses], None]) -> None:
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None
        self._known: Addresses | None = None
        try:
            self._requests = _socket(0)
            self._requests.settimeout(_WAIT_SECONDS)
            # Before the first reading, so that nothing happens in between.
            self._events = _socket(_GROUPS)
            self._events.setblocking(False)
        except OSError as error:
            raise StartError(f"the kernel tells no addresses: {error.strerror}") from None
        self._sequence = 0

    def start(self) -> None:
        """Begin to tell."""
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._hear)

    def stop(self) -> None:
        """Say no more and close."""
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._events.fileno())
        self._events.close()
        self._requests.close()

    def read(self) -> Addresses:
        """All addresses at this moment, in the kernel's order. Raises OSError."""
        for _ in range(READ_TRIES):
            with contextlib.suppress(InterruptedError):
                self._known = self._read()
                return self._known
        raise OSError(errno.EAGAIN, "interfaces keep changing")

    def _read(self) -> Addresses:
        links = dict(_links(self._dump(_GET_LINK, _LINK.pack(0, 0, 0, 0, 0))))
        return tuple(_addresses(self._dump(_GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, 0)), links))

    def _dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        """All messages of a listing. Raises InterruptedError if it is not of one moment."""
        self._sequence += 1
        length = netlink.HEADER.size + len(body)
        head = netlink.HEADER.pack(length, kind, netlink.REQUEST | netlink.DUMP, self._sequence, 0)
        self._requests.send(head + body)
        found: list[tuple[int, bytes]] = []
        is_interrupted = False
        while True:
            datagram = self._requests.recv(1 << 17)
            is_interrupted |= _is_interrupted(datagram)
            for sequence, answer, content in netlink.messages(datagram):
                if sequence != self._sequence:
                    continue
                if answer == netlink.ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    raise OSError(code, os.strerror(code))
                if answer == netlink.DONE:
                    if is_interrupted:
                        raise InterruptedError
                    return found
                found.append((answer, content))

    def _hear(self) -> None:
        while True:
            try:
                self._events.recv(1 << 17)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost, which is a change as well
                    raise
        self._plan(SETTLE_SECONDS)

    def _plan(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        before = self._known
        try:
            found = self.read()
        except OSError:
            self._plan(RETRY_SECONDS)
            return
        if found != before:
            self._on_change(found)


def _socket(groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        sock.bind((0, groups))
    except OSError:
        sock.close()
        raise
    return sock


def _is_interrupted(datagram: bytes) -> bool:
    return len(datagram) >= netlink.HEADER.size and bool(netlink.HEADER.unpack_from(datagram)[2] & _INTERRUPTED)


def _links(listing: list[tuple[int, bytes]]) -> Iterator[tuple[int, tuple[str, bool]]]:
    """Name, and whether it is up, of each interface by index."""
    for kind, content in listing:
        if kind == _NEW_LINK and len(content) >= _LINK.size:
            _, _, index, flags, _ = _LINK.unpack_from(content)
            name = dict(netlink.attributes(content[_LINK.size :])).get(_LINK_NAME, b"")
            yield index, (name.rstrip(b"\0").decode(errors="replace"), bool(flags & _IFF_UP))


def _addresses(listing: list[tuple[int, bytes]], links: dict[int, tuple[str, bool]]) -> Iterator[InterfaceAddress]:
    for kind, content in listing:
        if kind != _NEW_ADDRESS or len(content) < _ADDRESS.size:
            continue
        family, prefix_length, flags, scope, index = _ADDRESS.unpack_from(content)
        values = dict(netlink.attributes(content[_ADDRESS.size :]))
        # On point-to-point links the one is the peer's address and the other ours; elsewhere they are the same.
        octets = values.get(_ADDRESS_LOCAL, values.get(_ADDRESS_PEER, b""))
        if _ADDRESS_FLAGS in values and len(values[_ADDRESS_FLAGS]) == 4:
            flags = int.from_bytes(values[_ADDRESS_FLAGS], sys.byteorder)
        if (family, len(octets)) not in ((socket.AF_INET, 4), (socket.AF_INET6, 16)) or index not in links:
            continue
        name, is_up = links[index]
        yield InterfaceAddress(
            index=index,
            interface=name,
            address=IPv4Address(octets) if family == socket.AF_INET else IPv6Address(octets),
            prefix_length=prefix_length,
            is_up=is_up,
            is_secondary=family == socket.AF_INET and bool(flags & _SECONDARY),
            is_usable=not flags & _UNUSABLE,
            is_global=scope < _SCOPE_LINK,
        )
