"""When to tell the LAN about the external address (RFC 6886 §3.2.1).

Pure: ten copies, the first at once, then after 250 ms and doubling gaps. What a copy says is decided when it is sent,
for the epoch moves on.
"""

from __future__ import annotations

COPIES = 10
FIRST_GAP_SECONDS = 0.25


class Announcer:
    """One series of announcements; a new event begins it anew."""

    __slots__ = ("_due", "_next_at", "_sent")

    def __init__(self) -> None:
        self._next_at: float | None = None
        self._sent = 0
        self._due = False

    def restart(self, *, now: float) -> None:
        """Begin a series, dropping what was left of the one before."""
        self._sent = 0
        self._next_at = now

    def next_deadline(self) -> float | None:
        """When the next copy is due."""
        return self._next_at

    def handle_deadline(self, *, now: float) -> None:
        """Make one copy due if it is time. Gaps count from the copy sent, so a late timer never causes a burst."""
        if self._next_at is None or self._next_at > now:
            return
        self._due = True
        self._sent += 1
        self._next_at = None if self._sent == COPIES else now + FIRST_GAP_SECONDS * 2 ** (self._sent - 1)

    def take_due(self) -> bool:
        """Whether a copy has to be sent now; asking answers for it."""
        due, self._due = self._due, False
        return due
