"""The network between machines and server: loss in bursts, duplicates, late and overtaking datagrams."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from tests.sim.fleet.loop import SERVER, FleetLoop
from tests.support.simloop import Address

LATE_SECONDS: Final = 3.0  # a datagram is never under way for longer


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
    """`machines` hear by address what is for them; `arrives` is told of each datagram that reaches the server."""

    def __init__(self, rng: random.Random, loop: FleetLoop) -> None:
        self.rng = rng
        self.loss = self.duplicate = self.late = 0.0
        self.machines: dict[Address, Callable[[bytes, float], None]] = {}
        self.arrives: Callable[[Address, bytes], None] = lambda source, data: None
        self.sent = 0
        self._loop = loop
        self._protocol: asyncio.DatagramProtocol | None = None

    def open(self, protocol: asyncio.DatagramProtocol, local: Any, remote: Any) -> asyncio.DatagramTransport:
        socket = _Socket(self, SERVER)
        self._protocol = protocol
        self._loop.call_soon(protocol.connection_made, socket)
        return socket

    def unplug(self) -> None:
        self._protocol = None

    def to_server(self, source: Address, data: bytes) -> None:
        self._put(self._reach_server, source, data)

    def from_server(self, data: bytes, destination: Address) -> None:
        self._put(self._reach_machine, destination, data, self._loop.time())

    def _put(self, deliver: Callable[..., None], *what: Any) -> None:
        chance = self.rng.random
        for _ in range(1 + (chance() < self.duplicate)):
            self.sent += 1
            if chance() >= self.loss:
                delay = 0.005 + 0.075 * chance()
                if chance() < self.late:
                    delay += 0.1 + 1.9 * chance()
                self._loop.after(delay, deliver, *what)

    def _reach_server(self, source: Address, data: bytes) -> None:
        if self._protocol is not None:
            self.arrives(source, data)
            self._protocol.datagram_received(data, source)

    def _reach_machine(self, destination: Address, data: bytes, sent_at: float) -> None:
        machine = self.machines.get(destination)
        if machine is not None:
            machine(data, sent_at)
