"""PCP under any octets: the codec, and the front end in front of a table."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from gateway.mappings import Answer, Limits, MappingTable
from gateway.natpmp import Peer
from gateway.pcp import PcpFrontEnd, PcpTicket
from protocol.errors import DecodeError
from protocol.pcp import (
    EpochWatch,
    Filter,
    MapBody,
    Opcode,
    PreferFailure,
    Request,
    Response,
    ResultCode,
    ThirdParty,
    UnknownOption,
    decode_request,
    decode_response,
    refuse,
)

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
ADDRESSES = st.one_of(
    U32.map(IPv4Address),
    st.integers(0, (1 << 128) - 1).map(IPv6Address).filter(lambda address: address.ipv4_mapped is None),
)
BODIES = st.builds(
    MapBody,
    nonce=st.binary(min_size=12, max_size=12),
    protocol=st.integers(0, 255),
    internal_port=U16,
    external_port=U16,
    external_address=ADDRESSES,
)
OPTIONS = st.lists(
    st.one_of(
        st.builds(ThirdParty, ADDRESSES),
        st.builds(PreferFailure),
        st.builds(Filter, prefix_length=st.integers(96, 128), remote_port=U16, address=ADDRESSES),
        st.builds(UnknownOption, st.one_of(st.just(0), st.integers(4, 255)), st.binary(max_size=40)),
    ),
    max_size=5,
    unique_by=lambda option: option.code,
).map(tuple)
SOURCE = IPv4Address("192.168.1.10")
REQUESTS = st.one_of(
    st.builds(Request, opcode=st.just(Opcode.MAP), lifetime=U32, client=ADDRESSES, body=BODIES, options=OPTIONS),
    st.builds(Request, opcode=st.just(Opcode.ANNOUNCE), lifetime=U32, client=ADDRESSES),
)


def damaged(request: Request, at: int, octet: int, surplus: bytes) -> bytes:
    """A request that is PCP except for one octet, so that the checks behind the first are reached."""
    octets = bytearray(replace(request, client=SOURCE).encode() + surplus)
    octets[at % len(octets)] = octet
    return bytes(octets)


OCTETS = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda version, opcode, rest: bytes((version, opcode)) + rest,
        st.integers(0, 3),
        st.integers(0, 255),
        st.binary(max_size=1400),
    ),
    st.builds(damaged, REQUESTS, U16, st.integers(0, 255), st.binary(max_size=12)),
)


@given(OCTETS)
def test_any_octets_are_a_value_or_a_decode_error(octets: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(octets)
        except DecodeError as error:
            assert 0 <= error.offset <= len(octets)


@given(REQUESTS)
def test_requests_round_trip(request: Request) -> None:
    assert len(request.encode()) % 4 == 0
    assert decode_request(request.encode()) == request


@given(BODIES, OPTIONS, U32, U32)
def test_responses_round_trip(body: MapBody, options: tuple[PreferFailure, ...], lifetime: int, epoch: int) -> None:
    response = Response(opcode=Opcode.MAP, result=0, lifetime=lifetime, epoch=epoch, body=body, options=options)
    assert decode_response(response.encode()) == response


@given(REQUESTS, st.sampled_from([result for result in ResultCode if result]), U32, U32)
def test_a_refusal_reads_as_what_was_refused(request: Request, result: ResultCode, lifetime: int, epoch: int) -> None:
    refusal = refuse(request.encode(), result, lifetime=lifetime, epoch=epoch)
    assert decode_response(refusal) == Response(
        opcode=request.opcode, result=result, lifetime=lifetime, epoch=epoch, body=request.body
    )
    assert refusal[24:] == request.encode()[24:]


@given(OCTETS, st.booleans())
def test_immediate_answers_are_responses_and_leave_the_table_alone(octets: bytes, third_party: bool) -> None:
    table = MappingTable(Limits(), now=0.0)
    table.set_external_address("198.51.100.7", now=0.0)
    table.take_effects()
    front_end = PcpFrontEnd(table, third_party=third_party)
    reply = front_end.receive(octets, Peer(0, str(SOURCE), 40000), draw=0, now=0.0)
    if reply is not None:
        response = decode_response(reply)
        assert len(reply) <= max(24, len(octets) + 3)
        assert response.epoch == 0
        if octets[1] < 128:
            assert response.opcode == octets[1]
        assert table.take_effects() == []
    assert table.mappings() == []


@given(st.builds(damaged, REQUESTS, U16, st.integers(0, 255), st.just(b"")))
def test_what_the_table_refuses_is_answered_with_a_copy(octets: bytes) -> None:
    table = MappingTable(Limits(), now=0.0)
    PcpFrontEnd(table, third_party=True).receive(octets, Peer(0, str(SOURCE), 40000), draw=0, now=0.0)
    for effect in table.take_effects():
        assert isinstance(effect, Answer)
        ticket = effect.ticket
        assert isinstance(ticket, PcpTicket)
        response = decode_response(ticket.reply(effect, 9))
        if ticket.lifetime:
            assert response.result == ResultCode.NETWORK_FAILURE
        else:
            assert response.result == ResultCode.SUCCESS
        assert response.body == ticket.body


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1), st.integers(-1, 1))
def test_a_server_whose_clock_is_near_ours_never_looks_restarted(
    start: int, seconds: int, phase: float, drift: int
) -> None:
    watch = EpochWatch()
    assert not watch.observe(start + 1, phase)
    assert not watch.observe(start + 1 + seconds + drift, phase + seconds)


@given(st.integers(100, 10**6), st.integers(0, 10**6))
def test_a_restart_is_noticed(age: int, seconds: int) -> None:
    """Whatever time went by: an epoch of less than half of what it was has gone back."""
    watch = EpochWatch()
    watch.observe(age, 0.0)
    assert watch.observe(seconds % (age // 2), float(seconds))
