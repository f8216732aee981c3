"""What an event says: from what a client may hold to what the zone has (RFC 8764 §6). Pure.

A client's view is known only between two bounds: `sure` it holds, `maybe` it holds (sure is part of maybe). They
differ while answers were repeated or a stream broke. Sending removes for `maybe - zone` and adds for `zone - sure` is
right for every view between them, and makes both equal to the zone.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocol.constants import AA, QR, Class
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LLQ_VERSION, LlqError, LlqOpcode, LlqOption, Opt
from protocol.message import Builder

_OPT_OCTETS: Final = 11 + 4 + 18
_TSIG_OCTETS: Final = 10 + 26 + 16 + 64 + 6  # fixed fields, longest algorithm name and MAC; the key name comes on top
UNKNOWN_STAMP: Final = -1  # of what a former process last sent
_EVENTS_A_SECOND: Final = 16  # message IDs a second of one subscription; it may borrow from the next
_TAIL: Final = struct.Struct("!QI")  # LLQ-ID and LEASE: the last octets of every event before its signature
_BLANK_OPT: Final = Opt(
    options=(LlqOption(LLQ_VERSION, LlqOpcode.EVENT, LlqError.NO_ERROR, 0, 0).encode(),),
)


class Item(NamedTuple):
    """A record as clients tell records apart at one owner name: neither TTL nor class."""

    rtype: int
    rdata: bytes


Items = frozenset[Item]
NOTHING: Final[Items] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """One event, shared by every subscription that stands where it starts. `sure` and `maybe` hold after its ack."""

    body: bytes  # from octet 2 on, up to the LLQ-ID
    records: int
    oversized: int
    sure: Items
    maybe: Items

    def wire(self, message_id: int, llq_id: int) -> bytes:
        """The message without signature; LEASE is 0 (RFC 8764 §6: clients ignore it)."""
        return b"".join((message_id.to_bytes(2, "big"), self.body, _TAIL.pack(llq_id, 0)))


def next_stamp(last: int, unix: int) -> int:
    """Of a subscription's next event: what makes its message ID one that none of its events had within an hour.

    By it clients know what they have applied. Random IDs repeat: with 20 remembered, one event in 3,000 would be taken
    for an old one. This one goes with time, so over a restart too. The first after a restart is one of the second to
    come: in this one the process before may have told of something already.
    """
    second = unix + 1 if last == UNKNOWN_STAMP else unix
    return max(last + 1, second * _EVENTS_A_SECOND)


def event_id(stamp: int, llq_id: int) -> int:
    """The message ID; not to be guessed without the LLQ-ID."""
    return (stamp ^ llq_id) & 0xFFFF


def event_room(limit: int, key_name: bytes | None) -> int:
    """Octets left for header, question and records of an event of at most `limit` octets."""
    return limit - _OPT_OCTETS - (0 if key_name is None else _TSIG_OCTETS + len(key_name))


def make_plan(
    name: bytes, rtype: int, sure: Items, maybe: Items, ttls: Mapping[Item, int], zone: Items, room: int
) -> Plan:
    """The next event for a client between `sure` and `maybe`: removes first, then adds, as many as fit.

    `name` is the question's owner name in the client's case, written as the owner of every record too, so that it
    compresses. A record too large even alone is left out for good and taken as told.
    """
    builder = Builder(0, QR | AA, limit=room)
    builder.question(name, rtype, Class.IN)
    removed: set[Item] = set()
    added: set[Item] = set()
    oversized = 0
    steps = [(item, LLQ_EVENT_REMOVE_TTL, removed) for item in sorted(maybe - zone)]
    steps += [(item, ttls[item], added) for item in sorted(zone - sure)]
    for item, ttl, done in steps:
        if not builder.answer(name, item.rtype, ttl, item.rdata):
            if builder.count(1):
                break
            oversized += 1
        done.add(item)
    records = builder.count(1)
    builder.opt(_BLANK_OPT)
    wire = builder.finish()
    if len(removed) + len(added) == len(steps):
        return Plan(wire[2 : -_TAIL.size], records, oversized, zone, zone)
    return Plan(wire[2 : -_TAIL.size], records, oversized, (sure - removed) | added, (maybe - removed) | added)
