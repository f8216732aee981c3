"""What happened to mappings, told: counted, logged, and handed to whoever watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Any, Final

import structlog

from protocol.addresses import is_behind_a_nat

from .config import Endpoint
from .mappings import Change, Changed, Mapping, Origin, Transport
from .views import AddressEvent, Event, MappingEvent, view_of

ONE_BY_ONE: Final = 8
"""So many changes of a kind at a time have a line of the log each. More share lines: a crowd waits for its answers."""
IN_A_LINE: Final = 6
"""So many have room in the longest value of a line, with IPv6 addresses too."""
_TRANSPORTS: Final = {transport: transport.name.lower() for transport in Transport}
_ORIGINS: Final = {origin: origin.value for origin in Origin}


class Teller:
    """`changes` counts mappings created, renewed, deleted, lapsed and lost."""

    def __init__(self, on_event: Callable[[Event], None] | None) -> None:
        self._on_event = on_event
        self._log = structlog.get_logger(__name__)
        self.changes: Counter[str] = Counter()

    def mappings_changed(self, changes: Iterable[Changed], *, address: str | None, now: float) -> None:
        """Tell changes that are stored; `address` is the external one."""
        by_kind: dict[Change, list[Mapping]] = {}
        for changed in changes:
            by_kind.setdefault(changed.change, []).append(changed.mapping)
            if self._on_event is not None:
                view = view_of(changed.mapping, address=address, now=now)
                self._on_event(MappingEvent(change=changed.change.value, mapping=view))
        for change, mappings in by_kind.items():
            self.changes[change.value] += len(mappings)
            log = self._log.debug if change is Change.RENEWED else self._log.info
            if len(mappings) <= ONE_BY_ONE:
                for mapping in mappings:
                    _log_one(log, change, mapping)
            else:
                for at in range(0, len(mappings), IN_A_LINE):
                    part = mappings[at : at + IN_A_LINE]
                    log(f"mappings {change.value}", count=len(part), mappings=", ".join(map(_in_short, part)))

    def address_changed(self, address: str | None) -> None:
        """Tell that the external address is another one now; None: there is none."""
        self._log.info("external address changed", address=address)
        if address is not None and is_behind_a_nat(IPv4Address(address)):
            self._log.warning("NAT behind NAT: nobody outside reaches mappings", address=address)
        if self._on_event is not None:
            self._on_event(AddressEvent(address))


def _log_one(log: Callable[..., Any], change: Change, mapping: Mapping) -> None:
    transport, host, port = mapping.key
    log(
        f"mapping {change.value}",
        transport=transport.name.lower(),
        inside=str(Endpoint(host, port)),
        external_port=mapping.external_port,
        origin=mapping.origin.value,
    )


def _in_short(mapping: Mapping) -> str:
    transport, host, port = mapping.key
    shown = f"[{host}]" if ":" in host else host
    return f"{_TRANSPORTS[transport]} {shown}:{port} at {mapping.external_port} ({_ORIGINS[mapping.origin]})"
