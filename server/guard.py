"""What stands against senders that may be forged: one for the whole server, its parts replaced on a reload."""

from dataclasses import dataclass

from server.cookies import Cookies
from server.response_limit import ResponseLimiter
from server.strangers import Strangers
from server.work_budget import WorkBudget


@dataclass(slots=True)
class Guard:
    """A part that is None is switched off."""

    cookies: Cookies | None = None
    limiter: ResponseLimiter | None = None
    strangers: Strangers | None = None
    work: WorkBudget | None = None

    def is_known(self, address: str) -> bool:
        """Whether a sender of this address has proved itself within the hour."""
        return self.strangers is not None and self.strangers.is_known(address)
