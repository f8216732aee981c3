"""`homing gateway` as its own process on the router between lan and wan, with programs of others around it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.namespaces import LAN_LINK, WAN_LINK, Network, ip

PUBLIC, PUBLIC_PEER = "44.44.44.1", "44.44.44.2"
"""Addresses that programs take for public ones, which they do not with those for documentation; they stay inside."""
WAIT = 20


def give_public_address(network: Network) -> None:
    """The router and its peer outside get addresses of the public kind."""
    ip("-n", network.router, "address", "add", f"{PUBLIC}/24", "dev", WAN_LINK)
    ip("-n", network.wan, "address", "add", f"{PUBLIC_PEER}/24", "dev", "eth0")


@contextlib.contextmanager
def gateway(
    network: Network, directory: Path, more: str = "", *, nftables: str = "", address: str | None = PUBLIC
) -> Iterator[Path]:
    """Run the gateway with the kernel's back end and UPnP; gives its log. `more` is TOML, `nftables` of its table.

    With no `address` it follows the outer interface's.
    """
    external = "" if address is None else f'[external]\naddress = "{address}"\n'
    config, log = directory / "gateway.toml", directory / "gateway.log"
    if "[igd]" not in more:
        more += "\n[igd]\nenabled = true\n"
    config.write_text(
        f'backend = "nftables"\n[nftables]\nwan_interface = "{WAN_LINK}"\n{nftables}'
        f'[lan]\ninterfaces = ["{LAN_LINK}"]\n'
        f'{external}[state]\nfile = "{directory}/gateway.sqlite"\n{more}'
    )
    command = [sys.executable, "-m", "homing", "gateway", "--config", str(config)]
    with log.open("a") as stderr:
        process = subprocess.Popen(
            ["ip", "netns", "exec", network.router, *command], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", log.read_text()
        # `ip netns exec` becomes the program, so this is its number.
        (directory / "gateway.pid").write_text(str(process.pid))
        yield log
    finally:
        process.terminate()
        code = process.wait(WAIT)
        if process.stdout is not None:
            process.stdout.close()
        assert code == 0, log.read_text()


def run(network: Network, where: str, *command: str, check: bool = True, seconds: float = WAIT) -> str:
    """Output of a program in one of the namespaces, both streams."""
    done = subprocess.run(
        ["ip", "netns", "exec", where, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def mappings(log: Path) -> list[str]:
    """The lines of the gateway's log about mappings, times left out."""
    return [line.split("info", 1)[1].strip() for line in log.read_text().splitlines() if " mapping " in line]
