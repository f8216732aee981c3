"""Announcements as tcpdump sees them on the wire of the LAN, and nothing of them on the WAN's (RFC 6886 §3.2.1)."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from homing.config_file import to_toml
from tests.support.namespaces import LAN_LINK, LAN_ROUTER, WAN_LINK, WAN_ROUTER, Network, made, must_have
from tests.support.processes import start

GAPS = (0.25, 0.5, 1.0, 2.0)
SECONDS = 6.0


class Seen(NamedTuple):
    """A UDP datagram over IPv4 on Ethernet."""

    at: float
    ttl: int
    source: str
    destination: str
    payload: bytes


@pytest.fixture
def network() -> Iterator[Network]:
    must_have(shutil.which("tcpdump", path="/usr/bin:/usr/sbin") is not None, "tcpdump is not installed")
    with made(f"ha{os.getpid() % 100000}") as network:
        yield network


def capture(namespace: str, file: Path) -> subprocess.Popen[str]:
    """Begin to capture on a host's link; returns when it has begun."""
    command = ["ip", "netns", "exec", namespace, "tcpdump", "-i", "eth0", "-U", "-w", str(file), "-n", "udp port 5350"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "listening on" not in process.stderr.readline():
        assert process.poll() is None
    return process


def captured(process: subprocess.Popen[str], file: Path) -> list[Seen]:
    process.terminate()
    process.communicate(timeout=10)
    octets = file.read_bytes()
    assert octets[:4] == b"\xd4\xc3\xb2\xa1"  # little endian, microseconds
    found = []
    at = 24
    while at < len(octets):
        seconds, micros, length, _ = struct.unpack_from("<IIII", octets, at)
        packet = octets[at + 16 : at + 16 + length][14:]
        at += 16 + length
        source, destination = (".".join(map(str, packet[start : start + 4])) for start in (12, 16))
        head = (packet[0] & 15) * 4
        source_port, port = struct.unpack_from(">HH", packet, head)
        found.append(
            Seen(
                seconds + micros / 1e6,
                packet[8],
                f"{source}:{source_port}",
                f"{destination}:{port}",
                packet[head + 8 :],
            )
        )
    return found


@pytest.mark.rfc("6886", "3.2.1")
@pytest.mark.rfc("6887", "14.1")
@pytest.mark.rfc("6887", "14.1.3")
@pytest.mark.rfc("6281", "4.3")
def test_a_series_on_the_wire(network: Network, tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        to_toml(
            {
                "backend": "nftables",
                "nftables": {"wan_interface": WAN_LINK},
                "lan": {"interfaces": [LAN_LINK]},
                "state": {"file": "state.sqlite"},
            }
        )
    )
    inside = capture(network.lan, tmp_path / "lan.pcap")
    outside = capture(network.wan, tmp_path / "wan.pcap")
    with start("gateway", config):
        time.sleep(SECONDS)
    seen = captured(inside, tmp_path / "lan.pcap")
    assert captured(outside, tmp_path / "wan.pcap") == []
    assert {(item.ttl, item.source, item.destination) for item in seen} == {(1, f"{LAN_ROUTER}:5351", "224.0.0.1:5350")}
    for version, length in ((0, 12), (2, 24)):
        series = [item for item in seen if item.payload[0] == version]
        assert {len(item.payload) for item in series} == {length}
        gaps = [after.at - before.at for before, after in pairwise(series)]
        # None comes early; a busy machine may be late.
        for gap, wanted in zip(gaps, GAPS, strict=False):
            assert wanted - 0.05 <= gap <= wanted + 1
        assert len(series) in (4, 5)
        assert {item.payload[1] for item in series} == {128}
    address = bytes(map(int, WAN_ROUTER.split(".")))
    assert all(item.payload[2:4] == b"\0\0" and item.payload[8:] == address for item in seen if item.payload[0] == 0)
    epochs = [int.from_bytes(item.payload[4:8], "big") for item in seen if item.payload[0] == 0]
    assert epochs == sorted(epochs)
    assert 3 <= epochs[-1] - epochs[0] <= 3 + len(GAPS)
