"""Datagrams that gather: all arrive, in order, each at its address; what does not fit goes by itself."""

import asyncio
import errno
import random
import socket
from typing import Any

import pytest

from server.metrics import Metrics
from server.peer import Peer
from server.transport import udp_batch
from server.transport.outbox import SLOT_OCTETS, SLOTS, Outbox
from server.transport.ports import Alike


def sockets(family: int, address: str) -> tuple[socket.socket, socket.socket]:
    made = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
    try:
        for sock in made:
            sock.bind((address, 0))
            sock.settimeout(5)
    except OSError:
        pytest.skip(f"no {address} here")
    return made[0], made[1]


def sendmmsg() -> tuple[Any, Any]:
    """cffi and the C library."""
    library = udp_batch._library()
    if library is None:
        pytest.skip("no sendmmsg here")
    return library


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_what_gathers_leaves_at_the_end_of_the_turn_or_when_full(family: int, address: str) -> None:
    library = sendmmsg()
    ours, theirs = sockets(family, address)
    port = theirs.getsockname()[1]
    outbox = Outbox(*library, ours, Metrics())
    wires = [bytes((number,)) * (number + 1) for number in range(SLOTS + 3)]
    for wire in wires:
        assert outbox.take(address, port, wire)
    assert [theirs.recv(4096) for _ in range(SLOTS)] == wires[:SLOTS]
    await asyncio.sleep(0)
    assert [theirs.recv(4096) for _ in range(3)] == wires[SLOTS:]
    outbox.take(address, port, b"last")
    outbox.close()
    assert theirs.recv(4096) == b"last"
    for sock in (ours, theirs):
        sock.close()


async def test_what_has_no_room_or_a_zone_index_is_not_taken_and_failures_are_counted() -> None:
    library = sendmmsg()
    ours, theirs = sockets(socket.AF_INET, "127.0.0.1")
    metrics = Metrics()
    outbox = Outbox(*library, ours, metrics)
    port = theirs.getsockname()[1]
    assert not outbox.take("127.0.0.1", port, bytes(SLOT_OCTETS + 1))
    assert not outbox.take("fe80::1%lo", port, b"x")
    assert outbox.take("240.0.0.1", port, b"nobody can be sent this")
    assert outbox.take("127.0.0.1", port, b"this follows all the same")
    outbox.flush()
    assert theirs.recv(4096) == b"this follows all the same"
    for sock in (ours, theirs):
        sock.close()


def alike(count: int, size: int, kind: int) -> Alike:
    """Messages with fields of many sizes, at even and odd places."""
    chance = random.Random(kind)
    fields, at = [], 0
    for octets in (2, 8, 20, 33, 64):
        fields.append((at, chance.randbytes(octets * count)))
        at += octets + 1
    return Alike(bytes((kind,)) * size, count, tuple(fields))


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_messages_that_are_alike_leave_as_they_would_alone(family: int, address: str) -> None:
    """Between others that are longer or shorter, over the end of a call, and each to its own peer."""
    library = sendmmsg()
    ours, first = sockets(family, address)
    second, third = sockets(family, address)
    outbox = Outbox(*library, ours, Metrics())
    peers = [Peer("udp", address, sock.getsockname()[1], 0) for sock in (first, second, third)]
    expected: list[list[bytes]] = [[], [], []]
    for kind, (count, size) in enumerate(((3, 200), (40, 1000), (SLOTS, 300), (2, 150), (30, 137)), 1):
        several = alike(count, size, kind)
        assert outbox.take_alike([peers[number % 3] for number in range(count)], several)
        for number, wire in enumerate(several.each()):
            expected[number % 3].append(wire)
        assert outbox.take(address, peers[0].port, bytes(kind))
        expected[0].append(bytes(kind))
    outbox.close()
    for sock, wires in zip((first, second, third), expected, strict=True):
        assert [sock.recv(4096) for _ in wires] == wires
    assert len({wire for wires in expected for wire in wires}) == 3 + 40 + SLOTS + 2 + 30 + 5
    for sock in (ours, first, second, third):
        sock.close()


async def test_messages_that_are_alike_go_alone_when_they_must() -> None:
    library = sendmmsg()
    ours, theirs = sockets(socket.AF_INET6, "::1")
    outbox = Outbox(*library, ours, Metrics())
    peer = Peer("udp", "::1", theirs.getsockname()[1], 0)
    assert not outbox.take_alike([peer] * 2, alike(2, SLOT_OCTETS + 1, 1))
    assert not outbox.take_alike([peer] * (SLOTS + 1), alike(SLOTS + 1, 200, 2))
    assert not outbox.take_alike([peer, peer._replace(address="fe80::1%lo")], alike(2, 200, 3))
    assert outbox.take_alike([peer] * 2, alike(2, 200, 4))
    outbox.close()
    assert [theirs.recv(4096)[-1] for _ in range(2)] == [4, 4]
    for sock in (ours, theirs):
        sock.close()


class Full:
    """The C library with a socket that has room for so many datagrams and then, for one call, for none."""

    def __init__(self, ffi: Any, library: Any, room: int) -> None:
        self.ffi, self.library, self.room = ffi, library, room

    def sendmmsg(self, descriptor: int, messages: Any, count: int, flags: int) -> int:
        if not self.room:
            self.room = -1
            self.ffi.errno = errno.EAGAIN
            return -1
        if self.room > 0:
            count = min(count, self.room)
            self.room -= count
        return int(self.library.sendmmsg(descriptor, messages, count, flags))


async def test_a_full_socket_amid_a_crowd_drops_what_is_left_of_the_call_and_no_more() -> None:
    library = sendmmsg()
    ours, theirs = sockets(socket.AF_INET, "127.0.0.1")
    metrics = Metrics()
    outbox = Outbox(library[0], Full(*library, room=40), ours, metrics)
    peer = Peer("udp", "127.0.0.1", theirs.getsockname()[1], 0)
    lost, kept = alike(SLOTS, 200, 1), alike(50, 200, 2)
    assert outbox.take_alike([peer] * SLOTS, lost)
    assert outbox.take_alike([peer] * 50, kept)
    outbox.close()
    expected = [*list(lost.each())[:40], *kept.each()]
    assert [theirs.recv(4096) for _ in expected] == expected
    assert metrics.registry.get_sample_value("homing_dropped_total", {"reason": "udp_send"}) == SLOTS - 40
    for sock in (ours, theirs):
        sock.close()
