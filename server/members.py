"""What an operator does: the service zone, members and their keys.

Each operation is one transaction through the store and stands in the journal like any change, with actor "operator".
The caller may be another process than the running server, which notices by the store's generation. Nothing here loads
a whole zone. `ValueError` in one plain sentence for what cannot be done; `now` is seconds since 1970.
"""

import asyncio
import base64
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from protocol.constants import MAX_NAME_OCTETS, Type
from protocol.name import fold, from_text, is_at_or_below, to_text
from protocol.rdata import canonical, soa_serial, soa_with_serial
from protocol.serial import next_serial
from protocol.tsig import MD5, SHA256, Algorithm, Key
from server import kdf
from server.discovery import (
    NameServer,
    discovery_records,
    domain_records,
    is_discovery_name,
    service_records,
    soa_rdata,
    without,
)
from server.store.api import KeyRow, MemberRow, Reader, Store, Superseded, Transaction, ZoneRow
from server.zone.draft import Draft, commit_of
from server.zone.model import RR, Actor, StoredRR
from server.zone.node import RRset
from server.zone.zone import Zone

OPERATOR: Final = Actor("operator")
ADMIN_LABEL: Final = b"\x06_admin"  # no member's name begins with an underscore, so this is never a member's key
_ATTEMPTS: Final = 8  # transactions tried when other processes keep moving the serial
_SERVICE: Final = "service"
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_T = TypeVar("_T")

Token = Callable[[int], bytes]
"""Random octets; `secrets.token_bytes` but for tests."""


@dataclass(frozen=True, slots=True)
class Service:
    """The service zone (its apex, folded once it is stored) and how its server is reached."""

    zone: bytes
    server: NameServer

    def to_json(self) -> str:
        server = self.server
        return json.dumps(
            {
                "zone": to_text(self.zone),
                "host": to_text(server.host),
                "addresses": list(server.addresses),
                "port": server.port,
                "tls_port": server.tls_port,
                "ttl": server.ttl,
                "push": server.push,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Service":
        data = json.loads(text)
        server = NameServer(
            from_text(data["host"]),
            tuple(data["addresses"]),
            data["port"],
            data["tls_port"],
            data["ttl"],
            data.get("push", False),  # a database from before DNS Push does not say
        )
        return cls(from_text(data["zone"]), server)


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
        stored = await transaction.meta(_SERVICE)
        if stored == wanted:
            return
        if stored is None:
            await _create_zone(
                transaction, service, service.zone, None, service_records(service.zone, service.server), now
            )
        else:
            await _move_service(transaction, Service.from_json(stored), service, now)
        await transaction.set_meta(_SERVICE, wanted)

    async with store.reading() as reader:
        stored = await reader.meta(_SERVICE)
    if stored is not None and Service.from_json(stored).zone != service.zone:
        present = to_text(Service.from_json(stored).zone)
        raise ValueError(f"this database serves zone {present}, not {to_text(service.zone)}")
    if stored != wanted:
        await _in_transaction(store, work)
    return _service_row(await store.load_zones())


async def read_service(reader: Reader) -> Service:
    """The service as last started; `ValueError` before the first start."""
    stored = await reader.meta(_SERVICE)
    if stored is None:
        raise ValueError("the database has no zone yet: start the server once")
    return Service.from_json(stored)


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
    made = await _make_secret(password, algorithm, token)

    async def work(transaction: Transaction) -> Key:
        service = await read_service(transaction)
        domain = bytes((len(label),)) + label + service.zone
        server = service.server
        longest = max(len(record.owner) for record in discovery_records(domain, server))
        if longest > MAX_NAME_OCTETS:
            raise ValueError(f"member name {name!r} is too long below {to_text(service.zone)}")
        parent = _service_row(await transaction.load_zones())
        if any(row.domain == domain for row in await transaction.members()):
            raise ValueError(f"there is a member {label.decode()} already")
        if await transaction.load_subtree(parent.id, domain):
            raise ValueError(f"{to_text(domain)} has records already: delete them, or choose another name")
        member_id = await transaction.add_member(label.decode(), domain, private=private, created_at=now)
        records = list(domain_records(domain, server, is_zone=private))
        if private:
            await _create_zone(transaction, service, domain, member_id, records, now)
            records = [RR(domain, Type.NS, server.ttl, server.host)]
        draft = await _draft(transaction, parent, (fold(record.owner) for record in records))
        for record in records:
            _add(draft, record)
        key = Key(domain, algorithm, made.secret)
        await _publish_kdf(transaction, draft, label, service, made.parameters)
        await _commit(transaction, draft, now)
        await transaction.add_key(KeyRow(key, member_id, now, kdf=made.stored))
        return key

    return await _in_transaction(store, work)


async def remove_member(store: Store, name: str, *, now: int) -> MemberRow:
    """Delete a member, its keys, and every record at and below its domain; a private one's zone with its journal."""

    async def work(transaction: Transaction) -> MemberRow:
        service = await read_service(transaction)
        row = await _member(transaction, name)
        parent = _service_row(await transaction.load_zones())
        label = row.name.encode()
        owners = {*await transaction.load_subtree(parent.id, row.domain), kdf.owner_name(label, service.zone)}
        draft = await _draft(transaction, parent, owners)
        for owner in owners:
            if draft.node(owner) is not None:
                draft.touched[owner] = None
        await _commit(transaction, draft, now)
        await transaction.remove_member(row.id)
        return row

    return await _in_transaction(store, work)


async def list_members(store: Store) -> list[tuple[MemberRow, tuple[KeyRow, ...]]]:
    """Members by name, each with its keys."""
    async with store.reading() as reader:
        keys = await reader.keys()
        return [(row, _keys_of(row, keys)) for row in await reader.members()]


async def show_member(store: Store, name: str) -> MemberDetail:
    """One member with keys and records."""
    async with store.reading() as reader:
        row = await _member(reader, name)
        zones = await reader.load_zones()
        zone = next((zone for zone in zones if zone.member_id == row.id), None) or _service_row(zones)
        nodes = await reader.load_subtree(zone.id, row.domain)
        records = [
            record
            for owner, rows in nodes.items()
            if not is_discovery_name(owner, row.domain)
            for record in rows
            if not (owner == row.domain and record.rtype == Type.NS)
        ]
        return MemberDetail(row, _keys_of(row, await reader.keys()), tuple(records))


async def add_key(
    store: Store,
    member: str,
    device: str | None,
    *,
    now: int,
    password: str | None = None,
    algorithm: Algorithm = SHA256,
    token: Token = secrets.token_bytes,
) -> Key:
    """Give a member one more key, `<device>.<domain>`; the others stay valid.

    Without `device` it is the key named like the domain, once the one before was revoked; only that one can come from a
    password.
    """
    device_label = None if device is None else check_label(device, "device name")
    if device_label is not None and password is not None:
        raise ValueError("only a member's own key is made from a password, not a device's")
    made = await _make_secret(password, algorithm, token)

    async def work(transaction: Transaction) -> Key:
        service = await read_service(transaction)
        row = await _member(transaction, member)
        name = row.domain if device_label is None else bytes((len(device_label),)) + device_label + row.domain
        if len(name) > MAX_NAME_OCTETS:
            raise ValueError(f"device name {device!r} is too long below {to_text(row.domain)}")
        if any(present.key.name == name and present.revoked_at is None for present in await transaction.keys()):
            raise ValueError(f"there is a key {to_text(name)} already: revoke it first, or name another device")
        key = Key(name, algorithm, made.secret)
        if device_label is None:
            await _set_kdf(transaction, service, row.name.encode(), made.parameters, now)
        await transaction.add_key(KeyRow(key, row.id, now, kdf=made.stored))
        return key

    return await _in_transaction(store, work)


async def revoke_key(store: Store, name: bytes, *, now: int) -> None:
    """Make a key (folded wire name) invalid at once; it stays listed."""

    async def work(transaction: Transaction) -> None:
        service = await read_service(transaction)
        if not await transaction.revoke_key(name, now):
            raise ValueError(f"there is no valid key {to_text(name)}")
        member = next((row for row in await transaction.members() if row.domain == name), None)
        if member is not None:
            await _set_kdf(transaction, service, member.name.encode(), None, now)

    await _in_transaction(store, work)


async def ensure_admin_key(
    store: Store, *, now: int, algorithm: Algorithm = SHA256, token: Token = secrets.token_bytes
) -> Key:
    """The administrator's key `_admin.<zone>`, made when there is none or the last was revoked."""

    async def work(transaction: Transaction) -> Key:
        name = ADMIN_LABEL + (await read_service(transaction)).zone
        found = _valid_admin(await transaction.keys(), name)
        if found is not None:
            return found
        key = Key(name, algorithm, token(algorithm.size))
        await transaction.add_key(KeyRow(key, None, now))
        return key

    async with store.reading() as reader:
        present = _valid_admin(await reader.keys(), ADMIN_LABEL + (await read_service(reader)).zone)
    return await _in_transaction(store, work) if present is None else present


def check_label(text: str, what: str) -> bytes:
    """One label of letters, digits and inner hyphens, lowered; `ValueError` naming `what` for anything else."""
    lowered = text.lower()
    if not _LABEL.fullmatch(lowered):
        raise ValueError(
            f"{what} {text[:80]!r} is not one label of 1 to 63 letters a-z, digits and hyphens "
            "that begins and ends with a letter or digit"
        )
    return lowered.encode()


def key_file_text(key: Key) -> str:
    """The key as BIND's tools read it from a file (`nsupdate -k`, `dig -k`)."""
    text = key_json(key)
    return f'key "{text["name"]}" {{\n\talgorithm {text["algorithm"]};\n\tsecret "{text["secret"]}";\n}};\n'


def nsupdate_line(key: Key) -> str:
    """The command that uses the key at once."""
    text = key_json(key)
    return f"nsupdate -y {text['algorithm']}:{text['name']}:{text['secret']}"


def key_json(key: Key) -> dict[str, str]:
    """Name, algorithm and secret in base64, as `--json` prints them."""
    algorithm = "hmac-md5" if key.algorithm is MD5 else key.algorithm.text  # tools know MD5 by its short name
    return {"name": to_text(key.name), "algorithm": algorithm, "secret": base64.b64encode(key.secret).decode()}


@dataclass(frozen=True, slots=True)
class _Made:
    secret: bytes
    parameters: kdf.KdfParameters | None

    @property
    def stored(self) -> str | None:
        return None if self.parameters is None else self.parameters.to_json()

    def __repr__(self) -> str:
        return "_Made(hidden)"


async def _make_secret(password: str | None, algorithm: Algorithm, token: Token) -> _Made:
    if password is None:
        return _Made(token(algorithm.size), None)
    parameters = kdf.KdfParameters(token(kdf.SALT_OCTETS))
    return _Made(await asyncio.to_thread(kdf.derive, password, parameters), parameters)


async def _in_transaction(store: Store, work: Callable[[Transaction], Awaitable[_T]]) -> _T:
    """Run `work` in a transaction, again from the start when another process moved a serial meanwhile."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with store.transaction() as transaction:
                return await work(transaction)
        except Superseded:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _service_row(zones: Iterable[ZoneRow]) -> ZoneRow:
    return next(row for row in zones if row.kind == _SERVICE)


def _valid_admin(keys: Iterable[KeyRow], name: bytes) -> Key | None:
    return next((row.key for row in keys if row.key.name == name and row.revoked_at is None), None)


def _keys_of(member: MemberRow, keys: Iterable[KeyRow]) -> tuple[KeyRow, ...]:
    return tuple(row for row in keys if row.member_id == member.id)


async def _member(reader: Reader, name: str) -> MemberRow:
    wanted = name.lower()
    for row in await reader.members():
        if row.name == wanted:
            return row
    raise ValueError(f"there is no member {name!r}")


async def _create_zone(
    transaction: Transaction, service: Service, apex: bytes, member_id: int | None, records: Iterable[RR], now: int
) -> None:
    kind = _SERVICE if member_id is None else "member"
    soa, ttl = soa_rdata(apex, service.server), service.server.ttl
    serial = (now & 0xFFFFFFFF) or 1
    zone_id = await transaction.add_zone(apex, kind=kind, member_id=member_id, serial=serial, soa=soa, soa_ttl=ttl)
    draft = Draft(Zone(zone_id, apex, serial, soa, ttl, member_id))
    for record in records:
        _add(draft, record)
    await _commit(transaction, draft, now)


async def _move_service(transaction: Transaction, old: Service, new: Service, now: int) -> None:
    """Take away what the old settings made and the new ones would not, add the reverse: in the service zone, in each
    private zone, and at each open member's domain."""
    zones = await transaction.load_zones()
    parent = _service_row(zones)
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
    draft = await _draft(transaction, row, (fold(record.owner) for record in (*removed, *added)))
    own = soa_rdata(row.apex, old.server), old.server.ttl
    if (soa_with_serial(draft.soa_template, soa_serial(own[0])), draft.soa_ttl) == own:
        draft.soa_template, draft.soa_ttl = soa_rdata(row.apex, new.server), new.server.ttl
    for record in removed:
        _remove(draft, record)
    for record in added:
        _add(draft, record)
    await _commit(transaction, draft, now)


async def _set_kdf(
    transaction: Transaction, service: Service, label: bytes, parameters: kdf.KdfParameters | None, now: int
) -> None:
    """Publish how a member's key is derived, or take that away."""
    parent = _service_row(await transaction.load_zones())
    draft = await _draft(transaction, parent, ())
    await _publish_kdf(transaction, draft, label, service, parameters)
    await _commit(transaction, draft, now)


async def _publish_kdf(
    transaction: Transaction, draft: Draft, label: bytes, service: Service, parameters: kdf.KdfParameters | None
) -> None:
    owner = kdf.owner_name(label, service.zone)
    assert isinstance(draft.base, Zone)
    for rows in (await transaction.load_nodes(draft.base.id, (owner,))).values():
        draft.base.load(rows)
    draft.drop(owner, Type.TXT)
    if parameters is not None:
        _add(draft, RR(owner, Type.TXT, service.server.ttl, kdf.txt_rdata(parameters)))


async def _draft(transaction: Transaction, row: ZoneRow, owners: Iterable[bytes]) -> Draft:
    """A draft on a zone of which only the named nodes are in memory."""
    zone = Zone(row.id, row.apex, row.serial, row.soa, row.soa_ttl, row.member_id)
    for rows in (await transaction.load_nodes(row.id, owners)).values():
        zone.load(rows)
    return Draft(zone)


def _add(draft: Draft, record: RR) -> None:
    """Add one permanent record; its TTL becomes that of the whole RRset."""
    assert is_at_or_below(fold(record.owner), draft.apex)
    present = draft.rrset(fold(record.owner), record.rtype)
    wanted = canonical(record.rtype, record.rdata)
    others = (
        [
            (rdata, at)
            for rdata, at in zip(present.rdatas, present.expires, strict=True)
            if canonical(record.rtype, rdata) != wanted
        ]
        if present
        else []
    )
    rdatas = (*(rdata for rdata, _ in others), record.rdata)
    draft.put(record.owner, RRset(record.rtype, record.ttl, rdatas, (*(at for _, at in others), 0)))


def _remove(draft: Draft, record: RR) -> None:
    key = fold(record.owner)
    present = draft.rrset(key, record.rtype)
    if present is None:
        return
    wanted = canonical(record.rtype, record.rdata)
    kept = [
        (rdata, at)
        for rdata, at in zip(present.rdatas, present.expires, strict=True)
        if canonical(record.rtype, rdata) != wanted
    ]
    if kept:
        draft.put(
            record.owner,
            RRset(record.rtype, present.ttl, tuple(rdata for rdata, _ in kept), tuple(at for _, at in kept)),
        )
    else:
        draft.drop(key, record.rtype)


async def _commit(transaction: Transaction, draft: Draft, now: int) -> None:
    """Write a draft as one step of its zone's journal; nothing when it changes nothing."""
    found = draft.differences()
    if not found.is_content:
        return
    assert isinstance(draft.base, Zone)
    change = draft.change(found, next_serial(draft.serial), at=now, actor=OPERATOR)
    commit = commit_of(draft.base, draft, [change])
    assert commit is not None
    await transaction.apply([commit])
