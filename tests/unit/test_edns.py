"""EDNS: the OPT record, LLQ, Update Lease and extended error options."""

import dns.edns
import dns.message
import pytest

from protocol import edns
from protocol.constants import Ede, EdnsOption
from protocol.edns import LlqOption, Opt, UpdateLease, llq_options, update_lease
from protocol.errors import DecodeError, EncodeError
from protocol.message import decode, encode
from tests.support import golden

ID = 0x4DE9036B67458B6B


def through_the_wire(opt: Opt) -> Opt | None:
    return decode(encode(1, 0, opt=opt)).opt


@pytest.mark.rfc("6891", "6.1.3")
@pytest.mark.parametrize(
    "opt",
    [
        Opt(),
        Opt(payload_size=0),
        Opt(payload_size=65535, extended_rcode=255, version=255, dnssec_ok=True),
        Opt(options=((65001, b""),)),
        Opt(options=((65001, b"x"), (3, b""), (65001, b"x"), (3, b""))),
    ],
)
def test_opt_comes_back_as_it_was_sent(opt: Opt) -> None:
    assert through_the_wire(opt) == opt


def test_extended_rcode_and_version_are_where_dnspython_looks_for_them() -> None:
    oracle = dns.message.from_wire(encode(1, 0x8000, opt=Opt(1232, extended_rcode=1, options=((65001, b"ab"),))))
    assert int(oracle.rcode()) == 16  # BADVERS
    assert (oracle.payload, oracle.edns) == (1232, 0)
    assert [(int(option.otype), option.to_wire()) for option in oracle.options] == [(65001, b"ab")]


@pytest.mark.rfc("6891", "6.1.2")
def test_options_of_dig_are_kept_in_order() -> None:
    opt = decode(golden.load("edns/dig-options")).opt
    assert opt is not None
    assert (opt.payload_size, opt.version, opt.dnssec_ok) == (1232, 0, True)
    assert [(code, len(data)) for code, data in opt.options] == [(3, 0), (8, 7), (10, 8)]
    assert opt.all(EdnsOption.NSID) == [b""]
    assert opt.all(EdnsOption.LLQ) == []


@pytest.mark.parametrize(
    "opt",
    [
        Opt(payload_size=65536),
        Opt(version=256),
        Opt(options=((65536, b""),)),
        Opt(options=((1, bytes(65536)),)),
        Opt(options=((1, bytes(40000)),) * 2),
    ],
)
def test_an_opt_that_fits_no_field_is_our_error(opt: Opt) -> None:
    with pytest.raises(EncodeError):
        opt.encode()


@pytest.mark.rfc("8764", "3.2")
@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        ("apple-setup", LlqOption(1, edns.LlqOpcode.SETUP, 0, 0, 7200)),
        ("dnsextd-challenge", LlqOption(1, edns.LlqOpcode.SETUP, 0, ID, 7200)),
        ("apple-challenge-response", LlqOption(1, edns.LlqOpcode.SETUP, 0, ID, 7200)),
        ("dnsextd-ack-answers", LlqOption(1, edns.LlqOpcode.SETUP, 0, ID, 7200)),
        ("dnsextd-event-add", LlqOption(1, edns.LlqOpcode.EVENT, 0, ID, 0x1BF9)),
        ("apple-event-add-ack", LlqOption(1, edns.LlqOpcode.EVENT, 0, ID, 0x1BF9)),
        ("dnsextd-event-remove", LlqOption(1, edns.LlqOpcode.EVENT, 0, ID, 0x1BF6)),
        ("apple-cancel", LlqOption(1, edns.LlqOpcode.REFRESH, 0, ID, 0)),
        ("dnsextd-cancel-ack", LlqOption(1, edns.LlqOpcode.REFRESH, 0, ID, 0)),
        ("apple-private-setup", LlqOption(1, edns.LlqOpcode.SETUP, 5353, 0, 7200)),
    ],
)
def test_llq_options_of_apple_programs(packet: str, expected: LlqOption) -> None:
    opt = decode(golden.load(f"llq/{packet}")).opt
    assert opt is not None
    assert llq_options(opt) == [expected]
    assert opt == Opt(1440, options=(expected.encode(),))


def test_an_llq_message_of_ours_equals_the_octets_of_apple() -> None:
    wire = golden.load("llq/apple-setup")
    message = decode(wire)
    opt = Opt(1440, options=(LlqOption(1, edns.LlqOpcode.SETUP, 0, 0, 7200).encode(),))
    assert encode(0xCC68, 0x0100, message.questions, opt=opt) == wire


@pytest.mark.rfc("8764", "3.2")
def test_several_llq_options_keep_their_order_and_extreme_values() -> None:
    first, second = LlqOption(0, 0, 0, 0, 0), LlqOption(65535, 65535, 65535, 2**64 - 1, 2**32 - 1)
    opt = through_the_wire(Opt(options=(second.encode(), (3, b""), first.encode())))
    assert llq_options(opt) == [second, first]
    assert llq_options(None) == llq_options(Opt()) == []


@pytest.mark.parametrize("size", [0, 1, 17, 19, 36])
def test_an_llq_option_has_18_octets(size: int) -> None:
    with pytest.raises(DecodeError, match="18 octets"):
        llq_options(Opt(options=(LlqOption(1, 1, 0, 0, 0).encode(), (EdnsOption.LLQ, bytes(size)))))


@pytest.mark.rfc("9664", "4")
@pytest.mark.parametrize(
    ("lease", "octets"),
    [
        (UpdateLease(7200), "00001c20"),
        (UpdateLease(0), "00000000"),
        (UpdateLease(2**32 - 1), "ffffffff"),
        (UpdateLease(1800, 2**32 - 1), "00000708ffffffff"),
        (UpdateLease(1, 0), "0000000100000000"),
    ],
)
def test_both_forms_of_the_lease_option(lease: UpdateLease, octets: str) -> None:
    assert lease.encode() == (EdnsOption.UPDATE_LEASE, bytes.fromhex(octets))
    assert update_lease(through_the_wire(Opt(options=(lease.encode(),)))) == lease


@pytest.mark.rfc("9664", "4")
def test_a_lease_reply_of_dnsextd_equals_ours() -> None:
    wire = golden.load("update/dnsextd-register-reply")
    assert encode(0xCEAD, 0xA800, opt=Opt(1440, options=(UpdateLease(7200).encode(),))) == wire
    assert update_lease(decode(wire).opt) == UpdateLease(7200, None)


def test_no_lease_option_is_none() -> None:
    assert update_lease(None) is None
    assert update_lease(Opt(options=((3, b""),))) is None


@pytest.mark.parametrize("size", [0, 1, 3, 5, 7, 9, 12])
def test_a_lease_option_has_4_or_8_octets(size: int) -> None:
    with pytest.raises(DecodeError, match="neither 4 nor 8"):
        update_lease(Opt(options=((EdnsOption.UPDATE_LEASE, bytes(size)),)))


def test_two_lease_options_are_refused() -> None:
    with pytest.raises(DecodeError, match="second"):
        update_lease(Opt(options=(UpdateLease(1).encode(), UpdateLease(1).encode())))


@pytest.mark.rfc("8914", "2")
def test_extended_errors_are_read_by_dnspython_and_by_us() -> None:
    opt = Opt(options=(edns.extended_error(Ede.PROHIBITED, "key may not touch this name"), edns.extended_error(0, "")))
    oracle = dns.message.from_wire(encode(1, 0x8000, opt=opt))
    assert [(int(item.code), item.text or "") for item in oracle.options if isinstance(item, dns.edns.EDEOption)] == [
        (18, "key may not touch this name"),
        (0, ""),
    ]
    assert edns.extended_errors(through_the_wire(opt)) == [(18, "key may not touch this name"), (0, "")]


@pytest.mark.rfc("8914", "3")
def test_extended_error_text_is_cut_at_a_character() -> None:
    _, data = edns.extended_error(Ede.OTHER, "é" * 150 + "x")
    assert data[2:].decode("utf-8") == "é" * 100
    _, data = edns.extended_error(Ede.OTHER, "x" + "é" * 150)
    assert data[2:].decode("utf-8") == "x" + "é" * 99


@pytest.mark.rfc("8914", "2")
@pytest.mark.rfc("8914", "3")
def test_extended_errors_of_a_peer_may_be_anything() -> None:
    options = tuple((int(EdnsOption.EDE), data) for data in (b"", b"\x00", b"\x00\x12\xff\xfe", b"\x00\x12nul\x00\x00"))
    assert edns.extended_errors(Opt(options=options)) == [(18, "\ufffd\ufffd"), (18, "nul")]
    assert edns.extended_errors(None) == []
