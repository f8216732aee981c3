"""The parts of a flood: each is a process of its own that goes on at its rate until it is ended."""

import random
import resource
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from bench.honest import ZONE, Place, framed, query, update
from protocol.constants import RD, Class, Type
from protocol.edns import Opt
from protocol.message import Question, encode
from protocol.name import from_text
from protocol.tsig import SHA256, Key

TICK: Final = 0.01


def addresses(prefix: int, count: int) -> Iterator[str]:
    for number in range(count):
        yield f"127.{prefix}.{number >> 6}.{1 + number % 64}"


def udp_sockets(port: int, sources: Iterator[str]) -> list[socket.socket]:
    found = []
    for source in sources:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((source, 0))
        sock.connect(("127.0.0.1", port))
        found.append(sock)
    return found


def paced(rate: float, step: Callable[[], None]) -> None:
    """Call `step` so often a second, in small bunches; what cannot be kept up with is left out."""
    owed = 0.0
    last = time.monotonic()
    while True:
        now = time.monotonic()
        owed = min(owed + (now - last) * rate, rate / 4 + 1)
        last = now
        while owed >= 1:
            owed -= 1
            step()
        time.sleep(TICK)


def spray(sockets: list[socket.socket], rate: float, make: Callable[[], bytes]) -> None:
    """Datagrams from one socket after the other; answers are thrown away now and then, as by one who did not ask."""
    turn = 0

    def step() -> None:
        nonlocal turn
        turn += 1
        sock = sockets[turn % len(sockets)]
        with suppress(OSError):
            sock.send(make())
        if not turn % 7:
            with suppress(OSError):
                while True:
                    sock.recv(65535)

    paced(rate, step)


def garbage(place: Place, rate: float, dice: random.Random) -> None:
    """Noise, and messages with an octet or two gone wrong."""
    good = [query(dice, "A"), update(dice, place.key), encode(1, 0, [Question(from_text(ZONE), Type.AXFR, 1)])]

    def make() -> bytes:
        if dice.random() < 0.3:
            return dice.randbytes(dice.randrange(600))
        wire = bytearray(dice.choice(good))
        for _ in range(dice.randrange(1, 4)):
            wire[dice.randrange(len(wire))] = dice.randrange(256)
        return bytes(wire[: dice.randrange(len(wire))] if dice.random() < 0.3 else wire)

    spray(udp_sockets(place.port, addresses(30, 256)), rate, make)


def victim(place: Place, rate: float, dice: random.Random) -> None:
    """Small queries for large answers, as if from one network."""
    wire = encode(7, RD, [Question(from_text(f"big.alice.{ZONE}"), Type.TXT, Class.IN)], opt=Opt(4096))
    spray(udp_sockets(place.port, iter([f"127.66.6.{number}" for number in range(1, 33)])), rate, lambda: wire)


def crowd(place: Place, rate: float, dice: random.Random) -> None:
    """Small queries from everywhere, half of them for names that are not there, some with made-up cookies."""
    pool = [query(dice, dice.choice(("A", "TXT", "NS")), lost=dice.random() < 0.5) for _ in range(2000)]

    def make() -> bytes:
        wire = dice.choice(pool)
        # a name that nobody asked for before: 13 is where the label's letters begin
        return wire[:17] + b"%08x" % dice.getrandbits(32) + wire[25:] if wire[13:17] == b"lost" else wire

    spray(udp_sockets(place.port, addresses(40, 512)), rate, make)


def strangers(place: Place, rate: float, dice: random.Random) -> None:
    """Updates signed with a wrong secret, under a name that exists."""
    wrong = Key(place.key.name, SHA256, dice.randbytes(32))
    pool = [update(dice, wrong) for _ in range(2000)]
    spray(udp_sockets(place.port, addresses(50, 128)), rate, lambda: dice.choice(pool))


def connections(port: int, rate: float, keep: int, begin: Callable[[socket.socket], None]) -> None:
    """Connections from many addresses; the oldest is given up for a new one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(keep + 200, hard), hard))
    sources = list(addresses(90, 256))
    held: list[socket.socket] = []
    turn = 0

    def step() -> None:
        nonlocal turn
        turn += 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with suppress(OSError):
            sock.bind((sources[turn % len(sources)], 0))
            sock.connect_ex(("127.0.0.1", port))
            begin(sock)
        held.append(sock)
        if len(held) > keep:
            held.pop(0).close()

    paced(rate, step)


def writable(sock: socket.socket) -> None:
    """Wait a moment for the connection."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    poll.poll(20)


def silent(place: Place, rate: float, dice: random.Random) -> None:
    """Connections that say nothing, say half, or ask and do not read."""
    asked = framed(encode(7, RD, [Question(from_text(f"big.alice.{ZONE}"), Type.TXT, Class.IN)], opt=Opt(4096))) * 50

    def begin(sock: socket.socket) -> None:
        kind = dice.randrange(3)
        if kind:
            writable(sock)
            sock.send(asked if kind == 1 else b"\x02\x00" + dice.randbytes(100))

    connections(place.port, rate, 1500, begin)


def slow_tls(place: Place, rate: float, dice: random.Random) -> None:
    """Handshakes that begin and go no further, or do not begin at all."""
    hello = client_hello()

    def begin(sock: socket.socket) -> None:
        writable(sock)
        sock.send(hello[: dice.choice((0, 1, 5, 50, len(hello)))])

    connections(place.tls_port, rate, 1500, begin)


def client_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


PARTS: Final[dict[str, tuple[Callable[[Place, float, random.Random], None], float]]] = {
    "garbage": (garbage, 1500),
    "victim": (victim, 3000),
    "crowd": (crowd, 3000),
    "strangers": (strangers, 500),
    "silent": (silent, 100),
    "slow TLS": (slow_tls, 100),
}
