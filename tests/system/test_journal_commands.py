"""`homing history`, `undo` and `tail` end to end: over updates, a lapse, imports, and what stands in the way."""

import asyncio
import json
import select
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.edns
import dns.name
import dns.query
import dns.rcode
import dns.tsig
import dns.update
import pytest

from homing import journal
from server.config import JournalSettings
from server.pruning import prune_once
from server.store.sql import SqlStore
from tests.support.databases import edit_leases
from tests.support.processes import HOMING, READY_SECONDS, Finished, Running, homing_here, lines, server_config, start

ZONE = "members.example."
MAC = f"mac.alice.{ZONE}"

Run = Callable[..., Finished]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return server_config(tmp_path)


@pytest.fixture
def run(config: Path) -> Run:
    """Run a command on a database of its own, in this process."""
    return lambda *arguments, **options: homing_here(*arguments, "--config", config, **options)


@pytest.fixture
def put(run: Run, tmp_path: Path) -> Callable[[str], int]:
    """Make the zone what a text says; the serial after it."""
    file = tmp_path / "file.zone"

    def work(text: str) -> int:
        file.write_text(text)
        return int(run("zone", "import", file, "--yes", "--json").json["serial_to"])

    return work


def move(config: Path, serial: int, at: int) -> None:
    """Say that a step was made at another time."""
    with sqlite3.connect(config.with_name("homing.db")) as connection:
        connection.execute("UPDATE change SET at = ? WHERE serial_to = ?", (at, serial))


def send(server: Running, key: dict[str, Any], *edits: Callable[[dns.update.UpdateMessage], None]) -> None:
    name = dns.name.from_text(key["name"])
    update = dns.update.UpdateMessage(ZONE)
    for edit in edits:
        edit(update)
    update.use_edns(0, options=[dns.edns.GenericOption(2, (3600).to_bytes(4, "big"))])
    update.use_tsig(dns.tsig.Key(name, key["secret"], key["algorithm"]))
    assert dns.query.udp(update, "127.0.0.1", port=server.port, timeout=5).rcode() == dns.rcode.NOERROR


def test_a_record_added_renewed_moved_and_lapsed(run: Run, config: Path) -> None:
    alice = run("member", "add", "alice", "--json").json
    with start("serve", config) as server:
        for address in ("2001:db8::1", "2001:db8::1", "2001:db8::2"):
            time.sleep(1.05)  # within one second a renewal moves no lease
            send(
                server,
                alice,
                lambda update: update.delete(MAC, "AAAA") if address.endswith("2") else None,  # noqa: B023
                lambda update: update.add(MAC, 60, "AAAA", address),  # noqa: B023
            )
        leased = run("history", "mac.alice")
    assert "; lease ends in 3" in leased.out
    with sqlite3.connect(config.with_name("homing.db")) as connection:
        edit_leases(connection, lambda record: record.expires_at and 1)
    with start("serve", config):
        pass

    found = run("history", "MAC.alice", "--json").json
    assert (found["name"], found["zone"], found["now"]) == (MAC, ZONE, [])
    by_alice = {"kind": "update", "key": alice["name"], "peer": "127.0.0.1"}
    first = {"owner": MAC, "ttl": 60, "type": "AAAA", "data": "2001:db8::1"}
    second = {**first, "data": "2001:db8::2"}
    assert [(step["actor"], step["removed"], step["added"]) for step in found["changes"]] == [
        (by_alice, [], [first]),
        (by_alice, [first], [second]),
        ({"kind": "lapse", "key": "", "peer": ""}, [second], []),
    ]
    added, moved, lapsed = found["changes"]
    renewed = found["renewed"]
    assert (renewed["key"], renewed["peer"]) == (alice["name"], "127.0.0.1")
    with sqlite3.connect(config.with_name("homing.db")) as connection:
        connection.execute("UPDATE renewal SET at = 2000000150")

    for step, at in ((added, 2_000_000_100), (moved, 2_000_000_200), (lapsed, 2_000_000_300)):
        move(config, step["serial_to"], at)
    for moment, wanted in (
        ("2000000099", []),
        ("2000000100", [first]),
        ("2033-05-18T03:36:39Z", [first]),
        ("2033-05-18T05:36:40+02:00", [second]),
        ("2033-05-18 03:38:19", [second]),
        ("2000000300", []),
    ):
        then = run("history", "mac.alice", "--at", moment, "--json").json
        assert then["records"] == wanted, moment
    text = run("history", f"{MAC}")
    assert lines(text.out) == [
        f"2033-05-18T03:35:00Z {ZONE} serial {added['serial_from']} to {added['serial_to']}, "
        f"update by {alice['name']} from 127.0.0.1",
        f"  +{MAC}\t60\tIN\tAAAA\t2001:db8::1",
        f"2033-05-18T03:35:50Z {ZONE} lease renewed by {alice['name']} from 127.0.0.1, the last time",
        f"2033-05-18T03:36:40Z {ZONE} serial {moved['serial_from']} to {moved['serial_to']}, "
        f"update by {alice['name']} from 127.0.0.1",
        f"  -{MAC}\t60\tIN\tAAAA\t2001:db8::1",
        f"  +{MAC}\t60\tIN\tAAAA\t2001:db8::2",
        f"2033-05-18T03:38:20Z {ZONE} serial {lapsed['serial_from']} to {lapsed['serial_to']}, lapse",
        f"  -{MAC}\t60\tIN\tAAAA\t2001:db8::2",
        "now: no records",
    ]
    then = run("history", MAC, "--at", "2000000250")
    assert lines(then.out) == ["2033-05-18T03:37:30Z:", f"  {MAC}\t60\tIN\tAAAA\t2001:db8::2"]

    refused = run("undo", str(moved["serial_to"]), "--yes")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == (
        f"homing: {MAC} AAAA was changed again by the step to serial {lapsed['serial_to']}: undo that first\n"
    )
    assert run("undo", str(lapsed["serial_to"]), "--yes").code == 0
    assert run("history", MAC, "--json").json["now"] == [{**second, "expires_at": None}]


def test_undo_shows_asks_and_is_a_change_like_others(run: Run, put: Callable[[str], int], config: Path) -> None:
    put("a 60 A 192.0.2.1\nb 60 A 192.0.2.1\nb 60 A 192.0.2.2\nt 60 TXT x\n")
    serial = put("a 60 A 192.0.2.9\nb 90 A 192.0.2.1\nb 90 A 192.0.2.2\n")
    with sqlite3.connect(config.with_name("homing.db")) as connection:
        edit_leases(connection, lambda record: 4_000_000_000 if record.ttl == 90 else None)
    shown = run("undo", str(serial))
    assert (shown.code, shown.err) == (2, "homing: there is no terminal to ask on: say --yes\n")
    wanted = [
        f"-a.{ZONE}\t60\tIN\tA\t192.0.2.9",
        f"-b.{ZONE}\t90\tIN\tA\t192.0.2.1",
        f"-b.{ZONE}\t90\tIN\tA\t192.0.2.2",
        f"+a.{ZONE}\t60\tIN\tA\t192.0.2.1",
        f"+b.{ZONE}\t60\tIN\tA\t192.0.2.1",
        f"+b.{ZONE}\t60\tIN\tA\t192.0.2.2",
        f'+t.{ZONE}\t60\tIN\tTXT\t"x"',
    ]
    assert sorted(lines(shown.out)) == sorted(wanted)
    assert len(run("history", "a", "--json").json["changes"]) == 2
    done = run("undo", str(serial), "--yes")
    assert lines(done.out)[-1] == f"Undone: {ZONE} went from serial {serial} to {serial + 1}"
    step = run("history", "a", "--json").json["changes"][-1]
    assert (step["actor"]["kind"], step["serial_from"], step["serial_to"]) == ("operator", serial, serial + 1)
    assert [row["data"] for row in step["removed"] + step["added"]] == ["192.0.2.9", "192.0.2.1"]
    leases = [(row["ttl"], row["expires_at"]) for row in run("history", "b", "--json").json["now"]]
    assert leases == [(60, "2096-10-02T07:06:40Z")] * 2  # only the TTL went back
    assert run("undo", str(serial), "--yes").code == 1
    again = run("undo", str(serial + 1), "--yes")  # the undoing can be undone
    assert again.code == 0
    assert run("history", "t", "--json").json["now"] == []


def test_an_soa_goes_back_too(run: Run, put: Callable[[str], int]) -> None:
    put("@ 60 SOA ns admin 1 2 3 4 5\n")
    before = run("zone", "export").out.splitlines()[0].split()
    serial = put("@ 70 SOA ns other 1 2 3 4 6\n")
    assert run("history", ZONE, "--json").json["changes"][-1]["serial_to"] == serial
    assert run("undo", str(serial), "--yes").code == 0
    after = run("zone", "export").out.splitlines()[0].split()
    assert after[:6] + after[7:] == before[:6] + before[7:]
    assert int(after[6]) == serial + 1
    then = run("history", ZONE, "--at", str(int(time.time())), "--json").json["records"]
    assert {"SOA", "NS"} <= {row["type"] for row in then}


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (
            ("b 60 A 192.0.2.1\n", "b 60 A 192.0.2.2\n", "b 90 A 192.0.2.2\nb 90 A 192.0.2.3\n"),
            "was changed again by the step",
        ),
        (("b 60 A 192.0.2.1\nb 60 A 192.0.2.2\n", "b 60 A 192.0.2.1\n", "c 1 A 192.0.2.1\n"), None),
        (
            ("c 60 A 192.0.2.1\n", "b 1 A 192.0.2.1\n", "c 60 CNAME x\nb 1 A 192.0.2.1\n"),
            "would have a CNAME and other data",
        ),
        (
            ("b 60 A 192.0.2.1\nc 1 A 192.0.2.1\n", "c 1 A 192.0.2.1\n", "b 5 A 192.0.2.7\n"),
            "has records with another TTL now",
        ),
    ],
)
def test_what_stands_in_the_way_of_an_undo(
    run: Run, put: Callable[[str], int], texts: tuple[str, str, str], complaint: str | None
) -> None:
    put(texts[0])
    serial = put(texts[1])
    put(texts[2])
    before = run("zone", "export").out
    done = run("undo", str(serial), "--yes")
    if complaint is None:
        assert done.code == 0
        return
    assert (done.code, done.out) == (1, "")
    assert complaint in done.err
    assert run("zone", "export").out == before


@pytest.mark.parametrize("moves", [("on",), ("on", "off")], ids="-".join)
def test_a_members_move_is_not_undone_half(run: Run, config: Path, moves: tuple[str, ...]) -> None:
    """Its other half is a zone that came or went."""
    assert run("member", "add", "zoe").code == 0
    for state in moves:
        assert run("member", "private", "zoe", state, "--yes").code == 0
    with sqlite3.connect(config.with_name("homing.db")) as connection:
        ((serial,),) = connection.execute("SELECT serial FROM zone WHERE kind = 'service'").fetchall()
    refused = run("undo", str(serial), "--yes")
    assert (refused.code, refused.err) == (1, "homing: this step moved member zoe: use homing member private\n")


def test_the_zones_own_ns_cannot_be_undone(run: Run) -> None:
    run("member", "add", "alice")
    first = run("history", ZONE, "--json").json["changes"][0]
    assert run("undo", str(first["serial_to"]), "--yes").err == f"homing: {ZONE} would have no NS\n"


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (
            ["history", "a", "--at", "yesterday"],
            2,
            "--at 'yesterday': neither a time like 2026-11-23T10:00:00Z nor seconds since 1970",
        ),
        (["history", "a..b"], 1, "empty label in name 'a..b'"),
        (["history", "a.other."], 1, "a.other. is in no zone of this database"),
        (["undo", "7", "--yes"], 1, f"no step of {ZONE} leads to serial 7: its journal goes from serial "),
        (["undo", "7", "--yes", "--zone", "other."], 1, f"there is no zone other. in the database (there is {ZONE})"),
        (["tail", "--since", "7"], 2, "--since needs --zone: a serial is one zone's"),
        (["tail", "--since", "7", "--zone", ZONE], 1, f"the journal of {ZONE} does not reach back to serial 7"),
        (["tail", "--zone", "other."], 1, f"there is no zone other. in the database (there is {ZONE})"),
        (["history", "a", "--at", "7"], 1, f"the journal of {ZONE} begins at 20"),
    ],
)
def test_what_cannot_be_done(run: Run, arguments: list[str], code: int, complaint: str) -> None:
    run("member", "add", "alice")
    finished = run(*arguments)
    assert (finished.code, finished.out) == (code, "")
    assert len(lines(finished.err)) == 1
    assert finished.err.startswith(f"homing: {complaint}")


def test_a_name_nothing_happened_to(run: Run) -> None:
    run("member", "add", "alice")
    assert lines(run("history", "nobody").out) == [f"The journal says nothing of nobody.{ZONE}", "now: no records"]


def test_a_private_members_names_are_of_its_zone(run: Run) -> None:
    run("member", "add", "bob", "--private")
    assert run("history", "_dns-llq._udp.bob", "--json").json["zone"] == f"bob.{ZONE}"


@pytest.mark.parametrize("page", [1, 2, 50])
def test_pages_of_the_journal_lose_nothing(
    run: Run, put: Callable[[str], int], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(journal, "_FIRST_PAGE", page)
    monkeypatch.setattr(journal, "_PAGE_RECORDS", 6)  # some pages are full of records, some are not
    serials = [put("".join(f"h{number} 1 A 192.0.2.{count}\n" for number in range(count))) for count in range(1, 9)]
    found = [step["serial_to"] for step in run("history", "h0", "--json").json["changes"]]
    assert found == serials


@contextmanager
def tailing(config: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*HOMING, "tail", "--config", str(config), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_tail_follows_and_goes_on_where_it_was_left(run: Run, put: Callable[[str], int], config: Path) -> None:
    first = put("a 1 A 192.0.2.1\n")
    second = put("a 1 A 192.0.2.2\n")
    with tailing(config, "--zone", ZONE, "--since", str(first), "--json") as process:
        assert process.stdout is not None
        step = json.loads(process.stdout.readline())
        assert (step["zone"], step["serial_from"], step["serial_to"]) == (ZONE, first, second)
        assert [row["data"] for row in step["removed"] + step["added"]] == ["192.0.2.1", "192.0.2.2"]
        third = put("a 1 A 192.0.2.3\n")  # while it runs
        step = json.loads(process.stdout.readline())
        assert (step["serial_from"], step["serial_to"], step["actor"]["kind"]) == (second, third, "import")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=READY_SECONDS)
        assert (process.returncode, out, err) == (0, "", "")

    fourth = put("a 1 A 192.0.2.4\n")
    with tailing(config, "--zone", ZONE, "--since", str(third)) as process:
        assert process.stdout is not None
        assert f"serial {third} to {fourth}, import" in process.stdout.readline()
        assert process.stdout.readline() == f"  -a.{ZONE}\t1\tIN\tA\t192.0.2.3\n"
        assert process.stdout.readline() == f"  +a.{ZONE}\t1\tIN\tA\t192.0.2.4\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(READY_SECONDS) == 0


def test_tail_of_all_zones_begins_with_what_comes(run: Run, put: Callable[[str], int], config: Path) -> None:
    run("member", "add", "alice")
    with tailing(config, "--json") as process:
        assert process.stdout is not None
        number = 0
        while not select.select([process.stdout], [], [], 0.5)[0]:  # nothing tells when it has begun
            number += 1
            assert number < 50
            put(f"a 1 A 192.0.2.{number}\n")
        assert json.loads(process.stdout.readline())["actor"]["kind"] == "import"
        run("member", "add", "bob", "--private")
        zones = (json.loads(process.stdout.readline())["zone"] for _ in range(number + 2))
        assert f"bob.{ZONE}" in zones


def prune(config: Path, keep: int) -> None:
    async def work() -> None:
        store = await SqlStore.open(f"sqlite:///{config.with_name('homing.db')}")
        try:
            assert await prune_once(store, JournalSettings(keep_days=0, keep_changes=keep), now=0)
        finally:
            await store.close()

    asyncio.run(work())


def test_after_pruning_they_say_how_far_back_they_reach(run: Run, put: Callable[[str], int], config: Path) -> None:
    first = put("a 1 A 192.0.2.1\n")
    second = put("a 1 A 192.0.2.2\n")
    with tailing(config, "--zone", ZONE, "--since", str(first)) as process:
        assert process.stdout is not None
        assert f"serial {first} to {second}" in process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        put("a 1 A 192.0.2.3\n")
        fourth = put("a 1 A 192.0.2.4\n")
        prune(config, 1)
        process.send_signal(signal.SIGCONT)
        shown = [process.stdout.readline() for _ in range(5)]
        assert [line for line in shown if f" to {fourth}, import" in line], shown
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "the journal was pruned past what was shown" in process.stderr.read()
    found = run("history", "a", "--json").json
    assert [step["serial_to"] for step in found["changes"]] == [fourth]
    assert found["journal"]["pruned"] and found["journal"]["serial_from"] == fourth - 1
    assert "(what is older was pruned: the journal of members.example. reaches back to " in run("history", "a").out
    assert run("history", "a", "--at", "1000").code == 1
    refused = run("undo", str(second), "--yes")
    assert refused.code == 1 and "no step of members.example. leads to serial" in refused.err
    refused = run("tail", "--zone", ZONE, "--since", str(first))
    assert refused.code == 1 and "does not reach back to serial" in refused.err
