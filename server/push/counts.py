"""What the LLQ machine counts, for Prometheus. Read when asked; nothing on the way of a message."""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from server.push.limits import Counters

_FAMILIES: Final = (
    (
        "homing_llq_setups",
        "Long-Lived Queries asked for, by what became of it",
        "outcome",
        ("challenges", "established", "answered_again", "refused", "restored"),
    ),
    (
        "homing_llq_limited",
        "Set-ups answered with SERV-FULL, by the limit that was reached",
        "limit",
        ("limited_total", "limited_per_address", "limited_per_question", "limited_rate"),
    ),
    ("homing_llq_refreshes", "Leases renewed", None, ("refreshed",)),
    (
        "homing_llq_events",
        "Events and what came back",
        "what",
        ("events", "retransmissions", "acks", "stray_acks", "oversized"),
    ),
    (
        "homing_llq_ended",
        "Subscriptions that ended, by reason",
        "reason",
        ("replaced", "cancelled", "lapsed", "unreachable", "closed", "revoked"),
    ),
)


class PushCounts(Collector):
    """`live` and `unsaved` are read together with the counters."""

    def __init__(self, counters: Counters, live: Callable[[], int], unsaved: Callable[[], int]) -> None:
        self._counters = counters
        self._live = live
        self._unsaved = unsaved

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        yield GaugeMetricFamily("homing_llq_subscriptions", "Long-Lived Queries established", value=self._live())
        yield GaugeMetricFamily(
            "homing_llq_unsaved", "Rows about them that the database has not yet, at most", value=self._unsaved()
        )
        for name, words, label, fields in _FAMILIES:
            family = CounterMetricFamily(name, words, labels=() if label is None else (label,))
            for field in fields:
                value = getattr(self._counters, field)
                family.add_metric(() if label is None else (field.removeprefix("limited_"),), value)
            yield family
