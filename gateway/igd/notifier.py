"""Delivers events to subscribers over HTTP, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

import h11

from .events import Event, Subscriptions

DELIVERY_SECONDS: Final = 5.0
AT_A_TIME: Final = 8
REPLY_OCTETS: Final = 8192


class Notifier:
    """Holds the tasks of deliveries under way."""

    def __init__(self, subscriptions: Subscriptions, counters: Counter[str]) -> None:
        self._subscriptions = subscriptions
        self._counters = counters
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, event: Event, on_end: Callable[[], None]) -> None:
        """Deliver; there is one event at a time for each subscription, so never too many."""
        task = asyncio.get_running_loop().create_task(self._deliver(event), name="upnp event")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: on_end())

    async def stop(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _deliver(self, event: Event) -> None:
        ok = False
        try:
            async with self._room, asyncio.timeout(DELIVERY_SECONDS):
                ok = await _notify(event)
        except (OSError, TimeoutError, h11.RemoteProtocolError):
            pass
        finally:
            self._counters["events delivered" if ok else "events not delivered"] += 1
            self._subscriptions.delivered(event, ok=ok)


async def _notify(event: Event) -> bool:
    """Send the NOTIFY; whether the subscriber took it. A redirection is a refusal."""
    callback = event.subscription.callback
    reader, writer = await asyncio.open_connection(
        callback.host, callback.port, local_addr=(event.subscription.local, 0), limit=REPLY_OCTETS
    )
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=REPLY_OCTETS)
        headers, body = event.request()
        request = h11.Request(method="NOTIFY", target=callback.path, headers=headers)
        for each in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(each) or b"")
        await writer.drain()
        while True:
            answer = connection.next_event()
            if answer is h11.NEED_DATA:
                connection.receive_data(await reader.read(REPLY_OCTETS))
            elif isinstance(answer, h11.Response):
                return 200 <= answer.status_code < 300
            elif not isinstance(answer, h11.InformationalResponse):
                return False
    finally:
        writer.close()
