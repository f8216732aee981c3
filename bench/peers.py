"""The servers compared: each started on loopback with its own files, pinned to one core, ended by its process id."""

import base64
import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.data import FLEET_KEY_NAME, KEY_NAME, KEY_SECRET, ZONE
from bench.load_zone import fill_database

SERVER_CPU: Final = "0"
LOAD_CPU: Final = "1"
ADDRESS: Final = "127.0.0.1"
_SECRET: Final = base64.b64encode(KEY_SECRET).decode()


@dataclass(frozen=True, slots=True)
class Peer:
    """How to start one server: `prepare` writes its files into a directory and gives the command line."""

    name: str
    program: str
    signs: bool
    prepare: Callable[[Path, Path, int, int], list[str]]


def _homing(directory: Path, master_file: Path, hosts: int, port: int) -> list[str]:
    config = directory / "server.toml"
    config.write_text(
        f'[database]\nurl = "sqlite+aiosqlite:///{directory}/homing.db"\n[zone]\nname = "{ZONE}"\n'
        f'[dns]\nlisten = ["{ADDRESS}:{port}"]\nrate_limit = 0\n[log]\nlevel = "warning"\n'
    )
    if not (directory / "homing.db").exists():
        fill_database(directory / "homing.db", hosts, port)
    return [sys.executable, "-m", "homing", "serve", "--config", str(config)]


def _nsd(directory: Path, master_file: Path, hosts: int, port: int) -> list[str]:
    config = directory / "nsd.conf"
    config.write_text(
        f'server:\n  ip-address: {ADDRESS}@{port}\n  server-count: 1\n  username: ""\n  chroot: ""\n'
        f'  zonesdir: {directory}\n  database: ""\n  pidfile: {directory}/nsd.pid\n  xfrdfile: {directory}/xfrd\n'
        f'  zonelistfile: {directory}/zone.list\n  cookie-secret-file: ""\n  rrl-ratelimit: 0\n'
        f"remote-control:\n  control-enable: no\nzone:\n  name: {ZONE}\n  zonefile: {master_file}\n"
    )
    return ["nsd", "-d", "-c", str(config)]


def _knot(directory: Path, master_file: Path, hosts: int, port: int) -> list[str]:
    config = directory / "knot.conf"
    config.write_text(
        f"server:\n    listen: {ADDRESS}@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
        f"    rundir: {directory}\n"
        f"key:\n  - id: {KEY_NAME}\n    algorithm: hmac-sha256\n    secret: {_SECRET}\n"
        f"  - id: {FLEET_KEY_NAME}\n    algorithm: hmac-sha256\n    secret: {_SECRET}\n"
        f"acl:\n  - id: update\n    key: [{KEY_NAME}, {FLEET_KEY_NAME}]\n    action: update\n"
        f"database:\n    storage: {directory}\n"
        f"zone:\n  - domain: {ZONE}\n    file: {master_file}\n    zonefile-sync: -1\n    journal-content: changes\n"
        f"    acl: update\n    journal-max-usage: 1G\n"
    )
    return ["knotd", "-c", str(config)]


def _bind(directory: Path, master_file: Path, hosts: int, port: int) -> list[str]:
    config = directory / "named.conf"
    shutil.copy(master_file, directory / "zone")
    config.write_text(
        f'options {{ directory "{directory}"; listen-on port {port} {{ {ADDRESS}; }}; listen-on-v6 {{ none; }};\n'
        f'  pid-file "{directory}/named.pid"; session-keyfile "{directory}/session.key"; recursion no;\n'
        "  dnssec-validation no; minimal-responses yes; allow-transfer { none; }; };\ncontrols { };\n"
        f'key "{KEY_NAME}" {{ algorithm hmac-sha256; secret "{_SECRET}"; }};\n'
        f'key "{FLEET_KEY_NAME}" {{ algorithm hmac-sha256; secret "{_SECRET}"; }};\n'
        f'zone "{ZONE}" {{ type primary; file "zone";\n'
        f'  allow-update {{ key "{KEY_NAME}"; key "{FLEET_KEY_NAME}"; }}; }};\n'
    )
    return ["named", "-f", "-n", "1", "-c", str(config)]


def _powerdns(directory: Path, master_file: Path, hosts: int, port: int) -> list[str]:
    database = directory / "pdns.sqlite"
    (directory / "pdns.conf").write_text(
        f"local-address={ADDRESS}:{port}\nlaunch=gsqlite3\ngsqlite3-database={database}\nsocket-dir={directory}\n"
        "receiver-threads=1\ndistributor-threads=1\ndnsupdate=yes\nallow-dnsupdate-from=127.0.0.0/8\n"
        "security-poll-suffix=\nloglevel=3\n"
    )
    if not database.exists():
        sql = Path("/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql").read_text()
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.executescript(sql)
        util = ["pdnsutil", f"--config-dir={directory}"]
        zone = ZONE.rstrip(".")
        for arguments in (
            ["load-zone", zone, str(master_file)],
            ["import-tsig-key", KEY_NAME, "hmac-sha256", _SECRET],
            ["set-meta", zone, "TSIG-ALLOW-DNSUPDATE", KEY_NAME.rstrip(".")],
            ["activate-tsig-key", zone, KEY_NAME.rstrip("."), "primary"],
        ):
            subprocess.run([*util, *arguments], check=True, capture_output=True, timeout=600)
    return ["pdns_server", f"--config-dir={directory}", "--daemon=no", "--guardian=no"]


PEERS: Final = (
    Peer("homing", sys.executable, True, _homing),
    Peer("nsd", "nsd", False, _nsd),
    Peer("knot", "knotd", True, _knot),
    Peer("bind", "named", True, _bind),
    Peer("powerdns", "pdns_server", True, _powerdns),
)


def is_installed(peer: Peer) -> bool:
    return shutil.which(peer.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((ADDRESS, 0))
        return int(sock.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Server:
    """A started server that answers. `seconds` is what it took from the start of its process to the first answer."""

    port: int
    process: "subprocess.Popen[bytes]"
    seconds: float

    def resident_octets(self) -> int:
        """Memory of the process and its children: private pages, and their share of those in common."""
        found = 0
        pending = [self.process.pid]
        while pending:
            pid = pending.pop()
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        found += int(line.split()[1]) * 1024
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    pending += map(int, children.read_text().split())
        return found


@contextlib.contextmanager
def running(peer: Peer, directory: Path, master_file: Path, hosts: int) -> Iterator[Server]:
    """A started server that answers; ended when left."""
    directory.mkdir(exist_ok=True)
    port = free_port()
    command = peer.prepare(directory, master_file, hosts, port)
    log = (directory / "log").open("wb")
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin", "PYTHONPATH": str(Path.cwd())}
    started_at = time.monotonic()
    process = subprocess.Popen(
        ["taskset", "-c", SERVER_CPU, *command], stdout=log, stderr=log, env=environment, stdin=subprocess.DEVNULL
    )
    try:
        _wait_for_answer(port, process, directory / "log")
        yield Server(port, process, time.monotonic() - started_at)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_for_answer(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    query = bytes.fromhex("00010000000100000000000007") + b"members\x07example\x00\x00\x06\x00\x01"
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.05)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"server ended with {process.returncode}: {log.read_text()[-2000:]}")
            try:
                sock.sendto(query, (ADDRESS, port))
                if sock.recv(4096)[3] & 0xF == 0:
                    return
            except OSError:
                time.sleep(0.02)
    raise RuntimeError(f"no answer in {seconds} s: {log.read_text()[-2000:]}")
