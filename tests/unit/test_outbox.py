"""Datagrams that gather: all arrive, in order, each at its address; what does not fit goes by itself."""

import asyncio
import socket

import pytest

from server.metrics import Metrics
from server.transport import udp_batch
from server.transport.outbox import SLOT_OCTETS, SLOTS, Outbox


def sockets(family: int, address: str) -> tuple[socket.socket, socket.socket]:
    made = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
    try:
        for sock in made:
            sock.bind((address, 0))
            sock.settimeout(5)
    except OSError:
        pytest.skip(f"no {address} here")
    return made[0], made[1]


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_what_gathers_leaves_at_the_end_of_the_turn_or_when_full(family: int, address: str) -> None:
    library = udp_batch._library()
    if library is None:
        pytest.skip("no sendmmsg here")
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
    library = udp_batch._library()
    if library is None:
        pytest.skip("no sendmmsg here")
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
