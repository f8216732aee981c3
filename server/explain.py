"""Which rule decides on a request, told without making it: the stages of the pipeline on the database's keys and zones.

The sentences are the pipeline's own, for the same functions say them: what a peer reads in an Extended DNS Error and an
operator in the log is what stands here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.constants import Class, Opcode, Rcode, Type
from protocol.message import Question, decode, encode
from protocol.name import fold, from_text, to_text
from server.authority import Authority
from server.authz import may_read, may_transfer, needs_lease
from server.catalog import CATALOG
from server.config import ServerSettings
from server.keyring import Keyring, Principal, principal_of
from server.policy import Action, Compiled, Grant, Lease
from server.quota import NamesInBatch, check_quota
from server.request import Refusal
from server.store.api import KeyRow, MemberRow, Reader, ZoneRow
from server.zone.draft import Draft
from server.zone.update import PERMANENT_TERMS, Update, UpdateError, apply_update, read_update
from server.zone.zone import Zone, Zones


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to explain. Names are wire names; `key` None is an unsigned request, `zone` None the deepest that fits.

    `rdata`, `deletes`, `leased` are of an update, `address` (whence it comes) of a transfer.
    """

    key: bytes | None
    name: bytes
    rtype: int
    action: Action = Action.UPDATE
    zone: bytes | None = None
    rdata: bytes = b""
    deletes: bool = False
    leased: bool = True
    address: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The outcome: RCODE (or the TSIG error), the sentence, the rule if one decided, and what an update runs under."""

    rcode: str
    sentence: str
    zone: Zone | None = None
    rule: Compiled | None = None
    lease: Lease | None = None
    grant: Grant | None = None
    narrowed_to: tuple[Compiled, ...] = ()
    """All rules of the key, when none of them let it in."""

    @property
    def is_allowed(self) -> bool:
        return self.rcode == Rcode.NOERROR.name


async def explain(reader: Reader, settings: ServerSettings, asked: Asked, *, now: int) -> Explanation:
    """Ask policy as the server would at `now`, seconds since 1970."""
    members = {row.id: row for row in await reader.members()}
    rows = await reader.load_zones()
    zones = Zones(_bare(row) for row in rows)
    principal = None
    if asked.key is not None:
        name = fold(asked.key)
        row = next((row for row in await reader.keys() if row.key.name == name), None)
        if row is None or not row.is_valid(now):
            return Explanation("BADKEY", f"BADKEY for key {to_text(name)}")
        principal = _principal(row, members, settings)
    try:
        if asked.action is Action.UPDATE:
            return await _update(reader, zones, principal, asked)
        return _read(zones, principal, settings, asked)
    except Refusal as refusal:
        rcode, sentence = refusal.rcode, refusal.reason
    except UpdateError as error:
        rcode, sentence = error.rcode, error.reason
    rule = _rule(zones, principal, asked)
    rules = principal.policy.rules if principal is not None and principal.policy.is_narrowed and rule is None else ()
    return Explanation(rcode.name, sentence, _zone(zones, asked), rule, narrowed_to=rules)


def _bare(row: ZoneRow) -> Zone:
    return Zone(row.id, row.apex, row.serial, row.soa, row.soa_ttl, row.member_id, is_catalog=row.kind == CATALOG)


def _principal(row: KeyRow, members: Mapping[int, MemberRow], settings: ServerSettings) -> Principal:
    return principal_of(row, members, settings.policy.policy(from_text(settings.zone.name)))


def _zone(zones: Zones, asked: Asked) -> Zone | None:
    return zones.enclosing(fold(asked.name), asked.rtype) if asked.zone is None else zones.at(fold(asked.zone))


def _rule(zones: Zones, principal: Principal | None, asked: Asked) -> Compiled | None:
    zone = _zone(zones, asked)
    if principal is None or zone is None:
        return None
    key = zone.apex if asked.action is Action.TRANSFER else fold(asked.name)
    return principal.policy.rule_for(asked.action, zone.apex, key, asked.rtype, asked.rdata)


def _read(zones: Zones, principal: Principal | None, settings: ServerSettings, asked: Asked) -> Explanation:
    key = fold(asked.name)
    zone = zones.at(key) if asked.action is Action.TRANSFER else _zone(zones, asked)
    if zone is None:
        return Explanation(*_no_zone(asked))
    rule = _rule(zones, principal, asked)
    who = "anyone" if principal is None else principal.policy.who
    if asked.action is Action.TRANSFER:
        rules = settings.transfer.rules_for(zone.apex, is_private=zone.is_private)
        may_transfer(principal, zone, asked.address, rules)
        if rule is None:
            return Explanation("NOERROR", f"{who} from {asked.address} may have it: [transfer] says so", zone)
    else:
        decision = may_read(principal, zone, key, asked.rtype, asked.action)
        if decision is None and zone.is_open:
            return Explanation("NOERROR", f"{to_text(zone.apex)} is open: anyone may ask and watch", zone)
        if principal is None or rule is None or not rule.rule.allow:
            return Explanation("NOERROR", f"{to_text(key)} leads to a private zone: anyone may ask", zone)
    assert principal is not None
    return Explanation(
        "NOERROR", principal.policy.decide(asked.action, zone.apex, key, asked.rtype).sentence, zone, rule
    )


def _no_zone(asked: Asked) -> tuple[str, str]:
    name = to_text(asked.name)
    if asked.action is Action.TRANSFER:
        return "NOTAUTH", f"{name} is no zone served here"
    return "REFUSED", f"{name} is in no zone served here"


async def _update(reader: Reader, zones: Zones, principal: Principal | None, asked: Asked) -> Explanation:
    zone = _zone(zones, asked)
    if zone is None:
        apex = asked.name if asked.zone is None else asked.zone
        return Explanation("NOTAUTH", f"{to_text(fold(apex))} is no zone served here")
    if principal is None:
        raise Refusal(Rcode.REFUSED, "updates must be signed")
    update = _as_update(zone.apex, asked)
    grant = Authority(zones, Keyring()).grant(principal, zone, update, leased=asked.leased)
    await _check_content(reader, principal, zone, update, grant)
    rule = principal.policy.rule_for(Action.UPDATE, zone.apex, fold(asked.name), asked.rtype, asked.rdata)
    sentence = principal.policy.decide(Action.UPDATE, zone.apex, fold(asked.name), asked.rtype, asked.rdata).sentence
    required = rule is not None and needs_lease(principal.policy, rule)
    return Explanation("NOERROR", sentence, zone, rule, Lease.REQUIRED if required else Lease.OPTIONAL, grant)


def _as_update(apex: bytes, asked: Asked) -> Update:
    """The update with this one record, its form checked as any other's."""
    deletion = (asked.name, asked.rtype, Class.ANY, 0, b"")
    wire = encode(0, Opcode.UPDATE << 11, [Question(apex, Type.SOA, Class.IN)], [], [deletion])
    update = read_update(decode(wire), apex)
    if asked.deletes or asked.rtype == Type.ANY:
        return update
    return update._replace(ops=(update.ops[0]._replace(rclass=Class.IN, rdata=asked.rdata),))


async def _check_content(reader: Reader, principal: Principal, zone: Zone, update: Update, grant: Grant) -> None:
    """Quotas on what the database holds now."""
    if not grant.bounds_content:
        return
    held = Zone(zone.id, zone.apex, zone.serial, zone.soa_template, zone.soa_ttl, zone.member_id)
    domain = held.census.domain_of(update.ops[0].key) or update.ops[0].key
    for key, node in (await reader.load_subtree(zone.id, domain)).items():
        held.put(key, node)
    draft = Draft(held)
    apply_update(draft, update, PERMANENT_TERMS)
    check_quota(principal.policy.who, grant, draft, held.census, NamesInBatch())
