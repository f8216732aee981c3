"""The client loop of RFC 6281 §5.1, for one machine.

On every change of our place, strictly in this order: interfaces, NAT mapping and external address, local tunnel
address, tunnels that exist, and only then DNS. A session is the time at one internal address; another address ends it
and begins the next, while the inner address stays (RFC 6281 §6.3).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, Protocol

import structlog

from client_stub import clock
from client_stub.config import ClientConfig, parse_endpoint
from client_stub.identity import (
    NO_TUNNEL_ADDRESS,
    ULA_ENTROPY_OCTETS,
    HostNames,
    TunnelInterface,
    eui64,
    host_names,
    parse_mac,
)
from client_stub.interfaces import default_gateway, mac_of, primary_address
from client_stub.llq_client import LlqClient, LlqSettings, StateChanged
from client_stub.mapping_core import NatKind, NatState
from client_stub.nat import NatDriver
from client_stub.natpmp_client import NatPmpClient, NatSettings
from client_stub.probe import Endpoint, Prober, ProbeSettings, ReachabilityChanged, SendTo
from client_stub.publisher import Publisher, PublisherSettings
from client_stub.resolver import Resolver
from client_stub.streams import Service, client_context
from client_stub.tunnels import Tunnel, TunnelChanged, TunnelState, TunnelTable, Unwatch, Watch
from client_stub.updates import Effect as RegistrarEffect
from client_stub.updates import Failed, Published, Registrar, RegistrarSettings, Registration, Withdrawn
from client_stub.watcher import Watcher, WatcherSettings
from protocol.addresses import is_rfc1918
from protocol.constants import type_text
from protocol.message import Question
from protocol.name import from_text, to_text
from protocol.natpmp import GATEWAY_PORT

log = structlog.get_logger(__name__)

SESSION_RETRY_SECONDS: Final = 2.0


class OnEvent(Protocol):
    """Told of everything a person would like to see; called in the loop, must not block."""

    def __call__(self, text: str, **fields: object) -> None: ...


class AgentError(Exception):
    """The client cannot start: no MAC, no address, no gateway, an unreadable CA file, a port taken."""


@dataclass(frozen=True, slots=True)
class SubscriptionStatus:
    name: str
    type: str
    state: str
    seconds_left: int | None


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    """`rtt_ms` is None while the peer has not answered a hello; `is_silent` when it should have."""

    peer: str
    inner: str
    outer: str | None
    state: str
    since_seconds: float
    rtt_ms: float | None
    is_silent: bool


@dataclass(frozen=True, slots=True)
class Status:
    """What the machine knows of itself and its peers now. `external` is `address:port`."""

    machine: str
    domain: str
    inner: str | None
    internal: str | None
    external: str | None
    nat: str
    nat_reason: str
    lease_seconds_left: int | None
    mapping_seconds_left: int | None
    subscriptions: tuple[SubscriptionStatus, ...]
    tunnels: tuple[TunnelStatus, ...]


class _Hellos(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes, Endpoint], None]) -> None:
        self._on_datagram = on_datagram

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._on_datagram(data, (IPv4Address(addr[0]), addr[1]))

    def error_received(self, exc: Exception) -> None:
        """A peer's port is closed: the missing answer says so."""


class Agent:
    """One machine. `start`, then `stop` (clean) or `abort` (as a crash would); `status` any time."""

    def __init__(
        self, config: ClientConfig, *, on_event: OnEvent | None = None, rng: random.Random | None = None
    ) -> None:
        self._config = config
        self._on_event = on_event
        self._rng = rng or secrets.SystemRandom()
        self._interface: TunnelInterface | None = None
        self._session: _Session | None = None
        self._task: asyncio.Task[None] | None = None
        self.failures = 0
        """Sessions that ended by an unexpected error."""

    async def start(self) -> None:
        """Open the sockets and begin the loop; `AgentError` when that cannot be."""
        self._session = await self._open_session()
        self._task = asyncio.create_task(self._run(), name=f"client {self._config.machine.name}")

    async def stop(self) -> None:
        """Deregister and unmap, within the configured time, then close everything."""
        session = self._session
        if session is not None and self._task is not None and not self._task.done():
            try:
                async with asyncio.timeout(self._config.timing.stop_timeout):
                    await session.leave()
                self._tell("stopped")
            except TimeoutError:
                self._tell("stopped without an answer to the deregistration")
        await self.abort()

    async def abort(self) -> None:
        """Close sockets and tasks; nobody is told."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._session is not None:
            self._session.close()
            self._session = None

    def status(self) -> Status:
        session = self._session
        if session is not None:
            return session.status()
        inner = self._interface.address if self._interface else NO_TUNNEL_ADDRESS
        return Status(
            machine=self._config.machine.name,
            domain=self._config.member.domain,
            inner=None if inner == NO_TUNNEL_ADDRESS else str(inner),
            internal=None,
            external=None,
            nat=NatKind.SEARCHING.value,
            nat_reason="not running",
            lease_seconds_left=None,
            mapping_seconds_left=None,
            subscriptions=(),
            tunnels=(),
        )

    # Sessions

    async def _run(self) -> None:
        while True:
            if self._session is None:
                try:
                    self._session = await self._open_session()
                except AgentError as error:
                    log.warning("no session", reason=str(error))
                    await asyncio.sleep(SESSION_RETRY_SECONDS)
                    continue
            try:
                await self._session.run()
            except Exception:  # root of this worker: a fault must not end the machine's registration
                self.failures += 1
                log.exception("session failed", failures=self.failures)
                await asyncio.sleep(SESSION_RETRY_SECONDS)
            finally:
                self._session.close()
            self._session = None

    async def _open_session(self) -> _Session:
        config = self._config
        gateway = self._gateway()
        address = current_address(config)
        if address is None:
            raise AgentError("there is no route: the machine has no address")
        if self._interface is None:
            mac = parse_mac(config.machine.mac) if config.machine.mac else mac_of(address)
            if mac is None:
                raise AgentError(f"no interface with a MAC has {address}: set [machine] mac")
            self._interface = TunnelInterface(eui64(mac, flip_local_bit=config.machine.flip_local_bit))
        try:
            context = client_context(config.dns.ca_file)
            session = _Session(config, self._interface, address, gateway, context, self._rng, self._tell)
        except (OSError, ValueError) as error:
            raise AgentError(str(error)) from error
        try:
            await session.open()
        except OSError as error:
            session.close()
            raise AgentError(str(error)) from error
        return session

    def _gateway(self) -> tuple[IPv4Address, int] | None:
        if self._config.nat.mode == "none":
            return None
        if self._config.nat.gateway is not None:
            return parse_endpoint(self._config.nat.gateway)
        address = default_gateway()
        return (address, GATEWAY_PORT) if address is not None else None

    def _tell(self, text: str, **fields: object) -> None:
        log.info(text, machine=self._config.machine.name, **fields)
        if self._on_event is not None:
            self._on_event(text, **fields)


def current_address(config: ClientConfig) -> IPv4Address | None:
    """The internal address now: as configured, else the one packets to the DNS server leave from."""
    return config.machine.internal_address or primary_address(parse_endpoint(config.dns.server)[0])


class _Session:
    """The client at one internal address: every socket and task that is bound to it."""

    def __init__(
        self,
        config: ClientConfig,
        interface: TunnelInterface,
        address: IPv4Address,
        gateway: tuple[IPv4Address, int] | None,
        context: ssl.SSLContext,
        rng: random.Random,
        tell: OnEvent,
    ) -> None:
        self._config = config
        self._interface = interface
        self._address = address
        self._gateway = gateway
        self._rng = rng
        self._tell = tell
        timing = config.timing
        key = config.member.key.load()
        domain = from_text(config.member.domain)
        self._names: HostNames = host_names(config.machine.name, config.member.domain, interface.eui)
        resolver = Resolver(parse_endpoint(config.dns.server), address, rng)
        service = _configured_service(config)
        registrar = Registrar(
            RegistrarSettings(lease=timing.update_lease, first_delay_max=timing.registration_delay_max), rng
        )
        self._publisher = Publisher(
            PublisherSettings(
                domain=domain, key=key, context=context, source=address, lease=timing.update_lease, service=service
            ),
            registrar,
            resolver,
            rng,
            self._on_published,
        )
        self._watcher = Watcher(
            WatcherSettings(domain=domain, key=key, context=context, source=address, service=service),
            LlqClient(LlqSettings(lease=timing.llq_lease), rng, key),
            resolver,
            rng,
            self._on_view,
            self._on_subscription,
        )
        self._table = TunnelTable(self._names, NO_TUNNEL_ADDRESS)
        self._prober = Prober(ProbeSettings(every=timing.hello_every), rng, key.secret)
        self._hello_timer = clock.Timer(self._on_hello_timer)
        self._hellos: asyncio.DatagramTransport | None = None
        self._port = 0
        self._nat: NatDriver | None = None
        self._outside = NatState(NatKind.SEARCHING)
        self._was_outside = False
        self._is_leaving = False

    async def open(self) -> None:
        """Bind the port that is to be mapped, then ask for the mapping; `OSError` if a port is taken."""
        loop = asyncio.get_running_loop()
        self._hellos, _ = await loop.create_datagram_endpoint(
            lambda: _Hellos(self._take_hello), local_addr=(str(self._address), self._config.machine.internal_port)
        )
        self._port = self._hellos.get_extra_info("sockname")[1]
        nat = self._config.nat
        if self._gateway is None or (nat.mode == "auto" and not is_rfc1918(self._address)):
            self._on_nat(NatState(NatKind.PUBLIC, reason="no NAT to ask"))
            return
        settings = NatSettings(
            internal_port=self._port,
            suggested_port=self._port if nat.suggested_port is None else nat.suggested_port,
            lifetime=self._config.timing.mapping_lifetime,
            loss_delay_min=self._config.timing.loss_delay_min,
            loss_delay_max=self._config.timing.loss_delay_max,
        )
        self._nat = NatDriver(
            gateway=self._gateway,
            source=self._address,
            announcements=parse_endpoint(nat.announcements),
            interface=nat.interface or self._address,
            core=NatPmpClient(self._gateway[0], settings, self._rng),
            on_state=self._on_nat,
        )
        await self._nat.start()

    async def run(self) -> None:
        """Work until the internal address is another one."""
        self._table.start(self._config.watched_hosts())
        self._settle()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._publisher.run(), name="publisher"),
                group.create_task(self._watcher.run(), name="watcher"),
            ]
            await self._wait_for_move()
            for task in tasks:
                task.cancel()

    async def leave(self) -> None:
        """Deregister, then delete the mapping."""
        self._is_leaving = True
        self._publisher.withdraw()
        await self._publisher.withdrawn.wait()
        if self._nat is not None:
            await self._nat.close()

    def close(self) -> None:
        self._hello_timer.cancel()
        if self._hellos is not None:
            self._hellos.abort()
            self._hellos = None
        if self._nat is not None:
            self._nat.abort()

    async def _wait_for_move(self) -> None:
        while True:
            await asyncio.sleep(self._config.timing.address_check_every)
            address = current_address(self._config)
            if address is not None and address != self._address:
                self._tell("the machine moved", before=str(self._address), now=str(address))
                return

    # RFC 6281 §5.1: mapping and address are known -> tunnel address -> tunnels -> DNS

    def _on_nat(self, state: NatState) -> None:
        self._outside = state
        if self._is_leaving:
            return
        outer = self._outer()
        self._tell("outside", kind=state.kind.value, external=_endpoint_text(outer), reason=state.reason)
        if outer is None:
            if state.kind is not NatKind.SEARCHING:
                self._publisher.withdraw()  # what is published would lead nowhere
            return
        inner = self._interface.ensure(self._rng.randbytes(ULA_ENTROPY_OCTETS))
        moved = self._table.move_local(inner, outer)
        if moved:
            self._tell("tunnels moved", count=moved)
        self._prober.probe_all(now=clock.monotonic())
        self._flush_hellos()
        self._publisher.publish(
            Registration(
                names=self._names,
                inner=inner,
                outer=outer[0],
                port=outer[1],
                text=tuple(item.encode() for item in self._config.machine.text),
            )
        )
        if self._was_outside:
            self._watcher.place_changed()
        self._was_outside = True

    def _outer(self) -> Endpoint | None:
        match self._outside.kind:
            case NatKind.MAPPED:
                return self._outside.address, self._outside.port
            case NatKind.PUBLIC:
                return self._address, self._port
            case _:
                return None

    def _on_published(self, effect: RegistrarEffect) -> None:
        match effect:
            case Published(registration, lease, is_refresh):
                text = "refreshed" if is_refresh else "published"
                self._tell(text, external=f"{registration.outer}:{registration.port}", lease_seconds=lease)
            case Withdrawn(reason):
                self._tell("withdrawn", reason=reason)
            case Failed(reason, retry_in):
                self._tell("update failed", reason=reason, retry_seconds=round(retry_in, 1))
            case _:
                pass

    # Figure 3

    def _on_view(self, question: Question, rdatas: tuple[bytes, ...]) -> None:
        self._table.update(question, rdatas, now=clock.monotonic())
        self._settle()

    def _settle(self) -> None:
        for effect in self._table.take_effects():
            match effect:
                case Watch(question):
                    self._watcher.subscribe(question)
                case Unwatch(question):
                    self._watcher.unsubscribe(question)
                case TunnelChanged(peer, tunnel):
                    self._on_tunnel(peer, tunnel)

    def _on_tunnel(self, peer: bytes, tunnel: Tunnel | None) -> None:
        endpoint: Endpoint | None = None
        if tunnel is None:
            self._tell("tunnel gone", peer=to_text(peer))
        else:
            if tunnel.outer_address is not None and tunnel.state is TunnelState.UP:
                endpoint = tunnel.outer_address, tunnel.outer_port
            self._tell(
                "tunnel",
                peer=to_text(peer),
                state=tunnel.state.value,
                outer=_endpoint_text(endpoint),
                inner=str(tunnel.inner),
            )
        self._prober.set_peer(peer, endpoint, now=clock.monotonic())
        self._flush_hellos()

    def _on_subscription(self, effect: StateChanged) -> None:
        log.debug(
            "subscription",
            owner=to_text(effect.question.name),
            type=type_text(effect.question.rtype),
            state=effect.state.value,
            reason=effect.reason,
        )

    # Hellos

    def _take_hello(self, datagram: bytes, source: Endpoint) -> None:
        self._prober.receive(datagram, source, now=clock.monotonic())
        self._flush_hellos()

    def _on_hello_timer(self) -> None:
        self._prober.handle_deadline(now=clock.monotonic())
        self._flush_hellos()

    def _flush_hellos(self) -> None:
        for effect in self._prober.take_effects():
            match effect:
                case SendTo((address, port), datagram):
                    if self._hellos is not None:
                        self._hellos.sendto(datagram, (str(address), port))
                case ReachabilityChanged(peer, reachability):
                    if reachability.rtt_ms is None:
                        self._tell("peer is silent", peer=to_text(peer))
                    else:
                        self._tell("peer answers", peer=to_text(peer), rtt_ms=round(reachability.rtt_ms, 1))
        if self._hellos is not None:
            self._hello_timer.arm(self._prober.next_deadline())

    # Status

    def status(self) -> Status:
        now = clock.monotonic()
        outer = self._outer()
        inner = self._interface.address
        return Status(
            machine=self._config.machine.name,
            domain=self._config.member.domain,
            inner=None if inner == NO_TUNNEL_ADDRESS else str(inner),
            internal=f"{self._address}:{self._port}",
            external=_endpoint_text(outer),
            nat=self._outside.kind.value,
            nat_reason=self._outside.reason,
            lease_seconds_left=_left(self._publisher.lapses_at, now),
            mapping_seconds_left=_left(self._nat.lapses_at if self._nat else None, now),
            subscriptions=tuple(
                SubscriptionStatus(to_text(question.name), type_text(question.rtype), state.value, _left(lapse, now))
                for question, state, lapse in self._watcher.states()
            ),
            tunnels=tuple(self._tunnel_status(row, now) for row in self._table.rows()),
        )

    def _tunnel_status(self, row: Tunnel, now: float) -> TunnelStatus:
        reach = self._prober.reachability(row.peer)
        outer = (row.outer_address, row.outer_port) if row.outer_address is not None else None
        return TunnelStatus(
            peer=to_text(row.peer),
            inner=str(row.inner),
            outer=_endpoint_text(outer),
            state=row.state.value,
            since_seconds=now - row.since,
            rtt_ms=reach.rtt_ms if reach else None,
            is_silent=reach.is_silent if reach else False,
        )


def _configured_service(config: ClientConfig) -> Service | None:
    if config.dns.tls_server is None:
        return None
    address, port = parse_endpoint(config.dns.tls_server)
    return Service(from_text(str(address)), (address,), port)


def _endpoint_text(endpoint: Endpoint | None) -> str | None:
    return f"{endpoint[0]}:{endpoint[1]}" if endpoint is not None else None


def _left(lapses_at: float | None, now: float) -> int | None:
    return None if lapses_at is None else max(0, round(lapses_at - now))
