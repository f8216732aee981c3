"""`homing lab` as its users meet it: a script with its JSON line, and a person at a terminal."""

import base64
import fcntl
import os
import pty
import re
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.databases import records_in
from tests.support.foreign import LabProcess, start_lab, status
from tests.support.processes import HOMING, STOP_SECONDS, homing

ROWS, COLUMNS = 40, 120
ADDRESS: Final = re.compile(r"127\.77\.0\.\d+")


def external_address(lab: LabProcess) -> str:
    """What the gateway says over NAT-PMP (RFC 6886 §3.2)."""
    natpmp = lab.facts["natpmp"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(b"\0\0", (natpmp["address"], natpmp["port"]))
        version, opcode, result, _epoch, address = struct.unpack("!BBHI4s", sock.recv(64))
    assert (version, opcode, result) == (0, 128, 0)
    return socket.inet_ntoa(address)


# For a script


def test_the_contract_and_the_same_state_twice(tmp_path: Path) -> None:
    """One line of JSON, then silence on stdout; started again: the same ports, keys and data. Ends with 0 both ways."""
    runs: list[dict[str, Any]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with start_lab(tmp_path / "state") as lab:
            assert_contract(lab.facts)
            assert external_address(lab) == lab.facts["external_address"]
            assert_machines(lab)
            if not runs:
                kept = "update add kept.alice.members.example 300 A 192.0.2.44"
                assert status(lab.nsupdate("admin", kept)) == "NOERROR"
            assert lab.dig("kept.alice.members.example", "A", "+short").strip() == "192.0.2.44"
            assert leased_records(lab) > 0
            assert lab.stop(number) == 0
            assert leased_records(lab) == 0  # a clean stop takes every machine's names back
            assert lab.process.stdout is not None and lab.process.stdout.read() == b""
            log = lab.log_file.read_text()
            for key in lab.facts["keys"].values():
                secret = base64.b64decode(key["secret"])
                assert key["secret"] not in log and secret.hex() not in log and repr(secret)[2:-1] not in log
            assert "Traceback" not in log
            runs.append(lab.facts)
    assert runs[0] == runs[1]


def assert_contract(facts: dict[str, Any]) -> None:
    """DESIGN's keys and types, and nothing renamed."""
    assert facts["zone"] == "members.example."
    assert facts["dns"]["address"] == "127.0.0.1"
    assert all(type(facts["dns"][name]) is int and facts["dns"][name] > 0 for name in ("udp", "tcp", "tls"))
    assert facts["dns"]["udp"] == facts["dns"]["tcp"]
    assert Path(facts["ca_file"]).read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert set(facts["keys"]) == {"alice", "bob", "admin"}
    for key in facts["keys"].values():
        assert set(key) == {"name", "algorithm", "secret"}
        assert key["algorithm"] == "hmac-sha256" and len(base64.b64decode(key["secret"], validate=True)) == 32
    assert facts["keys"]["alice"]["name"] == "alice.members.example."
    assert set(facts["natpmp"]) == {"address", "port"} and type(facts["natpmp"]["port"]) is int
    socket.inet_aton(facts["external_address"])
    assert Path(facts["database"]).is_file()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", facts["metrics"])


def assert_machines(lab: LabProcess) -> None:
    """RFC 6281 §5: PTR to the service, SRV to port and name, A outside, AAAA inside."""
    for member, machines in (("alice", ("mac", "mini")), ("bob", ("desk", "laptop"))):
        key = ("-y", lab.key(member)) if member == "bob" else ()
        services = lab.dig(f"_autotunnel._udp.{member}.members.example", "PTR", "+short", *key).split()
        assert len(services) == len(machines)
        for machine in machines:
            (service,) = (found for found in services if machine in found)
            _, _, port, target = lab.dig(service, "SRV", "+short", *key).split()
            assert 0 < int(port) < 65536
            assert lab.dig(target, "A", "+short", *key).strip() == lab.facts["external_address"]
            inner = lab.dig(f"{machine}.{member}.members.example", "AAAA", "+short", *key).strip()
            assert socket.inet_pton(socket.AF_INET6, inner)[0] == 0xFD


def leased_records(lab: LabProcess) -> int:
    with closing(sqlite3.connect(lab.facts["database"])) as connection:
        return sum(record.expires_at is not None for record in records_in(connection))


def test_a_state_directory_may_have_any_name(tmp_path: Path) -> None:
    """None of it is taken for a part of the database's URL."""
    directory = tmp_path / "a?b=50%20 x#y:@é"
    with start_lab(directory, "--no-clients") as lab:
        assert Path(lab.facts["database"]).parent == directory
        assert status(lab.dig("members.example", "SOA")) == "NOERROR"
    assert (directory / "homing.db").stat().st_size and (directory / "homing.db.key").exists()
    assert [found.name for found in tmp_path.iterdir() if found.is_dir()] == [directory.name]


def test_a_second_lab_on_the_same_state_says_so_and_leaves_the_first_alone(tmp_path: Path) -> None:
    with start_lab(tmp_path / "state", "--no-clients") as lab:
        second = homing("lab", "--json", "--no-clients", "--state", tmp_path / "state")
        assert_one_clear_line(second.code, second.err)
        assert second.out == "" and "in use" in second.err
        assert status(lab.dig("members.example", "SOA")) == "NOERROR"
        assert status(lab.nsupdate("admin", "update add after.alice.members.example 60 A 192.0.2.1")) == "NOERROR"
        assert lab.stop() == 0


def assert_one_clear_line(code: int, err: str) -> None:
    assert code == 1, err
    assert len(err.splitlines()) == 1 and err.startswith("homing: "), err


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    below = homing("lab", "--json", "--state", tmp_path / "file" / "state")
    assert_one_clear_line(below.code, below.err)
    assert str(tmp_path / "file") in below.err
    itself = homing("lab", "--json", "--state", tmp_path / "file")
    assert_one_clear_line(itself.code, itself.err)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ports.json", "{"),
        ("ports.json", '{"dns": 99999, "tls": 2, "natpmp": 3, "announcements": 4, "metrics": 5}'),
        ("tls", "x"),
        (
            "homing.db",
            "not a database, but as long as one's header is: that is a hundred octets, so here are some more.",
        ),
        ("homing.db.key", "short"),
    ],
)
def test_state_that_is_damaged_is_one_clear_line(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / name).chmod(0o600)
    found = homing("lab", "--json", "--no-clients", "--state", tmp_path)
    assert_one_clear_line(found.code, found.err)
    assert name in found.err
    assert (tmp_path / name).read_text() == content  # never overwritten


# For a person


class Terminal:
    """A pseudo-terminal with a program on it, and a screen that understands as much as the lab's table needs."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, slave: int) -> None:
        self.process = process
        self.master = master
        self.slave = slave
        self.raw = b""

    def read(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                piece = os.read(self.master, 65536)
            except OSError:
                return  # everything on the other side has gone
            if not piece:
                return
            self.raw += piece

    @property
    def screen(self) -> list[str]:
        """The last whole picture: each redraw begins at the top left corner."""
        frames = re.split(rb"\x1b\[H", self.raw)
        text = frames[-1] if len(frames[-1]) > 2000 else frames[-2] if len(frames) > 1 else b""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode("utf-8", "replace"))
        return [line.rstrip() for line in plain.replace("\r", "").split("\n")]

    def rows(self, heading: str) -> dict[tuple[str, ...], list[str]]:
        """The table under a heading: rows as words, by their first two."""
        lines = self.screen
        start = next((number for number, line in enumerate(lines) if line.startswith(heading)), None)
        found: dict[tuple[str, ...], list[str]] = {}
        for line in lines[start + 1 :] if start is not None else []:
            words = line.split()
            if not words:
                break
            found[tuple(words[:2])] = words
        return found

    def tunnels(self) -> dict[tuple[str, ...], str]:
        """(from, to) -> outer address, as far as one is known."""
        return {
            pair: found[0].group() for pair, words in self.rows("tunnel").items() if (found := find_all(ADDRESS, words))
        }

    def wait_for(self, what: Any, seconds: float) -> float:
        """Read until `what()` holds; how long it took."""
        begun = time.monotonic()
        while not what():
            if time.monotonic() > begun + seconds or self.process.poll() is not None:
                raise AssertionError("\n".join(self.screen))
            self.read(0.05)
        return time.monotonic() - begun

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())


def find_all(pattern: re.Pattern[str], words: list[str]) -> list[re.Match[str]]:
    return [found for word in words if (found := pattern.match(word))]


@contextmanager
def terminal(*arguments: str, rows: int = ROWS, columns: int = COLUMNS) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        [*HOMING, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**kept, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    found = Terminal(process, master, slave)
    try:
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.close(slave)
        os.close(master)


def test_the_live_table_and_its_keys(tmp_path: Path) -> None:
    with terminal("lab", "--state", str(tmp_path / "state")) as screen:
        before = termios.tcgetattr(screen.slave)
        screen.wait_for(lambda: len(screen.tunnels()) == 4, 30)
        assert set(screen.tunnels()) == {
            ("mac.alice", "mini.alice"),
            ("mini.alice", "mac.alice"),
            ("desk.bob", "laptop.bob"),
            ("laptop.bob", "desk.bob"),
        }
        screen.wait_for(lambda: all("ms" in words for words in screen.rows("tunnel").values()), 10)
        machines = screen.rows("machine")
        assert {words[2] for words in machines.values()} == {"published"}
        assert {pair for pair in machines if pair[1] == "private"} == {
            ("desk.bob", "private"),
            ("laptop.bob", "private"),
        }
        assert len(screen.screen) <= ROWS and max(map(len, screen.screen)) <= COLUMNS

        (old,) = set(screen.tunnels().values())
        screen.press("r")
        took = screen.wait_for(lambda: len(screen.tunnels()) == 4 and old not in screen.tunnels().values(), 5)
        assert took < 1.5  # a second, and a redraw or two
        assert len(set(screen.tunnels().values())) == 1

        screen.press("k")
        screen.wait_for(lambda: any("started again" in line for line in screen.screen), 10)
        screen.wait_for(lambda: len(screen.tunnels()) == 4, 15)

        screen.press("rq")  # typed ahead: both count
        end = time.monotonic() + STOP_SECONDS
        while screen.process.poll() is None and time.monotonic() < end:
            screen.read(0.1)
        assert screen.process.poll() == 0
        screen.read(0.1)
        assert screen.raw.rfind(b"\x1b[?1049l") > screen.raw.rfind(b"\x1b[?1049h") >= 0  # the usual screen is back
        assert screen.raw.rfind(b"\x1b[?25h") > screen.raw.rfind(b"\x1b[?25l")  # and the cursor
        assert termios.tcgetattr(screen.slave) == before
        assert b"Traceback" not in screen.raw


def test_a_small_terminal_still_shows_the_keys(tmp_path: Path) -> None:
    with terminal("lab", "--state", str(tmp_path / "state"), rows=24, columns=80) as screen:
        screen.wait_for(lambda: len(screen.rows("tunnel")) == 4, 30)
        assert any("q quit" in line for line in screen.screen)
        assert len(screen.screen) <= 24 and max(map(len, screen.screen)) <= 80


def test_keys_without_clients_and_without_a_state_directory() -> None:
    with terminal("lab", "--no-clients") as screen:
        screen.wait_for(lambda: any("homing lab" in line for line in screen.screen), 20)
        screen.press("k")
        screen.read(0.6)
        assert screen.process.poll() is None, screen.raw[-2000:].decode()
        screen.press("q")
        end = time.monotonic() + STOP_SECONDS
        while screen.process.poll() is None and time.monotonic() < end:
            screen.read(0.1)
        assert screen.process.poll() == 0
        assert b"Traceback" not in screen.raw
