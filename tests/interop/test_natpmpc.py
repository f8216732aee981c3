"""natpmpc, which we did not write, against the gateway in network namespaces: lan - router - wan."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

LAN_HOST, LAN_ROUTER = "192.168.77.2", "192.168.77.1"
WAN_ROUTER, WAN_HOST = "198.51.100.1", "198.51.100.2"
WAIT = 10

ROUTER = """
import asyncio, signal, sys, tomllib
import structlog
from gateway.app import Gateway
from gateway.config import GatewayConfig

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    gateway = Gateway(GatewayConfig.model_validate(tomllib.loads(sys.argv[1])))
    await gateway.start()
    print("ready", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await gateway.stop()

asyncio.run(main())
"""
UDP_ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("0.0.0.0", 4500))
    print("ready", flush=True)
    while True:
        datagram, peer = sock.recvfrom(65535)
        sock.sendto(datagram.upper(), peer)
"""
TCP_ECHO = """
import socket
with socket.create_server(("0.0.0.0", 8080)) as server:
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            connection.sendall(stream.read().upper())
"""
UDP_SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(float(sys.argv[4]))
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.send(bytes.fromhex(sys.argv[3]))
    try:
        print(sock.recv(65535).hex())
    except TimeoutError:
        print("silence")
    except ConnectionRefusedError:
        print("refused")
"""
TCP_SEND = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as sock, sock.makefile("rb") as stream:
        sock.sendall(bytes.fromhex(sys.argv[3]))
        sock.shutdown(socket.SHUT_WR)
        print(stream.read().hex())
except ConnectionRefusedError:
    print("refused")
"""


@dataclass(frozen=True)
class Network:
    """Three namespaces with the gateway running in the middle one."""

    lan: str
    router: str
    wan: str

    def run(self, namespace: str, *command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", namespace, *command], capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    def natpmpc(self, *arguments: str) -> str:
        return self.run(self.lan, "natpmpc", "-g", LAN_ROUTER, *arguments)

    def send(self, script: str, host: str, port: int, octets: bytes, *, seconds: float = WAIT) -> str:
        """Send from the wan side; gives the answer as text, `silence` or `refused`."""
        output = self.run(self.wan, sys.executable, "-c", script, host, str(port), octets.hex(), str(seconds)).strip()
        return output if output in ("silence", "refused") else bytes.fromhex(output).decode()


def must_have(condition: bool, reason: str) -> None:
    """Skip where the machine cannot do it; under continuous integration that is a failure."""
    if not condition:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=WAIT)


def start(stack: ExitStack, namespace: str, *command: str) -> None:
    """Run a program in a namespace until the end of the test; it says `ready` first."""
    process = stack.enter_context(
        subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, "-c", *command],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    )
    stack.callback(process.terminate)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    must_have(shutil.which("natpmpc") is not None, "natpmpc is not installed")
    must_have(shutil.which("ip") is not None, "iproute2 is not installed")
    must_have(os.geteuid() == 0, "network namespaces need root")
    mark = f"hm{os.getpid() % 100000}"
    names = Network(f"{mark}l", f"{mark}r", f"{mark}w")
    with ExitStack() as stack:
        for name in (names.lan, names.router, names.wan):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        for side, host, router_address, host_address in (
            ("l", names.lan, LAN_ROUTER, LAN_HOST),
            ("w", names.wan, WAN_ROUTER, WAN_HOST),
        ):
            inner, outer = f"{mark}{side}0", f"{mark}{side}1"
            ip("link", "add", inner, "netns", names.router, "type", "veth", "peer", "name", outer, "netns", host)
            for namespace, link, address in ((names.router, inner, router_address), (host, outer, host_address)):
                ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
                ip("-n", namespace, "link", "set", link, "up")
        ip("-n", names.lan, "route", "add", "default", "via", LAN_ROUTER)
        # The wan side knows a way to the internal address: only the gateway itself can refuse then.
        ip("-n", names.wan, "route", "add", "192.168.77.0/24", "via", WAN_ROUTER)
        settings = f"""
            [natpmp]
            listen = ["{LAN_ROUTER}:5351"]
            [external]
            address = "{WAN_ROUTER}"
            [state]
            file = "{tmp_path / "state.sqlite"}"
        """
        start(stack, names.router, ROUTER, settings)
        yield names


def mapped_port(output: str) -> int:
    found = re.search(r"Mapped public port (\d+) protocol (\w+) to local port (\d+) \w+ (\d+)", output)
    assert found is not None, output
    assert found[4] == "3600"
    return int(found[1])


def test_natpmpc_maps_and_bytes_travel(network: Network) -> None:
    with ExitStack() as stack:
        start(stack, network.lan, UDP_ECHO)
        start(stack, network.lan, TCP_ECHO)
        output = network.natpmpc("-a", "0", "4500", "udp", "3600")
        assert f"Public IP address : {WAN_ROUTER}" in output
        udp_port = mapped_port(output)
        assert network.send(UDP_SEND, WAN_ROUTER, udp_port, b"over udp") == "OVER UDP"
        tcp_port = mapped_port(network.natpmpc("-a", "0", "8080", "tcp", "3600"))
        assert network.send(TCP_SEND, WAN_ROUTER, tcp_port, b"over tcp") == "OVER TCP"
        assert mapped_port(network.natpmpc("-a", "9999", "4500", "udp", "3600")) == udp_port
        network.natpmpc("-a", "0", "4500", "udp", "0")
        assert network.send(UDP_SEND, WAN_ROUTER, udp_port, b"gone") == "refused"
        assert network.send(TCP_SEND, WAN_ROUTER, tcp_port, b"still") == "STILL"
        network.natpmpc("-a", "0", "8080", "tcp", "0")
        assert network.send(TCP_SEND, WAN_ROUTER, tcp_port, b"gone") == "refused"


def test_a_suggested_port_is_given(network: Network) -> None:
    assert mapped_port(network.natpmpc("-a", "4500", "4500", "udp", "3600")) == 4500


@pytest.mark.rfc("6886", "3")
def test_the_external_side_is_not_answered(network: Network) -> None:
    assert network.send(UDP_SEND, WAN_ROUTER, 5351, b"\0\0", seconds=1) == "refused"
    # Linux hands over packets for the internal address that come in on the external interface: dropped by us.
    assert network.send(UDP_SEND, LAN_ROUTER, 5351, b"\0\0", seconds=1) == "silence"
    assert "Public IP address" in network.natpmpc()


@pytest.mark.rfc("6886", "3.2.1")
def test_announcements_leave_on_the_lan_only(network: Network) -> None:
    script = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("224.0.0.1", 5350))
    member = socket.inet_aton("224.0.0.1") + socket.inet_aton(sys.argv[1])
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    sock.settimeout(float(sys.argv[2]))
    try:
        datagram, peer = sock.recvfrom(100)
        print(datagram.hex(), *peer)
    except TimeoutError:
        print("silence")
"""
    heard = network.run(network.lan, sys.executable, "-c", script, LAN_HOST, str(WAIT)).split()
    assert heard[0][:8] == "00800000"
    assert heard[0][16:] == socket.inet_aton(WAN_ROUTER).hex()
    assert heard[1:] == [LAN_ROUTER, "5351"]
    assert network.run(network.wan, sys.executable, "-c", script, WAN_HOST, "2").strip() == "silence"
