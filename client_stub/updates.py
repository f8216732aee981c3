"""What a machine publishes and when: the leased UPDATE, its reply, refresh and retry (RFC 6281 §5.2, RFC 9664 §4, §5).

Pure: times are monotonic seconds, entropy a `random.Random`; the driver sends what an effect asks for and reports back
with `complete`. Every update is a delete-RRset-and-add, so a refresh is a registration that changes nothing and one
sent after a lapse puts everything back.

    A and TXT: at the autotunnel name    AAAA: at the host name and at the autotunnel name
    SRV:       at _autotunnel._udp.<host>    PTR: at _autotunnel._udp.<domain>, added only (the member's hosts share it)
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from client_stub.identity import HostNames
from protocol.constants import OPCODE_SHIFT, Class, Opcode, Rcode, Type, rcode_text
from protocol.edns import Opt, UpdateLease, extended_errors, update_lease
from protocol.errors import DecodeError
from protocol.message import Message, Question, encode

RECORD_TTL: Final = 120
_UPDATE: Final = Opcode.UPDATE << OPCODE_SHIFT
_Update = tuple[bytes, int, int, int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One machine's place: inner address, outer address and port, device text (each string up to 255 octets)."""

    names: HostNames
    inner: IPv6Address
    outer: IPv4Address
    port: int
    text: tuple[bytes, ...]


def srv_rdata(port: int, target: bytes) -> bytes:
    """Priority and weight 0 (RFC 6281 §5.2); the target is written whole (RFC 2782)."""
    return struct.pack("!3H", 0, 0, port) + target


def txt_rdata(strings: tuple[bytes, ...]) -> bytes:
    """Character-strings; `ValueError` for one over 255 octets."""
    return b"".join(bytes((len(item),)) + item for item in strings or (b"",))


def _owned_rrsets(registration: Registration) -> tuple[tuple[bytes, int, bytes], ...]:
    names = registration.names
    return (
        (names.host, Type.AAAA, registration.inner.packed),
        (names.autotunnel, Type.AAAA, registration.inner.packed),
        (names.autotunnel, Type.A, registration.outer.packed),
        (names.autotunnel, Type.TXT, txt_rdata(registration.text)),
        (names.service, Type.SRV, srv_rdata(registration.port, names.autotunnel)),
    )


def registration_message(message_id: int, zone: bytes, registration: Registration, lease: int) -> bytes:
    """The unsigned UPDATE that registers or refreshes. `lease` in seconds."""
    updates: list[_Update] = []
    for owner, rtype, rdata in _owned_rrsets(registration):
        updates.append((owner, rtype, Class.ANY, 0, b""))
        updates.append((owner, rtype, Class.IN, RECORD_TTL, rdata))
    names = registration.names
    updates.append((names.browse, Type.PTR, Class.IN, RECORD_TTL, names.service))
    return _update_message(message_id, zone, updates, lease)


def deregistration_message(message_id: int, zone: bytes, names: HostNames) -> bytes:
    """The unsigned UPDATE of a clean stop: our RRsets whole (class ANY), of the shared PTRs our own (class NONE)."""
    updates: list[_Update] = [
        (names.host, Type.AAAA, Class.ANY, 0, b""),
        (names.autotunnel, Type.AAAA, Class.ANY, 0, b""),
        (names.autotunnel, Type.A, Class.ANY, 0, b""),
        (names.autotunnel, Type.TXT, Class.ANY, 0, b""),
        (names.service, Type.SRV, Class.ANY, 0, b""),
        (names.browse, Type.PTR, Class.NONE, 0, names.service),
    ]
    return _update_message(message_id, zone, updates, None)


def _update_message(message_id: int, zone: bytes, updates: list[_Update], lease: int | None) -> bytes:
    options = (UpdateLease(lease).encode(),) if lease is not None else ()
    opt = Opt(options=options)
    return encode(message_id, _UPDATE, (Question(zone, Type.SOA, Class.IN),), authority=updates, opt=opt)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one update. `lease` in seconds: granted, or as wished where the server knows no leases."""

    accepted: bool
    lease: int = 0
    reason: str = ""


def read_reply(reply: Message, message_id: int, wished: int) -> Outcome:
    """Judge the reply to an update; its signature is the driver's to check. `DecodeError` for a malformed lease."""
    header = reply.header
    if header.id != message_id or not header.is_response or header.opcode != Opcode.UPDATE:
        raise DecodeError("not the reply to this update", 0)
    if header.rcode != Rcode.NOERROR:
        texts = [text for _, text in extended_errors(reply.opt)[:1] if text]
        return Outcome(False, reason=": ".join([rcode_text(header.rcode), *texts]))
    granted = update_lease(reply.opt)
    return Outcome(True, granted.lease if granted else wished)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrarSettings:
    """Timing of registration; all in seconds."""

    lease: int = 5400
    first_delay_max: float = 3.0
    """RFC 9664 §4.2: after a start wait a random 0..3 s, so that machines which woke together do not come together."""
    refresh_from: float = 0.80
    refresh_to: float = 0.85
    refresh_retries: int = 9
    retry_first: float = 1.0
    retry_max: float = 300.0


@dataclass(frozen=True, slots=True)
class SendUpdate:
    """Send this registration, or deregister the names where `registration` is None; then call `complete(token)`."""

    token: int
    registration: Registration | None
    names: HostNames


@dataclass(frozen=True, slots=True)
class Published:
    """The server holds `registration` for `lease` seconds from now."""

    registration: Registration
    lease: int
    is_refresh: bool


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The server holds nothing of ours, or we gave up telling it (then the lease ends it)."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """An update failed and is tried again in `retry_in` seconds."""

    reason: str
    retry_in: float


Effect = SendUpdate | Published | Withdrawn | Failed


class Registrar:
    """Keeps what is published equal to what `publish` asked for last. One update is in flight at a time."""

    def __init__(self, settings: RegistrarSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._effects: list[Effect] = []
        self._wanted: Registration | None = None
        self._published: Registration | None = None
        self._names: HostNames | None = None
        self._is_first = True
        self._token = 0
        self._in_flight: SendUpdate | None = None
        self._send_at: float | None = None
        self._failures = 0
        self.lapses_at: float | None = None
        """When the granted lease ends, monotonic seconds; None while nothing is held."""

    def publish(self, registration: Registration, *, now: float) -> None:
        """Ask for this to be what the server holds, also when it already does (then: a refresh)."""
        self._wanted = registration
        self._names = registration.names
        delay = self._rng.uniform(0, self._settings.first_delay_max) if self._is_first else 0.0
        self._failures = 0
        if not (self._is_first and self._send_at is not None):
            self._send_at = now + delay

    def withdraw(self, *, now: float) -> None:
        """Deregister. Nothing is sent, and `Withdrawn` said at once, when nothing was ever sent."""
        self._wanted = None
        self._failures = 0
        if self._published is None and self._in_flight is None:
            self._send_at = None
            self._effects.append(Withdrawn())
        else:
            self._send_at = now

    def next_deadline(self) -> float | None:
        return None if self._in_flight is not None else self._send_at

    def handle_deadline(self, *, now: float) -> None:
        if self._in_flight is not None or self._send_at is None or now < self._send_at or self._names is None:
            return
        self._send_at = None
        self._is_first = False
        if self.lapses_at is not None and now >= self.lapses_at:
            self.lapses_at = None
            self._published = None
        self._token += 1
        self._in_flight = SendUpdate(self._token, self._wanted, self._names)
        self._effects.append(self._in_flight)

    def complete(self, token: int, outcome: Outcome, *, now: float) -> None:
        """Take the outcome of a `SendUpdate`; one for another token is late and ignored."""
        sent = self._in_flight
        if sent is None or sent.token != token:
            return
        self._in_flight = None
        if not outcome.accepted:
            self._retry(sent, outcome.reason, now)
        elif sent.registration is None:
            self._published = None
            self.lapses_at = None
            self._failures = 0
            if self._wanted is None:
                self._effects.append(Withdrawn())
        else:
            is_refresh = self._published == sent.registration
            self._published = sent.registration
            self._failures = 0
            self.lapses_at = now + outcome.lease
            share = self._rng.uniform(self._settings.refresh_from, self._settings.refresh_to)
            if self._send_at is None:
                self._send_at = now + max(1.0, outcome.lease * share)
            self._effects.append(Published(sent.registration, outcome.lease, is_refresh))

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _retry(self, sent: SendUpdate, reason: str, now: float) -> None:
        if self._send_at is not None:
            return  # something newer waits already
        settings = self._settings
        if sent.registration is None and self._failures >= 2:
            self._published = None
            self._effects.append(Withdrawn(reason))
            return
        delay = min(settings.retry_max, settings.retry_first * 2.0 ** min(self._failures, 30))
        if self.lapses_at is not None and now < self.lapses_at and sent.registration == self._published:
            # A refresh has the rest of its lease: the retries are spread evenly over it (RFC 9664 §5.2).
            left = max(1, settings.refresh_retries - self._failures)
            delay = (self.lapses_at - now) / left
        self._failures += 1
        self._send_at = now + max(settings.retry_first, delay)
        self._effects.append(Failed(reason, self._send_at - now))
