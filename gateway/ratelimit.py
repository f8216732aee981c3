"""How many requests of one host are read in a second. Pure, bounded in hosts as well."""

from __future__ import annotations

HOST_LIMIT = 4096
"""Hosts counted apart; in a second with more (invented sources) the newcomers are not let through."""


class RateLimit:
    """A budget of requests per host and second of the caller's clock; 0 sets no bound."""

    __slots__ = ("_counts", "_per_second", "_second")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = 0
        self._counts: dict[str, int] = {}

    def admits(self, host: str, *, now: float) -> bool:
        """Count one request and tell whether it is within the budget."""
        if not self._per_second:
            return True
        second = int(now)
        if second != self._second:
            self._second = second
            self._counts.clear()
        count = self._counts.get(host, 0)
        if count >= self._per_second or (count == 0 and len(self._counts) >= HOST_LIMIT):
            return False
        self._counts[host] = count + 1
        return True
