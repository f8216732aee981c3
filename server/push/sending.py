"""Events on their way: one to a subscriber, or one to a crowd of them who are told the same. Pure.

What a crowd is told differs by message ID, LLQ-ID and MAC only; all else is made once.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from protocol.tsig import Key, common_macs, sign_common
from server.peer import Peer
from server.push.events import Plan, event_id
from server.transport.ports import Alike

_ID_OCTETS: Final = 2
_LEASE_OCTETS: Final = 4
_END_OF_TSIG: Final = 6  # behind the MAC: the message's own ID, no error, no other data


class SendEvent(NamedTuple):
    """Send `wire` to `peer`, signed first when `key_name` is set: as a request, with time `signed_at` (unix seconds).

    A retransmission has the same wire and `signed_at`, so signing it again gives the same octets.
    """

    peer: Peer
    key_name: bytes | None
    message_id: int
    wire: bytes
    signed_at: int


class SendEvents(NamedTuple):
    """Send one event to some subscribers, by one transport and `via`, under one key, whose stamps are the same."""

    plan: Plan
    key_name: bytes | None
    stamp: int
    signed_at: int
    peers: list[Peer]
    llq_ids: list[int]

    def each(self) -> Iterator[SendEvent]:
        """One by one."""
        for peer, llq_id in zip(self.peers, self.llq_ids, strict=True):
            number = event_id(self.stamp, llq_id)
            yield SendEvent(peer, self.key_name, number, self.plan.wire(number, llq_id), self.signed_at)

    def alike(self, key: Key | None) -> Alike:
        """All at once, signed where there is a key: the octets that `each` makes, signed by `sign_common`."""
        count, body = len(self.llq_ids), self.plan.body
        if count == 1:
            (event,) = self.each()
            now = self.signed_at
            wire = event.wire if key is None else sign_common(event.wire, key, now=now, request_mac=None)
            return Alike(wire)
        llq_ids = struct.pack(f"!{count}Q", *self.llq_ids)
        stamp = self.stamp
        ids = struct.pack(f"!{count}H", *[event_id(stamp, llq_id) for llq_id in self.llq_ids])
        fields = ((0, ids), (_ID_OCTETS + len(body), llq_ids))
        template = self.plan.wire(0, 0)
        if key is None:
            return Alike(template, count, fields)
        lease = bytes(_LEASE_OCTETS)
        macs = common_macs(
            (
                b"".join((ids[2 * number : 2 * number + 2], body, llq_ids[8 * number : 8 * number + 8], lease))
                for number in range(count)
            ),
            key,
            now=self.signed_at,
        )
        signed = sign_common(template, key, now=self.signed_at, request_mac=None)
        end = len(signed) - _END_OF_TSIG
        return Alike(signed, count, (*fields, (end - len(macs[0]), b"".join(macs)), (end, ids)))
