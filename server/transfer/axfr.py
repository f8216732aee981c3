"""A whole zone as a stream of messages (RFC 5936): one serial, many records a message, each message signed.

Nothing here is buffered: a message is made when the stream asks for the next one.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from protocol.constants import AA, MAX_MESSAGE_OCTETS, QR, RD, Class
from protocol.edns import Opt
from protocol.errors import EncodeError
from protocol.message import Builder
from protocol.tsig import sign
from server.reply import UDP_PAYLOAD
from server.request import Authenticated
from server.zone.model import RR
from server.zone.node import decode_node
from server.zone.zone import Zone

MESSAGE_OCTETS: Final = 16 * 1024
"""Aimed at: compression pointers reach no further (RFC 1035 §4.1.4), and a message takes about a millisecond."""
_OPT_OCTETS: Final = 11


def zone_stream(zone: Zone, now: int) -> Iterator[RR]:
    """The SOA, every record not lapsed at `now`, the SOA again: the zone as it is at this call.

    The index is copied here, its nodes never change: commits that come meanwhile are not seen.
    """
    return _walk(zone.soa_rr(), list(zone.nodes), list(zone.nodes.values()), now)


def _walk(soa: RR, keys: list[bytes], blobs: list[bytes], now: int) -> Iterator[RR]:
    yield soa
    for key, blob in zip(keys, blobs, strict=True):
        node = decode_node(key, blob)
        for rrset in node.rrsets.values():
            live = rrset.live(now)
            if live is not None:
                for rdata in live.rdatas:
                    yield RR(node.owner, live.rtype, live.ttl, rdata)
    yield soa


def messages(request: Authenticated, records: Iterable[RR], unix: Callable[[], int]) -> Iterator[bytes]:
    """Records of an AXFR or IXFR answer as messages to send one after another.

    The question stands in the first one (RFC 5936 §2.2), an OPT in each when the request had one (RFC 9103 §6.3.4). A
    signed request has every message signed, the first over the request's MAC, each later one over the MAC before it
    (RFC 8945 §5.3.1).
    `EncodeError` for a record that no message has room for.
    """
    message, principal, tsig = request.message, request.principal, request.tsig
    key = principal.key if principal is not None and tsig is not None else None
    signature = key.record_octets if key else 0
    flags = QR | AA | (message.header.flags & RD)
    previous: bytes | None = None
    signed_at = 0
    is_first = True
    rest = iter(records)
    rr = next(rest, None)
    while rr is not None:
        kept = signature + (_OPT_OCTETS if message.opt is not None else 0)
        builder = Builder(message.id, flags, limit=MESSAGE_OCTETS - kept)
        if is_first:
            builder.question(*message.questions[0])
        while rr is not None and builder.add(1, rr.owner, rr.rtype, Class.IN, rr.ttl, rr.rdata):
            rr = next(rest, None)
        if rr is not None and not builder.count(1):
            builder.limit = MAX_MESSAGE_OCTETS - kept  # one larger than a usual message travels alone
            if not builder.add(1, rr.owner, rr.rtype, Class.IN, rr.ttl, rr.rdata):
                raise EncodeError("a record does not fit a message")
            rr = next(rest, None)
        if message.opt is not None:
            builder.opt(Opt(UDP_PAYLOAD, 0, 0, message.opt.dnssec_ok))
        wire = builder.finish()
        if key is not None and tsig is not None:
            signed_at = max(signed_at, unix())  # time signed never goes back within a stream
            wire, previous = sign(wire, key, now=signed_at, request_mac=tsig.mac, previous=previous)
        is_first = False
        yield wire
