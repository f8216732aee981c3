"""A member becomes private, or open again: its names move between the service zone and a zone of its own.

One transaction: who asks the running server sees the one form or the other. Leases and keys stay as they are; each
zone's journal tells what went and what came (RFC 6281 §7.2; D16).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocol.constants import Type
from protocol.name import fold, to_text
from server.discovery import domain_records, is_discovery_name, service_records, soa_rdata, without
from server.operation import (
    Service,
    add_record,
    commit_draft,
    draft_on,
    find_member,
    in_transaction,
    read_service,
    remove_record,
    service_row,
)
from server.store.api import MemberRow, Store, Transaction, ZoneRow
from server.zone.draft import Draft
from server.zone.model import RR, StoredRR
from server.zone.node import Node, node_from_records
from server.zone.zone import Zone

_LAST_SERIAL: Final = "last serial of member "
"""With its number: the serial of the zone it had, so that one made anew goes on from there."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The member as it is now, and how many records of its own moved."""

    row: MemberRow
    records: int


async def set_private(store: Store, name: str, private: bool, *, now: int) -> Moved:
    """Give a member a zone of its own, or take its names back into the service zone.

    `ValueError` when it is so already, or when what stands at the domain cannot stand at the apex of a zone.
    """

    async def work(transaction: Transaction) -> Moved:
        service = await read_service(transaction)
        row = await find_member(transaction, name)
        if row.private == private:
            raise ValueError(f"member {row.name} is {'private' if private else 'open'} already")
        zones = await transaction.load_zones()
        if private:
            moved = await _split(transaction, service, service_row(zones), row, now)
        else:
            own = next(zone for zone in zones if zone.member_id == row.id)
            moved = await _join(transaction, service, service_row(zones), own, row, now)
        await transaction.set_private(row.id, private)
        return Moved(row._replace(private=private), moved)

    return await in_transaction(store, work)


async def _split(transaction: Transaction, service: Service, parent: ZoneRow, row: MemberRow, now: int) -> int:
    nodes = await transaction.load_subtree(parent.id, row.domain)
    at_domain = nodes.get(row.domain)
    if at_domain is not None and Type.CNAME in at_domain.rrsets:
        raise ValueError(
            f"{to_text(row.domain)} has a CNAME, which cannot stand at the apex of a zone: delete it first"
        )
    records = domain_records(row.domain, service.server, is_zone=True)
    soa, ttl = soa_rdata(row.domain, service.server), service.server.ttl
    last = await transaction.meta(f"{_LAST_SERIAL}{row.id}")
    serial = max(now & 0xFFFFFFFF, int(last or 0) + 1 & 0xFFFFFFFF) or 1
    zone_id = await transaction.add_zone(
        row.domain, kind="member", member_id=row.id, serial=serial, soa=soa, soa_ttl=ttl
    )
    own = Draft(Zone(zone_id, row.domain, serial, soa, ttl, row.id))
    moved = _of_the_member(nodes, row.domain)
    own.touched.update(nodes)  # with their leases, as they stood
    _turn(own, domain_records(row.domain, service.server, is_zone=False), records)
    await commit_draft(transaction, own, now)
    above = await draft_on(transaction, parent, nodes)
    glue = _glue(service, nodes)
    for owner in nodes:
        above.touched[owner] = glue.get(owner)
    add_record(above, records[0])  # the delegation
    await commit_draft(transaction, above, now)
    return moved


async def _join(
    transaction: Transaction, service: Service, parent: ZoneRow, own: ZoneRow, row: MemberRow, now: int
) -> int:
    nodes = await transaction.load_subtree(own.id, row.domain)
    if row.domain in nodes:
        nodes[row.domain].rrsets.pop(Type.NS, None)
    await transaction.remove_zone(own.id)
    await transaction.set_meta(f"{_LAST_SERIAL}{row.id}", str(own.serial))
    occluded = await transaction.load_subtree(parent.id, row.domain)
    above = await draft_on(transaction, parent, occluded)
    for owner in occluded:
        above.touched[owner] = None
    moved = _of_the_member(nodes, row.domain)
    above.touched.update(nodes)
    as_zone = domain_records(row.domain, service.server, is_zone=True)
    _turn(above, as_zone, domain_records(row.domain, service.server, is_zone=False))
    await commit_draft(transaction, above, now)
    return moved


def _turn(draft: Draft, before: Iterable[RR], after: Iterable[RR]) -> None:
    """The service keeps other records there in the other form: DNS Push is not announced where all is signed."""
    for record in without(before, after):
        remove_record(draft, record)
    for record in after:
        add_record(draft, record)


def _glue(service: Service, nodes: Iterable[bytes]) -> dict[bytes, Node]:
    """Addresses of the name server that lie in the member's domain: the parent keeps them, beside the delegation."""
    host = fold(service.server.host)
    if host not in nodes:
        return {}
    records = [rr for rr in service_records(service.zone, service.server) if fold(rr.owner) == host]
    return {host: node_from_records(StoredRR(*rr, None) for rr in records)} if records else {}


def _of_the_member(nodes: dict[bytes, Node], domain: bytes) -> int:
    own = [node for owner, node in nodes.items() if not is_discovery_name(owner, domain)]
    return sum(len(rrset.rdatas) for node in own for rrset in node.rrsets.values())
