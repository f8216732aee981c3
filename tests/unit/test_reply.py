"""Replies: flags, limits, what is left out first, OPT and signature."""

import struct

import pytest

from protocol.constants import AA, QR, RD, TC, EdnsOption, Opcode, Rcode, TsigError, Type
from protocol.edns import Opt, extended_error
from protocol.message import Message, Question, decode, decode_header, encode
from protocol.name import fold
from protocol.tsig import decode_tsig, sign, verify
from server.answer import Answer
from server.keyring import Principal
from server.peer import Peer
from server.reply import UDP_PAYLOAD, Reply, header_only, size_limit
from server.zone.model import RR
from tests.support.builders import T0, TCP, UDP, Seen, key, name, query_message, rdata, seen, signed, soa_rdata

OWNER = name("mac.members.example.")
APEX = fold(name("members.example."))
LLQ_OPTION = (EdnsOption.LLQ, bytes(18))


def request(edns: Opt | None = None, flags: int = RD) -> Message:
    return decode(query_message("mac.members.example.", edns=edns, flags=flags))


def addresses(count: int, owner: bytes = OWNER) -> list[RR]:
    return [RR(owner, Type.AAAA, 60, number.to_bytes(16, "big")) for number in range(count)]


def build(message: Message, answer: Answer | None = None, peer: Peer = UDP, rcode: int = 0) -> Seen:
    return seen(Reply(message, peer, unix=T0).build(rcode, answer))


@pytest.mark.rfc("8764", "3.2")
@pytest.mark.rfc("1035", "2.3.4")
@pytest.mark.rfc("4035", "3")
@pytest.mark.parametrize(
    ("edns", "peer", "limit"),
    [
        (None, UDP, 512),
        (Opt(0), UDP, 512),
        (Opt(100), UDP, 512),
        (Opt(512), UDP, 512),
        (Opt(900), UDP, 900),
        (Opt(1232), UDP, 1232),
        (Opt(4096), UDP, UDP_PAYLOAD),
        (Opt(0, options=(LLQ_OPTION,)), UDP, UDP_PAYLOAD),
        (Opt(600, options=(LLQ_OPTION,)), UDP, 600),
        (None, TCP, 65535),
        (Opt(512), Peer("tls", "192.0.2.7", 1, 1), 65535),
    ],
)
def test_the_limit_of_a_reply(edns: Opt | None, peer: Peer, limit: int) -> None:
    assert size_limit(request(edns), peer) == limit


@pytest.mark.rfc("1035", "4.1.1")
@pytest.mark.rfc("4035", "3")
@pytest.mark.rfc("4035", "3.1.6")
@pytest.mark.parametrize("flags", [0, RD, 0x07F0, Opcode.UPDATE << 11 | RD])
def test_flags_of_the_request_that_come_back_are_opcode_and_rd(flags: int) -> None:
    header = build(request(flags=flags)).message.header
    assert header.flags == QR | (flags & (0x7800 | RD))
    assert header_only(header, Rcode.FORMERR) == struct.pack("!6H", 0x4321, header.flags | Rcode.FORMERR, 0, 0, 0, 0)


@pytest.mark.rfc("1035", "4.1.1")
def test_aa_is_the_answers() -> None:
    assert build(request(), Answer()).flag(AA)
    assert not build(request(), Answer(is_authoritative=False)).flag(AA)
    assert not build(request()).flag(AA)


@pytest.mark.rfc("1035", "4.1.2")
def test_the_question_comes_back_in_its_own_case() -> None:
    message = decode(query_message("MaC.members.EXAMPLE."))
    assert build(message, Answer()).message.questions == message.questions


@pytest.mark.rfc("1035", "4.1.1")
@pytest.mark.parametrize("edns", [None, Opt(700), Opt(1232)])
def test_a_truncated_reply_fits_and_says_so(edns: Opt | None) -> None:
    limit = size_limit(request(edns), UDP)
    for count in range(0, 60, 3):
        reply = build(request(edns), Answer(answers=addresses(count)))
        assert len(reply.wire) <= limit
        assert reply.flag(TC) == (not reply.answers and count > 0)
        assert len(reply.answers) in (0, count), "an RRset goes whole or not at all"
    assert reply.flag(TC)
    whole = build(request(edns), Answer(answers=addresses(59)), TCP)
    assert len(whole.answers) == 59 and not whole.flag(TC)


@pytest.mark.rfc("2181", "9")
def test_what_of_the_authority_does_not_fit_truncates() -> None:
    soa = RR(APEX, Type.SOA, 60, soa_rdata())
    answer = Answer(answers=addresses(16), authority=[soa])
    reply = build(request(), answer)
    assert reply.flag(TC) and len(reply.answers) == 16 and not reply.authority


@pytest.mark.rfc("2181", "9")
def test_additional_records_go_first_and_silently() -> None:
    answer = Answer(answers=addresses(14), additional=addresses(3, name("host.members.example.")))
    reply = build(request(), answer)
    assert (len(reply.answers), reply.additional, reply.flag(TC)) == (14, [], False)


@pytest.mark.rfc("9471", "3.1")
@pytest.mark.rfc("9471", "1")
@pytest.mark.parametrize("aliases", [[], [RR(OWNER, Type.CNAME, 60, APEX)]], ids=["at once", "behind an alias"])
def test_a_referral_without_all_its_glue_is_truncated(aliases: list[RR]) -> None:
    ns = RR(APEX, Type.NS, 60, rdata("NS", "ns.members.example."))
    many = Answer(
        is_authoritative=bool(aliases),
        answers=aliases,
        authority=[ns],
        additional=addresses(20, name("ns.members.example.")),
    )
    assert build(request(), many).flag(TC)
    many.additional = many.additional[:3]
    reply = build(request(), many)
    assert len(reply.additional) == 3 and not reply.flag(TC)


def test_several_questions_that_would_not_fit_are_not_echoed() -> None:
    """Behind pointers a question takes 6 octets; copied, these take 197 each and have no suffix in common."""
    labels = b"\x3f" * 192  # a name of 63-octet labels from whichever of its first 64 octets one begins
    zeros = bytes(5 * 14)  # the ends of all those names, and 14 questions for the root
    pointers = b"".join(struct.pack("!HHH", 0xC00C + number, 1, 1) for number in range(64))
    wire = struct.pack("!6H", 7, 0, 14 + 64, 0, 0, 0) + labels + zeros + pointers
    assert len(wire) < UDP_PAYLOAD
    for peer in (UDP, TCP):
        reply = build(decode(wire), peer=peer, rcode=Rcode.FORMERR)
        assert len(reply.wire) <= size_limit(decode(wire), peer)
        assert reply.rcode == Rcode.FORMERR
    assert build(decode(wire), rcode=Rcode.FORMERR).message.questions == ()
    two = decode(encode(7, 0, [Question(OWNER, 1, 1), Question(OWNER, 28, 1)]))
    assert build(two).message.questions == two.questions


@pytest.mark.rfc("6891", "7")
def test_an_opt_answers_an_opt_and_only_that() -> None:
    assert build(request()).message.opt is None
    opt = build(request(Opt(4096, dnssec_ok=True))).message.opt
    assert opt is not None
    assert (opt.payload_size, opt.version, opt.dnssec_ok, opt.options) == (UDP_PAYLOAD, 0, True, ())


@pytest.mark.rfc("6891", "6.1.3")
def test_an_extended_rcode_is_split_over_header_and_opt() -> None:
    reply = build(request(Opt(1232, version=1)), rcode=Rcode.BADVERS)
    assert reply.rcode == Rcode.BADVERS
    assert reply.message.header.rcode == 0


@pytest.mark.rfc("8914", "3")
def test_the_words_of_an_error_go_before_the_limit_is_passed() -> None:
    label = "a" * 63
    message = decode(query_message(f"{label}.{label}.{label}.{'b' * 55}.", edns=Opt(512)))
    options = [extended_error(18, "x" * 300)]
    reply = seen(Reply(message, UDP, unix=T0).build(Rcode.REFUSED, None, options))
    assert len(reply.wire) <= 512
    assert reply.errors == [(18, "x" * 200)]
    with_key = key(f"{'k' * 63}.members.example.")
    wire, _ = signed(message.wire, with_key, T0)
    message = decode(wire)
    assert message.tsig is not None
    reply = seen(
        Reply(
            message, UDP, unix=T0, principal=Principal(with_key, None, None), tsig=decode_tsig(message.tsig, wire)
        ).build(Rcode.REFUSED, None, options)
    )
    assert len(reply.wire) <= 512
    assert reply.errors == [(18, "")]


# Signatures


KEY = key("k.members.example.")
ALICE = Principal(KEY, None, None)


def signed_request(edns: Opt | None = None) -> Message:
    return decode(signed(query_message("mac.members.example.", edns=edns), KEY, T0)[0])


def of(message: Message, principal: Principal | None = ALICE) -> Reply:
    assert message.tsig is not None
    tsig = decode_tsig(message.tsig, message.wire)
    return Reply(message, UDP, unix=T0 + 5, principal=principal, tsig=tsig)


@pytest.mark.rfc("8945", "5.3")
@pytest.mark.rfc("8945", "5.1")
@pytest.mark.rfc("6281", "7.2")
@pytest.mark.parametrize("edns", [None, Opt(512), Opt(1232)])
def test_a_signed_reply_is_last_signed_and_fits(edns: Opt | None) -> None:
    message = signed_request(edns)
    assert message.tsig is not None
    mac = decode_tsig(message.tsig, message.wire).mac
    for count in range(40):
        reply = seen(of(message).build(0, Answer(answers=addresses(count))))
        assert len(reply.wire) <= size_limit(message, UDP)
        assert reply.message.tsig == reply.message.additional[-1]
        tsig = decode_tsig(reply.message.tsig, reply.wire)
        assert verify(reply.message, tsig, KEY, now=T0 + 5, request_mac=mac).error == TsigError.NOERROR
        assert tsig.time_signed == T0 + 5


@pytest.mark.rfc("8945", "5.3")
def test_a_request_without_a_signature_never_gets_one() -> None:
    assert build(request()).message.tsig is None


@pytest.mark.rfc("8945", "5.3.2")
@pytest.mark.parametrize("error", [TsigError.BADKEY, TsigError.BADSIG])
def test_an_unsigned_error_has_an_empty_mac(error: TsigError) -> None:
    message = signed_request()
    assert message.tsig is not None
    request_tsig = decode_tsig(message.tsig, message.wire)
    reply = seen(of(message, None).tsig_error(error, request_tsig))
    assert reply.message.header.rcode == Rcode.NOTAUTH
    assert reply.message.tsig is not None
    tsig = decode_tsig(reply.message.tsig, reply.wire)
    assert (tsig.error, tsig.mac, tsig.other, tsig.key_name, tsig.algorithm) == (
        error,
        b"",
        b"",
        request_tsig.key_name,
        request_tsig.algorithm,
    )


@pytest.mark.rfc("8945", "5.2.3")
def test_badtime_is_signed_with_the_clients_time_and_tells_ours() -> None:
    message = signed_request()
    assert message.tsig is not None
    request_tsig = decode_tsig(message.tsig, message.wire)
    reply = seen(of(message).tsig_error(TsigError.BADTIME, request_tsig))
    assert reply.message.tsig is not None
    tsig = decode_tsig(reply.message.tsig, reply.wire)
    assert (tsig.error, tsig.time_signed, tsig.fudge) == (TsigError.BADTIME, T0, 300)
    assert tsig.other == (T0 + 5).to_bytes(6, "big")
    assert verify(reply.message, tsig, KEY, now=T0, request_mac=request_tsig.mac).error == TsigError.NOERROR


def test_a_header_is_all_there_is_of_a_reply_to_what_cannot_be_read() -> None:
    wire = header_only(decode_header(sign(query_message("x."), KEY, now=T0)[0]), Rcode.FORMERR)
    assert len(wire) == 12
    assert decode(wire).header.rcode == Rcode.FORMERR
