"""Events that await their acknowledgement, by the moment at which they are sent again (RFC 8764 §6). Pure."""

from collections import deque
from typing import Final, NamedTuple

from server.push.limits import RETRY_SECONDS
from server.push.subscriptions import Outstanding, Subscription

LAST_TRY: Final = len(RETRY_SECONDS) - 1
_SPARE: Final = 1024


class Try(NamedTuple):
    """When to look again at who was sent this event, the number of tries before this one being `number`."""

    at: float
    number: int
    event: Outstanding
    members: list[Subscription]


class Retries:
    """A queue for each number of tries: the wait in it being the same for all, nothing is sorted.

    Acknowledgements touch nothing here: whoever sent one is passed over when its moment comes.
    """

    def __init__(self) -> None:
        self._queues: tuple[deque[Try], ...] = tuple(deque() for _ in RETRY_SECONDS)
        self._sizes = [0 for _ in RETRY_SECONDS]

    def __len__(self) -> int:
        """How many subscribers are to be looked at, those counted who sent their acknowledgement."""
        return sum(self._sizes)

    def moments(self) -> list[float]:
        return [queue[0].at for queue in self._queues if queue]

    def add(self, number: int, event: Outstanding, members: list[Subscription], *, now: float, live: int) -> None:
        """They were sent this now; `live` is how many subscriptions there are, each of which awaits one ack at most."""
        self._queues[number].append(Try(now + RETRY_SECONDS[number], number, event, members))
        self._sizes[number] += len(members)
        if self._sizes[number] > _SPARE + 4 * live:
            self._forget_acknowledged(number)

    def take_due(self, now: float, most: int) -> Try | None:
        """The next whose moment has come, with at most `most` members."""
        for number, queue in enumerate(self._queues):
            if queue and queue[0].at <= now:
                found = queue.popleft()
                members = found.members
                if len(members) > most:
                    queue.appendleft(found._replace(members=members[most:]))
                    found = found._replace(members=members[:most])
                self._sizes[number] -= len(found.members)
                return found
        return None

    def _forget_acknowledged(self, number: int) -> None:
        queue = self._queues[number]
        awaited = [each._replace(members=[held for held in each.members if held.awaits(each.event)]) for each in queue]
        queue.clear()
        queue.extend(each for each in awaited if each.members)
        self._sizes[number] = sum(len(each.members) for each in queue)
