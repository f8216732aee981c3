"""RFC 2136: zone section, prerequisites, prescan, and the update operations, on a draft.

Each step raises `UpdateError` with the RCODE the RFC names; the draft is then dropped. Lapsed records must already be
gone from the base (the writer lapses before it updates), so the rules here see only live data.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from protocol.constants import Class, Rcode, Type, is_meta_type, type_text
from protocol.edns import UpdateLease
from protocol.errors import DecodeError
from protocol.message import Message, Record
from protocol.name import fold, to_text
from protocol.rdata import canonical, has_name, soa_serial
from protocol.serial import is_newer
from server.zone.draft import Draft, is_in_zone
from server.zone.node import RRset

_IN, _NONE, _ANY = int(Class.IN), int(Class.NONE), int(Type.ANY)  # plain: enumerations are slow to reach
_SINGLETONS: Final = (int(Type.CNAME), int(Type.DNAME))
_CNAME, _KEY, _WKS = int(Type.CNAME), int(Type.KEY), int(Type.WKS)
_SPECIAL: Final = (int(Type.SOA), int(Type.NS))
_BESIDE_CNAME: Final = (int(Type.CNAME), int(Type.RRSIG), int(Type.NSEC), int(Type.KEY))  # RFC 4035 §2.5
MAX_TTL: Final = 0x7FFFFFFF  # a TTL with the top bit set is taken as 0 (RFC 2181 §8)
MAX_RDATA_OCTETS: Final = 65535 - 12 - 4 - 10 - 2 * 255  # more fits in no answer; expanding names can make more
MAX_RRSET_RECORDS: Final = 1000  # each add looks at all records of its RRset
MAX_TYPES: Final = 100  # RRsets at one owner name; as BIND's max-types-per-name


class UpdateError(Exception):
    """The update is answered with `rcode`; `reason` is a sentence for the EDE and the log."""

    def __init__(self, rcode: Rcode, reason: str) -> None:
        super().__init__(reason)
        self.rcode = rcode
        self.reason = reason


class Prerequisite(NamedTuple):
    """One RR of section 2. `rdata` is canonical and only set for the value-dependent form."""

    key: bytes
    rtype: int
    rclass: int
    rdata: bytes | None


class UpdateOp(NamedTuple):
    """One RR of section 3: `rclass` IN adds, ANY deletes an RRset (or, type ANY, a name), NONE deletes one RR."""

    owner: bytes
    key: bytes
    rtype: int
    rclass: int
    ttl: int
    rdata: bytes

    @property
    def is_add(self) -> bool:
        return self.rclass == Class.IN


class Update(NamedTuple):
    """An UPDATE whose every section passed its form checks, ready for policy, prerequisites and apply."""

    apex: bytes
    prerequisites: tuple[Prerequisite, ...]
    ops: tuple[UpdateOp, ...]

    @property
    def touched(self) -> tuple[tuple[bytes, int], ...]:
        """(folded owner name, type) of everything it mentions."""
        return (*((item.key, item.rtype) for item in self.prerequisites), *((op.key, op.rtype) for op in self.ops))


def zone_of(message: Message) -> bytes:
    """Folded apex named by the zone section (RFC 2136 §3.1)."""
    if len(message.questions) != 1 or message.questions[0].rtype != Type.SOA:
        raise UpdateError(Rcode.FORMERR, "the zone section must hold one question of type SOA")
    return fold(message.questions[0].name)


def _malformed(section: str, record: Record, reason: str, rcode: Rcode = Rcode.FORMERR) -> UpdateError:
    return UpdateError(rcode, f"{section} {to_text(record.name)} {type_text(record.rtype)}: {reason}")


def read_update(message: Message, apex: bytes) -> Update:
    """Check the form of every RR of sections 2 and 3 (RFC 2136 §3.2.5, §3.4.1.3), changing nothing."""
    prerequisites = []
    for record in message.answers:
        key = fold(record.name)
        if record.ttl != 0:
            raise _malformed("prerequisite", record, "TTL must be 0")
        if not is_in_zone(key, apex):
            raise _malformed("prerequisite", record, f"name outside the zone {to_text(apex)}", Rcode.NOTZONE)
        rdata: bytes | None = None
        if record.rclass in (Class.ANY, Class.NONE):
            if record.rdlength:
                raise _malformed("prerequisite", record, "rdata must be empty")
            if record.rtype != Type.ANY and is_meta_type(record.rtype):
                raise _malformed("prerequisite", record, "not a data type")
        elif record.rclass == Class.IN:
            if is_meta_type(record.rtype):
                raise _malformed("prerequisite", record, "not a data type")
            try:
                rdata = canonical(record.rtype, record.rdata(message.wire))
            except DecodeError as error:
                raise _malformed("prerequisite", record, f"{error.reason}") from None
        else:
            raise _malformed("prerequisite", record, "class must be IN, ANY or NONE")
        prerequisites.append(Prerequisite(key, record.rtype, record.rclass, rdata))
    ops = []
    for record in message.authority:
        key = fold(record.name)
        if not is_in_zone(key, apex):
            raise _malformed("update", record, f"name outside the zone {to_text(apex)}", Rcode.NOTZONE)
        data = b""
        if record.rclass == Class.ANY:
            if record.ttl or record.rdlength:
                raise _malformed("update", record, "a delete must have TTL 0 and no rdata")
            if record.rtype != Type.ANY and is_meta_type(record.rtype):
                raise _malformed("update", record, "not a data type")
        elif record.rclass in (Class.IN, Class.NONE):
            if record.rclass == Class.NONE and record.ttl:
                raise _malformed("update", record, "a delete must have TTL 0")
            if is_meta_type(record.rtype):
                raise _malformed("update", record, "not a data type")
            try:
                data = record.rdata(message.wire)
            except DecodeError as error:
                raise _malformed("update", record, f"{error.reason}") from None
            if len(data) > MAX_RDATA_OCTETS:
                raise _malformed("update", record, "rdata too long for any answer")
        else:
            raise _malformed("update", record, "class must be IN, ANY or NONE")
        ttl = record.ttl if record.ttl <= MAX_TTL else 0
        ops.append(UpdateOp(record.name, key, record.rtype, record.rclass, ttl, data))
    return Update(apex, tuple(prerequisites), tuple(ops))


def check_prerequisites(draft: Draft, prerequisites: tuple[Prerequisite, ...]) -> None:
    """RFC 2136 §3.2: literal zone data, no wildcards, no CNAME; empty non-terminals are not in use.

    The value-dependent sets are compared after all others, as the pseudo code does.
    """
    wanted: dict[tuple[bytes, int], set[bytes]] = {}
    for item in prerequisites:
        if item.rdata is not None:
            wanted.setdefault((item.key, item.rtype), set()).add(item.rdata)
        elif item.rtype == Type.ANY:
            in_use = item.key == draft.apex or draft.node(item.key) is not None
            if item.rclass == Class.ANY and not in_use:
                raise UpdateError(Rcode.NXDOMAIN, f"prerequisite: {to_text(item.key)} is not in use")
            if item.rclass == Class.NONE and in_use:
                raise UpdateError(Rcode.YXDOMAIN, f"prerequisite: {to_text(item.key)} is in use")
        else:
            exists = draft.rrset(item.key, item.rtype) is not None
            if item.rclass == Class.ANY and not exists:
                raise UpdateError(Rcode.NXRRSET, f"prerequisite: no RRset {to_text(item.key)} {type_text(item.rtype)}")
            if item.rclass == Class.NONE and exists:
                raise UpdateError(
                    Rcode.YXRRSET, f"prerequisite: there is an RRset {to_text(item.key)} {type_text(item.rtype)}"
                )
    for (key, rtype), rdatas in wanted.items():
        rrset = draft.rrset(key, rtype)
        have = {canonical(rtype, rdata) for rdata in rrset.rdatas} if rrset else set()
        if have != rdatas:
            raise UpdateError(Rcode.NXRRSET, f"prerequisite: RRset {to_text(key)} {type_text(rtype)} differs")


class LeaseTerms(NamedTuple):
    """What the records that an update adds are granted: moments they lapse at, 0 for permanent.

    `keeps_permanent`: a leased re-add leaves a permanent record permanent (D7; RFC 9664 leaves it open).
    """

    expires: int
    key_expires: int
    keeps_permanent: bool = True

    def for_type(self, rtype: int) -> int:
        return self.key_expires if rtype == _KEY else self.expires


PERMANENT_TERMS: Final = LeaseTerms(0, 0)


def granted(wish: UpdateLease, minimum: int, maximum: int, key_maximum: int) -> UpdateLease:
    """Clamp a wish in seconds; the answer has the form of the request (RFC 9664 §4.3)."""
    lease = max(minimum, min(wish.lease, maximum))
    if wish.key_lease is None:
        return UpdateLease(lease)
    return UpdateLease(lease, max(minimum, min(wish.key_lease, key_maximum)))


def apply_update(draft: Draft, update: Update, terms: LeaseTerms) -> None:
    """Carry out section 3 in order on the draft (RFC 2136 §3.4.2).

    `UpdateError` REFUSED when a name or RRset would outgrow our bounds, or a lease would take the apex NS away.
    """
    for op in update.ops:
        _, key, rtype, rclass, _, _ = op
        if rclass == _IN:
            _add(draft, op, terms.for_type(rtype), terms)
        elif rclass == _NONE:
            _delete_rr(draft, op)
        elif rtype == _ANY:
            _delete_name(draft, key)
        elif key != draft.apex or rtype not in _SPECIAL:
            draft.drop(key, rtype)


def _add(draft: Draft, op: UpdateOp, expires: int, terms: LeaseTerms) -> None:
    owner, key, rtype, _, ttl, rdata = op
    if rtype in _SPECIAL:
        if rtype == Type.SOA:
            _set_soa(draft, op)
            return
        if rtype == Type.NS and key == draft.apex and expires:
            raise UpdateError(Rcode.REFUSED, "the zone's own NS cannot have a lease")
    node = draft.node(key)
    if node is None and key != draft.apex:
        draft.put(owner, RRset(rtype, ttl, (rdata,), (expires,)))
        return
    types: Mapping[int, RRset] = node.rrsets if node else {}
    if rtype == _CNAME:
        if key == draft.apex or any(kind not in _BESIDE_CNAME for kind in types):
            return  # CNAME over other data (the apex has its SOA): ignored (RFC 2136 §3.4.2.2)
    elif _CNAME in types and rtype not in _BESIDE_CNAME:
        return  # other data over CNAME: ignored
    rrset = types.get(rtype)
    rdatas: tuple[bytes, ...] = rrset.rdatas if rrset else ()
    leases: tuple[int, ...] = rrset.expires if rrset else ()
    position = _position(rrset, rdata) if rrset else -1
    if position >= 0:
        had = leases[position]
        if had == 0 and expires and terms.keeps_permanent:
            expires = had
        leases = (*leases[:position], expires, *leases[position + 1 :])
    else:
        if rtype in _SINGLETONS:
            rdatas = leases = ()
        elif rtype == _WKS:
            kept = [row for row in zip(rdatas, leases, strict=True) if row[0][:5] != rdata[:5]]
            rdatas, leases = tuple(row[0] for row in kept), tuple(row[1] for row in kept)
        rdatas, leases = (*rdatas, rdata), (*leases, expires)
    if len(rdatas) > MAX_RRSET_RECORDS:
        raise UpdateError(Rcode.REFUSED, f"{to_text(key)}: an RRset may have {MAX_RRSET_RECORDS} records")
    if rrset is None and len(types) + (key == draft.apex) >= MAX_TYPES:
        raise UpdateError(Rcode.REFUSED, f"{to_text(key)}: a name may have {MAX_TYPES} RRsets")
    draft.put(owner, RRset(rtype, ttl, rdatas, leases))


def _position(rrset: RRset, rdata: bytes) -> int:
    """Where `rdata` stands in an RRset, names in it compared without case; -1 when it is not there."""
    if not has_name(rrset.rtype):
        return rrset.rdatas.index(rdata) if rdata in rrset.rdatas else -1
    wanted, lowered = canonical(rrset.rtype, rdata), rdata.lower()
    for position, have in enumerate(rrset.rdatas):
        if have.lower() == lowered and canonical(rrset.rtype, have) == wanted:  # the first half is the cheap one
            return position
    return -1


def _set_soa(draft: Draft, op: UpdateOp) -> None:
    """An SOA moves the zone only forward and only at the apex; else it is ignored (RFC 2136 §3.4.2.2)."""
    serial = soa_serial(op.rdata) or 1  # never 0, which means "no serial" in a Change
    if op.key == draft.apex and is_newer(serial, draft.serial):
        draft.soa_template = op.rdata
        draft.soa_ttl = op.ttl
        draft.serial = serial


def _delete_rr(draft: Draft, op: UpdateOp) -> None:
    if op.rtype == Type.SOA:
        return
    rrset = draft.rrset(op.key, op.rtype)
    if rrset is None:
        return
    if op.rtype == Type.NS and op.key == draft.apex and len(rrset.rdatas) == 1:
        return  # the last NS of the zone stays (RFC 2136 §3.4.2.4)
    position = _position(rrset, op.rdata)
    if position < 0:
        return
    rdatas = (*rrset.rdatas[:position], *rrset.rdatas[position + 1 :])
    leases = (*rrset.expires[:position], *rrset.expires[position + 1 :])
    if rdatas:
        draft.put(op.owner, RRset(op.rtype, rrset.ttl, rdatas, leases))
    else:
        draft.drop(op.key, op.rtype)


def _delete_name(draft: Draft, key: bytes) -> None:
    node = draft.node(key)
    for rtype in list(node.rrsets) if node else ():
        if key != draft.apex or rtype != Type.NS:
            draft.drop(key, rtype)
