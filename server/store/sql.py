"""The SQL store: SQLite by aiosqlite, PostgreSQL by asyncpg.

All writes go through one connection and one lock, so that SQLite's data_version on that connection tells of other
processes only. Serials are compared and set besides: the lock does not reach into other processes.
"""

import asyncio
import contextlib
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import URL, Connection, event, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.store import migrate, schema
from server.store.api import (
    JournalRow,
    KeyRow,
    MemberRow,
    StoreError,
    SubscriptionChanges,
    Subscriptions,
    Transaction,
    ZoneRow,
)
from server.store.reading import SqlReader
from server.store.sealing import Sealer, load_master_key
from server.store.subscriptions import SubscriptionStatements
from server.store.writing import SqlTransaction, Statements, Step, count_commit, run_on_sqlite
from server.zone.model import Change, Renewal, ZoneCommit
from server.zone.node import Node, StoredNode

BUSY_SECONDS: Final = 5  # how long SQLite waits for another process's transaction
DRIVER_NICE: Final = 10  # of the threads that SQLite works in
CHECKPOINT_PAGES: Final = 4000  # 16 MiB of log before it is worked in: pages that change often are then written once
_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

log = structlog.get_logger(__name__)


def parse_url(text: str) -> URL:
    """A database URL with the driver this store uses; `StoreError` for others and for SQLite without a file."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise StoreError("database url is not of the form sqlite:///FILE or postgresql://...") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise StoreError(f"database url names {url.drivername}: use sqlite:///FILE or postgresql://...")
    if driver.startswith("sqlite") and url.database in (None, "", ":memory:"):
        raise StoreError("database url names no file: use sqlite:///FILE")
    return url.set(drivername=driver)


class SqlStore:
    """Keeps `api.Store`. Make one with `open`."""

    def __init__(self, engine: AsyncEngine, sealer: Sealer) -> None:
        self._engine = engine
        self._sealer = sealer
        self._statements = Statements(engine.dialect)
        self._of_subscriptions = SubscriptionStatements(engine.dialect)
        self._lock = asyncio.Lock()
        self._writer: AsyncConnection | None = None
        self._connects = 0
        self._own_commits = 0

    @classmethod
    async def open(cls, url: str, master_key_file: Path | None = None, create: bool = True) -> "SqlStore":
        """Open the database, made and upgraded as needed.

        `master_key_file` None means the SQLite file's name with `.key` added. With `create` false a missing database
        or master key is an error. `StoreError` in one plain line for all that can go wrong.
        """
        parsed = parse_url(url)
        path = Path(parsed.database or "") if parsed.drivername.startswith("sqlite") else None
        if master_key_file is None:
            if path is None:
                raise StoreError("a PostgreSQL database needs master_key_file to be set")
            master_key_file = path.with_name(path.name + ".key")
        if path is not None:
            _prepare_file(path, create=create)
        sealer = Sealer(load_master_key(master_key_file, create=create))
        try:
            engine = _engine(parsed)
        except ImportError as error:
            raise StoreError(
                f"database driver {error.name} is not installed (pip install 'homing[postgres]')"
            ) from None
        store = cls(engine, sealer)
        try:
            with _plain_errors(parsed):
                await migrate.upgrade(engine)
            await store.keys()  # a wrong master key shows now, not at the first signed request
        except BaseException as error:
            await store.close()
            if _is_refused_connection(error):
                raise StoreError(f"cannot reach database {_where(parsed)}: {_line(error)}") from error
            raise
        return store

    async def close(self) -> None:
        async with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                await writer.close()
            await self._engine.dispose()

    async def commit(self, commits: Sequence[ZoneCommit]) -> None:
        if commits:
            await _to_the_end(self._commit(commits))

    async def _commit(self, commits: Sequence[ZoneCommit]) -> None:
        if self._statements.is_postgresql:
            async with self.transaction() as transaction:
                await transaction.apply(commits)
            return
        await self._run_on_sqlite(self._statements.steps(commits))

    async def _run_on_sqlite(self, steps: Sequence[Step]) -> None:
        async with self._lock:
            with _plain_errors(self._engine.url):
                driver = await self._driver()
                await driver._execute(run_on_sqlite, driver._conn, steps)

    async def save_subscriptions(self, node: str, changes: SubscriptionChanges) -> None:
        steps = self._of_subscriptions.steps(node, changes)
        if steps:
            await _to_the_end(self._save(steps))

    async def _save(self, steps: Sequence[Step]) -> None:
        if not self._statements.is_postgresql:
            await self._run_on_sqlite(steps)
            return
        async with self._writing(counted=False) as transaction:
            await transaction.run(steps)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self._writing(counted=True)

    async def touch_keys(self, used: Mapping[bytes, int]) -> None:
        if used:
            async with self._writing(counted=False) as transaction:
                await transaction.touch_keys(used)

    async def prune(self, *, before: int, keep: int, limit: int) -> int:
        async with self._writing(counted=False) as transaction:
            return await transaction.prune(before=before, keep=keep, limit=limit)

    async def forget_renewals(self, before: int) -> int:
        async with self._writing(counted=False) as transaction:
            return await transaction.forget_renewals(before)

    async def remember(self, name: str, value: str) -> None:
        async with self._writing(counted=False) as transaction:
            await transaction.set_meta(name, value)

    @asynccontextmanager
    async def _writing(self, *, counted: bool) -> AsyncIterator[SqlTransaction]:
        async with self._lock:
            with _plain_errors(self._engine.url):
                connection = await self._connection()
                try:
                    async with connection.begin():
                        yield SqlTransaction(connection, self._sealer, self._statements)
                        if counted and self._statements.is_postgresql:
                            await count_commit(connection)
                except BaseException:
                    if connection.invalidated or connection.closed:
                        self._writer = None
                    raise
                if counted:
                    self._own_commits += 1

    async def _connection(self) -> AsyncConnection:
        """The writing connection, made anew after it broke; the caller holds the lock."""
        if self._writer is None:
            connection = await self._engine.connect()
            await connection.execution_options(homing_write=True)
            self._writer = connection
            self._connects += 1
        return self._writer

    async def _driver(self) -> Any:
        """The writing connection as aiosqlite knows it; the caller holds the lock."""
        return (await (await self._connection()).get_raw_connection()).driver_connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SqlReader]:
        """Reads of one moment, on a connection of their own: they neither wait for the writer nor hold it up."""
        with _plain_errors(self._engine.url):
            async with self._engine.connect() as connection:
                if self._statements.is_postgresql:
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                async with connection.begin():
                    yield SqlReader(connection, self._sealer)

    async def generation(self) -> int:
        with _plain_errors(self._engine.url):
            if self._statements.is_postgresql:
                meta = schema.meta.c
                async with self._engine.connect() as reader:
                    counted = (await reader.execute(select(meta.value).where(meta.name == "generation"))).scalar_one()
                    return int(counted) - self._own_commits
            async with self._lock:
                rows = await (await self._driver()).execute_fetchall("PRAGMA data_version")
                return self._connects << 32 | int(rows[0][0])

    async def load_zones(self) -> list[ZoneRow]:
        async with self.reading() as reader:
            return await reader.load_zones()

    async def load_zone(self, zone_id: int) -> AsyncIterator[list[StoredNode]]:
        async with self.reading() as reader:
            async for nodes in reader.load_zone(zone_id):
                yield nodes

    async def load_nodes(self, zone_id: int, owners: Iterable[bytes]) -> dict[bytes, Node]:
        async with self.reading() as reader:
            return await reader.load_nodes(zone_id, owners)

    async def load_subtree(self, zone_id: int, owner: bytes) -> dict[bytes, Node]:
        async with self.reading() as reader:
            return await reader.load_subtree(zone_id, owner)

    async def changes_since(self, zone_id: int, serial: int) -> list[Change] | None:
        async with self.reading() as reader:
            return await reader.changes_since(zone_id, serial)

    async def journal(self, *, after: int = 0, zone_id: int | None = None, limit: int = 1000) -> list[JournalRow]:
        async with self.reading() as reader:
            return await reader.journal(after=after, zone_id=zone_id, limit=limit)

    async def renewal(self, zone_id: int, owner: bytes) -> Renewal | None:
        async with self.reading() as reader:
            return await reader.renewal(zone_id, owner)

    async def journal_span(self) -> tuple[int, int]:
        async with self.reading() as reader:
            return await reader.journal_span()

    async def members(self) -> list[MemberRow]:
        async with self.reading() as reader:
            return await reader.members()

    async def keys(self) -> list[KeyRow]:
        async with self.reading() as reader:
            return await reader.keys()

    async def meta(self, name: str) -> str | None:
        async with self.reading() as reader:
            return await reader.meta(name)

    async def operations(self) -> int:
        async with self.reading() as reader:
            return await reader.operations()

    async def subscriptions(self, node: str) -> Subscriptions:
        async with self.reading() as reader:
            return await reader.subscriptions(node)


def _yield_to_queries() -> None:
    """Let the thread that calls, the driver's, stand back when the loop has something to do on the same core.

    A query that comes in the midst of a commit then waits for no slice of it (`python -m bench latency`).
    """
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), DRIVER_NICE)


def _is_refused_connection(error: BaseException) -> bool:
    """Whether the network, or asyncpg's own errors on connecting, which SQLAlchemy lets through as they are."""
    return isinstance(error, OSError) or _is_of_asyncpg(error)


def _is_of_asyncpg(error: BaseException) -> bool:
    return type(error).__module__.startswith("asyncpg.")


@contextmanager
def _plain_errors(url: URL) -> Iterator[None]:
    """Turn what the database raises into one plain line; the text of a SQLAlchemy error may quote parameters."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(f"database {_where(url)}: {_line(error.orig or error)}") from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise StoreError(f"database {_where(url)}: {_line(error)}") from error
    except Exception as error:
        if not _is_of_asyncpg(error):
            raise
        raise StoreError(f"database {_where(url)}: {_line(error)}") from error


def _where(url: URL) -> str:
    return url.database or "" if url.drivername.startswith("sqlite") else url.render_as_string(hide_password=True)


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _prepare_file(path: Path, *, create: bool) -> None:
    """Make the database file readable to its owner only (SQLite gives its -wal and -shm files the same mode)."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        raise StoreError(f"cannot open database {path}: {error.strerror}") from None


def _engine(url: URL) -> AsyncEngine:
    if not url.drivername.startswith("sqlite"):
        return create_async_engine(url, pool_size=4, hide_parameters=True)
    engine = create_async_engine(
        url, connect_args={"isolation_level": None, "timeout": BUSY_SECONDS}, hide_parameters=True
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_SECONDS * 1000}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        connection.run_async(lambda driver: driver._execute(_yield_to_queries))

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and takes the write lock later fails when another process wrote in between.
        is_writing = connection.get_execution_options().get("homing_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; when cancelled meanwhile, first let it end, then go on with the cancellation."""
    task = asyncio.create_task(work, name="store commit")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("commit failed while its writer was being stopped", error=str(error))
        raise
