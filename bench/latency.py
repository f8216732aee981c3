"""Latencies of homing: a change until its event is on the subscriber's socket, and queries while updates run.

The event is an LLQ's over UDP, with `[llq] quiet_seconds = 0` so that the time is the server's own and not the window
in which it waits for more changes, and DNS Push's over TLS, which has no window.
"""

import base64
import os
import random
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.data import FLEET_KEY_NAME, KEY_SECRET, fleet_owner, fleet_size, write_repeated_queries
from bench.load_zone import fill_database
from bench.peers import ADDRESS, LOAD_CPU, SERVER_CPU, free_port
from bench.updates import LEASE, write_changes
from homing.certificates import ensure_certificates
from protocol.constants import Class, Opcode, Type
from protocol.dso import encode_dso, subscribe
from protocol.edns import LlqOption, Opt, UpdateLease, llq_options
from protocol.message import Question, decode, encode
from protocol.name import from_text
from protocol.tsig import SHA256, Key, sign

ZONE: Final = from_text("members.example.")
EVENTS: Final = 500
UPDATES_PER_SECOND: Final = 5000
_SECONDS: Final = 10

Milliseconds = list[float]


class _Server:
    """homing with TLS, LLQ without a window, filled with the benchmark zone."""

    def __init__(self, stack: ExitStack, directory: Path, hosts: int) -> None:
        files = ensure_certificates(directory / "tls", ["ns.members.example"], [ADDRESS])
        self.ca_file = files.ca_file
        self.port, self.tls_port = free_port(), free_port()
        config = directory / "server.toml"
        config.write_text(
            f'[database]\nurl = "sqlite+aiosqlite:///{directory}/homing.db"\n[zone]\nname = "members.example."\n'
            f'[dns]\nlisten = ["{ADDRESS}:{self.port}"]\nlisten_tls = ["{ADDRESS}:{self.tls_port}"]\nrate_limit = 0\n'
            f'certificate_file = "{files.certificate_file}"\nkey_file = "{files.key_file}"\n'
            '[llq]\nquiet_seconds = 0.0\n[log]\nlevel = "warning"\n'
        )
        fill_database(directory / "homing.db", hosts, self.port)
        process = stack.enter_context(
            subprocess.Popen(
                ["taskset", "-c", SERVER_CPU, sys.executable, "-m", "homing", "serve", "--config", str(config)],
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the server did not start")


class _Updater:
    """Sends one signed update after another and waits for the answer."""

    def __init__(self, port: int) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.connect((ADDRESS, port))
        self._sock.settimeout(5)
        self._key = Key(from_text(FLEET_KEY_NAME), SHA256, KEY_SECRET)
        self._number = 0

    def change(self, owner: bytes) -> float:
        """Give `owner` another address; when the answer was there."""
        self._number += 1
        address = struct.pack("!I", 0x0A000000 + self._number)
        delete = (owner, Type.A, Class.ANY, 0, b"")
        add = (owner, Type.A, Class.IN, 120, address)
        opt = Opt(options=(UpdateLease(7200).encode(),))
        question = Question(ZONE, Type.SOA, Class.IN)
        wire = encode(self._number & 0xFFFF, Opcode.UPDATE << 11, [question], (), [delete, add], opt=opt)
        self._sock.send(sign(wire, self._key, now=int(time.time()))[0])
        reply = self._sock.recv(4096)
        if reply[3] & 0xF:
            raise RuntimeError(f"update answered {reply[3] & 0xF}")
        return time.perf_counter()


def _subscribe_llq(sock: socket.socket, owner: bytes) -> None:
    question = Question(owner, Type.A, Class.IN)

    def ask(llq_id: int, lease: int) -> LlqOption:
        opt = Opt(options=(LlqOption(1, 1, 0, llq_id, lease).encode(),))
        sock.send(encode(7, 0, [question], opt=opt))
        found = decode(sock.recv(4096)).opt
        assert found is not None
        return llq_options(found)[0]

    challenge = ask(0, 7200)
    ask(challenge.llq_id, challenge.lease)


def _llq_receiver(stack: ExitStack, server: _Server, owner: bytes) -> Callable[[], float]:
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.connect((ADDRESS, server.port))
    sock.settimeout(5)
    _subscribe_llq(sock, owner)

    def receive() -> float:
        event = sock.recv(4096)
        at = time.perf_counter()
        sock.send(event)  # an acknowledgement has the ID, the question and the option of its event
        return at

    return receive


def _push_receiver(stack: ExitStack, server: _Server, owner: bytes) -> Callable[[], float]:
    context = ssl.create_default_context(cafile=str(server.ca_file))
    plain = stack.enter_context(socket.create_connection((ADDRESS, server.tls_port), 5))
    sock = stack.enter_context(context.wrap_socket(plain, server_hostname="ns.members.example"))
    reader = stack.enter_context(sock.makefile("rb"))
    wire = encode_dso(1, [subscribe(Question(owner, Type.A, Class.IN))])
    sock.sendall(len(wire).to_bytes(2, "big") + wire)

    def receive() -> float:
        size = int.from_bytes(reader.read(2), "big")
        reader.read(size)
        return time.perf_counter()

    receive()  # the answer
    receive()  # what is there
    return receive


def events(directory: Path, hosts: int) -> dict[str, Milliseconds]:
    """By way: milliseconds from the update's answer to the event, negative when the event came first."""
    found: dict[str, Milliseconds] = {}
    with ExitStack() as stack:
        server = _Server(stack, directory, hosts)
        updater = _Updater(server.port)
        for number, (way, make) in enumerate((("llq", _llq_receiver), ("push", _push_receiver))):
            owner = from_text(fleet_owner(number))
            receive = make(stack, server, owner)
            times: Milliseconds = []
            for _ in range(EVENTS):
                at: list[float] = []
                waiting = threading.Thread(target=lambda receive=receive, at=at: at.append(receive()))
                waiting.start()
                answered_at = updater.change(owner)
                waiting.join()
                times.append((at[0] - answered_at) * 1000)
            found[way] = times
            print(f"change to event, {way}: p99 {percentile(times, 99):.2f} ms", file=sys.stderr)
    return found


def queries_beside_updates(directory: Path, hosts: int) -> dict[str, Milliseconds]:
    """Round trips of 200 queries a second, in ms: on an idle server, and beside 5,000 updates a second."""
    with ExitStack() as stack:
        server = _Server(stack, directory, hosts)
        asked, changed = directory / "queries", directory / "changes"
        write_repeated_queries(asked, hosts)
        write_changes(changed, [fleet_owner(number) for number in range(fleet_size(hosts))])
        names = [line.split()[0] for line in asked.read_text().splitlines()]
        idle = _round_trips(server.port, names)
        key = f"hmac-sha256:{FLEET_KEY_NAME}:{base64.b64encode(KEY_SECRET).decode()}"
        load = stack.enter_context(
            subprocess.Popen(
                ["taskset", "-c", LOAD_CPU, "dnsperf", "-s", ADDRESS, "-p", str(server.port), "-d", str(changed),
                 "-l", str(_SECONDS + 2), "-Q", str(UPDATES_PER_SECOND), "-q", "400", "-c", "4", "-u", "-y", key,
                 *LEASE],
                stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        time.sleep(1)
        loaded = _round_trips(server.port, names)
        out = load.communicate()[0]
        rate = next(line.split()[-1] for line in out.splitlines() if "Updates per second" in line)
        print(f"query p99 idle {percentile(idle, 99):.2f} ms, beside {rate} updates/s {percentile(loaded, 99):.2f} ms",
              file=sys.stderr)  # fmt: skip
        return {"idle": idle, "loaded": loaded, "updates_per_second": [float(rate)]}


def _round_trips(port: int, names: list[str]) -> Milliseconds:
    """Asked from the load's processor: wherever the system would put us, it is beside the idle server, not the busy."""
    os.sched_setaffinity(0, {int(LOAD_CPU)})
    rng = random.Random(6)
    times: Milliseconds = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((ADDRESS, port))
        sock.settimeout(2)
        ends_at = time.perf_counter() + _SECONDS
        while time.perf_counter() < ends_at:
            wire = encode(rng.getrandbits(16), 0, [Question(from_text(rng.choice(names)), Type.A, Class.IN)])
            began_at = time.perf_counter()
            sock.send(wire)
            sock.recv(4096)
            took = time.perf_counter() - began_at
            times.append(took * 1000)
            time.sleep(max(0.0, 0.005 - took))
    return times


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def summary(values: Milliseconds) -> dict[str, float]:
    return {
        "p50": statistics.median(values),
        "p90": percentile(values, 90),
        "p99": percentile(values, 99),
        "worst": max(values),
    }
