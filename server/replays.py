"""Signed updates seen before: a repetition gets the reply of the first, one from the past is refused (RFC 8945 §5.2.3).

A client over UDP repeats its octets when it hears nothing (RFC 2136 §7.8 leaves the trouble to it: a prerequisite that
held the first time fails the second), and whoever recorded a signed update can send it again for as long as its fudge
allows. Both get the reply of the first time, and nothing changes twice. An update is known by its key and MAC.

Each key has a floor: updates signed before it are refused with BADTIME. It stands `window_seconds` below the latest
time signed that was taken, so that datagrams may overtake each other and machines that share a key need not agree to
the second; window 0 is the letter of RFC 8945. What is remembered is bounded: when it is full, the oldest goes and the
floor of its key rises to it. Only updates whose signature held and whose key may make them get here.
"""

from collections import OrderedDict
from typing import Final, NamedTuple

from protocol.tsig import Tsig

MOST_KEPT: Final = 16_384


class _Entry(NamedTuple):
    key_name: bytes
    time_signed: int
    ends: int
    reply: bytes | None


class Replays:
    """Replies to updates by (key, MAC), and the floor of each key. Times are seconds since 1970."""

    def __init__(self, window_seconds: int = 300) -> None:
        self._window = window_seconds
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._floors: dict[bytes, int] = {}
        self._cleared_at = 0  # the second in which the clock last dropped entries

    def is_stale(self, tsig: Tsig) -> bool:
        """Whether this was signed before what its key may still send."""
        return tsig.time_signed < self._floors.get(tsig.key_name, 0)

    def begin(self, tsig: Tsig, now: int) -> bytes | bool:
        """True: a new update, to be carried out. Bytes: its reply from before. False: it is being carried out now."""
        mark = tsig.key_name + tsig.mac
        entry = self._entries.get(mark)
        if entry is not None:
            return False if entry.reply is None else entry.reply
        if now != self._cleared_at:
            self._clear(now)
        if len(self._entries) >= MOST_KEPT:
            _, oldest = self._entries.popitem(last=False)
            self._raise_floor(oldest.key_name, oldest.time_signed)
        name, _, signed, fudge, _, _, _, _ = tsig
        self._entries[mark] = tuple.__new__(_Entry, (name, signed, signed + fudge, None))
        self._raise_floor(name, signed - self._window)
        return True

    def finish(self, tsig: Tsig, reply: bytes) -> None:
        mark = tsig.key_name + tsig.mac
        entry = self._entries.get(mark)
        if entry is not None:
            name, signed, ends, _ = entry
            self._entries[mark] = tuple.__new__(_Entry, (name, signed, ends, reply))

    def forget(self, tsig: Tsig) -> None:
        """It was not carried out (the queue was full, the store failed): a repetition is a new try."""
        self._entries.pop(tsig.key_name + tsig.mac, None)

    def _clear(self, now: int) -> None:
        """Drop, oldest first, what the clock alone refuses by now."""
        self._cleared_at = now
        while self._entries:
            mark, oldest = next(iter(self._entries.items()))
            if oldest.ends >= now:
                return
            del self._entries[mark]

    def _raise_floor(self, key_name: bytes, to: int) -> None:
        if to > self._floors.get(key_name, 0):
            self._floors[key_name] = to
