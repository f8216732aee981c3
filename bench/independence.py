"""What must not depend on the size of the zone: the same work in a small and in a large one, and the ratio.

    python -m bench.independence --sizes 1000 1000000
    python -m bench.independence --sizes 1000 --fan-out 10000      events a second to subscribers of one name

Microseconds an operation, median of the rounds, in one process without sockets or disk, from the octets of a request to
those of its reply or event. All records have leases; names are drawn from the whole zone.
"""

import argparse
import asyncio
import logging
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog

from bench.data import RECORDS_A_HOST, ZONE, host_records
from bench.hot_loops import ADMIN, APEX, BATCH, House, update_message
from bench.peers import SERVER_CPU
from homing import collector
from protocol.constants import QR, Class, Rcode, Type
from protocol.edns import LlqOpcode, LlqOption, Opt, llq_options
from protocol.message import Question, decode, encode
from protocol.name import fold, from_text
from server.peer import Peer
from server.zone.node import Node, RRset

SIZES: Final = (1_000, 1_000_000)
ROUNDS: Final = 7
OPERATIONS: Final = 200  # a round: no more than the small zone has machines
LEASE: Final = 7200
_PORT: Final = 5352


class Bench:
    """One zone and the work done in it. Each method is a round: seconds for `OPERATIONS`."""

    def __init__(self, records: int) -> None:
        self.hosts = records // RECORDS_A_HOST
        self.events: list[tuple[Peer, bytes]] = []
        self.house = House(self.hosts, lambda peers, alike: self.events.extend(zip(peers, alike.each(), strict=True)))
        self.rng = random.Random(records)
        self.number = 0
        self.held: dict[bytes, tuple[Peer, int]] = {}

    def _hosts(self) -> list[int]:
        return self.rng.sample(range(self.hosts), OPERATIONS)

    def _next(self) -> int:
        self.number += 1
        return self.number

    async def _carry_out(self, wires: list[bytes]) -> float:
        house, replies = self.house, list[bytes]()
        begun = time.perf_counter()
        for at in range(0, len(wires), BATCH):
            for wire in wires[at : at + BATCH]:
                house.dispatcher.handle(wire, Peer("udp", "127.0.0.1", 40000, 0), replies.append)
            queue = house.writer._queue
            await house.writer.step([queue.popleft() for _ in range(len(queue))])
        seconds = time.perf_counter() - begun
        assert [reply[3] & 0xF for reply in replies] == [Rcode.NOERROR] * len(wires)
        return seconds

    async def update(self) -> float:
        wires = []
        for host in self._hosts():
            number = self._next()
            new = (b"\x0a" + number.to_bytes(3, "big"), b"\xfd" + self.rng.randbytes(15))
            wires.append(update_message(number, from_text(host_records(host)[0][0]), ADMIN, new, LEASE, replace=True))
        return await self._carry_out(wires)

    async def refresh(self) -> float:
        wires = []
        for host in self._hosts():
            owner = from_text(host_records(host)[0][0])
            node = self.house.zones.by_apex[APEX].node(fold(owner))
            assert node is not None
            have = (node.rrsets[Type.A].rdatas[0], node.rrsets[Type.AAAA].rdatas[0])
            wires.append(update_message(self._next(), owner, ADMIN, have, LEASE, replace=False))
        return await self._carry_out(wires)

    async def sweep(self) -> float:
        """Names whose lease has just ended: taken from the queue, lapsed, and written."""
        house = self.house
        (zone,) = house.zones
        ended = int(house.clock.lease()) - 1
        kept: list[tuple[bytes, Node]] = []
        for host in self._hosts():
            key = fold(from_text(host_records(host)[0][0]))
            node = zone.node(key)
            assert node is not None
            kept.append((key, node))
            lapsed = Node(node.owner, {kind: RRset(*rrset[:3], (ended,)) for kind, rrset in node.rrsets.items()})
            zone.put(key, lapsed)
            house.leases.watch(APEX, key, lapsed)
        begun = time.perf_counter()
        await house.writer.lapse_due()
        seconds = time.perf_counter() - begun
        for key, node in kept:
            assert zone.node(key) is None
            zone.put(key, node)
            house.leases.watch(APEX, key, node)
        return seconds

    def _ask(
        self, opcode: int, questions: list[tuple[Question, Peer, int]], lease: int = LEASE
    ) -> tuple[float, list[LlqOption]]:
        wires = [
            encode(7, 0x0100, [question], opt=Opt(options=(LlqOption(1, opcode, 0, llq_id, lease).encode(),)))
            for question, _, llq_id in questions
        ]
        replies: list[bytes] = []
        handle = self.house.dispatcher.handle
        begun = time.perf_counter()
        for wire, (_, peer, _) in zip(wires, questions, strict=True):
            handle(wire, peer, replies.append)
        seconds = time.perf_counter() - begun
        options = [option for reply in replies for option in llq_options(decode(reply).opt)]
        assert [option.error for option in options] == [0] * len(questions)
        return seconds, options

    async def llq_setup(self) -> float:
        """Both halves of the four-way handshake."""
        return self._subscribe([from_text(host_records(host)[0][0]) for host in self._hosts()])

    def _subscribe(self, names: list[bytes]) -> float:
        asked = []
        for name in names:
            number = self._next()
            peer = Peer("udp", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", _PORT, 0)
            asked.append((Question(name, Type.A, Class.IN), peer, 0))
        first, challenges = self._ask(LlqOpcode.SETUP, asked)
        answers = [
            (question, peer, option.llq_id) for (question, peer, _), option in zip(asked, challenges, strict=True)
        ]
        second, _ = self._ask(LlqOpcode.SETUP, answers)
        self.held = {fold(question.name): (peer, llq_id) for question, peer, llq_id in answers}
        return first + second

    async def llq_refresh(self) -> float:
        return self._ask(LlqOpcode.REFRESH, self._subscribed())[0]

    def _subscribed(self) -> list[tuple[Question, Peer, int]]:
        return [(Question(name, Type.A, Class.IN), peer, llq_id) for name, (peer, llq_id) in self.held.items()]

    async def llq_event(self) -> float:
        """From the update of a name that somebody watches to the event on its way, and its acknowledgement."""
        wires = []
        for name in self.held:
            number = self._next()
            new = (b"\x0b" + number.to_bytes(3, "big"), b"\xfd" + self.rng.randbytes(15))
            wires.append(update_message(number, name, ADMIN, new, LEASE, replace=True))
        self.events.clear()
        seconds = await self._carry_out(wires)
        begun = time.perf_counter()
        while len(self.events) < len(self.held):
            await asyncio.sleep(0)
        seconds += time.perf_counter() - begun
        told = [(decode(wire), peer) for peer, wire in self.events]
        acknowledgements = [(encode(each.id, QR, each.questions, opt=each.opt), peer) for each, peer in told]
        begun = time.perf_counter()
        for wire, peer in acknowledgements:
            self.house.dispatcher.handle(wire, peer, _no_reply)
        seconds += time.perf_counter() - begun
        self._ask(LlqOpcode.REFRESH, self._subscribed(), 0)  # ended: the next round's updates tell nobody
        assert self.house.push.subscriptions == 0
        return seconds

    async def fan_out(self, subscribers: int) -> float:
        """Events a second, from an update until all who watch the name are told."""
        name = from_text(host_records(self._hosts()[0])[0][0])
        self._subscribe([name] * subscribers)
        collector.settle()
        begun = time.perf_counter()
        await self._carry_out([update_message(self._next(), name, ADMIN, (bytes(4), bytes(16)), LEASE, replace=True)])
        while len(self.events) < subscribers:
            await asyncio.sleep(0)
        return subscribers / (time.perf_counter() - begun)

    async def absent(self) -> float:
        fast = self.house.fast
        keys = [
            encode(0, 0, [Question(from_text(f"x{self._next()}.user{host}.{ZONE}"), Type.A, Class.IN)])[2:]
            for host in self._hosts()
        ]
        fast.begin()
        fast._places.clear()  # the small zone's are all remembered from the round before
        begun = time.perf_counter()
        found = [fast.answer(key) for key in keys]
        seconds = time.perf_counter() - begun
        assert all(found)
        return seconds


def _no_reply(wire: bytes) -> None:
    assert not wire


WORK: Final[dict[str, Callable[[Bench], object]]] = {
    "update, two records replaced": Bench.update,
    "lease refresh": Bench.refresh,
    "lapse of a name": Bench.sweep,
    "LLQ set-up": Bench.llq_setup,
    "LLQ refresh": Bench.llq_refresh,
    "update with its LLQ event": Bench.llq_event,
    "query of an absent name at a machine not asked for lately": Bench.absent,
}


async def fan_out(records: int, subscribers: int) -> float:
    return await Bench(records).fan_out(subscribers)


async def measure(records: int) -> dict[str, float]:
    bench = Bench(records)
    collector.settle()
    found: dict[str, list[float]] = {name: [] for name in WORK}
    for _ in range(ROUNDS):
        for name, work in WORK.items():
            found[name].append(await work(bench) / OPERATIONS * 1e6)  # type: ignore[misc]
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.independence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="records in the zone")
    parser.add_argument("--fan-out", type=int, metavar="SUBSCRIBERS", help="only this figure, a line a size")
    options = parser.parse_args()
    sizes = options.sizes
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    os.sched_setaffinity(0, {int(SERVER_CPU)})
    if options.fan_out:
        for size in sizes:
            print(f"{asyncio.run(fan_out(size, options.fan_out)):.0f}")
        return 0
    found = {size: asyncio.run(measure(size)) for size in sizes}
    print("| µs each | " + " | ".join(f"{size:,} records" for size in sizes) + " | last to first |")
    print("|---" * (len(sizes) + 2) + "|")
    for name in WORK:
        values = [found[size][name] for size in sizes]
        cells = " | ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {cells} | {values[-1] / values[0]:.2f} x |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
