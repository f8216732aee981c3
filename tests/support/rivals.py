"""BIND and Knot DNS as primaries of zones we give them, and the way to ask any server: octets there and back."""

import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from homing.lab_ports import free_port
from protocol.message import Question, encode
from protocol.name import from_text
from tests.support.foreign import need
from tests.support.processes import STOP_SECONDS

ADDRESS: Final = "127.0.0.1"
_START_SECONDS: Final = 20.0
Facts = Mapping[str, Any]
"""A key as `--json` prints it: name, algorithm, secret."""
Zones = Mapping[str, Path]
"""Zone files by apex."""


@dataclass(slots=True)
class Asker:
    """One server to ask, by datagram and on one kept connection."""

    name: str
    port: int
    timeout: float = 10.0
    _udp: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    _tcp: socket.socket | None = None

    def ask(self, wire: bytes, *, by_tcp: bool, timeout: float | None = None) -> bytes | None:
        """The reply; None when there is none in time, or the connection is closed instead."""
        was, self.timeout = self.timeout, timeout or self.timeout
        try:
            return self.tcp(wire) if by_tcp else self.udp(wire)
        finally:
            self.timeout = was

    def udp(self, wire: bytes) -> bytes | None:
        """The reply with the request's ID; None when there is none in time."""
        self._udp.settimeout(self.timeout)
        self._udp.sendto(wire, (ADDRESS, self.port))
        while True:
            try:
                reply = self._udp.recv(65535)
            except TimeoutError:
                return None
            if reply[:2] == wire[:2]:
                return reply

    def tcp(self, wire: bytes) -> bytes | None:
        """As `udp`; None also when the server closes the connection instead."""
        for is_new in (False, True):  # a server may have closed the kept one meanwhile
            if self._tcp is None or is_new:
                self._hang_up()
                self._tcp = socket.create_connection((ADDRESS, self.port), self.timeout)
            self._tcp.settimeout(self.timeout)
            try:
                self._tcp.sendall(struct.pack("!H", len(wire)) + wire)
                head = self._read(2)
                if head:
                    return self._read(struct.unpack("!H", head)[0])
            except TimeoutError:
                self._hang_up()
                return None
            except OSError:
                continue
        return None

    def stream(self, wire: bytes) -> Iterator[bytes]:
        """Every message that comes after a request on a connection of its own, for as long as the caller wants."""
        self._hang_up()
        self._tcp = socket.create_connection((ADDRESS, self.port), self.timeout)
        self._tcp.sendall(struct.pack("!H", len(wire)) + wire)
        try:
            while head := self._read(2):
                yield self._read(struct.unpack("!H", head)[0])
        finally:
            self._hang_up()

    def _read(self, count: int) -> bytes:
        assert self._tcp is not None
        out = b""
        while len(out) < count:
            piece = self._tcp.recv(count - len(out))
            if not piece:
                return b""
            out += piece
        return out

    def _hang_up(self) -> None:
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hang_up()
        self._udp.close()


def _named(directory: Path, port: int, zones: Zones, key: Facts, private: Collection[str]) -> list[str]:
    whom = f'key "{key["name"]}"'
    config = directory / "named.conf"
    config.write_text(
        f'options {{ directory "{directory}"; listen-on port {port} {{ {ADDRESS}; }}; listen-on-v6 {{ none; }};\n'
        f'  pid-file "{directory}/named.pid"; session-keyfile "{directory}/session.key"; recursion no; notify no;\n'
        f"  dnssec-validation no; allow-transfer {{ any; }}; minimal-responses no-auth; minimal-any yes;\n"
        f"  version none; hostname none; server-id none; check-names primary ignore;\n"
        f"  zero-no-soa-ttl no; }};\ncontrols {{ }};\n"
        f'key "{key["name"]}" {{ algorithm {key["algorithm"]}; secret "{key["secret"]}"; }};\n'
        + "".join(
            f'zone "{apex}" {{ type primary; file "{file}"; allow-update {{ key "{key["name"]}"; }};\n'
            f"  allow-query {{ {whom if apex in private else 'any'}; }}; }};\n"
            for apex, file in zones.items()
        )
    )
    return ["-g", "-n", "1", "-c", str(config)]


def _knotd(directory: Path, port: int, zones: Zones, key: Facts, private: Collection[str]) -> list[str]:
    assert not private, "Knot DNS refuses no queries by key"
    config = directory / "knot.conf"
    config.write_text(
        f"server:\n    listen: {ADDRESS}@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
        f"    rundir: {directory}\n"
        "log:\n  - target: stderr\n    any: warning\n"
        f"key:\n  - id: {key['name']}\n    algorithm: {key['algorithm']}\n    secret: {key['secret']}\n"
        f"acl:\n  - id: update\n    key: {key['name']}\n    action: [update, transfer]\n"
        f"  - id: transfer\n    address: {ADDRESS}\n    action: transfer\n"
        f"database:\n    storage: {directory}\n"
        f"template:\n  - id: default\n    storage: {directory}\n    acl: [update, transfer]\n    zonefile-sync: -1\n"
        "zone:\n" + "".join(f"  - domain: {apex}\n    file: {file}\n" for apex, file in zones.items())
    )
    return ["-c", str(config)]


_PREPARE: Final = {"named": _named, "knotd": _knotd}


@contextmanager
def start_rival(
    program: str, directory: Path, zones: Zones, key: Facts, private: Collection[str] = ()
) -> Iterator[Asker]:
    """`named` or `knotd` with these zones, which `key` may change, from when it answers for the first of them on.

    `private` ones answer to the key alone. Ended by SIGTERM.
    """
    found = shutil.which(program, path="/usr/sbin:/usr/local/sbin:/usr/bin") or need(program)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "knot.pid").unlink(missing_ok=True)  # of one that ended without a word
    port = free_port(ADDRESS)
    arguments = _PREPARE[program](directory, port, zones, key, private)
    log_file = directory / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen([found, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with Asker(program, port) as asker:
            _wait(asker, process, log_file, next(iter(zones)))
            yield asker
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(asker: Asker, process: "subprocess.Popen[bytes]", log_file: Path, apex: str) -> None:
    question = encode(1, 0, [Question(from_text(apex), 6, 1)])
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log_file.read_text(errors="replace")[-4000:]
        asker.timeout = 0.3
        with suppress(OSError):
            reply = asker.udp(question)
            if reply is not None and reply[3] & 0xF == 0 and reply[6:8] == b"\0\1":
                asker.timeout = 10.0
                return
        time.sleep(0.05)
    raise AssertionError(f"{asker.name} does not answer for {apex}:\n{log_file.read_text(errors='replace')[-4000:]}")
