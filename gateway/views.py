"""Mappings and events as whoever watches a gateway sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config import Endpoint
from .mappings import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingView:
    """A mapping for display. `remaining_seconds` is None for one that stays."""

    transport: str
    internal: Endpoint
    external_address: str | None
    external_port: int
    remaining_seconds: float | None
    origin: str
    description: str = ""

    def as_json(self) -> dict[str, Any]:
        """As the control socket tells it."""
        remaining = self.remaining_seconds
        return {
            "transport": self.transport,
            "external_address": self.external_address,
            "external_port": self.external_port,
            "internal": str(self.internal),
            "remaining_seconds": None if remaining is None else int(remaining),
            "origin": self.origin,
            "description": self.description,
        }


def view_of(mapping: Mapping, *, address: str | None, now: float) -> MappingView:
    """A mapping as it is at this moment, on the external address."""
    transport, host, port = mapping.key
    return MappingView(
        transport=transport.name.lower(),
        internal=Endpoint(host, port),
        external_address=address,
        external_port=mapping.external_port,
        remaining_seconds=None if mapping.expires_at is None else max(0.0, mapping.expires_at - now),
        origin=mapping.origin.value,
        description=mapping.description,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingEvent:
    """A mapping was created, renewed, deleted, lapsed or lost."""

    change: str
    mapping: MappingView


@dataclass(frozen=True, slots=True)
class AddressEvent:
    """The external address changed; None says that there is none now."""

    external_address: str | None


Event = MappingEvent | AddressEvent
