"""A host gives its address back to dnsmasq or Kea on the router, and its mappings end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from homing.config_file import to_toml
from tests.support.gateways import ask_control
from tests.support.namespaces import LAN_HOST, LAN_LINK, WAN_LINK, Network, made, must_have
from tests.support.processes import HOMING, start

SECONDS = 20.0
LEASED = "192.168.78.50"
PROGRAMS = "/usr/sbin:/usr/bin:/usr/local/sbin:/sbin:/bin"
ON_LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace "$ip/24" dev "$interface"
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with made(f"hd{os.getpid() % 100000}") as network:
        yield network


def program(name: str) -> str:
    found = shutil.which(name, path=PROGRAMS)
    must_have(found is not None, f"{name} is not installed")
    assert found is not None
    return found


@contextlib.contextmanager
def running(*command: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the namespace of the caller."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(SECONDS)


ROUTER_FILES = Path(__file__).parents[2] / "docs" / "router"


def hook_environment(directory: Path) -> dict[str, str]:
    """For the hooks of docs/router: a program `homing` on the path, and where its gateway is."""
    command = directory / "homing"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROUTER_FILES.parents[1]} exec {" ".join(HOMING)} "$@"\n')
    command.chmod(0o755)
    return {"PATH": f"{directory}:{PROGRAMS}", "HOMING_GATEWAY_SOCKET": str(directory / "control")}


@contextlib.contextmanager
def dnsmasq(directory: Path, *, hook: bool) -> Iterator[Path]:
    leases = directory / "dnsmasq.leases"
    command = [
        program("dnsmasq"),
        "--no-daemon",
        "--conf-file=/dev/null",
        "--port=0",
        f"--interface={LAN_LINK}",
        "--bind-interfaces",
        "--user=root",
        f"--dhcp-range={LEASED},{LEASED},2m",
        f"--dhcp-leasefile={leases}",
        f"--pid-file={directory / 'dnsmasq.pid'}",
        *([f"--dhcp-script={ROUTER_FILES / 'dnsmasq-host-gone'}"] if hook else []),
    ]
    with running(*command, log=directory / "dnsmasq.log", environment=hook_environment(directory)):
        yield leases


@contextlib.contextmanager
def kea(directory: Path, *, hook: bool) -> Iterator[Path]:
    leases = directory / "kea-leases4.csv"
    config = directory / "kea.json"
    libraries = []
    if hook:
        # Kea hands its own environment on to no script.
        environment = "".join(f"export {name}={value}\n" for name, value in hook_environment(directory).items())
        script = directory / "kea-host-gone"
        script.write_text(f'#!/bin/sh\n{environment}exec {ROUTER_FILES / "kea-host-gone"} "$@"\n')
        script.chmod(0o755)
        library = next(Path("/usr/lib").glob("**/libdhcp_run_script.so"))
        libraries = [{"library": str(library), "parameters": {"name": str(script), "sync": False}}]
    config.write_text(
        json.dumps(
            {
                "Dhcp4": {
                    "interfaces-config": {"interfaces": [LAN_LINK]},
                    "lease-database": {"type": "memfile", "persist": True, "name": str(leases), "lfc-interval": 0},
                    "valid-lifetime": 120,
                    "hooks-libraries": libraries,
                    "subnet4": [{"subnet": "192.168.78.0/24", "pools": [{"pool": f"{LEASED} - {LEASED}"}]}],
                }
            }
        )
    )
    where = {"KEA_PIDFILE_DIR": str(directory), "KEA_LOCKFILE_DIR": "none", "KEA_LOGGER_DESTINATION": "stderr"}
    with running(program("kea-dhcp4"), "-c", str(config), log=directory / "kea.log", environment=where):
        yield leases


@contextlib.contextmanager
def host(network: Network, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A DHCP client on the LAN, from its lease on. It gives the lease back when it is told to end."""
    script = directory / "on-lease"
    script.write_text(ON_LEASE)
    script.chmod(0o755)
    client = [program("busybox"), "udhcpc", "-f", "-R", "-i", "eth0", "-t", "20", "-T", "1", "-s", str(script)]
    with running("ip", "netns", "exec", network.lan, *client, log=directory / "client.log") as process:
        until(lambda: LEASED in addresses(network))
        yield process


def addresses(network: Network) -> str:
    return subprocess.run(
        ["ip", "-n", network.lan, "-4", "address", "show", "dev", "eth0"], capture_output=True, text=True, check=True
    ).stdout


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.rfc("6281", "4.2")
@pytest.mark.rfc("6887", "15")
@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("server", [dnsmasq, kea])
def test_a_released_lease_ends_the_mappings_of_its_host(
    network: Network, tmp_path: Path, server: Callable[..., contextlib.AbstractContextManager[Path]], hook: bool
) -> None:
    """By the lease file, or by the hook that docs/router has for it."""

    def mapped() -> list[str]:
        return [row["internal"] for row in ask_control(tmp_path / "control", do="list")["mappings"]]

    with server(tmp_path, hook=hook) as leases, host(network, tmp_path) as client:
        config = tmp_path / "gateway.toml"
        tables: dict[str, Any] = {
            "backend": "nftables",
            "nftables": {"wan_interface": WAN_LINK},
            "lan": {"interfaces": [LAN_LINK]},
            "state": {"file": "state.sqlite"},
            "control": {"socket": "control"},
        }
        if not hook:
            tables["dhcp"] = {"server": server.__name__, "lease_file": str(leases)}
        config.write_text(to_toml(tables))
        with start("gateway", config) as gateway:
            if not hook:
                time.sleep(3)  # the leases are read by then
            for address in (LEASED, LAN_HOST):  # the other one has its address from nobody
                with network.udp(network.lan, address) as sock:
                    sock.sendto(bytes.fromhex("0001000011940000 00000e10"), ("192.168.78.1", 5351))
            until(lambda: sorted(mapped()) == [f"{LAN_HOST}:4500", f"{LEASED}:4500"])
            client.send_signal(signal.SIGTERM)
            client.wait(SECONDS)
            until(lambda: mapped() == [f"{LAN_HOST}:4500"])
            if not hook:
                assert f"mappings ended with a DHCP lease  host={LEASED}" in gateway.log
