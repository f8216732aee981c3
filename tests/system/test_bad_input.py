"""A real server under input that nobody should send: it lives, answers, stays small, and counts what it drops."""

import base64
import json
import random
import re
import socket
import ssl
import struct
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from protocol.constants import Opcode, Type
from protocol.edns import Opt, UpdateLease
from protocol.message import Question, encode
from protocol.name import from_text
from protocol.tsig import Key, algorithm_from_text, sign
from tests.support.golden import below
from tests.support.processes import Running, homing, server_config, start, tls_tables

ZONE: Final = from_text("members.example")
BIG: Final = from_text("big.alice.members.example")
IDLE_SECONDS: Final = 1.0
PER_ADDRESS: Final = 20
NOERROR, FORMERR, SERVFAIL = 0, 1, 2
ROOM_KIB: Final = 48 * 1024
"""How much the process may grow under attack: buffers, allocator, caches; a leak of thousands of messages is more."""
Address = tuple[str, int]


@dataclass(slots=True)
class Target:
    """The server under attack and what it says of itself."""

    running: Running
    config: Path
    key: Key

    @property
    def dns(self) -> Address:
        return "127.0.0.1", self.running.port

    @property
    def tls(self) -> Address:
        return "127.0.0.1", self.running.tls_port

    def counters(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        host, port = self.running.listening["metrics"][0]
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as reply:
            text = reply.read().decode()
        return {name: float(value) for name, value in re.findall(r"^(homing\S+) (\S+)$", text, re.MULTILINE)}

    def count(self, name: str) -> float:
        return self.counters().get(name, 0.0)

    def kib(self) -> int:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.running.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1])

    def assert_well(self, kib_before: int) -> None:
        """It lives, answers over each transport, has met no fault of its own and has not grown."""
        assert self.running.process.poll() is None, self.running.log
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(query(7), self.dns)
            assert sock.recv(4096)[:2] == b"\0\7"
        with socket.create_connection(self.dns, 5) as sock:
            sock.sendall(framed(query(8)))
            assert read_message(sock)[:2] == b"\0\x08"
        with over_tls(self) as tls_sock:
            tls_sock.sendall(framed(query(9)))
            assert read_message(tls_sock)[:2] == b"\0\x09"
        faults = {name: value for name, value in self.counters().items() if name.startswith("homing_faults_total")}
        assert not any(faults.values()), faults
        assert "Traceback" not in self.running.log
        assert self.kib() < kib_before + ROOM_KIB


def query(message_id: int, name: bytes = ZONE, rtype: int = Type.SOA) -> bytes:
    return encode(message_id, 0, [Question(name, rtype, 1)])


def framed(wire: bytes) -> bytes:
    return struct.pack("!H", len(wire)) + wire


def read_message(sock: socket.socket) -> bytes:
    """One message of a stream; b"" when it ends first."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return b""
        if not piece:
            return b""
        data += piece
    return data[2:]


def is_closed_within(sock: socket.socket, seconds: float) -> bool:
    """Whether the server ends the connection in time; what it still sends is read and thrown away."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            if not sock.recv(65536):
                return True
        except TimeoutError:
            return False
        except OSError:
            return True
    return False


def over_tls(target: Target) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(target.config.parent / "tls" / "ca.pem"))
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(target.tls, 5))
        wrapped = context.wrap_socket(sock, server_hostname="ns.members.example")
        stack.pop_all()
    return wrapped


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One server for all, with small limits and a member whose one name has an answer of some 27 kB."""
    directory = tmp_path_factory.mktemp("target")
    _, tls = tls_tables(directory)
    config = server_config(
        directory,
        dns={
            **tls,
            "tcp_idle_seconds": IDLE_SECONDS,
            "tcp_connections_per_address": PER_ADDRESS,
        },
        metrics={"listen": "127.0.0.1:0"},
    )
    made = homing("member", "add", "alice", "--json", "--config", config)
    found = json.loads(made.out)
    found = found.get("key", found)
    secret = base64.b64decode(found["secret"])
    key = Key(from_text(found["name"]), algorithm_from_text(found["algorithm"]), secret)
    with start("serve", config) as running:
        target = Target(running, config, key)
        records = [(BIG, Type.TXT, 1, 300, b"\xff" + bytes([n]) * 255) for n in range(100)]
        update = encode(
            1,
            Opcode.UPDATE << 11,
            [Question(ZONE, Type.SOA, 1)],
            (),
            records,
            opt=Opt(options=(UpdateLease(1800).encode(),)),
        )
        with socket.create_connection(target.dns, 5) as sock:
            sock.sendall(framed(sign(update, key, now=int(time.time()))[0]))
            assert read_message(sock)[3] & 0xF == NOERROR
        yield target


# What to send


def looping_names() -> list[bytes]:
    """Names that never end, or lie about where they go on."""
    names = [
        b"\xc0\x0c",  # to itself
        b"\x01a\xc0\x0c",  # back to its own beginning
        b"\xc0\x0e\xc0\x0c",  # two that point at each other
        b"\xff\xff",  # past the end
        b"\xc0",  # half a pointer
        b"\x3f" + b"a" * 20,  # a label longer than what follows
        b"\x40" + b"a" * 64 + b"\0",  # a reserved label type
        b"\x80\x01a\0",
        (b"\x3f" + b"a" * 63) * 5 + b"\0",  # 320 octets
        b"\x01a" * 130 + b"\0",
    ]
    return [struct.pack("!6H", 0, 0, 1, 0, 0, 0) + name + b"\0\1\0\1" for name in names]


def deep_pointers() -> bytes:
    """Thousands of labels by pointers to pointers: reading it must not take quadratic time."""
    out = bytearray(struct.pack("!6H", 0, 0, 8_000, 0, 0, 0))
    position = len(out)
    out += b"\0\0\1\0\1"
    for _ in range(7_999):
        out += struct.pack("!BBHHH", 1, 97, 0xC000 | position if position < 0x4000 else 0xC00C, 1, 1)
        position = len(out) - 8
    return bytes(out)


def mutated(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A message of real life with some octets changed, cut out, doubled, or its end gone."""
    wire = bytearray(dice.choice(seeds))
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(wire)) if wire else 0
        match dice.randrange(6):
            case 0 | 1 if wire:
                wire[at] = dice.choice((0, 1, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFF, dice.randrange(256)))
            case 2:
                del wire[at:]
            case 3:
                del wire[at : at + dice.randint(1, 8)]
            case 4:
                wire[at:at] = wire[at : at + dice.randint(1, 40)]
            case _:
                wire += dice.randbytes(dice.randint(1, 30))
    return bytes(wire)


def seeds() -> list[bytes]:
    llq = Opt(options=((1, struct.pack("!HHHQI", 1, 1, 0, 0, 7200)),))
    own = [
        query(1),
        query(2, BIG, Type.TXT),
        query(3, BIG, Type.ANY),
        encode(4, 0, [Question(BIG, Type.TXT, 1)], opt=llq),
        encode(5, Opcode.UPDATE << 11, [Question(ZONE, Type.SOA, 1)], (), [(BIG, Type.A, 1, 60, bytes(4))], opt=Opt()),
    ]
    return own + [packet.wire for folder in ("edns", "llq", "tsig", "update") for packet in below(folder)]


def bad_datagrams(count: int, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    real = seeds()
    found = [wire[:length] for wire in real for length in range(0, len(wire), 3)]
    found += [*looping_names(), deep_pointers(), b"", b"\0", bytes(65507), b"\xff" * 65507, dice.randbytes(65507)]
    while len(found) < count:
        found.append(mutated(dice, real) if dice.random() < 0.8 else dice.randbytes(dice.randint(0, 200)))
    dice.shuffle(found)
    return found


# Datagrams


def test_every_bad_datagram_with_a_readable_header_is_answered_and_the_rest_counted(target: Target) -> None:
    """Nothing with 12 octets that is no response goes unanswered; everything else is dropped, by reason."""
    kib = target.kib()
    before = target.counters()
    expected = {"short": 0, "response": 0}
    rcodes: dict[int, int] = {}
    waiting: set[int] = set()

    def take() -> None:
        reply = sock.recv(65535)
        assert reply[2] & 0x80 and len(reply) <= 1232
        waiting.remove(int.from_bytes(reply[:2], "big"))
        rcode = reply[3] & 0xF
        rcodes[rcode] = rcodes.get(rcode, 0) + 1

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(target.dns)
        sock.settimeout(5)
        for number, wire in enumerate(bad_datagrams(5000, seed=1)):
            sent = struct.pack("!H", number) + wire[2:] if len(wire) >= 12 else wire
            sock.send(sent)
            if len(sent) < 12:
                expected["short"] += 1
            elif sent[2] & 0x80:
                expected["response"] += 1
            else:
                waiting.add(number)
            if len(waiting) >= 16 or len(sent) > 10_000:
                while waiting:
                    take()
        while waiting:
            take()
    assert rcodes[FORMERR] > 500
    assert SERVFAIL not in rcodes
    after = target.counters()
    for reason, count in expected.items():
        name = f'homing_dropped_total{{reason="{reason}"}}'
        assert after[name] - before.get(name, 0) == count > 50
    target.assert_well(kib)


@pytest.mark.parametrize("wire", looping_names())
def test_a_name_that_never_ends_is_formerr(target: Target, wire: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(wire, target.dns)
        assert sock.recv(512) == struct.pack("!6H", 0, 0x8000 | FORMERR, 0, 0, 0, 0)


def test_thousands_of_pointed_questions_do_not_stall_the_server(target: Target) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        begun = time.monotonic()
        for _ in range(5):
            sock.sendto(deep_pointers(), target.dns)
        for _ in range(5):
            assert sock.recv(4096)[3] & 0xF == FORMERR
        assert time.monotonic() - begun < 3


# Streams


def test_bad_streams(target: Target) -> None:
    """Mutants one after the other on a connection; garbage; a length that is a lie. Well-formed ones in between."""
    kib = target.kib()
    dice = random.Random(2)
    bad = [wire for wire in bad_datagrams(2000, seed=3) if len(wire) < 5000]
    for start_at in range(0, len(bad), 100):
        with socket.create_connection(target.dns, 5) as sock:
            for wire in bad[start_at : start_at + 100]:
                sock.sendall(framed(wire))
            sock.sendall(framed(query(0x7777)))
            while (reply := read_one(sock))[:2] != b"\x77\x77":
                assert reply[2] & 0x80
    for _ in range(40):
        with socket.create_connection(target.dns, 5) as sock, suppress(ConnectionError):
            sock.sendall(dice.randbytes(dice.choice((1, 2, 3, 500, 70_000))))
            if dice.random() < 0.5:
                sock.shutdown(socket.SHUT_WR)
                assert is_closed_within(sock, 2 * IDLE_SECONDS + 1)
    target.assert_well(kib)


def read_one(sock: socket.socket) -> bytes:
    """Exactly one message, not an octet more, so that the next can be read after it."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = sock.recv(size - len(data))
            assert piece, "closed"
            data += piece
        return data

    return exactly(int.from_bytes(exactly(2), "big"))


def test_half_a_length_half_a_message_and_a_trickle_end_by_the_idle_limit(target: Target) -> None:
    with ExitStack() as stack:

        def connected(first: bytes) -> socket.socket:
            sock = stack.enter_context(socket.create_connection(target.dns, 5))
            sock.sendall(first)
            return sock

        half_length, half_message = connected(b"\0"), connected(framed(query(1))[:-1])
        silent, trickle = connected(b""), connected(b"\xff\xff")
        begun = time.monotonic()
        while time.monotonic() < begun + 1.8 * IDLE_SECONDS:
            with suppress(ConnectionError):
                trickle.send(b"x")
            time.sleep(0.05)
        for sock in (half_length, half_message, silent, trickle):
            assert is_closed_within(sock, IDLE_SECONDS)


def test_garbage_to_the_tls_port(target: Target) -> None:
    kib = target.kib()
    dice = random.Random(4)
    lines = target.running.log.count("\n")
    for number in range(30):
        with socket.create_connection(target.tls, 5) as sock:
            # plain DNS, an HTTP request, noise, a record header and noise
            start_of = (framed(query(1)), b"GET / HTTP/1.1\r\n\r\n", dice.randbytes(400), b"\x16\x03\x01\x02\0")
            with suppress(ConnectionError):
                sock.sendall(start_of[number % 4] + dice.randbytes(600))
            assert is_closed_within(sock, 5)
    assert target.running.log.count("\n") - lines <= 30
    target.assert_well(kib)


def test_connections_beyond_the_share_of_an_address_are_closed_and_counted(target: Target) -> None:
    refused = 'homing_streams_refused_total{limit="per_address"}'
    before = target.count(refused)
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(target.dns, 5, source_address=("127.0.0.9", 0)))
            for _ in range(PER_ADDRESS + 5)
        ]
        for sock in sockets[PER_ADDRESS:]:
            assert is_closed_within(sock, 3)
        assert target.count(refused) - before == 5
        for sock in (sockets[0], sockets[PER_ADDRESS - 1]):
            sock.sendall(framed(query(3)))
            assert read_message(sock)[:2] == b"\0\3"
        with socket.create_connection(target.dns, 5) as neighbour:
            neighbour.sendall(framed(query(4)))
            assert read_message(neighbour)[:2] == b"\0\4"


def test_a_peer_that_asks_and_never_reads_is_cut_off(target: Target) -> None:
    """Each 44 octets ask for 27 kB: memory stays bounded and others are answered all the while."""
    kib = target.kib()
    asked = framed(query(5, BIG, Type.TXT)) * 200
    longest = 0.0
    with ExitStack() as stack:
        deaf = [stack.enter_context(small_window(target.dns)) for _ in range(4)]
        deaf += [stack.enter_context(over_tls(target)) for _ in range(2)]
        cut_off: set[int] = set()
        end = time.monotonic() + 10 * IDLE_SECONDS
        other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        other.settimeout(5)
        while len(cut_off) < len(deaf) and time.monotonic() < end:
            for number, sock in enumerate(deaf):
                sock.setblocking(False)
                try:
                    sock.send(asked)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    continue
                except OSError:
                    cut_off.add(number)
            begun = time.monotonic()
            other.sendto(query(6), target.dns)
            other.recv(4096)
            longest = max(longest, time.monotonic() - begun)
            assert target.kib() < kib + ROOM_KIB
        assert cut_off == set(range(len(deaf)))
    assert longest < 3  # not a timing: a server that waits for a deaf peer would take until it is cut off
    target.assert_well(kib)


def test_a_peer_that_reads_late_gets_every_answer(target: Target) -> None:
    """Back-pressure is no loss: some 8 MB of answers, read only after all was asked."""
    with small_window(target.dns) as sock:
        sock.setblocking(True)
        sock.sendall(b"".join(framed(query(number, BIG, Type.TXT)) for number in range(300)))
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        sock.settimeout(5)
        assert [int.from_bytes(read_one(sock)[:2], "big") for _ in range(300)] == list(range(300))
        assert is_closed_within(sock, 2)


def small_window(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(address)
    return sock
