"""TCP and TLS: messages behind a two-octet length, pipelined, answered as they become ready (RFC 7766, RFC 7858).

A connection is closed when idle, when a message trickles in too slowly, when its handshake takes too long, or when its
peer does not read; how many there may be is the table's business (`stream_table`). One message and its length go out in
one write.
"""

import asyncio
import socket
import ssl
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol, cast

from server.metrics import Metrics
from server.peer import Peer
from server.transport.ports import Handle
from server.transport.stream_table import StreamTable
from server.transport.tls import TlsLayer

MAX_PENDING: Final = 64  # requests of one connection not yet answered; beyond it we stop reading
MAX_TURN: Final = 64  # requests of one connection taken in one turn of the event loop, so that others get theirs
MAX_UNSENT: Final = 4 * 1024 * 1024  # octets the peer has not read; beyond it the connection is dropped
MAX_BLOCKED: Final = (
    64  # connections whose peers do not read; beyond it the one that has not for the longest is dropped
)
HANDSHAKE_RETRY_SECONDS: Final = 0.05
BACKLOG: Final = 512  # connections that the system keeps until we take them
ACCEPTORS: Final = 16  # connections taken from one listener in one turn of libuv's loop
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_HIGH_WATER: Final = 256 * 1024  # octets the peer has not read; beyond it no more of its requests are taken


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds for a whole message, a handshake, and reading what we sent; numbers of connections and handshakes."""

    idle_seconds: float
    connections: int
    per_address: int
    handshake_seconds: float = 10.0
    read_seconds: float = 30.0
    handshakes_per_second: int = 200


class Watchers(Protocol):
    """Who lives on streams beyond one request: subscriptions, stateful sessions."""

    def stream_closed(self, via: int) -> None: ...
    def stream_paused(self, via: int) -> None: ...
    def stream_resumed(self, via: int) -> None: ...
    def is_watching(self, via: int) -> bool: ...


class StreamServer:
    """Every stream connection of the server, whichever listener it came in by."""

    def __init__(self, handle: Handle, limits: StreamLimits, metrics: Metrics, watchers: Watchers) -> None:
        self.handle = handle
        self.metrics = metrics
        self.watchers = watchers
        self.numbers = count(1)
        self.connections: StreamTable[StreamConnection] = StreamTable(limits.connections, limits.per_address)
        self.blocked: dict[int, StreamConnection] = {}
        self.tls_context: ssl.SSLContext | None = None
        """For connections that begin their handshake from now on."""
        self._servers: list[asyncio.Server] = []
        self._handshakes = float(limits.handshakes_per_second)
        self._handshakes_at = 0.0
        self.replace(limits)
        metrics.streams_blocked.set_function(lambda: len(self.blocked))

    def replace(self, limits: StreamLimits) -> None:
        """Other limits for what comes from now on."""
        self.limits = limits
        self.connections.total = limits.connections
        self.connections.per_address = limits.per_address

    @property
    def told_idle_seconds(self) -> float:
        """The idle time that a client may count on: none while places are short (RFC 7828 §3.3.2)."""
        return 0.0 if self.connections.is_crowded else self.limits.idle_seconds

    async def listen(self, address: str, port: int, *, is_tls: bool = False) -> int:
        """Listen and return the bound port; `OSError` when it cannot be had. For TLS `tls_context` must be set.

        libuv takes one connection from a listening descriptor in each turn of its loop, and when datagrams come in
        floods turns are long: so it gets several descriptors of the one socket.
        """
        loop = asyncio.get_running_loop()
        name = "tls" if is_tls else "tcp"

        def connection() -> StreamConnection:
            return StreamConnection(self, name)

        if type(loop).__module__ != "uvloop":
            server = await loop.create_server(connection, address, port, backlog=BACKLOG)
            self._servers.append(server)
            return int(server.sockets[0].getsockname()[1])
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, port), family=family, backlog=BACKLOG) as sock:
            sock.setblocking(False)
            for _ in range(ACCEPTORS):
                self._servers.append(await loop.create_server(connection, sock=sock.dup(), backlog=BACKLOG))
            return int(sock.getsockname()[1])

    def send(self, peer: Peer, wire: bytes) -> bool:
        """Send on the connection a peer stands for; False when it is gone."""
        connection = self.connections.get(peer.via)
        if connection is None:
            return False
        connection.send(wire)
        return True

    def abort(self, peer: Peer) -> None:
        """Drop the connection a peer stands for, with what it has not read."""
        connection = self.connections.get(peer.via)
        if connection is not None:
            connection.abort()

    def tls(self, peer: Peer) -> tuple[str, str] | None:
        """TLS version and ALPN protocol ("" without one) of the connection a peer stands for; None without TLS."""
        connection = self.connections.get(peer.via)
        return None if connection is None else connection.tls()

    def count(self) -> dict[str, int]:
        """Open connections by transport."""
        return dict(Counter(connection.name for connection in self.connections))

    def may_shake_hands(self, now: float) -> bool:
        """Whether the processor has time for one more handshake."""
        rate = self.limits.handshakes_per_second
        self._handshakes = min(rate, self._handshakes + (now - self._handshakes_at) * rate)
        self._handshakes_at = now
        if self._handshakes < 1:
            return False
        self._handshakes -= 1
        return True

    async def close(self) -> None:
        """Stop listening and close every connection."""
        for server in self._servers:
            server.close()
        for connection in self.connections:
            connection.close()
        await asyncio.sleep(0)


class StreamConnection(asyncio.Protocol):
    """One connection: TLS, framing, back-pressure, timers."""

    def __init__(self, server: StreamServer, transport_name: str) -> None:
        self._server = server
        self.name = transport_name
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._tls: TlsLayer | None = None
        self._untaken = b""
        self._pending = 0
        self._paused = False
        self._is_blocked = False
        self._ended = False
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reading_timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peername = transport.get_extra_info("peername")
        if not peername:  # it is gone already
            self._transport.abort()
            return
        server = self._server
        number, address = next(server.numbers), str(peername[0])
        refused = server.connections.admit(number, self, address, _evict)
        if refused:
            server.metrics.streams_refused.labels(refused).inc()
            _reset(self._transport)
            return
        self._peer = Peer(self.name, address, int(peername[1]), number)
        server.metrics.streams.labels(self.name).inc()
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._wait(server.limits.handshake_seconds if self.name == "tls" else server.limits.idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._reading_timer):
            if timer is not None:
                timer.cancel()
        if self._peer is None:
            return
        server, via = self._server, self._peer.via
        server.connections.leave(via)
        server.blocked.pop(via, None)
        server.metrics.streams.labels(self.name).dec()
        server.watchers.stream_closed(via)

    # -- octets in ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._peer is None or self._transport is None or self._transport.is_closing():
            return
        if self.name == "tls":
            self._take_tls(data)
            return
        self._buffer += data
        self._take_messages()

    def _take_tls(self, data: bytes) -> None:
        assert self._transport is not None
        server = self._server
        if self._tls is None:
            if not server.may_shake_hands(self._loop.time()):
                self._untaken += data
                self._set_reading(False)
                self._loop.call_later(HANDSHAKE_RETRY_SECONDS, self._begin_tls)
                return
            assert server.tls_context is not None
            self._tls = TlsLayer(server.tls_context)
        tls = self._tls
        was_ready = tls.is_ready
        try:
            self._buffer += tls.receive(data)
        except ssl.SSLError:
            server.metrics.dropped.labels("tls").inc()
            self._transport.write(tls.take())  # the alert that says why
            self._transport.close()
            return
        self._transport.write(tls.take())
        if tls.is_ready and not was_ready:
            self._wait(server.limits.idle_seconds)
        self._take_messages()
        if tls.has_ended and not self._ended:
            self._end()

    def _begin_tls(self) -> None:
        """Try again to begin a handshake for which there was no time."""
        if self._transport is None or self._transport.is_closing():
            return
        data, self._untaken = self._untaken, b""
        self._take_tls(data)
        if self._tls is not None:
            self._set_reading(True)

    def eof_received(self) -> bool:
        """The peer sends no more; what it asked is still answered (D216), then we close."""
        self._ended = True
        return self._pending > 0

    def _end(self) -> None:
        self._ended = True
        if self._pending == 0:
            self.close()

    def _take_messages(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        assert self._peer is not None
        buffer = self._buffer
        took = 0
        while len(buffer) >= 2 and self._pending < MAX_PENDING and took < MAX_TURN and not self._is_blocked:
            end = 2 + (buffer[0] << 8 | buffer[1])
            if len(buffer) < end:
                break
            wire = bytes(buffer[2:end])
            del buffer[:end]
            took += 1
            self._pending += 1
            self._server.handle(wire, self._peer, self._answer)
        if took:
            # Only a whole message counts as activity: a trickle does not keep a connection alive
            self._server.connections.spoke(self._peer.via)
            self._deadline = self._loop.time() + self._server.limits.idle_seconds
        if took == MAX_TURN:
            self._loop.call_soon(self._take_messages)
        self._set_reading(self._pending < MAX_PENDING and took < MAX_TURN and not self._is_blocked)

    def _set_reading(self, wanted: bool) -> None:
        if self._transport is None or self._transport.is_closing() or wanted is not self._paused:
            return
        if wanted:
            self._paused = False
            self._transport.resume_reading()
        else:
            self._paused = True
            self._transport.pause_reading()

    # -- messages out ------------------------------------------------------------------------------

    def _answer(self, wire: bytes) -> None:
        """A reply is ready (b"": there is none); reading goes on when enough are."""
        if wire:
            self.send(wire)
        self._pending -= 1
        if self._pending == MAX_PENDING - 1 and self._peer is not None:
            self._loop.call_soon(self._take_messages)
        if self._ended and self._pending == 0:
            self.close()

    def send(self, wire: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > MAX_UNSENT:
            self.abort()  # a peer that asks and does not read
            return
        framed = len(wire).to_bytes(2, "big") + wire
        if self._tls is not None:
            try:
                framed = self._tls.send(framed)
            except ssl.SSLError:
                self.abort()
                return
        transport.write(framed)

    def pause_writing(self) -> None:
        """The peer does not read: no more of its requests are taken, and it has so long to read again."""
        self._is_blocked = True
        if self._peer is None:
            return
        server = self._server
        server.blocked[self._peer.via] = self
        if len(server.blocked) > MAX_BLOCKED:
            server.blocked.pop(next(iter(server.blocked))).drop("blocked")
        self._reading_timer = self._loop.call_later(server.limits.read_seconds, self.drop, "unread")
        server.watchers.stream_paused(self._peer.via)

    def resume_writing(self) -> None:
        self._is_blocked = False
        if self._peer is None:
            return
        if self._reading_timer is not None:
            self._reading_timer.cancel()
        self._server.blocked.pop(self._peer.via, None)
        self._server.watchers.stream_resumed(self._peer.via)
        self._take_messages()

    # -- how long it lasts -------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Set the deadline and see to it that it is kept. Moving it on costs nothing: the timer looks, and waits on."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        assert self._peer is not None
        self._timer = None
        more = self._deadline - self._loop.time()
        if more <= 0:
            if self._transport is None or self._transport.is_closing():
                self.abort()  # it was told all, and does not read it
                return
            if not self.is_idle() and self._is_open():
                more = self._server.limits.idle_seconds
            if more <= 0 and (not self._is_open() or self._transport.get_write_buffer_size()):
                self.drop("idle" if self._is_open() else "handshake")  # an orderly end is for who reads
                return
            if more <= 0:
                self._server.metrics.streams_dropped.labels("idle").inc()
                self.close()  # its client reads an end and no error (RFC 7858 §3.4), and has some time to take it
                more = self._server.limits.handshake_seconds
            self._deadline = self._loop.time() + more
        self._timer = self._loop.call_later(more, self._look_at_deadline)

    def _is_open(self) -> bool:
        """Whether messages can go both ways: at once over TCP, after the handshake over TLS."""
        return self.name == "tcp" or (self._tls is not None and self._tls.is_ready)

    def is_idle(self) -> bool:
        """Whether no answer is owed and nobody lives here: it may be closed."""
        if self._pending or self._peer is None:
            return False
        return not self._server.watchers.is_watching(self._peer.via)

    def drop(self, why: str) -> None:
        """End it at once, and count why."""
        self._server.metrics.streams_dropped.labels(why).inc()
        self.abort()

    def close(self) -> None:
        """End it when the peer has read all that was sent."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._tls is not None:
            self._transport.write(self._tls.close())
        self._transport.close()

    def abort(self) -> None:
        """End it at once; what was not read is lost, and the peer sees a reset (RFC 8490 §5.3)."""
        if self._transport is not None:
            _reset(self._transport)

    # -- facts -------------------------------------------------------------------------------------

    def tls(self) -> tuple[str, str] | None:
        return None if self._tls is None else self._tls.facts()

    @property
    def local_port(self) -> int | None:
        """The port this connection came in by."""
        sockname = self._transport.get_extra_info("sockname") if self._transport else None
        return int(sockname[1]) if sockname else None


def _reset(transport: asyncio.Transport) -> None:
    """End it with an RST. Closing alone would send a FIN, an end like any other."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def _evict(connection: StreamConnection) -> None:
    connection.drop("evicted")
