"""Shapes that brought other servers down or past their locks, sent to ours."""

import struct

import pytest

from protocol.constants import Class, Opcode, Rcode, TsigError, Type
from protocol.message import Question, encode, encode_record
from protocol.tsig import ALGORITHMS, Key, decode_tsig
from server.writer import MAX_QUEUE
from tests.support.builders import (
    ADMIN,
    ALICE,
    BOB,
    T0,
    UDP,
    ZONE,
    Core,
    add,
    content,
    name,
    query_message,
    signed,
    update_message,
)

MAC = "mac.alice.members.example."
NEW = add("new.alice.members.example.", 60, "A", "192.0.2.9")
FORGED = Key(ADMIN.name, ADMIN.algorithm, b"guess" * 8)


def with_record(wire: bytes, record: bytes) -> bytes:
    return wire[:10] + struct.pack("!H", int.from_bytes(wire[10:12], "big") + 1) + wire[12:] + record


@pytest.mark.rfc("8945", "10.1")
@pytest.mark.parametrize("skew", [-100_000, -301, 0, 301, 100_000])
@pytest.mark.parametrize(
    "wire",
    [query_message(ZONE, "AXFR"), update_message([NEW]), query_message("secret.carol.members.example.")],
    ids=["transfer", "update", "private name"],
)
def test_no_time_makes_us_sign_for_one_without_the_key(wire: bytes, skew: int) -> None:
    """CVE-2017-3142, CVE-2017-3143 and CVE-2017-11104: a reply signed before the request's MAC was checked."""
    core = Core()
    before = content(core.zone)
    core.clock.now += skew
    reply = core.ask(signed(wire, FORGED, T0)[0])
    assert reply.message.tsig is not None and reply.rcode == Rcode.NOTAUTH
    tsig = decode_tsig(reply.message.tsig, reply.wire)
    assert (tsig.error, tsig.mac, tsig.other) == (TsigError.BADSIG, b"", b"")
    assert not reply.answers and content(core.zone) == before


@pytest.mark.rfc("8945", "5.2.3")
def test_a_signed_reply_is_no_signature_for_a_request() -> None:
    """What we sign over a request's MAC must not pass as a request of the attacker's making (CVE-2017-3142)."""
    core = Core()
    core.clock.now += 1000
    request = signed(query_message(MAC), ALICE, T0)[0]
    late = core.ask(request)
    assert late.message.tsig is not None and late.message.tsig.rdlength > 50
    turned = late.wire[:2] + struct.pack("!H", Opcode.UPDATE << 11) + late.wire[4:]
    assert core.ask(turned).rcode in (Rcode.NOTAUTH, Rcode.FORMERR)
    assert not core.store.commits


@pytest.mark.parametrize("by", [None, FORGED, BOB], ids=["unsigned", "forged", "another member"])
def test_updates_of_those_who_may_not_take_no_room(by: Key | None) -> None:
    """CVE-2022-3094: memory was spent on an update before anyone asked whether it is allowed."""
    core = Core()
    big = [add(f"x{n}.alice.members.example.", 60, "TXT", "x" * 200) for n in range(50)]
    for number in range(100):
        wire = update_message(big, lease=1800, id=number)
        core.ask(signed(wire, by, T0)[0] if by else wire)
    assert not core.writer._queue and not core.dispatcher._replays._entries and not core.store.commits


def test_updates_of_those_who_may_wait_in_bounded_number() -> None:
    core = Core()
    replies: list[bytes] = []
    for number in range(MAX_QUEUE + 50):
        wire = signed(update_message([NEW], id=number), ADMIN, T0)[0]
        core.dispatcher.handle(wire, UDP, replies.append)
    assert len(core.writer._queue) == MAX_QUEUE and len(replies) == 50
    assert len(core.dispatcher._replays._entries) == MAX_QUEUE


@pytest.mark.rfc("8945", "5.2.1")
@pytest.mark.parametrize(
    "algorithm",
    [
        b"\0",
        b"\xc0\x0c",
        b"\x3f" + b"a" * 63 + b"\0",
        (b"\x3f" + b"b" * 63) * 3 + b"\x3d" + b"c" * 61 + b"\0",
        name("hmac-sha256.example."),
        name("HMAC-MD5.SIG-ALG.REG.INT."),
        b"\x01\xff\0",
        name("gss-tsig."),
    ],
    ids=["root", "pointer", "63", "255", "longer", "md5", "binary", "gss"],
)
@pytest.mark.parametrize("mac", [0, 16, 32, 65])
@pytest.mark.parametrize("key_name", [ALICE.name, name("nobody."), b"\0"], ids=["known", "unknown", "root"])
def test_an_algorithm_we_do_not_know_is_badkey_whatever_it_looks_like(
    algorithm: bytes, mac: int, key_name: bytes
) -> None:
    """CVE-2025-40775: an algorithm field out of the ordinary ended in an assertion."""
    core = Core()
    rdata = algorithm + struct.pack("!HIHH", 0, T0, 300, mac) + bytes(mac) + struct.pack("!3H", 7, 0, 0)
    for wire in (query_message(MAC), update_message([NEW]), encode(9, 0, [Question(name(ZONE), Type.AXFR, Class.IN)])):
        reply = core.ask(with_record(wire, encode_record(key_name, Type.TSIG, Class.ANY, 0, rdata)))
        assert reply.message.tsig is not None and reply.rcode == Rcode.NOTAUTH
        tsig = decode_tsig(reply.message.tsig, reply.wire)
        assert (tsig.error, tsig.mac, tsig.original_id) == (TsigError.BADKEY, b"", 7)
    assert core.metrics.faults.labels("dispatch")._value.get() == 0


@pytest.mark.rfc("8945", "4.2")
@pytest.mark.parametrize("fields", [(0, 16, 0), (0, 0, 6), (1, 0, 0), (0, 17, 65535)])
@pytest.mark.parametrize("algorithm", list(ALGORITHMS)[:2])
def test_time_error_and_other_data_of_any_value_end_in_an_answer(
    fields: tuple[int, int, int], algorithm: bytes
) -> None:
    core = Core()
    high, error, other = fields
    rdata = algorithm + struct.pack("!HIHH", high, T0, 65535, 32) + bytes(32) + struct.pack("!3H", 7, error, other)
    rdata += bytes(min(other, 600))
    reply = core.ask(with_record(query_message(MAC), encode_record(ALICE.name, Type.TSIG, Class.ANY, 0, rdata)))
    assert reply.rcode in (Rcode.FORMERR, Rcode.NOTAUTH)
    assert core.metrics.faults.labels("dispatch")._value.get() == 0
