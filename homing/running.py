"""Run one long-lived program: start it, say that it is ready, stop it in order on SIGTERM or SIGINT."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

log = structlog.get_logger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class OperationError(Exception):
    """What was asked for failed; the text is one plain line for the operator. Exit code 1."""


class Program(Protocol):
    """What the server, the gateway and the client have in common."""

    async def start(self) -> None:
        """Working when it returns; with nothing left behind when it raises."""
        ...

    async def wait(self) -> bool:
        """Until it should stop; False when that is because of a fault of its own."""
        ...

    def request_stop(self) -> None: ...

    async def stop(self) -> None: ...


def run(program: Callable[[], Program], listening: Callable[[Program], Iterable[str]]) -> bool:
    """Run it to its end; whether that end was asked for.

    Once it answers, `ready` and then a line for each of `listening` go to stdout. A second signal while it stops has
    its usual effect. What `start` raises is raised.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(program, listening))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(make: Callable[[], Program], listening: Callable[[Program], Iterable[str]]) -> bool:
    loop = asyncio.get_running_loop()
    program = make()
    starting = loop.create_task(program.start(), name="start")

    def on_signal(number: signal.Signals) -> None:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
        log.info("stopping", signal=number.name)
        if not starting.cancel():
            program.request_stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await starting
    except asyncio.CancelledError:
        return True
    try:
        sys.stdout.write("".join(f"{line}\n" for line in ("ready", *listening(program))))
        sys.stdout.flush()
        asked_for = await program.wait()
    finally:
        await program.stop()
    log.info("stopped")
    return asked_for
