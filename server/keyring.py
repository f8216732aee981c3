"""The keys a running server knows, in memory, replaced whole when the store's change."""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.tsig import Key


@dataclass(frozen=True, slots=True)
class Principal:
    """A key and what it stands for. `domain` is the member's folded domain; None for an admin, who owns every zone."""

    key: Key
    member_id: int | None
    domain: bytes | None

    @property
    def is_admin(self) -> bool:
        return self.member_id is None


class Keyring:
    """Principals by folded key name, and when each was last used (written to the store now and then)."""

    def __init__(self, principals: Iterable[Principal] = ()) -> None:
        self._by_name: dict[bytes, Principal] = {}
        self._used: dict[bytes, int] = {}
        self.replace(principals)

    def replace(self, principals: Iterable[Principal]) -> None:
        self._by_name = {principal.key.name: principal for principal in principals}

    def find(self, name: bytes) -> Principal | None:
        return self._by_name.get(name)

    def names(self) -> frozenset[bytes]:
        return frozenset(self._by_name)

    def note_use(self, name: bytes, unix: int) -> None:
        self._used[name] = unix

    def take_uses(self) -> dict[bytes, int]:
        """Key names used since the last call, with the moment of last use."""
        used, self._used = self._used, {}
        return used
