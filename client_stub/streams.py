"""Length-prefixed DNS messages over TCP and TLS (RFC 1035 §4.2.2, RFC 7858), as a client."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from protocol.name import to_text

CONNECT_SECONDS: Final = 5.0
MAX_UNSENT_OCTETS: Final = 1 << 20
_NO_LINGER: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Service:
    """Where an SRV record leads: target name (for TLS), its addresses, port."""

    target: bytes
    addresses: tuple[IPv4Address | IPv6Address, ...]
    port: int


class FramedStream:
    """One connection. `receive` raises `EOFError` at its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, wire: bytes) -> None:
        """Queue one message; a peer that does not read loses the connection instead of filling our memory."""
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_OCTETS:
            self.abort()
        elif not self._writer.is_closing():
            self._writer.write(len(wire).to_bytes(2, "big") + wire)

    async def receive(self) -> bytes:
        size = int.from_bytes(await self._reader.readexactly(2), "big")
        return await self._reader.readexactly(size)

    def abort(self) -> None:
        """Reset the connection (RFC 8490 §5.3): pending octets are lost, a waiting `receive` ends."""
        transport = self._writer.transport
        sock = transport.get_extra_info("socket")
        if sock is not None and not transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()

    async def close(self) -> None:
        """Close in order: what was sent still leaves, TLS says goodbye. Bounded to a second."""
        self._writer.close()
        try:
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or later; `ca_file` alone is trusted, the system's store where it is None. `OSError` if unreadable."""
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def open_tls(service: Service, context: ssl.SSLContext, source: IPv4Address) -> FramedStream:
    """Connect to the first address of `service` that answers; the certificate must be for its target name.

    `OSError` (which includes TLS errors and timeouts) when none does.
    """
    server_name = to_text(service.target).rstrip(".")
    failure: OSError = OSError("the service has no address")
    for address in service.addresses:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    str(address),
                    service.port,
                    ssl=context,
                    server_hostname=server_name,
                    local_addr=(str(source), 0) if address.version == 4 else None,
                )
            return FramedStream(reader, writer)
        except OSError as error:  # TimeoutError is one too
            failure = error
    raise failure
