"""Rdata: names made whole, forms checked, canonical form."""

import pytest

from protocol import rdata
from protocol.constants import Type
from protocol.errors import DecodeError
from protocol.name import from_text

HEAD = from_text("Members.Example") + b"\x00"  # 18 octets that compressed names point into
POINTER = b"\xc0\x00"
WHOLE = HEAD[:-1]

# type, rdata as sent after HEAD, rdata with its names whole
WELL_FORMED = [
    (Type.A, b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x01"),
    (Type.AAAA, bytes(range(16)), bytes(range(16))),
    (Type.NS, POINTER, WHOLE),
    (Type.MD, POINTER, WHOLE),
    (Type.MF, POINTER, WHOLE),
    (Type.MB, POINTER, WHOLE),
    (Type.MG, POINTER, WHOLE),
    (Type.MR, POINTER, WHOLE),
    (Type.CNAME, b"\x01x" + POINTER, b"\x01x" + WHOLE),
    (Type.PTR, b"\x00", b"\x00"),
    (Type.DNAME, POINTER, WHOLE),
    (Type.SOA, POINTER + b"\x01h" + POINTER + bytes(20), WHOLE + b"\x01h" + WHOLE + bytes(20)),
    (Type.MX, b"\x00\x0a" + POINTER, b"\x00\x0a" + WHOLE),
    (Type.AFSDB, b"\x00\x01" + POINTER, b"\x00\x01" + WHOLE),
    (Type.RT, b"\x00\x01" + POINTER, b"\x00\x01" + WHOLE),
    (Type.KX, b"\x00\x01" + POINTER, b"\x00\x01" + WHOLE),
    (Type.PX, b"\x00\x01" + POINTER + POINTER, b"\x00\x01" + WHOLE + WHOLE),
    (Type.MINFO, POINTER + POINTER, WHOLE + WHOLE),
    (Type.RP, POINTER + b"\x00", WHOLE + b"\x00"),
    (Type.SRV, bytes(6) + b"\x03Mac" + POINTER, bytes(6) + b"\x03Mac" + WHOLE),
    (Type.NAPTR, bytes(4) + b"\x01u\x00\x02!!" + POINTER, bytes(4) + b"\x01u\x00\x02!!" + WHOLE),
    (Type.SIG, bytes(18) + POINTER + b"sig", bytes(18) + WHOLE + b"sig"),
    (Type.NXT, POINTER + b"\x01", WHOLE + b"\x01"),
    (Type.WKS, bytes(5), bytes(5)),
    (Type.WKS, bytes(5) + b"\xc0\x00", bytes(5) + b"\xc0\x00"),
    (Type.HINFO, b"\x00\x00", b"\x00\x00"),
    (Type.HINFO, b"\x01a\x02bc", b"\x01a\x02bc"),
    (Type.TXT, b"\x00", b"\x00"),
    (Type.TXT, b"\xff" + b"x" * 255 + b"\x01\xc0", b"\xff" + b"x" * 255 + b"\x01\xc0"),
    (Type.RRSIG, POINTER, POINTER),  # opaque: RFC 3597 lets no type newer than itself be compressed
    (Type.SVCB, b"\x00\x01\xc0\x00", b"\x00\x01\xc0\x00"),
    (65280, POINTER, POINTER),
    (65280, b"", b""),
]


@pytest.mark.rfc("3597", "4")
@pytest.mark.rfc("1035", "3.3")
@pytest.mark.parametrize(("rtype", "sent", "whole"), WELL_FORMED)
def test_names_are_made_whole_where_the_rfcs_allow_compression(rtype: int, sent: bytes, whole: bytes) -> None:
    message = HEAD + sent + b"after"
    assert rdata.expand(rtype, message, len(HEAD), len(sent)) == whole
    assert rdata.expand(rtype, whole, 0, len(whole)) == whole


@pytest.mark.rfc("4034", "6.2")
@pytest.mark.rfc("6672", "2.5")
@pytest.mark.parametrize(("rtype", "sent", "whole"), WELL_FORMED)
def test_canonical_form_folds_names_and_only_names(rtype: int, sent: bytes, whole: bytes) -> None:
    folded = rdata.canonical(rtype, whole)
    assert folded == whole.replace(WHOLE, WHOLE.lower()).replace(b"\x03Mac", b"\x03mac")
    assert rdata.canonical(rtype, folded) == folded
    if not rdata.has_name(rtype):
        assert folded == whole


def test_canonical_form_keeps_the_case_of_strings_beside_names() -> None:
    naptr = b"\x00\x01\x00\x02\x01U\x03E2U\x02!A" + b"\x01X\x00"
    assert rdata.canonical(Type.NAPTR, naptr) == naptr[:-3] + b"\x01x\x00"
    srv = b"AAAAAA" + b"\x01X\x00"
    assert rdata.canonical(Type.SRV, srv) == b"AAAAAA" + b"\x01x\x00"
    assert rdata.canonical(Type.TXT, b"\x02AB") == b"\x02AB"


@pytest.mark.rfc("1035", "3.3")
@pytest.mark.parametrize(
    ("rtype", "sent"),
    [
        (Type.A, b""),
        (Type.A, b"abc"),
        (Type.A, b"abcde"),
        (Type.AAAA, bytes(15)),
        (Type.AAAA, bytes(17)),
        (Type.NS, b""),
        (Type.NS, POINTER + b"\x00"),
        (Type.NS, b"\x40" + bytes(64)),
        (Type.MX, b"\x00"),
        (Type.MX, b"\x00\x0a"),
        (Type.SRV, bytes(6)),
        (Type.SRV, bytes(5)),
        (Type.SOA, POINTER + POINTER + bytes(19)),
        (Type.SOA, POINTER + POINTER + bytes(21)),
        (Type.SOA, POINTER),
        (Type.TXT, b""),
        (Type.TXT, b"\x02a"),
        (Type.TXT, b"\x01ab\x00\x09"),
        (Type.HINFO, b"\x00"),
        (Type.HINFO, b""),
        (Type.HINFO, b"\x00\x00\x00"),
        (Type.WKS, bytes(4)),
        (Type.NAPTR, bytes(4) + b"\x00\x00\x00"),
        (Type.SIG, bytes(18)),
    ],
)
def test_rdata_without_the_form_of_its_type_is_refused(rtype: int, sent: bytes) -> None:
    """Octets follow that would complete the name: a name may not borrow them from the next record."""
    with pytest.raises(DecodeError):
        rdata.expand(rtype, HEAD + sent + bytes(40), len(HEAD), len(sent))


@pytest.mark.parametrize(
    ("sent", "length"),
    [(b"\x03abc\x00", 4), (b"\x03abc\x00", 2), (b"\xc0\x00", 1), (b"\x01a\xc0\x00", 3)],
)
def test_a_name_that_ends_after_its_rdata_is_refused(sent: bytes, length: int) -> None:
    with pytest.raises(DecodeError, match="shorter"):
        rdata.expand(Type.PTR, HEAD + sent, len(HEAD), length)


@pytest.mark.parametrize("target", [18, 19, 20, 200])
def test_a_pointer_in_rdata_must_go_back(target: int) -> None:
    with pytest.raises(DecodeError, match="backward"):
        rdata.expand(Type.PTR, HEAD + bytes((0xC0, target)) + bytes(300), len(HEAD), 2)


def test_a_name_in_rdata_may_point_at_an_earlier_name_of_the_same_rdata() -> None:
    sent = POINTER + b"\x01h\xc0\x12" + bytes(20)
    assert rdata.expand(Type.SOA, HEAD + sent, 18, len(sent)) == WHOLE + b"\x01h" + WHOLE + bytes(20)


@pytest.mark.rfc("1035", "3.3.13")
def test_soa_numbers_are_read_and_replaced_in_place() -> None:
    numbers = b"".join(value.to_bytes(4, "big") for value in (7, 8, 9, 10, 11))
    soa = from_text("ns.example") + from_text("hostmaster.example") + numbers
    assert rdata.soa_serial(soa) == 7
    assert rdata.soa_minimum(soa) == 11
    changed = rdata.soa_with_serial(soa, 0xFFFFFFFF)
    assert rdata.soa_serial(changed) == 0xFFFFFFFF
    assert rdata.soa_with_serial(changed, 7) == soa
