"""A clock that moves when told to, or with a virtual loop."""

from collections.abc import Callable

START_UNIX = 1_700_000_000.0


class FakeClock:
    """The three readings of the server's `Clock`.

    Moved by `advance`, or following `time` (say `loop.time` of a `SimLoop`). `step_wall` sets the wall clock as an
    administrator does: only `unix` sees it.
    """

    def __init__(self, *, unix: float = START_UNIX, time: Callable[[], float] | None = None) -> None:
        self._start = unix
        self._time = time
        self._elapsed = 0.0
        self._step = 0.0

    def monotonic(self) -> float:
        """Seconds since the clock was made, or the time of the loop it follows."""
        return self._elapsed if self._time is None else self._time()

    def unix(self) -> int:
        return int(self._start + self.monotonic() + self._step)

    def lease(self) -> float:
        return self._start + self.monotonic()

    def anchor(self) -> str:
        return "boot 0"

    def follow(self, anchor: str) -> None:
        """Leases of this clock never depend on when a process started."""

    def advance(self, seconds: float) -> None:
        """Let time pass; `ValueError` backward, `RuntimeError` when the clock follows a loop."""
        if seconds < 0:
            raise ValueError("time does not go back; step_wall sets the wall clock")
        if self._time is not None:
            raise RuntimeError("this clock follows a loop: sleep there instead")
        self._elapsed += seconds

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self._step += seconds
