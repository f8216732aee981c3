"""PCP in front of the mapping table: datagram in, datagram out (RFC 6887), in the simple threat model (§18.1).

Pure. An answer is known at once, when the table answers (`PcpTicket.reply`), or never. The caller guarantees that
datagrams came in on the internal side: nothing here could tell. Served are ANNOUNCE and, for UDP and TCP, MAP with
PREFER_FAILURE, FILTER and, if switched on, THIRD_PARTY; for IPv6 hosts where the back end opens its firewall for them.
There is none that follows flows, so PEER is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import assert_never

from protocol.errors import DecodeError
from protocol.pcp import (
    LARGEST_LIFETIME,
    BrokenRequest,
    ForeignVersionRequest,
    MapBody,
    Opcode,
    Option,
    OptionCode,
    PreferFailure,
    Request,
    Response,
    ResultCode,
    ThirdParty,
    UnknownOption,
    UnreadableOption,
    decode_request,
    refuse,
)
from protocol.pcp import (
    Filter as PcpFilter,
)

from .mappings import Answer, Filter, FilterChange, Key, Mapping, MappingTable, Origin, Transport, Verdict
from .natpmp import Peer

LONG_ERROR_SECONDS = 1800
SHORT_ERROR_SECONDS = 30
"""How long clients should not repeat a request that was refused (RFC 6887 §7.4)."""
SHORT_ERRORS = frozenset(
    {
        ResultCode.NETWORK_FAILURE,
        ResultCode.NO_RESOURCES,
        ResultCode.USER_EX_QUOTA,
        ResultCode.CANNOT_PROVIDE_EXTERNAL,
    }
)
UPDATE_COPIES = 3
UPDATE_FIRST_GAP_SECONDS = 0.25
"""A mapping update is sent three times, after a quarter and then after half a second (RFC 6887 §14.2)."""

_RESULTS = {
    Verdict.DONE: ResultCode.SUCCESS,
    Verdict.NOT_PERMITTED: ResultCode.NOT_AUTHORIZED,
    Verdict.NO_EXTERNAL_ADDRESS: ResultCode.NETWORK_FAILURE,
    Verdict.NO_RESOURCES: ResultCode.NO_RESOURCES,
    Verdict.OVER_QUOTA: ResultCode.USER_EX_QUOTA,
    Verdict.NOT_AS_ASKED: ResultCode.CANNOT_PROVIDE_EXTERNAL,
    Verdict.TOO_MANY_FILTERS: ResultCode.EXCESSIVE_REMOTE_PEERS,
}
_NO_PROTOCOL = 0
_SUBNET_BITS = 64
"""An IPv6 network of hosts (RFC 4291 §2.5.4): a third party has to be in the asker's."""
_IPV4_BITS = 96
"""Prefix lengths of IPv4 count from the start of the 16 octets."""


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asked for a mapping last, and how: what a mapping update needs beside the mapping."""

    peer: Peer
    for_another: bool
    """Whether the mapping is a third party's, which its updates have to name."""

    def update(self, mapping: Mapping, external_address: str, *, epoch: int, now: float) -> bytes:
        """Write the MAP response that tells the present external address of a mapping (RFC 6887 §14.2)."""
        assert mapping.nonce is not None
        assert mapping.expires_at is not None
        return Response(
            opcode=Opcode.MAP,
            result=ResultCode.SUCCESS,
            lifetime=max(0, int(mapping.expires_at - now)),
            epoch=epoch,
            body=MapBody(
                nonce=mapping.nonce,
                protocol=mapping.key.transport,
                internal_port=mapping.key.port,
                external_port=mapping.external_port,
                external_address=ip_address(external_address),
            ),
            options=(ThirdParty(ip_address(mapping.key.host)),) if self.for_another else (),
        ).encode()


@dataclass(frozen=True, slots=True)
class PcpTicket:
    """A MAP request on its way through the table."""

    peer: Peer
    datagram: bytes = field(repr=False)
    lifetime: int
    body: MapBody
    options: tuple[Option, ...]

    def reply(self, answer: Answer, epoch: int) -> bytes:
        """Write the response. A deletion sends the suggested port and address back (RFC 6887 §15)."""
        if answer.verdict is not Verdict.DONE:
            return _refuse(self.datagram, _RESULTS[answer.verdict], epoch, answer.retry_after)
        body = self.body
        if self.lifetime:
            assert answer.external_address is not None
            body = MapBody(
                nonce=body.nonce,
                protocol=body.protocol,
                internal_port=body.internal_port,
                external_port=answer.external_port,
                external_address=ip_address(answer.external_address),
            )
        return Response(
            opcode=Opcode.MAP,
            result=ResultCode.SUCCESS,
            lifetime=LARGEST_LIFETIME if answer.is_permanent else answer.lifetime,
            epoch=epoch,
            body=body,
            options=self.options,
        ).encode()


class PcpFrontEnd:
    """Reads requests and puts them to the table. `counters` counts datagrams by what they were."""

    def __init__(
        self,
        table: MappingTable,
        *,
        third_party: bool = False,
        pinholes: bool = False,
        own_addresses: Set[str] = frozenset(),
    ) -> None:
        """`own_addresses` are the gateway's, which no third party is allowed to be; they may change."""
        self._table = table
        self._third_party = third_party
        self._pinholes = pinholes
        self._own_addresses = own_addresses
        self.counters: Counter[str] = Counter()

    def receive(self, datagram: bytes, peer: Peer, *, draw: int, now: float) -> bytes | None:
        """Answer a datagram, or put it to the table with a `PcpTicket` and return None.

        None as well for what deserves no answer. `draw` is a random number for the choice of a port.
        """
        try:
            request = decode_request(datagram)
        except DecodeError:
            self.counters["malformed"] += 1
            return None
        epoch = self._table.strict_epoch(now)
        match request:
            case ForeignVersionRequest():
                self.counters["foreign version"] += 1
                return _refuse(datagram, ResultCode.UNSUPP_VERSION, epoch)
            case BrokenRequest():
                self.counters["malformed"] += 1
                return _refuse(datagram, ResultCode.MALFORMED_REQUEST, epoch)
            case Request():
                fault = self._fault(request, peer)
                if fault is not None:
                    self.counters[f"refused: {fault.name}"] += 1
                    return _refuse(datagram, fault, epoch)
                if request.body is None:
                    self.counters["announce"] += 1
                    return self.announcement(now=now)
                self.counters["map"] += 1
                return self._map(request, request.body, datagram, peer, draw, now)
            case _:
                assert_never(request)

    def announcement(self, *, now: float) -> bytes:
        """The ANNOUNCE response, sent to all as well when clients have to look at the epoch (RFC 6887 §14.1)."""
        epoch = self._table.strict_epoch(now)
        return Response(opcode=Opcode.ANNOUNCE, result=ResultCode.SUCCESS, lifetime=0, epoch=epoch).encode()

    def _fault(self, request: Request, peer: Peer) -> ResultCode | None:
        """What is wrong with a request before anything is known of mappings, in the order of RFC 6887 §8.2."""
        source = _address(peer)
        if request.client != source:
            return ResultCode.ADDRESS_MISMATCH
        if request.fault is not None:
            return request.fault
        for option in request.options:
            match option:
                case ThirdParty(address) if self._third_party:
                    if address == source:
                        return ResultCode.MALFORMED_REQUEST
                case UnreadableOption(code) if self._third_party or code != OptionCode.THIRD_PARTY:
                    return ResultCode.MALFORMED_OPTION
                case PcpFilter():
                    if not request.lifetime:
                        return ResultCode.MALFORMED_OPTION
                case PreferFailure():
                    if request.body is not None and not (request.lifetime and request.body.external_port):
                        return ResultCode.MALFORMED_OPTION
                case UnknownOption() if not option.is_mandatory:
                    pass
                case _:
                    return ResultCode.UNSUPP_OPTION
        return None

    def _map(self, request: Request, body: MapBody, datagram: bytes, peer: Peer, draw: int, now: float) -> bytes | None:
        epoch = self._table.strict_epoch(now)
        options = tuple(
            option for option in request.options if isinstance(option, ThirdParty | PreferFailure | PcpFilter)
        )
        third = next((option.address for option in options if isinstance(option, ThirdParty)), None)
        ticket = PcpTicket(peer, datagram, request.lifetime, body, options)
        if body.protocol == _NO_PROTOCOL and body.internal_port:
            return _refuse(datagram, ResultCode.MALFORMED_REQUEST, epoch)
        internal = request.client if third is None else third
        if isinstance(internal, IPv6Address) and not self._pinholes:
            return _refuse(datagram, ResultCode.UNSUPP_PROTOCOL, epoch)
        if isinstance(internal, IPv6Address) and (internal.is_link_local or internal.is_multicast):
            return _refuse(datagram, ResultCode.NOT_AUTHORIZED, epoch)
        if third is not None and not self._may_be_mapped(third, request.client):
            return _refuse(datagram, ResultCode.NOT_AUTHORIZED, epoch)
        if body.protocol not in (_NO_PROTOCOL, *Transport):
            return _refuse(datagram, ResultCode.UNSUPP_PROTOCOL, epoch)
        if body.internal_port == 0:
            # All ports of a host: never granted, so there is none to delete, which is a success (RFC 6887 §15).
            if request.lifetime:
                return _refuse(datagram, ResultCode.UNSUPP_PROTOCOL, epoch)
            return ticket.reply(Answer(ticket, Verdict.DONE), epoch)
        filters = _filter_change(options)
        if filters is not None and any((":" in each.network) != (internal.version == 6) for each in filters.added):
            return _refuse(datagram, ResultCode.MALFORMED_OPTION, epoch)
        key = Key(Transport(body.protocol), str(internal), body.internal_port)
        if request.lifetime == 0:
            self._table.delete(key, nonce=body.nonce, ticket=ticket, now=now)
            return None
        address = body.external_address
        self._table.request(
            key,
            suggested_port=body.external_port,
            suggested_address=None if address.is_unspecified else str(address),
            exact=any(isinstance(option, PreferFailure) for option in options),
            lifetime=request.lifetime,
            origin=Origin.PCP,
            nonce=body.nonce,
            requester=Requester(peer, third is not None),
            filters=filters,
            ticket=ticket,
            draw=draw,
            now=now,
        )
        return None

    def _may_be_mapped(self, third: IPv4Address | IPv6Address, client: IPv4Address | IPv6Address) -> bool:
        """Whether a third party is some other host of the LAN, as far as an address tells."""
        if isinstance(third, IPv6Address):
            is_near = isinstance(client, IPv6Address) and client in IPv6Network((third, _SUBNET_BITS), strict=False)
            return is_near and str(third) not in self._own_addresses
        return (
            third.is_private
            and not (third.is_loopback or third.is_link_local or third.is_unspecified or third.is_reserved)
            and str(third) not in self._own_addresses
        )


@dataclass(slots=True)
class _Series:
    requester: Requester
    sent: int
    next_at: float


class MappingUpdates:
    """Which requesters have to be told of a mapping that moved, and when (RFC 6887 §14.2).

    At most one series for each mapping. What an update says is decided when it is sent, for epoch and lifetime move on.
    """

    def __init__(self) -> None:
        self._series: dict[Key, _Series] = {}

    def begin(self, key: Key, requester: Requester, *, now: float) -> None:
        """Send the first copy now; what was left of an older series is dropped."""
        self._series[key] = _Series(requester, 0, now)

    def end(self, key: Key) -> None:
        """The requester knows, or there is nothing any more to know."""
        self._series.pop(key, None)

    def next_deadline(self) -> float | None:
        """When the next copy is due."""
        return min((series.next_at for series in self._series.values()), default=None)

    def take_due(self, *, now: float) -> list[tuple[Key, Requester]]:
        """What has to be sent now. Gaps count from the copy sent, so a late timer never causes a burst."""
        due = []
        for key, series in list(self._series.items()):
            if series.next_at > now:
                continue
            due.append((key, series.requester))
            series.next_at = now + UPDATE_FIRST_GAP_SECONDS * 2**series.sent
            series.sent += 1
            if series.sent == UPDATE_COPIES:
                del self._series[key]
        return due


def _address(peer: Peer) -> IPv4Address | IPv6Address:
    """A sender's address without the interface that is written behind one of link scope."""
    return ip_address(peer.host.partition("%")[0])


def _filter_change(options: tuple[Option, ...]) -> FilterChange | None:
    """What the FILTER options of a request say together, in their order (RFC 6887 §13.3)."""
    listed = [option for option in options if isinstance(option, PcpFilter)]
    if not listed:
        return None
    clear = False
    added: list[Filter] = []
    for option in listed:
        if option.prefix_length == 0:
            clear = True
            added.clear()
        else:
            bits = option.prefix_length - (_IPV4_BITS if option.address.version == 4 else 0)
            added.append(Filter(str(ip_network((option.address, bits), strict=False)), option.remote_port))
    return FilterChange(clear, tuple(added))


def _refuse(datagram: bytes, result: ResultCode, epoch: int, retry_after: int = 0) -> bytes:
    usual = SHORT_ERROR_SECONDS if result in SHORT_ERRORS else LONG_ERROR_SECONDS
    return refuse(datagram, result, lifetime=retry_after or usual, epoch=epoch)
