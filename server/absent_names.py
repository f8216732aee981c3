"""What answers to absent names have in common: see `transport/batch_answers`, which writes them. Pure.

A flood of names that nobody asked for before differs in the first labels alone: "random subdomains" of one parent. So
what else goes into such an answer is put together once, and dropped with every change of a zone. Until a parent has
seen some, nothing is kept, for a name or two that are asked for again are better off with ready answers of their own.
"""

from collections.abc import Container
from typing import Final

from server.fast_wire import NAME_AT

MAX_COMMON: Final = 512  # with 63 tails of answers each some 5 MiB
MAX_COUNTED: Final = 8192
MANY: Final = 8  # new names, asked for in the same way below one parent

Common = tuple[dict[bytes, bytes], Container[bytes], bytes, int, int, list[bytes | None]]
"""The zone's nodes; what tells of names below the parent whether they have children; flags and counts of the reply;
where the name ends in a key and the question in a datagram, both counted from the end; by octets of the first label,
what stands behind the question."""


class AbsentNames:
    """`found`: by all octets of a key (see `fastpath`) but those of the first label."""

    def __init__(self) -> None:
        self.found: dict[bytes, Common] = {}
        self._counted: dict[int, int] = {}

    def asked(
        self, key: bytes, answer: bytes, after: int, nodes: dict[bytes, bytes], children: Container[bytes]
    ) -> None:
        """A new name got a name error. Its parent exists, with no wildcard below it and no cut at or above it.

        `after`: where its question ends in `key` and `answer`.
        """
        first = key[NAME_AT]
        common = key[:NAME_AT] + key[NAME_AT + 1 + first :]
        found = self.found.get(common)
        if found is None:
            if not self._is_many(hash(common)):
                return
            if len(self.found) >= MAX_COMMON:
                self.found.clear()
            behind = after - len(key)
            found = self.found[common] = nodes, children, answer[:NAME_AT], behind - 4, behind - 2, [None] * 256
        found[5][first] = answer[after:]

    def _is_many(self, mark: int) -> bool:
        count = self._counted.get(mark, 0) + 1
        if count <= MANY:
            if len(self._counted) >= MAX_COUNTED:
                self._counted.clear()
            self._counted[mark] = count
        return count > MANY

    def clear(self) -> None:
        """A zone changed. What was counted stays: the next name brings back what is found."""
        self.found.clear()
