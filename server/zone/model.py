"""The nouns of zone data: RR, Change, and what one commit writes.

Class is IN throughout. Owner names and rdata are uncompressed wire octets with the case they came in. Times are whole
seconds since 1970 on the store's clock.
"""

from dataclasses import dataclass
from typing import NamedTuple


class RR(NamedTuple):
    """One record as data: no class (IN), no lease."""

    owner: bytes
    rtype: int
    ttl: int
    rdata: bytes


class StoredRR(NamedTuple):
    """One record with its lease; `expires_at` None means permanent."""

    owner: bytes
    rtype: int
    ttl: int
    rdata: bytes
    expires_at: int | None


class Actor(NamedTuple):
    """Who made a change. `kind`: update, lapse, operator or import; `key`: its name in text; `peer`: an address."""

    kind: str
    key: str = ""
    peer: str = ""


class Change(NamedTuple):
    """One committed step of a zone from one serial to the next: the single feed for IXFR, LLQ, NOTIFY and history.

    `removed` begins with the old SOA and `added` with the new one, as IXFR writes them (RFC 1995 §4); a TTL change is
    a removal and an addition.
    """

    apex: bytes  # folded
    serial_from: int
    serial_to: int
    at: int
    actor: Actor
    removed: tuple[RR, ...]
    added: tuple[RR, ...]


class Renewal(NamedTuple):
    """Who renewed leases at a name last: no change of the zone, so it stands in no journal."""

    at: int
    key: str
    peer: str


class NodeChange(NamedTuple):
    """What becomes of one owner name. `before` and `after` are octets as `node.encode_node` makes them, None for none.

    `owner` is as it is written from now on. With `renewal`, leases were renewed there.
    """

    key: bytes  # folded owner
    owner: bytes
    before: bytes | None
    after: bytes | None
    renewal: Renewal | None = None


@dataclass(frozen=True, slots=True)
class ZoneCommit:
    """The net effect of a batch on one zone, and the journal entries that tell it step by step.

    `serial_from` is compared and set with `serial_to` in the same transaction; equal when only leases move. That moves
    no serial, so what stands at each name is compared with its `before` as well. `soa` is the new SOA (rdata without
    regard to its serial field, TTL) when it changed.
    """

    zone_id: int
    serial_from: int
    serial_to: int
    nodes: tuple[NodeChange, ...]
    changes: tuple[Change, ...]
    soa: tuple[bytes, int] | None = None
