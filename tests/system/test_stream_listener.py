"""Connections are taken many at a time, so that a busy loop does not keep them waiting."""

import asyncio
import socket
from contextlib import ExitStack

import pytest
import uvloop

from server.transport.stream import StreamLimits
from tests.unit.test_stream import House

WAITING = 64


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_crowd_at_the_door_is_let_in_within_a_few_turns(loop: object, address: str) -> None:
    async def scenario() -> None:
        house = House(StreamLimits(idle_seconds=15, connections=100, per_address=100))
        port = await house.server.listen(address, 0)
        with ExitStack() as stack:
            for _ in range(WAITING):
                stack.enter_context(socket.create_connection((address, port)))  # the system completes them by itself
            turns = 0
            while len(house.server.connections) < WAITING and turns < 10 * WAITING:
                await asyncio.sleep(0)
                turns += 1
            await house.server.close()
        await asyncio.sleep(0.05)
        assert turns <= WAITING // 3
        assert not len(house.server.connections)

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        runner.run(scenario())
