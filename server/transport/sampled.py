"""UDP listeners that offer what they answered to the query log: chosen at start instead of the plain ones.

A reply holds the question, so it is told from what was sent. What the fast path answered is looked at after its batch.
"""

from typing import Any

from server.querylog import QueryLog
from server.transport.udp_batch import BatchListener
from server.transport.udp_plain import PlainListener

_ID = 2


class SampledBatchListener(BatchListener):
    """Set `queries` before the loop runs again."""

    queries: QueryLog

    def _take(self, count: int) -> None:
        super()._take(count)
        for slot in self.queries.drawn(count):
            size = self._reply_sizes[slot]
            if size:  # else it went the slow way, whose replies are offered by its `handle`
                start = self._starts[slot] - _ID
                address = self._address(slot)
                self.queries.tell(self._octets[start : start + size], "udp", address[0], address[1])


class SampledPlainListener(PlainListener):
    """Set `queries` before the loop runs again."""

    queries: QueryLog

    def _send_to(self, address: tuple[Any, ...], wire: bytes) -> None:
        super()._send_to(address, wire)
        self.queries.offer(wire, "udp", address[0], address[1])

    def _send_event(self, address: tuple[Any, ...], wire: bytes) -> None:
        """Nobody asked for it."""
        super()._send_to(address, wire)
