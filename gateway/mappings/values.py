"""What a mapping is: its inside, its outside, who made it and who may send to it; and the bounds of a table of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

HIGHEST_PORT = 65535
BARRED_PORTS = frozenset({5350, 5351})
"""Never handed out: the ports of NAT-PMP and PCP themselves (RFC 6887 §11.3)."""
FILTER_LIMIT = 16
"""Remote peers that one mapping can be restricted to."""


class Transport(IntEnum):
    """IANA protocol numbers."""

    TCP = 6
    UDP = 17

    # Enum's own is written in Python, and keys of dicts begin with a transport.
    __hash__ = int.__hash__

    @property
    def companion(self) -> Transport:
        """The other one, whose port of the same number is kept for the same host."""
        return _COMPANIONS[self]


_COMPANIONS = {Transport.TCP: Transport.UDP, Transport.UDP: Transport.TCP}


class Origin(StrEnum):
    """Who made a mapping."""

    NATPMP = "natpmp"
    PCP = "pcp"
    IGD = "igd"
    OPERATOR = "operator"
    """By the router's owner while the gateway ran; it stays until the owner deletes it."""
    STATIC = "static"
    """By the configuration."""


class Key(NamedTuple):
    """The inside of a mapping, which identifies it. `host` is an address as text in its usual short form."""

    transport: Transport
    host: str
    port: int

    @property
    def is_pinhole(self) -> bool:
        """Whether the host is reached under its own address, IPv6, and only a firewall has to let packets through."""
        return ":" in self.host


class Filter(NamedTuple):
    """Remote peers that may send: a network as text (`198.51.100.0/24`) and a port, 0 for all (RFC 6887 §13.3)."""

    network: str
    port: int


@dataclass(frozen=True, slots=True)
class FilterChange:
    """What a request says of filters: whether those there are so far go, and which come."""

    clear: bool
    added: tuple[Filter, ...]

    def apply(self, before: tuple[Filter, ...]) -> tuple[Filter, ...]:
        """The filters afterwards, each once."""
        return tuple(dict.fromkeys((*(() if self.clear else before), *self.added)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One row. `expires_at` is None for those of the owner, which neither lapse nor are deleted by clients.

    `nonce` is that of the first PCP request for it, and then guards it (RFC 6887 §11.3). It is not shown. Without
    `filters` everybody may send. `description` is the client's own text (UPnP). A pinhole's external port is that of
    its key.
    """

    key: Key
    external_port: int
    origin: Origin
    expires_at: float | None
    nonce: bytes | None = field(default=None, repr=False)
    filters: tuple[Filter, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the table. Lifetimes are seconds; quotas count mappings that clients made, not static ones."""

    shortest_lifetime: int = 120
    longest_lifetime: int = 86400
    longest_lease: int = 604800
    """Of a UPnP mapping, whose client is not told of a shorter one (WANIPConnection:2 §2.3.16: a week)."""
    lowest_port: int = 1024
    highest_port: int = HIGHEST_PORT
    reserved_ports: frozenset[int] = frozenset()
    per_host: int = 128
    total: int = 4096
    hold_down: int = 120
    """Seconds that a freed external port rests before another client gets it (RFC 6887 §15)."""
