"""Netfilter's netlink, as far as the nftables back end needs it: generation, change events, conntrack entries.

Message layouts: linux/netfilter/nfnetlink.h, nf_tables.h and nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Set
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from gateway import netlink

NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_GROUP_NFTABLES: Final = 7
_EVENT_BUFFER_OCTETS: Final = 1 << 20
_BUFFER_OCTETS: Final = 1 << 17
"""More than the kernel puts into a datagram."""

_ACK: Final = 0x004
_CREATE: Final = 0x400

_GET_GENERATION: Final = 10 << 8 | 16
_GENERATION_ID: Final = 1
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_BATCH_GENERATION: Final = 1
_SUBSYSTEM_NFTABLES: Final = 10
_NEW_ELEMENT: Final = 10 << 8 | 12
_DELETE_ELEMENT: Final = 10 << 8 | 14
_FAMILY_INET: Final = 1
_ELEMENTS_TABLE: Final = 1
_ELEMENTS_SET: Final = 2
_ELEMENTS_LIST: Final = 3
_LIST_ELEMENT: Final = 1
_ELEMENT_KEY: Final = 1
_ELEMENT_DATA: Final = 2
_ELEMENT_KEY_END: Final = 10
_DATA_VALUE: Final = 1
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

_WAIT_SECONDS: Final = 2.0
_FILTERED_DUMPS: Final = 8
"""Up to this many patterns the kernel looks through its table for each one; above it everything is read once."""
_WALK_ENTRIES: Final = 200
"""Each time it walks all buckets of that table, which takes milliseconds. So many entries are read in the same time."""
_FLOW_COUNT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")


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


Endpoint = tuple[str, int, int]
"""Address, transport and port."""


class ElementChange(NamedTuple):
    """An element to add to a set or map, or to delete. `key` and `data` are what `packed` gives."""

    set_name: str
    key: bytes
    data: bytes = b""
    is_deletion: bool = False
    key_end: bytes = b""
    """The other end of a range, for sets with intervals."""


def packed(*fields: bytes) -> bytes:
    """A concatenation as nftables has it: each field filled up to four octets."""
    return b"".join(field + b"\0" * (-len(field) % 4) for field in fields)


class Netfilter:
    """A request socket. The constructor raises OSError where the kernel has no netfilter; not for several threads."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(_WAIT_SECONDS)
        self._sequence = 0
        self._buffer = bytearray(_BUFFER_OCTETS)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def generation(self) -> int:
        """The number that every committed change of any table raises by one. Raises `NetfilterError`."""
        for _, attributes in self._ask(_GET_GENERATION, socket.AF_UNSPEC, netlink.REQUEST, b""):
            for kind, value in netlink.attributes(attributes):
                if kind == _GENERATION_ID:
                    return int.from_bytes(value, "big")
        raise NetfilterError(errno.EPROTO, "the kernel gave no ruleset generation")

    def change_elements(self, table: str, changes: Iterable[ElementChange], *, generation: int | None) -> None:
        """Commit changes to sets and maps of an inet table: all or, with `NetfilterError`, none. For some hundreds.

        libnftables does the same in three times the time, for it lists all tables before each change. With a
        `generation` that is not the kernel's any more nothing is changed and the error is ERESTART.
        """
        messages = _element_messages(table, changes)
        if not messages:
            return
        nftables = struct.pack(">BBH", socket.AF_UNSPEC, 0, _SUBSYSTEM_NFTABLES)
        begin = nftables
        if generation is not None:
            begin += netlink.attribute(_BATCH_GENERATION, struct.pack(">I", generation))
        first = self._sequence + 1
        parts = [self._message(_BATCH_BEGIN, netlink.REQUEST, begin)]
        for number, (kind, body) in enumerate(messages, 1):
            # Errors are told of every message, success is asked of the last.
            flags = netlink.REQUEST | (_CREATE if kind == _NEW_ELEMENT else 0)
            parts.append(self._message(kind, flags | (_ACK if number == len(messages) else 0), body))
        last = self._sequence
        parts.append(self._message(_BATCH_END, netlink.REQUEST, nftables))
        self._socket.send(b"".join(parts))
        # A batch that is refused as a whole has one answer, to its first message and ahead of all others.
        failure = 0
        while True:
            for sequence, answer, content in netlink.messages(self._received()):
                if answer != netlink.ERROR or not first <= sequence <= last:
                    continue
                code = -struct.unpack_from("=i", content)[0]
                failure = failure or code
                if sequence == last or (sequence == first and code):
                    if failure:
                        raise NetfilterError(failure, os.strerror(failure))
                    return

    def drop_flows(self, receivers: Set[Endpoint], senders: Set[Endpoint]) -> int:
        """Delete the IPv4 conntrack entries of flows that one of these received, either way, or began to send.

        Gives their number. Raises OSError.
        """
        patterns = [(way, End.RECEIVER, endpoint) for endpoint in receivers for way in Way]
        patterns += [(Way.ORIGINAL, End.SENDER, endpoint) for endpoint in senders]
        if not patterns:
            return 0
        found: dict[bytes, None] = {}
        if len(patterns) <= _FILTERED_DUMPS and _flow_count() > len(patterns) * _WALK_ENTRIES:
            criteria = [_filter(*pattern) for pattern in patterns]
        else:
            criteria = [b""]
        for each in criteria:
            found.update(dict.fromkeys(self._find(each, receivers, senders)))
        dropped = 0
        for entry in found:
            try:
                list(self._ask(_CONNTRACK_DELETE, socket.AF_INET, netlink.REQUEST | _ACK, entry))
                dropped += 1
            except NetfilterError as error:
                if error.errno != errno.ENOENT:
                    raise
        return dropped

    def _find(self, criteria: bytes, receivers: Set[Endpoint], senders: Set[Endpoint]) -> Iterator[bytes]:
        """What names each matching entry in a deletion. A kernel that ignores the criteria gives more to look at."""
        for _, body in self._ask(_CONNTRACK_GET, socket.AF_INET, netlink.REQUEST | netlink.DUMP, criteria):
            attributes = dict(netlink.attributes(body))
            sender, receiver = _ends(attributes.get(_TUPLE_ORIGINAL, b""))
            _, answered = _ends(attributes.get(_TUPLE_REPLY, b""))
            if receiver in receivers or answered in receivers or sender in senders:
                name = netlink.attribute(netlink.NESTED | _TUPLE_ORIGINAL, attributes[_TUPLE_ORIGINAL])
                for kind in (_CONNTRACK_ID, _ZONE):
                    if kind in attributes:
                        name += netlink.attribute(kind, attributes[kind])
                yield name

    def _received(self) -> bytes:
        """The next datagram. The large buffer is not made anew for each, nearly all of them are small."""
        size = self._socket.recv_into(self._buffer)
        return bytes(memoryview(self._buffer)[:size])

    def _message(self, kind: int, flags: int, payload: bytes) -> bytes:
        self._sequence = (self._sequence + 1) % 0x7FFFFFFF
        return netlink.HEADER.pack(netlink.HEADER.size + len(payload), kind, flags, self._sequence, 0) + payload

    def _ask(self, kind: int, family: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Send a request and give the answers, each as kind and attributes."""
        self._socket.send(self._message(kind, flags, struct.pack(">BBH", family, 0, 0) + body))
        while True:
            for sequence, answer, content in netlink.messages(self._received()):
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                if answer == netlink.DONE:
                    return
                if answer == netlink.ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    if code:
                        raise NetfilterError(code, os.strerror(code))
                    return
                yield answer, content[4:]
                if not flags & (netlink.DUMP | _ACK):
                    return


class RulesetEvents:
    """Tells when anybody, this process included, changed a table. The constructor raises OSError."""

    def __init__(self, table: str) -> None:
        self._mark = table.encode("ascii") + b"\0"
        self._buffer = bytearray(_BUFFER_OCTETS)
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
                size = self._socket.recv_into(self._buffer)
                changed |= self._buffer.find(self._mark, 0, size) >= 0
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # events were lost


def _element_messages(table: str, changes: Iterable[ElementChange]) -> list[tuple[int, bytes]]:
    """Kind and body of each message: one for all that follows one another in a set and is added, or is deleted."""
    by_set: dict[str, list[tuple[int, list[bytes]]]] = {}
    for change in changes:
        kind = _DELETE_ELEMENT if change.is_deletion else _NEW_ELEMENT
        runs = by_set.setdefault(change.set_name, [])
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(_listed(change))
    head = struct.pack(">BBH", _FAMILY_INET, 0, 0) + netlink.attribute(_ELEMENTS_TABLE, table.encode("ascii") + b"\0")
    return [
        (
            kind,
            head
            + netlink.attribute(_ELEMENTS_SET, set_name.encode("ascii") + b"\0")
            + netlink.attribute(netlink.NESTED | _ELEMENTS_LIST, b"".join(elements)),
        )
        for set_name, runs in by_set.items()
        for kind, elements in runs
    ]


def _listed(change: ElementChange) -> bytes:
    """An element of a message's list."""
    _, key, data, _, key_end = change
    if not key_end:
        return _layout(len(key), len(data))(key, data)
    element = netlink.attribute(netlink.NESTED | _ELEMENT_KEY, netlink.attribute(_DATA_VALUE, key))
    element += netlink.attribute(netlink.NESTED | _ELEMENT_KEY_END, netlink.attribute(_DATA_VALUE, key_end))
    return netlink.attribute(netlink.NESTED | _LIST_ELEMENT, element)


@functools.cache
def _layout(key_size: int, data_size: int) -> Callable[[bytes, bytes], bytes]:
    """Writes an element without an interval at once: nearly all there are look alike. Sizes are multiples of 4."""
    key_part = 8 + key_size
    if not data_size:
        bare = struct.Struct(f"=6H{key_size}s").pack
        head = (4 + key_part, netlink.NESTED | _LIST_ELEMENT, key_part, netlink.NESTED | _ELEMENT_KEY)
        before_key = (*head, 4 + key_size, _DATA_VALUE)
        return lambda key, _: bare(*before_key, key)
    data_part = 8 + data_size
    pack = struct.Struct(f"=6H{key_size}s4H{data_size}s").pack
    head = (4 + key_part + data_part, netlink.NESTED | _LIST_ELEMENT, key_part, netlink.NESTED | _ELEMENT_KEY)
    before_both = (*head, 4 + key_size, _DATA_VALUE)
    before_data = (data_part, netlink.NESTED | _ELEMENT_DATA, 4 + data_size, _DATA_VALUE)
    return lambda key, data: pack(*before_both, key, *before_data, data)


def _flow_count() -> int:
    """Entries of the kernel's conntrack table; many where it does not tell."""
    try:
        return int(_FLOW_COUNT.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1 << 20


def _filter(way: Way, end: End, endpoint: Endpoint) -> bytes:
    """For a dump: the endpoint as a partial tuple, and which parts of the tuple count (Linux 5.8)."""
    host, transport, port = endpoint
    address = netlink.attribute(netlink.NESTED | _TUPLE_IP, netlink.attribute(end, socket.inet_aton(host)))
    protocol = netlink.attribute(_PROTOCOL_NUMBER, bytes([transport]))
    protocol += netlink.attribute(end + 1, struct.pack(">H", port))
    count = _FILTER_PROTOCOL_NUMBER | 1 << (end - 1) | 1 << (end + 3)
    return netlink.attribute(
        netlink.NESTED | way, address + netlink.attribute(netlink.NESTED | _TUPLE_PROTOCOL, protocol)
    ) + netlink.attribute(netlink.NESTED | _FILTER, netlink.attribute(way, struct.pack("=I", count)))


def _ends(octets: bytes) -> tuple[Endpoint | None, Endpoint | None]:
    """Sender and receiver of a tuple; none for what has no ports."""
    parts = dict(netlink.attributes(octets))
    addresses = dict(netlink.attributes(parts.get(_TUPLE_IP, b"")))
    protocol = dict(netlink.attributes(parts.get(_TUPLE_PROTOCOL, b"")))
    number = protocol.get(_PROTOCOL_NUMBER, b"\0")[0]
    sender, receiver = (
        (socket.inet_ntoa(addresses[end]), number, int.from_bytes(protocol[end + 1], "big"))
        if len(addresses.get(end, b"")) == 4 and end + 1 in protocol
        else None
        for end in End
    )
    return sender, receiver
