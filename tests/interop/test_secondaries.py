"""named, knotd and nsd as secondaries: what they serve equals what we serve, whatever happened meanwhile."""

import asyncio
import random
import re
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import dns.edns
import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.update
import dns.xfr
import pytest

from homing.certificates import ensure_certificates
from homing.key_files import key_json
from homing.lab_ports import free_port
from server.keys import ensure_admin_key
from server.store.sql import SqlStore
from tests.support.foreign import call
from tests.support.processes import Running, homing_here, server_config, start
from tests.support.secondaries import (
    ADDRESS,
    PROGRAMS,
    ZONE,
    Facts,
    Primary,
    Secondary,
    keyring,
    start_secondary,
    transfer,
)

CATALOG: Final = "catalog.invalid."


@dataclass(slots=True)
class House:
    """A primary with three secondaries, and every key by the name of its member; `admin` is the administrator's."""

    directory: Path
    server: Running
    primary: Primary
    keys: dict[str, Facts]
    secondaries: list[Secondary]
    by_catalog: dict[str, int]  # ports of those that are told of the catalog alone
    tables: dict[str, dict[str, Any]]
    stack: ExitStack
    earlier: str = ""  # log of servers before

    @property
    def log(self) -> str:
        return self.earlier + self.server.log

    def start(self, program: str, port: int, *, catalog: str = "") -> Secondary:
        directory = self.directory / (f"{program}-catalog" if catalog else program)
        primary = replace(self.primary, catalog=catalog)
        return self.stack.enter_context(
            start_secondary(program, directory, port, self.keys[program], primary, self.keys["primary"])
        )

    def restart(self, **tables: dict[str, Any]) -> None:
        """Stop the primary and start it with other settings."""
        self.server.stop()
        self.earlier += self.server.log
        self.server = self.stack.enter_context(
            start("serve", server_config(self.directory, **{**self.tables, **tables}))
        )

    def send(self, update: dns.message.Message) -> None:
        reply = dns.query.tcp(update, ADDRESS, port=self.server.port, timeout=10)
        assert reply.rcode() == dns.rcode.NOERROR, reply

    def update(self, zone: str = ZONE) -> dns.update.UpdateMessage:
        return dns.update.UpdateMessage(zone, keyring=keyring(self.keys["admin"]))

    def serial(self) -> int:
        reply = dns.query.udp(dns.message.make_query(ZONE, "SOA"), ADDRESS, port=self.server.port, timeout=5)
        return int(reply.answer[0][0].serial)

    def agree(self) -> None:
        """Every secondary comes to hold exactly what we hold."""
        serial = self.serial()
        ours = transfer(self.server.port, self.keys["admin"])
        for secondary in self.secondaries:
            secondary.wait_for(serial)
            assert transfer(secondary.port) == ours, secondary.program

    def transfers(self, key: Facts) -> list[str]:
        """Forms of the transfers a key had, from the server's log, in order."""
        pattern = rf"  kind=(\w+) .* key={re.escape(key['name'])}\s*$"
        return re.findall(pattern, self.log, re.MULTILINE)

    def wait_for_line(self, pattern: str) -> None:
        """Until the server's log has a line of this form: it is written when the peer has been served."""
        deadline = time.monotonic() + 5
        while not re.search(pattern, self.log):
            assert time.monotonic() < deadline, self.log[-2000:]
            time.sleep(0.02)

    def dig(self, *arguments: str, by: str | None = None) -> str:
        key = self.keys[by] if by else None
        signature = ("-y", f"{key['algorithm']}:{key['name']}:{key['secret']}") if key else ()
        return call("dig", f"@{ADDRESS}", "-p", str(self.server.port), "+norec", *signature, *arguments)


def _admin_key(url: str) -> Facts:
    async def make() -> Facts:
        store = await SqlStore.open(url)
        try:
            return dict(key_json(await ensure_admin_key(store, now=int(time.time()))))
        finally:
            await store.close()

    return asyncio.run(make())


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("secondaries")
    ports = [free_port(ADDRESS) for _ in PROGRAMS]
    by_catalog = {program: free_port(ADDRESS) for program in ("named", "knotd")}
    certificates = ensure_certificates(directory / "tls", ["ns.members.example"], [ADDRESS])
    members = {program: f"{program}.{ZONE}" for program in PROGRAMS}
    tables: dict[str, dict[str, Any]] = {
        "dns": {
            "listen": [f"{ADDRESS}:{free_port(ADDRESS)}"],
            "listen_tls": [f"{ADDRESS}:{free_port(ADDRESS)}"],
            "certificate_file": str(certificates.certificate_file),
            "key_file": str(certificates.key_file),
        },
        "lease": {"minimum_seconds": 1},
        "transfer": {
            "allow_keys": list(members.values()),
            "also_notify": [f"{ADDRESS}:{port}" for port in (*ports, *by_catalog.values())],
            "notify_key": f"primary.{ZONE}",
            "catalog": CATALOG,
        },
    }
    config = server_config(directory, **tables)
    with start("serve", config):
        pass  # the first start makes the zone
    keys = {"admin": _admin_key(f"sqlite+aiosqlite:///{directory}/homing.db")}
    for name in (*PROGRAMS, "primary", "alice"):
        keys[name] = homing_here("member", "add", name, "--json", "--config", config).json
    keys["bob"] = homing_here("member", "add", "bob", "--private", "--json", "--config", config).json
    with ExitStack() as stack:
        server = stack.enter_context(start("serve", config))
        primary = Primary(server.port, server.tls_port, certificates.ca_file, "ns.members.example")
        house = House(directory, server, primary, keys, [], by_catalog, tables, stack)
        for part in range(3):
            update = house.update()
            for number in range(300):
                update.add(f"host{part}-{number}.alice", 300, "A", f"10.{part}.{number >> 8}.{number & 255}")
            house.send(update)
        update = house.update(f"bob.{ZONE}")
        update.add("secret", 300, "A", "192.0.2.99")
        house.send(update)
        for program, port in zip(PROGRAMS, ports, strict=True):
            house.secondaries.append(house.start(program, port))
        yield house


@pytest.mark.rfc("5936", "2.2")
def test_each_fetches_the_whole_zone_first(house: House) -> None:
    house.agree()
    rows = transfer(house.server.port, house.keys["admin"])
    assert len(rows) > 900
    for secondary in house.secondaries:
        assert house.transfers(secondary.key)[0] == "axfr"
    for program in ("named", "nsd"):
        house.wait_for_line(rf"kind=axfr messages=\d+ .*/tls key={program}\.members\.example\.")


@pytest.mark.rfc("1995", "4")
@pytest.mark.rfc("1996", "3.7")
@pytest.mark.rfc("1996", "4.2")
def test_random_updates_reach_all_by_notify_and_ixfr(house: House) -> None:
    house.agree()
    before = {secondary.program: len(house.transfers(secondary.key)) for secondary in house.secondaries}
    dice = random.Random(7)
    for _ in range(1000):
        update = house.update()
        for _ in range(dice.randint(1, 3)):
            owner = f"r{dice.randrange(40)}.alice"
            match dice.randrange(6):
                case 0:
                    update.delete(owner)
                case 1:
                    update.delete(owner, "TXT")
                case 2:
                    update.replace(owner, dice.choice((60, 300)), "TXT", f'"{dice.randrange(9)}"')
                case 3:
                    update.add(owner, 300, "SRV", f"0 0 {dice.randrange(9)} Mac.alice.members.example.")
                case _:
                    update.add(owner, dice.choice((60, 300)), "A", f"192.0.2.{dice.randrange(9)}")
        house.send(update)
    house.agree()
    for secondary in house.secondaries:
        kinds = set(house.transfers(secondary.key)[before[secondary.program] :])
        assert "ixfr" in kinds and "axfr" not in kinds, (secondary.program, kinds)


@pytest.mark.rfc("9664", "4.3")
def test_a_lapse_reaches_them_too(house: House) -> None:
    update = dns.update.UpdateMessage(ZONE, keyring=keyring(house.keys["alice"]))
    update.add("brief.alice", 60, "A", "192.0.2.5")
    update.use_edns(0, options=[dns.edns.GenericOption(2, struct.pack("!I", 2))])
    house.send(update)
    first = house.serial()
    brief = f"brief.alice.{ZONE}"
    for secondary in house.secondaries:
        secondary.wait_for(first)
    assert brief in {row[0] for row in transfer(house.server.port, house.keys["admin"])}
    deadline = time.monotonic() + 10
    while house.serial() == first:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    house.agree()
    assert brief not in {row[0] for row in transfer(house.secondaries[0].port)}


@pytest.mark.rfc("1995", "4")
def test_too_far_behind_they_get_the_zone(house: House) -> None:
    house.agree()
    update = house.update()
    soa = f"ns.members.example. hostmaster.members.example. {(house.serial() + 50_000) & 0xFFFFFFFF} 3600 600 86400 60"
    update.add(ZONE, 3600, "SOA", soa)
    update.add("far.alice", 60, "A", "192.0.2.5")
    house.send(update)
    house.agree()
    for secondary in house.secondaries:
        assert house.transfers(secondary.key)[-1] == "axfr", secondary.program


def test_down_for_longer_than_the_journal_they_get_the_zone(house: House) -> None:
    house.agree()
    before = {secondary.program: len(house.transfers(secondary.key)) for secondary in house.secondaries}
    for secondary in house.secondaries:
        secondary.process.terminate()
        secondary.process.wait(15)
    for number in range(30):
        update = house.update()
        update.replace(f"long{number % 4}.alice", 60, "A", f"192.0.2.{number}")
        house.send(update)
    house.restart(journal={"keep_changes": 10})
    house.wait_for_line(r"journal pruned +entries=\d+")
    house.secondaries[:] = [house.start(secondary.program, secondary.port) for secondary in house.secondaries]
    for secondary in house.secondaries:
        secondary.wait()
    update = house.update()  # some wait for word of a change
    update.replace("long0.alice", 60, "A", "192.0.2.66")
    house.send(update)
    house.agree()
    for secondary in house.secondaries:
        assert house.transfers(secondary.key)[before[secondary.program]] == "axfr", secondary.program
    update = house.update()
    update.replace("long0.alice", 60, "A", "192.0.2.77")
    house.send(update)
    house.agree()
    for secondary in house.secondaries:
        assert house.transfers(secondary.key)[-1] == "ixfr", secondary.program
    house.restart()


@pytest.mark.rfc("9103", "11")
def test_over_tls_only_those_who_speak_it_follow(house: House) -> None:
    house.agree()
    house.restart(transfer={**house.tables["transfer"], "xot_only": True})
    update = house.update()
    update.replace("xot.alice", 60, "TXT", f'"{time.monotonic_ns()}"')
    house.send(update)
    followers = [item for item in house.secondaries if item.program in ("named", "nsd")]
    for secondary in followers:
        secondary.wait_for(house.serial())
    house.wait_for_line(r"transfer refused .*over TLS only.* key=knotd\.members\.example\.")
    for question in ("AXFR", f"IXFR={house.serial() - 1}"):
        assert "Transfer failed" in house.dig("+tcp", ZONE, question, by="admin")
    house.restart()
    house.send(update)  # word of a change, for Knot
    house.agree()


@pytest.mark.rfc("9432", "5")
def test_those_told_of_the_catalog_alone_serve_every_public_zone(house: House) -> None:
    """BIND and Knot; NSD takes catalogs from 4.9 on."""
    house.agree()
    started = [house.start(program, port, catalog=CATALOG) for program, port in house.by_catalog.items()]
    for secondary in started:
        secondary.wait_for(house.serial(), 30)
    update = house.update()
    update.add("catalogued.alice", 60, "A", "192.0.2.5")
    house.send(update)
    ours = transfer(house.server.port, house.keys["admin"])
    listed = house.dig("+tcp", CATALOG, "AXFR", by="named")
    assert re.findall(r"\sPTR\s+(\S+)", listed) == [ZONE], "private members' zones are not told of"
    for secondary in started:
        secondary.wait_for(house.serial())
        assert transfer(secondary.port) == ours, secondary.program
        text = call("dig", f"@{ADDRESS}", "-p", str(secondary.port), "+norec", f"bob.{ZONE}", "SOA")
        assert "status: REFUSED" in text or "aa" not in text.split("flags:")[1].split(";")[0], text
        secondary.process.terminate()
        secondary.process.wait(15)


def test_one_that_was_down_follows_when_it_is_back(house: House) -> None:
    house.agree()
    knot = next(item for item in house.secondaries if item.program == "knotd")
    knot.process.terminate()
    knot.process.wait(15)
    for number in range(3):
        update = house.update()
        update.replace("down.alice", 60, "A", f"192.0.2.{number}")
        house.send(update)
    house.secondaries[house.secondaries.index(knot)] = house.start("knotd", knot.port)
    house.agree()


@pytest.mark.rfc("6281", "7.2")
def test_a_private_members_zone_is_nowhere(house: House) -> None:
    house.agree()
    for secondary in house.secondaries:
        text = call("dig", f"@{ADDRESS}", "-p", str(secondary.port), "+norec", "secret.bob.members.example", "A")
        assert "192.0.2.99" not in text
        assert not [row for row in transfer(secondary.port) if row[0].endswith(f"secret.bob.{ZONE}")]
    private = f"bob.{ZONE}"
    for by in (*PROGRAMS, "alice", None):
        assert "Transfer failed" in house.dig("+tcp", private, "AXFR", by=by)
    for by in ("bob", "admin"):
        assert "192.0.2.99" in house.dig("+tcp", private, "AXFR", by=by)


@pytest.mark.rfc("5936", "4.2")
def test_dig_with_and_without_a_key(house: House) -> None:
    house.agree()
    old = house.serial()
    update = house.update()
    update.add("dig.alice", 60, "A", "192.0.2.5")
    house.send(update)
    whole = house.dig("+tcp", ZONE, "AXFR", by="named")
    assert "dig.alice.members.example." in whole and re.search(r"XFR size: \d+ records \(messages [2-9]", whole)
    assert len(re.findall(r"\sSOA\s", whole)) == 2
    changed = house.dig("+tcp", ZONE, f"IXFR={old}", by="named")
    assert len(re.findall(r"\sSOA\s", changed)) == 4 and "XFR size: 5 records" in changed
    assert len(re.findall(r"\sSOA\s", house.dig("+tcp", ZONE, f"IXFR={old + 1}", by="named"))) == 1
    assert len(re.findall(r"\sSOA\s", house.dig("+notcp", ZONE, f"IXFR={old}", by="named"))) == 4
    for question in ("AXFR", f"IXFR={old}"):
        assert "Transfer failed" in house.dig("+tcp", ZONE, question)
        assert "Transfer failed" in house.dig("+tcp", ZONE, question, by="alice")
    assert "Transfer failed" in house.dig("+tcp", "www.members.example", "AXFR", by="admin")


@pytest.mark.rfc("8914", "4")
def test_refusals_say_why(house: House) -> None:
    def ask(name: str, by: str | None, *, tcp: bool) -> tuple[int, str]:
        query = dns.message.make_query(name, "AXFR", use_edns=0)
        query.keyring = None
        if by:
            query.use_tsig(keyring(house.keys[by]))
        send = dns.query.tcp if tcp else dns.query.udp
        reply = send(query, ADDRESS, port=house.server.port, timeout=5)
        return reply.rcode(), " ".join(option.to_text() for option in reply.options)

    rcode, text = ask(ZONE, None, tcp=True)
    assert rcode == dns.rcode.REFUSED and "EDE 18" in text and "may not transfer zone members.example." in text
    rcode, text = ask(ZONE, "named", tcp=False)
    assert rcode == dns.rcode.REFUSED and "EDE 21" in text and "TCP" in text
    rcode, text = ask("www.members.example.", "admin", tcp=True)
    assert rcode == dns.rcode.NOTAUTH and "EDE 20" in text


@pytest.mark.rfc("9103", "7")
def test_kdig_over_tls(house: House) -> None:
    key = house.keys["named"]
    text = call(
        "kdig", f"@{ADDRESS}", "-p", str(house.server.tls_port), f"+tls-ca={house.primary.ca_file}",
        "+tls-hostname=ns.members.example", "-y", f"{key['algorithm']}:{key['name']}:{key['secret']}", ZONE, "AXFR",
    )  # fmt: skip
    house.wait_for_line(r"kind=axfr .* peer=\S+/tls key=named\.members\.example\.")
    assert len(re.findall(r"\sSOA\s", text)) == 2 and "host2-299.alice.members.example." in text
