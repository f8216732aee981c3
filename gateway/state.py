"""Mappings and the epoch on disk, so that a restart of the daemon loses neither.

A small SQLite file; a commit is durable (synchronous FULL) when it returns. Blocking: call it from a worker thread,
from one at a time. Times in the file are wall-clock seconds, for a monotonic clock means nothing to the next process.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path

from .errors import StartError, StoreError
from .mappings import Key, Mapping, Origin, Transport

FORMAT = 1
_SCHEMA = """
CREATE TABLE epoch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch REAL NOT NULL,
    saved_at REAL NOT NULL
) STRICT;
CREATE TABLE mapping (
    transport INTEGER NOT NULL,
    host TEXT NOT NULL,
    internal_port INTEGER NOT NULL CHECK (internal_port BETWEEN 1 AND 65535),
    external_port INTEGER NOT NULL CHECK (external_port BETWEEN 1 AND 65535),
    origin TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (transport, host, internal_port),
    UNIQUE (transport, external_port)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Saved:
    """What the file held. `epoch` is None when it held nothing, so that the epoch begins at 0."""

    epoch: float | None
    mappings: tuple[Mapping, ...]
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
            found = self._connection.execute("SELECT epoch, saved_at FROM epoch").fetchone()
            if found is None:
                return Saved(None, (), self._damaged)
            epoch, saved_at = found
            unix = max(unix, saved_at)
            rows = self._connection.execute(
                "SELECT transport, host, internal_port, external_port, origin, expires_at FROM mapping"
            ).fetchall()
            mappings = tuple(
                Mapping(
                    key=Key(Transport(transport), host, internal_port),
                    external_port=external_port,
                    origin=Origin(origin),
                    expires_at=now + (expires_at - unix),
                )
                for transport, host, internal_port, external_port, origin, expires_at in rows
            )
        except (sqlite3.Error, ValueError) as error:
            raise StartError(f"state file {self._path}: {error}") from None
        return Saved(epoch + (unix - saved_at), mappings, self._damaged)

    def commit(
        self, changes: Dict[Key, Mapping | None], *, epoch: float, now: float, unix: float, rewrite: bool = False
    ) -> None:
        """Make changes durable: the mapping of a key, or None where it is gone.

        With `rewrite`, `changes` is the whole table and takes the place of what was there. `now` and `unix` are the
        same moment on both clocks, `epoch` the seconds the epoch had then.
        """
        gone = [key for key, mapping in changes.items() if mapping is None or rewrite]
        kept = [mapping for mapping in changes.values() if mapping is not None]
        try:
            with self._transaction():
                if rewrite:
                    self._connection.execute("DELETE FROM mapping")
                # A port may pass from one row to another in one commit: all of them go before any comes.
                self._connection.executemany(
                    "DELETE FROM mapping WHERE transport = ? AND host = ? AND internal_port = ?",
                    [*gone, *(mapping.key for mapping in kept)],
                )
                self._connection.executemany(
                    "INSERT INTO mapping VALUES (?, ?, ?, ?, ?, ?)", list(_rows(kept, now=now, unix=unix))
                )
                self._connection.execute("INSERT OR REPLACE INTO epoch VALUES (1, ?, ?)", (epoch, unix))
        except sqlite3.Error as error:
            raise StoreError(f"state file {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

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
        # Autocommit: transactions are ours to begin. One thread at a time uses it, not always the one that opened it.
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
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


def _rows(mappings: Iterable[Mapping], *, now: float, unix: float) -> Iterable[tuple[int, str, int, int, str, float]]:
    for mapping in mappings:
        if mapping.expires_at is not None:
            transport, host, port = mapping.key
            expires_at = unix + (mapping.expires_at - now)
            yield int(transport), host, port, mapping.external_port, mapping.origin.value, expires_at
