"""The UPnP device on the internal side: SSDP, HTTP and events joined to the mapping table.

One HTTP server and one SSDP socket for each internal address, followed as they come and go. A call that changes
mappings is answered when the gateway has made the change durable, as with the other protocols.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

import structlog

from gateway.config import GatewayConfig
from gateway.errors import StartError
from gateway.interfaces import Addresses
from gateway.mappings import Answer, MappingTable
from gateway.ratelimit import RateLimit
from gateway.system import System

from .actions import Actions, Caller, Pending, Traffic
from .description import DeviceTree
from .events import RefusedError, Subscriptions
from .http import HttpServer, Reply, Request
from .multicast import AddressSocket, GroupSocket
from .notifier import Notifier
from .soap import ErrorCode, SoapError, UpnpError, read_call, write_answer, write_fault
from .ssdp import GROUP, MAX_AGE_SECONDS, PORT, Discovery, read_search

ALIVE_SECONDS: Final = MAX_AGE_SECONDS / 2 - 60
"""Announcements are repeated before half their life is over (UDA 1.1 §1.2.2)."""
ALIVE_COPIES: Final = 2
ALIVE_GAP_SECONDS: Final = 0.3
SEARCHES_PER_SECOND: Final = 20
"""Of one host; an answer is ten times as long as the question, so there is a bound to each."""
WAITING_ANSWERS: Final = 256
EVENT_GAP_SECONDS: Final = 0.2
"""Changes are collected for this long (UDA 1.1 §4.3: not too many events)."""


@dataclass(frozen=True, slots=True)
class Place:
    """An internal address: where the device is found."""

    host: str
    network: IPv4Network
    interface: str
    index: int


@dataclass(slots=True)
class _Spot:
    """What is open at a place."""

    http: HttpServer
    ssdp: AddressSocket

    @property
    def location(self) -> str:
        return f"{self.http.host}:{self.http.port}"


def places(addresses: Addresses, hosts: Iterable[str], outer: str | None) -> list[Place]:
    """The internal addresses with their networks, never one of the outer interface."""
    wanted = set(hosts)
    return [
        Place(str(item.address), IPv4Network(f"{item.address}/{item.prefix_length}", False), item.interface, item.index)
        for item in addresses
        if isinstance(item.address, IPv4Address)
        and str(item.address) in wanted
        and item.is_up
        and item.interface != outer
    ]


class IgdDevice:
    """Started once and stopped once; `wake` has the gateway carry out what calls put into the table."""

    def __init__(
        self,
        actions: Actions,
        tree: DeviceTree,
        *,
        port: int,
        requests_per_second: int,
        system: System,
        wake: Callable[[], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._actions = actions
        self._tree = tree
        self._port = port
        self._system = system
        self._wake = wake
        self._log = structlog.get_logger(__name__)
        self._loop = asyncio.get_running_loop()
        self._discovery = Discovery(tree, boot_id=int(system.unix()) & 0x7FFFFFFF)
        self._calls = RateLimit(requests_per_second)
        self._searches = RateLimit(SEARCHES_PER_SECOND)
        self._subscriptions = Subscriptions()
        self._notifier = Notifier(self._subscriptions, self.counters)
        self._group: GroupSocket | None = None
        self._spots: dict[Place, _Spot] = {}
        self._alive_timer: asyncio.TimerHandle | None = None
        self._event_timer: asyncio.TimerHandle | None = None
        self._answers: set[asyncio.TimerHandle] = set()

    @classmethod
    def of(
        cls, config: GatewayConfig, table: MappingTable, device_uuid: str, *, system: System, wake: Callable[[], None]
    ) -> IgdDevice:
        """The device of a configuration, not started yet."""
        tree = DeviceTree(device_uuid, config.igd.version)
        actions = Actions(
            table,
            tree,
            show_all=config.igd.show_all,
            traffic=lambda: read_traffic(config.external_interface),
            now=system.monotonic(),
        )
        return cls(
            actions,
            tree,
            port=config.igd.port,
            requests_per_second=config.natpmp.requests_per_second,
            system=system,
            wake=wake,
        )

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self, wanted: list[Place]) -> None:
        """Open everything at these places and announce. Raises `StartError`."""
        try:
            self._group = GroupSocket(self._heard, self.counters)
            for place in wanted:
                await self._open(place)
        except OSError as error:
            await self.stop()
            raise StartError(f"UPnP (port {self._port} of TCP, {PORT} of UDP): {error.strerror or error}") from None
        self._announce_for(ALIVE_COPIES, byebye=True)

    async def follow(self, wanted: list[Place]) -> None:
        """Follow a change of internal addresses."""
        if self._group is None:
            return
        for place in [place for place in self._spots if place not in wanted]:
            await self._close(place, byebye=False)
        new = [place for place in wanted if place not in self._spots]
        for place in new:
            try:
                await self._open(place)
            except OSError as error:
                self._log.warning("UPnP not possible there", address=place.host, reason=error.strerror or str(error))
        if new:
            self._announce_for(ALIVE_COPIES, byebye=False)

    async def stop(self) -> None:
        """Say goodbye and close."""
        for timer in (self._alive_timer, self._event_timer, *self._answers):
            if timer is not None:
                timer.cancel()
        for place in list(self._spots):
            await self._close(place, byebye=True)
        if self._group is not None:
            self._group.close()
            self._group = None
        await self._notifier.stop()

    @property
    def locations(self) -> list[str]:
        """Addresses and ports of HTTP."""
        return [spot.location for spot in self._spots.values()]

    def changed(self, *, with_address: bool) -> None:
        """Mappings, or the external address as well, changed: have subscribers told soon."""
        self._actions.update_id += 1
        if with_address:
            self._actions.note_address(self._system.monotonic())
        self._plan_events(EVENT_GAP_SECONDS)

    async def _open(self, place: Place) -> None:
        assert self._group is not None
        http = HttpServer(
            place.host,
            self._port,
            interface=None if place.network.is_loopback else place.interface,
            network=place.network,
            handler=self._handle,
            counters=self.counters,
        )
        try:
            ssdp = AddressSocket(place.host, place.index, self._heard, self.counters)
            try:
                if all(other.index != place.index for other in self._spots):
                    self._group.join(place.index)
                await http.start()
            except BaseException:
                ssdp.close()
                raise
        except BaseException:
            await http.stop()
            raise
        self._spots[place] = _Spot(http, ssdp)

    async def _close(self, place: Place, *, byebye: bool) -> None:
        spot = self._spots.pop(place)
        if byebye:
            for datagram in self._discovery.byebye():
                spot.ssdp.send(datagram, (GROUP, PORT))
        spot.ssdp.close()
        if self._group is not None and all(other.index != place.index for other in self._spots):
            self._group.leave(place.index)
        await spot.http.stop()

    # -- SSDP ------------------------------------------------------------------------------------------------------

    def _announce_for(self, copies: int, *, byebye: bool) -> None:
        """Announce now, a few times in a row, and then again and again."""
        if self._alive_timer is not None:
            self._alive_timer.cancel()
        for spot in self._spots.values():
            # Goodbye first: who knew us from before starts afresh (UDA 1.1 §1.2.2).
            for datagram in (*(self._discovery.byebye() if byebye else ()), *self._discovery.alive(spot.location)):
                spot.ssdp.send(datagram, (GROUP, PORT))
        wait = ALIVE_GAP_SECONDS if copies > 1 else ALIVE_SECONDS
        left = copies - 1 if copies > 1 else 1
        self._alive_timer = self._loop.call_later(wait, lambda: self._announce_for(left, byebye=False))

    def _heard(self, datagram: bytes, peer: tuple[str, int], interface: int, is_multicast: bool) -> None:
        sender = IPv4Address(peer[0])
        spot = next(
            (
                spot
                for place, spot in self._spots.items()
                if sender in place.network and (place.index == interface or place.network.is_loopback)
            ),
            None,
        )
        if spot is None:
            self.counters["ssdp not internal"] += 1
            return
        search = read_search(datagram, is_multicast=is_multicast)
        if search is None:
            self.counters["ssdp other"] += 1
            return
        self.counters["ssdp searches"] += 1
        answers = self._discovery.answers(search, spot.location)
        if not answers:
            return
        if not self._searches.admits(peer[0], now=self._system.monotonic()) or len(self._answers) >= WAITING_ANSWERS:
            self.counters["ssdp over rate"] += 1
            return
        wait = search.wait_seconds * (self._system.draw() % 1000) / 1000

        def answer() -> None:
            self._answers.discard(timer)
            for each in answers:
                spot.ssdp.send(each, peer)

        timer = self._loop.call_later(wait, answer)
        self._answers.add(timer)

    # -- HTTP ------------------------------------------------------------------------------------------------------

    async def _handle(self, request: Request) -> Reply:
        if not self._calls.admits(request.peer, now=self._system.monotonic()):
            self.counters["http over rate"] += 1
            return Reply(HTTPStatus.SERVICE_UNAVAILABLE)
        path = request.path.partition("?")[0]
        kind, _, name = path.lstrip("/").partition("/")
        if path in self._tree.documents:
            return self._document(request, path)
        if name not in self._tree.services or kind not in ("control", "event"):
            return Reply(HTTPStatus.NOT_FOUND)
        if kind == "control":
            return await self._control(request, name)
        return self._event(request, name)

    def _document(self, request: Request, path: str) -> Reply:
        if request.method not in ("GET", "HEAD"):
            return Reply(HTTPStatus.METHOD_NOT_ALLOWED)
        return Reply(HTTPStatus.OK, self._tree.documents[path])

    async def _control(self, request: Request, name: str) -> Reply:
        if request.method != "POST":
            return Reply(HTTPStatus.METHOD_NOT_ALLOWED)
        self.counters["calls"] += 1
        ticket: asyncio.Future[Answer] = self._loop.create_future()
        caller = Caller(request.peer, ticket, self._system.draw(), self._system.monotonic())
        try:
            call = read_call(request.headers.get("soapaction"), request.body)
            values = self._actions.call(name, call, caller)
            if isinstance(values, Pending):
                self._wake()
                values = values.finish(await ticket)
        except SoapError as error:
            self.counters["malformed"] += 1
            self._log.debug("UPnP call cannot be read", peer=request.peer, reason=str(error))
            return Reply(HTTPStatus.BAD_REQUEST)
        except UpnpError as error:
            self.counters[f"refused: {ErrorCode(error.code).name}"] += 1
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, write_fault(error.code), (("Ext", ""),))
        return Reply(HTTPStatus.OK, write_answer(call, values), (("Ext", ""),))

    # -- events ----------------------------------------------------------------------------------------------------

    def _event(self, request: Request, name: str) -> Reply:
        now = self._system.monotonic()
        try:
            if request.method == "UNSUBSCRIBE":
                self._subscriptions.unsubscribe(name, request.headers, request.peer, now=now)
                return Reply(HTTPStatus.OK)
            if request.method != "SUBSCRIBE":
                return Reply(HTTPStatus.METHOD_NOT_ALLOWED)
            subscription, seconds = self._subscriptions.subscribe(
                name, request.headers, request.peer, local=request.local, sid=f"uuid:{uuid.uuid4()}", now=now
            )
        except RefusedError as refusal:
            self.counters["subscriptions refused"] += 1
            return Reply(refusal.status)
        headers = (("SID", subscription.sid), ("Timeout", f"Second-{seconds}"))
        # The first event follows the answer that names the subscription (UDA 1.1 §4.1.2).
        return Reply(HTTPStatus.OK, headers=headers, after=lambda: self._plan_events(0.0))

    def _plan_events(self, seconds: float) -> None:
        if not len(self._subscriptions):
            return
        if self._event_timer is not None:
            if self._event_timer.when() <= self._loop.time() + seconds:
                return
            self._event_timer.cancel()
        self._event_timer = self._loop.call_later(seconds, self._tell)

    def _tell(self) -> None:
        self._event_timer = None
        for subscription in self._subscriptions.idle(now=self._system.monotonic()):
            service = self._tree.services[subscription.service]
            values = self._actions.evented(service.name, subscription.callback.host)
            event = self._subscriptions.event(subscription, values)
            if event is not None:
                self._notifier.send(event, lambda: self._plan_events(EVENT_GAP_SECONDS))


def read_traffic(interface: str | None) -> Traffic:
    """The counters of an interface; zeros where there is none to read."""
    if interface is None:
        return Traffic()
    directory = Path("/sys/class/net") / interface
    return Traffic(
        sent_octets=_read_number(directory / "statistics/tx_bytes"),
        received_octets=_read_number(directory / "statistics/rx_bytes"),
        sent_packets=_read_number(directory / "statistics/tx_packets"),
        received_packets=_read_number(directory / "statistics/rx_packets"),
        speed=_read_number(directory / "speed") * 1_000_000,
        is_up=_read_text(directory / "operstate") != "down",
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_number(path: Path) -> int:
    text = _read_text(path)
    return int(text) if text.isdigit() else 0
