"""A world for one seed: the real `Server`, `Gateway`s and `Agent`s, joined by a simulated Internet and its clock.

What is not real: sockets and TLS (`internet.py`), the SQL store (`MemoryStore`, with a slow disk), the gateway's state
file (a dict), clocks and entropy. Everything else is the product as it ships.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import structlog

from client_stub import watcher
from client_stub.agent import Agent
from client_stub.config import ClientConfig
from client_stub.watcher import Way
from gateway.app import Gateway
from gateway.config import Endpoint, GatewayConfig
from gateway.mappings import Mapping as PortMapping
from gateway.state import Saved
from gateway.system import System
from homing.key_files import key_json
from protocol.constants import Class
from protocol.message import Question, encode
from protocol.name import from_text
from protocol.rdata import canonical
from protocol.tsig import Key
from server.app import Server
from server.config import ServerSettings
from server.members import add_member
from server.store.api import StoreError
from server.store.memory import MemoryStore
from server.zone.model import Change, ZoneCommit
from server.zone.node import check_node
from tests.sim.internet import ClearLayer, Group, Internet, Lan, Tap
from tests.sim.observer import Observer
from tests.support.clock import START_UNIX, FakeClock
from tests.support.entropy import SeededEntropy
from tests.support.wire import Faults
from tests.support.zones import RowKey, all_records, row_key, rows_of_nodes

ZONE: Final = "members.example."
SERVER: Final = "192.0.2.53"
STRANGER: Final = "198.51.100.250"
STRANGER_PAUSE_SECONDS: Final = 60.0
REFRESHED_BEFORE_SECONDS: Final = 800.0
"""A lease with less left belongs to a machine that does not refresh it any more."""
INTERNAL_PORT: Final = 4500
EXPECTED_ERRORS: Final = (
    "commit failed, updates answered SERVFAIL",
    "cannot follow the database",
    "cannot note key use",
)


class SlowStore(MemoryStore):
    """A store whose commits take time before and after they are durable, and fail on demand."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.is_broken = False
        self.commit_began = asyncio.Event()
        self._rng = rng

    async def commit(self, commits: Sequence[ZoneCommit]) -> None:
        self.commit_began.set()
        await asyncio.sleep(self._rng.uniform(0.0, 0.02))
        if self.is_broken:
            raise StoreError("the disk is full")
        await super().commit(commits)
        await asyncio.sleep(self._rng.uniform(0.0, 0.02))

    def reopened(self) -> "SlowStore":
        """What a new process opens: the same rows."""
        again = SlowStore(self._rng)
        again._shared = self._shared
        return again


class Disk:
    """State files of gateways by path."""

    def __init__(self) -> None:
        self.files: dict[Path, tuple[dict[Any, PortMapping], float, float, float, str | None]] = {}


class DiskFile:
    """Keeps the interface of `gateway.state.StateFile`; times are told by one clock that never stops."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path

    def load(self, *, now: float, unix: float) -> Saved:
        found = self._disk.files.get(self._path)
        if found is None:
            return Saved(None, ())
        rows, epoch, strict_epoch, saved_at, address = found
        passed = unix - saved_at
        return Saved(epoch + passed, tuple(rows.values()), strict_epoch + passed, address)

    def commit(
        self,
        changes: Mapping[Any, PortMapping | None],
        *,
        epoch: float,
        now: float,
        unix: float,
        strict_epoch: float = 0.0,
        address: str | None = None,
        rewrite: bool = False,
    ) -> None:
        rows = {} if rewrite or self._path not in self._disk.files else dict(self._disk.files[self._path][0])
        for key, mapping in changes.items():
            if mapping is None:
                rows.pop(key, None)
            else:
                rows[key] = mapping
        self._disk.files[self._path] = rows, epoch, strict_epoch, unix, address

    def close(self) -> None:
        pass


class LoopSystem(System):
    """Clocks and entropy of a gateway in virtual time."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def unix(self) -> float:
        return START_UNIX + self.monotonic()

    def draw(self) -> int:
        return self._rng.getrandbits(31)


class SimulatedListener:
    """A gateway's socket on its LAN."""

    is_ipv6 = False
    interfaces: frozenset[int] = frozenset()

    def __init__(self, internet: Internet, endpoint: Endpoint, receive: Any) -> None:
        self.asked = self.endpoint = endpoint
        self._internet = internet
        self._receive = receive
        self._transport: asyncio.DatagramTransport | None = None

    def open(self) -> None:
        self._transport = self._internet.open(_Feed(self._receive), self.endpoint, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def send(self, datagram: bytes, endpoint: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(datagram, endpoint)


class NoInterfaces:
    """In the place of the kernel's list: the gateways' addresses are configured."""

    def __init__(self, on_change: Any) -> None:
        pass

    def read(self) -> tuple[()]:
        return ()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class _Feed(asyncio.DatagramProtocol):
    def __init__(self, receive: Any) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receive(data, addr[0], addr[1])


@dataclass(eq=False)
class Router:
    """A household's gateway: its packet side lives on when the daemon restarts."""

    number: int
    lan: Lan
    gateway: Gateway | None = None
    hosts_so_far: int = 0

    @property
    def address(self) -> str:
        return f"10.0.{self.number}.1"

    @property
    def state_file(self) -> Path:
        return Path(f"gateway-{self.number}")


@dataclass(eq=False)
class Host:
    """A machine. `agent` is None while it is off. `uses_datagrams`: its LLQs go over UDP instead of a stream."""

    member: str
    name: str
    mac: str
    router: Router | None
    address: str
    uses_datagrams: bool
    agent: Agent | None = None
    starts: int = 0

    @property
    def label(self) -> str:
        return f"{self.name}.{self.member}"

    @property
    def wire_name(self) -> bytes:
        return from_text(f"{self.name}.{self.member}.{ZONE}")


@dataclass(eq=False)
class World:
    """Everything of one seed. Make it with `inhabited`."""

    seed: int
    rng: random.Random
    internet: Internet
    clock: FakeClock
    observer: Observer
    store: SlowStore
    disk: Disk = field(default_factory=Disk)
    server: Server | None = None
    routers: list[Router] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    keys: dict[str, Key] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    addresses_so_far: int = 0

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def derived(self, what: str) -> random.Random:
        """A random source of its own, so that what one part draws does not move the others."""
        return random.Random(f"{self.seed} {what}")

    # Server

    async def start_server(self) -> None:
        settings = ServerSettings.model_validate(
            {
                "zone": {"name": ZONE},
                "dns": {
                    "listen": [f"{SERVER}:53"],
                    "listen_tls": [f"{SERVER}:853"],
                    "certificate_file": "none",
                    "key_file": "none",
                },
            }
        )
        self.store = self.store.reopened()
        entropy = SeededEntropy(self.rng.getrandbits(32))
        server = Server(settings, clock=self.clock, entropy=entropy, on_change=self._changed)
        await server.start()
        self.server = server
        for zone in server.zones:
            self.observer.loaded(zone.apex, zone.serial)
        self.check_kept()

    async def stop_server(self) -> None:
        server, self.server = self.server, None
        assert server is not None
        await server.stop()
        self.internet.close_endpoints(SERVER)
        self._check_server(server)
        self.observer.server_gone()

    async def kill_server(self) -> None:
        """As `kill -9` does: tasks end where they are, sockets close."""
        server, self.server = self.server, None
        assert server is not None
        for task in server._tasks:
            task.cancel()
        await asyncio.gather(*server._tasks, return_exceptions=True)
        server.push.close()
        self.internet.close_endpoints(SERVER)
        self._check_server(server)
        self.observer.server_gone()

    def _check_server(self, server: Server) -> None:
        for metric in server.metrics.faults.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total") and sample.value:
                    self.observer.note(f"the server had a fault: {sample}")
        if server.failed:
            self.observer.note("a worker of the server failed")

    def _changed(self, change: Change) -> None:
        self.observer.changed(change)
        self.check_kept()

    def holds(self, key: RowKey) -> bool:
        """Whether the server, or the store while it is down, has this record."""
        now = int(self.clock.lease())
        if self.server is None:
            names = [table[key.owner_key] for table in self.store._data.nodes.values() if key.owner_key in table]
            rows = rows_of_nodes(check_node(*name).decode() for name in names)
            return key in rows and (rows[key].expires_at or now + 1) > now
        zone = self.server.zones.enclosing(key.owner_key)
        rrset = zone.rrset(key.owner_key, key.rtype, now) if zone is not None else None
        return rrset is not None and key.rdata_key in canonical_set(key.rtype, rrset.rdatas)

    def check_kept(self) -> None:
        self.observer.check_kept(self.holds)

    # Gateways

    def new_external_address(self) -> str:
        self.addresses_so_far += 1
        return f"203.0.{113 + self.addresses_so_far // 250}.{1 + self.addresses_so_far % 250}"

    async def start_gateway(self, router: Router) -> None:
        config = GatewayConfig.model_validate(
            {
                "natpmp": {"listen": [f"{router.address}:5351"]},
                "external": {"address": router.lan.external_address},
                "state": {"file": router.state_file},
            }
        )
        system = LoopSystem(self.derived(f"gateway {router.number} {self.now}"))
        gateway = Gateway(config, system=system, backend=router.lan)
        await gateway.start()
        router.gateway = gateway

    async def stop_gateway(self, router: Router) -> None:
        """A kill and a clean stop are the same: nothing is told, what is stored stays."""
        gateway, router.gateway = router.gateway, None
        assert gateway is not None
        await gateway.stop()
        if gateway.counters["failures"]:
            self.observer.note(f"gateway {router.number} had failures")

    # Hosts

    def place_host(self, host: Host, router: Router | None) -> None:
        """Give the machine an address of that network, never used before; the old one is dead."""
        self.internet.dark.add(host.address)
        host.router = router
        if router is None:
            self.addresses_so_far += 1
            host.address = f"198.51.100.{self.addresses_so_far}"
        else:
            router.hosts_so_far += 1
            host.address = f"10.0.{router.number}.{9 + router.hosts_so_far}"

    async def start_host(self, host: Host) -> None:
        host.starts += 1
        config = ClientConfig.model_validate(
            {
                "machine": {"name": host.name, "mac": host.mac, "internal_port": INTERNAL_PORT},
                "member": {"domain": f"{host.member}.{ZONE}", "key": key_json(self.keys[host.member])},
                "dns": {"server": f"{SERVER}:53"},
                "timing": {"hello_every": 300.0, "address_check_every": 60.0},
            }
        )
        agent = Agent(config, rng=self.derived(f"{host.label} {host.starts}"))
        await agent.start()
        host.agent = agent

    async def kill_host(self, host: Host) -> None:
        agent, host.agent = host.agent, None
        assert agent is not None
        await agent.abort()
        self._check_agent(host, agent)

    async def stop_host(self, host: Host) -> None:
        agent, host.agent = host.agent, None
        assert agent is not None
        await agent.stop()
        self._check_agent(host, agent)

    def _check_agent(self, host: Host, agent: Agent) -> None:
        if agent.failures:
            self.observer.note(f"{host.label}: {agent.failures} sessions failed")

    def host_of(self, config: ClientConfig) -> Host:
        return next(
            host
            for host in self.hosts
            if host.name == config.machine.name and config.member.domain == f"{host.member}.{ZONE}"
        )

    def collect(self, _: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        """A structlog processor: errors that nobody expects are violations."""
        if event.get("event") not in EXPECTED_ERRORS:
            self.observer.note(f"logged {method}: {event}")
        raise structlog.DropEvent


async def ask_around(world: World) -> None:
    """A stranger who asks for leased records without a key, most of all around the moment at which they lapse.

    What it is answered the observer judges. Until cancelled.
    """
    rng = world.derived("stranger")
    box = world.internet.mailbox(STRANGER)
    try:
        while True:
            await asyncio.sleep(rng.expovariate(1 / STRANGER_PAUSE_SECONDS))
            box.take_all()
            leases = [(key, until - world.clock.lease()) for key, until in world.observer.told_until.items()]
            ending = [(key, left) for key, left in leases if 10 < left < REFRESHED_BEFORE_SECONDS]
            if not leases:
                continue
            key, left = rng.choice(ending or leases)
            query = encode(rng.getrandbits(16), 0, (Question(key.owner_key, key.rtype, Class.IN),))
            for pause in (1.0, 1.0, left - 3.5 if ending else 0.0, 0.8, 0.8, 0.8, 0.8):
                box.send(query, (SERVER, 53))
                await asyncio.sleep(pause)
    finally:
        box.close()


def canonical_set(rtype: int, rdatas: Sequence[bytes]) -> set[bytes]:
    """Rdata as records are told apart."""
    return {canonical(rtype, rdata) for rdata in rdatas}


async def nothing(_: Server) -> None:
    return None


async def _discover(self: watcher.Watcher, way: Way, real: Any, world: World) -> Any:
    """Some machines find Long-Lived Queries over UDP only."""
    address = str(self._settings.source)
    if way is not Way.LLQ_UDP and any(host.uses_datagrams for host in world.hosts if host.address == address):
        return None
    return await real(self, way)


@contextlib.contextmanager
def in_place_of_the_real(world: World) -> Iterator[None]:
    """Put the simulated clock, store and network under the product."""

    async def open_store(*_: Any) -> SlowStore:
        return world.store

    async def discover(self: watcher.Watcher, way: Way) -> Any:
        return await _discover(self, way, real_discover, world)

    def gateway_of(agent: Agent) -> tuple[IPv4Address, int] | None:
        host = world.host_of(agent._config)
        return None if host.router is None else (IPv4Address(host.router.address), 5351)

    real_discover = watcher.Watcher._discover
    replacements: list[tuple[str, Any]] = [
        ("server.app.SqlStore.open", open_store),
        ("server.app.read_tls_context", lambda _: object()),
        ("server.transport.stream.TlsLayer", ClearLayer),
        ("server.app.POLL_SECONDS", 60.0),
        ("server.app.KEY_USE_SECONDS", 600.0),
        ("gateway.lan.Listener", lambda place, receive, *_, **__: SimulatedListener(world.internet, place, receive)),
        ("gateway.app.InterfaceWatch", NoInterfaces),
        ("server.app.Server._listen_control", nothing),  # sockets of the real machine
        ("gateway.saving.StateFile", lambda path: DiskFile(world.disk, path)),
        ("client_stub.clock.unix_seconds", world.clock.unix),
        ("client_stub.nat.announcement_socket", lambda group, interface: Group(str(interface), group[1])),
        ("client_stub.agent.client_context", lambda _: None),
        ("client_stub.agent.current_address", lambda config: IPv4Address(world.host_of(config).address)),
        ("client_stub.agent.Agent._gateway", gateway_of),
        ("client_stub.watcher.Watcher._discover", discover),
    ]
    logs = structlog.get_config()
    with contextlib.ExitStack() as stack:
        for target, replacement in replacements:
            stack.enter_context(patch(target, replacement))
        structlog.configure(
            processors=[world.collect],
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            cache_logger_on_first_use=False,
        )
        try:
            yield
        finally:
            structlog.configure(**logs)


@contextlib.asynccontextmanager
async def inhabited(seed: int, internet: Internet, calm: Faults) -> AsyncIterator[World]:
    """A world in which everything runs: one open and one private member, 2 to 4 hosts each, 1 or 2 gateways."""
    rng = random.Random(seed)
    clock = FakeClock(time=asyncio.get_running_loop().time)
    observer = Observer(SERVER, clock.lease)
    internet.faults = calm
    internet.taps.append(Tap(observer.sent, observer.arrived))
    world = World(seed, rng, internet, clock, observer, SlowStore(random.Random(f"{seed} disk")))
    with in_place_of_the_real(world):
        await world.start_server()
        assert world.server is not None
        tokens = SeededEntropy(seed).octets
        for member, is_private in (("alice", False), ("bob", True)):
            world.keys[member] = await add_member(
                world.store, member, private=is_private, now=int(clock.lease()), token=tokens
            )
        await world.server.reload()
        await asyncio.sleep(1)
        for row in await world.store.load_zones():
            observer.permanent |= {row_key(record) for record in await all_records(world.store, row.id)}
        for number in range(1, 1 + rng.randint(1, 2)):
            router = Router(number, internet.add_lan(number))
            router.lan.set_external_address(world.new_external_address())
            router.lan.refuses = rng.choice((0.0, 0.0, 0.2))
            world.routers.append(router)
            await world.start_gateway(router)
        for member in ("alice", "bob"):
            for index in range(rng.randint(2, 4)):
                mac = "00:22:69:" + ":".join(f"{octet:02X}" for octet in rng.randbytes(3))
                host = Host(member, f"host{index}", mac, None, "0.0.0.0", rng.random() < 0.5)
                world.hosts.append(host)
                world.place_host(host, None if rng.random() < 0.15 else rng.choice(world.routers))
                await world.start_host(host)
        stranger = asyncio.get_running_loop().create_task(ask_around(world), name="stranger")
        try:
            yield world
        finally:
            stranger.cancel()
            await asyncio.gather(stranger, return_exceptions=True)
            for host in world.hosts:
                if host.agent is not None:
                    await world.kill_host(host)
            for router in world.routers:
                if router.gateway is not None:
                    await world.stop_gateway(router)
            if world.server is not None:
                await world.stop_server()
