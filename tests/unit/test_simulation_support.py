"""The virtual clock, the loop and the wire that simulations stand on."""

import asyncio
import errno
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from server.system import Clock, Entropy
from tests.support import golden, simloop
from tests.support.clock import START_UNIX, FakeClock
from tests.support.entropy import SeededEntropy
from tests.support.wire import Counters, Faults, Mailbox, Wire

# --- loop ---------------------------------------------------------------------------------------------------------


def test_weeks_of_sleep_take_no_time_and_end_when_they_should() -> None:
    async def scenario() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        log: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            log.append((name, loop.time()))

        async with asyncio.TaskGroup() as group:
            group.create_task(sleeper("long", 20 * simloop.DAY))
            group.create_task(sleeper("short", 0.25))
            group.create_task(sleeper("middle", 3600.5))
        return log

    started = time.process_time()
    assert simloop.run(scenario()) == [("short", 0.25), ("middle", 3600.5), ("long", 20 * simloop.DAY)]
    assert time.process_time() - started < 1


def test_timeouts_fire_in_virtual_time() -> None:
    async def scenario() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7200):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert simloop.run(scenario()) == 7200


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait(), name="the-forgotten-one")

    with pytest.raises(simloop.Deadlock, match="the-forgotten-one"):
        simloop.run(scenario())


def test_cleanup_runs_after_a_deadlock() -> None:
    log: list[str] = []

    async def scenario() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(5)
            log.append("cleaned")

    with pytest.raises(simloop.Deadlock):
        simloop.run(scenario())
    assert log == ["cleaned"]


def test_timers_without_end_are_an_error() -> None:
    async def scenario() -> None:
        async def heartbeat() -> None:
            while True:
                await asyncio.sleep(60)

        async with asyncio.TaskGroup() as group:
            group.create_task(heartbeat())
            await asyncio.Event().wait()

    with pytest.raises(simloop.Livelock, match="3600 s"):
        simloop.run(scenario(), limit_seconds=3600)


def test_turning_on_the_spot_is_an_error() -> None:
    async def scenario() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(simloop.Livelock, match="stands still"):
        simloop.run(scenario())


def test_exceptions_of_callbacks_fail_the_run() -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().call_later(1, lambda: 1 // 0)
        await asyncio.sleep(2)

    with pytest.raises(ExceptionGroup) as caught:
        simloop.run(scenario())
    assert caught.group_contains(ZeroDivisionError)


def test_exceptions_of_the_scenario_come_through() -> None:
    async def scenario() -> None:
        await asyncio.sleep(1)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        simloop.run(scenario())


async def to_a_thread() -> None:
    await asyncio.to_thread(time.sleep, 0)


async def to_a_stream() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def from_a_stream() -> None:
    await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)


async def to_a_socket() -> None:
    await asyncio.get_running_loop().create_datagram_endpoint(Mailbox, local_addr=("127.0.0.1", 0))


@pytest.mark.parametrize("way", [to_a_thread, to_a_stream, from_a_stream, to_a_socket])
def test_there_is_no_way_out_of_virtual_time(way: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with pytest.raises(simloop.SimulationError):
        simloop.run(way())


# --- clock and entropy --------------------------------------------------------------------------------------------


def test_a_fake_clock_moves_by_hand() -> None:
    clock = FakeClock()
    as_server_sees_it: Clock = clock
    assert (as_server_sees_it.monotonic(), as_server_sees_it.unix(), clock.lease()) == (0, int(START_UNIX), START_UNIX)
    clock.advance(1.5)
    assert (clock.monotonic(), clock.unix(), clock.lease()) == (1.5, int(START_UNIX) + 1, START_UNIX + 1.5)
    clock.step_wall(-3600)
    assert (clock.monotonic(), clock.unix(), clock.lease()) == (1.5, int(START_UNIX) - 3599, START_UNIX + 1.5)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_a_fake_clock_follows_a_loop() -> None:
    async def scenario() -> None:
        clock = FakeClock(unix=1000, time=asyncio.get_running_loop().time)
        await asyncio.sleep(60)
        assert (clock.monotonic(), clock.unix(), clock.lease()) == (60, 1060, 1060)
        with pytest.raises(RuntimeError, match="follows a loop"):
            clock.advance(1)

    simloop.run(scenario())


def test_a_seed_repeats_its_numbers() -> None:
    one, same, other = SeededEntropy(7), SeededEntropy(7), SeededEntropy(8)
    as_server_sees_it: Entropy = one
    first = [as_server_sees_it.bits(64), one.bits(1), one.bits(16)]
    assert first == [same.bits(64), same.bits(1), same.bits(16)]
    assert first[0] != other.bits(64)
    assert first[1] < 2
    assert one.octets(16) == same.octets(16)
    assert repr(one) == "SeededEntropy(7)"


# --- wire ---------------------------------------------------------------------------------------------------------


def test_a_perfect_wire_delivers_once_in_order_after_its_latency() -> None:
    wire = Wire()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        server, client = wire.mailbox("server", 53), wire.mailbox("client")
        for number in range(50):
            client.send(bytes((number,)), server.address)
        got = [await server.receive() for _ in range(50)]
        assert got == [(bytes((number,)), client.address) for number in range(50)]
        assert loop.time() == 0.01
        server.send(b"reply", client.address)
        assert await client.receive() == (b"reply", ("server", 53))
        assert loop.time() == 0.02

    simloop.run(scenario(), network=wire)
    assert wire.counters == Counters(sent=51, delivered=51)
    assert [packet.sent_at for packet in wire.trace] == [0.0] * 50 + [0.01]


def arrivals(faults: Faults, seed: int, number: int = 400) -> tuple[list[int], Counters]:
    wire = Wire(seed, faults)

    async def scenario() -> list[int]:
        server, client = wire.mailbox("server", 53), wire.mailbox("client")
        for item in range(number):
            client.send(item.to_bytes(2, "big"), server.address)
            await asyncio.sleep(0.001)
        await asyncio.sleep(10)
        return [int.from_bytes(item, "big") for item in server.take_all()]

    return simloop.run(scenario(), network=wire), wire.counters


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_fault_does_what_it_says_and_nothing_else(seed: int) -> None:
    got, counters = arrivals(Faults(loss=0.3), seed)
    assert got == sorted(set(got))
    assert counters == Counters(sent=400, lost=400 - len(got), delivered=len(got))
    assert 60 < counters.lost < 180

    got, counters = arrivals(Faults(duplicate=0.3), seed)
    assert sorted(set(got)) == list(range(400))
    assert counters == Counters(sent=400, duplicated=len(got) - 400, delivered=len(got))
    assert 60 < counters.duplicated < 180

    got, counters = arrivals(Faults(reorder=0.3), seed)
    assert sorted(got) == list(range(400))
    assert got != sorted(got)
    assert counters == Counters(sent=400, reordered=counters.reordered, delivered=400)

    got, counters = arrivals(Faults(latency=(0.0, 0.2)), seed)
    assert got == list(range(400))
    assert counters == Counters(sent=400, delivered=400)


def test_a_seed_repeats_every_fault() -> None:
    faults = Faults(loss=0.2, duplicate=0.2, reorder=0.2, latency=(0.001, 0.1))
    assert arrivals(faults, 5) == arrivals(faults, 5)
    assert arrivals(faults, 5) != arrivals(faults, 6)
    assert arrivals(Faults(loss=1), 1) == ([], Counters(sent=400, lost=400))


def test_a_drop_rule_takes_its_packets_and_leaves_the_luck_of_others() -> None:
    def one_run(rule: bool) -> list[bytes]:
        wire = Wire(3, Faults(loss=0.5))
        if rule:
            wire.drops.append(lambda packet: packet.data == b"\x05")

        async def scenario() -> list[bytes]:
            server, client = wire.mailbox("server", 53), wire.mailbox("client")
            for number in range(40):
                client.send(bytes((number,)), server.address)
            await asyncio.sleep(1)
            return server.take_all()

        return simloop.run(scenario(), network=wire)

    without = one_run(rule=False)
    assert b"\x05" in without
    assert one_run(rule=True) == [item for item in without if item != b"\x05"]


def test_real_protocols_ride_on_the_wire() -> None:
    class Echo(asyncio.DatagramProtocol):
        lost = False

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.DatagramTransport)
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data.upper(), addr)

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost = True

    wire = Wire()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        transport, echo = await loop.create_datagram_endpoint(Echo, local_addr=("192.0.2.1", 0))
        assert echo.transport is transport
        here = transport.get_extra_info("sockname")
        assert here[1] >= 49152
        client = wire.mailbox("192.0.2.2", remote=here)
        client.send(b"hello")
        assert await client.receive() == (b"HELLO", here)
        stranger = wire.mailbox("192.0.2.3")
        stranger.send(b"unasked", client.address)
        await asyncio.sleep(1)
        assert client.take_all() == []  # a connected endpoint hears its peer only
        transport.close()
        transport.close()
        assert transport.is_closing()
        transport.sendto(b"into the void", client.address)
        await asyncio.sleep(0)
        assert echo.lost
        client.send(b"anybody?")
        stranger.send(b"anybody?", here)
        await asyncio.sleep(1)
        assert [type(error) for error in client.errors] == [ConnectionRefusedError]
        assert stranger.errors == []  # ICMP errors reach connected sockets only
        reused, _ = await loop.create_datagram_endpoint(Echo, local_addr=here)
        assert reused.get_extra_info("sockname") == here

    simloop.run(scenario(), network=wire)
    assert wire.counters == Counters(sent=5, delivered=2, refused=3)


def test_misuse_of_an_endpoint_is_told() -> None:
    wire = Wire()

    async def scenario() -> None:
        box = wire.mailbox("a", 1)
        with pytest.raises(OSError, match="taken") as taken:
            wire.mailbox("a", 1)
        assert taken.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="local address"):
            await asyncio.get_running_loop().create_datagram_endpoint(Mailbox, remote_addr=("a", 1))
        with pytest.raises(ValueError, match="no destination"):
            box.send(b"x")
        with pytest.raises(ValueError, match="connected to"):
            wire.mailbox("b", remote=box.address).send(b"x", ("c", 1))
        box.send(bytes(65508), ("a", 1))
        assert [getattr(error, "errno", None) for error in box.errors] == [errno.EMSGSIZE]
        wire.send(("forged", 1), box.address, b"x")
        assert await box.receive() == (b"x", ("forged", 1))
        box.close()

    simloop.run(scenario(), network=wire)


@pytest.mark.parametrize("loss", [-0.1, 1.1])
def test_faults_are_checked(loss: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        Faults(loss=loss)
    with pytest.raises(ValueError, match="times"):
        Faults(latency=(0.2, 0.1))


# --- golden packets -----------------------------------------------------------------------------------------------


def test_every_golden_packet_says_where_it_comes_from() -> None:
    packets = golden.below(".")
    assert len({item.name for item in packets}) == len(packets) > 30
    assert golden.load("natpmp/address-request") == b"\x00\x00"


@pytest.mark.parametrize("text", ["00", "#\n00", "# somebody\n", "# somebody\n0", "# somebody\nxy", ""])
def test_a_golden_packet_without_origin_or_octets_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        golden.parse("x", text)


def test_an_empty_folder_is_an_error_not_an_empty_test() -> None:
    with pytest.raises(LookupError, match="no golden packets"):
        golden.below("nowhere")
