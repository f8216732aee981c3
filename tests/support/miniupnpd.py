"""miniupnpd, the usual UPnP, NAT-PMP and PCP gateway of Linux routers, in the router's network namespace."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.namespaces import LAN_LINK, LAN_ROUTER, WAN_LINK, Network, ip, must_have

WAN_ADDRESS, WAN_PEER = "11.0.0.1", "11.0.0.2"
"""It refuses to map on addresses for documentation. These never leave the namespaces."""
CHAINS = """
table inet filter {
  chain miniupnpd {
  }
  chain prerouting_miniupnpd {
  }
  chain postrouting_miniupnpd {
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    jump prerouting_miniupnpd
  }
  chain postrouting {
    type nat hook postrouting priority 99;
    jump postrouting_miniupnpd
  }
  chain ahead {
    type filter hook forward priority 0;
    jump miniupnpd
  }
}
"""


@contextlib.contextmanager
def miniupnpd(network: Network, directory: Path, *, natpmp: bool = True) -> Iterator[None]:
    """Run it from its readiness on. Without `natpmp` it speaks neither NAT-PMP nor PCP."""
    program = shutil.which("miniupnpd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    must_have(program is not None, "miniupnpd is not installed")
    assert program is not None
    config = directory / "miniupnpd.conf"
    config.write_text(
        f"ext_ifname={WAN_LINK}\nlistening_ip={LAN_LINK}\nport=0\nenable_natpmp={'yes' if natpmp else 'no'}\n"
        "enable_upnp=yes\nsecure_mode=yes\nuuid=11111111-2222-3333-4444-555555555555\n"
        "upnp_forward_chain=miniupnpd\nupnp_nat_chain=prerouting_miniupnpd\n"
        "upnp_nat_postrouting_chain=postrouting_miniupnpd\nallow 1-65535 0.0.0.0/0 1-65535\n"
    )
    for namespace, link, address in ((network.router, WAN_LINK, WAN_ADDRESS), (network.wan, "eth0", WAN_PEER)):
        ip("-n", namespace, "address", "flush", "dev", link)
        ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
    network.nft(CHAINS)
    log = (directory / "miniupnpd.log").open("w")
    command = [program, "-d", "-f", str(config), "-P", str(directory / "miniupnpd.pid")]
    with log, subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as process:
        try:
            _wait_until_ready(network, natpmp=natpmp)
            yield
        finally:
            process.terminate()
            process.wait(10)


def _wait_until_ready(network: Network, *, natpmp: bool) -> None:
    """Until it answers what it is to speak."""
    search = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nST: upnp:rootdevice\r\n\r\n'
    question, port = (b"\0\0", 5351) if natpmp else (search, 1900)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with network.at(network.lan), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            sock.connect((LAN_ROUTER, port))
            with contextlib.suppress(OSError):
                sock.send(question)
                sock.recv(2048)
                return
            time.sleep(0.1)
    raise AssertionError("miniupnpd does not answer")
