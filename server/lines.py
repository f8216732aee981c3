"""How many lines a second the log gets about updates: what is beyond them is counted, and told in one line."""

from typing import Final

import structlog

LINES_A_SECOND: Final = 100

log = structlog.get_logger(__name__)


class LineBudget:
    """`take` before each line about an update. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._second = 0
        self._taken = 0

    def take(self, now: float) -> bool:
        """Whether one more line may be written."""
        second = int(now)
        if second != self._second:
            left_out = self._taken - LINES_A_SECOND
            if left_out > 0:
                log.info("updates not told one by one", count=left_out)
            self._second = second
            self._taken = 0
        self._taken += 1
        return self._taken <= LINES_A_SECOND
