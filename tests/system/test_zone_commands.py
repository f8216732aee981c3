"""`homing zone` end to end on SQLite: out and in again, beside a running server, and what it refuses."""

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rdatatype
import dns.zone
import pytest

from homing import zone_import
from protocol.constants import Type
from tests.support.databases import edit_leases, records_in
from tests.support.processes import Finished, homing, homing_here, lines, server_config, start

ZONE = "members.example."
NOTICED_SECONDS = 5.0  # the server looks every half second; the rest is for a busy machine

Run = Callable[..., Finished]

FILE = """\
$TTL 300
@ SOA ns.example.net. admin 3000000000 3600 600 1209600 60
mac.alice 60 AAAA 2001:db8::1
mac.alice 60 AAAA 2001:db8::2
text TXT "one; two" "three"
Printer._ipp._tcp.alice SRV 0 0 631 mac.alice
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return server_config(tmp_path)


@pytest.fixture
def run(config: Path) -> Run:
    """Run a command on a database of its own, in this process."""
    return lambda *arguments, **options: homing_here(*arguments, "--config", config, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "members.zone"
    path.write_text(FILE)
    return path


def exported(run: Run) -> dns.zone.Zone:
    return dns.zone.from_text(run("zone", "export").out, origin=ZONE, relativize=False)


def database(config: Path) -> sqlite3.Connection:
    return sqlite3.connect(config.with_name("homing.db"))


def journal(config: Path) -> list[tuple[int, int, str]]:
    with database(config) as connection:
        return connection.execute("SELECT serial_from, serial_to, actor_kind FROM change ORDER BY id").fetchall()


def test_a_file_in_and_out_and_in_again(run: Run, config: Path, file: Path, tmp_path: Path) -> None:
    done = run("zone", "import", file, "--yes", "--json").json
    assert {name: done[name] for name in ("zone", "added", "removed", "changed", "serial_to", "steps")} == {
        "zone": ZONE,
        "added": 4,
        "removed": 0,
        "changed": 0,
        "serial_to": 3_000_000_000,
        "steps": 1,
    }
    zone = exported(run)
    assert zone.get_rdataset(f"mac.alice.{ZONE}", "AAAA").to_text() == "60 IN AAAA 2001:db8::1\n60 IN AAAA 2001:db8::2"
    assert zone.get_rdataset(f"text.{ZONE}", "TXT").to_text() == '300 IN TXT "one; two" "three"'
    assert zone.get_rdataset(ZONE, "SOA")[0].to_text() == f"ns.example.net. admin.{ZONE} 3000000000 3600 600 1209600 60"
    assert zone.get_rdataset(ZONE, "NS").to_text() == f"3600 IN NS ns.{ZONE}"  # the service's own, kept
    assert zone.get_rdataset(f"_dns-update._udp.{ZONE}", "SRV") is not None

    before = journal(config)
    again = run("zone", "import", file)  # nothing to ask about
    assert (again.code, again.out) == (0, "Nothing to import: the zone is what the file says\n")
    out = tmp_path / "out.zone"
    assert run("zone", "export", out).code == 0
    assert out.read_text() == run("zone", "export").out
    assert run("zone", "diff", out).out == ""
    assert run("zone", "import", out, "--yes", "--json").json["steps"] == 0
    assert journal(config) == before
    assert not out.with_name("out.zone.part").exists()


def test_the_difference_is_shown_before_it_is_made(run: Run, config: Path, file: Path) -> None:
    run("zone", "import", file, "--yes")
    file.write_text(
        FILE.replace("3000000000", "2999999999").replace("::2", "::3").replace('text TXT "one', 'text 5 TXT "one')
        + "new A 192.0.2.1\n"
    )
    shown = run("zone", "diff", file)
    wanted = [
        f"-mac.alice.{ZONE}\t60\tIN\tAAAA\t2001:db8::2",
        f"+mac.alice.{ZONE}\t60\tIN\tAAAA\t2001:db8::3",
        f"+new.{ZONE}\t300\tIN\tA\t192.0.2.1",
        f'-text.{ZONE}\t300\tIN\tTXT\t"one; two" "three"',
        f'+text.{ZONE}\t5\tIN\tTXT\t"one; two" "three"',
    ]
    assert lines(shown.out) == wanted
    assert "2 to add, 1 to remove, 1 to change, 2 as they are" in shown.err
    before = journal(config)
    refused = run("zone", "import", file)
    assert (refused.code, refused.err) == (2, "homing: there is no terminal to ask on: say --yes\n")
    assert lines(refused.out)[:-1] == wanted
    assert journal(config) == before
    done = run("zone", "import", file, "--yes", "--json").json
    assert (done["serial_from"], done["serial_to"]) == (3_000_000_000, 3_000_000_001)  # the file is behind
    assert journal(config) == [*before, (3_000_000_000, 3_000_000_001, "import")]
    assert run("zone", "diff", file).out == ""


def test_members_names_and_leases_stay(run: Run, config: Path, file: Path) -> None:
    run("member", "add", "alice")
    run("member", "add", "bob", "--private")
    run("member", "add", "carol", "--password-stdin", stdin="correct horse battery\n")
    run("zone", "import", file, "--yes")
    moments = (int(time.time()) + 3600, int(time.time()) - 5)
    leases = {bytes.fromhex("20010db8") + bytes(11) + bytes((last,)): at for last, at in enumerate(moments, start=1)}
    with database(config) as connection:
        edit_leases(connection, lambda record: leases.get(record.rdata))
    file.write_text(FILE.replace("mac.alice 60", "mac.alice 90").replace("text TXT", "other TXT"))
    done = run("zone", "import", file, "--yes", "--json").json
    assert (done["added"], done["removed"], done["changed"]) == (1, 1, 2)
    with database(config) as connection:
        found = [(record.ttl, record.expires_at) for record in records_in(connection) if record.rtype == Type.AAAA]
    assert found == [(90, moments[0]), (90, None)]  # one keeps its lease; the other had lapsed and is new
    zone = exported(run)
    assert zone.get_rdataset(f"bob.{ZONE}", "NS") is not None
    assert zone.get_rdataset(f"_dns-llq._udp.alice.{ZONE}", "SRV") is not None
    assert zone.get_rdataset(f"carol._homing-kdf.{ZONE}", "TXT") is not None
    assert run("zone", "export", "--zone", f"bob.{ZONE}").out.startswith(f"bob.{ZONE}\t3600\tIN\tSOA\t")


def test_what_the_service_keeps_gives_way_to_the_file(run: Run, file: Path) -> None:
    file.write_text(FILE + "@ NS ns.elsewhere.example.\n_dns-update._udp SRV 0 0 53 ns.elsewhere.example.\n")
    run("zone", "import", file, "--yes")
    zone = exported(run)
    assert zone.get_rdataset(ZONE, "NS").to_text() == "300 IN NS ns.elsewhere.example."
    assert zone.get_rdataset(f"_dns-update._udp.{ZONE}", "SRV").to_text().endswith("53 ns.elsewhere.example.")


def test_a_lapsed_record_is_not_exported(run: Run, config: Path, file: Path) -> None:
    run("zone", "import", file, "--yes")
    with database(config) as connection:
        edit_leases(connection, lambda record: 1 if record.rtype == Type.AAAA else None)
    assert exported(run).get_rdataset(f"mac.alice.{ZONE}", "AAAA") is None


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a file of many records goes, on a small one."""
    with monkeypatch.context() as patch:
        patch.setattr(zone_import, "STEP_RECORDS", 3)
        patch.setattr(zone_import, "_RUN_RECORDS", 7)
        patch.setattr(zone_import, "_BLOCK_RECORDS", 2)
        yield


@pytest.mark.usefixtures("small_steps")
def test_many_records_are_several_steps_of_one_chain(run: Run, config: Path, file: Path) -> None:
    hosts = "".join(f"h{number * 37 % 50} {60 + number % 2} A 192.0.2.{number}\n" for number in range(100))
    file.write_text(FILE + hosts)
    finished = run("zone", "import", file, "--yes", "--json")
    assert "RFC 2181" not in finished.err  # both TTLs of a name are the same: 37 and 50 have no common divisor
    assert finished.json["added"] == 104
    assert finished.json["steps"] > 20
    chain = journal(config)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chain))
    assert chain[-1][1] == finished.json["serial_to"] == 3_000_000_000
    assert len(exported(run).get_rdataset(f"h7.{ZONE}", "A")) == 2
    assert run("zone", "diff", file).out == ""
    file.write_text(FILE)
    assert run("zone", "import", file, "--yes", "--json").json["removed"] == 100
    assert exported(run).get_rdataset(f"h7.{ZONE}", "A") is None


def test_a_running_server_follows(config: Path, file: Path) -> None:
    with start("serve", config) as server:

        def asked(owner: str, rtype: str) -> list[str]:
            query = dns.message.make_query(owner + ZONE, rtype)
            reply = dns.query.udp(query, "127.0.0.1", port=server.port, timeout=5)
            assert reply.flags & dns.flags.AA
            return [rdata.to_text() for rrset in reply.answer for rdata in rrset]

        def is_seen(owner: str, rtype: str, wanted: list[str]) -> None:
            deadline = time.monotonic() + NOTICED_SECONDS
            while (found := sorted(asked(owner, rtype))) != wanted:
                assert time.monotonic() < deadline, found
                time.sleep(0.05)

        assert homing("zone", "import", file, "--yes", "--config", config).code == 0
        is_seen("mac.alice.", "AAAA", ["2001:db8::1", "2001:db8::2"])
        assert " 3000000000 " in asked("", "SOA")[0]
        file.write_text(FILE.replace("::2", "::3"))
        assert homing("zone", "import", file, "--yes", "--config", config).code == 0
        is_seen("mac.alice.", "AAAA", ["2001:db8::1", "2001:db8::3"])
        assert " 3000000001 " in asked("", "SOA")[0]
        assert server.stop() == 0
        assert server.log.count("zone loaded") == 1  # when it started; after that by the journal
        assert server.log.count("followed another process") == 2


@pytest.mark.rfc("1035", "5.2")
@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("a 1 A nonsense\n", ["FILE:1: 'nonsense' is not an IPv4 address"]),
        ("\nb 1 A 192.0.2\na 1\n", ["FILE:2: '192.0.2' is not an IPv4 address", "FILE:3: a type is missing"]),
        ("$INCLUDE x\n", ["FILE:1: $INCLUDE is refused: put what it makes into the file, or say --include"]),
        (FILE + "c CNAME a\nc A 192.0.2.1\n", [f"FILE:8: c.{ZONE} has a CNAME and A"]),
        (FILE + "c CNAME a\nc CNAME b\n", [f"FILE:8: c.{ZONE} CNAME: a name has one of that type only"]),
        (FILE + "@ SOA a b 1 2 3 4 5\n", ["FILE:7: a second SOA"]),
        (
            "".join(f"a 1 A 192.0.2.{number}x\n" for number in range(30)),
            [
                *(f"FILE:{number + 1}: '192.0.2.{number}x' is not an IPv4 address" for number in range(20)),
                "FILE: and 10 more",
            ],
        ),
        (
            FILE + "".join(f"m A 192.0.{number >> 8}.{number & 255}\n" for number in range(1001)),
            [f"FILE:1007: m.{ZONE} A: an RRset may have 1000 records"],
        ),
        (
            FILE + "".join(f"m TYPE{65280 + number} \\# 0\n" for number in range(101)),
            [f"FILE:107: m.{ZONE}: a name may have 100 RRsets"],
        ),
    ],
)
def test_a_file_with_problems_is_refused_by_all(
    run: Run, config: Path, file: Path, text: str, complaints: list[str]
) -> None:
    run("member", "add", "alice")
    before = journal(config)
    file.write_text(text)
    for command in (["check"], ["diff"], ["import", "--yes"]):
        finished = run("zone", command[0], file, *command[1:])
        assert (finished.code, finished.out) == (1, "")
        assert lines(finished.err) == ["homing: " + line.replace("FILE", str(file)) for line in complaints]
    assert journal(config) == before


def test_a_cname_beside_what_the_service_keeps(run: Run, file: Path) -> None:
    run("member", "add", "alice")
    file.write_text("_dns-llq._udp.alice 1 CNAME elsewhere.example.\n")
    finished = run("zone", "import", file, "--yes")
    assert finished.code == 1
    assert finished.err == f"homing: {file}:1: _dns-llq._udp.alice.{ZONE} has a CNAME and SRV\n"


def test_warnings_do_not_keep_a_file_out(run: Run, file: Path) -> None:
    file.write_text("a 7 A 192.0.2.1\na 5 A 192.0.2.2\na 5 A 192.0.2.2\n")
    finished = homing_here("zone", "check", file, "--zone", ZONE)
    assert (finished.code, finished.out) == (0, f"{file}: 3 records of {ZONE} and no SOA\n")
    assert lines(finished.err) == [
        f"{file}:1: warning: no SOA of {ZONE}",
        f"{file}:2: warning: a.{ZONE} A: an RRset has one TTL (RFC 2181 §5.2), 5 is taken",
        f"{file}:3: warning: a.{ZONE} A is there twice",
    ]
    assert run("zone", "import", file, "--yes", "--json").json["added"] == 2
    assert exported(run).get_rdataset(f"a.{ZONE}", "A").to_text() == "5 IN A 192.0.2.1\n5 IN A 192.0.2.2"
    assert run("zone", "diff", file).out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["import", "/nowhere/file", "--yes"], 1, "cannot read /nowhere/file: No such file or directory"),
        (["export", "/nowhere/file"], 1, "cannot write /nowhere/file: No such file or directory"),
        (
            ["export", "--zone", "other.example."],
            1,
            f"there is no zone other.example. in the database (there is {ZONE})",
        ),
        (["export", "--zone", "a..b"], 2, "empty label in name 'a..b'"),
    ],
)
def test_what_cannot_be_done(run: Run, arguments: list[str], code: int, complaint: str) -> None:
    run("member", "add", "alice")
    finished = run("zone", *arguments)
    assert (finished.code, finished.out, finished.err) == (code, "", f"homing: {complaint}\n")


def test_check_wants_a_zone(file: Path) -> None:
    finished = homing_here("zone", "check", file)
    assert (finished.code, finished.err) == (
        2,
        "homing: say which zone the file is of: --zone NAME, or --config FILE\n",
    )


def test_a_zone_that_moves_meanwhile_is_compared_again(
    run: Run, config: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the comparison and the transaction another import removes what this one was to change."""
    run("zone", "import", file, "--yes")
    other = file.with_name("other.zone")
    other.write_text(FILE.replace("text TXT", "other TXT"))
    file.write_text(FILE.replace("mac.alice 60", "mac.alice 90"))
    whole = zone_import.compare
    is_first = True

    async def compare(*arguments: object, **options: object) -> zone_import.Difference:
        nonlocal is_first
        found: zone_import.Difference = await whole(*arguments, **options)  # type: ignore[arg-type]
        if is_first:
            is_first = False
            assert homing("zone", "import", other, "--yes", "--config", config).code == 0
        return found

    monkeypatch.setattr("homing.zone_commands.compare", compare)
    done = run("zone", "import", file, "--yes", "--json").json
    assert (done["serial_from"], done["serial_to"]) == (3_000_000_001, 3_000_000_002)
    assert (done["added"], done["removed"], done["changed"]) == (1, 1, 2)
    assert run("zone", "diff", file).out == ""


def test_a_private_members_zone_from_stdin(run: Run, config: Path) -> None:
    run("member", "add", "bob", "--private")
    bob = f"bob.{ZONE}"
    text = "mac 60 AAAA 2001:db8::1\n@ 60 TXT \\195\\164\n"
    checked = homing("zone", "check", "-", "--zone", bob, stdin=text)
    assert checked.out == f"-: 2 records of {bob} and no SOA\n"
    done = homing("zone", "import", "-", "--zone", bob, "--yes", "--json", "--config", config, stdin=text).json
    assert (done["zone"], done["added"], done["removed"]) == (bob, 2, 0)
    zone = dns.zone.from_text(run("zone", "export", "--zone", bob).out, origin=bob, relativize=False)
    assert zone.get_rdataset(f"mac.{bob}", "AAAA").to_text() == "60 IN AAAA 2001:db8::1"
    assert zone.get_rdataset(bob, "NS").to_text() == f"3600 IN NS ns.{ZONE}"
    assert zone.get_rdataset(f"_dns-update._udp.{bob}", "SRV") is not None
    assert f"mac.{bob}" not in run("zone", "export").out


def test_other_files_are_included_when_that_is_asked_for_and_they_lie_below(run: Run, file: Path) -> None:
    (file.parent / "parts").mkdir()
    (file.parent / "parts" / "nas.zone").write_text("nas 60 A 192.0.2.8\n")
    file.write_text(FILE + "$INCLUDE parts/nas.zone bob\n")
    refused = run("zone", "import", file, "--yes")
    assert refused.code == 1 and "$INCLUDE is refused" in refused.err
    assert run("zone", "import", file, "--yes", "--include").code == 0
    assert "nas.bob.members.example." in run("zone", "export").out
    for outside in ("/etc/passwd", "../server.toml", "parts/link"):
        file.write_text(f"$INCLUDE {outside}\n")
        link = file.parent / "parts" / "link"
        if not link.is_symlink():
            link.symlink_to("/etc/passwd")
        done = run("zone", "check", file, "--include")
        assert done.code == 1 and "it lies outside" in done.err and "root" not in done.err.replace(str(file.parent), "")
    assert run("zone", "check", "-", "--include").code == 2
