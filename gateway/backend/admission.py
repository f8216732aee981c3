"""Which remote peers a mapping lets in (RFC 6887 §13.3), decided in this process."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from gateway.mappings import Filter


class Admission:
    """Everybody, if there is no filter."""

    __slots__ = ("_places",)

    def __init__(self, filters: tuple[Filter, ...] = ()) -> None:
        self._places = [(IPv4Network(network), port) for network, port in filters]

    def admits(self, peer: tuple[str, int]) -> bool:
        """Whether a peer may send."""
        if not self._places:
            return True
        address = IPv4Address(peer[0])
        return any(address in network and port in (0, peer[1]) for network, port in self._places)
