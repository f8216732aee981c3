"""What `homing status` shows of a running server, as one JSON object."""

import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

from protocol.constants import Opcode, Rcode
from protocol.name import to_text
from server.catalog import CATALOG
from server.metrics import Metrics
from server.zone.leases import LeaseQueue
from server.zone.zone import Zone, Zones

SOON_SECONDS: Final = 60


def status(
    *,
    zones: Zones,
    changed_at: Mapping[bytes, int],
    leases: LeaseQueue,
    metrics: Metrics,
    told: Callable[[bytes], list[dict[str, Any]]],
    subscriptions: int,
    streams: Mapping[str, int],
    started_at: int,
    now: int,
    unready: str | None,
    webhook: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Times are seconds since 1970. `totals` count since the start: two of them give rates."""
    due = leases.due_by(now + SOON_SECONDS)
    return {
        "version": version("homing"),
        "pid": os.getpid(),
        "started_at": started_at,
        "now": now,
        "unready": unready,
        "zones": [
            {
                "name": to_text(zone.apex),
                "kind": kind_of(zone),
                "serial": zone.serial,
                "names": len(zone.nodes),
                "changed_at": changed_at.get(zone.apex),
                "secondaries": told(zone.apex),
            }
            for zone in sorted(zones, key=lambda zone: (zone.is_private, zone.apex))
        ],
        "leases": {"names": len(leases), "due_soon": due, "soon_seconds": SOON_SECONDS},
        "llq": {"subscriptions": subscriptions},
        "streams": dict(streams),
        "totals": totals(metrics),
        "webhook": webhook,
    }


def kind_of(zone: Zone) -> str:
    """Open, private or catalog."""
    if zone.is_catalog:
        return CATALOG
    return "private" if zone.is_private else "open"


def totals(metrics: Metrics) -> dict[str, int]:
    found = dict.fromkeys(("queries", "updates", "updates_refused"), 0)
    for (_, opcode, rcode), number in metrics.requests.total().items():
        if opcode == Opcode.QUERY:
            found["queries"] += number
        elif opcode == Opcode.UPDATE:
            found["updates"] += number
            found["updates_refused"] += number if rcode != Rcode.NOERROR else 0
    return {**found, "changes": metrics.change_count, "transfers": metrics.transfer_count}
