"""A gateway's owner at work: status, list, add, delete, host-gone, metrics; with the real program and its socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from homing.config_file import to_toml
from tests.support.gateways import EXTERNAL, HOST_A, HOST_B, SECOND_EXTERNAL, ask_control, free_port
from tests.support.processes import HOMING, Running, homing, homing_here, start

SECONDS = 10.0


@contextmanager
def running(directory: Path, **tables: Any) -> Iterator[Running]:
    values: dict[str, Any] = {
        "natpmp": {"listen": ["127.0.0.1:0"], "announce_to": f"224.0.0.1:{free_port('0.0.0.0')}"},
        "external": {"address": EXTERNAL},
        "state": {"file": str(directory / "state.sqlite")},
        "control": {"socket": str(directory / "control")},
    }
    config = directory / "gateway.toml"
    config.write_text(to_toml(values | tables))
    with start("gateway", config) as process:
        yield process


class Owner:
    """Runs the subcommands."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "control"

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = homing_here("gateway", *arguments, "--socket", self._socket)
        assert done.code == code, done.err
        return done.out if code == 0 else done.err

    def list(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask_control(self._socket, do="list")["mappings"]
        return found

    def raw(self, *lines: bytes) -> list[dict[str, Any]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(SECONDS)
            sock.connect(str(self._socket))
            sock.sendall(b"".join(lines))
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as answers:
                return [json.loads(line) for line in answers]


def map_udp(gateway: Running, port: int, host: str = HOST_A, lifetime: int = 3600) -> int:
    """Map a port by NAT-PMP; gives the external one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.bind((host, 0))
        request = b"\0\1\0\0" + port.to_bytes(2, "big") + b"\0\0" + lifetime.to_bytes(4, "big")
        sock.sendto(request, gateway.listening["natpmp"][0])
        reply = sock.recv(100)
        assert reply[:4] == b"\0\x81\0\0"
        return int.from_bytes(reply[10:12], "big")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_owner_sees_adds_and_ends_mappings(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    port = free_port(EXTERNAL, socket.SOCK_STREAM)
    with running(tmp_path) as gateway:
        for file in ("control", "state.sqlite", "state.sqlite-wal"):
            assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600
        external = map_udp(gateway, 4500)
        owner("add", "tcp", str(port), "127.0.0.11:80")
        owner("add", "tcp", str(port), "127.0.0.11:80")  # again: nothing changes
        by_port = {row["external_port"]: row for row in json.loads(owner("list", "--json"))}
        assert by_port[external] | {"remaining_seconds": 0} == {
            "transport": "udp",
            "external_address": EXTERNAL,
            "external_port": external,
            "internal": f"{HOST_A}:4500",
            "remaining_seconds": 0,
            "origin": "natpmp",
            "description": "",
        }
        assert by_port[port]["remaining_seconds"] is None
        assert (by_port[port]["origin"], by_port[port]["internal"]) == ("operator", "127.0.0.11:80")
        assert "has that port" in owner("add", "tcp", str(port), "127.0.0.12:80", code=1)
        assert "on another port" in owner("add", "tcp", str(free_port(EXTERNAL)), "127.0.0.11:80", code=1)
        table = owner("list")
        assert f"{EXTERNAL}:{port}" in table
        assert "stays" in table
        assert "2 mappings" in table
        owner("delete", "udp", str(external))
        assert f"no mapping has udp port {external}" in owner("delete", "udp", str(external), code=1)
        assert len(owner.list()) == 1
        assert "mapping deleted" in gateway.log
        with socket.socket() as sock:
            sock.connect((EXTERNAL, port))  # the relay listens
    with running(tmp_path):  # what the owner added is still there
        assert [row["external_port"] for row in owner.list()] == [port]
        owner("delete", "tcp", str(port))
    with running(tmp_path):
        assert owner.list() == []


def test_clients_do_not_end_what_the_owner_added(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    port = free_port(EXTERNAL)
    with running(tmp_path) as gateway:
        owner("add", "udp", str(port), f"{HOST_A}:4500")
        assert map_udp(gateway, 4500) == port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SECONDS)
            sock.bind((HOST_A, 0))
            sock.sendto(b"\0\1\0\0" + (4500).to_bytes(2, "big") + bytes(6), gateway.listening["natpmp"][0])
            assert sock.recv(100)[3] == 2
        assert len(owner.list()) == 1
        assert owner("host-gone", HOST_A) == "0\n"


def test_a_mapping_of_the_configuration_stays(tmp_path: Path) -> None:
    port = free_port(EXTERNAL)
    static = [{"transport": "udp", "external_port": port, "internal": f"{HOST_A}:4500"}]
    with running(tmp_path, static=static):
        assert "in the configuration file" in Owner(tmp_path)("delete", "udp", str(port), code=1)


def test_a_host_that_is_gone_loses_its_mappings(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    with running(tmp_path) as gateway:
        for port in (4500, 4501):
            map_udp(gateway, port)
        kept = map_udp(gateway, 4500, HOST_B)
        assert owner("host-gone", HOST_A) == "2\n"
        assert [row["external_port"] for row in owner.list()] == [kept]
        assert "not an address" in owner("host-gone", "somebody", code=1)


def test_the_end_of_a_dhcp_lease_ends_mappings(tmp_path: Path) -> None:
    leases = tmp_path / "leases"
    leases.write_text("0 aa:aa:aa:aa:aa:aa 127.0.0.11 mac *\n0 bb:bb:bb:bb:bb:bb 127.0.0.12 printer *\n")
    owner = Owner(tmp_path)
    with running(tmp_path, dhcp={"server": "dnsmasq", "lease_file": str(leases)}) as gateway:
        map_udp(gateway, 4500)
        kept = map_udp(gateway, 4500, HOST_B)
        time.sleep(2.5)  # two looks at the file
        assert len(owner.list()) == 2
        leases.write_text("0 bb:bb:bb:bb:bb:bb 127.0.0.12 printer *\n")
        until(lambda: [row["external_port"] for row in owner.list()] == [kept])
        assert "mappings ended with a DHCP lease" in gateway.log


def test_status(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    with running(tmp_path, metrics={"listen": "127.0.0.1:0"}) as gateway:
        map_udp(gateway, 4500)
        status = json.loads(owner("status", "--json"))
        assert status["external_address"] == EXTERNAL
        assert status["external_source"] == "configuration"
        assert status["nat_behind_nat"] is False
        assert status["mappings"] == {"natpmp": 1}
        assert status["changes"] == {"created": 1}
        assert status["events"]["natpmp"] == {"map": 1}
        assert len(status["listening"]) == 2
        assert EXTERNAL in owner("status")
        host, port = gateway.listening["metrics"][0]
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=SECONDS) as answer:
            text = answer.read().decode()
        assert 'homing_gateway_mappings{origin="natpmp",transport="udp"} 1.0' in text
        assert 'homing_gateway_mapping_changes_total{change="created"} 1.0' in text
        assert 'homing_gateway_events_total{event="map",part="natpmp"} 1.0' in text
        assert "homing_gateway_external_address 1.0" in text
        assert "homing_gateway_listeners 1.0" in text
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{host}:{port}/", timeout=SECONDS)


@pytest.mark.rfc("6281", "4.4.1")
def test_an_address_behind_another_nat_is_told(tmp_path: Path) -> None:
    """127/8 counts as public for the sake of loopback, so this needs an address of its own."""
    with namespace_address("192.168.77.9"), running(tmp_path, external={"address": "192.168.77.9"}) as gateway:
        assert "NAT behind NAT" in gateway.log
        owner = Owner(tmp_path)
        assert json.loads(owner("status", "--json"))["nat_behind_nat"] is True
        assert "NAT behind NAT" in owner("status")


@contextmanager
def namespace_address(address: str) -> Iterator[None]:
    """An address on loopback for a while, where we may."""
    from tests.support.namespaces import ip, must_have

    must_have(os.geteuid() == 0, "addresses need root")
    ip("address", "add", f"{address}/32", "dev", "lo")
    try:
        yield
    finally:
        ip("address", "del", f"{address}/32", "dev", "lo")


def test_watching_is_a_stream(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        port = map_udp(gateway, 4500)
        command = [*HOMING, "gateway", "list", "--watch", "--json", "--socket", str(tmp_path / "control")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
            assert watching.stdout is not None
            for _ in range(2):
                assert json.loads(watching.stdout.readline())[0]["external_port"] == port
            watching.send_signal(2)
            assert watching.wait(SECONDS) == 0
            assert watching.stderr is not None
            assert watching.stderr.read() == b""


def test_bad_requests_get_one_line_and_change_nothing(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    with running(tmp_path):
        answers = owner.raw(
            b"nonsense\n",
            b"[]\n",
            b'{"do": "dance"}\n',
            b'{"do": "add", "transport": "sctp"}\n',
            b'{"do": "add", "transport": "tcp", "external_port": true, "internal": "127.0.0.11:80"}\n',
            b'{"do": "add", "transport": "tcp", "external_port": 70000, "internal": "127.0.0.11:80"}\n',
            b'{"do": "add", "transport": "tcp", "external_port": 80, "internal": "home:80"}\n',
            b'{"do": "add", "transport": "tcp", "external_port": 80, "internal": "127.0.0.11:0"}\n',
            b'{"do": "delete", "transport": "tcp", "external_port": null}\n',
            b'{"do": "host-gone", "host": {}}\n',
            b"[" * 4000 + b"\n",
            b'{"do": "status"}\n',
        )
        assert [answer["ok"] for answer in answers] == [False] * 11 + [True]
        assert all("\n" not in answer["error"] for answer in answers[:-1])
        (refusal,) = owner.raw(b"x" * 100_000)
        assert "4096 octets" in refusal["error"]
        with pytest.MonkeyPatch.context():
            socks = []
            try:
                for _ in range(20):
                    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    sock.settimeout(SECONDS)
                    sock.connect(str(tmp_path / "control"))
                    socks.append(sock)
                assert b"too many" in socks[-1].recv(4096)
            finally:
                for sock in socks:
                    sock.close()
        until(lambda: owner.list() == [])


def test_where_nobody_answers(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    assert "no gateway answers at" in owner("status", code=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(str(tmp_path / "control"))
    assert "no gateway answers at" in owner("status", code=1)
    with running(tmp_path):  # takes the place of what a killed one left
        owner("status")
        second = homing("gateway", "--config", tmp_path / "gateway.toml")
        assert second.code == 1
        assert "another gateway answers there" in second.err
        owner("status")
    assert not (tmp_path / "control").exists()
    (tmp_path / "control").write_text("mine")
    refused = homing("gateway", "--config", tmp_path / "gateway.toml")
    assert (refused.code, (tmp_path / "control").read_text()) == (1, "mine")


def test_without_a_file_or_a_subcommand(tmp_path: Path) -> None:
    done = homing("gateway")
    assert done.code == 2
    assert "--config FILE" in done.err


def test_what_the_owner_added_waits_for_an_address(tmp_path: Path) -> None:
    """What the owner added waits without an address, and works when there is one."""
    owner = Owner(tmp_path)
    port = free_port(SECOND_EXTERNAL)
    script = tmp_path / "address"
    script.write_text("")
    external = {"command": ["cat", str(script)], "command_seconds": 1}
    with running(tmp_path, external=external):
        owner("add", "udp", str(port), f"{HOST_A}:4500")
        assert owner.list()[0]["external_address"] is None
        script.write_text("127.77.0.2")
        until(lambda: owner.list()[0]["external_address"] == "127.77.0.2")
