"""What requests that prove nothing may cost: a budget for each address and one for all of them, before a MAC is made.

An update, or anything signed, takes work before it can be told from a forgery. Whoever sends what does not hold - a
signature of an unknown key, a wrong one, an update that is unsigned or cannot be read - pays for it afterwards, and
while its budget is spent its next ones are refused unread. What holds costs nothing: a key has limits of its own
(`quota`). Over UDP the sender may be forged, so an address has one budget there and one for streams, and once all
strangers together have spent theirs only addresses from which something held a while ago are listened to over UDP.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from server.addresses import packed, sharer
from server.metrics import Metrics
from server.peer import Peer

BURST_SECONDS: Final = 2
MAX_ADDRESSES: Final = 8192  # in each of two generations
MAX_KNOWN: Final = 4096  # in each of two generations
KNOWN_SECONDS: Final = 1800.0  # of a generation: known for so long at least, for twice that at most


@dataclass(frozen=True, slots=True)
class StrangerLimits:
    """Requests a second that do not hold, of one address (IPv6 /64) and in all; 0: no limit."""

    per_address: int
    total: int
    exempt: Sequence[str] = ()


Sender = tuple[bool, bytes]
"""Whether over UDP, and who shares the budget."""


class Strangers:
    """Charged for what did not hold, asked before the next one."""

    def __init__(self, limits: StrangerLimits, metrics: Metrics) -> None:
        self._metrics = metrics
        self._young: dict[Sender, tuple[float, float]] = {}  # (tokens, when)
        self._old: dict[Sender, tuple[float, float]] = {}
        self._known: set[str] = set()
        self._known_before: set[str] = set()
        self._known_until = 0.0
        self._tokens = 0.0
        self._at = 0.0
        self._charged_at = 0.0
        self.replace(limits)

    def replace(self, limits: StrangerLimits) -> None:
        """Other limits from now on; budgets begin anew."""
        self._limits = limits
        self._exempt = [ipaddress.ip_network(text) for text in limits.exempt]
        self._young.clear()
        self._old.clear()
        self._tokens = float(BURST_SECONDS * limits.total)

    def admits(self, peer: Peer, now: float) -> bool:
        """Whether one more request of this peer is to be looked into."""
        if not self._young:
            return True
        if now - self._charged_at > BURST_SECONDS:  # every budget is whole again
            self._young.clear()
            self._old.clear()
            return True
        over_udp = peer.transport == "udp"
        sender = over_udp, sharer(peer.address)
        if self._limits.per_address and self._balance(sender, now) < 1:
            self._metrics.strangers_refused.labels("address").inc()
            return False
        if over_udp and self._limits.total and self._refilled(now) < 1 and not self.is_known(peer.address):
            self._metrics.strangers_refused.labels("total").inc()
            return False
        return True

    def charge(self, peer: Peer, now: float) -> None:
        """What this peer sent did not hold."""
        if self._is_exempt(peer.address):
            return
        sender = peer.transport == "udp", sharer(peer.address)
        balance = self._balance(sender, now)
        if len(self._young) >= MAX_ADDRESSES:
            self._old, self._young = self._young, {}
        self._young[sender] = max(balance - 1, 0.0), now
        self._tokens = max(self._refilled(now) - 1, 0.0)
        self._charged_at = now

    def welcome(self, peer: Peer, now: float) -> None:
        """What this peer sent held."""
        if len(self._known) >= MAX_KNOWN or now >= self._known_until:
            self._known_before, self._known = self._known, set()
            self._known_until = now + KNOWN_SECONDS
        self._known.add(peer.address)

    def is_known(self, address: str) -> bool:
        """Whether something from there held, not long ago."""
        return address in self._known or address in self._known_before

    def _balance(self, sender: Sender, now: float) -> float:
        full = float(BURST_SECONDS * self._limits.per_address)
        tokens, at = self._young.get(sender) or self._old.get(sender) or (full, now)
        return min(full, tokens + (now - at) * self._limits.per_address)

    def _refilled(self, now: float) -> float:
        total = self._limits.total
        self._tokens = min(float(BURST_SECONDS * total), self._tokens + (now - self._at) * total)
        self._at = now
        return self._tokens

    def _is_exempt(self, address: str) -> bool:
        if not self._exempt:
            return False
        ours = ipaddress.ip_address(packed(address))
        return any(ours in network for network in self._exempt)
