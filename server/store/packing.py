"""Octets of the store: journal entries as packed RRs, the keys that names are ordered by, rows of nodes.

    packed RR: owner length u8 | owner | type u16 | TTL u32 | RDLENGTH u16 | rdata

    packed item: type u16 | RDLENGTH u16 | rdata

Nothing here knows SQL; both stores use it.
"""

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from protocol.errors import DecodeError
from protocol.name import fold
from server.store.api import StoreError
from server.zone.model import RR
from server.zone.node import Node, StoredNode, check_node

_OCTETS: Final = tuple(bytes((octet,)) for octet in range(256))
_FIXED: Final = struct.Struct("!HIH")
_ITEM: Final = struct.Struct("!HH")


def pack_rrs(records: Iterable[RR]) -> bytes:
    """Records as one `bytes`, in order."""
    out: list[bytes] = []
    for owner, rtype, ttl, rdata in records:
        out += (_OCTETS[len(owner)], owner, _FIXED.pack(rtype, ttl, len(rdata)), rdata)
    return b"".join(out)


def unpack_rrs(packed: bytes) -> tuple[RR, ...]:
    """What `pack_rrs` wrote; `DecodeError` when it is cut short."""
    out: list[RR] = []
    position = 0
    end = len(packed)
    while position < end:
        start = position + 1
        stop = start + packed[position]
        if stop + 8 > end:
            raise DecodeError("packed record is cut short", position)
        rtype, ttl, size = _FIXED.unpack_from(packed, stop)
        after = stop + 8 + size
        if after > end:
            raise DecodeError("packed rdata is cut short", position)
        out.append(RR(packed[start:stop], rtype, ttl, packed[stop + 8 : after]))
        position = after
    return tuple(out)


def pack_items(items: Iterable[tuple[int, bytes]]) -> bytes:
    """Records of one owner without TTL, (type, rdata) each, as one `bytes`; equal sets give equal octets."""
    return b"".join(_ITEM.pack(rtype, len(rdata)) + rdata for rtype, rdata in sorted(items))


def unpack_items(packed: bytes) -> list[tuple[int, bytes]]:
    """What `pack_items` wrote; `DecodeError` when it is cut short."""
    out: list[tuple[int, bytes]] = []
    position = 0
    while position < len(packed):
        start = position + _ITEM.size
        if start > len(packed):
            raise DecodeError("packed item is cut short", position)
        rtype, size = _ITEM.unpack_from(packed, position)
        if start + size > len(packed):
            raise DecodeError("packed item is cut short", position)
        out.append((rtype, packed[start : start + size]))
        position = start + size
    return out


@lru_cache(maxsize=4096)  # the records of a commit have their owners in common
def order_key(folded: bytes) -> bytes:
    """A folded name as octets that sort in canonical order and keep a subtree together (RFC 4034 §6.1).

    Labels from the root down, each ended by 0; 0 and 1 inside a label become 1 1 and 1 2.
    """
    labels: list[bytes] = []
    position = 0
    while size := folded[position]:
        label = folded[position + 1 : position + 1 + size]
        labels.append(label.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1"))
        position += size + 1
    labels.append(b"")
    labels.reverse()
    return b"\0".join(labels[1:]) + b"\0" if len(labels) > 1 else b""


def subtree_bounds(folded: bytes) -> tuple[bytes, bytes]:
    """`(low, high)` with low <= order_key(n) < high exactly for names at and below `folded`."""
    low = order_key(folded)
    return (low, low[:-1] + b"\1") if low else (b"", b"\xff" * 512)


def checked_nodes(zone_id: int, rows: Iterable[Any]) -> list[StoredNode]:
    """Rows of owner and data; `StoreError` names the first that is damaged."""
    nodes: list[StoredNode] = []
    for owner, data in rows:
        try:
            nodes.append(check_node(owner, data))
        except DecodeError as error:
            raise StoreError(f"the database is damaged at {owner!r} in zone number {zone_id}: {error}") from None
    return nodes


def decoded_nodes(zone_id: int, rows: Iterable[Any]) -> dict[bytes, Node]:
    """The same by folded owner, taken apart."""
    return {fold(stored.owner): stored.decode() for stored in checked_nodes(zone_id, rows)}
