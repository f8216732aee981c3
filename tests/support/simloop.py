"""An event loop whose clock jumps: hours of timers in milliseconds, and no hanging tests.

When nothing is ready the loop does not wait for its next timer but moves `time()` there. When there is no timer either,
nothing can ever happen again: `Deadlock`. There is no way out of such a loop to threads or real sockets, because time
would run away while they work; datagrams go over a `Network` (tests/support/wire.py), so real drivers run unchanged.

    simloop.run(scenario(), network=wire)
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")
Address = tuple[str, int]

DAY: Final = 86400.0
MAX_TURNS_AT_ONE_INSTANT: Final = 100_000


class SimulationError(AssertionError):
    """The scenario cannot go on, or went wrong where nobody looked."""


class Deadlock(SimulationError):
    """Every task waits and no timer is set."""


class Livelock(SimulationError):
    """Callbacks call callbacks and time stands still, or timers go on beyond the limit of the scenario."""


class Network(Protocol):
    """What `create_datagram_endpoint` turns to in virtual time."""

    def open(
        self, protocol: asyncio.DatagramProtocol, local: Address | None, remote: Address | None
    ) -> asyncio.DatagramTransport:
        """Join as `local` (port 0: any); `OSError` when that is taken. Calls `connection_made` in the next turn."""
        ...


class _JumpingSelector(selectors.BaseSelector):
    """Asks the real selector for what is ready now (the loop's own wake-up pipe) and spends time instead of waiting."""

    def __init__(self, spend: Callable[[float | None], None]) -> None:
        self._real = selectors.DefaultSelector()
        self._spend = spend

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The pipe needs a look only when nothing else would ever go on."""
        ready = self._real.select(0) if timeout is None else []
        if not ready:
            self._spend(timeout)
        return ready


class SimLoop(asyncio.SelectorEventLoop):
    """Virtual time from 0. `failures` are exceptions that no task or caller took; `run` raises them."""

    def __init__(self, network: Network | None = None, limit_seconds: float = 30 * DAY) -> None:
        self._now = 0.0
        self._turns = 0
        self._limit = limit_seconds
        self.network = network
        self.failures: list[Exception] = []
        super().__init__(_JumpingSelector(self._spend))
        self.set_exception_handler(self._on_failure)

    def time(self) -> float:
        return self._now

    def _spend(self, timeout: float | None) -> None:
        if timeout is None:
            waiting = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self))) or "nobody"
            raise Deadlock(f"at {self._now:.3f} s every task waits and no timer is set: {waiting}")
        if timeout > 0:
            self._now += timeout
            self._turns = 0
            if self._now > self._limit:
                raise Livelock(f"still timers after {self._limit:.0f} s of virtual time")
        else:
            self._turns += 1
            if self._turns > MAX_TURNS_AT_ONE_INSTANT:
                raise Livelock(f"time stands still at {self._now:.3f} s")

    def _on_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(error if isinstance(error, Exception) else SimulationError(str(context.get("message"))))

    def run_in_executor(self, *_: Any) -> Any:  # type: ignore[override]  # takes anything, does nothing
        raise SimulationError("a thread would lose the race against virtual time")

    async def create_connection(self, *_: Any, **__: Any) -> Any:
        raise SimulationError("no real streams in virtual time")

    async def create_server(self, *_: Any, **__: Any) -> Any:
        raise SimulationError("no real streams in virtual time")

    async def create_datagram_endpoint(  # type: ignore[override]  # real sockets' options have no meaning here
        self,
        protocol_factory: Callable[[], asyncio.DatagramProtocol],
        local_addr: Address | None = None,
        remote_addr: Address | None = None,
        **options: Any,
    ) -> tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]:
        if self.network is None or options.get("sock") is not None:
            raise SimulationError("no real sockets in virtual time")
        protocol = protocol_factory()
        transport = self.network.open(protocol, local_addr, remote_addr)
        await asyncio.sleep(0)  # connection_made first, as on a real loop
        return transport, protocol


def run(coro: Coroutine[Any, Any, T], *, network: Network | None = None, limit_seconds: float = 30 * DAY) -> T:
    """Run to the end in virtual time and return its result.

    Raises what it raises, `Deadlock`, `Livelock`, or an `ExceptionGroup` of exceptions that nobody took.
    """
    loop = SimLoop(network, limit_seconds)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(coro)
    if loop.failures:
        raise ExceptionGroup("exceptions that nobody took", loop.failures)
    return result
