"""How many names each member keeps in a zone, counted as names come and go: no update has to look for them.

Pure. A name is an owner with records of the member's; the discovery names that the service keeps are not counted.
"""

from collections.abc import Iterable

from server.discovery import is_discovery_name


class Census:
    """Owner names by member's domain: in a private member's zone all but the apex, else by the label below the apex."""

    def __init__(self, apex: bytes, names: Iterable[bytes], *, is_private: bool) -> None:
        self._apex = apex
        self._is_private = is_private
        self._counts: dict[bytes, int] = {}
        for key in names:
            self.come(key)

    def domain_of(self, key: bytes) -> bytes | None:
        """The folded domain in which the folded name counts; None when it counts nowhere."""
        if key == self._apex:
            return None
        domain = self._apex if self._is_private else self._below_apex(key)
        return None if is_discovery_name(key, domain) else domain

    def _below_apex(self, key: bytes) -> bytes:
        start = 0
        while True:
            end = start + 1 + key[start]
            if len(key) - end == len(self._apex):
                return key[start:]
            start = end

    def count(self, domain: bytes) -> int:
        return self._counts.get(domain, 0)

    def come(self, key: bytes) -> None:
        domain = self.domain_of(key)
        if domain is not None:
            self._counts[domain] = self._counts.get(domain, 0) + 1

    def go(self, key: bytes) -> None:
        domain = self.domain_of(key)
        if domain is not None:
            left = self._counts[domain] - 1
            if left:
                self._counts[domain] = left
            else:
                del self._counts[domain]
