"""Which addresses are never a host's place on the Internet (RFC 6281 §4.4.1, RFC 6886 §3.1, RFC 6890)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Final

RFC1918: Final = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
BEHIND_A_NAT: Final = (
    *RFC1918,
    IPv4Network("100.64.0.0/10"),  # shared by the customers of a provider, RFC 6598
    IPv4Network("169.254.0.0/16"),  # link-local
    IPv4Network("192.0.0.0/24"),  # the inner end of DS-Lite and 464XLAT, RFC 7335
    IPv4Network("198.18.0.0/15"),  # benchmarks, RFC 2544
    IPv4Network("240.0.0.0/4"),  # reserved; providers use it inside
)


def is_rfc1918(address: IPv4Address) -> bool:
    """Whether a host with this primary address looks for a NAT at all (RFC 6886 §3.1)."""
    return any(address in network for network in RFC1918)


def is_behind_a_nat(address: IPv4Address) -> bool:
    """Whether a router with this external address is itself behind another NAT, where mappings cannot work."""
    return any(address in network for network in BEHIND_A_NAT)
