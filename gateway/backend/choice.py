"""Which back end a configuration asks for."""

from __future__ import annotations

from gateway.config import GatewayConfig

from .base import Backend
from .nftables import NftablesBackend
from .relay import Relay, RelayLimits
from .ruleset import NftablesOptions


def backend_for(config: GatewayConfig) -> Backend:
    """The back end of a configuration, not started yet."""
    nftables = config.nftables
    if nftables is not None:
        return NftablesBackend(
            NftablesOptions(
                wan_interface=nftables.wan_interface,
                lan_interfaces=nftables.lan_interfaces,
                hairpin=nftables.hairpin,
                guard=nftables.guard,
                ipv6=nftables.ipv6,
                pinhole_mark=nftables.pinhole_mark,
                keep_on_stop=nftables.keep_on_stop,
            )
        )
    limits = config.limits
    return Relay(
        RelayLimits(
            udp_idle_seconds=limits.udp_idle_seconds,
            udp_flows=limits.udp_flows,
            tcp_connections=limits.tcp_connections,
        )
    )
