"""Netfilter's netlink, as far as the nftables back end needs it: generation, change events, conntrack entries.

Message layouts: linux/netfilter/nfnetlink.h, nf_tables.h and nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_GROUP_NFTABLES: Final = 7
_EVENT_BUFFER_OCTETS: Final = 1 << 20

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST: Final = 0x001
_ACK: Final = 0x004
_DUMP: Final = 0x300

_GET_GENERATION: Final = 10 << 8 | 16
_GENERATION_ID: Final = 1
_CONNTRACK_GET: Final = 1 << 8 | 1
_CONNTRACK_DELETE: Final = 1 << 8 | 2

_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_CONNTRACK_ID: Final = 12
_ZONE: Final = 18
_FILTER: Final = 25
_TUPLE_IP: Final = 1
_TUPLE_PROTOCOL: Final = 2
_PROTOCOL_NUMBER: Final = 1
_FILTER_PROTOCOL_NUMBER: Final = 1 << 3
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_WAIT_SECONDS: Final = 2.0
_FILTERED_DUMPS: Final = 8
"""Up to this many patterns the kernel looks through its table for each one; above it everything is read once."""


class NetfilterError(OSError):
    """The kernel refused a request; `errno` tells why."""


class Way(IntEnum):
    """Which of the two address pairs of a conntrack entry."""

    ORIGINAL = _TUPLE_ORIGINAL
    REPLY = _TUPLE_REPLY


class End(IntEnum):
    """Sender or receiver of a way. The numbers are those of CTA_IP_V4_*; ports have one more."""

    SENDER = 1
    RECEIVER = 2


class Pattern(NamedTuple):
    """Matches every IPv4 conntrack entry with this endpoint at one end of one way."""

    way: Way
    end: End
    transport: int
    address: str
    port: int


class Netfilter:
    """A request socket. The constructor raises OSError where the kernel has no netfilter; not for several threads."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(_WAIT_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def generation(self) -> int:
        """The number that every committed change of any table raises by one. Raises `NetfilterError`."""
        for _, attributes in self._ask(_GET_GENERATION, socket.AF_UNSPEC, _REQUEST, b""):
            for kind, value in _attributes(attributes):
                if kind == _GENERATION_ID:
                    return int.from_bytes(value, "big")
        raise NetfilterError(errno.EPROTO, "the kernel gave no ruleset generation")

    def drop_flows(self, patterns: Iterable[Pattern]) -> int:
        """Delete the conntrack entries that match any pattern; gives their number. Raises OSError."""
        wanted = set(patterns)
        if not wanted:
            return 0
        found: dict[bytes, None] = {}
        if len(wanted) <= _FILTERED_DUMPS:
            for pattern in wanted:
                found.update(dict.fromkeys(self._find(_filter(pattern), {pattern})))
        else:
            found.update(dict.fromkeys(self._find(b"", wanted)))
        dropped = 0
        for entry in found:
            try:
                list(self._ask(_CONNTRACK_DELETE, socket.AF_INET, _REQUEST | _ACK, entry))
                dropped += 1
            except NetfilterError as error:
                if error.errno != errno.ENOENT:
                    raise
        return dropped

    def _find(self, criteria: bytes, wanted: set[Pattern]) -> Iterator[bytes]:
        """What names each matching entry in a deletion. A kernel that ignores the criteria gives more to look at."""
        for _, body in self._ask(_CONNTRACK_GET, socket.AF_INET, _REQUEST | _DUMP, criteria):
            attributes = dict(_attributes(body))
            if any(not wanted.isdisjoint(_ends(way, attributes.get(way, b""))) for way in Way):
                name = _attribute(_NESTED | _TUPLE_ORIGINAL, attributes[_TUPLE_ORIGINAL])
                for kind in (_CONNTRACK_ID, _ZONE):
                    if kind in attributes:
                        name += _attribute(kind, attributes[kind])
                yield name

    def _ask(self, kind: int, family: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Send a request and give the answers, each as kind and attributes."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        payload = struct.pack(">BBH", family, 0, 0) + body
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, self._sequence, 0) + payload)
        while True:
            datagram = self._socket.recv(1 << 17)
            at = 0
            while at + _HEADER.size <= len(datagram):
                length, answer, _, sequence, _ = _HEADER.unpack_from(datagram, at)
                content = datagram[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    if code:
                        raise NetfilterError(code, os.strerror(code))
                    return
                yield answer, content[4:]
                if not flags & (_DUMP | _ACK):
                    return


class RulesetEvents:
    """Tells when anybody, this process included, changed a table. The constructor raises OSError."""

    def __init__(self, table: str) -> None:
        self._mark = table.encode("ascii") + b"\0"
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BUFFER_OCTETS)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _GROUP_NFTABLES)

    def fileno(self) -> int:
        """For waiting until there are events."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def drain(self) -> bool:
        """Take all events; whether the table may have changed."""
        changed = False
        while True:
            try:
                changed |= self._mark in self._socket.recv(1 << 17)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # events were lost


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(octets):
        length, kind = _ATTRIBUTE.unpack_from(octets, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, octets[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _filter(pattern: Pattern) -> bytes:
    """The pattern for a dump: the endpoint as a partial tuple, and which parts of the tuple count (Linux 5.8)."""
    address = _attribute(_NESTED | _TUPLE_IP, _attribute(pattern.end, socket.inet_aton(pattern.address)))
    protocol = _attribute(_PROTOCOL_NUMBER, bytes([pattern.transport]))
    protocol += _attribute(pattern.end + 1, struct.pack(">H", pattern.port))
    count = _FILTER_PROTOCOL_NUMBER | 1 << (pattern.end - 1) | 1 << (pattern.end + 3)
    return _attribute(_NESTED | pattern.way, address + _attribute(_NESTED | _TUPLE_PROTOCOL, protocol)) + _attribute(
        _NESTED | _FILTER, _attribute(pattern.way, struct.pack("=I", count))
    )


def _ends(way: Way, octets: bytes) -> set[Pattern]:
    """Both endpoints of a tuple as patterns; empty for what has no ports."""
    parts = dict(_attributes(octets))
    addresses = dict(_attributes(parts.get(_TUPLE_IP, b"")))
    protocol = dict(_attributes(parts.get(_TUPLE_PROTOCOL, b"")))
    number = protocol.get(_PROTOCOL_NUMBER, b"\0")[0]
    return {
        Pattern(way, end, number, socket.inet_ntoa(addresses[end]), int.from_bytes(protocol[end + 1], "big"))
        for end in End
        if len(addresses.get(end, b"")) == 4 and end + 1 in protocol
    }
