"""Reads of the SQL store, on one connection: raw rows, no ORM."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, cast

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
from server.store.packing import order_key, subtree_bounds, unpack_rrs
from server.store.sealing import Sealer
from server.zone.model import Actor, Change, Renewal, StoredRR

CHUNK_RECORDS: Final = 5_000  # some 1 MiB a time, which stays in the process; the loop gets its turn in between
_IN_LIST: Final = 500  # names in one IN list; SQLite takes 32,766 parameters

# Text, not Core: no type is known, so no per-value conversion stands between the driver's tuples and us.
_COLUMNS: Final = "owner, rtype, ttl, rdata, expires_at"
_ORDER: Final = "ORDER BY owner_key, rtype, rdata_key"
_PAGE: Final = text(f"SELECT {_COLUMNS} FROM record WHERE zone_id = :zone AND owner_key > :after {_ORDER} LIMIT :limit")  # noqa: S608
_RANGE: Final = text(
    f"SELECT {_COLUMNS} FROM record WHERE zone_id = :zone AND owner_key >= :low AND owner_key < :high {_ORDER}"  # noqa: S608
)
_OWNERS: Final = text(
    f"SELECT {_COLUMNS} FROM record WHERE zone_id = :zone AND owner_key IN :owners {_ORDER}"  # noqa: S608
).bindparams(bindparam("owners", expanding=True))


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

    async def load_records(self, zone_id: int) -> AsyncIterator[list[StoredRR]]:
        after = b""
        while True:
            rows = await self._page(zone_id, after)
            if len(rows) == CHUNK_RECORDS:
                last = fold(rows[-1].owner)
                after = order_key(last)
                keep = len(rows)
                while keep and fold(rows[keep - 1].owner) == last:
                    keep -= 1
                # The last owner may go on in the next page: read it whole by itself.
                rows[keep:] = (await self.load_nodes(zone_id, (last,)))[last]
                yield rows
                continue
            if rows:
                yield rows
            return

    async def _page(self, zone_id: int, after: bytes) -> list[StoredRR]:
        wanted = {"zone": zone_id, "after": after, "limit": CHUNK_RECORDS}
        if self._connection.dialect.name == "sqlite":  # the driver's own tuples: half the time of a start
            driver: Any = (await self._connection.get_raw_connection()).driver_connection
            rows = await driver.execute_fetchall(_PAGE.text, wanted)
        else:
            rows = await self._rows(_PAGE, wanted)
        return list(map(_stored, rows))

    async def load_nodes(self, zone_id: int, owners: Iterable[bytes]) -> dict[bytes, list[StoredRR]]:
        found: dict[bytes, list[StoredRR]] = {}
        for part in _batched(sorted({order_key(owner) for owner in owners}), _IN_LIST):
            _group(found, await self._rows(_OWNERS, {"zone": zone_id, "owners": part}))
        return found

    async def load_subtree(self, zone_id: int, owner: bytes) -> dict[bytes, list[StoredRR]]:
        low, high = subtree_bounds(owner)
        found: dict[bytes, list[StoredRR]] = {}
        _group(found, await self._rows(_RANGE, {"zone": zone_id, "low": low, "high": high}))
        return found

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
        found = schema.renewal.c
        wanted = select(found.at, found.key, found.peer).where(
            found.zone_id == zone_id, found.owner_key == order_key(owner)
        )
        rows = await self._rows(wanted)
        return Renewal(owner, *rows[0]) if rows else None

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


_stored: Final = cast("Callable[[Any], StoredRR]", partial(tuple.__new__, StoredRR))  # a third of the time of `_make`


def _subscription(row: Any) -> SubscriptionRow:
    owner, rtype, llq_id, name, *rest = row
    return SubscriptionRow(owner, rtype, int.from_bytes(llq_id, "big"), owner if name is None else name, *rest)


def _group(into: dict[bytes, list[StoredRR]], rows: Iterable[Any]) -> None:
    for row in map(StoredRR._make, rows):
        into.setdefault(fold(row.owner), []).append(row)


def _batched(items: Sequence[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
