"""The mapping table: which external port leads to which internal host, until when (RFC 6886 §3, RFC 6887 §11).

Pure: time and entropy come in as arguments, what has to happen goes out as effects. It imports no asyncio, socket,
clock, random source or logging, and it knows no wire format: NAT-PMP and PCP both ask it through `request` and
`delete`, so that what one of them maps the other sees, keeps and respects. Times are monotonic seconds of one clock of
the caller's choice; hosts are IPv4 addresses in dotted form.

Contract: call in, then take the effects and carry them out in order. An `Install` is reported back with `installed`,
and only then is its request answered. A caller that stores mappings does so for every `Changed` before it sends the
`Answer`s taken along with it.

Invariants: one row per (transport, internal host, internal port); one row per (transport, external port); the same
external port of the two transports never belongs to two internal hosts (RFC 6886 §3.3, companion port); a freed
external port goes to another client only after its rest, or when no other port is left.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum, StrEnum
from typing import NamedTuple

HIGHEST_PORT = 65535
BARRED_PORTS = frozenset({5350, 5351})
"""Never handed out: the ports of NAT-PMP and PCP themselves (RFC 6887 §11.3)."""
INSTALL_TRIES = 8
"""Ports offered to the back end for one request; a refusal means that a program of the host itself holds the port."""
WAITING_LIMIT = 4
"""Requests that wait for one installation; more are dropped, the client gets the answers to the first ones."""


class Transport(IntEnum):
    """IANA protocol numbers."""

    TCP = 6
    UDP = 17

    @property
    def companion(self) -> Transport:
        """The other one, whose port of the same number is kept for the same host."""
        return Transport.TCP if self is Transport.UDP else Transport.UDP


class Origin(StrEnum):
    """Who made a mapping."""

    NATPMP = "natpmp"
    PCP = "pcp"
    STATIC = "static"


class Key(NamedTuple):
    """The inside of a mapping, which identifies it."""

    transport: Transport
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One row. `expires_at` is None for a static mapping, which neither lapses nor is deleted by clients.

    `nonce` is that of the first PCP request for it, and then guards it (RFC 6887 §11.3). It is not shown.
    """

    key: Key
    external_port: int
    origin: Origin
    expires_at: float | None
    nonce: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the table. Lifetimes are seconds; quotas count mappings that clients made, not static ones."""

    shortest_lifetime: int = 120
    longest_lifetime: int = 86400
    lowest_port: int = 1024
    highest_port: int = HIGHEST_PORT
    reserved_ports: frozenset[int] = frozenset()
    per_host: int = 128
    total: int = 4096
    hold_down: int = 120
    """Seconds that a freed external port rests before another client gets it (RFC 6887 §15)."""


class Verdict(Enum):
    """How a request ended; each front end has its own numbers for these."""

    DONE = "done"
    NOT_PERMITTED = "not permitted"
    NO_EXTERNAL_ADDRESS = "no external address"
    NO_RESOURCES = "no resources"
    OVER_QUOTA = "over quota"
    NOT_AS_ASKED = "not as asked"
    """The client wanted this external port and address or none (RFC 6887 §13.2)."""


class Change(Enum):
    """What happened to a mapping."""

    CREATED = "created"
    RENEWED = "renewed"
    DELETED = "deleted"
    LAPSED = "lapsed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Install:
    """Make this mapping carry packets on this external address, then report to `MappingTable.installed`."""

    number: int
    mapping: Mapping
    external_address: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Stop carrying packets for an installation."""

    number: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Store and show this. For all but CREATED and RENEWED the mapping no longer exists."""

    change: Change
    mapping: Mapping


@dataclass(frozen=True, slots=True)
class AddressChanged:
    """The external address is another one now, or gone; clients have to be told."""

    external_address: str | None


@dataclass(frozen=True, slots=True)
class EpochReset:
    """Mappings were lost that clients believe in: both epochs began anew, to be stored and announced."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A mapping works on another external address now; its last requester can be told (RFC 6887 §14.2)."""

    mapping: Mapping
    external_address: str
    requester: object


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of the request or deletion that came with this ticket, handed back as it was given.

    `external_port` and `lifetime` describe the mapping that exists afterwards, 0 if there is none; a refused deletion
    names the port of the mapping that stays. `external_address` belongs to a mapping that exists. `retry_after` is
    the seconds for which a refusal stands, 0 if that is not known.
    """

    ticket: object
    verdict: Verdict
    external_port: int = 0
    lifetime: int = 0
    external_address: str | None = None
    is_permanent: bool = False
    retry_after: int = 0


Effect = Install | Remove | Changed | AddressChanged | EpochReset | Moved | Answer


class _Held(NamedTuple):
    """A freed external port, until when it rests, and for whom it does not."""

    until: float
    key: Key
    nonce: bytes | None


@dataclass(slots=True)
class _Waiting:
    """A request to be answered when its row is installed."""

    ticket: object
    lifetime: int
    exact_port: int | None = None


@dataclass(slots=True)
class _Row:
    """A mapping and how far its installation got: none without an external address, under way, or `active`."""

    mapping: Mapping
    created: bool = False
    """Whether it was told to the outside: restored and confirmed rows count as such."""
    installation: int | None = None
    active: bool = False
    is_exact: bool = False
    """Whether it is to have this external port or not to be; for a row that nobody was told of."""
    requester: object | None = None
    """Whom to tell when the mapping moves."""
    refused_ports: set[int] = field(default_factory=set)
    draw: int = 0
    waiting: list[_Waiting] = field(default_factory=list)


class MappingTable:
    """All mappings of one external address."""

    def __init__(self, limits: Limits, *, epoch: float = 0.0, now: float) -> None:
        """Begin empty, `epoch` seconds old for protocols that forgive a move."""
        self._limits = limits
        self._reserved = BARRED_PORTS | limits.reserved_ports
        self._initialised_at = now - epoch
        self._undisturbed_since = now
        self._external_address: str | None = None
        self._last_address: str | None = None
        self._held: dict[tuple[Transport, int], _Held] = {}
        self._rows: dict[Key, _Row] = {}
        self._by_external: dict[tuple[Transport, int], Key] = {}
        self._by_host: dict[str, set[Key]] = {}
        self._dynamic_by_host: dict[str, int] = {}
        self._dynamic = 0
        self._installations: dict[int, Key] = {}
        self._next_number = 1
        self._deadlines: list[tuple[float, Key]] = []
        self._effects: list[Effect] = []

    # -- what is there ---------------------------------------------------------------------------------------------

    @property
    def external_address(self) -> str | None:
        """The address that all mappings are on; None while there is none."""
        return self._external_address

    def epoch(self, now: float) -> int:
        """Whole seconds since the table was initialised, or lost (RFC 6886 §3.6)."""
        return int(self.age(now))

    def strict_epoch(self, now: float) -> int:
        """Whole seconds since anything happened to mappings that clients did not ask for (RFC 6887 §8.5).

        It begins anew with another external address, too, and with this object: a state file keeps neither nonces nor
        the address, so after a restart clients have to come and name them.
        """
        return max(0, int(now - self._undisturbed_since))

    def age(self, now: float) -> float:
        """The epoch with its fraction, which a state file keeps so that restarts do not add up to a loss."""
        return max(0.0, now - self._initialised_at)

    def mappings(self) -> list[Mapping]:
        """All mappings that exist for clients, those waiting for an external address included."""
        return [row.mapping for row in self._rows.values() if row.created]

    def find(self, key: Key) -> Mapping | None:
        """The mapping of an internal endpoint."""
        row = self._rows.get(key)
        return row.mapping if row is not None and row.created else None

    # -- requests --------------------------------------------------------------------------------------------------

    def request(
        self,
        key: Key,
        *,
        suggested_port: int,
        lifetime: int,
        origin: Origin,
        ticket: object,
        draw: int,
        now: float,
        nonce: bytes | None = None,
        suggested_address: str | None = None,
        exact: bool = False,
        requester: object | None = None,
    ) -> None:
        """Create or renew the mapping of `key`; the answer comes as an effect.

        An existing mapping keeps its external port whatever is suggested, so a repeated request changes nothing but
        the expiry. `lifetime` is above 0; `draw` is a random number that decides where the search for a free port
        starts when the suggestion cannot be had. With `exact` the suggested port and address (None: any address) are
        a condition.

        A mapping with another nonce is not the asker's and is left alone. Who brings no nonce renews a mapping that
        has one, but does not shorten it. `requester` is named by `Moved` later on.
        """
        self._lapse(now)
        if self._external_address is None:
            self._answer(ticket, Verdict.NO_EXTERNAL_ADDRESS)
            return
        if key.host == self._external_address:
            # It would lead from the external address back to itself: packets could go round without end.
            self._answer(ticket, Verdict.NOT_PERMITTED)
            return
        row = self._rows.get(key)
        if row is not None and self._is_guarded(row, nonce):
            self._refuse(ticket, Verdict.NOT_PERMITTED, self._remaining(row, now))
            return
        if exact and suggested_address not in (None, self._external_address):
            self._answer(ticket, Verdict.NOT_AS_ASKED)
            return
        granted = self.grant(lifetime)
        exact_port = suggested_port if exact else None
        if row is None:
            mapping = Mapping(
                key=key, external_port=suggested_port, origin=origin, expires_at=now + granted, nonce=nonce
            )
            self._create(mapping, _Waiting(ticket, granted, exact_port), requester, draw, now)
            return
        if exact_port not in (None, row.mapping.external_port):
            self._refuse(ticket, Verdict.NOT_AS_ASKED, self._remaining(row, now))
            return
        self._renew(row, now + granted, nonce, requester)
        if row.installation is not None and not row.active:
            if len(row.waiting) < WAITING_LIMIT:
                row.waiting.append(_Waiting(ticket, granted, exact_port))
            return
        if row.mapping.expires_at is not None:
            self._effects.append(Changed(Change.RENEWED, row.mapping))
        self._grant(row, ticket, granted)

    def delete(self, key: Key, *, ticket: object, now: float, nonce: bytes | None = None) -> None:
        """Delete one mapping; none there is a success (RFC 6886 §3.4).

        A static one stays, and so does one with a nonce that the asker does not know.
        """
        self._lapse(now)
        row = self._rows.get(key)
        if row is not None and not self._may_delete(row, nonce):
            remaining = self._remaining(row, now)
            port = row.mapping.external_port
            self._effects.append(Answer(ticket, Verdict.NOT_PERMITTED, port, retry_after=remaining))
            return
        if row is not None:
            self._drop(row, Change.DELETED, now=now)
        self._answer(ticket, Verdict.DONE)

    def delete_all(self, transport: Transport, host: str, *, ticket: object, now: float) -> None:
        """Delete all that one host has for one transport (RFC 6886 §3.4); what has to stay makes it a refusal."""
        self._lapse(now)
        keys = [key for key in self._by_host.get(host, ()) if key.transport is transport]
        verdict = Verdict.DONE
        for key in sorted(keys):
            row = self._rows[key]
            if self._may_delete(row, None):
                self._drop(row, Change.DELETED, now=now)
            else:
                verdict = Verdict.NOT_PERMITTED
        self._answer(ticket, verdict)

    def discard(self, key: Key) -> None:
        """Take back a client's mapping that could not be stored; its client hears that nothing was mapped."""
        row = self._rows.get(key)
        if row is not None and row.mapping.origin is not Origin.STATIC:
            self._drop(row, Change.LOST)

    def grant(self, lifetime: int) -> int:
        """The lifetime given for a requested one: never longer than asked, unless that is below the minimum."""
        return max(self._limits.shortest_lifetime, min(lifetime, self._limits.longest_lifetime))

    # -- configuration and state -----------------------------------------------------------------------------------

    def add_static(self, key: Key, external_port: int) -> bool:
        """Enter a mapping from the configuration, over whatever a client has on that endpoint.

        False if the external port belongs to another row or host. It is installed as soon as there is an address.
        """
        existing = self._rows.get(key)
        if existing is not None:
            if existing.mapping.origin is Origin.STATIC and existing.mapping.external_port == external_port:
                return True
            if not self._is_free(key, external_port, apart_from=key):
                return False
            self._drop(existing, Change.LOST)
        elif not self._is_free(key, external_port):
            return False
        self._restore_row(Mapping(key=key, external_port=external_port, origin=Origin.STATIC, expires_at=None))
        return True

    def restore(self, mappings: Iterable[Mapping], *, now: float) -> list[Mapping]:
        """Take over what a state file kept; returns what could not be, because it lapsed or contradicts another row."""
        rejected = []
        for mapping in mappings:
            lapsed = mapping.expires_at is not None and mapping.expires_at <= now
            if lapsed or mapping.key in self._rows or not self._is_free(mapping.key, mapping.external_port):
                rejected.append(mapping)
            else:
                self._restore_row(mapping)
        return rejected

    def set_external_address(self, address: str | None, *, now: float) -> None:
        """Move every mapping to another external address, or suspend them all while there is none.

        The strict epoch begins anew with another address, though not when the one before comes back.
        """
        self._lapse(now)
        if address == self._external_address:
            return
        self._external_address = address
        self._effects.append(AddressChanged(address))
        if address is not None:
            if self._last_address not in (None, address):
                self._undisturbed_since = now
            self._last_address = address
        for row in list(self._rows.values()):
            if row.active and row.installation is not None:
                self._effects.append(Remove(row.installation))
            row.installation = None
            row.active = False
            if address is not None:
                self._install(row)
            elif not row.created:
                self._drop(row, Change.LOST, verdict=Verdict.NO_EXTERNAL_ADDRESS)

    def reset_epoch(self, *, now: float) -> None:
        """Begin both epochs anew because mappings were lost (RFC 6886 §3.6, RFC 6887 §8.5)."""
        self._initialised_at = self._undisturbed_since = now
        self._effects.append(EpochReset())

    # -- back end and time -----------------------------------------------------------------------------------------

    def installed(self, number: int, ok: bool, *, now: float) -> None:
        """Learn how an `Install` ended.

        After a refusal a new mapping gets another port while tries are left. One that clients already know cannot
        move silently: it is lost and the epoch begins anew, so that they ask again.
        """
        key = self._installations.pop(number)
        row = self._rows.get(key)
        if row is None or row.installation != number:
            if ok:
                self._effects.append(Remove(number))
            return
        if ok:
            row.active = True
            self._confirm(row)
        elif row.created:
            row.installation = None
            self._drop(row, Change.LOST, now=now)
            self.reset_epoch(now=now)
        else:
            row.installation = None
            self._try_another_port(row)

    def next_deadline(self) -> float | None:
        """When `handle_deadline` has something to do; it may find that nothing lapses after all."""
        return self._deadlines[0][0] if self._deadlines else None

    def handle_deadline(self, *, now: float) -> None:
        """Let lapse what is due."""
        self._lapse(now)

    def take_effects(self) -> list[Effect]:
        """Hand over what has to be done, in order."""
        effects, self._effects = self._effects, []
        return effects

    # -- inner steps -----------------------------------------------------------------------------------------------

    def _create(self, wanted: Mapping, waiting: _Waiting, requester: object | None, draw: int, now: float) -> None:
        """Enter a mapping on the port it wants, or if that is no condition on another one."""
        key = wanted.key
        if self._dynamic >= self._limits.total:
            self._answer(waiting.ticket, Verdict.NO_RESOURCES)
            return
        if self._dynamic_by_host.get(key.host, 0) >= self._limits.per_host:
            self._answer(waiting.ticket, Verdict.OVER_QUOTA)
            return
        port: int | None = wanted.external_port
        if not self._is_allowed(wanted, wanted.external_port):
            if waiting.exact_port is not None:
                self._refuse(waiting.ticket, Verdict.NOT_AS_ASKED, self._taken_for(wanted, now))
                return
            port = self._search(wanted, draw, frozenset())
        if port is None:
            self._answer(waiting.ticket, Verdict.NO_RESOURCES)
            return
        row = _Row(
            replace(wanted, external_port=port),
            is_exact=waiting.exact_port is not None,
            requester=requester,
            draw=draw,
            waiting=[waiting],
        )
        self._enter(row)
        self._install(row)

    def _is_guarded(self, row: _Row, nonce: bytes | None) -> bool:
        """Whether this nonce is not the row's; none at all is no other one."""
        return nonce is not None and row.mapping.nonce is not None and row.mapping.nonce != nonce

    def _may_delete(self, row: _Row, nonce: bytes | None) -> bool:
        mapping = row.mapping
        return mapping.origin is not Origin.STATIC and mapping.nonce in (None, nonce)

    def _remaining(self, row: _Row, now: float) -> int:
        """Whole seconds until a row lapses, rounded up; 0 for what does not lapse."""
        expires_at = row.mapping.expires_at
        return 0 if expires_at is None else max(1, math.ceil(expires_at - now))

    def _taken_for(self, wanted: Mapping, now: float) -> int:
        """Seconds until the port that is wanted can be free at the earliest; 0 if nobody knows."""
        end = (wanted.key.transport, wanted.external_port)
        holder = self._by_external.get(end)
        if holder is not None:
            remaining = self._remaining(self._rows[holder], now)
            return remaining + self._limits.hold_down if remaining else 0
        held = self._held.get(end)
        return 0 if held is None else max(1, math.ceil(held.until - now))

    def _restore_row(self, mapping: Mapping) -> None:
        row = _Row(mapping, created=True)
        self._enter(row)
        if self._external_address is not None:
            self._install(row)

    def _is_free(self, key: Key, port: int, *, apart_from: Key | None = None) -> bool:
        """Whether nobody has this external port, and no other host its companion."""
        holder = self._by_external.get((key.transport, port))
        if holder is not None and holder != apart_from:
            return False
        companion = self._by_external.get((key.transport.companion, port))
        return companion is None or companion.host == key.host

    def _is_allowed(self, wanted: Mapping, port: int, *, resting: bool = False) -> bool:
        """Whether a client may have this port; one that rests for another client only if `resting` says so."""
        limits = self._limits
        return (
            limits.lowest_port <= port <= limits.highest_port
            and port not in self._reserved
            and self._is_free(wanted.key, port)
            and (resting or self._is_rested(wanted, port))
        )

    def _is_rested(self, wanted: Mapping, port: int) -> bool:
        held = self._held.get((wanted.key.transport, port))
        if held is None:
            return True
        return held.key == wanted.key and (None in (held.nonce, wanted.nonce) or held.nonce == wanted.nonce)

    def _search(self, wanted: Mapping, draw: int, refused: Iterable[int]) -> int | None:
        """The first allowed port from a drawn one on; one that still rests only if there is no other.

        Looks at as many ports as are taken, reserved or resting, at most.
        """
        lowest = self._limits.lowest_port
        count = self._limits.highest_port - lowest + 1
        refused = frozenset(refused)
        for resting in (False, True):
            for step in range(count):
                port = lowest + (draw + step) % count
                if port not in refused and self._is_allowed(wanted, port, resting=resting):
                    return port
        return None

    def _try_another_port(self, row: _Row) -> None:
        mapping = row.mapping
        row.refused_ports.add(mapping.external_port)
        port = None
        if row.is_exact:
            self._drop(row, Change.LOST, verdict=Verdict.NOT_AS_ASKED)
            return
        if len(row.refused_ports) < INSTALL_TRIES:
            # A drawn start each time: programs of the host often hold neighbouring ports.
            row.draw = row.draw * 48271 % 0x7FFFFFFF + 1
            port = self._search(mapping, row.draw, row.refused_ports)
        if port is None:
            self._drop(row, Change.LOST)
            return
        del self._by_external[mapping.key.transport, mapping.external_port]
        self._by_external[mapping.key.transport, port] = mapping.key
        row.mapping = replace(mapping, external_port=port)
        self._install(row)

    def _install(self, row: _Row) -> None:
        assert self._external_address is not None
        number = self._next_number
        self._next_number += 1
        row.installation = number
        self._installations[number] = row.mapping.key
        self._effects.append(Install(number, row.mapping, self._external_address))

    def _confirm(self, row: _Row) -> None:
        mapping = row.mapping
        if not row.created:
            row.created = True
            self._effects.append(Changed(Change.CREATED, mapping))
        else:
            if row.waiting and mapping.expires_at is not None:
                self._effects.append(Changed(Change.RENEWED, mapping))
            if row.requester is not None and not row.waiting and self._external_address is not None:
                self._effects.append(Moved(mapping, self._external_address, row.requester))
        for waiting in row.waiting:
            if waiting.exact_port in (None, mapping.external_port):
                self._grant(row, waiting.ticket, waiting.lifetime)
            else:
                self._answer(waiting.ticket, Verdict.NOT_AS_ASKED)
        row.waiting.clear()
        row.refused_ports.clear()

    def _renew(self, row: _Row, expires_at: float, nonce: bytes | None, requester: object | None) -> None:
        """Move a client's expiry, take on its nonce if there is none yet, and remember who asked."""
        mapping = row.mapping
        if mapping.expires_at is None:
            return
        if mapping.nonce is not None and nonce is None:
            expires_at = max(expires_at, mapping.expires_at)
        row.mapping = replace(mapping, expires_at=expires_at, nonce=mapping.nonce or nonce)
        row.requester = requester or row.requester
        self._push_deadline(expires_at, mapping.key)

    def _enter(self, row: _Row) -> None:
        mapping = row.mapping
        key = mapping.key
        self._rows[key] = row
        self._by_external[key.transport, mapping.external_port] = key
        self._by_host.setdefault(key.host, set()).add(key)
        if mapping.expires_at is not None:
            self._dynamic += 1
            self._dynamic_by_host[key.host] = self._dynamic_by_host.get(key.host, 0) + 1
            self._push_deadline(mapping.expires_at, key)

    def _drop(
        self, row: _Row, change: Change, *, verdict: Verdict = Verdict.NO_RESOURCES, now: float | None = None
    ) -> None:
        """Forget a row. One still being installed is removed when its installation is reported.

        With `now`, its external port rests from then on.
        """
        mapping = row.mapping
        key = mapping.key
        del self._rows[key]
        del self._by_external[key.transport, mapping.external_port]
        keys = self._by_host[key.host]
        keys.discard(key)
        if not keys:
            del self._by_host[key.host]
        if mapping.expires_at is not None:
            self._dynamic -= 1
            left = self._dynamic_by_host.pop(key.host) - 1
            if left:
                self._dynamic_by_host[key.host] = left
        if row.active and row.installation is not None:
            self._effects.append(Remove(row.installation))
        if row.created:
            self._effects.append(Changed(change, mapping))
            if now is not None and self._limits.hold_down:
                # One per port at most; every port rests equally long, so the oldest stands first.
                end = (key.transport, mapping.external_port)
                self._held.pop(end, None)
                self._held[end] = _Held(now + self._limits.hold_down, key, mapping.nonce)
        for waiting in row.waiting:
            self._answer(waiting.ticket, verdict)

    def _push_deadline(self, at: float, key: Key) -> None:
        heapq.heappush(self._deadlines, (at, key))
        # Renewals leave their old deadline behind. Rebuilt once they outnumber the rows: constant cost per renewal.
        if len(self._deadlines) > 2 * len(self._rows) + 64:
            self._deadlines = [
                (row.mapping.expires_at, row.mapping.key)
                for row in self._rows.values()
                if row.mapping.expires_at is not None
            ]
            heapq.heapify(self._deadlines)

    def _lapse(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, key = heapq.heappop(self._deadlines)
            row = self._rows.get(key)
            if row is not None and row.mapping.expires_at is not None and row.mapping.expires_at <= now:
                self._drop(row, Change.LAPSED, now=now)
        while self._held and (end := next(iter(self._held))) and self._held[end].until <= now:
            del self._held[end]

    def _grant(self, row: _Row, ticket: object, lifetime: int) -> None:
        mapping = row.mapping
        is_permanent = mapping.expires_at is None
        port, address = mapping.external_port, self._external_address
        self._effects.append(Answer(ticket, Verdict.DONE, port, lifetime, address, is_permanent))

    def _refuse(self, ticket: object, verdict: Verdict, retry_after: int) -> None:
        self._effects.append(Answer(ticket, verdict, retry_after=retry_after))

    def _answer(self, ticket: object, verdict: Verdict) -> None:
        self._effects.append(Answer(ticket, verdict))
