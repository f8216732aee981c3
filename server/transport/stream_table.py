"""Which connections there may be. Pure: no sockets, no clock.

Places are given until the total is reached; then a newcomer takes the place of the connection that has been silent the
longest, for an attacker's connections are silent and an honest newcomer asks at once. An address (an IPv6 /64, which is
what one customer has) has a share of its own, so nobody fills the table alone; beyond that share newcomers are refused.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from server.addresses import sharer

MAX_LOOKED_AT: Final = 64  # connections looked at for one that may go, each time
FRESH_SHARE: Final = 8  # one in so many places may be taken by connections that have not sent a message yet


class Placed(Protocol):
    """A connection as the table knows it."""

    def is_idle(self) -> bool:
        """Whether nothing is owed to the peer and nobody lives on the connection: it may be closed."""
        ...


Connection = TypeVar("Connection", bound=Placed)


@dataclass
class StreamTable(Generic[Connection]):
    """Connections by number, those silent for the longest first. `total` and `per_address` may be changed."""

    total: int
    per_address: int
    _fresh: dict[int, Connection] = field(default_factory=dict)
    _spoken: dict[int, Connection] = field(default_factory=dict)
    _who: dict[int, bytes] = field(default_factory=dict)
    _shares: Counter[bytes] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self._fresh) + len(self._spoken)

    def __iter__(self) -> Iterator[Connection]:
        return iter([*self._fresh.values(), *self._spoken.values()])

    def get(self, number: int) -> Connection | None:
        return self._spoken.get(number) or self._fresh.get(number)

    @property
    def is_crowded(self) -> bool:
        """Whether three quarters of all places are taken."""
        return len(self) * 4 >= self.total * 3

    def admit(self, number: int, connection: Connection, address: str, evict: Callable[[Connection], None]) -> str:
        """Give a newcomer a place, "" if it has one, else the limit that keeps it out.

        `evict` is called with the connection that must go for it. It is no longer in the table then; it has its share
        until it calls `leave`.
        """
        who = sharer(address)
        if self._shares[who] >= self.per_address:
            return "per_address"
        if len(self) >= self.total:
            victim = self._longest_silent()
            if victim is None:
                return "total"
            evict(victim)
        self._fresh[number] = connection
        self._who[number] = who
        self._shares[who] += 1
        return ""

    def spoke(self, number: int) -> None:
        """It sent a whole message: it is the last to go now."""
        connection = self._spoken.pop(number, None) or self._fresh.pop(number, None)
        if connection is not None:
            self._spoken[number] = connection

    def leave(self, number: int) -> None:
        who = self._who.pop(number, None)
        if who is None:
            return
        self._fresh.pop(number, None)
        self._spoken.pop(number, None)
        self._shares[who] -= 1
        if not self._shares[who]:
            del self._shares[who]

    def _longest_silent(self) -> Connection | None:
        """Take out one that may be closed: of those that never sent a message while they are many, else of the others.

        Those that may not are put last, so that they are not looked at again and again.
        """
        tables = [self._spoken, self._fresh]
        if len(self._fresh) * FRESH_SHARE >= self.total:
            tables.reverse()
        for table in tables:
            for number in list(islice(table, MAX_LOOKED_AT)):
                connection = table.pop(number)
                if connection.is_idle():
                    return connection
                table[number] = connection
        return None
