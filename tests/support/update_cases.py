"""UPDATE messages by rule: every row of the tables of RFC 2136, valid and not, against a small zone of known content.

A case names owners relative to its zone, so that each can have a zone of its own and all start from the same content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from protocol.constants import Class, Opcode, Type, type_from_text, type_text
from protocol.message import Question, encode
from protocol.name import from_text

CONTENT: Final = (
    ("host", 300, "A", "192.0.2.1"),
    ("host", 300, "A", "192.0.2.2"),
    ("host", 300, "TXT", "one"),
    ("MiXed", 300, "A", "192.0.2.3"),
    ("alias", 300, "CNAME", "host"),
    ("srv", 300, "SRV", "0 0 1 Host"),
    ("ptr", 300, "PTR", "HOST"),
    ("mx", 300, "MX", "10 host"),
    ("deep.ent", 300, "A", "192.0.2.4"),
    ("*.wild", 300, "A", "192.0.2.5"),
    ("cut", 300, "NS", "ns.cut"),
    ("ns.cut", 300, "A", "192.0.2.6"),
    ("dn", 300, "DNAME", "target"),
    ("odd", 300, "TYPE65280", "\\# 3 010203"),
    ("odd", 300, "TYPE65281", "\\# 0"),
    ("wks", 300, "WKS", "192.0.2.7 tcp 25"),
    ("@", 300, "MX", "10 mx"),
    ("@", 300, "TXT", "apex"),
)
"""What each zone holds beside its SOA, one NS and what the service keeps there: owner, TTL, type, rdata."""
SERIAL: Final = 1000
_NAMES: Final = (
    *("host", "HOST", "@", "ent", "deep.ent", "gone", "x.wild", "*.wild", "wild", "alias", "cut", "x.cut", "ns.cut"),
    *("dn", "x.dn"),
)
_META: Final = (0, Type.OPT, 128, Type.TKEY, Type.TSIG, Type.IXFR, Type.AXFR, Type.MAILB, Type.MAILA)
_OUTSIDE: Final = "www.outside.test."


class Row(NamedTuple):
    """One RR of a section. `rdata`: text with relative names, or octets as they are."""

    owner: str
    rtype: int
    rclass: int
    ttl: int
    rdata: str | bytes

    @property
    def text(self) -> str:
        where = {Class.IN: "", Class.ANY: "ANY ", Class.NONE: "NONE "}.get(Class(self.rclass), "") if (
            self.rclass in (1, 254, 255)
        ) else f"CLASS{self.rclass} "  # fmt: skip
        rdata = self.rdata if isinstance(self.rdata, str) else f"\\# {len(self.rdata)}"
        rdata = rdata if len(rdata) <= 40 else rdata[:37] + "..."
        ttl = "" if self.ttl == (300 if self.rclass == Class.IN else 0) else f"{self.ttl} "
        return f"{self.owner} {ttl}{where}{type_text(self.rtype)}{' ' + rdata if rdata else ''}"


@dataclass(frozen=True, slots=True)
class Case:
    """One message. `zone_section` takes the place of the one question for the zone's SOA."""

    group: str
    title: str
    prerequisites: tuple[Row, ...] = ()
    updates: tuple[Row, ...] = ()
    zone_section: tuple[tuple[str, int, int], ...] = (("@", int(Type.SOA), 1),)
    flags: int = 0

    def wire(self, apex: str, number: int) -> bytes:
        """The unsigned message for the zone of this name."""
        origin = dns.name.from_text(apex)
        questions = [Question(_name(owner, apex), rtype, rclass) for owner, rtype, rclass in self.zone_section]
        sections = [
            [(_name(row.owner, apex), row.rtype, row.rclass, row.ttl, _rdata(row, origin)) for row in rows]
            for rows in (self.prerequisites, self.updates)
        ]
        return encode(number & 0xFFFF, Opcode.UPDATE << 11 | self.flags, questions, *sections)


def _name(owner: str, apex: str) -> bytes:
    return from_text(apex if owner == "@" else owner if owner.endswith(".") else f"{owner}.{apex}")


def _rdata(row: Row, origin: dns.name.Name) -> bytes:
    if isinstance(row.rdata, bytes):
        return row.rdata
    if row.rdata == "":
        return b""
    kind = dns.rdatatype.RdataType(row.rtype)
    return dns.rdata.from_text(dns.rdataclass.IN, kind, row.rdata, origin, relativize=False).to_wire() or b""


def _type(rtype: str | int) -> int:
    return rtype if isinstance(rtype, int) else type_from_text(rtype)


def in_use(owner: str) -> Row:
    return Row(owner, Type.ANY, Class.ANY, 0, "")


def not_in_use(owner: str) -> Row:
    return Row(owner, Type.ANY, Class.NONE, 0, "")


def exists(owner: str, rtype: str | int) -> Row:
    return Row(owner, _type(rtype), Class.ANY, 0, "")


def absent(owner: str, rtype: str | int) -> Row:
    return Row(owner, _type(rtype), Class.NONE, 0, "")


def equals(owner: str, rtype: str | int, rdata: str | bytes) -> Row:
    return Row(owner, _type(rtype), Class.IN, 0, rdata)


def add(owner: str, rtype: str | int, rdata: str | bytes, ttl: int = 300) -> Row:
    return Row(owner, _type(rtype), Class.IN, ttl, rdata)


def delete_rrset(owner: str, rtype: str | int) -> Row:
    return Row(owner, _type(rtype), Class.ANY, 0, "")


def delete_name(owner: str) -> Row:
    return Row(owner, Type.ANY, Class.ANY, 0, "")


def delete_rr(owner: str, rtype: str | int, rdata: str | bytes) -> Row:
    return Row(owner, _type(rtype), Class.NONE, 0, rdata)


def soa(serial: int, minimum: int = 60, ttl: int = 300) -> Row:
    return add("@", "SOA", f"ns.members.example. hostmaster {serial} 3600 600 86400 {minimum}", ttl)


NS2, NS3 = "ns2.members.example.", "ns3.members.example."
NEW: Final = add("new", "A", "192.0.2.9")


def cases() -> list[Case]:
    """All of them, in the order of the document."""
    return [
        *_zone_sections(),
        *_prerequisites_on_names(),
        *_prerequisites_on_values(),
        *_prerequisites_misformed(),
        *_adds(),
        *_soas(),
        *_times_to_live(),
        *_deletes(),
        *_updates_misformed(),
        *_several(),
    ]


def _zone_sections() -> Iterator[Case]:
    soa_type = int(Type.SOA)
    for title, section in (
        ("none", ()),
        ("two", (("@", soa_type, 1), ("@", soa_type, 1))),
        ("type A", (("@", 1, 1),)),
        ("type ANY", (("@", 255, 1),)),
        ("class CH", (("@", soa_type, 3),)),
        ("class ANY", (("@", soa_type, 255),)),
        ("class NONE", (("@", soa_type, 254),)),
        ("a name within the zone", (("host", soa_type, 1),)),
        ("a name that does not exist", (("gone", soa_type, 1),)),
        ("the name of the delegation within", (("cut", soa_type, 1),)),
        ("another zone", (("outside.test.", soa_type, 1),)),
        ("the root", ((".", soa_type, 1),)),
    ):
        yield Case("Zone section", title, updates=(NEW,), zone_section=section)
    for title, flags in (("RD set", 0x0100), ("all seven Z bits set", 0x07F0), ("RCODE set", 0x000F)):
        yield Case("Zone section", title, updates=(NEW,), flags=flags)
    yield Case("Zone section", "nothing to do")


def _prerequisites_on_names() -> Iterator[Case]:
    group = "Prerequisites: names and RRsets"
    for owner in _NAMES:
        for title, row in (("in use", in_use(owner)), ("not in use", not_in_use(owner))):
            yield Case(group, f"{owner} {title}", (row,), (NEW,))
    typed: Sequence[tuple[str, str]] = (
        *((owner, "A") for owner in _NAMES),
        *(("@", "SOA"), ("@", "NS"), ("@", "MX"), ("alias", "CNAME"), ("cut", "NS"), ("dn", "DNAME"), ("host", "TXT")),
        *(("host", "AAAA"), ("host", "RRSIG"), ("host", "CNAME"), ("odd", "TYPE65280"), ("odd", "TYPE65281")),
        *(("odd", "TYPE65282"), ("mixed", "A"), ("srv", "SRV")),
    )
    for owner, rtype in typed:
        yield Case(group, f"{owner} {rtype} exists", (exists(owner, rtype),), (NEW,))
        yield Case(group, f"{owner} {rtype} does not exist", (absent(owner, rtype),), (NEW,))


def _prerequisites_on_values() -> Iterator[Case]:
    one, two, three = (equals("host", "A", f"192.0.2.{last}") for last in (1, 2, 3))
    served = "ns.members.example. hostmaster.members.example."
    for title, rows in (
        ("the whole RRset", (one, two)),
        ("in another order", (two, one)),
        ("one twice", (one, two, one)),
        ("a part of it", (one,)),
        ("more than it", (one, two, three)),
        ("another", (three,)),
        ("owner in capitals", (equals("HOST", "TXT", "one"),)),
        ("TXT", (equals("host", "TXT", "one"),)),
        ("TXT in capitals", (equals("host", "TXT", "ONE"),)),
        ("SRV target in another case", (equals("srv", "SRV", "0 0 1 hOST"),)),
        ("PTR in another case", (equals("ptr", "PTR", "host"),)),
        ("MX in another case", (equals("mx", "MX", "10 HOST"),)),
        ("CNAME", (equals("alias", "CNAME", "host"),)),
        ("A behind a CNAME", (equals("alias", "A", "192.0.2.1"), equals("alias", "A", "192.0.2.2"))),
        ("NS of the zone", (equals("@", "NS", "ns.members.example."),)),
        (
            "NS of the zone and one more",
            (equals("@", "NS", "ns.members.example."), equals("@", "NS", NS2)),
        ),
        ("SOA with another serial", (equals("@", "SOA", f"{served} 1 3600 600 86400 60"),)),
        ("DNAME", (equals("dn", "DNAME", "target"),)),
        ("unknown type", (equals("odd", 65280, b"\1\2\3"),)),
        ("unknown type, another value", (equals("odd", 65280, b"\1\2\4"),)),
        ("unknown type without rdata", (equals("odd", 65281, b""),)),
        ("a name that does not exist", (equals("gone", "A", "192.0.2.1"),)),
        ("what a wildcard would make", (equals("x.wild", "A", "192.0.2.5"),)),
        ("the wildcard itself", (equals("*.wild", "A", "192.0.2.5"),)),
        ("two RRsets that hold", (one, two, equals("host", "TXT", "one"))),
        ("two RRsets, one holds", (one, two, equals("host", "TXT", "two"))),
        ("holds, and a name in use", (one, two, in_use("host"))),
        ("does not hold, and a name not in use that is", (three, not_in_use("host"))),
        ("does not hold, and an RRset that exists and must not", (three, absent("host", "TXT"))),
    ):
        yield Case("Prerequisites: values", title, rows, (NEW,))


def _prerequisites_misformed() -> Iterator[Case]:
    group = "Prerequisites: form"
    forms = (
        ("name in use", in_use("host")),
        ("name not in use", not_in_use("gone")),
        ("RRset exists", exists("host", "A")),
        ("RRset does not exist", absent("host", "AAAA")),
        ("value", equals("host", "TXT", "one")),
    )
    for title, row in forms:
        yield Case(group, f"{title}, TTL 1", (row._replace(ttl=1),), (NEW,))
        yield Case(group, f"{title}, outside the zone", (row._replace(owner=_OUTSIDE),), (NEW,))
        if row.rclass != Class.IN:
            yield Case(group, f"{title}, with rdata", (row._replace(rdata=b"\1\2\3\4"),), (NEW,))
    for rclass in (0, 2, 3, 4, 253, 65535):
        yield Case(group, f"class {rclass}", (Row("host", Type.A, rclass, 0, "192.0.2.1"),), (NEW,))
    for rtype in _META:
        for name, rclass in (("ANY", Class.ANY), ("NONE", Class.NONE), ("IN", Class.IN)):
            rdata = b"\1\2\3\4" if rclass == Class.IN else b""
            yield Case(group, f"{type_text(rtype)}, class {name}", (Row("host", rtype, rclass, 0, rdata),), (NEW,))
    yield Case(group, "ANY, class IN", (Row("host", Type.ANY, Class.IN, 0, b"\1\2\3\4"),), (NEW,))
    yield Case(group, "ANY, class IN, no rdata", (Row("host", Type.ANY, Class.IN, 0, b""),), (NEW,))
    for title, row in (
        ("A of 0 octets", equals("host", "A", b"")),
        ("A of 3 octets", equals("host", "A", b"\1\2\3")),
        ("A of 5 octets", equals("host", "A", b"\1\2\3\4\5")),
        ("MX without a name", equals("mx", "MX", b"\0\x0a")),
        ("TXT of 0 octets", equals("host", "TXT", b"")),
        ("TXT whose string is cut short", equals("host", "TXT", b"\5one")),
        ("CNAME with octets behind", equals("alias", "CNAME", b"\0\0")),
    ):
        yield Case(group, title, (row,), (NEW,))
    outside, late, wrong = in_use(_OUTSIDE), in_use("host")._replace(ttl=1), in_use("gone")
    odd = Row("host", Type.A, Class.ANY, 0, b"\1\2\3\4")
    for title, rows in (
        ("outside, then one with TTL", (outside, late)),
        ("TTL, then one outside", (late, outside)),
        ("one that fails, then one with TTL", (wrong, late)),
        ("TTL, then one that fails", (late, wrong)),
        ("one that fails, then one outside", (wrong, outside)),
        ("one that fails, then one with rdata", (wrong, odd)),
        ("outside, with TTL", (outside._replace(ttl=1),)),
        ("a value that fails, then one with TTL", (equals("host", "A", "192.0.2.1"), late)),
    ):
        yield Case(group, title, rows, (NEW,))


def _adds() -> Iterator[Case]:
    group = "Add to an RRset"
    for owner in (*_NAMES, "new", "new.sub", "*.new", "new.alias", "sub.x.wild"):
        yield Case(group, f"A at {owner}", updates=(add(owner, "A", "192.0.2.9"),))
    for rtype, rdata in (
        ("A", "192.0.2.1"),
        ("TXT", "one"),
        ("TXT", "two"),
        ("AAAA", "2001:db8::1"),
        ("CNAME", "other"),
        ("NS", "ns.host"),
        ("DNAME", "other"),
        ("SOA", "ns hostmaster 1 2 3 4 5"),
        ("HINFO", "PC Unix"),
        ("TYPE65280", b"\1"),
        ("TYPE65281", b""),
        ("TYPE99", b"\3abc"),
        ("TYPE10", b""),
        ("TYPE10", b"null"),
        ("DS", f"1 13 2 {'ab' * 32}"),
        ("KEY", "512 3 13 AwEAAQ=="),
        ("DNSKEY", "256 3 13 AwEAAQ=="),
        ("CAA", '0 issue "ca.test"'),
        ("SVCB", "1 . port=53"),
        ("HTTPS", "0 other"),
        ("NAPTR", '1 1 "" "" "" host'),
        ("RRSIG", "A 13 3 300 20300101000000 20200101000000 1 members.example. AAAA"),
        ("NSEC", "other A TXT"),
        ("NSEC3", "1 0 1 ab 0123456789ABCDEFGHIJKLMNOPQRSTUV A"),
        ("NSEC3PARAM", "1 0 1 ab"),
        ("MD", b"\5other\0"),
    ):
        shown = type_text(_type(rtype)) + (f" of {len(rdata)} octets" if isinstance(rdata, bytes) else "")
        extra = f" {rdata}" if rtype in ("A", "TXT") else ""
        yield Case(group, f"{shown}{extra} at host", updates=(add("host", rtype, rdata),))
    for rtype, rdata in (
        ("CNAME", "host"),
        ("CNAME", "HOST"),
        ("CNAME", "other"),
        ("TXT", "x"),
        ("TYPE65280", b"\1"),
        ("KEY", "512 3 13 AwEAAQ=="),
        ("RRSIG", "A 13 3 300 20300101000000 20200101000000 1 members.example. AAAA"),
        ("NSEC", "other CNAME"),
        ("DNAME", "other"),
        ("NS", "ns"),
        ("SOA", "ns hostmaster 2 2 3 4 5"),
    ):
        shown = rdata if isinstance(rdata, str) and rtype == "CNAME" else ""
        yield Case(group, f"{rtype} {shown} at alias".replace("  ", " "), updates=(add("alias", rtype, rdata),))
    for owner, rtype, rdata in (
        ("@", "NS", NS2),
        ("@", "NS", "ns.members.example."),
        ("@", "CNAME", "host"),
        ("@", "DNAME", "host"),
        ("@", "DS", f"1 13 2 {'ab' * 32}"),
        ("@", "MX", "10 MX"),
        ("cut", "NS", "ns.cut"),
        ("cut", "NS", "ns2.cut"),
        ("cut", "DS", f"1 13 2 {'ab' * 32}"),
        ("cut", "TXT", "beside"),
        ("dn", "DNAME", "target"),
        ("dn", "DNAME", "other"),
        ("dn", "CNAME", "other"),
        ("dn", "TXT", "beside"),
        ("wks", "WKS", "192.0.2.7 tcp 25 80"),
        ("wks", "WKS", "192.0.2.7 udp 53"),
        ("wks", "WKS", "192.0.2.8 tcp 25"),
        ("srv", "SRV", "0 0 1 HOST"),
        ("ptr", "PTR", "host"),
        ("odd", "TYPE65281", b""),
    ):
        shown = rdata if isinstance(rdata, str) else "\\# 0"
        yield Case(group, f"{rtype} {shown[:30]} at {owner}", updates=(add(owner, rtype, rdata),))


def _soas() -> Iterator[Case]:
    group = "SOA"
    for title, step in (
        ("one more", 1),
        ("the same", 0),
        ("one less", -1),
        ("2^31 - 1 more", 2**31 - 1),
        ("2^31 more", 2**31),
        ("2^31 + 1 more", 2**31 + 1),
        ("0", -SERIAL),
        ("2^32 - 1", 2**32 - 1 - SERIAL),
    ):
        serial = (SERIAL + step) % 2**32
        yield Case(group, f"serial {title}", updates=(soa(serial),))
        yield Case(group, f"serial {title}, and an A", updates=(soa(serial), NEW))
    yield Case(group, "an A, then serial 10 more", updates=(NEW, soa(SERIAL + 10)))
    yield Case(group, "another MINIMUM, serial the same", updates=(soa(SERIAL, minimum=5),))
    yield Case(group, "another MINIMUM, serial 10 more", updates=(soa(SERIAL + 10, minimum=5),))
    yield Case(group, "another TTL, serial 10 more", updates=(soa(SERIAL + 10, ttl=77),))
    yield Case(group, "10 more, then 20 more", updates=(soa(SERIAL + 10), soa(SERIAL + 20)))
    yield Case(group, "20 more, then 10 more", updates=(soa(SERIAL + 20), soa(SERIAL + 10)))
    yield Case(group, "below the zone's name", updates=(add("host", "SOA", "ns hostmaster 5000 2 3 4 5"), NEW))
    yield Case(group, "delete the RRset", updates=(delete_rrset("@", "SOA"),))
    yield Case(group, "delete the RRset, and an A", updates=(delete_rrset("@", "SOA"), NEW))
    yield Case(group, "delete the record", updates=(soa(SERIAL)._replace(rclass=int(Class.NONE), ttl=0),))


def _times_to_live() -> Iterator[Case]:
    group = "TTL"
    one = add("host", "A", "192.0.2.1")
    for title, rows in (
        ("of one record of two", (one._replace(ttl=600),)),
        ("of both records", (one._replace(ttl=600), add("host", "A", "192.0.2.2", 600))),
        ("of both, each another", (one._replace(ttl=600), add("host", "A", "192.0.2.2", 700))),
        ("of a record alone", (add("host", "TXT", "one", 600),)),
        ("of a third record", (add("host", "A", "192.0.2.3", 600),)),
        ("0", (one._replace(ttl=0),)),
        ("2^31 - 1", (one._replace(ttl=2**31 - 1),)),
        ("2^31", (one._replace(ttl=2**31),)),
        ("2^32 - 1", (one._replace(ttl=2**32 - 1),)),
        ("2^31 of a new record", (NEW._replace(ttl=2**31),)),
        ("two adds of one record", (NEW, NEW._replace(ttl=600))),
        ("two adds of one RRset", (NEW, add("new", "A", "192.0.2.10", 600))),
        ("of a CNAME", (add("alias", "CNAME", "host", 600),)),
        ("of the NS of the zone", (add("@", "NS", "ns.members.example.", 600),)),
        ("of a record in another case", (add("srv", "SRV", "0 0 1 HOST", 600),)),
    ):
        yield Case(group, title, updates=rows)


def _deletes() -> Iterator[Case]:
    for owner in (*_NAMES, "odd", "mixed", "wks"):
        yield Case("Delete all RRsets from a name", owner, updates=(delete_name(owner),))
    for owner, rtype in (
        *((owner, "A") for owner in _NAMES),
        *(("host", "AAAA"), ("host", "CNAME"), ("alias", "CNAME"), ("cut", "NS"), ("@", "NS"), ("@", "MX")),
        *(
            ("@", "TXT"),
            ("@", "AAAA"),
            ("dn", "DNAME"),
            ("odd", "TYPE65280"),
            ("odd", "TYPE65281"),
            ("odd", "TYPE65282"),
        ),
        *(("host", "RRSIG"), ("host", "DNSKEY")),
    ):
        yield Case("Delete an RRset", f"{rtype} at {owner}", updates=(delete_rrset(owner, rtype),))
    group = "Delete an RR from an RRset"
    for owner, rtype, rdata in (
        ("host", "A", "192.0.2.1"),
        ("HOST", "A", "192.0.2.1"),
        ("host", "A", "192.0.2.9"),
        ("host", "TXT", "one"),
        ("host", "TXT", "ONE"),
        ("host", "AAAA", "2001:db8::1"),
        ("gone", "A", "192.0.2.1"),
        ("ent", "A", "192.0.2.4"),
        ("x.wild", "A", "192.0.2.5"),
        ("*.wild", "A", "192.0.2.5"),
        ("alias", "CNAME", "HOST"),
        ("alias", "CNAME", "other"),
        ("alias", "A", "192.0.2.1"),
        ("srv", "SRV", "0 0 1 hOsT"),
        ("mx", "MX", "10 HOST"),
        ("mx", "MX", "20 host"),
        ("ptr", "PTR", "host"),
        ("cut", "NS", "ns.cut"),
        ("ns.cut", "A", "192.0.2.6"),
        ("@", "NS", "ns.members.example."),
        ("@", "NS", "NS.members.example."),
        ("@", "NS", NS2),
        ("@", "MX", "10 mx"),
        ("dn", "DNAME", "target"),
        ("odd", 65280, b"\1\2\3"),
        ("odd", 65280, b"\1\2"),
        ("odd", 65281, b""),
        ("wks", "WKS", "192.0.2.7 tcp 25"),
    ):
        shown = rdata if isinstance(rdata, str) else f"\\# {len(rdata)}"
        yield Case(group, f"{type_text(_type(rtype))} {shown} at {owner}", updates=(delete_rr(owner, rtype, rdata),))
    both = tuple(delete_rr("host", "A", f"192.0.2.{last}") for last in (1, 2))
    yield Case(group, "both of an RRset", updates=both)
    yield Case(group, "one twice", updates=(both[0], both[0]))


def _updates_misformed() -> Iterator[Case]:
    group = "Update section: form"
    forms = (
        ("add", NEW),
        ("delete an RRset", delete_rrset("host", "A")),
        ("delete a name", delete_name("host")),
        ("delete a record", delete_rr("host", "A", "192.0.2.1")),
    )
    for title, row in forms:
        yield Case(group, f"{title}, outside the zone", updates=(row._replace(owner=_OUTSIDE),))
        yield Case(group, f"{title}, above the zone", updates=(row._replace(owner="members.example."),))
        if row.rclass != Class.IN:
            yield Case(group, f"{title}, TTL 1", updates=(row._replace(ttl=1),))
        if row.rclass == Class.ANY:
            yield Case(group, f"{title}, with rdata", updates=(row._replace(rdata=b"\1\2\3\4"),))
    for rclass in (0, 2, 3, 4, 253, 65535):
        yield Case(group, f"class {rclass}", updates=(Row("host", Type.A, rclass, 0, "192.0.2.1"),))
    for rtype in (*_META, Type.ANY):
        for name, rclass in (("IN", Class.IN), ("NONE", Class.NONE), ("ANY", Class.ANY)):
            if rtype == Type.ANY and rclass == Class.ANY:
                continue
            rdata = b"" if rclass == Class.ANY else b"\1\2\3\4"
            yield Case(group, f"{type_text(rtype)}, class {name}", updates=(Row("host", rtype, rclass, 0, rdata),))
    for title, rtype, rdata in (
        ("A of 0 octets", "A", b""),
        ("A of 3 octets", "A", b"\1\2\3"),
        ("A of 5 octets", "A", b"\1\2\3\4\5"),
        ("AAAA of 4 octets", "AAAA", b"\1\2\3\4"),
        ("MX without a name", "MX", b"\0\x0a"),
        ("SRV whose name is cut short", "SRV", b"\0\0\0\0\0\1\4hos"),
        ("TXT of 0 octets", "TXT", b""),
        ("TXT whose string is cut short", "TXT", b"\5one"),
        ("CNAME with octets behind", "CNAME", b"\0\0"),
        ("a name with a label of 64", "CNAME", b"\x40" + b"x" * 64 + b"\0"),
    ):
        yield Case(group, f"add {title}", updates=(add("new", rtype, rdata),))
        yield Case(group, f"delete {title}", updates=(delete_rr("host", rtype, rdata),))
    bad = delete_rrset("host", "A")._replace(ttl=1)
    outside = add(_OUTSIDE, "A", "192.0.2.9")
    yield Case(group, "a good one, then a bad one", updates=(NEW, delete_name("host"), bad))
    yield Case(group, "a good one, then one outside", updates=(NEW, delete_name("host"), outside))
    yield Case(group, "a bad one, then one outside", updates=(bad, outside))
    yield Case(group, "one outside, then a bad one", updates=(outside, bad))
    yield Case(group, "a prerequisite that fails, and a bad one", (in_use("gone"),), (bad,))
    yield Case(group, "a prerequisite that fails, and one outside", (in_use("gone"),), (outside,))
    yield Case(group, "a prerequisite that holds, and a bad one", (in_use("host"),), (bad,))


def _several() -> Iterator[Case]:
    group = "Several in one message"
    ns2 = add("@", "NS", NS2)
    no_ns = delete_rr("@", "NS", "ns.members.example.")
    for title, rows in (
        ("add, delete the same", (NEW, delete_rr("new", "A", "192.0.2.9"))),
        ("add, delete its name", (NEW, delete_name("new"))),
        ("delete, add the same", (delete_rr("host", "TXT", "one"), add("host", "TXT", "one"))),
        ("delete the RRset, add what was in it", (delete_rrset("host", "TXT"), add("host", "TXT", "one"))),
        ("delete the RRset, add half of it", (delete_rrset("host", "A"), add("host", "A", "192.0.2.1"))),
        ("delete the name, add one record", (delete_name("host"), add("host", "A", "192.0.2.9"))),
        ("delete the name, add all again", (delete_name("ptr"), add("ptr", "PTR", "HOST"))),
        ("the same add twice", (NEW, NEW)),
        ("a new NS of the zone, delete the old", (ns2, no_ns)),
        ("delete the NS of the zone, add a new", (no_ns, ns2)),
        ("add two NS, delete three", (ns2, add("@", "NS", NS3), no_ns, delete_rr("@", "NS", NS2),
                                      delete_rr("@", "NS", NS3))),
        ("delete all of the zone's name, add an NS", (delete_name("@"), ns2)),
        ("delete the CNAME, add an A", (delete_rrset("alias", "CNAME"), add("alias", "A", "192.0.2.9"))),
        ("add an A, delete the CNAME", (add("alias", "A", "192.0.2.9"), delete_rrset("alias", "CNAME"))),
        ("delete the data, add a CNAME", (delete_name("host"), add("host", "CNAME", "other"))),
        ("add a CNAME, delete the data", (add("host", "CNAME", "other"), delete_name("host"))),
        ("A and CNAME at a new name", (NEW, add("new", "CNAME", "other"))),
        ("CNAME and A at a new name", (add("new", "CNAME", "other"), NEW)),
        ("two CNAMEs at a new name", (add("new", "CNAME", "one"), add("new", "CNAME", "two"))),
        ("two DNAMEs at a new name", (add("new", "DNAME", "one"), add("new", "DNAME", "two"))),
        ("a delegation with glue", (add("new", "NS", "ns.new"), add("ns.new", "A", "192.0.2.9"))),
        ("what does not change anything, ten times", (add("host", "TXT", "one"),) * 10),
    ):  # fmt: skip
        yield Case(group, title, updates=rows)
    replace = (delete_rrset("host", "TXT"), add("host", "TXT", "x"))
    for title, row, rows in (
        ("if it is not there, add", not_in_use("new"), (NEW,)),
        ("if it is there, delete", in_use("host"), (delete_name("host"),)),
        ("if it is this, replace", equals("host", "TXT", "one"), replace),
        ("if it is that, replace", equals("host", "TXT", "x"), replace),
    ):
        yield Case(group, title, (row,), rows)
