"""Identity against the example printed in RFC 6281 §5.2, names and the configuration that leads to them."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from pydantic import ValidationError

from client_stub.config import ClientConfig
from client_stub.identity import (
    NO_TUNNEL_ADDRESS,
    TunnelInterface,
    autotunnel_label,
    eui64,
    host_names,
    host_of_service,
    parse_mac,
    tunnel_address,
)
from client_stub.interfaces import parse_default_gateway
from protocol.name import from_text, to_text

MAC = parse_mac("00:22:69:8E:34:2A")
DOMAIN = "alice.members.example"


@pytest.mark.rfc("6281", "5.2")
@pytest.mark.rfc("6281", "3")
def test_label_of_the_rfc_example():
    assert autotunnel_label(eui64(MAC)) == "AutoTunnel-00-22-69-FF-FE-8E-34-2A"


def test_flipped_form_of_deployed_clients():
    assert autotunnel_label(eui64(MAC, flip_local_bit=True)) == "AutoTunnel-02-22-69-FF-FE-8E-34-2A"


@pytest.mark.rfc("6281", "6.3")
def test_tunnel_address_is_fd_entropy_eui64():
    address = tunnel_address(eui64(MAC), bytes.fromhex("01020304050607"))
    assert address == IPv6Address("fd01:203:405:607:22:69ff:fe8e:342a")
    with pytest.raises(ValueError, match="entropy"):
        tunnel_address(eui64(MAC), b"\1" * 6)


@pytest.mark.rfc("6281", "6.3")
def test_tunnel_address_is_zero_at_boot_and_then_stays():
    interface = TunnelInterface(eui64(MAC))
    assert interface.address == NO_TUNNEL_ADDRESS
    first = interface.ensure(b"\1" * 7)
    assert interface.ensure(b"\2" * 7) == first == interface.address


@pytest.mark.rfc("6281", "2")
@pytest.mark.rfc("6281", "3")
def test_host_names():
    names = host_names("myMacPro", DOMAIN, eui64(MAC))
    assert to_text(names.host) == "myMacPro.alice.members.example."
    assert to_text(names.service) == "_autotunnel._udp.myMacPro.alice.members.example."
    assert to_text(names.autotunnel) == "AutoTunnel-00-22-69-FF-FE-8E-34-2A.alice.members.example."
    assert to_text(names.browse) == "_autotunnel._udp.alice.members.example."
    assert host_of_service(names.service) == names.host
    assert host_of_service(names.host) is None
    for machine in ("", "two.labels"):
        with pytest.raises(ValueError, match="one label"):
            host_names(machine, DOMAIN, eui64(MAC))
    with pytest.raises(ValueError, match="255"):
        host_names("a", ".".join(["x" * 57] * 4), eui64(MAC))


@pytest.mark.parametrize("text", ["", "00:22:69:8E:34", "00:22-69:8E:34:2A", "0022698E342A", "00:22:69:8E:34:2G"])
def test_no_mac(text):
    with pytest.raises(ValueError, match="MAC"):
        parse_mac(text)


@pytest.mark.rfc("6281", "4.1")
def test_default_gateway_of_the_lowest_metric():
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        "eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
    )
    assert parse_default_gateway(table) == IPv4Address("10.0.0.1")
    assert parse_default_gateway(table.splitlines()[0]) is None


def plain_config(**changes):
    config = {
        "machine": {"name": "mac", "mac": "00:22:69:8E:34:2A", "internal_address": "127.0.0.2"},
        "member": {"domain": DOMAIN, "key": {"name": "alice.key", "secret": "c2VjcmV0"}},
        "dns": {"server": "127.0.0.1:5300"},
    }
    for path, value in changes.items():
        table = config
        *tables, key = path.split("__")
        for item in tables:
            table = table.setdefault(item, {})
        table[key] = value
    return config


@pytest.mark.rfc("6281", "5.2")
def test_config_defaults_are_those_of_rfc_6281():
    config = ClientConfig.model_validate(plain_config(watch__hosts=["other", "far.bob.members.example"]))
    assert (config.timing.update_lease, config.timing.llq_lease, config.timing.mapping_lifetime) == (5400, 7200, 3600)
    assert config.machine.internal_port == 4500
    key = config.member.key.load()
    assert (key.name, key.secret) == (from_text("alice.key"), b"secret")
    assert "c2VjcmV0" not in repr(config)
    assert [to_text(name) for name in config.watched_hosts()] == [
        "other.alice.members.example.",
        "far.bob.members.example.",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"machine__colour": "red"},
        {"machine__mac": "nonsense"},
        {"machine__name": "two.labels"},
        {"machine__internal_port": 65536},
        {"member__key__secret": "!!"},
        {"member__key__algorithm": "rot13"},
        {"member__key__secret_file": "/nonexistent"},
        {"member__domain": "a..b"},
        {"dns__server": "localhost"},
        {"dns__server": "127.0.0.1:0"},
        {"nat__mode": "maybe"},
        {"timing__update_lease": 60},
    ],
)
def test_config_refuses(changes):
    with pytest.raises(ValidationError) as caught:
        ClientConfig.model_validate(plain_config(**changes))
    assert caught.value.error_count() == 1


def test_secret_file_must_be_private(tmp_path: Path):
    path = tmp_path / "secret"
    path.write_text("c2VjcmV0\n")
    path.chmod(0o644)
    config = plain_config()
    config["member"]["key"] = {"name": "alice.key", "secret_file": str(path)}
    with pytest.raises(ValidationError, match="read by others"):
        ClientConfig.model_validate(config)
    path.chmod(0o600)
    assert ClientConfig.model_validate(config).member.key.load().secret == b"secret"
