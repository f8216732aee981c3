"""What goes wrong in a storm: the weather, machines, the server, other processes, and an operator of no firm mind."""

import asyncio
import contextlib
import math
from typing import Final

from protocol.constants import Class, Opcode, Type
from protocol.message import Question, encode
from protocol.name import fold
from protocol.rdata import canonical
from protocol.tsig import sign
from server.zone.model import StoredRR
from tests.sim.fleet.air import LATE_SECONDS
from tests.sim.fleet.machine import Machine, Member, Op
from tests.sim.fleet.truth import BUSY_SECONDS
from tests.sim.fleet.world import ADMIN, STRANGER, Fleet
from tests.support.clock import START_UNIX
from tests.support.zones import RowKey, row_key

OPERATOR: Final = ("198.51.100.251", 4000)
STORM_SECONDS: Final = 3.5 * 3600.0
ASKED_AT_SECONDS: Final = (-BUSY_SECONDS - 1.0, -BUSY_SECONDS, -2.0, -1.0, 0.0, 1.0, 2.0)  # from the end of a lease
TROUBLES_A_MACHINE: Final = 1.0  # of a storm
SERVER_TROUBLE_SECONDS: Final = 1200.0  # from one to the next


class Troubles:
    """Makes storms over one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rng = fleet.rng
        self._storm_ends = 0.0

    async def storm(self, seconds: float) -> None:
        """All at once; when it ends, whatever was broken is whole again, and nothing has had time to settle."""
        fleet = self._fleet
        fleet.log.clear()
        self._storm_ends = fleet.now + seconds
        fleet.air.duplicate, fleet.air.late = 0.03, 0.1
        create_task = fleet.loop.create_task
        servers = create_task(self._server_in_trouble())
        works = (self._weather(), self._machines_in_trouble(), self._ask_around(), self._operator())
        others = [create_task(work) for work in works]
        await asyncio.sleep(seconds)
        await _end(others)
        fleet.air.loss = fleet.air.duplicate = fleet.air.late = 0.0
        while fleet.server is None or fleet.store.is_broken or fleet.clock.unix() != int(START_UNIX + fleet.now):
            await asyncio.sleep(10)
        await _end([servers])
        if self._rng.random() < 0.5:  # a restart mends what was lost before: not always
            await self._crash_after_events()

    async def _weather(self) -> None:
        """5 % of loss on average, most of it in bursts of some seconds in which nearly nothing gets through."""
        air = self._fleet.air
        while True:
            air.loss = 0.02
            await asyncio.sleep(air.rng.expovariate(1 / 150))
            air.loss = 0.9
            await asyncio.sleep(air.rng.uniform(1.0, 9.0))

    # Machines

    async def _machines_in_trouble(self) -> None:
        """Moves, crashes and goodbyes, as 4 to 2 to 1."""
        fleet, rng = self._fleet, self._rng
        while True:
            await asyncio.sleep(rng.expovariate(fleet.hosts * TROUBLES_A_MACHINE / STORM_SECONDS))
            machine = rng.choice(fleet.machines)
            if not machine.is_up:
                continue
            trouble = rng.random()
            if trouble < 4 / 7:
                fleet.counts["moves"] += 1
                machine.move()
            elif trouble < 6 / 7:
                self._crash(machine)
            else:
                fleet.counts["goodbyes"] += 1
                machine.withdraw()
                fleet.loop.after(20.0, self._leave, machine, machine.lives)

    def _leave(self, machine: Machine, life: int) -> None:
        if machine.is_up and machine.lives == life:
            self._crash(machine)

    def _crash(self, machine: Machine) -> None:
        """It comes back soon, late, or after its records have lapsed."""
        fleet, rng = self._fleet, self._rng
        fleet.counts["crashes"] += 1
        machine.crash()
        pause = rng.uniform(0.0, rng.choice((5.0, 600.0)))
        if rng.random() < 1 / 3:
            pause = rng.uniform(0.9, 1.3) * machine.update_lease
            self._ask_when_lapsing(machine)
        fleet.loop.after(LATE_SECONDS + pause, fleet.wake_up, machine)

    def _ask_when_lapsing(self, machine: Machine) -> None:
        """A stranger asks for a record around the moment at which it lapses."""
        fleet = self._fleet
        owner, rtype, rdata = self._rng.choice(machine.records())
        key = RowKey(fold(owner), rtype, canonical(rtype, rdata))
        until = fleet.truth.told_until.get(key, 0.0)
        for seconds in ASKED_AT_SECONDS:
            if until + seconds > fleet.now:
                fleet.loop.after(until + seconds - fleet.now, self._ask, owner, rtype)

    def _ask(self, owner: bytes, rtype: int) -> None:
        self._fleet.counts["questions of strangers"] += 1
        query = encode(self._rng.getrandbits(16), 0, (Question(owner, rtype, Class.IN),))
        self._fleet.air.to_server(STRANGER, query)

    async def _ask_around(self) -> None:
        """A stranger asks for anything."""
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / 30))
            owner, rtype, _ = self._rng.choice(self._rng.choice(self._fleet.machines).records())
            self._ask(owner, rtype)

    # The server

    async def _server_in_trouble(self) -> None:
        fleet, rng = self._fleet, self._rng
        while True:
            await asyncio.sleep(rng.expovariate(1 / SERVER_TROUBLE_SECONDS))
            trouble = rng.choice(("kill", "kill", "stop", "disk", "step", "step", "other"))
            if trouble == "other":
                fleet.say("another process changes the zone")
                await self._change_unseen(rng.choice(fleet.members), rng.randint(1, 2))
            elif trouble == "disk":
                fleet.say("disk full")
                fleet.store.is_broken = True
                await asyncio.sleep(rng.uniform(0.5, 60.0))
                fleet.store.is_broken = False
            elif trouble == "step":
                # Beyond the fudge of signatures for a while, within it for good.
                fleet.say("clock steps")
                fleet.counts["clock steps"] += 1
                seconds = rng.choice((-1, 1)) * rng.choice((rng.uniform(1, 60), rng.uniform(600, 86400)))
                fleet.clock.step_wall(seconds)
                await asyncio.sleep(rng.uniform(1.0, 900.0))
                fleet.clock.step_wall(-seconds)
            else:
                member = rng.choice(fleet.members)
                self._toggle(member)
                await asyncio.sleep(rng.uniform(0.0, 3.0))
                fleet.say(trouble)
                await (fleet.kill_server() if trouble == "kill" else fleet.stop_server())
                await self._change_unseen(member, rng.choice((0, 1, 2)))
                await asyncio.sleep(rng.uniform(0.7, rng.choice((2.0, 900.0))))
                await fleet.start_server()
                fleet.counts["restarts"] += 1

    def _ghost(self, member: Member) -> StoredRR:
        """A record that comes and goes at a name where nothing else ever happens."""
        ghost = StoredRR(b"\x04news" + member.domain, Type.TXT, 120, b"\x05ghost", None)
        self._fleet.truth.told_until[row_key(ghost)] = math.inf
        return ghost

    async def _change_unseen(self, member: Member, times: int) -> None:
        """Another process puts the ghost there, or takes it away, or both."""
        for _ in range(times):
            await self._fleet.change_unseen(self._ghost(member), member)

    def _toggle(self, member: Member) -> None:
        """The operator does the same by an update, and does not wait for its reply."""
        fleet, ghost = self._fleet, self._ghost(member)
        rclass = Class.NONE if fleet.holds(row_key(ghost)) else Class.IN
        op = Op(ghost.owner, ghost.rtype, rclass, 0 if rclass == Class.NONE else ghost.ttl, ghost.rdata)
        question = Question(member.zone, Type.SOA, Class.IN)
        wire = encode(self._rng.getrandbits(16), Opcode.UPDATE << 11, [question], (), [op])
        fleet.air.to_server(OPERATOR, sign(wire, ADMIN, now=int(START_UNIX + fleet.now))[0])

    async def _operator(self) -> None:
        """Now and then somebody changes his mind several times in a row."""
        fleet, rng = self._fleet, self._rng
        while True:
            is_finale = fleet.now > self._storm_ends - 300  # what goes wrong earlier may be mended by what follows
            await asyncio.sleep(rng.expovariate(1 / (3 if is_finale else 600)))
            member = rng.choice(fleet.members)
            for _ in range(rng.randint(1, 6)):
                if fleet.server is not None:
                    self._toggle(member)
                await asyncio.sleep(rng.uniform(0.05, 2.5))

    async def _crash_after_events(self) -> None:
        """What watchers have just been told is undone while the server is down."""
        fleet = self._fleet
        for member in fleet.members:
            self._toggle(member)
        await asyncio.sleep(1.0)
        await fleet.kill_server()
        for member in fleet.members:
            await self._change_unseen(member, 1)
        await asyncio.sleep(0.7)  # no process starts sooner
        await fleet.start_server()


async def _end(tasks: "list[asyncio.Task[None]]") -> None:
    """Cancel; whatever else ended one goes up."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
