"""A PostgreSQL server of our own: made in a directory, on a Unix socket there, ended with the test run."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_USER: Final = "postgres"
_SECONDS: Final = 60


def programs() -> Path | None:
    """Where Debian keeps the newest server's programs; None when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def need_programs() -> Path:
    """The same; without a server the test skips, under CI it fails."""
    found = programs()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed (tools/peers.sh installs it)")
        pytest.skip("PostgreSQL is not installed")
    return found


@contextmanager
def start_postgres() -> Iterator[str]:
    """The URL of an empty database. The server refuses to run as root: then it runs as Debian's user for it."""
    found = need_programs()
    directory = Path(tempfile.mkdtemp(prefix="homing-pg-"))  # short: the socket's path may have 107 octets
    if os.geteuid() == 0:
        shutil.chown(directory, _USER)

    def run(*command: str | Path) -> None:
        done = subprocess.run(_as_user(command), capture_output=True, timeout=_SECONDS, check=False, cwd=directory)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()

    data = directory / "data"
    try:
        run(found / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        options = f"-k {directory} -c listen_addresses='' -c max_connections=60"
        run(found / "pg_ctl", "-D", data, "-w", "-l", directory / "log", "-o", options, "start")
        try:
            yield f"postgresql+asyncpg://{_USER}@/postgres?host={directory}"
        finally:
            run(found / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _as_user(command: Sequence[str | Path]) -> list[str]:
    words = [str(word) for word in command]
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", *words] if os.geteuid() == 0 else words
