"""The external ports of one address: who has which, which of them rest, and the search for a free one.

Invariants: one holder per (transport, port); the same port of the two transports never belongs to two internal hosts
(RFC 6886 §3.3, companion port); a freed port goes to another client only after its rest, or when no other is left.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from .values import BARRED_PORTS, Key, Limits, Mapping, Origin, Transport


class _Held(NamedTuple):
    """A freed external port, until when it rests, and for whom it does not."""

    until: float
    key: Key
    nonce: bytes | None


class ExternalPorts:
    """Times are those of the mapping table."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reserved = BARRED_PORTS | limits.reserved_ports
        self._holders: dict[tuple[Transport, int], Key] = {}
        self._held: dict[tuple[Transport, int], _Held] = {}
        self._rested_at = math.inf
        """Before then no rest is over."""

    def holder(self, transport: Transport, port: int) -> Key | None:
        """The inside that a port leads to."""
        return self._holders.get((transport, port))

    def take(self, key: Key, port: int) -> None:
        """Give a port to an inside; it has to be free."""
        self._holders[key.transport, port] = key

    def release(self, key: Key, port: int) -> None:
        """Take a port back, to be given to anybody at once."""
        del self._holders[key.transport, port]

    def rest(self, mapping: Mapping, now: float) -> None:
        """Keep the released port of a mapping from other clients for a while."""
        if self._limits.hold_down:
            # One entry per port at most; every port rests equally long, so the oldest stands first.
            end = (mapping.key.transport, mapping.external_port)
            self._held.pop(end, None)
            until = now + self._limits.hold_down
            self._held[end] = _Held(until, mapping.key, mapping.nonce)
            self._rested_at = min(self._rested_at, until)

    def forget_rested(self, now: float) -> None:
        """End the rests that are over."""
        if self._rested_at > now:
            return
        while self._held:
            end, held = next(iter(self._held.items()))
            if held.until > now:
                self._rested_at = held.until
                return
            del self._held[end]
        self._rested_at = math.inf

    def rest_left(self, transport: Transport, port: int, now: float) -> int:
        """Whole seconds until a port has rested; 0 if it does not rest."""
        held = self._held.get((transport, port))
        return 0 if held is None else max(1, math.ceil(held.until - now))

    def is_free(self, key: Key, port: int, *, apart_from: Collection[Key] = ()) -> bool:
        """Whether nobody has this port, and no other host its companion."""
        holder = self._holders.get((key.transport, port))
        if holder is not None and holder not in apart_from:
            return False
        companion = self._holders.get((key.transport.companion, port))
        return companion is None or companion.host == key.host

    def is_grantable(self, port: int) -> bool:
        """Whether the bounds leave this port to clients."""
        return self._limits.lowest_port <= port <= self._limits.highest_port and port not in self._reserved

    def is_allowed(
        self, wanted: Mapping, port: int, *, resting: bool = False, apart_from: Collection[Key] = ()
    ) -> bool:
        """Whether a client may have this port; one that rests for another client only if `resting` says so."""
        return (
            self.is_grantable(port)
            and self.is_free(wanted.key, port, apart_from=apart_from)
            and (resting or self._is_rested(wanted, port))
        )

    def search(self, wanted: Mapping, draw: int, refused: Collection[int] = ()) -> int | None:
        """The first allowed port from a drawn one on; one that still rests only if there is no other.

        Looks at as many ports as are taken, reserved or resting, at most.
        """
        lowest = self._limits.lowest_port
        count = self._limits.highest_port - lowest + 1
        for resting in (False, True):
            for step in range(count):
                port = lowest + (draw + step) % count
                if port not in refused and self.is_allowed(wanted, port, resting=resting):
                    return port
        return None

    def _is_rested(self, wanted: Mapping, port: int) -> bool:
        held = self._held.get((wanted.key.transport, port))
        if held is None or (wanted.origin is Origin.IGD and held.nonce is None and held.key.host == wanted.key.host):
            return True
        return held.key == wanted.key and (None in (held.nonce, wanted.nonce) or held.nonce == wanted.nonce)
