"""What an operator does with the service zone and with members; their keys are in `keys`, private members' moves in
`private`. As for all operations, `ValueError` says in one plain sentence what cannot be done.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from protocol.constants import MAX_NAME_OCTETS, Type
from protocol.name import fold, to_text
from protocol.rdata import soa_serial, soa_with_serial
from protocol.tsig import SHA256, Algorithm, Key
from server import kdf
from server.discovery import discovery_records, domain_records, is_discovery_name, service_records, soa_rdata, without
from server.keys import Token, check_label, make_secret, publish_kdf
from server.operation import (
    SERVICE,
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
from server.store.api import KeyRow, MemberRow, Store, Transaction, ZoneRow
from server.zone.draft import Draft
from server.zone.model import RR, StoredRR
from server.zone.zone import Zone


@dataclass(frozen=True, slots=True)
class MemberDetail:
    """A member, its keys, and the records it keeps (without the service's own at its domain)."""

    row: MemberRow
    keys: tuple[KeyRow, ...]
    records: tuple[StoredRR, ...]


async def ensure_service_zone(store: Store, service: Service, *, now: int) -> ZoneRow:
    """Make the service zone on first start; later, take over changed addresses and ports, at every member's domain too.

    Writes nothing when the service is as it was, so what an administrator changed by update stays. The first serial is
    `now`, so that a database begun anew is not behind its secondaries. `ValueError` when the database holds another
    zone.
    """
    service = replace(service, zone=fold(service.zone))
    wanted = service.to_json()

    async def work(transaction: Transaction) -> None:
        stored = await transaction.meta(SERVICE)
        if stored == wanted:
            return
        if stored is None:
            await _create_zone(
                transaction, service, service.zone, None, service_records(service.zone, service.server), now
            )
        else:
            await _move_service(transaction, Service.from_json(stored), service, now)
        await transaction.set_meta(SERVICE, wanted)

    async with store.reading() as reader:
        stored = await reader.meta(SERVICE)
    if stored is not None and Service.from_json(stored).zone != service.zone:
        present = to_text(Service.from_json(stored).zone)
        raise ValueError(f"this database serves zone {present}, not {to_text(service.zone)}")
    if stored != wanted:
        await in_transaction(store, work)
    return service_row(await store.load_zones())


async def add_member(
    store: Store,
    name: str,
    *,
    private: bool,
    now: int,
    password: str | None = None,
    algorithm: Algorithm = SHA256,
    token: Token = secrets.token_bytes,
) -> Key:
    """Create `<name>.<zone>` and its first key, which has the name of the domain.

    The secret is random, or derived from `password` with the derivation published in the service zone.
    """
    label = check_label(name, "member name")
    made = await make_secret(password, algorithm, token)

    async def work(transaction: Transaction) -> Key:
        service = await read_service(transaction)
        domain = bytes((len(label),)) + label + service.zone
        server = service.server
        longest = max(len(record.owner) for record in discovery_records(domain, server))
        if longest > MAX_NAME_OCTETS:
            raise ValueError(f"member name {name!r} is too long below {to_text(service.zone)}")
        parent = service_row(await transaction.load_zones())
        if any(row.domain == domain for row in await transaction.members()):
            raise ValueError(f"there is a member {label.decode()} already")
        if await transaction.load_subtree(parent.id, domain):
            raise ValueError(f"{to_text(domain)} has records already: delete them, or choose another name")
        member_id = await transaction.add_member(label.decode(), domain, private=private, created_at=now)
        records = list(domain_records(domain, server, is_zone=private))
        if private:
            await _create_zone(transaction, service, domain, member_id, records, now)
            records = [RR(domain, Type.NS, server.ttl, server.host)]
        draft = await draft_on(transaction, parent, (fold(record.owner) for record in records))
        for record in records:
            add_record(draft, record)
        key = Key(domain, algorithm, made.secret)
        await publish_kdf(transaction, draft, label, service, made.parameters)
        await commit_draft(transaction, draft, now)
        await transaction.add_key(KeyRow(key, member_id, now, kdf=made.stored))
        return key

    return await in_transaction(store, work)


async def remove_member(store: Store, name: str, *, now: int) -> MemberRow:
    """Delete a member, its keys, and every record at and below its domain; a private one's zone with its journal."""

    async def work(transaction: Transaction) -> MemberRow:
        service = await read_service(transaction)
        row = await find_member(transaction, name)
        parent = service_row(await transaction.load_zones())
        label = row.name.encode()
        owners = {*await transaction.load_subtree(parent.id, row.domain), kdf.owner_name(label, service.zone)}
        draft = await draft_on(transaction, parent, owners)
        for owner in owners:
            if draft.node(owner) is not None:
                draft.touched[owner] = None
        await commit_draft(transaction, draft, now)
        await transaction.remove_member(row.id)
        return row

    return await in_transaction(store, work)


async def list_members(store: Store) -> list[tuple[MemberRow, tuple[KeyRow, ...]]]:
    """Members by name, each with its keys."""
    async with store.reading() as reader:
        keys = await reader.keys()
        return [(row, _keys_of(row, keys)) for row in await reader.members()]


async def show_member(store: Store, name: str) -> MemberDetail:
    """One member with keys and records."""
    async with store.reading() as reader:
        row = await find_member(reader, name)
        zones = await reader.load_zones()
        zone = next((zone for zone in zones if zone.member_id == row.id), None) or service_row(zones)
        nodes = await reader.load_subtree(zone.id, row.domain)
        records = [
            record
            for owner, node in nodes.items()
            if not is_discovery_name(owner, row.domain)
            for record in node.records()
            if not (owner == row.domain and record.rtype == Type.NS)
        ]
        return MemberDetail(row, _keys_of(row, await reader.keys()), tuple(records))


def _keys_of(member: MemberRow, keys: Iterable[KeyRow]) -> tuple[KeyRow, ...]:
    return tuple(row for row in keys if row.member_id == member.id)


async def _create_zone(
    transaction: Transaction, service: Service, apex: bytes, member_id: int | None, records: Iterable[RR], now: int
) -> None:
    kind = SERVICE if member_id is None else "member"
    soa, ttl = soa_rdata(apex, service.server), service.server.ttl
    serial = (now & 0xFFFFFFFF) or 1
    zone_id = await transaction.add_zone(apex, kind=kind, member_id=member_id, serial=serial, soa=soa, soa_ttl=ttl)
    draft = Draft(Zone(zone_id, apex, serial, soa, ttl, member_id))
    for record in records:
        add_record(draft, record)
    await commit_draft(transaction, draft, now)


async def _move_service(transaction: Transaction, old: Service, new: Service, now: int) -> None:
    """Take away what the old settings made and the new ones would not, add the reverse: in the service zone, in each
    private zone, and at each open member's domain."""
    zones = await transaction.load_zones()
    parent = service_row(zones)
    gone = [service_records(old.zone, old.server)]
    come = [service_records(new.zone, new.server)]
    private = {row.member_id: row for row in zones if row.member_id is not None}
    for member in await transaction.members():
        before = domain_records(member.domain, old.server, is_zone=member.private)
        after = domain_records(member.domain, new.server, is_zone=member.private)
        if member.private:
            await _replace(transaction, private[member.id], old, new, before, after, now)
            before, after = before[:1], after[:1]  # the delegation
        gone.append(before)
        come.append(after)
    await _replace(
        transaction,
        parent,
        old,
        new,
        [rr for records in gone for rr in records],
        [rr for records in come for rr in records],
        now,
    )


async def _replace(
    transaction: Transaction,
    row: ZoneRow,
    old: Service,
    new: Service,
    before: Iterable[RR],
    after: Iterable[RR],
    now: int,
) -> None:
    """Move one zone from the old settings to the new. An SOA that an administrator chose stays."""
    removed, added = without(before, after), without(after, before)
    draft = await draft_on(transaction, row, (fold(record.owner) for record in (*removed, *added)))
    own = soa_rdata(row.apex, old.server), old.server.ttl
    if (soa_with_serial(draft.soa_template, soa_serial(own[0])), draft.soa_ttl) == own:
        draft.soa_template, draft.soa_ttl = soa_rdata(row.apex, new.server), new.server.ttl
    for record in removed:
        remove_record(draft, record)
    for record in added:
        add_record(draft, record)
    await commit_draft(transaction, draft, now)
