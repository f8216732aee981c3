"""What carries packets for the mapping table.

A back end is told to install and remove; it decides nothing. `install` returns when the mapping carries packets.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from gateway.mappings import Filter, Install


class Backend(Protocol):
    """Carries packets from external ports to internal hosts and back."""

    counters: Counter[str]
    """What happened how often."""

    opens_pinholes: bool
    """Whether it can let packets through to hosts under their own IPv6 addresses."""

    async def start(self) -> None:
        """Get ready. Raises `StartError`."""

    async def stop(self) -> None:
        """Remove all installations and end all traffic."""

    def check_address(self, external_address: str) -> None:
        """Raise `InstallRefusedError` if no mapping could be installed on this address."""

    def install(self, install: Install) -> None:
        """Carry packets for this mapping on this external address from now on, of its filters' peers if it has any.

        Raises `InstallRefusedError` if the port cannot be had there; nothing is left behind then.
        """

    def hold(self) -> None:
        """Gather what follows, to carry it out together at `flush`: an `install` may return before then."""

    def flush(self) -> None:
        """Carry out what was gathered. Raises `InstallRefusedError` if that cannot be done.

        All installations of the round are to be removed then, in a round of their own. Without a round each can be
        tried alone.
        """

    def restrict(self, number: int, filters: tuple[Filter, ...]) -> None:
        """Let only these remote peers begin traffic from now on, everybody if none is named.

        What runs through it for others ends. Unknown numbers are ignored.
        """

    def remove(self, number: int) -> None:
        """End an installation and the traffic that runs through it. Unknown numbers are ignored."""
