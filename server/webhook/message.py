"""What a webhook says, and how it is signed (standardwebhooks.com, version 1). Pure."""

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.constants import rcode_text
from protocol.name import to_text
from server.change_text import change_json, time_text, told
from server.store.api import JournalRow, KeyRow

MAX_RECORDS: Final = 500  # of each side of a change; a large import has more, which homing tail shows
SECRET_OCTETS: Final = (24, 64)
_PREFIX: Final = "whsec_"

Event = dict[str, Any]


def read_secret(text: str) -> bytes:
    """The key in `whsec_` and base64, as standardwebhooks.com writes it; `ValueError` in words."""
    stripped = text.strip()
    try:
        key = base64.b64decode(stripped.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not stripped.startswith(_PREFIX) or not SECRET_OCTETS[0] <= len(key) <= SECRET_OCTETS[1]:
        low, high = SECRET_OCTETS
        raise ValueError(f"is not whsec_ and {low} to {high} octets in base64 (openssl rand -base64 32 makes them)")
    return key


def change_event(entry: JournalRow) -> Event:
    """A step of a zone. Its id is the journal's, so that a receiver can tell a repetition."""
    change = entry.change
    removed, added = told(change)
    return {
        "id": f"change-{entry.id}",
        "type": "lapse" if change.actor.kind == "lapse" else "change",
        "zone": to_text(change.apex),
        **change_json(change, removed[:MAX_RECORDS], added[:MAX_RECORDS]),
        "removed_count": len(removed),
        "added_count": len(added),
    }


def key_event(row: KeyRow) -> Event:
    """A new key; its secret is nobody's business."""
    return {
        "id": f"key-{row.created_at}-{to_text(row.key.name)}",
        "type": "key",
        "at": time_text(row.created_at),
        "key": to_text(row.key.name),
        "algorithm": row.key.algorithm.text,
        "is_admin": row.member_id is None,
    }


@dataclass(frozen=True, slots=True)
class Refused:
    """A signed update that was refused."""

    at: int
    zone: bytes | None
    key: bytes
    peer: str
    rcode: int
    reason: str


def refused_event(refused: Refused, *, run: int, number: int) -> Event:
    """`run` (when the server started) and `number` make its id."""
    return {
        "id": f"refused-{run}-{number}",
        "type": "refused",
        "at": time_text(refused.at),
        "zone": None if refused.zone is None else to_text(refused.zone),
        "key": to_text(refused.key),
        "peer": refused.peer,
        "rcode": rcode_text(refused.rcode),
        "reason": refused.reason,
    }


def gap_event(*, run: int, number: int, at: int, text: str) -> Event:
    """Something that was to be told is lost."""
    return {"id": f"gap-{run}-{number}", "type": "gap", "at": time_text(at), "text": text}


@dataclass(frozen=True, slots=True)
class Delivery:
    """One POST. `id` and `body` stay through its repetitions; the time and with it the signature do not."""

    id: str
    body: bytes

    @classmethod
    def of(cls, events: Sequence[Event], *, at: int) -> "Delivery":
        body = {"type": "homing.events", "timestamp": time_text(at), "data": {"events": list(events)}}
        return cls(f"{events[0]['id']}+{len(events)}", json.dumps(body).encode())

    def headers(self, secret: bytes, *, at: int) -> dict[str, str]:
        signed = f"{self.id}.{at}.".encode() + self.body
        signature = base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()
        return {
            "Content-Type": "application/json",
            "webhook-id": self.id,
            "webhook-timestamp": str(at),
            "webhook-signature": f"v1,{signature}",
        }
