"""Thousands of machines for days: the real `Server` in virtual time, light machines, a network that loses and doubles.

    python -m tests.sim.fleet --hosts 2000 --days 3 --seeds 200

The server is the product as it ships, over `MemoryStore`: its listener, dispatcher, writer, push service and what they
store. The machines are written for this simulation alone: each publishes its records with a lease and watches others.
A storm of hours, with 5 % loss in bursts and everything that can stop stopping, is followed by a quiet period; then
every view must equal the zone. At all times no lapsed record may be told, and none that was acknowledged be missing.
"""

import argparse
import asyncio
import contextlib
import gc
import heapq
import logging
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

import structlog

from protocol.constants import QR, Class, Opcode, Rcode, Type
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LlqOpcode, LlqOption, Opt, UpdateLease, llq_options, update_lease
from protocol.message import Message, Question, Record, decode, encode
from protocol.name import fold, from_text
from protocol.rdata import canonical
from protocol.tsig import SHA256, Key, sign
from server.app import Server
from server.config import ServerSettings
from server.members import add_member
from server.store.api import KeyRow, StoreError, SubscriptionChanges
from server.store.memory import MemoryStore
from server.zone.model import Change, RowKey, StoredRR
from tests.sim.world import EXPECTED_ERRORS, SlowStore, nothing
from tests.support.clock import START_UNIX, FakeClock
from tests.support.entropy import SeededEntropy
from tests.support.simloop import Address, SimLoop
from tests.support.zones import commit_of, row_key

ZONE: Final = "members.example."
SERVER: Final = ("192.0.2.53", 53)
OPERATOR: Final = ("198.51.100.251", 4000)
ADMIN: Final = Key(from_text("operator.members.example."), SHA256, b"o" * 32)
STRANGER: Final = ("198.51.100.250", 4000)
LEASE: Final = 7200
HOSTS_A_MEMBER: Final = 10
PRIVATE_SHARE: Final = 0.2
STORM_SECONDS: Final = 6 * 3600.0
QUIET_SECONDS: Final = LEASE + 600.0
"""Longer than any lease: what crashed has lapsed, and whoever was given up has noticed at its refresh."""
LATE_SECONDS: Final = 3.0  # a datagram is never under way for longer
EVENT_SECONDS: Final = 14.0 + LATE_SECONDS
BUSY_SECONDS: Final = 10.0
REMEMBERED_SECONDS: Final = 60.0  # message IDs of events applied
JOURNAL_KEPT: Final = 20_000
MAX_VIOLATIONS: Final = 20
SAVE_SECONDS: Final = 3.0  # less often than the product: a crash finds more that was not written

Item = tuple[int, bytes]


class FleetLoop(SimLoop):
    """Virtual time with one network; nobody connects by TCP."""

    async def create_server(self, *_: Any, **__: Any) -> Any:
        return _NoServer()


class _NoServer:
    def __init__(self) -> None:
        self.sockets = [self]

    def getsockname(self) -> Address:
        return SERVER

    def close(self) -> None:
        pass


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


class _Socket(asyncio.DatagramTransport):
    """The server's end."""

    def __init__(self, air: "Air", local: Address) -> None:
        super().__init__({"sockname": local})
        self._air = air

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._air.from_server(bytes(data), addr)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self._air.unplug()


class Air:
    """The network: loss in bursts, duplicates, late and overtaking datagrams."""

    def __init__(self, rng: random.Random, loop: asyncio.AbstractEventLoop) -> None:
        self.rng = rng
        self.loop = loop
        self.loss = self.duplicate = self.late = 0.0
        self.machines: dict[Address, Callable[[bytes, float], None]] = {}
        self.arrives: Callable[[Address, bytes], None] = lambda source, data: None
        self.sent = 0
        self._protocol: asyncio.DatagramProtocol | None = None
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._timer_at = math.inf

    def open(self, protocol: asyncio.DatagramProtocol, local: Any, remote: Any) -> asyncio.DatagramTransport:
        socket = _Socket(self, SERVER)
        self._protocol = protocol
        self.loop.call_soon(protocol.connection_made, socket)
        return socket

    def unplug(self) -> None:
        self._protocol = None

    def to_server(self, source: Address, data: bytes) -> None:
        self._put(self._reach_server, source, data)

    def from_server(self, data: bytes, destination: Address) -> None:
        self._put(self._reach_machine, destination, data, self.loop.time())

    def _put(self, deliver: Callable[..., None], *what: Any) -> None:
        rng = self.rng
        for _ in range(1 + (rng.random() < self.duplicate)):
            self.sent += 1
            if rng.random() >= self.loss:
                delay = rng.uniform(0.005, 0.08) + (rng.uniform(0.1, 2.0) if rng.random() < self.late else 0.0)
                at = self.loop.time() + delay
                heapq.heappush(self._due, (at, self.sent, deliver, what))
                if at < self._timer_at:
                    self._timer_at = at
                    self.loop.call_at(at, self._arrive)

    def _arrive(self) -> None:
        """One timer of the loop for all that is under way."""
        now = self.loop.time()
        self._timer_at = math.inf
        while self._due and self._due[0][0] <= now:
            _, _, deliver, what = heapq.heappop(self._due)
            deliver(*what)
        if self._due and self._due[0][0] < self._timer_at:
            self._timer_at = self._due[0][0]
            self.loop.call_at(self._timer_at, self._arrive)

    def _reach_server(self, source: Address, data: bytes) -> None:
        if self._protocol is not None:
            self.arrives(source, data)
            self._protocol.datagram_received(data, source)

    def _reach_machine(self, destination: Address, data: bytes, sent_at: float) -> None:
        machine = self.machines.get(destination)
        if machine is not None:
            machine(data, sent_at)


class Sub:
    """One question a machine watches."""

    __slots__ = ("expires_at", "is_live", "lease", "llq_id", "question", "seen", "view")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.llq_id = 0
        self.lease = LEASE
        self.view: set[Item] = set()
        self.is_live = False
        self.expires_at = 0.0
        self.seen: dict[int, float] = {}


class Machine:
    """A host: publishes its address, service and place in the member's list; watches the list, news and two others."""

    def __init__(self, fleet: "Fleet", number: int) -> None:
        self.fleet = fleet
        self.member, self.number = divmod(number, HOSTS_A_MEMBER)
        member = fleet.members[self.member]
        self.key = member.key
        self.is_private = member.is_private
        self.zone = member.domain if member.is_private else from_text(ZONE)
        self.name = b"\x04" + b"h%03d" % self.number + member.domain
        self.service = b"\x0b_autotunnel\x04_udp" + self.name
        self.browse = b"\x0b_autotunnel\x04_udp" + member.domain
        self.is_up = False
        self.lives = 0
        self.place: Address = ("0.0.0.0", 0)
        self.port = 4500
        self.subs: list[Sub] = []
        self._update: tuple[int, bytes, list[RowKey], float] | None = None
        self._wants_update = False
        self._llq_id = -1
        self._stage: list[Sub] = []
        self._is_set_up = False

    def _later(self, seconds: float, what: Callable[..., None], *more: Any) -> None:
        life = self.lives

        def call() -> None:
            if self.is_up and self.lives == life:
                what(*more)

        self.fleet.loop.call_later(seconds, call)

    def start(self) -> None:
        """Wake up somewhere, knowing nothing."""
        self.is_up = True
        self.lives += 1
        self._update, self._is_set_up = None, False
        self.subs = [Sub(Question(name, rtype, Class.IN)) for name, rtype in self._interests()]
        self._move_in()
        self._later(self.fleet.rng.uniform(0.0, 3.0), self.publish)
        self._later(self.fleet.rng.uniform(0.0, 5.0), self._set_up)

    def _interests(self) -> list[tuple[bytes, int]]:
        others = [other for other in self.fleet.of_member(self.member) if other is not self]
        one, two = self.fleet.rng.sample(others, 2)
        news = b"\x04news" + self.fleet.members[self.member].domain
        return [(self.browse, Type.PTR), (one.name, Type.A), (two.service, Type.SRV), (news, Type.TXT)]

    def _move_in(self) -> None:
        self.fleet.air.machines.pop(self.place, None)
        self.place = self.fleet.new_place()
        self.fleet.air.machines[self.place] = self.receive

    def move(self) -> None:
        """Another network: another address, another mapped port, all set up anew from there."""
        self._move_in()
        self.port = self.fleet.rng.randrange(1024, 65536)
        for sub in self.subs:
            sub.is_live = False
        self._is_set_up = False
        self.publish()
        self._later(self.fleet.rng.uniform(0.0, 1.0), self._set_up)

    def crash(self) -> None:
        """Stop without a word."""
        self.is_up = False
        self.fleet.air.machines.pop(self.place, None)

    # Publication

    def records(self) -> list[tuple[bytes, int, bytes]]:
        address = bytes(int(part) for part in self.place[0].split("."))
        return [
            (self.name, Type.A, address),
            (self.service, Type.SRV, bytes(4) + self.port.to_bytes(2, "big") + self.name),
            (self.browse, Type.PTR, self.service),
        ]

    def publish(self) -> None:
        """One update at a time, so that none overtakes another."""
        if self._update is not None:
            self._wants_update = True
            return
        self._wants_update = False
        ops = [
            Item6(self.name, Type.A, Class.ANY, 0, b""),
            Item6(self.service, Type.SRV, Class.ANY, 0, b""),
            *(Item6(owner, rtype, Class.IN, 120, rdata) for owner, rtype, rdata in self.records()),
        ]
        self._send_update(ops, UpdateLease(LEASE))

    def withdraw(self) -> None:
        """Say goodbye, if nothing else is under way."""
        if self._update is None:
            ops = [Item6(owner, rtype, Class.NONE, 0, rdata) for owner, rtype, rdata in self.records()]
            self._send_update(ops, None)

    def _send_update(self, ops: "list[Item6]", lease: UpdateLease | None) -> None:
        id = self.fleet.rng.getrandbits(16)
        opt = Opt(options=(lease.encode(),) if lease else ())
        wire = encode(id, Opcode.UPDATE << 11, [Question(self.zone, Type.SOA, Class.IN)], (), ops, opt=opt)
        added = [RowKey(fold(op.name), op.rtype, canonical(op.rtype, op.rdata)) for op in ops if op.rclass == Class.IN]
        gone = [RowKey(fold(op.name), op.rtype, canonical(op.rtype, op.rdata)) for op in ops if op.rclass == Class.NONE]
        replaced = [(fold(op.name), op.rtype) for op in ops if op.rclass == Class.ANY]
        self.fleet.truth.update_sent(gone, replaced)
        self._update = (id, self.sign(wire), added, self.fleet.now)
        self._try_update(id, 0)

    def _try_update(self, id: int, tries: int) -> None:
        if self._update is None or self._update[0] != id:
            return
        if tries == 5:
            self._later(LATE_SECONDS + 1, self._update_over)
            return
        self.fleet.truth.underway(self.place, id, self._update[2])  # it may have moved since the last try
        self.fleet.air.to_server(self.place, self._update[1])
        self._later(2.0 * 2**tries, self._try_update, id, tries + 1)

    def _update_over(self) -> None:
        self._update = None
        self._later(self.fleet.rng.uniform(1.0, 30.0), self.publish)

    def _updated(self, message: Message) -> None:
        if self._update is None or message.id != self._update[0]:
            return
        _, _, added, sent_at = self._update
        granted = update_lease(message.opt)
        if message.header.rcode == Rcode.NOERROR and granted is not None:
            self.fleet.truth.acknowledged(added, sent_at + granted.lease)
            self._later(granted.lease * self.fleet.rng.uniform(0.7, 0.85), self._renew, self._update)
        self._update = None
        if message.header.rcode != Rcode.NOERROR:
            self.fleet.counts[f"update {message.header.rcode}"] += 1
            self._later(LATE_SECONDS + self.fleet.rng.uniform(1.0, 30.0), self.publish)
        elif self._wants_update:
            # A copy of the last one may still be under way: overtaken by the next, it would undo that.
            self._later(LATE_SECONDS, self.publish)
        self._last_update = message.id

    def _renew(self, _: Any) -> None:
        self.publish()

    def sign(self, wire: bytes) -> bytes:
        return sign(wire, self.key, now=int(START_UNIX + self.fleet.now))[0]

    # Watching

    def _say(self, stage: list[Sub], options: list[LlqOption], id: int) -> None:
        wire = encode(
            id, 0x0100, [sub.question for sub in stage], opt=Opt(0, options=tuple(item.encode() for item in options))
        )
        self.fleet.air.to_server(self.place, self.sign(wire) if self.is_private else wire)

    def _set_up(self) -> None:
        """All that is not established, in one message; a challenge is answered in the same way."""
        self._begin([sub for sub in self.subs if not sub.is_live], is_met=False)

    def _begin(self, stage: list[Sub], *, is_met: bool) -> None:
        self._stage = stage
        if stage:
            self._is_met = is_met
            self._llq_id = self.fleet.rng.getrandbits(16)
            self._try_set_up(self._llq_id, 0)

    def _try_set_up(self, id: int, tries: int) -> None:
        if id != self._llq_id or not self._stage:
            return
        if tries == 3:
            self._stage = []
            self._later(self.fleet.rng.uniform(60.0, 900.0), self._set_up)
            return
        options = [
            LlqOption(1, LlqOpcode.SETUP, 0, sub.llq_id if self._is_met else 0, sub.lease if self._is_met else LEASE)
            for sub in self._stage
        ]
        self._say(self._stage, options, id)
        self._later((2.0, 4.0, 8.0)[tries], self._try_set_up, id, tries + 1)

    def _answered(self, message: Message, wire: bytes, options: list[LlqOption]) -> None:
        if message.id != self._llq_id or not self._stage or len(options) != len(self._stage):
            return
        stage, self._stage = self._stage, []
        good = [sub for sub, option in zip(stage, options, strict=True) if not option.error]
        if len(good) < len(stage):
            self.fleet.counts["refused set-ups"] += len(stage) - len(good)
            self._later(self.fleet.rng.uniform(1.0, 5.0), self._set_up)
        for sub, option in zip(stage, options, strict=True):
            if not option.error:
                sub.llq_id, sub.lease = option.llq_id, option.lease
        if not self._is_met:
            self._begin(good, is_met=True)
            return
        found = self._by_question(message.answers, wire)
        for sub in good:
            sub.view = found.get((fold(sub.question.name), sub.question.rtype), set())
            sub.is_live = True
            sub.seen = {}
            sub.expires_at = self.fleet.now + sub.lease
        self.fleet.counts["established"] += len(good)
        if good and not self._is_set_up:
            self._is_set_up = True
            self._later(0.8 * good[0].lease, self._refresh, 0)

    @staticmethod
    def _by_question(records: tuple[Record, ...], wire: bytes) -> dict[tuple[bytes, int], set[Item]]:
        found: dict[tuple[bytes, int], set[Item]] = {}
        for record in records:
            found.setdefault((fold(record.name), record.rtype), set()).add((record.rtype, record.rdata(wire)))
        return found

    def _refresh(self, tries: int) -> None:
        """At 80, 85, 90 and 95 % of the lease; then it has to be set up anew."""
        now = self.fleet.now
        live = [sub for sub in self.subs if sub.is_live]
        for sub in live:
            if now >= sub.expires_at - 0.001:
                sub.is_live = False
        if not live or any(not sub.is_live for sub in live):
            self._is_set_up = False
            self._set_up()
            return
        self._refresh_id = self.fleet.rng.getrandbits(16)
        self._refreshed = live
        self._say(live, [LlqOption(1, LlqOpcode.REFRESH, 0, sub.llq_id, sub.lease) for sub in live], self._refresh_id)
        self._later(0.05 * LEASE, self._refresh_again, self._refresh_id, tries + 1)

    def _refresh_again(self, id: int, tries: int) -> None:
        if id == self._refresh_id:
            self._refresh(tries)

    def _renewed(self, message: Message, options: list[LlqOption]) -> None:
        if message.id != getattr(self, "_refresh_id", -1) or len(options) != len(self._refreshed):
            return
        self._refresh_id = -1
        for sub, option in zip(self._refreshed, options, strict=True):
            if sub.llq_id != option.llq_id or not sub.is_live:
                continue
            if option.error:
                sub.is_live = False
                self.fleet.counts["no such LLQ"] += 1
            else:
                sub.lease, sub.expires_at = option.lease, self.fleet.now + option.lease
        if any(not sub.is_live for sub in self.subs):
            self._set_up()
        if any(sub.is_live for sub in self.subs):
            self._later(0.8 * LEASE, self._refresh, 0)
        else:
            self._is_set_up = False

    def _event(self, message: Message, wire: bytes, option: LlqOption) -> None:
        sub = next((sub for sub in self.subs if sub.is_live and sub.llq_id == option.llq_id), None)
        if sub is None:
            return
        now = self.fleet.now
        if sub.seen.get(message.id, 0.0) > now:
            self.fleet.counts["events again"] += 1
        else:
            sub.seen = {id: until for id, until in sub.seen.items() if until > now}
            sub.seen[message.id] = now + REMEMBERED_SECONDS
            self.fleet.counts["events"] += 1
            for record in message.answers:
                item = (record.rtype, record.rdata(wire))
                if record.ttl == LLQ_EVENT_REMOVE_TTL:
                    sub.view.discard(item)
                else:
                    self.fleet.counts["known adds"] += item in sub.view
                    sub.view.add(item)
        assert message.opt is not None
        self.fleet.air.to_server(self.place, encode(message.id, QR, message.questions, opt=message.opt))

    def receive(self, wire: bytes, sent_at: float) -> None:
        message = decode(wire)
        if message.header.opcode == Opcode.UPDATE:
            self._updated(message)
            return
        options = llq_options(message.opt)
        is_event = bool(options) and options[0].opcode == LlqOpcode.EVENT
        self.fleet.truth.told(message, wire, sent_at, is_event=is_event)
        if not options:
            return
        if is_event:
            self._event(message, wire, options[0])
        elif options[0].opcode == LlqOpcode.REFRESH:
            self._renewed(message, options)
        else:
            self._answered(message, wire, options)


class Item6:
    """A record of an update section."""

    __slots__ = ("name", "rclass", "rdata", "rtype", "ttl")

    def __init__(self, name: bytes, rtype: int, rclass: int, ttl: int, rdata: bytes) -> None:
        self.name, self.rtype, self.rclass, self.ttl, self.rdata = name, rtype, rclass, ttl, rdata

    def __iter__(self) -> Iterator[Any]:
        return iter((self.name, self.rtype, self.rclass, self.ttl, self.rdata))


class Truth:
    """What was promised and what may be told, by packets alone. Times are the loop's."""

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self.kept_until: dict[RowKey, float] = {}
        self.told_until: dict[RowKey, float] = {}
        self.checked = 0
        self._pending: dict[tuple[Address, int], list[RowKey]] = {}

    def underway(self, place: Address, id: int, added: list[RowKey]) -> None:
        self._pending[place, id] = added

    def update_sent(self, gone: list[RowKey], replaced: list[tuple[bytes, int]]) -> None:
        """From now on the server may have done it: what it deletes is owed no more."""
        for key in gone:
            self.kept_until.pop(key, None)
        for owner, rtype in replaced:
            for key in self._fleet.promises.pop((owner, rtype), ()):
                self.kept_until.pop(key, None)

    def arrives(self, source: Address, data: bytes) -> None:
        """At the server: from now on it may tell of it, until the longest lease ends."""
        if (data[2] >> 3 & 0xF) == Opcode.UPDATE:
            until = self._fleet.now + BUSY_SECONDS + LEASE
            for key in self._pending.get((source, int.from_bytes(data[:2], "big")), ()):
                self.told_until[key] = until

    def acknowledged(self, added: list[RowKey], until: float) -> None:
        for key in added:
            self.kept_until[key] = until
            self._fleet.promises.setdefault(key[:2], set()).add(key)

    def told(self, message: Message, wire: bytes, sent_at: float, *, is_event: bool) -> None:
        slack = EVENT_SECONDS if is_event else 1.0
        for record in message.answers:
            if record.ttl == LLQ_EVENT_REMOVE_TTL or record.rtype not in (Type.A, Type.SRV, Type.PTR, Type.TXT):
                continue
            key = RowKey(fold(record.name), record.rtype, canonical(record.rtype, record.rdata(wire)))
            until = self.told_until.get(key, 0.0)
            self.checked += 1
            if sent_at >= until + slack:
                self._fleet.note(f"told of {key}, which lapsed {sent_at - until:.1f} s before")
            elif record.ttl > until - sent_at + slack:
                self._fleet.note(f"told of {key} with TTL {record.ttl}, {until - sent_at:.1f} s before it lapses")

    def changed(self, change: Change) -> None:
        """Nothing promised goes."""
        now = self._fleet.now
        added = {(fold(rr.owner), rr.rtype, rr.rdata) for rr in change.added}
        for rr in change.removed:
            if (fold(rr.owner), rr.rtype, rr.rdata) in added or rr.rtype == Type.SOA:
                continue
            key = RowKey(fold(rr.owner), rr.rtype, canonical(rr.rtype, rr.rdata))
            if self.kept_until.get(key, 0.0) > now:
                self._fleet.note(f"lost {key} by {change.actor}, {self.kept_until[key] - now:.1f} s too early")

    def check_kept(self, holds: Callable[[RowKey], bool]) -> None:
        now = self._fleet.now
        for key, until in list(self.kept_until.items()):
            if until <= now:
                del self.kept_until[key]
            elif not holds(key):
                self._fleet.note(f"lost {key}, {until - now:.1f} s too early")


class Member:
    def __init__(self, domain: bytes, key: Key, *, is_private: bool) -> None:
        self.domain, self.key, self.is_private = domain, key, is_private


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
        self.truth = Truth(self)
        self.promises: dict[tuple[bytes, int], set[RowKey]] = {}
        self.members: list[Member] = []
        self.machines: list[Machine] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.server: Server | None = None
        self.places = 0
        self.is_storm = False
        self.storm_ends = 0.0
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

    def of_member(self, number: int) -> list[Machine]:
        return self.machines[number * HOSTS_A_MEMBER : (number + 1) * HOSTS_A_MEMBER]

    # The server

    async def start_server(self) -> None:
        settings = ServerSettings.model_validate(
            {"zone": {"name": ZONE}, "dns": {"listen": [f"{SERVER[0]}:{SERVER[1]}"]}}
        )
        self.store = self.store.reopened()
        server = Server(
            settings, clock=self.clock, entropy=SeededEntropy(self.rng.getrandbits(32)), on_change=self.truth.changed
        )
        await server.start()
        self.server = server
        self.truth.check_kept(self._holds)

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

    def _holds(self, key: RowKey) -> bool:
        rrset = self._rrset(key.owner_key, key.rtype)
        return rrset is not None and any(canonical(key.rtype, rdata) == key.rdata_key for rdata in rrset.rdatas)

    # Weather and troubles

    def set_storm(self, is_storm: bool) -> None:
        self.is_storm = is_storm
        self._bluster()

    def _bluster(self) -> None:
        air = self.air
        air.loss = 0.05 if self.is_storm else 0.0
        air.duplicate = 0.03 if self.is_storm else 0.0
        air.late = 0.1 if self.is_storm else 0.0

    async def _weather(self) -> None:
        """5 % of loss on average, most of it in bursts of some seconds in which nearly nothing gets through."""
        rng = self.air.rng
        while True:
            self.air.loss = 0.02
            await asyncio.sleep(rng.expovariate(1 / 150))
            self.air.loss = 0.9
            await asyncio.sleep(rng.uniform(1.0, 9.0))

    def _any(self) -> Machine:
        return self.rng.choice(self.machines)

    async def _machines_in_trouble(self) -> None:
        """Each machine about 4 moves, 2 crashes and a goodbye a day."""
        rng = self.rng
        while True:
            await asyncio.sleep(rng.expovariate(self.hosts * 7 / 86400))
            machine = self._any()
            if not machine.is_up:
                continue
            trouble = rng.random()
            if trouble < 4 / 7:
                machine.move()
            elif trouble < 6 / 7:
                machine.crash()
                self._wake_up(machine)
            else:
                machine.withdraw()
                life = machine.lives
                await asyncio.sleep(0.0)
                self.loop.call_later(
                    20.0,
                    lambda machine=machine, life=life: self._leave(machine, life),  # type: ignore[misc]
                )

    def _leave(self, machine: Machine, life: int) -> None:
        if machine.is_up and machine.lives == life:
            machine.crash()
            self._wake_up(machine)

    def _wake_up(self, machine: Machine) -> None:
        """Soon, late, or after its records have lapsed."""
        pause = self.rng.choice((5.0, 600.0, 9000.0))
        self.loop.call_later(LATE_SECONDS + self.rng.uniform(0.0, pause), machine.start)

    async def _server_in_trouble(self) -> None:
        rng = self.rng
        while True:
            await asyncio.sleep(rng.expovariate(1 / 2400))
            trouble = rng.choice(("kill", "kill", "stop", "disk", "step", "step", "other"))
            if trouble == "other":
                self.say("another process changes the zone")
                await self._change_unseen(rng.choice(self.members), rng.randint(1, 2))
            elif trouble == "disk":
                self.say("disk full")
                self.store.is_broken = True
                await asyncio.sleep(rng.uniform(0.5, 60.0))
                self.store.is_broken = False
            elif trouble == "step":
                # Beyond the fudge of signatures for a while, within it for good.
                self.say("clock steps")
                seconds = rng.choice((-1, 1)) * rng.choice((rng.uniform(1, 60), rng.uniform(600, 86400)))
                self.clock.step_wall(seconds)
                await asyncio.sleep(rng.uniform(1.0, 900.0))
                self.clock.step_wall(-seconds)
            else:
                member = rng.choice(self.members)
                self._toggle(member)
                await asyncio.sleep(rng.uniform(0.0, 3.0))
                self.say(trouble)
                await (self.kill_server() if trouble == "kill" else self.stop_server())
                await self._change_unseen(member, rng.choice((0, 1, 2)))
                await asyncio.sleep(rng.uniform(0.7, rng.choice((2.0, 900.0))))
                await self.start_server()
                self.counts["restarts"] += 1

    def _ghost(self, member: "Member") -> tuple[StoredRR, bytes]:
        """A record that comes and goes at a name where nothing else ever happens, and the zone it is in."""
        ghost = StoredRR(b"\x04news" + member.domain, Type.TXT, 120, b"\x05ghost", None)
        self.truth.told_until[row_key(ghost)] = math.inf
        return ghost, member.domain if member.is_private else from_text(ZONE)

    async def _change_unseen(self, member: "Member", times: int) -> None:
        """Another process puts the record there, or takes it away, or both."""
        ghost, zone = self._ghost(member)
        apex = fold(zone)
        for _ in range(times):
            row = next(row for row in await self.store.load_zones() if row.apex == apex)
            is_there = row_key(ghost) in self.store._data.records[row.id]
            puts, deletes = ((), (ghost,)) if is_there else ((ghost,), ())
            commit = commit_of(row.id, row.serial, puts, deletes)
            commit = replace(commit, changes=(replace(commit.changes[0], apex=apex),))
            await MemoryStore(self.store._shared).commit([commit])
            self.counts["unseen changes"] += 1

    def _toggle(self, member: "Member") -> None:
        """The operator does the same by an update, and does not wait for its reply."""
        ghost, zone = self._ghost(member)
        rclass = Class.NONE if self._holds(row_key(ghost)) else Class.IN
        op = Item6(ghost.owner, ghost.rtype, rclass, 0 if rclass == Class.NONE else ghost.ttl, ghost.rdata)
        question = Question(zone, Type.SOA, Class.IN)
        wire = encode(self.rng.getrandbits(16), Opcode.UPDATE << 11, [question], (), [op])
        self.air.to_server(OPERATOR, sign(wire, ADMIN, now=int(START_UNIX + self.now))[0])

    async def _operator(self) -> None:
        """Now and then somebody changes his mind several times in a row."""
        rng = self.rng
        while True:
            is_finale = self.now > self.storm_ends - 300  # what goes wrong earlier may be mended by what follows
            await asyncio.sleep(rng.expovariate(1 / (3 if is_finale else 600)))
            member = rng.choice(self.members)
            for _ in range(rng.randint(1, 6)):
                if self.server is not None:
                    self._toggle(member)
                await asyncio.sleep(rng.uniform(0.05, 2.5))

    async def _ask_around(self) -> None:
        """A stranger asks for records around the moment at which they lapse."""
        rng, truth = self.rng, self.truth
        while True:
            await asyncio.sleep(rng.expovariate(1 / 30))
            ending = [(key, until) for key, until in truth.told_until.items() if 5 < until - self.now < 120]
            if not ending:
                continue
            key, until = rng.choice(ending)
            query = encode(rng.getrandbits(16), 0, (Question(key.owner_key, key.rtype, Class.IN),))
            for at in (until - BUSY_SECONDS - 1, until - BUSY_SECONDS, until - 1, until, until + 1, until + 2):
                if at > self.now:
                    await asyncio.sleep(at - self.now)
                self.air.to_server(STRANGER, query)

    def _hear(self, wire: bytes, sent_at: float) -> None:
        self.truth.told(decode(wire), wire, sent_at, is_event=False)

    # The whole

    async def settle_in(self) -> None:
        await self.start_server()
        tokens = SeededEntropy(self.seed).octets
        for number in range(self.hosts // HOSTS_A_MEMBER):
            is_private = self.rng.random() < PRIVATE_SHARE
            name = f"m{number:04d}"
            key = await add_member(self.store, name, private=is_private, now=int(self.clock.lease()), token=tokens)
            self.members.append(Member(from_text(f"{name}.{ZONE}"), key, is_private=is_private))
        async with self.store.transaction() as transaction:
            await transaction.add_key(KeyRow(ADMIN, None, int(self.clock.lease())))
        assert self.server is not None
        await self.server.reload()
        await asyncio.sleep(5)
        self.machines = [Machine(self, number) for number in range(self.hosts)]
        self.air.machines[STRANGER] = self._hear
        for machine in self.machines:
            self.loop.call_later(self.rng.uniform(0.0, 600.0), machine.start)
        await asyncio.sleep(1200)

    async def storm(self, seconds: float) -> None:
        self.log.clear()
        self.storm_ends = self.now + seconds
        self.set_storm(True)
        servers = self.loop.create_task(self._server_in_trouble())
        works = (self._weather(), self._machines_in_trouble(), self._ask_around(), self._operator())
        others = [self.loop.create_task(work) for work in works]
        await asyncio.sleep(seconds)
        await _end(others)
        self.set_storm(False)
        while self.server is None or self.store.is_broken or self.clock.unix() != int(START_UNIX + self.now):
            await asyncio.sleep(10)
        await _end([servers])
        if self.rng.random() < 0.5:  # a restart mends what was lost before: not always
            await self._crash_after_events()

    async def _crash_after_events(self) -> None:
        """What watchers have just been told is undone while the server is down."""
        for member in self.members:
            self._toggle(member)
        await asyncio.sleep(1.0)
        await self.kill_server()
        for member in self.members:
            await self._change_unseen(member, 1)
        await asyncio.sleep(0.7)  # no process starts sooner
        await self.start_server()

    async def quiet(self) -> None:
        await asyncio.sleep(QUIET_SECONDS + 9000)  # whoever is down comes up, then all settles
        self.check()
        self.store.trim()

    def check(self) -> None:
        established = 0
        truths: dict[tuple[bytes, int], set[Item]] = {}
        for machine in self.machines:
            if not machine.is_up:
                self.note("a machine sleeps on")
            for sub in machine.subs:
                established += sub.is_live
                place = fold(sub.question.name), sub.question.rtype
                if place not in truths:
                    rrset = self._rrset(*place)
                    truths[place] = {(rrset.rtype, rdata) for rdata in rrset.rdatas} if rrset else set()
                if not sub.is_live or sub.view != truths[place]:
                    lacks, has = truths[place] - sub.view, sub.view - truths[place]
                    what = f"lacks {lacks}, has {has}" if sub.is_live else "not established"
                    self.note(f"view of {sub.question} at {machine.place}: {what}")
            for owner, rtype, rdata in machine.records():
                if not self._holds(RowKey(fold(owner), rtype, canonical(rtype, rdata))):
                    self.note(f"{owner!r} {rtype} is not published")
        assert self.server is not None
        if self.server.push.subscriptions != established:
            self.note(f"{self.server.push.subscriptions} subscriptions at the server, {established} at machines")
        self.truth.check_kept(self._holds)
        now = int(self.clock.lease())
        for zone in self.server.zones:
            for key in zone.nodes:
                node = zone.node(key)
                assert node is not None
                if any(0 < at < now - 2 for rrset in node.rrsets.values() for at in rrset.expires):
                    self.note(f"lapsed and still there: {key!r}")


async def _end(tasks: "list[asyncio.Task[None]]") -> None:
    """Cancel; whatever else ended one goes up."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Violated(AssertionError):
    """Something was not as it must be."""


async def _live(fleet: Fleet, days: float) -> None:
    end = days * 86400
    await fleet.settle_in()
    fleet.check()
    while fleet.now < end and not fleet.violations:
        await fleet.storm(STORM_SECONDS)
        await fleet.quiet()
    await fleet.stop_server()
    if fleet.violations:
        raise Violated("\n".join((f"seed {fleet.seed}:", *fleet.violations, "after:", *fleet.log)))


def run(seed: int, hosts: int, days: float) -> Counter[str]:
    """One world from beginning to end; what happened in it. `Violated` when something was wrong."""

    def unexpected(_: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if event.get("event") not in (*EXPECTED_ERRORS, "cannot save subscriptions, will try again"):
            fleet.note(f"logged {method}: {event}")
        raise structlog.DropEvent

    async def open_store(*_: Any) -> Store:
        return fleet.store

    loop = FleetLoop(limit_seconds=days * 86400 + 10 * 86400)
    fleet = Fleet(seed, hosts, loop)
    loop.network = fleet.air
    logs = structlog.get_config()
    replacements: list[tuple[str, Any]] = [
        ("server.app.SqlStore.open", open_store),
        ("server.app.Server._listen_control", nothing),  # sockets of the real machine
        ("server.app.POLL_SECONDS", 60.0),
        ("server.app.KEY_USE_SECONDS", 600.0),
        ("server.app.SAVE_SECONDS", SAVE_SECONDS),
    ]
    with contextlib.ExitStack() as stack:
        for target, replacement in replacements:
            stack.enter_context(patch(target, replacement))
        structlog.configure(
            processors=[unexpected],
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            cache_logger_on_first_use=False,
        )
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(_live(fleet, days))
        finally:
            structlog.configure(**logs)
    if loop.failures:
        raise ExceptionGroup("exceptions that nobody took", loop.failures)
    fleet.counts["datagrams"] = fleet.air.sent
    fleet.counts["answers checked"] = fleet.truth.checked
    return fleet.counts


def _report(work: tuple[int, int, float]) -> tuple[int, float, str, bool]:
    began = time.perf_counter()
    gc.freeze()
    try:
        counts = run(*work)
    except AssertionError as error:
        return work[0], time.perf_counter() - began, str(error), False
    return work[0], time.perf_counter() - began, ", ".join(f"{n} {what}" for what, n in sorted(counts.items())), True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.fleet", description=__doc__)
    parser.add_argument("--hosts", type=int, default=2000)
    parser.add_argument("--days", type=float, default=3.0, help="virtual time of each seed")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    works = [
        (seed, arguments.hosts, arguments.days) for seed in range(arguments.first, arguments.first + arguments.seeds)
    ]
    failed = 0
    with ProcessPoolExecutor(arguments.jobs, max_tasks_per_child=1) as pool:
        for seed, seconds, text, is_good in pool.map(_report, works):
            failed += not is_good
            print(f"seed {seed}: {'good' if is_good else 'VIOLATED'} in {seconds:.1f} s: {text}", flush=True)
    print(f"{len(works) - failed} of {len(works)} seeds good: {arguments.hosts} hosts, {arguments.days} days each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
