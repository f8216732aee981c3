"""The gateway as one object: sockets, mapping table, back end and state file joined.

One task carries out the table's effects, in this order: installations, then one commit for all changes at hand, then
the answers. What arrives during a commit is installed meanwhile and goes into the next one, so that a busy gateway pays
for few of them and waits for none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import assert_never

import structlog

from protocol.pcp import ANNOUNCEMENT_GROUP_IPV6

from .backend.base import Backend
from .backend.choice import backend_for
from .config import Endpoint, GatewayConfig
from .errors import InstallRefusedError, StartError
from .igd import ssdp
from .igd.device import IgdDevice, Place, places
from .interfaces import Addresses, InterfaceWatch
from .lan import LanSide
from .mappings import (
    AddressChanged,
    Answer,
    Change,
    Changed,
    EpochReset,
    Install,
    Key,
    MappingTable,
    Moved,
    Origin,
    Remove,
    Restrict,
    Transport,
    Verdict,
)
from .natpmp import MapTicket, NatPmpFrontEnd, Peer
from .operations import OperatorDesk, OperatorTicket
from .pcp import MappingUpdates, PcpFrontEnd, PcpTicket, Requester
from .ratelimit import RateLimit
from .saving import Saving
from .services import Services
from .state import Saved
from .system import System
from .telling import Teller
from .views import Event, MappingView, view_of
from .wan import pick

FAILURE_SECONDS = 1.0
"""Wait after a fault of our own, before the worker goes on."""


@dataclass(slots=True)
class _Outcome:
    """What effects led to, to be told when it is stored."""

    changes: list[Changed] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    addresses: list[str | None] = field(default_factory=list)

    def __iadd__(self, later: _Outcome) -> _Outcome:
        self.changes += later.changes
        self.answers += later.answers
        self.addresses += later.addresses
        return self


class Gateway:
    """A gateway for NAT-PMP and PCP. `start` raises `StartError`; a gateway is started once and stopped once."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        on_event: Callable[[Event], None] | None = None,
        system: System | None = None,
        backend: Backend | None = None,
    ) -> None:
        self._config = config
        self._system = system or System()
        self._backend: Backend = backend or backend_for(config)
        self.counters: Counter[str] = Counter()
        self._log = structlog.get_logger(__name__)
        self._rate_limit = RateLimit(config.natpmp.requests_per_second)
        self._updates = MappingUpdates()
        self._pcp: PcpFrontEnd | None = None
        self._igd: IgdDevice | None = None
        self._moved_places: list[Place] | None = None
        self._lan = LanSide(config, self._receive, self.counters)
        self._interfaces: InterfaceWatch | None = None
        desk = OperatorDesk(config, self, self._system)
        self._services = Services(
            config, desk, self._system, on_address=self._address_found, on_host_gone=self._host_gone
        )
        self._saving = Saving(config.state.file, self._system, self.counters)
        self._teller = Teller(on_event)
        self._worker: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._stop_asked_for = False
        self._settled: list[asyncio.Future[None]] = []
        self._outcome = _Outcome()

    # -- for the composition root ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open everything, take over the saved mappings, answer. Leaves nothing open if it fails."""
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def wait(self) -> bool:
        """Until it should stop: True if that was asked for, False if its worker died."""
        await self._ended.wait()
        return self._stop_asked_for

    def request_stop(self) -> None:
        """Make `wait` return True; the stopping itself is `stop`."""
        self._stop_asked_for = True
        self._ended.set()

    async def stop(self) -> None:
        """Stop answering, keep what is stored, end all relayed traffic."""
        self.request_stop()
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
            self._worker = None
        await self._close()

    async def set_external_address(self, address: str | IPv4Address | None) -> None:
        """Move to another external address (None: there is none). Returns when every mapping has moved.

        Raises `InstallRefusedError`, and changes nothing, if the back end cannot use the address.
        """
        if self._worker is None:
            raise RuntimeError("the gateway is not running")
        self._move_to(None if address is None else str(IPv4Address(address)))
        await self.settled()

    async def settled(self) -> bool:
        """Carry out all effects at hand; whether everything is stored then."""
        settled = asyncio.get_running_loop().create_future()
        self._settled.append(settled)
        self._wake.set()
        await settled
        return not self._saving.has_unsaved

    @property
    def natpmp_addresses(self) -> list[Endpoint]:
        """Where requests are answered, with the ports that were taken for port 0."""
        return self._lan.endpoints

    @property
    def table(self) -> MappingTable:
        """For `OperatorDesk`; whoever changes it waits for `settled`."""
        return self._table

    @property
    def listening(self) -> list[str]:
        """What is open, for display: kind and endpoint."""
        metrics = self._services.metrics_endpoint
        found = [f"natpmp {endpoint}" for endpoint in self.natpmp_addresses]
        if self._igd is not None:
            found += [f"upnp {location}" for location in self._igd.locations]
        return found if metrics is None else [*found, f"metrics {metrics}"]

    def tallies(self) -> dict[str, Counter[str]]:
        """What happened how often, by part; "changes" counts those of mappings."""
        found = {"changes": self._teller.changes, "gateway": self.counters, "natpmp": self._natpmp.counters}
        if self._pcp is not None:
            found["pcp"] = self._pcp.counters
        if self._igd is not None:
            found["igd"] = self._igd.counters
        found["backend"] = self._backend.counters
        return {part: counter.copy() for part, counter in found.items()}

    @property
    def external_address(self) -> str | None:
        """The external address as clients are told it."""
        return self._table.external_address

    def mappings(self) -> list[MappingView]:
        """All mappings at this moment, by external port."""
        now, address = self._system.monotonic(), self._table.external_address
        views = (view_of(mapping, address=address, now=now) for mapping in self._table.mappings())
        return sorted(views, key=lambda view: (view.external_port, view.transport))

    def epoch(self) -> int:
        """Seconds since the mapping table was initialised (RFC 6886 §3.6)."""
        return self._table.epoch(self._system.monotonic())

    # -- start and stop --------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        config = self._config
        now = self._system.monotonic()
        saved = await self._saving.open(now)
        self._interfaces = InterfaceWatch(self._interfaces_changed)
        try:
            addresses = self._interfaces.read()
        except OSError as error:
            raise StartError(f"the kernel tells no addresses: {error.strerror}") from None
        self._lan.bind(addresses)
        own_ports = frozenset(
            {*(endpoint.port for endpoint in self.natpmp_addresses), config.natpmp.announce_to.port, config.lan.port}
            | ({config.igd.port, ssdp.PORT} if config.igd.enabled else set())
        )
        self._table = MappingTable(
            config.limits.table_limits(own_ports),
            epoch=saved.epoch or 0.0,
            strict_epoch=saved.strict_epoch,
            last_address=saved.address,
            now=now,
        )
        self._natpmp = NatPmpFrontEnd(self._table)
        if config.igd.enabled:
            self._igd = IgdDevice.of(
                config, self._table, await self._saving.device_uuid(), system=self._system, wake=self._wake.set
            )
        if config.pcp.enabled:
            own = self._lan.addresses
            self._pcp = PcpFrontEnd(
                self._table,
                third_party=config.pcp.third_party,
                pinholes=self._backend.opens_pinholes,
                own_addresses=own,
            )
            # Clients are told of each start, an external address or not: the epoch says whether anything was lost.
            self._lan.announce(now=now)
        await self._backend.start()
        self._take_over(saved, addresses, now)
        # The epoch's base has to be in the file before a client can learn an epoch from it.
        self._saving.note_epoch()
        await self._settle()
        if self._saving.is_due:
            raise StartError(f"state file {config.state.file} cannot be written")
        self._lan.open()
        if self._igd is not None:
            await self._igd.start(self._igd_places(addresses))
        self._interfaces.start()
        await self._services.start()
        self._worker = asyncio.create_task(self._run(), name="gateway")
        self._worker.add_done_callback(self._worker_ended)

    def _take_over(self, saved: Saved, addresses: Addresses, now: float) -> None:
        """Enter the configured mappings, then the saved ones, then the address that they are all installed on.

        What cannot be taken over although it had not lapsed is a loss of state: the epoch begins anew.
        """
        self._add_statics()
        rejected = self._table.restore(saved.mappings, now=now)
        for mapping in rejected:
            self._saving.note_gone(mapping)
        if any(mapping.expires_at is not None and mapping.expires_at > now for mapping in rejected):
            self._table.reset_epoch(now=now)
        external = self._config.external.address
        interface = self._config.followed_interface
        if external is not None:
            try:
                self._backend.check_address(str(external))
            except InstallRefusedError as refusal:
                raise StartError(f"external address {external}: {refusal}") from None
            self._table.set_external_address(str(external), now=now)
        elif interface is not None:
            self._address_found(pick(addresses, interface, None))
            if self._table.external_address is None:
                self._log.warning("no external address yet", interface=interface)

    async def _close(self) -> None:
        await self._services.stop()
        if self._interfaces is not None:
            self._interfaces.stop()
            self._interfaces = None
        if self._igd is not None:
            await self._igd.stop()
        self._lan.close()
        await self._backend.stop()
        await self._saving.close()
        for settled in self._settled:
            settled.cancel()

    # -- interfaces and the external address -----------------------------------------------------------------------

    def _interfaces_changed(self, addresses: Addresses) -> None:
        self._lan.update(addresses, now=self._system.monotonic())
        self._moved_places = self._igd_places(addresses)
        interface = self._config.followed_interface
        if interface is not None:
            self._address_found(pick(addresses, interface, self._table.external_address))
        self._wake.set()

    def _igd_places(self, addresses: Addresses) -> list[Place]:
        return places(addresses, self._lan.addresses, self._config.external_interface)

    def _address_found(self, address: str | None) -> None:
        """Move to what a source told. An address that the back end cannot use is none."""
        if address == self._table.external_address:
            return
        try:
            self._move_to(address)
        except InstallRefusedError as refusal:
            self._log.warning("external address cannot be used", address=address, reason=str(refusal))
            self._move_to(None)

    def _host_gone(self, host: str) -> None:
        """Its DHCP lease ended."""
        if self._table.host_gone(host, now=self._system.monotonic()):
            self._log.info("mappings ended with a DHCP lease", host=host)
            self._wake.set()

    def _move_to(self, address: str | None) -> None:
        if address is not None:
            self._backend.check_address(address)
        self._table.set_external_address(address, now=self._system.monotonic())
        self._add_statics()
        self._wake.set()

    # -- the worker ------------------------------------------------------------------------------------------------

    def _receive(self, number: int, datagram: bytes, host: str, port: int) -> None:
        now = self._system.monotonic()
        if not self._rate_limit.admits(host, now=now):
            self.counters["over rate"] += 1
            return
        # The first octet is the version; NAT-PMP has 0, and with PCP on all others are PCP's to answer or refuse.
        # NAT-PMP is of IPv4 alone.
        is_natpmp = datagram[:1] in (b"", b"\0") and ":" not in host
        front_end = self._natpmp if self._pcp is None or is_natpmp else self._pcp
        reply = front_end.receive(datagram, Peer(number, host, port), draw=self._system.draw(), now=now)
        if reply is not None:
            self._lan.send(number, reply, (host, port))
        else:
            self._wake.set()

    async def _run(self) -> None:
        """Carry out effects whenever there are some, and deadlines when they come."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_deadline()):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._turn()
            except Exception:  # noqa: BLE001 (root of the worker: it goes on)
                self.counters["failures"] += 1
                self._log.exception("gateway worker failed")
                await asyncio.sleep(FAILURE_SECONDS)

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        """Nothing is answered without the worker, so whoever waits has to know."""
        if not self._stop_asked_for:
            failure = None if worker.cancelled() else worker.exception()
            self._log.error("gateway worker died", exc_info=failure)
        self._ended.set()

    async def _turn(self) -> None:
        now = self._system.monotonic()
        self._table.handle_deadline(now=now)
        settled, self._settled = self._settled, []
        try:
            await self._settle()
        finally:
            for future in settled:
                if not future.done():
                    future.set_result(None)
        await self._saving.check_clocks(self._table, now)
        self._announce()
        self._send_updates()
        moved, self._moved_places = self._moved_places, None
        if moved is not None and self._igd is not None:
            await self._igd.follow(moved)

    def _seconds_to_deadline(self) -> float:
        deadlines = (
            self._table.next_deadline(),
            self._lan.next_announcement(),
            self._updates.next_deadline(),
            self._saving.next_deadline(),
        )
        earliest = min(deadline for deadline in deadlines if deadline is not None)
        return max(0.0, earliest - self._system.monotonic())

    async def _settle(self) -> None:
        """Carry out all effects at hand, make durable what they changed, then answer and tell.

        While the disk is waited for, effects that come are carried out already; the next turn makes them durable.
        """
        self._carry_out_effects()
        outcome, self._outcome = self._outcome, _Outcome()
        has_news = outcome.changes or outcome.answers or outcome.addresses
        if self._saving.is_due and (has_news or self._saving.may_try(self._system.monotonic())):
            commit = asyncio.create_task(self._saving.commit(self._table))
            commit.add_done_callback(lambda _: self._wake.set())
            while not commit.done():
                await self._wake.wait()
                self._wake.clear()
                if not commit.done():
                    self._carry_out_effects()
            # What came meanwhile may rest on what this commit held, so with it that fails, too.
            if not commit.result():
                outcome += self._outcome
                self._outcome = _Outcome()
                self._take_back(outcome)
            self._wake.set()
        self._send_answers(outcome.answers)
        for address in outcome.addresses:
            self._teller.address_changed(address)
        if outcome.changes:
            now = self._system.monotonic()
            self._teller.mappings_changed(outcome.changes, address=self._table.external_address, now=now)
        if self._igd is not None and (outcome.changes or outcome.addresses):
            self._igd.changed(with_address=bool(outcome.addresses))

    def _take_back(self, outcome: _Outcome) -> None:
        """What could not be stored: mappings that are new do not stay, and nothing is granted."""
        for changed in outcome.changes:
            if changed.change is Change.CREATED:
                self._table.discard(changed.mapping.key)
        outcome.answers = [Answer(answer.ticket, Verdict.NO_RESOURCES) for answer in outcome.answers]

    def _carry_out_effects(self) -> None:
        """Have the back end do what the table asks for; what it led to is gathered in `_outcome`."""
        outcome = self._outcome
        while effects := self._table.take_effects():
            installs: list[Install] = []
            self._backend.hold()
            for effect in effects:
                match effect:
                    case Answer():
                        outcome.answers.append(effect)
                    case Changed():
                        outcome.changes.append(effect)
                        self._saving.note(effect)
                        self._updates.end(effect.mapping.key)
                    case Install():
                        installs.append(effect)
                    case Remove(number):
                        self._backend.remove(number)
                    case Restrict(number, filters):
                        self._backend.restrict(number, filters)
                    case AddressChanged(address):
                        self._saving.note_epoch()
                        outcome.addresses.append(address)
                        self._lan.announce(now=self._system.monotonic())
                    case EpochReset():
                        self._saving.note_epoch()
                        self._lan.announce(now=self._system.monotonic())
                    case Moved(mapping, _, requester):
                        assert isinstance(requester, Requester)
                        self._updates.begin(mapping.key, requester, now=self._system.monotonic())
                    case _:
                        assert_never(effect)
            self._carry_out(installs)

    def _carry_out(self, installs: list[Install]) -> None:
        """Have all changes of a round carried out, and tell the table how its installations ended."""
        outcomes = [(install, self._install(install)) for install in installs]
        try:
            self._backend.flush()
        except InstallRefusedError as refusal:
            self._log.warning("mappings cannot be carried together, each is tried alone", reason=str(refusal))
            outcomes = self._carry_out_apart(outcomes)
        now = self._system.monotonic()
        for install, ok in outcomes:
            self._table.installed(install.number, ok, now=now)

    def _carry_out_apart(self, outcomes: list[tuple[Install, bool]]) -> list[tuple[Install, bool]]:
        """Try each installation of a failed round alone, so that what cannot be carried fails only itself."""
        self._backend.hold()
        for install, ok in outcomes:
            if ok:
                self._backend.remove(install.number)
        try:
            self._backend.flush()
        except InstallRefusedError as refusal:
            self._log.error("mappings cannot be carried", reason=str(refusal))
            return [(install, False) for install, _ in outcomes]
        return [(install, ok and self._install(install)) for install, ok in outcomes]

    def _install(self, install: Install) -> bool:
        """Have the back end carry a mapping, from the next flush on if there is a round; whether it can."""
        try:
            self._backend.install(install)
        except InstallRefusedError as refusal:
            mapping = install.mapping
            if mapping.origin is Origin.STATIC:
                where = f"{mapping.key.transport.name.lower()} {install.external_address}:{mapping.external_port}"
                if self._worker is None:
                    raise StartError(f"static mapping {where}: {refusal}") from None
                self._log.warning("static mapping not possible", mapping=where, reason=str(refusal))
            return False
        return True

    def _send_answers(self, answers: list[Answer]) -> None:
        now = self._system.monotonic()
        epoch, strict_epoch = self._table.epoch(now), self._table.strict_epoch(now)
        for answer in answers:
            match answer.ticket:
                case MapTicket(peer) as ticket:
                    self._lan.send(peer.listener, ticket.reply(answer, epoch), (peer.host, peer.port))
                case PcpTicket(peer) as ticket:
                    self._lan.send(peer.listener, ticket.reply(answer, strict_epoch), (peer.host, peer.port))
                case OperatorTicket() as ticket:
                    ticket.resolve(answer)
                case asyncio.Future() as future:
                    if not future.done():
                        future.set_result(answer)
                case None:
                    """Nobody waits."""
                case other:
                    raise TypeError(f"no such ticket: {other!r}")

    def _announce(self) -> None:
        now = self._system.monotonic()
        numbers = self._lan.take_announcements(now=now)
        if not numbers:
            return
        self.counters["announcements"] += 1
        natpmp = self._natpmp.address_datagram(now=now)
        pcp = None if self._pcp is None else self._pcp.announcement(now=now)
        ipv4 = self._config.natpmp.announce_to
        for number in numbers:
            is_ipv6 = self._lan.is_ipv6(number)
            if not is_ipv6:
                self._lan.send(number, natpmp, ipv4)
            if pcp is not None:
                self._lan.send(number, pcp, (ANNOUNCEMENT_GROUP_IPV6, ipv4.port) if is_ipv6 else ipv4)

    def _send_updates(self) -> None:
        """Tell PCP clients one by one where their mappings moved to."""
        now = self._system.monotonic()
        address = self._table.external_address
        for key, requester in self._updates.take_due(now=now):
            mapping = self._table.find(key)
            if mapping is not None and address is not None:
                self.counters["mapping updates"] += 1
                datagram = requester.update(mapping, address, epoch=self._table.strict_epoch(now), now=now)
                self._lan.send(requester.peer.listener, datagram, (requester.peer.host, requester.peer.port))

    def _add_statics(self) -> None:
        """Enter the configured mappings that are not there: at the start, or because an address had no room for one."""
        for static in self._config.static:
            key = Key(Transport[static.transport.upper()], *static.internal)
            if not self._table.add_static(key, static.external_port):
                what = f"static mapping {static.transport} {static.external_port} to {static.internal}"
                if self._worker is None:
                    raise StartError(f"{what}: another one has the port or its companion")
                self._log.warning("static mapping not possible", mapping=what, reason="a client has the port")
