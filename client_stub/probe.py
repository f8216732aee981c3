"""The hello between machines of one member: does the peer's outer address really lead to it? (Our own, no RFC.)

There is no IPsec here. The tunnel table would otherwise only repeat DNS; the hello goes through both NATs to the port
where ESP in UDP would be spoken, and comes back or does not.

    hello, answer:  magic (8 octets) | kind 1, 2 | nonce (16) | HMAC-SHA256 over what precedes (32) = 57 octets

The HMAC key is derived from the member's TSIG secret: only machines that hold the same key are answered.
An answer is exactly as long as its question: there is nothing to amplify. Pure: times are monotonic seconds.
"""

from __future__ import annotations

import hmac
import random
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

MAGIC: Final = b"homing\x00\x01"
HELLO: Final = 1
ANSWER: Final = 2
NONCE_OCTETS: Final = 16
PACKET_OCTETS: Final = len(MAGIC) + 1 + NONCE_OCTETS + 32
MAX_SILENT_SINCE: Final = 3
"""Hellos without an answer after which a peer counts as silent for good reason, not for one lost datagram."""

Endpoint = tuple[IPv4Address, int]


def derive_probe_key(secret: bytes) -> bytes:
    """A key of its own for the hello, so that no datagram of it is ever a valid MAC of anything else."""
    return hmac.digest(secret, b"homing hello 1", "sha256")


def encode_packet(key: bytes, kind: int, nonce: bytes) -> bytes:
    body = MAGIC + bytes((kind,)) + nonce
    return body + hmac.digest(key, body, "sha256")


def decode_packet(key: bytes, datagram: bytes) -> tuple[int, bytes] | None:
    """(kind, nonce) of a packet of ours with a good HMAC; None for anything else."""
    if len(datagram) != PACKET_OCTETS or not datagram.startswith(MAGIC):
        return None
    body, mac = datagram[:-32], datagram[-32:]
    if not hmac.compare_digest(hmac.digest(key, body, "sha256"), mac):
        return None
    kind = body[len(MAGIC)]
    return (kind, body[-NONCE_OCTETS:]) if kind in (HELLO, ANSWER) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    every: float = 5.0
    wait: float = 1.0
    """Seconds to wait for an answer; after a miss the next hello follows at once, up to three in a row."""


@dataclass(frozen=True, slots=True)
class Reachability:
    """What the last hellos showed: round trip in milliseconds, or None with the number of hellos missed in a row."""

    rtt_ms: float | None
    missed: int

    @property
    def is_silent(self) -> bool:
        return self.rtt_ms is None and self.missed >= MAX_SILENT_SINCE


@dataclass(frozen=True, slots=True)
class SendTo:
    endpoint: Endpoint
    datagram: bytes


@dataclass(frozen=True, slots=True)
class ReachabilityChanged:
    """A peer began to answer, or fell silent."""

    peer: bytes
    reachability: Reachability


Effect = SendTo | ReachabilityChanged


@dataclass(slots=True)
class _Target:
    endpoint: Endpoint
    next_at: float
    nonce: bytes = b""
    sent_at: float = 0.0
    rtt_ms: float | None = None
    missed: int = 0


class Prober:
    """Says hello to every peer's outer endpoint and answers the member's other machines."""

    def __init__(self, settings: ProbeSettings, rng: random.Random, secret: bytes) -> None:
        self._settings = settings
        self._rng = rng
        self._key = derive_probe_key(secret)
        self._targets: dict[bytes, _Target] = {}
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return f"Prober({len(self._targets)} peers)"

    def set_peer(self, peer: bytes, endpoint: Endpoint | None, *, now: float) -> None:
        """Probe a peer at once at this endpoint, and from now on; None ends it."""
        target = self._targets.get(peer)
        if endpoint is None:
            self._targets.pop(peer, None)
        elif target is None or target.endpoint != endpoint:
            self._targets[peer] = _Target(endpoint, now)

    def probe_all(self, *, now: float) -> None:
        """Our own place changed: look at once whether the peers are still in reach."""
        for target in self._targets.values():
            target.nonce = b""
            target.next_at = now

    def reachability(self, peer: bytes) -> Reachability | None:
        """None for a peer that is not probed."""
        target = self._targets.get(peer)
        return Reachability(target.rtt_ms, target.missed) if target else None

    def receive(self, datagram: bytes, source: Endpoint, *, now: float) -> None:
        packet = decode_packet(self._key, datagram)
        if packet is None:
            return
        kind, nonce = packet
        if kind == HELLO:
            self._effects.append(SendTo(source, encode_packet(self._key, ANSWER, nonce)))
            return
        for peer, target in self._targets.items():
            if target.nonce and hmac.compare_digest(target.nonce, nonce):
                was_reached = target.rtt_ms is not None
                target.rtt_ms = (now - target.sent_at) * 1000
                target.missed = 0
                target.nonce = b""
                target.next_at = now + self._settings.every
                if not was_reached:
                    self._effects.append(ReachabilityChanged(peer, Reachability(target.rtt_ms, 0)))
                return

    def next_deadline(self) -> float | None:
        return min((target.next_at for target in self._targets.values()), default=None)

    def handle_deadline(self, *, now: float) -> None:
        for peer, target in self._targets.items():
            if now < target.next_at:
                continue
            if target.nonce:
                self._miss(peer, target)
            if target.nonce and target.missed >= MAX_SILENT_SINCE:
                target.nonce = b""
                target.next_at = now + self._settings.every
                continue
            target.nonce = self._rng.randbytes(NONCE_OCTETS)
            target.sent_at = now
            target.next_at = now + self._settings.wait
            self._effects.append(SendTo(target.endpoint, encode_packet(self._key, HELLO, target.nonce)))

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _miss(self, peer: bytes, target: _Target) -> None:
        target.missed += 1
        if target.missed == MAX_SILENT_SINCE:
            target.rtt_ms = None
            self._effects.append(ReachabilityChanged(peer, Reachability(None, target.missed)))
