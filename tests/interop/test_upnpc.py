"""upnpc (miniupnpc), which we did not write, against the UPnP device in network namespaces: lan - router - wan."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import LAN_HOST, LAN_OTHER, LAN_ROUTER, Network, connect, hear, made, must_have
from tests.support.router import PUBLIC, PUBLIC_PEER, gateway, give_public_address, run

ROOT = f"http://{LAN_ROUTER}:2869/rootDesc.xml"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    must_have(shutil.which("upnpc") is not None, "upnpc is not installed")
    with made(f"hu{os.getpid() % 100000}") as network:
        give_public_address(network)
        yield network


def upnpc(network: Network, *arguments: str, check: bool = True) -> str:
    """Asked at its URL, so that it does not wait for two seconds to find the device each time."""
    return run(network, network.lan, "upnpc", "-u", ROOT, *arguments, check=check)


def listed(text: str) -> list[tuple[str, ...]]:
    return re.findall(r"^ *\d+ (TCP|UDP) +(\d+)->([0-9.]+):(\d+) +'(.*?)' '' (\d+)$", text, re.MULTILINE)


async def test_a_life_with_version_1(network: Network, tmp_path: Path) -> None:
    with gateway(network, tmp_path):
        found = run(network, network.lan, "upnpc", "-s")
        assert f"Found valid IGD : http://{LAN_ROUTER}:2869/control/WANIPConn1" in found
        assert f"ExternalIPAddress = {PUBLIC}" in found
        made = upnpc(network, "-e", "my game", "-a", LAN_HOST, "4500", "4500", "UDP", "3600")
        assert f"external {PUBLIC}:4500 UDP is redirected to internal {LAN_HOST}:4500 (duration=3600)" in made
        upnpc(network, "-a", LAN_HOST, "8080", "8080", "TCP")
        with network.udp(network.lan, LAN_HOST, 4500) as inside, network.udp(network.wan, PUBLIC_PEER) as outside:
            outside.sendto(b"in", (PUBLIC, 4500))
            assert await hear(inside) == (b"in", outside.getsockname())
            inside.sendto(b"out", outside.getsockname())
            assert await hear(outside) == (b"out", (PUBLIC, 4500))
        with network.listener(network.lan, LAN_HOST, 8080), network.tcp(network.wan, PUBLIC_PEER) as stream:
            await connect(stream, (PUBLIC, 8080))
        rows = listed(upnpc(network, "-l"))
        assert [row[:4] for row in rows] == [
            ("UDP", "4500", LAN_HOST, "4500"),
            ("TCP", "8080", LAN_HOST, "8080"),
        ]
        assert int(rows[1][5]) > 604700
        refused = upnpc(network, "-a", LAN_OTHER, "81", "8082", "UDP", check=False)
        assert "failed with code 718" in refused
        upnpc(network, "-d", "8080", "TCP")
        assert "failed with code : 714" in upnpc(network, "-d", "8080", "TCP", check=False)
        with network.tcp(network.wan, PUBLIC_PEER) as stream, pytest.raises(ConnectionRefusedError):
            await connect(stream, (PUBLIC, 8080))
    with gateway(network, tmp_path):
        # A restart keeps what UPnP made, its text included.
        (row,) = listed(upnpc(network, "-l"))
        assert row[:4] == ("UDP", "4500", LAN_HOST, "4500")
        assert "game" in row[4]


async def test_version_2(network: Network, tmp_path: Path) -> None:
    with gateway(network, tmp_path, "[igd]\nenabled = true\nversion = 2\n"):
        assert "Found valid IGD" in run(network, network.lan, "upnpc", "-s")
        for port in ("8080", "8090"):
            upnpc(network, "-a", LAN_HOST, port, port, "TCP", "3600")
        (given,) = re.findall(rf"external {PUBLIC}:(\d+) TCP is", upnpc(network, "-n", LAN_HOST, "80", "8080", "TCP"))
        assert given not in ("8080", "8090")
        assert {row[1] for row in listed(upnpc(network, "-L"))} == {"8080", "8090", given}
        upnpc(network, "-N", "8090", "8090", "TCP")
        assert {row[1] for row in listed(upnpc(network, "-L"))} == {"8080", given}
        assert "failed with code 606" in upnpc(network, "-a", LAN_OTHER, "81", "8082", "UDP", check=False)


def test_the_outside_finds_nothing(network: Network, tmp_path: Path) -> None:
    with gateway(network, tmp_path):
        assert "No IGD UPnP Device found" in run(network, network.wan, "upnpc", "-s", check=False)
        for address in (PUBLIC, LAN_ROUTER):
            with network.at(network.wan), socket.socket() as sock:
                sock.settimeout(2)
                with pytest.raises(OSError):
                    sock.connect((address, 2869))


def test_off_it_is_silent(network: Network, tmp_path: Path) -> None:
    with gateway(network, tmp_path, "[igd]\nenabled = false\n"):
        assert "No IGD UPnP Device found" in run(network, network.lan, "upnpc", "-s", check=False)
        assert "1900" not in run(network, network.router, "ss", "-lun")
        assert "2869" not in run(network, network.router, "ss", "-ltn")
