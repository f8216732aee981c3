"""The operator's door: a Unix socket of mode 0600 that takes one JSON object a line and answers each with one line.

    {"do": "status"}                                      -> {"ok": true, "status": {...}}
    {"do": "list"}                                        -> {"ok": true, "mappings": [...]}
    {"do": "add", "transport": "tcp", "external_port": 8080, "internal": "192.168.1.20:80"}
    {"do": "delete", "transport": "tcp", "external_port": 8080}
    {"do": "host-gone", "host": "192.168.1.20"}           -> {"ok": true, "deleted": 2}
    anything that does not work                           -> {"ok": false, "error": "one plain line"}

Who may open the socket may do all of it. Lines, connections and time are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from .config import Endpoint, StaticMapping
from .errors import StartError

LINE_OCTETS: Final = 4096
CONNECTIONS: Final = 16
IDLE_SECONDS: Final = 60.0
SEND_SECONDS: Final = 10.0


class RefusedError(Exception):
    """What was asked for is not possible; the text is one plain line."""


class Operations(Protocol):
    """What an operator can ask of a gateway. Each raises `RefusedError`."""

    def status(self) -> dict[str, Any]:
        """All that is to be known but the mappings, as JSON has it."""

    def listed(self) -> list[dict[str, Any]]:
        """All mappings by external port, as JSON has them."""

    async def add(self, mapping: StaticMapping) -> None:
        """Enter a mapping that stays until it is deleted; returns when it is stored."""

    async def delete(self, transport: str, external_port: int) -> None:
        """End a mapping, whoever made it; returns when that is stored."""

    async def host_gone(self, host: str) -> int:
        """End all that a host has mapped; their number, once that is stored."""


class ControlServer:
    """Listens from `start` to `stop`."""

    def __init__(self, path: Path, operations: Operations) -> None:
        self._path = path
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._log = structlog.get_logger(__name__)

    async def start(self) -> None:
        """Take the place of what a killed gateway left. Raises `StartError`."""
        sock = _bound(self._path)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=LINE_OCTETS)

    async def stop(self) -> None:
        """Hang up and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._connections):
            writer.close()
        self._server = None
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            if len(self._connections) > CONNECTIONS:
                await _send(writer, _refusal("too many connections"))
                return
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await reader.readuntil(b"\n")
                await _send(writer, await self._answer(line))
        except asyncio.LimitOverrunError:
            with contextlib.suppress(ConnectionError, TimeoutError):
                await _send(writer, _refusal(f"more than {LINE_OCTETS} octets in a line"))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": True, **await self._do(_object(line))}
        except RefusedError as refusal:
            return _refusal(str(refusal))
        except Exception:  # noqa: BLE001 (an operator's question must not end the gateway)
            self._log.exception("operator's request failed")
            return _refusal("a fault of the gateway, see its log")

    async def _do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "status":
                return {"status": self._operations.status()}
            case "list":
                return {"mappings": self._operations.listed()}
            case "add":
                mapping = _mapping(request)
                await self._operations.add(mapping)
                return {}
            case "delete":
                await self._operations.delete(_transport(request), _port(request))
                return {}
            case "host-gone":
                return {"deleted": await self._operations.host_gone(_host(request))}
            case _:
                raise RefusedError("not one of status, list, add, delete, host-gone")


def _bound(path: Path) -> socket.socket:
    """A listening socket at `path` that only its owner can open. Raises `StartError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(CONNECTIONS)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartError(f"control socket {path}: {error.strerror or error}") from None
    except StartError:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise StartError(f"control socket {path}: something else is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise StartError(f"control socket {path}: another gateway answers there")


async def _send(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    async with asyncio.timeout(SEND_SECONDS):
        await writer.drain()


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": False, "error": reason}


# -- what a request holds ----------------------------------------------------------------------------------------------


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise RefusedError("not a line of JSON") from None
    if not isinstance(request, dict):
        raise RefusedError("not a JSON object")
    return request


def _mapping(request: Mapping[str, Any]) -> StaticMapping:
    host, _, port = str(request.get("internal", "")).rpartition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise RefusedError("internal: must be ADDRESS:PORT")
    return StaticMapping(
        transport="tcp" if _transport(request) == "tcp" else "udp",
        external_port=_port(request),
        internal=Endpoint(_address("internal", host), int(port)),
    )


def _transport(request: Mapping[str, Any]) -> str:
    transport = request.get("transport")
    if transport not in ("tcp", "udp"):
        raise RefusedError("transport: must be tcp or udp")
    return str(transport)


def _port(request: Mapping[str, Any]) -> int:
    port = request.get("external_port")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise RefusedError("external_port: must be 1 to 65535")
    return port


def _host(request: Mapping[str, Any]) -> str:
    try:
        return str(ip_address(str(request.get("host", ""))))
    except ValueError:
        raise RefusedError("host: not an address") from None


def _address(key: str, text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise RefusedError(f"{key}: not an IPv4 address") from None
