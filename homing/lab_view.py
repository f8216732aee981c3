"""The lab on a terminal: machines, tunnels, mappings and a rolling log, drawn from plain rows."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

LOG_LINES: Final = 200


@dataclass(frozen=True, slots=True)
class MachineRow:
    """One client as it says it is. `lease_left` in seconds, None while nothing is published."""

    name: str
    is_private: bool
    state: str
    inner: str
    outer: str
    lease_left: float | None
    subscriptions: int


@dataclass(frozen=True, slots=True)
class TunnelRow:
    """What one machine knows of another. `reach` is the probe's round trip in words."""

    machine: str
    peer: str
    inner: str
    outer: str
    reach: str


@dataclass(frozen=True, slots=True)
class MappingRow:
    """One port mapping. `left` in seconds, None for a static one."""

    protocol: str
    external: str
    internal: str
    left: float | None


@dataclass(frozen=True, slots=True)
class LabPicture:
    """All the view shows at one moment."""

    title: str
    machines: Sequence[MachineRow]
    tunnels: Sequence[TunnelRow]
    mappings: Sequence[MappingRow]
    serials: Sequence[tuple[str, int]]
    leases: int
    subscriptions: int


class EventLog:
    """The last lines of what happened, newest last."""

    def __init__(self) -> None:
        self._lines: deque[tuple[str, str, str]] = deque(maxlen=LOG_LINES)

    def add(self, at: str, who: str, text: str) -> None:
        self._lines.append((at, who, text))

    def last(self, count: int) -> list[tuple[str, str, str]]:
        return list(self._lines)[-count:] if count > 0 else []


def duration(seconds: float | None) -> str:
    """`1:29:58`, `4:05`, or `-`."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


_KEPT_WIDTHS: Final = {"outer address": 16, "lease": 7, "left": 7, "reach": 7}  # on a narrow screen the inner one gives


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold cyan", pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ellipsis", min_width=_KEPT_WIDTHS.get(heading))
    return table


def draw(picture: LabPicture, log: EventLog, height: int) -> Group:
    """The whole screen, the log taking the lines that are left of `height`."""
    machines = _table("machine", "", "state", "inner address", "outer address", "lease", "watching")
    for machine in picture.machines:
        machines.add_row(
            Text(machine.name, style="bold"),
            Text("private", style="magenta") if machine.is_private else Text("open", style="cyan"),
            Text(machine.state, style="green" if machine.state == "published" else "yellow"),
            machine.inner,
            machine.outer,
            duration(machine.lease_left),
            str(machine.subscriptions),
        )
    tunnels = _table("tunnel from", "to", "inner address", "outer address", "reach")
    for tunnel in picture.tunnels:
        tunnels.add_row(tunnel.machine, tunnel.peer, tunnel.inner, tunnel.outer, tunnel.reach)
    mappings = _table("mapping", "external", "internal", "left")
    for mapping in picture.mappings:
        mappings.add_row(mapping.protocol, mapping.external, mapping.internal, duration(mapping.left))
    zones = "  ".join(f"{apex} serial {serial}" for apex, serial in picture.serials)
    counts = f"{picture.leases} leased names   {picture.subscriptions} subscriptions"
    status = Text(f"{counts}   {zones}", style="dim", no_wrap=True, overflow="ellipsis")
    used = 12 + len(picture.machines) + len(picture.tunnels) + len(picture.mappings)
    lines = Text(no_wrap=True, overflow="ellipsis")
    for at, who, text in log.last(max(3, height - used)):
        lines.append(f"{at} ", style="dim")
        lines.append(f"{who:<12} ", style="bold")
        lines.append(f"{text}\n")
    keys = Text("r renumber the router   k kill and restart a client   q quit", style="reverse")
    return Group(
        Text(picture.title, style="bold", no_wrap=True, overflow="ellipsis"),
        keys,  # at the top: a low terminal cuts the bottom off
        status,
        Text(),
        machines,
        Text(),
        tunnels,
        Text(),
        mappings,
        Text(),
        Text("events", style="bold cyan"),
        lines,
    )
