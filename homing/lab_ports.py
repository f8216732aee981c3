"""Ports of a lab: free ones on first start, the same ones ever after in the same state directory."""

import json
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LabPorts:
    """All on loopback. `dns` is UDP and TCP; `announcements` is what stands in for 5350."""

    dns: int
    tls: int
    natpmp: int
    announcements: int
    metrics: int


def free_port(address: str, *, also_udp: bool = True) -> int:
    """A port free for TCP and, unless told otherwise, for UDP as well, at this moment."""
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            tcp.bind((address, 0))
            port = int(tcp.getsockname()[1])
            if not also_udp:
                return port
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                try:
                    udp.bind((address, port))
                except OSError:
                    continue
                return port
    raise OSError("no port is free for both TCP and UDP")


def lab_ports(file: Path) -> LabPorts:
    """Read the ports of a state directory, or choose and remember them. `ValueError` for a file that is not ours."""
    if file.exists():
        return _read(file)
    chosen: list[int] = []
    while len(chosen) < len(fields(LabPorts)):
        port = free_port("127.0.0.1")
        if port not in chosen:
            chosen.append(port)
    ports = LabPorts(*chosen)
    file.write_text(json.dumps(asdict(ports), indent=2) + "\n")
    return ports


def _read(file: Path) -> LabPorts:
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    names = {field.name for field in fields(LabPorts)}
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError(f"{file} does not hold the ports of a lab")
    if not all(type(port) is int and 0 < port < 65536 for port in found.values()):
        raise ValueError(f"{file} holds a port that is none")
    return LabPorts(**found)
