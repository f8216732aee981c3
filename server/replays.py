"""Updates whose reply got lost: the same request, sent again, is answered the same without a second change.

A client over UDP repeats its octets when it hears nothing (RFC 2136 §2.2 leaves the trouble to it: a prerequisite that
held the first time fails the second). Only signed requests get here, so what is kept is bounded by count and time.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from server.peer import Peer

KEPT_SECONDS: Final = 30.0  # longer than clients repeat one request
MOST_KEPT: Final = 4096


@dataclass(slots=True)
class _Entry:
    at: float
    reply: bytes | None


class RecentUpdates:
    """Replies to updates by (peer, request octets). Times are monotonic seconds."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, int, bytes], _Entry] = OrderedDict()

    def begin(self, peer: Peer, wire: bytes, now: float) -> "bytes | bool":
        """True: a new request, to be carried out. Bytes: its reply from before. False: it is being carried out now."""
        while self._entries:
            oldest = next(iter(self._entries.values()))
            if len(self._entries) < MOST_KEPT and now - oldest.at < KEPT_SECONDS:
                break
            self._entries.popitem(last=False)
        key = (peer.address, peer.port, wire)
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(now, None)
            return True
        return False if entry.reply is None else entry.reply

    def finish(self, peer: Peer, wire: bytes, reply: bytes) -> None:
        entry = self._entries.get((peer.address, peer.port, wire))
        if entry is not None:
            entry.reply = reply

    def forget(self, peer: Peer, wire: bytes) -> None:
        """It was not carried out (the queue was full, the store failed): a repetition is a new try."""
        self._entries.pop((peer.address, peer.port, wire), None)
