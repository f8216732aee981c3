"""What the server counts, for Prometheus."""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from protocol.constants import Opcode, Rcode, rcode_text
from protocol.name import to_text
from server.zone.zone import Zones

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_RCODES: Final = 16
_BADCOOKIE: Final = 7  # what the header shows of it; a query gets no YXRRSET


class Requests(Collector):
    """Messages answered. Plain integers on the way of a packet, read when Prometheus asks.

    `rcodes` counts by RCODE the plain queries over UDP that were answered before a message was taken apart, with a
    ready answer or, `computed` of them, with one joined from the zone's octets; `signed` of them were signed. All
    others come by `count`; `common_updates` of the updates among them were read and answered in one walk over their
    octets. `ready` is how many answers are kept ready, `ready_octets` their size. `limited`: answers held back by
    response rate limiting, dropped or sent truncated (BADCOOKIE to those with a cookie).
    """

    def __init__(self) -> None:
        self.rcodes = [0] * _RCODES
        self.computed = 0
        self.common_updates = 0
        self.signed = 0
        self.ready = 0
        self.ready_octets = 0
        self.limited = {"drop": 0, "slip": 0}
        self.overload = 0
        self._others: Tally[tuple[str, int, int]] = Tally()

    def count(self, transport: str, opcode: int, rcode: int) -> None:
        self._others[transport, opcode, rcode] += 1

    def total(self) -> Tally[tuple[str, int, int]]:
        """Messages answered by (transport, opcode, RCODE)."""
        total = self._others.copy()
        for rcode, number in enumerate(self.rcodes):
            if number:
                total["udp", Opcode.QUERY, Rcode.BADCOOKIE if rcode == _BADCOOKIE else rcode] += number
        return total

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        total = self.total()
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
        signed = CounterMetricFamily("homing_fast_signed_answers", "Of the fast answers those to signed queries")
        signed.add_metric((), self.signed)
        yield signed
        common = CounterMetricFamily("homing_common_updates", "Updates taken on the short way")
        common.add_metric((), self.common_updates)
        yield common
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
        yield CounterMetricFamily(
            "homing_overload",
            "Datagrams of strangers dropped since there was no time to take them apart",
            self.overload,
        )


class Tallies(Collector):
    """A histogram of plain integers: counted on the way of each update, put together when Prometheus asks."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text = name, text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self.sum)


class CoreCounts(Collector):
    """Counts that a pure core keeps in a dataclass of integers, one label value a field, read when Prometheus asks."""

    def __init__(self, name: str, documentation: str, label: str) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._read: Callable[[], Mapping[str, int]] = dict

    def watch(self, read: Callable[[], Mapping[str, int]]) -> None:
        """From now on show what `read` gives: label value -> count."""
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=(self._label,))
        for value, number in self._read().items():
            family.add_metric((value,), number)
        yield family


class ZoneFacts(Collector):
    """Zones as they stand when Prometheus asks."""

    def __init__(self, zones: Zones) -> None:
        self._zones = zones

    def collect(self) -> Iterator[GaugeMetricFamily]:
        serials = GaugeMetricFamily("homing_zone_serial", "Serial of each zone that is not private", labels=("zone",))
        names = GaugeMetricFamily("homing_zone_names", "Owner names of each zone that is not private", labels=("zone",))
        private = 0
        for zone in self._zones:
            if zone.is_private:
                private += 1
                continue
            serials.add_metric((to_text(zone.apex),), zone.serial)
            names.add_metric((to_text(zone.apex),), len(zone.nodes))
        yield serials
        yield names
        yield GaugeMetricFamily("homing_private_zones", "Private members' zones", value=private)


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
        self.update_seconds = Tallies(
            "homing_update_seconds",
            "Seconds from an update's arrival to its reply",
            (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        )
        registry.register(self.update_seconds)
        self.batch = Tallies("homing_commit_updates", "Updates in one commit", (1, 2, 5, 10, 20, 50, 100, 200, 500))
        registry.register(self.batch)
        self.store_errors = Counter("homing_store_errors", "Commits the database refused", registry=registry)
        self.faults = Counter(
            "homing_faults", "Faults of ours answered with SERVFAIL, by where", ["where"], registry=registry
        )
        self.streams = Gauge("homing_streams", "Open TCP and TLS connections", ["transport"], registry=registry)
        self.streams_refused = Counter(
            "homing_streams_refused", "Connections closed at once, by limit", ["limit"], registry=registry
        )
        self.streams_dropped = Counter(
            "homing_streams_dropped", "Connections ended by us, by why", ["reason"], registry=registry
        )
        self.streams_blocked = Gauge(
            "homing_streams_blocked", "Connections whose peer does not read what was sent", registry=registry
        )
        self.limits = Gauge("homing_limit", "Limits in effect, by their key of [dns]", ["key"], registry=registry)
        self.strangers_refused = Counter(
            "homing_strangers_refused",
            "Requests refused unread because others like them did not hold, by whose budget is spent",
            ["limit"],
            registry=registry,
        )
        self.watched_networks = Gauge(
            "homing_watched_networks", "Client networks over the response rate", registry=registry
        )
        self.leases = Gauge("homing_leased_names", "Owner names with a lease running", registry=registry)
        self.dso_sessions = Gauge("homing_dso_sessions", "DNS Stateful Operations sessions open", registry=registry)
        self.push_subscriptions = Gauge("homing_push_subscriptions", "DNS Push subscriptions", registry=registry)
        self.dso_events = CoreCounts("homing_dso_events", "What happened in DSO sessions, by kind", "kind")
        registry.register(self.dso_events)

        self.transfers = Counter(
            "homing_transfers", "Zone transfers sent, by form: axfr, ixfr, current", ["form"], registry=registry
        )
        self.pruned = Counter("homing_journal_pruned", "Journal entries deleted for age or number", registry=registry)
        self.webhooks = Counter(
            "homing_webhook_deliveries", "Webhook deliveries, by result: taken, failed", ["result"], registry=registry
        )
        self.change_count = self.transfer_count = 0  # of the two above, for the status

    def watch_zones(self, zones: Zones) -> None:
        """Show the serials and sizes of these too, when Prometheus asks. Private zones' names are nobody's business."""
        self.registry.register(ZoneFacts(zones))

    def changed(self, kind: str, number: int) -> None:
        self.change_count += number
        self.changes.labels(kind).inc(number)

    def transferred(self, form: str) -> None:
        self.transfer_count += 1
        self.transfers.labels(form).inc()

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
