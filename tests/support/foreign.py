"""Programs we did not write, and the lab as a process for them to talk to."""

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.processes import HOMING, READY_SECONDS, STOP_SECONDS

_TEXT_SECONDS: Final = 20


def need(program: str) -> str:
    """The path of a foreign program; without it the test skips, under CI it fails."""
    found = shutil.which(program)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed (tools/peers.sh installs it)")
        pytest.skip(f"{program} is not installed")
    return found


def call(program: str, *arguments: str, stdin: str = "") -> str:
    """Run a foreign program to its end; everything it printed."""
    done = subprocess.run(
        [need(program), *arguments], input=stdin.encode(), capture_output=True, timeout=_TEXT_SECONDS, check=False
    )
    return (done.stdout + done.stderr).decode()


@dataclass(slots=True)
class LabProcess:
    """A running `homing lab --json`; `facts` is its JSON object."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]
    log_file: Path
    state: Path

    @property
    def address(self) -> str:
        return str(self.facts["dns"]["address"])

    @property
    def port(self) -> int:
        return int(self.facts["dns"]["udp"])

    @property
    def tls_port(self) -> int:
        return int(self.facts["dns"]["tls"])

    def key(self, who: str) -> str:
        """As `nsupdate -y`, `dig -y` and `kdig -y` take it."""
        key = self.facts["keys"][who]
        return f"{key['algorithm']}:{key['name']}:{key['secret']}"

    def dig(self, *arguments: str) -> str:
        return call("dig", f"@{self.address}", "-p", str(self.port), "+norec", *arguments)

    def kdig(self, *arguments: str) -> str:
        return call("kdig", f"@{self.address}", "-p", str(self.port), *arguments)

    def nsupdate(self, who: str, *lines: str, options: Sequence[str] = ()) -> str:
        """Send one update with this key; what nsupdate printed, the answer included."""
        script = "\n".join((f"server {self.address} {self.port}", *lines, "send", "answer", ""))
        return call("nsupdate", *options, "-y", self.key(who), stdin=script)

    def knsupdate(self, who: str, *lines: str, options: Sequence[str] = ()) -> str:
        script = "\n".join((f"server {self.address} {self.port}", *lines, "send", "answer", ""))
        return call("knsupdate", *options, "-y", self.key(who), stdin=script)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def start_lab(state: Path, *options: str) -> Iterator[LabProcess]:
    """The lab from its JSON line on; stopped by SIGTERM unless it has ended."""
    state.mkdir(exist_ok=True)
    log_file = state.parent / f"{state.name}.{time.monotonic_ns()}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*HOMING, "lab", "--json", "--state", str(state), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    try:
        yield LabProcess(process, json.loads(_first_line(process, log_file)), log_file, state)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], log_file: Path) -> bytes:
    output = process.stdout
    assert output is not None
    deadline = time.monotonic() + READY_SECONDS + 20
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while b"\n" not in seen:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                process.kill()
                raise AssertionError(f"no JSON line: {seen!r}\n{log_file.read_text()}")
            piece = os.read(output.fileno(), 65536)
            if not piece:
                raise AssertionError(f"the lab ended: {process.wait()}\n{log_file.read_text()}")
            seen += piece
    return seen


def status(text: str) -> str:
    """RCODE mnemonic in what dig, kdig, nsupdate or knsupdate printed."""
    found = re.search(r"status: (\w+)", text)
    assert found, text
    return found.group(1)
