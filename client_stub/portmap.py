"""One mapping, by whichever protocol is offered: PCP, then NAT-PMP, then UPnP IGD (RFC 6886 §9, RFC 6887 §9)."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Protocol

from client_stub.igd import IgdDriver
from client_stub.mapping_core import NatKind, NatState
from client_stub.nat import NatDriver
from client_stub.natpmp_client import NatPmpClient, NatSettings
from client_stub.pcp_client import PcpClient, PcpSettings
from protocol import natpmp

ANNOUNCEMENTS = (IPv4Address(natpmp.ANNOUNCEMENT_GROUP), natpmp.ANNOUNCEMENT_PORT)
PCP_WAIT, PCP_TRIES = 1.0, 2
NATPMP_TRIES = 5
"""Searching is cut short: three seconds for PCP and eight for NAT-PMP. The RFCs' own waits are minutes."""


class Way(StrEnum):
    """The protocols, in the order in which they are tried."""

    PCP = "pcp"
    NATPMP = "natpmp"
    IGD = "igd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to map. `external_port` 0 leaves the choice to the gateway."""

    internal_port: int
    transport: str = "udp"
    external_port: int = 0
    lifetime: int = 7200


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are: our address, the gateway's, and the port it answers on."""

    source: IPv4Address
    gateway: IPv4Address
    port: int = natpmp.GATEWAY_PORT


class Driver(Protocol):
    """Keeps one mapping by one protocol."""

    @property
    def state(self) -> NatState: ...

    @property
    def lapses_at(self) -> float | None: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def abort(self) -> None: ...


class PortMapper:
    """Finds the protocol that works and keeps the mapping with it. `failures` tells why the others did not."""

    def __init__(
        self,
        place: Place,
        wanted: Wanted,
        *,
        ways: tuple[Way, ...] = tuple(Way),
        rng: random.Random | None = None,
        on_state: Callable[[NatState], None] = lambda state: None,
    ) -> None:
        """`on_state` hears of changes after the mapping was found."""
        self._place = place
        self._wanted = wanted
        self._ways = ways
        self._rng = rng or random.Random(secrets.randbits(64))  # noqa: S311 (for waits and ports)
        self._on_state = on_state
        self._driver: Driver | None = None
        self._settled = asyncio.Event()
        self.way: Way | None = None
        self.failures: dict[Way, str] = {}

    @property
    def state(self) -> NatState:
        """Of the protocol in use."""
        return NatState(NatKind.SEARCHING) if self._driver is None else self._driver.state

    @property
    def lapses_at(self) -> float | None:
        """When the mapping ends unless renewed."""
        return None if self._driver is None else self._driver.lapses_at

    async def open(self) -> bool:
        """Try one protocol after the other; whether there is a mapping now. Raises OSError if we cannot send."""
        for way in self._ways:
            self._settled.clear()
            driver = self._driver_for(way)
            await driver.start()
            try:
                await self._settled.wait()
            except BaseException:
                driver.abort()
                raise
            if is_mapped(driver.state):
                self._driver, self.way = driver, way
                return True
            self.failures[way] = driver.state.reason
            driver.abort()
        return False

    async def close(self) -> None:
        """Delete the mapping; returns when that is answered or given up."""
        if self._driver is not None:
            await self._driver.close()

    def abort(self) -> None:
        """Let the mapping lapse."""
        if self._driver is not None:
            self._driver.abort()

    def _changed(self, state: NatState) -> None:
        if self.way is not None:
            self._on_state(state)
        elif state.kind is not NatKind.SEARCHING:
            self._settled.set()

    def _driver_for(self, way: Way) -> Driver:
        wanted, place = self._wanted, self._place
        if way is Way.IGD:
            return IgdDriver(
                gateway=place.gateway,
                source=place.source,
                internal_port=wanted.internal_port,
                transport=wanted.transport,
                external_port=wanted.external_port,
                lifetime=wanted.lifetime,
                rng=self._rng,
                on_state=self._changed,
            )
        return NatDriver(
            gateway=(place.gateway, place.port),
            source=place.source,
            announcements=ANNOUNCEMENTS,
            interface=place.source,
            core=self._pcp() if way is Way.PCP else self._natpmp(),
            on_state=self._changed,
        )

    def _pcp(self) -> PcpClient:
        wanted = self._wanted
        settings = PcpSettings(
            internal_port=wanted.internal_port,
            protocol=17 if wanted.transport == "udp" else 6,
            suggested_port=wanted.external_port,
            lifetime=wanted.lifetime,
            first_wait=PCP_WAIT,
            tries=PCP_TRIES,
        )
        # The nonce guards the mapping against others, so it comes from the system (RFC 6887 §11.2).
        nonce = secrets.token_bytes(12)
        return PcpClient(self._place.gateway, self._place.source, settings, self._rng, nonce)

    def _natpmp(self) -> NatPmpClient:
        wanted = self._wanted
        settings = NatSettings(
            internal_port=wanted.internal_port,
            opcode=natpmp.Opcode.MAP_UDP if wanted.transport == "udp" else natpmp.Opcode.MAP_TCP,
            suggested_port=wanted.external_port,
            lifetime=wanted.lifetime,
            tries=NATPMP_TRIES,
        )
        return NatPmpClient(self._place.gateway, settings, self._rng)


def is_mapped(state: NatState) -> bool:
    """Whether there is a mapping, be it of use or behind another NAT."""
    return state.kind in (NatKind.MAPPED, NatKind.NAT_BEHIND_NAT)
