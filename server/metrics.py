"""What the server counts, for Prometheus; and the small HTTP server that shows it on loopback."""

import asyncio
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from protocol.constants import Opcode, Rcode, rcode_text

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_RCODES: Final = 16
_BADCOOKIE: Final = 7  # what the header shows of it; a query gets no YXRRSET


class Requests(Collector):
    """Messages answered. Plain integers on the way of a packet, read when Prometheus asks.

    `rcodes` counts by RCODE the plain queries over UDP that were answered before a message was taken apart, with a
    ready answer or, `computed` of them, with one joined from the zone's octets. All others come by `count`. `ready` is
    how many answers are kept ready, `ready_octets` their size. `limited`: answers held back by response rate limiting,
    dropped or sent truncated (BADCOOKIE to those with a cookie).
    """

    def __init__(self) -> None:
        self.rcodes = [0] * _RCODES
        self.computed = 0
        self.ready = 0
        self.ready_octets = 0
        self.limited = {"drop": 0, "slip": 0}
        self._others: Tally[tuple[str, int, int]] = Tally()

    def count(self, transport: str, opcode: int, rcode: int) -> None:
        self._others[transport, opcode, rcode] += 1

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        total = self._others.copy()
        for rcode, number in enumerate(self.rcodes):
            if number:
                total["udp", Opcode.QUERY, Rcode.BADCOOKIE if rcode == _BADCOOKIE else rcode] += number
        requests = CounterMetricFamily(
            "homing_requests",
            "Messages answered, by transport, opcode and RCODE",
            labels=("transport", "opcode", "rcode"),
        )
        for (transport, opcode, rcode), number in sorted(total.items()):
            requests.add_metric((transport, str(int(opcode)), rcode_text(rcode)), number)
        yield requests
        fast = CounterMetricFamily(
            "homing_fast_answers", "Queries over UDP answered on the fast path, by way", labels=("way",)
        )
        fast.add_metric(("ready",), sum(self.rcodes) - self.computed)
        fast.add_metric(("computed",), self.computed)
        yield fast
        yield GaugeMetricFamily("homing_ready_answers", "Answers kept ready", value=self.ready)
        yield GaugeMetricFamily("homing_ready_octets", "Octets of the answers kept ready", value=self.ready_octets)
        limited = CounterMetricFamily(
            "homing_rate_limited",
            "UDP answers held back by response rate limiting, by what became of them",
            labels=("action",),
        )
        for action, number in self.limited.items():
            limited.add_metric((action,), number)
        yield limited


class Metrics:
    """One registry per server, so that several can live in one process (the lab, tests)."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Requests()
        registry.register(self.requests)
        self.dropped = Counter(
            "homing_dropped", "Messages dropped unanswered, by reason", ["reason"], registry=registry
        )
        self.changes = Counter("homing_changes", "Committed zone changes, by actor kind", ["kind"], registry=registry)
        self.update_seconds = Histogram(
            "homing_update_seconds",
            "Seconds from an update's arrival to its reply",
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
        )
        self.batch = Histogram(
            "homing_commit_updates",
            "Updates in one commit",
            registry=registry,
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
        )
        self.store_errors = Counter("homing_store_errors", "Commits the database refused", registry=registry)
        self.faults = Counter(
            "homing_faults", "Faults of ours answered with SERVFAIL, by where", ["where"], registry=registry
        )
        self.streams = Gauge("homing_streams", "Open TCP and TLS connections", ["transport"], registry=registry)
        self.streams_refused = Counter(
            "homing_streams_refused", "Connections closed at once, by limit", ["limit"], registry=registry
        )
        self.watched_networks = Gauge(
            "homing_watched_networks", "Client networks over the response rate", registry=registry
        )
        self.leases = Gauge("homing_leased_names", "Owner names with a lease running", registry=registry)
        self.subscriptions = Gauge("homing_llq_subscriptions", "Long-Lived Queries established", registry=registry)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


async def serve_metrics(metrics: Metrics, address: str, port: int) -> asyncio.Server:
    """Answer GET /metrics over HTTP/1.0; anything else is 404. One request a connection, 5 s to send it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = await reader.readuntil(b"\r\n\r\n")
            found = request.startswith((b"GET /metrics ", b"GET /metrics?"))
            body = metrics.exposition() if found else b"see /metrics\n"
            status = "200 OK" if found else "404 Not Found"
            head = f"HTTP/1.0 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            metrics.dropped.labels("http").inc()
        finally:
            writer.close()

    return await asyncio.start_server(answer, address, port, limit=8192)
