"""The back end of a Linux router: the kernel carries the packets, through the nftables table `inet homing`.

A mapping is one element of the map `inward` (packets from outside) and its reverse in `outward` (the internal host's
own packets keep the mapped port, RFC 6886 §3.3 and RFC 4787 §4.1). Rules are the same for any number of mappings, and
everything happens in this one table: what other tables do stays theirs. An accepting rule here cannot overrule a
dropping one there, so a firewall of the router needs `ct status dnat accept` in its own forward chain.

The table is made, listed and compared through libnftables; single elements go to the kernel by netlink, bound to the
generation we know, so that somebody else's change in between is noticed at once.

Conntrack entries outlive the rules that made them. Those of a removed mapping are dropped, and for a new UDP mapping
those from before it, which would keep old flows on old ports. That happens in a thread, a moment after the change.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

import structlog

from gateway.errors import InstallRefusedError, StartError
from gateway.mappings import Filter, Install, Key, Transport

from .libnftables import LIBRARY, Nftables, NftablesError
from .netfilter import ElementChange, Endpoint, Netfilter, NetfilterError, RulesetEvents
from .ruleset import (
    ADMITTED,
    FILTERED,
    PINHOLES,
    PINHOLES_FROM,
    TABLE,
    Element,
    Inside,
    Member,
    NftablesOptions,
    Outside,
    deletions,
    endings,
    entries,
    filter_members,
    members_of,
    pairs,
    pinhole_members,
    removals,
    ruleset,
)

CHECK_SECONDS = 30.0
"""How often the kernel's generation is compared with ours, should an event have been lost."""
SETTLE_SECONDS = 0.2
"""Wait after somebody else's change: who flushes a ruleset mostly loads another one at once."""
CLAIM_SECONDS = 1.0
"""How long elements of an earlier run wait for their mapping to be installed again."""
TOGETHER = 512
"""Changes committed in one transaction."""
HEAR_TRIES = 4
"""Rounds of reading events while more keep coming; then the table is compared anyway."""
FLOW_SECONDS = 0.05
"""Dropped flows are collected for this long: mappings often end together, and each search costs milliseconds."""
FLOW_SHARE = 20
LONGEST_FLOW_SECONDS = 0.5
"""They are collected for so many times what the search before took, that it may be a small share of the time."""


class _Outdated(Exception):
    """Somebody else has changed a ruleset since we looked."""


class NftablesBackend:
    """Implements `gateway.backend.base.Backend` with rules of the kernel."""

    def __init__(self, options: NftablesOptions, *, library: str = LIBRARY) -> None:
        self.opens_pinholes = options.ipv6
        self.counters: Counter[str] = Counter()
        self._options = options
        self._library = library
        self._log = structlog.get_logger(__name__)
        self._nftables: Nftables | None = None
        self._netfilter: Netfilter | None = None
        self._events: RulesetEvents | None = None
        self._flows: Netfilter | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gateway-conntrack")
        self._elements: dict[int, Element] = {}
        self._members: dict[int, list[Member]] = {}
        """What installations have in sets: filters and pinholes."""
        self._pinholes: dict[int, Key] = {}
        self._held: list[ElementChange] | None = None
        """Changes gathered between `hold` and `flush`."""
        self._by_outside: dict[Outside, int] = {}
        self._by_inside: dict[Inside, int] = {}
        self._left_over_inside: dict[Inside, Element] = {}
        self._left_over: dict[Outside, Element] = {}
        """Elements of an earlier run that nobody has installed again yet."""
        self._external: set[str] = set()
        self._rules = ""
        self._generation = 0
        self._suspicion = False
        self._check: asyncio.TimerHandle | None = None
        self._claim: asyncio.TimerHandle | None = None
        self._flow_timer: asyncio.TimerHandle | None = None
        self._flow_seconds = FLOW_SECONDS
        self._stale_outside: set[Endpoint] = set()
        self._stale_inside: set[Endpoint] = set()
        """Whose flows are to be dropped: through an outer end, or begun by an inner one."""
        self._dropping: set[asyncio.Future[int]] = set()

    # -- the protocol ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        try:
            self._start()
        except BaseException:
            self._close()
            raise

    async def stop(self) -> None:
        """Remove the table and end its flows; with `keep_on_stop` everything stays for the next run."""
        if self._nftables is not None:
            if self._options.keep_on_stop:
                self._drop_unclaimed()
            else:
                with contextlib.suppress(NftablesError):
                    self._nftables.run(f"add table inet {TABLE}\ndelete table inet {TABLE}")
                for element in (*self._elements.values(), *self._left_over.values()):
                    self._stale_outside.add(element.outside)
            self._drop_flows()
            if self._dropping:
                await asyncio.wait(self._dropping)
        self._elements.clear()
        self._members.clear()
        self._pinholes.clear()
        self._close()

    def check_address(self, external_address: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            _bind(probe, external_address, 0)

    def install(self, install: Install) -> None:
        if install.mapping.key.is_pinhole:
            self._open_pinhole(install)
            return
        element = _element(install)
        if element.outside in self._by_outside or element.inside in self._by_inside:
            raise InstallRefusedError("a mapping has this port already")
        _must_be_free(element.outside)
        self._elements[install.number] = element
        self._by_outside[element.outside] = install.number
        self._by_inside[element.inside] = install.number
        members = filter_members(element.outside, install.mapping.filters)
        self._members[install.number] = members
        # Elements of an earlier run either are this mapping already or make way for it, in the same transaction.
        before = self._claim_left_over(element)
        if element in before and not members:
            return
        changes = entries(element, external=self._is_new_address(element))
        if before or members:
            # Who may send is settled before anybody can.
            changes = [*(member.change() for member in members), *removals(before), *changes]
        try:
            self._change(changes)
        except NftablesError as error:
            self._forget(install.number)
            del self._members[install.number]
            raise InstallRefusedError(f"nftables: {error}") from error
        self._external.add(element.outside.address)
        for other in before:
            self._stale_outside.add(other.outside)
        if element.outside.transport == Transport.UDP:
            # What was sent before the mapping was there made entries that would keep those flows from it.
            self._stale_outside.add(element.outside)
            self._stale_inside.add(element.inside)
        self._plan_flows()

    def hold(self) -> None:
        self._held = []

    def flush(self) -> None:
        held, self._held = self._held, None
        try:
            # The kernel answers each change of a message, and its buffers are bounded.
            for at in range(0, len(held or ()), TOGETHER):
                self._change((held or [])[at : at + TOGETHER])
        except NftablesError as error:
            raise InstallRefusedError(f"nftables: {error}") from error

    def restrict(self, number: int, filters: tuple[Filter, ...]) -> None:
        if number not in self._members:
            return
        element = self._elements.get(number)
        before = self._members[number]
        after = (
            pinhole_members(self._pinholes[number], filters)
            if element is None
            else (filter_members(element.outside, filters))
        )
        self._members[number] = after
        gone = [member.change(is_deletion=True) for member in before if member not in after]
        come = [member.change() for member in after if member not in before]
        if element is not None:
            self._stale_outside.add(element.outside)
            self._plan_flows()
        try:
            self._change(gone + come)
        except NftablesError as error:
            self._log.error("filters could not be put into nftables", reason=str(error))

    def remove(self, number: int) -> None:
        members = [member.change(is_deletion=True) for member in self._members.pop(number, ())]
        self._pinholes.pop(number, None)
        element = self._forget(number)
        if element is None and not members:
            return
        changes = members
        if element is not None:
            self._stale_outside.add(element.outside)
            self._plan_flows()
            changes = [*removals([element]), *endings(element), *members]
        try:
            self._change(changes)
        except NftablesError as error:
            self._log.error("mapping could not be removed from nftables", reason=str(error))

    # -- start and stop --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            # First of all: libnftables itself would end the process where there is no netfilter.
            self._netfilter = Netfilter()
            self._flows = Netfilter()
            self._netfilter.generation()
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise StartError("back end nftables: needs root or CAP_NET_ADMIN") from None
            raise StartError(f"back end nftables: the kernel has no nftables ({error.strerror or error})") from None
        try:
            self._nftables = Nftables(self._library)
        except NftablesError as error:
            raise StartError(f"back end nftables: {error}") from None
        self._must_forward()
        left_over = self._elements_in_kernel() or set()
        if left_over:
            # Filters are not taken over, so what had some waits for its installation.
            restricted = {member.parts for member in self._members_in_kernel() or () if member.set_name == FILTERED}
            left_over = {
                element for element in left_over if tuple((value, value) for value in element.outside) not in restricted
            }
        self._left_over = {element.outside: element for element in left_over}
        self._left_over_inside = {element.inside: element for element in left_over}
        try:
            self._put_all()
        except NftablesError as error:
            raise StartError(f"back end nftables: {error}") from None
        self._events = RulesetEvents(TABLE)
        self._generation = self._netfilter.generation()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._events.fileno(), self._hear)
        self._plan_check(CHECK_SECONDS)
        if left_over:
            self._log.info("elements of an earlier run taken over", count=len(left_over))
            self._claim = loop.call_later(CLAIM_SECONDS, self._drop_unclaimed)

    def _must_forward(self) -> None:
        """Refuse to work on a machine that does not forward. An interface may come later, so it may be missing."""
        name = self._options.wan_interface
        for setting in (Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding"), Path("/proc/sys/net/ipv4/ip_forward")):
            with contextlib.suppress(OSError):
                if setting.read_text().strip() == "0":
                    raise StartError("back end nftables: forwarding is off (sysctl -w net.ipv4.ip_forward=1)")
                return

    def _close(self) -> None:
        for timer in (self._check, self._claim, self._flow_timer):
            if timer is not None:
                timer.cancel()
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None
        if self._nftables is not None:
            self._nftables.close()
            self._nftables = None
        self._thread.shutdown(wait=True)
        for netfilter in (self._netfilter, self._flows):
            if netfilter is not None:
                netfilter.close()
        self._netfilter = self._flows = None

    # -- the kernel's table ----------------------------------------------------------------------------------------

    def _change(self, changes: list[ElementChange]) -> None:
        """Commit a change. Where the kernel refuses it, the table is not as we left it: it is put back whole."""
        if self._held is not None:
            self._held += changes
            return
        assert self._netfilter is not None
        try:
            if not self._suspicion:
                with contextlib.suppress(_Outdated):
                    self._commit(changes, self._generation)
                    self._generation = _next_generation(self._generation)
                    return
                self._suspect_change()
            self._commit(changes, None)
        except OSError as error:
            self._log.warning("the kernel refused a change, the table is put back", reason=error.strerror)
            self._suspect_change()
            self._put_all()
            self.counters["tables put back"] += 1

    def _commit(self, changes: list[ElementChange], generation: int | None) -> None:
        assert self._netfilter is not None
        try:
            self._netfilter.change_elements(TABLE, changes, generation=generation)
        except NetfilterError as error:
            if error.errno == errno.ERESTART:
                raise _Outdated from None
            raise

    def _suspect_change(self) -> None:
        """Have the whole table compared soon."""
        self._suspicion = True
        self._plan_check(SETTLE_SECONDS)

    def _put_all(self) -> None:
        assert self._nftables is not None
        elements = [*self._elements.values(), *self._left_over.values()]
        members = [member for listed in self._members.values() for member in listed]
        self._nftables.run(ruleset(self._options, elements, members))
        self._external = {element.outside.address for element in elements}
        self._rules = self._nftables.list_terse(f"table inet {TABLE}")

    def _elements_in_kernel(self) -> set[Element] | None:
        """All mappings of the kernel's table, or None where it has none, or not one element for each in both maps."""
        assert self._nftables is not None
        try:
            inward = pairs(self._nftables.list_json(f"map inet {TABLE} inward"))
            outward = pairs(self._nftables.list_json(f"map inet {TABLE} outward"))
        except (NftablesError, ValueError, KeyError, TypeError, IndexError):
            return None
        if {(host, kind, port): (address, outer) for (address, kind, outer), (host, port) in inward.items()} != outward:
            return None
        return {Element(Outside(*key), Inside(host, key[1], port)) for key, (host, port) in inward.items()}

    def _members_in_kernel(self) -> set[Member] | None:
        """All filters and pinholes of the kernel's table; None where its sets are not as they should be."""
        assert self._nftables is not None
        found: set[Member] = set()
        try:
            for name in (FILTERED, ADMITTED, *((PINHOLES, PINHOLES_FROM) if self._options.ipv6 else ())):
                found |= members_of(name, self._nftables.list_json(f"set inet {TABLE} {name}"))
        except (NftablesError, ValueError, KeyError, TypeError, IndexError):
            return None
        return found

    def _is_intact(self) -> bool:
        assert self._nftables is not None
        try:
            if self._nftables.list_terse(f"table inet {TABLE}") != self._rules:
                return False
        except NftablesError:
            return False
        if self._elements_in_kernel() != {*self._elements.values(), *self._left_over.values()}:
            return False
        return self._members_in_kernel() == {member for listed in self._members.values() for member in listed}

    def _hear(self) -> None:
        """Somebody changed a ruleset; ours, perhaps."""
        assert self._events is not None
        assert self._netfilter is not None
        is_ours_changed = False
        before = self._netfilter.generation()
        for _ in range(HEAR_TRIES):
            is_ours_changed |= self._events.drain()
            after = self._netfilter.generation()
            if after == before:
                break
            before = after
        else:
            is_ours_changed = True
        # The table's own events are ours as long as nobody else raised the generation.
        if after != self._generation and not self._suspicion:
            if is_ours_changed:
                self._suspect_change()
            else:
                self._generation = after

    def _plan_check(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._check is not None:
            if self._check.when() <= loop.time() + seconds:
                return
            self._check.cancel()
        self._check = loop.call_later(seconds, self._check_table)

    def _check_table(self) -> None:
        """Put the table back if it is not as we left it."""
        assert self._netfilter is not None
        self._check = None
        try:
            generation = self._netfilter.generation()
            if self._suspicion or generation != self._generation:
                is_intact = self._is_intact()
                self._generation = generation
                self._suspicion = False
                if not is_intact:
                    self._log.warning("somebody changed our nftables table, it is put back", table=f"inet {TABLE}")
                    self._put_all()
                    self.counters["tables put back"] += 1
                    self._generation = _next_generation(generation)
                    if self._netfilter.generation() != self._generation:
                        self._suspect_change()
        except (NftablesError, OSError) as error:
            self._suspicion = True
            self._log.error("nftables table cannot be checked", reason=str(error))
        self._plan_check(CHECK_SECONDS)

    def _drop_unclaimed(self) -> None:
        """Remove what an earlier run left and nobody asked for again."""
        left_over = list(self._left_over.values())
        self._left_over.clear()
        self._left_over_inside.clear()
        for element in left_over:
            self._stale_outside.add(element.outside)
        self._plan_flows()
        if not left_over:
            return
        assert self._nftables is not None
        self._log.info("elements of an earlier run removed", count=len(left_over))
        with contextlib.suppress(NftablesError):
            self._nftables.run("\n".join(deletions(left_over)))
        # They may be too many for `_change`; whether it worked is seen when the table is compared.
        self._suspect_change()

    def _claim_left_over(self, element: Element) -> list[Element]:
        """Take out what an earlier run left on either end of a mapping."""
        if not self._left_over:
            return []
        claimed = {
            other
            for other in (self._left_over.get(element.outside), self._left_over_inside.get(element.inside))
            if other is not None
        }
        for other in claimed:
            del self._left_over[other.outside]
            del self._left_over_inside[other.inside]
        return list(claimed)

    def _is_new_address(self, element: Element) -> bool:
        return self._options.hairpin and element.outside.address not in self._external

    def _open_pinhole(self, install: Install) -> None:
        key = install.mapping.key
        if not self._options.ipv6:
            raise InstallRefusedError("IPv6 is left to others ([nftables] ipv6)")
        members = pinhole_members(key, install.mapping.filters)
        self._members[install.number] = members
        self._pinholes[install.number] = key
        try:
            self._change([member.change() for member in members])
        except NftablesError as error:
            del self._members[install.number], self._pinholes[install.number]
            raise InstallRefusedError(f"nftables: {error}") from error

    def _forget(self, number: int) -> Element | None:
        element = self._elements.pop(number, None)
        if element is not None:
            del self._by_outside[element.outside]
            del self._by_inside[element.inside]
        return element

    # -- conntrack -------------------------------------------------------------------------------------------------

    def _plan_flows(self) -> None:
        if (self._stale_outside or self._stale_inside) and self._flow_timer is None:
            self._flow_timer = asyncio.get_running_loop().call_later(self._flow_seconds, self._drop_flows)

    def _drop_flows(self) -> None:
        if self._flow_timer is not None:
            self._flow_timer.cancel()
            self._flow_timer = None
        if not self._stale_outside and not self._stale_inside:
            return
        assert self._flows is not None
        outside, self._stale_outside = self._stale_outside, set()
        inside, self._stale_inside = self._stale_inside, set()
        loop = asyncio.get_running_loop()
        dropping = loop.run_in_executor(self._thread, self._flows.drop_flows, outside, inside)
        self._dropping.add(dropping)
        dropping.add_done_callback(functools.partial(self._flows_dropped, loop.time()))

    def _flows_dropped(self, begun: float, dropping: asyncio.Future[int]) -> None:
        self._dropping.discard(dropping)
        took = dropping.get_loop().time() - begun
        self._flow_seconds = min(max(FLOW_SECONDS, FLOW_SHARE * took), LONGEST_FLOW_SECONDS)
        if dropping.cancelled():
            return
        failure = dropping.exception()
        if failure is None:
            self.counters["flows dropped"] += dropping.result()
        else:
            self.counters["failures"] += 1
            self._log.error("flows of old mappings could not be dropped", reason=str(failure))


def _next_generation(generation: int) -> int:
    """The kernel counts in 32 bits and leaves out zero."""
    return (generation + 1) & 0xFFFFFFFF or 1


def _element(install: Install) -> Element:
    mapping = install.mapping
    transport, host, port = mapping.key
    number = int(transport)
    outside = Outside(_ipv4(install.external_address), number, mapping.external_port)
    return Element(outside, Inside(_ipv4(host), number, port))


@functools.lru_cache(maxsize=1024)
def _ipv4(address: str) -> str:
    """An address in the form in which the kernel's are read."""
    try:
        return str(IPv4Address(address))
    except AddressValueError:
        raise InstallRefusedError("only IPv4 can be mapped") from None


def _bind(probe: socket.SocketType, address: str, port: int) -> None:
    try:
        probe.bind((address, port))
    except OSError as error:
        raise InstallRefusedError(error.strerror or str(error)) from error


def _must_be_free(outside: Outside) -> None:
    """Refuse a port that a program of the router itself has: the rules would take its packets away."""
    kind = socket.SOCK_DGRAM if outside.transport == Transport.UDP else socket.SOCK_STREAM
    # The bare kind of socket: this is done for each mapping, and Python's own socket takes as long as the kernel's.
    probe = socket.SocketType(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            # Closed connections that linger are no obstacle, only somebody who listens is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(probe, outside.address, outside.port)
    finally:
        probe.close()
