"""LLQ fan-out: what it takes to tell 100,000 subscribers of one name, against a bare loop of sendmmsg.

In one process and on one core: the product's machine, driver and listener, no clients' acknowledgements. Subscribers
are as many loopback addresses at one port, heard by one socket that nobody reads. The bare loop sends as many
datagrams of the same size to the same addresses, 64 a call.

python -m bench.fanout [SUBSCRIBERS]
"""

import asyncio
import os
import socket
import statistics
import sys
import time
from typing import Final

from bench.peers import SERVER_CPU
from homing import collector
from protocol.message import Question
from protocol.name import from_text
from protocol.tsig import SHA256, Key
from server.fastpath import FastPath
from server.metrics import Metrics
from server.peer import Peer
from server.push.driver import PushDriver
from server.push.events import Item
from server.push.limits import LlqLimits
from server.push.llq_machine import LlqMachine, Restored
from server.request import Send
from server.system import SystemClock
from server.transport.outbox import SLOTS
from server.transport.udp_batch import BatchListener, _library
from server.transport.udp_plain import prepare_socket
from server.zone.model import RR, Actor, Change
from server.zone.zone import Zones

NAME: Final = from_text("autotunnel.mac.members.example.")
KEY: Final = Key(from_text("fleet.members.example."), SHA256, bytes(range(32)))
ROUNDS: Final = 5
_SOCKADDR_OCTETS: Final = 16


def subscriber(number: int, port: int) -> Peer:
    return Peer("udp", f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", port, 0)


def ignore(wire: bytes, peer: Peer, send: Send) -> None:
    """No client answers here."""


def bare(count: int, size: int, port: int) -> float:
    """Seconds that `count` datagrams of `size` octets take to the same addresses, by full sendmmsg calls and no more.

    Headers, addresses and where each call begins are laid out before the clock starts; all have one payload.
    """
    found = _library()
    assert found is not None
    ffi, library = found
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    prepare_socket(sock)
    payload = ffi.new("unsigned char[]", size)
    vector = ffi.new("struct iovec *", {"iov_base": payload, "iov_len": size})
    names = ffi.new("unsigned char[]", count * _SOCKADDR_OCTETS)
    messages = ffi.new("struct mmsghdr[]", count)
    octets = ffi.buffer(names)
    for number in range(count):
        at = number * _SOCKADDR_OCTETS
        family, address = socket.AF_INET.to_bytes(2, sys.byteorder), subscriber(number, port).address
        octets[at : at + 8] = family + port.to_bytes(2, "big") + socket.inet_aton(address)
        head = messages[number].msg_hdr
        head.msg_name, head.msg_namelen = names + at, _SOCKADDR_OCTETS
        head.msg_iov, head.msg_iovlen = vector, 1
    calls = [(messages + first, min(SLOTS, count - first)) for first in range(0, count, SLOTS)]
    send, descriptor = library.sendmmsg, sock.fileno()
    begun = time.perf_counter()
    sent = [send(descriptor, first, number, 0) for first, number in calls]
    seconds = time.perf_counter() - begun
    assert sum(sent) == count
    sock.close()
    return seconds


async def fan_out(count: int, *, signed: bool) -> tuple[float, float]:
    """Seconds from a change to the last of its events on the way, and seconds bare."""
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("0.0.0.0", 0))
    port = sink.getsockname()[1]
    clock, metrics = SystemClock(), Metrics()
    before, after = (RR(NAME, 28, 120, bytes(15) + bytes((last,))) for last in (1, 2))
    records = [before]
    machine = LlqMachine(LlqLimits(quiet_seconds=0.0), bytes(32), lookup=lambda question: records, entropy=lambda: 7)
    listener = BatchListener.open(0, "127.0.0.1", 0, ignore, FastPath(Zones(), clock, metrics.requests), metrics)
    driver = PushDriver(machine, listener.send, clock, {KEY.name: KEY}.get)
    held = frozenset((Item(28, before.rdata),))
    for number in range(count):
        saved = Restored(
            *(Question(NAME, 28, 1), number + 1, subscriber(number, port), KEY.name if signed else None),
            *(clock.monotonic() + 7000, False, held, held),
        )
        assert machine.restore(saved, now=clock.monotonic())
    driver.wake()
    await asyncio.sleep(0.1)
    assert not machine.counters.events
    collector.settle()
    records[:] = [after]
    begun = time.perf_counter()
    machine.publish(Change(NAME, 1, 2, 0, Actor("update"), (before,), (after,)), now=clock.monotonic())
    driver.wake()
    while machine.counters.events < count:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    seconds = time.perf_counter() - begun
    driver.close()
    listener.close()
    size = 12 + len(NAME) + 4 + 2 * (2 + 10 + 16) + 11 + 4 + 18 + (KEY.record_octets - 6 if signed else 0)
    bare_seconds = bare(count, size, port)
    sink.close()
    return seconds, bare_seconds


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    os.sched_setaffinity(0, {int(SERVER_CPU)})
    print("| events | sent in | bare sendmmsg | ratio |\n|---|---|---|---|")
    for signed in (False, True):
        rows = [asyncio.run(fan_out(count, signed=signed)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(row[side] for row in rows) for side in (0, 1))
        kind = "signed" if signed else "plain"
        print(
            f"| {count:,} {kind} | {ours * 1000:.0f} ms | {theirs * 1000:.0f} ms | {ours / theirs:.1f} x |", flush=True
        )


if __name__ == "__main__":
    main()
