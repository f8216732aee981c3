"""The webhook's task: events from the journal, from the keys, and of refused updates, posted until they are taken.

The journal is the queue: what was taken is remembered by its id in the database, so that a restart goes on there and
nothing is lost, though some may come twice. New keys are found by the time they were made. Refused updates stand in no
journal: the newest are kept in memory, as many as there is room for, and are lost with the process.

    changes ─┐
    keys    ─┼─> batch ──POST──> taken: remember where ──> next
    refused ─┘      └──────────< not taken: wait 1, 2, 4 ... 300 s, the same again
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from protocol.constants import Rcode
from protocol.name import to_text
from server.config import WebhookSettings
from server.metrics import Metrics
from server.store.api import PRUNED, JournalRow, KeyRow, Store, StoreError
from server.system import Clock, Entropy
from server.webhook.message import Delivery, Event, Refused, change_event, gap_event, key_event, refused_event
from server.webhook.post import PostError
from server.zone.zone import Zones

MAX_EVENTS: Final = 50  # in one POST
PAGE_ENTRIES: Final = 10  # of the journal in memory at a time: one of a large import has 10,000 records
MAX_RECORDS: Final = 20_000  # looked at for one POST
UNNOTED_ENTRIES: Final = 1000  # that concerned nobody, before the place is noted all the same
MAX_REFUSED: Final = 1000  # waiting; beyond it the oldest are counted and forgotten
FIRST_WAIT_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 300.0
IDLE_SECONDS: Final = 60.0  # a look at the journal without word of a change
TOLD_RCODES: Final = frozenset((Rcode.REFUSED, Rcode.NOTAUTH, Rcode.NOTZONE, Rcode.FORMERR, Rcode.NOTIMP))
_META: Final = "webhook"

log = structlog.get_logger(__name__)


class Post(Protocol):
    """What posts: `server.webhook.post.Poster`."""

    async def post(self, body: bytes, headers: Mapping[str, str]) -> None: ...
    async def close(self) -> None: ...


@dataclass(slots=True)
class Position:
    """What was told already: journal entries up to an id, keys made until a second and those of that second by name."""

    journal: int = 0
    keys_at: int = 0
    keys: frozenset[str] = frozenset()

    def to_json(self) -> str:
        return json.dumps({"journal": self.journal, "keys_at": self.keys_at, "keys": sorted(self.keys)})

    @classmethod
    def from_json(cls, text: str) -> "Position":
        data = json.loads(text)
        return cls(data["journal"], data["keys_at"], frozenset(data["keys"]))

    def is_new(self, row: KeyRow) -> bool:
        return row.created_at > self.keys_at or (
            row.created_at == self.keys_at and to_text(row.key.name) not in self.keys
        )

    def with_key(self, row: KeyRow) -> "Position":
        same = self.keys if row.created_at == self.keys_at else frozenset()
        return Position(self.journal, row.created_at, same | {to_text(row.key.name)})


@dataclass(slots=True)
class _Batch:
    """Events to be told together, and what is told when they are taken."""

    position: Position
    events: list[Event] = field(default_factory=list)


class WebhookService:
    """`wake`: a zone changed; `keys`: they were loaded; `refused`: an update was. None of them waits."""

    def __init__(
        self,
        settings: WebhookSettings,
        secret: bytes,
        *,
        store: Store,
        zones: Zones,
        clock: Clock,
        entropy: Entropy,
        metrics: Metrics,
        post: Post,
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._store = store
        self._zones = zones
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._post = post
        self._run = clock.unix()
        self._numbers = 0
        self._wake = asyncio.Event()
        self._position: Position | None = None
        self._rows: tuple[KeyRow, ...] = ()
        self._refused: deque[Refused] = deque()
        self._forgotten = 0
        self._error: str | None = None
        self._failing_since: int | None = None
        self._noted = 0  # up to where the database knows
        self._stopping = asyncio.Event()

    # -- from the server, without waiting ---------------------------------------------------------

    def wake(self) -> None:
        """Something was committed."""
        self._wake.set()

    def keys(self, rows: Iterable[KeyRow]) -> None:
        """All valid keys as they are now."""
        if "key" in self._settings.events:
            position = self._position
            self._rows = tuple(row for row in rows if position is None or position.is_new(row))
            if self._rows:
                self._wake.set()

    def refused(self, refused: Refused) -> None:
        """A signed update was refused. The newest are kept."""
        if "refused" not in self._settings.events or refused.rcode not in TOLD_RCODES:
            return
        if len(self._refused) >= MAX_REFUSED:
            self._refused.popleft()
            self._forgotten += 1
        self._refused.append(refused)
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """How it is, for the operator."""
        position = self._position
        return {
            "told": None if position is None else position.journal,
            "refused_waiting": len(self._refused),
            "failing_since": self._failing_since,
            "error": self._error,
        }

    def stop(self) -> None:
        """`run` returns soon. What is under way may be told again after a restart."""
        self._stopping.set()

    # -- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell until stopped."""
        loop = asyncio.get_running_loop()
        work = loop.create_task(self._work())
        stopping = loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work  # a fault of ours
        finally:
            for task in (work, stopping):
                task.cancel()
            await asyncio.gather(work, stopping, return_exceptions=True)
            await self._post.close()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                if self._position is None:
                    self._position = await self._begin()
                batch = await self._next(self._position)
                if batch.events:
                    await self._deliver(batch.events)
                is_news = batch.position != self._position
                self._position = batch.position
                if batch.events or self._position.journal - self._noted > UNNOTED_ENTRIES:
                    await self._note()
            except StoreError as error:
                self._metrics.store_errors.inc()
                log.error("the webhook cannot use the database", error=str(error))
                await asyncio.sleep(FIRST_WAIT_SECONDS)
                continue
            if not (batch.events or is_news):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._wake.wait()

    async def _begin(self) -> Position:
        """Where the last run ended; the present for the first one, so that old stories are not told."""
        stored = await self._store.meta(_META)
        if stored is not None:
            position = Position.from_json(stored)
        else:
            position = Position((await self._store.journal_span())[1])
            for row in sorted(await self._store.keys(), key=lambda row: row.created_at):
                position = position.with_key(row)
            await self._store.remember(_META, position.to_json())
        self._noted = position.journal
        return position

    async def _note(self) -> None:
        assert self._position is not None
        await self._store.remember(_META, self._position.to_json())
        self._noted = self._position.journal

    async def _next(self, position: Position) -> _Batch:
        """What to tell next, and what is told with that."""
        batch = _Batch(position)
        if self._forgotten:
            self._add_gap(batch, f"{self._forgotten} refused updates were too many to tell of")
            self._forgotten = 0
        await self._take_changes(batch)
        for row in sorted(self._rows, key=lambda row: row.created_at):
            if len(batch.events) < MAX_EVENTS and batch.position.is_new(row):
                batch.events.append(key_event(row))
                batch.position = batch.position.with_key(row)
        self._rows = tuple(row for row in self._rows if batch.position.is_new(row))
        while self._refused and len(batch.events) < MAX_EVENTS:
            batch.events.append(refused_event(self._refused.popleft(), run=self._run, number=self._number()))
        return batch

    async def _take_changes(self, batch: _Batch) -> None:
        """Entries of the journal as far as one delivery has room for them."""
        last = batch.position.journal
        pruned = int(await self._store.meta(PRUNED) or 0)
        if pruned > last:
            self._add_gap(batch, f"entries {last + 1} to {pruned} of the journal were pruned before they were told")
            last = pruned
        size = 0
        while len(batch.events) < MAX_EVENTS - PAGE_ENTRIES and size < MAX_RECORDS:
            page = await self._store.journal(after=last, limit=PAGE_ENTRIES)
            for entry in page:
                size += len(entry.change.removed) + len(entry.change.added)
                last = entry.id
                if self._is_told(entry):
                    batch.events.append(change_event(entry))
            if len(page) < PAGE_ENTRIES:
                break
        batch.position = Position(last, batch.position.keys_at, batch.position.keys)

    def _is_told(self, entry: JournalRow) -> bool:
        kind = "lapse" if entry.change.actor.kind == "lapse" else "change"
        if kind not in self._settings.events:
            return False
        zone = self._zones.at(entry.change.apex)
        return self._settings.private or (zone is not None and not zone.is_private)

    def _add_gap(self, batch: _Batch, text: str) -> None:
        batch.events.append(gap_event(run=self._run, number=self._number(), at=self._clock.unix(), text=text))

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    async def _deliver(self, events: list[Event]) -> None:
        """Post until it is taken."""
        delivery = Delivery.of(events, at=self._clock.unix())
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                await self._post.post(delivery.body, delivery.headers(self._secret, at=self._clock.unix()))
            except PostError as error:
                self._metrics.webhooks.labels("failed").inc()
                self._failing_since = self._failing_since or self._clock.unix()
                if str(error) != self._error:
                    log.warning("webhook not taken, will try again", reason=str(error), events=len(events))
                self._error = str(error)
                await asyncio.sleep(wait * (0.75 + self._entropy.bits(8) / 512))
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
                continue
            self._metrics.webhooks.labels("taken").inc()
            if self._error is not None:
                log.info("webhook taken again", events=len(events))
            self._error = self._failing_since = None
            return
