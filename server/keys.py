"""Keys as an operator gives and takes them: of members, of their devices, of administrators.

A key's name tells it from every other (RFC 8945 §4.2), so one that takes another's place has a name of its own; both
hold until the old one's time is up.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.constants import MAX_LABEL_OCTETS, MAX_NAME_OCTETS, Type
from protocol.name import parent, to_text
from protocol.tsig import SHA256, Algorithm, Key
from server import kdf
from server.operation import (
    Service,
    add_record,
    commit_draft,
    draft_on,
    find_member,
    in_transaction,
    read_service,
    service_row,
)
from server.policy import Rule
from server.policy_settings import rule_from_text
from server.store.api import KeyRow, Reader, Store, Transaction
from server.zone.draft import Draft
from server.zone.model import RR
from server.zone.zone import Zone

ADMIN_LABEL: Final = b"\x06_admin"  # no member's name begins with an underscore, so this is never a member's key
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBERED: Final = re.compile(rb"(.+?)(?:-([0-9]{1,6}))?")

Token = Callable[[int], bytes]
"""Random octets; `secrets.token_bytes` but for tests."""


ACME_RULE: Final = (
    'actions = ["update", "query"], match = "pattern", owner = "_acme-challenge.**", types = ["TXT"], '
    'lease = "optional", default_lease_seconds = 86400'
)
"""For a program that proves to a certificate authority whose a name is: one that dies leaves its proof for a day."""


def host_rules(host: str, tunnel: str | None = None) -> tuple[str, ...]:
    """For one machine: its own name and below, what points to it, and seeing the others (RFC 6281 §5).

    `tunnel`: the label of its AutoTunnel name, which stands beside the host's (RFC 6281 §5.2).
    """
    name = check_label(host, "host name").decode()
    beside = () if tunnel is None else (f'actions = ["update"], owner = "{tunnel}"',)
    return (
        f'actions = ["update"], owner = "{name}"',
        *beside,
        f'actions = ["update"], types = ["PTR", "SRV"], target = "{name}"',
        'actions = ["query", "llq"]',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a new key gets besides its name: how its secret is made, what narrows it (in text), when it ends."""

    algorithm: Algorithm = SHA256
    password: str | None = None
    expires_at: int | None = None
    rules: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "KeyTerms(hidden)"


PLAIN_TERMS: Final = KeyTerms()


async def add_key(
    store: Store,
    member: str,
    device: str | None,
    *,
    now: int,
    terms: KeyTerms = PLAIN_TERMS,
    token: Token = secrets.token_bytes,
) -> Key:
    """Give a member one more key, `<device>.<domain>`; the others stay valid.

    Without `device` it is the key named like the domain, once the one before was revoked or expired; only that one can
    come from a password.
    """
    device_label = None if device is None else check_label(device, "device name")
    if device_label is not None and terms.password is not None:
        raise ValueError("only a member's own key is made from a password, not a device's")
    made = await make_secret(terms.password, terms.algorithm, token)

    async def work(transaction: Transaction) -> Key:
        service = await read_service(transaction)
        row = await find_member(transaction, member)
        name = row.domain if device_label is None else _below(device_label, row.domain)
        await _refuse_taken(transaction, name, now)
        key = Key(name, terms.algorithm, made.secret)
        if device_label is None:
            await set_kdf(transaction, service, row.name.encode(), made.parameters, now)
        rules = _rules(terms, row.domain)
        await transaction.add_key(KeyRow(key, row.id, now, kdf=made.stored, expires_at=terms.expires_at, rules=rules))
        return key

    return await in_transaction(store, work)


async def add_admin_key(
    store: Store, label: str, *, now: int, terms: KeyTerms = PLAIN_TERMS, token: Token = secrets.token_bytes
) -> Key:
    """One more administrator's key, `<label>._admin.<zone>`: it may change and transfer every zone unless narrowed."""
    checked = check_label(label, "key name")

    async def work(transaction: Transaction) -> Key:
        zone = (await read_service(transaction)).zone
        name = _below(checked, ADMIN_LABEL + zone)
        await _refuse_taken(transaction, name, now)
        key = Key(name, terms.algorithm, token(terms.algorithm.hash_size))
        rules = _rules(terms, zone)
        await transaction.add_key(KeyRow(key, None, now, expires_at=terms.expires_at, rules=rules))
        return key

    return await in_transaction(store, work)


async def import_key(store: Store, key: Key, member: str | None, *, now: int, terms: KeyTerms = PLAIN_TERMS) -> None:
    """Take over a key made elsewhere, under its own name; `member` None makes it an administrator's.

    A member's domain as a name is for that member's own key, names below it for that member's devices.
    """

    async def work(transaction: Transaction) -> None:
        service = await read_service(transaction)
        row = None if member is None else await find_member(transaction, member)
        for other in await transaction.members():
            if key.name.endswith(other.domain) and (row is None or other.id != row.id):
                raise ValueError(f"{to_text(key.name)} is a name for keys of member {other.name}")
        await _refuse_taken(transaction, key.name, now)
        if row is not None and key.name == row.domain:
            await set_kdf(transaction, service, row.name.encode(), None, now)
        rules = _rules(terms, service.zone if row is None else row.domain)
        member_id = None if row is None else row.id
        await transaction.add_key(KeyRow(key, member_id, now, expires_at=terms.expires_at, rules=rules))

    await in_transaction(store, work)


@dataclass(frozen=True, slots=True)
class Rotated:
    """A key that takes another's place, and until when the other holds."""

    key: Key
    old: bytes
    old_expires_at: int


async def rotate_key(
    store: Store,
    name: bytes,
    *,
    now: int,
    overlap_seconds: int,
    terms: KeyTerms = PLAIN_TERMS,
    token: Token = secrets.token_bytes,
) -> Rotated:
    """Make a key in the place of the valid key `name` (folded): same owner, same rules, a secret and name of its own.

    Both hold for `overlap_seconds`, then the old one expires (sooner if it was to expire sooner).
    """

    async def work(transaction: Transaction) -> Rotated:
        rows = await transaction.keys()
        old = _valid(rows, name, now)
        if old.kdf is not None:
            raise ValueError(
                f"key {to_text(name)} is made from a password: give the devices keys of their own, then revoke it"
            )
        key = Key(await _next_name(transaction, old, rows), terms.algorithm, token(terms.algorithm.hash_size))
        ends = now + overlap_seconds if old.expires_at is None else min(old.expires_at, now + overlap_seconds)
        await transaction.add_key(KeyRow(key, old.member_id, now, expires_at=terms.expires_at, rules=old.rules))
        await transaction.set_key_expiry(name, ends)
        return Rotated(key, name, ends)

    return await in_transaction(store, work)


async def _next_name(transaction: Transaction, old: KeyRow, rows: Iterable[KeyRow]) -> bytes:
    """`phone.alice` becomes `phone-2.alice`, a member's own key `key-2.alice`: the first that no key ever had."""
    known = {row.key.name for row in rows}
    name = old.key.name
    if any(row.domain == name for row in await transaction.members()):
        label, above = b"key", name
    else:
        label, above = name[1 : 1 + name[0]], parent(name)
    match = _NUMBERED.fullmatch(label)
    assert match is not None
    number = int(match.group(2) or 1)
    while True:
        number += 1
        ending = b"-%d" % number
        new = _below(match.group(1)[: MAX_LABEL_OCTETS - len(ending)] + ending, above)
        if new not in known:
            return new


async def set_key_expiry(store: Store, name: bytes, at: int | None, *, now: int) -> None:
    """Let a valid key (folded name) end at `at`, seconds since 1970, or never."""

    async def work(transaction: Transaction) -> None:
        _valid(await transaction.keys(), name, now)
        await transaction.set_key_expiry(name, at)

    await in_transaction(store, work)


async def find_key(reader: Reader, name: bytes) -> tuple[KeyRow, bytes]:
    """A key of any state, and the wire name that completes names in its rules: the member's domain, or the zone."""
    for row in await reader.keys():
        if row.key.name == name:
            member = next((member for member in await reader.members() if member.id == row.member_id), None)
            return row, (await read_service(reader)).zone if member is None else member.domain
    raise ValueError(f"there is no key {to_text(name)}")


async def change_rules(
    store: Store, name: bytes, change: Callable[[tuple[Rule, ...], bytes], Sequence[Rule]]
) -> tuple[Rule, ...]:
    """Let `change` make a key's new rules of its present ones and of the name that completes names in them."""

    async def work(transaction: Transaction) -> tuple[Rule, ...]:
        row, origin = await find_key(transaction, name)
        rules = tuple(change(row.rules, origin))
        await transaction.set_rules(name, rules)
        return rules

    return await in_transaction(store, work)


async def revoke_key(store: Store, name: bytes, *, now: int) -> None:
    """Make a key (folded wire name) invalid at once; it stays listed."""

    async def work(transaction: Transaction) -> None:
        service = await read_service(transaction)
        if not await transaction.revoke_key(name, now):
            raise ValueError(f"there is no valid key {to_text(name)}")
        member = next((row for row in await transaction.members() if row.domain == name), None)
        if member is not None:
            await set_kdf(transaction, service, member.name.encode(), None, now)

    await in_transaction(store, work)


async def ensure_admin_key(
    store: Store, *, now: int, algorithm: Algorithm = SHA256, token: Token = secrets.token_bytes
) -> Key:
    """The administrator's key `_admin.<zone>`, made when there is none or the last was revoked."""

    async def work(transaction: Transaction) -> Key:
        name = ADMIN_LABEL + (await read_service(transaction)).zone
        found = _valid_admin(await transaction.keys(), name, now)
        if found is not None:
            return found
        key = Key(name, algorithm, token(algorithm.hash_size))
        await transaction.add_key(KeyRow(key, None, now))
        return key

    async with store.reading() as reader:
        present = _valid_admin(await reader.keys(), ADMIN_LABEL + (await read_service(reader)).zone, now)
    return await in_transaction(store, work) if present is None else present


def _below(label: bytes, above: bytes) -> bytes:
    name = bytes((len(label),)) + label + above
    if len(name) > MAX_NAME_OCTETS:
        raise ValueError(f"{label.decode()!r} is too long a name below {to_text(above)}")
    return name


async def _refuse_taken(reader: Reader, name: bytes, now: int) -> None:
    if any(row.key.name == name and row.is_valid(now) for row in await reader.keys()):
        raise ValueError(f"there is a key {to_text(name)} already: revoke it first, or take another name")


def _rules(terms: KeyTerms, origin: bytes) -> tuple[Rule, ...]:
    return tuple(rule_from_text(text, origin) for text in terms.rules)


def _valid(rows: Iterable[KeyRow], name: bytes, now: int) -> KeyRow:
    for row in rows:
        if row.key.name == name and row.is_valid(now):
            return row
    raise ValueError(f"there is no valid key {to_text(name)}")


def check_label(text: str, what: str) -> bytes:
    """One label of letters, digits and inner hyphens, lowered; `ValueError` naming `what` for anything else."""
    lowered = text.lower()
    if not _LABEL.fullmatch(lowered):
        raise ValueError(
            f"{what} {text[:80]!r} is not one label of 1 to 63 letters a-z, digits and hyphens "
            "that begins and ends with a letter or digit"
        )
    return lowered.encode()


@dataclass(frozen=True, slots=True)
class Made:
    secret: bytes
    parameters: kdf.KdfParameters | None

    @property
    def stored(self) -> str | None:
        return None if self.parameters is None else self.parameters.to_json()

    def __repr__(self) -> str:
        return "Made(hidden)"


async def make_secret(password: str | None, algorithm: Algorithm, token: Token) -> Made:
    if password is None:
        return Made(token(algorithm.hash_size), None)
    parameters = kdf.KdfParameters(token(kdf.SALT_OCTETS))
    return Made(await asyncio.to_thread(kdf.derive, password, parameters), parameters)


def _valid_admin(keys: Iterable[KeyRow], name: bytes, now: int) -> Key | None:
    return next((row.key for row in keys if row.key.name == name and row.is_valid(now)), None)


async def set_kdf(
    transaction: Transaction, service: Service, label: bytes, parameters: kdf.KdfParameters | None, now: int
) -> None:
    """Publish how a member's key is derived, or take that away."""
    parent = service_row(await transaction.load_zones())
    draft = await draft_on(transaction, parent, ())
    await publish_kdf(transaction, draft, label, service, parameters)
    await commit_draft(transaction, draft, now)


async def publish_kdf(
    transaction: Transaction, draft: Draft, label: bytes, service: Service, parameters: kdf.KdfParameters | None
) -> None:
    owner = kdf.owner_name(label, service.zone)
    assert isinstance(draft.base, Zone)
    for key, node in (await transaction.load_nodes(draft.base.id, (owner,))).items():
        draft.base.put(key, node)
    draft.drop(owner, Type.TXT)
    if parameters is not None:
        add_record(draft, RR(owner, Type.TXT, service.server.ttl, kdf.txt_rdata(parameters)))
