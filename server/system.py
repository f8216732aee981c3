"""The only place of the server that reads clocks and entropy."""

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Three readings: waits, signatures, leases."""

    def monotonic(self) -> float:
        """Seconds for waits, never stepped."""
        ...

    def unix(self) -> int:
        """Wall clock, seconds since 1970: what TSIG compares."""
        ...

    def lease(self) -> float:
        """Seconds since 1970 as leases count them: the wall clock at start carried on by the monotonic one."""
        ...


class SystemClock:
    """Leases follow the wall clock of the start plus elapsed time, so that a step neither lapses nor prolongs them."""

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def monotonic(self) -> float:
        return time.monotonic()

    def unix(self) -> int:
        return int(time.time())

    def lease(self) -> float:
        return self._offset + time.clock_gettime(time.CLOCK_BOOTTIME)


class Entropy(Protocol):
    def bits(self, count: int) -> int:
        """`count` random bits as a number."""
        ...


class SystemEntropy:
    def bits(self, count: int) -> int:
        return secrets.randbits(count)
