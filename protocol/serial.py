"""Serial number arithmetic of SOA serials (RFC 1982, 32 bits)."""

from typing import Final

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


def is_newer(candidate: int, current: int) -> bool:
    """Whether `candidate` is after `current`; a distance of exactly 2^31 is undefined and counts as not newer."""
    return 0 < ((candidate - current) & _MASK) < _HALF


def next_serial(current: int) -> int:
    """The serial after `current`: one more, never 0 (RFC 2136 §4.1 leaves 0 to mean 'unset' in old tools)."""
    return (current + 1) & _MASK or 1
