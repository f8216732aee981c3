"""The section [nftables], and which back end a configuration gives."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.backend.choice import backend_for
from gateway.backend.nftables import Element, Inside, NftablesBackend, NftablesOptions, Outside, ruleset
from gateway.backend.relay import Relay
from gateway.config import GatewayConfig


def config(**settings: Any) -> GatewayConfig:
    return GatewayConfig.model_validate(
        {"natpmp": {"listen": ["192.168.1.1:5351"]}, "state": {"file": "/tmp/state.sqlite"}, **settings}
    )


def test_each_name_gives_its_back_end() -> None:
    assert isinstance(backend_for(config()), Relay)
    assert isinstance(backend_for(config(backend="relay")), Relay)
    chosen = backend_for(config(backend="nftables", nftables={"wan_interface": "ppp0", "keep_on_stop": True}))
    assert isinstance(chosen, NftablesBackend)


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "nftables"},
        {"nftables": {"wan_interface": "eth0"}},
        {"backend": "nftables", "nftables": {}},
        {"backend": "nftables", "nftables": {"wan_interface": ""}},
        {"backend": "nftables", "nftables": {"wan_interface": "a-name-too-long-0"}},
        {"backend": "nftables", "nftables": {"wan_interface": 'eth0" accept'}},
        {"backend": "nftables", "nftables": {"wan_interface": "eth0\n"}},
        {"backend": "nftables", "nftables": {"wan_interface": "eth*"}},
        {"backend": "nftables", "nftables": {"wan_interface": "eth0", "lan_interfaces": ["br lan"]}},
        {"backend": "nftables", "nftables": {"wan_interface": "eth0", "unknown": True}},
    ],
)
def test_what_cannot_be_meant_is_an_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**settings)


def test_the_rules_do_not_grow_with_the_mappings() -> None:
    options = NftablesOptions(wan_interface="eth0", lan_interfaces=("br-lan", "wlan0"))
    few, many = (
        ruleset(
            options,
            [
                Element(Outside("203.0.113.7", 17, 2000 + port), Inside("192.168.1.2", 17, 2000 + port))
                for port in range(count)
            ],
        )
        for count in (1, 500)
    )
    assert len(few.splitlines()) == len(many.splitlines())
    assert many.count("add element") == 3
    assert many.count("203.0.113.7 . 17 . ") == many.count("192.168.1.2 . 17 . ") == 500


def test_switches_leave_their_rules_out() -> None:
    everything = ruleset(NftablesOptions(wan_interface="eth0"))
    assert "@external" in everything
    assert 'forward iifname "eth0"' in everything
    plain = ruleset(NftablesOptions(wan_interface="eth0", hairpin=False, guard=False))
    assert "external" not in plain
    assert "forward iifname" not in plain
    assert "hook output" not in plain
