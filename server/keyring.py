"""The keys a running server knows, in memory, replaced whole when the store's change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocol.tsig import Key
from server.policy import KeyPolicy, Policy, compile_policy
from server.store.api import KeyRow, MemberRow


@dataclass(frozen=True, slots=True)
class Principal:
    """A key and what it stands for. `domain` is the member's folded domain; None for an admin, who owns every zone.

    `policy` is what the key may do, compiled; the default of its kind unless given. `expires_at`: seconds since 1970
    from which the key is unknown; the keyring's owner takes it out then.
    """

    key: Key
    member_id: int | None
    domain: bytes | None
    policy: KeyPolicy = None  # type: ignore[assignment]  # never None: see __post_init__
    expires_at: int | None = None

    def __post_init__(self) -> None:
        if self.policy is None:
            object.__setattr__(self, "policy", compile_policy(self.key.name, self.domain))

    @property
    def is_admin(self) -> bool:
        return self.member_id is None


class Keyring:
    """Principals by folded key name, and when each was last used (written to the store now and then)."""

    def __init__(self, principals: Iterable[Principal] = ()) -> None:
        self._by_name: dict[bytes, Principal] = {}
        self._used: dict[bytes, int] = {}
        self.next_expiry: int | None = None
        self.replace(principals)

    def replace(self, principals: Iterable[Principal]) -> None:
        self._by_name = {principal.key.name: principal for principal in principals}
        ends = [principal.expires_at for principal in self._by_name.values() if principal.expires_at is not None]
        self.next_expiry = min(ends, default=None)

    def find(self, name: bytes) -> Principal | None:
        return self._by_name.get(name)

    def keys(self) -> dict[bytes, Key]:
        """Keys by folded name, as of now."""
        return {name: principal.key for name, principal in self._by_name.items()}

    def names(self) -> frozenset[bytes]:
        return frozenset(self._by_name)

    def note_use(self, name: bytes, unix: int) -> None:
        self._used[name] = unix

    def take_uses(self) -> dict[bytes, int]:
        """Key names used since the last call, with the moment of last use."""
        used, self._used = self._used, {}
        return used


def principal_of(row: KeyRow, members: Mapping[int, MemberRow], policy: Policy) -> Principal:
    """A key of the store with what it may do; `members` by id hold its owner, if it has one."""
    domain = None if row.member_id is None else members[row.member_id].domain
    compiled = compile_policy(row.key.name, domain, row.rules, policy)
    return Principal(row.key, row.member_id, domain, compiled, row.expires_at)
