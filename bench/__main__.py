"""`python -m bench`: measure against peers, interleaved; tables on stdout, JSON, Markdown and plots where asked.

python -m bench                               everything, every installed peer, 5 rounds
python -m bench repeated --rounds 3 --peers homing nsd
python -m bench growth latency --out docs/performance
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench import growth, latency, queries, report, updates
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
            directory = work / f"{peer.name}-{row}-{number}"  # a fresh zone: updates of another row are not in it
            with running(peer, directory, master_file, HOSTS) as server:
                rates[peer.name].append(run(server.port, work, HOSTS))
            shutil.rmtree(directory)
            print(f"{row} round {number + 1}/{rounds} {peer.name}: {rates[peer.name][-1]:,.0f}/s", file=sys.stderr)
    return rates


def machine() -> str:
    """Kernel, processor and Python, without the names of machine and build."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    kernel = platform.release().partition("-")[0]
    return f"{platform.system()} {kernel}, {model}, Python {platform.python_version()}, one core a server"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, "growth", "latency", []], help="which; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=[peer.name for peer in PEERS])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(growth.SIZES), help="records, for growth")
    parser.add_argument("--json", type=Path, help="write all that was measured here")
    parser.add_argument("--out", type=Path, help="add to results.json there; write results.md and the plots anew")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if peer.name in options.peers and is_installed(peer)]
    missing = sorted(set(options.peers) - {peer.name for peer in peers})
    if missing:
        print(f"not installed, left out: {', '.join(missing)} (tools/bench_peers.sh)", file=sys.stderr)
    wanted = options.rows or [*ROWS, "growth", "latency"]
    results: dict[str, Any] = {"rows": {}}
    if options.out and (options.out / "results.json").exists():
        results = json.loads((options.out / "results.json").read_text())
    results |= {"machine": machine(), "rounds": options.rounds}
    with tempfile.TemporaryDirectory(prefix="homing-bench-") as directory:
        work = Path(directory)
        for row in wanted:
            if row == "growth":
                results["growth"] = growth.measure(peers, work, max(1, options.rounds // 2), tuple(options.sizes))
            elif row == "latency":
                (work / "events").mkdir()
                (work / "beside").mkdir()
                results["events"] = latency.events(work / "events", HOSTS)
                results["beside"] = latency.queries_beside_updates(work / "beside", HOSTS)
            else:
                results["rows"][row] = {"title": ROWS[row][0], "rates": measure(row, peers, work, options.rounds)}
            if options.out:  # after each, so that a run that is broken off has left what it measured
                report.write(results, options.out)
    print(report.text(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
