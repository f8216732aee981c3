"""BIND, Knot DNS and NSD as secondaries of a server: own files, loopback, in the foreground, ended by process id."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dns.message
import dns.name
import dns.query
import dns.rdatatype
import dns.tsigkeyring
import dns.xfr
import dns.zone

from tests.support.foreign import need
from tests.support.processes import STOP_SECONDS

ADDRESS: Final = "127.0.0.1"
ZONE: Final = "members.example."
Facts = dict[str, Any]
"""A key as `--json` prints it: name, algorithm, secret."""
Rows = frozenset[tuple[str, str, int, bytes]]
"""Owner in lower case, type, TTL, canonical rdata: Knot DNS keeps names in lower case."""


@dataclass(frozen=True, slots=True)
class Primary:
    """Where secondaries fetch from."""

    port: int
    tls_port: int
    ca_file: Path
    tls_name: str
    catalog: str = ""
    """When set, secondaries are told of this catalog zone alone."""


@dataclass(slots=True)
class Secondary:
    """One running secondary."""

    program: str
    port: int
    key: Facts
    process: subprocess.Popen[bytes]
    log_file: Path

    def serial(self) -> int | None:
        """Of the zone as served now; None while it is not."""
        query = dns.message.make_query(ZONE, "SOA")
        query.flags = 0
        try:
            reply = dns.query.udp(query, ADDRESS, port=self.port, timeout=0.5)
        except (OSError, dns.exception.Timeout):
            return None
        return int(reply.answer[0][0].serial) if reply.answer else None

    def wait_for(self, serial: int, seconds: float = 15.0) -> None:
        """Until it serves this serial."""
        deadline = time.monotonic() + seconds
        while (found := self.serial()) != serial:
            assert self.process.poll() is None, f"{self.program} ended:\n{self.log}"
            assert time.monotonic() < deadline, f"{self.program} is at {found}, not {serial}:\n{self.log}"
            time.sleep(0.05)

    def wait(self, seconds: float = 15.0) -> None:
        """Until it answers with whatever it has kept."""
        deadline = time.monotonic() + seconds
        while self.serial() is None:
            assert self.process.poll() is None, f"{self.program} ended:\n{self.log}"
            assert time.monotonic() < deadline, f"{self.program} serves nothing:\n{self.log}"
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]


def keyring(key: Facts | None) -> Any:
    return dns.tsigkeyring.from_text({key["name"]: (key["algorithm"], key["secret"])}) if key else None


def transfer(port: int, key: Facts | None = None, zone: str = ZONE) -> Rows:
    """A zone by AXFR, through dnspython."""
    found = dns.zone.Zone(dns.name.from_text(zone), relativize=False)
    query, _ = dns.xfr.make_query(found, keyring=keyring(key))
    dns.query.inbound_xfr(ADDRESS, found, query, port=port, timeout=10)
    return frozenset(
        (str(owner).lower(), dns.rdatatype.to_text(rdata.rdtype), ttl, rdata.to_digestable())
        for owner, ttl, rdata in found.iterate_rdatas()
    )


def _named(directory: Path, port: int, key: Facts, primary: Primary, notifier: Facts) -> list[str]:
    """Over TLS (RFC 9103), the server's certificate verified. Of a catalog it makes the zones that are in it."""
    config = directory / "named.conf"
    source = f'{{ {ADDRESS} port {primary.tls_port} key "{key["name"]}" tls primary; }}'
    members = (
        f'catalog-zones {{ zone "{primary.catalog}" default-primaries {source} zone-directory "." '
        "min-update-interval 1; };"
        if primary.catalog
        else ""
    )
    zones = (primary.catalog,) if primary.catalog else (ZONE, f"bob.{ZONE}")
    config.write_text(
        f'options {{ directory "{directory}"; listen-on port {port} {{ {ADDRESS}; }}; listen-on-v6 {{ none; }};\n'
        f'  pid-file "{directory}/named.pid"; session-keyfile "{directory}/session.key"; recursion no; notify no;\n'
        f"  dnssec-validation no; allow-transfer {{ {ADDRESS}; }}; allow-notify {{ key {notifier['name']}; }};\n"
        f"  masterfile-format text; {members} }};\ncontrols {{ }};\n"
        f'tls primary {{ ca-file "{primary.ca_file}"; remote-hostname "{primary.tls_name}"; }};\n'
        + "".join(
            f'key "{item["name"]}" {{ algorithm {item["algorithm"]}; secret "{item["secret"]}"; }};\n'
            for item in (key, notifier)
        )
        + "".join(f'zone "{zone}" {{ type secondary; primaries {source}; file "{zone}db"; }};\n' for zone in zones)
    )
    return ["-g", "-n", "1", "-c", str(config)]


def _knotd(directory: Path, port: int, key: Facts, primary: Primary, notifier: Facts) -> list[str]:
    config = directory / "knot.conf"
    config.write_text(
        f"server:\n    listen: {ADDRESS}@{port}\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
        f"    rundir: {directory}\n"
        "log:\n  - target: stderr\n    any: info\n"
        "key:\n"
        + "".join(
            f"  - id: {item['name']}\n    algorithm: {item['algorithm']}\n    secret: {item['secret']}\n"
            for item in (key, notifier)
        )
        + f"remote:\n  - id: primary\n    address: {ADDRESS}@{primary.port}\n    key: {key['name']}\n"
        f"acl:\n  - id: notify\n    address: {ADDRESS}\n    key: {notifier['name']}\n    action: notify\n"
        f"  - id: transfer\n    address: {ADDRESS}\n    action: transfer\n"
        f"database:\n    storage: {directory}\n"
        f"template:\n  - id: default\n    storage: {directory}\n    master: primary\n    acl: [notify, transfer]\n"
        "  - id: member\n"
        f"    storage: {directory}\n    master: primary\n    acl: [notify, transfer]\n"
        f"zone:\n  - domain: {primary.catalog or ZONE}\n"
        + ("    catalog-role: interpret\n    catalog-template: member\n" if primary.catalog else "")
    )
    return ["-c", str(config)]


def _nsd(directory: Path, port: int, key: Facts, primary: Primary, notifier: Facts) -> list[str]:
    """Over TLS (RFC 9103), the server's certificate verified."""
    config = directory / "nsd.conf"
    config.write_text(
        f'server:\n  ip-address: {ADDRESS}@{port}\n  server-count: 1\n  username: ""\n  chroot: ""\n  verbosity: 2\n'
        f'  zonesdir: {directory}\n  database: ""\n  pidfile: {directory}/nsd.pid\n  xfrdfile: {directory}/xfrd\n'
        f'  zonelistfile: {directory}/zone.list\n  cookie-secret-file: ""\n  xfrdir: {directory}\n'
        f"  tls-cert-bundle: {primary.ca_file}\n"
        f"remote-control:\n  control-enable: no\n"
        f"tls-auth:\n  name: primary\n  auth-domain-name: {primary.tls_name}\n"
        + "".join(
            f"key:\n  name: {item['name']}\n  algorithm: {item['algorithm']}\n  secret: {item['secret']}\n"
            for item in (key, notifier)
        )
        + f"zone:\n  name: {ZONE}\n  zonefile: zone.db\n"
        f"  request-xfr: {ADDRESS}@{primary.tls_port} {key['name']} primary\n"
        f"  allow-notify: {ADDRESS} {notifier['name']}\n  provide-xfr: {ADDRESS} NOKEY\n"
    )
    return ["-d", "-c", str(config)]


_PREPARE: Final[dict[str, Callable[[Path, int, Facts, Primary, Facts], list[str]]]] = {
    "named": _named,
    "knotd": _knotd,
    "nsd": _nsd,
}
PROGRAMS: Final = tuple(_PREPARE)


@contextmanager
def start_secondary(
    program: str, directory: Path, port: int, key: Facts, primary: Primary, notifier: Facts
) -> Iterator[Secondary]:
    """A secondary from its start on, whether it has the zone yet or not; ended by SIGTERM."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") or need(program)
    directory.mkdir(exist_ok=True)
    log_file = directory / f"{time.monotonic_ns()}.log"
    arguments = _PREPARE[program](directory, port, key, primary, notifier)
    with log_file.open("wb") as log:
        process = subprocess.Popen([found, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield Secondary(program, port, key, process, log_file)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
