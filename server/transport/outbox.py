"""Datagrams that answer nothing at once - events - sent many a call.

They gather in slots of one buffer until a call's worth is there or the event loop's turn ends. What the system does not
take is dropped and counted: events are sent again until they are acknowledged.

Of messages that are alike (see `ports.Alike`) a slot gets the common octets once, and a field is written into all slots
at a time: assigned to a view of the buffer that has one word of each slot.
"""

import asyncio
import errno
import socket
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Any, Final, Literal

from server.metrics import Metrics
from server.peer import Peer
from server.transport.ports import Alike

SLOTS: Final = 64  # datagrams a call
SLOT_OCTETS: Final = 1536  # room for one; an event over UDP has at most 1232
_NAME_OCTETS: Final = 32
_NO_ROOM: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_V4: Final = struct.Struct("=H2s4s8x")  # sockaddr_in: family, port, address
_V6: Final = struct.Struct("=H2s4x16s4x")  # sockaddr_in6 without flow and scope
_PORTS: Final = tuple(port.to_bytes(2, "big") for port in range(65536))
_PORT_AT: Final = 2  # in either
_V4_AT: Final = 4
_V6_AT: Final = 8
_Word = tuple[int, Literal["Q", "I", "H", "B"]]  # octets and format, as `memoryview.cast` knows it
_WORDS: Final[tuple[_Word, ...]] = ((8, "Q"), (4, "I"), (2, "H"), (1, "B"))


class Outbox:
    """What waits to leave by one socket. `ffi` and `library` as `udp_batch` has them."""

    def __init__(self, ffi: Any, library: Any, sock: socket.socket, metrics: Metrics) -> None:
        self._ffi, self._library = ffi, library
        self._descriptor = sock.fileno()
        self._metrics = metrics
        self._family = sock.family
        self._loop = asyncio.get_running_loop()
        self._is_scheduled = False
        self._count = 0
        self._lengths = array("L", [0] * SLOTS)
        self._data = ffi.new("unsigned char[]", (SLOTS + 1) * SLOT_OCTETS)  # one more: views end at a whole slot
        self._names = ffi.new("unsigned char[]", (SLOTS + 1) * _NAME_OCTETS)
        self._messages = ffi.new("struct mmsghdr[]", SLOTS)
        self._vectors = ffi.new("struct iovec[]", SLOTS)
        for slot in range(SLOTS):
            self._vectors[slot].iov_base = self._data + slot * SLOT_OCTETS
            head = self._messages[slot].msg_hdr
            head.msg_name = self._names + slot * _NAME_OCTETS
            head.msg_namelen = _V6.size if self._family == socket.AF_INET6 else _V4.size
            head.msg_iov = self._vectors + slot
            head.msg_iovlen = 1
        self._octets = ffi.buffer(self._data)
        self._name_octets = ffi.buffer(self._names)
        for slot in range(SLOTS):
            self._name_octets[slot * _NAME_OCTETS : slot * _NAME_OCTETS + 2] = self._family.to_bytes(2, sys.byteorder)
        word = ffi.sizeof("size_t")
        sizes = memoryview(ffi.buffer(self._vectors)).cast("L")
        self._sizes = sizes[ffi.offsetof("struct iovec", "iov_len") // word :: 2]

    def take(self, address: str, port: int, wire: bytes) -> bool:
        """Put one datagram in; False for one that must go by itself: too long, or to a link-local address."""
        try:
            if self._family == socket.AF_INET6:
                name = _V6.pack(self._family, _PORTS[port], socket.inet_pton(socket.AF_INET6, address))
            else:
                name = _V4.pack(self._family, _PORTS[port], socket.inet_aton(address))
        except OSError:  # with a zone index
            return False
        return self.put(name, wire)

    def put(self, name: bytes, wire: bytes) -> bool:
        """The same by the socket address in octets, without a zone index; False for a datagram that is too long."""
        size = len(wire)
        if size > SLOT_OCTETS:
            return False
        slot = self._count
        at = slot * SLOT_OCTETS
        self._octets[at : at + size] = wire
        at = slot * _NAME_OCTETS
        self._name_octets[at : at + len(name)] = name
        self._lengths[slot] = size
        self._added(slot + 1)
        return True

    def take_alike(self, peers: Sequence[Peer], alike: Alike) -> bool:
        """Put in one message for each peer, a call's worth at most; False where they must go one by one."""
        count, size = len(peers), len(alike.template)
        if count > SLOTS or size > SLOT_OCTETS:
            return False
        family = self._family
        try:
            if family == socket.AF_INET6:
                address_at, addresses = _V6_AT, [socket.inet_pton(family, peer.address) for peer in peers]
            else:
                address_at, addresses = _V4_AT, [socket.inet_aton(peer.address) for peer in peers]
        except OSError:  # with a zone index
            return False
        if self._count + count > SLOTS:
            self.flush()
        first = self._count
        names = memoryview(self._name_octets)[first * _NAME_OCTETS :]
        _put(names, _NAME_OCTETS, _PORT_AT, b"".join([_PORTS[peer.port] for peer in peers]), count)
        _put(names, _NAME_OCTETS, address_at, b"".join(addresses), count)
        for at in range(first * SLOT_OCTETS, (first + count) * SLOT_OCTETS, SLOT_OCTETS):
            self._octets[at : at + size] = alike.template
        octets = memoryview(self._octets)[first * SLOT_OCTETS :]
        for at, values in alike.fields:
            _put(octets, SLOT_OCTETS, at, values, count)
        self._lengths[first : first + count] = array("L", [size]) * count
        self._added(first + count)
        return True

    def _added(self, count: int) -> None:
        """So many slots are full now."""
        self._count = count
        if count == SLOTS:
            self.flush()
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._is_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send what is there."""
        count, self._count = self._count, 0
        if not count:
            return
        self._sizes[:count] = self._lengths[:count]
        start = 0
        while start < count:
            sent = self._library.sendmmsg(self._descriptor, self._messages + start, count - start, 0)
            if sent > 0:
                start += sent
                continue
            number = self._ffi.errno
            if number == errno.EINTR:
                continue
            lost = count - start if number in _NO_ROOM else 1  # 1: this one cannot be sent, those behind it may
            self._metrics.dropped.labels("udp_send").inc(lost)
            start += lost

    def close(self) -> None:
        """Send what is there, and never again."""
        self.flush()
        self._descriptor = -1


def _put(slots: memoryview, stride: int, at: int, values: bytes, count: int) -> None:
    """Write `count` values, all of one size, to offset `at` of as many slots: of all slots the same word at a time."""
    size = len(values) // count
    octets, form = next(word for word in _WORDS if size % word[0] == 0)
    source = memoryview(values).cast(form)
    words = size // octets
    for number in range(words):
        begin = at + number * octets
        slots[begin : begin + count * stride].cast(form)[:: stride // octets] = source[number::words]
