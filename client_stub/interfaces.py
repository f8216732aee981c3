"""What the operating system knows of our place: primary address, its MAC, the default gateway (Linux)."""

from __future__ import annotations

import fcntl
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from client_stub.identity import parse_mac

_SIOCGIFADDR: Final = 0x8915
_ROUTES: Final = Path("/proc/net/route")
_SYS_NET: Final = Path("/sys/class/net")
_RTF_GATEWAY: Final = 0x2


def parse_default_gateway(table: str) -> IPv4Address | None:
    """Gateway of the default route with the lowest metric in the text of /proc/net/route."""
    found: list[tuple[int, IPv4Address]] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        if int(fields[3], 16) & _RTF_GATEWAY:
            gateway = IPv4Address(struct.pack("=I", int(fields[2], 16)))
            found.append((int(fields[6]), gateway))
    return min(found)[1] if found else None


def default_gateway() -> IPv4Address | None:
    try:
        return parse_default_gateway(_ROUTES.read_text())
    except OSError:
        return None


def primary_address(towards: IPv4Address) -> IPv4Address | None:
    """The address that packets to `towards` leave from now; None without a route. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(towards), 9))
        except OSError:
            return None
        return IPv4Address(probe.getsockname()[0])


def mac_of(address: IPv4Address) -> bytes | None:
    """MAC of the interface that has this primary address; None for loopback and for what has no MAC."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(handle.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue
            if answer[20:24] != address.packed:
                continue
            try:
                mac = parse_mac((_SYS_NET / name / "address").read_text().strip())
            except (OSError, ValueError):
                return None
            return mac if any(mac) else None
    return None
