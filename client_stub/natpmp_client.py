"""NAT-PMP client core (RFC 6886 §3, §3.6, RFC 6281 §4): external address, one mapping, renewal, epoch.

Pure: times are monotonic seconds, entropy a `random.Random`, octets leave as effects. One request is outstanding at a
time. Invariant: `Changed` is told only when address and mapping are both known, so nothing half-true is published.

    start -> ADDRESS -> MAP -> (half life) -> ADDRESS -> MAP ...   announcement/epoch loss restarts the sequence
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address

from client_stub.mapping_core import DELETE_TRIES, MAPPED_KINDS, Closed, MappingCore, NatKind, NatState, Send
from protocol.errors import DecodeError
from protocol.natpmp import (
    AddressRequest,
    AddressResponse,
    EpochWatch,
    ErrorResponse,
    MapRequest,
    MapResponse,
    Opcode,
    ResultCode,
    UnsupportedOpcodeResponse,
    decode_response,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatSettings:
    """Timing of the client; all in seconds."""

    internal_port: int
    opcode: Opcode = Opcode.MAP_UDP
    """Which transport: MAP_UDP or MAP_TCP."""
    suggested_port: int = 0
    lifetime: int = 3600
    first_wait: float = 0.25
    tries: int = 9
    loss_delay_min: float = 0.0
    loss_delay_max: float = 5.0
    """After a lost epoch: a random wait, so that all hosts do not ask a restarted gateway at once."""
    failure_retry: float = 60.0
    public_recheck: float = 900.0


class _Step(Enum):
    ADDRESS = 0
    MAP = 1
    DELETE = 2


class NatPmpClient(MappingCore):
    """One mapping at one gateway. Feed every packet of the gateway, responses and announcements alike."""

    def __init__(self, gateway: IPv4Address, settings: NatSettings, rng: random.Random) -> None:
        super().__init__(rng, settings.suggested_port)
        self._gateway = gateway
        self._settings = settings
        self._epochs = EpochWatch()
        self._queue: deque[_Step] = deque()
        self._step: _Step | None = None
        self._renew_at: float | None = None

    def receive(self, datagram: bytes, source: IPv4Address, *, now: float) -> None:
        """Take a packet from the gateway; anything else, or from anyone else, is dropped."""
        if source != self._gateway:
            return
        try:
            response = decode_response(datagram)
        except DecodeError:
            return
        if not isinstance(response, UnsupportedOpcodeResponse) and self._epochs.observe(response.epoch, now):
            self._state_was_lost(now)
            if isinstance(response, AddressResponse) and response.result == ResultCode.SUCCESS:
                self._address = response.address
            return
        match response:
            case AddressResponse() if self._step is _Step.ADDRESS:
                self._answer_address(response, now)
            case AddressResponse():
                self._announced(response, now)
            case MapResponse() if response.internal_port == self._settings.internal_port:
                self._answer_map(response, now)
            case ErrorResponse(result=result) if self._step is not None:
                self._refused(result, now)
            case UnsupportedOpcodeResponse() if self._step is not None:
                self._refused(ResultCode.UNSUPPORTED_OPCODE, now)
            case _:
                pass

    def unreachable(self, *, now: float) -> None:
        """The gateway's host says that nobody listens: stop at once (RFC 6886 §3.1)."""
        if self._step is not None:
            self._unanswered(now)

    def shutdown(self, *, now: float) -> None:
        """Delete the mapping, if there is one, and then say `Closed`."""
        self._closing = True
        self._queue.clear()
        self._step = None
        self._begin_at = self._renew_at = None
        if self._lapse_at is None:
            self._effects.append(Closed())
            return
        self._lapse_at = None
        self._queue.append(_Step.DELETE)
        self._next_step(now)

    def next_deadline(self) -> float | None:
        times = [time for time in (self._begin_at, self._renew_at, self._lapse_at) if time is not None]
        if self._step is not None:
            times.append(self._retry_at)
        return min(times, default=None)

    def handle_deadline(self, *, now: float) -> None:
        if self._lapse_at is not None and now >= self._lapse_at:
            self._lapse_at = self._renew_at = None
            if self.state.kind in MAPPED_KINDS:
                self._become(NatState(NatKind.SEARCHING, reason="the mapping lapsed"))
            if self._step is None and self._begin_at is None:
                self._begin(now)
        if self._begin_at is not None and now >= self._begin_at:
            self._begin(now)
        if self._renew_at is not None and now >= self._renew_at:
            self._begin(now)
        if self._step is not None and now >= self._retry_at:
            tries = DELETE_TRIES if self._step is _Step.DELETE else self._settings.tries
            if self._sent < tries:
                self._transmit(now)
            else:
                self._unanswered(now)

    # The sequence

    def _begin(self, now: float) -> None:
        self._begin_at = self._renew_at = None
        self._queue = deque((_Step.ADDRESS, _Step.MAP))
        self._next_step(now)

    def _next_step(self, now: float) -> None:
        self._step = self._queue.popleft() if self._queue else None
        self._sent = 0
        if self._step is not None:
            self._transmit(now)

    def _transmit(self, now: float) -> None:
        if self._step is _Step.ADDRESS:
            octets = AddressRequest().encode()
        else:
            deleting = self._step is _Step.DELETE
            octets = MapRequest(
                opcode=self._settings.opcode,
                internal_port=self._settings.internal_port,
                suggested_port=0 if deleting else self._port,
                lifetime=0 if deleting else self._settings.lifetime,
            ).encode()
        self._effects.append(Send(octets))
        self._retry_at = now + self._settings.first_wait * 2.0**self._sent
        self._sent += 1

    def _unanswered(self, now: float) -> None:
        was = self._step
        self._step = None
        self._queue.clear()
        if was is _Step.DELETE:
            self._effects.append(Closed())
        elif self._lapse_at is not None:
            # Like DHCP: again at half of what is left, until so little is left that the lapse decides.
            remaining = self._lapse_at - now
            if remaining > 2:
                self._renew_at = now + remaining / 2
        elif self._answered:
            self._become(NatState(NatKind.FAILED, reason="the gateway does not answer any more"))
            self._begin_at = now + self._settings.failure_retry
        else:
            self._become(NatState(NatKind.PUBLIC, reason="no gateway answers: taken for a public network"))
            self._begin_at = now + self._settings.public_recheck

    # What the gateway says

    def _answer_address(self, response: AddressResponse, now: float) -> None:
        self._answered = True
        if response.result != ResultCode.SUCCESS:
            self._refused(response.result, now)
            return
        self._address = response.address
        self._next_step(now)

    def _announced(self, response: AddressResponse, now: float) -> None:
        """An announcement, or a late copy of an answer: they cannot be told apart and mean the same."""
        is_mapped = self.state.kind in MAPPED_KINDS
        if self._closing or (is_mapped and self._begin_at is not None):
            return  # a remap after a lost epoch is already waiting
        if response.result != ResultCode.SUCCESS:
            if self.state.kind is not NatKind.FAILED:
                self._refused(response.result, now)
        elif response.address != self._address or self.state.kind in (NatKind.PUBLIC, NatKind.FAILED):
            # The mapping is asked for again: only its answer shows that the port outlived the change.
            self._address = response.address
            self._begin_at = self._renew_at = None
            self._queue = deque((_Step.MAP,))
            self._next_step(now)

    def _answer_map(self, response: MapResponse, now: float) -> None:
        if response.opcode is not self._settings.opcode:
            return
        if self._step is _Step.DELETE:
            if response.lifetime == 0:
                self._step = None
                self._effects.append(Closed())
            return
        if self._step is not _Step.MAP:
            return
        self._answered = True
        if response.result != ResultCode.SUCCESS:
            self._refused(response.result, now)
            return
        if response.lifetime == 0 or response.external_port == 0:
            return  # a late answer to a deletion by an earlier run of ours
        self._port = response.external_port
        self._lapse_at = now + response.lifetime
        self._renew_at = now + response.lifetime / 2
        self._next_step(now)
        self._become(NatState.mapped(self._address, self._port))

    def _refused(self, result: int, now: float) -> None:
        self._answered = True
        if self._step is _Step.DELETE:
            self._step = None
            self._effects.append(Closed())
            return
        self._step = None
        self._queue.clear()
        self._renew_at = None
        self._begin_at = now + self._settings.failure_retry
        self._become(NatState.refused(result, ResultCode))

    def _state_was_lost(self, now: float) -> None:
        if self._closing:
            return
        self._step = None
        self._queue.clear()
        self._renew_at = None
        self._tell_again = True
        self._begin_at = now + self._rng.uniform(self._settings.loss_delay_min, self._settings.loss_delay_max)
