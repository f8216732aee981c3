"""One owner name's RRsets as one `bytes` object: what a million records cost in memory is decided here.

look u32: when the lease queue looks at the name next, seconds since 1970, 0 for never
case length u8 | case: which octets of the folded owner came in upper case, a bit each, the first octet's lowest
per RRset: type u16 | TTL u32 | count u16 | count times: expires u32 (0 permanent), RDLENGTH u16, rdata
"""

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from server.zone.model import StoredRR

_RRSET: Final = struct.Struct("!HIH")
_RR: Final = struct.Struct("!IH")
_ONE: Final = struct.Struct("!HIHIH")  # both, of an RRset with one record
_LOOK: Final = struct.Struct("!I")
_CASE: Final = _LOOK.size  # where the length of the case stands
_RRSETS: Final = _CASE + 1  # with it, where the RRsets begin
_LOWER_HEAD: Final = b"\0"
_UPPER: Final = bytes(ord("1") if 65 <= octet <= 90 else ord("0") for octet in range(256))
_CASE_BIT: Final = bytes(32 if octet == ord("1") else 0 for octet in range(256))
NEVER: Final = bytes(_LOOK.size)
PERMANENT: Final = 0
_SELDOM: Final = (2, 39)  # NS and DNAME: the zone must know of them


class RRset(NamedTuple):
    """Records of one owner and type. `expires` runs beside `rdatas`: seconds since 1970, 0 for permanent."""

    rtype: int
    ttl: int
    rdatas: tuple[bytes, ...]
    expires: tuple[int, ...]

    def live(self, now: int) -> "RRset | None":
        """What of it has not lapsed at `now`; None when nothing is left."""
        if not any(0 < at <= now for at in self.expires):
            return self
        kept = [(rdata, at) for rdata, at in zip(self.rdatas, self.expires, strict=True) if not 0 < at <= now]
        if not kept:
            return None
        return RRset(self.rtype, self.ttl, tuple(rdata for rdata, _ in kept), tuple(at for _, at in kept))

    def answered_ttl(self, now: int) -> int:
        """TTL capped by the shortest remaining lease, so that no cache outlives the record."""
        earliest = min((at for at in self.expires if at), default=0)
        return min(self.ttl, earliest - now) if earliest else self.ttl


class Node(NamedTuple):
    """A decoded owner name: its case as first received, and its RRsets by type."""

    owner: bytes
    rrsets: dict[int, RRset]


def look_of(blob: bytes) -> int:
    """When the lease queue looks at the name next."""
    return int.from_bytes(blob[:_CASE], "big")


def with_look(blob: bytes, at: int) -> bytes:
    return _LOOK.pack(at) + blob[_CASE:]


def _case_head(owner: bytes) -> bytes:
    """Length and case of an owner that is not all lower."""
    bits = int(owner.translate(_UPPER)[::-1], 2)
    size = (bits.bit_length() + 7) // 8
    return (size | bits << 8).to_bytes(size + 1, "little")


@lru_cache(maxsize=4096)  # names given by machines of a kind have their upper-case letters in the same places
def _marks(case: bytes) -> tuple[int, int]:
    """How many octets of a name they reach over, and their case bits in these."""
    marks = f"{int.from_bytes(case, 'little'):b}".encode()[::-1].translate(_CASE_BIT)
    return len(marks), int.from_bytes(marks, "little")


def _owner(key: bytes, case: bytes) -> bytes:
    size, marks = _marks(case)
    return (int.from_bytes(key[:size], "little") ^ marks).to_bytes(size, "little") + key[size:]


def encode_node(key: bytes, node: Node, look: bytes = NEVER) -> bytes:
    """The blob of a node. `key` is the folded owner, `look` what its blob begins with."""
    out = [look, _LOWER_HEAD if node.owner == key else _case_head(node.owner)]
    for rtype, ttl, rdatas, expires in node.rrsets.values():
        if len(rdatas) == 1:  # most RRsets
            rdata = rdatas[0]
            out += (_ONE.pack(rtype, ttl, 1, expires[0], len(rdata)), rdata)
            continue
        out.append(_RRSET.pack(rtype, ttl, len(rdatas)))
        for rdata, at in zip(rdatas, expires, strict=True):
            out += (_RR.pack(at, len(rdata)), rdata)
    return b"".join(out)


def encode_rows(
    key: bytes, rows: Sequence[tuple[bytes, int, int, bytes, int | None]], *, is_watched: bool
) -> tuple[bytes, int] | None:
    """The blob of stored rows of one owner and the first moment one lapses, 0 for none; what loading a zone takes.

    Only for rows of which no two have the same type, as most names have them, and none cuts the zone; None for others.
    `is_watched`: the lease queue looks at it at that moment.
    """
    owner = rows[0][0]
    out = [NEVER, _LOWER_HEAD if owner == key else _case_head(owner)]
    earliest = previous = 0
    for _, rtype, ttl, rdata, expires_at in rows:
        if rtype <= previous or rtype in _SELDOM:
            return None
        previous = rtype
        if expires_at and (expires_at < earliest or not earliest):
            earliest = expires_at
        out += (_ONE.pack(rtype, ttl, 1, expires_at or PERMANENT, len(rdata)), rdata)
    if is_watched and earliest:
        out[0] = _LOOK.pack(earliest)
    return b"".join(out), earliest


def decode_node(key: bytes, blob: bytes) -> Node:
    """Take a blob apart again."""
    size = blob[_CASE]
    position = _RRSETS + size
    owner = _owner(key, blob[_RRSETS:position]) if size else key
    rrsets: dict[int, RRset] = {}
    make = tuple.__new__  # half the time of calling a NamedTuple
    end = len(blob)
    while position < end:
        rtype, ttl, count, at, length = _ONE.unpack_from(blob, position)  # no RRset is shorter
        if count == 1:
            start = position + 14
            position = start + length
            rrsets[rtype] = make(RRset, (rtype, ttl, (blob[start:position],), (at,)))
            continue
        position += 8
        rdatas: list[bytes] = []
        expires: list[int] = []
        for _ in range(count):
            at, length = _RR.unpack_from(blob, position)
            position += 6
            expires.append(at)
            rdatas.append(blob[position : position + length])
            position += length
        rrsets[rtype] = RRset(rtype, ttl, tuple(rdatas), tuple(expires))
    return make(Node, (owner, rrsets))


def find_rrset(blob: bytes, wanted: int) -> RRset | None:
    """One RRset out of a blob without decoding the others."""
    position = _RRSETS + blob[_CASE]
    end = len(blob)
    while position < end:
        rtype, ttl, count = _RRSET.unpack_from(blob, position)
        position += 8
        if rtype != wanted:
            for _ in range(count):
                position += 6 + (blob[position + 4] << 8 | blob[position + 5])
            continue
        rdatas: list[bytes] = []
        expires: list[int] = []
        for _ in range(count):
            at, length = _RR.unpack_from(blob, position)
            position += 6
            expires.append(at)
            rdatas.append(blob[position : position + length])
            position += length
        return RRset(rtype, ttl, tuple(rdatas), tuple(expires))
    return None


def has_type(blob: bytes, wanted: int) -> bool:
    return find_rrset(blob, wanted) is not None


def node_from_records(records: Iterable[StoredRR]) -> Node:
    """Build a node from stored rows of one owner; the first row's case and each RRset's last TTL win."""
    owner = b""
    grouped: dict[int, list[StoredRR]] = {}
    for record in records:
        owner = owner or record.owner
        grouped.setdefault(record.rtype, []).append(record)
    return Node(
        owner,
        {
            rtype: RRset(
                rtype,
                rows[-1].ttl,
                tuple(row.rdata for row in rows),
                tuple(row.expires_at or PERMANENT for row in rows),
            )
            for rtype, rows in grouped.items()
        },
    )


def earliest_lapse(node: Node) -> int:
    """The first moment at which one of its records lapses; 0 when none does."""
    earliest = 0
    for rrset in node.rrsets.values():
        for at in rrset.expires:
            if at and (at < earliest or not earliest):
                earliest = at
    return earliest
