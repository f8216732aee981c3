"""`homing watch` against a running server by each way, with changes that dnspython makes."""

import base64
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.edns
import dns.query
import dns.rcode
import dns.tsig
import dns.update
import pytest

from tests.support.processes import HOMING, Running, homing, server_config, start, tls_tables

SECONDS = 20.0


@dataclass
class Target:
    running: Running
    ca_file: Path
    keys: dict[str, dns.tsig.Key]
    key_files: dict[str, Path]

    def update(self, member: str, *addresses: str) -> None:
        """Put these addresses in the place of what mac of the member has."""
        zone = "bob.members.example." if member == "bob" else "members.example."
        update = dns.update.UpdateMessage(zone, keyring=self.keys[member])
        name = f"mac.{member}.members.example."
        update.delete(name)
        for address in addresses:
            update.add(name, 120, "A", address)
        update.use_edns(0, options=[dns.edns.GenericOption(2, (1800).to_bytes(4, "big"))])
        reply = dns.query.tcp(update, "127.0.0.1", port=self.running.port, timeout=SECONDS)
        assert reply.rcode() == dns.rcode.NOERROR


@dataclass
class Watch:
    """A running `homing watch --json`."""

    process: subprocess.Popen[str]
    seen: list[dict[str, Any]] = field(default_factory=list)

    def until(self, **wanted: str) -> dict[str, Any]:
        """The next object with these values."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            self.seen.append(found)
            if wanted.items() <= found.items():
                return found
        raise AssertionError(f"ended without {wanted}: {self.seen}")


@contextmanager
def watching(target: Target, name: str, *options: str) -> Iterator[Watch]:
    command = [*HOMING, "watch", name, "A", "--server", f"127.0.0.1:{target.running.port}", "--json"]
    command += ["--ca-file", str(target.ca_file), "--seconds", str(SECONDS), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Watch(process)
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("watch")
    ca_file, tls = tls_tables(directory)
    config = server_config(
        directory,
        dns={
            **tls,
        },
    )
    keys, key_files = {}, {}
    for member, options in (("alice", ()), ("bob", ("--private",))):
        made = homing("member", "add", member, *options, "--json", "--config", config).json
        found = made.get("key", made)
        keys[member] = dns.tsig.Key(found["name"], base64.b64decode(found["secret"]), found["algorithm"])
        key_files[member] = directory / f"{member}.key"
        key_files[member].touch(0o600)
        key_files[member].write_text(
            f'key "{found["name"]}" {{ algorithm {found["algorithm"]}; secret "{found["secret"]}"; }};\n'
        )
    with start("serve", config) as running:
        yield Target(running, ca_file, keys, key_files)


@pytest.mark.rfc("8764", "1.1")
@pytest.mark.parametrize(
    ("options", "way"),
    [
        ((), "push"),
        (("--via", "push"), "push"),
        (("--via", "llq-tls"), "llq-tls"),
        (("--via", "llq-udp"), "llq-udp"),
        (("--via", "poll", "--poll-every", "1"), "poll"),
    ],
)
def test_each_way_tells_what_comes_and_goes(target: Target, options: tuple[str, ...], way: str) -> None:
    target.update("alice", "203.0.113.1")
    with watching(target, "mac.alice.members.example", *options) as watch:
        assert watch.until(event="way")["via"] == way
        assert watch.until(event="add") | {"at": ""} == {
            "at": "",
            "event": "add",
            "name": "mac.alice.members.example.",
            "type": "A",
            "rdata": "203.0.113.1",
        }
        target.update("alice", "203.0.113.2")
        watch.until(event="remove", rdata="203.0.113.1")
        watch.until(event="add", rdata="203.0.113.2")
        target.update("alice")
        watch.until(event="remove", rdata="203.0.113.2")


def test_a_private_member_is_watched_with_its_key(target: Target) -> None:
    target.update("bob", "203.0.113.1")
    with watching(target, "mac.bob.members.example", "--key-file", str(target.key_files["bob"])) as watch:
        assert watch.until(event="way")["via"] == "llq-tls"
        watch.until(event="add", rdata="203.0.113.1")
        target.update("bob", "203.0.113.2")
        watch.until(event="add", rdata="203.0.113.2")


@pytest.mark.rfc("8764", "1.1")
def test_where_push_is_refused_the_next_way_is_gone(target: Target) -> None:
    with watching(target, "ns.members.example", "--via", "auto") as watch:
        assert watch.until(event="way")["via"] == "push"
        watch.until(event="add", rdata="127.0.0.1")


def test_it_ends_by_itself_and_prints_for_people(target: Target) -> None:
    target.update("alice", "203.0.113.1")
    done = homing(
        "watch", "mac.alice.members.example", "A", "--count", "1", "--server", f"127.0.0.1:{target.running.port}",
        "--ca-file", target.ca_file,
    )  # fmt: skip
    assert done.code == 0
    assert done.out.split(" ", 1)[1] == "+ mac.alice.members.example. A 203.0.113.1\n"
    assert "watching by push at ns.members.example." in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("mac.alice.members.example", "ANY"), 2, "ANY is not the type of a record"),
        (("mac..example", "A"), 2, "no domain name"),
        (("mac.alice.members.example", "A", "--server", "nowhere"), 2, "--server 'nowhere'"),
        (("mac.alice.members.example", "A", "--server", "127.0.0.1", "--key-file", "/none"), 2, "No such file"),
    ],
)
def test_what_cannot_be_watched_is_one_line(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = homing("watch", *arguments)
    assert done.code == code
    assert words in done.err
    assert "Traceback" not in done.err
