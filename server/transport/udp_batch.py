"""UDP in batches: recvmmsg and sendmmsg of the C library, called through cffi.

Each of the slots of a listener has room for one datagram, its sender's address and, on a wildcard address, for the
control message that says which of our addresses it came to. A fast answer is written over the request it answers,
behind the message ID, and goes back by the same slot: no object is made for the peer. One wake-up takes a bounded
number of batches, then the loop has its turn.
"""

import asyncio
import errno
import functools
import ipaddress
import socket
import sys
from array import array
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

from server.metrics import Metrics
from server.peer import Peer
from server.response_limit import V4_MASK, V6_MASK, V6_TAG
from server.transport.batch_answers import answer_batch
from server.transport.outbox import Outbox
from server.transport.ports import Alike, Fast, Handle
from server.transport.udp_plain import prepare_socket

BATCH: Final = 64  # datagrams a call
MAX_BATCHES: Final = 4  # calls a wake-up
_DATAGRAM: Final = 65536
_STRIDE: Final = _DATAGRAM + 192  # not a power of two: the first octets of all slots would compete for cache lines
_ID: Final = 2
_OPCODE: Final = 0x78  # in the third octet; a query's is 0
_SAMPLE: Final = 4  # of so many datagrams one is counted, when batches are full
_CONTROL: Final = 64
_IPV6_RECVPKTINFO: Final = 49  # of linux/in6.h; the socket module may lack them
_IPV6_PKTINFO: Final = 50
_V4_PKTINFO: Final = (socket.IPPROTO_IP, 8)
_NO_ROOM: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)

_DECLARATIONS: Final = """
struct iovec { void *iov_base; size_t iov_len; };
struct msghdr {
    void *msg_name; unsigned int msg_namelen; struct iovec *msg_iov; size_t msg_iovlen;
    void *msg_control; size_t msg_controllen; int msg_flags;
};
struct mmsghdr { struct msghdr msg_hdr; unsigned int msg_len; };
int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, void *timeout);
int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags);
int sched_yield(void);
"""


@functools.cache
def _library() -> tuple[Any, Any] | None:
    """(cffi, C library), or None where either is missing or the library has no such calls."""
    try:
        from cffi import FFI
    except ImportError:
        return None
    ffi = FFI()
    ffi.cdef(_DECLARATIONS)
    try:
        library = ffi.dlopen(None)
        _ = library.recvmmsg, library.sendmmsg, library.sched_yield
    except (OSError, AttributeError):
        return None
    return ffi, library


def is_available() -> bool:
    return _library() is not None


def _v4_address(name: bytes) -> tuple[str, int]:
    """What a `sockaddr_in` says."""
    return socket.inet_ntop(socket.AF_INET, name[4:8]), int.from_bytes(name[2:4], "big")


def _v6_address(name: bytes) -> tuple[str, int, int, int]:
    """What a `sockaddr_in6` says."""
    scope = int.from_bytes(name[24:], sys.byteorder)
    return socket.inet_ntop(socket.AF_INET6, name[8:24]), int.from_bytes(name[2:4], "big"), 0, scope


class _Sender(NamedTuple):
    """Where a datagram came from: as the server knows it, as the socket module has it, and in the system's octets."""

    peer: Peer
    address: tuple[Any, ...]
    name: bytes


class BatchListener:
    """See `UdpListener`. What cannot be sent at once is dropped and counted: its peer asks again."""

    def __init__(self, number: int, sock: socket.socket, handle: Handle, fast: Fast, metrics: Metrics) -> None:
        found = _library()
        assert found is not None
        self._ffi, self._library = found
        self.number = number
        self._socket = sock
        self._descriptor = sock.fileno()
        self._handle = handle
        self._fast = fast
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._is_v6 = sock.family == socket.AF_INET6
        self._is_wildcard = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_unspecified
        self._make_slots()
        self._outbox = Outbox(self._ffi, self._library, sock, metrics)
        self._sender_of = functools.lru_cache(maxsize=4096)(self._make_sender)
        self._is_reading = True
        self._loop.add_reader(self._descriptor, self._on_readable)

    @classmethod
    def open(cls, number: int, address: str, port: int, handle: Handle, fast: Fast, metrics: Metrics) -> Self:
        """Bind; `OSError` when the address or port cannot be had."""
        is_v6 = ":" in address
        sock = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            prepare_socket(sock)
            if is_v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if ipaddress.ip_address(address).is_unspecified:
                sock.setsockopt(*((socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO) if is_v6 else _V4_PKTINFO), 1)
            sock.bind(socket.getaddrinfo(address, port, sock.family, socket.SOCK_DGRAM)[0][4])
            return cls(number, sock, handle, fast, metrics)
        except BaseException:
            sock.close()
            raise

    def _make_slots(self) -> None:
        """One array of messages to receive by and one to send by; the slots' buffers and addresses serve both."""
        ffi = self._ffi
        name_size = self._name_size = 28 if self._is_v6 else 16
        self._data = ffi.new("unsigned char[]", BATCH * _STRIDE)
        self._names = ffi.new("unsigned char[]", BATCH * 32)
        self._control = ffi.new("unsigned char[]", BATCH * _CONTROL)
        self._incoming = ffi.new("struct mmsghdr[]", BATCH)
        self._outgoing = ffi.new("struct mmsghdr[]", BATCH)
        self._incoming_iov = ffi.new("struct iovec[]", BATCH)
        self._outgoing_iov = ffi.new("struct iovec[]", BATCH)
        for messages, vectors in ((self._incoming, self._incoming_iov), (self._outgoing, self._outgoing_iov)):
            for slot in range(BATCH):
                vectors[slot].iov_base = self._data + slot * _STRIDE
                vectors[slot].iov_len = _DATAGRAM
                head = messages[slot].msg_hdr
                head.msg_name = self._names + slot * 32
                head.msg_namelen = name_size
                head.msg_iov = vectors + slot
                head.msg_iovlen = 1
                if self._is_wildcard:
                    head.msg_control = self._control + slot * _CONTROL
                    head.msg_controllen = _CONTROL
        self._octets = ffi.buffer(self._data)
        self._name_octets = ffi.buffer(self._names)
        words = memoryview(self._name_octets)
        self._address_words = words.cast("Q")[1::4] if self._is_v6 else words.cast("I")[1::8]
        self._control_octets = memoryview(ffi.buffer(self._control))
        self._rcodes = memoryview(self._octets)[3::_STRIDE]  # of replies: no other bit of this octet is set
        self._starts = [slot * _STRIDE + _ID for slot in range(BATCH)]
        # Strided views of one field over all messages: read or set for a batch at once.
        word, message = ffi.sizeof("size_t"), ffi.sizeof("struct mmsghdr")
        reply_vectors = memoryview(ffi.buffer(self._outgoing_iov)).cast("L")
        self._reply_sizes = reply_vectors[ffi.offsetof("struct iovec", "iov_len") // word :: 2]
        at = ffi.offsetof("struct mmsghdr", "msg_len") // 4
        self._sizes = memoryview(ffi.buffer(self._incoming)).cast("I")[at :: message // 4]
        at = ffi.offsetof("struct msghdr", "msg_controllen") // word
        self._control_sizes = memoryview(ffi.buffer(self._incoming)).cast("L")[at :: message // word]
        self._reply_control_sizes = memoryview(ffi.buffer(self._outgoing)).cast("L")[at :: message // word]
        self._full_control = array("L", [_CONTROL] * BATCH)
        self._info_at = word + 8  # behind the head of the control message
        self._infos = memoryview(self._control_octets).cast("I")
        self._interfaces = self._infos[(self._info_at + (16 if self._is_v6 else 0)) // 4 :: _CONTROL // 4]

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def _on_readable(self) -> None:
        for _ in range(MAX_BATCHES):
            if self._is_wildcard:
                self._control_sizes[:] = self._full_control
            count = self._library.recvmmsg(self._descriptor, self._incoming, BATCH, 0, self._ffi.NULL)
            if count <= 0:
                return
            self._take(count)
            if count < BATCH or not self._is_reading:
                return
        # The calls above let go of the interpreter lock, but do not sleep: on one core the database's thread would
        # rarely be awake in time to take it. Now it is, and a commit under full load waits less long. A shorter
        # switch interval does the opposite: it cuts the thread's turns to pieces, each of which waits again.
        self._library.sched_yield()

    def _take(self, count: int) -> None:
        """Answer a batch: what is fast by the slots and one call, the rest one by one afterwards."""
        fast = self._fast
        fast.begin()
        if self._is_wildcard:
            self._aim_replies(count)
        sizes = self._sizes[:count].tolist()
        limiter = fast.guard.limiter
        if limiter is not None:
            # Of a full batch every fourth: when batches are full there are enough of them for that to tell
            weight = _SAMPLE if count == BATCH else 1
            limiter.note(self._networks(count, weight), weight)
            if limiter.watched:
                networks = self._networks(count, 1)
                if limiter.is_watching(networks):
                    self._take_watched(sizes, networks)
                    return
        reply_sizes, slow = answer_batch(fast, self._octets, self._starts, sizes, self._packed)
        self._reply_all(reply_sizes, slow)
        if slow:
            self._take_all_slow(slow, sizes)

    def _take_watched(self, sizes: list[int], networks: list[int]) -> None:
        """A batch with senders whose network is over the response rate: their answers may be cut short or dropped."""
        fast, octets = self._fast, self._octets
        reply_sizes: list[int] = []
        silent: list[int] = []
        slow: list[int] = []
        for slot, (at, size) in enumerate(zip(self._starts, sizes, strict=False)):
            reply = fast.answer_watched(octets[at : at + size - _ID], self._packed(slot), networks[slot])
            if reply is None and fast.answer_signed is not None:
                reply = fast.answer_signed(octets[at - _ID : at + size - _ID])  # it proves its sender: never limited
            if not reply:
                silent.append(slot)
                reply_sizes.append(0)
                if reply is None:
                    slow.append(slot)
                continue
            octets[at : at + len(reply)] = reply
            reply_sizes.append(len(reply) + _ID)
        self._reply_all(reply_sizes, silent)
        if slow:
            self._take_all_slow(slow, sizes)

    def _reply_all(self, reply_sizes: list[int], silent: list[int]) -> None:
        """Send what stands in the slots, but for the silent ones."""
        self._reply_sizes[: len(reply_sizes)] = array("L", reply_sizes)
        rcodes = self._rcodes[: len(reply_sizes)].tobytes()
        if silent:
            rcodes = bytes(rcode for rcode, size in zip(rcodes, reply_sizes, strict=True) if size)
        for rcode in set(rcodes):
            self._fast.rcodes[rcode] += rcodes.count(rcode)
        start = 0
        for slot in silent:
            self._reply(start, slot)
            start = slot + 1
        self._reply(start, len(reply_sizes))

    def _networks(self, count: int, step: int) -> list[int]:
        """The client networks (see `response_limit`) of the senders, or of every so-many-th."""
        addresses = self._address_words[:count:step].tolist()
        if self._is_v6:
            return [address & V6_MASK | V6_TAG for address in addresses]
        return [address & V4_MASK for address in addresses]

    def _packed(self, slot: int) -> bytes:
        """A slot's sender: 4 or 16 octets."""
        start, size = (8, 16) if self._is_v6 else (4, 4)
        return bytes(self._name_octets[slot * 32 + start : slot * 32 + start + size])

    def _reply(self, start: int, stop: int) -> None:
        """Send the replies of neighbouring slots."""
        while start < stop:
            sent = self._library.sendmmsg(self._descriptor, self._outgoing + start, stop - start, 0)
            if sent > 0:
                start += sent
                continue
            number = self._ffi.errno
            if number == errno.EINTR:
                continue
            lost = stop - start if number in _NO_ROOM else 1  # 1: this one cannot be sent, those behind it may
            self._metrics.dropped.labels("udp_send").inc(lost)
            start += lost

    def _take_all_slow(self, slow: list[int], sizes: list[int]) -> None:
        """What takes a message apart, as far as there is time for it; beyond that only of senders that are known."""
        guard = self._fast.guard
        has_time = guard.work is None or guard.work.begin()
        for slot in slow:
            sender = self._sender(slot)
            if has_time or guard.is_known(sender.peer.address):
                self._take_slow(slot, sizes[slot], sender)
            else:
                self._fast.overloaded()
        if guard.work is not None:
            guard.work.end()

    def _take_slow(self, slot: int, size: int, sender: _Sender) -> None:
        if not self._is_reading:
            return
        at = slot * _STRIDE
        datagram = self._octets[at : at + size]
        origin = self._origin(slot)
        peer, address, name = sender
        by_itself = origin or (self._is_v6 and address[3])

        def send(wire: bytes) -> None:
            if not wire or self._socket.fileno() < 0:
                return
            if by_itself or not self._outbox.put(name, wire):
                self._send_to(address, wire, origin)
            if not datagram[_ID] & _OPCODE:
                self._fast.offer(datagram[_ID:], wire)

        self._handle(datagram, peer, send)

    def _address(self, slot: int) -> tuple[Any, ...]:
        """The sender of a slot's datagram, as the socket module has it."""
        return self._sender(slot).address

    def _sender(self, slot: int) -> _Sender:
        return self._sender_of(self._name_octets[slot * 32 : slot * 32 + self._name_size])

    def _make_sender(self, name: bytes) -> _Sender:
        address = _v6_address(name) if self._is_v6 else _v4_address(name)
        return _Sender(Peer("udp", address[0], address[1], self.number), address, name)

    def _aim_replies(self, count: int) -> None:
        """Let replies leave from the address asked, over whatever interface leads back; link-local ones by their own.

        The control messages received, less the interface, say just that when they are sent.
        """
        self._reply_control_sizes[:count] = self._control_sizes[:count]
        for slot in range(count):
            if self._is_v6:
                at = slot * _CONTROL + self._info_at
                if self._control_octets[at] == 0xFE and self._control_octets[at + 1] & 0xC0 == 0x80:
                    continue
            self._interfaces[slot] = 0

    def _origin(self, slot: int) -> list[tuple[int, int, bytes]]:
        """The same as ancillary data for one reply; nothing on an address of its own."""
        if not self._is_wildcard or not self._reply_control_sizes[slot]:
            return []
        at = slot * _CONTROL + self._info_at
        level, kind, size = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, 20) if self._is_v6 else (*_V4_PKTINFO, 12)
        return [(level, kind, bytes(self._control_octets[at : at + size]))]

    def send(self, peers: Sequence[Peer], alike: Alike) -> None:
        """Send events with others of this turn. On a wildcard address the system chooses the source."""
        if self._socket.fileno() < 0 or (len(peers) > 1 and self._outbox.take_alike(peers, alike)):
            return
        for peer, wire in zip(peers, alike.each(), strict=True):
            if not self._outbox.take(peer.address, peer.port, wire):
                self._send_to((peer.address, peer.port), wire, [])

    def _send_to(self, address: tuple[Any, ...], wire: bytes, origin: list[tuple[int, int, bytes]]) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            if origin:
                self._socket.sendmsg([wire], origin, 0, address)
            else:
                self._socket.sendto(wire, address)
        except OSError:
            self._metrics.dropped.labels("udp_send").inc()

    def pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._descriptor)

    def close(self) -> None:
        self.pause()
        self._outbox.close()
        self._socket.close()
