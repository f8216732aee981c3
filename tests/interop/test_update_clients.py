"""Programs that keep names up to date without knowing of leases, each with a key narrowed to its task (docs/policy.md).

certbot's RFC 2136 plugin, Kea's DHCP-DDNS server, ddclient, nsupdate and knsupdate, on an open and a private member.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.foreign import call, need, status
from tests.support.processes import Running, homing_here, start_server

ZONE: Final = "members.example"
CERTBOT: Final = Path(__file__).parents[2] / ".venv" / "certbot" / "bin" / "python"
SECONDS: Final = 20.0
NO_LEASE: Final = 'lease = "optional"'


@dataclass
class House:
    """A server with open alice and private bob; `keys` as JSON by nickname, `files` as BIND key files."""

    server: Running
    directory: Path
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def make(self, nickname: str, *arguments: str) -> None:
        done = homing_here(*arguments, "--json", "--config", self.server.config)
        assert done.code == 0, done.err
        key = self.keys[nickname] = done.json
        file = self.files[nickname] = self.directory / f"{nickname}.key"
        file.write_text(f'key "{key["name"]}" {{\n\talgorithm {key["algorithm"]};\n\tsecret "{key["secret"]}";\n}};\n')
        file.chmod(0o600)

    def signer(self, nickname: str) -> str:
        key = self.keys[nickname]
        return f"{key['algorithm']}:{key['name']}:{key['secret']}"

    def short(self, owner: str, rtype: str, *more: str, who: str | None = None) -> str:
        """Data of an RRset as dig prints it."""
        signed = () if who is None else ("-y", self.signer(who))
        dig = ("@127.0.0.1", "-p", str(self.server.port), "+norec", "+short", *signed, owner, rtype)
        return call("dig", *dig, *more).strip()

    def has(self, owner: str, rtype: str, data: str, who: str | None = None) -> bool:
        return eventually(lambda: self.short(owner, rtype, who=who) == data)


def eventually(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    directory = tmp_path_factory.mktemp("house")
    with start_server(directory) as server:
        made = House(server, directory)
        made.make("alice", "member", "add", "alice")
        made.make("bob", "member", "add", "bob", "--private")
        for member in ("alice", "bob"):
            made.make(f"certbot-{member}", "key", "add", member, "--device", "certbot", "--acme")
            made.make(f"nas-{member}", "key", "add", member, "--device", "nas", "--rule", f'owner = "nas", {NO_LEASE}')
        made.make("dhcp", "key", "add", "alice", "--device", "dhcp", "--rule", f'owner = "lan", {NO_LEASE}')
        made.make("last", "key", "add", "--admin", "last")
        ready = (f"server 127.0.0.1 {server.port}", f"zone {ZONE}", f"update add ready.{ZONE} 60 TXT x", "send", "")
        script = "\n".join(ready)
        assert eventually(lambda: call("nsupdate", "-k", str(made.files["last"]), stdin=script) == "")
        yield made


# --- certbot ---

_CERTBOT: Final = """
import sys
import dns.tsig
from certbot import errors
from certbot_dns_rfc2136._internal.dns_rfc2136 import _RFC2136Client
port, key, secret, sign, what, name, text = sys.argv[1:]
client = _RFC2136Client("127.0.0.1", int(port), key, secret, dns.tsig.HMAC_SHA256, sign == "yes")
try:
    if what == "add":
        client.add_txt_record(name, text, 120)
    else:
        client.del_txt_record(name, text)
except errors.PluginError as error:
    sys.exit(str(error))
"""


def certbot(house: House, who: str, sign: str, what: str, name: str, text: str) -> str:
    """What the plugin's client class complains of."""
    if not CERTBOT.exists():
        if os.environ.get("CI"):
            pytest.fail("certbot-dns-rfc2136 is not installed (tools/peers.sh installs it)")
        pytest.skip("certbot-dns-rfc2136 is not installed")
    key = house.keys[who]
    words = (str(house.server.port), key["name"], key["secret"], sign, what, name, text)
    done = subprocess.run([CERTBOT, "-c", _CERTBOT, *words], capture_output=True, timeout=60, check=False)
    return done.stderr.decode()


@pytest.mark.parametrize("sign", ["yes", "no"], ids=["signed-queries", "unsigned-queries"])
@pytest.mark.parametrize("member", ["alice", "bob"])
def test_certbot_adds_and_removes_a_challenge(house: House, member: str, sign: str) -> None:
    who = f"certbot-{member}"
    name = f"_acme-challenge.www.{member}.{ZONE}"
    for text in ("first-token", "second-token"):  # a wildcard certificate wants two at a time
        assert certbot(house, who, sign, "add", name, text) == ""
    assert set(house.short(name, "TXT", who=who).split("\n")) == {'"first-token"', '"second-token"'}
    assert certbot(house, who, sign, "del", name, "first-token") == ""
    assert certbot(house, who, sign, "del", name, "second-token") == ""
    assert house.short(name, "TXT", who=who) == ""
    assert "REFUSED" in certbot(house, who, sign, "add", f"www.{member}.{ZONE}", "token")


# --- Kea ---


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def kea(house: House) -> Iterator[Callable[..., None]]:
    """Kea's DHCP-DDNS server with the narrowed key; what it yields tells it of a lease that came or went."""
    program = need("kea-dhcp-ddns")
    port = free_udp_port()
    key = house.keys["dhcp"]
    settings = {
        "DhcpDdns": {
            "ip-address": "127.0.0.1",
            "port": port,
            "tsig-keys": [{"name": key["name"], "algorithm": "HMAC-SHA256", "secret": key["secret"]}],
            "forward-ddns": {
                "ddns-domains": [
                    {
                        "name": f"{ZONE}.",
                        "key-name": key["name"],
                        "dns-servers": [{"ip-address": "127.0.0.1", "port": house.server.port}],
                    }
                ]
            },
            "reverse-ddns": {"ddns-domains": []},
            "loggers": [{"name": "kea-dhcp-ddns", "output_options": [{"output": "stderr"}], "severity": "DEBUG"}],
        }
    }
    file = house.directory / "kea.json"
    file.write_text(json.dumps(settings))
    log_file = house.directory / "kea.log"
    environment = {
        **os.environ,
        "KEA_PIDFILE_DIR": str(house.directory),
        "KEA_LOCKFILE_DIR": str(house.directory),
        "KEA_CONTROL_SOCKET_DIR": str(house.directory),
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen([program, "-c", str(file)], stdout=log, stderr=log, env=environment)

    def tell(change: int, fqdn: str, address: str, dhcid: str) -> None:
        request = {
            "change-type": change,  # 0 a lease came, 1 it went
            "forward-change": True,
            "reverse-change": False,
            "fqdn": fqdn,
            "ip-address": address,
            "dhcid": dhcid,
            "lease-expires-on": "20400121132405",
            "lease-length": 1300,
            "use-conflict-resolution": True,
        }
        octets = json.dumps(request).encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.sendto(len(octets).to_bytes(2, "big") + octets, ("127.0.0.1", port))

    try:
        assert eventually(lambda: "DHCP_DDNS_STARTED" in log_file.read_text()), log_file.read_text()
        yield tell
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.rfc("4703", "5.3")
@pytest.mark.rfc("4703", "4")
def test_kea_registers_and_releases_a_host(house: House) -> None:
    """Its prerequisites (name not in use, DHCID as it was) hold and fail as it expects."""
    mine, other = "000101" + "ab" * 32, "000101" + "cd" * 32
    box = f"box.lan.alice.{ZONE}."
    with kea(house) as tell:
        tell(0, box, "192.0.2.31", mine)
        assert house.has(box, "A", "192.0.2.31")
        assert house.short(box, "DHCID") != ""
        tell(0, box, "192.0.2.32", mine)
        assert house.has(box, "A", "192.0.2.32"), "another lease of the same host"
        tell(0, box, "192.0.2.99", other)
        assert eventually(lambda: "DHCP_DDNS_ADD_FAILED" in (house.directory / "kea.log").read_text())
        assert house.short(box, "A") == "192.0.2.32", "somebody else's name stays"
        tell(1, box, "192.0.2.32", mine)
        assert house.has(box, "A", "")
        assert house.short(box, "DHCID") == ""
        tell(0, f"mac.alice.{ZONE}.", "192.0.2.33", mine)
        assert eventually(lambda: "may not ask about mac.alice" in house.server.log), "outside its subtree"


# --- ddclient ---


@pytest.mark.parametrize("tcp", ["no", "yes"], ids=["udp", "tcp"])
def test_ddclient(house: House, tmp_path: Path, tcp: str) -> None:
    owner = f"nas.alice.{ZONE}"
    address = f"192.0.2.{41 + len(tcp)}"
    lines = (
        "daemon=0",
        "verbose=yes",
        f"pid={tmp_path / 'pid'}",
        f"cache={tmp_path / 'cache'}",
        "use=cmd",
        f"cmd='echo {address}'",
        "protocol=nsupdate",
        f"server=127.0.0.1:{house.server.port}",
        f"login={need('nsupdate')}",
        f"password={house.files['nas-alice']}",
        f"zone={ZONE}",
        "ttl=60",
        f"tcp={tcp}",
        owner,
        "",
    )
    file = tmp_path / "ddclient.conf"
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    said = call("ddclient", "-file", str(file), "-daemon=0", "-force")
    assert house.has(owner, "A", address), said


# --- nsupdate, knsupdate ---


@pytest.mark.rfc("2136", "3.4")
@pytest.mark.rfc("2136", "2.1")
@pytest.mark.parametrize("way", ["udp", "tcp"])
@pytest.mark.parametrize(("program", "named"), [("nsupdate", True), ("nsupdate", False), ("knsupdate", True)])
@pytest.mark.parametrize("member", ["alice", "bob"], ids=["open", "private"])
def test_nsupdate_and_knsupdate(house: House, program: str, way: str, named: bool, member: str) -> None:
    """knsupdate wants the zone to be named; nsupdate finds it by a signed query for SOA."""
    who = f"nas-{member}"
    zone = f"{member}.{ZONE}" if member == "bob" else ZONE
    owner = f"{program}-{way}-{named}.nas.{member}.{ZONE}".lower()
    head = [f"server 127.0.0.1 {house.server.port}", *([f"zone {zone}"] if named else [])]
    options = ["-y", house.signer(who), *(["-v"] if way == "tcp" else [])]

    def send(*lines: str) -> str:
        return call(program, *options, stdin="\n".join((*head, *lines, "send", "answer", "")))

    assert status(send(f"update add {owner} 60 A 192.0.2.51")) == "NOERROR"
    assert house.short(owner, "A", who=who) == "192.0.2.51"
    assert status(send(f"prereq yxrrset {owner} A 192.0.2.51", f"update delete {owner} A")) == "NOERROR"
    assert house.short(owner, "A", who=who) == ""
    assert "REFUSED" in send(f"update add mac.{member}.{ZONE} 60 A 192.0.2.51")


def test_an_update_for_the_parent_zone_is_told_where_the_name_is(house: House) -> None:
    lines = (
        f"server 127.0.0.1 {house.server.port}",
        f"zone {ZONE}",
        f"update add nas.bob.{ZONE} 60 A 192.0.2.1",
        "send",
        "answer",
        "",
    )
    said = call("nsupdate", "-y", house.signer("nas-bob"), stdin="\n".join(lines))
    assert status(said) == "NOTZONE"
