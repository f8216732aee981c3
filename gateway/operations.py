"""What the router's owner can ask of a running gateway, and what there is to know of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Protocol

from protocol.addresses import is_behind_a_nat

from .config import Endpoint, GatewayConfig, StaticMapping
from .control import RefusedError
from .mappings import Answer, Key, Mapping, MappingTable, Origin, Transport, Verdict
from .metrics import Figures
from .system import System
from .views import MappingView

ANSWER_SECONDS = 10.0
_REFUSALS = {
    Verdict.NOT_AS_ASKED: "another mapping has that port or its companion, or a program of this machine has it",
    Verdict.NOT_PERMITTED: "that endpoint has a permanent mapping on another port",
    Verdict.NO_RESOURCES: "it cannot be stored, see the gateway's log",
    Verdict.NO_EXTERNAL_ADDRESS: "the external address has just gone, try again",
}


@dataclass(frozen=True, slots=True)
class OperatorTicket:
    """An owner's request on its way through the table."""

    answer: asyncio.Future[Answer]

    def resolve(self, answer: Answer) -> None:
        """Hand over the outcome, unless nobody waits any more."""
        if not self.answer.done():
            self.answer.set_result(answer)


class Inside(Protocol):
    """What a gateway shows to its owner's desk."""

    @property
    def table(self) -> MappingTable: ...

    async def settled(self) -> bool:
        """Carry out all effects; whether everything is stored."""

    def mappings(self) -> list[MappingView]: ...

    @property
    def listening(self) -> list[str]: ...

    @property
    def natpmp_addresses(self) -> list[Endpoint]: ...

    def tallies(self) -> dict[str, Counter[str]]:
        """Counters of the parts, by part; "changes" counts those of mappings."""


class OperatorDesk:
    """Implements `gateway.control.Operations`."""

    def __init__(self, config: GatewayConfig, inside: Inside, system: System) -> None:
        self._config = config
        self._inside = inside
        self._system = system
        self._started_at = system.monotonic()

    def status(self) -> dict[str, Any]:
        table, now = self._inside.table, self._system.monotonic()
        tallies = self._inside.tallies()
        return {
            "backend": self._config.backend,
            "external_address": table.external_address,
            "external_source": _source(self._config),
            "nat_behind_nat": self._is_behind_nat(),
            "listening": self._inside.listening,
            "epoch": table.epoch(now),
            "pcp_epoch": table.strict_epoch(now),
            "running_seconds": int(now - self._started_at),
            "mappings": dict(sorted(Counter(mapping.origin.value for mapping in table.mappings()).items())),
            "changes": dict(sorted(tallies.pop("changes", Counter()).items())),
            "events": {part: dict(sorted(counter.items())) for part, counter in sorted(tallies.items())},
        }

    def listed(self) -> list[dict[str, Any]]:
        return [view.as_json() for view in self._inside.mappings()]

    async def add(self, mapping: StaticMapping) -> None:
        ticket = OperatorTicket(asyncio.get_running_loop().create_future())
        key = Key(Transport[mapping.transport.upper()], *mapping.internal)
        self._inside.table.add_permanent(key, mapping.external_port, ticket=ticket, now=self._system.monotonic())
        await self._inside.settled()
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await ticket.answer
        if answer.verdict is not Verdict.DONE:
            raise RefusedError(_REFUSALS.get(answer.verdict, answer.verdict.value))

    async def delete(self, transport: str, external_port: int) -> None:
        mapping = self._inside.table.find_external(Transport[transport.upper()], external_port)
        if mapping is None:
            raise RefusedError(f"no mapping has {transport} port {external_port}")
        if mapping.origin is Origin.STATIC:
            raise RefusedError("that mapping is in the configuration file")
        self._inside.table.end(mapping.key, now=self._system.monotonic())
        await self._stored()

    async def host_gone(self, host: str) -> int:
        number = self._inside.table.host_gone(host, now=self._system.monotonic())
        await self._stored()
        return number

    def figures(self) -> Figures:
        """For Prometheus."""
        table, now = self._inside.table, self._system.monotonic()
        tallies = self._inside.tallies()
        mappings: list[Mapping] = table.mappings()
        return Figures(
            mappings=Counter((mapping.key.transport.name.lower(), mapping.origin.value) for mapping in mappings),
            changes=tallies.pop("changes", Counter()),
            has_address=table.external_address is not None,
            is_behind_nat=self._is_behind_nat(),
            epoch=table.epoch(now),
            strict_epoch=table.strict_epoch(now),
            listeners=len(self._inside.natpmp_addresses),
            events=tallies,
        )

    async def _stored(self) -> None:
        if not await self._inside.settled():
            raise RefusedError("done, but it cannot be stored yet, see the gateway's log")

    def _is_behind_nat(self) -> bool:
        address = self._inside.table.external_address
        return address is not None and is_behind_a_nat(IPv4Address(address))


def _source(config: GatewayConfig) -> str:
    if config.external.address is not None:
        return "configuration"
    if config.external.command:
        return f"command {config.external.command[0]}"
    interface = config.followed_interface
    return "nothing" if interface is None else f"interface {interface}"
