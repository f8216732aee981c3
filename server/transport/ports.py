"""What listeners and those behind them say to each other: the words both sides import."""

from collections.abc import Callable
from typing import Final, Protocol

from server.guard import Guard
from server.peer import Peer
from server.request import Send

Handle = Callable[[bytes, Peer, Send], None]
SOCKET_OCTETS: Final = 4 * 1024 * 1024
"""Asked of the system for what waits in a socket, either way: a burst outlasts a pause of ours. It may grant less."""


class Fast(Protocol):
    """Answers that need no message taken apart; keys and answers leave out the message ID (two octets)."""

    ready: dict[bytes, bytes]
    rcodes: list[int]
    guard: Guard
    answer_signed: Callable[[bytes], bytes | None] | None
    """Takes a whole datagram; the reply is without its ID."""

    def begin(self) -> None: ...

    def answer(self, key: bytes) -> bytes | None: ...

    def answer_with_cookie(self, key: bytes, address: bytes) -> bytes | None: ...

    def answer_watched(self, key: bytes, address: bytes, network: int) -> bytes | None: ...

    def find(self, datagram: bytes, address: bytes) -> bytes | None: ...

    def offer(self, key: bytes, reply: bytes) -> None: ...

    def overloaded(self) -> None: ...


class UdpListener(Protocol):
    """One bound address. `via` in the peers it reports is its number, so that replies and events leave from here."""

    @property
    def port(self) -> int: ...

    def send(self, peer: Peer, wire: bytes) -> None: ...

    def pause(self) -> None:
        """Take no more requests; replies to those under way still leave."""
        ...

    def close(self) -> None: ...
