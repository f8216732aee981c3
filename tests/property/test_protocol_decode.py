"""Whatever the octets: a value or DecodeError, and what was written is read back."""

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol import rdata as rdatas
from protocol.constants import Class, TsigError, Type
from protocol.edns import LlqOption, Opt, UpdateLease, extended_errors, llq_options, update_lease
from protocol.errors import DecodeError
from protocol.message import Builder, Message, Question, decode, encode
from protocol.name import (
    Suffixes,
    canonical_key,
    fold,
    from_text,
    is_at_or_below,
    label_count,
    label_starts,
    parent,
    read_name,
    to_text,
)
from protocol.serial import is_newer, next_serial
from protocol.tsig import ALGORITHMS, Algorithm, Key, decode_tsig, sign, verify
from tests.support import golden

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
PACKETS = [item.wire for folder in ("llq", "update", "tsig", "edns") for item in golden.below(folder)]
KEY = Key(from_text("alice.members.example"), next(iter(ALGORITHMS.values())), b"secret" * 6)

labels = st.binary(min_size=1, max_size=63) | st.sampled_from([b"a", b"A", b"example", b"members", b"x" * 63])


@st.composite
def names(draw: st.DrawFn) -> bytes:
    """Names of all lengths, often with labels in common."""
    out = b""
    for label in draw(st.lists(labels, max_size=6)):
        if len(out) + len(label) + 2 <= 255:
            out += bytes((len(label),)) + label
    return out + b"\x00"


records = st.tuples(
    names(),
    st.sampled_from([0, 1, 28, 255, 65280]),
    st.sampled_from([0, Class.IN, Class.NONE, Class.ANY]),
    u32,
    st.binary(max_size=40),
)
questions = st.builds(Question, names(), u16, u16)
opts = st.builds(
    Opt,
    u16,
    st.integers(0, 255),
    st.integers(0, 255),
    st.booleans(),
    st.lists(st.tuples(u16, st.binary(max_size=24)), max_size=4).map(tuple),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real packet with some octets overwritten, cut out or put in."""
    wire = bytearray(draw(st.sampled_from(PACKETS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(wire)))
        wire[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2) | st.sampled_from([b"\xc0\x0c", b"\xc0"]))
    return bytes(wire)


def read_everything(wire: bytes) -> Message | None:
    """Ask for all that a message can be asked for; anything but DecodeError fails the test."""
    try:
        message = decode(wire)
    except DecodeError:
        return None
    for record in message.answers + message.authority + message.additional:
        assert record.raw(wire) == wire[record.rdata_offset : record.rdata_offset + record.rdlength]
        try:
            whole = record.rdata(wire)
        except DecodeError:
            continue
        folded = rdatas.canonical(record.rtype, whole)
        assert len(folded) == len(whole)
        assert rdatas.expand(record.rtype, whole, 0, len(whole)) == whole
    for ask in (llq_options, update_lease, extended_errors):
        try:
            ask(message.opt)
        except DecodeError:
            continue
    if message.tsig is not None:
        try:
            tsig = decode_tsig(message.tsig, wire)
            for algorithm in ALGORITHMS.values():
                verify(message, tsig, replace(KEY, algorithm=algorithm), now=0, request_mac=b"x", previous=tsig.mac)
        except DecodeError:
            return message
    return message


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_damaged_packets_decode_or_are_refused(wire: bytes) -> None:
    read_everything(wire)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.tuples(*[st.integers(0, 3)] * 4))
def test_noise_behind_a_header_decodes_or_is_refused(body: bytes, counts: tuple[int, ...]) -> None:
    read_everything(bytes(4) + b"".join(count.to_bytes(2, "big") for count in counts) + body)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
@example(b"")
def test_noise_decodes_or_is_refused(wire: bytes) -> None:
    read_everything(wire)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*Type, 0, 65280]), st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=8))
def test_rdata_never_reaches_beyond_its_end(rtype: int, before: bytes, own: bytes, after: bytes) -> None:
    """What follows the rdata decides nothing, and what is accepted is whole."""
    results: list[bytes | None] = []
    for tail in (after, b"", bytes(70)):
        try:
            results.append(rdatas.expand(rtype, before + own + tail, len(before), len(own)))
        except DecodeError:
            results.append(None)
    assert results[0] == results[1] == results[2]
    if results[0] is not None:
        assert rdatas.expand(rtype, results[0], 0, len(results[0])) == results[0]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"\x00", b"\x01a", b"\x02bc", b"\x40", b"\xc0", b"\x05"]), max_size=30), st.data())
def test_reading_names_terminates_within_bounds_and_the_memo_changes_nothing(
    parts: list[bytes], data: st.DataObject
) -> None:
    message = b"".join(part + bytes((data.draw(st.integers(0, 40)),)) if part == b"\xc0" else part for part in parts)
    suffixes: Suffixes = {}
    for offset in data.draw(st.permutations(range(len(message) + 1))):
        try:
            expected: tuple[bytes, int] | None = read_name(message, offset)
        except DecodeError:
            expected = None
        try:
            found: tuple[bytes, int] | None = read_name(message, offset, suffixes)
        except DecodeError:
            found = None
        assert found == expected
        if found is not None:
            name, after = found
            assert 1 <= len(name) <= 255
            assert offset < after <= len(message)
            assert read_name(name, 0) == (name, len(name))


@settings(max_examples=150, deadline=None)
@given(
    u16,
    u16,
    st.lists(questions, max_size=2),
    st.lists(records, max_size=4),
    st.lists(records, max_size=3),
    st.lists(records, max_size=3),
    st.none() | opts,
)
def test_messages_come_back_as_they_were_written(
    number: int,
    flags: int,
    asked: list[Question],
    answers: list[tuple[bytes, int, int, int, bytes]],
    authority: list[tuple[bytes, int, int, int, bytes]],
    additional: list[tuple[bytes, int, int, int, bytes]],
    opt: Opt | None,
) -> None:
    wire = encode(number, flags, asked, answers, authority, additional, opt)
    message = decode(wire)
    assert (message.id, message.header.flags) == (number, flags)
    assert list(message.questions) == asked
    assert message.opt == opt
    sections = (message.answers, message.authority, message.additional[: len(additional)])
    for section, expected in zip(sections, (answers, authority, additional), strict=True):
        assert [(*item[:4], item.raw(wire)) for item in section] == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), records, st.booleans()), max_size=12), st.integers(12, 400))
def test_refusals_and_rollbacks_leave_a_message_of_what_was_kept(
    steps: list[tuple[int, tuple[bytes, int, int, int, bytes], bool]], limit: int
) -> None:
    builder = Builder(1, 0, limit=limit)
    kept: list[tuple[bytes, int, int, int, bytes]] = []
    for section, record, undo in sorted(steps, key=lambda step: step[0]):
        point = builder.checkpoint()
        name, rtype, rclass, ttl, rdata = record
        added = builder.add(section, name, rtype, rclass, ttl, rdata)
        if not added:
            assert builder.checkpoint() == point
        elif undo:
            builder.rollback(point)
            assert builder.checkpoint() == point
        else:
            kept.append(record)
    wire = builder.finish()
    assert len(wire) == builder.size <= limit
    message = decode(wire)
    found = message.answers + message.authority + message.additional
    assert [(*item[:4], item.raw(wire)) for item in found] == kept


@settings(max_examples=200, deadline=None)
@given(names())
def test_a_name_and_its_text_are_one(name: bytes) -> None:
    text = to_text(name)
    assert from_text(text) == name
    assert text.isascii()
    assert text.isprintable()
    assert fold(from_text(to_text(fold(name)))) == fold(name)
    assert label_count(name) == len(list(label_starts(name))) - 1 == len(canonical_key(name))
    assert is_at_or_below(name, parent(name))


@settings(max_examples=200, deadline=None)
@given(names(), names())
def test_below_and_order_agree_with_a_list_of_labels(one: bytes, other: bytes) -> None:
    one, other = fold(one), fold(other)
    first, second = canonical_key(one), canonical_key(other)
    assert is_at_or_below(one, other) is (first[: len(second)] == second)
    assert (first == second) is (one == other)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        name = from_text(text)
    except ValueError:
        return
    assert read_name(name, 0) == (name, len(name))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(PACKETS),
    st.sampled_from(list(ALGORITHMS.values())),
    st.integers(0, 2**48 - 1),
    u16,
    st.binary(max_size=64),
    st.none() | st.binary(min_size=1, max_size=64),
)
def test_what_is_signed_verifies(
    wire: bytes, algorithm: Algorithm, now: int, fudge: int, request_mac: bytes, previous: bytes | None
) -> None:
    opened = decode(wire)
    if opened.tsig is not None:
        wire = wire[:10] + (opened.header.arcount - 1).to_bytes(2, "big") + wire[12 : opened.tsig.offset]
    key = replace(KEY, algorithm=algorithm)
    signed, mac = sign(wire, key, now=now, fudge=fudge, request_mac=request_mac, previous=previous)
    message = decode(signed)
    assert message.tsig is not None
    tsig = decode_tsig(message.tsig, signed)
    assert tsig.mac == mac
    verdict = verify(message, tsig, key, now=now, request_mac=request_mac, previous=previous)
    assert verdict.error is TsigError.NOERROR


@given(
    st.builds(LlqOption, u16, u16, u16, st.integers(0, 2**64 - 1), u32), st.builds(UpdateLease, u32, st.none() | u32)
)
def test_options_come_back_as_they_were_written(llq: LlqOption, lease: UpdateLease) -> None:
    opt = decode(encode(1, 0, opt=Opt(options=(llq.encode(), lease.encode())))).opt
    assert llq_options(opt) == [llq]
    assert update_lease(opt) == lease


@given(u32, u32)
def test_of_two_serials_at_most_one_is_newer(one: int, other: int) -> None:
    undefined = one == other or (one - other) % 2**32 == 2**31
    assert is_newer(one, other) + is_newer(other, one) == (0 if undefined else 1)
    assert is_newer(next_serial(one), one)
