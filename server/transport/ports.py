"""What listeners and those behind them say to each other: the words both sides import."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from server.absent_names import AbsentNames
from server.guard import Guard
from server.peer import Peer
from server.request import Send
from server.zone.zone import Zone

Handle = Callable[[bytes, Peer, Send], None]
SOCKET_OCTETS: Final = 4 * 1024 * 1024
"""Asked of the system for what waits in a socket, either way: a burst outlasts a pause of ours. It may grant less."""


class Alike(NamedTuple):
    """As many messages as `number` says, of one size, that differ in a few fields only; or just one.

    A field is where it stands and what it is in each message, one after the other; `template` is what they share, its
    octets in the fields those of any.
    """

    template: bytes
    number: int = 1
    fields: tuple[tuple[int, bytes], ...] = ()

    def each(self) -> Iterator[bytes]:
        wire = bytearray(self.template)
        for turn in range(self.number):
            for at, values in self.fields:
                size = len(values) // self.number
                wire[at : at + size] = values[turn * size : (turn + 1) * size]
            yield bytes(wire)


SendAlike = Callable[[Sequence[Peer], Alike], object]


class Fast(Protocol):
    """Answers that need no message taken apart; keys and answers leave out the message ID (two octets)."""

    ready: dict[bytes, bytes]
    rcodes: list[int]
    apexes: Mapping[bytes, Zone]
    absent: AbsentNames
    guard: Guard
    answer_signed: Callable[[bytes], bytes | None] | None
    """Takes a whole datagram; the reply is without its ID."""

    def begin(self) -> None: ...

    def answer(self, key: bytes) -> bytes | None: ...

    def answer_with_cookie(self, key: bytes, address: bytes) -> bytes | None: ...

    def answer_watched(self, key: bytes, address: bytes, network: int) -> bytes | None: ...

    def find(self, datagram: bytes, address: bytes) -> bytes | None: ...

    def offer(self, key: bytes, reply: bytes) -> None: ...

    def absent_told(self, number: int, last: bytes) -> None: ...

    def overloaded(self) -> None: ...


class UdpListener(Protocol):
    """One bound address. `via` in the peers it reports is its number, so that replies and events leave from here."""

    @property
    def port(self) -> int: ...

    def send(self, peers: Sequence[Peer], alike: Alike) -> None:
        """Send events: the first of these messages to the first of `peers`, and so on."""
        ...

    def pause(self) -> None:
        """Take no more requests; replies to those under way still leave."""
        ...

    def close(self) -> None: ...
