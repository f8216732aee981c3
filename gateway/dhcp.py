"""Whose DHCP lease ended: what dnsmasq and Kea write down, read again whenever it changes (RFC 6281 §4.2).

`read_dnsmasq` and `read_kea` are pure, and so is `Leases`, which compares one reading with the next: a host is gone
when its lease ended, was given back, or the address went to somebody else. A host that never had a lease is never
gone. A file that cannot be read, or that is just being written, tells nothing.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Final

import structlog

from .config import DhcpSection

LOOK_SECONDS: Final = 1.0
"""Between two looks at size and time of the files. One is read when two looks in a row found it the same."""
GRACE_SECONDS: Final = 5.0
"""After a lease's end by the file: a renewal may be on its way into it."""
FILE_OCTETS: Final = 4 * 1024 * 1024
"""More is not read; a home's lease file has some kilobytes."""
_KEA_ASSIGNED: Final = "0"
_KEA_ENDLESS: Final = "4294967295"
_KEA_COLUMNS: Final = frozenset({"address", "hwaddr", "client_id", "valid_lifetime", "expire", "state"})
_KEA_PARTS: Final = (".2", ".1")


class UnreadableLeases(Exception):
    """The files do not tell who has a lease; the text says why."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who has an address, and until which wall-clock second; None for ever."""

    holder: str
    ends_at: float | None


Table = dict[str, Lease]


def read_dnsmasq(text: str) -> Table:
    """Leases by IPv4 address: lines of expiry, MAC, address, name, client id; IPv6 and unknown lines are left out."""
    found: Table = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[0].isascii() and fields[0].isdigit():
            address = _ipv4(fields[2])
            if address is not None:
                found[address] = Lease(fields[1].lower(), float(fields[0]) or None)
    return found


def read_kea(texts: Iterable[str]) -> Table:
    """Leases by IPv4 address from memfile CSV, oldest file first; a later line replaces an earlier one.

    Raises `UnreadableLeases` for a file without the columns that are needed.
    """
    found: Table = {}
    for text in texts:
        for row in _kea_rows(text):
            address = _ipv4(row["address"])
            if address is None:
                continue
            if row["state"] != _KEA_ASSIGNED or row["valid_lifetime"] == "0":
                found.pop(address, None)
                continue
            is_endless = row["valid_lifetime"] == _KEA_ENDLESS
            expire = row["expire"] or ""
            if not (expire.isascii() and expire.isdigit()):
                continue
            found[address] = Lease((row["hwaddr"] or row["client_id"]).lower(), None if is_endless else float(expire))
    return found


def _kea_rows(text: str) -> Iterable[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text), restval="")
    try:
        if not set(reader.fieldnames or ()) >= _KEA_COLUMNS:
            raise UnreadableLeases("not a Kea lease file for IPv4")
        yield from reader
    except csv.Error as error:
        raise UnreadableLeases(str(error)) from None


def _ipv4(text: str) -> str | None:
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        return None


class Leases:
    """Who had a lease at the last reading."""

    def __init__(self) -> None:
        self._table: Table = {}

    def update(self, table: Table) -> list[str]:
        """Take a new reading; the addresses whose host is gone since the one before."""
        gone = [
            address
            for address, lease in self._table.items()
            if address not in table or table[address].holder != lease.holder
        ]
        self._table = dict(table)
        return gone

    def take_ended(self, *, unix: float) -> list[str]:
        """Addresses whose lease ended some time ago without being renewed; each is told once."""
        ended = [
            address
            for address, lease in self._table.items()
            if lease.ends_at is not None and lease.ends_at + GRACE_SECONDS <= unix
        ]
        for address in ended:
            del self._table[address]
        return ended


class LeaseWatch:
    """Looks at one DHCP server's files and tells of hosts that are gone."""

    def __init__(self, section: DhcpSection, on_gone: Callable[[str], None], unix: Callable[[], float]) -> None:
        self._path = section.lease_file
        self._is_kea = section.server == "kea"
        self._on_gone = on_gone
        self._unix = unix
        self._leases = Leases()
        self._log = structlog.get_logger(__name__)
        self._seen: object = None
        self._read: object = None
        self._complaint = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Read the files if they changed and have come to rest; tell what is due."""
        try:
            before, self._seen = self._seen, self._signature()
            if self._seen == before and self._seen != self._read:
                table = self._load()
                self._read = self._seen
                self._complaint = ""
                for address in self._leases.update(table):
                    self._on_gone(address)
        except (OSError, UnreadableLeases) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if reason != self._complaint:
                self._log.warning("DHCP leases cannot be read", file=str(self._path), reason=reason)
            self._complaint = reason
            return
        if self._seen == self._read:
            for address in self._leases.take_ended(unix=self._unix()):
                self._on_gone(address)

    def _files(self) -> list[Path]:
        """What Kea itself would read: a finished clean-up, or else what it began with, then what came since."""
        if not self._is_kea:
            return [self._path]
        completed = self._path.with_name(self._path.name + ".completed")
        older = (
            [completed] if completed.exists() else [self._path.with_name(self._path.name + end) for end in _KEA_PARTS]
        )
        return [*(path for path in older if path.exists()), self._path]

    def _signature(self) -> object:
        marks = []
        for path in self._files():
            status = path.stat()
            marks.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(marks)

    def _load(self) -> Table:
        texts = []
        for path in self._files():
            with path.open("rb") as file:
                octets = file.read(FILE_OCTETS + 1)
            if len(octets) > FILE_OCTETS:
                raise UnreadableLeases(f"more than {FILE_OCTETS} octets")
            texts.append(octets.decode(errors="replace"))
        return read_kea(texts) if self._is_kea else read_dnsmasq(texts[0])
