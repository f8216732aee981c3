"""UPDATE as machines send it - the addresses and texts of one name set anew, or said again to keep their lease.

What `apply_update` on a draft and `Differences` find, found in one pass over the operations: no draft, no comparing of
what nobody touched. Anything unusual is left to them, untouched; `tests/property/test_plain_update.py` holds both to
the same nodes, rows and changes.
"""

from typing import Final

from protocol.constants import Class, Type
from server.zone.draft import Draft, NodeDifference
from server.zone.model import RR
from server.zone.node import Node, RRset
from server.zone.update import MAX_TYPES, Update

_IN, _ANY, _CNAME = int(Class.IN), int(Class.ANY), int(Type.CNAME)
# No rule of their own, and rdata that is equal only octet by octet.
_PLAIN: Final = frozenset(map(int, (Type.A, Type.AAAA, Type.TXT, Type.HINFO, Type.DHCID)))
MAX_RECORDS: Final = 16  # of an RRset here; longer ones are left to `apply_update`, which looks to the bounds


def apply_plain(batch: Draft, update: Update, expires: int) -> NodeDifference | None:
    """Carry out `update` on the draft of a batch: what it changes at its one name; None when it is not that plain.

    `expires`: the moment at which what it adds lapses, 0 for permanent, as `LeaseTerms` with `keeps_permanent`.
    With None nothing has happened. The caller moves the serial and tells the change.
    """
    if update.prerequisites or not update.ops:
        return None
    key = update.ops[0][1]
    node = batch.node(key)
    rrsets = {} if node is None else node.rrsets
    if key == batch.apex or _CNAME in rrsets or len(rrsets) > MAX_TYPES - len(_PLAIN):
        return None
    make = tuple.__new__  # half the time of calling a NamedTuple
    fresh: dict[int, RRset | None] = {}
    for _, name, rtype, rclass, ttl, rdata in update.ops:
        if name != key or rtype not in _PLAIN:
            return None
        if rclass == _ANY:
            fresh[rtype] = None
            continue
        if rclass != _IN:
            return None
        have = fresh[rtype] if rtype in fresh else rrsets.get(rtype)
        if have is None:
            fresh[rtype] = make(RRset, (rtype, ttl, (rdata,), (expires,)))
            continue
        _, _, rdatas, ends = have
        if rdata not in rdatas:
            if len(rdatas) >= MAX_RECORDS:
                return None
            fresh[rtype] = make(RRset, (rtype, ttl, (*rdatas, rdata), (*ends, expires)))
            continue
        at = rdatas.index(rdata)
        end = expires if ends[at] else 0  # what is permanent stays so
        fresh[rtype] = make(RRset, (rtype, ttl, rdatas, (*ends[:at], end, *ends[at + 1 :])))
    found = NodeDifference()
    owner = update.ops[0][0] if node is None else node.owner
    for rtype, new in fresh.items():
        old = rrsets.get(rtype)
        if new != old:
            _compare(found, owner, rtype, old, new)
    if found.is_anything:
        kept = {**rrsets, **fresh}
        if None in fresh.values():
            kept = {rtype: rrset for rtype, rrset in kept.items() if rrset is not None}
        batch.touched[key] = make(Node, (owner, kept)) if kept else None
    return found


def _compare(found: NodeDifference, owner: bytes, rtype: int, old: RRset | None, new: RRset | None) -> None:
    make = tuple.__new__
    _, old_ttl, olds, old_ends = old or _NONE
    _, ttl, news, ends = new or _NONE
    for rdata in olds:
        if rdata not in news:
            found.removed.append(make(RR, (owner, rtype, old_ttl, rdata)))
    for rdata, end in zip(news, ends, strict=True):
        was = rdata in olds
        if not was or old_ttl != ttl:
            if was:
                found.removed.append(make(RR, (owner, rtype, old_ttl, rdata)))
            found.added.append(make(RR, (owner, rtype, ttl, rdata)))
        elif old_ends[olds.index(rdata)] != end:
            found.moves_lease = True


_NONE: Final = RRset(0, 0, (), ())
