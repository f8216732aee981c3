"""`python -m tests.fuzz.run TARGET --runs N --seconds S`: atheris on one target, its count at the end.

Atheris is no dependency of the project: `make fuzz` fetches it. The corpus grows in a directory of its own, which may
be given again; inputs that broke something are left there as `crash-*`.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import atheris
import structlog

with atheris.instrument_imports(include=["protocol", "server"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS

from tests.fuzz.seeds import seeds


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz one target.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--runs", type=int, default=-1, help="inputs; -1: no end")
    parser.add_argument("--seconds", type=int, default=0, help="0: no end")
    parser.add_argument("--corpus", type=Path, help="where inputs are kept that lead to new code")
    parser.add_argument("--longest", type=int, default=700, help="octets of an input")
    given = parser.parse_args()
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix=f"fuzz-{given.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(given.target)):
        (corpus / f"seed-{number:04}").write_bytes(seed)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    options = [
        f"-runs={given.runs}",
        f"-max_total_time={given.seconds}",
        f"-max_len={given.longest}",
        f"-artifact_prefix={corpus}/",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], TARGETS[given.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
