"""`homing lab`: for a person a live table and three keys, for a script one JSON line, then logs."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import termios
import tty
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from homing.lab_view import EventLog, draw
from homing.logs import configure_logging
from homing.running import OperationError, loop_factory

if TYPE_CHECKING:
    from homing.lab import Lab

_REDRAW_SECONDS = 0.25


def lab(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with ports and keys when everything answers.")
    ] = False,
    no_clients: Annotated[bool, typer.Option("--no-clients", help="Only server and gateway.")] = False,
    state: Annotated[
        Path | None, typer.Option("--state", help="Keep ports, keys and data here; default: a throw-away directory.")
    ] = None,
) -> None:
    """Run the whole loop on this machine: server, router, and two members' machines, all on loopback.

    On a terminal it shows a live table: r renumbers the router, k kills and restarts a client, q quits.

    Example: homing lab --json --state ./lab
    """
    from client_stub.agent import AgentError
    from gateway.errors import StartError as GatewayStartError
    from homing.certificates import CertificateError
    from homing.lab import LabError
    from server.startup import StartError as ServerStartError

    failures = (LabError, CertificateError, ServerStartError, GatewayStartError, AgentError, OSError)

    interactive = not as_json and sys.stdout.isatty() and sys.stdin.isatty()
    configure_logging("error" if interactive else "warning")  # the lab tells its events itself
    with contextlib.ExitStack() as stack:
        directory = state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="homing-lab-")))
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(_run(directory, as_json=as_json, with_clients=not no_clients, interactive=interactive))
        except failures as error:
            raise OperationError(str(error)) from None


async def _run(directory: Path, *, as_json: bool, with_clients: bool, interactive: bool) -> None:
    from homing.lab import Lab  # imports every part; no other command should wait for that

    log = EventLog()

    def say(who: str, text: str) -> None:
        at = datetime.now().astimezone().strftime("%H:%M:%S")
        log.add(at, who, text)
        if not interactive:
            print(f"{at} {who}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the plain form of the live table

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    lab = Lab(directory, with_clients=with_clients, say=say)
    await lab.start()
    try:
        if as_json:
            if with_clients and not await lab.wait_until_ready():
                say("lab", "clients are not settled yet, going on")
            print(json.dumps(lab.description()), flush=True)  # noqa: T201 - data for scripts
            await stop.wait()
        elif interactive:
            await _show(lab, log, stop)
        else:
            say("lab", f"running; {json.dumps(_without_secrets(lab))}")
            await stop.wait()
    finally:
        await lab.stop()


def _without_secrets(lab: "Lab") -> dict[str, object]:
    return {name: value for name, value in lab.description().items() if name != "keys"}


async def _show(lab: "Lab", log: EventLog, stop: asyncio.Event) -> None:
    """Redraw four times a second; act on keys, one after the other. What fails is told, and the lab goes on."""
    from homing.lab import LabError

    keys: asyncio.Queue[str] = asyncio.Queue(maxsize=16)
    console = Console()

    def tell(text: str) -> None:
        log.add(datetime.now().astimezone().strftime("%H:%M:%S"), "lab", text)

    async def act() -> None:
        while True:
            key = await keys.get()
            try:
                if key == "q":
                    stop.set()
                elif key == "r":
                    tell("renumbering the router")
                    await lab.renumber()
                elif key == "k":
                    await lab.restart_client()
            except LabError as error:
                tell(str(error))

    with _single_keys(keys), Live(console=console, screen=True, auto_refresh=False) as live:
        async with asyncio.TaskGroup() as group:
            actions = group.create_task(act(), name="lab keys")
            while not stop.is_set():
                live.update(draw(lab.picture(), log, console.size.height), refresh=True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REDRAW_SECONDS):
                        await stop.wait()
            actions.cancel()


@contextlib.contextmanager
def _single_keys(keys: asyncio.Queue[str]) -> Iterator[None]:
    """Single key strokes without Enter, into the queue (more than it holds are dropped)."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        # Past Python's own buffer, in which keys typed fast would stay unseen until the next one.
        typed = os.read(descriptor, 64).decode("utf-8", "replace") or "q"
        with contextlib.suppress(asyncio.QueueFull):
            for key in typed:
                keys.put_nowait(key)

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
