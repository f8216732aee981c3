"""Those who watch: Prometheus, a load balancer, the operator; and the query log."""

import json
import re
import signal
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import HOMING, Running, homing, homing_here, start, start_server

SERVER = {
    "metrics": {"listen": "127.0.0.1:0"},
    "transfer": {"catalog": "catalog.invalid.", "also_notify": ["127.0.0.1:9"]},
    "log": {"queries": 1.0},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with start_server(tmp_path, **SERVER) as running:
        yield running


def get(running: Running, page: str) -> tuple[int, str]:
    host, port = running.listening["metrics"][0]
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{page}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ask(running: Running, owner: str, *, tcp: bool = False) -> None:
    send = dns.query.tcp if tcp else dns.query.udp
    send(dns.message.make_query(owner, "A"), "127.0.0.1", port=running.port, timeout=5)


def test_prometheus_reads_it_and_the_pages_say_how_it_is(server: Running) -> None:
    homing_here("member", "add", "bob", "--private", "--config", server.config)
    for number in range(3):
        ask(server, f"a{number}.members.example.")
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/readyz") == (200, "ready\n")
    assert get(server, "/status")[0] == 404, "not for everyone on this machine"
    code, text = get(server, "/metrics")
    assert code == 200
    families = {family.name: family for family in text_string_to_metric_families(text)}
    labels = {"transport": "udp", "opcode": "0", "rcode": "NXDOMAIN"}
    assert [sample.value for sample in families["homing_requests"].samples if sample.labels == labels] == [3]
    zones = {sample.labels["zone"] for sample in families["homing_zone_serial"].samples}
    assert zones == {"members.example.", "catalog.invalid."}, "private members' names are not told"
    assert all(family.documentation for family in families.values())


def test_only_get_and_bounded_requests(server: Running) -> None:
    for request, code in ((b"POST /metrics HTTP/1.0\r\n\r\n", b"405"), (b"HEAD /healthz HTTP/1.0\r\n\r\n", b"200")):
        with socket.create_connection(server.listening["metrics"][0], timeout=5) as connection:
            connection.sendall(request)
            reply = connection.recv(4096)
            assert reply.startswith(b"HTTP/1.0 " + code), reply
            assert reply.endswith(b"\r\n\r\n") is request.startswith(b"HEAD")
    with socket.create_connection(server.listening["metrics"][0], timeout=5) as connection:
        connection.sendall(b"x" * 20_000)
        assert connection.recv(100) == b"", "no end of a request in 8 KiB"


def test_status_tells_of_zones_secondaries_and_rates(server: Running) -> None:
    path = server.config.parent / "homing.db.control"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    homing_here("member", "add", "bob", "--private", "--config", server.config)
    ask(server, "x.members.example.")
    found = homing("status", "--json", "--config", server.config).json
    kinds = {zone["name"]: zone["kind"] for zone in found["zones"]}
    assert kinds["members.example."] == "open" and kinds["catalog.invalid."] == "catalog"
    assert found["pid"] == server.process.pid and found["unready"] is None
    assert found["totals"]["queries"] == 1 and found["rates"]["queries"] == 0
    (service,) = (zone for zone in found["zones"] if zone["name"] == "members.example.")
    assert service["secondaries"][0]["port"] == 9 and not service["secondaries"][0]["answered"]
    text = homing("status", "--config", server.config)
    assert re.search(r"^members\.example\. +open +\d+ +\d+ ", text.out, re.MULTILINE), text.out
    assert "no answer yet" in text.out and text.code == 0


def test_status_goes_on_until_it_is_stopped(server: Running) -> None:
    process = subprocess.Popen(
        [*HOMING, "status", "--watch", "--json", "--config", str(server.config)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    process.stdout.close()
    assert seen[1]["now"] > seen[0]["now"] and "rates" in seen[1]


def test_without_a_server_status_says_so(tmp_path: Path) -> None:
    with start_server(tmp_path) as running:
        config = running.config
    assert not (tmp_path / "homing.db.control").exists()
    done = homing_here("status", "--config", config)
    assert (done.code, done.out) == (1, "") and "no server answers at" in done.err


def test_a_killed_servers_socket_is_taken_over_a_living_ones_is_not(tmp_path: Path) -> None:
    with start_server(tmp_path) as running:
        running.process.kill()
        running.process.wait()
        assert (tmp_path / "homing.db.control").is_socket()
        with start("serve", running.config) as second:
            assert homing("status", "--json", "--config", second.config).json["pid"] == second.process.pid
            with start("serve", running.config) as third:
                assert "another server answers there" in third.log
            assert homing("status", "--json", "--config", second.config).json["pid"] == second.process.pid


def test_queries_are_told_by_whatever_way_they_are_answered(server: Running) -> None:
    for number in range(3):
        for _ in range(4):  # joined, noted, made ready, ready
            ask(server, f"u{number}.members.example.")
        ask(server, f"t{number}.members.example.", tcp=True)
    ask(server, "members.example.org.")  # refused, the slow way
    deadline = time.monotonic() + 5
    while len(re.findall(r" query ", server.log)) < 16 and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = re.findall(r" query +name=(\S+) type=A peer=127\.0\.0\.1#\d+/(udp|tcp) rcode=(\w+)", server.log)
    expected = [("members.example.org.", "udp", "REFUSED")]
    for number in range(3):
        expected += [(f"u{number}.members.example.", "udp", "NXDOMAIN")] * 4
        expected += [(f"t{number}.members.example.", "tcp", "NXDOMAIN")]
    assert sorted(lines) == sorted(expected)


def test_none_is_told_by_default(tmp_path: Path) -> None:
    with start_server(tmp_path, log={"level": "debug"}) as running:
        ask(running, "a.members.example.")
        ask(running, "a.members.example.", tcp=True)
        assert " query " not in running.log
