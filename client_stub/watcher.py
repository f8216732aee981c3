"""Driver of the watching cores: finds a way to be told of changes, and comes back to a better one later.

The ways in order (RFC 8765 §6.1, RFC 8764 §1.1): DNS Push over TLS, Long-Lived Queries over TLS, Long-Lived Queries
over UDP, polls. Push carries no signature, so who watches with a key begins at Long-Lived Queries.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address
from typing import Final

import structlog

from client_stub import clock
from client_stub.llq_client import (
    Broken,
    LlqClient,
    Poll,
    Send,
    State,
    StateChanged,
    Unusable,
    ViewChanged,
    question_key,
)
from client_stub.push_client import PushClient
from client_stub.resolver import ResolveError, Resolver
from client_stub.streams import FramedStream, Service, open_tls
from protocol.message import Question
from protocol.name import from_text, to_text
from protocol.tsig import Key

log = structlog.get_logger(__name__)

RECONNECT_FIRST: Final = 0.25
RECONNECT_MAX: Final = 60.0
LIVED_LONG: Final = 30.0
"""A connection that stood this many seconds was a good one: the next attempt comes without growing delay."""
_MAX_POLLS: Final = 1024


class Way(Enum):
    """A way to be told of changes."""

    PUSH = "push"
    LLQ_TLS = "llq-tls"
    LLQ_UDP = "llq-udp"
    POLL = "poll"


_SERVICES: Final = {
    Way.PUSH: (from_text("_dns-push-tls._tcp")[:-1],),
    Way.LLQ_TLS: (from_text("_dns-llq-tls._udp")[:-1], from_text("_dns-llq-tls._tcp")[:-1]),
    Way.LLQ_UDP: (from_text("_dns-llq._udp")[:-1],),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherSettings:
    """`service` overrides discovery (of LLQ over TLS). `ways` are tried in order, polls come last. Waits in seconds."""

    domain: bytes
    key: Key | None
    context: ssl.SSLContext
    source: IPv4Address
    service: Service | None = None
    ways: tuple[Way, ...] = (Way.LLQ_TLS, Way.LLQ_UDP)
    rediscover: float = 900.0


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes], None]) -> None:
        self._on_datagram = on_datagram

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._on_datagram(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens just now: the core's own retries go on."""


class Watcher:
    """Watches RRsets. `run` does the work; views arrive through `on_view`, the way in use through `on_way`."""

    def __init__(
        self,
        settings: WatcherSettings,
        client: LlqClient,
        resolver: Resolver,
        rng: random.Random,
        on_view: Callable[[Question, tuple[bytes, ...]], None],
        on_state: Callable[[StateChanged], None],
        *,
        push: PushClient | None = None,
        on_way: Callable[[Way, Service | None], None] = lambda way, service: None,
    ) -> None:
        if (Way.PUSH in settings.ways) != (push is not None):
            raise ValueError("DNS Push needs its core, and a core its place among the ways")
        self._settings = settings
        self._llq = client
        self._push = push
        self._client: LlqClient | PushClient = client
        self._resolver = resolver
        self._rng = rng
        self._on_view = on_view
        self._on_state = on_state
        self._on_way = on_way
        self._wanted: dict[Question, Question] = {}
        self._polls: asyncio.Queue[Question] = asyncio.Queue(_MAX_POLLS)
        self._send: Callable[[bytes], None] | None = None
        self._break: Callable[[], None] | None = None
        self._not_before: dict[Way, float] = {}
        self._timer = clock.Timer(self._on_timer)
        self._is_flushing = False

    def subscribe(self, question: Question) -> None:
        if self._client.subscribe(question, now=clock.both()):
            self._wanted[question_key(question)] = question
        else:
            log.warning("too many subscriptions", owner=to_text(question.name))
        self._flush()

    def unsubscribe(self, question: Question) -> None:
        self._wanted.pop(question_key(question), None)
        self._client.unsubscribe(question, now=clock.both())
        self._flush()

    def place_changed(self) -> None:
        """Set everything up again, on another stream or from the same socket, instead of waiting for a refresh."""
        self._client.place_changed(now=clock.both())
        self._flush()

    def states(self) -> list[tuple[Question, State, float | None]]:
        return self._client.states()

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._poll_forever(), name="polls")
                group.create_task(self._connect_forever(), name="channel")
        finally:
            self._timer.cancel()
            self._send = self._break = None

    # Channel

    async def _connect_forever(self) -> None:
        delay = RECONNECT_FIRST
        while True:
            opened_at = clock.monotonic()
            await self._use_best_way()
            if clock.monotonic() - opened_at > LIVED_LONG:
                delay = RECONNECT_FIRST
            await asyncio.sleep(delay * self._rng.uniform(0.5, 1.0))
            delay = min(RECONNECT_MAX, delay * 2)

    async def _use_best_way(self) -> None:
        """The first way that is announced and works, until it ends. One that fails leaves the turn to the next."""
        is_best = True
        is_announced = False
        for way in self._settings.ways:
            limit: asyncio.Timeout | None = None
            try:
                if self._not_before.get(way, 0.0) <= clock.monotonic():
                    service = await self._discover(way)
                    if service is None:
                        continue
                    is_announced = True
                    # A way that is not the best is left after a while, to see whether a better one works again.
                    async with asyncio.timeout(None if is_best else self._settings.rediscover) as limit:
                        await self._go(way, service)
                    return
            except (OSError, ResolveError) as error:
                if limit is not None and limit.expired():
                    return
                log.info("subscription channel failed", way=way.value, reason=str(error) or type(error).__name__)
                is_announced = True
            is_best = False
        if not is_announced:
            self._change_client(self._llq)
            self._on_way(Way.POLL, None)
            self._llq.no_service(now=clock.both(), reason="no service for subscriptions is announced")
            self._flush()
            await asyncio.sleep(self._settings.rediscover)

    async def _discover(self, way: Way) -> Service | None:
        if self._settings.service is not None:
            return self._settings.service if way is Way.LLQ_TLS else None
        for labels in _SERVICES.get(way, ()):
            service = await self._resolver.service(labels + self._settings.domain)
            if service is not None:
                return service
        return None

    async def _go(self, way: Way, service: Service) -> None:
        if way is Way.LLQ_UDP:
            await self._use_datagrams(service)
        else:
            await self._use_stream(way, service)

    def _change_client(self, client: LlqClient | PushClient) -> None:
        """Hand everything that is watched, with what is known of it, to another core."""
        before = self._client
        if client is before:
            return
        self._client = client
        now = clock.both()
        for question in self._wanted.values():
            client.subscribe(question, now=now, view=before.view(question))
            before.unsubscribe(question, now=now)
        before.take_effects()  # its channel is closed: there is nowhere to send them
        self._flush()

    async def _use_stream(self, way: Way, service: Service) -> None:
        stream = await open_tls(service, self._settings.context, self._settings.source)
        if way is Way.PUSH and self._push is not None:
            self._change_client(self._push)
        else:
            self._change_client(self._llq)
        client = self._client
        self._send, self._break = stream.send, stream.abort
        self._on_way(way, service)
        try:
            client.channel_opened(is_stream=True, now=clock.both())
            self._flush()
            await self._read(stream)
        finally:
            self._send = self._break = None
            stream.abort()
            client.channel_closed(now=clock.both())
            self._flush()

    async def _read(self, stream: FramedStream) -> None:
        with contextlib.suppress(EOFError):
            while True:
                self._take(await stream.receive())

    async def _use_datagrams(self, service: Service) -> None:
        """One connected socket, so that only the server's own address and port are heard."""
        loop = asyncio.get_running_loop()
        address = service.addresses[0]  # IPv4 first
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._take),
            local_addr=(str(self._settings.source), 0) if address.version == 4 else None,
            remote_addr=(str(address), service.port),
        )
        self._change_client(self._llq)
        self._send = transport.sendto
        self._on_way(Way.LLQ_UDP, service)
        try:
            self._llq.channel_opened(is_stream=False, now=clock.both())
            self._flush()
            await asyncio.Event().wait()
        finally:
            self._llq.leave(now=clock.both())
            self._flush()
            self._send = None
            transport.abort()
            self._llq.channel_closed(now=clock.both())
            self._flush()

    # Core

    def _take(self, wire: bytes) -> None:
        self._client.receive(wire, now=clock.both())
        self._flush()

    def _on_timer(self) -> None:
        self._client.handle_deadline(now=clock.both())
        self._flush()

    def _flush(self) -> None:
        """Carry out the core's effects; a view's consumer may subscribe anew while we do."""
        if self._is_flushing:
            return
        self._is_flushing = True
        try:
            while effects := self._client.take_effects():
                for effect in effects:
                    self._carry_out(effect)
        finally:
            self._is_flushing = False
        self._timer.arm(self._client.next_deadline())

    def _carry_out(self, effect: Send | ViewChanged | StateChanged | Poll | Broken | Unusable) -> None:
        match effect:
            case Send(wire):
                if self._send is not None:
                    self._send(wire)
            case ViewChanged(question, rdatas):
                self._on_view(question, rdatas)
            case StateChanged():
                self._on_state(effect)
            case Poll(question):
                with contextlib.suppress(asyncio.QueueFull):  # asked again at the next poll's time
                    self._polls.put_nowait(question)
            case Broken(reason):
                log.info("subscription channel broken", reason=reason)
                if self._break is not None:
                    self._break()
            case Unusable(reason, seconds):
                log.info("DNS Push is of no use for now", reason=reason, seconds=round(seconds))
                self._not_before[Way.PUSH] = clock.monotonic() + seconds
                if self._break is not None:
                    self._break()

    async def _poll_forever(self) -> None:
        while True:
            question = await self._polls.get()
            rdatas: list[bytes] | None
            try:
                rdatas = await self._resolver.answers(question.name, question.rtype, self._settings.key)
            except ResolveError as error:
                log.info("poll failed", reason=str(error))
                rdatas = None
            self._llq.complete_poll(question, rdatas, now=clock.both())
            self._flush()
