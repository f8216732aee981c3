"""UDP: datagrams in, datagrams out. Bounded by the socket's own buffers; nothing is kept per peer.

Two listeners do the same: one takes datagrams from the system in batches (`udp_batch`), where the system offers that,
the other one by one (`udp_plain`).
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from server.guard import Guard
from server.metrics import Metrics
from server.peer import Peer
from server.request import Send

if TYPE_CHECKING:
    from server.querylog import QueryLog

Handle = Callable[[bytes, Peer, Send], None]
SOCKET_OCTETS: Final = 4 * 1024 * 1024
"""Asked of the system for what waits in a socket, either way: a burst outlasts a pause of ours. It may grant less."""
_KERNEL_LOOPS: Final = ("uvloop", "asyncio.unix_events")


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


async def open_udp(
    number: int,
    address: str,
    port: int,
    handle: Handle,
    fast: Fast,
    metrics: Metrics,
    queries: "QueryLog | None" = None,
) -> UdpListener:
    """Bind the best listener there is; `OSError` when the address or port cannot be had.

    One that tells `queries` of what it answers is another class: the usual one has nothing to do with it.

    Batches need a loop that watches descriptors of the system; another loop has a network of its own.
    """
    from server.transport import sampled, udp_batch, udp_plain

    is_real = type(asyncio.get_running_loop()).__module__ in _KERNEL_LOOPS
    if is_real and udp_batch.is_available():
        if queries is None:
            return udp_batch.BatchListener.open(number, address, port, handle, fast, metrics)
        batches = sampled.SampledBatchListener.open(number, address, port, handle, fast, metrics)
        batches.queries = queries
        return batches
    if queries is None:
        return await udp_plain.PlainListener.open(number, address, port, handle, fast)
    plain = await sampled.SampledPlainListener.open(number, address, port, handle, fast)
    plain.queries = queries
    return plain
