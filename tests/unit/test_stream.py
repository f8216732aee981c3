"""One connection over a stand-in for its transport: order of answers, timers, back-pressure, TLS."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homing.certificates import ensure_certificates
from server.metrics import Metrics
from server.peer import Peer
from server.transport import stream
from server.transport.stream import StreamConnection, StreamLimits, StreamServer
from server.transport.tls import server_context
from tests.support import simloop

LIMITS = StreamLimits(idle_seconds=15, connections=10, per_address=5, handshake_seconds=4, read_seconds=30)


class Pipe(asyncio.Transport):
    """What a connection writes, and how it ended."""

    def __init__(self, address: str = "192.0.2.7") -> None:
        super().__init__({"peername": (address, 40000), "sockname": ("192.0.2.1", 53)})
        self.written = b""
        self.writes: list[bytes] = []
        self.ended = ""
        self.reading = True
        self.unread = 0
        self.connection: StreamConnection

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.ended = self.ended or "close"

    def abort(self) -> None:
        if self.ended != "abort":
            self.ended = "abort"
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def is_closing(self) -> bool:
        return bool(self.ended)

    def get_write_buffer_size(self) -> int:
        return self.unread

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


class House:
    """A stream server; what it is asked is answered when the test says so."""

    def __init__(self, limits: StreamLimits = LIMITS) -> None:
        self.asked: list[tuple[bytes, Callable[[bytes], None]]] = []
        self.watching = False
        self.told: list[str] = []
        self.metrics = Metrics()
        self.server = StreamServer(self.handle, limits, self.metrics, self)

    def handle(self, wire: bytes, peer: Peer, send: Callable[[bytes], None]) -> None:
        self.asked.append((wire, send))

    def stream_closed(self, via: int) -> None:
        self.told.append("closed")

    def stream_paused(self, via: int) -> None:
        self.told.append("paused")

    def stream_resumed(self, via: int) -> None:
        self.told.append("resumed")

    def is_watching(self, via: int) -> bool:
        return self.watching

    def connect(self, name: str = "tcp", address: str = "192.0.2.7") -> Pipe:
        pipe = Pipe(address)
        pipe.connection = StreamConnection(self.server, name)
        pipe.connection.connection_made(pipe)
        return pipe

    def dropped(self, why: str) -> float:
        return self.metrics.registry.get_sample_value("homing_streams_dropped_total", {"reason": why}) or 0


def framed(*wires: bytes) -> bytes:
    return b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires)


def in_time(scenario: Callable[[], Any]) -> None:
    simloop.run(scenario())


@pytest.mark.rfc("7766", "6.2.1.1")
@pytest.mark.rfc("7766", "5")
@pytest.mark.rfc("7766", "7")
@pytest.mark.rfc("7766", "8")
def test_answers_go_out_as_they_become_ready() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        data = framed(b"one", b"two", b"three")
        for at in range(len(data)):
            pipe.connection.data_received(data[at : at + 1])
        assert [wire for wire, _ in house.asked] == [b"one", b"two", b"three"]
        for number in (2, 0, 1):
            wire, send = house.asked[number]
            send(wire.upper())
        assert pipe.written == framed(b"THREE", b"ONE", b"TWO")

    in_time(scenario)


@pytest.mark.rfc("7766", "6.2.3")
@pytest.mark.rfc("1035", "4.2.2")
def test_an_idle_connection_is_dropped_and_a_trickle_is_idle() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        for _ in range(3):
            await asyncio.sleep(14)
            pipe.connection.data_received(framed(b"ask"))
            house.asked[-1][1](b"answer")
        for _ in range(14):
            pipe.connection.data_received(b"\0" if _ == 0 else b"\x40" if _ == 1 else b"x")
            await asyncio.sleep(1)
        assert not pipe.ended
        await asyncio.sleep(1.1)
        assert pipe.ended == "close"
        assert house.dropped("idle") == 1
        await asyncio.sleep(4)
        assert pipe.ended == "abort", "it did not take the end"
        assert house.told == ["closed"]
        assert len(house.server.connections) == 0

    in_time(scenario)


@pytest.mark.rfc("1035", "4.2.2")
def test_who_is_owed_an_answer_or_has_a_subscription_is_not_idle() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        pipe.connection.data_received(framed(b"ask"))
        await asyncio.sleep(100)
        assert not pipe.ended
        house.asked[0][1](b"late")
        house.watching = True
        await asyncio.sleep(100)
        assert not pipe.ended
        house.watching = False
        await asyncio.sleep(12)
        assert pipe.ended == "close"

    in_time(scenario)


@pytest.mark.rfc("1035", "4.2.2")
def test_who_sends_no_more_is_answered_still() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        pipe.connection.data_received(framed(b"ask"))
        assert pipe.connection.eof_received()
        house.asked[0][1](b"answer")
        assert (pipe.written, pipe.ended) == (framed(b"answer"), "close")
        assert not house.connect().connection.eof_received()

    in_time(scenario)


@pytest.mark.rfc("7766", "6.2.4")
def test_nothing_is_sent_once_the_connection_is_gone() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        pipe.connection.data_received(framed(b"ask"))
        pipe.abort()
        house.asked[0][1](b"answer")
        await asyncio.sleep(0)
        house.asked[0][1](b"once more")
        assert pipe.written == b""

    in_time(scenario)


@pytest.mark.rfc("7766", "8")
@pytest.mark.rfc("1035", "4.2.2")
def test_length_and_message_go_out_in_one_write() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        pipe.connection.data_received(framed(b"ask"))
        house.asked[0][1](b"answer")
        assert pipe.writes == [framed(b"answer")]

    in_time(scenario)


@pytest.mark.rfc("7828", "5")
def test_who_does_not_read_is_not_asked_for_more_and_dropped_in_the_end() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        pipe.connection.data_received(framed(b"one"))
        pipe.connection.pause_writing()
        pipe.connection.data_received(framed(b"two"))
        assert len(house.asked) == 1 and not pipe.reading
        await asyncio.sleep(29)
        pipe.connection.resume_writing()
        assert len(house.asked) == 2 and pipe.reading
        pipe.connection.pause_writing()
        await asyncio.sleep(29)
        assert not pipe.ended
        await asyncio.sleep(2)
        assert pipe.ended == "abort"
        assert house.told == ["paused", "resumed", "paused", "closed"]
        assert house.dropped("unread") == 1
        assert not house.server.blocked

    in_time(scenario)


def test_of_many_that_do_not_read_the_first_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        house = House()
        pipes = [house.connect(address=f"192.0.2.{number}") for number in range(3)]
        for pipe in pipes:
            pipe.connection.pause_writing()
        assert [pipe.ended for pipe in pipes] == ["abort", "", ""]
        assert house.dropped("blocked") == 1

    monkeypatch.setattr(stream, "MAX_BLOCKED", 2)
    in_time(scenario)


@pytest.mark.rfc("7828", "5")
def test_a_peer_that_leaves_too_much_unread_is_cut_off() -> None:
    async def scenario() -> None:
        pipe = House().connect()
        pipe.unread = stream.MAX_UNSENT + 1
        pipe.connection.send(b"more")
        assert (pipe.written, pipe.ended) == (b"", "abort")

    in_time(scenario)


def test_who_is_idle_and_has_not_read_its_answers_is_dropped_at_once() -> None:
    async def scenario() -> None:
        house = House()
        pipe = house.connect()
        pipe.unread = 1
        await asyncio.sleep(15.1)
        assert pipe.ended == "abort" and house.dropped("idle") == 1

    in_time(scenario)


def test_limits_of_numbers() -> None:
    async def scenario() -> None:
        house = House()
        ours = [house.connect() for _ in range(6)]
        assert [pipe.ended for pipe in ours] == [""] * 5 + ["abort"]
        ours[0].connection.data_received(framed(b"owed"))
        others = [house.connect(address=f"198.51.100.{number}") for number in range(6)]
        assert ours[1].ended == "abort" and not ours[0].ended and not others[-1].ended
        assert house.dropped("evicted") == 1
        await asyncio.sleep(0)
        assert len(house.server.connections) == 10

    in_time(scenario)


@pytest.mark.rfc("7828", "3.3.2")
def test_when_places_are_short_clients_are_asked_to_close() -> None:
    async def scenario() -> None:
        house = House()
        for number in range(7):
            house.connect(address=f"192.0.2.{number}")
        assert house.server.told_idle_seconds == 15
        house.connect()
        assert house.server.told_idle_seconds == 0

    in_time(scenario)


# TLS


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    files = ensure_certificates(tmp_path_factory.mktemp("tls"), ["ns.example"], [])
    client = ssl.create_default_context(cafile=str(files.ca_file))
    client.set_alpn_protocols(["dot"])
    return server_context(files.certificate_file, files.key_file), client


class Client:
    """A TLS client over a pipe."""

    def __init__(self, context: ssl.SSLContext, pipe: Pipe, session: ssl.SSLSession | None = None) -> None:
        self.pipe = pipe
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._in, self._out, server_hostname="ns.example", session=session)

    def flush(self) -> None:
        """Both ways until nothing is left."""
        while True:
            data = self._out.read()
            if data and not self.pipe.ended:
                self.pipe.connection.data_received(data)
            back, self.pipe.written = self.pipe.written, b""
            if not data and not back:
                return
            self._in.write(back)

    def shake(self) -> None:
        for _ in range(5):
            try:
                self.object.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
        self.flush()

    def read(self) -> bytes:
        self.flush()
        return self.object.read()


@pytest.mark.rfc("7858", "3.3")
@pytest.mark.rfc("7858", "3.4")
def test_tls_from_end_to_end(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def scenario() -> None:
        house = House()
        house.server.tls_context = contexts[0]
        client = Client(contexts[1], house.connect("tls"))
        client.shake()
        assert client.object.selected_alpn_protocol() == "dot"
        assert client.pipe.connection.tls() == ("TLSv1.3", "dot")
        client.object.write(framed(b"one", b"two"))
        client.flush()
        writes = len(client.pipe.writes)
        house.asked[1][1](b"x" * 60_000)
        house.asked[0][1](b"ONE")
        assert len(client.pipe.writes) == writes + 2, "length and message in one"
        got = b""
        while len(got) < 60_002 + 5:
            got += client.read()
        assert got == framed(b"x" * 60_000, b"ONE")
        client.object.write(framed(b"three"))
        with pytest.raises(ssl.SSLWantReadError):
            client.object.unwrap()
        client.flush()
        assert not client.pipe.ended  # an answer is owed
        house.asked[2][1](b"THREE")
        assert client.pipe.ended == "close"
        assert client.read() == framed(b"THREE")

    in_time(scenario)


@pytest.mark.rfc("7858", "3.4")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed(contexts: tuple[ssl.SSLContext, ssl.SSLContext], version: ssl.TLSVersion) -> None:
    async def scenario() -> None:
        house = House()
        house.server.tls_context = contexts[0]
        first = Client(contexts[1], house.connect("tls"))
        first.shake()
        first.object.write(framed(b"ask"))
        first.flush()
        house.asked[0][1](b"answer")
        assert first.read() == framed(b"answer")
        again = Client(contexts[1], house.connect("tls"), first.object.session)
        again.shake()
        assert again.object.session_reused

    contexts[1].maximum_version = version
    in_time(scenario)
    contexts[1].maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED


@pytest.mark.rfc("7858", "3.4")
def test_an_orderly_end_is_said_within_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def scenario() -> None:
        house = House()
        house.server.tls_context = contexts[0]
        client = Client(contexts[1], house.connect("tls"))
        client.shake()
        await house.server.close()
        assert client.read() == b"", "close_notify; without it the client would wait for more"
        assert client.pipe.ended == "close"

    in_time(scenario)


@pytest.mark.rfc("7858", "3.4")
@pytest.mark.rfc("8490", "5.3")
def test_the_end_of_an_idle_connection_is_said_within_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def scenario() -> None:
        house = House()
        house.server.tls_context = contexts[0]
        client = Client(contexts[1], house.connect("tls"))
        client.shake()
        await asyncio.sleep(15.1)
        assert client.read() == b"" and client.pipe.ended == "close" and house.dropped("idle") == 1
        await asyncio.sleep(4)
        assert client.pipe.ended == "abort", "it did not take it"
        assert house.told == ["closed"] and len(house.server.connections) == 0

    in_time(scenario)


def test_a_handshake_costs_nothing_before_its_first_octet_and_has_its_time(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def scenario() -> None:
        house = House()
        house.server.tls_context = contexts[0]
        silent, slow = house.connect("tls"), house.connect("tls")
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        for number in range(len(hello)):
            slow.connection.data_received(hello[number : number + 1])
            await asyncio.sleep(0.3)
        assert silent.connection._tls is None
        await asyncio.sleep(1)
        assert silent.ended == slow.ended == "abort"
        assert house.dropped("handshake") == 2

    in_time(scenario)


@pytest.mark.rfc("7858", "3.1")
def test_what_is_no_tls_gets_an_alert(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def scenario() -> None:
        house = House()
        house.server.tls_context = contexts[0]
        pipe = house.connect("tls")
        pipe.connection.data_received(framed(b"a query in the clear that is long enough"))
        assert pipe.ended == "close" and not house.asked
        await asyncio.sleep(5)
        assert pipe.ended == "abort"  # it did not take the end either

    in_time(scenario)


def test_handshakes_beyond_the_rate_wait(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def scenario() -> None:
        house = House(StreamLimits(15, 10, 10, handshakes_per_second=2))
        house.server.tls_context = contexts[0]
        await asyncio.sleep(10)
        clients = [Client(contexts[1], house.connect("tls")) for _ in range(4)]
        for client in clients:
            client.shake()
        ready = [client.pipe.connection.tls() is not None for client in clients]
        assert ready == [True, True, False, False]
        assert [client.pipe.reading for client in clients] == ready
        await asyncio.sleep(1.2)
        for client in clients:
            client.shake()
            assert client.pipe.connection.tls() is not None and client.pipe.reading

    in_time(scenario)


@pytest.mark.rfc("7858", "3.1")
@pytest.mark.rfc("7830", "6")
@pytest.mark.rfc("7858", "8")
def test_old_tls_is_refused(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    assert contexts[0].minimum_version == ssl.TLSVersion.TLSv1_2
    assert contexts[0].options & ssl.OP_NO_RENEGOTIATION and contexts[0].options & ssl.OP_NO_COMPRESSION


def test_a_certificate_that_cannot_be_used_is_told_in_words(tmp_path: Path) -> None:
    one = ensure_certificates(tmp_path / "one", ["a.example"], [])
    other = ensure_certificates(tmp_path / "other", ["a.example"], [])
    with pytest.raises(ValueError, match="no such file"):
        server_context(one.certificate_file, tmp_path / "absent")
    with pytest.raises(ValueError, match="cannot use certificate"):
        server_context(one.certificate_file, other.key_file)
