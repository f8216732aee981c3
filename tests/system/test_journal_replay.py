"""The journal is the one feed: replayed from its first serial to the present, it gives every zone."""

import asyncio
import json
import random
import re
import struct
import time
from pathlib import Path

import dns.edns
import dns.query
import dns.rcode
import dns.tsigkeyring
import dns.update

from homing.key_files import key_json
from protocol.constants import Type
from protocol.name import fold, to_text
from protocol.rdata import canonical, soa_serial, soa_with_serial
from server.keys import ensure_admin_key
from server.store.api import Reader, ZoneRow
from server.store.sql import SqlStore
from server.zone.model import RR
from tests.support.processes import Running, homing_here, start_server
from tests.support.zones import all_records

ZONE = "members.example."
Identity = tuple[bytes, int, bytes]


def identity(rr: RR) -> Identity:
    return fold(rr.owner), rr.rtype, b"" if rr.rtype == Type.SOA else canonical(rr.rtype, rr.rdata)


async def replayed(reader: Reader, zone: ZoneRow) -> dict[Identity, tuple[int, bytes]]:
    """The zone from nothing by its journal: each step takes what is there and puts what is not."""
    held: dict[Identity, tuple[int, bytes]] = {}
    serial = None
    for entry in await reader.journal(zone_id=zone.id, limit=100_000):
        change = entry.change
        old, new = change.removed[0], change.added[0]
        assert (soa_serial(old.rdata), soa_serial(new.rdata)) == (change.serial_from, change.serial_to)
        if serial is None:
            held[identity(old)] = (old.ttl, old.rdata)  # a zone begins with its SOA
        else:
            assert change.serial_from == serial, "the steps are a chain"
        serial = change.serial_to
        for rr in change.removed:
            assert held.pop(identity(rr)) == (rr.ttl, rr.rdata), to_text(rr.owner)
        for rr in change.added:
            assert identity(rr) not in held, to_text(rr.owner)
            held[identity(rr)] = (rr.ttl, rr.rdata)
    assert serial == zone.serial
    return held


async def stored(reader: Reader, zone: ZoneRow) -> dict[Identity, tuple[int, bytes]]:
    soa = RR(zone.apex, Type.SOA, zone.soa_ttl, soa_with_serial(zone.soa, zone.serial))
    held = {identity(soa): (soa.ttl, soa.rdata)}
    for row in await all_records(reader, zone.id):
        rr = RR(*row[:4])
        held[identity(rr)] = (rr.ttl, rr.rdata)
    return held


def admin_key(directory: Path) -> dict[str, str]:
    async def make() -> dict[str, str]:
        store = await SqlStore.open(f"sqlite:///{directory}/homing.db")
        try:
            return key_json(await ensure_admin_key(store, now=int(time.time())))
        finally:
            await store.close()

    return asyncio.run(make())


def random_updates(server: Running, key: dict[str, str], dice: random.Random, count: int) -> int:
    """Adds, replacements and removals, some with a lease of a second or two; how many were done."""
    keyring = dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])})
    done = 0
    for _ in range(count):
        update = dns.update.UpdateMessage(ZONE, keyring=keyring)
        for _ in range(dice.randint(1, 3)):
            owner = dice.choice(("Mac", "mac", "nas", "x.y")) + f".m{dice.randrange(6)}"
            match dice.randrange(6):
                case 0:
                    update.delete(owner)
                case 1:
                    update.delete(owner, dice.choice(("A", "TXT")))
                case 2:
                    update.replace(owner, dice.choice((60, 300)), "TXT", f'"{dice.randrange(4)}"')
                case _:
                    update.add(owner, dice.choice((60, 300)), "A", f"192.0.2.{dice.randrange(5)}")
        if dice.random() < 0.5:
            update.use_edns(0, options=[dns.edns.GenericOption(2, struct.pack("!I", dice.randint(1, 2)))])
        done += dns.query.tcp(update, "127.0.0.1", port=server.port, timeout=10).rcode() == dns.rcode.NOERROR
    return done


def test_replayed_from_the_first_serial_it_gives_every_zone(tmp_path: Path) -> None:
    dice = random.Random(12)
    with start_server(tmp_path, lease={"minimum_seconds": 1}, transfer={"catalog": "catalog.invalid."}) as server:
        config = server.config

        def command(*words: str) -> str:
            done = homing_here(*words, "--config", config)
            assert done.code == 0, done.err
            return done.out

        command("member", "add", "alice")
        command("member", "add", "bob", "--private")
        command("member", "add", "carol", "--private")
        key = admin_key(tmp_path)
        time.sleep(1)  # the server hears of the key
        assert random_updates(server, key, dice, 120) > 100
        exported = tmp_path / "members.zone"
        command("zone", "export", str(exported))
        text = re.sub(r"^(mac\.m1\S*\s+)\d+", r"\g<1>77", exported.read_text(), flags=re.MULTILINE | re.IGNORECASE)
        exported.write_text(text + f'imported.{ZONE} 60 IN TXT "by file"\n')
        imported = command("zone", "import", str(exported), "--yes")
        serial = re.search(r"to (\d+)$", imported.strip())
        assert serial, imported
        command("undo", serial[1], "--yes")
        command("member", "remove", "carol", "--yes")
        assert random_updates(server, key, dice, 60) > 50
        deadline = time.monotonic() + 20
        while json.loads(command("status", "--json"))["leases"]["names"]:
            assert time.monotonic() < deadline
    asyncio.run(check(tmp_path))


async def check(directory: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{directory}/homing.db")
    try:
        async with store.reading() as reader:
            zones = await reader.load_zones()
            assert {zone.kind for zone in zones} == {"service", "member", "catalog"}
            for zone in zones:
                assert await replayed(reader, zone) == await stored(reader, zone), to_text(zone.apex)
            kinds = {entry.change.actor.kind for entry in await reader.journal(limit=100_000)}
            assert kinds == {"operator", "update", "lapse", "import"}
    finally:
        await store.close()
