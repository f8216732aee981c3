"""PCP client core (RFC 6887 §8.1, §8.3, §8.5, §11.2): one mapping, renewal, epoch, mapping updates.

Pure: times are monotonic seconds, entropy a `random.Random` and a nonce, octets leave as effects. It tells the same
states as the NAT-PMP core; PUBLIC means that nobody here speaks PCP, by silence or by saying so.

    start -> MAP -> (half of the lifetime) -> MAP ...   a lost epoch begins again after a random wait
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from client_stub.mapping_core import DELETE_TRIES, Closed, MappingCore, NatKind, NatState, Send
from protocol import natpmp
from protocol.errors import DecodeError
from protocol.pcp import (
    NO_IPV4,
    EpochWatch,
    MapBody,
    Opcode,
    Request,
    Response,
    ResultCode,
    decode_response,
)

LONGEST_LIFETIME: Final = 86400
"""Whatever a server grants, after a day it is asked again (RFC 6887 §15)."""
CLOSEST_RENEWALS: Final = 4.0
LONGEST_WAIT: Final = 1024.0
SHORTEST_ERROR, LONGEST_ERROR = 30.0, 1800.0
"""Bounds of how long a refusal is believed (RFC 6887 §7.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PcpSettings:
    """What to map and how long to try; times in seconds."""

    internal_port: int
    protocol: int = 17
    """IANA number: 17 is UDP, 6 TCP."""
    suggested_port: int = 0
    lifetime: int = 7200
    first_wait: float = 3.0
    tries: int = 4
    """Transmissions before a server that never answered counts as none; RFC 6887 sets no bound."""
    loss_delay_max: float = 5.0
    public_recheck: float = 900.0


class PcpClient(MappingCore):
    """One mapping at one server. Feed every packet of the server, responses and announcements alike."""

    def __init__(
        self, server: IPv4Address, source: IPv4Address, settings: PcpSettings, rng: random.Random, nonce: bytes
    ) -> None:
        """`source` is the address that requests leave from. The nonce has 12 random octets (RFC 6887 §11.2)."""
        super().__init__(rng, settings.suggested_port)
        self._server = server
        self._source = source
        self._settings = settings
        self._nonce = nonce
        self._epochs = EpochWatch()
        self._asking = False
        self._wait = 0.0
        self._renewals = 0
        self._granted_at = 0.0
        self._granted = 0.0

    def receive(self, datagram: bytes, source: IPv4Address, *, now: float) -> None:
        """Take a packet from the server; anything else, or from anyone else, is dropped (RFC 6887 §8.3)."""
        if source != self._server:
            return
        if datagram[:1] == b"\0":
            self._natpmp_only(datagram, now)
            return
        try:
            response = decode_response(datagram)
        except DecodeError:
            return
        if response.result == ResultCode.UNSUPP_VERSION:
            self._nobody("it refuses PCP version 2", now)
            return
        if self._epochs.observe(response.epoch, now) and not self._closing:
            self._state_was_lost(now)
            if response.body is None or not self._is_ours(response.body):
                return
        if response.opcode == Opcode.MAP and response.body is not None and self._is_ours(response.body):
            self._answer(response, response.body, now)

    def unreachable(self, *, now: float) -> None:
        """The server's host says that nobody listens."""
        if self._closing:
            self._closed()
        elif self._asking and not self._answered:
            self._nobody("nobody listens there", now)

    def shutdown(self, *, now: float) -> None:
        """Delete the mapping, if there is one, and then say `Closed`."""
        self._closing = True
        self._begin_at = None
        if self._lapse_at is None:
            self._closed()
            return
        self._lapse_at = None
        self._begin(now)

    def next_deadline(self) -> float | None:
        times = [time for time in (self._begin_at, self._lapse_at) if time is not None]
        if self._asking:
            times.append(self._retry_at)
        return min(times, default=None)

    def handle_deadline(self, *, now: float) -> None:
        if self._lapse_at is not None and now >= self._lapse_at:
            self._lapse_at = None
            self._become(NatState(NatKind.SEARCHING, reason="the mapping lapsed"))
            if not self._asking:
                self._begin(now)
        if self._begin_at is not None and now >= self._begin_at:
            if self._lapse_at is None or self._tell_again:
                self._begin(now)
            else:
                self._send()
                self._plan_renewal(now)
        if self._asking and now >= self._retry_at:
            if self._closing and self._sent >= DELETE_TRIES:
                self._closed()
            elif not self._answered and self._sent >= self._settings.tries:
                self._nobody("no answer", now)
            else:
                self._transmit(now)

    # -- asking ----------------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        self._begin_at = None
        self._asking = True
        self._sent = 0
        self._wait = self._settings.first_wait
        self._transmit(now)

    def _transmit(self, now: float) -> None:
        """Send, and again after a wait that doubles; its randomisation is drawn anew each time (RFC 6887 §8.1.1)."""
        self._send()
        self._retry_at = now + self._wait * (1 + self._rng.uniform(-0.1, 0.1))
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._sent += 1

    def _send(self) -> None:
        body = MapBody(
            nonce=self._nonce,
            protocol=self._settings.protocol,
            internal_port=self._settings.internal_port,
            external_port=0 if self._closing else self._port,
            external_address=NO_IPV4 if self._closing else self._address,
        )
        lifetime = 0 if self._closing else self._settings.lifetime
        request = Request(opcode=Opcode.MAP, lifetime=lifetime, client=self._source, body=body)
        self._effects.append(Send(request.encode()))

    def _is_ours(self, body: MapBody) -> bool:
        settings = self._settings
        return (body.nonce, body.protocol, body.internal_port) == (
            self._nonce,
            settings.protocol,
            settings.internal_port,
        )

    def _answer(self, response: Response, body: MapBody, now: float) -> None:
        """An answer, or an update that nobody asked for: they mean the same (RFC 6887 §14.2)."""
        self._answered = True
        if self._closing:
            if response.lifetime == 0 or response.result != ResultCode.SUCCESS:
                self._closed()
            return
        if response.result != ResultCode.SUCCESS:
            self._refused(response, now)
            return
        if response.lifetime == 0 or not isinstance(body.external_address, IPv4Address):
            return  # a late answer to a deletion
        self._asking = False
        self._port, self._address = body.external_port, body.external_address
        self._granted_at, self._granted = now, float(min(response.lifetime, LONGEST_LIFETIME))
        self._lapse_at = now + self._granted
        self._renewals = 0
        self._plan_renewal(now)
        self._become(NatState.mapped(self._address, self._port))

    def _plan_renewal(self, now: float) -> None:
        """At a random point from 1/2 to 5/8 of the lifetime, then from 3/4 on, from 7/8 on ... (RFC 6887 §11.2.1)."""
        left = 0.5 ** (self._renewals + 1)
        at = self._granted_at + self._granted * (1 - left + self._rng.uniform(0, left / 4))
        self._renewals += 1
        self._begin_at = max(at, now + CLOSEST_RENEWALS if self._renewals > 1 else at)

    def _refused(self, response: Response, now: float) -> None:
        self._asking = False
        self._begin_at = now + min(max(response.lifetime, SHORTEST_ERROR), LONGEST_ERROR)
        self._lapse_at = None
        self._become(NatState.refused(response.result, ResultCode))

    def _natpmp_only(self, datagram: bytes, now: float) -> None:
        """Version 0 with result 1 is how a NAT-PMP gateway refuses (RFC 6887 §9)."""
        try:
            response = natpmp.decode_response(datagram)
        except DecodeError:
            return
        if isinstance(response, natpmp.ErrorResponse) and response.result == natpmp.ResultCode.UNSUPPORTED_VERSION:
            self._nobody("it speaks NAT-PMP only", now)

    def _nobody(self, reason: str, now: float) -> None:
        if self._closing:
            self._closed()
            return
        self._asking = False
        self._lapse_at = None
        self._begin_at = now + self._settings.public_recheck
        self._become(NatState(NatKind.PUBLIC, reason=reason))

    def _state_was_lost(self, now: float) -> None:
        self._asking = False
        self._tell_again = True
        self._begin_at = now + self._rng.uniform(0, self._settings.loss_delay_max)

    def _closed(self) -> None:
        self._asking = False
        self._effects.append(Closed())
