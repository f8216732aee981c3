"""What the gateway's configuration takes and refuses."""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Address

import pytest
from pydantic import ValidationError

from gateway.config import Endpoint, GatewayConfig

SMALLEST = """
[natpmp]
listen = ["192.168.1.1:5351"]
[state]
file = "/var/lib/homing/gateway.sqlite"
"""


def read(text: str) -> GatewayConfig:
    return GatewayConfig.model_validate(tomllib.loads(text))


def test_the_smallest_file_has_the_rfcs_defaults() -> None:
    config = read(SMALLEST)
    assert config.backend == "relay"
    assert config.natpmp.listen == (Endpoint("192.168.1.1", 5351),)
    assert config.natpmp.announce_to == Endpoint("224.0.0.1", 5350)
    assert config.external.address is None
    assert (config.pcp.enabled, config.pcp.third_party) == (True, False)
    assert (config.limits.shortest_lifetime_seconds, config.limits.longest_lifetime_seconds) == (120, 86400)


def test_everything() -> None:
    config = read(
        """
        backend = "relay"
        [natpmp]
        listen = ["127.0.0.1:0", "192.168.1.1:5351"]
        announce_to = "239.255.0.1:15350"
        requests_per_second = 0
        [external]
        address = "203.0.113.7"
        [limits]
        lowest_port = 2000
        reserved_ports = [2022]
        mappings = 10
        [state]
        file = "state"
        [[static]]
        transport = "tcp"
        external_port = 443
        internal = "192.168.1.20:8443"
        """
    )
    assert config.external.address == IPv4Address("203.0.113.7")
    assert config.static[0].internal == Endpoint("192.168.1.20", 8443)
    limits = config.limits.table_limits(frozenset({40000}))
    assert limits.reserved_ports == {2022, 5350, 5351, 40000}
    assert (limits.lowest_port, limits.total) == (2000, 10)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('backend = "magic"' + SMALLEST, "backend"),
        (SMALLEST + "[natmp]\n", "natmp"),
        (SMALLEST + "[limits]\nlifetime = 1\n", "lifetime"),
        (SMALLEST + "[limits]\nudp_idle_seconds = 30\n", "udp_idle_seconds"),
        (SMALLEST + "[limits]\nlowest_port = 3000\nhighest_port = 2000\n", "limits"),
        (SMALLEST + "[limits]\nshortest_lifetime_seconds = 100\nlongest_lifetime_seconds = 60\n", "limits"),
        (SMALLEST + '[external]\naddress = "home"\n', "address"),
        (SMALLEST + '[[static]]\ntransport = "sctp"\nexternal_port = 1\ninternal = "10.0.0.1:1"\n', "transport"),
        (SMALLEST + '[[static]]\ntransport = "udp"\nexternal_port = 1\ninternal = "10.0.0.1:0"\n', "internal"),
        (SMALLEST.replace("192.168.1.1:", "0.0.0.0:"), "natpmp"),
        (SMALLEST.replace("192.168.1.1:", "[::1]:"), "listen"),
        (SMALLEST.replace(":5351", ""), "listen"),
        (SMALLEST.replace("5351", "65536"), "listen"),
        ('[natpmp]\nlisten = ["192.168.1.1:5351"]\n', "state"),
    ],
)
def test_problems_name_their_key(text: str, key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(text)
    assert any(key in error["loc"] for error in caught.value.errors())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SMALLEST.replace('["192.168.1.1:5351"]', "[]"), "name the inside"),
        (
            '[lan]\ninterfaces = ["eth0"]\n[external]\ninterface = "eth0"\n[state]\nfile = "/s"\n',
            "eth0 is the external",
        ),
    ],
)
def test_problems_of_the_whole(text: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        read(text)


@pytest.mark.rfc("6886", "4.3.2")
def test_where_the_external_address_comes_from() -> None:
    nftables = 'backend = "nftables"\n[nftables]\nwan_interface = "ppp0"\n' + SMALLEST
    assert read(SMALLEST).followed_interface is None
    assert read(nftables).followed_interface == "ppp0"
    assert read(nftables + '[external]\ninterface = "eth1"\n').followed_interface == "eth1"
    assert read(nftables + '[external]\naddress = "203.0.113.7"\n').followed_interface is None
    assert read(nftables + '[external]\ncommand = ["/bin/wan"]\n').followed_interface is None
    assert read(nftables + '[external]\ncommand = ["/bin/wan"]\n').external_interface == "ppp0"
