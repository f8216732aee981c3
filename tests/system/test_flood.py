"""A short and slow flood of every kind at a real server: honest clients are answered, memory and log are bounded.

The real one is `make flood`; here patience is long, for the machine may be busy with other things.
"""

import json
import subprocess
import sys


def test_a_mixed_flood() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.flood", "--seconds", "10", "--scale", "0.05", "--patience", "15", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["problems"] == []
    assert all(facts["sent"] >= 5 for facts in result["honest"].values())
    assert result["limited"]["answers dropped"] > 0 and result["limited"]["answers cut short"] > 0
