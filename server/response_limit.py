"""Response rate limiting: what one client network may be sent over UDP, where the sender's address may be forged.

Every datagram is counted by its network (IPv4 /24, IPv6 /56), a whole batch at a time. Only a network that asked for
more than the rate in one second is watched, for some seconds: there each answer is charged to its class, as BIND, Knot
and NSD do: positive ones by name and type, all absent names together, all errors together. Beyond the rate most answers
are dropped and every `slip`-th is sent truncated, so that an honest client comes again over TCP. A sender that proved
its address, by a valid cookie or a signature, is never limited.
"""

import ipaddress
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import structlog

from protocol.constants import Rcode
from server.metrics import Metrics

log = structlog.get_logger(__name__)

MAX_NETWORKS: Final = 65_536  # counted in one second; beyond it the second is cut short
MAX_WATCHED: Final = 4096  # networks watched
MAX_BUCKETS: Final = 8192  # classes of watched networks, in each of two generations
LOG_SECONDS: Final = 60.0
V4_PREFIX: Final = 24
V6_PREFIX: Final = 56
_QUESTION_AT: Final = 10  # in a message without its ID

# A network as the machine reads the first octets of an address: a whole batch is masked without making bytes of it.
_MASKS: Final = {"little": (0x00FFFFFF, 0x00FFFFFFFFFFFFFF), "big": (0xFFFFFF00, 0xFFFFFFFFFFFFFF00)}
V4_MASK: Final = _MASKS[sys.byteorder][0]
V6_MASK: Final = _MASKS[sys.byteorder][1]
V6_TAG: Final = 1 << 64  # tells an IPv6 network from an IPv4 one


def network_of(address: bytes) -> int:
    """The network of 4 or 16 octets of an address."""
    if len(address) == 4:
        return int.from_bytes(address, sys.byteorder) & V4_MASK
    return int.from_bytes(address[:8], sys.byteorder) & V6_MASK | V6_TAG


def _network_range(network: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if network & V6_TAG:
        octets = (network ^ V6_TAG).to_bytes(8, sys.byteorder)
        return ipaddress.IPv6Network((octets + bytes(8), V6_PREFIX))
    return ipaddress.IPv4Network((network.to_bytes(4, sys.byteorder), V4_PREFIX))


class Verdict(Enum):
    """What becomes of one answer."""

    SEND = "send"
    SLIP = "slip"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class ResponseLimits:
    """`rate` answers a second of one class to one network, `total` of all classes; `slip` 0: none is sent short."""

    rate: int
    total: int
    slip: int
    watch_seconds: int
    exempt: Sequence[str] = ()


class _Bucket:
    """Tokens for one second's worth of answers."""

    __slots__ = ("at", "tokens")

    def __init__(self, rate: int, now: float) -> None:
        self.tokens: float = rate
        self.at = now

    def refill(self, rate: int, now: float) -> bool:
        """Whether there is a token."""
        self.tokens = min(rate, self.tokens + (now - self.at) * rate)
        self.at = now
        return self.tokens >= 1


class _Watched(_Bucket):
    """A network over the rate, until when it is watched, and how many of its answers were held back."""

    __slots__ = ("limited", "until")

    def __init__(self, rate: int, now: float) -> None:
        super().__init__(rate, now)
        self.until = now
        self.limited = 0


class ResponseLimiter:
    """Counts networks, watches those over the rate, decides on their answers. Bounded whatever is sent."""

    def __init__(self, limits: ResponseLimits, monotonic: Callable[[], float], metrics: Metrics) -> None:
        self._monotonic = monotonic
        self._limited = metrics.requests.limited
        self._counts: dict[int, int] = {}
        self._second_ends = 0.0
        self._exempt_seen: set[int] = set()
        self._young: dict[tuple[int, bytes], _Bucket] = {}
        self._old: dict[tuple[int, bytes], _Bucket] = {}
        self._logged_at = -LOG_SECONDS
        self._unlogged = 0
        self.watched: dict[int, _Watched] = {}
        self.replace(limits)
        metrics.watched_networks.set_function(lambda: len(self.watched))

    def replace(self, limits: ResponseLimits) -> None:
        """Other limits from now on."""
        self._limits = limits
        self._exempt = [ipaddress.ip_network(text) for text in limits.exempt]
        self.watched.clear()
        self._young.clear()
        self._old.clear()
        self._exempt_seen.clear()

    def note(self, networks: Sequence[int], weight: int = 1) -> None:
        """Count datagrams by network. `weight`: how many each stands for, when only some of a batch are given."""
        now = self._monotonic()
        counts = self._counts
        if now >= self._second_ends or len(counts) > MAX_NETWORKS:
            self._begin_second(now)
        rate = self._limits.rate
        for network in networks:
            counts[network] = total = counts.get(network, 0) + weight
            if total > rate:
                self._watch(network, now)

    def is_watching(self, networks: Sequence[int]) -> bool:
        """Whether one of these networks is watched."""
        return bool(self.watched) and not self.watched.keys().isdisjoint(networks)

    def _begin_second(self, now: float) -> None:
        self._counts.clear()
        self._exempt_seen.clear()
        self._second_ends = now + 1
        for network in [network for network, state in self.watched.items() if state.until < now]:
            del self.watched[network]
        if self._unlogged and now - self._logged_at >= LOG_SECONDS:
            log.warning("limiting responses", networks=len(self.watched), held_back=self._unlogged)
            self._logged_at = now
            self._unlogged = 0

    def _watch(self, network: int, now: float) -> None:
        state = self.watched.get(network)
        if state is None:
            if network in self._exempt_seen or len(self.watched) >= MAX_WATCHED:
                return
            if self._is_exempt(network):
                self._exempt_seen.add(network)
                return
            state = self.watched[network] = _Watched(self._limits.total, now)
        state.until = now + self._limits.watch_seconds

    def _is_exempt(self, network: int) -> bool:
        ours = _network_range(network)
        return any(ours.overlaps(other) for other in self._exempt)

    def decide(self, network: int, answer: bytes) -> Verdict:
        """What becomes of this answer, its ID left out, to a sender that proved nothing."""
        state = self.watched.get(network)
        if state is None:
            return Verdict.SEND
        now = self._monotonic()
        if state.refill(self._limits.total, now):
            bucket = self._bucket((network, _class_of(answer)), now)
            if bucket.refill(self._limits.rate, now):
                state.tokens -= 1
                bucket.tokens -= 1
                return Verdict.SEND
        state.limited += 1
        self._unlogged += 1
        slip = self._limits.slip
        verdict = Verdict.SLIP if slip and not state.limited % slip else Verdict.DROP
        self._limited[verdict.value] += 1
        return verdict

    def _bucket(self, kind: tuple[int, bytes], now: float) -> _Bucket:
        bucket = self._young.get(kind)
        if bucket is None:
            if len(self._young) >= MAX_BUCKETS:
                self._old = self._young
                self._young = {}
            old = self._old.pop(kind, None)
            bucket = self._young[kind] = old if old is not None else _Bucket(self._limits.rate, now)
        return bucket


def _class_of(answer: bytes) -> bytes:
    """What an answer is charged to: its question when it has records for it, else its kind."""
    rcode = answer[1] & 0xF
    if rcode:
        return b"absent" if rcode == Rcode.NXDOMAIN else b"error"
    if answer[4:6] == b"\0\0":
        return b"empty"
    return answer[_QUESTION_AT : answer.find(0, _QUESTION_AT) + 3].lower()
