"""Netlink's framing, which all of its families share: messages in a datagram, attributes in a message.

Layout: linux/netlink.h. Whatever is cut short ends the iteration, so octets of any kind do no harm.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

ERROR: Final = 2
DONE: Final = 3
REQUEST: Final = 0x001
DUMP: Final = 0x300
NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

HEADER: Final = struct.Struct("=IHHII")
"""Length, kind, flags, sequence number, port."""
_ATTRIBUTE: Final = struct.Struct("=HH")


def messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Sequence number, kind and content of each message."""
    at = 0
    while at + HEADER.size <= len(datagram):
        length, kind, _, sequence, _ = HEADER.unpack_from(datagram, at)
        if length < HEADER.size:
            return
        yield sequence, kind, datagram[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, filled up to a multiple of 4."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each attribute."""
    at = 0
    while at + _ATTRIBUTE.size <= len(octets):
        length, kind = _ATTRIBUTE.unpack_from(octets, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, octets[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
