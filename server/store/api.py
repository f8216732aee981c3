"""What a store does, for those who use one: rows, errors, and the protocol that SqlStore and MemoryStore both keep.

Every name in a row is wire octets; `apex`, `domain` and key names are folded. Methods raise `StoreError` and nothing
else. Content of a zone changes only together with its serial, compared and set in the same transaction.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from protocol.tsig import Key
from server.policy import Rule
from server.zone.model import Change, Renewal, ZoneCommit
from server.zone.node import Node, StoredNode

OPERATIONS: Final = "operations"
"""The meta value that counts changes of members, keys and rules."""
PRUNED: Final = "pruned"
"""The meta value with the id up to which the journal was pruned; none before that was done."""


class StoreError(Exception):
    """The store could not do it; the text is one plain line for the operator."""


class Superseded(StoreError):
    """Another process moved the zone's serial (or removed the zone): load it again, then try again."""

    def __init__(self, zone_id: int) -> None:
        super().__init__(f"zone number {zone_id} was changed by another process")
        self.zone_id = zone_id


class NodeMoved(Superseded):
    """Another process renewed leases at a name of the commit: read its names again, then try again."""


class ZoneRow(NamedTuple):
    """A zone without its records. `soa` is rdata whose serial field says nothing: `serial` does."""

    id: int
    apex: bytes
    kind: str  # "service", "member" or "catalog"
    member_id: int | None
    serial: int
    soa: bytes
    soa_ttl: int


class MemberRow(NamedTuple):
    id: int
    name: str
    domain: bytes
    private: bool
    created_at: int


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A TSIG key. `member_id` None is an administrator's; `kdf` is JSON when a password made the secret.

    `rules` are the key's own, in order; a key with any is narrowed to them.
    """

    key: Key
    member_id: int | None
    created_at: int
    revoked_at: int | None = None
    last_used_at: int | None = None
    kdf: str | None = None
    expires_at: int | None = None
    rules: tuple[Rule, ...] = ()

    def is_valid(self, now: int) -> bool:
        """Whether it may sign at `now`, seconds since 1970."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class JournalRow(NamedTuple):
    """A journal entry under its number, which only grows."""

    id: int
    zone_id: int
    change: Change


class TopicRow(NamedTuple):
    """What the watchers of one question hold: each all of `sure` and nothing beyond `maybe`.

    Both are items as `packing.pack_items` writes them; `maybe` None stands for the same as `sure`.
    """

    owner: bytes  # folded
    rtype: int
    sure: bytes
    maybe: bytes | None


class SubscriptionRow(NamedTuple):
    """A Long-Lived Query. `name` is its owner name in the client's case, `listener` the address it is served from.

    `port` is where events go by UDP; of one set up on a stream the event port that its client told.
    """

    owner: bytes  # folded
    rtype: int
    llq_id: int
    name: bytes
    address: str
    port: int
    listener: str
    key_name: bytes | None
    expires_at: int
    is_stream_born: bool


SubscriptionKey = tuple[bytes, int, int]
"""Folded owner, type, LLQ-ID."""


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """All subscriptions of one node, and by zone number the serial up to which its topics take changes into account."""

    topics: list[TopicRow]
    rows: list[SubscriptionRow]
    marks: dict[int, int]


@dataclass(slots=True)
class SubscriptionChanges:
    """Rows to put and to delete; `marks` are put with them."""

    topics: list[TopicRow] = field(default_factory=list)
    rows: list[SubscriptionRow] = field(default_factory=list)
    ended: list[SubscriptionKey] = field(default_factory=list)
    deserted: list[tuple[bytes, int]] = field(default_factory=list)
    marks: dict[int, int] = field(default_factory=dict)


class Reader(Protocol):
    """Reads; within one `reading()` or `transaction()` all of one moment."""

    async def load_zones(self) -> list[ZoneRow]: ...

    def load_zone(self, zone_id: int) -> AsyncIterator[list[StoredNode]]:
        """All names of a zone (the SOA is in its ZoneRow) in canonical order, in large lists."""
        ...

    async def load_nodes(self, zone_id: int, owners: Iterable[bytes]) -> dict[bytes, Node]:
        """Nodes by folded owner, for the folded `owners` that have records."""
        ...

    async def load_subtree(self, zone_id: int, owner: bytes) -> dict[bytes, Node]:
        """Nodes by folded owner, at and below the folded `owner`."""
        ...

    async def changes_since(self, zone_id: int, serial: int) -> list[Change] | None:
        """The journal from `serial` to the zone's present one; None when it does not reach back to `serial`."""
        ...

    async def journal(self, *, after: int = 0, zone_id: int | None = None, limit: int = 1000) -> list[JournalRow]:
        """Entries with ids above `after`, oldest first: page with the last id."""
        ...

    async def renewal(self, zone_id: int, owner: bytes) -> Renewal | None:
        """The last renewal at a folded owner name, be it that the name has lapsed since; None when none is known."""
        ...

    async def journal_span(self) -> tuple[int, int]:
        """Ids of the oldest and the newest entry; (0, 0) when there is none."""
        ...

    async def members(self) -> list[MemberRow]:
        """All members by name."""
        ...

    async def keys(self) -> list[KeyRow]:
        """All keys in canonical order of names, revoked ones too, their secrets opened."""
        ...

    async def meta(self, name: str) -> str | None: ...

    async def operations(self) -> int:
        """How often an operator changed members, keys or rules: cheap to ask before reading all of them again."""
        ...

    async def subscriptions(self, node: str) -> Subscriptions: ...


class Transaction(Reader, Protocol):
    """One transaction: what is done here is done together or not at all."""

    async def apply(self, commits: Sequence[ZoneCommit]) -> None: ...

    async def add_zone(
        self, apex: bytes, *, kind: str, member_id: int | None, serial: int, soa: bytes, soa_ttl: int
    ) -> int: ...

    async def remove_zone(self, zone_id: int) -> None:
        """The zone with its records and journal."""
        ...

    async def add_member(self, name: str, domain: bytes, *, private: bool, created_at: int) -> int: ...

    async def remove_member(self, member_id: int) -> None:
        """The member with its keys, and its own zone if it has one."""
        ...

    async def set_private(self, member_id: int, private: bool) -> None:
        """Note of which kind a member is; its zone is the caller's affair."""
        ...

    async def add_key(self, row: KeyRow) -> None:
        """Add a key with its rules, in the place of one of that name that was revoked or expired by `created_at`."""
        ...

    async def set_key_expiry(self, name: bytes, at: int | None) -> bool:
        """Let a key that is not revoked end at `at`, or never; whether there is one."""
        ...

    async def set_rules(self, name: bytes, rules: Sequence[Rule]) -> bool:
        """Put these in the place of a key's rules; whether there is a key of that name."""
        ...

    async def revoke_key(self, name: bytes, at: int) -> bool:
        """Whether a valid key of that name was there."""
        ...

    async def set_meta(self, name: str, value: str) -> None: ...

    async def count_operation(self) -> None:
        """Move the number that `operations` reads: members, keys or rules are being changed."""
        ...


class Store(Reader, Protocol):
    async def commit(self, commits: Sequence[ZoneCommit]) -> None:
        """Write all of it in one transaction, durable on return; `Superseded` and nothing written when a serial moved.

        So too, as `NodeMoved`, when what stands at a name is not what the commit says was there.
        Cancellation waits until the transaction has ended one way or the other, then goes on.
        """
        ...

    def reading(self) -> AbstractAsyncContextManager[Reader]:
        """Several reads of one moment."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Reads and writes of one moment; rolled back when the block raises. Keep it short: others wait."""
        ...

    async def generation(self) -> int:
        """A number that moves when anyone but this store committed something. Cheap enough to ask every second.

        Ask before loading: what is committed while loading then shows as a move.
        """
        ...

    async def touch_keys(self, used: Mapping[bytes, int]) -> None:
        """Note when keys were last used (seconds since 1970); never moves a time back."""
        ...

    async def save_subscriptions(self, node: str, changes: SubscriptionChanges) -> None:
        """Write all of it in one transaction. No other process is told: subscriptions are the node's own affair."""
        ...

    async def prune(self, *, before: int, keep: int, limit: int) -> int:
        """Delete the journal's oldest entries, at most `limit`; how many went.

        Those go that were made before `before` (seconds since 1970) and have none but such before them, and those
        beyond the newest `keep`, counted by ids. What is left of each zone's journal has no gap.
        """
        ...

    async def forget_renewals(self, before: int) -> int:
        """Delete renewals made before `before` (seconds since 1970) at names that are gone; how many went.

        It looks at all of them. A name that is there keeps its last one.
        """
        ...

    async def remember(self, name: str, value: str) -> None:
        """Set a meta value that concerns this store's user alone: no generation moves for PostgreSQL's others."""
        ...

    async def close(self) -> None: ...
