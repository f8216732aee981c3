"""EDNS(0) where something is amiss (RFC 6891): options nobody knows, an OPT at fault, replies that do not fit."""

import struct

import pytest

from protocol.constants import QR, RD, TC, Class, Rcode, Type
from protocol.edns import Opt
from protocol.message import decode, encode_record
from tests.support.builders import ADMIN, Core, Item, name, query_message, update_message, zone_of_text

MAC = "mac.alice.members.example."
OPT = Opt(1232).encode()


@pytest.mark.rfc("6891", "6.1.2")
def test_options_that_nobody_knows_are_ignored() -> None:
    core = Core()
    reply = core.ask(query_message(MAC, edns=Opt(1232, options=((65001, b"x"), (0, b""), (65535, bytes(100))))))
    assert reply.answers == core.query(MAC).answers != []
    assert reply.message.opt is not None and reply.message.opt.options == ()


@pytest.mark.rfc("6891", "6.1.1")
@pytest.mark.rfc("6891", "7")
@pytest.mark.parametrize(
    "extra",
    [
        [OPT, OPT],
        [encode_record(name("x."), Type.OPT, 1232, 0, b"")],
        [encode_record(b"\0", Type.OPT, 1232, 0, b"\x00\x0a\x00\x08short")],
        [encode_record(b"\0", Type.OPT, 1232, 0, b"\x00\x0a\x00")],
    ],
    ids=["two", "not at the root", "an option that runs past", "a head that runs past"],
)
@pytest.mark.parametrize("questions", [0, 1, 2])
def test_an_opt_at_fault_is_formerr_with_the_question_and_an_opt(extra: list[bytes], questions: int) -> None:
    question = query_message(MAC)[12:]
    wire = struct.pack("!6H", 9, RD, questions, 0, 0, len(extra)) + question * questions + b"".join(extra)
    (sent,) = Core().handle(wire)
    reply = decode(sent)
    assert (reply.id, reply.header.flags) == (9, QR | RD | Rcode.FORMERR)
    assert reply.opt == Opt(1232)
    assert [each.name for each in reply.questions] == [name(MAC)] * min(questions, 1)
    assert not reply.answers and not reply.authority and len(reply.additional) == 1


@pytest.mark.rfc("6891", "6.1.1")
def test_an_opt_is_no_data() -> None:
    """Neither in an update nor as what is asked for."""
    core = Core()
    item = Item(name(MAC), Type.OPT, Class.IN, 60, b"")
    assert core.ask(core.signed(update_message([item], edns=False), ADMIN)).rcode == Rcode.FORMERR
    assert core.query(MAC, Type.OPT).rcode == Rcode.NOTIMP


@pytest.mark.rfc("6891", "6.2.3")
def test_the_size_counts_for_its_own_request_only() -> None:
    core = Core([zone_of_text("\n".join(f"x.members.example. 1 TXT {n:03}{'x' * 90}" for n in range(10)))])
    assert not core.query("x.members.example.", "TXT", edns=Opt(4096)).flag(TC)
    assert core.query("x.members.example.", "TXT", edns=Opt(512)).flag(TC)
    assert core.query("x.members.example.", "TXT").flag(TC)


@pytest.mark.rfc("6891", "7")
def test_a_truncated_reply_has_its_opt_if_the_request_had_one() -> None:
    core = Core([zone_of_text("\n".join(f"x.members.example. 1 TXT {n:03}{'x' * 90}" for n in range(20)))])
    reply = core.query("x.members.example.", "TXT", edns=Opt(1232))
    assert reply.flag(TC) and reply.message.opt is not None
    plain = core.query("x.members.example.", "TXT")
    assert plain.flag(TC) and plain.message.opt is None
