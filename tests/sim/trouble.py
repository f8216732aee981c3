"""What goes wrong, and how it ends: weather on the network, machines and daemons that stop, addresses that change.

Each trouble is a coroutine that hurts one thing and mends it again, at the latest when the storm ends. What it hurts
it holds in `busy`, so that no two troubles hurt the same thing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from tests.sim.world import SERVER, Host, Router, World
from tests.support.wire import Faults

CALM: Final = Faults(duplicate=0.02, reorder=0.05, latency=(0.005, 0.05), late_seconds=0.2)
PERFECT: Final = Faults(latency=(0.005, 0.02))
NATPMP_PORT: Final = 5351
MEAN_PAUSE_SECONDS: Final = 240.0
SHARE_LEFT_DOWN: Final = 0.3
"""Of the machines that stop, those that stay off over the quiet period, so that their leases lapse."""


class Storm:
    """One stormy period of a world."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world = world
        self.rng = world.rng
        self.log: list[str] = []
        self._ends_at = world.now + seconds
        self._over = asyncio.Event()
        self._busy: set[object] = set()

    async def rage(self) -> None:
        """Until the end, with everything mended but for machines left down; the network is calm afterwards."""
        world = self.world
        for host in world.hosts:
            if host.agent is None:
                await world.start_host(host)
        async with asyncio.TaskGroup() as group:
            weather = group.create_task(self._weather(), name="weather")
            troubles: list[asyncio.Task[None]] = []
            while True:
                await asyncio.sleep(self.rng.expovariate(1 / MEAN_PAUSE_SECONDS))
                if world.now >= self._ends_at:
                    break
                trouble = self.rng.choice(TROUBLES)
                troubles.append(group.create_task(trouble(self), name=trouble.__name__))
            self._over.set()
            await asyncio.gather(*troubles)
            weather.cancel()
        world.internet.faults = CALM

    async def _pause(self, shortest: float, longest: float) -> None:
        """Wait, at most until the storm ends."""
        try:
            async with asyncio.timeout(self.rng.uniform(shortest, longest)):
                await self._over.wait()
        except TimeoutError:
            return

    @asynccontextmanager
    async def _held(self, *things: object) -> AsyncIterator[bool]:
        """Whether all of them could be had."""
        mine = not any(thing in self._busy for thing in things)
        if mine:
            self._busy.update(things)
        try:
            yield mine
        finally:
            if mine:
                self._busy.difference_update(things)

    def _say(self, text: str) -> None:
        self.log.append(f"{self.world.now:.1f} {text}")

    async def _weather(self) -> None:
        """Steady loss of 5 to 20 %, and bursts in which nearly nothing gets through."""
        rng, internet = self.rng, self.world.internet
        steady = Faults(
            loss=rng.uniform(0.05, 0.2),
            duplicate=rng.uniform(0.0, 0.1),
            reorder=rng.uniform(0.0, 0.2),
            latency=(0.005, rng.uniform(0.02, 0.3)),
            late_seconds=rng.uniform(0.1, 2.0),
        )
        burst = Faults(loss=0.9, latency=steady.latency)
        while True:
            internet.faults = steady
            await asyncio.sleep(rng.expovariate(1 / 90))
            internet.faults = burst
            await asyncio.sleep(rng.uniform(1.0, 15.0))

    # Routers

    def _any_router(self) -> Router:
        return self.rng.choice(self.world.routers)

    async def renumber(self) -> None:
        """The provider gives another address; the gateway's daemon notices a moment later."""
        router = self._any_router()
        async with self._held(router) as mine:
            if not mine or router.gateway is None:
                return
            router.lan.set_external_address(self.world.new_external_address())
            self._say(f"router {router.number} renumbered to {router.lan.external_address}")
            await self._pause(0.0, 2.0)
            await router.gateway.set_external_address(router.lan.external_address)
            await self._pause(0.0, 60.0)

    async def lose_line(self) -> None:
        """No external address for a while, and maybe another one afterwards."""
        router = self._any_router()
        async with self._held(router) as mine:
            if not mine or router.gateway is None:
                return
            old = router.lan.external_address
            router.lan.set_external_address(None)
            self._say(f"router {router.number} lost its line")
            await router.gateway.set_external_address(None)
            await self._pause(1.0, 6000.0)
            router.lan.set_external_address(self.rng.choice((old, self.world.new_external_address())))
            self._say(f"router {router.number} has {router.lan.external_address}")
            await router.gateway.set_external_address(router.lan.external_address)

    async def cut_line(self) -> None:
        """Nothing gets through although the router believes it is connected."""
        router = self._any_router()
        async with self._held(router) as mine:
            if mine:
                router.lan.is_connected = False
                self._say(f"router {router.number} cut off")
                await self._pause(1.0, 9000.0)
                router.lan.is_connected = True
                self._say(f"router {router.number} connected again")

    async def restart_gateway(self) -> None:
        """The daemon stops and starts again with its state file."""
        router = self._any_router()
        async with self._held(router) as mine:
            if mine:
                self._say(f"gateway {router.number} stops")
                await self.world.stop_gateway(router)
                await self._pause(0.1, self.rng.choice((2.0, 300.0)))
                await self.world.start_gateway(router)
                self._say(f"gateway {router.number} starts with its state")

    async def reboot_router(self) -> None:
        """The whole router restarts and remembers nothing: the epoch is lost, maybe the address too."""
        router = self._any_router()
        async with self._held(router) as mine:
            if mine:
                await self.world.stop_gateway(router)
                self.world.disk.files.pop(router.state_file, None)
                old = router.lan.external_address
                router.lan.set_external_address(None)
                self._say(f"router {router.number} reboots")
                await self._pause(5.0, 200.0)
                router.lan.set_external_address(self.rng.choice((old, self.world.new_external_address())))
                await self.world.start_gateway(router)
                self._say(f"router {router.number} is up with {router.lan.external_address}")

    # Machines

    def _any_host(self) -> Host:
        return self.rng.choice(self.world.hosts)

    async def _stay_off(self, host: Host) -> None:
        if self.rng.random() < SHARE_LEFT_DOWN:
            await self._over.wait()
            return
        await self._pause(0.5, self.rng.choice((10.0, 600.0, 9000.0)))
        self.world.internet.dark.discard(host.address)
        await self.world.start_host(host)
        self._say(f"{host.label} starts")

    async def kill_host(self) -> None:
        host = self._any_host()
        async with self._held(host) as mine:
            if mine and host.agent is not None:
                self._say(f"{host.label} killed")
                await self.world.kill_host(host)
                await self._stay_off(host)

    async def cut_power(self) -> None:
        """A machine goes without a word: not even its streams are closed."""
        host = self._any_host()
        async with self._held(host) as mine:
            if mine and host.agent is not None:
                self._say(f"{host.label} lost its power")
                self.world.internet.dark.add(host.address)
                await self.world.kill_host(host)
                await self._pause(0.5, 5.0)
                await self._stay_off(host)
                self.world.internet.dark.discard(host.address)

    async def stop_host(self) -> None:
        """A machine says goodbye."""
        host = self._any_host()
        async with self._held(host) as mine:
            if mine and host.agent is not None:
                self._say(f"{host.label} stops")
                await self.world.stop_host(host)
                await self._stay_off(host)

    async def roam(self) -> None:
        """A machine is carried to another network, or gets another address on its own."""
        host = self._any_host()
        async with self._held(host) as mine:
            if mine:
                router = self.rng.choice([*self.world.routers, None])
                self.world.place_host(host, router)
                self._say(f"{host.label} moves to {host.address}")
                await self._pause(60.0, 300.0)

    # Server

    async def kill_server(self) -> None:
        """At any moment, or at a bad one: while a commit is under way, or just after a client was told of one."""
        async with self._held(SERVER) as mine:
            if mine:
                await self._bad_moment(self.world.store.commit_began, self.world.observer.update_acknowledged)
                self._say("server killed")
                await self.world.kill_server()
                await self._pause(0.1, self.rng.choice((2.0, 600.0)))
                await self.world.start_server()
                self._say("server starts")

    async def _bad_moment(self, *moments: asyncio.Event) -> None:
        moment = self.rng.choice([*moments, asyncio.Event()])
        moment.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.rng.uniform(0.0, 1200.0)):
                await moment.wait()
        await asyncio.sleep(self.rng.uniform(0.0, 0.04))

    async def stop_server(self) -> None:
        async with self._held(SERVER) as mine:
            if mine:
                self._say("server stops")
                await self.world.stop_server()
                await self._pause(0.1, 60.0)
                await self.world.start_server()
                self._say("server starts")

    async def break_disk(self) -> None:
        """Commits fail for a while."""
        async with self._held(SERVER) as mine:
            if mine:
                self._say("disk full")
                self.world.store.is_broken = True
                await self._pause(0.5, 120.0)
                self.world.store.is_broken = False

    async def spoil(self) -> None:
        """Old packets come again with flipped bits, and noise."""
        rng, internet = self.rng, self.world.internet
        for _ in range(30):
            if not internet.trace:
                return
            packet = internet.trace[-1 - rng.randrange(min(200, len(internet.trace)))]
            if NATPMP_PORT in (packet.source[1], packet.destination[1]):
                continue  # without checksum and signature a spoilt one is a good one for something else
            data = bytearray(packet.data if rng.random() < 0.8 else rng.randbytes(rng.randrange(1, 80)))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            internet.inject(packet.source, packet.destination, bytes(data))
            await asyncio.sleep(rng.uniform(0.0, 5.0))


TROUBLES: Final[tuple[Callable[[Storm], Awaitable[None]], ...]] = (
    Storm.renumber,
    Storm.renumber,
    Storm.lose_line,
    Storm.cut_line,
    Storm.restart_gateway,
    Storm.reboot_router,
    Storm.kill_host,
    Storm.kill_host,
    Storm.cut_power,
    Storm.stop_host,
    Storm.roam,
    Storm.kill_server,
    Storm.stop_server,
    Storm.break_disk,
    Storm.spoil,
)
