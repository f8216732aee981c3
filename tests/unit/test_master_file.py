"""Master files by way of dnspython as second opinion, and the places where the two must differ."""

import io
import re

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.zone
import pytest

from homing.master_file import MAX_INCLUDES, MAX_RECORD_OCTETS, Parser, Problem, Record, bounded_lines, record_text
from protocol.constants import Type
from protocol.name import ROOT, from_text, to_text
from server.rdata_text import rdata_from, rdata_text, seconds, split_words, type_name, type_number
from server.zone.model import RR

ZONE = "members.example."
APEX = from_text(ZONE)

TEXTS = [
    ("A", "192.0.2.1"),
    ("AAAA", "2001:DB8::1"),
    ("AAAA", "::ffff:192.0.2.1"),
    ("NS", "ns"),
    ("CNAME", "@"),
    ("PTR", "mac.Alice"),
    ("PTR", r"Alice\032\226\128\153s\032Mac._smb._tcp.alice"),
    ("PTR", r"dot\.in\.label"),
    ("PTR", r"ends\."),
    ("SOA", "ns hostmaster 2026112301 1h 10m 2w 60"),
    ("MX", r"10 a\032b.c."),
    ("TXT", '"a b" plain "with \\"quotes\\"" "\\200\\\\" ""'),
    ("TXT", '"a;b"'),
    ("SRV", r"0 0 5 a\.b.c."),
    ("SRV", "0 5 445 mac.alice"),
    ("HINFO", '"MAC" "macOS 10.6"'),
    ("RP", "admin.alice info.alice"),
    ("AFSDB", "1 afs"),
    ("KX", "10 kx"),
    ("PX", "10 a.b c.d"),
    ("RT", "10 relay"),
    ("NAPTR", '100 10 "u" "E2U+sip" "!^.*$!sip:a@b!" .'),
    ("DNAME", "elsewhere.example."),
    ("DS", "60485 5 1 2BB183AF5F22588179A53B0A 98631FAD1A292118"),
    ("DNSKEY", "256 3 5 AQPSKmynfzW4kyBv015MUG2DeIQ3Cbl+BBZH4b/0PY1kxkmvHjcZc8no kfzj31GajIQKY+5CptLr3buXA10hWqTk"),
    ("KEY", "512 3 1 AQPSKmynfzW4kyBv"),
    ("SSHFP", "4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789"),
    ("TLSA", "3 1 1 123456789abcdef67890123456789abcdef67890123456789abcdef123456789"),
    ("DHCID", "AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA="),
    ("OPENPGPKEY", "mQCNAzIG"),
    ("CAA", '0 issue "ca.example; policy=ev"'),
    ("URI", '10 1 "https://alice.example/"'),
    ("RRSIG", "A 5 3 86400 20300322173103 20260220173103 2642 example.com. oJB1W6WNGv+ldvQ3WDG0MQkg5IEhjRip"),
    ("RRSIG", "TYPE65280 5 3 86400 1893456000 1577836800 2642 example.com. oJB1W6WNGv+ldvQ3WDG0MQkg5IEhjRip"),
    ("NSEC", "host.example.com. A MX RRSIG NSEC TYPE1234"),
    ("NSEC3", "1 1 12 aabbccdd 2vptu5timamqttgl4luu9kg21e0aor3s A RRSIG"),
    ("NSEC3", "1 0 0 - 2vptu5timamqttgl4luu9kg21e0aor3s"),
    ("NSEC3PARAM", "1 0 12 aabbccdd"),
    ("LOC", "37 14 12.094 N 115 48 14.649 W 1381.00m"),
    ("LOC", "52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m"),
    ("LOC", "51 30 12.748 N 0 7 39.612 W 100"),
    ("SVCB", "0 svc.alice"),
    ("HTTPS", "1 . alpn=h2,h3 port=8443"),
    ("HTTPS", '16 foo.example. port=443 alpn="h2,h3" ipv4hint=192.0.2.1,192.0.2.2 ipv6hint="2001:db8::1"'),
    ("HTTPS", "1 . mandatory=port,alpn alpn=h2 no-default-alpn port=53"),
    ("SVCB", r'1 foo.example. alpn="f\\\\oo\\,bar,h2"'),
    ("SVCB", r'1 foo.example. key667="hello\210qoo"'),
    ("SVCB", "1 foo.example. key667=hello"),
    ("HTTPS", r"1 . key1=\002h2 key3=\001\187"),
    ("SVCB", '1 foo.example. dohpath="/q{?dns}"'),
    ("TYPE65280", r"\# 4 0a 000001"),
    ("TYPE65280", r"\# 0"),
    ("A", r"\# 4 c0000201"),
]


@pytest.mark.rfc("1035", "3.3")
@pytest.mark.rfc("2782", "-")
@pytest.mark.rfc("4034", "2.2")
@pytest.mark.rfc("4034", "3.2")
@pytest.mark.rfc("4034", "4.2")
@pytest.mark.rfc("4034", "5.3")
@pytest.mark.rfc("9460", "2.1")
@pytest.mark.rfc("9460", "2.2")
@pytest.mark.rfc("9460", "7.1.1")
@pytest.mark.rfc("9460", "7.3")
@pytest.mark.rfc("9460", "8")
@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_rdata_is_what_dnspython_reads_and_its_text_comes_back(kind: str, text: str) -> None:
    rtype = type_number(kind)
    wire = rdata_from(rtype, split_words(text), APEX)
    origin = dns.name.from_text(ZONE)
    theirs = dns.rdata.from_text("IN", kind, text, origin=origin, relativize=False)
    assert wire == theirs.to_wire()
    written = rdata_text(rtype, wire)
    assert dns.rdata.from_text("IN", kind, written).to_wire() == wire
    assert rdata_from(rtype, split_words(written), ROOT) == wire


@pytest.mark.rfc("9460", "2.1")
@pytest.mark.rfc("9460", "2.4.3")
@pytest.mark.rfc("9460", "7.1.1")
@pytest.mark.rfc("9460", "7.2")
@pytest.mark.rfc("9460", "7.3")
@pytest.mark.rfc("9460", "8")
@pytest.mark.parametrize(
    ("kind", "text", "complaint"),
    [
        ("A", "192.0.2", "'192.0.2' is not an IPv4 address"),
        ("A", "192.0.2.1 x", "rdata of A has more than it should"),
        ("A", "", "rdata of A is incomplete"),
        ("AAAA", "2001:db8::1%lo", "is not an IPv6 address"),
        ("MX", "65536 a", "'65536' is more than 65535"),
        ("MX", "x a", "'x' is not a number"),
        ("MX", "10", "rdata of MX is incomplete"),
        ("NS", "a..b", "empty label"),
        ("NS", "x" * 64, "label longer than 63 octets"),
        ("NS", ".".join(["x" * 60] * 4), "name longer than 255 octets"),
        ("NS", '"quoted"', "without quotation marks"),
        ("NS", "m\xe4c", "letter outside ASCII"),
        ("TXT", "", "a string is missing"),
        ("TXT", "x" * 256, "a string has 256 octets"),
        ("TXT", r"\256", "above 255"),
        ("TXT", r"\25", "three digits"),
        ("DS", "1 5 1 abc", "hex"),
        ("DNSKEY", "256 3 5 ====", "not base64"),
        ("NSEC3", "1 1 12 - ?? A", "not base32hex"),
        ("RRSIG", "A 5 3 1 20301322173103 20260220173103 1 a. AAAA", "not a date"),
        ("NSEC", "a. NONSENSE", "unknown record type"),
        ("CAA", "0 is-sue x", "tag of letters"),
        ("CAA", "0 issue x y", "one value"),
        ("LOC", "north of here", "not a LOC"),
        ("WKS", "192.0.2.1 6 25", "only read in the form"),
        ("HTTPS", "1", "a priority and a target"),
        ("HTTPS", "1 . alpn", "alpn wants a value"),
        ("HTTPS", "1 . nothing=1", "not a service parameter"),
        ("HTTPS", "1 . key65535=1", "not a service parameter"),
        ("HTTPS", "1 . port=1 port=2", "there twice"),
        ("HTTPS", "1 . mandatory=port", "port is mandatory and not there"),
        ("HTTPS", "1 . no-default-alpn=x", "has no value"),
        ("HTTPS", "1 . no-default-alpn", "wants alpn"),
        ("HTTPS", "1 . key0=abc", "numbers of 2 octets"),
        ("HTTPS", "1 . mandatory=alpn,alpn alpn=h2", "twice, or itself"),
        ("HTTPS", "1 . mandatory=mandatory", "twice, or itself"),
        ("HTTPS", r"1 . mandatory=\097lpn alpn=h2", "takes no escapes"),
        ("HTTPS", r"1 . port=\056", "takes no escapes"),
        ("HTTPS", r"1 . ipv4hint=192.0.2.\049", "takes no escapes"),
        ("HTTPS", r"1 . ipv6hint=2001:db8::\049", "takes no escapes"),
        ("HTTPS", "1 . key0667=x", "not a service parameter"),
        ("TYPE65280", r"\# 3 00", "says 3 octets and 1 follow"),
        ("TYPE65280", r"\# x 00", "wants a length"),
        ("A", r"\# 3 000000", "rdata has not the length of its type"),
        ("NS", r"\# 2 c000", "rdata of NS"),
    ],
)
def test_what_is_no_rdata(kind: str, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        rdata_from(type_number(kind), split_words(text), APEX)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("rtype", "rdata"),
    [
        (Type.CAA, b"\x00\xffx"),
        (Type.NSEC3, b"\x01"),
        (Type.SVCB, b"\x00\x01\x00\x00\x01\x00\x05h2"),
        (Type.HTTPS, b"\x00\x01\x00\x00\x03\x00\x01\x05"),
        (29, b"\x01" * 16),
        (29, b"\x00" * 3),
        (Type.DS, b"\x00"),
        (Type.RRSIG, b"\x00" * 18 + b"\xc0\x00"),
        (Type.NSEC, b"\x00\x00\x02A"),
        (65280, b""),
    ],
)
def test_opaque_rdata_without_the_form_of_its_type_is_written_in_the_generic_one(rtype: int, rdata: bytes) -> None:
    assert rdata_text(rtype, rdata) == f"\\# {len(rdata)} {rdata.hex()}".rstrip()


def test_times() -> None:
    assert [seconds(text) for text in ("0", "60", "1h30m", "1W2D", "2147483647")] == [0, 60, 5400, 777600, 2147483647]
    for text in ("2147483648", "h", "1x", "", "99999w", "9" * 5000):
        with pytest.raises(ValueError, match="seconds"):
            seconds(text)


def test_names_of_types_come_back() -> None:
    for number in range(1, 300):
        assert type_number(type_name(number)) == number
        assert type_number(type_name(number).lower()) == number


FILE = """\
$TTL 1h ; for all that say nothing
@	IN SOA ns hostmaster (
		2026112301 ; serial
		3600 600
		1209600 60 )
	NS ns
	NS	ns.elsewhere.example.
ns 300 IN A 192.0.2.1
   IN 300 AAAA 2001:db8::53
ns	300 AAAA 2001:db8::54
mac.alice	60 CLASS1 AAAA 2001:db8::1
mac.ALICE.members.example. 60 AAAA 2001:db8::2
text TXT ( "one; two" "three"
"four" ) ; comment ( with "signs
text2 TXT "(" ")" un\\;quoted \\"
$ORIGIN alice
$TTL 5
_smb._tcp PTR Alice\\032Mac._smb._tcp
Alice\\032Mac._smb._tcp SRV 0 0 445 mac
@ HINFO MAC ""
in TYPE65280 \\# 3 (
  00
  0102 )
$ORIGIN members.example.
in 1 IN A 192.0.2.9

   ; nothing here
a A 192.0.2.10"""


def read(text: str, origin: bytes = APEX) -> list[Record | Problem]:
    return list(Parser(origin).read(bounded_lines(io.BytesIO(text.encode("latin-1")))))


def records(text: str) -> list[RR]:
    found = read(text)
    assert not [item for item in found if isinstance(item, Problem)]
    return [item.rr for item in found if isinstance(item, Record)]


def theirs(text: str) -> set[tuple[str, int, bytes, int]]:
    """dnspython's view; it writes names of its own case and TTLs of RRsets."""
    zone = dns.zone.from_text(text, origin=ZONE, relativize=False)
    return {
        (name.to_text().lower(), int(rdata.rdtype), rdata.to_wire(), ttl) for name, ttl, rdata in zone.iterate_rdatas()
    }


def ours(found: list[RR]) -> set[tuple[str, int, bytes, int]]:
    return {(dns.name.from_wire(rr.owner, 0)[0].to_text().lower(), rr.rtype, rr.rdata, rr.ttl) for rr in found}


@pytest.mark.rfc("1035", "5.1")
def test_a_file_with_all_of_the_grammar_is_what_dnspython_reads() -> None:
    assert ours(records(FILE)) == theirs(FILE)


def test_what_is_written_is_read_again_by_both() -> None:
    found = records(FILE)
    written = "".join(record_text(rr.owner, rr.ttl, rr.rtype, rr.rdata) + "\n" for rr in found)
    assert records(written) == found
    assert theirs(written) == ours(found)


@pytest.mark.rfc("2308", "4")
@pytest.mark.rfc("1035", "5.1")
def test_a_ttl_left_out_is_that_of_ttl_directive_else_the_last_said() -> None:
    """RFC 2308 §4, RFC 1035 §5.1."""
    found = records("@ 7 NS a\nb A 192.0.2.1\n$TTL 9\nc A 192.0.2.1\nd 3 A 192.0.2.1\ne A 192.0.2.1\n")
    assert [rr.ttl for rr in found] == [7, 7, 9, 3, 9]
    assert [rr.ttl for rr in records("@ SOA a b 1 2 3 4 55\n@ NS a\n")] == [55, 55]


@pytest.mark.rfc("3597", "5")
def test_a_known_type_in_the_generic_form_is_that_type() -> None:
    plain = records("a 1 A 192.0.2.1\nb 1 MX 10 a\n")
    assert records("a 1 A \\# 4 c0000201\nb 1 TYPE15 \\# 21 000a0161076d656d62657273076578616d706c6500\n") == plain
    assert [type(item) for item in read("a 1 TYPE1 \\# 3 c00002\n")] == [Problem]


def test_lines_of_records() -> None:
    found = read("\n; nothing\na 1 A 192.0.2.1\nb 1 TXT (\n x\n y )\nc 1 A 192.0.2.2\n")
    assert [item.line for item in found] == [3, 4, 7]


@pytest.mark.rfc("6891", "6.1.1")
@pytest.mark.rfc("1035", "5.1")
@pytest.mark.rfc("1035", "5.2")
@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("a 1 A 192.0.2\n", 1, "'192.0.2' is not an IPv4 address"),
        ("\n$INCLUDE other.zone\n", 2, "$INCLUDE is refused: put what it makes into the file, or say --include"),
        ("$GENERATE 1-9 a$ A 192.0.2.$\n", 1, "$GENERATE is refused: put what it makes into the file"),
        ("$OTHER x\n", 1, "'$OTHER' is no directive"),
        ("$TTL\n", 1, "$TTL wants one value"),
        ("$TTL 3000000000\n", 1, "'3000000000' is more than 2147483647 seconds"),
        ("$ORIGIN a..b\n", 1, "empty label in name 'a..b'"),
        ("  1 A 192.0.2.1\n", 1, "there is no owner name before this record"),
        ("a A 192.0.2.1\n", 1, "no TTL here, before, or by $TTL"),
        ("a 1\n", 1, "a type is missing"),
        ("a 1 CH TXT x\n", 1, "class CH: only IN is served"),
        ("a 1 CLASS3 TXT x\n", 1, "class CLASS3: only IN is served"),
        ("a 1 IN IN A 192.0.2.1\n", 1, "unknown record type 'IN'"),
        ("a 1 NONSENSE x\n", 1, "unknown record type 'NONSENSE'"),
        ("a 1 ANY x\n", 1, "class ANY: only IN is served"),
        ("a 1 TYPE255 \\# 0\n", 1, "ANY is no type of data"),
        ("a 1 TYPE41 \\# 0\n", 1, "OPT is no type of data"),
        ("a 1 TSIG \\# 0\n", 1, "TSIG is no type of data"),
        ("a.other. 1 A 192.0.2.1\n", 1, "a.other. is outside the zone members.example."),
        ("a 1 SOA a b 1 2 3 4 5\n", 1, "an SOA belongs to members.example. only"),
        ("\na 1 TXT (\n x\n", 2, "a parenthesis is not closed"),
        ("a 1 TXT x )\n", 1, "a parenthesis is closed that was not opened"),
        ('a 1 TXT "x\n', 1, "a quotation mark is not closed"),
        ("a 1 TXT x\\\n", 1, "a backslash with nothing after it"),
        ("m\xe4c 1 A 192.0.2.1\n", 1, "name 'm\xe4c' has a letter outside ASCII (use its xn-- form)"),
    ],
)
def test_problems_have_their_line(text: str, line: int, complaint: str) -> None:
    assert read(text) == [Problem(line, complaint)]


def test_after_a_problem_the_rest_is_read() -> None:
    found = read("a 1 A nonsense\nb 1 A 192.0.2.1\nc..d 1 A 192.0.2.1\n 1 A 192.0.2.2\ne 1 A 192.0.2.3\n")
    assert [(item.line, isinstance(item, Problem)) for item in found] == [
        (1, True),
        (2, False),
        (3, True),
        (4, True),  # not b's: its owner is the one that cannot be read
        (5, False),
    ]


def test_a_record_that_never_ends_is_refused_at_the_bound() -> None:
    for text in ("a 1 TXT (\n" + " x\n" * MAX_RECORD_OCTETS, "a 1 TXT " + "x" * (3 * MAX_RECORD_OCTETS)):
        first = next(iter(Parser(APEX).read(bounded_lines(io.BytesIO(text.encode())))))
        assert isinstance(first, Problem)
        assert first.text == f"a record longer than {MAX_RECORD_OCTETS} octets"


def test_octets_beyond_ascii_are_taken_as_they_are_in_strings() -> None:
    (record,) = records('a 1 TXT "\xc3\xa4"\n')
    assert record.rdata == b"\x02\xc3\xa4"
    assert record_text(*record[:1], record.ttl, record.rtype, record.rdata).endswith('"\\195\\164"')
    assert to_text(record.owner) == "a.members.example."


def including(text: str, files: dict[str, str]) -> list[Record | Problem]:
    def opened(name: str) -> list[bytes]:
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory", name)
        return files[name].encode().splitlines(keepends=True)

    return list(Parser(APEX, opened).read(text.encode().splitlines(keepends=True)))


@pytest.mark.rfc("1035", "5.1")
def test_an_included_file_stands_where_it_is_named() -> None:
    """RFC 1035 §5.1: its origin and its owner end with it."""
    text = """a 1 A 192.0.2.1
$INCLUDE "sub.zone" sub ; as dnspython has no such thing, by hand
	1 A 192.0.2.2
$INCLUDE sub.zone
b 1 A 192.0.2.3
"""
    found = including(text, {"sub.zone": "@ 1 TXT x\n$ORIGIN deep.members.example.\nc 1 A 192.0.2.9\n"})
    assert [(item.line, to_text(item.rr.owner)) for item in found if isinstance(item, Record)] == [
        (1, "a.members.example."),
        (2, "sub.members.example."),
        (2, "c.deep.members.example."),
        (3, "a.members.example."),
        (4, "members.example."),
        (4, "c.deep.members.example."),
        (5, "b.members.example."),
    ]


def test_problems_of_an_included_file_name_it_and_its_line() -> None:
    found = including("$INCLUDE x\n$INCLUDE none\n$INCLUDE\n", {"x": "\na 1 A nonsense\n"})
    assert found == [
        Problem(1, "x:2: 'nonsense' is not an IPv4 address"),
        Problem(2, "cannot read 'none': No such file or directory"),
        Problem(3, "$INCLUDE wants a file, and perhaps an origin"),
    ]


def test_a_file_that_includes_itself_ends() -> None:
    found = including("$INCLUDE x\n", {"x": "a 1 A 192.0.2.1\n$INCLUDE x\n"})
    assert len([item for item in found if isinstance(item, Record)]) == MAX_INCLUDES
    (problem,) = (item for item in found if isinstance(item, Problem))
    assert problem.text.endswith("does a file include itself?")
