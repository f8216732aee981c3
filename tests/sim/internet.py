"""The world's packets: local networks behind NATs, public addresses, datagrams and streams, all in virtual time.

    host 10.0.1.10 --- gateway 10.0.1.1 | external address --- the Internet --- server 192.0.2.53

Datagrams are those of `tests.support.wire`, with its faults; a NAT rewrites their sources and lets in what a flow or a
mapping covers. Streams deliver in order and late where datagrams get lost; when their way is gone they hang, as TCP
does, until somebody writes and nobody acknowledges. Real drivers run on it through `SimulatedLoop`.
"""

import asyncio
import errno
import heapq
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, NamedTuple, TypeVar

from gateway.errors import InstallRefusedError
from gateway.mappings import Filter, Install, Transport
from tests.support.simloop import Address, SimLoop
from tests.support.wire import Packet, Wire

T = TypeVar("T")

ALL_HOSTS: Final = "224.0.0.1"
ANNOUNCEMENT_PORT: Final = 5350
UNACKED_SECONDS: Final = 60.0
"""A stream whose octets nobody acknowledges for so long is broken for the one who wrote them."""
FIRST_FLOW_PORT: Final = 20000


def lan_number(address: str) -> int | None:
    """The local network of a private address; None for a public one."""
    return int(address.split(".")[2]) if address.startswith("10.0.") else None


class Lan:
    """A gateway's packet side: flows from inside, the mappings it was told to install. Keeps `gateway.backend.Backend`.

    `external_address` None or `is_connected` False: nothing goes in or out.
    """

    def __init__(self, internet: "Internet", number: int) -> None:
        self.number = number
        self.counters: Counter[str] = Counter()
        self.opens_pinholes = False
        self.is_connected = True
        self.refuses = 0.0
        self.external_address: str | None = None
        self.installed: dict[int, Install] = {}
        self._internet = internet
        self._by_port: dict[tuple[Transport, int], Install] = {}
        self._flows: dict[Address, int] = {}
        self._flow_ports: dict[int, Address] = {}
        self._next_flow = FIRST_FLOW_PORT

    def set_external_address(self, address: str | None) -> None:
        """The provider's line has another address: every flow is gone."""
        self._internet.externals.pop(self.external_address or "", None)
        self.external_address = address
        if address is not None:
            self._internet.externals[address] = self
        self.forget_flows()

    def forget_flows(self) -> None:
        self._flows.clear()
        self._flow_ports.clear()

    def outbound(self, source: Address) -> Address | None:
        """The public source of a datagram from inside; None when there is no way out."""
        if self.external_address is None or not self.is_connected:
            return None
        for (transport, port), install in self._by_port.items():
            key = install.mapping.key
            if transport is Transport.UDP and (key.host, key.port) == source:
                return self.external_address, port
        port = self._flows.get(source, 0)
        if not port:
            self._next_flow += 1
            port = self._flows[source] = self._next_flow
            self._flow_ports[port] = source
        return self.external_address, port

    def inbound(self, port: int) -> Address | None:
        """Where a datagram to the external address goes."""
        if not self.is_connected:
            return None
        install = self._by_port.get((Transport.UDP, port))
        if install is not None and install.external_address == self.external_address:
            return install.mapping.key.host, install.mapping.key.port
        return self._flow_ports.get(port)

    # The back end of the gateway

    opens_pinholes = False

    async def start(self) -> None:
        """A new gateway process begins with nothing installed."""

    async def stop(self) -> None:
        self.installed.clear()
        self._by_port.clear()

    def check_address(self, external_address: str) -> None:
        pass

    def install(self, install: Install) -> None:
        place = install.mapping.key.transport, install.mapping.external_port
        assert place not in self._by_port, f"{place} is installed twice"
        if install.mapping.external_port in self._flow_ports or self._internet.chance(self.refuses):
            raise InstallRefusedError("port in use")
        self.installed[install.number] = install
        self._by_port[place] = install

    def hold(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def restrict(self, number: int, filters: tuple[Filter, ...]) -> None:
        assert not filters, "nobody asks for filters here"

    def remove(self, number: int) -> None:
        install = self.installed.pop(number, None)
        if install is not None:
            del self._by_port[install.mapping.key.transport, install.mapping.external_port]


class Tap(NamedTuple):
    """Who listens in: every datagram and stream message to and from the server, as it is sent and as it arrives."""

    sent: Callable[[Address, Address, bytes, object], None]
    arrived: Callable[[Address, Address, bytes, object], None]


class Internet(Wire):
    """`Wire` with gateways, multicast on the LAN, streams and hosts without power."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.lans: dict[int, Lan] = {}
        self.externals: dict[str, Lan] = {}
        self.dark: set[str] = set()
        """Addresses whose machine lost its power or cable."""
        self.listeners: dict[Address, Callable[[], asyncio.Protocol]] = {}
        self.streams: list[Stream] = []
        self.taps: list[Tap] = []
        self._stream_ports = count(32768)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def add_lan(self, number: int) -> Lan:
        lan = self.lans[number] = Lan(self, number)
        return lan

    # Datagrams

    def send(self, source: Address, destination: Address, data: bytes) -> None:
        if source[0] in self.dark:
            return
        number = lan_number(source[0])
        if destination[0] == ALL_HOSTS:
            for host, port in list(self._endpoints):
                if port == destination[1] and lan_number(host) == number:
                    super().send(source, (host, port), data)
            return
        if number is not None and lan_number(destination[0]) is None:
            public = self.lans[number].outbound(source)
            if public is None:
                return
            source = public
        elif lan_number(destination[0]) not in (None, number):
            return  # a private address leads nowhere from outside
        for tap in self.taps:
            tap.sent(source, destination, data, None)
        super().send(source, destination, data)

    def inject(self, source: Address, destination: Address, data: bytes) -> None:
        """A forged datagram on the public side of every NAT, unseen by taps."""
        super().send(source, destination, data)

    def _inside(self, address: Address) -> Address | None:
        lan = self.externals.get(address[0])
        return address if lan is None else lan.inbound(address[1])

    def _arrive(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            packet = heapq.heappop(self._due)[2]
            target = self._inside(packet.destination)
            if target is None or target[0] in self.dark:
                continue
            endpoint = self._endpoints.get(target)
            if endpoint is None or not endpoint.hears(packet.source):
                self._refuse(packet)
                continue
            self.counters.delivered += 1
            for tap in self.taps:
                tap.arrived(packet.source, packet.destination, packet.data, None)
            endpoint.protocol.datagram_received(packet.data, packet.source)

    def _refuse(self, packet: Packet) -> None:
        """ICMP tells a connected socket that nobody listens."""
        self.counters.refused += 1
        origin = self._inside(packet.source)
        sender = self._endpoints.get(origin) if origin is not None else None
        if sender is not None and sender.remote == packet.destination:
            sender.protocol.error_received(ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there"))

    def close_endpoints(self, host: str) -> None:
        """The machine's sockets are gone, its processes killed; streams are reset."""
        for transport in [item for item in self._endpoints.values() if item.local[0] == host]:
            transport.abort()
        self.listeners = {place: factory for place, factory in self.listeners.items() if place[0] != host}
        for stream in list(self.streams):
            for end in stream.ends:
                if end.local[0] == host:
                    end.abort()

    # Streams

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], source: str, destination: Address
    ) -> "tuple[StreamEnd, asyncio.Protocol]":
        """Three-way handshake and TLS: as many round trips, each late when its packets get lost."""
        stream = Stream(self, source, destination)
        for _ in range(3):
            await asyncio.sleep(self.stream_delay() * 2)
            wait = 1.0
            while not stream.is_passable():
                await asyncio.sleep(wait)
                wait *= 2
                stream = Stream(self, source, destination)
        accept = self.listeners.get(destination)
        if accept is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there")
        ours, theirs = factory(), accept()
        stream.open(ours, theirs)
        return stream.ends[0], ours

    def stream_delay(self) -> float:
        """Seconds one way; a lost segment is sent again after a while."""
        shortest, longest = self.faults.latency
        delay = shortest + self._random.random() * (longest - shortest)
        again = 0.2
        while again < 10 and self._random.random() < self.faults.loss:
            delay += again
            again *= 2
        return delay

    def new_stream_port(self) -> int:
        return next(self._stream_ports)


class Stream:
    """One connection from a host to the server."""

    def __init__(self, internet: Internet, source: str, destination: Address) -> None:
        self.internet = internet
        number = lan_number(source)
        self._lan = None if number is None else internet.lans[number]
        self._source = source
        self._public = source if self._lan is None else self._lan.external_address
        self._destination = destination
        self.ends: tuple[StreamEnd, ...] = ()

    def is_passable(self) -> bool:
        """Whether segments get through: the client's machine and line are as they were at the handshake."""
        if self._source in self.internet.dark or self._public is None:
            return False
        lan = self._lan
        return lan is None or (lan.is_connected and lan.external_address == self._public)

    def open(self, ours: asyncio.Protocol, theirs: asyncio.Protocol) -> None:
        assert self._public is not None
        port = self.internet.new_stream_port()
        inner, outer = (self._source, port), (self._public, port)
        here = StreamEnd(self, ours, inner, self._destination)
        there = StreamEnd(self, theirs, self._destination, outer)
        here.other, there.other = there, here
        self.ends = here, there
        self.internet.streams.append(self)
        theirs.connection_made(there)
        ours.connection_made(here)

    def forget(self) -> None:
        """Both ends are closed."""
        if self in self.internet.streams:
            self.internet.streams.remove(self)


@dataclass(slots=True)
class _Segment:
    at: float
    data: bytes = b""
    is_end: bool = False
    is_reset: bool = False
    stuck_since: float | None = None
    wait: float = 1.0


class StreamEnd(asyncio.Transport):
    """One end of a stream: what a protocol gets in place of a TCP or TLS transport."""

    def __init__(self, stream: Stream, protocol: asyncio.Protocol, local: Address, remote: Address) -> None:
        super().__init__({"peername": remote, "sockname": local})
        self.other: StreamEnd
        self.local = local
        self.remote = remote
        self._stream = stream
        self._internet = stream.internet
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Segment] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._is_lost = False
        self._is_paused = False
        self._held: deque[_Segment] = deque()

    # What the protocol on this end calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or not data:
            return
        octets = bytes(data)
        for tap in self._internet.taps:
            tap.sent(self.local, self.remote, octets[2:], self._stream)
        self._enqueue(_Segment(0.0, octets))

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._enqueue(_Segment(0.0, is_end=True))
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._queue.clear()
            self._enqueue(_Segment(0.0, is_reset=True))
            self._loop.call_soon(self._lose, None)

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return sum(len(segment.data) for segment in self._queue)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        while self._held and not self._is_paused:
            self._take(self._held.popleft())

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    # The way to the other end

    def _enqueue(self, segment: _Segment) -> None:
        latest = self._queue[-1].at if self._queue else 0.0
        segment.at = max(latest, self._loop.time() + self._internet.stream_delay())
        self._queue.append(segment)
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._queue:
            self._timer = self._loop.call_at(max(self._queue[0].at, self._loop.time()), self._move)

    def _move(self) -> None:
        self._timer = None
        if not self._queue:
            return
        segment = self._queue[0]
        now = self._loop.time()
        if self._stream.is_passable():
            self._queue.popleft()
            self.other.receive(segment)
        elif segment.stuck_since is None or now - segment.stuck_since < UNACKED_SECONDS:
            segment.stuck_since = now if segment.stuck_since is None else segment.stuck_since
            segment.at = now + segment.wait
            segment.wait *= 2
        else:
            self._queue.clear()
            self._is_closing = True
            self._lose(TimeoutError(errno.ETIMEDOUT, "nobody acknowledges"))
            return
        self._arm()

    def receive(self, segment: _Segment) -> None:
        """Something came from the other end. A closed end answers data with a reset."""
        if self._is_closing:
            if segment.data:
                self.other.receive(_Segment(0.0, is_reset=True))
        elif self._is_paused and not segment.is_reset:
            self._held.append(segment)
        else:
            self._take(segment)

    def _take(self, segment: _Segment) -> None:
        if segment.is_reset:
            self._is_closing = True
            self._queue.clear()
            self._lose(ConnectionResetError(errno.ECONNRESET, "reset by peer"))
        elif segment.is_end:
            if not self._protocol.eof_received():
                self.close()
        else:
            for tap in self._internet.taps:
                tap.arrived(self.remote, self.local, segment.data[2:], self._stream)
            self._protocol.data_received(segment.data)

    def _lose(self, error: Exception | None) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._held.clear()
        self._protocol.connection_lost(error)
        if self.other._is_lost:
            self._stream.forget()


class _Socket(NamedTuple):
    name: Address

    def getsockname(self) -> Address:
        return self.name


class StreamListener:
    """What `create_server` returns."""

    def __init__(self, internet: Internet, place: Address) -> None:
        self._internet = internet
        self._place = place
        self.sockets = (_Socket(place),)

    def close(self) -> None:
        self._internet.listeners.pop(self._place, None)


class ClearLayer:
    """In place of TLS on the server's end: octets as they are."""

    is_ready = True
    has_ended = False

    def __init__(self, context: object) -> None:
        pass

    def receive(self, data: bytes) -> bytes:
        return data

    def send(self, data: bytes) -> bytes:
        return data

    def take(self) -> bytes:
        return b""

    close = take

    def facts(self) -> tuple[str, str]:
        return "TLSv1.3", "dot"


@dataclass(frozen=True, slots=True)
class Group:
    """Stands for a socket that joined the announcements' multicast group on the interface with this address."""

    interface: str
    port: int = ANNOUNCEMENT_PORT


class SimulatedLoop(SimLoop):
    """A virtual loop whose datagrams and streams go over one `Internet`; threads' work is done at once.

    Work for a thread takes no virtual time: it can neither be late nor overtaken.
    """

    def __init__(self, internet: Internet, limit_seconds: float) -> None:
        super().__init__(internet, limit_seconds)
        self.internet = internet

    async def create_datagram_endpoint(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        group = options.pop("sock", None)
        if isinstance(group, Group):
            options["local_addr"] = (group.interface, group.port)
        return await super().create_datagram_endpoint(*arguments, **options)

    async def create_connection(
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, **options: Any
    ) -> Any:
        return await self.internet.connect(protocol_factory, options["local_addr"][0], (host, port))

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, **_: Any
    ) -> Any:
        if (host, port) in self.internet.listeners:
            raise OSError(errno.EADDRINUSE, f"{host}:{port} is taken")
        self.internet.listeners[host, port] = protocol_factory
        return StreamListener(self.internet, (host, port))

    def run_in_executor(self, _: Any, work: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        done = self.create_future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done

    def timers(self) -> list[asyncio.TimerHandle]:
        """Timers that would still fire."""
        return [handle for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


def run(scenario: Coroutine[Any, Any, T], internet: Internet, *, limit_seconds: float) -> T:
    """Run to the end; raises `ExceptionGroup` for exceptions that nobody took, and `AssertionError` for leaks."""
    loop = SimulatedLoop(internet, limit_seconds)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(_without_leaks(scenario, loop))
    if loop.failures:
        raise ExceptionGroup("exceptions that nobody took", loop.failures)
    return result


async def _without_leaks(scenario: Coroutine[Any, Any, T], loop: SimulatedLoop) -> T:
    result = await scenario
    await asyncio.sleep(2 * UNACKED_SECONDS)  # what is on its way arrives
    tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not tasks, f"tasks left: {tasks}"
    assert not loop.timers(), f"timers left: {loop.timers()}"
    assert not loop.internet.streams, "streams left open"
    return result
