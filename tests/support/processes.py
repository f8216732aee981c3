"""Real `homing` processes on free loopback ports, for tests that want the program and not its parts."""

import io
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from structlog.testing import capture_logs

from homing import cli, collector
from homing.certificates import ensure_certificates
from homing.config_file import to_toml

READY_SECONDS: Final = 20.0
STOP_SECONDS: Final = 15.0
HOMING: Final = (sys.executable, "-m", "homing")


@dataclass(slots=True)
class Running:
    """A running program. `listening` has the ports of each kind (`udp`, `tcp`, `tls`, `metrics`, `natpmp`) in order."""

    process: subprocess.Popen[bytes]
    config: Path
    log_file: Path
    listening: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Of the first UDP listener; TCP has the same."""
        return self.listening["udp"][0][1]

    @property
    def tls_port(self) -> int:
        return self.listening["tls"][0][1]

    @property
    def log(self) -> str:
        """All of stderr so far."""
        return self.log_file.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not stop on {number.name}:\n{self.log}") from None


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command that ended has left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def homing(*arguments: str | Path, stdin: str = "", environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command to its end, without a terminal."""
    done = subprocess.run(
        [*HOMING, *map(str, arguments)],
        input=stdin.encode(),
        capture_output=True,
        timeout=READY_SECONDS,
        check=False,
        env=_environment(environment),
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


def homing_here(*arguments: str | Path, stdin: str = "") -> Finished:
    """The same in this process, which is faster; for commands that end by themselves; without their log."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["homing", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.setattr(structlog, "configure", lambda **_: None)  # loggers that were used with it would keep it for good
        patch.setattr(logging, "captureWarnings", lambda capture: None)
        patch.setattr(logging.getLogger(), "handlers", [])
        patch.setattr(logging.getLogger(), "setLevel", lambda level: None)
        for name in ("pause", "settle"):  # what is frozen, and when it is collected, is the tests' affair
            patch.setattr(collector, name, lambda: None)
        for name in [name for name in os.environ if name.startswith("HOMING_")]:
            patch.delenv(name)
        with redirect_stdout(out), redirect_stderr(err), capture_logs():
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
    assert isinstance(code, int)
    return Finished(code, out.getvalue(), err.getvalue())


def server_config(directory: Path, **tables: Mapping[str, Any]) -> Path:
    """Write a server's file: SQLite in `directory`, free ports, `tables` over that."""
    values: dict[str, dict[str, Any]] = {
        "database": {"url": "sqlite+aiosqlite:///homing.db"},
        "zone": {"name": "members.example."},
        "dns": {"listen": ["127.0.0.1:0"]},
    }
    for table, keys in tables.items():
        values[table] = {**values.get(table, {}), **keys}
    file = directory / "server.toml"
    file.write_text(to_toml(values))
    return file


def tls_tables(directory: Path, host: str = "ns.members.example") -> tuple[Path, dict[str, Any]]:
    """The authority to trust, and what `[dns]` needs to serve TLS on a free port."""
    files = ensure_certificates(directory / "tls", [host], ["127.0.0.1"])
    names = {"certificate_file": str(files.certificate_file), "key_file": str(files.key_file)}
    return files.ca_file, {"listen_tls": ["127.0.0.1:0"], **names}


@contextmanager
def start_server(directory: Path, **tables: Mapping[str, Any]) -> Iterator[Running]:
    """`homing serve` from its readiness on; `start_server(tmp_path, log={"level": "debug"})`. Stopped by SIGTERM."""
    with start("serve", server_config(directory, **tables)) as running:
        yield running


@contextmanager
def start(
    command: str, config: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run `homing COMMAND --config CONFIG` from its readiness on; stopped by SIGTERM unless it has ended."""
    log_file = config.with_suffix(f".{time.monotonic_ns()}.log")
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*HOMING, command, "--config", str(config), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(environment),
        )
    running = Running(process, config, log_file)
    try:
        _wait_until_ready(running)
        yield running
    finally:
        running.stop()
        assert process.stdout is not None
        process.stdout.close()


def _wait_until_ready(running: Running) -> None:
    """Read `ready` and the listeners, which come in one write."""
    output = running.process.stdout
    assert output is not None
    deadline = time.monotonic() + READY_SECONDS
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while not (seen.startswith(b"ready\n") or b"\nready\n" in seen):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                running.process.kill()
                raise AssertionError(f"not ready in {READY_SECONDS} s: {seen!r}\n{running.log}")
            piece = os.read(output.fileno(), 65536)
            if not piece:
                running.process.wait()
                raise AssertionError(f"ended with {running.process.returncode} before ready:\n{running.log}")
            seen += piece
    for line in seen.decode().splitlines():
        words = line.split()
        if words[:1] == ["listening"]:
            host, _, port = words[2].rpartition(":")
            running.listening.setdefault(words[1], []).append((host.strip("[]"), int(port)))


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOMING_")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **(more or {})}


def lines(text: str) -> Sequence[str]:
    """Without empty ones."""
    return [line for line in text.splitlines() if line.strip()]
