"""What of the mappings is not in the state file yet, and the commits that bring it there.

A commit holds all that is unsaved when it begins, so that many requests share the wait for the disk. It runs in a
thread of its own; one runs at a time. What changes meanwhile goes into the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from .errors import StartError, StoreError
from .mappings import Change, Changed, Key, Mapping, MappingTable, Origin
from .state import Saved, StateFile
from .system import System

CLOCK_CHECK_SECONDS = 60.0
"""How often the wall clock is compared with the monotonic one; a step makes the times in the state file wrong."""
CLOCK_STEP_SECONDS = 2.0
RETRY_SECONDS = 1.0
"""Wait after a failed commit that nobody's request repeats."""
_Result = TypeVar("_Result")


class Saving:
    """The state file from `open` to `close`."""

    def __init__(self, path: Path, system: System, counters: Counter[str]) -> None:
        self._path = path
        self._system = system
        self._counters = counters
        self._log = structlog.get_logger(__name__)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gateway-state")
        self._state: StateFile | None = None
        self._unsaved: dict[Key, Mapping | None] = {}
        self._under_way: dict[Key, Mapping | None] = {}
        """What the commit holds that runs now."""
        self._must_commit = False
        self._retry_at: float | None = None
        self._clock_offset = 0.0
        self._clock_check_at = 0.0

    async def open(self, now: float) -> Saved:
        """Open the file and read what is there. Raises `StartError`."""
        state = self._state = await self._in_thread(lambda: StateFile(self._path))
        unix = self._system.unix()
        self._clock_offset = unix - now
        self._clock_check_at = now + CLOCK_CHECK_SECONDS
        saved = await self._in_thread(lambda: state.load(now=now, unix=unix))
        if saved.damaged is not None:
            self._log.warning("state file was damaged, mappings lost", moved_to=str(saved.damaged))
        return saved

    async def close(self) -> None:
        """Close the file; what is unsaved stays so."""
        if self._state is not None:
            await self._in_thread(self._state.close)
            self._state = None
        self._thread.shutdown(wait=False)

    async def device_uuid(self) -> str:
        """The UUID that UPnP knows this gateway by. Raises `StartError`."""
        assert self._state is not None
        try:
            return await self._in_thread(self._state.device_uuid)
        except StoreError as error:
            raise StartError(str(error)) from None

    @property
    def is_due(self) -> bool:
        """Whether there is something to commit."""
        return bool(self._unsaved) or self._must_commit

    def may_try(self, now: float) -> bool:
        """Whether no wait after a failed commit is under way."""
        return self._retry_at is None or now >= self._retry_at

    @property
    def has_unsaved(self) -> bool:
        """Whether mappings are not stored as they are."""
        return bool(self._unsaved or self._under_way)

    def next_deadline(self) -> float:
        """When a commit is to be tried again or the clocks are to be compared."""
        return self._clock_check_at if self._retry_at is None else min(self._retry_at, self._clock_check_at)

    def note(self, changed: Changed) -> None:
        """Have a change in the next commit; static mappings are the configuration's."""
        mapping = changed.mapping
        if mapping.origin is not Origin.STATIC:
            is_there = changed.change in (Change.CREATED, Change.RENEWED)
            self._unsaved[mapping.key] = mapping if is_there else None

    def note_gone(self, mapping: Mapping) -> None:
        """Have the next commit take out what could not be taken over."""
        self._unsaved[mapping.key] = None

    def note_epoch(self) -> None:
        """Have a commit even if no mapping changed: epochs or external address did."""
        self._must_commit = True

    async def commit(self, table: MappingTable, *, rewrite: bool = False) -> bool:
        """Make durable what is unsaved. After a failure it stays unsaved, and a retry is due soon."""
        assert self._state is not None
        state, held = self._state, self._unsaved
        self._under_way, self._unsaved = held, {}
        must_commit, self._must_commit = self._must_commit, False
        unsaved = {mapping.key: mapping for mapping in table.mappings()} if rewrite else held
        now, unix = self._system.monotonic(), self._system.unix()
        epochs = {"epoch": table.age(now), "strict_epoch": table.strict_age(now)}
        address = table.last_address
        try:
            await self._in_thread(
                lambda: state.commit(unsaved, **epochs, address=address, now=now, unix=unix, rewrite=rewrite)
            )
        except StoreError as error:
            if self._retry_at is None:
                self._log.error("mappings cannot be stored", reason=str(error))
            self._counters["failed commits"] += 1
            self._retry_at = now + RETRY_SECONDS
            self._unsaved = held | self._unsaved
            self._must_commit |= must_commit
            return False
        finally:
            self._under_way = {}
        self._counters["commits"] += 1
        self._retry_at = None
        return True

    async def check_clocks(self, table: MappingTable, now: float) -> None:
        """If it is time, rewrite the file's times if somebody set the wall clock, as routers do after the start."""
        if now < self._clock_check_at:
            return
        self._clock_check_at = now + CLOCK_CHECK_SECONDS
        offset = self._system.unix() - now
        if abs(offset - self._clock_offset) > CLOCK_STEP_SECONDS and await self.commit(table, rewrite=True):
            self._clock_offset = offset

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
