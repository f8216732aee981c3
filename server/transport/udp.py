"""UDP: datagrams in, datagrams out. Bounded by the socket's own buffers; nothing is kept per peer.

Two listeners do the same: one takes datagrams from the system in batches (`udp_batch`), where the system offers that,
the other one by one (`udp_plain`).
"""

import asyncio
from typing import Final

from server.metrics import Metrics
from server.querylog import QueryLog
from server.transport import sampled, udp_batch, udp_plain
from server.transport.ports import Fast, Handle, UdpListener

_KERNEL_LOOPS: Final = ("uvloop", "asyncio.unix_events")


async def open_udp(
    number: int,
    address: str,
    port: int,
    handle: Handle,
    fast: Fast,
    metrics: Metrics,
    queries: QueryLog | None = None,
) -> UdpListener:
    """Bind the best listener there is; `OSError` when the address or port cannot be had.

    One that tells `queries` of what it answers is another class: the usual one has nothing to do with it.

    Batches need a loop that watches descriptors of the system; another loop has a network of its own.
    """
    is_real = type(asyncio.get_running_loop()).__module__ in _KERNEL_LOOPS
    if is_real and udp_batch.is_available():
        if queries is None:
            return udp_batch.BatchListener.open(number, address, port, handle, fast, metrics)
        batches = sampled.SampledBatchListener.open(number, address, port, queries.over(handle), fast, metrics)
        batches.queries = queries
        return batches
    if queries is None:
        return await udp_plain.PlainListener.open(number, address, port, handle, fast)
    plain = await sampled.SampledPlainListener.open(number, address, port, handle, fast)
    plain.queries = queries
    return plain
