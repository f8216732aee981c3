"""`python -m bench`: measure rows against peers, interleaved; a table on stdout, JSON beside it.

python -m bench                    every row, every installed peer, 5 rounds
python -m bench repeated --rounds 3 --peers homing nsd
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import queries, updates
from bench.data import HOSTS, write_master_file
from bench.peers import ADDRESS, PEERS, Peer, is_installed, running

Row = Callable[[int, Path, int], float]
ROWS: Final[dict[str, tuple[str, bool, Row]]] = {
    "repeated": ("queries, 75 % hits of 20,000 names repeated", False, queries.repeated),
    "absent": ("queries, every name new and absent", False, queries.absent),
    "signed": ("the repeated queries, TSIG both ways", True, queries.signed),
    "updates-40": ("durable signed updates, 40 in flight", True, updates.updates_40),
    "updates-400": ("durable signed updates, 400 in flight", True, updates.updates_400),
    "member-40": ("the same by a member with leases, 40 in flight", True, updates.member_40),
    "member-400": ("the same by a member with leases, 400 in flight", True, updates.member_400),
    "no-change": ("updates that change nothing, 40 in flight", True, updates.no_change),
    "refresh": ("lease refreshes, made durable, 40 in flight", True, updates.refresh),
}


def measure(row: str, peers: list[Peer], work: Path, rounds: int) -> dict[str, list[float]]:
    """Rates by peer; the peers take turns in each round, so that drift of the machine meets all of them."""
    _, needs_key, run = ROWS[row]
    master_file = work / "zone"
    if not master_file.exists():
        write_master_file(master_file, HOSTS, ADDRESS)
    chosen = [peer for peer in peers if peer.signs or not needs_key]
    rates: dict[str, list[float]] = {peer.name: [] for peer in chosen}
    for number in range(rounds):
        for peer in chosen:
            with running(peer, work / peer.name, master_file, HOSTS) as port:
                rates[peer.name].append(run(port, work, HOSTS))
            print(f"{row} round {number + 1}/{rounds} {peer.name}: {rates[peer.name][-1]:,.0f}/s", file=sys.stderr)
    return rates


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: median and spread of each peer, and our median as a ratio to theirs."""
    names = [peer.name for peer in PEERS if any(peer.name in rates for rates in results.values())]
    lines = ["| work | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row, rates in results.items():
        ours = statistics.median(rates["homing"]) if rates.get("homing") else None
        cells = []
        for name in names:
            found = rates.get(name)
            if not found:
                cells.append("-")
                continue
            median = statistics.median(found)
            cell = f"{median / 1000:.1f}k/s ({min(found) / 1000:.1f}-{max(found) / 1000:.1f})"
            cells.append(cell if name == "homing" or ours is None else f"{cell}, ours {ours / median:.2f} x")
        lines.append(f"| {ROWS[row][0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=[peer.name for peer in PEERS])
    parser.add_argument("--json", type=Path, help="write every measured rate here")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if peer.name in options.peers and is_installed(peer)]
    missing = sorted(set(options.peers) - {peer.name for peer in peers})
    if missing:
        print(f"not installed, left out: {', '.join(missing)} (tools/bench_peers.sh)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="homing-bench-") as directory:
        results = {row: measure(row, peers, Path(directory), options.rounds) for row in options.rows or ROWS}
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
