"""SSDP: how the device is found (UDA 1.1 §1). Pure: a search read from a datagram, answers and announcements written.

A device of version N answers searches for versions 1 to N and repeats the version that was searched for; what asks for
a higher one, or for anything else, gets silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from .description import ROOT_PATH, SERVER, DeviceTree
from .services import IP_CONNECTION, PPP_CONNECTION, URN

GROUP: Final = "239.255.255.250"
PORT: Final = 1900
MAX_AGE_SECONDS: Final = 1800
LONGEST_WAIT_SECONDS: Final = 5
"""MX above this counts as this (UDA 1.1 §1.3.3)."""
SEARCH_OCTETS: Final = 1024
_TYPE: Final = re.compile(rf"{URN}:(device|service):([A-Za-z0-9]{{1,40}}):([1-9][0-9]?)", re.ASCII)
_HEADER_LIMIT: Final = 32


class Target(NamedTuple):
    """What is announced or found: a search or notification target and the name that goes with it."""

    target: str
    usn: str


@dataclass(frozen=True, slots=True)
class Search:
    """A search; an answer is due at a random moment within `wait_seconds`."""

    target: str
    wait_seconds: int


def read_search(datagram: bytes, *, is_multicast: bool) -> Search | None:
    """Read a search. None for whatever deserves no answer: other messages, a multicast search without MX."""
    if len(datagram) > SEARCH_OCTETS:
        return None
    # What stands behind the empty line does not count: there are programs that send two of them.
    head, end, _ = datagram.decode("latin-1").partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    if not end or first != "M-SEARCH * HTTP/1.1" or len(lines) > _HEADER_LIMIT:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.upper() in headers:
            return None
        headers[name.upper()] = value.strip()
    if headers.get("MAN") != '"ssdp:discover"' or not headers.get("ST"):
        return None
    wait = headers.get("MX", "0" if not is_multicast else "")
    if not wait.isascii() or not wait.isdigit() or len(wait) > 4:
        return None
    return Search(headers["ST"], min(int(wait), LONGEST_WAIT_SECONDS) if is_multicast else 0)


class Discovery:
    """What is said of one device tree. `boot_id` grows with each start (UDA 1.1 §1.2.2)."""

    def __init__(self, tree: DeviceTree, *, boot_id: int) -> None:
        self._tree = tree
        self._identity = f"BOOTID.UPNP.ORG: {boot_id}\r\nCONFIGID.UPNP.ORG: {tree.config_id}\r\n"
        self._targets = tuple(self._all_targets())

    def answers(self, search: Search, location: str) -> list[bytes]:
        """The answers to a search at `location`, the address and port of HTTP on the interface it came by."""
        return [
            (
                "HTTP/1.1 200 OK\r\n"
                f"CACHE-CONTROL: max-age={MAX_AGE_SECONDS}\r\n"
                "EXT:\r\n"
                f"LOCATION: http://{location}{ROOT_PATH}\r\n"
                f"SERVER: {SERVER}\r\n"
                f"ST: {found.target}\r\n"
                f"USN: {found.usn}\r\n"
                f"{self._identity}\r\n"
            ).encode()
            for found in self._found(search.target)
        ]

    def alive(self, location: str) -> list[bytes]:
        """All announcements of presence."""
        return [
            self._notify(
                each,
                "ssdp:alive",
                f"CACHE-CONTROL: max-age={MAX_AGE_SECONDS}\r\nLOCATION: http://{location}{ROOT_PATH}\r\n"
                f"SERVER: {SERVER}\r\n",
            )
            for each in self._targets
        ]

    def byebye(self) -> list[bytes]:
        """All announcements of leaving."""
        return [self._notify(each, "ssdp:byebye", "") for each in self._targets]

    def _notify(self, each: Target, subtype: str, more: str) -> bytes:
        return (
            f"NOTIFY * HTTP/1.1\r\nHOST: {GROUP}:{PORT}\r\n{more}NT: {each.target}\r\nNTS: {subtype}\r\n"
            f"USN: {each.usn}\r\n{self._identity}\r\n"
        ).encode()

    def _all_targets(self) -> Iterator[Target]:
        """Three for the root, two for each embedded device, one for each service."""
        root = self._tree.devices[0]
        yield Target("upnp:rootdevice", f"{root.udn}::upnp:rootdevice")
        for device in self._tree.devices:
            yield Target(device.udn, device.udn)
            for kind in (device.type, device.service.type):
                yield Target(kind, f"{device.udn}::{kind}")

    def _found(self, target: str) -> list[Target]:
        if target == "ssdp:all":
            return list(self._targets)
        match = _TYPE.fullmatch(target)
        if match is None:
            return [each for each in self._targets if each.target == target]
        kind, name, version = match[1], match[2], int(match[3])
        if kind == "service" and name == PPP_CONNECTION:
            # Not offered, but who asks for it finds the IP connection that does the same.
            name, offered = IP_CONNECTION, 1
        else:
            offered = 0
        for device in self._tree.devices:
            there = device if kind == "device" else device.service
            if there.name == name and version <= (offered or there.version):
                return [Target(target, f"{device.udn}::{target}")]
        return []
