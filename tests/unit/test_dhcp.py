"""Lease files as dnsmasq 2.90 and Kea 2.2 write them, and whose lease ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import DhcpSection
from gateway.dhcp import GRACE_SECONDS, Lease, Leases, LeaseWatch, UnreadableLeases, read_dnsmasq, read_kea

DNSMASQ = """1764090000 d8:3a:dd:10:20:30 192.168.1.20 mac ff:dd:10:20:30:00:01
0 02:00:00:00:00:01 192.168.1.21 printer *
duid 00:01:00:01:2c:aa:bb:cc:d8:3a:dd:10:20:30
1764090000 271634992 fd00::20 mac 00:01:00:01:2c:aa:bb:cc
"""
KEA_HEAD = (
    "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context,pool_id\n"
)
KEA = (
    KEA_HEAD
    + """192.168.1.20,d8:3a:dd:10:20:30,01:d8:3a:dd:10:20:30,3600,1764090000,1,0,0,mac,0,,0
192.168.1.21,,ff:00:11,4294967295,4294967295,1,0,0,,0,,0
192.168.1.22,d8:3a:dd:00:00:22,,3600,1764090000,1,0,0,,1,,0
192.168.1.23,d8:3a:dd:00:00:23,,3600,1764080000,1,0,0,,0,,0
192.168.1.23,d8:3a:dd:00:00:23,,3600,1764083600,1,0,0,,2,,0
"""
)


def test_dnsmasq() -> None:
    assert read_dnsmasq(DNSMASQ) == {
        "192.168.1.20": Lease("d8:3a:dd:10:20:30", 1764090000.0),
        "192.168.1.21": Lease("02:00:00:00:00:01", None),
    }


def test_kea_takes_the_last_line_of_an_address_and_assigned_ones_only() -> None:
    assert read_kea([KEA]) == {
        "192.168.1.20": Lease("d8:3a:dd:10:20:30", 1764090000.0),
        "192.168.1.21": Lease("ff:00:11", None),
    }
    later = KEA_HEAD + "192.168.1.20,d8:3a:dd:10:20:30,,0,1764089000,1,0,0,mac,0,,0\n"  # given back by the host
    assert "192.168.1.20" not in read_kea([KEA, later])


@pytest.mark.parametrize("text", ["", "address,hwaddr\n", DNSMASQ, KEA_HEAD + "x" * 200_000])
def test_what_is_no_kea_file(text: str) -> None:
    if text.startswith(KEA_HEAD):
        with pytest.raises(UnreadableLeases, match="field larger than"):
            read_kea([text])
    else:
        with pytest.raises(UnreadableLeases):
            read_kea([text])


def test_broken_lines_are_left_out() -> None:
    assert read_dnsmasq("\n1764090000\nx y 192.168.1.1 z\n1764090000 aa 999.1.1.1 n c\n\0\n") == {}
    assert read_kea([KEA_HEAD + "home,aa,,1,1,1,0,0,,0\n192.168.1.1,aa,,1,soon,1,0,0,,0\n192.168.1.2\n"]) == {}


def test_who_is_gone() -> None:
    leases = Leases()
    first, second = Lease("aa", 1000.0), Lease("bb", None)
    assert leases.update({"192.168.1.20": first, "192.168.1.21": second}) == []
    assert leases.update({"192.168.1.20": Lease("aa", 2000.0), "192.168.1.21": second}) == []  # renewed
    assert leases.update({"192.168.1.20": Lease("cc", 2000.0)}) == ["192.168.1.20", "192.168.1.21"]
    assert leases.take_ended(unix=2000 + GRACE_SECONDS - 1) == []
    assert leases.take_ended(unix=2000 + GRACE_SECONDS) == ["192.168.1.20"]
    assert leases.take_ended(unix=9999) == []
    assert leases.update({}) == []


class Bench:
    """A watch on a file, with a clock that is set by hand."""

    def __init__(self, directory: Path, server: str = "dnsmasq") -> None:
        self.file = directory / "leases"
        self.gone: list[str] = []
        self.unix = 1764080000.0
        section = DhcpSection.model_validate({"server": server, "lease_file": self.file})
        self.watch = LeaseWatch(section, self.gone.append, lambda: self.unix)

    def look_twice(self) -> list[str]:
        self.watch.look()
        self.watch.look()
        gone, self.gone[:] = list(self.gone), []
        return gone


def test_a_file_is_read_when_it_has_come_to_rest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.file.write_text(DNSMASQ)
    assert bench.look_twice() == []
    bench.file.write_text("")  # dnsmasq empties its file before it writes it again
    bench.watch.look()
    bench.file.write_text(DNSMASQ.replace("1764090000", "1764095000"))
    assert bench.look_twice() == []
    bench.file.write_text(DNSMASQ.splitlines()[1] + "\n")
    assert bench.look_twice() == ["192.168.1.20"]


def test_a_lease_that_ends_unrenewed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.file.write_text(DNSMASQ)
    assert bench.look_twice() == []
    bench.unix = 1764090000.0 + GRACE_SECONDS
    bench.file.write_text(DNSMASQ.replace("1764090000", "1764095000"))
    assert bench.look_twice() == []  # what the file says now has to be known first
    bench.unix = 1764095000.0 + GRACE_SECONDS
    assert bench.look_twice() == ["192.168.1.20"]


def test_a_file_that_is_missing_or_broken_ends_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "kea")
    assert bench.look_twice() == []
    bench.file.write_text(KEA)
    assert bench.look_twice() == []
    bench.file.unlink()
    assert bench.look_twice() == []
    bench.file.write_text("nonsense")
    assert bench.look_twice() == []
    bench.file.write_text(KEA_HEAD)
    assert bench.look_twice() == ["192.168.1.20", "192.168.1.21"]


def test_kea_cleaning_up_its_file_ends_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "kea")
    bench.file.write_text(KEA)
    assert bench.look_twice() == []
    bench.file.rename(tmp_path / "leases.1")
    assert bench.look_twice() == []  # for a moment there is no file of its own
    bench.file.write_text(KEA_HEAD)
    assert bench.look_twice() == []
    (tmp_path / "leases.completed").write_text(KEA)
    assert bench.look_twice() == []
    (tmp_path / "leases.completed").rename(tmp_path / "leases.2")
    (tmp_path / "leases.1").unlink()
    assert bench.look_twice() == []
    bench.file.write_text(KEA_HEAD + "192.168.1.20,d8:3a:dd:10:20:30,,3600,1764090000,1,0,0,mac,2,,0\n")
    assert bench.look_twice() == ["192.168.1.20"]
