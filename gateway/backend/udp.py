"""UDP through the relay: one socket per mapping outside, one per outer peer inside.

An outer peer's flow has a socket of its own towards the internal host, so that the host's answers find the way back.
A flow ends after `idle_seconds` without a datagram in either direction (RFC 4787 §4.3: 2 minutes at least).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .admission import Admission

Endpoint = tuple[str, int]

BURST = 64
"""Datagrams read in one turn of the loop from one socket, so that a flood on one leaves time for the others."""
EVICTION_LOOK = 16
"""How many of the oldest flows are looked at for one that was never answered when the table is full."""
MAX_DATAGRAM = 65535


@dataclass(slots=True, eq=False)
class Flow:
    """One outer peer's traffic through one mapping."""

    mapping: UdpMapping
    peer: Endpoint
    inner: socket.socket
    used_at: float
    answered: bool = False


class FlowTable:
    """All UDP flows of a relay, least recently used first."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        idle_seconds: float,
        limit: int,
        counters: Counter[str],
        on_open: Callable[[int, str, Endpoint], None],
    ) -> None:
        self.loop = loop
        self.counters = counters
        self._idle_seconds = idle_seconds
        self._limit = limit
        self._on_open = on_open
        self._flows: dict[Flow, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._flows)

    def open(self, mapping: UdpMapping, peer: Endpoint) -> Flow | None:
        """Begin a flow; None if there is no room or no socket for it.

        A full table gives up its oldest unanswered flow, so that datagrams with invented sources cannot keep others
        out for minutes; answered flows are never given up.
        """
        if len(self._flows) >= self._limit:
            for old in itertools.islice(self._flows, EVICTION_LOOK):
                if not old.answered:
                    self.close(old)
                    self.counters["udp flows evicted"] += 1
                    break
            else:
                self.counters["udp flows refused"] += 1
                return None
        try:
            inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            self.counters["udp flows refused"] += 1
            return None
        try:
            inner.connect(mapping.inside)
        except OSError:
            inner.close()
            self.counters["udp flows refused"] += 1
            return None
        flow = Flow(mapping, peer, inner, self.loop.time())
        self._flows[flow] = None
        mapping.flows[peer] = flow
        self.loop.add_reader(inner, self._read_inner, flow)
        if self._timer is None:
            self._timer = self.loop.call_later(self._idle_seconds, self._expire)
        self.counters["udp flows"] += 1
        self._on_open(mapping.number, "udp", peer)
        return flow

    def touch(self, flow: Flow) -> None:
        """Note traffic."""
        flow.used_at = self.loop.time()
        del self._flows[flow]
        self._flows[flow] = None

    def close(self, flow: Flow) -> None:
        """End a flow."""
        del self._flows[flow]
        del flow.mapping.flows[flow.peer]
        self.loop.remove_reader(flow.inner)
        flow.inner.close()

    def close_all(self) -> None:
        """End everything, the timer included."""
        for flow in list(self._flows):
            self.close(flow)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _read_inner(self, flow: Flow) -> None:
        for _ in range(BURST):
            try:
                datagram = flow.inner.recv(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # The internal host refused (ICMP). It may listen again later: the flow stays until it is idle.
                self.counters["udp refused inside"] += 1
                return
            flow.answered = True
            self.touch(flow)
            flow.mapping.send_out(datagram, flow.peer)

    def _expire(self) -> None:
        self._timer = None
        now = self.loop.time()
        while self._flows:
            flow = next(iter(self._flows))
            due_at = flow.used_at + self._idle_seconds
            if due_at > now:
                self._timer = self.loop.call_at(due_at, self._expire)
                return
            self.close(flow)


class UdpMapping:
    """The outside of a UDP mapping. The constructor raises OSError if the port cannot be had."""

    def __init__(
        self, number: int, outside: Endpoint, inside: Endpoint, flows: FlowTable, admission: Admission
    ) -> None:
        self.number = number
        self.inside = inside
        self.flows: dict[Endpoint, Flow] = {}
        self._table = flows
        self._admission = admission
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(outside)
            flows.loop.add_reader(self._socket, self._read_outer)
        except OSError:
            self._socket.close()
            raise

    def restrict(self, admission: Admission) -> None:
        """Let in others than so far; flows of those who are out now end."""
        self._admission = admission
        for peer, flow in list(self.flows.items()):
            if not admission.admits(peer):
                self._table.close(flow)

    def close(self) -> None:
        """Stop listening and end all flows."""
        self._table.loop.remove_reader(self._socket)
        self._socket.close()
        for flow in list(self.flows.values()):
            self._table.close(flow)

    def send_out(self, datagram: bytes, peer: Endpoint) -> None:
        """Send to an outer peer. What cannot be sent now is lost, as datagrams may be."""
        try:
            self._socket.sendto(datagram, peer)
        except OSError:
            self._table.counters["udp lost"] += 1
        else:
            self._table.counters["udp out"] += 1

    def _read_outer(self) -> None:
        for _ in range(BURST):
            try:
                datagram, peer = self._socket.recvfrom(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            flow = self.flows.get(peer)
            if flow is None:
                if not self._admission.admits(peer):
                    self._table.counters["udp filtered"] += 1
                    continue
                flow = self._table.open(self, peer)
                if flow is None:
                    continue
            else:
                self._table.touch(flow)
            self._table.counters["udp in"] += 1
            with contextlib.suppress(OSError):
                flow.inner.send(datagram)
