"""Many subscribers and one server that is killed: what it costs to keep them, and that none is lost or doubled.

    python -m bench.crowd --sockets 1000 --questions 100

Every socket subscribes to every question by four-way handshake. Then the server is killed with SIGKILL, the zone is
changed while it is down, and it is started again: each subscriber must be told once. Then it is changed once more, and
every subscription is refreshed.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol.constants import QR, Class, Type
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LlqOpcode, LlqOption, Opt, llq_options
from protocol.message import Message, Question, decode, encode
from protocol.name import fold, from_text

ZONE: Final = "members.example."
LEASE: Final = 7200
QUESTIONS_A_MESSAGE: Final = 20
RETRY_SECONDS: Final = 2.0
IN_FLIGHT: Final = 64  # messages under way at once, over all sockets
_RECEIVE_OCTETS: Final = 1 << 20


@dataclass(slots=True)
class Holder:
    """One subscription as its client sees it."""

    llq_id: int = 0
    view: set[bytes] = field(default_factory=set)
    event_ids: set[int] = field(default_factory=set)


class Crowd:
    """Sockets that each watch every question; everything they hear is applied and acknowledged."""

    def __init__(self, port: int, sockets: int, questions: int) -> None:
        self.address = ("127.0.0.1", port)
        self.questions = [Question(from_text(owner(number)), Type.A, Class.IN) for number in range(questions)]
        self._numbers = {fold(question.name): number for number, question in enumerate(self.questions)}
        self._sockets = [
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(sockets)
        ]
        self._by_descriptor = {sock.fileno(): number for number, sock in enumerate(self._sockets)}
        self._poll = select.epoll()
        for sock in self._sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_OCTETS)
            sock.bind(("127.0.0.1", 0))
            self._poll.register(sock, select.EPOLLIN)
        self.holders = [[Holder() for _ in self.questions] for _ in self._sockets]
        self._expected: dict[tuple[int, int], tuple[bytes, list[int], float]] = {}
        self._next_id = 0
        self._then: Callable[[int, list[int], Message, list[LlqOption]], None] = lambda *_: None
        self.errors: list[str] = []

    def __len__(self) -> int:
        return len(self._sockets) * len(self.questions)

    def close(self) -> None:
        self._poll.close()
        for sock in self._sockets:
            sock.close()

    # Exchanges

    def _exchange(self, work: list[tuple[int, list[int], int, int]], seconds: float) -> None:
        """Send (socket, questions, opcode, lease) messages, some at a time, until all are answered."""
        work = work[::-1]
        end = time.monotonic() + seconds
        while work or self._expected:
            while work and len(self._expected) < IN_FLIGHT:
                self._ask(*work.pop())
            self.pump(0.05)
            now = time.monotonic()
            if now > end:
                raise AssertionError(f"no answer to {len(self._expected)} messages, {len(work)} not sent")
            for (number, _), (wire, _, at) in self._expected.items():
                if now - at > RETRY_SECONDS:
                    self._sockets[number].sendto(wire, self.address)

    def _ask(self, number: int, asked: list[int], opcode: int, lease: int) -> None:
        self._next_id = (self._next_id + 1) & 0xFFFF
        options = tuple(
            LlqOption(1, opcode, 0, self.holders[number][question].llq_id, lease).encode() for question in asked
        )
        wire = encode(
            self._next_id, 0x0100, [self.questions[question] for question in asked], opt=Opt(0, options=options)
        )
        self._expected[number, self._next_id] = (wire, asked, time.monotonic())
        self._sockets[number].sendto(wire, self.address)

    def subscribe(self, seconds: float = 300.0) -> None:
        """All of them, by four-way handshake."""
        batches = [
            list(range(start, min(start + QUESTIONS_A_MESSAGE, len(self.questions))))
            for start in range(0, len(self.questions), QUESTIONS_A_MESSAGE)
        ]

        def answered(number: int, asked: list[int], message: Message, options: list[LlqOption]) -> None:
            for question, option in zip(asked, options, strict=True):
                if option.error:
                    self.errors.append(f"set-up refused with {option.error}")
                self.holders[number][question].llq_id = option.llq_id
            for record in message.answers:
                self.holders[number][self._numbers[fold(record.name)]].view.add(record.raw(message.wire))
            if (number, tuple(asked)) not in met:
                met.add((number, tuple(asked)))
                self._ask(number, asked, LlqOpcode.SETUP, options[0].lease)

        met: set[tuple[int, tuple[int, ...]]] = set()
        self._then = answered
        work = [(number, batch, LlqOpcode.SETUP, LEASE) for batch in batches for number in range(len(self._sockets))]
        self._exchange(work, seconds)

    def refresh(self, seconds: float = 300.0) -> int:
        """Renew every lease; how many the server did not know."""
        unknown = 0

        def answered(number: int, asked: list[int], message: Message, options: list[LlqOption]) -> None:
            nonlocal unknown
            unknown += sum(1 for option in options if option.error)

        self._then = answered
        every = list(range(len(self.questions)))
        work = [
            (number, every[start : start + QUESTIONS_A_MESSAGE], LlqOpcode.REFRESH, LEASE)
            for start in range(0, len(every), QUESTIONS_A_MESSAGE)
            for number in range(len(self._sockets))
        ]
        self._exchange(work, seconds)
        return unknown

    # What comes

    def pump(self, seconds: float) -> int:
        """Take what comes within this time, or until there was something; how many datagrams."""
        taken = 0
        for descriptor, _ in self._poll.poll(seconds, 256):
            number = self._by_descriptor[descriptor]
            sock = self._sockets[number]
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        wire = sock.recv(65536)
                    except ConnectionRefusedError:
                        continue
                    taken += 1
                    self._take(number, wire)
        return taken

    def _take(self, number: int, wire: bytes) -> None:
        message = decode(wire)
        options = llq_options(message.opt)
        if options and options[0].opcode == LlqOpcode.EVENT:
            self._event(number, message, options[0])
            return
        expected = self._expected.pop((number, message.id), None)
        if expected is not None:
            self._then(number, expected[1], message, options)

    def _event(self, number: int, message: Message, option: LlqOption) -> None:
        holder = self.holders[number][self._numbers[fold(message.questions[0].name)]]
        if option.llq_id != holder.llq_id:
            self.errors.append("an event for a subscription that is not this client's")
            return
        if message.id not in holder.event_ids:
            holder.event_ids.add(message.id)
            for record in message.answers:
                if record.ttl == LLQ_EVENT_REMOVE_TTL:
                    holder.view.discard(record.raw(message.wire))
                else:
                    holder.view.add(record.raw(message.wire))
        assert message.opt is not None
        self._sockets[number].sendto(encode(message.id, QR, message.questions, opt=message.opt), self.address)

    def wait_for(self, generation: int, seconds: float) -> float:
        """Until every view is the zone's of that generation; how long it took."""
        began = time.monotonic()
        wanted = [{rdata(generation, number)} for number in range(len(self.questions))]
        behind = set(range(len(self._sockets)))
        while behind:
            if time.monotonic() - began > seconds:
                raise AssertionError(f"{len(behind)} of {len(self._sockets)} sockets not told after {seconds} s")
            self.pump(0.1)
            if len(behind) > 8 and not self._is_told(next(iter(behind)), wanted):
                continue
            behind = {number for number in behind if not self._is_told(number, wanted)}
        return time.monotonic() - began

    def _is_told(self, number: int, wanted: list[set[bytes]]) -> bool:
        return all(holder.view == want for holder, want in zip(self.holders[number], wanted, strict=True))

    def events(self) -> tuple[int, int]:
        """Fewest and most events that one subscription got since the last call."""
        counts = [len(holder.event_ids) for row in self.holders for holder in row]
        for row in self.holders:
            for holder in row:
                holder.event_ids.clear()
        return min(counts), max(counts)


def owner(number: int) -> str:
    return f"n{number}.{ZONE}"


def rdata(generation: int, number: int) -> bytes:
    return struct.pack("!BBH", 10, generation, number)


def write_zone(file: Path, generation: int, questions: int) -> None:
    """The zone at one generation, as a master file."""
    lines = [f"$ORIGIN {ZONE}", "$TTL 120", "@ SOA ns hostmaster 1 3600 600 1209600 60"]
    lines += [f"n{number} A {socket.inet_ntoa(rdata(generation, number))}" for number in range(questions)]
    file.write_text("\n".join(lines) + "\n")


def settings(directory: Path, port: int, subscriptions: int) -> dict[str, dict[str, object]]:
    """A server that lets all of them in from one address."""
    return {
        "database": {"url": f"sqlite:///{directory}/homing.db"},
        "zone": {"name": ZONE},
        "dns": {"listen": [f"127.0.0.1:{port}"]},
        "llq": {
            "maximum_subscriptions": 2 * subscriptions,
            "maximum_per_address": 2 * subscriptions,
            "maximum_per_question": 2 * subscriptions,
            "setup_burst": 2 * subscriptions,
        },
        "log": {"level": "warning"},
    }


# The command


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def _server(config: Path) -> Iterator[tuple["subprocess.Popen[bytes]", float]]:
    """A running server and the seconds it took to answer."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "homing", "serve", "--config", str(config)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        while process.stdout.readline() != b"ready\n":
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}")
        yield process, time.monotonic() - began
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _memory(process: "subprocess.Popen[bytes]") -> int:
    """Resident MiB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def _import(config: Path, directory: Path, generation: int, questions: int) -> None:
    file = directory / "zone"
    write_zone(file, generation, questions)
    command = [sys.executable, "-m", "homing", "zone", "import", str(file), "--yes", "--config", str(config)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def saved_rows(directory: Path) -> int:
    """Subscriptions in the database."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(directory / "homing.db", timeout=10)) as connection:
        return int(connection.execute("SELECT count(*) FROM llq").fetchone()[0])


def measure(sockets: int, questions: int) -> dict[str, float]:
    """The whole story on a real server; figures by name. `AssertionError` when one is lost or doubled."""
    from homing.config_file import to_toml

    figures: dict[str, float] = {"subscriptions": sockets * questions}
    with tempfile.TemporaryDirectory(prefix="homing-crowd-") as text:
        directory = Path(text)
        config = directory / "server.toml"
        port = _free_port()
        config.write_text(to_toml(settings(directory, port, sockets * questions)))
        with _server(config):
            pass
        _import(config, directory, 0, questions)
        crowd = Crowd(port, sockets, questions)
        with contextlib.closing(crowd):
            with _server(config) as (process, seconds):
                figures["seconds to start empty"] = seconds
                figures["MiB empty"] = _memory(process)
                began = time.monotonic()
                crowd.subscribe()
                figures["set-ups a second"] = len(crowd) / (time.monotonic() - began)
                figures["MiB with them"] = _memory(process)
                began = time.monotonic()
                while (rows := saved_rows(directory)) < len(crowd):
                    assert time.monotonic() - began < 60, f"only {rows} saved"
                    time.sleep(0.05)
                figures["seconds until all are saved"] = time.monotonic() - began
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            figures["MiB of database"] = sum(file.stat().st_size for file in directory.glob("homing.db*")) >> 20
            _import(config, directory, 1, questions)
            with _server(config) as (process, seconds):
                figures["seconds to start with them"] = seconds
                figures["seconds until all know what changed while it was down"] = crowd.wait_for(1, 120)
                assert crowd.events() == (1, 1), "each is told once"
                _import(config, directory, 2, questions)
                figures["seconds until all know of a change"] = crowd.wait_for(2, 120)
                assert crowd.events() == (1, 1), "each is told once"
                began = time.monotonic()
                assert crowd.refresh() == 0, "all are known"
                figures["refreshes a second"] = len(crowd) / (time.monotonic() - began)
                figures["MiB after the restart"] = _memory(process)
                time.sleep(2)
                crowd.pump(0.1)
                assert crowd.events() == (0, 0)
                assert saved_rows(directory) == len(crowd)
            assert crowd.errors == []
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.sockets, options.questions)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{value:12,.1f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
