"""What the product does against loss, lapse and restarts, taken away: a simulation must notice, or is worth nothing."""

import asyncio
from typing import Any, Final

from server.push.events import make_plan

Mutation = tuple[dict[str, Any], str]
"""What takes the place of what, and the complaint that it must lead to (a pattern)."""


def only_adds(name: bytes, rtype: int, sure: Any, maybe: Any, ttls: Any, zone: Any, room: int) -> Any:
    return make_plan(name, rtype, sure & zone, maybe & zone, ttls, zone, room)


def nothing(*_: Any, **__: Any) -> None:
    return None


async def acknowledge_first(writer: Any, pending: Any) -> None:
    """A mutation of `Writer.step`: what it commits is published and answered first."""
    batch = await writer._draft(pending)
    commits = writer._commits(batch)
    writer._publish(batch, commits)
    await writer._reply(batch)
    await asyncio.sleep(10)
    if commits:
        await writer._store.commit(tuple(commits.values()))


SHARED: Final[dict[str, Mutation]] = {
    "lapsed records are answered": (
        {
            "server.writer.lapse": nothing,
            "server.zone.node.RRset.live": lambda rrset, _: rrset,
            "server.zone.node.RRset.answered_ttl": lambda rrset, _: rrset.ttl,
        },
        "told of .* which lapsed",
    ),
    "ready answers are kept for ever": (
        {"server.ready_answers.Generation.drop_name": nothing, "server.ready_answers.Generation.drop_ended": nothing},
        "told of .* which lapsed",
    ),
}
