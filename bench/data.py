"""The zone and the questions every row shares: 5,000 members' machines, 20,000 records; and one member with many."""

import random
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby
from pathlib import Path
from typing import Final

from protocol.constants import Type
from protocol.name import from_text
from server.zone.model import StoredRR
from server.zone.node import StoredNode, check_node, encode_node, node_from_records

ZONE: Final = "members.example."
KEY_NAME: Final = "bench.members.example."
KEY_SECRET: Final = bytes(range(32))
HOSTS: Final = 5000
RECORDS_A_HOST: Final = 4
FLEET_KEY_NAME: Final = "fleet.members.example."  # the key of one member with many machines; same secret
FLEET: Final = 20_000  # so many that each is refreshed less than once a second: a second time would change nothing


def host_records(number: int) -> list[tuple[str, int, str, bytes]]:
    """(owner, type, master-file rdata, wire rdata) of one machine."""
    tunnel = f"AutoTunnel-00-22-69-FF-FE-{number >> 16 & 255:02X}-{number >> 8 & 255:02X}-{number & 255:02X}"
    target = f"{tunnel}.user{number}.{ZONE}"
    outer = IPv4Address(0xC6120000 + number % 0x1FFFF)
    inner = IPv6Address((0xFD << 120) | (number * 0x9E3779B97F4A7C15 & (1 << 64) - 1))
    text = b"model=homing"
    return [
        (target, Type.A, str(outer), outer.packed),
        (target, Type.AAAA, str(inner), inner.packed),
        (target, Type.TXT, f'"{text.decode()}"', bytes((len(text),)) + text),
        (
            f"_autotunnel._udp.mac.user{number}.{ZONE}",
            Type.SRV,
            f"0 0 4500 {target}",
            struct.pack("!3H", 0, 0, 4500) + from_text(target),
        ),
    ]


def fleet_size(hosts: int) -> int:
    """Machines of the member `fleet` in a zone of so many hosts: small zones have a small one."""
    return min(FLEET, 4 * hosts)


def fleet_owner(number: int) -> str:
    """A machine of the member `fleet`; its records are those of the host of that number under this name."""
    return f"machine{number}.{FLEET_KEY_NAME}"


def fleet_records(number: int) -> list[tuple[str, int, str, bytes]]:
    return [(fleet_owner(number), *record[1:]) for record in host_records(number)[:2]]


def stored_records(
    hosts: int, lapse_at: int | None = None, *, fleet: int | None = None, are_leased: bool = False
) -> Iterator[StoredRR]:
    """Every machine's records, with a lease only when all `are_leased`; and the fleet's, with one to `lapse_at`."""
    for number in range(hosts):
        for owner, rtype, _, rdata in host_records(number):
            yield StoredRR(from_text(owner), rtype, 120, rdata, lapse_at if are_leased else None)
    for number in range(fleet_size(hosts) if fleet is None else fleet):
        for owner, rtype, _, rdata in fleet_records(number):
            yield StoredRR(from_text(owner), rtype, 120, rdata, lapse_at)


def stored_nodes(records: Iterable[StoredRR]) -> Iterator[StoredNode]:
    """Records as the store yields them; those of an owner stand side by side."""
    for _, found in groupby(records, key=lambda record: record.owner):
        node = node_from_records(found)
        yield check_node(node.owner, encode_node(node))


def write_master_file(file: Path, hosts: int, address: str) -> None:
    """The same zone for the peers."""
    with file.open("w") as out:
        out.write(f"$ORIGIN {ZONE}\n$TTL 120\n@ SOA ns hostmaster 1 3600 600 1209600 60\n@ NS ns\nns A {address}\n")
        for number in range(hosts):
            for owner, rtype, rdata, _ in host_records(number):
                out.write(f"{owner} {Type(rtype).name} {rdata}\n")
        for number in range(fleet_size(hosts)):
            for owner, rtype, rdata, _ in fleet_records(number):
                out.write(f"{owner} {Type(rtype).name} {rdata}\n")


def write_repeated_queries(file: Path, hosts: int, count: int = 20_000, seed: int = 1) -> None:
    """Three of four hit; the file is asked over and over."""
    rng = random.Random(seed)
    with file.open("w") as out:
        for _ in range(count):
            number = rng.randrange(hosts)
            owner, rtype, _, _ = rng.choice(host_records(number))
            if rng.random() < 0.25:
                owner = f"absent{rng.randrange(hosts)}.user{number}.{ZONE}"
            out.write(f"{owner} {Type(rtype).name}\n")


def write_absent_queries(file: Path, count: int, seed: int = 2) -> None:
    """Every name new and absent."""
    rng = random.Random(seed)
    with file.open("w") as out:
        for number in range(count):
            out.write(f"n{number}x{rng.getrandbits(32):08x}.{ZONE} A\n")
