"""Query logging by sample: one line for one query in so many, drawn at random, told from its reply.

Nothing here runs unless `[log] queries` asks for it. Listeners that tell stand in `server.transport.sampled`.
"""

import math
from collections.abc import Iterator
from typing import Final

import structlog

from protocol.constants import HEADER_OCTETS, Opcode, rcode_text, type_text
from protocol.errors import DecodeError
from protocol.message import decode_header
from protocol.name import read_name, to_text
from server.peer import Peer
from server.request import Send
from server.system import Clock, Entropy
from server.transport.ports import Handle

MAX_LINES: Final = 200  # a second; what is drawn beyond that is counted and told in one line
_BITS: Final = 53

log = structlog.get_logger(__name__)


class QueryLog:
    """Draws a share (above 0, at most 1) of all queries and tells of them."""

    def __init__(self, share: float, *, clock: Clock, entropy: Entropy) -> None:
        self._share = share
        self._clock = clock
        self._entropy = entropy
        self._left = self._gap()
        self._second = 0.0
        self._lines = 0
        self._untold = 0

    def _gap(self) -> int:
        """How many queries go untold before the next one: geometric, so that each has the same chance."""
        if self._share >= 1:
            return 0
        drawn = (self._entropy.bits(_BITS) + 1) / (1 << _BITS)
        return int(math.log(drawn) / math.log1p(-self._share))

    def drawn(self, count: int) -> Iterator[int]:
        """Which of the next `count` queries are drawn, by position."""
        left = self._left
        while left < count:
            yield left
            left += 1 + self._gap()
        self._left = left - count

    def offer(self, reply: bytes, transport: str, address: str, port: int) -> None:
        """One query with its reply: told if it is drawn."""
        for _ in self.drawn(1):
            self.tell(reply, transport, address, port)

    def tell(self, reply: bytes, transport: str, address: str, port: int) -> None:
        """One line for a reply to a query; none for other messages and for replies without a question."""
        if len(reply) < HEADER_OCTETS:
            return
        header = decode_header(reply)
        if header.opcode != Opcode.QUERY or not header.is_response or not header.qdcount:
            return
        try:
            name, end = read_name(reply, HEADER_OCTETS)
        except DecodeError:
            return
        if not self._may_tell():
            return
        log.info(
            "query",
            name=to_text(name),
            type=type_text(int.from_bytes(reply[end : end + 2], "big")),
            peer=f"{address}#{port}/{transport}",
            rcode=rcode_text(header.rcode),
            answers=header.ancount,
            octets=len(reply),
        )

    def _may_tell(self) -> bool:
        now = self._clock.monotonic()
        if now - self._second >= 1:
            if self._untold:
                log.warning("queries not told of, lower [log] queries", queries=self._untold)
            self._second, self._lines, self._untold = now, 0, 0
        if self._lines >= MAX_LINES:
            self._untold += 1
            return False
        self._lines += 1
        return True

    def over(self, handle: Handle) -> Handle:
        """`handle`, each reply of which is offered."""

        def told(wire: bytes, peer: Peer, send: Send) -> None:
            def send_and_offer(reply: bytes) -> None:
                send(reply)
                self.offer(reply, peer.transport, peer.address, peer.port)

            handle(wire, peer, send_and_offer)

        return told
