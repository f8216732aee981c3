"""Bounds and counts of Long-Lived Queries."""

import math
from dataclasses import dataclass
from typing import Final

MAX_QUESTIONS: Final = 256  # in one message on a stream; a datagram cannot hold as many
RETRY_SECONDS: Final = (2.0, 4.0, 8.0)  # waits after the first, second, third transmission (RFC 8764 §6)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlqLimits:
    """What a server allows. Leases and retry in seconds; reaching a maximum is answered with SERV-FULL."""

    minimum_lease_seconds: int = 900
    """RFC 6281 §5.3: 15 minutes."""
    maximum_lease_seconds: int = 7200
    """RFC 6281 §5.3: 2 hours."""
    maximum_subscriptions: int = 200_000
    maximum_per_address: int = 2_000
    """An IPv6 /64 counts as one address."""
    maximum_per_question: int = 50_000
    setups_per_second: float = 2_000.0
    """Subscriptions that may be established per second once `setup_burst` is used up (token bucket)."""
    setup_burst: int = 10_000
    retry_seconds: int = 300
    """Told with SERV-FULL when a table is full; when only the bucket is empty, the time to its next token is told."""
    quiet_seconds: float = 0.1
    """An event waits for this much quiet at its question, so that changes that belong together travel together."""
    longest_wait_seconds: float = 1.0
    """But never longer than this from the first change (RFC 8764 §6 allows 30)."""
    udp_octets: int = 1232
    """Payload of an event datagram, OPT and signature included."""


@dataclass(slots=True)
class Counters:
    """What happened since the start; every way a subscription ends is one of the last eight."""

    challenges: int = 0
    established: int = 0
    restored: int = 0
    answered_again: int = 0
    refreshed: int = 0
    refused: int = 0
    limited_total: int = 0
    limited_per_address: int = 0
    limited_per_question: int = 0
    limited_rate: int = 0
    events: int = 0
    retransmissions: int = 0
    acks: int = 0
    stray_acks: int = 0
    oversized: int = 0
    """Records that fit no event datagram even alone and were left out."""
    replaced: int = 0
    cancelled: int = 0
    lapsed: int = 0
    unreachable: int = 0
    closed: int = 0
    revoked: int = 0


class TokenBucket:
    """Tokens for set-ups: `burst` at once, `per_second` (above 0) from then on."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at: float | None = None

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._per_second)
        self._at = now

    def wait(self, now: float) -> int:
        """Whole seconds until a token is there, 0 when one is."""
        self._fill(now)
        return 0 if self._tokens >= 1 else math.ceil((1 - self._tokens) / self._per_second)

    def take(self) -> None:
        self._tokens -= 1
