"""The small HTTP server for those who watch: on a loopback port for Prometheus, on a Unix socket for the operator.

`/metrics` for Prometheus, `/healthz` (the process works), `/readyz` (it serves, and its database takes updates); on the
socket, which only its owner can open, `/status` besides.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from server.metrics import CONTENT_TYPE, Metrics

MAX_CONNECTIONS: Final = 32  # at a time, each with one request
REQUEST_SECONDS: Final = 5.0
REQUEST_OCTETS: Final = 8192
MAX_SOCKET_PATH: Final = 107  # octets that the system's socket address holds

_TEXT: Final = "text/plain; charset=utf-8"
_REASONS: Final = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

Page = tuple[int, str, bytes]
"""Status code, content type, body."""

log = structlog.get_logger(__name__)


class Monitor:
    """`unready` says in words why the server is not ready, None when it is; `status` is what `/status` shows."""

    def __init__(
        self, metrics: Metrics, *, unready: Callable[[], str | None], status: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._metrics = metrics
        self._unready = unready
        self._status = status
        self._servers: list[asyncio.Server] = []
        self._socket_path: Path | None = None
        self._open = 0

    async def listen(self, address: str, port: int) -> int:
        """Serve on a TCP port and return it; `OSError` when it cannot be had."""
        server = await asyncio.start_server(
            lambda reader, writer: self._serve(reader, writer, self._public()), address, port, limit=REQUEST_OCTETS
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_socket(self, path: Path) -> None:
        """Serve on a Unix socket of mode 0600; `OSError` when a living server has it or it cannot be made."""
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise OSError(f"the path of a socket has at most {MAX_SOCKET_PATH} octets")
        _remove_dead(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(before)
        self._socket_path = path
        server = await asyncio.start_unix_server(
            lambda reader, writer: self._serve(reader, writer, self._private()), sock=sock, limit=REQUEST_OCTETS
        )
        self._servers.append(server)

    def close(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
            self._socket_path = None

    def _public(self) -> dict[str, Callable[[], Page]]:
        return {"/metrics": self._metrics_page, "/healthz": lambda: (200, _TEXT, b"ok\n"), "/readyz": self._ready_page}

    def _private(self) -> dict[str, Callable[[], Page]]:
        return {**self._public(), "/status": self._status_page}

    def _metrics_page(self) -> Page:
        return 200, CONTENT_TYPE, self._metrics.exposition()

    def _ready_page(self) -> Page:
        reason = self._unready()
        return (200, _TEXT, b"ready\n") if reason is None else (503, _TEXT, f"{reason}\n".encode())

    def _status_page(self) -> Page:
        return 200, "application/json", json.dumps(self._status()).encode() + b"\n"

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Mapping[str, Callable[[], Page]]
    ) -> None:
        """One request a connection, over HTTP/1.0."""
        self._open += 1
        try:
            if self._open > MAX_CONNECTIONS:
                self._metrics.dropped.labels("http").inc()
                return
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                code, kind, body = _page(request, pages)
                head = (
                    f"HTTP/1.0 {code} {_REASONS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                is_head = request.startswith(b"HEAD ")
                writer.write(head.encode() + (b"" if is_head else body))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            self._metrics.dropped.labels("http").inc()
        finally:
            self._open -= 1
            writer.close()


def _page(request: bytes, pages: Mapping[str, Callable[[], Page]]) -> Page:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0].decode("ascii", "replace")
    if method not in (b"GET", b"HEAD"):
        return 405, _TEXT, b"only GET\n"
    found = pages.get(path)
    return (404, _TEXT, f"there is {', '.join(pages)}\n".encode()) if found is None else found()


def _remove_dead(path: Path) -> None:
    """Take away the socket that a killed server left; `OSError` when somebody answers there."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise OSError("another server answers there")
