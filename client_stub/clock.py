"""The loop's clock for waits, the wall clock for signatures, one re-armed timer per core: for drivers only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from client_stub.llq_client import Now


def monotonic() -> float:
    """Seconds of the running loop's clock."""
    return asyncio.get_running_loop().time()


def unix_seconds() -> int:
    return int(time.time())


def both() -> Now:
    return Now(monotonic(), unix_seconds())


class Timer:
    """Calls back once at the deadline armed last."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, deadline: float | None) -> None:
        self.cancel()
        if deadline is not None:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_at(max(deadline, loop.time()), self._callback)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
