"""Datagrams that answer nothing at once - events - sent many a call.

They gather in slots of one buffer until a call's worth is there or the event loop's turn ends. What the system does not
take is dropped and counted: events are sent again until they are acknowledged.
"""

import asyncio
import errno
import socket
import struct
from array import array
from typing import Any, Final

from server.metrics import Metrics

SLOTS: Final = 64  # datagrams a call
SLOT_OCTETS: Final = 1536  # room for one; an event over UDP has at most 1232
_NAME_OCTETS: Final = 32
_NO_ROOM: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_V4: Final = struct.Struct("=H2s4s8x")  # sockaddr_in: family, port, address
_V6: Final = struct.Struct("=H2s4x16s4x")  # sockaddr_in6 without flow and scope
_PORTS: Final = tuple(port.to_bytes(2, "big") for port in range(65536))


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
        self._data = ffi.new("unsigned char[]", SLOTS * SLOT_OCTETS)
        self._names = ffi.new("unsigned char[]", SLOTS * _NAME_OCTETS)
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
        word = ffi.sizeof("size_t")
        sizes = memoryview(ffi.buffer(self._vectors)).cast("L")
        self._sizes = sizes[ffi.offsetof("struct iovec", "iov_len") // word :: 2]

    def take(self, address: str, port: int, wire: bytes) -> bool:
        """Put one datagram in; False for one that must go by itself: too long, or to a link-local address."""
        size = len(wire)
        if size > SLOT_OCTETS:
            return False
        try:
            if self._family == socket.AF_INET6:
                name = _V6.pack(self._family, _PORTS[port], socket.inet_pton(socket.AF_INET6, address))
            else:
                name = _V4.pack(self._family, _PORTS[port], socket.inet_aton(address))
        except OSError:  # with a zone index
            return False
        slot = self._count
        at = slot * SLOT_OCTETS
        self._octets[at : at + size] = wire
        at = slot * _NAME_OCTETS
        self._name_octets[at : at + len(name)] = name
        self._lengths[slot] = size
        self._count = slot + 1
        if self._count == SLOTS:
            self.flush()
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush_later)
        return True

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
