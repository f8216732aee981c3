"""The internal side: a socket on each internal address, followed as interfaces and addresses come and go.

Never one on the external side (RFC 6886 §3, RFC 6887 §8.2, VU#184540): an address of the outer interface is not opened,
and each socket hears only what came by an interface that has its address, or from this host itself.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

import structlog

from .announcer import Announcer
from .config import Endpoint, GatewayConfig
from .errors import StartError
from .interfaces import Addresses, InterfaceAddress
from .listener import Listener

LOOPBACK_INDEX = 1
"""Of `lo`, in every network namespace: where this host's own requests come in."""
LISTENER_LIMIT = 64
"""Sockets at a time; a machine with more internal addresses is not a home's router."""

Receive = Callable[[int, bytes, str, int], None]


class LanSide:
    """All internal sockets, each with its own series of announcements. A number stays one socket's for good."""

    def __init__(self, config: GatewayConfig, receive: Receive, counters: Counter[str]) -> None:
        """`receive` gets the number of the socket, the datagram, source host and source port."""
        self._config = config
        self._receive = receive
        self._counters = counters
        self._log = structlog.get_logger(__name__)
        self._listeners: dict[int, Listener] = {}
        self._announcers: dict[int, Announcer] = {}
        self._next_number = 0
        self._is_open = False
        self._complaints: set[str] = set()
        self.addresses: set[str] = set()
        """Of the sockets, kept up to date in place."""

    def bind(self, addresses: Addresses) -> None:
        """Take every port that is to be had now. Raises `StartError` if that is none at all.

        An address that is not there yet, or an interface, is picked up when it comes.
        """
        outer = self._config.external_interface
        for endpoint in self._config.natpmp.listen:
            places = _interfaces_with(endpoint.host, addresses)
            if outer in places.values() and not self._is_loopback(endpoint.host):
                raise StartError(f"NAT-PMP on {endpoint}: that is an address of the external interface {outer}")
        failures = self._adjust(addresses, now=None)
        if not self._listeners and failures:
            raise failures[0]
        for failure in failures:
            self._log.warning("internal address cannot be used yet", reason=str(failure))

    def open(self) -> None:
        """Begin to hear."""
        self._is_open = True
        for listener in self._listeners.values():
            listener.open()

    def close(self) -> None:
        """Stop hearing and free all ports."""
        for number in list(self._listeners):
            self._drop(number)

    def update(self, addresses: Addresses, *, now: float) -> None:
        """Follow a change: close what is gone, open what came and announce there."""
        complaints = {str(failure) for failure in self._adjust(addresses, now=now)}
        for reason in sorted(complaints - self._complaints):
            self._log.warning("internal address cannot be used", reason=reason)
        self._complaints = complaints

    @property
    def endpoints(self) -> list[Endpoint]:
        """Where requests are answered, with the ports that were taken for port 0."""
        return [listener.endpoint for listener in self._listeners.values()]

    def is_ipv6(self, number: int) -> bool:
        """Whether a socket is one of IPv6; not if it is gone."""
        listener = self._listeners.get(number)
        return listener is not None and listener.is_ipv6

    def send(self, number: int, datagram: bytes, endpoint: tuple[str, int]) -> None:
        """Send from one socket; nothing if it is gone."""
        listener = self._listeners.get(number)
        if listener is not None:
            listener.send(datagram, endpoint)

    # -- announcements ---------------------------------------------------------------------------------------------

    def announce(self, *, now: float) -> None:
        """Begin the series anew on every internal address."""
        for announcer in self._announcers.values():
            announcer.restart(now=now)

    def next_announcement(self) -> float | None:
        """When the next copy is due anywhere."""
        deadlines = (announcer.next_deadline() for announcer in self._announcers.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def take_announcements(self, *, now: float) -> list[int]:
        """The numbers of the sockets from which a copy has to be sent now."""
        for announcer in self._announcers.values():
            announcer.handle_deadline(now=now)
        return [number for number, announcer in self._announcers.items() if announcer.take_due()]

    # -- which sockets there are -----------------------------------------------------------------------------------

    def _adjust(self, addresses: Addresses, *, now: float | None) -> list[StartError]:
        wanted = self._wanted(addresses)
        for number, listener in list(self._listeners.items()):
            places = _interfaces_with(listener.endpoint.host, addresses)
            if self._is_named(listener) or listener.endpoint in wanted:
                # A named address may be away for a while; meanwhile its socket hears nothing.
                listener.interfaces = frozenset(self._inner(places)) | {LOOPBACK_INDEX}
            else:
                self._log.info("internal address gone", address=str(listener.endpoint))
                self._drop(number)
        failures = []
        have = {listener.asked for listener in self._listeners.values()}
        for endpoint in wanted:
            if endpoint in have:
                continue
            if len(self._listeners) >= LISTENER_LIMIT:
                failures.append(StartError(f"NAT-PMP on {endpoint}: more than {LISTENER_LIMIT} internal addresses"))
                break
            try:
                self._add(endpoint, addresses, now)
            except StartError as error:
                failures.append(error)
        return failures

    def _wanted(self, addresses: Addresses) -> list[Endpoint]:
        """What is configured, and the addresses of the interfaces that are; IPv6 ones if there is a use for them."""
        config = self._config
        wanted = dict.fromkeys(config.natpmp.listen)
        named = {endpoint.host for endpoint in wanted}
        for item in addresses:
            host = _host(item)
            has_use = item.is_usable and config.opens_pinholes if ":" in host else True
            if has_use and item.interface in config.lan.interfaces and item.is_up and host not in named:
                wanted[Endpoint(host, config.lan.port)] = None
        return list(wanted)

    def _add(self, endpoint: Endpoint, addresses: Addresses, now: float | None) -> None:
        places = _interfaces_with(endpoint.host, addresses)
        number = self._next_number
        listener = Listener(
            endpoint,
            functools.partial(self._receive, number),
            self._counters,
            interface=next(iter(self._inner(places)), 0),
        )
        self._next_number += 1
        listener.interfaces = frozenset(self._inner(places)) | {LOOPBACK_INDEX}
        self._listeners[number] = listener
        self._announcers[number] = Announcer()
        self.addresses.add(endpoint.host)
        if self._is_open:
            listener.open()
        if now is not None:
            self._log.info("internal address picked up", address=str(listener.endpoint))
            self._announcers[number].restart(now=now)

    def _drop(self, number: int) -> None:
        listener = self._listeners.pop(number)
        listener.close()
        del self._announcers[number]
        self.addresses.discard(listener.endpoint.host)

    def _is_named(self, listener: Listener) -> bool:
        return listener.asked in self._config.natpmp.listen

    def _inner(self, places: dict[int, str]) -> Iterable[int]:
        outer = self._config.external_interface
        return [index for index, name in places.items() if name != outer]

    def _is_loopback(self, host: str) -> bool:
        return IPv4Address(host).is_loopback


def _interfaces_with(host: str, addresses: Addresses) -> dict[int, str]:
    """Index and name of the interfaces that have this address."""
    return {item.index: item.interface for item in addresses if _host(item) == host}


def _host(item: InterfaceAddress) -> str:
    """An address as sockets take it: one of link scope is another one on each interface."""
    is_of_link = isinstance(item.address, IPv6Address) and item.address.is_link_local
    return f"{item.address}%{item.interface}" if is_of_link else str(item.address)
