"""A datagram network in memory: endpoints by name and port, loss, duplication, reordering and latency from a seed.

It carries `create_datagram_endpoint` of a `SimLoop`, so that real drivers talk over it; scripted peers have mailboxes.
Without faults it is perfect: each datagram arrives once, after the same time, in the order of sending.
"""

import asyncio
import errno
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from tests.support.simloop import Address

MAX_DATAGRAM_OCTETS: Final = 65507
FIRST_EPHEMERAL_PORT: Final = 49152
KEPT_PACKETS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may happen to a datagram: probabilities of 0 to 1, times in seconds.

    `latency` is its shortest and longest way. A reordered one takes up to `late_seconds` more; others keep their order.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    latency: tuple[float, float] = (0.01, 0.01)
    late_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not all(0.0 <= chance <= 1.0 for chance in (self.loss, self.duplicate, self.reorder)):
            raise ValueError("a probability lies between 0 and 1")
        if not 0.0 <= self.latency[0] <= self.latency[1] or self.late_seconds < 0.0:
            raise ValueError("times are not negative, and the longest is not below the shortest")


PERFECT: Final = Faults()


@dataclass(frozen=True, slots=True)
class Packet:
    """A datagram as it was sent."""

    sent_at: float
    source: Address
    destination: Address
    data: bytes


@dataclass(slots=True)
class Counters:
    """What became of all datagrams so far. `sent` = `lost` + those on their way or arrived, copies not counted."""

    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    delivered: int = 0
    refused: int = 0


@dataclass(slots=True)
class Wire:
    """The network. `trace` keeps what was sent; a packet that one of `drops` claims is lost, and
    later rules don't see it.

    `seed` decides every fault: the same scenario with the same seed is the same to the last packet.
    """

    seed: int = 1
    faults: Faults = PERFECT
    drops: list[Callable[[Packet], bool]] = field(default_factory=list)
    trace: deque[Packet] = field(default_factory=lambda: deque(maxlen=KEPT_PACKETS))
    counters: Counters = field(default_factory=Counters)
    _random: random.Random = field(init=False)
    _endpoints: "dict[Address, WireTransport]" = field(default_factory=dict)
    _due: list[tuple[float, int, Packet]] = field(default_factory=list)
    _order: "count[int]" = field(default_factory=count)
    _last_arrival: dict[tuple[Address, Address], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def open(
        self, protocol: asyncio.DatagramProtocol, local: Address | None, remote: Address | None
    ) -> "WireTransport":
        """Join the network as `local` (port 0: any free one), hearing only `remote` if that is given."""
        if local is None:
            raise OSError(errno.EADDRNOTAVAIL, "an endpoint here needs a local address")
        host, port = local[0], local[1]
        if port == 0:
            port = next(free for free in count(FIRST_EPHEMERAL_PORT) if (host, free) not in self._endpoints)
        if port > 65535 or (host, port) in self._endpoints:
            raise OSError(errno.EADDRINUSE, f"{host}:{port} is taken")
        transport = WireTransport(self, protocol, (host, port), remote)
        self._endpoints[host, port] = transport
        asyncio.get_running_loop().call_soon(protocol.connection_made, transport)
        return transport

    def mailbox(self, host: str, port: int = 0, remote: Address | None = None) -> "Mailbox":
        """An endpoint for a scripted peer."""
        box = Mailbox()
        box.transport = self.open(box, (host, port), remote)
        return box

    def send(self, source: Address, destination: Address, data: bytes) -> None:
        """Put a datagram on the wire, also under a name nobody has (a forged source)."""
        loop = asyncio.get_running_loop()
        packet = Packet(loop.time(), source, destination, data)
        self.trace.append(packet)
        self.counters.sent += 1
        # All dice are thrown for every packet, so that a drop rule does not change the fate of later ones.
        lost, doubled, late, *ways = (self._random.random() for _ in range(7))
        if any(rule(packet) for rule in self.drops) or lost < self.faults.loss:
            self.counters.lost += 1
            return
        is_late = late < self.faults.reorder
        self.counters.reordered += is_late
        self._launch(packet, ways[0], ways[1] if is_late else None)
        if doubled < self.faults.duplicate:
            self.counters.duplicated += 1
            self._launch(packet, ways[2], ways[3])

    def _launch(self, packet: Packet, way: float, lateness: float | None) -> None:
        """Let a packet arrive; with a lateness (0 to 1) it may be overtaken."""
        shortest, longest = self.faults.latency
        arrival = packet.sent_at + shortest + way * (longest - shortest)
        path = packet.source, packet.destination
        if lateness is None:
            arrival = self._last_arrival[path] = max(arrival, self._last_arrival.get(path, 0.0))
        else:
            arrival += lateness * self.faults.late_seconds
        # asyncio's timers of one instant fire in any order, so the order is kept here.
        heapq.heappush(self._due, (arrival, next(self._order), packet))
        asyncio.get_running_loop().call_at(arrival, self._arrive, arrival)

    def _arrive(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            packet = heapq.heappop(self._due)[2]
            endpoint = self._endpoints.get(packet.destination)
            if endpoint is not None and endpoint.hears(packet.source):
                self.counters.delivered += 1
                endpoint.protocol.datagram_received(packet.data, packet.source)
                continue
            self.counters.refused += 1
            sender = self._endpoints.get(packet.source)
            if sender is not None and sender.remote == packet.destination:
                sender.protocol.error_received(ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there"))

    def leave(self, transport: "WireTransport") -> None:
        """Take an endpoint off the network; what is on its way to it is refused."""
        if self._endpoints.get(transport.local) is transport:
            del self._endpoints[transport.local]


class WireTransport(asyncio.DatagramTransport):
    """What a protocol on the wire gets in place of a socket."""

    def __init__(self, wire: Wire, protocol: asyncio.DatagramProtocol, local: Address, remote: Address | None) -> None:
        super().__init__({"sockname": local, "peername": remote})
        self.protocol = protocol
        self.local = local
        self.remote = remote
        self._wire = wire
        self._is_closing = False

    def hears(self, source: Address) -> bool:
        return self.remote is None or self.remote == source

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send to `addr`, or to the peer of a connected endpoint; `ValueError` without either or with the wrong one."""
        if self._is_closing:
            return
        if self.remote is not None and addr not in (None, self.remote):
            raise ValueError(f"connected to {self.remote}, not to {addr}")
        destination = self.remote or addr
        if destination is None:
            raise ValueError("no destination")
        if len(data) > MAX_DATAGRAM_OCTETS:
            self.protocol.error_received(OSError(errno.EMSGSIZE, "message too long"))
            return
        self._wire.send(self.local, (destination[0], destination[1]), bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._wire.leave(self)
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol


class Mailbox(asyncio.DatagramProtocol):
    """A scripted peer: keeps what arrives until the script asks for it. `errors` are the sends that were refused."""

    def __init__(self) -> None:
        self.transport: WireTransport | None = None
        self.errors: list[Exception] = []
        self._received: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue()

    @property
    def address(self) -> Address:
        assert self.transport is not None
        return self.transport.local

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._received.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def send(self, data: bytes, to: Address | None = None) -> None:
        assert self.transport is not None
        self.transport.sendto(data, to)

    async def receive(self) -> tuple[bytes, Address]:
        """The next datagram and its source."""
        return await self._received.get()

    def take_all(self) -> list[bytes]:
        """Everything that has arrived and was not received yet."""
        return [self._received.get_nowait()[0] for _ in range(self._received.qsize())]

    def close(self) -> None:
        assert self.transport is not None
        self.transport.close()
