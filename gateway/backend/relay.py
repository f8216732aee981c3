"""The back end that needs no privilege: it listens on external ports and carries the packets itself.

Limits to know: internal hosts see the gateway as the sender (the outer peer is in the log), and packets that an
internal host sends on its own do not leave from its external port, for the relay is not on their way.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from dataclasses import dataclass

import structlog

from gateway.errors import InstallRefusedError
from gateway.mappings import Filter, Install, Transport

from .admission import Admission
from .tcp import ConnectionTable, TcpMapping
from .udp import Endpoint, FlowTable, UdpMapping

LOG_LINES_PER_SECOND = 20
"""Peers outside decide how many flows begin; lines beyond this are counted, and the count is logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """Bounds of the relay. Each flow costs one descriptor, each connection two."""

    udp_idle_seconds: float = 120.0
    udp_flows: int = 512
    tcp_connections: int = 256


class Relay:
    """Implements `gateway.backend.base.Backend` on sockets of this process."""

    opens_pinholes = False

    def __init__(self, limits: RelayLimits) -> None:
        self.counters: Counter[str] = Counter()
        self._limits = limits
        self._log = structlog.get_logger(__name__)
        self._mappings: dict[int, UdpMapping | TcpMapping] = {}
        self._installs: dict[int, Install] = {}
        self._udp: FlowTable | None = None
        self._tcp: ConnectionTable | None = None
        self._log_second = 0
        self._log_lines = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._udp = FlowTable(
            loop,
            idle_seconds=self._limits.udp_idle_seconds,
            limit=self._limits.udp_flows,
            counters=self.counters,
            on_open=self._log_peer,
        )
        self._tcp = ConnectionTable(
            loop,
            limit=self._limits.tcp_connections,
            counters=self.counters,
            on_open=self._log_peer,
            on_failure=self._log_failure,
        )

    async def stop(self) -> None:
        for number in list(self._mappings):
            self.remove(number)
        if self._tcp is not None:
            await self._tcp.drain()
        if self._udp is not None:
            self._udp.close_all()

    def check_address(self, external_address: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((external_address, 0))
            except OSError as error:
                raise InstallRefusedError(error.strerror or str(error)) from error

    def install(self, install: Install) -> None:
        assert self._udp is not None
        assert self._tcp is not None
        mapping = install.mapping
        outside = (install.external_address, mapping.external_port)
        inside = (mapping.key.host, mapping.key.port)
        if mapping.key.is_pinhole:
            raise InstallRefusedError("a relay opens no firewall")
        admission = Admission(mapping.filters)
        self._installs[install.number] = install
        try:
            if mapping.key.transport is Transport.UDP:
                self._mappings[install.number] = UdpMapping(install.number, outside, inside, self._udp, admission)
            else:
                self._mappings[install.number] = TcpMapping(install.number, outside, inside, self._tcp, admission)
        except OSError as error:
            del self._installs[install.number]
            raise InstallRefusedError(error.strerror or str(error)) from error

    def hold(self) -> None:
        """Sockets are made one by one."""

    def flush(self) -> None:
        pass

    def restrict(self, number: int, filters: tuple[Filter, ...]) -> None:
        carrier = self._mappings.get(number)
        if carrier is not None:
            carrier.restrict(Admission(filters))

    def remove(self, number: int) -> None:
        carrier = self._mappings.pop(number, None)
        if carrier is not None:
            carrier.close()
            del self._installs[number]

    def _log_peer(self, number: int, transport: str, peer: Endpoint) -> None:
        """Name the outer peer, whom the internal host cannot see."""
        second = int(asyncio.get_running_loop().time())
        if second != self._log_second:
            if self._log_lines > LOG_LINES_PER_SECOND:
                self._log.warning("more flows began than were logged", left_out=self._log_lines - LOG_LINES_PER_SECOND)
            self._log_second, self._log_lines = second, 0
        self._log_lines += 1
        if self._log_lines > LOG_LINES_PER_SECOND:
            return
        mapping = self._installs[number].mapping
        self._log.info(
            "flow began",
            transport=transport,
            peer=f"{peer[0]}:{peer[1]}",
            external_port=mapping.external_port,
            inside=f"{mapping.key.host}:{mapping.key.port}",
        )

    def _log_failure(self, failure: BaseException) -> None:
        self.counters["failures"] += 1
        self._log.error("relayed connection failed", exc_info=failure)
