"""The inner loops alone, in one process and without sockets or disk: microseconds an operation, something to profile.

    python -m bench.hot_loops                            every loop
    python -m bench.hot_loops updates --count 100000
    python -m bench.hot_loops updates refresh --disk     with the database, its thread and the waits for the disk
    py-spy record -r 500 -f raw -o updates.raw -- python -m bench.hot_loops updates --count 200000

`updates`, `member`, `refresh`, `no-change`: the forms of `bench/updates.py`, 40 a batch, from the octets of the request
to those of the reply and the rows that the database would be given. `repeated`, `absent`, `signed`: queries.
"""

import argparse
import asyncio
import logging
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from cffi import FFI
from sqlalchemy.dialects import sqlite

from bench.data import (
    FLEET,
    FLEET_KEY_NAME,
    HOSTS,
    KEY_NAME,
    KEY_SECRET,
    ZONE,
    fleet_owner,
    host_records,
    stored_nodes,
    stored_records,
)
from bench.load_zone import fill_database
from bench.peers import SERVER_CPU
from homing import collector
from protocol.constants import Class, Opcode, Type
from protocol.edns import Opt, UpdateLease
from protocol.message import Question, encode
from protocol.name import from_text
from protocol.tsig import SHA256, Key, sign
from server.config import LeaseSettings, LlqSettings
from server.dispatch import Dispatcher
from server.fastpath import FastPath
from server.keyring import Keyring, Principal
from server.metrics import Metrics
from server.peer import Peer
from server.push.service import PushService
from server.signed_queries import SignedQueries
from server.store.sql import SqlStore
from server.store.writing import Statements
from server.system import SystemClock, SystemEntropy
from server.transport.batch_answers import answer_batch
from server.transport.outbox import SLOT_OCTETS, SLOTS
from server.transport.ports import SendAlike
from server.writer import Writer, load_zone
from server.zone.leases import LeaseQueue
from server.zone.model import Change, ZoneCommit
from server.zone.zone import Zone, Zones

BATCH: Final = 40
CLIENT: Final = Peer("udp", "127.0.0.1", 40000, 0)
APEX: Final = from_text(ZONE)
ADMIN: Final = Key(from_text(KEY_NAME), SHA256, KEY_SECRET)
_MEMBER: Final = Key(from_text(FLEET_KEY_NAME), SHA256, KEY_SECRET)
_SOA: Final = from_text(f"ns.{ZONE}") + from_text(f"hostmaster.{ZONE}") + struct.pack("!5I", 1, 3600, 600, 1209600, 60)


class NoDisk:
    """Prepares what it would write, as the store does before it wakes its thread."""

    def __init__(self) -> None:
        self._statements = Statements(sqlite.dialect())
        self.rows = 0

    async def commit(self, commits: Sequence[ZoneCommit]) -> None:
        self.rows += sum(len(step.rows) for step in self._statements.steps(commits))


class House:
    """Zone, keys, writer, dispatcher and ready answers, put together as the server does.

    With `send_events` it has Long-Lived Queries too, and leases on all records.
    """

    def __init__(self, hosts: int = HOSTS, send_events: SendAlike | None = None) -> None:
        self.clock, self.metrics = SystemClock(), Metrics()
        self.zones = Zones()
        self.leases = LeaseQueue(self.zones)
        zone = Zone(1, APEX, 1, _SOA, 120)
        watched = send_events is not None
        records = stored_records(hosts, int(time.time()) + 7200, fleet=0 if watched else None, are_leased=watched)
        zone.load(stored_nodes(records), partial(self.leases.loaded, APEX) if watched else None)
        self.zones.add(zone)
        self.keyring = Keyring((Principal(ADMIN, None, None), Principal(_MEMBER, 1, from_text(FLEET_KEY_NAME))))
        self.fast = FastPath(self.zones, self.clock, self.metrics.requests)
        self.signed = SignedQueries(self.fast, self.keyring, self.metrics.requests).answer
        self.store: Any = NoDisk()
        self.writer = Writer(
            zones=self.zones,
            store=self.store,
            clock=self.clock,
            leases=self.leases,
            limits=LeaseSettings(),
            metrics=self.metrics,
            on_change=self._changed if watched else self.fast.changed,
            on_node=self.fast.node_changed,
        )
        push: Any = None  # no query of these loops is a long-lived one
        if send_events is not None:
            push = PushService(
                LlqSettings(setups_per_second=1e6, setup_burst=1_000_000, quiet_seconds=0),
                zones=self.zones, keyring=self.keyring, clock=self.clock, entropy=SystemEntropy(),
                metrics=self.metrics, send=send_events, event_listener=lambda peer: 0,
            )  # fmt: skip
        self.push = push
        self.dispatcher = Dispatcher(
            zones=self.zones, keyring=self.keyring, writer=self.writer, push=push,
            clock=self.clock, metrics=self.metrics, allow_md5=False,
        )  # fmt: skip

    def _changed(self, change: Change) -> None:
        self.fast.changed(change)
        self.push.publish(change)


def update_message(
    number: int, owner: bytes, key: Key, addresses: tuple[bytes, bytes], lease: int | None, *, replace: bool
) -> bytes:
    kinds = (Type.A, Type.AAAA)
    deletes = [(owner, kind, Class.ANY, 0, b"") for kind in kinds] if replace else []
    adds = [(owner, kind, Class.IN, 120, rdata) for kind, rdata in zip(kinds, addresses, strict=True)]
    opt = None if lease is None else Opt(options=(UpdateLease(lease).encode(),))
    head = Opcode.UPDATE << 11
    wire = encode(number & 0xFFFF, head, [Question(APEX, Type.SOA, Class.IN)], (), [*deletes, *adds], opt=opt)
    return sign(wire, key, now=int(time.time()) + number // 60_000)[0]  # never the same octets twice


def _changes(count: int, key: Key, lease: int | None) -> Iterator[bytes]:
    rng = random.Random(3)
    for number in range(count):
        owner = host_records(rng.randrange(HOSTS))[0][0] if lease is None else fleet_owner(rng.randrange(FLEET))
        new = (b"\x0a" + number.to_bytes(3, "big"), b"\xfd" + rng.randbytes(15))
        yield update_message(number, from_text(owner), key, new, lease, replace=True)


def _repetitions(count: int, key: Key, lease: int | None) -> Iterator[bytes]:
    rng = random.Random(4)
    for number in range(count):
        host = rng.randrange(HOSTS if lease is None else FLEET)
        records = host_records(host)
        owner = records[0][0] if lease is None else fleet_owner(host)
        yield update_message(number, from_text(owner), key, (records[0][3], records[1][3]), lease, replace=False)


def _updates(wires: Iterator[bytes], *, disk: bool) -> float:
    """With `disk` the writer commits to a database as the server has it, in a directory of its own."""
    found = list(wires)
    if not disk:
        return asyncio.run(_run_updates(House(), found))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "homing.db"
        fill_database(file, HOSTS, 53)
        return asyncio.run(_run_on_disk(file, found))


async def _run_on_disk(file: Path, wires: list[bytes]) -> float:
    house = House()
    house.store = house.writer._store = await SqlStore.open(f"sqlite+aiosqlite:///{file}")
    try:
        async with house.store.reading() as reader:
            (row,) = (row for row in await reader.load_zones() if row.apex == APEX)
            house.zones.add(await load_zone(reader, row, house.leases))
        return await _run_updates(house, wires)
    finally:
        await house.store.close()


async def _run_updates(house: House, wires: list[bytes]) -> float:
    replies: list[bytes] = []
    handle, step, queue = house.dispatcher.handle, house.writer.step, house.writer._queue
    collector.settle()
    begun = time.perf_counter()
    for at in range(0, len(wires), BATCH):
        for wire in wires[at : at + BATCH]:
            handle(wire, CLIENT, replies.append)
        pending = [queue.popleft() for _ in range(len(queue))]
        await step(pending)
    seconds = time.perf_counter() - begun
    if len(replies) != len(wires) or any(reply[3] & 0xF for reply in replies):
        raise RuntimeError("not every update was carried out")
    return seconds


def _run_queries(wires: list[bytes]) -> float:
    """Batches as the listener has them, in slots of one buffer; laying them there is not timed."""
    house = House()
    house.fast.answer_signed = house.signed
    ffi: Any = FFI()
    slots = ffi.new("unsigned char[]", SLOTS * SLOT_OCTETS)
    octets = ffi.buffer(slots)
    starts = [slot * SLOT_OCTETS + 2 for slot in range(SLOTS)]
    seconds, left = 0.0, 0
    collector.settle()
    for at in range(0, len(wires), SLOTS):
        batch = wires[at : at + SLOTS]
        for start, wire in zip(starts, batch, strict=False):
            octets[start - 2 : start - 2 + len(wire)] = wire
        sizes = [len(wire) for wire in batch]
        begun = time.perf_counter()
        house.fast.begin()
        left += len(answer_batch(house.fast, octets, starts, sizes, lambda slot: bytes(4))[1])
        seconds += time.perf_counter() - begun
    if left:
        raise RuntimeError(f"{left} queries were not answered on the fast path")
    return seconds


def _question(number: int, name: str) -> bytes:
    return encode(number & 0xFFFF, 0x0100, [Question(from_text(name), Type.A, Class.IN)])


def _repeated(count: int) -> list[bytes]:
    rng = random.Random(1)
    asked = [_question(number, host_records(rng.randrange(HOSTS))[0][0]) for number in range(20_000)]
    return [asked[number % len(asked)] for number in range(count)]


def _absent(count: int) -> list[bytes]:
    rng = random.Random(2)
    return [_question(number, f"n{number}x{rng.getrandbits(32):08x}.{ZONE}") for number in range(count)]


def _signed(count: int) -> list[bytes]:
    now = int(time.time())
    return [sign(wire, ADMIN, now=now)[0] for wire in _repeated(count)]


LOOPS: Final[dict[str, Callable[[int, bool], float]]] = {
    "updates": lambda count, disk: _updates(_changes(count, ADMIN, None), disk=disk),
    "member": lambda count, disk: _updates(_changes(count, _MEMBER, 7200), disk=disk),
    "refresh": lambda count, disk: _updates(_repetitions(count, _MEMBER, 7200), disk=disk),
    "no-change": lambda count, disk: _updates(_repetitions(count, ADMIN, None), disk=disk),
    "repeated": lambda count, _: _run_queries(_repeated(count)),
    "absent": lambda count, _: _run_queries(_absent(count)),
    "signed": lambda count, _: _run_queries(_signed(count)),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hot_loops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("loops", nargs="*", choices=[*LOOPS, []], help="which; default all")
    parser.add_argument("--count", type=int, default=20_000, help="operations (default 20000)")
    parser.add_argument("--disk", action="store_true", help="updates are committed to a database, as in the server")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # as in the other rows
    os.sched_setaffinity(0, {int(SERVER_CPU)})
    for name in options.loops or LOOPS:
        print(f"{name:10} {LOOPS[name](options.count, options.disk) / options.count * 1e6:6.2f} us", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
