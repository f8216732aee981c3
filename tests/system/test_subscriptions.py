"""`homing serve` killed, stopped and robbed of its database while clients watch; at full size: `make crowd`."""

import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bench.crowd import LEASE, Crowd, owner, saved_rows, settings, write_zone
from protocol.constants import Class, Type
from protocol.edns import LlqError, LlqOpcode, LlqOption, Opt, llq_options
from protocol.message import Message, Question, decode, encode
from protocol.name import from_text
from tests.support.processes import homing, server_config, start

SOCKETS, QUESTIONS = 50, 20
SECONDS = 30.0


def free_port() -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def prepared(directory: Path) -> tuple[Path, int]:
    """A server's file with a fixed port, its database filled with the first generation."""
    port = free_port()
    config = server_config(directory, **settings(directory, port, 2 * SOCKETS * QUESTIONS))
    with start("serve", config):
        pass
    take_over(config, directory, 0)
    return config, port


def take_over(config: Path, directory: Path, generation: int) -> None:
    write_zone(directory / "zone", generation, QUESTIONS)
    done = homing("zone", "import", directory / "zone", "--yes", "--config", config)
    assert done.code == 0, done.err


def wait_until(happened: Callable[[], bool], crowd: Crowd | None = None) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        if crowd is not None:
            crowd.pump(0.05)
        else:
            time.sleep(0.05)


def ask(port: int, opcode: int, llq_id: int, sock: socket.socket, lease: int = LEASE, error: int = 0) -> Message:
    """One message about the first question over UDP or TCP; the reply."""
    question = Question(from_text(owner(0)), Type.A, Class.IN)
    option = LlqOption(1, opcode, error, llq_id, lease)
    wire = encode(7, 0x0100, [question], opt=Opt(0, options=(option.encode(),)))
    if sock.type == socket.SOCK_DGRAM:
        sock.sendto(wire, ("127.0.0.1", port))
        return decode(sock.recv(65536))
    sock.sendall(len(wire).to_bytes(2, "big") + wire)
    return decode(read_stream(sock))


def read_stream(sock: socket.socket) -> bytes:
    """One message, b"" at the end."""
    octets = b""
    while len(octets) < 2 or len(octets) < 2 + int.from_bytes(octets[:2], "big"):
        piece = sock.recv(65536)
        if not piece:
            return b""
        octets += piece
    return octets[2:]


def option_of(message: Message) -> LlqOption:
    (option,) = llq_options(message.opt)
    return option


@pytest.mark.rfc("8764", "6")
def test_after_a_kill_all_are_there_and_told_once_what_changed_meanwhile(tmp_path: Path) -> None:
    config, port = prepared(tmp_path)
    with closing(Crowd(port, SOCKETS, QUESTIONS)) as crowd:
        with start("serve", config) as running:
            crowd.subscribe(SECONDS)
            wait_until(lambda: saved_rows(tmp_path) == len(crowd))
            running.process.kill()
            running.process.wait()
        take_over(config, tmp_path, 1)
        with start("serve", config):
            crowd.wait_for(1, SECONDS)
            assert crowd.events() == (1, 1)
            take_over(config, tmp_path, 2)
            crowd.wait_for(2, SECONDS)
            assert crowd.events() == (1, 1)
            assert crowd.refresh(SECONDS) == 0
        assert crowd.errors == []


@pytest.mark.rfc("8764", "7.2")
def test_after_the_store_was_lost_a_refresh_gets_no_such_llq(tmp_path: Path) -> None:
    config, port = prepared(tmp_path)
    with closing(Crowd(port, 1, 2)) as crowd:
        with start("serve", config) as running:
            crowd.subscribe(SECONDS)
            running.process.kill()
            running.process.wait()
        for file in tmp_path.glob("homing.db*"):
            file.unlink()
        with start("serve", config):
            assert crowd.refresh(SECONDS) == 2


def test_a_clean_stop_closes_streams_and_keeps_the_rest(tmp_path: Path) -> None:
    """A stream's subscription goes on at its event port, or not at all where none was told."""
    config, port = prepared(tmp_path)
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as event_port,
        closing(Crowd(port, 2, QUESTIONS)) as crowd,
    ):
        event_port.bind(("127.0.0.1", 0))
        event_port.settimeout(SECONDS)
        with start("serve", config) as running:
            crowd.subscribe(SECONDS)
            with closing(socket.create_connection(("127.0.0.1", port), SECONDS)) as stream:
                kept = option_of(ask(port, LlqOpcode.SETUP, 0, stream, error=event_port.getsockname()[1]))
                with closing(socket.create_connection(("127.0.0.1", port), SECONDS)) as other:
                    ended = option_of(ask(port, LlqOpcode.SETUP, 0, other))
                    assert running.stop() == 0
                    assert read_stream(other) == b""
                assert read_stream(stream) == b""
        take_over(config, tmp_path, 1)
        with start("serve", config):
            crowd.wait_for(1, SECONDS)
            event = decode(event_port.recv(65536))
            assert option_of(event).llq_id == kept.llq_id
            with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
                sock.settimeout(SECONDS)
                assert option_of(ask(port, LlqOpcode.REFRESH, kept.llq_id, sock)).error == LlqError.NO_ERROR
                assert option_of(ask(port, LlqOpcode.REFRESH, ended.llq_id, sock)).error == LlqError.NO_SUCH_LLQ
