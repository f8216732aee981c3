"""What changed between two serials, from the change journal (RFC 1995), condensed to its net effect (§6)."""

from collections.abc import Sequence
from typing import Final

from protocol.constants import Type
from protocol.errors import DecodeError
from protocol.message import Message
from protocol.name import fold
from protocol.rdata import canonical, soa_serial
from protocol.serial import is_newer
from server.zone.model import RR, Change
from server.zone.zone import Zone

MAX_STEPS: Final = 10_000
"""Serials a journal is read back over: beyond it reading would cost more than sending the zone."""
_SMALL: Final = 1000  # records that are always sent as a difference, however small the zone

_Identity = tuple[bytes, int, bytes]


def client_serial(message: Message, apex: bytes) -> int:
    """The serial the client has, from the SOA in Authority; `DecodeError` (FORMERR) without one of the zone's."""
    for record in message.authority:
        if record.rtype == Type.SOA and fold(record.name) == apex:
            return soa_serial(record.rdata(message.wire))
    raise DecodeError("an IXFR query brings the client's SOA in Authority (RFC 1995 §3)", len(message.wire))


def is_current(zone: Zone, serial: int) -> bool:
    """Whether a client with this serial has all there is (or claims more): it gets the single SOA."""
    return not is_newer(zone.serial, serial)


def is_near(zone: Zone, serial: int) -> bool:
    """Whether the journal is worth asking."""
    return (zone.serial - serial) & 0xFFFFFFFF <= MAX_STEPS


def difference(changes: Sequence[Change]) -> list[RR]:
    """New SOA, old SOA, what went, new SOA, what came, new SOA. `changes` follow each other and are not empty.

    Only the net effect is told: what came and went between is left out, and a record that is back as it was too.
    """
    before: dict[_Identity, RR | None] = {}
    after: dict[_Identity, RR | None] = {}
    for change in changes:
        for rr in change.removed[1:]:
            identity = _identity(rr)
            before.setdefault(identity, rr)
            after[identity] = None
        for rr in change.added[1:]:
            identity = _identity(rr)
            before.setdefault(identity, None)
            after[identity] = rr
    moved = [identity for identity, rr in before.items() if rr != after[identity]]
    old, new = changes[0].removed[0], changes[-1].added[0]
    gone = [was for identity in moved if (was := before[identity]) is not None]
    come = [now for identity in moved if (now := after[identity]) is not None]
    return [new, old, *gone, new, *come, new]


def is_worth_it(records: Sequence[RR], zone: Zone) -> bool:
    """Whether a difference is cheaper than the zone, which has at least one record a name."""
    return len(records) <= max(_SMALL, len(zone.nodes))


def _identity(rr: RR) -> _Identity:
    return fold(rr.owner), rr.rtype, canonical(rr.rtype, rr.rdata)
