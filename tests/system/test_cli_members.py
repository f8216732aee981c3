"""`homing member` and `homing key` end to end on SQLite, without a server and beside one."""

import base64
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update
import pytest

from tests.support.processes import Finished, Running, homing, homing_here, lines, server_config, start, start_server

ZONE = "members.example."
ALICE = f"alice.{ZONE}"
NOTICED_SECONDS = 3.0  # the server looks every half second; the rest is for a busy machine

Run = Callable[..., Finished]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command on a database of its own, in this process."""
    file = server_config(tmp_path)
    return lambda *arguments, **options: homing_here(*arguments, "--config", file, **options)


def test_a_new_key_is_printed_in_three_forms_that_agree(tmp_path: Path) -> None:
    file = server_config(tmp_path)
    finished = homing("member", "add", "alice", "--config", file)
    assert (finished.code, finished.err) == (0, "")
    as_json = json.loads(finished.out.splitlines()[-1])
    assert (as_json["name"], as_json["algorithm"]) == (ALICE, "hmac-sha256")
    secret = as_json["secret"]
    assert len(base64.b64decode(secret)) == 32
    assert f'key "{ALICE}" {{\n\talgorithm hmac-sha256;\n\tsecret "{secret}";\n}};\n' in finished.out
    assert f"\nnsupdate -y hmac-sha256:{ALICE}:{secret}\n" in finished.out
    again = homing("member", "add", "alice", "--config", file)
    assert (again.code, again.out, again.err) == (1, "", "homing: there is a member alice already\n")


def test_members_and_keys_from_beginning_to_end(run: Run) -> None:
    alice = run("member", "add", "Alice", "--json").json
    assert {name: alice[name] for name in ("name", "member", "domain", "private")} == {
        "name": ALICE,
        "member": "alice",
        "domain": ALICE,
        "private": False,
    }
    assert run("member", "add", "bob", "--private", "--json").json["private"] is True
    phone = run("key", "add", "alice", "--device", "phone", "--algorithm", "hmac-sha512", "--json").json
    assert (phone["name"], phone["algorithm"]) == (f"phone.{ALICE}", "hmac-sha512")
    assert phone["secret"] != alice["secret"]

    assert [row["name"] for row in run("member", "list", "--json").json] == ["alice", "bob"]
    listed = run("key", "list", "alice", "--json").json
    assert [(row["name"], row["revoked_at"], row["last_used_at"]) for row in listed] == [
        (ALICE, None, None),
        (f"phone.{ALICE}", None, None),
    ]
    assert len(run("key", "list", "--json").json) == 3

    assert run("key", "revoke", "phone.alice", "--json").json == {"revoked": f"phone.{ALICE}"}
    assert run("key", "list", "alice", "--json").json[1]["revoked_at"]
    assert run("key", "revoke", f"phone.{ALICE}").err == f"homing: there is no valid key phone.{ALICE}\n"

    assert run("member", "remove", "bob", "--yes").code == 0
    assert [row["name"] for row in run("member", "list", "--json").json] == ["alice"]
    everything = run("key", "list").out + run("member", "show", "alice").out + run("member", "list").out
    assert alice["secret"] not in everything
    assert phone["secret"] not in everything


def test_tables_for_people_line_up(run: Run) -> None:
    run("member", "add", "alice")
    run("member", "add", "bartholomew", "--private")
    header, first, second = lines(run("member", "list").out)
    column = header.index("KIND")
    assert first[column:].split()[0] == "open"
    assert second[column:].split()[0] == "private"
    assert re.search(r"alice +alice\.members\.example\. +open +1 +never +20\d\d-", first)


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["member", "add", "alice"], 1, "there is a member alice already"),
        (["member", "add", "-x-"], 2, None),
        (["member", "add", "a.b"], 1, "member name 'a.b' is not one label"),
        (["member", "show", "nobody"], 1, "there is no member 'nobody'"),
        (["member", "remove", "nobody", "--yes"], 1, "there is no member 'nobody'"),
        (["member", "remove", "alice"], 2, "there is no terminal to ask on: say --yes"),
        (["key", "add", "nobody"], 1, "there is no member 'nobody'"),
        (["key", "add", "alice"], 1, f"there is a key {ALICE} already"),
        (["key", "add", "alice", "--device", "ph one"], 1, "device name 'ph one' is not one label"),
        (["key", "add", "alice", "--algorithm", "rot13"], 2, None),
        (["key", "add", "alice", "--device", "old", "--algorithm", "hmac-md5"], 2, "hmac-md5 keys work only with"),
        (["key", "list", "nobody"], 1, "there is no member 'nobody'"),
        (["key", "revoke", "nothing."], 1, "there is no valid key nothing."),
        (["key", "revoke", "a..b"], 1, None),
        (["member", "add", "carol", "--password-stdin"], 1, "no password on stdin"),
    ],
)
def test_what_cannot_be_done(run: Run, arguments: list[str], code: int, complaint: str | None) -> None:
    run("member", "add", "alice")
    finished = run(*arguments)
    assert (finished.code, finished.out) == (code, "")
    assert "Traceback" not in finished.err
    if complaint is not None:
        assert lines(finished.err) == [line for line in lines(finished.err) if line.startswith(f"homing: {complaint}")]
        assert len(lines(finished.err)) == 1
    assert [row["name"] for row in run("member", "list", "--json").json] == ["alice"]


def test_a_key_from_a_password(run: Run) -> None:
    weak = run("member", "add", "carol", "--password-stdin", stdin="short\n")
    assert weak.code == 1
    made = run("member", "add", "carol", "--password-stdin", "--json", stdin="correct horse battery\n").json
    (row,) = run("key", "list", "carol", "--json").json
    assert row["from_password"] is True
    assert made["secret"] not in json.dumps(row)
    assert "horse" not in run("member", "show", "carol", "--json").out


def test_another_zone_than_the_databases(tmp_path: Path) -> None:
    homing_here("member", "add", "alice", "--config", server_config(tmp_path))
    other = server_config(tmp_path, zone={"name": "other.example."})
    complaint = "homing: this database serves zone members.example., not other.example."
    for finished in (homing_here("member", "add", "bob", "--config", other), homing("serve", "--config", other)):
        assert finished.code == 1
        assert lines(finished.err)[-1] == complaint


def leased_add(server: Running, key: dict[str, Any], owner: str, address: str = "2001:db8::1") -> dns.message.Message:
    """Send a signed update that adds an AAAA under a lease."""
    name = dns.name.from_text(key["name"])
    secret = dns.tsig.Key(name, key["secret"], key["algorithm"])
    update = dns.update.UpdateMessage(ZONE)
    update.add(owner, 60, "AAAA", address)
    lease = dns.edns.GenericOption(2, (3600).to_bytes(4, "big"))
    update.use_edns(0, options=[lease])
    update.use_tsig(secret)
    return dns.query.tcp(update, "127.0.0.1", port=server.port, timeout=5)


def eventually(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + NOTICED_SECONDS
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def is_accepted(server: Running, key: dict[str, Any], owner: str) -> bool:
    """Whether the server takes an update with this key; it answers unknown keys without a signature."""
    try:
        return leased_add(server, key, owner).rcode() == dns.rcode.NOERROR
    except (dns.tsig.PeerError, dns.message.UnknownTSIGKey):
        return False


def test_a_member_made_before_the_first_start_is_served(run: Run, tmp_path: Path) -> None:
    key = run("member", "add", "alice", "--json").json
    with start("serve", tmp_path / "server.toml") as server:
        assert leased_add(server, key, f"mac.{ALICE}").rcode() == dns.rcode.NOERROR
        srv = dns.query.udp(
            dns.message.make_query(f"_dns-update._udp.{ALICE}", "SRV"), "127.0.0.1", port=server.port, timeout=5
        )
        assert srv.answer[0][0].port == server.port


def test_a_running_server_notices_what_is_done(run: Run, tmp_path: Path) -> None:
    with start_server(tmp_path, log={"level": "debug"}) as server:
        alice = run("member", "add", "alice", "--json").json
        assert eventually(lambda: is_accepted(server, alice, f"mac.{ALICE}"))
        answer = dns.query.udp(dns.message.make_query(f"mac.{ALICE}", "AAAA"), "127.0.0.1", port=server.port, timeout=5)
        assert answer.answer[0][0].address == "2001:db8::1"
        (shown,) = run("member", "show", "alice", "--json").json["records"]
        assert (shown["owner"], shown["type"], shown["data"]) == (f"mac.{ALICE}", "AAAA", "2001:db8::1")
        assert shown["expires_at"]

        phone = run("key", "add", "alice", "--device", "phone", "--json").json
        assert eventually(lambda: is_accepted(server, phone, f"phone.{ALICE}"))
        run("key", "revoke", f"phone.{ALICE}")
        assert eventually(lambda: not is_accepted(server, phone, f"phone.{ALICE}"))
        assert is_accepted(server, alice, f"mac.{ALICE}")

        bob = run("member", "add", "bob", "--private", "--json").json
        assert eventually(lambda: is_accepted_in(server, bob, f"bob.{ZONE}"))

        assert run("member", "remove", "alice", "--yes").code == 0
        assert eventually(lambda: not is_accepted(server, alice, f"mac.{ALICE}"))
        query = dns.message.make_query(f"mac.{ALICE}", "AAAA")
        assert eventually(  # keys end at once, the names a moment later when the writer has followed
            lambda: dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5).rcode() == dns.rcode.NXDOMAIN
        )
        assert server.stop() == 0
        assert "Traceback" not in server.log
        for key in (alice, phone, bob):
            assert key["secret"] not in server.log
            assert base64.b64decode(key["secret"]).hex() not in server.log


def is_accepted_in(server: Running, key: dict[str, Any], zone: str) -> bool:
    """The same for a private member, whose domain is a zone of its own."""
    update = dns.update.UpdateMessage(zone)
    update.add(f"mac.{zone}", 60, "AAAA", "2001:db8::2")
    update.use_edns(0, options=[dns.edns.GenericOption(2, (3600).to_bytes(4, "big"))])
    update.use_tsig(dns.tsig.Key(dns.name.from_text(key["name"]), key["secret"], key["algorithm"]))
    try:
        return dns.query.tcp(update, "127.0.0.1", port=server.port, timeout=5).rcode() == dns.rcode.NOERROR
    except (dns.tsig.PeerError, dns.message.UnknownTSIGKey):
        return False


def test_last_use_is_shown_after_the_server_stopped(run: Run, tmp_path: Path) -> None:
    key = run("member", "add", "alice", "--json").json
    with start("serve", tmp_path / "server.toml") as server:
        assert is_accepted(server, key, f"mac.{ALICE}")
    (row,) = run("key", "list", "alice", "--json").json
    assert row["last_used_at"]
    assert "never" not in lines(run("member", "list").out)[1]
