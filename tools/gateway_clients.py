"""Other people's programs as clients of `homing gateway`, unmodified, in network namespaces: what each maps and unmaps.

As root, after tools/gateway_clients.sh: python -m tools.gateway_clients
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.namespaces import Network, made
from tests.support.router import gateway, give_public_address, mappings

PATIENCE = 40.0
NPM = Path(sys.prefix) / "npm"
LIBTORRENT = """
import sys, time, libtorrent
session = libtorrent.session({
    "listen_interfaces": "192.168.78.2:6881", "enable_upnp": sys.argv[1] == "upnp",
    "enable_natpmp": sys.argv[1] == "natpmp", "enable_dht": False, "enable_lsd": False,
    "alert_mask": libtorrent.alert.category_t.all_categories,
})
end = time.time() + 30
done = set()
while time.time() < end and len(done) < 2:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if type(alert).__name__ in ("portmap_alert", "portmap_error_alert", "portmap_log_alert"):
            print(alert, flush=True)
        if type(alert).__name__ == "portmap_alert":
            done.add(str(alert))
time.sleep(1)
session.apply_settings({"enable_upnp": False, "enable_natpmp": False})
time.sleep(3)
"""
NAT_PMP = """
const client = require("nat-pmp").connect("192.168.78.1");
const ask = (method, options) => new Promise((resolve, reject) =>
    client[method](...(options ? [options] : []), (error, info) => error ? reject(error) : resolve(info)));
(async () => {
    console.log((await ask("externalIp")).ip.join("."));
    console.log((await ask("portMapping", { private: 7000, public: 7000, ttl: 600 })).public);
    await ask("portUnmapping", { private: 7000, public: 7000 });
    client.close();
})();
"""


def until_mapped(log: Path, count: int) -> None:
    """Wait until this many mappings have been made."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and sum("created" in line for line in mappings(log)) < count:
        time.sleep(0.2)


def attempt(network: Network, name: str, command: Sequence[str], *, until: int = 0) -> bool:
    """Run a program with a fresh gateway; with `until`, end it by SIGINT when it has mapped so many ports."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with gateway(network, directory) as log, (directory / "output").open("w+") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", network.lan, *command], stdout=output, stderr=output, cwd=scratch
            )
            if until:
                until_mapped(log, until)
                time.sleep(1)
                process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            time.sleep(1)
            lines = mappings(log)
            output.seek(0)
            words = output.read()
    made_count = sum("created" in line for line in lines)
    ended = sum("deleted" in line for line in lines)
    print(f"{name}: {made_count} mapped, {ended} unmapped")
    for line in lines or words.splitlines()[-12:]:
        print(f"    {line}")
    return made_count > 0


def main() -> None:
    node = shutil.which("node") or "node"
    with made("hk") as network:
        give_public_address(network)
        fine = [
            attempt(network, "libtorrent, NAT-PMP or PCP", [sys.executable, "-c", LIBTORRENT, "natpmp"]),
            attempt(network, "libtorrent, UPnP", [sys.executable, "-c", LIBTORRENT, "upnp"]),
            attempt(
                network,
                "Transmission",
                ["transmission-cli", "-m", "-p", "51413", "-g", "config", "-w", ".", MAGNET],
                until=2,
            ),
            attempt(network, "npm nat-pmp", ["env", f"NODE_PATH={NPM}/node_modules", node, "-e", NAT_PMP]),
        ]
    sys.exit(0 if all(fine) else 1)


MAGNET = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567"

if __name__ == "__main__":
    main()
