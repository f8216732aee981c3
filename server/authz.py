"""What a principal may do. One uniform refusal covers a private zone, so that it tells nothing of its names.

The rules themselves are in `policy`; here they meet requests.
"""

import ipaddress
from typing import Final

from protocol.constants import Class, Ede, Rcode, Type
from protocol.name import fold, from_text, is_at_or_below, to_text
from server.config import TransferRules
from server.discovery import is_discovery_name
from server.keyring import Principal
from server.policy import NOT_FOR_MEMBERS, UNLIMITED, Action, Compiled, Decision, Grant, KeyPolicy, Lease, grant_of
from server.request import Refusal
from server.zone.update import Update
from server.zone.zone import Zone

_IN: Final = int(Class.IN)
UNSIGNED: Final = "updates must be signed"


def may_read(
    principal: Principal | None, zone: Zone, key: bytes, rtype: int, action: Action = Action.QUERY
) -> Decision | None:
    """Raise unless the question may be answered: a private zone opens only its SOA, NS and discovery names.

    `key` is the folded owner name asked for (RFC 6281 §7.2; discovery must work without a key). A catalog is for
    secondaries, who transfer it (RFC 9432 §6). The decision of a rule is returned, None where none was needed.
    """
    if zone.is_open:
        return None
    if principal is not None and principal.policy.is_plain:
        if _is_own(principal, zone):
            return None
    elif principal is not None:
        decision = principal.policy.decide(action, zone.apex, key, rtype)
        if decision.allowed:
            return decision
    if key == zone.apex and rtype in (Type.SOA, Type.NS):
        return None
    if zone.is_catalog:
        raise _refused(f"{to_text(zone.apex)} is a catalog, which is transferred")
    if is_discovery_name(key, zone.apex) or key in (b"\x04_udp" + zone.apex, b"\x04_tcp" + zone.apex):
        return None  # the two labels above discovery names too: resolvers that minimise names ask for them (RFC 9156)
    if principal is not None and not principal.policy.is_plain and _is_own(principal, zone):
        raise _refused(decision.sentence)  # says what the key lacks, and of the zone no more than the rule does
    raise _refused(f"{to_text(zone.apex)} is private: sign with one of its keys")


def _is_own(principal: Principal, zone: Zone) -> bool:
    return principal.is_admin or (zone.is_private and principal.member_id == zone.member_id)


def may_transfer(principal: Principal | None, zone: Zone, address: str, rules: TransferRules) -> None:
    """Raise unless the whole zone may go to this key at this address.

    An administrator's key may have every zone; a private member's zone goes to the member's own keys besides and to
    nobody else, whatever the rules say. Elsewhere a rule of the policy or one of `rules` must name the key, or hold the
    address.
    """
    decision = None
    if principal is not None and (not zone.is_private or _is_own(principal, zone)):
        decision = principal.policy.decide(Action.TRANSFER, zone.apex, zone.apex, Type.SOA)
        if decision.allowed:
            return
        if decision.rule is not None:  # a rule that denies by name goes before what lets the key or the address in
            raise _refused(decision.sentence)
    if not zone.is_private:
        if principal is not None and any(fold(from_text(name)) == principal.key.name for name in rules.allow_keys):
            return
        ours = ipaddress.ip_address(address.partition("%")[0])
        ours = getattr(ours, "ipv4_mapped", None) or ours
        if any(ours in ipaddress.ip_network(network) for network in rules.allow_addresses):
            return
    who = f"key {to_text(principal.key.name)}" if principal is not None else "an unsigned request"
    raise _refused(f"{who} from {address} may not transfer zone {to_text(zone.apex)}")


def may_update(principal: Principal | None, zone: Zone, update: Update, *, leased: bool) -> Grant:
    """Raise unless the principal may make this whole update; nothing of the zone's content is looked at.

    By default a member may touch its own domain and below, user types only, never the discovery names the service keeps
    there, and must bring a lease when it adds. Prerequisites are held to the names that the key may update, else their
    RCODEs would tell of others.
    """
    if principal is None:
        raise _refused(UNSIGNED)
    if zone.is_catalog:
        raise _refused(f"{to_text(zone.apex)} is kept by the server")
    policy = principal.policy
    if not policy.is_plain:
        return _by_rules(policy, zone, update, leased=leased)
    if policy.domain is None:
        return UNLIMITED
    _by_default(policy, policy.domain, zone, update, leased=leased)
    return policy.default_grant


def _by_default(policy: KeyPolicy, domain: bytes, zone: Zone, update: Update, *, leased: bool) -> None:
    """What most updates take: one suffix and one type to compare for each record."""
    if not (is_at_or_below(zone.apex, domain) or is_at_or_below(domain, zone.apex)):
        raise _refused(f"{policy.who} has no say in zone {to_text(zone.apex)}")
    for item in update.prerequisites:
        if not is_at_or_below(item.key, domain):
            raise _refused(policy.prerequisite_refusal(item.key))
    seen = b""
    for _, key, rtype, rclass, _, rdata in update.ops:
        if key != seen:  # the records of an update mostly have their owner in common
            if not is_at_or_below(key, domain) or is_discovery_name(key, domain):
                raise _refused(policy.decide(Action.UPDATE, zone.apex, key, rtype, rdata).sentence)
            seen = key
        if rtype in NOT_FOR_MEMBERS:
            raise _refused(policy.decide(Action.UPDATE, zone.apex, key, rtype, rdata).sentence)
        if not leased and rclass == _IN:
            raise _refused(lease_refusal(policy, key))


def _by_rules(policy: KeyPolicy, zone: Zone, update: Update, *, leased: bool) -> Grant:
    for item in update.prerequisites:
        if not policy.may_name(zone.apex, item.key):
            raise _refused(policy.prerequisite_refusal(item.key))
    deciding: list[Compiled] = []
    for op in update.ops:
        rule = policy.rule_for(Action.UPDATE, zone.apex, op.key, op.rtype, op.rdata)
        if rule is None or not rule.rule.allow:
            raise _refused(policy.decide(Action.UPDATE, zone.apex, op.key, op.rtype, op.rdata).sentence)
        if not leased and op.is_add and needs_lease(policy, rule):
            raise _refused(lease_refusal(policy, op.key))
        if not any(rule is known for known in deciding):
            deciding.append(rule)
    return deciding[0].grant if len(deciding) == 1 else grant_of(deciding)


def needs_lease(policy: KeyPolicy, rule: Compiled) -> bool:
    """As the rule says; when it says nothing, a member's adds need one and an administrator's do not (RFC 6281 §5)."""
    return policy.domain is not None if rule.rule.lease is None else rule.rule.lease is Lease.REQUIRED


def lease_refusal(policy: KeyPolicy, key: bytes) -> str:
    return f"{policy.who} must send an update lease (EDNS option 2) to add {to_text(key)}"


def _refused(sentence: str) -> Refusal:
    return Refusal(Rcode.REFUSED, sentence, ede=Ede.PROHIBITED)
