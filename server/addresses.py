"""Addresses of peers as octets, and who shares one."""

import socket
from typing import Final

_MAPPED: Final = bytes(10) + b"\xff\xff"


def packed(address: str) -> bytes:
    """An address in text as 4 or 16 octets; a zone index is left out, an IPv4 address in an IPv6 one is the former."""
    if ":" in address:
        octets = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
        return octets[12:] if octets.startswith(_MAPPED) else octets
    return socket.inet_pton(socket.AF_INET, address)


def sharer(address: str) -> bytes:
    """Who an address shares limits with: an IPv4 address with nobody, an IPv6 address with its /64, one customer's."""
    octets = packed(address)
    return octets if len(octets) == 4 else octets[:8]
