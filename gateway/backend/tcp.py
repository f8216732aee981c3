"""TCP through the relay: an accepted connection outside joined to a new one inside.

What one side sends is written to the other and reading pauses while that is full; the end of one direction is passed
on and leaves the other direction open; a reset on one side is a reset on the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from .admission import Admission
from .udp import Endpoint

CONNECT_SECONDS = 10.0
BACKLOG = 128
ACCEPT_BURST = 16
"""Connections accepted in one turn of the loop per mapping."""
ACCEPT_PAUSE_SECONDS = 0.5
"""Rest of a listener while the process has no descriptors left; the backlog holds new connections meanwhile."""
HIGH_WATER_OCTETS = 256 * 1024
_OUT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer sees a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


class Side(asyncio.Protocol):
    """One of the two connections of a pair. Writes what it hears to `other`, which may be connected later."""

    def __init__(self) -> None:
        self.other: Side | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self._ended = False
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_OCTETS)
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                # A vanished peer is noticed in the end, though a relay may not end idle connections (RFC 5382 §5).
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def pass_on_early(self, other: Side) -> None:
        """Hand the other side, which is connected by now, what was heard before it was."""
        assert other.transport is not None
        for data in self._early:
            other.transport.write(data)
        self._early.clear()
        if self._ended:
            self._pass_on_end(other)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            # An inside that speaks first, for the one turn of the loop until the outside has its transport.
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        if self.other is not None:
            self._pass_on_end(self.other)
        return True

    def _pass_on_end(self, other: Side) -> None:
        if other.transport is not None and not other.transport.is_closing():
            other.transport.write_eof()
        if other._ended:
            self.close()
            other.close()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        other = self.other
        if other is not None and other.transport is not None and not other._ended and not other.transport.is_closing():
            other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if self.other is not None:
            if exc is not None:
                self.other.reset()
            else:
                self.other.close()

    def close(self) -> None:
        """Close after what is buffered has been written."""
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Drop the connection with a reset."""
        if self.transport is None or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


@dataclass(slots=True)
class _Accepted:
    """An accepted socket, until a transport has taken it over."""

    socket: socket.socket
    adopted: bool = False


class ConnectionTable:
    """Counts and bounds the TCP connections of a relay and holds their tasks."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: int,
        counters: Counter[str],
        on_open: Callable[[int, str, Endpoint], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.loop = loop
        self.counters = counters
        self._limit = limit
        self._on_open = on_open
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def open(self, mapping: TcpMapping, outer: socket.socket, peer: Endpoint) -> None:
        """Join an accepted connection to the inside, or reset it when there is no room."""
        if len(self._tasks) >= self._limit:
            self.counters["tcp connections refused"] += 1
            reset(outer)
            return
        self.counters["tcp connections"] += 1
        self._on_open(mapping.number, "tcp", peer)
        accepted = _Accepted(outer)
        task = self.loop.create_task(self._carry(mapping, accepted), name=f"relay tcp {peer[0]}:{peer[1]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        mapping.tasks[task] = peer
        task.add_done_callback(lambda task: mapping.tasks.pop(task, None))
        task.add_done_callback(lambda task: self._note_end(task, accepted))

    async def drain(self) -> None:
        """Wait for the ends of all connections that were cancelled."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note_end(self, task: asyncio.Task[None], accepted: _Accepted) -> None:
        if not accepted.adopted:
            reset(accepted.socket)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._on_failure(failure)

    async def _carry(self, mapping: TcpMapping, accepted: _Accepted) -> None:
        inner, outer = Side(), Side()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self.loop.create_connection(lambda: inner, *mapping.inside)
                await self.loop.connect_accepted_socket(lambda: outer, accepted.socket)
            accepted.adopted = True
            if inner.closed.done() or outer.closed.done():
                return
            inner.other, outer.other = outer, inner
            inner.pass_on_early(outer)
            outer.pass_on_early(inner)
            await asyncio.wait((inner.closed, outer.closed))
        except OSError:
            self.counters["tcp refused inside"] += 1
        finally:
            # Nothing is left to end after an orderly close; a cancelled or half-made pair gets resets.
            inner.reset()
            outer.reset()


class TcpMapping:
    """The outside of a TCP mapping. The constructor raises OSError if the port cannot be had."""

    def __init__(
        self, number: int, outside: Endpoint, inside: Endpoint, connections: ConnectionTable, admission: Admission
    ) -> None:
        self.number = number
        self.inside = inside
        self.tasks: dict[asyncio.Task[None], Endpoint] = {}
        self._admission = admission
        self._table = connections
        self._pause: asyncio.TimerHandle | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Connections of a mapping before may still linger; without this the port would be refused for a minute.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(outside)
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self._listen()

    def restrict(self, admission: Admission) -> None:
        """Let in others than so far; connections of those who are out now are reset."""
        self._admission = admission
        for task, peer in list(self.tasks.items()):
            if not admission.admits(peer):
                task.cancel()

    def close(self) -> None:
        """Stop listening and reset all connections."""
        if self._pause is not None:
            self._pause.cancel()
        self._table.loop.remove_reader(self._socket)
        self._socket.close()
        for task in list(self.tasks):
            task.cancel()

    def _listen(self) -> None:
        self._pause = None
        self._table.loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_BURST):
            try:
                outer, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_ROOM:
                    self._table.counters["tcp accept paused"] += 1
                    self._table.loop.remove_reader(self._socket)
                    self._pause = self._table.loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen)
                    return
                continue
            outer.setblocking(False)
            if not self._admission.admits(peer):
                self._table.counters["tcp filtered"] += 1
                reset(outer)
                continue
            self._table.open(self, outer, peer)
