"""A change in words that JSON knows: what `homing tail --json`, `homing history --json` and webhooks print. Pure."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from protocol.constants import Type
from protocol.name import to_text
from protocol.rdata import soa_with_serial
from server.rdata_text import rdata_text, type_name
from server.zone.model import RR, Change


def time_text(at: int) -> str:
    """Seconds since 1970 as `2026-11-23T10:00:00Z`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def told(change: Change) -> tuple[list[RR], list[RR]]:
    """What a step took away and put, without the SOA where only its serial moved."""
    removed, added = list(change.removed), list(change.added)
    before, after = soa_of(change.removed), soa_of(change.added)
    if before is not None and after is not None and soa_described(before) == soa_described(after):
        removed.remove(before)
        added.remove(after)
    return removed, added


def soa_of(records: Iterable[RR]) -> RR | None:
    return next((rr for rr in records if rr.rtype == Type.SOA), None)


def soa_described(soa: RR) -> tuple[int, bytes]:
    """An SOA but for its serial."""
    return soa.ttl, soa_with_serial(soa.rdata, 0)


def change_json(change: Change, removed: Iterable[RR], added: Iterable[RR]) -> dict[str, Any]:
    return {
        "serial_from": change.serial_from,
        "serial_to": change.serial_to,
        "at": time_text(change.at),
        "actor": change.actor._asdict(),
        "removed": list(map(rr_json, removed)),
        "added": list(map(rr_json, added)),
    }


def rr_json(rr: RR) -> dict[str, Any]:
    return {
        "owner": to_text(rr.owner),
        "ttl": rr.ttl,
        "type": type_name(rr.rtype),
        "data": rdata_text(rr.rtype, rr.rdata),
    }
