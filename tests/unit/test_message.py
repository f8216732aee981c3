"""The message envelope: decoding to the last octet, building within limits, both against dnspython."""

import struct
import time

import dns.flags
import dns.message
import dns.rrset
import pytest

from protocol import message as messages
from protocol.constants import AA, AD, CD, QR, RA, RD, TC, Class, Opcode, Type, type_from_text, type_text
from protocol.edns import LlqOption, Opt, UpdateLease, llq_options, update_lease
from protocol.errors import DecodeError, EncodeError
from protocol.message import Builder, Message, Question, decode, encode, encode_record
from protocol.name import ROOT, from_text, to_text
from tests.support import golden

ZONE = from_text("members.example")
MAC = from_text("Mac.alice.members.example")
OPT_RR = Opt().encode()
TSIG_RR = encode_record(ROOT, Type.TSIG, Class.ANY, 0, b"")


def raw(counts: tuple[int, int, int, int], body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("!6H", 7, flags, *counts) + body


def empty_rr(rtype: int, rclass: int = Class.IN, ttl: int = 0, name: bytes = ROOT) -> bytes:
    return encode_record(name, rtype, rclass, ttl, b"")


def plain(message: Message) -> list[tuple[str, int, int, int, bytes]]:
    """Every record of the first two RR sections, its rdata whole where it has any."""
    return [
        (to_text(item.name), item.rtype, item.rclass, item.ttl, item.rdata(message.wire) if item.rdlength else b"")
        for item in message.answers + message.authority
    ]


# --- decoding -----------------------------------------------------------------------------------------------------


@pytest.mark.rfc("1035", "4.1.1")
@pytest.mark.rfc("1035", "2.3.2")
def test_header_fields_stand_where_the_rfc_draws_them() -> None:
    header = messages.decode_header(bytes.fromhex("abcd ad85 0001 0002 0003 0004"))
    assert header == (0xABCD, 0xAD85, 1, 2, 3, 4)
    assert header.is_response
    assert header.opcode == Opcode.UPDATE
    assert header.rcode == 5
    assert header.flags & (AA | RD | RA) == AA | RD | RA
    assert not header.flags & (TC | AD | CD)
    assert not messages.decode_header(bytes.fromhex("abcd 2d05 0001 0002 0003 0004")).is_response


@pytest.mark.parametrize("size", [0, 1, 11])
def test_less_than_a_header_is_no_message(size: int) -> None:
    with pytest.raises(DecodeError, match="shorter than its header"):
        decode(bytes(size))


def test_a_bare_header_is_a_message() -> None:
    message = decode(raw((0, 0, 0, 0)))
    assert message.id == 7
    assert (message.questions, message.answers, message.authority, message.additional) == ((), (), (), ())
    assert message.opt is None
    assert message.tsig is None


@pytest.mark.rfc("1035", "4.1")
@pytest.mark.parametrize(
    "item", golden.below("llq") + golden.below("update") + golden.below("tsig"), ids=lambda g: g.name
)
def test_packets_of_other_programs_decode_and_every_shorter_piece_does_not(item: golden.Golden) -> None:
    message = decode(item.wire)
    for record in message.answers + message.authority + message.additional:
        if record.rdlength:
            record.rdata(item.wire)
    for size in range(len(item.wire)):
        with pytest.raises(DecodeError):
            decode(item.wire[:size])
    with pytest.raises(DecodeError, match="after the last section"):
        decode(item.wire + b"\x00")


@pytest.mark.rfc("1035", "4.1.3")
def test_apple_registration_is_read_record_by_record() -> None:
    wire = golden.load("update/apple-register")
    message = decode(wire)
    service, kind = "MyWeb._http._tcp.members.example.", "_http._tcp.members.example."
    assert message.header.opcode == Opcode.UPDATE
    assert message.questions == (Question(ZONE, Type.SOA, Class.IN),)
    assert plain(message) == [
        (service, Type.SRV, Class.ANY, 0, b""),
        (service, Type.SRV, Class.IN, 4500, b"\0\0\0\0\x1f\x90" + from_text("client1.members.example")),
        (service, Type.TXT, Class.ANY, 0, b""),
        (service, Type.TXT, Class.IN, 4500, b"\x07path=/x"),
        ("_services._dns-sd._udp.members.example.", Type.PTR, Class.IN, 4500, from_text(kind)),
        (kind, Type.PTR, Class.IN, 4500, from_text(service)),
    ]
    assert update_lease(message.opt) == UpdateLease(7200)
    assert message.opt is not None
    assert message.opt.payload_size == 1440
    assert message.tsig is message.additional[1]
    assert message.tsig.name == ZONE  # written c058, into the rdata of the SRV


def test_apple_private_setup_has_opt_hinfo_tsig_in_this_order() -> None:
    wire = golden.load("llq/apple-private-setup")
    message = decode(wire)
    assert [item.rtype for item in message.additional] == [Type.OPT, Type.HINFO, Type.TSIG]
    assert message.additional[1].rdata(wire) == b"\x00\x00"
    assert llq_options(message.opt) == [LlqOption(1, 1, 5353, 0, 7200)]


@pytest.mark.rfc("8764", "6.2")
def test_the_ttl_of_a_remove_event_survives() -> None:
    message = decode(golden.load("llq/dnsextd-event-remove"))
    (record,) = message.answers
    assert record.ttl == 0xFFFFFFFF
    assert to_text(record.rdata(message.wire)) == "second._http._tcp.members.example."


@pytest.mark.rfc("2136", "2.4")
@pytest.mark.rfc("2136", "2.5")
def test_nsupdate_writes_every_form_and_each_is_kept() -> None:
    message = decode(golden.load("update/nsupdate-all-forms"))
    a_rdata, mail, target = b"\xc0\x00\x02\x01", from_text("Mail.members.example"), from_text("target.members.example")
    assert [(name[0], *rest) for name, *rest in plain(message)] == [
        ("a", Type.ANY, Class.ANY, 0, b""),
        ("b", Type.ANY, Class.NONE, 0, b""),
        ("c", Type.A, Class.ANY, 0, b""),
        ("d", Type.MX, Class.NONE, 0, b""),
        ("e", Type.A, Class.IN, 0, a_rdata),
        ("f", Type.MX, Class.IN, 3600, b"\x00\x0a" + mail),
        ("g", Type.ANY, Class.ANY, 0, b""),
        ("h", Type.TXT, Class.ANY, 0, b""),
        ("i", Type.PTR, Class.NONE, 0, target),
    ]


@pytest.mark.rfc("2136", "3.2")
@pytest.mark.rfc("1035", "3.2.1")
@pytest.mark.parametrize("rclass", [0, Class.IN, Class.CH, Class.NONE, Class.ANY, 65535])
@pytest.mark.parametrize("rtype", [0, Type.A, Type.SOA, Type.ANY, Type.AXFR, 65280, 65535])
@pytest.mark.parametrize("ttl", [0, 77, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
def test_odd_types_classes_and_ttls_of_empty_records_are_kept(rtype: int, rclass: int, ttl: int) -> None:
    (record,) = decode(raw((0, 1, 0, 0), empty_rr(rtype, rclass, ttl, MAC))).answers
    assert record == (MAC, rtype, rclass, ttl, 0, 12, 12 + len(MAC) + 10)


@pytest.mark.rfc("3597", "3")
@pytest.mark.rfc("5936", "3.4")
def test_unknown_types_are_opaque_octets() -> None:
    rdata = b"\xc0\x0c\xff"
    wire = raw((0, 1, 0, 0), encode_record(MAC, 65280, 4711, 5, rdata))
    (record,) = decode(wire).answers
    assert record.rdata(wire) == record.raw(wire) == rdata


def test_malformed_rdata_is_found_when_asked_for_and_not_before() -> None:
    """An UPDATE's TSIG is checked before its records are believed, so decoding must not stumble over them."""
    wire = raw((0, 1, 0, 0), encode_record(MAC, Type.A, Class.IN, 5, b"abc"))
    (record,) = decode(wire).answers
    assert record.raw(wire) == b"abc"
    with pytest.raises(DecodeError):
        record.rdata(wire)


@pytest.mark.rfc("6891", "6.1.1")
@pytest.mark.rfc("6891", "6.1.2")
@pytest.mark.rfc("8764", "3.2")
@pytest.mark.parametrize(
    ("counts", "body", "reason"),
    [
        ((0, 0, 0, 2), OPT_RR + OPT_RR, "second OPT"),
        ((0, 0, 0, 1), encode_record(MAC, Type.OPT, 1232, 0, b""), "not at the root"),
        ((0, 1, 0, 0), OPT_RR, "outside the additional"),
        ((0, 0, 1, 0), OPT_RR, "outside the additional"),
        ((0, 0, 0, 1), encode_record(ROOT, Type.OPT, 1232, 0, b"\x00\x01\x00"), "option header runs past"),
        ((0, 0, 0, 1), encode_record(ROOT, Type.OPT, 1232, 0, b"\x00\x01\x00\x01"), "option runs past"),
    ],
)
def test_an_opt_out_of_place_or_shape_is_refused(counts: tuple[int, int, int, int], body: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(raw(counts, body))


@pytest.mark.rfc("8945", "5.1")
@pytest.mark.parametrize(
    ("counts", "body", "reason"),
    [
        ((0, 0, 0, 2), TSIG_RR + OPT_RR, "not the last"),
        ((0, 0, 0, 2), TSIG_RR + TSIG_RR, "not the last"),
        ((0, 1, 0, 0), TSIG_RR, "outside the additional"),
        ((0, 0, 1, 1), TSIG_RR + TSIG_RR, "outside the additional"),
    ],
)
def test_a_tsig_out_of_place_is_refused(counts: tuple[int, int, int, int], body: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(raw(counts, body))


def test_opt_need_not_come_first() -> None:
    message = decode(raw((0, 0, 0, 3), empty_rr(65280) + OPT_RR + TSIG_RR))
    assert message.opt == Opt()
    assert message.tsig is message.additional[2]


@pytest.mark.rfc("1035", "4.1.3")
@pytest.mark.parametrize(
    ("counts", "body"),
    [
        ((1, 0, 0, 0), b""),
        ((1, 0, 0, 0), b"\x00\x00\x01\x00"),
        ((0, 1, 0, 0), bytes(10)),
        ((0, 1, 0, 0), bytes(9) + b"\x00\x01"),  # rdlength 1, no rdata
        ((1, 0, 0, 0), b"\x01a\x01b\x00"),  # name complete, type and class missing
        ((0, 1, 0, 0), b"\x04abcd\x00" + bytes(9)),
        ((65535, 65535, 65535, 65535), b""),
        ((0, 0, 0, 65535), OPT_RR),
    ],
)
def test_counts_that_promise_too_much_are_refused(counts: tuple[int, int, int, int], body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(raw(counts, body))


def pointer_flood(chain: int, label: bytes) -> bytes:
    """A 64 KiB message: a chain of pointers in the rdata of one record, all other owner names at its end."""
    links = bytearray(1)
    first = last = 12 + 11
    for _ in range(chain):
        here = first + len(links)
        links += label + struct.pack("!H", 0xC000 | last)
        last = here
    body = encode_record(ROOT, 65280, Class.IN, 0, bytes(links))
    owner = struct.pack("!HHHIH", 0xC000 | last, 65280, Class.IN, 0, 0)
    count = (65535 - 12 - len(body)) // len(owner)
    return raw((0, 1, count, 0), body + owner * count)


@pytest.mark.parametrize("label", [b"", b"\x01a"])
def test_a_flood_of_long_names_costs_no_more_than_its_octets(label: bytes) -> None:
    """Thousands of names of 126 pointers each once took 0.2 s and, without a bound, 4.5 s."""
    wire = pointer_flood(126, label)
    started = time.process_time()
    message = decode(wire)
    assert time.process_time() - started < 1.0
    assert len(message.authority) > 5000
    assert {item.name for item in message.authority} == {label * 126 + ROOT}


def test_a_longer_chain_of_pointers_is_refused_at_once() -> None:
    with pytest.raises(DecodeError, match="more than 127"):
        decode(pointer_flood(8000, b""))


def test_a_message_of_5957_empty_records_decodes() -> None:
    count = (65535 - 12) // 11
    assert len(decode(raw((0, 0, 0, count), empty_rr(0) * count)).additional) == count


# --- building -----------------------------------------------------------------------------------------------------


@pytest.mark.rfc("5936", "3.4")
def test_owner_names_are_compressed_to_the_longest_known_suffix_of_the_same_case() -> None:
    builder = Builder(1, QR | AA)
    builder.question(MAC, Type.A, Class.IN)
    assert builder.answer(MAC, Type.A, 5, b"abcd")
    assert builder.answer(from_text("nas.alice.members.example"), Type.A, 5, b"abcd")
    assert builder.authority(from_text("MEMBERS.example"), Type.NS, 5, ROOT)
    assert builder.additional(ROOT, Type.A, 5, b"abcd")
    wire = builder.finish()
    at = 12 + len(MAC) + 4
    assert wire[at : at + 2] == b"\xc0\x0c"
    assert wire[at + 16 : at + 22] == b"\x03nas\xc0\x10"
    assert wire[at + 36 : at + 46] == b"\x07MEMBERS\xc0\x1e"
    message = decode(wire)
    owners = [to_text(item.name) for item in message.answers + message.authority + message.additional]
    assert owners == ["Mac.alice.members.example.", "nas.alice.members.example.", "MEMBERS.example.", "."]
    assert [builder.count(section) for section in range(4)] == [1, 2, 1, 1]
    assert builder.size == len(wire)


@pytest.mark.rfc("1035", "4.1.4")
def test_names_first_written_beyond_pointer_reach_are_written_whole_again() -> None:
    builder = Builder(1, QR)
    far, near = from_text("far.example"), from_text("near.test")
    assert builder.answer(near, 65280, 0, bytes(0x3FFF - 12 - len(near) - 10 - 1))
    assert builder.size == 0x3FFE
    assert builder.answer(far, Type.A, 0, b"abcd")  # `far` begins at 3ffe, `example` at 4002
    for _ in range(2):
        assert builder.answer(far, Type.A, 0, b"abcd")
        assert builder.answer(from_text("other.example"), Type.A, 0, b"abcd")
        assert builder.answer(near, Type.A, 0, b"abcd")
    wire = builder.finish()
    owners = [item.name for item in decode(wire).answers]
    assert owners == [near, far] + [far, from_text("other.example"), near] * 2
    assert wire.count(b"\xff\xfe") == 2
    assert wire.count(b"\x07example") == 3
    oracle = dns.message.from_wire(wire, one_rr_per_rrset=True)
    assert [rrset.name.to_text() for rrset in oracle.answer] == [to_text(owner) for owner in owners]


def test_a_record_that_passes_the_limit_leaves_nothing_behind() -> None:
    builder = Builder(1, QR, limit=12 + 20)
    builder.question(ROOT, Type.A, Class.IN)
    before = builder.size
    assert not builder.answer(from_text("a.example"), Type.A, 0, b"abcd")
    assert (builder.size, builder.count(1)) == (before, 0)
    assert builder.answer(ROOT, Type.A, 0, b"abcd")  # 15 octets: exactly at the limit
    assert builder.size == 32
    assert not builder.answer(ROOT, 65280, 0, b"")
    assert len(decode(builder.finish()).answers) == 1


def test_no_pointer_aims_at_what_was_taken_out_again() -> None:
    """A name of a refused record must not be a target of later ones."""
    builder = Builder(1, QR, limit=64)
    assert not builder.answer(from_text("alice.members.example"), Type.TXT, 0, bytes(40))
    assert builder.answer(from_text("members.example"), Type.A, 0, b"abcd")
    point = builder.checkpoint()
    assert builder.answer(from_text("x.members.example"), Type.A, 0, b"abcd")
    builder.rollback(point)
    assert builder.authority(from_text("x.members.example"), Type.A, 0, b"abcd")
    message = decode(builder.finish())
    assert [to_text(item.name) for item in message.answers + message.authority] == [
        "members.example.",
        "x.members.example.",
    ]


def test_rollback_restores_counts_so_that_an_earlier_section_can_go_on() -> None:
    builder = Builder(1, QR)
    assert builder.answer(ZONE, Type.A, 0, b"abcd")
    point = builder.checkpoint()
    assert builder.additional(MAC, Type.A, 0, b"abcd")
    builder.opt(Opt())
    builder.rollback(point)
    assert builder.answer(MAC, Type.A, 0, b"efgh")
    message = decode(builder.finish())
    assert [item.name for item in message.answers] == [ZONE, MAC]
    assert message.additional == ()


@pytest.mark.rfc("1035", "4.1")
def test_sections_are_written_in_order() -> None:
    builder = Builder(1, QR)
    assert builder.authority(ZONE, Type.A, 0, b"abcd")
    with pytest.raises(EncodeError, match="in order"):
        builder.answer(ZONE, Type.A, 0, b"abcd")
    with pytest.raises(EncodeError, match="in order"):
        builder.question(ZONE, Type.A, Class.IN)
    assert len(decode(builder.finish()).authority) == 1


@pytest.mark.parametrize(
    ("rtype", "rclass", "ttl"), [(65536, 1, 0), (1, 65536, 0), (1, 1, 2**32), (1, 1, -1), (-1, 1, 0)]
)
def test_numbers_too_large_for_their_field_are_our_error_and_leave_nothing(rtype: int, rclass: int, ttl: int) -> None:
    builder = Builder(1, QR)
    with pytest.raises(EncodeError):
        builder.add(1, MAC, rtype, rclass, ttl, b"")
    assert builder.size == 12
    assert builder.answer(MAC, Type.A, 0, b"abcd")
    assert decode(builder.finish()).answers[0].name == MAC
    with pytest.raises(EncodeError):
        encode_record(MAC, rtype, rclass, ttl, b"")


def test_nothing_longer_than_65535_octets_is_written() -> None:
    builder = Builder(1, QR)
    assert not builder.answer(ROOT, 65280, 0, bytes(65536))
    assert not builder.answer(ROOT, 65280, 0, bytes(65535 - 12 - 11 + 1))
    assert builder.answer(ROOT, 65280, 0, bytes(65535 - 12 - 11))
    assert len(builder.finish()) == 65535
    builder.opt(Opt())
    with pytest.raises(EncodeError, match="65535"):
        builder.finish()
    with pytest.raises(EncodeError, match="65535"):
        encode(1, 0, answers=[(ROOT, 65280, 1, 0, bytes(65535))])
    with pytest.raises(EncodeError):
        encode(65536, 0)


def test_dnspython_reads_what_we_write() -> None:
    records = [
        (MAC, Type.AAAA, Class.IN, 120, bytes(15) + b"\x01"),
        (MAC, Type.TXT, Class.IN, 120, b"\x01a\x02bc"),
        (from_text("_x._tcp.alice.members.example"), Type.SRV, Class.IN, 9, b"\0\1\0\2\x11\x94" + MAC),
        (ZONE, 65280, Class.IN, 9, b"\xc0\xff"),
    ]
    soa = (ZONE, Type.SOA, Class.IN, 60, MAC + ZONE + struct.pack("!5I", 7, 8, 9, 10, 11))
    opt = Opt(1440, options=((3, b""), (10, b"12345678")), dnssec_ok=True)
    wire = encode(9, QR | AA | RD, [Question(MAC, Type.ANY, Class.IN)], records, [soa], [records[0]], opt)
    oracle = dns.message.from_wire(wire)
    assert oracle.id == 9
    assert oracle.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD
    assert oracle.question == [dns.rrset.from_text(to_text(MAC), 0, "IN", "ANY")]
    assert [rrset.to_text() for rrset in oracle.answer] == [
        "Mac.alice.members.example. 120 IN AAAA ::1",
        'Mac.alice.members.example. 120 IN TXT "a" "bc"',
        "_x._tcp.alice.members.example. 9 IN SRV 1 2 4500 Mac.alice.members.example.",
        "members.example. 9 IN TYPE65280 \\# 2 c0ff",
    ]
    assert oracle.authority[0].to_text() == (
        "members.example. 60 IN SOA Mac.alice.members.example. members.example. 7 8 9 10 11"
    )
    assert oracle.additional[0].to_text() == "Mac.alice.members.example. 120 IN AAAA ::1"
    assert (oracle.payload, oracle.edns, bool(oracle.ednsflags & dns.flags.DO)) == (1440, 0, True)
    assert [(option.otype, option.to_wire()) for option in oracle.options] == [(3, b""), (10, b"12345678")]


def test_we_read_what_dnspython_writes_compressed() -> None:
    oracle = dns.message.make_response(dns.message.make_query("a.members.example", "MX", use_edns=0))
    oracle.answer.append(dns.rrset.from_text("a.members.example.", 300, "IN", "MX", "10 mail.members.example."))
    oracle.authority.append(
        dns.rrset.from_text("members.example.", 300, "IN", "SOA", "ns.members.example. h.members.example. 1 2 3 4 5")
    )
    wire = oracle.to_wire()
    message = decode(wire)
    assert plain(message) == [
        ("a.members.example.", Type.MX, Class.IN, 300, b"\x00\x0a" + from_text("mail.members.example")),
        (
            "members.example.",
            Type.SOA,
            Class.IN,
            300,
            from_text("ns.members.example") + from_text("h.members.example") + struct.pack("!5I", 1, 2, 3, 4, 5),
        ),
    ]
    assert message.answers[0].rdlength < len(message.answers[0].rdata(wire))


@pytest.mark.rfc("3597", "5")
def test_type_mnemonics_and_numbers_are_read_back() -> None:
    assert type_text(Type.SRV) == "SRV"
    assert type_text(65280) == "TYPE65280"
    for rtype in (*Type, 0, 10, 65280, 65535):
        assert type_from_text(type_text(rtype)) == rtype
    assert type_from_text("aaaa") == type_from_text("type28") == Type.AAAA
    for text in ("", "TYPE", "TYPE65536", "TYPE-1", "TYPE٣", "BOGUS", "TYPE 1"):
        with pytest.raises(ValueError, match="unknown record type"):
            type_from_text(text)
