"""TCP and TLS: messages behind a two-octet length, pipelined, answered as they become ready (RFC 7766, RFC 7858).

A connection is closed when idle, when a message trickles in too slowly, or when its peer does not read; how many there
may be, in total and per address, is limited. One message and its length go out in one write.
"""

import asyncio
import ssl
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol, cast

from server.metrics import Metrics
from server.peer import Peer
from server.transport.udp import Handle

MAX_PENDING: Final = 64  # requests of one connection not yet answered; beyond it we stop reading
MAX_TURN: Final = 64  # requests of one connection taken in one turn of the event loop, so that others get theirs
MAX_UNSENT: Final = 4 * 1024 * 1024  # octets the peer has not read; beyond it the connection is dropped
_HIGH_WATER: Final = 256 * 1024  # octets the peer has not read; beyond it no more of its requests are taken
_TLS_HANDSHAKE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds without a whole message before closing, and connections in total and per address."""

    idle_seconds: float
    connections: int
    per_address: int


class Watchers(Protocol):
    """Who lives on streams beyond one request: the subscriptions."""

    def stream_closed(self, via: int) -> None: ...
    def stream_paused(self, via: int) -> None: ...
    def stream_resumed(self, via: int) -> None: ...
    def is_watching(self, via: int) -> bool: ...


class StreamServer:
    """Every stream connection of the server, whichever listener it came in by."""

    def __init__(self, handle: Handle, limits: StreamLimits, metrics: Metrics, watchers: Watchers) -> None:
        self.handle = handle
        self.limits = limits
        self.metrics = metrics
        self.watchers = watchers
        self.numbers = count(1)
        self.connections: dict[int, StreamConnection] = {}
        self.per_address: Counter[str] = Counter()
        self._servers: list[asyncio.Server] = []

    async def listen(self, address: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen and return the bound port; `OSError` when it cannot be had."""
        loop = asyncio.get_running_loop()
        name = "tls" if tls else "tcp"
        server = await loop.create_server(
            lambda: StreamConnection(self, name),
            address,
            port,
            ssl=tls,
            ssl_handshake_timeout=_TLS_HANDSHAKE_SECONDS if tls else None,
            backlog=512,
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

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
        return dict(Counter(connection.name for connection in self.connections.values()))

    async def close(self) -> None:
        """Stop listening and close every connection."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections.values()):
            connection.close()
        await asyncio.sleep(0)


class StreamConnection(asyncio.Protocol):
    """One connection: framing, back-pressure, idle timer."""

    def __init__(self, server: StreamServer, transport_name: str) -> None:
        self._server = server
        self.name = transport_name
        self._buffer = bytearray()
        self._pending = 0
        self._paused = False
        self._is_blocked = False
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peername = transport.get_extra_info("peername") or ("", 0)
        address, port = str(peername[0]), int(peername[1])
        server, limits = self._server, self._server.limits
        over = (
            "total"
            if len(server.connections) >= limits.connections
            else "per_address"
            if server.per_address[address] >= limits.per_address
            else None
        )
        if over:
            server.metrics.streams_refused.labels(over).inc()
            self._transport.abort()
            return
        number = next(server.numbers)
        self._peer = Peer(self.name, address, port, number)
        server.connections[number] = self
        server.per_address[address] += 1
        server.metrics.streams.labels(self.name).inc()
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._peer is None:
            return
        server = self._server
        del server.connections[self._peer.via]
        server.per_address[self._peer.address] -= 1
        if not server.per_address[self._peer.address]:
            del server.per_address[self._peer.address]
        server.metrics.streams.labels(self.name).dec()
        server.watchers.stream_closed(self._peer.via)

    def data_received(self, data: bytes) -> None:
        if self._peer is None:
            return
        self._buffer += data
        self._take_messages()

    def eof_received(self) -> bool:
        """The peer sends no more; what it asked is still answered (RFC 7766 §6.2.4), then we close.

        TLS has no half-close, so there the transport closes by itself.
        """
        self._ended = True
        if self._pending == 0:
            return False
        return self.name == "tcp"

    def _take_messages(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
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
            assert self._peer is not None
            self._server.handle(wire, self._peer, self._answer)
        if took:
            self._rearm()  # only a whole message counts as activity: a trickle does not keep a connection alive
        if took == MAX_TURN:
            asyncio.get_running_loop().call_soon(self._take_messages)
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

    def _answer(self, wire: bytes) -> None:
        """A reply is ready (b"": there is none); reading goes on when enough are."""
        if wire:
            self.send(wire)
        self._pending -= 1
        if self._pending == MAX_PENDING - 1 and self._peer is not None:
            asyncio.get_running_loop().call_soon(self._take_messages)
        if self._ended and self._pending == 0:
            self.close()

    def send(self, wire: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > MAX_UNSENT:
            transport.abort()  # a peer that asks and does not read
            return
        transport.write(len(wire).to_bytes(2, "big") + wire)

    def tls(self) -> tuple[str, str] | None:
        tls = self._transport.get_extra_info("ssl_object") if self._transport else None
        return None if tls is None else (tls.version() or "", tls.selected_alpn_protocol() or "")

    @property
    def local_port(self) -> int | None:
        """The port this connection came in by."""
        sockname = self._transport.get_extra_info("sockname") if self._transport else None
        return int(sockname[1]) if sockname else None

    def pause_writing(self) -> None:
        """The peer does not read: no more of its requests are taken, and if it goes on so, the idle timer ends it."""
        self._is_blocked = True
        if self._peer is not None:
            self._server.watchers.stream_paused(self._peer.via)

    def resume_writing(self) -> None:
        self._is_blocked = False
        if self._peer is not None:
            self._server.watchers.stream_resumed(self._peer.via)
            self._take_messages()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._server.limits.idle_seconds, self._idle)

    def _idle(self) -> None:
        """No whole message for the idle time. One with a subscription may rest, its lease ends that."""
        assert self._peer is not None
        self._timer = None
        if self._pending or self._server.watchers.is_watching(self._peer.via):
            self._rearm()
        elif self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
