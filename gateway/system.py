"""The outside world that the pure parts of the gateway are handed: clocks and entropy."""

from __future__ import annotations

import secrets
import time
from array import array


class System:
    """The machine's own clocks and entropy; tests put a subclass in its place."""

    def __init__(self) -> None:
        self._drawn = array("I")

    def monotonic(self) -> float:
        """Seconds for waits and deadlines, not moved by setting the clock."""
        return time.monotonic()

    def unix(self) -> float:
        """Seconds of the wall clock, for what has to mean something after a restart."""
        return time.time()

    def draw(self) -> int:
        """A random number of 31 bits. The kernel is asked for many at a time, which is what costs."""
        if not self._drawn:
            self._drawn = array("I", secrets.token_bytes(1024))
        return self._drawn.pop() >> 1
