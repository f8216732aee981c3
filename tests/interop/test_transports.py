"""Transports as others speak them: cookies shared with BIND, kdig and dig over TCP and TLS, openssl's view of TLS."""

import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from homing.certificates import CertificateFiles, ensure_certificates
from homing.lab_ports import free_port
from tests.support.foreign import call, need
from tests.support.processes import Running, server_config, start

ADDRESS: Final = "127.0.0.1"
ZONE: Final = "members.example."
SECRET: Final = "445536bcd2513298075a5d379663c962"


@dataclass(frozen=True)
class House:
    server: Running
    files: CertificateFiles


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server that shares its cookie secret, and whose clients on loopback are held to a low rate."""
    directory = tmp_path_factory.mktemp("transports")
    files = ensure_certificates(directory / "tls", ["ns.members.example"], [ADDRESS])
    secrets = directory / "cookies"
    secrets.write_text(f"{SECRET}\n")
    secrets.chmod(0o600)
    table = {
        "listen_tls": [f"{ADDRESS}:0"],
        "certificate_file": str(files.certificate_file),
        "key_file": str(files.key_file),
        "cookie_secret_file": str(secrets),
        "rate_limit": 20,
        "rate_limit_exempt": [],
        "tcp_idle_seconds": 3.0,
    }
    with start("serve", server_config(directory, dns=table)) as server:
        yield House(server, files)


def cookie_of(text: str) -> str:
    found = re.search(r"COOKIE: ([0-9a-f]{48}) \(good\)", text)
    assert found, text
    return found[1]


def dig(house: House, *arguments: str) -> str:
    return call("dig", f"@{ADDRESS}", "-p", str(house.server.port), "+norec", "+tries=1", ZONE, *arguments)


@pytest.mark.rfc("9018", "4")
@pytest.mark.rfc("7873", "6")
def test_cookies_of_one_secret_are_believed_by_us_and_by_bind(house: House, tmp_path: Path) -> None:
    port = free_port(ADDRESS)
    config = tmp_path / "named.conf"
    config.write_text(
        f'options {{ directory "{tmp_path}"; listen-on port {port} {{ {ADDRESS}; }}; listen-on-v6 {{ none; }};\n'
        f'  pid-file "{tmp_path}/pid"; session-keyfile "{tmp_path}/key"; recursion no; require-server-cookie yes;\n'
        f'  cookie-algorithm siphash24; cookie-secret "{SECRET}"; }};\n'
        "controls { };\n"
    )
    with (tmp_path / "log").open("wb") as log:
        named = subprocess.Popen([need("named"), "-g", "-c", str(config)], stdout=log, stderr=log)
    try:

        def ask_named(*options: str) -> str:
            return call("dig", f"@{ADDRESS}", "-p", str(port), "+norec", "+tries=1", "+nobadcookie", ZONE, *options)

        end = time.monotonic() + 20
        while "COOKIE" not in ask_named("+cookie"):
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.2)
        theirs = cookie_of(ask_named("+cookie=0011223344556677"))
        ours = cookie_of(dig(house, "+cookie=8877665544332211"))
        assert "status: BADCOOKIE" in ask_named("+cookie=0011223344556677")
        assert "status: BADCOOKIE" not in ask_named(f"+cookie={theirs}")
        assert "status: BADCOOKIE" not in ask_named(f"+cookie={ours}")
        assert cookie_of(dig(house, f"+cookie={theirs}")) == theirs
    finally:
        named.terminate()
        named.wait(15)


def test_a_client_over_the_rate_recovers_by_cookie_and_by_tcp(house: House) -> None:
    """dig goes on after BADCOOKIE by itself, and after TC over TCP."""
    wire = dns.message.make_query(ZONE, "SOA", use_edns=0).to_wire()
    slipped = dropped = 0
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.connect((ADDRESS, house.server.port))
        sock.settimeout(0.3)
        for _ in range(300):
            sock.send(wire)
            try:
                slipped += bool(dns.message.from_wire(sock.recv(4096), ignore_trailing=True).flags & dns.flags.TC)
            except TimeoutError:
                dropped += 1
            if slipped >= 3 and dropped >= 3:
                break
    assert slipped >= 3 and dropped >= 3
    for _ in range(10):  # still over it
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            for _ in range(60):
                sock.sendto(wire, (ADDRESS, house.server.port))
    text = call("dig", f"@{ADDRESS}", "-p", str(house.server.port), "+norec", "+tries=5", "+timeout=1", ZONE, "SOA")
    assert "status: NOERROR" in text and "SOA" in text
    cookie = cookie_of(text)
    for _ in range(60):
        sock_reply = dig(house, f"+cookie={cookie}", "SOA")
        assert "status: NOERROR" in sock_reply and ";; flags: qr aa; " in sock_reply


@pytest.mark.rfc("8467", "4.1")
def test_kdig_over_tls_padded(house: House) -> None:
    tls = (
        f"@{ADDRESS}",
        "-p",
        str(house.server.tls_port),
        f"+tls-ca={house.files.ca_file}",
        "+tls-host=ns.members.example",
    )
    text = call("kdig", *tls, "+padding", ZONE, "SOA")
    assert "TLS session (TLS1.3)" in text and ";; Received 468 B" in text
    assert ";; Received 468 B" not in call("kdig", *tls, "+nopadding", ZONE, "SOA")


@pytest.mark.rfc("7766", "6.2.1")
@pytest.mark.rfc("7766", "1")
@pytest.mark.rfc("7766", "5")
@pytest.mark.rfc("9103", "6")
def test_many_questions_on_one_connection(house: House) -> None:
    tcp = (f"@{ADDRESS}", "-p", str(house.server.port), "+tcp", "+keepopen")
    text = call("kdig", *tcp, ZONE, "SOA", ZONE, "NS", f"nope.{ZONE}", "A")
    assert text.count("status: NOERROR") == 2 and text.count("status: NXDOMAIN") == 1


@pytest.mark.rfc("7828", "3.3.2")
def test_dig_is_told_the_idle_time(house: House) -> None:
    assert "TCP-KEEPALIVE: 3.0 secs" in dig(house, "+tcp", "+keepalive", "SOA").replace(
        "TCP KEEPALIVE", "TCP-KEEPALIVE"
    )


@pytest.mark.rfc("7858", "3.1")
@pytest.mark.rfc("7858", "8")
def test_what_openssl_sees(house: House) -> None:
    def connect(*options: str) -> str:
        place = f"{ADDRESS}:{house.server.tls_port}"
        return call(
            "openssl",
            "s_client",
            "-connect",
            place,
            "-CAfile",
            str(house.files.ca_file),
            "-verify_return_error",
            *options,
        )

    new = connect("-alpn", "dot")
    assert "ALPN protocol: dot" in new and "Verify return code: 0" in new and "TLSv1.3" in new
    assert "Max Early Data: 0" in new or "Max Early Data" not in new
    assert "No ALPN negotiated" in connect("-alpn", "h2")
    assert "Protocol  : TLSv1.2" in connect("-tls1_2")
    old = connect("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in old


def test_out_of_order_over_tls_by_a_client_of_pythons(house: House) -> None:
    """A hundred questions in one write: all answered, whatever the order, and by ID."""
    context = ssl.create_default_context(cafile=str(house.files.ca_file))
    queries = {}
    for number in range(100):
        query = dns.message.make_query(f"x{number}.{ZONE}" if number % 3 else ZONE, "SOA", id=number)
        queries[number] = query
    with (
        socket.create_connection((ADDRESS, house.server.tls_port), 5) as plain,
        context.wrap_socket(plain, server_hostname="ns.members.example") as tls,
    ):
        tls.sendall(b"".join(query.to_wire(prepend_length=True) for query in queries.values()))
        for _ in range(100):
            reply, _ = dns.query.receive_tcp(tls, time.time() + 10)
            assert queries.pop(reply.id).is_response(reply)
    assert not queries
