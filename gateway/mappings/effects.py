"""What the mapping table tells its caller to do, in order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .values import Filter, Mapping


class Verdict(Enum):
    """How a request ended; each front end has its own numbers for these."""

    __hash__ = object.__hash__

    DONE = "done"
    NOT_PERMITTED = "not permitted"
    NO_EXTERNAL_ADDRESS = "no external address"
    NO_RESOURCES = "no resources"
    OVER_QUOTA = "over quota"
    NOT_AS_ASKED = "not as asked"
    """The client wanted this external port and address or none (RFC 6887 §13.2)."""
    TOO_MANY_FILTERS = "too many filters"


class Change(Enum):
    """What happened to a mapping."""

    CREATED = "created"
    RENEWED = "renewed"
    DELETED = "deleted"
    LAPSED = "lapsed"
    LOST = "lost"


class Install(NamedTuple):
    """Make this mapping carry packets on this external address, then report to `MappingTable.installed`.

    A pinhole's external address is its host's own.
    """

    number: int
    mapping: Mapping
    external_address: str


class Restrict(NamedTuple):
    """Let only these remote peers send from now on (none named: everybody); an installation refused is ignored."""

    number: int
    filters: tuple[Filter, ...]


class Remove(NamedTuple):
    """Stop carrying packets for an installation."""

    number: int


class Changed(NamedTuple):
    """Store and show this. For all but CREATED and RENEWED the mapping no longer exists."""

    change: Change
    mapping: Mapping


class AddressChanged(NamedTuple):
    """The external address is another one now, or gone; clients have to be told."""

    external_address: str | None


@dataclass(frozen=True, slots=True)
class EpochReset:
    """Mappings were lost that clients believe in: both epochs began anew, to be stored and announced."""


class Moved(NamedTuple):
    """A mapping works on another external address now; its last requester can be told (RFC 6887 §14.2)."""

    mapping: Mapping
    external_address: str
    requester: object


class Answer(NamedTuple):
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


Effect = Install | Restrict | Remove | Changed | AddressChanged | EpochReset | Moved | Answer
