"""One owner name's RRsets as octets: what a million records cost in the database and in memory is decided here.

As stored, version 1; what a lease ends at fits until 2106:

    version u8 = 1
    per RRset, in ascending order of types: type u16 | TTL u32 | count u16
        count times: expires u32 (seconds since 1970, 0 permanent) | RDLENGTH u16 | rdata

In memory, one `bytes`:

    look u32: when the lease queue looks at the name next, seconds since 1970, 0 for never
    case length u8 | case: which octets of the folded owner came in upper case, a bit each, the first octet's lowest
    RRsets as stored
"""

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from protocol.constants import Type
from protocol.errors import DecodeError
from protocol.rdata import canonical
from server.zone.model import StoredRR

VERSION: Final = b"\1"
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
NEVER_LAPSES: Final = bytes(4)  # the same in octets
FOREVER: Final = 1 << 62  # a last second that does not come
_CNAME: Final = Type.CNAME.to_bytes(2, "big")
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

    def records(self) -> Iterator[StoredRR]:
        """Its records by type and canonical rdata."""
        for rtype, rrset in sorted(self.rrsets.items()):
            rows = zip(rrset.rdatas, rrset.expires, strict=True)
            for rdata, at in sorted(rows, key=lambda row: canonical(rtype, row[0])):
                yield StoredRR(self.owner, rtype, rrset.ttl, rdata, at or None)


class StoredNode(NamedTuple):
    """An owner name as the store holds it, looked through by `check_node`."""

    owner: bytes
    data: bytes
    lapses_at: int  # the first moment at which one of its records lapses, 0 when none does
    may_cut: bool  # whether it has NS or DNAME

    def decode(self) -> Node:
        return Node(self.owner, _decode(self.data, len(VERSION)))


def encode_node(node: Node) -> bytes:
    """The RRsets of a node as they are stored: equal octets for equal ones."""
    out = [VERSION]
    rrsets = node.rrsets
    for key in sorted(rrsets):
        rtype, ttl, rdatas, expires = rrsets[key]
        if len(rdatas) == 1:  # most RRsets
            rdata = rdatas[0]
            out += (_ONE.pack(rtype, ttl, 1, expires[0], len(rdata)), rdata)
            continue
        out.append(_RRSET.pack(rtype, ttl, len(rdatas)))
        for rdata, at in zip(rdatas, expires, strict=True):
            out += (_RR.pack(at, len(rdata)), rdata)
    return b"".join(out)


def check_node(owner: bytes, data: bytes) -> StoredNode:
    """Look through a row of the store; `DecodeError` when it is damaged or of a later version."""
    try:
        end = 0
        while size := owner[end]:
            end += size + 1
        if end != len(owner) - 1:
            raise DecodeError("octets follow the owner name", end)
        if data[:1] != VERSION:
            raise DecodeError(f"version is {data[:1].hex() or 'missing'}", 0)
        position = 1
        end = len(data)
        lapses_at = previous = 0
        may_cut = False
        while position < end:
            rtype, _, count, at, size = _ONE.unpack_from(data, position)
            if rtype <= previous or not count:
                raise DecodeError("types are not in order, or an RRset is empty", position)
            previous = rtype
            if rtype in _SELDOM:
                may_cut = True
            position += 14 + size
            if at and (at < lapses_at or not lapses_at):
                lapses_at = at
            while count > 1:
                count -= 1
                at, size = _RR.unpack_from(data, position)
                position += 6 + size
                if at and (at < lapses_at or not lapses_at):
                    lapses_at = at
        if position != end or not previous:
            raise DecodeError("rdata is cut short", position)
    except (struct.error, IndexError, TypeError):  # TypeError: SQLite keeps what is no BLOB in any column
        raise DecodeError("the node or its owner name is cut short", len(data or b"")) from None
    return StoredNode(owner, data, lapses_at, may_cut)


def to_blob(key: bytes, owner: bytes, data: bytes, look: bytes = NEVER) -> bytes:
    """What memory holds of a stored node. `key` is the folded owner, `look` what the blob begins with."""
    return look + (_LOWER_HEAD if owner == key else _case_head(owner)) + data[len(VERSION) :]


def data_of(blob: bytes) -> bytes:
    """What the store holds of a blob."""
    return VERSION + blob[_RRSETS + blob[_CASE] :]


def look_octets(at: int) -> bytes:
    return _LOOK.pack(at)


def look_of(blob: bytes) -> int:
    """When the lease queue looks at the name next."""
    return int.from_bytes(blob[:_CASE], "big")


def with_look(blob: bytes, at: int) -> bytes:
    return _LOOK.pack(at) + blob[_CASE:]


def _case_head(owner: bytes) -> bytes:
    """Length and case of an owner that is not all lower."""
    return _packed_case(owner.translate(_UPPER))


@lru_cache(maxsize=4096)  # names given by machines of a kind have their upper-case letters in the same places
def _packed_case(marks: bytes) -> bytes:
    bits = int(marks[::-1], 2)
    size = (bits.bit_length() + 7) // 8
    return (size | bits << 8).to_bytes(size + 1, "little")


@lru_cache(maxsize=4096)
def _marks(case: bytes) -> tuple[int, int]:
    """How many octets of a name they reach over, and their case bits in these."""
    marks = f"{int.from_bytes(case, 'little'):b}".encode()[::-1].translate(_CASE_BIT)
    return len(marks), int.from_bytes(marks, "little")


def _owner(key: bytes, case: bytes) -> bytes:
    size, marks = _marks(case)
    return (int.from_bytes(key[:size], "little") ^ marks).to_bytes(size, "little") + key[size:]


def decode_node(key: bytes, blob: bytes) -> Node:
    """Take a blob apart again."""
    size = blob[_CASE]
    position = _RRSETS + size
    owner = _owner(key, blob[_RRSETS:position]) if size else key
    return tuple.__new__(Node, (owner, _decode(blob, position)))


def _decode(octets: bytes, position: int) -> dict[int, RRset]:
    """The RRsets that begin at `position`, by type."""
    rrsets: dict[int, RRset] = {}
    make = tuple.__new__  # half the time of calling a NamedTuple
    end = len(octets)
    while position < end:
        rtype, ttl, count, at, length = _ONE.unpack_from(octets, position)  # no RRset is shorter
        if count == 1:
            start = position + 14
            position = start + length
            rrsets[rtype] = make(RRset, (rtype, ttl, (octets[start:position],), (at,)))
            continue
        position += 8
        rdatas: list[bytes] = []
        expires: list[int] = []
        for _ in range(count):
            at, length = _RR.unpack_from(octets, position)
            position += 6
            expires.append(at)
            rdatas.append(octets[position : position + length])
            position += length
        rrsets[rtype] = RRset(rtype, ttl, tuple(rdatas), tuple(expires))
    return rrsets


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


def locate(blob: bytes, wanted: bytes, now: int) -> tuple[int, int]:
    """Where in a blob the wanted RRset begins; 0: nowhere, -1: it takes a closer look, at an alias or what has lapsed.

    `wanted` is the type in octets. With 0, the last second before anything of the node lapses: only then may another
    type, or none, be there.
    """
    position = _RRSETS + blob[_CASE]
    end = len(blob)
    until = FOREVER
    while position < end:
        rtype = blob[position : position + 2]
        if rtype == wanted:
            return position, until
        if rtype == _CNAME:
            return -1, until
        count = blob[position + 6] << 8 | blob[position + 7]
        position += 8
        for _ in range(count):
            expires = blob[position : position + 4]
            if expires != NEVER_LAPSES:
                until = min(until, int.from_bytes(expires, "big") - 1)
            position += 6 + (blob[position + 4] << 8 | blob[position + 5])
    return (0, until) if until >= now else (-1, until)


def live_records(blob: bytes, at: int, now: int) -> tuple[bytes, list[bytes], int] | None:
    """Of the RRset that begins at `at` in a blob: TTL, rdatas each behind its length, the last second at which
    they are told so. None when one of them has lapsed."""
    ttl = blob[at + 2 : at + 6]
    position = at + 8
    rdatas: list[bytes] = []
    earliest = 0
    for _ in range(blob[at + 6] << 8 | blob[at + 7]):
        expires = blob[position : position + 4]
        if expires != NEVER_LAPSES:
            moment = int.from_bytes(expires, "big")
            if not earliest or moment < earliest:
                earliest = moment
        stop = position + 6 + (blob[position + 4] << 8 | blob[position + 5])
        rdatas.append(blob[position + 4 : stop])
        position = stop
    if not earliest:
        return ttl, rdatas, FOREVER
    if earliest <= now:
        return None
    whole = int.from_bytes(ttl, "big")
    return min(whole, earliest - now).to_bytes(4, "big"), rdatas, earliest - max(whole, 1)


def has_type(blob: bytes, wanted: int) -> bool:
    return find_rrset(blob, wanted) is not None


def node_from_records(records: Iterable[StoredRR]) -> Node:
    """Build a node from records of one owner; the first one's case and each RRset's last TTL win."""
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
