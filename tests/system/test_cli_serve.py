"""`homing serve` and `homing gateway` as processes: readiness, signals, one clear line for what cannot be."""

import asyncio
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from homing.certificates import ensure_certificates
from homing.running import OperationError, run
from tests.support.processes import Finished, homing, homing_here, lines, server_config, start, start_server

NAME = "members.example."


def one_line(finished: Finished) -> str:
    """The complaint of a command that could not start: one line on stderr, nothing on stdout, exit code 1."""
    complaints = [line for line in lines(finished.err) if line.startswith("homing: ")]
    assert (finished.code, finished.out, len(complaints)) == (1, "", 1), finished.err
    assert "Traceback" not in finished.err
    return complaints[0].removeprefix("homing: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_answers_and_stops_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with start_server(tmp_path) as server:
        query = dns.message.make_query(NAME, "SOA")
        for ask in (dns.query.udp, dns.query.tcp):
            reply = ask(query, "127.0.0.1", port=server.port, timeout=5)
            assert reply.rcode() == dns.rcode.NOERROR
            assert reply.flags & dns.flags.AA
        assert server.listening["tcp"] == server.listening["udp"]
        assert server.stop(number) == 0
        assert "stopped" in server.log
        assert "Traceback" not in server.log


def test_tls_and_metrics(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path / "tls", [f"ns.{NAME}"], ["127.0.0.1"])
    tables: dict[str, Any] = {
        "dns": {
            "listen_tls": ["127.0.0.1:0"],
            "certificate_file": str(files.certificate_file),
            "key_file": str(files.key_file),
        },
        "metrics": {"listen": "127.0.0.1:0"},
    }
    with start_server(tmp_path, **tables) as server:
        query = dns.message.make_query(NAME, "SOA")
        reply = dns.query.tls(query, "127.0.0.1", port=server.tls_port, verify=str(files.ca_file), timeout=5)
        assert reply.rcode() == dns.rcode.NOERROR
        with socket.create_connection(server.listening["metrics"][0], 5) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert connection.recv(12).startswith(b"HTTP/1.")


@pytest.mark.rfc("8945", "6")
def test_md5_is_warned_of_at_start(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        assert "md5" not in server.log
    with start_server(tmp_path, dns={"allow_md5": True}) as server:
        assert "hmac-md5 is accepted, which RFC 8945 forbids" in server.log
        assert homing("member", "add", "old", "--algorithm", "hmac-md5", "--config", server.config).code == 0
    with start_server(tmp_path) as server:
        assert "keys with hmac-md5 are refused" in server.log and "old.members.example." in server.log


def test_what_was_there_is_there_after_a_kill(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        before = serial(server.port)
        server.stop(signal.SIGKILL)
    with start_server(tmp_path) as server:
        assert serial(server.port) >= before


def serial(port: int) -> int:
    reply = dns.query.udp(dns.message.make_query(NAME, "SOA"), "127.0.0.1", port=port, timeout=5)
    number: int = reply.answer[0][0].serial
    return number


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_taken_port(tmp_path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        complaint = one_line(homing("serve", "--config", server_config(tmp_path, dns={"listen": [listen]})))
    assert complaint.startswith(f"cannot listen on {listen}: ")


def test_an_unwritable_database(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/none/homing.db"
    complaint = one_line(homing("serve", "--config", server_config(tmp_path, database={"url": url})))
    assert str(tmp_path / "none") in complaint
    (tmp_path / "directory").mkdir()
    url = f"sqlite+aiosqlite:///{tmp_path}/directory"
    assert "directory" in one_line(homing_here("serve", "--config", server_config(tmp_path, database={"url": url})))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "homing.db").write_text("not a database, but long enough to look at\n" * 100)
    assert "homing.db" in one_line(homing_here("serve", "--config", server_config(tmp_path)))


def test_a_master_key_that_is_missing_open_or_another(tmp_path: Path) -> None:
    file = server_config(tmp_path, database={"master_key_file": "master.key"})
    key = tmp_path / "master.key"
    with start("serve", file) as server:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert server.stop() == 0
    homing_here("member", "add", "alice", "--config", file)
    key.chmod(0o640)
    assert one_line(homing_here("serve", "--config", file)) == (
        f"{key} ([database].master_key_file) is open to others (mode 0640): chmod 600 it"
    )
    key.chmod(0o600)
    key.write_bytes(bytes(32))
    assert "master key file is not the one" in one_line(homing_here("serve", "--config", file))


@pytest.mark.parametrize("missing", ["certificate_file", "key_file"])
def test_a_missing_certificate_or_key(tmp_path: Path, missing: str) -> None:
    files = ensure_certificates(tmp_path / "tls", ["ns.example"], [])
    paths = {"certificate_file": files.certificate_file, "key_file": files.key_file}
    paths[missing].unlink()
    tables = {"listen_tls": ["127.0.0.1:0"], **{name: str(path) for name, path in paths.items()}}
    complaint = one_line(homing("serve", "--config", server_config(tmp_path, dns=tables)))
    assert complaint == f"no such file: {paths[missing]}"


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing\n")
        (tmp_path / name).chmod(0o600)
    tables = {"listen_tls": ["127.0.0.1:0"], "certificate_file": "cert.pem", "key_file": "key.pem"}
    complaint = one_line(homing_here("serve", "--config", server_config(tmp_path, dns=tables)))
    assert str(tmp_path / "cert.pem") in complaint


def test_a_bad_file_names_every_problem_and_exits_2(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("[zone]\nnmae = 'x.'\n[dns]\nlisten = ['here']\nrate_limit = -1\n[lease]\nminimum_seconds = 0\n")
    for finished in (homing("serve", "--config", file), homing_here("check-config", "--config", file)):
        assert (finished.code, finished.out) == (2, "")
        found = sorted(line.removeprefix(f"homing: {file}: ").split(":")[0] for line in lines(finished.err))
        assert found == ["[dns].listen[0]", "[dns].rate_limit", "[lease].minimum_seconds", "[zone].nmae"]


@pytest.mark.parametrize("command", ["serve", "gateway", "client", "check-config", "member list"])
def test_no_configuration_is_a_usage_error(command: str) -> None:
    finished = homing_here(*command.split())
    assert (finished.code, finished.out) == (2, "")
    assert "--config" in finished.err


def test_the_environment_names_the_file_and_the_database(tmp_path: Path) -> None:
    file = server_config(tmp_path)
    environment = {
        "HOMING_CONFIG": str(file),
        "HOMING_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/other.db",
        "HOMING_LOG_LEVEL": "debug",
    }
    shown = homing("check-config", "--json", environment=environment)
    assert shown.code == 0
    assert shown.json["database"]["url"] == environment["HOMING_DATABASE_URL"]
    assert shown.json["log"]["level"] == "debug"


def test_the_checked_configuration_can_be_used_and_hides_the_password(tmp_path: Path) -> None:
    file = server_config(tmp_path, database={"url": "postgresql+asyncpg://homing:s3cret@db.example/homing"})
    shown = homing_here("check-config", "--config", file)
    assert shown.code == 0
    assert "homing:(hidden)@db.example" in shown.out
    assert "s3cret" not in shown.out + shown.err
    copy = tmp_path / "copy.toml"
    copy.write_text(shown.out)
    assert homing_here("check-config", "--config", copy).out == shown.out


def test_help_teaches() -> None:
    assert homing_here("--version").out.startswith("homing ")
    for command in ("serve", "gateway", "client", "check-config", "member add", "member remove", "key add"):
        shown = homing_here(*command.split(), "--help")
        assert shown.code == 0
        assert f"homing {command}" in shown.out.partition("Example:")[2]
    assert homing_here("nonsense").code == 2


def test_gateway_is_ready_and_stops(tmp_path: Path) -> None:
    file = gateway_config(tmp_path)
    with start("gateway", file) as gateway:
        ((address, port),) = gateway.listening["natpmp"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.sendto(b"\x00\x00", (address, port))
            reply = asking.recv(64)
        assert reply[:4] == b"\x00\x80\x00\x00"
        assert reply[8:12] == bytes((127, 0, 0, 2))
        assert gateway.stop() == 0


def test_gateway_with_a_taken_port_or_a_bad_file(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        file = gateway_config(tmp_path, taken.getsockname()[1])
        assert str(taken.getsockname()[1]) in one_line(homing_here("gateway", "--config", file))
    file.write_text("[natpmp]\nlisten = ['0.0.0.0:5351']\nlisten_on = 1\n")
    finished = homing_here("gateway", "--config", file)
    assert finished.code == 2
    assert "[natpmp].listen_on: unknown key, did you mean 'listen'?" in finished.err
    assert "[state]: is missing" in finished.err


def gateway_config(directory: Path, port: int = 0) -> Path:
    file = directory / "gateway.toml"
    file.write_text(
        f'[natpmp]\nlisten = ["127.0.0.1:{port}"]\nannounce_to = "127.0.0.1:9"\n'
        '[external]\naddress = "127.0.0.2"\n[state]\nfile = "gateway.sqlite"\n'
    )
    return file


def test_client_without_its_secret_or_with_an_open_one(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text(
        '[machine]\nname = "mac"\n[member]\ndomain = "alice.members.example."\n'
        '[member.key]\nname = "alice.members.example."\nsecret_file = "alice.secret"\n'
        '[dns]\nserver = "127.0.0.1:9"\n'
    )
    missing = homing_here("client", "--config", file)
    assert missing.code == 2
    assert lines(missing.err) == [f"homing: {file}: [member.key]: {tmp_path}/alice.secret: No such file or directory"]
    (tmp_path / "alice.secret").write_text("c2VjcmV0")
    (tmp_path / "alice.secret").chmod(0o644)
    opened = homing_here("client", "--config", file)
    assert opened.code == 2
    assert "chmod 600" in opened.err
    assert "c2VjcmV0" not in opened.err


def test_client_is_ready_and_stops(tmp_path: Path) -> None:
    (tmp_path / "alice.secret").write_text("c2VjcmV0")
    (tmp_path / "alice.secret").chmod(0o600)
    file = tmp_path / "client.toml"
    file.write_text(
        '[machine]\nname = "mac"\nmac = "02:00:00:00:00:01"\ninternal_address = "127.0.0.1"\ninternal_port = 0\n'
        '[member]\ndomain = "alice.members.example."\n'
        '[member.key]\nname = "alice.members.example."\nsecret_file = "alice.secret"\n'
        '[dns]\nserver = "127.0.0.1:9"\n[nat]\nmode = "none"\n[timing]\nstop_timeout = 0.2\n'
    )
    with start("client", file) as client:
        assert client.stop() == 0
        assert "c2VjcmV0" not in client.log
        assert "Traceback" not in client.log


class Slow:
    """A program that is told to end before it has started."""

    stopped = False

    async def start(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    async def wait(self) -> bool:
        raise AssertionError("it has not started")

    def request_stop(self) -> None:
        raise AssertionError("it has not started")

    async def stop(self) -> None:
        self.stopped = True


def test_a_signal_while_starting_ends_it_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    slow = Slow()
    run(lambda: slow, lambda _: ["nothing"], (OSError,))
    assert not slow.stopped  # `start` cleans up behind itself
    assert "ready" not in capsys.readouterr().out


class Faulty(Slow):
    async def start(self) -> None: ...

    async def wait(self) -> bool:
        return False


def test_a_fault_of_its_own_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    faulty = Faulty()
    with pytest.raises(OperationError, match="fault of its own"):
        run(lambda: faulty, lambda _: ["udp 127.0.0.1:1"], (OSError,))
    assert faulty.stopped
    assert capsys.readouterr().out.startswith("ready\nlistening udp 127.0.0.1:1\n")
