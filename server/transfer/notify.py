"""NOTIFY to secondaries (RFC 1996): one a zone and second, again after 60 s until answered, five times at most.

change -> due at once, or a second after the last -> sent to each target -> answered, or again and given up
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import structlog

from protocol.constants import AA, OPCODE_SHIFT, Class, Opcode, Type
from protocol.message import Message, Question, encode
from protocol.name import fold, from_text, to_text
from protocol.tsig import sign
from server.config import TransferSettings, split_host_port
from server.keyring import Keyring
from server.peer import Peer
from server.system import Clock, Entropy
from server.zone.zone import Zone, Zones

GAP_SECONDS: Final = 1.0  # between two first sendings for a zone: leases make zones change often
RETRY_SECONDS: Final = 60.0
MAX_SENDS: Final = 6  # the first and five more (RFC 1996 §3.6)

log = structlog.get_logger(__name__)


class Target(NamedTuple):
    """A secondary's address and port."""

    host: str
    port: int


class SendNotify(NamedTuple):
    """Tell this target about a zone; `id` is what its answer will carry."""

    apex: bytes
    target: Target
    id: int


@dataclass(slots=True)
class _Unanswered:
    id: int
    sends: int
    due: float


@dataclass(slots=True)
class _ZoneState:
    """`told` is the serial last sent out, `sent_at` when, `due` when the next first sending is."""

    targets: tuple[Target, ...]
    serial: int
    told: int | None = None
    sent_at: float = float("-inf")
    due: float | None = None


class NotifyMachine:
    """Whom to tell when. Pure: `now` is monotonic seconds, `entropy` gives 16 random bits for an ID.

    Its size is bounded by the zones and targets of the configuration.
    """

    def __init__(self, entropy: Callable[[], int]) -> None:
        self._entropy = entropy
        self._zones: dict[bytes, _ZoneState] = {}
        self._unanswered: dict[tuple[bytes, Target], _Unanswered] = {}
        self._given_up: set[tuple[bytes, Target]] = set()
        self._effects: list[SendNotify] = []

    def changed(self, apex: bytes, serial: int, targets: Iterable[Target], *, now: float) -> None:
        """A zone has this serial now. A serial that was told already is not told again."""
        state = self._zones.setdefault(apex, _ZoneState((), serial))
        state.targets, state.serial = tuple(targets), serial
        if state.targets and state.due is None and state.told != serial:
            state.due = max(now, state.sent_at + GAP_SECONDS)
            self.handle_deadline(now=now)

    def forget(self, apex: bytes) -> None:
        """The zone is gone: nothing is sent for it any more."""
        self._zones.pop(apex, None)
        for key in [key for key in self._unanswered if key[0] == apex]:
            del self._unanswered[key]
        self._given_up = {key for key in self._given_up if key[0] != apex}

    def answered(self, id: int, target: Target) -> bool:
        """Whether an answer from there stops a retransmission; its RCODE does not matter (RFC 1996 §3.6)."""
        for key, waiting in self._unanswered.items():
            if key[1] == target and waiting.id == id:
                del self._unanswered[key]
                return True
        return False

    def told(self, apex: bytes) -> list[dict[str, Any]]:
        state = self._zones.get(apex)
        if state is None:
            return []
        return [
            {
                "address": target.host,
                "port": target.port,
                "serial": state.told,
                "answered": (apex, target) not in self._unanswered and (apex, target) not in self._given_up,
            }
            for target in state.targets
        ]

    def next_deadline(self) -> float | None:
        """The moment of the next sending."""
        dues = [state.due for state in self._zones.values() if state.due is not None]
        return min((*dues, *(waiting.due for waiting in self._unanswered.values())), default=None)

    def handle_deadline(self, *, now: float) -> None:
        """Send what is due. A new serial starts the count anew and makes what was unanswered moot."""
        for apex, state in self._zones.items():
            if state.due is not None and state.due <= now:
                state.due, state.sent_at, state.told = None, now, state.serial
                for target in state.targets:
                    self._given_up.discard((apex, target))
                    self._unanswered[apex, target] = _Unanswered(self._entropy() & 0xFFFF, 0, now)
        for (apex, target), waiting in list(self._unanswered.items()):
            if waiting.due > now:
                continue
            if waiting.sends >= MAX_SENDS:
                del self._unanswered[apex, target]
                self._given_up.add((apex, target))
                continue
            waiting.sends += 1
            waiting.due = now + RETRY_SECONDS
            self._effects.append(SendNotify(apex, target, waiting.id))

    def take_effects(self) -> list[SendNotify]:
        effects, self._effects = self._effects, []
        return effects


def notify_message(zone: Zone, id: int) -> bytes:
    """The question names the zone, the answer brings its SOA as a hint (RFC 1996 §3.7)."""
    soa = zone.soa_rr()
    return encode(
        id,
        Opcode.NOTIFY << OPCODE_SHIFT | AA,
        [Question(zone.apex, Type.SOA, Class.IN)],
        [(soa.owner, soa.rtype, Class.IN, soa.ttl, soa.rdata)],
    )


class Notifier:
    """Runs the machine: one timer, messages built and signed as they leave.

    `send` puts a datagram on its way; `listener_for` chooses the UDP listener it leaves by, so that it comes from the
    address that the secondary knows as its primary.
    """

    def __init__(
        self,
        settings: TransferSettings,
        *,
        zones: Zones,
        keyring: Keyring,
        clock: Clock,
        entropy: Entropy,
        send: Callable[[Peer, bytes], None],
        listener_for: Callable[[str], int],
    ) -> None:
        self._settings = settings
        self._zones = zones
        self._keyring = keyring
        self._clock = clock
        self._send = send
        self._listener_for = listener_for
        self._machine = NotifyMachine(lambda: entropy.bits(16))
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False

    def replace(self, settings: TransferSettings) -> None:
        """Other secondaries to tell from the next change on."""
        self._settings = settings

    def begin(self) -> None:
        """Tell of every zone as it is; before this nothing is sent."""
        self._is_open = True
        for zone in self._zones:
            self.publish(zone.apex)

    def publish(self, apex: bytes) -> None:
        """A zone changed, came or went; queries see it already."""
        if not self._is_open:
            return
        zone = self._zones.at(apex)
        if zone is None:
            self._machine.forget(apex)
        else:
            rules = self._settings.rules_for(zone.apex, is_private=zone.is_private)
            targets = [Target(*split_host_port(text)) for text in rules.also_notify]
            self._machine.changed(apex, zone.serial, targets, now=self._clock.monotonic())
        self._flush()

    def told(self, apex: bytes) -> list[dict[str, Any]]:
        """For each secondary of a zone: where it is, the serial it was told last, whether it has answered."""
        return self._machine.told(apex)

    def answered(self, message: Message, peer: Peer) -> bool:
        """Whether a response was the answer to a NOTIFY of ours."""
        is_ours = peer.transport == "udp" and self._machine.answered(message.id, Target(peer.address, peer.port))
        if is_ours:
            log.debug("notify answered", peer=f"{peer.address}#{peer.port}", rcode=message.header.rcode)
            self._flush()
        return is_ours

    def close(self) -> None:
        """Send nothing any more."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        for effect in self._machine.take_effects():
            self._transmit(effect)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._machine.next_deadline()
        if deadline is not None and self._is_open:
            delay = max(0.0, deadline - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._machine.handle_deadline(now=self._clock.monotonic())
        self._flush()

    def _transmit(self, effect: SendNotify) -> None:
        zone = self._zones.at(effect.apex)
        if zone is None:
            return
        wire = notify_message(zone, effect.id)
        if self._settings.notify_key is not None:
            principal = self._keyring.find(fold(from_text(self._settings.notify_key)))
            if principal is None:
                log.warning("notify not sent, there is no such key", key=self._settings.notify_key)
                return
            wire = sign(wire, principal.key, now=self._clock.unix())[0]
        target = effect.target
        log.debug("notify", zone=to_text(zone.apex), serial=zone.serial, peer=f"{target.host}#{target.port}")
        self._send(Peer("udp", target.host, target.port, self._listener_for(target.host)), wire)
