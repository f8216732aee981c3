"""The stateless challenge: an LLQ-ID that proves itself, so that no stranger's request costs memory (RFC 8764 §5.2).

    | 28 bits: issue time in steps of 32 s | 36 bits: MAC over that time, peer, question, granted lease, key |

Asked again within a step the same peer gets the same ID; across a step two IDs, both good. It stays good until the
lease it grants has run out (RFC 8764 §5.1 forbids to forget a set-up sooner).
"""

import hmac
import struct
from typing import Final

from protocol.message import Question
from protocol.name import fold
from server.peer import Peer

STEP_SECONDS: Final = 32
_MAC_BITS: Final = 36
_STEPS: Final = 1 << (64 - _MAC_BITS)
_STEPS_AHEAD: Final = 2  # of our clock: it stepped back, or the client started anew within a step


class Challenger:
    """Issues and verifies challenges under `secret`; a restart with another secret voids those under way."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(
        self, peer: Peer, question: Question, lease: int, key_name: bytes | None, *, unix: int, held: int | None = None
    ) -> int:
        """The LLQ-ID of a challenge granting `lease` seconds; never 0.

        `held` is the ID of a challenge this peer met before: a client that starts anew gets a newer ID even within the
        step, so that events still under way to its former self are none of its business.
        """
        step = unix // STEP_SECONDS % _STEPS
        if held is not None:
            step = max(step, min(issue_step(held) + 1, step + _STEPS_AHEAD))
        return self._make(step, peer, question, lease, key_name)

    def is_met(
        self, llq_id: int, peer: Peer, question: Question, lease: int, key_name: bytes | None, *, unix: int
    ) -> bool:
        """Whether a challenge response echoes what was issued, ID and lease both, and not too long ago."""
        step = issue_step(llq_id)
        age = (unix // STEP_SECONDS - step + _STEPS_AHEAD) % _STEPS - _STEPS_AHEAD
        if age > lease // STEP_SECONDS + 1:
            return False
        expected = self._make(step, peer, question, lease, key_name)
        return hmac.compare_digest(llq_id.to_bytes(8, "big"), expected.to_bytes(8, "big"))

    def _make(self, step: int, peer: Peer, question: Question, lease: int, key_name: bytes | None) -> int:
        address = peer.address.encode()
        data = b"".join(
            (
                struct.pack("!IHIHHB", step, peer.port, lease, question.rtype, question.rclass, len(address)),
                address,
                fold(question.name),
                b"" if key_name is None else b"\x01" + key_name,
            )
        )
        mac = int.from_bytes(hmac.digest(self._secret, data, "sha256")[:5], "big") >> (40 - _MAC_BITS)
        return step << _MAC_BITS | (mac or 1)


def issue_step(llq_id: int) -> int:
    """When a challenge was issued, in steps."""
    return llq_id >> _MAC_BITS


def is_older(llq_id: int, held: int, *, unix: int) -> bool:
    """Whether a challenge was issued before another that the same peer met for the same question.

    Never older than one from the future: the clock went back while the server was down.
    """
    ahead = (issue_step(held) - unix // STEP_SECONDS) % _STEPS
    return issue_step(llq_id) < issue_step(held) and not _STEPS_AHEAD < ahead < _STEPS // 2
