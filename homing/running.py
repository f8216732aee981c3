"""Run one long-lived program: start it, say that it is ready, stop it in order on SIGTERM or SIGINT."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

import structlog

from homing import collector

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


class Starter(Protocol):
    """What can be started and stopped, and works until then."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


AnyProgram = TypeVar("AnyProgram", bound=Program)
AnyStarter = TypeVar("AnyStarter", bound=Starter)


class UntilAsked(Generic[AnyStarter]):
    """A program of something that is only started and stopped."""

    def __init__(self, inner: AnyStarter) -> None:
        self.inner = inner
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        await self.inner.start()

    async def wait(self) -> bool:
        await self._stopping.wait()
        return True

    def request_stop(self) -> None:
        self._stopping.set()

    async def stop(self) -> None:
        await self.inner.stop()


def run(
    make: Callable[[], AnyProgram],
    listening: Callable[[AnyProgram], Iterable[str]],
    start_errors: tuple[type[Exception], ...],
    reload: Callable[[AnyProgram], Awaitable[None]] | None = None,
) -> None:
    """Run what `make` makes to its end. `OperationError` when it does not start, or stops by a fault of its own.

    `reload` is what SIGHUP asks for, one at a time: those that come meanwhile are one more.

    Once it answers, `ready` and then `listening ...` for each of its listeners go to stdout, at once. A second signal
    while it stops has its usual effect.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            asked_for = runner.run(_run(make, listening, reload))
        except start_errors as error:
            raise OperationError(str(error)) from None
    if not asked_for:
        raise OperationError("stopped by a fault of its own, see the log")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(
    make: Callable[[], AnyProgram],
    listening: Callable[[AnyProgram], Iterable[str]],
    reload: Callable[[AnyProgram], Awaitable[None]] | None,
) -> bool:
    loop = asyncio.get_running_loop()
    collector.pause()
    program = make()
    starting = loop.create_task(program.start(), name="start")

    def on_signal(number: signal.Signals) -> None:
        for each in SIGNALS:
            loop.remove_signal_handler(each)
        log.info("stopping", signal=number.name)
        _tell_manager("STOPPING=1")
        if not starting.cancel():
            program.request_stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    asked_to_reload = asyncio.Event()
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, asked_to_reload.set)
    try:
        await starting
    except asyncio.CancelledError:
        return True
    try:
        collector.settle()
        loop.call_later(collector.LOOK_AGAIN_SECONDS, _look_again, loop)
        _tick(loop)
        sys.stdout.write("".join(("ready\n", *(f"listening {text}\n" for text in listening(program)))))
        sys.stdout.flush()
        log.info("ready")
        _tell_manager("READY=1")
        reloading = None
        if reload is not None:
            reloading = loop.create_task(_reload_when_asked(program, reload, asked_to_reload), name="reload")
        asked_for = await program.wait()
        if reloading is not None:
            reloading.cancel()
    finally:
        await program.stop()
    log.info("stopped")
    return asked_for


def _tell_manager(state: str) -> None:
    """Tell systemd, where a unit has `Type=notify` (sd_notify(3)); nobody else sets this variable."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(path.replace("@", "\0", 1) if path.startswith("@") else path)
            sock.send(state.encode())
        except OSError as error:
            log.warning("the service manager cannot be told", state=state, reason=error.strerror)


async def _reload_when_asked(
    program: AnyProgram, reload: Callable[[AnyProgram], Awaitable[None]], asked: asyncio.Event
) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await reload(program)
        except Exception:
            log.exception("fault while reloading")


def _look_again(loop: asyncio.AbstractEventLoop) -> None:
    collector.look_again()
    loop.call_later(collector.LOOK_AGAIN_SECONDS, _look_again, loop)


def _tick(loop: asyncio.AbstractEventLoop) -> None:
    collector.tick()
    loop.call_later(collector.TICK_SECONDS, _tick, loop)
