"""SIGHUP: certificate, keys, policy and limits of a running server, all or nothing; and `homing cert`."""

import signal
import socket
import ssl
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import dns.rcode
import dns.update
import pytest
from cryptography import x509

from tests.support.processes import HOMING, Running, homing, homing_here, server_config, start
from tests.support.secondaries import keyring

NAME = "members.example."


def until(is_so: Callable[[], bool], why: Callable[[], str], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, why()
        time.sleep(0.02)


def hang_up(server: Running, line: str) -> str:
    """Send SIGHUP; the one line it leads to."""
    before = server.log.count("\n")

    def lines() -> list[str]:
        return [text for text in server.log.splitlines()[before:] if "reloaded" in text]

    server.process.send_signal(signal.SIGHUP)
    until(lambda: bool(lines()), lambda: server.log)
    assert len(lines()) == 1
    assert line in lines()[0]
    return lines()[0]


def presented(server: Running, ca_file: Path) -> int:
    """The serial number of the certificate that is shown, which the authority must vouch for."""
    context = ssl.create_default_context(cafile=str(ca_file))
    with (
        socket.create_connection(("127.0.0.1", server.tls_port), 5) as plain,
        context.wrap_socket(plain, server_hostname="ns.members.example") as tls,
    ):
        octets = tls.getpeercert(True)
        assert octets is not None
        return x509.load_der_x509_certificate(octets).serial_number


def idle_time(server: Running) -> int:
    """Tenths of seconds that a client is told."""
    query = dns.message.make_query(NAME, "SOA", options=[dns.edns.GenericOption(11, b"")])
    reply = dns.query.tcp(query, "127.0.0.1", port=server.port, timeout=5)
    return int.from_bytes(reply.options[0].to_wire() or b"", "big")


def test_a_certificate_made_renewed_and_taken_over(tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    made = homing("cert", "--dir", tls, "ns.members.example", "127.0.0.1", "--json").json
    assert made["is_new"] and made["names"] == ["ns.members.example"] and made["addresses"] == ["127.0.0.1"]
    for name in ("ca-key.pem", "server-key.pem"):
        assert stat.S_IMODE((tls / name).stat().st_mode) == 0o600
    dns_table = {
        "listen_tls": ["127.0.0.1:0"],
        "certificate_file": made["certificate_file"],
        "key_file": made["key_file"],
    }
    with start("serve", server_config(tmp_path, dns=dns_table)) as server:
        first = presented(server, Path(made["ca_file"]))
        assert not homing_here("cert", "--dir", tls, "--json").json["is_new"]
        assert presented(server, Path(made["ca_file"])) == first
        assert homing_here("cert", "--dir", tls, "--renew", "--json").json["is_new"]
        assert presented(server, Path(made["ca_file"])) == first
        hang_up(server, " reloaded")
        second = presented(server, Path(made["ca_file"]))
        assert second != first

        Path(made["key_file"]).write_text("no key")
        hang_up(server, "not reloaded, nothing has changed")
        assert presented(server, Path(made["ca_file"])) == second
        assert "Traceback" not in server.log


def test_all_or_nothing(tmp_path: Path) -> None:
    secrets = tmp_path / "cookies"
    secrets.write_text("00112233445566778899aabbccddeeff\n")
    secrets.chmod(0o600)
    tables: dict[str, Any] = {
        "dns": {"tcp_idle_seconds": 7.5, "cookie_secret_file": str(secrets)},
        "metrics": {"listen": "127.0.0.1:0"},
    }
    config = server_config(tmp_path, **tables)
    whole = config.read_text()
    with start("serve", config) as server:
        assert idle_time(server) == 75
        for problem, breaks in (
            ("rate_limit", lambda: config.write_text(whole.replace("7.5", "9.5\nrate_limit = -1"))),
            ("line 1 is not a secret", lambda: secrets.write_text("short\n")),
            ("open to others", lambda: secrets.chmod(0o644)),
        ):
            config.write_text(whole.replace("7.5", "9.5"))
            breaks()
            assert problem in hang_up(server, "not reloaded, nothing has changed")
            assert idle_time(server) == 75
        secrets.write_text("00112233445566778899aabbccddeeff\n")
        secrets.chmod(0o600)
        config.write_text(whole.replace("7.5", "9.5") + "\n[lease]\nminimum_seconds = 7\n")
        assert "[lease] minimum_seconds" in hang_up(server, " reloaded")
        assert idle_time(server) == 95
        with urllib.request.urlopen(f"http://127.0.0.1:{server.listening['metrics'][0][1]}/metrics", timeout=5) as page:
            assert 'homing_limit{key="tcp_idle_seconds"} 9.5' in page.read().decode()
        assert server.stop() == 0


def test_policy(tmp_path: Path) -> None:
    config = server_config(tmp_path, lease={"minimum_seconds": 1})
    with start("serve", config) as server:
        key = homing_here("member", "add", "alice", "--json", "--config", config).json
        hang_up(server, "keys=1")

        def may_add(rtype: str, data: str) -> bool:
            update = dns.update.UpdateMessage(NAME, keyring=keyring(key))
            update.add("mac.alice", 60, rtype, data)
            update.use_edns(0, options=[dns.edns.GenericOption(2, (3600).to_bytes(4, "big"))])
            return bool(dns.query.udp(update, "127.0.0.1", port=server.port, timeout=5).rcode() == dns.rcode.NOERROR)

        assert may_add("TXT", "one") and may_add("A", "192.0.2.1")
        with config.open("a") as file:
            file.write('[[policy.rules]]\nkeys = ["**"]\nactions = ["update"]\neffect = "deny"\n')
            file.write('match = "zone"\ntypes = ["TXT"]\n')
        assert may_add("TXT", "two")
        hang_up(server, " reloaded")
        assert not may_add("TXT", "three")
        assert may_add("A", "192.0.2.2")


def test_a_hang_up_before_it_is_ready_ends_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([*HOMING, "serve", "--config", server_config(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        until(lambda: is_ignoring(process.pid), lambda: "SIGHUP is not ignored")
        for _ in range(5):
            process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == b"ready\n"
    finally:
        process.terminate()
        assert process.wait(15) == 0
        process.stdout.close()


def is_ignoring(pid: int) -> bool:
    """Whether a process ignores or handles SIGHUP, the first of all signals."""
    masks = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return bool((int(masks["SigIgn"], 16) | int(masks["SigCgt"], 16)) & 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--dir", "{tmp}/new"), "there is no certificate in"),
        (("--dir", "{tmp}/new", "a..example"), "is no host name and no address"),
        (("--dir", "{tmp}/new", "a b.example"), "is no host name and no address"),
        (("--dir", "{tmp}/new", "300.1.1.1/8"), "is no host name and no address"),
        (("--dir", "{tmp}/new", "a.example", "--days", "900"), "--days"),
    ],
)
def test_bad_requests_for_a_certificate(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = homing_here("cert", *(text.replace("{tmp}", str(tmp_path)) for text in arguments))
    assert done.code == 2
    assert complaint in done.err
    assert not (tmp_path / "new").exists()
