"""What the fuzzer calls with octets of its choice: each target returns, or raises what is a fault of ours.

`decode` takes messages and everything inside them apart, PCP and NAT-PMP included. `pipeline` is a server without
sockets: the fast path, the dispatcher, the writer, LLQs; the first octet chooses who signs and how it came. `streams`
is a TCP or TLS connection, framing and back-pressure included; the first octets choose where it is cut into pieces.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from protocol import dso
from protocol.constants import HEADER_OCTETS, MAX_MESSAGE_OCTETS, Rcode
from protocol.edns import extended_errors, llq_options, update_lease
from protocol.errors import DecodeError
from protocol.message import decode as decode_message
from protocol.name import fold, from_text, to_text
from protocol.natpmp import decode_request as decode_natpmp
from protocol.pcp import decode_request as decode_pcp
from protocol.rdata import canonical
from protocol.tsig import Key, decode_tsig, sign
from server.config import LlqSettings, PushSettings
from server.fastpath import FastPath
from server.peer import Peer
from server.push.dso_service import DsoService
from server.push.service import PushService
from server.transport.stream import StreamConnection, StreamLimits, StreamServer
from server.zone.update import UpdateError, read_update
from tests.support.builders import ADMIN, ALICE, CAROL, T0, Core, rows_of
from tests.support.entropy import SeededEntropy

APEX: Final = from_text("members.example.")
_SIGNERS: Final = (None, None, ADMIN, ALICE, CAROL)
_RENEWED_AFTER: Final = 2000  # inputs that one server takes, so that what one left behind does not hide another's fault


def decode(data: bytes) -> None:
    """One message, in every way it can be read; the first octet chooses the protocol."""
    if not data:
        return
    kind, wire = data[0], data[1:]
    if kind < 16:
        for read in (decode_natpmp, decode_pcp):
            try:
                read(wire)
            except DecodeError:
                continue
        return
    if kind < 64:
        _decode_dso(wire)
        return
    try:
        message = decode_message(wire)
    except DecodeError:
        return
    for question in message.questions:
        assert from_text(to_text(question.name)) == question.name
    for record in (*message.answers, *message.authority, *message.additional):
        try:
            whole = record.rdata(wire)
        except DecodeError:
            continue
        assert len(canonical(record.rtype, whole)) == len(whole)
    for ask in (llq_options, update_lease, extended_errors):
        try:
            ask(message.opt)
        except DecodeError:
            continue
    if message.tsig is not None:
        try:
            decode_tsig(message.tsig, wire)
        except DecodeError:
            return
    try:
        read_update(message, APEX)
    except UpdateError:
        return


def _decode_dso(wire: bytes) -> None:
    try:
        message = dso.decode_dso(wire)
    except DecodeError:
        return
    readers: tuple[Callable[[dso.Tlv], object], ...] = (
        dso.decode_keepalive,
        dso.decode_retry_delay,
        dso.decode_subscribe,
        dso.decode_unsubscribe,
        dso.decode_reconfirm,
        lambda tlv: dso.decode_push(message),
    )
    for tlv in message.tlvs[:4]:
        for read in readers:
            try:
                read(tlv)
            except DecodeError:
                continue


class _NoWatchers:
    def stream_closed(self, via: int) -> None: ...
    def stream_paused(self, via: int) -> None: ...
    def stream_resumed(self, via: int) -> None: ...
    def is_watching(self, via: int) -> bool:
        return False


class Server:
    """One server without sockets, made anew when it changed or took its number of inputs."""

    def __init__(self, *, with_dso: bool = False) -> None:
        self.core = Core()
        core = self.core
        self.sent: list[tuple[int, bytes]] = []
        self.aborted: set[int] = set()
        core.push = PushService(  # type: ignore[assignment]  # in the place of the silent one
            LlqSettings(),
            zones=core.zones,
            keyring=core.keyring,
            clock=core.clock,
            entropy=SeededEntropy(),
            metrics=core.metrics,
            send=lambda peer, event: None,
            event_listener=lambda peer: 0,
        )
        core.dispatcher._push = core.push  # type: ignore[assignment]
        if with_dso:
            core.dispatcher._dso = DsoService(
                PushSettings(),
                zones=core.zones,
                clock=core.clock,
                metrics=core.metrics,
                send=lambda via, wire: self.sent.append((via, wire)),
                abort=self.aborted.add,
            )
        self.fast = FastPath(core.zones, core.clock, core.metrics.requests, core.guard)
        self.serving = StreamServer(core.dispatcher.handle, StreamLimits(15.0, 10, 10), core.metrics, _NoWatchers())
        self.inputs = 0

    @property
    def is_spent(self) -> bool:
        self.inputs += 1
        return self.inputs > _RENEWED_AFTER or bool(self.core.store.commits)

    def check(self) -> None:
        """What no input may bring about."""
        core = self.core
        assert core.metrics.faults.labels("dispatch")._value.get() == 0, "a fault while answering"
        for zone in core.zones:
            assert rows_of(zone) == core.store.rows[zone.id], "memory and store differ"


_servers: Final[dict[bool, Server]] = {}


def _a_server(*, with_dso: bool = False) -> Server:
    server = _servers.get(with_dso)
    if server is None or server.is_spent:
        if server is not None:
            server.check()
        server = _servers[with_dso] = Server(with_dso=with_dso)
    return server


def pipeline(data: bytes) -> None:
    """One message by datagram or stream, signed or not, to a server; its reply can be read and fits."""
    if len(data) >= 2:
        with _loop():
            _message(data[0], data[1:])


def _message(how: int, wire: bytes) -> None:
    server = _a_server()
    core = server.core
    by = _SIGNERS[how % len(_SIGNERS)]
    peer = Peer(("udp", "tcp", "tls")[how >> 5 & 1 and 1 + (how >> 6 & 1)], "192.0.2.7", 40000, 7)
    wire = _signed(wire, by)
    at_once = server.fast.find(wire, bytes((192, 0, 2, 7))) if peer.transport == "udp" else None
    sent = core.handle(wire, peer)
    assert len(sent) == 1, "one message, one reply"
    (reply,) = sent
    assert at_once is None or reply == b"" or at_once[2:] == reply[2:], "the fast path says something else"
    is_silent = len(wire) < HEADER_OCTETS or bool(wire[2] & 0x80)
    assert (reply == b"") == is_silent, "a request is answered, a response is not"
    if reply:
        message = decode_message(reply)
        assert message.header.is_response
        assert (message.id, message.header.opcode) == (int.from_bytes(wire[:2], "big"), wire[2] >> 3 & 0xF)
        assert message.header.rcode != Rcode.SERVFAIL
    assert core.metrics.faults.labels("dispatch")._value.get() == 0, "a fault while answering"


class _Transport:
    """What a connection writes to: keeps it, and can be told not to take more."""

    def __init__(self, port: int) -> None:
        self.written = bytearray()
        self.is_closed = False
        self.port = port

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("192.0.2.7", self.port), "sockname": ("192.0.2.53", 5300)}.get(name)

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True

    abort = close


class _Handle:
    def cancel(self) -> None: ...


class _Loop(asyncio.AbstractEventLoop):
    """A loop whose timers never come and whose callbacks run when `turn` is called."""

    def __init__(self) -> None:
        self.soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def time(self) -> float:
        return T0

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        self.soon.append((callback, args))
        return _Handle()

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        return _Handle()

    call_at = call_later

    def get_debug(self) -> bool:
        return False

    def turn(self) -> None:
        for _ in range(1000):
            if not self.soon:
                return
            callback, args = self.soon.popleft()
            callback(*args)
        raise AssertionError("callbacks call callbacks without end")


_LOOP: Final = _Loop()


@contextmanager
def _loop() -> Iterator[None]:
    """What asks for the running loop finds the one whose timers never come."""
    asyncio._set_running_loop(_LOOP)
    try:
        yield
    finally:
        _LOOP.soon.clear()
        asyncio._set_running_loop(None)


class _Decrypted(StreamConnection):
    """A TLS connection behind its handshake: what comes is what was meant."""

    def _take_tls(self, data: bytes) -> None:
        self._buffer += data
        self._take_messages()


def streams(data: bytes) -> None:
    """One connection from its beginning to its end; all it wrote are whole messages."""
    if len(data) < 3:
        return
    how, step, wire = data[0], data[1], data[2:]
    with _loop():
        _stream(how, step, wire)


def _stream(how: int, step: int, wire: bytes) -> None:
    server = _a_server(with_dso=True)
    core = server.core
    by = _SIGNERS[how % len(_SIGNERS)]
    if by is not None:
        wire = _signed_frames(wire, by)
    serving = server.serving
    connection = _Decrypted(serving, "tls") if how & 0x40 else StreamConnection(serving, "tcp")
    transport = _Transport(40000 + server.inputs)
    connection.connection_made(transport)  # type: ignore[arg-type]
    size = 1 + step * step
    for start in range(0, len(wire), size):
        if transport.is_closed:
            break
        if how & 0x80 and start:
            connection.pause_writing()
        connection.data_received(wire[start : start + size])
        core.write()
        if how & 0x80 and start:
            connection.resume_writing()
        _LOOP.turn()
        core.write()
    if not transport.is_closed and not connection.eof_received():
        transport.close()
    core.write()
    connection.connection_lost(None)
    if core.dispatcher._dso is not None:
        core.dispatcher._dso.stream_closed(connection._peer.via if connection._peer else 0)
    server.sent.clear()
    server.aborted.clear()
    out, position = bytes(transport.written), 0
    while position < len(out):
        assert position + 2 <= len(out)
        end = position + 2 + int.from_bytes(out[position : position + 2], "big")
        assert end <= len(out), "a message cut short"
        if out[position + 4] >> 3 & 0xF != 6:  # a DSO message is a header and TLVs, not records
            decode_message(out[position + 2 : end])
        position = end
    assert not len(serving.connections) and not serving.blocked
    assert core.metrics.faults.labels("dispatch")._value.get() == 0, "a fault while answering"


def _signed(wire: bytes, by: Key | None) -> bytes:
    """With a good signature where one can be put on, so that what is behind it is reached."""
    if by is None or not HEADER_OCTETS <= len(wire) < MAX_MESSAGE_OCTETS - 500 or wire[10:12] == b"\xff\xff":
        return wire
    return sign(wire, by, now=T0)[0]


def _signed_frames(wire: bytes, by: Key) -> bytes:
    """The whole messages of a stream, each signed; what follows the last one as it is."""
    out, position = bytearray(), 0
    while position + 2 <= len(wire):
        end = position + 2 + int.from_bytes(wire[position : position + 2], "big")
        if end > len(wire):
            break
        message = _signed(wire[position + 2 : end], by)
        out += len(message).to_bytes(2, "big") + message
        position = end
    return bytes(out) + wire[position:]


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"decode": decode, "pipeline": pipeline, "streams": streams}
assert fold(APEX) == APEX
