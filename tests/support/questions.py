"""Thousands of questions of all kinds to a zone that has something of everything: what to ask two servers alike."""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from protocol.constants import AD, CD, RA, RD, TC, Class, Type, Z
from protocol.edns import Opt
from protocol.message import Question, encode
from protocol.name import from_text

ZONE: Final = "members.example."
_LONG: Final = ".".join(("l" * 60,) * 3)

ZONE_FILE: Final = f"""\
$TTL 300
@ 3600 SOA ns hostmaster 100 3600 600 86400 60
@ NS ns
@ NS ns2
@ MX 10 mail
@ MX 20 mail.outside.test.
@ A 192.0.2.1
@ TXT "v=spf1 -all"
ns A 192.0.2.53
ns AAAA 2001:db8::53
ns2 A 192.0.2.54
mail A 192.0.2.25
mail AAAA 2001:db8::25
host A 192.0.2.10
host A 192.0.2.11
host 60 AAAA 2001:db8::10
host TXT "one" "two"
host TXT "three"
host HINFO "PC" "Unix"
MiXed A 192.0.2.12
MiXed TXT "case"
ptr PTR HOST
_sip._tcp SRV 0 0 5060 host
_sip._tcp SRV 0 0 5060 mail
_out._tcp SRV 0 0 80 www.outside.test.
_gone._tcp SRV 0 0 80 gone
_none._tcp SRV 0 0 0 .
_alias._tcp SRV 0 0 80 c1
_wild._tcp SRV 0 0 80 any.wild
_cut._tcp SRV 0 0 80 ns.cut
_mixed._tcp SRV 0 0 80 mIxEd
mx MX 10 host
mx MX 20 gone
twenty A 192.0.2.100
{"".join(f"twenty A 192.0.2.{n}" + chr(10) for n in range(101, 120))}\
{"".join(f"big TXT {n:03d}{'b' * 90}" + chr(10) for n in range(30))}\
{"".join(f"huge TXT {n:03d}{'h' * 240}" + chr(10) for n in range(60))}\
edge TXT {"e" * 200} {"e" * 200}
c1 CNAME c2
c2 CNAME C3
c3 CNAME host
c-out CNAME www.outside.test.
c-gone CNAME gone
c-self CNAME c-self
c-loop1 CNAME c-loop2
c-loop2 CNAME c-loop1
c-wild CNAME deep.wild
c-cut CNAME x.cut
c-atcut CNAME cut
c-dname CNAME host.dn
c-ent CNAME ent2
c-big CNAME big
c-apex CNAME @
{"".join(f"chain{n} CNAME chain{n + 1}" + chr(10) for n in range(20))}\
chain20 A 192.0.2.60
*.wild A 192.0.2.20
*.wild TXT "wild"
*.wild MX 10 host
exact.wild TXT "exact"
below.exact2.wild TXT "makes an empty non-terminal"
*.deep.wild2 A 192.0.2.21
*.cw CNAME host
*.cwout CNAME www.outside.test.
*.cwloop CNAME x.cwloop
*.srvw SRV 0 0 80 host
foo.*.star TXT "the wildcard is an empty non-terminal"
sub.*.odd TXT "asterisk in the middle"
*.odd A 192.0.2.22
*.wc A 192.0.2.23
cut.wc NS ns.cut.wc
ns.cut.wc A 192.0.2.24
*.dw DNAME target.dnt
deep.ent1.ent2 A 192.0.2.30
cut NS ns.cut
cut NS ns.outside.test.
ns.cut A 192.0.2.31
ns.cut AAAA 2001:db8::31
cut 600 DS 12345 13 2 {"ab" * 32}
hidden.cut TXT "occluded"
cut2 NS host
cut3 NS ns.cut
cut3 NS ns.cut2
cut4 NS ns.outside.test.
cut5 NS gone
cut6 NS ns.cut6
{"".join(f"bigcut NS {'n' * 50}{n}.bigcut" + chr(10) for n in range(13))}\
{"".join(f"{'n' * 50}{n}.bigcut A 192.0.2.{n + 1}" + chr(10) for n in range(13))}\
{"".join(f"{'n' * 50}{n}.bigcut AAAA 2001:db8::{n + 1}" + chr(10) for n in range(13))}\
dn DNAME target.dnt
dn TXT "beside"
host.target.dnt A 192.0.2.40
alias.target.dnt CNAME host
target.dnt A 192.0.2.41
dn2 DNAME dn
dnout DNAME outside.test.
dnself DNAME dnself
dnlong DNAME {_LONG}.dnt
dngone DNAME nowhere
odd1 TYPE65280 \\# 3 010203
odd1 TYPE65281 \\# 0
caa CAA 0 issue "ca.test"
tlsa TLSA 3 1 1 {"cd" * 32}
sshfp SSHFP 4 2 {"ef" * 32}
naptr NAPTR 10 10 "S" "SIP+D2T" "" _sip._tcp
https HTTPS 1 host alpn=h2
svcb SVCB 1 . port=53
rp RP mail txt
afsdb AFSDB 1 host
kx KX 10 host
loc LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m
uri URI 10 1 "ftp://ftp.example.test/"
\\000\\255.bin TXT "octets"
with\\.dot A 192.0.2.50
{".".join(("x" * 63,) * 3)}.{"y" * 30} A 192.0.2.51
"""

_NAMES: Final = """
@ ns ns2 mail host HOST hOsT mixed MIXED gone a.gone b.a.gone gone.host x.ns ptr _sip._tcp _tcp _udp _out._tcp
_gone._tcp _none._tcp _alias._tcp _wild._tcp _cut._tcp _mixed._tcp x._sip._tcp mx twenty big huge edge c1 c2 C1
c-out c-gone c-self c-loop1 c-loop2 c-wild c-cut c-atcut c-dname c-ent c-big c-apex
chain0 chain4 chain5 chain9 chain12 x.c1 wild x.wild x.y.wild
*.wild a.*.wild exact.wild x.exact.wild exact2.wild x.exact2.wild below.exact2.wild x.below.exact2.wild wild2
x.wild2 deep.wild2 x.deep.wild2 x.cw x.y.cw cw x.cwout x.cwloop cwloop x.srvw star *.star x.star foo.*.star
y.foo.*.star odd x.odd *.odd sub.*.odd x.sub.*.odd wc x.wc cut.wc x.cut.wc ns.cut.wc y.x.cut.wc x.dw y.x.dw dw
*.dw ent2 ent1.ent2 deep.ent1.ent2 x.ent2 x.ent1.ent2 x.deep.ent1.ent2 cut x.cut y.x.cut ns.cut hidden.cut CUT
X.CUT cut2 x.cut2 cut3 x.cut3 cut4 x.cut4 cut5 x.cut5 cut6 x.cut6 bigcut x.bigcut dn host.dn x.dn a.b.dn DN
HOST.dn alias.dn dn2 host.dn2 x.dn2 dnout x.dnout dnself x.dnself dnlong x.dnlong dngone x.dngone target.dnt
host.target.dnt x.target.dnt dnt nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn.dnlong odd1 caa tlsa
sshfp naptr https svcb rp afsdb kx loc uri bin with\\.dot y with.dot _dns-update._udp example. test. outside.test.
www.outside.test. . xmembers.example. members.example.test.
"""
NAMES: Final = tuple(_NAMES.split())
_TYPES: Final = (
    *(Type.A, Type.AAAA, Type.TXT, Type.MX, Type.SRV, Type.NS, Type.SOA, Type.CNAME, Type.DNAME, Type.DS, Type.ANY),
    *(Type.PTR, Type.HINFO, Type.CAA, Type.HTTPS, Type.SVCB, Type.NAPTR, 65280, 65281, 65282, Type.RRSIG, Type.NSEC),
    *(Type.TLSA, Type.SSHFP, Type.DNSKEY, 29, 256, Type.KX, Type.RP, Type.AFSDB, 0xFFFF),
)
_COMMON: Final = (Type.A, Type.AAAA, Type.TXT, Type.MX, Type.SRV, Type.NS, Type.SOA, Type.CNAME, Type.DS, Type.ANY)


class Asked(NamedTuple):
    """One question: what it is called in a report, its octets, and whether it goes by TCP."""

    text: str
    wire: bytes
    by_tcp: bool
    rtype: int = 0
    rclass: int = 1


PRIVATE: Final = f"bob.{ZONE}"
PRIVATE_UPDATE: Final = (
    ("host", "A", "192.0.2.70"),
    ("host", "AAAA", "2001:db8::70"),
    ("*.wild", "TXT", "hidden"),
    ("alias", "CNAME", "host"),
    ("out", "CNAME", "host.members.example."),
    ("_x._tcp", "SRV", "0 0 1 host"),
    ("deep.ent", "A", "192.0.2.71"),
)
"""What a private member's zone holds beside what the service keeps there: owner, type, rdata, all below the zone."""
_PRIVATE_NAMES: Final = ("", "host", "x.wild", "wild", "alias", "out", "_x._tcp", "ent", "deep.ent", "gone", "x.gone")


def private_questions(count: int = 400) -> list[Asked]:
    """Unsigned questions about a private member's names."""
    dice = random.Random(2)
    names = [f"{name}.bob".lstrip(".") for name in _PRIVATE_NAMES]
    return [_ask(dice, dice.choice(names), int(dice.choice(_COMMON)), 1, plain=False) for _ in range(count)]


def _name(text: str) -> bytes:
    """A name below the zone; absolute with a final dot, and `@` for the zone's own."""
    return from_text(ZONE if text == "@" else text if text.endswith(".") else f"{text}.{ZONE}")


def questions(seed: int = 1, count: int = 6000) -> list[Asked]:
    """Every name with the common types first, then names, types and circumstances by lot; the same for one seed."""
    dice = random.Random(seed)
    out = [_ask(dice, name, int(rtype), 1, plain=True) for name in NAMES for rtype in _COMMON]
    out += list(_oddities())
    while len(out) < count:
        name = dice.choice(NAMES)
        rtype = int(dice.choice(_TYPES)) if dice.random() < 0.97 else dice.randrange(65536)
        rclass = Class.IN if dice.random() < 0.97 else dice.choice((4, Class.NONE, Class.ANY, 0, 77))
        out.append(_ask(dice, name, rtype, int(rclass), plain=False))
    return out


def _ask(dice: random.Random, name: str, rtype: int, rclass: int, *, plain: bool) -> Asked:
    flags, opt, by_tcp = 0, None, False
    owner = _name(name)
    if not plain:
        flags = dice.choice((0, RD, 0, RD, RD | AD, CD, RD | CD | AD, RA, Z))
        size = dice.choice((None, None, 512, 1232, 1232, 4096, 0, 700))
        opt = None if size is None else Opt(size, dnssec_ok=dice.random() < 0.3)
        by_tcp = dice.random() < 0.25
        if dice.random() < 0.3:
            owner = bytes(octet ^ 0x20 if chr(octet).isalpha() and dice.random() < 0.5 else octet for octet in owner)
    wire = encode(dice.randrange(65536), flags, [Question(owner, rtype, rclass)], opt=opt)
    text = f"{name} TYPE{rtype} CLASS{rclass} flags={flags:04x} edns={opt.payload_size if opt else '-'}"
    return Asked(f"{text} {'tcp' if by_tcp else 'udp'}", wire, by_tcp, rtype, rclass)


def _oddities() -> Iterator[Asked]:
    """Messages that are no plain question."""
    host, apex = Question(_name("host"), 1, 1), Question(_name("@"), int(Type.SOA), 1)
    record = (_name("host"), 1, 1, 60, bytes(4))
    good = encode(7, 0, [host])
    for by_tcp in (False, True):
        yield Asked("no question", encode(8, 0), by_tcp)
        yield Asked("two questions", encode(9, 0, [host, apex]), by_tcp)
        yield Asked("octets behind", good + b"x", by_tcp)
        yield Asked("cut in the question", good[:-1], by_tcp)
        yield Asked("counts without records", good[:7] + b"\1" + good[8:], by_tcp)
        yield Asked("an answer in the question", encode(10, 0, [host], [record]), by_tcp)
        yield Asked("an authority in the question", encode(10, 0, [host], [], [record]), by_tcp)
        yield Asked("an additional in the question", encode(10, 0, [host], [], [], [record]), by_tcp)
        yield Asked("EDNS version 1", encode(11, 0, [host], opt=Opt(1232, version=1)), by_tcp)
        yield Asked("EDNS version 255", encode(11, 0, [host], opt=Opt(1232, version=255)), by_tcp)
        yield Asked("EDNS unknown option", encode(12, 0, [host], opt=Opt(1232, options=((65001, b"x"),))), by_tcp)
        opt = Opt(1232).encode()
        yield Asked("two OPT", good[:11] + b"\2" + good[12:] + opt + opt, by_tcp)
        yield Asked("OPT not at the root", good[:11] + b"\1" + good[12:] + b"\xc0\x0c" + opt[1:], by_tcp)
        yield Asked("AA and TC set", encode(13, TC | 0x0400, [host]), by_tcp)
        yield Asked("RCODE set", encode(13, 5, [host]), by_tcp)
        for opcode in (1, 2, 3, 7, 8, 15):
            yield Asked(f"opcode {opcode}", encode(14, opcode << 11, [host]), by_tcp)
        for rtype in (0, 41, 128, 249, 250, 253, 254):
            yield Asked(f"meta type {rtype}", encode(15, 0, [Question(_name("host"), rtype, 1)]), by_tcp, rtype)
            yield Asked(f"meta type {rtype}, absent", encode(15, 0, [Question(_name("gone"), rtype, 1)]), by_tcp, rtype)
        for name in ("version.bind.", "hostname.bind.", "id.server.", "version.server.", "authors.bind.", "other."):
            for rtype in (16, 255, 1):
                yield Asked(
                    f"CH {name} {rtype}", encode(16, 0, [Question(from_text(name), rtype, 3)]), by_tcp, rtype, 3
                )
    yield Asked("IXFR by UDP without SOA", encode(17, 0, [Question(_name("@"), 251, 1)]), False)
    yield Asked("AXFR by UDP", encode(17, 0, [Question(_name("@"), 252, 1)]), False)
    yield Asked("AXFR of a name", encode(17, 0, [Question(_name("host"), 252, 1)]), True)
