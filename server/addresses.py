"""Addresses of peers as octets, and who shares one."""

import socket


def packed(address: str) -> bytes:
    """An address in text as 4 or 16 octets; a zone index is left out."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return socket.inet_pton(socket.AF_INET, address)


def sharer(address: str) -> bytes:
    """Who an address shares limits with: an IPv4 address with nobody, an IPv6 address with its /64, one customer's."""
    octets = packed(address)
    return octets if len(octets) == 4 else octets[:8]
