"""A large master file in and out: `python -m bench.master_file [RECORDS]`, a million when not said.

Each step is the command an operator gives, on a terminal of its own, so that the progress bar works; its time and the
most memory it held are what the system says. The second import must find nothing to do, and the export must hold what
the file did.
"""

import os
import pty
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ZONE: Final = "members.example."
RECORDS_A_HOST: Final = 4
_BAR: Final = re.compile(r"(reading|comparing|writing|exporting) [^\x1b\r\n]*[\d,]+ \w+")
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Step(NamedTuple):
    """One command: seconds, the most resident memory in MiB, what it printed, how often a bar was drawn."""

    seconds: float
    mebibytes: float
    printed: str
    bars: int


def write_file(path: Path, records: int) -> None:
    """Hosts of 500 members, each with A, AAAA, TXT and SRV."""
    with path.open("w") as file:
        file.write(f"$ORIGIN {ZONE}\n$TTL 300\n")
        for number in range(records // RECORDS_A_HOST):
            name = f"host{number}.user{number % 500}"
            file.write(
                f"{name} A 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}\n"
                f"{name} AAAA 2001:db8::{number >> 16:x}:{number & 0xFFFF:x}\n"
                f'{name} TXT "host {number}"\n'
                f"{name} SRV 0 0 {number & 0xFFFF} {name}\n"
            )


def run(*arguments: str | Path) -> Step:
    """`homing ARGUMENTS` on a pseudo terminal."""
    started = time.monotonic()
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "homing", *map(str, arguments)])
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    _, status, usage = os.wait4(pid, 0)
    os.close(terminal)
    text = b"".join(pieces).decode(errors="replace")
    plain = _ESCAPES.sub("", text)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(plain[-2000:])
    last = [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    return Step(time.monotonic() - started, usage.ru_maxrss / 1024, last[-1] if last else "", len(_BAR.findall(plain)))


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="homing-bench-") as name:
        directory = Path(name)
        config = directory / "server.toml"
        config.write_text(f'[database]\nurl = "sqlite+aiosqlite:///homing.db"\n[zone]\nname = "{ZONE}"\n')
        file, out = directory / "in.zone", directory / "out.zone"
        write_file(file, records)
        print(f"{records} records, {file.stat().st_size / 2**20:.0f} MiB")
        print(f"{'step':<14} {'seconds':>8} {'MiB':>6} {'bars':>6}  last line")
        steps = {
            "check": ("zone", "check", file, "--config", config),
            "import": ("zone", "import", file, "--yes", "--config", config),
            "import again": ("zone", "import", file, "--yes", "--config", config),
            "export": ("zone", "export", out, "--config", config),
            "import that": ("zone", "import", out, "--yes", "--config", config),
        }
        for what, arguments in steps.items():
            step = run(*arguments)
            print(
                f"{what:<14} {step.seconds:>8.1f} {step.mebibytes:>6.0f} {step.bars:>6}  {step.printed[:90]}",
                flush=True,
            )
            if what in ("import again", "import that") and not step.printed.startswith("Nothing to import"):
                raise SystemExit(f"{what} found a difference: {step.printed}")
        size = (directory / "homing.db").stat().st_size / 2**20
        print(f"database {size:.0f} MiB, exported file {out.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
