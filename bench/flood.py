"""`python -m bench.flood`: a mixed flood on loopback, and what honest clients notice of it.

python -m bench.flood                  ten minutes
python -m bench.flood --seconds 20     a short one
python -m bench.flood --scale 0.2      a fifth of the flood's rates

A server is started as shipped, but that loopback is not exempt from its limits. Against it go, from hundreds of
addresses of 127.0.0.0/8: garbage, small queries as if for one victim and for many, updates that nobody signed rightly,
connections that stay silent or begin a message and go no further, ones that ask and do not read, and TLS handshakes
that never end or come in great number. Meanwhile honest clients ask over UDP, TCP and TLS and send signed updates,
each once, without repetition. Exit code 1 when fewer than 95 % of any of theirs is answered within two seconds, when
the server's memory grows by more than 128 MiB, when it opens more connections than it may, or logs by the packet.
"""

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.attackers import PARTS
from bench.honest import HOSTS, ZONE, Place, Tally, honest, over_stream
from homing.certificates import ensure_certificates
from protocol.constants import Class, Opcode, Type
from protocol.edns import Opt, UpdateLease
from protocol.message import Question, encode
from protocol.name import fold, from_text
from protocol.tsig import SHA256, Key, sign

DURATION: Final = 600
MUST_BE_ANSWERED: Final = 0.95
MAY_GROW_KIB: Final = 128 * 1024
CONNECTIONS: Final = 1000
LOG_LINES: Final = 30  # and two a minute
LIMITED: Final = {
    "answers dropped": ('homing_rate_limited_total{action="drop"}',),
    "answers cut short": ('homing_rate_limited_total{action="slip"}',),
    "refused unread": tuple(f'homing_strangers_refused_total{{limit="{limit}"}}' for limit in ("address", "total")),
    "no time": ("homing_overload_total",),
    "connections evicted": ('homing_streams_dropped_total{reason="evicted"}',),
    "handshakes given up": ('homing_streams_dropped_total{reason="handshake"}',),
    "idle": ('homing_streams_dropped_total{reason="idle"}',),
    "unread": tuple(f'homing_streams_dropped_total{{reason="{reason}"}}' for reason in ("unread", "blocked")),
}


@contextmanager
def server(directory: Path) -> Iterator[tuple[Place, "subprocess.Popen[str]", Path]]:
    """`homing serve` with a member of some hundred hosts; loopback is limited as anyone."""
    files = ensure_certificates(directory / "tls", ["localhost"], ["127.0.0.1"])
    config = directory / "server.toml"
    config.write_text(
        f'[zone]\nname = "{ZONE}"\n[database]\nurl = "sqlite+aiosqlite:///homing.db"\n'
        '[dns]\nlisten = ["127.0.0.1:0"]\nlisten_tls = ["127.0.0.1:0"]\nrate_limit_exempt = []\n'
        f"tcp_connections = {CONNECTIONS}\n"
        f'certificate_file = "{files.certificate_file}"\nkey_file = "{files.key_file}"\n'
        '[metrics]\nlisten = "127.0.0.1:0"\n'
    )
    command = [sys.executable, "-m", "homing"]
    log = directory / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "serve", "--config", str(config)], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        try:
            ports = {}
            assert process.stdout is not None
            while len(ports) < 4:
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"the server did not start:\n{log.read_text()}")
                if line.startswith("listening "):
                    _, kind, where = line.split()
                    ports[kind] = int(where.rpartition(":")[2])
            added = subprocess.run(
                [*command, "member", "add", "alice", "--json", "--config", str(config)],
                check=True,
                capture_output=True,
                text=True,
            )
            facts = json.loads(added.stdout)
            key = Key(fold(from_text(facts["name"])), SHA256, base64.b64decode(facts["secret"]))
            place = Place(ports["udp"], ports["tls"], ports["metrics"], str(files.ca_file), key)
            asyncio.run(fill(place))
            yield place, process, log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


async def fill(place: Place) -> None:
    """The hosts that are asked for, and a large answer."""
    zone = [Question(from_text(ZONE), Type.SOA, Class.IN)]
    lease = Opt(1232, options=(UpdateLease(7200).encode(),))
    for start in range(0, HOSTS, 50):
        added = []
        for number in range(start, start + 50):
            owner = from_text(f"host{number}.alice.{ZONE}")
            added.append((owner, Type.A, Class.IN, 60, bytes((192, 0, 2, number % 250))))
            added.append((owner, Type.TXT, Class.IN, 60, b"\x20" + b"t" * 32))
        if not start:
            added += [
                (from_text(f"big.alice.{ZONE}"), Type.TXT, 1, 60, b"\xc8" + bytes([65 + n]) * 200) for n in range(5)
            ]
        wire, _ = sign(
            encode(1, Opcode.UPDATE << 11, zone, authority=added, opt=lease), place.key, now=int(time.time())
        )
        deadline = time.monotonic() + 10
        while True:  # the key is noticed in a moment
            reply = await over_stream(place.port, "127.0.0.1", wire, None)
            if not reply[3] & 0xF:
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"cannot fill the zone: RCODE {reply[3] & 0xF}")
            await asyncio.sleep(0.2)


@dataclass
class Watch:
    """What the server takes, second by second."""

    kib: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    processor: float = 0.0

    async def follow(self, pid: int, seconds: float) -> None:
        began = _processor_seconds(pid)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.look(pid)
            await asyncio.sleep(1)
        self.processor = (_processor_seconds(pid) - began) / seconds

    def look(self, pid: int) -> None:
        status = Path(f"/proc/{pid}/status").read_text()
        self.kib.append(int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]))
        self.descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208  # names alone, and fast


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=DURATION)
    parser.add_argument("--scale", type=float, default=1.0, help="of the flood's rates")
    parser.add_argument("--patience", type=float, default=2.0, help="seconds that honest clients wait for an answer")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout in place of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, server(Path(work)) as (place, process, log):
        result = run(place, process.pid, log, options)
    print(json.dumps(result) if options.json else table(result))
    return 1 if result["problems"] else 0


def run(place: Place, pid: int, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    seconds, scale = options.seconds, options.scale
    tallies = {kind: Tally() for kind in ("UDP", "TCP", "TLS", "update")}
    watch = Watch()
    watch.look(pid)
    lines = log.read_text().count("\n")
    context = multiprocessing.get_context("fork")
    parts = [
        context.Process(target=part, args=(place, rate * scale, random.Random(name)), daemon=True)
        for name, (part, rate) in PARTS.items()
    ]
    for process in parts:
        process.start()
    with suppress(PermissionError):  # a flood comes from elsewhere: it leaves server and clients their processor
        for each in (pid, os.getpid()):
            os.setpriority(os.PRIO_PROCESS, each, -10)
    try:
        time.sleep(2)  # until all of them are under way
        asyncio.run(_meanwhile(place, pid, options, tallies, watch))
        ended = [name for name, process in zip(PARTS, parts, strict=True) if not process.is_alive()]
    finally:
        for process in parts:
            process.kill()
            process.join()
    said = log.read_text().count("\n") - lines
    counts = metrics(place)
    result: dict[str, Any] = {
        "seconds": seconds,
        "honest": {
            kind: {
                "sent": tally.sent,
                "answered": tally.answered,
                "share": round(tally.share, 4),
                "median_ms": round(tally.worst(0.5), 1),
                "p99_ms": round(tally.worst(0.99), 1),
            }
            for kind, tally in tallies.items()
        },
        "memory_kib": {"before": watch.kib[0], "most": max(watch.kib), "last": watch.kib[-1]},
        "descriptors": max(watch.descriptors),
        "processor": round(watch.processor, 2),
        "log_lines": said,
        "limited": {name: sum(counts.get(line, 0) for line in lines) for name, lines in LIMITED.items()},
        "flood_per_second": {name: rate * scale for name, (_, rate) in PARTS.items()},
    }
    result["problems"] = problems(result, ended)
    return result


async def _meanwhile(
    place: Place, pid: int, options: argparse.Namespace, tallies: dict[str, Tally], watch: Watch
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(honest(place, options.seconds, options.patience, tallies))
        group.create_task(watch.follow(pid, options.seconds))


def metrics(place: Place) -> dict[str, int]:
    """What the server counted, by metric and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{place.metrics_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: int(float(value)) for name, value in pairs}


def problems(result: dict[str, Any], ended: list[str]) -> list[str]:
    found = [f"the flood of {name} ended early" for name in ended]
    found += [
        f"{kind}: only {facts['share']:.1%} answered"
        for kind, facts in result["honest"].items()
        if facts["share"] < MUST_BE_ANSWERED
    ]
    memory = result["memory_kib"]
    if memory["most"] - memory["before"] > MAY_GROW_KIB:
        found.append(f"memory grew from {memory['before']} to {memory['most']} KiB")
    if result["descriptors"] > CONNECTIONS + 100:
        found.append(f"{result['descriptors']} open descriptors")
    # an update of an honest client is told in a line of its own
    allowed = LOG_LINES + result["seconds"] / 30 + result["honest"]["update"]["sent"]
    if result["log_lines"] > allowed:
        found.append(f"{result['log_lines']} lines logged")
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        f"flood of {result['seconds']:.0f} s",
        "",
        "| honest | sent | answered | median | p99 |",
        "|---|---|---|---|---|",
    ]
    for kind, facts in result["honest"].items():
        lines.append(
            f"| {kind} | {facts['sent']} | {facts['share']:.2%} | {facts['median_ms']} ms | {facts['p99_ms']} ms |"
        )
    memory = result["memory_kib"]
    lines += [
        "",
        f"memory {memory['before']} KiB before, {memory['most']} at most, {memory['last']} at the end;"
        f" {result['descriptors']} descriptors at most; {result['processor']:.0%} of a core;"
        f" {result['log_lines']} log lines",
        "limited: " + ", ".join(f"{name} {number}" for name, number in result["limited"].items()),
        "flood a second: " + ", ".join(f"{name} {rate:g}" for name, rate in result["flood_per_second"].items()),
        *(f"PROBLEM: {problem}" for problem in result["problems"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
