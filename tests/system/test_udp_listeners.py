"""Both UDP listeners on real sockets: same answers, bursts, foreign input, pausing, wildcard addresses, loops."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from protocol.constants import TC, EdnsOption, Rcode
from server.fastpath import FastPath
from server.peer import Peer
from server.response_limit import ResponseLimiter, ResponseLimits
from server.strangers import StrangerLimits, Strangers
from server.transport import udp_batch
from server.transport.ports import Alike, UdpListener
from server.transport.udp import open_udp
from server.transport.udp_batch import BATCH, BatchListener
from server.transport.udp_plain import IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE, PlainListener
from server.work_budget import WorkBudget
from tests.support.builders import Core, Opt, query_message, seen

QUESTIONS = (
    ("mac.alice.members.example.", "A"),
    ("absent.members.example.", "A"),
    ("members.example.", "NS"),
    ("_dns-update._udp.members.example.", "SRV"),
    ("secret.carol.members.example.", "A"),
)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Bench:
    """A core behind one listener."""

    def __init__(self) -> None:
        self.core = Core()
        self.fast = FastPath(self.core.zones, self.core.clock, self.core.metrics.requests, self.core.guard)
        self.handled: list[Peer] = []

    @asynccontextmanager
    async def listening(self, kind: str, address: str) -> AsyncIterator[UdpListener]:
        def handle(wire: bytes, peer: Peer, send: Callable[[bytes], None]) -> None:
            self.handled.append(peer)
            self.core.dispatcher.handle(wire, peer, send)

        listener: UdpListener
        if kind == "plain":
            listener = await PlainListener.open(3, address, 0, handle, self.fast)
        else:
            listener = BatchListener.open(3, address, 0, handle, self.fast, self.core.metrics)
        try:
            yield listener
        finally:
            listener.close()
            await asyncio.sleep(0)


def client(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect((address, port))
    return sock


async def receive(sock: socket.socket, count: int) -> list[bytes]:
    async with asyncio.timeout(5):
        return [await asyncio.get_running_loop().sock_recv(sock, 65535) for _ in range(count)]


@pytest.mark.rfc("2181", "4.2")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["plain", "batch"])
@pytest.mark.parametrize(
    ("address", "asked"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")],
)
def test_answers(kind: str, address: str, asked: str, loop: str) -> None:
    async def scenario() -> None:
        bench = Bench()
        wires = [
            query_message(*QUESTIONS[number % len(QUESTIONS)], id=number, edns=Opt(1232) if number % 2 else None)
            for number in range(3 * BATCH)
        ]
        expected = {wire[:2]: bench.core.handle(wire)[0] for wire in wires}
        async with bench.listening(kind, address) as listener:
            with client(asked, listener.port) as sock:
                for _ in range(3):
                    sock.send(b"")
                    sock.send(b"x")
                    for wire in wires:
                        sock.send(wire)
                    replies = await receive(sock, len(wires))
                    assert {reply[:2]: reply for reply in replies} == expected
                here = sock.getsockname()
        assert {(peer.transport, peer.address, peer.port, peer.via) for peer in bench.handled} == {
            ("udp", here[0], here[1], 3)
        }
        assert sum(bench.fast.rcodes) > 6 * BATCH

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("kind", ["plain", "batch"])
async def test_large_messages_events_and_the_end(kind: str) -> None:
    bench = Bench()
    seen: list[bytes] = []
    bench.core.dispatcher.handle = lambda wire, peer, send: (seen.append(wire), send(wire[:2] + bytes(30000)))  # type: ignore[method-assign,assignment,func-returns-value]
    async with bench.listening(kind, "127.0.0.1") as listener:
        with client("127.0.0.1", listener.port) as sock:
            large = bytes(60000)
            sock.send(large)
            assert await receive(sock, 1) == [bytes(30002)]
            assert seen == [large]
            peer = Peer("udp", *sock.getsockname(), 3)
            listener.send([peer], Alike(b"event"))
            assert await receive(sock, 1) == [b"event"]
            listener.pause()
            sock.send(large)
            listener.send([peer], Alike(b"last"))
            assert await receive(sock, 1) == [b"last"]
            listener.send([Peer("udp", "127.0.0.1", 0, 3)], Alike(b"nowhere"))
        assert seen == [large]
        listener.close()
        listener.send([peer], Alike(b"closed"))


@pytest.mark.rfc("2181", "4.1")
async def test_a_batch_listener_answers_from_the_address_asked() -> None:
    bench = Bench()
    async with bench.listening("batch", "0.0.0.0") as listener:
        for asked in ("127.0.0.1", "127.0.0.9", "127.1.2.3"):
            with client(asked, listener.port) as sock:
                for owner, rtype in QUESTIONS:
                    wire = query_message(owner, rtype)
                    sock.send(wire)
                    assert await receive(sock, 1) == bench.core.handle(wire)


async def test_a_wake_up_takes_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_batch, "MAX_BATCHES", 1)
    bench = Bench()
    async with bench.listening("batch", "127.0.0.1") as listener:
        assert isinstance(listener, BatchListener)
        with client("127.0.0.1", listener.port) as sock:
            wire = query_message(*QUESTIONS[0])
            for _ in range(2 * BATCH + 1):
                sock.send(wire)
            for answered in (BATCH, 2 * BATCH, 2 * BATCH + 1):
                listener._on_readable()
                assert bench.core.metrics.requests.rcodes[0] == answered
            await receive(sock, 2 * BATCH + 1)


class Choked:
    """The C library with a sendmmsg that says what it is told: how many went out, or minus an error number."""

    def __init__(self, listener: BatchListener, outcomes: list[int]) -> None:
        self._ffi, self._real = listener._ffi, listener._library
        self.outcomes = outcomes
        self.recvmmsg = self._real.recvmmsg

    def sendmmsg(self, descriptor: int, messages: object, count: int, flags: int) -> int:
        outcome = self.outcomes.pop(0) if self.outcomes else count
        if outcome < 0:
            self._ffi.errno = -outcome
            return -1
        return int(self._real.sendmmsg(descriptor, messages, min(outcome, count), flags))


@pytest.mark.parametrize(
    ("outcomes", "lost"),
    [
        ([], 0),
        ([3, 4], 0),
        ([-errno.EINTR, -errno.EINTR], 0),
        ([-errno.EPERM, -errno.EPERM], 2),
        ([4, -errno.EAGAIN], 6),
        ([-errno.ENOBUFS], 10),
    ],
)
async def test_what_cannot_be_sent_is_dropped_and_counted(outcomes: list[int], lost: int) -> None:
    bench = Bench()
    async with bench.listening("batch", "127.0.0.1") as listener:
        assert isinstance(listener, BatchListener)
        listener._library = Choked(listener, list(outcomes))
        with client("127.0.0.1", listener.port) as sock:
            for number in range(10):
                sock.send(query_message(*QUESTIONS[0], id=number))
            listener._on_readable()
            replies = await receive(sock, 10 - lost)
        assert len({reply[:2] for reply in replies}) == 10 - lost
    assert bench.core.metrics.dropped.labels("udp_send")._value.get() == lost


@pytest.mark.parametrize("kind", ["plain", "batch"])
async def test_a_taken_port_is_an_os_error(kind: str) -> None:
    bench = Bench()
    async with bench.listening(kind, "127.0.0.1") as listener:
        with pytest.raises(OSError, match="in use"):
            if kind == "plain":
                await PlainListener.open(4, "127.0.0.1", listener.port, bench.core.dispatcher.handle, bench.fast)
            else:
                BatchListener.open(
                    4, "127.0.0.1", listener.port, bench.core.dispatcher.handle, bench.fast, bench.core.metrics
                )


@pytest.mark.parametrize(("available", "kind"), [(True, BatchListener), (False, PlainListener)])
async def test_the_best_listener_is_opened(
    available: bool, kind: type[UdpListener], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert udp_batch.is_available()
    if not available:
        monkeypatch.setattr(udp_batch, "is_available", lambda: False)
    bench = Bench()
    handle = bench.core.dispatcher.handle
    listener = await open_udp(0, "127.0.0.1", 0, handle, bench.fast, bench.core.metrics)
    assert isinstance(listener, kind)
    listener.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["plain", "batch"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_cookies_and_limits_on_the_wire(kind: str, address: str) -> None:
    """Over the rate answers are cut short and dropped; who shows the cookie that came with one is free."""
    bench = Bench()
    limits = ResponseLimits(rate=20, total=100, slip=2, watch_seconds=5)
    bench.core.guard.limiter = ResponseLimiter(limits, bench.core.clock.monotonic, bench.core.metrics)
    async with bench.listening(kind, address) as listener:
        with client(address, listener.port) as sock:
            requests = bench.core.metrics.requests

            async def ask(wire: bytes, times: int) -> list[bytes]:
                """All that is answered."""
                before = sum(requests.rcodes), requests.limited["drop"]
                for _ in range(times):
                    sock.send(wire)
                async with asyncio.timeout(5):
                    while (told := sum(requests.rcodes) - before[0]) + requests.limited["drop"] - before[1] < times:
                        await asyncio.sleep(0.01)
                return await receive(sock, told)

            # asked twice the slow way, from then on the listener's
            for _ in range(2):
                sock.send(query_message(*QUESTIONS[0], edns=Opt(1232)))
                await receive(sock, 1)
            got = [seen(reply) for reply in await ask(query_message(*QUESTIONS[0], edns=Opt(1232)), 80)]
            whole = [reply for reply in got if reply.answers]
            assert limits.rate <= len(whole) <= 2 * limits.rate
            assert len(got) - len(whole) == requests.limited["slip"] > 0
            assert all(reply.flag(TC) for reply in got if not reply.answers)
            assert requests.limited["drop"] - requests.limited["slip"] in (0, 1)

            cookie = Opt(1232, options=((EdnsOption.COOKIE, b"12345678"),))
            refused = seen((await ask(query_message(*QUESTIONS[0], edns=cookie), 4))[0])
            assert refused.rcode == Rcode.BADCOOKIE and refused.message.opt is not None
            proved = query_message(*QUESTIONS[0], edns=Opt(1232, options=refused.message.opt.options))
            assert all(seen(reply).answers for reply in await ask(proved, 100))


async def receive_one(sock: socket.socket) -> bytes:
    return (await receive(sock, 1))[0]


@pytest.mark.parametrize("kind", ["plain", "batch"])
async def test_without_time_for_slow_answers_fast_ones_and_known_senders_are_served(kind: str) -> None:
    bench = Bench()
    clock = bench.core.clock
    bench.core.guard.work = WorkBudget(0.01, clock.monotonic)
    bench.core.guard.strangers = Strangers(StrangerLimits(20, 1000), bench.core.metrics)
    slow = query_message("members.example.", "NS")
    async with bench.listening(kind, "127.0.0.1") as listener:
        with client("127.0.0.1", listener.port) as sock:
            bench.core.guard.work.begin()
            clock.now += 100
            bench.core.guard.work.end()
            sock.send(slow)
            sock.send(query_message(*QUESTIONS[0], id=7))
            assert (await receive_one(sock))[:2] == b"\0\7"
            assert bench.core.metrics.requests.overload == 1
            bench.core.guard.strangers.welcome(Peer("udp", "127.0.0.1", 1, 3), 0.0)
            sock.send(slow)
            assert seen(await receive_one(sock)).answers


@pytest.mark.parametrize("kind", ["plain", "batch"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_no_router_may_cut_a_reply_to_pieces(kind: str, address: str) -> None:
    async with Bench().listening(kind, address) as listener:
        sock = listener._transport.get_extra_info("socket") if isinstance(listener, PlainListener) else listener._socket  # type: ignore[attr-defined,union-attr]
        option = (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if ":" in address else (socket.IPPROTO_IP, IP_MTU_DISCOVER)
        assert sock.getsockopt(*option) == PMTUDISC_PROBE
