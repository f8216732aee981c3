"""NAT-PMP in front of the mapping table: datagram in, datagram out (RFC 6886 §3).

Pure. An answer is known at once, when the table answers (`MapTicket.reply`), or never. The caller guarantees that
datagrams came in on the internal side: nothing here could tell.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address
from typing import NamedTuple, assert_never

from protocol.errors import DecodeError
from protocol.natpmp import (
    NO_ADDRESS,
    RESPONSE_BIT,
    AddressRequest,
    AddressResponse,
    ErrorResponse,
    ForeignVersionRequest,
    MapRequest,
    MapResponse,
    Opcode,
    ResultCode,
    UnknownOpcodeRequest,
    decode_request,
    refuse_opcode,
)

from .mappings import Answer, Key, MappingTable, Origin, Transport, Verdict

PCP_VERSION = 2

_TRANSPORTS = {int(Opcode.MAP_UDP): Transport.UDP, int(Opcode.MAP_TCP): Transport.TCP}
_RESULTS = {
    Verdict.DONE: ResultCode.SUCCESS,
    Verdict.NOT_PERMITTED: ResultCode.NOT_AUTHORIZED,
    Verdict.NO_EXTERNAL_ADDRESS: ResultCode.NETWORK_FAILURE,
    Verdict.NO_RESOURCES: ResultCode.OUT_OF_RESOURCES,
    Verdict.OVER_QUOTA: ResultCode.OUT_OF_RESOURCES,
    Verdict.NOT_AS_ASKED: ResultCode.OUT_OF_RESOURCES,
}


class Peer(NamedTuple):
    """Where a request came from, and by which of the gateway's listeners."""

    listener: int
    host: str
    port: int


class MapTicket(NamedTuple):
    """A map request on its way through the table."""

    peer: Peer
    request: MapRequest

    def reply(self, answer: Answer, epoch: int) -> bytes:
        """Write the response. Success of a deletion has port and lifetime 0, as the answer has."""
        return MapResponse(
            opcode=self.request.opcode,
            result=_RESULTS[answer.verdict],
            epoch=epoch,
            internal_port=self.request.internal_port,
            external_port=answer.external_port,
            lifetime=answer.lifetime,
        ).encode()


class NatPmpFrontEnd:
    """Reads requests and puts them to the table. `counters` counts datagrams by what they were."""

    def __init__(self, table: MappingTable) -> None:
        self._table = table
        self.counters: Counter[str] = Counter()

    def receive(self, datagram: bytes, peer: Peer, *, draw: int, now: float) -> bytes | None:
        """Answer a datagram, or put it to the table with a `MapTicket` and return None.

        None as well for what deserves no answer. `draw` is a random number for the choice of a port.
        """
        try:
            request = decode_request(datagram)
        except DecodeError:
            self.counters["malformed"] += 1
            return None
        match request:
            case MapRequest():
                self.counters["map"] += 1
                return self._map(request, peer, draw, now)
            case AddressRequest():
                self.counters["address"] += 1
                return self.address_datagram(now=now)
            case ForeignVersionRequest():
                self.counters["foreign version"] += 1
                # The figure of RFC 6886 §3.5 has opcode 0. A PCP client drops what lacks the response bit
                # (RFC 6887 §8.3), so it gets its own opcode back with that bit and falls back at once.
                opcode = RESPONSE_BIT | request.opcode if request.version == PCP_VERSION else 0
                return ErrorResponse(
                    opcode=opcode, result=ResultCode.UNSUPPORTED_VERSION, epoch=self._table.epoch(now)
                ).encode()
            case UnknownOpcodeRequest():
                self.counters["unknown opcode"] += 1
                return refuse_opcode(request, self._table.epoch(now)).encode()
            case _:
                assert_never(request)

    def address_datagram(self, *, now: float) -> bytes:
        """The external address response, which is the announcement too; result 3 and 0.0.0.0 while there is none."""
        address = self._table.external_address
        return AddressResponse(
            result=ResultCode.NETWORK_FAILURE if address is None else ResultCode.SUCCESS,
            epoch=self._table.epoch(now),
            address=NO_ADDRESS if address is None else IPv4Address(address),
        ).encode()

    def _map(self, request: MapRequest, peer: Peer, draw: int, now: float) -> bytes | None:
        ticket = MapTicket(peer, request)
        transport = _TRANSPORTS[request.opcode]
        if request.internal_port == 0:
            # All three zero deletes everything (RFC 6886 §3.4); what another port 0 should mean is not defined.
            if request.lifetime or request.suggested_port:
                return ticket.reply(Answer(ticket, Verdict.NOT_PERMITTED), self._table.epoch(now))
            self._table.delete_all(transport, peer.host, ticket=ticket, now=now)
            return None
        key = Key(transport, peer.host, request.internal_port)
        if request.lifetime == 0:
            self._table.delete(key, ticket=ticket, now=now)
        else:
            self._table.request(
                key,
                suggested_port=request.suggested_port,
                lifetime=request.lifetime,
                origin=Origin.NATPMP,
                ticket=ticket,
                draw=draw,
                now=now,
            )
        return None
