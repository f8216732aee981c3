"""The webhook's task in virtual time: when it tries again, what it keeps, and where it goes on."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from protocol.constants import Rcode
from protocol.name import from_text
from protocol.tsig import SHA256, Key
from server.config import WebhookSettings
from server.metrics import Metrics
from server.store.api import KeyRow, Store
from server.store.memory import MemoryStore
from server.webhook.message import MAX_RECORDS, Refused, change_event, read_secret
from server.webhook.post import PostError
from server.webhook.service import LONGEST_WAIT_SECONDS, MAX_EVENTS, MAX_REFUSED, WebhookService
from server.zone.zone import Zone, Zones
from tests.support import simloop
from tests.support.builders import LoopClock
from tests.support.zones import APEX, SOA, aaaa, add_zone, commit_of

SETTINGS = WebhookSettings(url="https://hooks.example/", secret_file="x", private=True)


class FakePost:
    """Takes deliveries from the `good_from`-th on; notes when each was tried."""

    def __init__(self, good_from: int = 0) -> None:
        self.good_from = good_from
        self.tries: list[float] = []
        self.taken: list[dict[str, Any]] = []
        self.ids: list[str] = []

    async def post(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.tries.append(asyncio.get_running_loop().time())
        self.ids.append(headers["webhook-id"])
        if len(self.tries) <= self.good_from:
            raise PostError("it answered 500")
        self.taken += json.loads(body)["data"]["events"]

    async def close(self) -> None:
        pass


class Even:
    """Entropy without surprises."""

    def bits(self, count: int) -> int:
        return 1 << (count - 1)


def service(store: Store, post: FakePost, settings: WebhookSettings = SETTINGS) -> WebhookService:
    zones = Zones([Zone(1, APEX, 1, SOA, 60)])
    clock = LoopClock(asyncio.get_running_loop().time)
    return WebhookService(
        settings, b"s" * 32, store=store, zones=zones, clock=clock, entropy=Even(), metrics=Metrics(), post=post
    )


def play(work: Callable[[], Awaitable[None]]) -> None:
    simloop.run(work())  # type: ignore[arg-type]


async def during(made: WebhookService, work: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.get_running_loop().create_task(made.run())
    await asyncio.sleep(0.01)
    await work()
    made.stop()
    await task


def test_it_tries_again_ever_more_rarely_and_tells_the_same() -> None:
    async def work() -> None:
        store, post = MemoryStore(), FakePost(good_from=12)
        zone_id = await add_zone(store)
        made = service(store, post)

        async def more() -> None:
            await store.commit([await commit_of(store, zone_id, 1, (aaaa("a.members.example.", 1),))])
            made.wake()
            await asyncio.sleep(3000)
            assert made.status()["error"] is None and made.status()["failing_since"] is None

        await during(made, more)
        waits = [after - before for before, after in zip(post.tries, post.tries[1:], strict=False)]
        assert waits[:9] == pytest.approx([1, 2, 4, 8, 16, 32, 64, 128, 256])
        assert waits[9:] == pytest.approx([LONGEST_WAIT_SECONDS] * 3)
        assert len(set(post.ids)) == 1 and len(post.taken) == 1

    play(work)


def test_while_it_fails_the_journal_waits_and_refusals_are_bounded() -> None:
    async def work() -> None:
        store, post = MemoryStore(), FakePost(good_from=3)
        zone_id = await add_zone(store)
        made = service(store, post)

        async def more() -> None:
            for serial in range(1, 2 * MAX_EVENTS):
                await store.commit([await commit_of(store, zone_id, serial, (aaaa(f"h{serial}.members.example.", 1),))])
                made.wake()
                await asyncio.sleep(0)
            for number in range(MAX_REFUSED + 7):
                made.refused(Refused(1, APEX, b"\x01k\x00", f"192.0.2.1#{number}", Rcode.REFUSED, "no"))
            made.refused(Refused(1, APEX, b"\x01k\x00", "192.0.2.1#1", Rcode.NXRRSET, "a prerequisite is no refusal"))
            await asyncio.sleep(100)

        await during(made, more)
        changes = [event["serial_to"] for event in post.taken if event["type"] == "change"]
        assert changes == list(range(2, 2 * MAX_EVENTS + 1))
        refused = [event["peer"] for event in post.taken if event["type"] == "refused"]
        (gap,) = (event["text"] for event in post.taken if event["type"] == "gap")
        assert gap == "7 refused updates were too many to tell of"
        assert refused == [f"192.0.2.1#{number}" for number in range(7, MAX_REFUSED + 7)]
        ids = [event["id"] for event in post.taken]
        assert len(ids) == len(set(ids))

    play(work)


def test_it_begins_with_the_present_and_goes_on_where_it_was() -> None:
    async def work() -> None:
        store = MemoryStore()
        zone_id = await add_zone(store)
        old = KeyRow(Key(from_text("old.members.example."), SHA256, b"x" * 32), None, 1000)
        new = KeyRow(Key(from_text("new.members.example."), SHA256, b"x" * 32), None, 1000)
        async with store.transaction() as transaction:
            await transaction.add_key(old)
        await store.commit([await commit_of(store, zone_id, 1)])
        first, second = FakePost(), FakePost()

        async def rest() -> None:
            await asyncio.sleep(1)

        made = service(store, first)
        made.keys((old,))
        await during(made, rest)
        assert first.taken == []
        await store.commit([await commit_of(store, zone_id, 2)])
        made = service(store, second)
        made.keys((old, new))
        await during(made, rest)
        assert [event["id"] for event in second.taken] == ["change-3", "key-1000-new.members.example."]
        third = FakePost()
        made = service(store, third)
        made.keys((old, new))
        await during(made, rest)
        assert third.taken == []

    play(work)


def test_stopping_does_not_wait_for_a_receiver() -> None:
    async def work() -> None:
        store, post = MemoryStore(), FakePost(good_from=10**9)
        zone_id = await add_zone(store)
        made = service(store, post)

        async def more() -> None:
            await store.commit([await commit_of(store, zone_id, 1)])
            made.wake()
            await asyncio.sleep(1000)

        started = asyncio.get_running_loop().time()
        await during(made, more)
        assert asyncio.get_running_loop().time() - started < 1001

    play(work)


async def test_a_large_change_is_told_in_part() -> None:
    store = MemoryStore()
    zone_id = await add_zone(store)
    many = tuple(aaaa(f"h{number}.members.example.", number) for number in range(MAX_RECORDS + 5))
    await store.commit([await commit_of(store, zone_id, 1, many)])
    (entry,) = await store.journal()
    event = change_event(entry)
    assert len(event["added"]) == MAX_RECORDS and event["added_count"] == MAX_RECORDS + 5
    lapse = change_event(entry._replace(change=entry.change._replace(actor=entry.change.actor._replace(kind="lapse"))))
    assert lapse["type"] == "lapse"


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_!!!", "c" * 40, "whsec_" + "QUJD", "whsec_" + "QUJD" * 40])
def test_a_secret_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        read_secret(text)
