"""The stages of a request as types, so that no stage can be skipped: Received, Decoded, Authenticated."""

from collections.abc import Callable
from dataclasses import dataclass

from protocol.constants import Rcode, TsigError
from protocol.message import Message
from protocol.tsig import Tsig
from server.keyring import Principal
from server.peer import Peer

Send = Callable[[bytes], None]
"""Puts one reply on its way to the peer; on a closed stream it does nothing."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A message that parsed. `at` is the monotonic moment it arrived."""

    message: Message
    peer: Peer
    at: float


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A message whose signature, if any, held. `tsig` is the request's, for signing the reply."""

    decoded: Decoded
    principal: Principal | None
    tsig: Tsig | None

    @property
    def message(self) -> Message:
        return self.decoded.message

    @property
    def peer(self) -> Peer:
        return self.decoded.peer


class Refusal(Exception):
    """Any stage's no: the RCODE for the wire and a sentence for the EDE and the log."""

    def __init__(self, rcode: Rcode, reason: str, *, ede: int | None = None) -> None:
        super().__init__(reason)
        self.rcode = rcode
        self.reason = reason
        self.ede = ede


class SignatureRefusal(Exception):
    """A signature that did not hold (RFC 8945 §5.2). `principal` is set when the reply must be signed all the same."""

    def __init__(self, error: TsigError, tsig: Tsig, principal: Principal | None, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.tsig = tsig
        self.principal = principal
        self.reason = reason
