"""How much of the time may go into answers over UDP that take a message apart.

A fast answer takes microseconds, one that the dispatcher makes takes tens of them. When a flood wants more of the
latter than there is time for, the rest of the server - fast answers, streams, the writer - keeps its share, and of the
flood only those are heard who proved their address a while ago (`strangers`).
"""

from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 0.25


class WorkBudget:
    """`share` of each second, and a burst on top of it."""

    def __init__(self, share: float, monotonic: Callable[[], float]) -> None:
        self.share = share
        self._monotonic = monotonic
        self._left = BURST_SECONDS
        self._at = monotonic()

    def begin(self) -> bool:
        """Whether there is time left; `end` says that what was begun here is done."""
        now = self._monotonic()
        self._left = min(BURST_SECONDS, self._left + (now - self._at) * self.share)
        self._at = now
        return self._left > 0

    def end(self) -> None:
        now = self._monotonic()
        self._left -= (now - self._at) * (1 - self.share)
        self._at = now
