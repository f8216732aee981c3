"""Reads of the SQL store, on one connection: raw rows, no ORM."""

import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Executable, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.constants import type_from_text
from protocol.name import fold
from protocol.tsig import Key, algorithm_from_text
from server.policy import Action, Lease, Match, Quota, Rule
from server.store import schema
from server.store.api import (
    OPERATIONS,
    JournalRow,
    KeyRow,
    MemberRow,
    SubscriptionRow,
    Subscriptions,
    TopicRow,
    ZoneRow,
)
from server.store.packing import checked_nodes, decoded_nodes, order_key, subtree_bounds, unpack_rrs
from server.store.sealing import Sealer
from server.zone.model import Actor, Change, Renewal
from server.zone.node import Node, StoredNode

CHUNK_NODES: Final = 2_500  # some 1 MiB a time, which stays in the process; the loop gets its turn in between
_IN_LIST: Final = 500  # names in one IN list; SQLite takes 32,766 parameters

# Text, not Core: no type is known, so no per-value conversion stands between the driver's tuples and us.
_OF_ZONE: Final = "SELECT owner, data FROM node WHERE zone_id = :zone AND"
_PAGE: Final = text(f"{_OF_ZONE} owner_key >= :low ORDER BY owner_key LIMIT :limit")
_RANGE: Final = text(f"{_OF_ZONE} owner_key >= :low AND owner_key < :high ORDER BY owner_key")
_OWNERS: Final = text(f"{_OF_ZONE} owner_key IN :owners").bindparams(bindparam("owners", expanding=True))


class SqlReader:
    """Keeps `api.Reader` on a connection that is inside a transaction."""

    def __init__(self, connection: AsyncConnection, sealer: Sealer) -> None:
        self._connection = connection
        self._sealer = sealer

    async def _rows(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Any]:
        return (await self._connection.execute(statement, parameters or {})).all()

    async def load_zones(self) -> list[ZoneRow]:
        zone = schema.zone.c
        columns = (zone.id, zone.apex, zone.kind, zone.member_id, zone.serial, zone.soa, zone.soa_ttl)
        return [ZoneRow._make(row) for row in await self._rows(select(*columns).order_by(zone.id))]

    async def load_zone(self, zone_id: int) -> AsyncIterator[list[StoredNode]]:
        wanted = {"zone": zone_id, "low": b"", "limit": CHUNK_NODES}
        while rows := await self._page(wanted):
            nodes = checked_nodes(zone_id, rows)
            yield nodes
            if len(rows) < CHUNK_NODES:
                return
            wanted["low"] = order_key(fold(nodes[-1].owner)) + b"\0"  # what sorts next

    async def _page(self, wanted: dict[str, Any]) -> Sequence[Any]:
        if self._connection.dialect.name != "sqlite":
            return await self._rows(_PAGE, wanted)
        # The driver's own tuples: half the time of a start.
        driver: Any = (await self._connection.get_raw_connection()).driver_connection
        rows: list[Any] = await driver.execute_fetchall(_PAGE.text, wanted)
        return rows

    async def load_nodes(self, zone_id: int, owners: Iterable[bytes]) -> dict[bytes, Node]:
        found: dict[bytes, Node] = {}
        for part in _batched(sorted({order_key(owner) for owner in owners}), _IN_LIST):
            found |= decoded_nodes(zone_id, await self._rows(_OWNERS, {"zone": zone_id, "owners": part}))
        return found

    async def load_subtree(self, zone_id: int, owner: bytes) -> dict[bytes, Node]:
        low, high = subtree_bounds(owner)
        return decoded_nodes(zone_id, await self._rows(_RANGE, {"zone": zone_id, "low": low, "high": high}))

    async def changes_since(self, zone_id: int, serial: int) -> list[Change] | None:
        zone, change = schema.zone.c, schema.change.c
        present = await self._rows(select(zone.serial).where(zone.id == zone_id))
        if not present:
            return None
        if present[0].serial == serial:
            return []
        first = (
            await self._connection.execute(
                select(change.id)
                .where(change.zone_id == zone_id, change.serial_from == serial)
                .order_by(change.id.desc())
                .limit(1)
            )
        ).scalar()
        if first is None:
            return None
        return [entry.change for entry in await self._journal(change.zone_id == zone_id, change.id >= first)]

    async def journal(self, *, after: int = 0, zone_id: int | None = None, limit: int = 1000) -> list[JournalRow]:
        change = schema.change.c
        wanted = [change.id > after] if zone_id is None else [change.id > after, change.zone_id == zone_id]
        return await self._journal(*wanted, limit=limit)

    async def renewal(self, zone_id: int, owner: bytes) -> Renewal | None:
        node, gone = schema.node.c, schema.renewal.c
        for table, at, key, peer in (
            (node, node.renewed_at, node.renewed_key, node.renewed_peer),
            (gone, gone.at, gone.key, gone.peer),
        ):
            there = (table.zone_id == zone_id, table.owner_key == order_key(owner), at.is_not(None))
            for row in await self._rows(select(at, key, peer).where(*there)):
                return Renewal(*row)
        return None

    async def journal_span(self) -> tuple[int, int]:
        change = schema.change.c
        ends = (select(end(change.id)).scalar_subquery() for end in (func.min, func.max))  # each by the index alone
        first, last = (await self._rows(select(*ends)))[0]
        return first or 0, last or 0

    async def _journal(self, *wanted: Any, limit: int | None = None) -> list[JournalRow]:
        change, zone = schema.change.c, schema.zone.c
        columns = (
            *(change.id, change.zone_id, zone.apex, change.serial_from, change.serial_to, change.at),
            *(change.actor_kind, change.actor_key, change.actor_peer, change.removed, change.added),
        )
        joined = schema.change.join(schema.zone)
        rows = await self._rows(select(*columns).select_from(joined).where(*wanted).order_by(change.id).limit(limit))
        return [
            JournalRow(
                row.id,
                row.zone_id,
                Change(
                    row.apex,
                    row.serial_from,
                    row.serial_to,
                    row.at,
                    Actor(row.actor_kind, row.actor_key, row.actor_peer),
                    unpack_rrs(row.removed),
                    unpack_rrs(row.added),
                ),
            )
            for row in rows
        ]

    async def members(self) -> list[MemberRow]:
        member = schema.member.c
        columns = (member.id, member.name, member.domain, member.private, member.created_at)
        return [MemberRow._make(row) for row in await self._rows(select(*columns).order_by(member.name))]

    async def keys(self) -> list[KeyRow]:
        key = schema.tsig_key.c
        columns = (
            *(key.id, key.name, key.algorithm, key.secret, key.member_id),
            *(key.created_at, key.revoked_at, key.last_used_at, key.kdf, key.expires_at),
        )
        rules = await self._rules()
        rows = [
            KeyRow(
                Key(row.name, algorithm_from_text(row.algorithm), self._sealer.open(row.name, row.secret)),
                row.member_id,
                row.created_at,
                row.revoked_at,
                row.last_used_at,
                row.kdf,
                row.expires_at,
                tuple(rules.get(row.id, ())),
            )
            for row in await self._rows(select(*columns))
        ]
        return sorted(rows, key=lambda row: order_key(row.key.name))

    async def _rules(self) -> dict[int, list[Rule]]:
        rule = schema.policy_rule.c
        found: dict[int, list[Rule]] = {}
        for row in await self._rows(select(schema.policy_rule).order_by(rule.key_id, rule.position)):
            found.setdefault(row.key_id, []).append(
                Rule(
                    frozenset(map(Action, row.actions.split())),
                    row.allow,
                    Match(row.owner_match),
                    row.owner,
                    None if row.types is None else frozenset(map(type_from_text, row.types.split())),
                    row.target,
                    None if row.lease is None else Lease(row.lease),
                    row.default_lease,
                    Quota(row.records_per_name, row.names_per_member, row.updates_per_minute),
                )
            )
        return found

    async def meta(self, name: str) -> str | None:
        meta = schema.meta.c
        rows = await self._rows(select(meta.value).where(meta.name == name))
        return rows[0].value if rows else None

    async def operations(self) -> int:
        return int(await self.meta(OPERATIONS) or 0)

    async def subscriptions(self, node: str) -> Subscriptions:
        topic, llq, mark = schema.llq_topic, schema.llq, schema.llq_mark
        topics, rows, marks = [
            await self._rows(select(*table.columns[1:]).where(table.c.node == node)) for table in (topic, llq, mark)
        ]
        return Subscriptions(
            list(map(TopicRow._make, topics)),
            list(map(_subscription, rows)),
            {row.zone_id: row.serial for row in marks},
        )


def _subscription(row: Any) -> SubscriptionRow:
    owner, rtype, llq_id, name, *rest = row
    return SubscriptionRow(owner, rtype, int.from_bytes(llq_id, "big"), owner if name is None else name, *rest)


def _batched(items: Sequence[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
