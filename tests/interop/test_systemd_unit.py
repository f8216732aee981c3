"""The unit file of docs/router: as systemd reads it, and whether what it leaves to the gateway is enough."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from homing.config_file import to_toml
from tests.support.gateways import ask_control
from tests.support.namespaces import LAN_HOST, LAN_LINK, LAN_ROUTER, WAN_LINK, Network, made, must_have
from tests.support.processes import HOMING

UNIT = Path(__file__).parents[2] / "docs" / "router" / "homing-gateway.service"
SECONDS = 20.0


@pytest.fixture
def network() -> Iterator[Network]:
    with made(f"hu{os.getpid() % 100000}") as network:
        yield network


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    must_have(shutil.which("systemd-analyze") is not None, "systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # A program at that path is not there on every machine.
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/homing", "/bin/true"))
    done = systemd_analyze("verify", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_little_is_left_to_an_intruder() -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=20", str(UNIT))
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_capabilities_are_enough(network: Network, tmp_path: Path) -> None:
    """A process with those capabilities alone maps, gives the owner a low port, and tells systemd of its state."""
    setpriv = shutil.which("setpriv")
    must_have(setpriv is not None, "setpriv is not installed")
    assert setpriv is not None
    found = re.search(r"^AmbientCapabilities=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    capabilities = "-all" + "".join(f",+{name.removeprefix('CAP_').lower()}" for name in found[1].split())
    config = tmp_path / "gateway.toml"
    config.write_text(
        to_toml(
            {
                "backend": "nftables",
                "nftables": {"wan_interface": WAN_LINK},
                "lan": {"interfaces": [LAN_LINK]},
                "state": {"file": "state.sqlite"},
                "control": {"socket": "control"},
            }
        )
    )
    limits = ["--no-new-privs", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (tmp_path / "log").open("wb") as log:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(SECONDS)
        environment = {**os.environ, "PYTHONPATH": str(UNIT.parents[2]), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen(
            [setpriv, *limits, "--", *HOMING, "gateway", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )
        try:
            assert manager.recv(100) == b"READY=1", (tmp_path / "log").read_text()
            effective = re.search(r"^CapEff:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            assert effective is not None
            assert int(effective[1], 16) == (1 << 12 | 1 << 10)
            with network.udp(network.lan, LAN_HOST) as client:
                client.setblocking(True)
                client.settimeout(SECONDS)
                client.sendto(bytes.fromhex("0001000011940000 00000e10"), (LAN_ROUTER, 5351))
                assert client.recv(100)[:4] == b"\0\x81\0\0"
            ask_control(tmp_path / "control", do="add", transport="tcp", external_port=80, internal=f"{LAN_HOST}:80")
            process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            process.wait()
