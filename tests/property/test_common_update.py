"""The short way of updates gives what the long way gives: the same reading, replies, zone, journal and leases."""

from typing import Any, Final

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.constants import RD, EdnsOption, Opcode
from protocol.edns import Opt, UpdateLease, update_lease
from protocol.errors import DecodeError
from protocol.message import Question, decode, encode
from protocol.name import from_text
from protocol.tsig import Key
from server.common_updates import CommonUpdates
from server.zone.common_update import read_common_update
from server.zone.update import UpdateError, read_update, zone_of
from tests.support.builders import (
    ADMIN,
    ALICE,
    BOB,
    CAROL,
    MEMBERS,
    TCP,
    UDP,
    ZONE,
    Core,
    Item,
    add,
    content,
    delete_name,
    delete_rr,
    delete_rrset,
    key,
    name,
    name_in_use,
    rows_of,
    signed,
)

OWNERS: Final = (
    *("mac.alice.members.example.", "Mac.ALICE.members.example.", "_x._udp.alice.members.example."),
    *("alice.members.example.", "members.example.", "deep.er.bob.members.example.", "secret.carol.members.example."),
    *("carol.members.example.", "_dns-update._udp.alice.members.example.", "other.example.", "new.members.example."),
)
DATA: Final = (
    *(("A", "192.0.2.1"), ("A", "192.0.2.2"), ("AAAA", "2001:db8::1"), ("TXT", '"one" "two"'), ("TXT", '""')),
    *(("SRV", "0 0 4500 Mac.alice.members.example."), ("CNAME", "mac.alice.members.example."), ("KEY", "0 3 5 AAAA")),
    *(("NS", "ns.members.example."), ("PTR", "mac.alice.members.example."), ("TYPE65500", "\\# 2 0001")),
    ("SOA", "ns.members.example. h.members.example. 7 1 1 1 1"),
)
ITEMS: Final = st.one_of(
    st.builds(
        lambda owner, ttl, data: add(owner, ttl, *data),
        st.sampled_from(OWNERS),
        st.sampled_from([0, 60, 0x7FFFFFFF, 0x80000000]),
        st.sampled_from(DATA),
    ),
    st.builds(delete_name, st.sampled_from(OWNERS)),
    st.builds(lambda owner, data: delete_rrset(owner, data[0]), st.sampled_from(OWNERS), st.sampled_from(DATA)),
    st.builds(lambda owner, data: delete_rr(owner, *data), st.sampled_from(OWNERS), st.sampled_from(DATA)),
)
LEASES: Final = st.sampled_from([None, UpdateLease(0), UpdateLease(3600), UpdateLease(10), UpdateLease(7200, 9000)])
OPTS: Final = st.builds(
    lambda lease, version, dnssec_ok, cookie: Opt(
        1232,
        version=version,
        dnssec_ok=dnssec_ok,
        options=(
            *((EdnsOption.COOKIE, b"12345678") for _ in range(cookie)),
            *(() if lease is None else (lease.encode(),)),
        ),
    ),
    LEASES,
    st.sampled_from([0, 0, 0, 0, 0, 1]),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1]),
)
UPDATES: Final = st.tuples(
    st.lists(ITEMS, max_size=5),
    st.lists(st.just(name_in_use("mac.alice.members.example.")), max_size=1) | st.just([]),
    st.sampled_from([ZONE, ZONE, ZONE, "MEMBERS.example.", "carol.members.example.", "other.example."]),
    st.none() | OPTS,
    st.sampled_from([0, RD]),
    st.booleans(),
)
Update = tuple[list[Item], list[Item], str, Opt | None, int, bool]


def message(update: Update, number: int = 0x1234) -> bytes:
    """One UPDATE; its last member says whether names are compressed."""
    ops, prerequisites, zone, opt, flags, compressed = update
    question = Question(name(zone), 6, 1)
    head = Opcode.UPDATE << 11 | flags
    if compressed:
        return encode(number, head, [question], prerequisites, ops, opt=opt)
    wire = bytearray(encode(number, head, [question], opt=None))
    for item in (*prerequisites, *ops):
        wire += item.owner + item.rtype.to_bytes(2, "big") + item.rclass.to_bytes(2, "big")
        wire += item.ttl.to_bytes(4, "big") + len(item.rdata).to_bytes(2, "big") + item.rdata
    wire[6:10] = len(prerequisites).to_bytes(2, "big") + len(ops).to_bytes(2, "big")
    if opt is not None:
        wire += opt.encode()
        wire[11] = 1
    return bytes(wire)


def check_reading(wire: bytes) -> bool:
    """Whether `wire` was read the short way, and then the same was read the long way."""
    read = read_common_update(wire)
    if read is None:
        return False
    try:
        long = decode(wire)
    except DecodeError:
        return False  # at the TSIG, or behind it: what `verify_common` looks at
    apex = zone_of(long)
    assert read.update == read_update(long, apex)
    assert read.lease == update_lease(long.opt)
    assert read.dnssec_ok == (long.opt.dnssec_ok if long.opt else None)
    assert long.opt is None or long.opt.version == 0
    assert wire[12 : read.zone_end] == long.questions[0].name + b"\0\6\0\1"
    assert long.tsig is None or long.tsig.offset == read.tsig_at
    return True


@given(UPDATES, st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=2), st.integers(0, 40))
@settings(max_examples=400, deadline=None)
def test_both_read_the_same(update: Update, damages: list[tuple[int, int]], cut: int) -> None:
    whole = signed(message(update), ADMIN, 1_700_000_000)[0]
    check_reading(whole)
    wire = bytearray(whole)
    for at, octet in damages:
        wire[4 + at % (len(wire) - 4)] = octet
    check_reading(bytes(wire))
    if cut:
        check_reading(bytes(wire[: -min(cut, len(wire) - 12)]))


def test_any_one_octet_changed() -> None:
    ops = [delete_rrset("mac.alice.members.example.", "A"), add("x.Alice.members.example.", 60, "A", "192.0.2.9")]
    update: Update = (ops, [], ZONE, Opt(1232, options=(UpdateLease(3600).encode(),)), 0, True)
    wire = signed(message(update), ADMIN, 1_700_000_000)[0]
    assert check_reading(wire)
    read = 0
    for at in range(4, len(wire)):
        for octet in (0, 1, 12, 0x21, 0x3F, 0x40, 0x80, 0xC0, 0xFF):
            try:
                read += check_reading(wire[:at] + bytes((octet,)) + wire[at + 1 :])
            except UpdateError as error:
                raise AssertionError((at, octet)) from error
    assert read > 100


def test_common_forms_go_the_short_way() -> None:
    for compressed in (True, False):
        for opt in (None, Opt(1232), Opt(1232, options=(UpdateLease(3600, 7200).encode(),))):
            ops = [delete_rrset("mac.alice.members.example.", "A"), add(OWNERS[0], 60, "AAAA", "2001:db8::1")]
            assert check_reading(signed(message((ops, [], ZONE, opt, 0, compressed)), ADMIN, 1_700_000_000)[0])


STRANGER: Final = key("stranger.example.")
FALSE: Final = Key(ALICE.name, ALICE.algorithm, b"not hers")


class BothWays(RuleBasedStateMachine):
    """Two servers get the same octets, one of them has the long way only."""

    @initialize()
    def start(self) -> None:
        self.long, self.short = Core(), Core()
        self.long.dispatcher._common.take = lambda *_: False  # type: ignore[method-assign]
        self.number = 0

    @rule(
        updates=st.lists(UPDATES, min_size=1, max_size=4),
        by=st.sampled_from([ADMIN, ADMIN, ALICE, ALICE, BOB, CAROL, STRANGER, FALSE]),
        late=st.sampled_from([0, 0, 0, 299, 301]),
        again=st.booleans(),
        peer=st.sampled_from([UDP, TCP]),
    )
    def update(self, updates: list[Update], by: Key, late: int, again: bool, peer: Any) -> None:
        replies: list[list[bytes]] = []
        wires = []
        for update in updates:
            self.number += 1
            wires.append(signed(message(update, self.number), by, self.long.clock.unix() - late)[0])
        if again:
            wires.append(wires[0])
        for core in (self.long, self.short):
            sent: list[bytes] = []
            for wire in wires:
                core.dispatcher.handle(wire, peer, sent.append)
            core.write()
            if again:
                core.dispatcher.handle(wires[-1], peer, sent.append)
                core.write()
            replies.append(sent)
        assert replies[0] == replies[1]

    @rule(seconds=st.sampled_from([0.3, 1.0, 1800.0, 7200.0]))
    def wait(self, seconds: float) -> None:
        for core in (self.long, self.short):
            core.clock.now += seconds
            core.write()

    @invariant()
    def same_state(self) -> None:
        if not hasattr(self, "long"):
            return
        assert self.long.changes == self.short.changes
        for long, short in zip(self.long.zones, self.short.zones, strict=True):
            assert (long.serial, content(long), rows_of(long)) == (short.serial, content(short), rows_of(short))
        assert self.long.store.rows == self.short.store.rows

    def teardown(self) -> None:
        if hasattr(self, "short"):
            assert not self.short.metrics.faults.labels("common updates")._value.get()


BothWays.TestCase.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
TestBothWays: Any = BothWays.TestCase


def test_the_short_way_is_taken_and_counted() -> None:
    core = Core()
    assert [principal.key for principal in MEMBERS][:2] == [ADMIN, ALICE]
    for by, lease in ((ADMIN, None), (ALICE, 3600)):
        assert core.update(add("mac.alice.members.example.", 60, "A", "192.0.2.77"), by=by, lease=lease).rcode == 0
    assert core.metrics.requests.common_updates == 2
    assert isinstance(core.dispatcher._common, CommonUpdates)
    assert core.zone.rrset(from_text("mac.alice.members.example."), 1, 0) is not None
