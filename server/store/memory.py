"""The store without a database, for simulations: the same contract, and no thread that virtual time would not see."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from protocol.name import fold
from server.policy import Rule
from server.store.api import (
    OPERATIONS,
    PRUNED,
    JournalRow,
    KeyRow,
    MemberRow,
    NodeMoved,
    StoreError,
    SubscriptionChanges,
    SubscriptionKey,
    SubscriptionRow,
    Subscriptions,
    Superseded,
    TopicRow,
    ZoneRow,
)
from server.store.packing import checked_nodes, decoded_nodes, order_key, subtree_bounds
from server.zone.model import Change, Renewal, ZoneCommit
from server.zone.node import Node, StoredNode


@dataclass(slots=True)
class _Server:
    """The subscriptions of one server."""

    topics: dict[tuple[bytes, int], TopicRow] = field(default_factory=dict)
    rows: dict[SubscriptionKey, SubscriptionRow] = field(default_factory=dict)
    marks: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Data:
    """All rows. Values are immutable, so that copying the dicts is a snapshot."""

    zones: dict[int, ZoneRow] = field(default_factory=dict)
    nodes: dict[int, dict[bytes, tuple[bytes, bytes]]] = field(default_factory=dict)  # owner and data, by folded owner
    journal: list[JournalRow] = field(default_factory=list)
    members: dict[int, MemberRow] = field(default_factory=dict)
    keys: dict[bytes, KeyRow] = field(default_factory=dict)
    meta: dict[str, str] = field(default_factory=dict)
    renewals: dict[tuple[int, bytes], Renewal] = field(default_factory=dict)
    servers: dict[str, _Server] = field(default_factory=dict)  # shared by copies: no transaction touches them
    last_id: int = 0
    commits: int = 0

    def copy(self) -> "_Data":
        return replace(
            self,
            zones=dict(self.zones),
            nodes={zone_id: dict(rows) for zone_id, rows in self.nodes.items()},
            journal=list(self.journal),
            members=dict(self.members),
            keys=dict(self.keys),
            meta=dict(self.meta),
            renewals=dict(self.renewals),
        )

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id


class MemoryReader:
    """Keeps `api.Reader` on rows in memory."""

    def __init__(self, data: _Data) -> None:
        self._data = data

    async def load_zones(self) -> list[ZoneRow]:
        return [self._data.zones[zone_id] for zone_id in sorted(self._data.zones)]

    def _ordered(self, zone_id: int) -> list[tuple[bytes, bytes]]:
        rows = self._data.nodes.get(zone_id, {})
        return [rows[key] for key in sorted(rows, key=order_key)]

    async def load_zone(self, zone_id: int) -> AsyncIterator[list[StoredNode]]:
        nodes = checked_nodes(zone_id, self._ordered(zone_id))
        if nodes:
            yield nodes

    async def load_nodes(self, zone_id: int, owners: Iterable[bytes]) -> dict[bytes, Node]:
        rows = self._data.nodes.get(zone_id, {})
        return decoded_nodes(zone_id, (rows[owner] for owner in sorted(set(owners)) if owner in rows))

    async def load_subtree(self, zone_id: int, owner: bytes) -> dict[bytes, Node]:
        low, high = subtree_bounds(owner)
        rows = self._ordered(zone_id)
        return decoded_nodes(zone_id, (row for row in rows if low <= order_key(fold(row[0])) < high))

    async def changes_since(self, zone_id: int, serial: int) -> list[Change] | None:
        zone = self._data.zones.get(zone_id)
        if zone is None:
            return None
        found: list[Change] = []
        if zone.serial == serial:
            return found
        for entry in reversed(self._data.journal):
            if entry.zone_id == zone_id:
                found.append(entry.change)
                if entry.change.serial_from == serial:
                    return found[::-1]
        return None

    async def journal(self, *, after: int = 0, zone_id: int | None = None, limit: int = 1000) -> list[JournalRow]:
        rows = [row for row in self._data.journal if row.id > after and zone_id in (None, row.zone_id)]
        return rows[:limit]

    async def renewal(self, zone_id: int, owner: bytes) -> Renewal | None:
        return self._data.renewals.get((zone_id, owner))

    async def journal_span(self) -> tuple[int, int]:
        journal = self._data.journal
        return (journal[0].id, journal[-1].id) if journal else (0, 0)

    async def members(self) -> list[MemberRow]:
        return sorted(self._data.members.values(), key=lambda row: row.name)

    async def keys(self) -> list[KeyRow]:
        return sorted(self._data.keys.values(), key=lambda row: order_key(row.key.name))

    async def meta(self, name: str) -> str | None:
        return self._data.meta.get(name)

    async def operations(self) -> int:
        return int(self._data.meta.get(OPERATIONS, 0))

    async def subscriptions(self, node: str) -> Subscriptions:
        found = self._data.servers.get(node, _Server())
        return Subscriptions(list(found.topics.values()), list(found.rows.values()), dict(found.marks))


class MemoryTransaction(MemoryReader):
    """Keeps `api.Transaction` on a copy; the store takes the copy over when the block ends well."""

    async def apply(self, commits: Sequence[ZoneCommit]) -> None:
        _apply(self._data, commits)

    async def add_zone(
        self, apex: bytes, *, kind: str, member_id: int | None, serial: int, soa: bytes, soa_ttl: int
    ) -> int:
        if any(zone.apex == apex for zone in self._data.zones.values()):
            raise StoreError("there is a zone of that name already")
        zone_id = self._data.next_id()
        self._data.zones[zone_id] = ZoneRow(zone_id, apex, kind, member_id, serial, soa, soa_ttl)
        self._data.nodes[zone_id] = {}
        return zone_id

    async def remove_zone(self, zone_id: int) -> None:
        self._data.zones.pop(zone_id, None)
        self._data.renewals = {key: row for key, row in self._data.renewals.items() if key[0] != zone_id}
        self._data.nodes.pop(zone_id, None)
        self._data.journal = [row for row in self._data.journal if row.zone_id != zone_id]

    async def add_member(self, name: str, domain: bytes, *, private: bool, created_at: int) -> int:
        if any(member.name == name for member in self._data.members.values()):
            raise StoreError(f"there is a member {name} already")
        member_id = self._data.next_id()
        self._data.members[member_id] = MemberRow(member_id, name, domain, private, created_at)
        return member_id

    async def remove_member(self, member_id: int) -> None:
        self._data.members.pop(member_id, None)
        self._data.keys = {name: row for name, row in self._data.keys.items() if row.member_id != member_id}
        for zone in list(self._data.zones.values()):
            if zone.member_id == member_id:
                await self.remove_zone(zone.id)

    async def set_private(self, member_id: int, private: bool) -> None:
        self._data.members[member_id] = self._data.members[member_id]._replace(private=private)

    async def add_key(self, row: KeyRow) -> None:
        present = self._data.keys.get(row.key.name)
        if present is not None and present.is_valid(row.created_at):
            raise StoreError("there is a key of that name already")
        self._data.keys[row.key.name] = row

    async def set_key_expiry(self, name: bytes, at: int | None) -> bool:
        row = self._data.keys.get(name)
        if row is None or row.revoked_at is not None:
            return False
        self._data.keys[name] = replace(row, expires_at=at)
        return True

    async def set_rules(self, name: bytes, rules: Sequence[Rule]) -> bool:
        row = self._data.keys.get(name)
        if row is None:
            return False
        self._data.keys[name] = replace(row, rules=tuple(rules))
        return True

    async def revoke_key(self, name: bytes, at: int) -> bool:
        row = self._data.keys.get(name)
        if row is None or row.revoked_at is not None:
            return False
        self._data.keys[name] = replace(row, revoked_at=at)
        return True

    async def set_meta(self, name: str, value: str) -> None:
        self._data.meta[name] = value

    async def count_operation(self) -> None:
        self._data.meta[OPERATIONS] = str(await self.operations() + 1)


@dataclass(slots=True)
class _Shared:
    """What stores on the same data share, as processes share a database file."""

    data: _Data = field(default_factory=_Data)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryStore(MemoryReader):
    """Keeps `api.Store`. `sibling` is what another process would open."""

    def __init__(self, shared: _Shared | None = None) -> None:
        self._shared = shared or _Shared()
        self._own_commits = 0

    @property
    def _data(self) -> _Data:  # type: ignore[override]  # the shared rows, whatever transaction replaced them last
        return self._shared.data

    def sibling(self) -> "MemoryStore":
        """Another store on the same data."""
        return MemoryStore(self._shared)

    async def commit(self, commits: Sequence[ZoneCommit]) -> None:
        if not commits:
            return
        async with self._shared.lock:
            _apply(self._data, commits)
            self._count()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[MemoryReader]:
        yield MemoryReader(self._data.copy())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        async with self._shared.lock:
            draft = self._data.copy()
            yield MemoryTransaction(draft)
            self._shared.data = draft
            self._count()

    def _count(self) -> None:
        self._data.commits += 1
        self._own_commits += 1

    async def generation(self) -> int:
        return self._data.commits - self._own_commits

    async def touch_keys(self, used: Mapping[bytes, int]) -> None:
        for name, at in used.items():
            row = self._data.keys.get(name)
            if row is not None and (row.last_used_at or 0) < at:
                self._data.keys[name] = replace(row, last_used_at=at)

    async def save_subscriptions(self, node: str, changes: SubscriptionChanges) -> None:
        there = self._data.servers.setdefault(node, _Server())
        there.topics.update(((row.owner, row.rtype), row) for row in changes.topics)
        for key in changes.ended:
            there.rows.pop(key, None)
        there.rows.update(((row.owner, row.rtype, row.llq_id), row) for row in changes.rows)
        for place in changes.deserted:
            there.topics.pop(place, None)
        there.marks.update(changes.marks)

    async def prune(self, *, before: int, keep: int, limit: int) -> int:
        journal = self._data.journal
        newest = (await self.journal_span())[1]
        count = 0
        while count < min(limit, len(journal)):
            row = journal[count]
            if row.change.at >= before and row.id > newest - keep:
                break
            count += 1
        if count:
            self._data.meta[PRUNED] = str(journal[count - 1].id)
            del journal[:count]
        return count

    async def forget_renewals(self, before: int) -> int:
        there = self._data.nodes
        old = [key for key, row in self._data.renewals.items() if row.at < before and key[1] not in there[key[0]]]
        for key in old:
            del self._data.renewals[key]
        return len(old)

    async def remember(self, name: str, value: str) -> None:
        self._data.meta[name] = value

    async def close(self) -> None:
        """Nothing to let go of: the data stays for siblings."""


def _apply(data: _Data, commits: Sequence[ZoneCommit]) -> None:
    """Check every serial, then write: nothing fails halfway."""
    for commit in commits:
        zone = data.zones.get(commit.zone_id)
        if zone is None or zone.serial != commit.serial_from:
            raise Superseded(commit.zone_id)
        rows = data.nodes[zone.id]
        for change in commit.nodes:
            if rows.get(change.key, (b"", None))[1] != change.before:
                raise NodeMoved(zone.id)
    for commit in commits:
        zone = data.zones[commit.zone_id]
        soa, soa_ttl = commit.soa or (zone.soa, zone.soa_ttl)
        data.zones[zone.id] = zone._replace(serial=commit.serial_to, soa=soa, soa_ttl=soa_ttl)
        for key, owner, _, after, renewal in commit.nodes:
            if after is None:
                del data.nodes[zone.id][key]
            else:
                data.nodes[zone.id][key] = owner, after
            if renewal is not None:
                data.renewals[zone.id, key] = renewal
        for entry in commit.changes:
            data.journal.append(JournalRow(data.next_id(), zone.id, entry))
