"""What a principal may do. One uniform refusal covers a private zone, so that it tells nothing of its names."""

import ipaddress
from typing import Final

from protocol.constants import Ede, Rcode, Type, type_text
from protocol.name import fold, from_text, is_at_or_below, to_text
from server.config import TransferRules
from server.discovery import is_discovery_name
from server.keyring import Principal
from server.request import Refusal
from server.zone.update import Update
from server.zone.zone import Zone

_NOT_FOR_MEMBERS: Final = frozenset(
    (
        *(Type.SOA, Type.NS, Type.DNAME, Type.SIG, Type.KEY, Type.NXT, Type.DS, Type.RRSIG, Type.NSEC),
        *(Type.DNSKEY, Type.NSEC3, Type.NSEC3PARAM, Type.CDS, Type.CDNSKEY),
    )
)


def may_read(principal: Principal | None, zone: Zone, key: bytes, rtype: int) -> None:
    """Raise unless the question may be answered: a private zone opens only its SOA, NS and discovery names.

    `key` is the folded owner name asked for (RFC 6281 §7.2; discovery must work without a key). A catalog is for
    secondaries, who transfer it (RFC 9432 §6).
    """
    if zone.is_open:
        return
    if principal is not None and (principal.is_admin or (zone.is_private and principal.member_id == zone.member_id)):
        return
    if key == zone.apex and rtype in (Type.SOA, Type.NS):
        return
    if zone.is_catalog:
        raise Refusal(Rcode.REFUSED, f"{to_text(zone.apex)} is a catalog, which is transferred", ede=Ede.PROHIBITED)
    if is_discovery_name(key, zone.apex) or key in (b"\x04_udp" + zone.apex, b"\x04_tcp" + zone.apex):
        return  # the two labels above discovery names too: resolvers that minimise names ask for them (RFC 9156)
    raise Refusal(Rcode.REFUSED, f"{to_text(zone.apex)} is private: sign with one of its keys", ede=Ede.PROHIBITED)


def may_transfer(principal: Principal | None, zone: Zone, address: str, rules: TransferRules) -> None:
    """Raise unless the whole zone may go to this key at this address.

    An administrator's key may have every zone; a private member's zone goes to the member's own keys besides and to
    nobody else, whatever the rules say. Elsewhere one of `rules` must name the key or hold the address.
    """
    if principal is not None and (principal.is_admin or (zone.is_private and principal.member_id == zone.member_id)):
        return
    if not zone.is_private:
        if principal is not None and any(fold(from_text(name)) == principal.key.name for name in rules.allow_keys):
            return
        ours = ipaddress.ip_address(address.partition("%")[0])
        ours = getattr(ours, "ipv4_mapped", None) or ours
        if any(ours in ipaddress.ip_network(network) for network in rules.allow_addresses):
            return
    who = f"key {to_text(principal.key.name)}" if principal is not None else "an unsigned request"
    raise Refusal(Rcode.REFUSED, f"{who} from {address} may not transfer zone {to_text(zone.apex)}", ede=Ede.PROHIBITED)


def may_update(principal: Principal | None, zone: Zone, update: Update, *, leased: bool) -> Principal:
    """Raise unless the principal may make this whole update; nothing of the zone's content is looked at.

    A member may touch its own domain and below, user types only, never the discovery names the service keeps there, and
    must bring a lease when it adds. Prerequisites are held to the same subtree, else their RCODEs would tell of others.
    """
    if principal is None:
        raise Refusal(Rcode.REFUSED, "updates must be signed", ede=Ede.PROHIBITED)
    if zone.is_catalog:
        raise Refusal(Rcode.REFUSED, f"{to_text(zone.apex)} is kept by the server", ede=Ede.PROHIBITED)
    if principal.is_admin:
        return principal
    domain = principal.domain
    who = f"key {to_text(principal.key.name)}"
    if domain is None or not (is_at_or_below(zone.apex, domain) or is_at_or_below(domain, zone.apex)):
        raise Refusal(Rcode.REFUSED, f"{who} has no say in zone {to_text(zone.apex)}", ede=Ede.PROHIBITED)
    for key, _ in update.touched:
        if not is_at_or_below(key, domain):
            raise Refusal(
                Rcode.REFUSED, f"{who} may touch {to_text(domain)} and below, not {to_text(key)}", ede=Ede.PROHIBITED
            )
    for op in update.ops:
        if op.rtype in _NOT_FOR_MEMBERS:
            raise Refusal(
                Rcode.REFUSED,
                f"{who} may not change type {type_text(op.rtype)} ({to_text(op.key)})",
                ede=Ede.PROHIBITED,
            )
        if is_discovery_name(op.key, domain):
            raise Refusal(
                Rcode.REFUSED, f"{to_text(op.key)} is kept by the service, {who} may not change it", ede=Ede.PROHIBITED
            )
        if op.is_add and not leased:
            raise Refusal(
                Rcode.REFUSED,
                f"{who} must send an update lease (EDNS option 2) to add {to_text(op.key)}",
                ede=Ede.PROHIBITED,
            )
    return principal
