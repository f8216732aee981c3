"""Thousands of machines for days: the real `Server` in virtual time, light machines, a network that loses and doubles.

    python -m tests.sim.fleet --hosts 2000 --days 3 --seeds 200

The server is the product as it ships, over `MemoryStore`: its listener, dispatcher, writer, push service and what they
store. The machines are written for this simulation alone: each publishes its records with a lease and watches others.
A storm of hours, with 5 % loss in bursts and everything that can stop stopping, is followed by a quiet period; then
every view must equal the zone. At all times no lapsed record may be told, and none that was acknowledged be missing.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.sim.fleet.life import report


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=2000)
    parser.add_argument("--days", type=float, default=3.0, help="virtual time of each seed")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    failed = 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        works = [
            pool.submit(report, seed, arguments.hosts, arguments.days)
            for seed in range(arguments.first, arguments.first + arguments.seeds)
        ]
        for work in as_completed(works):
            is_good, text = work.result()
            failed += not is_good
            print(text, flush=True)
    print(f"{len(works) - failed} of {len(works)} seeds good: {arguments.hosts} hosts, {arguments.days} days each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
