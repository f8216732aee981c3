"""The one writer: drafts, one SQL transaction for a batch, publish, replies; and lease lapses as ordinary changes.

A reply to an update is sent only after its transaction committed. Between the commit and the last published node there
is no await. While the disk works, the queue fills: the next batch is whatever came meanwhile (group commit).
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, Protocol

import structlog

from protocol.constants import Ede, Rcode
from protocol.edns import UpdateLease
from protocol.name import fold, to_text
from protocol.serial import is_newer, next_serial
from server.catalog import CATALOG
from server.config import LeaseSettings
from server.metrics import Metrics
from server.policy import Grant
from server.quota import NamesInBatch, check_quota
from server.request import Refusal
from server.store.api import NodeMoved, Reader, Store, StoreError, Superseded, ZoneRow
from server.system import Clock
from server.zone.draft import Draft, NodeDifference, commit_of, publish
from server.zone.leases import LeaseQueue, lapse
from server.zone.model import Actor, Change, Renewal, ZoneCommit
from server.zone.node import Node
from server.zone.plain_update import apply_plain
from server.zone.update import LeaseTerms, Update, UpdateError, apply_update, check_prerequisites, granted
from server.zone.zone import Zone, Zones

MAX_QUEUE: Final = 4096  # updates waiting; beyond it an update is answered SERVFAIL at once
MAX_BATCH: Final = 512  # updates in one transaction
TURN: Final = 8  # updates drafted or replied to before the loop gets a turn: some 0.2 ms
MAX_LAPSES: Final = (
    100  # owner names lapsed in one transaction: the loop is held up for some 5 ms at a time (bench.lapses)
)
MAX_RETRIES: Final = 5  # when another process committed first
FOLLOW_RETRY_SECONDS: Final = 1.0  # when the store could not tell what another process committed

_NOERROR, _OTHER = Rcode.NOERROR, Ede.OTHER  # enumerations are slow to reach

log = structlog.get_logger(__name__)


class Outcome(NamedTuple):
    """What became of an update: RCODE, a sentence, the lease granted, the serials before and after, the EDE code."""

    rcode: Rcode
    reason: str = ""
    lease: UpdateLease | None = None
    serial_from: int = 0
    serial_to: int = 0
    ede: int = Ede.OTHER


class Pending(Protocol):
    """An authorised update in the queue. `grant` is what policy lets it have; `done` sends the reply.

    `again` asks for the grant anew, when keys or zones changed while it waited; it raises `Refusal`.
    """

    @property
    def apex(self) -> bytes: ...
    @property
    def update(self) -> Update: ...
    @property
    def lease(self) -> UpdateLease | None: ...
    @property
    def actor(self) -> Actor: ...
    @property
    def done(self) -> Callable[[Outcome], None]: ...
    @property
    def again(self) -> Callable[[], Grant] | None: ...

    grant: Grant
    authorised_in: int


@dataclass(slots=True, eq=False)
class PendingUpdate:
    """Keeps `Pending` with functions given to it."""

    apex: bytes
    update: Update
    lease: UpdateLease | None
    grant: Grant
    actor: Actor
    done: Callable[[Outcome], None]
    again: Callable[[], Grant] | None = None
    authorised_in: int = 0


@dataclass(slots=True)
class _Batch:
    """Drafts by zone apex, the changes made on each, and the outcome of every update."""

    drafts: dict[bytes, Draft] = field(default_factory=dict)
    changes: dict[bytes, list[Change]] = field(default_factory=dict)
    outcomes: list[tuple[Pending, Outcome]] = field(default_factory=list)
    lapsed: list[tuple[bytes, bytes]] = field(default_factory=list)
    names: NamesInBatch = field(default_factory=NamesInBatch)
    renewals: dict[bytes, dict[bytes, Renewal]] = field(default_factory=dict)
    terms: dict[tuple[UpdateLease | None, int], tuple[LeaseTerms, UpdateLease | None]] = field(default_factory=dict)
    at: int = 0
    has_more_due: bool = False  # more names lapsed at once than a batch takes


class _Followed(NamedTuple):
    """What another process did to a zone we have."""

    zone: Zone
    row: ZoneRow
    changes: list[Change]
    keys: set[bytes]
    nodes: dict[bytes, Node]


async def _nothing() -> None:
    """What a writer without a keyring does when another process came first."""


class Writer:
    """Runs as one task; `submit` hands it updates, `stop` lets it finish what is queued."""

    def __init__(
        self,
        *,
        zones: Zones,
        store: Store,
        clock: Clock,
        leases: LeaseQueue,
        limits: LeaseSettings,
        metrics: Metrics,
        on_change: Callable[[Change], None],
        on_node: Callable[[bytes], None] = lambda key: None,
        on_zones: Callable[[Sequence[Zone]], None] = lambda fresh: None,
        on_overtaken: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        """`on_node` hears the folded name of every node that a commit replaced, be it only in its leases.

        `on_zones`: zones came (those given) or went. `on_overtaken`: another process committed first: take over the
        keys as well.
        """
        self._zones = zones
        self._zone_at = zones.by_apex.get
        self._store = store
        self._clock = clock
        self._leases = leases
        self._limits = limits
        self._metrics = metrics
        self._on_change = on_change
        self._on_node = on_node
        self._on_zones = on_zones
        self._on_overtaken = on_overtaken
        self._epoch = 0  # of keys and zones: what was authorised in an earlier one is asked for again
        self._queue: deque[Pending] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._behind = False
        self._followers: list[asyncio.Future[None]] = []

    def submit(self, pending: Pending) -> bool:
        """Queue an update; False when the queue is full or the writer is stopping."""
        if self._stopping or len(self._queue) >= MAX_QUEUE:
            return False
        pending.authorised_in = self._epoch
        if not self._queue:
            self._wake.set()
        self._queue.append(pending)
        return True

    def keys_changed(self) -> None:
        """What waits was authorised by keys and rules that may hold no more."""
        self._epoch += 1

    def stop(self) -> None:
        """Take no more updates; `run` returns when the queue is empty."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until stopped."""
        while True:
            await self._wait()
            self._wake.clear()
            while self._queue or (self._is_lapse_due() and not self._stopping):
                await self._gather()
                pending = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
                await self.step(pending)
                if not pending:
                    await asyncio.sleep(0)  # very many lapses may come to nothing: others get their turn
            if self._behind:
                await self._try_catching_up()
            if self._stopping:
                for follower in self._followers:
                    follower.cancel()
                return

    async def _gather(self) -> None:
        """As long as every turn of the loop brings more updates, they go into one commit: its price is shared."""
        waiting = 0
        while waiting < len(self._queue) < MAX_BATCH:
            waiting = len(self._queue)
            await asyncio.sleep(0)

    async def _try_catching_up(self) -> None:
        followers, self._followers, self._behind = self._followers, [], False
        try:
            await self.catch_up()
        except StoreError as error:
            self._followers += followers
            self._behind = True
            self._metrics.store_errors.inc()
            log.error("cannot follow another process, will try again", error=str(error))
            return
        for follower in followers:
            if not follower.done():
                follower.set_result(None)

    async def lapse_due(self) -> None:
        """Before serving: what lapsed while the server was down is gone first."""
        while self._is_lapse_due():
            await self.step([])
            await asyncio.sleep(0)

    def follow(self) -> "asyncio.Future[None]":
        """Something was committed past this writer: catch up when the batch at hand is done; done when that is so."""
        follower = asyncio.get_running_loop().create_future()
        self._followers.append(follower)
        self._behind = True
        self._wake.set()
        return follower

    def _is_lapse_due(self) -> bool:
        moment = self._leases.next_moment()
        return moment is not None and moment <= self._clock.lease()

    async def _wait(self) -> None:
        moment = self._leases.next_moment()
        timeout = None if moment is None else max(0.0, min(moment - self._clock.lease(), 3600.0))
        if self._behind:
            timeout = FOLLOW_RETRY_SECONDS if timeout is None else min(timeout, FOLLOW_RETRY_SECONDS)
        if timeout == 0.0 or self._wake.is_set():
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return

    async def step(self, pending: list[Pending]) -> None:
        """One batch: due lapses first, then the updates in order, one transaction, publish, replies."""
        for _ in range(MAX_RETRIES):
            batch = await self._draft(pending)
            commits = self._commits(batch)
            try:
                try:
                    if commits:
                        await self._store.commit(tuple(commits.values()))
                except Superseded as overtaken:
                    self._put_back(batch)
                    await self._on_overtaken()
                    await self.catch_up()
                    if isinstance(overtaken, NodeMoved):
                        await self._read_again(commits)
                    continue
            except StoreError as error:
                self._metrics.store_errors.inc()
                log.error("commit failed, updates answered SERVFAIL", error=str(error), updates=len(pending))
                self._put_back(batch)
                self._fail(batch, "the database refused the change")
                await asyncio.sleep(0.2)  # a lapse that cannot be written must not spin
                return
            self._publish(batch, commits)
            await self._reply(batch)
            return
        log.error("commit overtaken by other writers too often, updates answered SERVFAIL", updates=len(pending))
        self._fail(batch, "other writers kept coming first")

    async def _draft(self, pending: list[Pending]) -> _Batch:
        """What the updates come to. Nobody else changes zones, so queries may be answered in between."""
        now = self._clock.lease()
        batch = _Batch(at=int(now))
        self._lapse(batch, batch.at)
        moment = self._leases.next_moment()
        batch.has_more_due = moment is not None and moment <= batch.at
        for number, item in enumerate(pending, 1):
            if not number % TURN:
                await asyncio.sleep(0)
            try:
                outcome = self._try(batch, item, now)
            except UpdateError as error:
                outcome = Outcome(error.rcode, error.reason)
            except Refusal as refusal:
                outcome = Outcome(refusal.rcode, refusal.reason, ede=Ede.OTHER if refusal.ede is None else refusal.ede)
            batch.outcomes.append((item, outcome))
        return batch

    def _base(self, batch: _Batch, zone: Zone) -> Draft:
        draft = batch.drafts.get(zone.apex)
        if draft is None:
            draft = batch.drafts[zone.apex] = Draft(zone)
            batch.changes[zone.apex] = []
        return draft

    def _lapse(self, batch: _Batch, now: int) -> None:
        due = self._leases.take_due(now, MAX_LAPSES)
        by_zone: dict[bytes, list[bytes]] = {}
        for apex, key in due:
            by_zone.setdefault(apex, []).append(key)
        for apex, keys in by_zone.items():
            zone = self._zones.at(apex)
            if zone is not None:
                self._lapse_names(batch, zone, keys, now)

    def _lapse_names(self, batch: _Batch, zone: Zone, keys: Iterable[bytes], now: int) -> None:
        draft = Draft(self._base(batch, zone))
        for key in keys:
            batch.lapsed.append((zone.apex, key))
            lapse(draft, key, now)
        self._accept(batch, zone, draft, Actor("lapse"), now)

    def _try(self, batch: _Batch, item: Pending, now: float) -> Outcome:
        """One update on a draft of its own; refused (`UpdateError`, `Refusal`), it leaves no trace."""
        zone = self._zone_at(item.apex)
        if zone is None:
            return Outcome(Rcode.NOTAUTH, f"zone {to_text(item.apex)} is gone")
        if item.authorised_in != self._epoch and item.again is not None:
            item.grant, item.authorised_in = item.again(), self._epoch
        base = batch.drafts.get(zone.apex) or self._base(batch, zone)
        update, grant = item.update, item.grant
        if batch.has_more_due:  # those of this update must be gone
            self._lapse_names(batch, zone, {key for key, _ in update.touched}, batch.at)
        wish = item.lease, grant.default_lease
        granted_here = batch.terms.get(wish)  # machines of a kind wish alike
        if granted_here is None:
            granted_here = batch.terms[wish] = self._terms(item, now)
        terms, lease = granted_here
        before = base.serial
        found = None
        if not grant.bounds_content and not zone.is_counted:
            found = apply_plain(base, update, terms.expires)
        if found is not None:
            self._accept_plain(batch, base, item, found)
        else:
            draft = Draft(base)
            check_prerequisites(draft, update.prerequisites)
            apply_update(draft, update, terms)
            if grant.bounds_content:
                check_quota(f"key {item.actor.key}", grant, draft, zone.census, batch.names)
            self._accept(batch, zone, draft, item.actor, batch.at)
        return tuple.__new__(Outcome, (_NOERROR, "", lease, before, base.serial, _OTHER))

    def _terms(self, item: Pending, now: float) -> tuple[LeaseTerms, UpdateLease | None]:
        """A wish is clamped to the service's bounds; what comes without one is permanent, or as its rule grants."""
        if item.lease is None:
            unasked = item.grant.default_lease
            end = math.ceil(now) + unasked if unasked else 0
            return LeaseTerms(end, end), None
        limits = self._limits
        lease = granted(item.lease, limits.minimum_seconds, limits.maximum_seconds, limits.key_maximum_seconds)
        start = math.ceil(now)  # a record never lapses before its granted time
        key_lease = lease.lease if lease.key_lease is None else lease.key_lease
        return LeaseTerms(start + lease.lease, start + key_lease), lease

    def _accept(self, batch: _Batch, zone: Zone, draft: Draft, actor: Actor, now: int) -> None:
        base = batch.drafts[zone.apex]
        found = draft.differences()
        if zone.is_counted:
            batch.names.note(zone, draft)
        if found.is_content:
            serial = draft.serial if is_newer(draft.serial, base.serial) else next_serial(base.serial)
            batch.changes[zone.apex].append(draft.change(found, serial, at=now, actor=actor))
        if actor.key:
            for key in found.renewed:
                batch.renewals.setdefault(zone.apex, {})[key] = Renewal(now, actor.key, actor.peer)
        base.fold_in(draft, found)

    def _accept_plain(self, batch: _Batch, base: Draft, item: Pending, found: NodeDifference) -> None:
        """`_accept` for what `apply_plain` did."""
        actor = item.actor
        if found.removed or found.added:
            change = base.advance(found, next_serial(base.serial), at=batch.at, actor=actor)
            batch.changes[base.apex].append(change)
        if found.moves_lease and actor.key:
            renewal = Renewal(batch.at, actor.key, actor.peer)
            batch.renewals.setdefault(base.apex, {})[item.update.ops[0].key] = renewal

    def _commits(self, batch: _Batch) -> dict[bytes, ZoneCommit]:
        """By apex."""
        commits: dict[bytes, ZoneCommit] = {}
        for apex, draft in batch.drafts.items():
            zone = self._zones.at(apex)
            if zone is not None:
                commit = commit_of(zone, draft, batch.changes[apex], batch.renewals.get(apex, {}))
                if commit is not None:
                    commits[apex] = commit
        return commits

    def _publish(self, batch: _Batch, commits: Mapping[bytes, ZoneCommit]) -> None:
        """What queries see changes here, in one step; then the events."""
        for apex, commit in commits.items():
            zone = self._zones.at(apex)
            assert zone is not None, "zones come and go with the writer alone"
            for key, node in publish(zone, batch.drafts[apex], commit):
                self._leases.watch(apex, key, node)
                self._on_node(key)
        kinds: dict[str, int] = {}
        for changes in batch.changes.values():
            for change in changes:
                kinds[change.actor.kind] = kinds.get(change.actor.kind, 0) + 1
                self._on_change(change)
        for kind, number in kinds.items():
            self._metrics.changed(kind, number)
        self._metrics.leases.set(len(self._leases))
        if batch.outcomes:
            self._metrics.batch.observe(len(batch.outcomes))

    async def _reply(self, batch: _Batch) -> None:
        for number, (item, outcome) in enumerate(batch.outcomes, 1):
            item.done(outcome)
            if not number % TURN:
                await asyncio.sleep(0)

    async def _read_again(self, commits: Mapping[bytes, ZoneCommit]) -> None:
        """Another server renewed leases of names of these, which moves no serial: take over how they stand."""
        async with self._store.reading() as reader:
            for row in await reader.load_zones():
                zone, commit = self._zones.at(row.apex), commits.get(row.apex)
                if commit is not None and zone is not None and (zone.id, zone.serial) == (row.id, row.serial):
                    keys = [change.key for change in commit.nodes]
                    self._replace(zone, keys, await reader.load_nodes(row.id, keys))

    def _replace(self, zone: Zone, keys: Iterable[bytes], nodes: Mapping[bytes, Node]) -> None:
        for key in keys:
            node = nodes.get(key)
            zone.put(key, node)
            self._leases.watch(zone.apex, key, node)
            self._on_node(key)

    def _put_back(self, batch: _Batch) -> None:
        """Queue taken lapses again: their commit did not happen."""
        now = int(self._clock.lease())
        for apex, key in batch.lapsed:
            self._leases.watch_at(apex, key, now)

    def _fail(self, batch: _Batch, reason: str) -> None:
        """Nothing was written, so no verdict holds: some rested on what neighbours were about to change."""
        for item, _ in batch.outcomes:
            item.done(Outcome(Rcode.SERVFAIL, reason))

    async def catch_up(self) -> None:
        """Take over what other processes committed: zones made or gone, and the journal since our serials.

        All of it is read as of one moment, then taken over without an await in between: who asks while a member's
        names move from one zone to another sees them in one or in the other.
        """
        fresh: list[Zone] = []
        followed: list[_Followed] = []
        async with self._store.reading() as reader:
            rows = await reader.load_zones()
            for row in rows:
                zone = self._zones.at(row.apex)
                if zone is None or zone.id != row.id:
                    fresh.append(await load_zone(reader, row))
                elif zone.serial != row.serial:
                    changes = await reader.changes_since(zone.id, zone.serial)
                    if changes is None:  # the journal was pruned past our serial
                        fresh.append(await load_zone(reader, row))
                    else:
                        keys = {fold(rr.owner) for change in changes for rr in (*change.removed, *change.added)}
                        followed.append(_Followed(zone, row, changes, keys, await reader.load_nodes(row.id, keys)))
        kept = {row.apex for row in rows} - {zone.apex for zone in fresh}
        gone = [zone for zone in self._zones if zone.apex not in kept]
        for zone in gone:
            self._forget(zone)
        for step in followed:
            self._follow(step)
        for zone in fresh:
            self._adopt(zone)
        if gone or fresh:
            self._epoch += 1
            self._on_zones(fresh)

    def _follow(self, step: "_Followed") -> None:
        zone, row = step.zone, step.row
        zone.serial, zone.soa_template, zone.soa_ttl = row.serial, row.soa, row.soa_ttl
        self._replace(zone, step.keys, step.nodes)
        for change in step.changes:
            self._on_change(change)
        log.info("followed another process", zone=to_text(zone.apex), serial=zone.serial, changes=len(step.changes))

    def _adopt(self, zone: Zone) -> None:
        self._zones.add(zone)
        for key in zone.nodes:
            self._leases.watch(zone.apex, key, zone.node(key))
        now = int(self._clock.lease())
        records = tuple(zone.records(now))
        self._on_change(Change(zone.apex, 0, zone.serial, now, Actor("operator"), (), records))
        log.info("zone loaded", zone=to_text(zone.apex), serial=zone.serial, names=len(zone.nodes))

    def _forget(self, zone: Zone) -> None:
        now = int(self._clock.lease())
        records = tuple(zone.records(now))
        self._zones.remove(zone.apex)
        self._leases.forget(zone)
        self._on_change(Change(zone.apex, zone.serial, 0, now, Actor("operator"), records, ()))
        log.info("zone gone", zone=to_text(zone.apex))


async def load_zone(reader: Reader, row: ZoneRow, leases: LeaseQueue | None = None) -> Zone:
    """Read one zone into memory; `leases` notes what will lapse."""
    watch = None if leases is None else partial(leases.loaded, row.apex)
    zone = Zone(row.id, row.apex, row.serial, row.soa, row.soa_ttl, row.member_id, is_catalog=row.kind == CATALOG)
    async for nodes in reader.load_zone(row.id):
        zone.load(nodes, watch)
    return zone
