"""TSIG against dnspython and against packets that BIND and Knot programs signed."""

# dnspython leaves its tsig module without annotations.
# mypy: disable-error-code="no-untyped-call"

import struct
from dataclasses import replace

import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.TSIG
import dns.tsig
import pytest

from protocol import tsig as tsigs
from protocol.constants import QR, Class, Rcode, TsigError, Type
from protocol.edns import Opt
from protocol.errors import DecodeError, EncodeError
from protocol.message import Message, Question, decode, encode, encode_record
from protocol.name import from_text
from protocol.tsig import ALGORITHMS, MD5, SHA256, Algorithm, Key, Tsig, decode_tsig, sign, unsigned_error, verify
from tests.support import golden

NOW = 1_700_000_000
CAPTURED = 0x6B0421F1  # the second in which the packets under tests/data/tsig were made
OWNER = "alice.members.example"
SECRET = b"0123456789abcdef" * 2
KEY = Key(from_text(OWNER), SHA256, SECRET)
SHA1 = tsigs.algorithm_from_text("hmac-sha1")
QUERY = encode(0x1234, 0x0100, [Question(from_text("mac.alice.members.example"), Type.AAAA, Class.IN)], opt=Opt())
REPLY = encode(0x1234, QR, [Question(from_text("mac.alice.members.example"), Type.AAAA, Class.IN)])
CUT_BY_NAME = [ALGORITHMS[from_text(f"hmac-{cut}.")] for cut in ("sha256-128", "sha384-192", "sha512-256")]
EVERY_ALGORITHM = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=lambda item: item.text)


def opened(wire: bytes) -> tuple[Message, Tsig]:
    message = decode(wire)
    assert message.tsig is not None
    return message, decode_tsig(message.tsig, wire)


def check(
    wire: bytes, key: Key | None = KEY, *, now: int = NOW, request_mac: bytes = b"", previous: bytes | None = None
) -> TsigError:
    message, tsig = opened(wire)
    return verify(message, tsig, key, now=now, request_mac=request_mac, previous=previous).error


def theirs(key: Key, name: str = OWNER) -> dns.tsig.Key:
    return dns.tsig.Key(name, key.secret, key.algorithm.text)


def tsig_record(owner: bytes, algorithm: bytes, tsig: Tsig) -> bytes:
    """A TSIG record written by hand, nothing about it checked."""
    rdata = (
        algorithm
        + struct.pack("!HIHH", tsig.time_signed >> 32, tsig.time_signed & 0xFFFFFFFF, tsig.fudge, len(tsig.mac))
        + tsig.mac
        + struct.pack("!3H", tsig.original_id, tsig.error, len(tsig.other))
        + tsig.other
    )
    return encode_record(owner, Type.TSIG, Class.ANY, 0, rdata)


def with_record(wire: bytes, record: bytes) -> bytes:
    """`wire` with one more record at its end."""
    return wire[:10] + (int.from_bytes(wire[10:12], "big") + 1).to_bytes(2, "big") + wire[12:] + record


def changed(wire: bytes, **fields: object) -> bytes:
    """`wire` with fields of its TSIG replaced and nothing signed again."""
    message, tsig = opened(wire)
    assert message.tsig is not None
    body = wire[:10] + (message.header.arcount - 1).to_bytes(2, "big") + wire[12 : message.tsig.offset]
    after = tsig._replace(**fields)  # type: ignore[arg-type]  # the tests name the fields
    return with_record(body, tsig_record(after.key_name, after.algorithm, after))


Context = dns.tsig.HMACTSig | dns.tsig.GSSTSig | None


def oracle_sign(
    wire: bytes,
    key: Key,
    *,
    now: int = NOW,
    request_mac: bytes = b"",
    original_id: int | None = None,
    error: int = 0,
    other: bytes = b"",
    context: Context = None,
    multi: bool = False,
) -> tuple[bytes, bytes, Context]:
    """What dnspython makes of `wire`: (signed message, MAC, context for the next of a stream)."""
    wire_id = int.from_bytes(wire[:2], "big")
    original_id = wire_id if original_id is None else original_id
    blank = dns.rdtypes.ANY.TSIG.TSIG(
        dns.rdataclass.ANY,
        dns.rdatatype.TSIG,
        dns.name.from_text(key.algorithm.text),
        now,
        300,
        b"",
        original_id,
        error,
        other,
    )
    rdata, following = dns.tsig.sign(wire, theirs(key), blank, now, request_mac, context, multi)
    record = encode_record(key.name, Type.TSIG, Class.ANY, 0, rdata.to_wire() or b"")
    return with_record(wire, record), rdata.mac, following


def oracle_validate(
    wire: bytes, key: Key, *, request_mac: bytes = b"", context: Context = None, multi: bool = False
) -> Context:
    message = decode(wire)
    record = message.tsig
    assert record is not None
    rdata = dns.rdata.from_wire(dns.rdataclass.ANY, dns.rdatatype.TSIG, wire, record.rdata_offset, record.rdlength)
    their_key = theirs(key)
    following: Context = dns.tsig.validate(
        wire, their_key, their_key.name, rdata, NOW, request_mac, record.offset, context, multi
    )
    return following


# --- packets of other programs ------------------------------------------------------------------------------------

SIGNED_ELSEWHERE = [
    *((f"nsupdate-{item.text.split('.')[0]}", item) for item in ALGORITHMS.values() if item not in CUT_BY_NAME),
    ("knsupdate-hmac-sha512", tsigs.algorithm_from_text("hmac-sha512")),
    ("kdig-llq-hmac-sha1", SHA1),
    ("dig-hmac-sha1-96", SHA1),
]


@pytest.mark.rfc("8945", "5.2")
@pytest.mark.parametrize(
    ("packet", "algorithm"), SIGNED_ELSEWHERE, ids=lambda item: item if isinstance(item, str) else ""
)
def test_requests_signed_by_bind_and_knot_verify(packet: str, algorithm: Algorithm) -> None:
    wire = golden.load(f"tsig/{packet}")
    key = Key(from_text("ALICE.members.example"), algorithm, SECRET)
    assert abs(opened(wire)[1].time_signed - CAPTURED) < 60
    assert check(wire, key, now=CAPTURED) is TsigError.NOERROR
    assert check(wire, replace(key, secret=SECRET + b"x"), now=CAPTURED) is TsigError.BADSIG
    assert check(wire, key, now=CAPTURED + 600) is TsigError.BADTIME


@pytest.mark.rfc("8945", "5.2.2.1")
def test_a_mac_cut_by_dig_is_good_until_policy_asks_for_more() -> None:
    message, tsig = opened(golden.load("tsig/dig-hmac-sha1-96"))
    key = Key(KEY.name, SHA1, SECRET)
    assert len(tsig.mac) == 12
    for minimum, expected in ((0, TsigError.NOERROR), (12, TsigError.NOERROR), (13, TsigError.BADTRUNC)):
        assert verify(message, tsig, key, now=CAPTURED, minimum_mac=minimum).error is expected


@pytest.mark.rfc("8945", "4.2")
@pytest.mark.parametrize("packet", ["update/apple-register", "llq/apple-private-setup"])
def test_apple_clients_compress_the_owner_name_of_the_tsig(packet: str) -> None:
    wire = golden.load(packet)
    message, tsig = opened(wire)
    assert message.tsig is not None
    assert wire[message.tsig.offset] >= 0xC0
    assert tsig.algorithm == MD5.name
    assert (tsig.fudge, len(tsig.mac), tsig.original_id, tsig.error, tsig.other) == (300, 16, message.id, 0, b"")
    assert tsig.time_signed in (0x6B03E9B0, 0x6B03EC70)
    assert tsig.key_name.endswith(from_text("members.example"))


# --- both ways with dnspython -------------------------------------------------------------------------------------


@EVERY_ALGORITHM
@pytest.mark.rfc("8945", "4.3")
@pytest.mark.rfc("8945", "4.2")
def test_requests_and_replies_agree_with_dnspython(algorithm: Algorithm) -> None:
    key = Key(KEY.name, algorithm, SECRET)
    request, request_mac = sign(QUERY, key, now=NOW)
    assert (request, request_mac) == oracle_sign(QUERY, key)[:2]
    assert len(request_mac) == algorithm.size
    oracle_validate(request, key)
    assert check(request, key) is TsigError.NOERROR

    reply, reply_mac = sign(REPLY, key, now=NOW, request_mac=request_mac)
    assert (reply, reply_mac) == oracle_sign(REPLY, key, request_mac=request_mac)[:2]
    oracle_validate(reply, key, request_mac=request_mac)
    assert check(reply, key, request_mac=request_mac) is TsigError.NOERROR
    for other_mac in (b"", request_mac[:-1], bytes(algorithm.size)):
        assert check(reply, key, request_mac=other_mac) is TsigError.BADSIG


@pytest.mark.rfc("8945", "4.3.1")
@pytest.mark.rfc("8945", "4.2")
def test_dnspython_accepts_our_reply_as_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW)
    query = dns.message.make_query("mac.alice.members.example", "AAAA", id=0x1234)
    query.use_tsig({theirs(KEY).name: theirs(KEY)}, keyname=theirs(KEY).name)
    request = query.to_wire()
    assert check(request) is TsigError.NOERROR
    reply, _ = sign(REPLY, KEY, now=NOW, request_mac=opened(request)[1].mac)
    response = dns.message.from_wire(reply, keyring={theirs(KEY).name: theirs(KEY)}, request_mac=query.mac)
    assert response.had_tsig


@EVERY_ALGORITHM
@pytest.mark.rfc("8945", "5.3.1")
def test_streams_agree_with_dnspython(algorithm: Algorithm) -> None:
    key = Key(KEY.name, algorithm, SECRET)
    _, request_mac = sign(QUERY, key, now=NOW)
    bodies = [encode(0x1234, QR, answers=[(KEY.name, Type.TXT, Class.IN, number, b"\x01x")]) for number in range(4)]

    previous: bytes | None = None
    context: Context = None
    oracle_context: Context = None
    for body in bodies:
        if previous is None:
            wire, mac = sign(body, key, now=NOW, request_mac=request_mac)
            assert check(wire, key, request_mac=request_mac) is TsigError.NOERROR
        else:
            wire, mac = sign(body, key, now=NOW, previous=previous)
            assert check(wire, key, previous=previous) is TsigError.NOERROR
            assert check(wire, key, request_mac=previous) is TsigError.BADSIG
            assert check(wire, key, previous=mac) is TsigError.BADSIG
        context = oracle_validate(wire, key, request_mac=request_mac, context=context, multi=True)
        expected, _, oracle_context = oracle_sign(
            body, key, request_mac=request_mac, context=oracle_context, multi=True
        )
        assert wire == expected
        previous = mac


@EVERY_ALGORITHM
@pytest.mark.rfc("8945", "5.2.3")
def test_a_badtime_reply_carries_our_time_and_is_signed(algorithm: Algorithm) -> None:
    key = Key(KEY.name, algorithm, SECRET)
    request, request_mac = sign(QUERY, key, now=NOW - 301)
    message, tsig = opened(request)
    verdict = verify(message, tsig, key, now=NOW)
    assert verdict.error is TsigError.BADTIME
    assert verdict.is_signable
    other = NOW.to_bytes(6, "big")
    body = encode(0x1234, QR | Rcode.NOTAUTH)
    reply, _ = sign(
        body, key, now=tsig.time_signed, fudge=tsig.fudge, request_mac=request_mac, error=verdict.error, other=other
    )
    expected = oracle_sign(body, key, now=NOW - 301, request_mac=request_mac, error=18, other=other)[0]
    assert reply == expected
    assert len(reply) - len(body) == key.record_octets
    _, answered = opened(reply)
    assert (answered.error, answered.other, answered.time_signed) == (18, other, NOW - 301)
    assert check(reply, key, now=NOW - 301, request_mac=request_mac) is TsigError.NOERROR
    assert check(changed(reply, other=(NOW + 1).to_bytes(6, "big")), key, request_mac=request_mac) is TsigError.BADSIG
    assert check(changed(reply, error=0), key, request_mac=request_mac) is TsigError.BADSIG
    with pytest.raises(dns.tsig.PeerBadTime):
        oracle_validate(reply, key, request_mac=request_mac)


# --- the checks and their order -----------------------------------------------------------------------------------


@pytest.mark.rfc("8945", "5.2.3")
@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        (0, TsigError.NOERROR),
        (300, TsigError.NOERROR),
        (-300, TsigError.NOERROR),
        (301, TsigError.BADTIME),
        (-301, TsigError.BADTIME),
    ],
)
def test_time_may_differ_by_the_fudge_and_not_a_second_more(drift: int, expected: TsigError) -> None:
    assert check(sign(QUERY, KEY, now=NOW)[0], now=NOW + drift) is expected


def test_the_fudge_is_the_signers() -> None:
    assert check(sign(QUERY, KEY, now=NOW, fudge=5)[0], now=NOW + 6) is TsigError.BADTIME
    assert check(sign(QUERY, KEY, now=NOW, fudge=0)[0], now=NOW) is TsigError.NOERROR
    assert check(changed(sign(QUERY, KEY, now=NOW, fudge=5)[0], fudge=65535)) is TsigError.BADSIG


@pytest.mark.rfc("8945", "10")
def test_what_we_sign_holds_for_300_seconds() -> None:
    assert opened(sign(QUERY, KEY, now=NOW)[0])[1].fudge == 300


def test_time_signed_has_48_bits() -> None:
    later = (1 << 47) + 5
    wire, _ = sign(QUERY, KEY, now=later)
    assert wire == oracle_sign(QUERY, KEY, now=later)[0]
    assert opened(wire)[1].time_signed == later
    assert check(wire, now=later) is TsigError.NOERROR


@pytest.mark.rfc("8945", "5.2.1")
@pytest.mark.rfc("6281", "7.2")
def test_an_unknown_key_or_another_algorithm_is_badkey_whatever_else_is_wrong() -> None:
    wire = changed(sign(QUERY, KEY, now=NOW - 9999)[0], mac=b"")
    message, tsig = opened(wire)
    for key in (None, Key(KEY.name, MD5, SECRET)):
        verdict = verify(message, tsig, key, now=NOW)
        assert verdict.error is TsigError.BADKEY
        assert not verdict.is_signable
    unknown = changed(wire, algorithm=from_text("hmac-md5"))
    assert check(unknown) is TsigError.BADKEY


@pytest.mark.rfc("8945", "5.2.2")
@pytest.mark.rfc("8945", "5.2.3")
@pytest.mark.rfc("8945", "5.2")
def test_the_mac_is_checked_before_the_time_and_the_time_before_truncation() -> None:
    """Whoever cannot sign learns nothing of our clock (the order of RFC 2845 was CVE-2017-3142's ground)."""
    late, mac = sign(QUERY, KEY, now=NOW - 9999)
    assert check(changed(late, mac=bytes(32))) is TsigError.BADSIG
    message, tsig = opened(changed(late, mac=mac[:16]))
    assert verify(message, tsig, KEY, now=NOW, minimum_mac=32).error is TsigError.BADTIME
    assert verify(message, tsig, KEY, now=NOW - 9999, minimum_mac=32).error is TsigError.BADTRUNC
    assert verify(message, tsig, KEY, now=NOW - 9999, minimum_mac=32).is_signable
    assert verify(message, tsig, KEY, now=NOW - 9999, minimum_mac=16).error is TsigError.NOERROR
    bad = tsig._replace(mac=bytes(16))
    assert verify(message, bad, KEY, now=NOW, minimum_mac=32).error is TsigError.BADSIG
    assert not verify(message, bad, KEY, now=NOW).is_signable


@EVERY_ALGORITHM
@pytest.mark.rfc("8945", "5.2.2.1")
@pytest.mark.rfc("8945", "6")
def test_macs_may_be_cut_to_half_and_never_below_ten_octets(algorithm: Algorithm) -> None:
    key = Key(KEY.name, algorithm, SECRET)
    wire, mac = sign(QUERY, key, now=NOW)
    shortest = algorithm.size if algorithm in CUT_BY_NAME else max(10, algorithm.size // 2)
    for size in range(shortest, algorithm.size + 1):
        assert check(changed(wire, mac=mac[:size]), key) is TsigError.NOERROR
    for cut in (b"", mac[:1], mac[: shortest - 1], mac + b"\x00"):
        with pytest.raises(DecodeError, match="MAC size"):
            check(changed(wire, mac=cut), key)
    assert check(changed(wire, mac=mac[: shortest - 1] + bytes((mac[shortest - 1] ^ 1,))), key) is TsigError.BADSIG


def test_any_changed_octet_of_a_signed_message_is_noticed() -> None:
    """Every octet but those that RFC 8945 leaves out of the digest: the ID, which original ID stands for."""
    wire, _ = sign(QUERY, KEY, now=NOW)
    for position in range(len(wire)):
        damaged = bytearray(wire)
        damaged[position] ^= 0x01
        try:
            verdict = check(bytes(damaged), now=NOW)
        except (DecodeError, AssertionError):
            continue
        if position in (0, 1):
            assert verdict is TsigError.NOERROR
        else:
            assert verdict is not TsigError.NOERROR, position


@pytest.mark.rfc("8945", "5.5")
def test_a_forwarded_message_is_checked_under_its_original_id() -> None:
    wire, _ = sign(QUERY, KEY, now=NOW)
    forwarded = b"\xbe\xef" + wire[2:]
    message, tsig = opened(forwarded)
    assert (message.id, tsig.original_id) == (0xBEEF, 0x1234)
    assert check(forwarded) is TsigError.NOERROR
    oracle_validate(forwarded, KEY)
    assert forwarded == b"\xbe\xef" + oracle_sign(QUERY, KEY, original_id=0x1234)[0][2:]
    assert check(changed(forwarded, original_id=0xBEEF)) is TsigError.BADSIG


@pytest.mark.rfc("8945", "4.3.3")
def test_names_are_digested_in_lower_case_and_whole_however_they_were_sent() -> None:
    wire, _ = sign(QUERY, KEY, now=NOW)
    message, tsig = opened(wire)
    assert message.tsig is not None
    upper_owner, upper_algorithm = from_text("ALICE.Members.EXAMPLE"), from_text("HMAC-SHA256")
    compressed_owner = b"\xc0\x10"  # alice.members.example within the question
    for owner in (upper_owner, compressed_owner):
        sent = with_record(QUERY, tsig_record(owner, upper_algorithm, tsig))
        assert opened(sent)[1].key_name == KEY.name
        assert opened(sent)[1].algorithm == SHA256.name
        assert check(sent) is TsigError.NOERROR
    assert decode(with_record(QUERY, tsig_record(upper_owner, upper_algorithm, tsig))).tsig is not None


def test_a_key_configured_in_capitals_is_the_same_key() -> None:
    shouted = Key(from_text("ALICE.MEMBERS.EXAMPLE"), SHA256, SECRET)
    assert shouted == KEY
    assert sign(QUERY, shouted, now=NOW) == sign(QUERY, KEY, now=NOW)


# --- errors without a MAC -----------------------------------------------------------------------------------------


@pytest.mark.rfc("8945", "5.3.2")
@pytest.mark.parametrize(
    ("error", "raised"),
    [(TsigError.BADKEY, dns.tsig.PeerBadKey), (TsigError.BADSIG, dns.tsig.PeerBadSignature)],
)
def test_badkey_and_badsig_replies_have_an_empty_mac(error: TsigError, raised: type[Exception]) -> None:
    _, request = opened(sign(QUERY, KEY, now=NOW)[0])
    wire = unsigned_error(encode(0x1234, QR | Rcode.NOTAUTH), request, error)
    message, tsig = opened(wire)
    assert message.header.rcode == Rcode.NOTAUTH
    assert tsig == Tsig(KEY.name, SHA256.name, NOW, 300, b"", 0x1234, error, b"")
    with pytest.raises(raised):
        oracle_validate(wire, KEY)
    with pytest.raises(DecodeError, match="MAC size"):
        check(wire)


def test_an_unknown_algorithm_is_named_back() -> None:
    _, request = opened(changed(sign(QUERY, KEY, now=NOW)[0], algorithm=from_text("hmac-new.example")))
    _, answered = opened(unsigned_error(encode(1, QR | Rcode.NOTAUTH), request, TsigError.BADKEY))
    assert answered.algorithm == from_text("hmac-new.example")


# --- the record ---------------------------------------------------------------------------------------------------

GOOD_RDATA = SHA256.name + bytes(6) + struct.pack("!HH", 300, 2) + b"ab" + struct.pack("!3H", 1, 0, 3) + b"xyz"


def decode_alone(rdata: bytes, *, rclass: int = Class.ANY, ttl: int = 0) -> Tsig:
    wire = with_record(encode(1, 0), encode_record(KEY.name, Type.TSIG, rclass, ttl, rdata))
    return opened(wire)[1]


def test_every_field_of_the_record_is_read() -> None:
    assert decode_alone(GOOD_RDATA) == Tsig(KEY.name, SHA256.name, 0, 300, b"ab", 1, 0, b"xyz")


@pytest.mark.rfc("8945", "5.2")
@pytest.mark.parametrize("size", range(len(GOOD_RDATA)))
def test_rdata_that_ends_early_is_refused(size: int) -> None:
    with pytest.raises(DecodeError):
        decode_alone(GOOD_RDATA[:size])


@pytest.mark.rfc("8945", "4.2")
def test_rdata_that_goes_on_and_wrong_class_or_ttl_are_refused() -> None:
    with pytest.raises(DecodeError, match="other data"):
        decode_alone(GOOD_RDATA + b"\x00")
    for rclass, ttl in ((Class.IN, 0), (Class.ANY, 1)):
        with pytest.raises(DecodeError, match="class is not ANY or its TTL not 0"):
            decode_alone(GOOD_RDATA, rclass=rclass, ttl=ttl)


def test_a_tsig_that_fits_no_message_is_our_error() -> None:
    full = encode(1, QR, answers=[(b"\x00", 65280, 1, 0, bytes(65535 - 12 - 11 - 20))])
    with pytest.raises(EncodeError, match="no room"):
        sign(full, KEY, now=NOW)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_secrets_show_in_no_text_form() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}", f"{[KEY]!r}"):
        assert "0123456789abcdef" not in text
        assert "secret" not in text
    assert "sha256" in repr(KEY)


def test_algorithms_are_found_by_their_text() -> None:
    for item in ALGORITHMS.values():
        assert tsigs.algorithm_from_text(item.text.upper() + ".") is item
    assert tsigs.algorithm_from_text("HMAC-MD5") is MD5
    for text in ("", "sha256", "hmac-sha3", "gss-tsig"):
        with pytest.raises(ValueError, match="known: hmac-sha256"):
            tsigs.algorithm_from_text(text)


@EVERY_ALGORITHM
@pytest.mark.rfc("8945", "6")
def test_algorithm_names_and_sizes_are_those_of_dnspython(algorithm: Algorithm) -> None:
    assert dns.name.from_text(algorithm.text).to_digestable() == algorithm.name
    assert len(dns.tsig.HMACTSig(SECRET, dns.name.from_text(algorithm.text)).sign()) == algorithm.size
