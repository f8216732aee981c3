"""The table `inet homing` in words: its rules, and mappings, filters and pinholes as its elements. Pure.

| map or set      | what it holds                                                                    |
| `inward`        | external address, protocol, port : internal host, port                           |
| `outward`       | the reverse                                                                      |
| `filtered`      | external ends that only some may reach, who are in `admitted` (RFC 6887 §13.3)    |
| `pinholes`      | IPv6 ends that everybody may reach; `pinholes_from`: those that only some may     |
| `ended`         | internal ends of TCP mappings that are no more                                    |
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final, NamedTuple

from gateway.mappings import Filter, Key, Transport

from .netfilter import ElementChange, packed

TABLE: Final = "homing"
ENDED_SECONDS: Final = 60
"""How long connections of a removed TCP mapping are answered with resets."""
ENDED_SIZE: Final = 65536
_KEY: Final = struct.Struct(">4sB3xH2x")
_VALUE: Final = struct.Struct(">4sH2x")
"""Concatenations as `packed` has them: address, transport, port; address, port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NftablesOptions:
    """What the configuration says. Without `lan_interfaces` each interface but the outer one is inside."""

    wan_interface: str
    lan_interfaces: tuple[str, ...] = ()
    hairpin: bool = True
    guard: bool = True
    ipv6: bool = False
    pinhole_mark: int = 0
    keep_on_stop: bool = False


class Outside(NamedTuple):
    """The outer end of a mapping."""

    address: str
    transport: int
    port: int


class Inside(NamedTuple):
    """The inner end of a mapping, with the transport that its reverse needs."""

    host: str
    transport: int
    port: int


class Element(NamedTuple):
    """A mapping as the kernel has it."""

    outside: Outside
    inside: Inside


Range = tuple[str | int, str | int]
"""Lowest and highest value of one part of a key."""


class Member(NamedTuple):
    """An element of one of the sets; each part is a range, of one value where the set knows no intervals."""

    set_name: str
    parts: tuple[Range, ...]

    @property
    def text(self) -> str:
        """As nft reads it."""
        return " . ".join(str(low) if low == high else f"{low}-{high}" for low, high in self.parts)

    def change(self, *, is_deletion: bool = False) -> ElementChange:
        """As the kernel reads it."""
        low, high = (packed(*(_octets(part[at], place) for place, part in enumerate(self.parts))) for at in (0, 1))
        is_interval = self.set_name in INTERVAL_SETS
        return ElementChange(self.set_name, low, is_deletion=is_deletion, key_end=high if is_interval else b"")


FILTERED, ADMITTED, PINHOLES, PINHOLES_FROM = "filtered", "admitted", "pinholes", "pinholes_from"
INTERVAL_SETS: Final = frozenset({ADMITTED, PINHOLES_FROM})


def filter_members(outside: Outside, filters: tuple[Filter, ...]) -> list[Member]:
    """What restricts a mapping to its filters' peers; nothing if there are none."""
    if not filters:
        return []
    end: tuple[Range, ...] = tuple((value, value) for value in outside)
    return [Member(FILTERED, end), *(Member(ADMITTED, (*end, *peers)) for peers in _peers(filters))]


def pinhole_members(key: Key, filters: tuple[Filter, ...]) -> list[Member]:
    """What opens a pinhole, for everybody or for its filters' peers."""
    end: tuple[Range, ...] = ((key.host, key.host), (int(key.transport), int(key.transport)), (key.port, key.port))
    if not filters:
        return [Member(PINHOLES, end)]
    return [Member(PINHOLES_FROM, (*end, *peers)) for peers in _peers(filters)]


def _peers(filters: tuple[Filter, ...]) -> list[tuple[Range, Range]]:
    """Addresses and ports of the peers as ranges that do not overlap, which the kernel's sets must not.

    Networks overlap only by one containing the other. What a larger one admits already is left out of a smaller one.
    """
    listed = sorted({(ip_network(network), port) for network, port in filters}, key=lambda item: item[0].prefixlen)
    ranges: list[tuple[Range, Range]] = []
    for network, port in listed:
        around = [other_port for other, other_port in listed if _contains(other, network) and other != network]
        same = [other_port for other, other_port in listed if other == network]
        if 0 in around or port in around or (port and 0 in same):
            continue
        addresses = (str(network[0]), str(network[-1]))
        low = port
        for taken in sorted(around) if not port else ():
            if low < taken:
                ranges.append((addresses, (low, taken - 1)))
            low = taken + 1
        if low <= (port or 65535):
            ranges.append((addresses, (low, port or 65535)))
    return ranges


def _contains(outer: IPv4Network | IPv6Network, inner: IPv4Network | IPv6Network) -> bool:
    if isinstance(outer, IPv4Network):
        return isinstance(inner, IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and inner.subnet_of(outer)


def _octets(value: str | int, place: int) -> bytes:
    """One part of a key: addresses are text; of the numbers the protocol is the second part, all others are ports."""
    if isinstance(value, str):
        return ip_address(value).packed
    return bytes([value]) if place == 1 else value.to_bytes(2, "big")


def ruleset(options: NftablesOptions, elements: Iterable[Element] = (), members: Iterable[Member] = ()) -> str:
    """The commands that put the whole table, with these elements, in the place of whatever it was."""
    wan = f'"{options.wan_interface}"'
    lans = "{ " + ", ".join(f'"{name}"' for name in options.lan_interfaces) + " }"
    from_lan, to_lan = (
        (f"iifname {lans}", f"oifname {lans}")
        if options.lan_interfaces
        else (
            f"iifname != {wan}",
            f"oifname != {wan}",
        )
    )
    inward = "dnat ip to ip daddr . meta l4proto . th dport map @inward"
    outward = "snat ip to ip saddr . meta l4proto . th sport map @outward"
    key = "type ipv4_addr . inet_proto . inet_service"
    types = f"{key} : ipv4_addr . inet_service"
    lines = [
        f"add table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"add table inet {TABLE}",
        f"add map inet {TABLE} inward {{ {types}; }}",
        f"add map inet {TABLE} outward {{ {types}; }}",
        # A router's own forwardings come before ours, and ours before its masquerading.
        f"add chain inet {TABLE} prerouting {{ type nat hook prerouting priority dstnat + 5; }}",
        f"add chain inet {TABLE} postrouting {{ type nat hook postrouting priority srcnat - 5; }}",
        f"add set inet {TABLE} {FILTERED} {{ {key}; }}",
        f"add set inet {TABLE} {ADMITTED} {{ {key} . ipv4_addr . inet_service; flags interval; }}",
        f"add rule inet {TABLE} prerouting ip daddr . meta l4proto . th dport @{FILTERED} "
        f"ip daddr . meta l4proto . th dport . ip saddr . th sport != @{ADMITTED} return",
        f"add rule inet {TABLE} prerouting iifname {wan} {inward}",
        f"add rule inet {TABLE} postrouting oifname {wan} {outward}",
        # Conntrack takes up connections in their midst, and masquerading may find the port that the mapping had: what
        # ended with a mapping would go on. Its host gets a reset instead, and so does the peer from the router.
        f"add set inet {TABLE} ended {{ {key}; timeout {ENDED_SECONDS}s; size {ENDED_SIZE}; }}",
        f"add chain inet {TABLE} forward {{ type filter hook forward priority filter - 5; }}",
        f"add rule inet {TABLE} forward ct state new tcp flags & (syn | ack) != syn "
        "ip saddr . meta l4proto . th sport @ended reject with tcp reset",
    ]
    if options.hairpin:
        back = f"{from_lan} {to_lan} ct status dnat ct original ip daddr @external"
        lines += [
            f"add set inet {TABLE} external {{ type ipv4_addr; }}",
            f"add rule inet {TABLE} prerouting {from_lan} {inward}",
            # The router's own programs reach its mappings too.
            f"add chain inet {TABLE} output {{ type nat hook output priority -95; }}",
            f"add rule inet {TABLE} output {inward}",
            # Both ends see the other one's external address (RFC 4787 REQ-9, RFC 5382 REQ-8).
            f"add rule inet {TABLE} postrouting {back} {outward}",
            f"add rule inet {TABLE} postrouting {back} snat ip to ct original ip daddr",
        ]
    if options.guard:
        # Who is next to us outside may have a route to internal addresses; only mappings lead there.
        lines += [
            f"add rule inet {TABLE} forward iifname {wan} ct status dnat accept",
            f"add rule inet {TABLE} forward iifname {wan} meta nfproto ipv4 ct state new,invalid drop",
        ]
    if options.ipv6:
        lines += _ipv6_rules(options, wan)
    return "\n".join([*lines, *_additions(elements, external=options.hairpin), *_member_additions(members)])


def _ipv6_rules(options: NftablesOptions, wan: str) -> list[str]:
    """The IPv6 firewall: from outside come answers, ICMPv6, and what a pinhole lets through; the rest is dropped.

    Each packet of a flow that began outside is looked up, so that a pinhole's end is the end of its flows.
    """
    key = "type ipv6_addr . inet_proto . inet_service"
    from_outside = f"add rule inet {TABLE} forward iifname {wan} meta nfproto ipv6"
    pinhole = "ip6 daddr . meta l4proto . th dport"
    mark = f"ct mark set {options.pinhole_mark} " if options.pinhole_mark else ""
    return [
        f"add set inet {TABLE} {PINHOLES} {{ {key}; }}",
        f"add set inet {TABLE} {PINHOLES_FROM} {{ {key} . ipv6_addr . inet_service; flags interval; }}",
        f"{from_outside} ct direction reply accept",
        f"{from_outside} meta l4proto ipv6-icmp accept",
        f"{from_outside} {pinhole} @{PINHOLES} {mark}accept",
        f"{from_outside} {pinhole} . ip6 saddr . th sport @{PINHOLES_FROM} {mark}accept",
        f"{from_outside} drop",
    ]


def _member_additions(members: Iterable[Member]) -> list[str]:
    by_set: dict[str, list[str]] = {}
    for member in members:
        by_set.setdefault(member.set_name, []).append(member.text)
    return [f"add element inet {TABLE} {name} {{ {', '.join(texts)} }}" for name, texts in by_set.items()]


def _additions(elements: Iterable[Element], *, external: bool) -> list[str]:
    listed = list(elements)
    if not listed:
        return []
    inward = ", ".join(f"{_key(outside)} : {inside.host} . {inside.port}" for outside, inside in listed)
    outward = ", ".join(f"{_key(inside)} : {outside.address} . {outside.port}" for outside, inside in listed)
    lines = [
        f"add element inet {TABLE} inward {{ {inward} }}",
        f"add element inet {TABLE} outward {{ {outward} }}",
    ]
    if external:
        addresses = ", ".join(sorted({element.outside.address for element in listed}))
        lines.append(f"add element inet {TABLE} external {{ {addresses} }}")
    return lines


def deletions(elements: Iterable[Element]) -> list[str]:
    listed = list(elements)
    if not listed:
        return []
    return [
        f"delete element inet {TABLE} inward {{ {', '.join(_key(element.outside) for element in listed)} }}",
        f"delete element inet {TABLE} outward {{ {', '.join(_key(element.inside) for element in listed)} }}",
    ]


def _key(end: Outside | Inside) -> str:
    return f"{end[0]} . {end.transport} . {end.port}"


def _as_key(end: Outside | Inside) -> bytes:
    address, transport, port = end
    return _KEY.pack(socket.inet_aton(address), transport, port)


def _as_value(end: Outside | Inside) -> bytes:
    address, _, port = end
    return _VALUE.pack(socket.inet_aton(address), port)


def entries(element: Element, *, external: bool) -> list[ElementChange]:
    outside, inside = element
    entries = [
        ElementChange("inward", _as_key(outside), _as_value(inside)),
        ElementChange("outward", _as_key(inside), _as_value(outside)),
    ]
    if external:
        entries.append(ElementChange("external", socket.inet_aton(outside.address)))
    return entries


def removals(elements: Iterable[Element]) -> list[ElementChange]:
    return [
        ElementChange(name, _as_key(end), is_deletion=True)
        for outside, inside in elements
        for name, end in (("inward", outside), ("outward", inside))
    ]


def endings(element: Element) -> list[ElementChange]:
    if element.inside.transport != Transport.TCP:
        return []
    return [ElementChange("ended", _as_key(element.inside))]


def pairs(listing: str) -> dict[tuple[str, int, int], tuple[str, int]]:
    """The elements of a map. Raises ValueError, KeyError, TypeError or IndexError on any other shape."""
    entries: list[dict[str, Any]] = json.loads(listing)["nftables"]
    elements = next(entry["map"] for entry in entries if "map" in entry).get("elem", [])
    pairs = {}
    for key, value in elements:
        address, transport, port = key["concat"]
        host, inner_port = value["concat"]
        # Some versions print protocols by name whatever they are asked for.
        number = int(Transport[transport.upper()]) if isinstance(transport, str) else int(transport)
        pairs[str(address), number, int(port)] = (str(host), int(inner_port))
    return pairs


def members_of(set_name: str, listing: str) -> set[Member]:
    """The elements of a set. Raises ValueError, KeyError, TypeError or IndexError on any other shape."""
    listed: list[dict[str, Any]] = json.loads(listing)["nftables"]
    elements = next(entry["set"] for entry in listed if "set" in entry).get("elem", [])
    return {Member(set_name, tuple(_range(part) for part in element["concat"])) for element in elements}


def _range(part: Any) -> Range:
    if isinstance(part, dict) and "prefix" in part:
        network = ip_network(f"{part['prefix']['addr']}/{part['prefix']['len']}")
        return str(network[0]), str(network[-1])
    if isinstance(part, dict):
        low, high = part["range"]
        return low, high
    if isinstance(part, str) and part.upper() in Transport.__members__:
        part = int(Transport[part.upper()])
    return part, part
