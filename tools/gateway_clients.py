"""Other people's programs as clients of `homing gateway`, unmodified, in network namespaces: what they map and renew.

Lifetimes are short, so that renewals come while we watch. As root, after tools/gateway_clients.sh:
python -m tools.gateway_clients > docs/gateway-clients.md
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.gateways import ask_control
from tests.support.namespaces import LAN_HOST, LAN_ROUTER, Network, made
from tests.support.router import gateway, give_public_address, mappings

PATIENCE: Final = 40.0
RENEWAL_SECONDS: Final = 90.0
NPM: Final = Path(sys.prefix) / "npm"
LIBTORRENT: Final = f"""
import signal, sys, libtorrent
protocol = sys.argv[1]
session = libtorrent.session({{
    "listen_interfaces": "{LAN_HOST}:6881", "enable_upnp": protocol == "upnp", "enable_natpmp": protocol == "natpmp",
    "enable_dht": False, "enable_lsd": False, "upnp_lease_duration": 20,
}})
signal.sigwait({{signal.SIGINT}})
session.apply_settings({{"enable_upnp": False, "enable_natpmp": False}})
del session
"""
NAT_PMP: Final = f"""
const client = require("nat-pmp").connect("{LAN_ROUTER}");
const ask = (method, options) => new Promise((resolve, reject) =>
    client[method](...(options ? [options] : []), (error, info) => error ? reject(error) : resolve(info)));
(async () => {{
    console.log((await ask("externalIp")).ip.join("."));
    console.log((await ask("portMapping", {{ private: 7000, public: 7000, ttl: 600 }})).public);
    await ask("portUnmapping", {{ private: 7000, public: 7000 }});
    client.close();
}})();
"""
NATPMPC: Final = f"natpmpc -g {LAN_ROUTER} -a 7001 7001 udp 600 && natpmpc -g {LAN_ROUTER} -a 7001 7001 udp 0"
UPNPC: Final = f"upnpc -a {LAN_HOST} 7002 7002 TCP 600 && upnpc -d 7002 TCP"
MAGNET: Final = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567"
ALONE: Final = {
    "globalAnnounceEnabled": "false",
    "localAnnounceEnabled": "false",
    "relaysEnabled": "false",
    "crashReportingEnabled": "false",
    "urAccepted": "-1",
    "autoUpgradeIntervalH": "0",
    "stunKeepaliveStartS": "0",
    "startBrowser": "false",
    "listenAddress": "tcp://:22000",
    "natLeaseMinutes": "2",
    "natRenewalMinutes": "1",
}
"""Options of Syncthing: it talks to nobody but the gateway, and renews each minute."""


@dataclass(frozen=True)
class Program:
    """One program and how to run it; it ends by itself, or by SIGINT when it has mapped and renewed."""

    name: str
    package: str
    command: tuple[str, ...]
    ends: bool = False
    igd: bool = True
    natpmp: bool = True
    """Whether requests by NAT-PMP and PCP come through; if not, they get lost on their way."""
    lifetime: int = 20
    """What the gateway grants, in seconds."""
    prepare: Callable[[Path], None] = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """What the gateway saw."""

    protocols: str
    created: int
    renewed: int
    deleted: int
    left: int
    """Mappings a moment after the program ended."""
    log: list[str]
    words: str


def prepare_syncthing(directory: Path) -> None:
    """Keys and a configuration of its own."""
    subprocess.run(
        ["syncthing", "generate", "--no-default-folder", f"--home={directory}/syncthing"],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    path = directory / "syncthing/config.xml"
    text = path.read_text()
    for name, value in ALONE.items():
        text, count = re.subn(f"<{name}>[^<]*</{name}>", f"<{name}>{value}</{name}>", text)
        if not count:
            raise RuntimeError(f"this Syncthing has no option {name}")
    path.write_text(text)


SYNCTHING: Final = (
    "syncthing",
    "serve",
    "--no-browser",
    "--no-restart",
    "--home=syncthing",
    "--gui-address=127.0.0.1:0",
)
TRANSMISSION: Final = ("transmission-cli", "-m", "-p", "51413", "-g", "config", "-w", ".", MAGNET)
PROGRAMS: Final = (
    Program("libtorrent, its NAT-PMP client", "libtorrent", (sys.executable, "-c", LIBTORRENT, "natpmp"), igd=False),
    Program("libtorrent, its UPnP client", "libtorrent", (sys.executable, "-c", LIBTORRENT, "upnp")),
    Program("Transmission", "transmission-cli", TRANSMISSION),
    Program("Transmission, no UPnP there", "transmission-cli", TRANSMISSION, igd=False, lifetime=600),
    Program("Syncthing", "syncthing", SYNCTHING, lifetime=120, prepare=prepare_syncthing),
    Program(
        "Syncthing, only UPnP there", "syncthing", SYNCTHING, natpmp=False, lifetime=120, prepare=prepare_syncthing
    ),
    Program("npm nat-pmp", "nat-pmp", ("env", f"NODE_PATH={NPM}/node_modules", "node", "-e", NAT_PMP), ends=True),
    Program("natpmpc", "natpmpc", ("sh", "-c", NATPMPC), ends=True),
    Program("upnpc", "miniupnpc", ("sh", "-c", UPNPC), ends=True),
)


def attempt(network: Network, program: Program) -> Outcome:
    """Run a program with a fresh gateway."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        program.prepare(directory)
        socket = directory / "control"
        more = (
            f"[limits]\nshortest_lifetime_seconds = {program.lifetime}\nlongest_lifetime_seconds = {program.lifetime}\n"
            f'[control]\nsocket = "{socket}"\n[igd]\nenabled = {"true" if program.igd else "false"}\n'
        )

        def changes() -> dict[str, int]:
            found: dict[str, int] = ask_control(socket, do="status")["status"]["changes"]
            return found

        with (
            gateway(network, directory, more) as log,
            contextlib.nullcontext() if program.natpmp else requests_lost(network),
            (directory / "output").open("w+") as output,
        ):
            process = subprocess.Popen(
                ["ip", "netns", "exec", network.lan, *program.command], stdout=output, stderr=output, cwd=scratch
            )
            if not program.ends:
                wait_for(lambda: changes().get("created", 0), PATIENCE)
                time.sleep(2)  # it may map more than one port
                wait_for(lambda: changes().get("renewed", 0) >= changes().get("created", 0) > 0, RENEWAL_SECONDS)
                before = changes()
                process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            time.sleep(1)
            after = changes()
            left = len(ask_control(socket, do="list")["mappings"])
            lines = mappings(log)
            output.seek(0)
            words = output.read()
        protocols = sorted({origin for line in lines for origin in re.findall(r"origin=(\w+)", line)})
        return Outcome(
            ", ".join(protocols),
            after.get("created", 0),
            (after if program.ends else before).get("renewed", 0),
            after.get("deleted", 0),
            left,
            lines,
            words,
        )


@contextlib.contextmanager
def requests_lost(network: Network) -> Iterator[None]:
    """Drop what is sent to the port of NAT-PMP and PCP."""
    network.nft(
        "add table inet lost; add chain inet lost input { type filter hook input priority 0; }; "
        "add rule inet lost input udp dport 5351 drop"
    )
    try:
        yield
    finally:
        network.nft("delete table inet lost")


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


def version(package: str) -> str:
    """Of a Debian package, a wheel or an npm package."""
    if package == "nat-pmp":
        return str(json.loads((NPM / "node_modules/nat-pmp/package.json").read_text())["version"])
    if package == "libtorrent":
        return importlib.metadata.version(package)
    command = ["dpkg-query", "-W", "-f=${Version}", package]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def row(program: Program, outcome: Outcome) -> str:
    """A line of the table."""
    if program.ends:
        renewed = "runs once"
    elif outcome.renewed:
        renewed = f"✓ {outcome.renewed}"
    else:
        renewed = f"not in {RENEWAL_SECONDS:.0f} s"
    ended = f"✗ {outcome.left} left" if outcome.left else ("✓" if outcome.deleted else "lapsed before")
    mapped = f"✓ {outcome.created}" if outcome.created else "✗"
    cells = (f"{program.name} {version(program.package)}", outcome.protocols or "-", mapped, renewed, ended)
    return f"| {' | '.join(cells)} |"


HEAD: Final = """# Programs that map through the gateway

Made by `make gateway-clients`: each program unmodified, on the LAN of a `homing gateway` of its own, with nftables, in
network namespaces without a way to anywhere else. NAT-PMP and PCP grant 20 s; to Syncthing 120 s, for it renews each
minute whatever it was granted; to Transmission by NAT-PMP 600 s, for it looks after mappings every 20 minutes, so that
shorter ones lapse. Renewals are what the gateway counted until the program was ended by SIGINT.

| program | spoke | mapped | renewed | unmapped at its end |
|---|---|---|---|---|"""
FOOT: Final = """
By UPnP, Transmission asks for a mapping without an end, for which there is nothing to renew. natpmpc, upnpc and npm's
nat-pmp ask once; renewing is left to who calls them. aria2 is not here, for it maps no ports:
it has no client of any of the three protocols (neither an option nor a library, `apt-cache depends libaria2-0`). Its
`--listen-port` can be kept mapped by `homing map`.
"""


def main() -> None:
    names = sys.argv[1:]
    print(HEAD, flush=True)
    is_fine = True
    with made("hk") as network:
        give_public_address(network)
        for program in PROGRAMS:
            if names and not any(name in program.name for name in names):
                continue
            outcome = attempt(network, program)
            print(row(program, outcome), flush=True)
            for line in outcome.log or outcome.words.splitlines()[-12:]:
                print(f"{program.name}: {line}", file=sys.stderr)
            is_fine &= outcome.created > 0
    print(FOOT, end="")
    sys.exit(0 if is_fine else 1)


if __name__ == "__main__":
    main()
