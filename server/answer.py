"""RFC 1034 §4.3.2 on the snapshot: what the answer to a question is, before it is written to the wire."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol.constants import Rcode, Type
from protocol.name import fold, name_at, parent
from protocol.rdata import soa_minimum
from server.zone.model import RR
from server.zone.node import RRset, has_type
from server.zone.zone import Zone

MAX_CHAIN: Final = 16  # CNAMEs and DNAMEs followed in one answer
_WILDCARD: Final = b"\x01*"
# Where the host name in their rdata begins.
_TARGET_AT: Final[dict[int, int]] = {
    Type.NS: 0,
    Type.SRV: 6,
    **dict.fromkeys((Type.MX, Type.AFSDB, Type.RT, Type.KX, Type.SVCB, Type.HTTPS), 2),
}
_BINDINGS: Final = (Type.SVCB, Type.HTTPS)
_BESIDE_CNAME: Final = (Type.RRSIG, Type.NSEC, Type.KEY)  # asked for at an alias, they mean the alias (RFC 4035 §2.5)


@dataclass(slots=True)
class Answer:
    """RCODE, AA, and the records of each section. RRs of one RRset stand together."""

    rcode: Rcode = Rcode.NOERROR
    is_authoritative: bool = True
    answers: list[RR] = field(default_factory=list)
    authority: list[RR] = field(default_factory=list)
    additional: list[RR] = field(default_factory=list)


def resolve(zone: Zone, name: bytes, rtype: int, now: int) -> Answer:
    """Answer one question of class IN from `zone`, which encloses it. `now`: seconds since 1970, for leases."""
    answer = Answer()
    owner = name
    visited: set[bytes] = set()
    for _ in range(MAX_CHAIN):
        key = fold(owner)
        if key in visited:
            answer.rcode = Rcode.SERVFAIL  # a loop, each alias told once (RFC 1034 §3.6.2: signalled as an error)
            break
        visited.add(key)
        cut = _cut_above(zone, key, rtype)
        if cut is not None:
            target = _follow_dname(zone, cut, owner, key, now, answer)
            if target is None:
                _refer(zone, cut, now, answer)
                break
            if target == b"" or rtype in (Type.CNAME, Type.ANY):
                break  # too long; or the CNAME made is what was asked for, as one in the zone would be
            owner = target
        else:
            target = _at_name(zone, owner, key, rtype, now, answer)
            if target is None:
                break
            owner = target
        if not _is_in(zone, fold(owner)):
            break
    if rtype != Type.ANY or not answer.answers:
        answer.additional += addresses(zone, (*answer.answers, *answer.authority), now)
    return answer


def _is_in(zone: Zone, key: bytes) -> bool:
    while key != zone.apex:
        if not key[0]:
            return False
        key = parent(key)
    return True


def _cut_above(zone: Zone, key: bytes, rtype: int) -> bytes | None:
    """The highest delegation or DNAME that takes authority over `key` away, if any."""
    if not zone.cuts:
        return None
    found = None
    position = key
    while True:
        if position in zone.cuts and not (position == key and _stays_above(zone, key, rtype)):
            found = position
        if position == zone.apex:
            return found
        position = parent(position)


def _stays_above(zone: Zone, key: bytes, rtype: int) -> bool:
    """Whether a question at the owner of a cut is still answered here: DS at a delegation, anything at a DNAME."""
    blob = zone.nodes[key]
    if key != zone.apex and has_type(blob, Type.NS):
        return rtype == Type.DS
    return True


def _follow_dname(zone: Zone, cut: bytes, owner: bytes, key: bytes, now: int, answer: Answer) -> bytes | None:
    """The name a DNAME at `cut` rewrites `owner` to; None when the cut is a delegation, b"" when it fails."""
    dname = zone.rrset(cut, Type.DNAME, now)
    if dname is None or (zone.rrset(cut, Type.NS, now) is not None and cut != zone.apex):
        return None
    if not any(rr.rtype == Type.DNAME and rr.owner == cut for rr in answer.answers):
        _append(answer.answers, zone, cut, dname, now)
    prefix = owner[: len(key) - len(cut)]
    target = prefix + dname.rdatas[0]
    if len(target) > 255:
        answer.rcode = Rcode.YXDOMAIN  # RFC 6672 §2.2
        return b""
    answer.answers.append(RR(owner, Type.CNAME, dname.answered_ttl(now), target))
    return target


def _refer(zone: Zone, cut: bytes, now: int, answer: Answer) -> None:
    """Referral: the NS of the cut in Authority, not authoritative unless a CNAME led here."""
    rrset = zone.rrset(cut, Type.NS, now)
    if rrset is not None:
        _append(answer.authority, zone, cut, rrset, now)
    answer.is_authoritative = bool(answer.answers)


def _at_name(zone: Zone, owner: bytes, key: bytes, rtype: int, now: int, answer: Answer) -> bytes | None:
    """Answer at a name inside the zone's authority; returns where a CNAME leads, or None when the answer is whole."""
    source = key
    if not zone.exists(key):
        source = _wildcard_for(zone, key)
        if not source:
            answer.rcode = Rcode.NXDOMAIN
            _add_negative(zone, answer)
            return None
    chosen = _any_rrset(zone, source, now) if rtype == Type.ANY else zone.rrset(source, rtype, now)
    if chosen is not None:
        _append(answer.answers, zone, owner, chosen, now)
        return None
    alias = None if rtype in _BESIDE_CNAME else zone.rrset(source, Type.CNAME, now)
    if alias is not None:
        _append(answer.answers, zone, owner, alias, now)
        return alias.rdatas[0]
    if source in zone.nodes and source not in zone.children and not _any_live(zone, source, now):
        answer.rcode = Rcode.NXDOMAIN  # everything here has lapsed, the sweep is about to say so too
    _add_negative(zone, answer)
    return None


def _any_rrset(zone: Zone, key: bytes, now: int) -> RRset | None:
    """One RRset stands for all (RFC 8482 §4.1)."""
    node = zone.node(key)
    for rrset in node.rrsets.values() if node else ():
        live = rrset.live(now)
        if live is not None:
            return live
    return zone.rrset(key, Type.SOA, now)


def _any_live(zone: Zone, key: bytes, now: int) -> bool:
    return _any_rrset(zone, key, now) is not None


def _wildcard_for(zone: Zone, key: bytes) -> bytes:
    """The wildcard owner at the closest encloser of an absent name; b"" when there is none (RFC 4592 §3.3.1).

    One that exists only as an empty non-terminal is a source too: it makes NODATA out of NXDOMAIN (RFC 4592 §2.2.2).
    """
    encloser = parent(key)
    while not zone.exists(encloser):
        encloser = parent(encloser)
    wildcard = _WILDCARD + encloser
    return wildcard if zone.exists(wildcard) else b""


def _add_negative(zone: Zone, answer: Answer) -> None:
    """The SOA of a negative answer, its TTL the time it may be cached (RFC 2308 §3)."""
    soa = zone.soa_rr()
    answer.authority.append(soa._replace(ttl=min(soa.ttl, soa_minimum(soa.rdata))))


def _append(section: list[RR], zone: Zone, owner: bytes, rrset: RRset, now: int) -> None:
    ttl = rrset.answered_ttl(now)
    section.extend(RR(owner, rrset.rtype, ttl, rdata) for rdata in rrset.rdatas)


def addresses(zone: Zone, records: Sequence[RR], now: int) -> list[RR]:
    """A and AAAA of the hosts that records of an answer name, as far as this zone knows them, wildcards included.

    A service binding comes with those of its type at its target too, to which it may be an alias (RFC 9460 §4.1).

    What lies below a cut is glue: told with the NS that need it, not as data of ours beside others (RFC 2181 §5.4.1).
    """
    found: list[RR] = []
    seen = {(fold(rr.owner), rr.rtype) for rr in records}
    for rr in records:
        at = _TARGET_AT.get(rr.rtype)
        if at is None:
            continue
        target = name_at(rr.rdata, at)
        if target == b"\0" and rr.rtype in _BINDINGS:
            target = rr.owner  # RFC 9460 §2.5.2
        key = fold(target)
        if not key or not _is_in(zone, key) or (rr.rtype != Type.NS and _cut_above(zone, key, Type.A) is not None):
            continue
        source = key if zone.exists(key) else _wildcard_for(zone, key)
        for rtype in (Type.A, Type.AAAA, rr.rtype) if rr.rtype in _BINDINGS else (Type.A, Type.AAAA):
            if (key, rtype) in seen:
                continue
            seen.add((key, rtype))
            rrset = zone.rrset(source, rtype, now) if source else None
            if rrset is not None:
                _append(found, zone, target, rrset, now)
    return found
