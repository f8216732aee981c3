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
from pathlib import Path

import pytest

from homing.config_file import to_toml
from tests.support.namespaces import LAN_HOST, LAN_ROUTER, WAN_HOST, WAN_ROUTER, Network, made, must_have
from tests.support.processes import start

WAIT = 10

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


class Router:
    """Our gateway between the namespaces, and programs run in them."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def run(self, namespace: str, *command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", namespace, *command], capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout + done.stderr

    def natpmpc(self, *arguments: str) -> str:
        return self.run(self.network.lan, "natpmpc", "-g", LAN_ROUTER, *arguments)

    def send(self, script: str, host: str, port: int, octets: bytes, *, seconds: float = WAIT) -> str:
        """Send from the wan side; gives the answer as text, `silence` or `refused`."""
        command = (sys.executable, "-c", script, host, str(port), octets.hex(), str(seconds))
        output = self.run(self.network.wan, *command).strip()
        return output if output in ("silence", "refused") else bytes.fromhex(output).decode()

    def echo(self, stack: ExitStack, script: str) -> None:
        """Run a server on the LAN host until the end of the test; it says `ready` first."""
        process = stack.enter_context(
            subprocess.Popen(
                ["ip", "netns", "exec", self.network.lan, sys.executable, "-c", script],
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    must_have(shutil.which("natpmpc") is not None, "natpmpc is not installed")
    config = tmp_path / "gateway.toml"
    tables = {
        "natpmp": {"listen": [f"{LAN_ROUTER}:5351"]},
        "external": {"address": WAN_ROUTER},
        "state": {"file": "state.sqlite"},
    }
    config.write_text(to_toml(tables))
    with made(f"hm{os.getpid() % 100000}") as network, start("gateway", config):
        yield Router(network)


def mapped_port(output: str) -> int:
    found = re.search(r"Mapped public port (\d+) protocol (\w+) to local port (\d+) \w+ (\d+)", output)
    assert found is not None, output
    assert found[4] == "3600"
    return int(found[1])


def test_natpmpc_maps_and_bytes_travel(router: Router) -> None:
    with ExitStack() as stack:
        router.echo(stack, UDP_ECHO)
        router.echo(stack, TCP_ECHO)
        output = router.natpmpc("-a", "0", "4500", "udp", "3600")
        assert f"Public IP address : {WAN_ROUTER}" in output
        udp_port = mapped_port(output)
        assert router.send(UDP_SEND, WAN_ROUTER, udp_port, b"over udp") == "OVER UDP"
        tcp_port = mapped_port(router.natpmpc("-a", "0", "8080", "tcp", "3600"))
        assert router.send(TCP_SEND, WAN_ROUTER, tcp_port, b"over tcp") == "OVER TCP"
        assert mapped_port(router.natpmpc("-a", "9999", "4500", "udp", "3600")) == udp_port
        router.natpmpc("-a", "0", "4500", "udp", "0")
        assert router.send(UDP_SEND, WAN_ROUTER, udp_port, b"gone") == "refused"
        assert router.send(TCP_SEND, WAN_ROUTER, tcp_port, b"still") == "STILL"
        router.natpmpc("-a", "0", "8080", "tcp", "0")
        assert router.send(TCP_SEND, WAN_ROUTER, tcp_port, b"gone") == "refused"


def test_a_suggested_port_is_given(router: Router) -> None:
    assert mapped_port(router.natpmpc("-a", "4500", "4500", "udp", "3600")) == 4500


@pytest.mark.rfc("6886", "3")
def test_the_external_side_is_not_answered(router: Router) -> None:
    assert router.send(UDP_SEND, WAN_ROUTER, 5351, b"\0\0", seconds=1) == "refused"
    # Linux hands over packets for the internal address that come in on the external interface: dropped by us.
    assert router.send(UDP_SEND, LAN_ROUTER, 5351, b"\0\0", seconds=1) == "silence"
    assert "Public IP address" in router.natpmpc()


@pytest.mark.rfc("6886", "3.2.1")
def test_announcements_leave_on_the_lan_only(router: Router) -> None:
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
    heard = router.run(router.network.lan, sys.executable, "-c", script, LAN_HOST, str(WAIT)).split()
    assert heard[0][:8] == "00800000"
    assert heard[0][16:] == socket.inet_aton(WAN_ROUTER).hex()
    assert heard[1:] == [LAN_ROUTER, "5351"]
    assert router.run(router.network.wan, sys.executable, "-c", script, WAN_HOST, "2").strip() == "silence"
