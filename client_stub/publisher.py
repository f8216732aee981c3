"""Driver of the registrar: discovery, one signed UPDATE per TLS connection, its reply verified (RFC 6281 §5.2, §7)."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from client_stub import clock
from client_stub.resolver import ResolveError, Resolver, is_signed_by
from client_stub.streams import Service, open_tls
from client_stub.updates import (
    Effect,
    Outcome,
    Published,
    Registrar,
    Registration,
    SendUpdate,
    Withdrawn,
    deregistration_message,
    read_reply,
    registration_message,
)
from protocol.constants import rcode_text
from protocol.errors import DecodeError
from protocol.message import Message, decode
from protocol.name import from_text, to_text
from protocol.tsig import Key, sign

# RFC 6281 prints "_udp", the software of its day asked "_tcp": TLS over TCP either way.
UPDATE_SERVICES: Final = (from_text("_dns-update-tls._udp")[:-1], from_text("_dns-update-tls._tcp")[:-1])
REPLY_SECONDS: Final = 15.0


class UpdateError(Exception):
    """The update could not be sent or its reply not believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherSettings:
    """`service` overrides discovery. `lease` in seconds."""

    domain: bytes
    key: Key
    context: ssl.SSLContext
    source: IPv4Address
    lease: int
    service: Service | None = None


class Publisher:
    """Keeps one machine registered. `run` does the work; `publish` and `withdraw` only say what is wanted."""

    def __init__(
        self,
        settings: PublisherSettings,
        registrar: Registrar,
        resolver: Resolver,
        rng: random.Random,
        on_effect: Callable[[Effect], None],
    ) -> None:
        self._settings = settings
        self._registrar = registrar
        self._resolver = resolver
        self._rng = rng
        self._on_effect = on_effect
        self._wake = asyncio.Event()
        self._place: tuple[bytes, Service] | None = None
        self.withdrawn = asyncio.Event()
        """Set once the server holds nothing of ours any more."""

    @property
    def lapses_at(self) -> float | None:
        return self._registrar.lapses_at

    def publish(self, registration: Registration) -> None:
        self.withdrawn.clear()
        self._registrar.publish(registration, now=clock.monotonic())
        self._wake.set()

    def withdraw(self) -> None:
        self._registrar.withdraw(now=clock.monotonic())
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._wake.clear()
            self._registrar.handle_deadline(now=clock.monotonic())
            for effect in self._registrar.take_effects():
                if isinstance(effect, SendUpdate):
                    outcome = await self._carry_out(effect)
                    self._registrar.complete(effect.token, outcome, now=clock.monotonic())
                    self._wake.set()  # completion has effects and a deadline of its own
                else:
                    if isinstance(effect, Withdrawn):
                        self.withdrawn.set()
                    elif isinstance(effect, Published):
                        self.withdrawn.clear()
                    self._on_effect(effect)
            try:
                async with asyncio.timeout_at(self._registrar.next_deadline()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _carry_out(self, effect: SendUpdate) -> Outcome:
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                return await self._exchange(effect)
        except (OSError, EOFError, ResolveError, UpdateError, DecodeError) as error:
            self._place = None  # the service may have moved: look again next time
            return Outcome(False, reason=str(error) or type(error).__name__)

    async def _exchange(self, effect: SendUpdate) -> Outcome:
        if self._place is None:
            self._place = await self._discover()
        zone, service = self._place
        settings = self._settings
        message_id = self._rng.getrandbits(16)
        if effect.registration is None:
            unsigned = deregistration_message(message_id, zone, effect.names)
        else:
            unsigned = registration_message(message_id, zone, effect.registration, settings.lease)
        stream = await open_tls(service, settings.context, settings.source)
        try:
            wire, mac = sign(unsigned, settings.key, now=clock.unix_seconds())
            stream.send(wire)
            reply = decode(await stream.receive())
        finally:
            await stream.close()
        if not is_signed_by(reply, settings.key, mac, clock.unix_seconds()):
            raise UpdateError(_unsigned_reason(reply))
        return read_reply(reply, message_id, settings.lease)

    async def _discover(self) -> tuple[bytes, Service]:
        zone = await self._resolver.zone_of(self._settings.domain)
        if self._settings.service is not None:
            return zone, self._settings.service
        for labels in UPDATE_SERVICES:
            service = await self._resolver.service(labels + self._settings.domain)
            if service is not None:
                return zone, service
        raise UpdateError(f"no update service is announced at {to_text(self._settings.domain)}")


def _unsigned_reason(reply: Message) -> str:
    if reply.header.rcode:
        return f"the server answers {rcode_text(reply.header.rcode)} without our signature"
    return "the reply is not signed with our key"
