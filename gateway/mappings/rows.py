"""The rows of the table: found by key and by host, counted against the quotas, in the order in which they lapse."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .values import Key, Mapping


class Waiting(NamedTuple):
    """A request to be answered when its row is installed."""

    ticket: object
    lifetime: int
    exact_port: int | None = None


@dataclass(slots=True)
class Row:
    """A mapping and how far its installation got: none without an external address, under way, or `active`."""

    mapping: Mapping
    created: bool = False
    """Whether it was told to the outside: restored and confirmed rows count as such."""
    installation: int | None = None
    active: bool = False
    is_exact: bool = False
    """Whether it is to have this external port or not to be; for a row that nobody was told of."""
    requester: object | None = None
    """Whom to tell when the mapping moves."""
    refused_ports: tuple[int, ...] = ()
    draw: int = 0
    waiting: tuple[Waiting, ...] = ()


class Rows:
    """At most one row for a key. Quotas count what lapses, which is what clients made."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Row] = {}
        self._by_host: dict[str, dict[Key, None]] = {}
        self._dynamic_by_host: dict[str, int] = {}
        self._deadlines: list[tuple[float, Key]] = []
        self.dynamic = 0
        """How many lapse."""
        self.get = self._by_key.get
        """The row of a key, or None."""

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    def __getitem__(self, key: Key) -> Row:
        return self._by_key[key]

    def __iter__(self) -> Iterator[Row]:
        """In the order in which they were entered."""
        return iter(self._by_key.values())

    def keys_of(self, host: str) -> list[Key]:
        """One host's, in the order in which they were entered."""
        return list(self._by_host.get(host, ()))

    def dynamic_of(self, host: str) -> int:
        """How many of one host's lapse."""
        return self._dynamic_by_host.get(host, 0)

    def enter(self, row: Row) -> None:
        """Add a row, whose key has none."""
        mapping = row.mapping
        key = mapping.key
        self._by_key[key] = row
        keys = self._by_host.get(key.host)
        if keys is None:
            keys = self._by_host[key.host] = {}
        keys[key] = None
        if mapping.expires_at is not None:
            self.dynamic += 1
            self._dynamic_by_host[key.host] = self._dynamic_by_host.get(key.host, 0) + 1
            self.lapses_at(mapping.expires_at, key)

    def forget(self, row: Row) -> None:
        """Take a row out."""
        mapping = row.mapping
        key = mapping.key
        del self._by_key[key]
        keys = self._by_host[key.host]
        del keys[key]
        if not keys:
            del self._by_host[key.host]
        if mapping.expires_at is not None:
            self.dynamic -= 1
            left = self._dynamic_by_host.pop(key.host) - 1
            if left:
                self._dynamic_by_host[key.host] = left

    def lapses_at(self, at: float, key: Key) -> None:
        """Note when a row lapses now; what was noted before is passed over when it comes."""
        heapq.heappush(self._deadlines, (at, key))
        # Renewals leave their old deadline behind. Rebuilt once they outnumber the rows: constant cost per renewal.
        if len(self._deadlines) > 2 * len(self._by_key) + 64:
            self._deadlines = [
                (row.mapping.expires_at, key) for key, row in self._by_key.items() if row.mapping.expires_at is not None
            ]
            heapq.heapify(self._deadlines)

    def next_deadline(self) -> float | None:
        """When a row may lapse; one that was renewed or taken out does not."""
        return self._deadlines[0][0] if self._deadlines else None

    def take_lapsed(self, now: float) -> Row | None:
        """A row that is over, the earliest; whoever takes it has to forget it. None if there is no more."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, key = heapq.heappop(self._deadlines)
            row = self._by_key.get(key)
            if row is not None and row.mapping.expires_at is not None and row.mapping.expires_at <= now:
                return row
        return None
