"""Which address is the external one, and what a command may say."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from gateway import wan
from gateway.interfaces import InterfaceAddress
from gateway.wan import CommandFailed, CommandWatch, pick, read_output, run_bounded
from protocol.addresses import is_behind_a_nat


def item(address: str, interface: str = "eth0", **changes: Any) -> InterfaceAddress:
    return InterfaceAddress(
        index=2, interface=interface, address=ip_address(address), prefix_length=24, **({"is_up": True} | changes)
    )


FIRST, SECOND = item("203.0.113.7"), item("203.0.113.8")


@pytest.mark.parametrize(
    ("addresses", "current", "expected"),
    [
        ([], None, None),
        ([FIRST], None, "203.0.113.7"),
        ([FIRST, SECOND], None, "203.0.113.7"),
        ([FIRST, SECOND], "203.0.113.8", "203.0.113.8"),
        ([FIRST, SECOND], "203.0.113.9", "203.0.113.7"),
        ([item("192.0.2.1", "eth1")], "192.0.2.1", None),
        ([item("203.0.113.7", is_up=False)], "203.0.113.7", None),
        ([item("2001:db8::1"), FIRST], None, "203.0.113.7"),
        ([item("169.254.1.1", is_global=False)], None, None),
        ([item("203.0.113.9", is_secondary=True), FIRST], None, "203.0.113.7"),
        ([item("203.0.113.9", is_usable=False), FIRST], "203.0.113.9", "203.0.113.7"),
        ([item("203.0.113.9", is_usable=False)], None, "203.0.113.9"),
    ],
)
def test_the_address_of_an_interface(
    addresses: list[InterfaceAddress], current: str | None, expected: str | None
) -> None:
    assert pick(tuple(addresses), "eth0", current) == expected


@pytest.mark.parametrize(
    ("output", "expected"), [(b" 203.0.113.7\n", "203.0.113.7"), (b"\n", None), (b"0.0.0.0", None)]
)
def test_what_a_command_prints(output: bytes, expected: str | None) -> None:
    assert read_output(output) == expected


@pytest.mark.parametrize("output", [b"home", b"203.0.113.7 203.0.113.8", b"\xff", b"224.0.0.1", b"::1"])
def test_a_command_that_prints_something_else_failed(output: bytes) -> None:
    with pytest.raises(CommandFailed):
        read_output(output)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit(3)", "exit status 3"),
        ("print('x' * 100000)", "more than 256 octets"),
        ("import time; time.sleep(60)", "more than 0.5 s"),
        # Its child keeps the output open; it is ended as well.
        (
            "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])",
            "more than",
        ),
    ],
)
async def test_a_command_is_bounded(script: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sleep" in script:
        monkeypatch.setattr(wan, "COMMAND_SECONDS", 0.5)
    with pytest.raises(CommandFailed, match=reason):
        await run_bounded((sys.executable, "-c", script))


async def test_a_command_that_fails_changes_nothing(tmp_path: Path) -> None:
    found: list[str | None] = []
    script = tmp_path / "wan"
    watch = CommandWatch((sys.executable, str(script)), 60, found.append)
    await watch.once()  # there is none yet
    for text in ("print('203.0.113.7')", "raise SystemExit(1)", "", "print('192.0.2.5')"):
        script.write_text(text)
        await watch.once()
    assert found == ["203.0.113.7", None, "192.0.2.5"]


@pytest.mark.rfc("6281", "4.4.1")
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.1.2.3", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.168.0.1", True),
        ("100.64.0.1", True),
        ("100.128.0.0", False),
        ("169.254.7.7", True),
        ("192.0.0.2", True),
        ("192.0.2.1", False),
        ("203.0.113.7", False),
    ],
)
def test_addresses_that_tell_of_another_nat(address: str, expected: bool) -> None:
    assert is_behind_a_nat(IPv4Address(address)) is expected
