"""`homing map` and `homing natcheck` on a LAN host, against our gateway and against miniupnpd, in namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homing.config_file import to_toml
from tests.support.miniupnpd import WAN_ADDRESS, WAN_PEER, miniupnpd
from tests.support.namespaces import LAN_HOST, LAN_LINK, LAN_ROUTER, WAN_HOST, WAN_LINK, WAN_ROUTER, Network, ip, made
from tests.support.processes import HOMING, Running, start

SECONDS = 20.0


@pytest.fixture
def network() -> Iterator[Network]:
    with made(f"ht{os.getpid() % 100000}") as network:
        yield network


@contextlib.contextmanager
def gateway(directory: Path, **tables: Any) -> Iterator[Running]:
    """Ours, on the router: a process started here is in the router's namespace."""
    values: dict[str, Any] = {
        "backend": "nftables",
        "nftables": {"wan_interface": WAN_LINK},
        "lan": {"interfaces": [LAN_LINK]},
        "state": {"file": str(directory / "state.sqlite")},
    }
    config = directory / "gateway.toml"
    config.write_text(to_toml(values | tables))
    with start("gateway", config) as running:
        yield running


def at_lan(network: Network, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", network.lan, *HOMING, *arguments]


def run(network: Network, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(at_lan(network, *arguments), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


class Mapper:
    """A running `homing map --json`."""

    def __init__(self, network: Network, *arguments: str) -> None:
        self._process = subprocess.Popen(
            at_lan(network, "map", "--json", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __enter__(self) -> Mapper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> dict[str, Any]:
        """What it says next."""
        output = self._process.stdout
        assert output is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            assert selector.select(SECONDS), "no line"
        line = output.readline()
        assert line, self._process.communicate()[1].decode()
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(SECONDS)


def reaches(network: Network, port: int, source: str, outside: tuple[str, int]) -> bool:
    """Whether a connection from the wan side arrives at a listener on the LAN host's port."""
    with network.listener(network.lan, LAN_HOST, port) as server, network.tcp(network.wan, source) as peer:
        server.setblocking(True)
        server.settimeout(1)
        peer.settimeout(1)
        try:
            peer.connect(outside)
            connection, _ = server.accept()
        except OSError:
            return False
        connection.close()
        return True


@pytest.mark.parametrize(("pcp", "way"), [(True, "pcp"), (False, "natpmp")])
def test_a_port_is_open_while_map_runs(network: Network, tmp_path: Path, pcp: bool, way: str) -> None:
    with gateway(tmp_path, pcp={"enabled": pcp}), Mapper(network, "8080", "--external", "18080") as mapper:
        first = mapper.line()
        assert first["protocol"] == way
        assert (first["external_address"], first["external_port"]) == (WAN_ROUTER, 18080)
        assert reaches(network, 8080, WAN_HOST, (WAN_ROUTER, 18080))
        assert mapper.end() == 0
        assert not reaches(network, 8080, WAN_HOST, (WAN_ROUTER, 18080))


def test_map_tells_of_another_address(network: Network, tmp_path: Path) -> None:
    with gateway(tmp_path), Mapper(network, "8080", "--proto", "udp") as mapper:
        port = mapper.line()["external_port"]
        ip("-n", network.router, "address", "del", f"{WAN_ROUTER}/24", "dev", WAN_LINK)
        ip("-n", network.router, "address", "add", "198.51.100.77/24", "dev", WAN_LINK)
        found = mapper.line()
        while found["external_address"] != "198.51.100.77":
            found = mapper.line()
        assert found["external_port"] == port
        assert mapper.end() == 0


@pytest.mark.parametrize(("natpmp", "way"), [(True, "pcp"), (False, "igd")])
def test_miniupnpd_opens_the_port(network: Network, tmp_path: Path, natpmp: bool, way: str) -> None:
    with miniupnpd(network, tmp_path, natpmp=natpmp), Mapper(network, "8080", "--external", "18080") as mapper:
        first = mapper.line()
        assert (first["protocol"], first["external_address"]) == (way, WAN_ADDRESS)
        outside = (WAN_ADDRESS, first["external_port"])
        assert reaches(network, 8080, WAN_PEER, outside)
        assert mapper.end() == 0
        assert not reaches(network, 8080, WAN_PEER, outside)


def test_natcheck_at_ours(network: Network, tmp_path: Path) -> None:
    with gateway(tmp_path, igd={"enabled": True}):
        found = json.loads(run(network, "natcheck", "--json"))
        assert found["gateway"] == LAN_ROUTER
        for offer in found["protocols"].values():
            assert offer["answers"]
            assert offer["external_address"] == WAN_ROUTER
        assert found["protocols"]["pcp"]["epoch"] is not None
        assert found["protocols"]["natpmp"]["epoch"] is not None
        assert found["mapping_works"]
        assert found["hairpin"] is True
        assert found["nat_behind_nat"] is False


def test_natcheck_at_miniupnpd(network: Network, tmp_path: Path) -> None:
    with miniupnpd(network, tmp_path):
        found = json.loads(run(network, "natcheck", "--json"))
        assert {way: offer["external_address"] for way, offer in found["protocols"].items()} == {
            "pcp": WAN_ADDRESS,
            "natpmp": WAN_ADDRESS,
            "igd": WAN_ADDRESS,
        }
        assert found["mapping_by"] == "pcp"


@pytest.mark.rfc("6281", "4.4.1")
def test_nat_behind_nat_is_told_by_both_tools(network: Network, tmp_path: Path) -> None:
    ip("-n", network.router, "address", "flush", "dev", WAN_LINK)
    ip("-n", network.router, "address", "add", "100.64.7.7/24", "dev", WAN_LINK)
    with gateway(tmp_path) as running:
        assert "NAT behind NAT" in running.log
        text = run(network, "natcheck")
        for line in ("NAT behind NAT", "a mapping works, by PCP", "the external address works from inside"):
            assert line in text
        with Mapper(network, "8080") as mapper:
            first = mapper.line()
            assert (first["nat_behind_nat"], first["external_address"]) == (True, "100.64.7.7")


def test_where_nobody_answers(network: Network) -> None:
    began = time.monotonic()
    lines = run(network, "map", "8080", code=1).splitlines()
    assert lines == [
        "homing: no protocol gives a mapping",
        "homing: PCP: nobody listens there",
        "homing: NAT-PMP: no gateway answers: taken for a public network",
        "homing: UPnP IGD: no UPnP gateway answers",
    ]
    assert "answers to none of" in run(network, "natcheck", code=1)
    assert time.monotonic() - began < 60


def test_arguments_that_are_wrong(network: Network) -> None:
    run(network, "map", "80", "--gateway", "router", code=2)
    ip("-n", network.lan, "route", "del", "default")
    assert "no default route" in run(network, "natcheck", code=1)
