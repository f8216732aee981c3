"""The UPnP device as a process on a router, spoken to octet by octet: HTTP, SSDP and events, and who gets nothing."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.igd import IP, add, entry, envelope, read
from tests.support.namespaces import LAN_HOST, LAN_OTHER, LAN_ROUTER, WAN_HOST, Network, ip, made
from tests.support.router import PUBLIC, gateway, give_public_address, run

PORT = 2869
GROUP = ("239.255.255.250", 1900)
CONTROL = "/control/WANIPConn1"
EVENT = "/event/WANIPConn1"
WAIT = 5.0


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with made(f"hd{os.getpid() % 100000}") as network:
        give_public_address(network)
        yield network


@pytest.fixture(scope="module")
def log(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with gateway(network, tmp_path_factory.mktemp("igd"), "[natpmp]\nrequests_per_second = 1000\n") as log:
        yield log


@contextlib.contextmanager
def connection(network: Network, source: str = LAN_HOST) -> Iterator[socket.socket]:
    with network.at(network.lan):
        sock = socket.socket()
    with sock:
        sock.settimeout(WAIT)
        sock.bind((source, 0))
        sock.connect((LAN_ROUTER, PORT))
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """Until the other end closes, or for a second of silence."""
    octets = b""
    sock.settimeout(1)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while part := sock.recv(65536):
            octets += part
    return octets


def exchange(network: Network, octets: bytes, source: str = LAN_HOST) -> bytes:
    """What comes back for raw octets on a fresh connection."""
    with connection(network, source) as sock:
        sock.sendall(octets)
        return read_all(sock)


def request(method: str, path: str, body: bytes = b"", close: bool = True, **headers: str) -> bytes:
    named = {"Host": f"{LAN_ROUTER}:{PORT}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if body or method == "POST":
        named.setdefault("Content-Length", str(len(body)))
    if close:
        named["Connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def status(reply: bytes) -> int | None:
    return int(reply[9:12]) if reply else None


def call(network: Network, action: str, arguments: dict[str, object], source: str = LAN_HOST) -> dict[str, str] | int:
    octets = request("POST", CONTROL, envelope(action, arguments), SOAPACTION=f'"{IP}#{action}"')
    reply = exchange(network, octets, source)
    assert status(reply) in (200, 500), reply
    return read(reply.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (request("GET", "/rootDesc.xml"), 200),
        (request("HEAD", "/rootDesc.xml"), 200),
        (request("GET", "/rootDesc.xml?x=1"), 200),
        (b"GET /rootDesc.xml HTTP/1.0\r\n\r\n", 200),
        (request("GET", "/rootDesc.xml", Host=LAN_ROUTER), 200),
        (request("GET", "/rootDesc.xml", Host="evil.example"), 400),
        (request("GET", "/rootDesc.xml", Host=f"{LAN_ROUTER}:80"), 400),
        (request("POST", "/rootDesc.xml"), 405),
        (request("GET", "/"), 404),
        (request("GET", "/../etc/passwd"), 404),
        (request("GET", "/control/other"), 404),
        (request("GET", CONTROL), 405),
        (request("GET", EVENT), 405),
        (request("POST", CONTROL), 400),
        (request("POST", CONTROL, b"<x"), 400),
        (request("POST", CONTROL, b"x" * 20000), 413),
        (request("GET", "/" + "x" * 20000), 431),
        (b"GET /rootDesc.xml HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 4 + b"\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (request("POST", CONTROL, Content_Length="-1"), 400),
    ],
)
def test_http(network: Network, log: Path, octets: bytes, expected: int) -> None:
    assert status(exchange(network, octets)) == expected


def test_the_head_alone_has_no_body(network: Network, log: Path) -> None:
    reply = exchange(network, request("HEAD", "/rootDesc.xml"))
    assert reply.endswith(b"\r\n\r\n")
    assert b"homing gateway" in exchange(network, request("GET", "/rootDesc.xml"))


def test_several_calls_on_one_connection_in_pieces_and_in_chunks(network: Network, log: Path) -> None:
    body = envelope("GetStatusInfo", {})
    with connection(network) as sock:
        for _ in range(3):
            for at in range(0, len(one := request("POST", CONTROL, body, close=False)), 100):
                sock.sendall(one[at : at + 100])
            head = b""
            while b"</s:Envelope>" not in head:
                head += sock.recv(65536)
            assert status(head) == 200
        chunked = request("POST", CONTROL, close=True, Transfer_Encoding="chunked", Expect="100-continue")
        sock.sendall(chunked.replace(b"Content-Length: 0\r\n", b""))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert status(read_all(sock)) == 200


def test_only_the_caller_is_mapped(network: Network, log: Path) -> None:
    assert call(network, "AddPortMapping", add(8085, 80, LAN_OTHER)) == 718
    assert call(network, "AddPortMapping", add(8085, 80, LAN_OTHER), LAN_OTHER) == {}
    assert call(network, "DeletePortMapping", entry(8085)) == 714
    assert call(network, "DeletePortMapping", entry(8085), LAN_OTHER) == {}


def test_connections_are_bounded(network: Network, log: Path) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connection(network)) for _ in range(12)]
        deadline = time.monotonic() + WAIT
        refused = 0
        while refused < 4 and time.monotonic() < deadline:
            refused = 0
            for sock in held:
                sock.settimeout(0.05)
                try:
                    refused += sock.recv(1) == b""
                except ConnectionResetError:
                    refused += 1
                except TimeoutError:
                    pass
        assert refused == 4
        assert status(exchange(network, request("GET", "/rootDesc.xml"), LAN_OTHER)) == 200


def subscriber(network: Network, host: str = LAN_HOST) -> socket.socket:
    sock = network.listener(network.lan, host)
    sock.settimeout(WAIT)
    return sock


def heard(server: socket.socket, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") -> str:
    connection, _ = server.accept()
    with connection:
        connection.settimeout(WAIT)
        octets = b""
        while b"</e:propertyset>" not in octets:
            octets += connection.recv(65536)
        connection.sendall(answer)
    return octets.decode()


def test_subscribers_are_told(network: Network, log: Path) -> None:
    with subscriber(network) as server:
        port = server.getsockname()[1]
        callback = f"<http://{LAN_HOST}:{port}/told?x=1>"
        reply = exchange(network, request("SUBSCRIBE", EVENT, CALLBACK=callback, NT="upnp:event", TIMEOUT="Second-300"))
        assert status(reply) == 200
        (sid,) = re.findall(rb"SID: (uuid:[0-9a-f-]{36})\r\n", reply, re.IGNORECASE)
        assert b"Second-300" in reply
        first = heard(server)
        assert first.startswith("NOTIFY /told?x=1 HTTP/1.1\r\n")
        for part in ("SEQ: 0\r\n", f"SID: {sid.decode()}\r\n", f"<ExternalIPAddress>{PUBLIC}</ExternalIPAddress>"):
            assert part.lower() in first.lower()
        assert call(network, "AddPortMapping", add(8090, 80, LAN_HOST)) == {}
        second = heard(server)
        assert "SEQ: 1\r\n".lower() in second.lower()
        assert "<PortMappingNumberOfEntries>1</PortMappingNumberOfEntries>" in second
        assert "ExternalIPAddress" not in second
        assert status(exchange(network, request("SUBSCRIBE", EVENT, SID=sid.decode()))) == 200
        assert status(exchange(network, request("UNSUBSCRIBE", EVENT, SID=sid.decode()), LAN_OTHER)) == 412
        assert status(exchange(network, request("UNSUBSCRIBE", EVENT, SID=sid.decode()))) == 200
        assert status(exchange(network, request("UNSUBSCRIBE", EVENT, SID=sid.decode()))) == 412
        assert call(network, "DeletePortMapping", entry(8090)) == {}
        server.settimeout(0.7)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("victim", [LAN_OTHER, WAN_HOST, "evil.example", "localhost", LAN_ROUTER])
def test_nobody_else_can_be_made_to_hear(network: Network, log: Path, victim: str) -> None:
    """CallStranger, CVE-2020-12695."""
    reply = exchange(network, request("SUBSCRIBE", EVENT, CALLBACK=f"<http://{victim}:8000/>", NT="upnp:event"))
    assert status(reply) == 412


def test_a_redirection_is_not_followed(network: Network, log: Path) -> None:
    with subscriber(network) as server, subscriber(network, LAN_OTHER) as other:
        target = f"http://{LAN_OTHER}:{other.getsockname()[1]}/"
        callback = f"<http://{LAN_HOST}:{server.getsockname()[1]}/>"
        reply = exchange(network, request("SUBSCRIBE", EVENT, CALLBACK=callback, NT="upnp:event"))
        assert status(reply) == 200
        heard(server, f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
        other.settimeout(0.5)
        with pytest.raises(TimeoutError):
            other.accept()


def search(target: str = "upnp:rootdevice", wait: int = 0) -> bytes:
    return (
        f'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\n'
        f"MX: {wait}\r\nST: {target}\r\n\r\n"
    ).encode()


def answers(sock: socket.socket, seconds: float = 1.0) -> list[tuple[bytes, tuple[str, int]]]:
    found = []
    sock.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        while True:
            found.append(sock.recvfrom(2048))
    return found


def test_searches(network: Network, log: Path) -> None:
    with network.udp(network.lan, LAN_HOST) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LAN_HOST))
        sock.sendto(search("ssdp:all"), GROUP)
        found = answers(sock)
        assert len(found) == 10
        assert {peer for _, peer in found} == {(LAN_ROUTER, 1900)}
        assert all(f"LOCATION: http://{LAN_ROUTER}:{PORT}/rootDesc.xml".encode() in answer for answer, _ in found)
        sock.sendto(search(), (LAN_ROUTER, 1900))
        assert len(answers(sock, 0.5)) == 1
        for other in (b"", b"\xff" * 1500, search("urn:schemas-upnp-org:device:MediaServer:1"), search() * 12):
            sock.sendto(other, GROUP)
        assert answers(sock, 0.5) == []


def test_searches_are_answered_up_to_a_rate(network: Network, log: Path) -> None:
    with network.udp(network.lan, LAN_OTHER) as sock:
        for _ in range(200):
            sock.sendto(search(), (LAN_ROUTER, 1900))
        assert 10 <= len(answers(sock)) <= 60


def test_the_outside_is_not_answered(network: Network, log: Path) -> None:
    with network.udp(network.wan, WAN_HOST) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(WAN_HOST))
        for destination in (GROUP, (LAN_ROUTER, 1900), (PUBLIC, 1900)):
            with contextlib.suppress(ConnectionRefusedError):
                sock.sendto(search(), destination)
        assert answers(sock) == []


@pytest.fixture
def other_network() -> Iterator[Network]:
    """For a gateway of its own."""
    with made(f"he{os.getpid() % 100000}") as network:
        give_public_address(network)
        yield network


def test_presence_is_announced_and_taken_back(other_network: Network, tmp_path: Path) -> None:
    network = other_network
    with network.at(network.lan):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind(GROUP)
        member = struct.pack("=4s4s", socket.inet_aton(GROUP[0]), socket.inet_aton(LAN_HOST))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        with gateway(network, tmp_path, "[igd]\nenabled = true\nport = 0\n"):
            told = [datagram for datagram, _ in answers(sock)]
            assert all(b"ssdp:byebye" in datagram for datagram in told[:10])
            alive = told[10:]
            assert len(alive) == 20
            assert all(b"ssdp:alive" in datagram for datagram in alive)
            assert len(set(re.findall(rb"USN: (uuid:[0-9a-f-]+)", b"".join(alive)))) == 3
            # An internal address that comes later is served as well, and announced.
            ip("-n", network.router, "address", "add", "192.168.79.1/24", "dev", "inner0")
            until = time.monotonic() + WAIT
            found: set[bytes] = set()
            while b"192.168.79.1" not in found and time.monotonic() < until:
                heard_now = b"".join(datagram for datagram, _ in answers(sock, 0.3))
                found |= set(re.findall(rb"LOCATION: http://([0-9.]+):", heard_now))
            assert b"192.168.79.1" in found
            while answers(sock, 0.5):  # the rest of the series that announces the later address
                pass
        left = [datagram for datagram, _ in answers(sock, 0.5)]
        assert len(left) == 20
        assert all(b"ssdp:byebye" in datagram for datagram in left)


def test_a_port_in_use_is_one_plain_line(other_network: Network, tmp_path: Path) -> None:
    network = other_network
    with network.at(network.router):
        taken = socket.socket()
    with taken:
        taken.bind((LAN_ROUTER, 4000))
        taken.listen()
        config = tmp_path / "gateway.toml"
        config.write_text(
            f'[natpmp]\nlisten = ["{LAN_ROUTER}:0"]\n[igd]\nenabled = true\nport = 4000\n'
            f'[state]\nfile = "{tmp_path}/state.sqlite"\n'
        )
        command = (sys.executable, "-m", "homing", "gateway", "--config", str(config))
        said = run(network, network.router, *command, check=False)
    assert "UPnP (port 4000 of TCP, 1900 of UDP): Address already in use" in said
    assert "Traceback" not in said
