"""Long-Lived Queries as the pipeline sees them: policy, the machine, the reply; events go through the driver."""

from collections.abc import Callable, Container, Sequence
from typing import Final

from protocol.constants import AA, Ede, Rcode, Type
from protocol.edns import LlqError
from protocol.message import Message, Question
from protocol.name import fold, from_text, is_at_or_below, to_text
from protocol.tsig import Key
from server.authz import may_read
from server.config import LlqSettings
from server.keyring import Keyring, Principal
from server.metrics import Metrics
from server.peer import Peer
from server.policy import Action
from server.push.counts import PushCounts
from server.push.driver import PushDriver
from server.push.ledger import Ledger
from server.push.limits import LlqLimits
from server.push.llq_machine import LlqMachine
from server.push.survival import Survival
from server.reply import Reply, write_section
from server.request import Authenticated, Refusal
from server.store.api import Store
from server.system import Clock, Entropy
from server.transport.ports import SendAlike
from server.zone.model import RR, Change
from server.zone.zone import Zone, Zones

LookupZone = Callable[[Question], Zone]
Addresses = Callable[[Sequence[RR]], list[RR]]
_SECRET_BITS: Final = 256


class PushService:
    """Joins machine, driver and zones. `send` puts an event on its way."""

    def __init__(
        self,
        settings: LlqSettings,
        *,
        zones: Zones,
        keyring: Keyring,
        clock: Clock,
        entropy: Entropy,
        metrics: Metrics,
        send: SendAlike,
        event_listener: Callable[[Peer], int | None],
    ) -> None:
        self._settings = settings
        self._zones = zones
        self._keyring = keyring
        self._clock = clock
        self._metrics = metrics
        self._event_listener = event_listener
        self._signed_below = [fold(from_text(name)) for name in settings.require_tsig]
        self._ledger = Ledger(is_kept=settings.persistent)
        self._machine = LlqMachine(
            LlqLimits(
                minimum_lease_seconds=settings.minimum_lease_seconds,
                maximum_lease_seconds=settings.maximum_lease_seconds,
                maximum_subscriptions=settings.maximum_subscriptions,
                maximum_per_address=settings.maximum_per_address,
                maximum_per_question=settings.maximum_per_question,
                setups_per_second=settings.setups_per_second,
                setup_burst=settings.setup_burst,
                retry_seconds=settings.retry_seconds,
                quiet_seconds=settings.quiet_seconds,
                longest_wait_seconds=settings.longest_wait_seconds,
            ),
            entropy.bits(_SECRET_BITS).to_bytes(_SECRET_BITS // 8, "big"),
            lookup=self._lookup,
            entropy=lambda: entropy.bits(64),
            event_listener=event_listener,
            ledger=self._ledger,
        )
        self._survival: Survival | None = None
        self._driver = PushDriver(self._machine, send, clock, self._key, metrics.faults.labels("push").inc)
        metrics.registry.register(
            PushCounts(self._machine.counters, lambda: len(self._machine), lambda: len(self._ledger))
        )

    def query(self, request: Authenticated, reply: Reply, lookup_zone: LookupZone, addresses: Addresses) -> bytes:
        """Answer a message with LLQ options; `Refusal` when policy lets none of its questions in.

        `addresses`: what goes into Additional beside records, as far as there is room (RFC 8764 §5.2.4).
        """
        message, peer = request.message, request.peer
        assert message.opt is not None
        refusals: list[Refusal] = []

        def admit(question: Question) -> LlqError:
            try:
                self._may_watch(request.principal, lookup_zone(question), question)
            except Refusal as refusal:
                refusals.append(refusal)
                return LlqError.UNKNOWN_ERR
            return LlqError.NO_ERROR

        now = self._clock.monotonic()
        found = self._machine.query(
            message.questions,
            message.opt,
            peer,
            request.principal.key.name if request.principal else None,
            admit=admit,
            now=now,
            unix=int(self._clock.lease()),
        )
        if refusals and len(refusals) == len(found.options):
            raise refusals[0]
        options = [option.encode() for option in found.options]
        builder = reply.builder(options, flags=AA)
        written = 0
        for rr in found.answers:
            if not builder.answer(rr.owner, rr.rtype, rr.ttl, rr.rdata):
                break
            written += 1
        if written == len(found.answers):
            write_section(builder, 3, addresses(found.answers))
        self._machine.answered(found, written, now=now)
        self._driver.wake()
        return reply.finish(builder, Rcode.NOERROR, options)

    def acknowledge(self, message: Message, peer: Peer) -> bool:
        """Whether a response acknowledged an event of ours."""
        matched = self._machine.ack(message, peer, now=self._clock.monotonic())
        self._driver.wake()
        return matched

    def publish(self, change: Change) -> None:
        """Take a committed change that queries already see."""
        if self._machine.publish(change, now=self._clock.monotonic()):
            self._driver.wake()

    def stream_closed(self, via: int) -> None:
        self._machine.stream_closed(via, now=self._clock.monotonic())
        self._driver.wake()

    def stream_paused(self, via: int) -> None:
        """A stream's peer does not keep up with reading: its events wait and merge."""
        self._machine.stream_paused(via)

    def stream_resumed(self, via: int) -> None:
        self._machine.stream_resumed(via, now=self._clock.monotonic())
        self._driver.wake()

    def is_watching(self, via: int) -> bool:
        """Whether a subscription lives on this stream, so that it may be idle."""
        return self._machine.has_stream(via)

    def revoke_key(self, name: bytes) -> None:
        """End every subscription signed with a key that holds no more."""
        self._machine.revoke_key(name)
        self._driver.wake()

    def recheck(self, apexes: Sequence[bytes] = (), keys: Container[bytes] = ()) -> None:
        """End what policy lets nobody watch any more, in zones of these apexes and of these keys.

        A member that becomes private must not go on telling strangers, nor a key that is narrowed.
        """
        suffixes = tuple(apexes)

        def is_refused(question: Question, key_name: bytes | None) -> bool:
            is_touched = fold(question.name).endswith(suffixes) or key_name in keys
            return is_touched and not self._is_allowed(question, key_name)

        self._machine.end_where(is_refused)
        self._driver.wake()

    async def restore(self, store: Store, places: Sequence[str]) -> None:
        """Take up what a former process left, once zones and keys are loaded and before anything is served.

        `places` are the addresses of UDP listeners by number, as configured.
        """
        if not self._settings.persistent:
            return
        self._survival = Survival(
            self._machine,
            self._ledger,
            node=self._settings.node,
            store=store,
            zones=self._zones,
            clock=self._clock,
            metrics=self._metrics,
            places=places,
            listener_of=self._event_listener,
            may_watch=self._is_allowed,
        )
        await self._survival.restore(self._settings.maximum_lease_seconds)

    def begin(self) -> None:
        """Send what changed while nobody served."""
        self._driver.wake()

    async def save(self) -> None:
        """Write what the store does not know yet of the subscriptions."""
        if self._survival is not None:
            await self._survival.save()

    def close(self) -> None:
        self._driver.close()

    @property
    def subscriptions(self) -> int:
        return len(self._machine)

    def _may_watch(self, principal: Principal | None, zone: Zone, question: Question) -> None:
        """`Refusal` unless this key, or nobody's, may be told of changes to a question."""
        key = fold(question.name)
        may_read(principal, zone, key, question.rtype, Action.LLQ)
        if principal is None and any(is_at_or_below(key, domain) for domain in self._signed_below):
            raise Refusal(Rcode.REFUSED, f"Long-Lived Queries for {to_text(key)} must be signed", ede=Ede.PROHIBITED)

    def _is_allowed(self, question: Question, key_name: bytes | None) -> bool:
        """Whether a subscription may go on: its key holds, and policy still lets it in."""
        principal = None if key_name is None else self._keyring.find(key_name)
        zone = self._zones.enclosing(fold(question.name), question.rtype)
        if principal is None and key_name is not None:
            return False
        try:
            if zone is not None:
                self._may_watch(principal, zone, question)
        except Refusal:
            return False
        return True

    def _key(self, name: bytes) -> Key | None:
        principal = self._keyring.find(name)
        return principal.key if principal else None

    def _lookup(self, question: Question) -> list[RR]:
        """Records at exactly this owner name, of this type or CNAME, as queries see them now."""
        key = fold(question.name)
        zone = self._zones.enclosing(key, question.rtype)
        if zone is None:
            return []
        now = int(self._clock.lease())
        rrset = zone.rrset(key, question.rtype, now) or zone.rrset(key, Type.CNAME, now)
        if rrset is None:
            return []
        ttl = rrset.answered_ttl(now)
        return [RR(question.name, rrset.rtype, ttl, rdata) for rdata in rrset.rdatas]
