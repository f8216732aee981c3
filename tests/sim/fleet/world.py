"""Everything of one seed: server, machines, truth, and what is checked after a quiet period."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any, Final

from protocol.message import decode
from protocol.name import fold, from_text
from protocol.rdata import canonical
from protocol.tsig import SHA256, Key
from server.app import Server
from server.config import ServerSettings
from server.members import add_member
from server.store.api import KeyRow, StoreError, SubscriptionChanges
from server.store.memory import MemoryStore
from server.zone.model import StoredRR
from tests.sim.fleet.air import Air
from tests.sim.fleet.loop import SERVER, FleetLoop
from tests.sim.fleet.machine import HOSTS_A_MEMBER, UPDATE_LEASES, WATCH_LEASES, Item, Machine, Member
from tests.sim.fleet.truth import Truth
from tests.sim.world import SlowStore
from tests.support.clock import FakeClock
from tests.support.entropy import SeededEntropy
from tests.support.simloop import Address
from tests.support.zones import RowKey, all_records, commit_of, row_key

ZONE: Final = "members.example."
ADMIN: Final = Key(from_text("operator.members.example."), SHA256, b"o" * 32)
STRANGER: Final = ("198.51.100.250", 4000)
PRIVATE_SHARE: Final = 0.2
SETTLED_SECONDS: Final = 1800.0
"""A machine is up and heard for so long: it has published, and set up what it watches."""
JOURNAL_KEPT: Final = 20_000
MAX_VIOLATIONS: Final = 20


class Store(SlowStore):
    """Slow for subscriptions too, and broken for them when it is broken."""

    async def save_subscriptions(self, node: str, changes: SubscriptionChanges) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.02))
        if self.is_broken:
            raise StoreError("the disk is full")
        await super().save_subscriptions(node, changes)

    def reopened(self) -> "Store":
        again = Store(self._rng)
        again._shared = self._shared
        return again

    def trim(self) -> None:
        journal = self._data.journal
        del journal[: max(0, len(journal) - JOURNAL_KEPT)]


class Fleet:
    """Everything of one seed."""

    def __init__(self, seed: int, hosts: int, loop: FleetLoop) -> None:
        self.seed = seed
        self.hosts = hosts
        self.loop = loop
        self.rng = random.Random(seed)
        self.air = Air(random.Random(f"{seed} air"), loop)
        self.clock = FakeClock(time=loop.time)
        self.store = Store(random.Random(f"{seed} disk"))
        self.truth = Truth(loop.time, self.note)
        self.members: list[Member] = []
        self.machines: list[Machine] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.server: Server | None = None
        self.places = 0
        self.check_at = float("inf")
        """Nobody wakes up shortly before."""
        self.air.arrives = self.truth.arrives

    @property
    def now(self) -> float:
        return self.loop.time()

    def note(self, text: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"at {self.now:.1f} s: {text}")

    def say(self, text: str) -> None:
        self.log.append(f"{self.now:.1f} {text}")

    def new_place(self) -> Address:
        self.places += 1
        number = self.places % 0xFFFF00
        return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", self.rng.randrange(1024, 65536)

    # The server

    async def start_server(self) -> None:
        settings = ServerSettings.model_validate(
            {
                "zone": {"name": ZONE},
                "dns": {"listen": [f"{SERVER[0]}:{SERVER[1]}"]},
                "lease": {"maximum_seconds": UPDATE_LEASES[1]},
                "llq": {"maximum_lease_seconds": WATCH_LEASES[1]},
            }
        )
        self.store = self.store.reopened()
        server = Server(
            settings, clock=self.clock, entropy=SeededEntropy(self.rng.getrandbits(32)), on_change=self.truth.changed
        )
        await server.start()
        self.server = server
        self.truth.check_kept(self.holds)

    async def kill_server(self) -> None:
        server, self.server = self.server, None
        assert server is not None
        for task in server._tasks:
            task.cancel()
        await asyncio.gather(*server._tasks, return_exceptions=True)
        server.push.close()
        self._check_server(server)
        self.air.unplug()

    async def stop_server(self) -> None:
        server, self.server = self.server, None
        assert server is not None
        await server.stop()
        self._check_server(server)
        self.air.unplug()

    def _check_server(self, server: Server) -> None:
        for metric in server.metrics.faults.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total") and sample.value:
                    self.note(f"the server had a fault: {sample}")
        if server.failed:
            self.note("a worker of the server failed")
        counters = server.push._machine.counters
        for name in ("retransmissions", "unreachable", "restored", "stray_acks"):
            self.counts[name] += getattr(counters, name)

    def _rrset(self, owner: bytes, rtype: int) -> Any:
        assert self.server is not None
        zone = self.server.zones.enclosing(owner)
        return zone.rrset(owner, rtype, int(self.clock.lease())) if zone is not None else None

    def holds(self, key: RowKey) -> bool:
        rrset = self._rrset(key.owner_key, key.rtype)
        return rrset is not None and any(canonical(key.rtype, rdata) == key.rdata_key for rdata in rrset.rdatas)

    async def change_unseen(self, ghost: StoredRR, member: Member) -> None:
        """Another process puts the record there, or takes it away."""
        apex = fold(member.zone)
        row = next(row for row in await self.store.load_zones() if row.apex == apex)
        is_there = row_key(ghost) in {row_key(record) for record in await all_records(self.store, row.id)}
        puts, deletes = ((), (ghost,)) if is_there else ((ghost,), ())
        commit = await commit_of(self.store, row.id, row.serial, puts, deletes)
        commit = replace(commit, changes=(commit.changes[0]._replace(apex=apex),))
        await MemoryStore(self.store._shared).commit([commit])
        self.counts["unseen changes"] += 1

    # Machines

    async def settle_in(self) -> None:
        """The server runs, the members are there, all machines wake up."""
        await self.start_server()
        tokens = SeededEntropy(self.seed).octets
        for number in range(self.hosts // HOSTS_A_MEMBER):
            is_private = self.rng.random() < PRIVATE_SHARE
            name = f"m{number:04d}"
            key = await add_member(self.store, name, private=is_private, now=int(self.clock.lease()), token=tokens)
            domain = from_text(f"{name}.{ZONE}")
            member = Member(domain, domain if is_private else from_text(ZONE), key, is_private=is_private)
            self.members.append(member)
            self.machines += [Machine(self, member, host) for host in range(HOSTS_A_MEMBER)]
        async with self.store.transaction() as transaction:
            await transaction.add_key(KeyRow(ADMIN, None, int(self.clock.lease())))
        assert self.server is not None
        await self.server.reload()
        await asyncio.sleep(5)
        self.air.machines[STRANGER] = self._hear
        for machine in self.machines:
            self.loop.after(self.rng.uniform(0.0, 600.0), machine.start)
        await asyncio.sleep(1200)

    def _hear(self, wire: bytes, sent_at: float) -> None:
        self.truth.told(decode(wire), wire, sent_at, is_event=False)

    def wake_up(self, machine: Machine) -> None:
        """Start it; but never so shortly before a check that it cannot have settled."""
        if self.now > self.check_at - SETTLED_SECONDS:
            self.loop.after(SETTLED_SECONDS + self.rng.uniform(0.0, 600.0), self.wake_up, machine)
        else:
            machine.start()

    async def quiet(self) -> None:
        """Longer than anybody watches without asking again: whoever was given up has noticed."""
        seconds = WATCH_LEASES[1] + SETTLED_SECONDS
        self.check_at = self.now + seconds
        await asyncio.sleep(seconds)
        self.check()
        self.check_at = float("inf")
        self.store.trim()
        self.truth.forget_old()

    def check(self) -> None:
        """Every view equals the zone, every machine is published, every promise kept, nothing lapsed left."""
        established = 0
        truths: dict[tuple[bytes, int], set[Item]] = {}
        for machine in self.machines:
            if not machine.is_up:
                self.counts["asleep at a check"] += 1
                continue
            for sub in machine.subs:
                established += sub.is_live
                if sub.place not in truths:
                    rrset = self._rrset(*sub.place)
                    truths[sub.place] = {(rrset.rtype, rdata) for rdata in rrset.rdatas} if rrset else set()
                truth = truths[sub.place]
                if not sub.is_live or sub.view != truth:
                    what = f"lacks {truth - sub.view}, has {sub.view - truth}" if sub.is_live else "not established"
                    self.note(f"view of {sub.question} at {machine.place}: {what}")
            for owner, rtype, rdata in machine.records():
                if not self.holds(RowKey(fold(owner), rtype, canonical(rtype, rdata))):
                    self.note(f"{owner!r} {rtype} is not published")
        self.counts["views checked"] += established
        assert self.server is not None
        if self.server.push.subscriptions != established:
            self.note(f"{self.server.push.subscriptions} subscriptions at the server, {established} at machines")
        self.truth.check_kept(self.holds)
        self._check_lapsed(self.server)

    def _check_lapsed(self, server: Server) -> None:
        now = int(self.clock.lease())
        for zone in server.zones:
            for key in zone.nodes:
                node = zone.node(key)
                assert node is not None
                if any(0 < at < now - 2 for rrset in node.rrsets.values() for at in rrset.expires):
                    self.note(f"lapsed and still there: {key!r}")
