"""One timer for a core that says when it wants to be called next: for drivers."""

import asyncio
from collections.abc import Callable

from server.system import Clock


class DeadlineTimer:
    """Calls `due` no later than the earliest deadline it was armed for; firing early costs nothing."""

    def __init__(self, clock: Clock, due: Callable[[], None]) -> None:
        self._clock = clock
        self._due = due
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._is_open = True

    def arm(self, deadline: float | None) -> None:
        """Be called at this moment of the monotonic clock, unless an earlier one is armed; None arms nothing."""
        if deadline is None or not self._is_open:
            return
        if self._handle is not None:
            if self._armed_for <= deadline:
                return
            self._handle.cancel()
        self._armed_for = deadline
        delay = max(0.0, deadline - self._clock.monotonic())
        self._handle = asyncio.get_running_loop().call_later(delay, self._fire)

    def close(self) -> None:
        """Never call again."""
        self._is_open = False
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._due()
