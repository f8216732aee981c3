"""Honest clients of a flooded server: what they ask, once each, and how often they were answered."""

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.constants import RD, Class, Opcode, Type
from protocol.edns import Opt, UpdateLease
from protocol.message import Question, encode
from protocol.name import from_text
from protocol.tsig import Key, sign

ZONE: Final = "members.example."
HOSTS: Final = 500


@dataclass(frozen=True)
class Place:
    """Where the server is, and what an honest client needs."""

    port: int
    tls_port: int
    metrics_port: int
    ca_file: str
    key: Key


def query(dice: random.Random, rtype: str, *, lost: bool = False) -> bytes:
    label = f"lost{dice.getrandbits(32):08x}" if lost else f"host{dice.randrange(HOSTS)}"
    cookie = ((10, dice.randbytes(dice.choice((8, 24)))),) if dice.random() < 0.2 else ()
    question = Question(from_text(f"{label}.alice.{ZONE}"), Type[rtype], Class.IN)
    return encode(dice.getrandbits(16), RD, [question], opt=Opt(1232, options=cookie))


def update(dice: random.Random, key: Key) -> bytes:
    owner = from_text(f"host{dice.randrange(HOSTS)}.alice.{ZONE}")
    record = (owner, Type.A, Class.IN, 60, dice.randbytes(4))
    gone = (owner, Type.A, Class.ANY, 0, b"")
    wire = encode(
        dice.getrandbits(16),
        Opcode.UPDATE << 11,
        [Question(from_text(ZONE), Type.SOA, Class.IN)],
        authority=[gone, record],
        opt=Opt(1232, options=(UpdateLease(7200).encode(),)),
    )
    return sign(wire, key, now=int(time.time()))[0]


def framed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


@dataclass
class Tally:
    """How many were sent and answered, and how long answers took."""

    sent: int = 0
    answered: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.answered / self.sent if self.sent else 0.0

    def worst(self, share: float) -> float:
        """Milliseconds within which this share of the answers came."""
        return 1000 * sorted(self.seconds)[int(len(self.seconds) * share) - 1] if self.seconds else 0.0


class Datagrams(asyncio.DatagramProtocol):
    """Answers by message ID."""

    def __init__(self) -> None:
        self.waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        future = self.waiting.pop(data[:2], None)
        if future is not None and not future.done():
            future.set_result(data)


async def over_udp(client: Datagrams, wire: bytes) -> bytes:
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    client.waiting[wire[:2]] = future
    client.transport.sendto(wire)
    return await future


async def over_stream(port: int, source: str, wire: bytes, context: ssl.SSLContext | None) -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="127.0.0.1" if context else None, local_addr=(source, 0)
    )
    try:
        writer.write(framed(wire))
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    finally:
        writer.close()


async def honest(place: Place, seconds: float, patience: float, tallies: dict[str, Tally]) -> None:
    """One household: 50 questions a second over UDP, some over streams, and two updates a second."""
    loop = asyncio.get_running_loop()
    dice = random.Random(5)
    context = ssl.create_default_context(cafile=place.ca_file)
    _, client = await loop.create_datagram_endpoint(
        Datagrams, remote_addr=("127.0.0.1", place.port), local_addr=("127.200.1.1", 0)
    )
    ends = loop.time() + seconds

    async def one(kind: str, ask: Callable[[], Any], is_good: Callable[[bytes], bool]) -> None:
        tally = tallies[kind]
        tally.sent += 1
        began = loop.time()
        try:
            async with asyncio.timeout(patience):
                reply = await ask()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return
        if is_good(reply):
            tally.answered += 1
            tally.seconds.append(loop.time() - began)

    def is_answer(reply: bytes) -> bool:
        return reply[2] & 0x82 == 0x80 and reply[3] & 0xF == 0 and reply[6:8] != b"\0\0"

    def is_done(reply: bytes) -> bool:
        return reply[3] & 0xF == 0

    async def at_rate(kind: str, rate: float, ask: Callable[[], Any], is_good: Callable[[bytes], bool]) -> None:
        async with asyncio.TaskGroup() as group:
            while loop.time() < ends:
                group.create_task(one(kind, ask, is_good))
                await asyncio.sleep(1 / rate)

    source = "127.200.1.1"
    async with asyncio.TaskGroup() as group:
        group.create_task(at_rate("UDP", 50, lambda: over_udp(client, query(dice, "A")), is_answer))
        group.create_task(at_rate("TCP", 5, lambda: over_stream(place.port, source, query(dice, "A"), None), is_answer))
        group.create_task(
            at_rate("TLS", 3, lambda: over_stream(place.tls_port, source, query(dice, "A"), context), is_answer)
        )
        group.create_task(at_rate("update", 2, lambda: over_udp(client, update(dice, place.key)), is_done))
    client.transport.close()
