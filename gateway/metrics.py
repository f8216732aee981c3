"""What the gateway counts, for Prometheus, read when it asks; and the small HTTP server that shows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .config import Endpoint
from .errors import StartError

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS: Final = 5.0
REQUEST_OCTETS: Final = 8192
CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A gateway's figures at one moment."""

    mappings: Counter[tuple[str, str]]
    """By transport and origin."""
    changes: Counter[str]
    """Mappings created, renewed, deleted, lapsed and lost."""
    has_address: bool
    is_behind_nat: bool
    epoch: int
    strict_epoch: int
    listeners: int
    events: dict[str, Counter[str]] = field(default_factory=dict)
    """Counters of the parts, by part: what happened how often."""


class GatewayMetrics(Collector):
    """Turns figures into metrics; one registry for each gateway, so that several can live in one process."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def exposition(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        figures = self._figures()
        mappings = GaugeMetricFamily(
            "homing_gateway_mappings", "Mappings there are, by transport and origin", labels=("transport", "origin")
        )
        for (transport, origin), number in sorted(figures.mappings.items()):
            mappings.add_metric((transport, origin), number)
        yield mappings
        changes = CounterMetricFamily(
            "homing_gateway_mapping_changes", "Changes of mappings, by kind", labels=("change",)
        )
        for change, number in sorted(figures.changes.items()):
            changes.add_metric((change,), number)
        yield changes
        for name, text, value in (
            ("external_address", "Whether there is an external address", figures.has_address),
            ("behind_nat", "Whether the external address is behind another NAT", figures.is_behind_nat),
            ("epoch_seconds", "Age of the mapping table (RFC 6886)", figures.epoch),
            ("strict_epoch_seconds", "Seconds since mappings were disturbed (RFC 6887)", figures.strict_epoch),
            ("listeners", "Internal addresses that answer", figures.listeners),
        ):
            yield GaugeMetricFamily(f"homing_gateway_{name}", text, value=value)
        events = CounterMetricFamily(
            "homing_gateway_events", "What happened, by part of the gateway", labels=("part", "event")
        )
        for part, counter in sorted(figures.events.items()):
            for event, number in sorted(counter.items()):
                events.add_metric((part, event), number)
        yield events


class MetricsServer:
    """Answers GET /metrics over HTTP/1.0, anything else with 404."""

    def __init__(self, endpoint: Endpoint, metrics: GatewayMetrics) -> None:
        self._asked = endpoint
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._open = 0
        self.endpoint = endpoint

    async def start(self) -> None:
        """Listen. Raises `StartError`."""
        try:
            self._server = await asyncio.start_server(self._serve, *self._asked, limit=REQUEST_OCTETS)
        except OSError as error:
            raise StartError(f"metrics on {self._asked}: {error.strerror or error}") from None
        self.endpoint = Endpoint(*self._server.sockets[0].getsockname()[:2])

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                async with asyncio.timeout(REQUEST_SECONDS):
                    request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._reply(request))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            self._open -= 1
            with contextlib.suppress(ConnectionError):
                writer.close()

    def _reply(self, request: bytes) -> bytes:
        found = request.startswith((b"GET /metrics ", b"GET /metrics?"))
        body = self._metrics.exposition() if found else b"see /metrics\n"
        status = "200 OK" if found else "404 Not Found"
        return (
            f"HTTP/1.0 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
