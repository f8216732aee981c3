"""The only place of the server that reads clocks and entropy."""

import secrets
import time
from pathlib import Path
from typing import Final, Protocol

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TRUSTED_SECONDS: Final = 86_400.0  # a wall clock further off was not set when the other process started


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

    def anchor(self) -> str:
        """What leases count from, for `follow` of a later process on this machine."""
        ...

    def follow(self, anchor: str) -> None:
        """Count leases as the process that told this `anchor` did, if the machine has not been booted since."""
        ...


class SystemClock:
    """Leases follow the wall clock of the start plus elapsed time, so that a step neither lapses nor prolongs them.

    A later process goes on counting as the first one since the boot did: a step between the two would do the same.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._boot = _boot_id()

    def anchor(self) -> str:
        return f"{self._boot} {self._offset!r}"

    def follow(self, anchor: str) -> None:
        boot, _, offset = anchor.partition(" ")
        try:
            before = float(offset)
        except ValueError:
            return
        if boot and boot == self._boot and abs(before - self._offset) < _TRUSTED_SECONDS:
            self._offset = before

    monotonic = staticmethod(time.monotonic)

    def unix(self) -> int:
        return int(time.time())

    def lease(self) -> float:
        return self._offset + time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot_id() -> str:
    """Of this boot of the machine; empty where the system does not tell."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


class Entropy(Protocol):
    def bits(self, count: int) -> int:
        """`count` random bits as a number."""
        ...


class SystemEntropy:
    def bits(self, count: int) -> int:
        return secrets.randbits(count)
