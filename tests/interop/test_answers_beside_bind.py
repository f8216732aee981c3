"""Thousands of questions to us and to BIND, which serves what we exported: equal, or a numbered deviation."""

import asyncio
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dns.message
import dns.query
import dns.rcode
import dns.tsigkeyring
import dns.update
import pytest

from homing.key_files import key_json
from homing.lab_ports import free_port
from protocol.constants import Rcode, Type, is_meta_type
from protocol.name import from_text
from protocol.tsig import Key, algorithm_from_text, sign
from server.keys import ensure_admin_key
from server.store.sql import SqlStore
from tests.support.comparing import Reply, differences, read
from tests.support.processes import homing_here, server_config, start
from tests.support.questions import (
    PRIVATE,
    PRIVATE_UPDATE,
    ZONE,
    ZONE_FILE,
    Asked,
    private_questions,
    questions,
)
from tests.support.rivals import ADDRESS, Asker, start_rival

Explains = Callable[[Asked, Reply, Reply, list[str]], bool]


def _is_more(asked: Asked, ours: Reply, theirs: Reply, found: list[str]) -> bool:
    return found == ["additional"] and theirs.additional < ours.additional


def _is_any(asked: Asked, ours: Reply, theirs: Reply, found: list[str]) -> bool:
    return found == ["answer"] and asked.rtype == Type.ANY and len(ours.answer) == 1


DEVIATIONS: dict[str, Explains] = {
    "D27": _is_any,
    "D45": lambda asked, ours, theirs, found: "XFR" in asked.text and ours.rcode == "REFUSED",
    "D105": lambda asked, ours, theirs, found: (
        (ours.rcode, theirs.rcode) == ("NOERROR", "SERVFAIL") and len(ours.answer) > len(theirs.answer) > 10
    ),
    "D106": _is_more,
    "D107": lambda asked, ours, theirs, found: found == ["tc True/False"] and ours.size > theirs.size,
    "D108": lambda asked, ours, theirs, found: asked.rclass != 1 and ours.rcode == "REFUSED",
    "D109": lambda asked, ours, theirs, found: is_meta_type(asked.rtype) and ours.rcode == "NOTIMP",
    "D111": lambda asked, ours, theirs, found: found == ["tc True/False"] and bool(ours.authority) and not ours.aa,
    "D110": lambda asked, ours, theirs, found: asked.text == "octets behind" and ours.rcode == "FORMERR",
}
"""What explains a difference: its number in docs/deviations.md."""


@dataclass(slots=True)
class Pair:
    us: Asker
    bind: Asker
    key: Key

    def compare(self, asked: Asked, *, is_signed: bool = False) -> tuple[Reply, Reply, list[str]]:
        wire = sign(asked.wire, self.key, now=int(time.time()))[0] if is_signed else asked.wire
        ours = read(self.us.ask(wire, by_tcp=asked.by_tcp))
        # BIND leaves class CH without an answer now and then.
        theirs = read(self.bind.ask(wire, by_tcp=asked.by_tcp, timeout=0.5 if asked.rclass == 3 else None))
        return ours, theirs, differences(ours, theirs)


def _admin_key(url: str) -> dict[str, Any]:
    async def make() -> dict[str, Any]:
        store = await SqlStore.open(url)
        try:
            return dict(key_json(await ensure_admin_key(store, now=int(time.time()))))
        finally:
            await store.close()

    return asyncio.run(make())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("beside")
    config = server_config(directory, dns={"listen": [f"{ADDRESS}:{free_port(ADDRESS)}"]})
    (directory / "in").write_text(ZONE_FILE)
    with start("serve", config):
        pass  # the first start makes the zone
    facts = _admin_key(f"sqlite+aiosqlite:///{directory}/homing.db")
    assert homing_here("member", "add", "bob", "--private", "--config", config).code == 0
    assert homing_here("zone", "import", directory / "in", "--yes", "--config", config).code == 0
    with start("serve", config) as server:
        update = dns.update.UpdateMessage(
            PRIVATE, keyring=dns.tsigkeyring.from_text({facts["name"]: (facts["algorithm"], facts["secret"])})
        )
        for owner, rtype, rdata in PRIVATE_UPDATE:
            update.add(owner, 300, rtype, rdata)
        assert dns.query.tcp(update, ADDRESS, port=server.port, timeout=10).rcode() == dns.rcode.NOERROR
        zones = {ZONE: directory / "members.zone", PRIVATE: directory / "bob.zone"}
        for apex, file in zones.items():
            assert homing_here("zone", "export", file, "--zone", apex, "--config", config).code == 0
        key = Key(from_text(facts["name"]), algorithm_from_text(facts["algorithm"]), _secret(facts))
        with (
            start_rival("named", directory / "named", zones, facts, private=(PRIVATE,)) as bind,
            Asker("homing", server.port) as us,
        ):
            yield Pair(us, bind, key)


def _secret(facts: dict[str, Any]) -> bytes:
    return dns.tsigkeyring.from_text({"x.": (facts["algorithm"], facts["secret"])}).popitem()[1].secret  # type: ignore[no-any-return]  # dnspython


@pytest.mark.rfc("1034", "4.3.2")
@pytest.mark.rfc("4592", "3.3.1")
@pytest.mark.rfc("6672", "3.2")
def test_every_answer_is_binds_or_a_numbered_deviation(pair: Pair) -> None:
    asked_for = questions()
    explained: Counter[str] = Counter()
    unexplained = []
    for asked in asked_for:
        ours, theirs, found = pair.compare(asked)
        if not found:
            continue
        number = next((n for n, explains in DEVIATIONS.items() if explains(asked, ours, theirs, found)), None)
        if number is None:
            unexplained.append((asked.text, found))
        else:
            explained[number] += 1
    assert len(asked_for) >= 5000
    assert unexplained == []
    assert explained.keys() == DEVIATIONS.keys(), "a deviation that nothing shows is none"
    assert sum(explained.values()) < len(asked_for) // 15, explained


@pytest.mark.rfc("8945", "5.3")
def test_a_private_zone_answers_its_key_as_bind_does(pair: Pair) -> None:
    for asked in private_questions():
        ours, theirs, found = pair.compare(asked, is_signed=True)
        if ours.tc and not theirs.tc:
            continue  # D107
        assert found == [] or _is_any(asked, ours, theirs, found) or _is_more(asked, ours, theirs, found), asked.text
        assert ours.rcode in ("NOERROR", "NXDOMAIN")


def test_without_the_key_both_refuse_all_but_what_we_open(pair: Pair) -> None:
    opened = set()
    for asked in private_questions():
        ours, theirs, _ = pair.compare(asked)
        assert (theirs.rcode, theirs.answer) == ("REFUSED", frozenset()) or asked.rtype == Type.DS
        if ours.rcode != "REFUSED":
            opened.add(asked.rtype)
    assert opened <= {Type.SOA, Type.NS, Type.DS}, "D16"


def test_the_rcode_of_a_question_for_another_zone_is_refused_by_both(pair: Pair) -> None:
    wire = struct.pack("!6H", 7, 0, 1, 0, 0, 0) + from_text("www.example.org.") + b"\0\1\0\1"
    for asker in (pair.us, pair.bind):
        reply = asker.udp(wire)
        assert reply is not None and reply[3] & 0xF == Rcode.REFUSED
