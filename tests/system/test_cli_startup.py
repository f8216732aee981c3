"""What every command loads: hooks of DHCP servers run one for each lease, on routers that are slow."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("sqlalchemy", "alembic", "aiosqlite", "uvloop", "prometheus_client")


def test_commands_load_no_database() -> None:
    script = f"import sys, homing.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
