"""The same updates to us, BIND and Knot DNS, each in a zone of its own: RCODE and what became of the zone."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from homing.key_files import key_json
from homing.lab_ports import free_port
from protocol.constants import Class, Rcode, Type, rcode_text, type_text
from protocol.errors import DecodeError
from protocol.message import Question, decode, encode
from protocol.name import fold, from_text, to_text
from protocol.rdata import canonical, soa_serial, soa_with_serial
from protocol.tsig import Key, algorithm_from_text, sign
from server import members
from server.keys import ensure_admin_key
from server.store.sql import SqlStore
from tests.support.processes import homing_here, server_config, start
from tests.support.rivals import ADDRESS, Asker, start_rival
from tests.support.secondaries import keyring
from tests.support.update_cases import CONTENT, SERIAL, Case, Row, add, soa

SERVERS: Final = ("homing", "named", "knotd")
ENDED: Final = "the server ends"
Record = tuple[str, str, int, bytes, str]
"""Owner relative to the zone in lower case, type, TTL, canonical rdata, rdata in text."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one server made of one update. `serial`: how far it moved."""

    rcode: str
    serial: int
    added: frozenset[Record] = frozenset()
    removed: frozenset[Record] = frozenset()

    @property
    def key(self) -> object:
        """What is compared; types by number and rdata by octets, whatever the text looks like."""
        return (
            self.rcode,
            self.serial,
            *(frozenset(record[:4] for record in part) for part in (self.added, self.removed)),
        )

    @property
    def text(self) -> str:
        """In one line: `NOERROR, +new 300 A 192.0.2.9, serial +1`."""
        parts = [self.rcode]
        for sign_text, records in (("−", self.removed), ("+", self.added)):
            for owner, rtype, ttl, _, rdata in sorted(records):
                rdata = rdata if len(rdata) <= 30 else rdata[:27] + "..."
                parts.append(f"{sign_text}{owner} {ttl} {rtype} {rdata}")
        if self.serial:
            parts.append(f"serial +{self.serial}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Compared:
    """One case and what each server made of it."""

    case: Case
    results: Mapping[str, Result]

    @property
    def differs(self) -> bool:
        return len({result.key for result in self.results.values()}) > 1


def apex_of(number: int) -> str:
    return f"z{number:03}.members.example."


def compare(
    directory: Path, chosen: Sequence[Case], progress: Callable[[str], None] = lambda line: None
) -> list[Compared]:
    """Run all of them; the three servers live in `directory` and are gone when it returns."""
    config = server_config(directory, dns={"listen": [f"{ADDRESS}:{free_port(ADDRESS)}"], "rate_limit": 0})
    with start("serve", config):
        pass  # the first start makes the zone
    progress(f"{len(chosen)} zones")
    facts = asyncio.run(_make_zones(f"sqlite+aiosqlite:///{directory}/homing.db", len(chosen)))
    key = Key(from_text(facts["name"]), algorithm_from_text(facts["algorithm"]), _secret(facts))
    with ExitStack() as stack:
        server = stack.enter_context(start("serve", config))
        us = stack.enter_context(Asker("homing", server.port, timeout=30.0))
        for number in range(len(chosen)):
            _expect(us, _content(apex_of(number), number), key)
        first = directory / "first.zone"
        done = homing_here("zone", "export", first, "--zone", apex_of(0), "--config", config)
        assert done.code == 0, done.err
        files = _files(directory, first.read_text(), len(chosen))
        askers = {"homing": us}

        def begin(program: str) -> None:
            askers[program] = stack.enter_context(start_rival(program, directory / program, files, facts))
            askers[program].timeout = 30.0

        for program in SERVERS[1:]:
            progress(f"starting {program}")
            begin(program)
        before = {
            name: [_zone(asker, apex_of(number), key) for number in range(len(chosen))]
            for name, asker in askers.items()
        }
        compared = []
        for number, case in enumerate(chosen):
            if number % 50 == 0:
                progress(f"{number} of {len(chosen)} updates")
            results = {}
            for name in SERVERS:
                try:
                    results[name] = _run(askers[name], case, number, key, before[name][number])
                except OSError:
                    assert name != "homing"
                    progress(f"{name} ended at: {case.group}, {case.title}")
                    results[name] = Result(ENDED, 0)
                    begin(name)
            compared.append(Compared(case, results))
        return compared


def _secret(facts: Mapping[str, Any]) -> bytes:
    (found,) = keyring(dict(facts)).values()
    return bytes(found.secret)


async def _make_zones(url: str, count: int) -> dict[str, Any]:
    store = await SqlStore.open(url)
    try:
        for number in range(count):
            await members.add_member(store, apex_of(number).partition(".")[0], private=True, now=1)
        return dict(key_json(await ensure_admin_key(store, now=int(time.time()))))
    finally:
        await store.close()


def _content(apex: str, number: int) -> bytes:
    rows: list[Row] = [add(owner, rtype, _octets(rdata), ttl) for owner, ttl, rtype, rdata in CONTENT]
    return Case("", "", updates=(*rows, soa(SERIAL))).wire(apex, number)


def _octets(rdata: str) -> str | bytes:
    """Text as it is, but for the generic form, whose octets dnspython wants told."""
    found = re.fullmatch(r"\\# \d+ ?([0-9a-f]*)", rdata)
    return bytes.fromhex(found.group(1)) if found else rdata


def _expect(asker: Asker, wire: bytes, key: Key) -> None:
    """An update that must succeed."""
    reply = asker.tcp(sign(wire, key, now=int(time.time()))[0])
    assert reply is not None and reply[3] & 0xF == Rcode.NOERROR, reply and rcode_text(reply[3] & 0xF)


def _files(directory: Path, text: str, count: int) -> dict[str, Path]:
    """One file for each zone, the first one's text with the zone's name in it."""
    text = re.sub(r"WKS\s.*", r"TYPE11 \\# 9 c00002070600000040", text)  # Knot DNS knows no other way to write it
    folder = directory / "zones"
    folder.mkdir()
    files = {}
    for number in range(count):
        file = folder / f"{number:03}"
        file.write_text(text.replace("z000.members", f"z{number:03}.members"))
        files[apex_of(number)] = file
    return files


def _run(asker: Asker, case: Case, number: int, key: Key, before: "_Zone") -> Result:
    reply = asker.tcp(sign(case.wire(apex_of(number), number), key, now=int(time.time()))[0])
    rcode = "no reply" if reply is None else rcode_text(reply[3] & 0xF)
    after = _zone(asker, apex_of(number), key)
    return Result(
        rcode,
        (after.serial - before.serial) % 2**32,
        after.records - before.records,
        before.records - after.records,
    )


@dataclass(frozen=True, slots=True)
class _Zone:
    serial: int
    records: frozenset[Record]


def _zone(asker: Asker, apex: str, key: Key) -> _Zone:
    """A zone by AXFR; its SOA record stands among the others, serial 0. Rdata need not have the form of its type."""
    origin = from_text(apex)
    query = sign(encode(0x7E57, 0, [Question(origin, Type.AXFR, Class.IN)]), key, now=int(time.time()))[0]
    serial = soas = 0
    records = set()
    for wire in asker.stream(query):
        message = decode(wire)
        assert message.header.rcode == Rcode.NOERROR, rcode_text(message.header.rcode)
        for record in message.answers:
            try:
                rdata = canonical(record.rtype, record.rdata(wire))
            except DecodeError:
                rdata = record.raw(wire)
            if record.rtype == Type.SOA:
                soas += 1
                serial, rdata = soa_serial(rdata), soa_with_serial(rdata, 0)
            owner = to_text(fold(record.name)).removesuffix(f".{apex}")
            text = _text(record.rtype, rdata, apex)
            records.add(("@" if owner == apex else owner, type_text(record.rtype), record.ttl, rdata, text))
        if soas == 2:
            return _Zone(serial, frozenset(records))
    raise OSError("the transfer ends early")


def _text(rtype: int, rdata: bytes, apex: str) -> str:
    """Rdata as a master file has it; octets where it has not the form of its type."""
    try:
        read = dns.rdata.from_wire(dns.rdataclass.IN, dns.rdatatype.RdataType(rtype), rdata, 0, len(rdata))
        return read.to_text(dns.name.from_text(apex), True)
    except dns.exception.DNSException:
        return f"\\# {len(rdata)} {rdata.hex()}"


_META: Final = re.compile(r"(TYPE0|TYPE128|OPT|TKEY|TSIG|IXFR|AXFR|MAILB|MAILA|ANY), class")
_DNSSEC: Final = re.compile(r"\b(DS|DNSKEY|RRSIG|NSEC|NSEC3|NSEC3PARAM|MD)\b")


def why(compared: Compared) -> str:
    """The number in docs/deviations.md that a difference goes by; "" when nothing explains it."""
    ours, bind, knot = (compared.results[name] for name in SERVERS)
    group, title = compared.case.group, compared.case.title
    if ours.key == bind.key:
        return "D118"
    if group == "Zone section" and title.startswith("class "):
        return "D113"
    if _META.match(title):
        return "D112"
    if group.endswith("form") and title.startswith(("one that fails, then", "a prerequisite that fails")):
        return "D54"
    if group == "TTL" and title.startswith(("2^31", "2^32")):
        return "D114"
    if group != "SOA" and _DNSSEC.search(title):
        return "D115"
    if bind.rcode == "REFUSED" and re.search(r"\bNS\b", title):
        return "D116"
    if title.startswith("serial 2^31 more"):
        return "D119"
    if title == "one twice" and ours.key == knot.key:
        return "D117"
    return ""


def sections(compared: Sequence[Compared]) -> Iterator[tuple[str, list[Compared]]]:
    """By group, in order."""
    groups: dict[str, list[Compared]] = {}
    for item in compared:
        groups.setdefault(item.case.group, []).append(item)
    yield from groups.items()
