"""How long the cyclic collector stops a server with a large zone, under updates, subscriptions and queries.

    python -m bench.collector --records 1000000 --seconds 20

The server as shipped, in a process of its own that notes each pass of its collector once it answers, in processor time
of the thread it stops: by the clock a pass would include what the database's thread does when it is let in meanwhile.
"""

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench import queries, updates
from bench.crowd import Crowd
from bench.data import (
    FLEET_KEY_NAME,
    RECORDS_A_HOST,
    fleet_owner,
    fleet_size,
    host_records,
    write_repeated_queries,
)
from bench.load_zone import fill_database
from bench.peers import PEERS, Peer, running

WITHIN: Final = "--within"
_SOCKETS: Final = 200
_QUESTIONS: Final = 100


def serve(config: str, out: Path) -> None:
    """`homing serve`, with the passes of its collector written to `out` when it ends."""
    passes: list[tuple[int, float]] = []
    begun = 0.0

    def note(phase: str, details: dict[str, Any]) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.thread_time()
        elif gc.isenabled():
            passes.append((details["generation"], time.thread_time() - begun))
        else:
            passes.clear()  # the one before it answers: the collector is off then

    gc.callbacks.append(note)
    from homing.cli import main

    sys.argv = ["homing", "serve", "--config", config]
    try:
        main()
    finally:
        out.write_text(json.dumps(passes))


def _prepare(directory: Path, master_file: Path, hosts: int, port: int) -> list[str]:
    homing = next(peer for peer in PEERS if peer.name == "homing")
    fill_database(directory / "homing.db", hosts, port, are_leased=True)
    *_, config = homing.prepare(directory, master_file, hosts, port)
    return [sys.executable, "-m", "bench.collector", WITHIN, config, str(directory / "passes.json")]


def measure(records: int, seconds: int) -> list[tuple[int, float]]:
    """(generation, seconds) of every pass while the server worked."""
    hosts = records // RECORDS_A_HOST
    with tempfile.TemporaryDirectory(prefix="homing-collector-") as name:
        directory = Path(name)
        everyone, member, asked = directory / "everyone", directory / "member", directory / "asked"
        updates.write_changes(everyone, [host_records(number)[0][0] for number in range(min(hosts, 50_000))])
        updates.write_changes(member, [fleet_owner(number) for number in range(fleet_size(hosts))])
        write_repeated_queries(asked, hosts)
        with running(Peer("homing", sys.executable, True, _prepare), directory / "server", asked, hosts) as server:
            with contextlib.closing(Crowd(server.port, _SOCKETS, _QUESTIONS)) as crowd:
                crowd.subscribe()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                updates.send(server.port, everyone, 40)
                updates.send(server.port, member, 40, FLEET_KEY_NAME, *updates.LEASE)
                queries.dnsperf(server.port, asked)
        return [tuple(each) for each in json.loads((directory / "server" / "passes.json").read_text())]


def main() -> int:
    if sys.argv[1:2] == [WITHIN]:
        serve(sys.argv[2], Path(sys.argv[3]))
    parser = argparse.ArgumentParser(
        prog="python -m bench.collector", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=20, help="of work (default 20)")
    options = parser.parse_args()
    passes = measure(options.records, options.seconds)
    print("| generation | passes | median | longest |\n|---|---|---|---|")
    for generation in range(3):
        found = sorted(seconds for number, seconds in passes if number == generation)
        if found:
            print(
                f"| {generation} | {len(found):,} | {found[len(found) // 2] * 1e3:.2f} ms | {found[-1] * 1e3:.2f} ms |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
