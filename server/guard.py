"""What stands against senders that may be forged: one for the whole server, its parts replaced on a reload."""

from dataclasses import dataclass

from server.cookies import Cookies
from server.response_limit import ResponseLimiter
from server.strangers import Strangers


@dataclass(slots=True)
class Guard:
    """A part that is None is switched off."""

    cookies: Cookies | None = None
    limiter: ResponseLimiter | None = None
    strangers: Strangers | None = None
