"""How many existing names stand directly below each name of a zone, empty non-terminals too (RFC 4592 §2.2.2).

Most names of a zone lie below a member's, and most members' names are shaped alike (`_autotunnel._udp.mac`). So what is
below a member, the name directly below the apex, is told in one value by names relative to it, and members of one shape
have one value in common. A member with many names has a dictionary of its own.
"""

from collections.abc import Container, Iterable, Iterator
from functools import lru_cache
from typing import Final

Counts = dict[bytes, int]
"""Children by name relative to the member's; b"" is the member itself."""

MAX_SHARED: Final = 128  # octets of a shape and children of a name; beyond it a member has counts of its own
_SHAPES: Final = 1024
_MAX_RUN: Final = 16
_NOTHING: Final = b""


class Children:
    """Counts of existing names by folded parent. `members`: by name directly below the apex, those with names below."""

    __slots__ = ("_apex_octets", "apex", "at_apex", "members")

    def __init__(self, apex: bytes) -> None:
        self.apex = apex
        self._apex_octets = len(apex)
        self.at_apex = 0
        self.members: dict[bytes, bytes | Counts] = {}

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.count(key) > 0

    def count(self, key: bytes) -> int:
        """How many names exist directly below a folded name."""
        at = self._member_at(key)
        if at < 0:
            return self.at_apex if key == self.apex else 0
        counts = self.members.get(key[at:])
        return 0 if counts is None else _counts(counts).get(key[:at], 0)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Every name with names below it, and how many."""
        if self.at_apex:
            yield self.apex, self.at_apex
        for member, counts in self.members.items():
            for relative, count in _counts(counts).items():
                yield relative + member, count

    def below(self, parent: bytes) -> Container[bytes]:
        """Where to look up whether a name directly below `parent` has children: the quickest that knows."""
        return self.members if parent == self.apex else self

    def link(self, key: bytes, nodes: Container[bytes]) -> None:
        """Count a name that begins to have records at its parent, and so on up until one that existed already.

        `nodes`: the names that have records.
        """
        at = self._member_at(key)
        member = key[at:]
        if at <= 0:
            self.at_apex += not at and member not in self.members
            return
        present = self.members.get(member, _NOTHING)
        counts = _counts(present)
        if key[:at] in counts:
            return
        top = below = key[0] + 1
        while key[top:at] not in counts and key[top:] not in nodes:
            if top == at:
                self.at_apex += 1
                break
            top += key[top] + 1
        if isinstance(present, bytes):
            shape = _linked(present, key[below:at], key[top:at])
            if shape is not None:
                self.members[member] = shape
                return
            self.members[member] = counts = counts.copy()
        _link(counts, key[below:at], key[top:at])

    def link_all(self, keys: Iterable[bytes], nodes: Container[bytes]) -> None:
        """As `link` for many, all in `nodes` already: the names of a member at one go."""
        start = self._apex_octets
        runs: dict[bytes, list[bytes]] = {}
        for key in keys:
            at = -1
            end = 0
            stop = len(key) - start
            while end < stop:
                at = end
                end += key[end] + 1
            if at >= 0:
                member = key[at:]
                run = runs.get(member)
                if run is None:
                    runs[member] = [key]
                else:
                    run.append(key)
        for member, run in runs.items():
            if len(run) > _MAX_RUN or member in self.members or member in nodes or not self._link_run(member, run):
                for key in sorted(run, key=len):  # a name before those below it, which rest on its being counted
                    self.link(key, nodes)

    def _link_run(self, member: bytes, run: list[bytes]) -> bool:
        """Whether a member that is new is done: no name of it has others below it."""
        at = -len(member)
        shape, above = _shape_of(tuple([key[key[0] + 1 : at] for key in run]))
        if not shape or not above.isdisjoint([key[:at] for key in run]):
            return False
        self.members[member] = shape
        self.at_apex += 1
        return True

    def unlink(self, key: bytes, nodes: Container[bytes]) -> None:
        """Discount a name whose records are gone, unless names below keep it, and so on up."""
        at = self._member_at(key)
        member = key[at:]
        if at <= 0:
            self.at_apex -= not at and member not in self.members
            return
        present = self.members[member]
        counts = _counts(present)
        if key[:at] in counts:
            return
        top = below = key[0] + 1
        while counts[key[top:at]] == 1 and key[top:] not in nodes:
            if top == at:
                self.at_apex -= 1
                break
            top += key[top] + 1
        if isinstance(present, bytes):
            left: bytes | Counts = _unlinked(present, key[below:at], key[top:at])
        else:
            _unlink(counts, key[below:at], key[top:at])
            left = counts
        if left:
            self.members[member] = left
        else:
            del self.members[member]

    def _member_at(self, key: bytes) -> int:
        """Where in a name the label directly below the apex begins; below 0 when it has none."""
        start = len(key) - self._apex_octets
        at = -1
        end = 0
        while end < start:
            at = end
            end += key[end] + 1
        return at


def _link(counts: Counts, below: bytes, top: bytes) -> None:
    """One more child at `below`; it and what is above it, up to `top`, are new or get one more."""
    while True:
        counts[below] = counts.get(below, 0) + 1
        if len(below) <= len(top):
            return
        below = below[below[0] + 1 :]


def _unlink(counts: Counts, below: bytes, top: bytes) -> None:
    while True:
        left = counts[below] - 1
        if left:
            counts[below] = left
        else:
            del counts[below]
        if len(below) <= len(top):
            return
        below = below[below[0] + 1 :]


def _counts(held: bytes | Counts) -> Counts:
    return _unpacked(held) if isinstance(held, bytes) else held


@lru_cache(_SHAPES)
def _unpacked(shape: bytes) -> Counts:
    """Not to be changed. A shape: for each name its length and its count, an octet each, then the relative name."""
    counts: Counts = {}
    position = 0
    while position < len(shape):
        start = position + 2
        end = start + shape[position]
        counts[shape[start:end]] = shape[position + 1]
        position = end
    return counts


def _packed(counts: Counts) -> bytes | None:
    parts: list[bytes] = []
    for name, count in sorted(counts.items()):
        if count > MAX_SHARED:
            return None
        parts += (bytes((len(name), count)), name)
    shape = b"".join(parts)
    return shape if len(shape) <= MAX_SHARED else None


@lru_cache(_SHAPES)
def _linked(shape: bytes, below: bytes, top: bytes) -> bytes | None:
    """What it becomes: one object for all members that become so. None when it is more than a shape holds."""
    counts = _unpacked(shape).copy()
    _link(counts, below, top)
    made = _packed(counts)
    return None if made is None else _one(made)


@lru_cache(_SHAPES)
def _shape_of(parents: tuple[bytes, ...]) -> tuple[bytes, frozenset[bytes]]:
    """What a member becomes by names with these parents of which none has children, and the names above them.

    No shape when it is more than one holds.
    """
    counts: Counts = {}
    for below in parents:
        top = below
        while top and top not in counts:
            top = top[top[0] + 1 :]
        _link(counts, below, top)
    made = _packed(counts)
    return (b"" if made is None else _one(made)), frozenset(counts)


@lru_cache(_SHAPES)
def _unlinked(shape: bytes, below: bytes, top: bytes) -> bytes:
    counts = _unpacked(shape).copy()
    _unlink(counts, below, top)
    made = _packed(counts)
    assert made is not None
    return _one(made)


@lru_cache(_SHAPES)
def _one(shape: bytes) -> bytes:
    """The one object of all equal shapes."""
    return shape
