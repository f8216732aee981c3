"""Driver of the LLQ client: discovery, one TLS stream or UDP socket, polls where there is no LLQ (RFC 8764 §2, §3)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import structlog

from client_stub import clock
from client_stub.llq_client import Broken, LlqClient, Poll, Send, State, StateChanged, ViewChanged
from client_stub.resolver import ResolveError, Resolver, Service
from client_stub.streams import FramedStream, open_tls
from protocol.message import Question
from protocol.name import from_text, to_text
from protocol.tsig import Key

log = structlog.get_logger(__name__)

STREAM_SERVICES: Final = (from_text("_dns-llq-tls._udp")[:-1], from_text("_dns-llq-tls._tcp")[:-1])
DATAGRAM_SERVICE: Final = from_text("_dns-llq._udp")[:-1]
RECONNECT_FIRST: Final = 0.25
RECONNECT_MAX: Final = 60.0
LIVED_LONG: Final = 30.0
"""A connection that stood this many seconds was a good one: the next attempt comes without growing delay."""
_MAX_POLLS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherSettings:
    """`service` overrides discovery (TLS). Waits in seconds."""

    domain: bytes
    key: Key | None
    context: ssl.SSLContext
    source: IPv4Address
    service: Service | None = None
    rediscover: float = 900.0


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes], None]) -> None:
        self._on_datagram = on_datagram

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._on_datagram(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens just now: the core's own retries go on."""


class Watcher:
    """Watches RRsets. `run` does the work; views arrive through `on_view`."""

    def __init__(
        self,
        settings: WatcherSettings,
        client: LlqClient,
        resolver: Resolver,
        rng: random.Random,
        on_view: Callable[[Question, tuple[bytes, ...]], None],
        on_state: Callable[[StateChanged], None],
    ) -> None:
        self._settings = settings
        self._client = client
        self._resolver = resolver
        self._rng = rng
        self._on_view = on_view
        self._on_state = on_state
        self._polls: asyncio.Queue[Question] = asyncio.Queue(_MAX_POLLS)
        self._send: Callable[[bytes], None] | None = None
        self._break: Callable[[], None] | None = None
        self._timer = clock.Timer(self._on_timer)
        self._is_flushing = False

    def subscribe(self, question: Question) -> None:
        if not self._client.subscribe(question, now=clock.both()):
            log.warning("too many subscriptions", owner=to_text(question.name))
        self._flush()

    def unsubscribe(self, question: Question) -> None:
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
            try:
                service, is_stream = await self._discover()
                if service is None:
                    self._client.no_service(now=clock.both(), reason="no LLQ service is announced")
                    self._flush()
                    await asyncio.sleep(self._settings.rediscover)
                    continue
                if is_stream:
                    await self._use_stream(service)
                else:
                    await self._use_datagrams(service)
            except (OSError, ResolveError) as error:
                log.info("subscription channel failed", reason=str(error) or type(error).__name__)
            if clock.monotonic() - opened_at > LIVED_LONG:
                delay = RECONNECT_FIRST
            await asyncio.sleep(delay * self._rng.uniform(0.5, 1.0))
            delay = min(RECONNECT_MAX, delay * 2)

    async def _discover(self) -> tuple[Service | None, bool]:
        if self._settings.service is not None:
            return self._settings.service, True
        for labels in STREAM_SERVICES:
            service = await self._resolver.service(labels + self._settings.domain)
            if service is not None:
                return service, True
        return await self._resolver.service(DATAGRAM_SERVICE + self._settings.domain), False

    async def _use_stream(self, service: Service) -> None:
        stream = await open_tls(service, self._settings.context, self._settings.source)
        self._send, self._break = stream.send, stream.abort
        try:
            self._client.channel_opened(is_stream=True, now=clock.both())
            self._flush()
            await self._read(stream)
        finally:
            self._send = self._break = None
            stream.abort()
            self._client.channel_closed()
            self._flush()

    async def _read(self, stream: FramedStream) -> None:
        with contextlib.suppress(EOFError):
            while True:
                self._take(await stream.receive())

    async def _use_datagrams(self, service: Service) -> None:
        """One connected socket, so that only the server's own address and port are heard; it stays for good."""
        loop = asyncio.get_running_loop()
        address = next((item for item in service.addresses if item.version == 4), None)
        if address is None:
            raise OSError("the LLQ server has no IPv4 address")
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._take),
            local_addr=(str(self._settings.source), 0),
            remote_addr=(str(address), service.port),
        )
        self._send = transport.sendto
        try:
            self._client.channel_opened(is_stream=False, now=clock.both())
            self._flush()
            await asyncio.Event().wait()
        finally:
            self._send = None
            transport.abort()

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

    def _carry_out(self, effect: Send | ViewChanged | StateChanged | Poll | Broken) -> None:
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

    async def _poll_forever(self) -> None:
        while True:
            question = await self._polls.get()
            rdatas: list[bytes] | None
            try:
                rdatas = await self._resolver.answers(question.name, question.rtype, self._settings.key)
            except ResolveError as error:
                log.info("poll failed", reason=str(error))
                rdatas = None
            self._client.complete_poll(question, rdatas, now=clock.both())
            self._flush()
