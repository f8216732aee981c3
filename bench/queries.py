"""Query rows: repeated names, absent names, and signed queries, by dnsperf on the other core."""

import re
import subprocess
from pathlib import Path
from typing import Final

from bench.data import KEY_NAME, KEY_SECRET, write_absent_queries, write_repeated_queries
from bench.peers import ADDRESS, LOAD_CPU

_SECONDS: Final = 5


def dnsperf(port: int, queries: Path, *options: str, seconds: int = _SECONDS) -> float:
    """Answers a second."""
    done = subprocess.run(
        ["taskset", "-c", LOAD_CPU, "dnsperf", "-s", ADDRESS, "-p", str(port), "-d", str(queries), "-l", str(seconds),
         "-c", "4", "-q", "500", *options],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    found = re.search(r"Queries per second:\s+([\d.]+)", done.stdout)
    lost = re.search(r"Queries lost:\s+\d+ \(([\d.]+)%\)", done.stdout)
    if found is None or lost is None or float(lost.group(1)) > 5:
        raise RuntimeError(f"dnsperf: {done.stdout}\n{done.stderr}")
    return float(found.group(1))


def repeated(port: int, work: Path, hosts: int) -> float:
    file = work / "repeated.txt"
    if not file.exists():
        write_repeated_queries(file, hosts)
    return dnsperf(port, file)


def absent(port: int, work: Path, hosts: int) -> float:
    file = work / "absent.txt"
    if not file.exists():
        write_absent_queries(file, 3_000_000)
    return dnsperf(port, file)


def signed(port: int, work: Path, hosts: int) -> float:
    import base64

    file = work / "repeated.txt"
    if not file.exists():
        write_repeated_queries(file, hosts)
    return dnsperf(port, file, "-y", f"hmac-sha256:{KEY_NAME}:{base64.b64encode(KEY_SECRET).decode()}")
