"""The table itself: requests, deletions, lapses, moves to another address, and what has to happen for each.

Time and entropy come in as arguments, what has to happen goes out as effects. Times are monotonic seconds of one clock
of the caller's choice.

Contract: call in, then take the effects and carry them out in order. An `Install` is reported back with `installed`,
and only then is its request answered. A caller that stores mappings does so for every `Changed` before it sends the
`Answer`s taken along with it.

Invariants: one row per (transport, internal host, internal port), and those of `ExternalPorts`. A pinhole has no
external port of its own and does not depend on the external address.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from .effects import (
    AddressChanged,
    Answer,
    Change,
    Changed,
    Effect,
    EpochReset,
    Install,
    Moved,
    Remove,
    Restrict,
    Verdict,
)
from .ports import ExternalPorts
from .rows import Row, Rows, Waiting
from .values import FILTER_LIMIT, FilterChange, Key, Limits, Mapping, Origin, Transport

INSTALL_TRIES = 8
"""Ports offered to the back end for one request; a refusal means that a program of the host itself holds the port."""
WAITING_LIMIT = 4
"""Requests that wait for one installation; more are dropped, the client gets the answers to the first ones."""


class MappingTable:
    """All mappings of one external address."""

    def __init__(
        self,
        limits: Limits,
        *,
        epoch: float = 0.0,
        strict_epoch: float = 0.0,
        last_address: str | None = None,
        now: float,
    ) -> None:
        """Begin empty, with the age that both epochs have and the external address that mappings were on last."""
        self._limits = limits
        self._initialised_at = now - epoch
        self._undisturbed_since = now - strict_epoch
        self._external_address: str | None = None
        self._last_address = last_address
        self._rows = Rows()
        self._ports = ExternalPorts(limits)
        self._installations: dict[int, Key] = {}
        self._next_number = 1
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

        It begins anew with another external address, too.
        """
        return int(self.strict_age(now))

    def age(self, now: float) -> float:
        """The epoch with its fraction, which a state file keeps so that restarts do not add up to a loss."""
        return max(0.0, now - self._initialised_at)

    def strict_age(self, now: float) -> float:
        """The strict epoch with its fraction."""
        return max(0.0, now - self._undisturbed_since)

    @property
    def last_address(self) -> str | None:
        """The external address that mappings are on, or were on last."""
        return self._last_address

    def mappings(self) -> list[Mapping]:
        """All mappings that exist for clients, those waiting for an external address included."""
        return [row.mapping for row in self._rows if row.created]

    def find(self, key: Key) -> Mapping | None:
        """The mapping of an internal endpoint."""
        row = self._rows.get(key)
        return row.mapping if row is not None and row.created else None

    def find_external(self, transport: Transport, port: int) -> Mapping | None:
        """The mapping of an external port."""
        key = self._ports.holder(transport, port)
        return None if key is None else self.find(key)

    def mappings_of(self, host: str) -> list[Mapping]:
        """One host's mappings, in the order in which they came about."""
        rows = (self._rows[key] for key in self._rows.keys_of(host))
        return [row.mapping for row in rows if row.created]

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
        filters: FilterChange | None = None,
        description: str = "",
    ) -> None:
        """Create or renew the mapping of `key`; the answer comes as an effect.

        An existing mapping keeps its external port whatever is suggested, so a repeated request changes nothing but
        the expiry. `lifetime` is above 0; `draw` is a random number that decides where the search for a free port
        starts when the suggestion cannot be had. With `exact` the suggested port and address (None: any address) are
        a condition.

        A mapping with another nonce is not the asker's and is left alone. Who brings no nonce renews a mapping that
        has one, but does not shorten it; nor does one front end shorten what UPnP made, whose client may never renew.
        `requester` is named by `Moved` later on. `description` is a text of UPnP's, where an exact request also takes
        the place of what the same host has on either end of the new mapping through UPnP (WANIPConnection:1 §2.4.16).
        """
        self._lapse(now)
        address = self._address_of(key)
        if address is None:
            self._answer(ticket, Verdict.NO_EXTERNAL_ADDRESS)
            return
        if key.host == self._external_address:
            # It would lead from the external address back to itself: packets could go round without end.
            self._answer(ticket, Verdict.NOT_PERMITTED)
            return
        if exact and origin is Origin.IGD:
            self._make_way(key, suggested_port, now)
        row = self._rows.get(key)
        if row is not None and self._is_guarded(row, nonce):
            self._refuse(ticket, Verdict.NOT_PERMITTED, self._remaining(row, now))
            return
        if exact and suggested_address not in (None, address):
            self._answer(ticket, Verdict.NOT_AS_ASKED)
            return
        wanted_filters = () if row is None else row.mapping.filters
        if filters is not None:
            wanted_filters = filters.apply(wanted_filters)
        if len(wanted_filters) > FILTER_LIMIT:
            self._answer(ticket, Verdict.TOO_MANY_FILTERS)
            return
        granted = self.grant(lifetime, origin)
        exact_port = suggested_port if exact else None
        asked = Mapping(
            key=key,
            external_port=suggested_port,
            origin=origin,
            expires_at=now + granted,
            nonce=nonce,
            filters=wanted_filters,
            description=description,
        )
        if row is None:
            self._create(asked, Waiting(ticket, granted, exact_port), requester, draw, now)
            return
        if exact_port not in (None, row.mapping.external_port):
            self._refuse(ticket, Verdict.NOT_AS_ASKED, self._remaining(row, now))
            return
        self._renew(row, asked, requester)
        if row.installation is not None and not row.active:
            if len(row.waiting) < WAITING_LIMIT:
                row.waiting += (Waiting(ticket, granted, exact_port),)
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
        keys = [key for key in self._rows.keys_of(host) if key.transport is transport]
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

    def host_gone(self, host: str, *, now: float) -> int:
        """End all that clients mapped for a host that left the LAN, whoever guards it; gives their number."""
        self._lapse(now)
        gone = [key for key in self._rows.keys_of(host) if self._rows[key].mapping.expires_at is not None]
        for key in gone:
            self._drop(self._rows[key], Change.DELETED, now=now)
        return len(gone)

    def end(self, key: Key, *, now: float) -> None:
        """End a mapping because the router's owner says so, whoever made and guards it."""
        self._lapse(now)
        row = self._rows.get(key)
        if row is not None:
            self._drop(row, Change.DELETED, now=now)

    def is_grantable(self, port: int) -> bool:
        """Whether a client could ever get this external port, free or not."""
        return self._ports.is_grantable(port)

    def grant(self, lifetime: int, origin: Origin) -> int:
        """The lifetime given for a requested one: never longer than asked, unless that is below the minimum.

        NAT-PMP has no minimum: a gateway should not offer more than was requested (RFC 6886 §3.3).
        """
        limits = self._limits
        longest = (
            max(limits.longest_lease, limits.longest_lifetime) if origin is Origin.IGD else limits.longest_lifetime
        )
        granted = min(lifetime, longest)
        return granted if origin is Origin.NATPMP else max(limits.shortest_lifetime, granted)

    # -- configuration and state -----------------------------------------------------------------------------------

    def add_static(self, key: Key, external_port: int) -> bool:
        """Enter a mapping from the configuration, over whatever a client has on that endpoint.

        False if the external port belongs to another row or host. It is installed as soon as there is an address.
        """
        existing = self._rows.get(key)
        if existing is not None:
            if existing.mapping.origin is Origin.STATIC and existing.mapping.external_port == external_port:
                return True
            if not self._ports.is_free(key, external_port, apart_from=(key,)):
                return False
            self._drop(existing, Change.LOST)
        elif not self._ports.is_free(key, external_port):
            return False
        self._restore_row(Mapping(key=key, external_port=external_port, origin=Origin.STATIC, expires_at=None))
        return True

    def add_permanent(self, key: Key, external_port: int, *, ticket: object, now: float) -> None:
        """Enter a mapping of the router's owner, over whatever a client has on that endpoint; the answer is an effect.

        NOT_PERMITTED if the endpoint has a permanent one on another port already, NOT_AS_ASKED if the port is not to
        be had. Without an external address it waits for one.
        """
        self._lapse(now)
        existing = self._rows.get(key)
        if existing is not None and existing.mapping.expires_at is None:
            is_same = existing.mapping.external_port == external_port
            self._answer(ticket, Verdict.DONE if is_same else Verdict.NOT_PERMITTED)
            return
        if not self._ports.is_free(key, external_port, apart_from=(key,)):
            self._answer(ticket, Verdict.NOT_AS_ASKED)
            return
        if existing is not None:
            self._drop(existing, Change.DELETED)
        mapping = Mapping(key=key, external_port=external_port, origin=Origin.OPERATOR, expires_at=None)
        row = Row(mapping, is_exact=True, waiting=(Waiting(ticket, 0, external_port),))
        self._enter(row)
        if self._external_address is None:
            self._confirm(row)
        else:
            self._install(row)

    def restore(self, mappings: Iterable[Mapping], *, now: float) -> list[Mapping]:
        """Take over what a state file kept; returns what could not be, because it lapsed or contradicts another row."""
        rejected = []
        for mapping in mappings:
            lapsed = mapping.expires_at is not None and mapping.expires_at <= now
            if lapsed or mapping.key in self._rows or not self._has_room_outside(mapping):
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
        for row in list(self._rows):
            if row.mapping.key.is_pinhole:
                continue
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
        return self._rows.next_deadline()

    def handle_deadline(self, *, now: float) -> None:
        """Let lapse what is due."""
        self._lapse(now)

    def take_effects(self) -> list[Effect]:
        """Hand over what has to be done, in order."""
        effects, self._effects = self._effects, []
        return effects

    # -- inner steps -----------------------------------------------------------------------------------------------

    def _create(self, wanted: Mapping, waiting: Waiting, requester: object | None, draw: int, now: float) -> None:
        """Enter a mapping on the port it wants, or if that is no condition on another one."""
        key = wanted.key
        if self._rows.dynamic >= self._limits.total:
            self._answer(waiting.ticket, Verdict.NO_RESOURCES)
            return
        if self._rows.dynamic_of(key.host) >= self._limits.per_host:
            self._answer(waiting.ticket, Verdict.OVER_QUOTA)
            return
        is_pinhole = key.is_pinhole
        port: int | None = key.port if is_pinhole else wanted.external_port
        if is_pinhole and waiting.exact_port not in (None, port):
            self._answer(waiting.ticket, Verdict.NOT_AS_ASKED)
            return
        if not is_pinhole and not self._ports.is_allowed(wanted, wanted.external_port):
            if waiting.exact_port is not None:
                self._refuse(waiting.ticket, Verdict.NOT_AS_ASKED, self._taken_for(wanted, now))
                return
            port = self._ports.search(wanted, draw)
        if port is None:
            self._answer(waiting.ticket, Verdict.NO_RESOURCES)
            return
        row = Row(
            wanted if port == wanted.external_port else replace(wanted, external_port=port),
            is_exact=waiting.exact_port is not None,
            requester=requester,
            draw=draw,
            waiting=(waiting,),
        )
        self._enter(row)
        self._install(row)

    def _is_guarded(self, row: Row, nonce: bytes | None) -> bool:
        """Whether this nonce is not the row's; none at all is no other one."""
        return nonce is not None and row.mapping.nonce is not None and row.mapping.nonce != nonce

    def _may_delete(self, row: Row, nonce: bytes | None) -> bool:
        mapping = row.mapping
        return mapping.expires_at is not None and mapping.nonce in (None, nonce)

    def _remaining(self, row: Row, now: float) -> int:
        """Whole seconds until a row lapses, rounded up; 0 for what does not lapse."""
        expires_at = row.mapping.expires_at
        return 0 if expires_at is None else max(1, math.ceil(expires_at - now))

    def _taken_for(self, wanted: Mapping, now: float) -> int:
        """Seconds until the port that is wanted can be free at the earliest; 0 if nobody knows."""
        transport, port = wanted.key.transport, wanted.external_port
        holder = self._ports.holder(transport, port)
        if holder is None:
            return self._ports.rest_left(transport, port, now)
        remaining = self._remaining(self._rows[holder], now)
        return remaining + self._limits.hold_down if remaining else 0

    def _address_of(self, key: Key) -> str | None:
        """Where a mapping is reached from outside."""
        return key.host if key.is_pinhole else self._external_address

    def _has_room_outside(self, mapping: Mapping) -> bool:
        key = mapping.key
        return key.is_pinhole or self._ports.is_free(key, mapping.external_port)

    def _make_way(self, key: Key, port: int, now: float) -> None:
        """Drop what a host has through UPnP on either end of a mapping that it wants now, if that makes room for it."""
        holder = self._ports.holder(key.transport, port)
        if holder == key:
            return
        in_the_way = [self._rows[each] for each in (key, holder) if each is not None and each in self._rows]
        mine = [row for row in in_the_way if row.mapping.origin is Origin.IGD and row.mapping.key.host == key.host]
        wanted = Mapping(key=key, external_port=port, origin=Origin.IGD, expires_at=None)
        apart_from = [row.mapping.key for row in mine]
        if len(mine) == len(in_the_way) and self._ports.is_allowed(wanted, port, apart_from=apart_from):
            for row in mine:
                self._drop(row, Change.DELETED, now=None if row.mapping.external_port == port else now)

    def _restore_row(self, mapping: Mapping) -> None:
        row = Row(mapping, created=True)
        self._enter(row)
        if self._address_of(mapping.key) is not None:
            self._install(row)

    def _try_another_port(self, row: Row) -> None:
        mapping = row.mapping
        row.refused_ports += (mapping.external_port,)
        port = None
        if row.is_exact:
            self._drop(row, Change.LOST, verdict=Verdict.NOT_AS_ASKED)
            return
        if len(row.refused_ports) < INSTALL_TRIES and not mapping.key.is_pinhole:
            # A drawn start each time: programs of the host often hold neighbouring ports.
            row.draw = row.draw * 48271 % 0x7FFFFFFF + 1
            port = self._ports.search(mapping, row.draw, row.refused_ports)
        if port is None:
            self._drop(row, Change.LOST)
            return
        self._ports.release(mapping.key, mapping.external_port)
        self._ports.take(mapping.key, port)
        row.mapping = replace(mapping, external_port=port)
        self._install(row)

    def _install(self, row: Row) -> None:
        address = self._address_of(row.mapping.key)
        assert address is not None
        number = self._next_number
        self._next_number += 1
        row.installation = number
        self._installations[number] = row.mapping.key
        self._effects.append(Install(number, row.mapping, address))

    def _confirm(self, row: Row) -> None:
        mapping = row.mapping
        if not row.created:
            row.created = True
            self._effects.append(Changed(Change.CREATED, mapping))
        else:
            if row.waiting and mapping.expires_at is not None:
                self._effects.append(Changed(Change.RENEWED, mapping))
            address = self._address_of(mapping.key)
            if row.requester is not None and not row.waiting and address is not None:
                self._effects.append(Moved(mapping, address, row.requester))
        for waiting in row.waiting:
            if waiting.exact_port in (None, mapping.external_port):
                self._grant(row, waiting.ticket, waiting.lifetime)
            else:
                self._answer(waiting.ticket, Verdict.NOT_AS_ASKED)
        row.waiting = ()
        row.refused_ports = ()

    def _renew(self, row: Row, asked: Mapping, requester: object | None) -> None:
        """Move a client's expiry, take on its nonce if there is none yet, its filters, and remember who asked."""
        mapping = row.mapping
        expires_at = asked.expires_at
        if mapping.expires_at is None or expires_at is None:
            return
        is_anothers = mapping.origin is Origin.IGD and asked.origin is not Origin.IGD
        if is_anothers or (mapping.nonce is not None and asked.nonce is None):
            expires_at = max(expires_at, mapping.expires_at)
        row.mapping = replace(
            mapping,
            expires_at=expires_at,
            nonce=mapping.nonce or asked.nonce,
            filters=asked.filters,
            description=asked.description if mapping.origin is asked.origin else mapping.description,
        )
        row.requester = requester or row.requester
        self._rows.lapses_at(expires_at, mapping.key)
        if asked.filters != mapping.filters and row.installation is not None:
            self._effects.append(Restrict(row.installation, asked.filters))

    def _enter(self, row: Row) -> None:
        mapping = row.mapping
        self._rows.enter(row)
        if not mapping.key.is_pinhole:
            self._ports.take(mapping.key, mapping.external_port)

    def _drop(
        self, row: Row, change: Change, *, verdict: Verdict = Verdict.NO_RESOURCES, now: float | None = None
    ) -> None:
        """Forget a row. One still being installed is removed when its installation is reported.

        With `now`, its external port rests from then on.
        """
        mapping = row.mapping
        key = mapping.key
        self._rows.forget(row)
        if not key.is_pinhole:
            self._ports.release(key, mapping.external_port)
        if row.active and row.installation is not None:
            self._effects.append(Remove(row.installation))
        if row.created:
            self._effects.append(Changed(change, mapping))
            if now is not None and not key.is_pinhole:
                self._ports.rest(mapping, now)
        for waiting in row.waiting:
            self._answer(waiting.ticket, verdict)

    def _lapse(self, now: float) -> None:
        while row := self._rows.take_lapsed(now):
            self._drop(row, Change.LAPSED, now=now)
        self._ports.forget_rested(now)

    def _grant(self, row: Row, ticket: object, lifetime: int) -> None:
        mapping = row.mapping
        is_permanent = mapping.expires_at is None
        port, address = mapping.external_port, self._address_of(mapping.key)
        self._effects.append(Answer(ticket, Verdict.DONE, port, lifetime, address, is_permanent))

    def _refuse(self, ticket: object, verdict: Verdict, retry_after: int) -> None:
        self._effects.append(Answer(ticket, verdict, retry_after=retry_after))

    def _answer(self, ticket: object, verdict: Verdict) -> None:
        self._effects.append(Answer(ticket, verdict))
