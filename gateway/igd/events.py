"""Subscriptions to state variables (UDA 1.1 §4): who is told, what, and when.

Pure. Events go only to the very host that subscribed, at an address written in digits: anything else would make the
gateway send to whomever a caller names (CallStranger, CVE-2020-12695). Each subscription has one event at most under
way; what changes meanwhile goes into the next one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address
from typing import Final

from .description import HEAD
from .services import URN
from .soap import escape_text

SUBSCRIPTION_LIMIT: Final = 64
PER_HOST: Final = 8
LONGEST_SECONDS: Final = 1800
SHORTEST_SECONDS: Final = 60
FAILURE_LIMIT: Final = 3
"""Events in a row that could not be delivered, after which a subscription ends."""
CALLBACK_OCTETS: Final = 512
_CALLBACK: Final = re.compile(r"<http://([0-9.]{7,15})(?::([0-9]{1,5}))?(/[\x21-\x3b=\x3f-\x7e]*)?>", re.ASCII)
_TIMEOUT: Final = re.compile(r"Second-([0-9]{1,9}|infinite)", re.ASCII | re.IGNORECASE)


class RefusedError(Exception):
    """A subscription was refused; `status` is that of HTTP."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class Callback:
    """Where events go."""

    host: str
    port: int
    path: str


@dataclass(slots=True, kw_only=True)
class Subscription:
    """One subscriber of one service."""

    sid: str
    service: str
    """The last part of the event URL."""
    callback: Callback
    local: str
    """The internal address that was subscribed at, which events come from."""
    expires_at: float
    sequence: int = 0
    told: dict[str, str] = field(default_factory=dict)
    """The values that the subscriber has, or has under way."""
    is_busy: bool = False
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One event to be delivered; report back with `delivered`."""

    subscription: Subscription
    sequence: int
    values: Mapping[str, str]

    def request(self) -> tuple[list[tuple[str, str]], bytes]:
        """Headers and body of the NOTIFY."""
        properties = "".join(
            f"<e:property><{name}>{escape_text(value)}</{name}></e:property>" for name, value in self.values.items()
        )
        body = f'{HEAD}<e:propertyset xmlns:e="{URN}:event-1-0">{properties}</e:propertyset>'.encode()
        callback = self.subscription.callback
        headers = [
            ("HOST", f"{callback.host}:{callback.port}"),
            ("CONTENT-TYPE", 'text/xml; charset="utf-8"'),
            ("CONTENT-LENGTH", str(len(body))),
            ("NT", "upnp:event"),
            ("NTS", "upnp:propchange"),
            ("SID", self.subscription.sid),
            ("SEQ", str(self.sequence)),
            ("CONNECTION", "close"),
        ]
        return headers, body


class Subscriptions:
    """All subscriptions, bounded in total and for each host."""

    def __init__(self) -> None:
        self._all: dict[str, Subscription] = {}

    def __len__(self) -> int:
        return len(self._all)

    def subscribe(
        self, service: str, headers: Mapping[str, str], host: str, *, local: str, sid: str, now: float
    ) -> tuple[Subscription, int]:
        """A new subscription of a host, or its renewal, and the seconds that it is good for.

        `headers` have lower-case names, `sid` is a fresh one. Raises `RefusedError`.
        """
        self._expire(now)
        granted = _granted(headers.get("timeout"))
        if "sid" in headers:
            if "nt" in headers or "callback" in headers:
                raise RefusedError(400)
            subscription = self._of(headers["sid"], service, host)
            subscription.expires_at = now + granted
            return subscription, granted
        if headers.get("nt") != "upnp:event":
            raise RefusedError(412)
        callback = read_callback(headers.get("callback", ""), host)
        count = sum(each.callback.host == host for each in self._all.values())
        if len(self._all) >= SUBSCRIPTION_LIMIT or count >= PER_HOST:
            raise RefusedError(503)
        subscription = Subscription(sid=sid, service=service, callback=callback, local=local, expires_at=now + granted)
        self._all[sid] = subscription
        return subscription, granted

    def unsubscribe(self, service: str, headers: Mapping[str, str], host: str, *, now: float) -> None:
        """End a subscription of a host. Raises `RefusedError`."""
        self._expire(now)
        if "nt" in headers or "callback" in headers:
            raise RefusedError(400)
        del self._all[self._of(headers.get("sid", ""), service, host).sid]

    def idle(self, *, now: float) -> list[Subscription]:
        """Those that could be told something now."""
        self._expire(now)
        return [each for each in self._all.values() if not each.is_busy]

    def event(self, subscription: Subscription, values: Mapping[str, str]) -> Event | None:
        """What a subscriber does not know yet of these values, all of them at first; None if that is nothing."""
        news = {name: value for name, value in values.items() if subscription.told.get(name) != value}
        if not news:
            return None
        event = Event(subscription, subscription.sequence, news)
        # The first event has 0, and after the highest number comes 1 (UDA 1.1 §4.3.2).
        subscription.sequence = subscription.sequence % 0xFFFFFFFF + 1
        subscription.told.update(news)
        subscription.is_busy = True
        return event

    def delivered(self, event: Event, *, ok: bool) -> None:
        """Learn how a delivery ended."""
        subscription = event.subscription
        subscription.is_busy = False
        subscription.failures = 0 if ok else subscription.failures + 1
        if subscription.failures >= FAILURE_LIMIT:
            self._all.pop(subscription.sid, None)

    def _of(self, sid: str, service: str, host: str) -> Subscription:
        subscription = self._all.get(sid)
        if subscription is None or subscription.service != service or subscription.callback.host != host:
            raise RefusedError(412)
        return subscription

    def _expire(self, now: float) -> None:
        for sid in [each.sid for each in self._all.values() if each.expires_at <= now]:
            del self._all[sid]


def read_callback(header: str, host: str) -> Callback:
    """The first URL of a CALLBACK header that leads to the caller itself. Raises `RefusedError`."""
    if len(header) <= CALLBACK_OCTETS:
        for match in _CALLBACK.finditer(header):
            port = int(match[2] or 80)
            try:
                address = str(IPv4Address(match[1]))
            except AddressValueError:
                continue
            if address == host and 1 <= port <= 65535:
                return Callback(address, port, match[3] or "/")
    raise RefusedError(412)


def _granted(timeout: str | None) -> int:
    match = _TIMEOUT.fullmatch(timeout or "")
    if match is None or match[1].lower() == "infinite":
        return LONGEST_SECONDS
    return max(SHORTEST_SECONDS, min(int(match[1]), LONGEST_SECONDS))
