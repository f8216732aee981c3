"""Mappings and the epoch on disk, so that a restart of the daemon loses neither.

A small SQLite file; a commit is durable (synchronous FULL) when it returns. Blocking: call it from a worker thread,
from one at a time. Times in the file are wall-clock seconds, for a monotonic clock means nothing to the next process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .errors import StartError, StoreError
from .mappings import Filter, Key, Mapping, Origin, Transport

FORMAT = 2
TOGETHER = 32
"""Rows in one statement."""
_EPOCH_TABLE = """
CREATE TABLE epoch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch REAL NOT NULL,
    strict_epoch REAL,
    address TEXT,
    saved_at REAL NOT NULL
) STRICT;
"""
_MAPPING_TABLE = """
CREATE TABLE mapping (
    transport INTEGER NOT NULL,
    host TEXT NOT NULL,
    internal_port INTEGER NOT NULL CHECK (internal_port BETWEEN 1 AND 65535),
    external_port INTEGER NOT NULL CHECK (external_port BETWEEN 1 AND 65535),
    origin TEXT NOT NULL,
    expires_at REAL,
    nonce BLOB,
    filters TEXT NOT NULL,
    description TEXT NOT NULL,
    PRIMARY KEY (transport, host, internal_port)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX mapping_external ON mapping (transport, external_port) WHERE instr(host, ':') = 0;
"""
_DEVICE_TABLE = """
CREATE TABLE device (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    uuid TEXT NOT NULL
) STRICT;
"""
_SCHEMA = _EPOCH_TABLE + _MAPPING_TABLE + _DEVICE_TABLE
_OLD_ASIDE = "ALTER TABLE epoch RENAME TO old_epoch; ALTER TABLE mapping RENAME TO old_mapping;"
_OLD_COPIED = """
INSERT INTO epoch SELECT id, epoch, NULL, NULL, saved_at FROM old_epoch;
INSERT INTO mapping SELECT transport, host, internal_port, external_port, origin, expires_at, NULL, '', ''
  FROM old_mapping;
DROP TABLE old_epoch;
DROP TABLE old_mapping;
"""
_FROM_FORMAT = {
    0: (_SCHEMA,),
    # Format 1 knew no nonces, so the strict epoch of its reader began at 0 with each start.
    1: (_OLD_ASIDE, _SCHEMA, _OLD_COPIED),
}
"""What brings a file of an older format, or an empty one, to the present one."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What the file held. `epoch` is None when it held nothing, so that the epoch begins at 0."""

    epoch: float | None
    mappings: tuple[Mapping, ...]
    strict_epoch: float = 0.0
    address: str | None = None
    """The external address that the mappings were on last."""
    damaged: Path | None = None
    """Where a file that was no state file has been put."""


class StateFile:
    """An open state file. Opening raises `StartError`; a failed commit raises `StoreError` and changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._damaged: Path | None = None
        try:
            self._connection = self._open()
        except sqlite3.OperationalError as error:
            raise StartError(f"state file {path}: {error}") from None
        except sqlite3.DatabaseError:
            self._damaged = path.with_name(path.name + ".damaged")
            try:
                path.replace(self._damaged)
                self._connection = self._open()
            except (OSError, sqlite3.Error) as error:
                raise StartError(f"state file {path}: {error}") from None

    def load(self, *, now: float, unix: float) -> Saved:
        """Read all that is there, its wall-clock times turned into monotonic ones.

        If the wall clock stands before the time of saving, no time is taken to have passed: clients then see an epoch
        that is too small rather than mappings that are gone.
        """
        try:
            found = self._connection.execute("SELECT epoch, strict_epoch, address, saved_at FROM epoch").fetchone()
            if found is None:
                return Saved(None, (), damaged=self._damaged)
            epoch, strict_epoch, address, saved_at = found
            unix = max(unix, saved_at)
            rows = self._connection.execute(
                "SELECT transport, host, internal_port, external_port, origin, expires_at, nonce, filters, description"
                " FROM mapping ORDER BY expires_at"
            ).fetchall()
            mappings = tuple(
                Mapping(
                    key=Key(Transport(transport), host, internal_port),
                    external_port=external_port,
                    origin=Origin(origin),
                    expires_at=None if expires_at is None else now + (expires_at - unix),
                    nonce=nonce,
                    filters=_filters(filters),
                    description=description,
                )
                for (
                    transport,
                    host,
                    internal_port,
                    external_port,
                    origin,
                    expires_at,
                    nonce,
                    filters,
                    description,
                ) in rows
            )
        except (sqlite3.Error, ValueError) as error:
            raise StartError(f"state file {self._path}: {error}") from None
        passed = unix - saved_at
        strict_epoch = 0.0 if strict_epoch is None else strict_epoch + passed
        return Saved(epoch + passed, mappings, strict_epoch, address, self._damaged)

    def device_uuid(self) -> str:
        """The UUID that UPnP knows this gateway by, drawn once for each file. Raises `StoreError`."""
        try:
            self._connection.execute("INSERT OR IGNORE INTO device VALUES (1, ?)", (str(uuid.uuid4()),))
            (text,) = self._connection.execute("SELECT uuid FROM device").fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"state file {self._path}: {error}") from error
        return str(text)

    def commit(
        self,
        changes: Dict[Key, Mapping | None],
        *,
        epoch: float,
        now: float,
        unix: float,
        strict_epoch: float = 0.0,
        address: str | None = None,
        rewrite: bool = False,
    ) -> None:
        """Make changes durable: the mapping of a key, or None where it is gone.

        With `rewrite`, `changes` is the whole table and takes the place of what was there. `now` and `unix` are the
        same moment on both clocks, `epoch` and `strict_epoch` the seconds that the epochs had then, on the
        external `address`.
        """
        gone = [key for key, mapping in changes.items() if mapping is None]
        kept = [mapping for mapping in changes.values() if mapping is not None]
        try:
            with self._transaction():
                if rewrite:
                    self._connection.execute("DELETE FROM mapping")
                self._run_for(_deletion, gone)
                # A port may pass from one row to another in one commit: who gets it takes the place of who had it.
                self._run_for(_insertion, list(_rows(kept, now=now, unix=unix)))
                self._connection.execute(
                    "INSERT OR REPLACE INTO epoch VALUES (1, ?, ?, ?, ?)", (epoch, strict_epoch, address, unix)
                )
        except sqlite3.Error as error:
            raise StoreError(f"state file {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _run_for(self, statement: Callable[[int], str], rows: Sequence[tuple[object, ...]]) -> None:
        """Run a statement for all rows, for many at a time: each statement run gives up the interpreter and waits for
        it again, while the rest of the gateway works."""
        at = 0
        for size in (TOGETHER, 1):
            while len(rows) - at >= size:
                self._connection.execute(statement(size), list(chain.from_iterable(rows[at : at + size])))
                at += size

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        _keep_private(self._path)
        # Autocommit: transactions are ours to begin. One thread at a time uses it, not always the one that opened it.
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version in _FROM_FORMAT:
                script = "".join(_FROM_FORMAT[version])
                connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {FORMAT}; COMMIT;")
            elif version != FORMAT:
                raise StartError(f"state file {self._path}: written by another version of homing (format {version})")
            # A file that can only be read fails here and not at the first mapping.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection


def _keep_private(path: Path) -> None:
    """Have the file for its owner alone, for PCP's nonces are in it; SQLite gives its companions the same mode."""
    with contextlib.suppress(OSError):  # whatever is wrong with it, SQLite says
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_mode & 0o077:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


@functools.cache
def _deletion(size: int) -> str:
    # Each of these is looked up by the primary key, where IN would read the whole table.
    keys = " OR ".join(["(transport = ? AND host = ? AND internal_port = ?)"] * size)
    return f"DELETE FROM mapping WHERE {keys}"  # noqa: S608 (question marks only)


@functools.cache
def _insertion(size: int) -> str:
    rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?)"] * size)
    return f"INSERT OR REPLACE INTO mapping VALUES {rows}"  # noqa: S608 (question marks only)


_ORIGINS = {origin: origin.value for origin in Origin}
"""As plain text: SQLite would look for an adapter each time."""
_Row = tuple[int, str, int, int, str, float | None, bytes | None, str, str]


def _rows(mappings: Iterable[Mapping], *, now: float, unix: float) -> Iterable[_Row]:
    for mapping in mappings:
        if mapping.origin is Origin.STATIC:
            continue
        transport, host, port = mapping.key
        expires_at = None if mapping.expires_at is None else unix + (mapping.expires_at - now)
        filters = ""
        if mapping.filters:
            filters = " ".join(f"{network}@{remote_port}" for network, remote_port in mapping.filters)
        yield (
            int(transport),
            host,
            port,
            mapping.external_port,
            _ORIGINS[mapping.origin],
            expires_at,
            mapping.nonce,
            filters,
            mapping.description,
        )


def _filters(text: str) -> tuple[Filter, ...]:
    parts = (part.rpartition("@") for part in text.split())
    return tuple(Filter(network, int(port)) for network, _, port in parts)
