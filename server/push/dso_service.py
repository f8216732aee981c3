"""DNS Push as the pipeline sees it: policy, the DSO machine, one timer; what it says goes out on the streams."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import structlog

from protocol.constants import Class, Rcode, Type
from protocol.message import Question
from protocol.name import fold
from server.authz import may_read
from server.config import PushSettings
from server.metrics import Metrics
from server.peer import Peer
from server.push.dso_machine import DsoLimits, DsoMachine, SendDso
from server.push.timer import DeadlineTimer
from server.request import Refusal
from server.system import Clock
from server.zone.model import RR, Change
from server.zone.zone import Zone, Zones

log = structlog.get_logger(__name__)

GOODBYE_MS: Final = 5_000  # how long clients stay away from a server that stops: a restart takes less


class DsoService:
    """Joins the machine with zones, policy and streams. `send` and `abort` take a connection's number."""

    def __init__(
        self,
        settings: PushSettings,
        *,
        zones: Zones,
        clock: Clock,
        metrics: Metrics,
        send: Callable[[int, bytes], None],
        abort: Callable[[int], None],
    ) -> None:
        self._is_enabled = settings.enabled
        self._zones = zones
        self._clock = clock
        self._metrics = metrics
        self._send = send
        self._abort = abort
        self._machine = DsoMachine(
            DsoLimits(
                inactivity_seconds=settings.inactivity_seconds,
                keepalive_seconds=settings.keepalive_seconds,
                maximum_subscriptions=settings.maximum_subscriptions,
                maximum_per_session=settings.maximum_per_session,
            ),
            lookup=self._lookup,
            admit=self._admit,
        )
        self._timer = DeadlineTimer(clock, self._fire)
        self._is_open = True
        metrics.dso_sessions.set_function(lambda: self._machine.sessions)
        metrics.push_subscriptions.set_function(lambda: len(self._machine))
        metrics.dso_events.watch(lambda: asdict(self._machine.counters))

    def takes(self, peer: Peer) -> bool:
        """Whether stateful operations are served to this peer: on TLS only (RFC 8765 §4)."""
        return self._is_enabled and self._is_open and peer.transport == "tls"

    def is_leaving(self, via: int) -> bool:
        """Whether this connection was told to end: whatever comes on it is ignored (RFC 8490 §6.6.1.1)."""
        return self._machine.is_leaving(via)

    def receive(self, wire: bytes, peer: Peer) -> None:
        """Take a DSO message; what is to be said goes out by `send` before this returns, or soon after."""
        try:
            self._machine.receive(peer.via, wire, self._clock.monotonic())
        except Exception:
            self._metrics.faults.labels("dso").inc()
            log.exception("fault in a stateful session", peer=peer.address)
            self._machine.abort(peer.via, "fault of ours")
        self.wake()

    def note_message(self, via: int) -> None:
        """An ordinary message on a TLS connection: its DSO session, if any, is neither idle nor silent."""
        self._machine.note_message(via, self._clock.monotonic())

    def has_session(self, via: int) -> bool:
        """Whether RFC 8490's timeouts hold for this connection instead of the stream's own."""
        return self._machine.has_session(via)

    def break_off(self, via: int, reason: str) -> None:
        """End a session whose client mixed in what a session forbids (RFC 8490 §7.1.2)."""
        self._machine.abort(via, reason)
        self.wake()

    def publish(self, change: Change) -> None:
        """Take a committed change that queries already see."""
        if self._machine.publish(change):
            self._timer.arm(self._machine.next_deadline())

    def stream_closed(self, via: int) -> None:
        self._machine.stream_closed(via)

    def stream_paused(self, via: int) -> None:
        """A peer does not keep up with reading: its changes wait and merge."""
        self._machine.stream_paused(via)

    def stream_resumed(self, via: int) -> None:
        self._machine.stream_resumed(via)
        self._timer.arm(self._machine.next_deadline())

    def close(self) -> None:
        """Tell every client to come back in a while; the streams are closed by whoever owns them."""
        self._machine.close(GOODBYE_MS, self._clock.monotonic())
        self._take_effects()
        self._is_open = False
        self._timer.close()

    def wake(self) -> None:
        """Send what is ready and set the timer for what comes next."""
        self._take_effects()
        self._timer.arm(self._machine.next_deadline())

    def _take_effects(self) -> None:
        for effect in self._machine.take_effects():
            if isinstance(effect, SendDso):
                self._send(effect.via, effect.wire)
            else:
                log.debug("stateful session aborted", via=effect.via, reason=effect.reason)
                self._abort(effect.via)

    def _fire(self) -> None:
        try:
            self._machine.handle_deadline(self._clock.monotonic())
            self.wake()
        except Exception:
            self._metrics.faults.labels("dso").inc()
            log.exception("fault while pushing changes")
            self._timer.arm(self._machine.next_deadline())

    def _zone_for(self, key: bytes, rtype: int) -> Zone:
        """The zone a question is for; `Refusal` when a stranger may not ask for it there, or it is none of ours."""
        zone = self._zones.enclosing(key, rtype)
        if zone is None:
            raise Refusal(Rcode.NOTAUTH, "in no zone served here")
        may_read(None, zone, key, rtype)
        return zone

    def _admit(self, question: Question) -> Rcode:
        try:
            self._zone_for(fold(question.name), question.rtype)
        except Refusal as refusal:
            return refusal.rcode
        return Rcode.NOERROR

    def _lookup(self, key: bytes, rtype: int) -> list[RR]:
        """Records at exactly this name as a stranger sees them now: no wildcards (RFC 8765 §6.2.2)."""
        try:
            zone = self._zone_for(key, rtype)
        except Refusal:
            return []  # it became private, or went, after the subscription: the client sees its records go
        now = int(self._clock.lease())
        node = zone.node(key)
        if node is None:
            return []
        types = [*node.rrsets, *([Type.SOA] if key == zone.apex else [])] if rtype == Class.ANY else [rtype, Type.CNAME]
        records: list[RR] = []
        for wanted in dict.fromkeys(types):
            rrset = zone.rrset(key, wanted, now)
            if rrset is not None:
                ttl = rrset.answered_ttl(now)
                records += [RR(node.owner, rrset.rtype, ttl, rdata) for rdata in rrset.rdatas]
        return records
