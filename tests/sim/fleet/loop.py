"""Virtual time for thousands of machines: an event loop with a cheap agenda of plain calls beside asyncio's timers."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from tests.support.simloop import Address, Livelock, SimLoop

SERVER: Final = ("192.0.2.53", 53)


class FleetLoop(SimLoop):
    """Runs the server as any loop does. What the network and the machines do later stands in the agenda.

    Most of what happens in a fleet is such a call, and needs neither handle nor turn of the loop: the clock goes from
    one to the next until the server has something to do. Nobody connects by TCP.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entries = count()
        super().__init__(limit_seconds=limit_seconds)

    def after(self, seconds: float, what: Callable[..., None], *more: Any) -> None:
        """Call `what` then; it cannot be cancelled."""
        heapq.heappush(self._agenda, (self._now + seconds, next(self._entries), what, more))

    def _spend(self, timeout: float | None) -> None:
        """In place of waiting: what stands in the agenda, as long as asyncio itself has nothing to do earlier."""
        agenda, ready, timers = self._agenda, self._ready, self._scheduled
        has_moved = False
        while agenda and not ready and not self._stopping:
            at = agenda[0][0]
            if timers and timers[0]._when <= at:
                break
            if at > self._limit:
                raise Livelock(f"still an agenda after {self._limit:.0f} s of virtual time")
            has_moved = True
            self._turns = 0
            self._now = max(self._now, at)
            _, _, what, more = heapq.heappop(agenda)
            what(*more)
        if not has_moved:
            super()._spend(timeout)

    async def create_server(self, *_: Any, **__: Any) -> Any:
        return _NoServer()


class _NoServer:
    def __init__(self) -> None:
        self.sockets = [self]

    def getsockname(self) -> Address:
        return SERVER

    def close(self) -> None:
        pass
