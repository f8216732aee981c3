"""Writes of the SQL store, on one connection inside a transaction.

The statements of the hot path are compiled once per dialect and handed to the driver as text with tuples.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from sqlalchemy import Integer, Table, Text, bindparam, cast, delete, func, insert, or_, select, update
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.constants import type_text
from server.policy import Rule
from server.store import schema
from server.store.api import OPERATIONS, PRUNED, KeyRow, NodeMoved, StoreError, Superseded
from server.store.packing import order_key, pack_rrs
from server.store.reading import SqlReader
from server.store.sealing import Sealer
from server.zone.model import NodeChange, ZoneCommit

Rows = Sequence[tuple[Any, ...]]

_RENEWED: Final = ("renewed_at", "renewed_key", "renewed_peer")
_NOT_RENEWED: Final = (None, None, None)


class Statement:
    """A statement compiled once: its text for the driver, and the order in which the driver wants its parameters."""

    def __init__(self, statement: Any, dialect: Dialect, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(names))
        assert list(compiled.positiontup) == list(names), (compiled.positiontup, names)
        self.text = str(compiled)


def insert_or_replace(table: Table, dialect: Dialect) -> Any:
    """An INSERT with the dialect's own ON CONFLICT; the dialects that are not used stay out of memory."""
    return import_module(f"sqlalchemy.dialects.{dialect.name}").insert(table)


class Step(NamedTuple):
    """One statement of a commit. Unless it meets every row, `missed` is raised."""

    statement: Statement
    rows: Rows
    missed: Superseded | None = None

    def check(self, met: int) -> None:
        if self.missed is not None and met != len(self.rows):
            raise self.missed


class Statements:
    """What `apply` and `touch_keys` run."""

    def __init__(self, dialect: Dialect) -> None:
        zone, node, key = schema.zone, schema.node, schema.tsig_key
        self.is_postgresql = dialect.name == "postgresql"
        self.move_serial = Statement(
            update(zone)
            .values(serial=bindparam("serial_to"))
            .where(zone.c.id == bindparam("zone"), zone.c.serial == bindparam("serial_from")),
            dialect,
            ("serial_to", "zone", "serial_from"),
        )
        self.hold_serial = Statement(
            select(zone.c.id)
            .where(zone.c.id == bindparam("zone"), zone.c.serial == bindparam("serial_from"))
            .with_for_update(read=True),
            dialect,
            ("zone", "serial_from"),
        )
        self.set_soa = Statement(
            update(zone)
            .values(soa=bindparam("rdata"), soa_ttl=bindparam("rdata_ttl"))
            .where(zone.c.id == bindparam("zone")),
            dialect,
            ("rdata", "rdata_ttl", "zone"),
        )
        place = (node.c.zone_id == bindparam("zone"), node.c.owner_key == bindparam("place"))
        as_known = (*place, node.c.data == bindparam("before"))
        insertion: Any = insert_or_replace(node, dialect).on_conflict_do_nothing()
        replacement: Any = update(node).where(*as_known)
        replacement = replacement.values(owner=bindparam("written"), data=bindparam("after"))
        replacement = replacement.values(
            {name: func.coalesce(bindparam(f"by_{name}", type_=node.c[name].type), node.c[name]) for name in _RENEWED}
        )
        deletion: Any = delete(node).where(*as_known)
        if self.is_postgresql:  # its driver counts what comes back
            insertion, replacement, deletion = (
                change.returning(node.c.zone_id) for change in (insertion, replacement, deletion)
            )
        self.insert = Statement(insertion, dialect, [column.name for column in node.columns])
        names = ("written", "after", *(f"by_{name}" for name in _RENEWED), "zone", "place", "before")
        self.replace = Statement(replacement, dialect, names)
        self.delete = Statement(deletion, dialect, ("zone", "place", "before"))
        renewal = schema.renewal
        renewed = [node.c[name] for name in _RENEWED]
        keep = insert_or_replace(renewal, dialect).from_select(
            [column.name for column in renewal.columns],
            select(node.c.zone_id, node.c.owner_key, *renewed).where(*place, node.c.renewed_at.is_not(None)),
        )
        keep = keep.on_conflict_do_update(
            index_elements=list(renewal.primary_key),
            set_={name: keep.excluded[name] for name in ("at", "key", "peer")},
        )
        self.keep_renewal = Statement(keep, dialect, ("zone", "place"))
        change_names = [column.name for column in schema.change.columns if column.name != "id"]
        self.log = Statement(insert(schema.change).inline(), dialect, change_names)
        self.touch = Statement(
            update(key)
            .values(last_used_at=bindparam("at"))
            .where(
                key.c.name == bindparam("key"),
                or_(key.c.last_used_at.is_(None), key.c.last_used_at < bindparam("at_again")),
            ),
            dialect,
            ("at", "key", "at_again"),
        )

    def steps(self, commits: Sequence[ZoneCommit]) -> list[Step]:
        """What to execute for `commits`: serials first, so that who lost the race has written nothing yet.

        On PostgreSQL in one order for all writers, who else would wait for each other's locks: zones by number; within
        one, only renewals go side by side, and their rows are sorted.
        """
        steps: list[Step] = []
        if self.is_postgresql:
            commits = sorted(commits, key=lambda commit: commit.zone_id)
        for commit in commits:
            superseded = Superseded(commit.zone_id)
            if commit.serial_from != commit.serial_to:
                move = (commit.serial_to, commit.zone_id, commit.serial_from)
                steps.append(Step(self.move_serial, [move], superseded))
            else:
                steps.append(Step(self.hold_serial, [(commit.zone_id, commit.serial_from)], superseded))
            if commit.soa is not None:
                steps.append(Step(self.set_soa, [(*commit.soa, commit.zone_id)]))
        for commit in commits:
            steps += self._node_steps(commit.zone_id, commit.nodes)
        changes = [
            (
                *(commit.zone_id, change.serial_from, change.serial_to, change.at, *change.actor),
                *(pack_rrs(change.removed), pack_rrs(change.added)),
            )
            for commit in commits
            for change in commit.changes
        ]
        if changes:
            steps.append(Step(self.log, changes))
        return steps

    def _node_steps(self, zone_id: int, nodes: Sequence[NodeChange]) -> list[Step]:
        moved = NodeMoved(zone_id)
        gone: list[tuple[Any, ...]] = []
        fresh: list[tuple[Any, ...]] = []
        replaced: list[tuple[Any, ...]] = []
        for key, owner, before, after, renewal in nodes:
            renewed = _NOT_RENEWED if renewal is None else renewal
            if after is None:
                gone.append((zone_id, order_key(key), before))
            elif before is None:
                fresh.append((zone_id, order_key(key), owner, after, *renewed))
            else:
                replaced.append((owner, after, *renewed, zone_id, order_key(key), before))
        if self.is_postgresql:
            replaced.sort(key=lambda row: row[-2:])
        steps = (
            Step(self.keep_renewal, [row[:2] for row in gone]),
            Step(self.delete, gone, moved),
            Step(self.insert, fresh, moved),
            Step(self.replace, replaced, moved),
        )
        return [step for step in steps if step.rows]


def run_on_sqlite(connection: sqlite3.Connection, steps: Sequence[Step]) -> None:
    """One whole transaction on the driver's connection, called in the driver's thread.

    Statement by statement through the event loop costs a change of threads each, and beside a busy loop every one of
    them waits for the interpreter lock.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        _execute(connection, steps)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def _execute(connection: sqlite3.Connection, steps: Sequence[Step]) -> None:
    """Within a transaction, in the driver's thread."""
    for step in steps:
        text, rows = step.statement.text, step.rows
        done = connection.executemany(text, rows) if len(rows) > 1 else connection.execute(text, rows[0])
        step.check(done.rowcount if done.description is None else len(done.fetchall()))


async def _execute_on_postgresql(connection: AsyncConnection, steps: Sequence[Step]) -> None:
    """Within a transaction; the first step may be the one that begins it."""
    for step in steps:
        text, rows = step.statement.text, step.rows
        if step.missed is not None and len(rows) > 1:  # never the first; SQLAlchemy would not say how many it met
            driver: Any = (await connection.get_raw_connection()).driver_connection
            step.check(len(await driver.fetchmany(text, rows)))
            continue
        parameters: Any = rows[0] if len(rows) == 1 else list(rows)
        done = await connection.exec_driver_sql(text, parameters)
        step.check(len(done.all()) if done.returns_rows else done.rowcount)


class SqlTransaction(SqlReader):
    """Keeps `api.Transaction`; whoever makes one begins and ends the SQL transaction."""

    def __init__(self, connection: AsyncConnection, sealer: Sealer, statements: Statements) -> None:
        super().__init__(connection, sealer)
        self._statements = statements

    async def apply(self, commits: Sequence[ZoneCommit]) -> None:
        await self.run(self._statements.steps(commits))

    async def run(self, steps: Sequence[Step]) -> None:
        if self._statements.is_postgresql:
            await _execute_on_postgresql(self._connection, steps)
        else:
            driver: Any = (await self._connection.get_raw_connection()).driver_connection
            await driver._execute(_execute, driver._conn, steps)

    async def add_zone(
        self, apex: bytes, *, kind: str, member_id: int | None, serial: int, soa: bytes, soa_ttl: int
    ) -> int:
        values = {"apex": apex, "kind": kind, "member_id": member_id, "serial": serial, "soa": soa, "soa_ttl": soa_ttl}
        return await self._insert(schema.zone, values, "there is a zone of that name already")

    async def remove_zone(self, zone_id: int) -> None:
        await self._connection.execute(delete(schema.zone).where(schema.zone.c.id == zone_id))

    async def add_member(self, name: str, domain: bytes, *, private: bool, created_at: int) -> int:
        values = {"name": name, "domain": domain, "private": private, "created_at": created_at}
        return await self._insert(schema.member, values, f"there is a member {name} already")

    async def remove_member(self, member_id: int) -> None:
        await self._connection.execute(delete(schema.member).where(schema.member.c.id == member_id))

    async def add_key(self, row: KeyRow) -> None:
        key = schema.tsig_key.c
        name = row.key.name
        ended = or_(key.revoked_at.is_not(None), key.expires_at <= row.created_at)
        await self._connection.execute(delete(schema.tsig_key).where(key.name == name, ended))
        values = {
            "name": name,
            "algorithm": row.key.algorithm.text,
            "secret": self._sealer.seal(name, row.key.secret),
            "member_id": row.member_id,
            "created_at": row.created_at,
            "revoked_at": row.revoked_at,
            "last_used_at": row.last_used_at,
            "kdf": row.kdf,
            "expires_at": row.expires_at,
        }
        key_id = await self._insert(schema.tsig_key, values, "there is a key of that name already")
        await self._add_rules(key_id, row.rules)

    async def revoke_key(self, name: bytes, at: int) -> bool:
        key = schema.tsig_key.c
        found = await self._connection.execute(
            update(schema.tsig_key).values(revoked_at=at).where(key.name == name, key.revoked_at.is_(None))
        )
        return found.rowcount == 1

    async def set_private(self, member_id: int, private: bool) -> None:
        member = schema.member
        await self._connection.execute(update(member).values(private=private).where(member.c.id == member_id))

    async def set_key_expiry(self, name: bytes, at: int | None) -> bool:
        key = schema.tsig_key.c
        found = await self._connection.execute(
            update(schema.tsig_key).values(expires_at=at).where(key.name == name, key.revoked_at.is_(None))
        )
        return found.rowcount == 1

    async def set_rules(self, name: bytes, rules: Sequence[Rule]) -> bool:
        key = schema.tsig_key.c
        key_id = (await self._connection.execute(select(key.id).where(key.name == name))).scalar()
        if key_id is None:
            return False
        await self._connection.execute(delete(schema.policy_rule).where(schema.policy_rule.c.key_id == key_id))
        await self._add_rules(key_id, rules)
        return True

    async def _add_rules(self, key_id: int, rules: Sequence[Rule]) -> None:
        for position, rule in enumerate(rules):
            values = {
                "key_id": key_id,
                "position": position,
                "allow": rule.allow,
                "actions": " ".join(sorted(rule.actions)),
                "owner_match": rule.match.value,
                "owner": rule.owner,
                "types": None if rule.types is None else " ".join(map(type_text, sorted(rule.types))),
                "target": rule.target,
                "lease": None if rule.lease is None else rule.lease.value,
                "default_lease": rule.default_lease,
                **rule.quota._asdict(),
            }
            await self._connection.execute(insert(schema.policy_rule).values(**values))

    async def set_meta(self, name: str, value: str) -> None:
        meta = schema.meta
        await self._connection.execute(delete(meta).where(meta.c.name == name))
        await self._connection.execute(insert(meta).values(name=name, value=value))

    async def count_operation(self) -> None:
        meta = schema.meta
        count = insert_or_replace(meta, self._connection.dialect)
        more = cast(cast(meta.c.value, Integer) + 1, Text)
        count = count.values(name=OPERATIONS, value="1").on_conflict_do_update(
            index_elements=[meta.c.name], set_={"value": more}
        )
        await self._connection.execute(count)

    async def forget_renewals(self, before: int) -> int:
        done = await self._connection.execute(delete(schema.renewal).where(schema.renewal.c.at < before))
        return done.rowcount

    async def prune(self, *, before: int, keep: int, limit: int) -> int:
        change = schema.change.c
        newest = (await self.journal_span())[1]
        last = count = 0
        for row in await self._rows(select(change.id, change.at).order_by(change.id).limit(limit)):
            if row.at >= before and row.id > newest - keep:
                break
            last, count = row.id, count + 1
        if count:
            await self._connection.execute(delete(schema.change).where(change.id <= last))
            await self.set_meta(PRUNED, str(last))
        return count

    async def touch_keys(self, used: Mapping[bytes, int]) -> None:
        await self.run([Step(self._statements.touch, [(at, name, at) for name, at in used.items()])])

    async def _insert(self, table: Any, values: dict[str, Any], taken: str) -> int:
        try:
            made = await self._connection.execute(insert(table).values(**values).returning(table.c.id))
        except IntegrityError:
            raise StoreError(taken) from None
        return int(made.scalar_one())


async def count_commit(connection: AsyncConnection) -> None:
    """Move the number by which other PostgreSQL clients see that something was committed."""
    meta = schema.meta
    value = select(meta.c.value).where(meta.c.name == "generation").with_for_update()
    present = int((await connection.execute(value)).scalar_one())
    await connection.execute(update(meta).values(value=str(present + 1)).where(meta.c.name == "generation"))
