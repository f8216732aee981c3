"""UPDATE messages of the form that nearly all have, read in one walk over their octets.

It gives what `protocol.message.decode`, `read_update` and `update_lease` give for the same octets, or None for a
message with anything unusual in it, well formed or not, which they then take apart and judge;
`tests/property/test_common_update.py` holds both together. The form: one zone, no prerequisites, names written out or
ending in a pointer to a name met before, an OPT without options or with an update lease alone, a TSIG last.
"""

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from protocol.constants import HEADER_OCTETS, MAX_LABEL_OCTETS, MAX_NAME_OCTETS, META_TYPES, Class, Type
from protocol.edns import UpdateLease
from protocol.errors import DecodeError
from protocol.name import is_at_or_below
from protocol.rdata import expand
from server.zone.update import MAX_RDATA_OCTETS, MAX_TTL, Update, UpdateOp

_RR_FIXED: Final = struct.Struct("!HHIH")
_ONE_ZONE: Final = b"\x00\x01\x00\x00"  # QDCOUNT, ANCOUNT
_SOA_IN: Final = b"\x00\x06\x00\x01"
_OPT_HEAD: Final = b"\x00\x00\x29"
_OPT_FIXED: Final = 11
_LEASE: Final = b"\x00\x02\x00\x04"
_KEY_LEASE: Final = b"\x00\x02\x00\x08"
_POINTER: Final = 0xC0
_IN, _NONE, _ANY, _ANY_TYPE = int(Class.IN), int(Class.NONE), int(Class.ANY), int(Type.ANY)
_FIXED_RDATA: Final = {int(Type.A): 4, int(Type.AAAA): 16}


class CommonUpdate(NamedTuple):
    """What was read. `zone_end`: octet after the zone section; `tsig_at`: where the TSIG begins.

    `dnssec_ok`: the bit of the OPT, None when there is none.
    """

    update: Update
    lease: UpdateLease | None
    zone_end: int
    dnssec_ok: bool | None
    tsig_at: int


def read_common_update(wire: bytes) -> CommonUpdate | None:
    """`wire` has the header of an UPDATE request."""
    try:
        return _read(wire)
    except (LookupError, struct.error, DecodeError):  # past the end, or a pointer to what is no name met before
        return None


def _read(wire: bytes) -> CommonUpdate | None:
    end = wire.find(0, HEADER_OCTETS) + 1
    position = end + len(_SOA_IN)
    extra = wire[10] << 8 | wire[11]
    if wire[4:8] != _ONE_ZONE or not 1 <= extra <= 2 or wire[end:position] != _SOA_IN:
        return None
    zone = _zone(wire[HEADER_OCTETS:end])
    if zone is None:
        return None
    apex = zone[1]
    names = {HEADER_OCTETS: zone}
    ops: list[UpdateOp] = []
    make = tuple.__new__  # half the time of calling a NamedTuple
    fixed_at = _RR_FIXED.unpack_from
    for _ in range(wire[8] << 8 | wire[9]):
        first = wire[position]
        if first >= _POINTER:
            owner, key = names[(first & 0x3F) << 8 | wire[position + 1]]
            at = position + 2
        else:
            at = position
            while 0 < (size := wire[at]) <= MAX_LABEL_OCTETS:
                at += size + 1
            if not size:
                at += 1
                owner = wire[position:at]
                key = owner.lower()
                if not is_at_or_below(key, apex):
                    return None
            else:
                if size < _POINTER:
                    return None
                owner = wire[position:at] + names[(size & 0x3F) << 8 | wire[at + 1]][0]
                key = owner.lower()
                at += 2
            if len(owner) > MAX_NAME_OCTETS:
                return None
            names[position] = owner, key
        rtype, rclass, ttl, rdlength = fixed_at(wire, at)
        at += 10
        position = at + rdlength
        if rclass == _ANY:
            if ttl or rdlength or (rtype in META_TYPES and rtype != _ANY_TYPE):
                return None
            ops.append(make(UpdateOp, (owner, key, rtype, rclass, 0, b"")))
            continue
        if rclass == _NONE:
            if ttl:
                return None
        elif rclass != _IN:
            return None
        if _FIXED_RDATA.get(rtype) == rdlength:
            rdata = wire[at:position]
        elif rtype in META_TYPES:
            return None
        else:
            rdata = expand(rtype, wire, at, rdlength)
            if len(rdata) > MAX_RDATA_OCTETS:
                return None
        ops.append(make(UpdateOp, (owner, key, rtype, rclass, ttl if ttl <= MAX_TTL else 0, rdata)))
    zone_end = end + len(_SOA_IN)
    update = make(Update, (apex, (), tuple(ops)))
    if extra == 1:
        return make(CommonUpdate, (update, None, zone_end, None, position))
    fixed = position + _OPT_FIXED
    if wire[position : position + 3] != _OPT_HEAD or wire[position + 6]:  # the version
        return None
    tsig_at = fixed + (wire[fixed - 2] << 8 | wire[fixed - 1])
    options = wire[fixed:tsig_at]
    lease = None
    if options:
        if len(options) == 8 and options[:4] == _LEASE:
            lease = UpdateLease(int.from_bytes(options[4:], "big"))
        elif len(options) == 12 and options[:4] == _KEY_LEASE:
            lease = UpdateLease(int.from_bytes(options[4:8], "big"), int.from_bytes(options[8:], "big"))
        else:
            return None
    return make(CommonUpdate, (update, lease, zone_end, bool(wire[position + 7] & 0x80), tsig_at))


@lru_cache(maxsize=256)
def _zone(name: bytes) -> tuple[bytes, bytes] | None:
    """A name cut at the first zero octet, and folded; None when its labels do not end just there."""
    position = 0
    while size := name[position]:
        if size > MAX_LABEL_OCTETS:
            return None
        position += size + 1
    return (name, name.lower()) if position == len(name) - 1 and len(name) <= MAX_NAME_OCTETS else None
