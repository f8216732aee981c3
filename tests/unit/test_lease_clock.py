"""The clock of leases: no step moves it, within a process or between two on one boot of the machine."""

from pathlib import Path

import pytest

from server import system
from server.system import SystemClock


class Machine:
    """The system's clocks, in the hands of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, boot_file: Path) -> None:
        self.wall, self.up = 1_800_000_000.0, 50.0
        self.boot_file = boot_file
        monkeypatch.setattr("time.time", lambda: self.wall)
        monkeypatch.setattr("time.clock_gettime", lambda _: self.up)
        monkeypatch.setattr(system, "_BOOT_ID", boot_file)
        self.boot("first")

    def boot(self, name: str) -> None:
        self.boot_file.write_text(f"{name}\n")

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "boot_id")


@pytest.mark.parametrize("step", [-7200, -1, 1, 7200, 80_000])
def test_a_step_moves_no_lease_over_a_restart_either(machine: Machine, step: float) -> None:
    first = SystemClock()
    machine.wait(100)
    machine.wall += step
    assert first.lease() == 1_800_000_100
    second = SystemClock()
    assert second.lease() == 1_800_000_100 + step
    second.follow(first.anchor())
    assert second.lease() == first.lease()
    assert second.unix() == 1_800_000_100 + step


@pytest.mark.parametrize(
    "anchor",
    ["", "rubbish", "first", "first x", " 1799999950.0", "second 1799999950.0", "first 1000000000.0", "first nan"],
)
def test_another_boot_a_clock_that_was_never_set_or_rubbish_is_not_followed(machine: Machine, anchor: str) -> None:
    clock = SystemClock()
    clock.follow(anchor)
    assert clock.lease() == 1_800_000_000


def test_a_system_that_does_not_tell_its_boot_follows_nothing(machine: Machine) -> None:
    machine.boot_file.unlink()
    first = SystemClock()
    machine.wall += 100
    second = SystemClock()
    second.follow(first.anchor())
    assert second.lease() == 1_800_000_100
