"""The lab: server, gateway and two members' machines on loopback, in one process, each part as shipped.

alice is an open member, bob a private one; each has two machines behind the one router, whose external address can be
renumbered. Everything persists in a state directory: started again there, ports, keys and data are the same.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from client_stub.agent import Agent, AgentError, Status, TunnelStatus
from client_stub.config import ClientConfig
from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.errors import InstallRefusedError
from gateway.views import AddressEvent, Event, MappingEvent
from homing.certificates import CertificateFiles, ensure_certificates
from homing.key_files import key_json
from homing.lab_ports import LabPorts, lab_ports
from homing.lab_view import LabPicture, MachineRow, MappingRow, TunnelRow
from protocol.name import from_text, to_text
from protocol.tsig import Key
from server.app import Server
from server.config import ServerSettings
from server.keys import ensure_admin_key
from server.members import add_member
from server.zone.model import Change

ZONE: Final = "members.example."
LOOPBACK: Final = "127.0.0.1"
_EXTERNAL: Final = "127.77.0.{}"  # documentation addresses cannot be bound; these stand for the router's outside
_INTERNAL_PORT: Final = 4500  # RFC 6281 §4: UDP 4500 is mapped
READY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Machine:
    """One machine of the lab: its member, name, MAC and internal address."""

    member: str
    name: str
    mac: str
    address: str


MACHINES: Final = (
    _Machine("alice", "mac", "00:22:69:8E:34:2A", "127.0.0.11"),
    _Machine("alice", "mini", "00:22:69:8E:34:2B", "127.0.0.12"),
    _Machine("bob", "desk", "02:42:AC:11:00:02", "127.0.0.21"),
    _Machine("bob", "laptop", "02:42:AC:11:00:03", "127.0.0.22"),
)


class LabError(Exception):
    """The lab cannot do it; the text is one plain line."""


Say = Callable[[str, str], None]
"""Takes an event of the lab: who, and what in words."""


class Lab:
    """Start, look at, disturb, stop."""

    def __init__(self, directory: Path, *, with_clients: bool, say: Say) -> None:
        self._directory = directory
        self._with_clients = with_clients
        self._say = say
        self._ports: LabPorts
        self._certificates: CertificateFiles
        self._keys: dict[str, Key] = {}
        self._agents: dict[str, Agent] = {}
        self._external = 1
        self.server: Server
        self.gateway: Gateway
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Every part answers when it returns; on failure nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._stack.callback(os.close, _sole_user_of(self._directory))
        try:
            self._ports = lab_ports(self._directory / "ports.json")
        except ValueError as error:
            raise LabError(str(error)) from None
        names = [f"ns.{ZONE}".rstrip("."), "localhost"]
        self._certificates = ensure_certificates(self._directory / "tls", names, [LOOPBACK])
        self.server = Server(self._server_settings(), on_change=self._on_change)
        await self.server.start()
        self._stack.push_async_callback(self.server.stop)
        await self._ensure_members()
        self.gateway = Gateway(self._gateway_config(), on_event=self._on_gateway)
        await self.gateway.start()
        self._stack.push_async_callback(self.gateway.stop)
        if self._with_clients:
            for machine in MACHINES:
                await self._start_agent(machine)
            self._stack.push_async_callback(self._stop_agents)

    async def stop(self) -> None:
        """Clients leave (names and mappings are taken back), then the gateway, then the server."""
        await self._stack.aclose()

    def _server_settings(self) -> ServerSettings:
        return ServerSettings.model_validate(
            {
                "database": {"url": f"sqlite+aiosqlite:///{quote(str(self.database))}"},
                "zone": {"name": ZONE},
                "dns": {
                    "listen": [f"{LOOPBACK}:{self._ports.dns}"],
                    "listen_tls": [f"{LOOPBACK}:{self._ports.tls}"],
                    "certificate_file": self._certificates.certificate_file,
                    "key_file": self._certificates.key_file,
                },
                "metrics": {"listen": f"{LOOPBACK}:{self._ports.metrics}"},
            }
        )

    def _gateway_config(self) -> GatewayConfig:
        return GatewayConfig.model_validate(
            {
                "natpmp": {
                    "listen": [f"{LOOPBACK}:{self._ports.natpmp}"],
                    "announce_to": f"224.0.0.1:{self._ports.announcements}",
                },
                "external": {"address": self.external_address},
                "state": {"file": self._directory / "gateway.sqlite"},
            }
        )

    def _client_config(self, machine: _Machine) -> ClientConfig:
        key = self._keys[machine.member]
        return ClientConfig.model_validate(
            {
                "machine": {
                    "name": machine.name,
                    "mac": machine.mac,
                    "internal_address": machine.address,
                    "internal_port": _INTERNAL_PORT,
                },
                "member": {"domain": f"{machine.member}.{ZONE}", "key": key_json(key)},
                "dns": {
                    "server": f"{LOOPBACK}:{self._ports.dns}",
                    "ca_file": self._certificates.ca_file,
                },
                "nat": {
                    "mode": "natpmp",
                    "gateway": f"{LOOPBACK}:{self._ports.natpmp}",
                    "announcements": f"224.0.0.1:{self._ports.announcements}",
                },
                # one household on one machine: no crowd to spread out over seconds
                "timing": {"registration_delay_max": 0.2, "loss_delay_max": 0.2, "hello_every": 1.0},
            }
        )

    async def _ensure_members(self) -> None:
        store = self.server.store
        now = int(time.time())
        self._keys["admin"] = await ensure_admin_key(store, now=now)
        members = {member.name for member in await store.members()}
        for name, private in (("alice", False), ("bob", True)):
            if name not in members:
                await add_member(store, name, private=private, now=now)
        await self.server.reload()
        found = {row.key.name: row.key for row in await store.keys()}
        for name in ("alice", "bob"):
            self._keys[name] = found[from_text(f"{name}.{ZONE}")]

    async def _start_agent(self, machine: _Machine) -> None:
        label = f"{machine.name}.{machine.member}"
        agent = Agent(self._client_config(machine), on_event=lambda text, **fields: self._on_agent(label, text, fields))
        self._agents[label] = agent
        await agent.start()

    async def _stop_agents(self) -> None:
        await asyncio.gather(*(agent.stop() for agent in self._agents.values()))
        self._agents.clear()

    # -- what a person or a script may do ----------------------------------------------------------

    async def wait_until_ready(self) -> bool:
        """Until every client has published and sees its member's other machine; False when it takes too long."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not all(_is_settled(agent.status()) for agent in self._agents.values()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return False
        return True

    async def renumber(self) -> str:
        """Give the router another external address. `LabError` when the system does not have it."""
        self._external = self._external % 250 + 1
        try:
            await self.gateway.set_external_address(self.external_address)
        except InstallRefusedError as error:
            raise LabError(f"cannot renumber to {self.external_address}: {error}") from None
        return self.external_address

    async def restart_client(self) -> str:
        """Kill one client as a crash would, and start it again. `LabError` when there is none or it does not start."""
        if not self._agents:
            raise LabError("there are no clients to kill")
        label, agent = next(iter(self._agents.items()))
        self._say(label, "killed")
        await agent.abort()
        del self._agents[label]
        machine = next(machine for machine in MACHINES if f"{machine.name}.{machine.member}" == label)
        try:
            await self._start_agent(machine)
        except AgentError as error:
            raise LabError(f"{label} does not start: {error}") from None
        self._say(label, "started again")
        return label

    # -- what it looks like ------------------------------------------------------------------------

    @property
    def database(self) -> Path:
        return self._directory.resolve() / "homing.db"

    @property
    def external_address(self) -> str:
        return _EXTERNAL.format(self._external)

    def description(self) -> dict[str, Any]:
        """The contract's JSON object (DESIGN §6): ports, keys, files."""
        natpmp = self.gateway.natpmp_addresses[0]
        return {
            "zone": ZONE,
            "dns": {"address": LOOPBACK, "udp": self._ports.dns, "tcp": self._ports.dns, "tls": self._ports.tls},
            "ca_file": str(self._certificates.ca_file),
            "keys": {name: key_json(key) for name, key in self._keys.items()},
            "natpmp": {"address": natpmp.host, "port": natpmp.port},
            "external_address": self.external_address,
            "database": str(self.database),
            "metrics": f"http://{LOOPBACK}:{self._ports.metrics}/metrics",
        }

    def picture(self) -> LabPicture:
        machines: list[MachineRow] = []
        tunnels: list[TunnelRow] = []
        for label, agent in self._agents.items():
            status = agent.status()
            machines.append(
                MachineRow(
                    name=label,
                    is_private=label.endswith(".bob"),
                    state="published" if status.lease_seconds_left is not None else status.nat,
                    inner=status.inner or "-",
                    outer=status.external or "-",
                    lease_left=status.lease_seconds_left,
                    subscriptions=len(status.subscriptions),
                )
            )
            tunnels.extend(
                TunnelRow(label, row.peer.removesuffix(f".{ZONE}"), row.inner, row.outer or "-", _reach(row))
                for row in status.tunnels
            )
        mappings = [
            MappingRow(
                view.transport,
                f"{view.external_address}:{view.external_port}",
                str(view.internal),
                view.remaining_seconds,
            )
            for view in self.gateway.mappings()
        ]
        dns = f"{LOOPBACK}:{self._ports.dns} (tls {self._ports.tls})"
        return LabPicture(
            title=f"homing lab   zone {ZONE}   dns {dns}   router {self.external_address}",
            machines=machines,
            tunnels=tunnels,
            mappings=mappings,
            serials=[(to_text(zone.apex), zone.serial) for zone in self.server.zones],
            leases=len(self.server.leases),
            subscriptions=self.server.push.subscriptions,
        )

    def _on_change(self, change: Change) -> None:
        if change.actor.kind == "operator":
            return
        who = change.actor.key or change.actor.kind
        count = f"+{len(change.added) - 1} -{len(change.removed) - 1}"
        self._say("server", f"{to_text(change.apex)} serial {change.serial_to}: {count} by {who}")

    def _on_gateway(self, event: Event) -> None:
        match event:
            case MappingEvent(change=change, mapping=view):
                self._say("gateway", f"mapping {change}: {view.transport} {view.external_port} -> {view.internal}")
            case AddressEvent(external_address=address):
                self._say("gateway", f"external address is {address}, announcing")

    def _on_agent(self, label: str, text: str, fields: dict[str, Any]) -> None:
        shown = " ".join(f"{name}={value}" for name, value in fields.items() if value not in (None, ""))
        self._say(label, f"{text} {shown}".rstrip())


def _sole_user_of(directory: Path) -> int:
    """Lock a state directory until the descriptor is closed; `LabError` when another lab has it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LabError(f"{directory} is in use by another lab") from None
    return descriptor


def _is_settled(status: Status) -> bool:
    """Whether a machine is published and has heard its member's other machine answer."""
    return status.lease_seconds_left is not None and any(row.rtt_ms is not None for row in status.tunnels)


def _reach(row: TunnelStatus) -> str:
    if row.rtt_ms is not None:
        return f"{row.rtt_ms:.1f} ms"
    return "silent" if row.is_silent else row.state
