"""Update rows: signed dynamic updates by dnsperf on the other core, each waiting for its durable answer.

Two honest forms: an administrator's key and permanent records, which is all that BIND and Knot know; and a member's
key with an update lease on every message, which is how homing is meant to be used (other servers ignore the option).
"""

import base64
import random
import re
import subprocess
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from bench.data import FLEET_KEY_NAME, KEY_NAME, KEY_SECRET, ZONE, fleet_owner, fleet_size, host_records
from bench.peers import ADDRESS, LOAD_CPU

SECONDS: Final = 5
MOST_LOST_PERCENT: Final = 5.0  # with 400 in flight Knot drops some when it is behind; the rate counts answers alone
CHANGES: Final = 200_000  # prepared updates; more than any server takes in the time
LEASE: Final = ("-e", "-E", "2:00001c20")  # Update Lease, 7200 s


def update_text(owner: str, number: int) -> str:
    """One update: both addresses of a machine replaced by ones it never had."""
    inner = IPv6Address((0xFD << 120) | (number * 0x9E3779B97F4A7C15 & (1 << 64) - 1))
    return (
        f"{ZONE}\ndelete {owner} A\ndelete {owner} AAAA\n"
        f"add {owner} 120 A 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}\n"
        f"add {owner} 120 AAAA {inner}\nsend\n"
    )


def write_changes(file: Path, owners: list[str], count: int = CHANGES, seed: int = 3) -> None:
    rng = random.Random(seed)
    with file.open("w") as out:
        for number in range(count):
            out.write(update_text(rng.choice(owners), number))


def write_same(file: Path, hosts: int, seed: int = 4) -> None:
    """Adds of what is there already: two records of a machine that the zone was filled with."""
    rng = random.Random(seed)
    with file.open("w") as out:
        for _ in range(20_000):
            address, inner, _, _ = host_records(rng.randrange(hosts))
            out.write(f"{ZONE}\nadd {address[0]} 120 A {address[2]}\nadd {inner[0]} 120 AAAA {inner[2]}\nsend\n")


def write_refreshes(file: Path, fleet: int, seed: int = 5) -> None:
    """The same for the machines of one member, each once before the first comes again."""
    rng = random.Random(seed)
    with file.open("w") as out:
        for number in rng.sample(range(fleet), fleet):
            address, inner = host_records(number)[:2]
            owner = fleet_owner(number)
            out.write(f"{ZONE}\nadd {owner} 120 A {address[2]}\nadd {owner} 120 AAAA {inner[2]}\nsend\n")


def send(port: int, updates: Path, in_flight: int, key_name: str = KEY_NAME, *options: str) -> float:
    """Updates answered a second, all of them with NOERROR."""
    key = f"hmac-sha256:{key_name}:{base64.b64encode(KEY_SECRET).decode()}"
    done = subprocess.run(
        ["taskset", "-c", LOAD_CPU, "dnsperf", "-s", ADDRESS, "-p", str(port), "-d", str(updates), "-l", str(SECONDS),
         "-c", "4", "-q", str(in_flight), "-u", "-y", key, *options],
        capture_output=True, text=True, check=True, timeout=SECONDS + 60,
    )  # fmt: skip
    rate = re.search(r"Updates per second:\s+([\d.]+)", done.stdout)
    lost = re.search(r"Updates lost:\s+\d+ \(([\d.]+)%\)", done.stdout)
    good = re.search(r"NOERROR \d+ \(([\d.]+)%\)", done.stdout)
    if rate is None or lost is None or good is None or float(lost[1]) > MOST_LOST_PERCENT or float(good[1]) < 99.9:
        raise RuntimeError(f"dnsperf: {done.stdout}\n{done.stderr}")
    return float(rate[1])


def _admin_file(work: Path, hosts: int) -> Path:
    file = work / "changes.txt"
    if not file.exists():
        write_changes(file, [host_records(number)[0][0] for number in range(hosts)])
    return file


def _member_file(work: Path, hosts: int) -> Path:
    file = work / "member-changes.txt"
    if not file.exists():
        write_changes(file, [fleet_owner(number) for number in range(fleet_size(hosts))])
    return file


def updates_40(port: int, work: Path, hosts: int) -> float:
    return send(port, _admin_file(work, hosts), 40)


def updates_400(port: int, work: Path, hosts: int) -> float:
    return send(port, _admin_file(work, hosts), 400)


def member_40(port: int, work: Path, hosts: int) -> float:
    return send(port, _member_file(work, hosts), 40, FLEET_KEY_NAME, *LEASE)


def member_400(port: int, work: Path, hosts: int) -> float:
    return send(port, _member_file(work, hosts), 400, FLEET_KEY_NAME, *LEASE)


def no_change(port: int, work: Path, hosts: int) -> float:
    file = work / "same.txt"
    if not file.exists():
        write_same(file, hosts)
    return send(port, file, 40)


def refresh(port: int, work: Path, hosts: int) -> float:
    """For homing each makes a lease durable; for the others the same messages change nothing."""
    file = work / "refreshes.txt"
    if not file.exists():
        write_refreshes(file, fleet_size(hosts))
    return send(port, file, 40, FLEET_KEY_NAME, *LEASE)
