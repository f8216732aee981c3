"""NAT-PMP under any octets, and the mapping table under any sequence of events."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.mappings import (
    Answer,
    Change,
    Changed,
    Install,
    Key,
    Limits,
    Mapping,
    MappingTable,
    Moved,
    Origin,
    Remove,
    Transport,
    Verdict,
)
from gateway.natpmp import NatPmpFrontEnd, Peer
from protocol.errors import DecodeError
from protocol.natpmp import (
    AddressResponse,
    ErrorResponse,
    MapRequest,
    MapResponse,
    Opcode,
    UnsupportedOpcodeResponse,
    decode_request,
    decode_response,
)

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
MAP_OPCODES = st.sampled_from([Opcode.MAP_UDP, Opcode.MAP_TCP])
# Random octets seldom look like NAT-PMP: half of them get a likely head.
OCTETS = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda version, opcode, rest: bytes((version, opcode)) + rest,
        st.integers(0, 3),
        st.sampled_from([0, 1, 2, 3, 77, 127, 128, 129, 130, 131, 255]),
        st.binary(max_size=24),
    ),
)


@given(OCTETS)
def test_any_octets_are_a_value_or_a_decode_error(octets: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(octets)
        except DecodeError as error:
            assert 0 <= error.offset <= len(octets)


@given(
    st.builds(MapRequest, opcode=MAP_OPCODES, internal_port=U16, suggested_port=U16, lifetime=U32),
    st.binary(max_size=8),
)
def test_map_requests_round_trip(request: MapRequest, surplus: bytes) -> None:
    assert len(request.encode()) == 12
    assert decode_request(request.encode() + surplus) == request


@given(
    st.one_of(
        st.builds(
            AddressResponse,
            result=U16.filter(lambda result: result != 1),
            epoch=U32,
            address=U32.map(IPv4Address),
        ),
        st.builds(
            MapResponse,
            opcode=MAP_OPCODES,
            result=U16.filter(lambda result: result != 1),
            epoch=U32,
            internal_port=U16,
            external_port=U16,
            lifetime=U32,
        ),
        st.builds(ErrorResponse, opcode=st.integers(0, 130), result=st.just(1), epoch=U32),
        st.builds(
            lambda opcode, rest: UnsupportedOpcodeResponse(bytes((0, opcode, 0, 5)) + rest),
            st.integers(131, 255),
            st.binary(max_size=20),
        ),
    )
)
def test_responses_round_trip(
    response: AddressResponse | MapResponse | ErrorResponse | UnsupportedOpcodeResponse,
) -> None:
    assert decode_response(response.encode()) == response


@given(OCTETS)
def test_every_immediate_answer_is_a_response_no_longer_than_needed(octets: bytes) -> None:
    table = MappingTable(Limits(), now=0.0)
    reply = NatPmpFrontEnd(table).receive(octets, Peer(0, "192.168.1.10", 40000), draw=0, now=0.0)
    if reply is not None:
        decode_response(reply)
        assert len(reply) <= max(16, len(octets))


HOSTS = ("192.168.1.10", "192.168.1.11", "192.168.1.12")
NONCES = st.sampled_from([None, b"first nonce.", b"second nonce"])
KEYS = st.builds(Key, st.sampled_from(Transport), st.sampled_from(HOSTS), st.integers(1, 4))
LIMITS = Limits(lowest_port=2000, highest_port=2007, reserved_ports=frozenset({2005}), per_host=4, total=7)


class TableMachine(RuleBasedStateMachine):
    """Random requests, deletions, lapses, address changes and refusals, some while installations are under way.

    Requests without a nonce are NAT-PMP's, those with one PCP's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = MappingTable(LIMITS, now=0.0)
        self.carried: dict[int, Install] = {}
        self.believed: dict[Key, Mapping] = {}
        self.asked = 0
        self.answered: dict[object, Answer] = {}
        self.settled_at = 0.0
        self.resting: dict[tuple[Transport, int], tuple[float, Mapping]] = {}
        self.table.set_external_address("203.0.113.1", now=0.0)
        self.table.add_static(Key(Transport.TCP, HOSTS[0], 1), 2001)
        self.settle(True)

    def ticket(self) -> int:
        self.asked += 1
        return self.asked

    @rule(
        key=KEYS,
        suggested=st.integers(1998, 2009),
        lifetime=st.integers(1, 100000),
        draw=st.integers(0, 20),
        nonce=NONCES,
        exact=st.booleans(),
    )
    def request(self, key: Key, suggested: int, lifetime: int, draw: int, nonce: bytes | None, exact: bool) -> None:
        self.table.request(
            key,
            suggested_port=suggested,
            lifetime=lifetime,
            origin=Origin.PCP if nonce else Origin.NATPMP,
            nonce=nonce,
            exact=exact and nonce is not None,
            requester=nonce,
            ticket=self.ticket(),
            draw=draw,
            now=self.now,
        )

    @rule(key=KEYS, suggested=st.integers(1998, 2009), nonce=NONCES)
    def request_with_nothing_under_way(self, key: Key, suggested: int, nonce: bytes | None) -> None:
        """What the answer has to say follows from what is there."""
        self.settle(True)
        before = self.table.find(key)
        until, freed = self.resting.get((key.transport, suggested), (0.0, before))
        rests = until > self.now and freed is not None and freed.key != key
        self.request(key, suggested, 3600, 3, nonce, True)
        self.settle(True)
        answer = self.answered[self.asked]
        after = self.table.find(key)
        if answer.verdict is not Verdict.DONE:
            assert after == before
            return
        assert after is not None
        assert answer.external_port == after.external_port
        assert answer.external_address == self.table.external_address
        assert answer.is_permanent == (after.expires_at is None)
        if before is not None:
            assert after.external_port == before.external_port
            assert before.nonce is None or nonce in (None, before.nonce)
        if after.origin is not Origin.STATIC:
            assert after.nonce == (nonce if before is None or before.nonce is None else before.nonce)
        if nonce is not None:
            assert answer.external_port == suggested
            assert before is not None or not rests

    @rule(key=KEYS, nonce=NONCES)
    def delete(self, key: Key, nonce: bytes | None) -> None:
        self.table.delete(key, ticket=self.ticket(), now=self.now, nonce=nonce)

    @rule(key=KEYS, nonce=NONCES)
    def delete_with_nothing_under_way(self, key: Key, nonce: bytes | None) -> None:
        self.settle(True)
        before = self.table.find(key)
        self.delete(key, nonce)
        self.settle(True)
        answer = self.answered[self.asked]
        may = before is None or (before.origin is not Origin.STATIC and before.nonce in (None, nonce))
        assert (answer.verdict is Verdict.DONE) == may
        assert self.table.find(key) == (None if may else before)

    @rule(transport=st.sampled_from(Transport), host=st.sampled_from(HOSTS))
    def delete_all(self, transport: Transport, host: str) -> None:
        self.table.delete_all(transport, host, ticket=self.ticket(), now=self.now)

    @rule(key=KEYS)
    def discard(self, key: Key) -> None:
        self.table.discard(key)

    @rule(address=st.sampled_from([None, "203.0.113.1", "203.0.113.2"]))
    def readdress(self, address: str | None) -> None:
        self.table.set_external_address(address, now=self.now)

    @rule(seconds=st.sampled_from([0.5, 60.0, 120.0, 86400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.table.handle_deadline(now=self.now)

    @rule(ok=st.booleans())
    def settle(self, ok: bool) -> None:
        while effects := self.table.take_effects():
            for effect in effects:
                match effect:
                    case Install(number, mapping, address):
                        taken = any(
                            other.external_address == address
                            and other.mapping.external_port == mapping.external_port
                            and other.mapping.key.transport is mapping.key.transport
                            for other in self.carried.values()
                        )
                        accepted = ok and not taken
                        if accepted:
                            self.carried[number] = effect
                        self.table.installed(number, accepted, now=self.now)
                    case Remove(number):
                        del self.carried[number]
                    case Changed(change, mapping):
                        end = (mapping.key.transport, mapping.external_port)
                        if change is Change.CREATED:
                            assert mapping.key not in self.believed
                            self.resting.pop(end, None)
                        if change in (Change.DELETED, Change.LAPSED):
                            self.resting[end] = (self.settled_at + LIMITS.hold_down, mapping)
                        if change in (Change.CREATED, Change.RENEWED):
                            self.believed[mapping.key] = mapping
                        elif mapping.origin is not Origin.STATIC:
                            del self.believed[mapping.key]
                    case Moved(mapping, address, requester):
                        assert mapping.nonce is not None
                        assert requester == mapping.nonce
                        assert address == self.table.external_address
                    case Answer(ticket, verdict, external_port, lifetime):
                        assert ticket not in self.answered
                        self.answered[ticket] = effect
                        if verdict is not Verdict.DONE:
                            assert lifetime == 0
                        assert 0 <= lifetime <= 86400
                        assert external_port == 0 or 2000 <= external_port <= 2007
                    case _:
                        pass
        self.settled_at = self.now
        self.check_settled()

    def check_settled(self) -> None:
        """Once all effects are carried out, table, back end and what was told agree."""
        mappings = self.table.mappings()
        dynamic = {mapping.key: mapping for mapping in mappings if mapping.origin is not Origin.STATIC}
        assert dynamic == self.believed
        carried = {
            (each.mapping.key, each.mapping.external_port, each.external_address) for each in self.carried.values()
        }
        assert len(carried) == len(self.carried)
        if self.table.external_address is None:
            assert not carried
        else:
            here = self.table.external_address
            assert carried == {(mapping.key, mapping.external_port, here) for mapping in mappings}

    @invariant()
    def ports_are_exclusive(self) -> None:
        owners: dict[int, str] = {}
        seen: set[tuple[Transport, int]] = set()
        mappings = self.table.mappings()
        for mapping in mappings:
            end = (mapping.key.transport, mapping.external_port)
            assert end not in seen
            seen.add(end)
            assert owners.setdefault(mapping.external_port, mapping.key.host) == mapping.key.host
            assert mapping.external_port != 2005
            assert mapping.expires_at is None or mapping.expires_at > self.now
        dynamic = [mapping for mapping in mappings if mapping.expires_at is not None]
        assert len(dynamic) <= LIMITS.total
        for host in HOSTS:
            assert sum(mapping.key.host == host for mapping in dynamic) <= LIMITS.per_host

    @invariant()
    def deadline_is_not_late(self) -> None:
        expiries = [mapping.expires_at for mapping in self.table.mappings() if mapping.expires_at is not None]
        if expiries:
            deadline = self.table.next_deadline()
            assert deadline is not None
            assert deadline <= min(expiries)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
