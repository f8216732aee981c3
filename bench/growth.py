"""Growth: start-up, memory, query, update and event rates of each server as the zone grows, one figure a size.

`python -m bench growth` (part of `python -m bench`); sizes are records in the zone. homing's records all have leases.
"""

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench import queries, updates
from bench.data import RECORDS_A_HOST, host_records, write_master_file, write_repeated_queries
from bench.load_zone import fill_database
from bench.peers import ADDRESS, Peer, running

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
SUBSCRIBERS: Final = 10_000
FIGURES: Final = ("start_seconds", "resident_mib", "queries_per_second", "updates_per_second", "events_per_second")
TITLES: Final = {
    "start_seconds": "seconds from start to the first answer",
    "resident_mib": "memory after start, MiB",
    "queries_per_second": "queries a second, 75 % hits",
    "updates_per_second": "durable signed updates a second, 40 in flight",
    "events_per_second": f"LLQ events a second to {SUBSCRIBERS:,} subscribers of a name, without sockets",
}
_SECONDS: Final = 4
_WITHOUT_LARGE: Final = ("powerdns",)  # its loader takes an hour for a million records

Growth = dict[str, dict[str, dict[str, list[float]]]]
"""Figure -> peer -> size in text -> one value a round."""


def measure(peers: list[Peer], work: Path, rounds: int, sizes: tuple[int, ...] = SIZES) -> Growth:
    """Every figure of every peer at every size."""
    found: Growth = {figure: {} for figure in FIGURES}
    for size in sizes:
        hosts = size // RECORDS_A_HOST
        folder = work / f"growth-{size}"
        folder.mkdir()
        master_file, asked, changed = folder / "zone", folder / "queries", folder / "changes"
        write_master_file(master_file, hosts, ADDRESS)
        write_repeated_queries(asked, hosts)
        updates.write_changes(changed, [host_records(number)[0][0] for number in range(min(hosts, 50_000))], 100_000)
        chosen = [peer for peer in peers if peer.name not in _WITHOUT_LARGE]
        for number in range(rounds):
            for peer in chosen:
                values = _one(peer, folder, master_file, hosts, asked, changed)
                for figure, value in values.items():
                    found[figure].setdefault(peer.name, {}).setdefault(str(size), []).append(value)
                told = ", ".join(f"{figure} {value:,.1f}" for figure, value in values.items())
                print(f"growth {size:,} round {number + 1}/{rounds} {peer.name}: {told}", file=sys.stderr)
        shutil.rmtree(folder)
    return found


def _one(peer: Peer, folder: Path, master_file: Path, hosts: int, asked: Path, changed: Path) -> dict[str, float]:
    seed, directory = folder / f"{peer.name}-seed", folder / peer.name
    if not seed.exists():  # filled once, started once: files that a server makes at its first start are there
        if peer.name == "homing":
            seed.mkdir()
            fill_database(seed / "homing.db", hosts, 53, are_leased=True)
        with running(peer, seed, master_file, hosts):
            pass
    shutil.copytree(seed, directory)
    os.sync()  # else a server's first commits wait for what was copied
    try:
        with running(peer, directory, master_file, hosts) as server:
            values = {"start_seconds": server.seconds, "resident_mib": server.resident_octets() / 2**20}
            values["queries_per_second"] = queries.dnsperf(server.port, asked, seconds=_SECONDS)
            if peer.signs:
                values["updates_per_second"] = updates.send(server.port, changed, 40)
        if peer.name == "homing":
            values["events_per_second"] = _events_per_second(hosts * RECORDS_A_HOST)
        return values
    finally:
        shutil.rmtree(directory)


def _events_per_second(records: int) -> float:
    command = [sys.executable, "-m", "bench.independence", "--sizes", str(records), "--fan-out", str(SUBSCRIBERS)]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def table(growth: Growth) -> str:
    """Markdown, one table a figure: peers down, sizes across, medians."""
    parts = []
    for figure in FIGURES:
        by_peer = growth.get(figure, {})
        sizes = sorted({int(size) for values in by_peer.values() for size in values})
        lines = [f"**{TITLES[figure]}**", "", "| server | " + " | ".join(f"{size:,} records" for size in sizes) + " |"]
        lines.append("|---" * (len(sizes) + 1) + "|")
        for name, values in by_peer.items():
            cells = [f"{statistics.median(values[str(size)]):,.1f}" if str(size) in values else "-" for size in sizes]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
