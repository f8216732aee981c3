"""What the client cores of NAT-PMP and PCP share: the states and effects they tell, and the life of one mapping.

Pure, as they are. A core tells each state once, and a mapping again that the gateway had lost.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from typing import Final

from protocol.addresses import is_behind_a_nat
from protocol.natpmp import NO_ADDRESS

DELETE_TRIES: Final = 3  # a lapse follows anyway (RFC 6886 §3.4)


class NatKind(Enum):
    SEARCHING = "searching"
    MAPPED = "mapped"
    PUBLIC = "public"
    NAT_BEHIND_NAT = "nat behind nat"
    FAILED = "failed"


MAPPED_KINDS: Final = (NatKind.MAPPED, NatKind.NAT_BEHIND_NAT)


@dataclass(frozen=True, slots=True)
class NatState:
    """What is known. Address and port mean something only for MAPPED and NAT_BEHIND_NAT."""

    kind: NatKind
    address: IPv4Address = NO_ADDRESS
    port: int = 0
    reason: str = ""

    @classmethod
    def mapped(cls, address: IPv4Address, port: int) -> NatState:
        """There is a mapping, on an address that the world reaches or on one behind another NAT (RFC 6281 §4.4.1)."""
        if is_behind_a_nat(address):
            return cls(NatKind.NAT_BEHIND_NAT, address, port, "the gateway's external address is itself private")
        return cls(NatKind.MAPPED, address, port)

    @classmethod
    def refused(cls, result: int, codes: type[IntEnum]) -> NatState:
        """The gateway answers with an error, which may be one that its protocol does not know."""
        name = codes(result).name.lower().replace("_", " ") if result in set(codes) else f"result {result}"
        return cls(NatKind.FAILED, reason=f"the gateway says: {name}")


@dataclass(frozen=True, slots=True)
class Send:
    """One datagram for the gateway."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class Changed:
    """The state is now another one, or was confirmed again after the gateway had lost it."""

    state: NatState


@dataclass(frozen=True, slots=True)
class Closed:
    """Deletion is answered or given up."""


Effect = Send | Changed | Closed


class MappingCore(ABC):
    """One mapping at one gateway. Those who derive from it know how to ask; times are None where nothing is due."""

    def __init__(self, rng: random.Random, suggested_port: int) -> None:
        self._rng = rng
        self._effects: list[Effect] = []
        self._port = suggested_port
        self._address = NO_ADDRESS
        self._sent = 0
        """Transmissions of the request under way."""
        self._retry_at = 0.0
        self._begin_at: float | None = None
        self._lapse_at: float | None = None
        self._answered = False
        """Whether this gateway ever answered."""
        self._tell_again = False
        self._closing = False
        self.state = NatState(NatKind.SEARCHING)

    @property
    def lapses_at(self) -> float | None:
        """When the mapping ends unless renewed."""
        return self._lapse_at

    def start(self, *, now: float) -> None:
        """Ask for the mapping."""
        self._begin(now)

    def take_effects(self) -> list[Effect]:
        """Hand over what is to be sent and told, in order."""
        effects, self._effects = self._effects, []
        return effects

    @abstractmethod
    def _begin(self, now: float) -> None:
        """Ask from the start."""

    def _become(self, state: NatState) -> None:
        confirmed = self._tell_again and state.kind in MAPPED_KINDS
        if state != self.state or confirmed:
            self._tell_again = self._tell_again and not confirmed
            self.state = state
            self._effects.append(Changed(state))
