"""The life of a Long-Lived Query at the server: what can happen to a subscription, and where it leads (RFC 8764)."""

from enum import Enum
from typing import Final

from server.push.subscriptions import State, Subscription


class Input(Enum):
    """What can happen to a subscription."""

    SETUP = "set-up request (UDP)"
    CHALLENGE_MET = "challenge response"
    STREAM_SETUP = "set-up request (stream)"
    RESTORED = "restart of the server"
    ASKED_AGAIN = "same request again"
    CHANGED = "zone differs"
    NOTHING_NEW = "nothing to tell"
    SENT = "event sent (UDP)"
    SENT_ON_STREAM = "event sent (stream)"
    RETRY = "2 s, then 4 s without ack"
    ACKED = "ack"
    REFRESHED = "refresh"
    MOVED = "stream closed with event port known, or client back on a stream"
    REPLACED = "client set up anew"
    CANCELLED = "refresh with lease 0"
    LAPSED = "lease ran out"
    UNREACHABLE = "third try unacked for 8 s"
    CLOSED = "stream closed, no event port"
    REVOKED = "key revoked, or no longer allowed"

    __hash__ = object.__hash__


_ENDS: Final = (Input.REPLACED, Input.CANCELLED, Input.LAPSED, Input.CLOSED, Input.REVOKED)
_LIVE: Final = (State.SETTLED, State.DUE, State.UNACKED)

TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (State.ABSENT, Input.SETUP): State.ABSENT,  # answered with a challenge that costs no memory
    (State.ABSENT, Input.CHALLENGE_MET): State.SETTLED,
    (State.ABSENT, Input.STREAM_SETUP): State.SETTLED,
    (State.ABSENT, Input.RESTORED): State.SETTLED,
    (State.SETTLED, Input.CHANGED): State.DUE,
    (State.DUE, Input.NOTHING_NEW): State.SETTLED,
    (State.DUE, Input.SENT): State.UNACKED,
    (State.DUE, Input.SENT_ON_STREAM): State.SETTLED,
    (State.UNACKED, Input.RETRY): State.UNACKED,
    (State.UNACKED, Input.ACKED): State.SETTLED,
    (State.UNACKED, Input.SENT_ON_STREAM): State.SETTLED,  # a client came back on a stream
    (State.UNACKED, Input.UNREACHABLE): State.GONE,
    **{(state, Input.ASKED_AGAIN): state for state in _LIVE},
    **{(state, Input.REFRESHED): state for state in _LIVE},
    **{(state, Input.MOVED): state for state in _LIVE},
    **{(state, end): State.GONE for state in _LIVE for end in _ENDS},
}


def diagram() -> str:
    """The table as a Mermaid state diagram; parallel arrows share a line."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (start, happening), end in TRANSITIONS.items():
        arrows.setdefault((start, end), []).append(happening.value)
    lines = ["stateDiagram-v2", "    [*] --> absent"]
    lines += [f"    {start.value} --> {end.value} : {' / '.join(words)}" for (start, end), words in arrows.items()]
    lines.append("    gone --> [*]")
    return "\n".join(lines) + "\n"


def step(subscription: Subscription, happening: Input) -> None:
    """Follow the table; a missing row is a fault of ours, since peers' messages are judged before."""
    subscription.state = TRANSITIONS[subscription.state, happening]


def after(state: State, *happenings: Input) -> State:
    """Where the table leads from `state`: a step of many at once."""
    for happening in happenings:
        state = TRANSITIONS[state, happening]
    return state
