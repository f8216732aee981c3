"""Who a machine is: EUI-64, autotunnel label, inner address and the owner names it publishes (RFC 6281 §5.2, §6.3).

Pure: entropy is passed in. Invariant: once made, the inner address stays until the process ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from protocol.name import fold, from_text

LOCAL_BIT: Final = 0x02
ULA_FIRST_OCTET: Final = 0xFD
ULA_ENTROPY_OCTETS: Final = 7
NO_TUNNEL_ADDRESS: Final = IPv6Address(0)
SERVICE_LABELS: Final = from_text("_autotunnel._udp")[:-1]
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}")


def parse_mac(text: str) -> bytes:
    """Six octets from `00:22:69:8E:34:2A` or the form with dashes; `ValueError` for anything else."""
    if not _MAC.fullmatch(text):
        raise ValueError(f"not a MAC address: {text!r}")
    return bytes.fromhex(text.replace(":", "").replace("-", ""))


def eui64(mac: bytes, *, flip_local_bit: bool = False) -> bytes:
    """EUI-64 of a MAC: FF-FE in its middle.

    The example of RFC 6281 §5.2 leaves the universal/local bit alone; `flip_local_bit` gives the modified form that
    deployed clients used.
    """
    if len(mac) != 6:
        raise ValueError("a MAC address has six octets")
    first = mac[0] ^ LOCAL_BIT if flip_local_bit else mac[0]
    return bytes((first,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def autotunnel_label(eui: bytes) -> str:
    """`AutoTunnel-00-22-69-FF-FE-8E-34-2A` (RFC 6281 §5.2)."""
    return "AutoTunnel-" + "-".join(f"{octet:02X}" for octet in eui)


def tunnel_address(eui: bytes, entropy: bytes) -> IPv6Address:
    """Inner address: FD, 56 random bits, the EUI-64 (RFC 6281 §6.3; RFC 4193 would keep 16 of them as subnet)."""
    if len(entropy) != ULA_ENTROPY_OCTETS:
        raise ValueError(f"{ULA_ENTROPY_OCTETS} octets of entropy are needed")
    return IPv6Address(bytes((ULA_FIRST_OCTET,)) + entropy + eui)


@dataclass(slots=True)
class TunnelInterface:
    """The local end of all tunnels: all zeros and inactive at boot, then one address for as long as we run."""

    eui: bytes
    address: IPv6Address = NO_TUNNEL_ADDRESS

    def ensure(self, entropy: bytes) -> IPv6Address:
        """Run on each update of the interface list: make the address if there is none yet."""
        if self.address == NO_TUNNEL_ADDRESS:
            self.address = tunnel_address(self.eui, entropy)
        return self.address


@dataclass(frozen=True, slots=True)
class HostNames:
    """The owner names of one machine, wire form, case kept."""

    domain: bytes
    host: bytes
    autotunnel: bytes

    @property
    def service(self) -> bytes:
        """Owner of the SRV record."""
        return service_name(self.host)

    @property
    def browse(self) -> bytes:
        """Owner of the PTR records that list the member's hosts: our answer to what RFC 6281 leaves open."""
        return service_name(self.domain)


def service_name(parent: bytes) -> bytes:
    """`_autotunnel._udp.<parent>`."""
    return SERVICE_LABELS + parent


def host_of_service(service: bytes) -> bytes | None:
    """The host name inside a service name, or None when it is no such name."""
    prefix = len(SERVICE_LABELS)
    return service[prefix:] if fold(service[:prefix]) == SERVICE_LABELS else None


def host_names(machine: str, domain: str, eui: bytes) -> HostNames:
    """Names of `machine` (one label) in the member's `domain`; `ValueError` where they are no names."""
    label = from_text(machine)
    if len(label) < 2 or label[0] + 2 != len(label):
        raise ValueError(f"a machine is named by one label, not {machine!r}")
    apex = from_text(domain)
    host = label[:-1] + apex
    autotunnel = from_text(autotunnel_label(eui))[:-1] + apex
    if max(len(host) + len(SERVICE_LABELS), len(autotunnel)) > 255:
        raise ValueError(f"names of {machine!r} in {domain!r} would pass 255 octets")
    return HostNames(apex, host, autotunnel)
