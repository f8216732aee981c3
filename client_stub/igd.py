"""Drivers of the UPnP IGD client: search, HTTP and one mapping kept alive.

IGD has no epoch and no announcement that we listen to, so a look at the external address and at the mapping itself
every minute takes their place.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Final
from urllib.parse import SplitResult

from client_stub import clock
from client_stub.igd_client import (
    BODY_OCTETS,
    DATAGRAM_OCTETS,
    GROUP,
    SEARCH_SECONDS,
    SEARCHED,
    WEEK,
    Code,
    IgdError,
    Service,
    SoapError,
    call,
    mapping_arguments,
    read_call_answer,
    read_description,
    read_search_answer,
    search,
)
from client_stub.mapping_core import NatKind, NatState
from protocol.natpmp import NO_ADDRESS

HTTP_SECONDS: Final = 5.0
HEAD_OCTETS: Final = 16 * 1024
ANSWER_LIMIT: Final = 64
"""Datagrams looked at in one search."""
LOCATION_LIMIT: Final = 4
PORT_TRIES: Final = 10
"""Ports asked for when others have them."""
LOOK_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 60.0
RECHECK_SECONDS: Final = 900.0
DESCRIPTION: Final = "homing"


@dataclass(frozen=True, slots=True)
class Device:
    """A gateway that was found: where it describes itself, and its connection service."""

    location: str
    service: Service


async def find(source: IPv4Address, gateway: IPv4Address | None) -> Device | None:
    """Search the network that `source` is in. With `gateway`, only it is believed. Raises OSError."""
    for location in await _locations(source, gateway):
        with contextlib.suppress(IgdError, OSError):
            body = await _get(location)
            for service in read_description(body, location):
                return Device(location.geturl(), service)
    return None


async def invoke(service: Service, action: str, arguments: dict[str, str] | None = None) -> dict[str, str]:
    """Carry out an action. Raises `SoapError` when refused, else `IgdError` or OSError."""
    headers, body = call(service, action, arguments or {})
    status, answer = await _http(service.host, service.port, "POST", service.path, headers, body)
    return read_call_answer(status, answer, action)


async def external_address(service: Service) -> IPv4Address | None:
    """The external address, None while there is none. Raises as `invoke`."""
    text = (await invoke(service, "GetExternalIPAddress")).get("NewExternalIPAddress", "")
    try:
        address = IPv4Address(text) if text else NO_ADDRESS
    except AddressValueError:
        raise IgdError("an external address that is none") from None
    return None if address == NO_ADDRESS else address


class IgdDriver:
    """One mapping at one gateway, kept until `close` (which deletes it) or `abort` (which does not)."""

    def __init__(
        self,
        *,
        gateway: IPv4Address | None,
        source: IPv4Address,
        internal_port: int,
        transport: str,
        external_port: int,
        lifetime: int,
        rng: random.Random,
        on_state: Callable[[NatState], None],
    ) -> None:
        """`transport` is "udp" or "tcp"; `external_port` 0 asks for the internal one first."""
        self._gateway = gateway
        self._source = source
        self._internal_port = internal_port
        self._transport = transport
        self._port = external_port or internal_port
        self._lease = min(lifetime, WEEK)
        self._rng = rng
        self._on_state = on_state
        self._task: asyncio.Task[None] | None = None
        self._device: Device | None = None
        self._mapped = False
        self._lapse_at: float | None = None
        self.state = NatState(NatKind.SEARCHING)

    @property
    def lapses_at(self) -> float | None:
        """When the mapping ends unless renewed; None for ever or if there is none."""
        return self._lapse_at

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="igd mapping")

    async def close(self) -> None:
        """Delete the mapping, or give up after a bounded time."""
        self.abort()
        if self._mapped and self._device is not None:
            self._mapped = False
            with contextlib.suppress(IgdError, OSError, TimeoutError):
                await invoke(self._device.service, "DeletePortMapping", self._key())

    def abort(self) -> None:
        """Stop and say nothing."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                wait = await self._turn()
            except (IgdError, OSError, TimeoutError) as error:
                self._device = None
                self._mapped = False
                reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
                self._become(NatState(NatKind.FAILED, reason=f"UPnP: {reason or type(error).__name__}"))
                wait = RETRY_SECONDS
            await asyncio.sleep(wait)

    async def _turn(self) -> float:
        """Find the gateway if need be, map or renew, look at the address; seconds until the next turn."""
        if self._device is None:
            self._device = await find(self._source, self._gateway)
            if self._device is None:
                self._become(NatState(NatKind.PUBLIC, reason="no UPnP gateway answers"))
                return RECHECK_SECONDS
        service = self._device.service
        address = await external_address(service)
        if address is None:
            self._become(NatState(NatKind.FAILED, reason="UPnP: the gateway has no external address"))
            return LOOK_SECONDS
        now = clock.monotonic()
        renew_at = None if self._lapse_at is None else self._lapse_at - self._lease / 2
        if not self._mapped or (renew_at is not None and now >= renew_at) or not await self._is_there(service):
            await self._map(service)
        self._become(NatState.mapped(address, self._port))
        return LOOK_SECONDS if self._lapse_at is None else min(LOOK_SECONDS, self._lease / 2)

    async def _map(self, service: Service) -> None:
        """Take the wanted port, or another one that nobody has."""
        lease = self._lease
        tries = PORT_TRIES
        while True:
            arguments = mapping_arguments(
                external_port=self._port,
                transport=self._transport,
                internal=(str(self._source), self._internal_port),
                lease=lease,
                description=DESCRIPTION,
            )
            try:
                await invoke(service, "AddPortMapping", arguments)
                break
            except SoapError as error:
                tries -= 1
                if error.code == Code.ONLY_PERMANENT_LEASES and lease:
                    lease = 0
                elif error.code == Code.SAME_PORT_VALUES_REQUIRED and self._port != self._internal_port:
                    self._port = self._internal_port
                elif error.code in (Code.CONFLICT, Code.CONFLICT_WITH_OTHER_MECHANISMS) and tries:
                    self._port = self._rng.randrange(1024, 65536)
                else:
                    raise
        self._mapped = True
        self._lapse_at = clock.monotonic() + lease if lease else None

    async def _is_there(self, service: Service) -> bool:
        try:
            entry = await invoke(service, "GetSpecificPortMappingEntry", self._key())
        except SoapError as error:
            # A gateway that does not show entries has not said that ours is gone.
            return error.code != Code.NO_SUCH_ENTRY
        return entry.get("NewInternalClient") == str(self._source)

    def _key(self) -> dict[str, str]:
        return {
            "NewRemoteHost": "",
            "NewExternalPort": str(self._port),
            "NewProtocol": self._transport.upper(),
        }

    def _become(self, state: NatState) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state)


# -- search and HTTP ---------------------------------------------------------------------------------------------------


async def _locations(source: IPv4Address, gateway: IPv4Address | None) -> list[SplitResult]:
    """Where the first few responders describe themselves, each of them once."""
    loop = asyncio.get_running_loop()
    found: dict[str, SplitResult] = {}
    first = loop.create_future()
    seen = 0

    class Answers(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            nonlocal seen
            seen += 1
            if seen > ANSWER_LIMIT or (gateway is not None and addr[0] != str(gateway)):
                return
            location = read_search_answer(data[:DATAGRAM_OCTETS], addr[0])
            if location is not None and len(found) < LOCATION_LIMIT:
                found.setdefault(location.geturl(), location)
                if gateway is not None and not first.done():
                    first.set_result(None)

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, source.packed)
        sock.bind((str(source), 0))
        transport, _ = await loop.create_datagram_endpoint(Answers, sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        for _ in range(2):  # datagrams get lost
            for kind in SEARCHED:
                transport.sendto(search(kind), (str(GROUP[0]), GROUP[1]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SEARCH_SECONDS / 2 + 0.25):
                    await asyncio.shield(first)
                    break
    finally:
        transport.abort()
    return list(found.values())


async def _get(location: SplitResult) -> bytes:
    path = (location.path or "/") + (f"?{location.query}" if location.query else "")
    status, body = await _http(location.hostname or "", location.port or 80, "GET", path, {}, b"")
    if status != 200:
        raise IgdError(f"HTTP status {status}")
    return body


async def _http(
    host: str, port: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, bytes]:
    """One bounded request over a connection of its own: status and body. Raises `IgdError`, OSError."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    try:
        async with asyncio.timeout(HTTP_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=HEAD_OCTETS)
            try:
                writer.write(head.encode("latin-1") + b"\r\n" + body)
                return await _read_answer(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise IgdError(f"no answer in {HTTP_SECONDS:g} s") from None
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        raise IgdError("an HTTP answer that cannot be read") from None


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise IgdError("not HTTP")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return int(rest[:3]), await _read_chunks(reader)
    length = int(headers["content-length"]) if "content-length" in headers else None
    if length is not None and not 0 <= length <= BODY_OCTETS:
        raise IgdError(f"more than {BODY_OCTETS} octets")
    if length is not None:
        return int(rest[:3]), await reader.readexactly(length)
    return int(rest[:3]), await _read_to_end(reader)


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while piece := await reader.read(HEAD_OCTETS):
        body += piece
        if len(body) > BODY_OCTETS:
            raise IgdError(f"more than {BODY_OCTETS} octets")
    return body


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        if size < 0 or len(body) + size > BODY_OCTETS:
            raise IgdError(f"more than {BODY_OCTETS} octets")
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return body
