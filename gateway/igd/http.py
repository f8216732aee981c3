"""HTTP/1.1 for the device, on one internal address: bounded in connections, octets and time.

The syntax is h11's. What is served is decided by a handler; whoever is not in the address's own network is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import h11

from .description import SERVER

HEADER_OCTETS: Final = 8192
BODY_OCTETS: Final = 16384
CONNECTIONS: Final = 64
PER_HOST: Final = 8
REQUESTS: Final = 100
"""On one connection, which ends then."""
REQUEST_SECONDS: Final = 10.0
"""From the first octet, or the end of the answer before, to the end of the answer."""
_READ_OCTETS: Final = 8192
_BACKLOG: Final = 64


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. Header names are in lower case; of a repeated header the last counts."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    peer: str
    local: str
    """The internal address that it came to."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = 'text/xml; charset="utf-8"'
    after: Callable[[], None] = field(default=lambda: None)
    """Called when the reply has been sent."""


Handler = Callable[[Request], Awaitable[Reply]]


class HttpServer:
    """Listens on one address. The constructor raises OSError."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        interface: str | None,
        network: IPv4Network,
        handler: Handler,
        counters: Counter[str],
    ) -> None:
        """With an `interface`, connections by any other one find a closed port."""
        self.network = network
        self._handler = handler
        self._counters = counters
        self._by_host: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if interface is not None:
                with contextlib.suppress(PermissionError):
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
            self._socket.bind((host, port))
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self.host, self.port = self._socket.getsockname()
        self._own_names = {f"{host}:{self.port}", host}

    async def start(self) -> None:
        """Begin to serve."""
        self._server = await asyncio.start_server(self._accepted, sock=self._socket, limit=_READ_OCTETS)

    async def stop(self) -> None:
        """End all connections and free the port."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        host = peer[0] if peer else ""
        if not host or IPv4Address(host) not in self.network:
            self._counters["http not internal"] += 1
            writer.transport.abort()
            return
        if len(self._tasks) >= CONNECTIONS or self._by_host[host] >= PER_HOST:
            self._counters["http connections refused"] += 1
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._by_host[host] += 1
        self._counters["http connections"] += 1
        try:
            await self._serve(reader, writer, host)
        except (OSError, TimeoutError, h11.LocalProtocolError):
            self._counters["http connections broken"] += 1
        finally:
            self._tasks.discard(task)
            self._by_host[host] -= 1
            if not self._by_host[host]:
                del self._by_host[host]
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_OCTETS)
        for _ in range(REQUESTS):
            async with asyncio.timeout(REQUEST_SECONDS):
                try:
                    request = await self._read(connection, reader, writer, peer)
                except _RefusedError as refusal:
                    await self._send(connection, writer, Reply(refusal.status), only_head=False, close=True)
                    return
                if request is None:
                    return
                reply = await self._handler(request)
                await self._send(connection, writer, reply, only_head=request.method == "HEAD", close=False)
                reply.after()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _read(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str
    ) -> Request | None:
        """The next request; None at the end of the connection. Raises `_RefusedError`."""
        head: h11.Request | None = None
        body = bytearray()
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                raise _RefusedError(error.error_status_hint) from None
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                connection.receive_data(await reader.read(_READ_OCTETS))
            elif isinstance(event, h11.Request):
                head = event
                self._check_host(head)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > BODY_OCTETS:
                    raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                return Request(
                    head.method.decode(), head.target.decode("latin-1"), headers, bytes(body), peer, self.host
                )
            else:
                return None

    def _check_host(self, head: h11.Request) -> None:
        """Refuse what is meant for another name: a web page could have pointed one of its own at this address."""
        names = [value.decode("latin-1").strip() for name, value in head.headers if name == b"host"]
        if any(name not in self._own_names for name in names):
            raise _RefusedError(HTTPStatus.BAD_REQUEST)

    async def _send(
        self, connection: h11.Connection, writer: asyncio.StreamWriter, reply: Reply, *, only_head: bool, close: bool
    ) -> None:
        headers = [("Server", SERVER), ("Content-Length", str(len(reply.body))), *reply.headers]
        if reply.body:
            headers.append(("Content-Type", reply.content_type))
        if close:
            headers.append(("Connection", "close"))
        response = h11.Response(status_code=int(reply.status), headers=headers, reason=_reason(reply.status))
        events: list[h11.Event] = [response, h11.EndOfMessage()]
        if reply.body and not only_head:
            events.insert(1, h11.Data(data=reply.body))
        writer.write(b"".join(connection.send(event) or b"" for event in events))
        await writer.drain()


class _RefusedError(Exception):
    """A request is answered with a status and nothing else."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
