"""Where the external address comes from: the outer interface, or a command. A configured one never changes.

`pick` decides for an interface and `read_output` for a command; both are pure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address

import structlog

from .interfaces import Addresses

COMMAND_SECONDS = 10.0
"""A command that takes longer is ended, with all that it started."""
OUTPUT_OCTETS = 256


class CommandFailed(Exception):
    """A command told nothing; the text says why."""


def pick(addresses: Addresses, interface: str, current: str | None) -> str | None:
    """The external address of an interface, None if it has none.

    The present one stays while it is there: act as if only one existed (RFC 6886 §3.3). Else the first usable one.
    """
    there = [
        item
        for item in addresses
        if item.interface == interface and item.is_up and item.is_global and isinstance(item.address, IPv4Address)
    ]
    usable = [item for item in there if item.is_usable] or there
    hosts = [str(item.address) for item in sorted(usable, key=lambda item: item.is_secondary)]
    if current in hosts:
        return current
    return hosts[0] if hosts else None


def read_output(output: bytes) -> str | None:
    """The address that a command printed; nothing means that there is none. Raises `CommandFailed`."""
    text = output[:OUTPUT_OCTETS].decode("ascii", "replace").strip()
    if not text:
        return None
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise CommandFailed(f"no IPv4 address: {text[:40]!r}") from None
    if address.is_unspecified:
        return None
    if address.is_multicast:
        raise CommandFailed(f"{address} cannot be an external address")
    return str(address)


class CommandWatch:
    """Runs a command over and over and tells what it says. While it fails, the address before is kept."""

    def __init__(self, command: tuple[str, ...], seconds: float, on_address: Callable[[str | None], None]) -> None:
        self._command = command
        self._seconds = seconds
        self._on_address = on_address
        self._log = structlog.get_logger(__name__)
        self._is_failing = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(self._seconds)

    async def once(self) -> None:
        """One run of the command."""
        try:
            address = read_output(await run_bounded(self._command))
        except (CommandFailed, OSError) as error:
            if not self._is_failing:
                self._log.warning("external address command failed", command=self._command[0], reason=str(error))
            self._is_failing = True
        else:
            self._is_failing = False
            self._on_address(address)


class _Output(asyncio.SubprocessProtocol):
    """Gathers what a process prints, up to a bound; `done` is set when it has ended and nobody can print any more."""

    def __init__(self) -> None:
        self.output = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        self.exited.set()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output += data
        if len(self.output) > OUTPUT_OCTETS and not self.done.done():
            self.done.set_exception(CommandFailed(f"it prints more than {OUTPUT_OCTETS} octets"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def run_bounded(command: tuple[str, ...]) -> bytes:
    """What a command prints, if it succeeds in time. Raises `CommandFailed` or OSError."""
    transport, protocol = await asyncio.get_running_loop().subprocess_exec(
        _Output, *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            await protocol.done
    except TimeoutError:
        raise CommandFailed(f"it takes more than {COMMAND_SECONDS:g} s") from None
    finally:
        # All that it started goes with it, be it only that somebody holds the output open.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        await protocol.exited.wait()
        transport.close()
    code = transport.get_returncode()
    if code:
        raise CommandFailed(f"exit status {code}")
    return protocol.output
