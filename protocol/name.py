"""Domain names as uncompressed wire octets (RFC 1035 §3.1, §4.1.4).

A name is `bytes`: length-prefixed labels ending in the root label, case as received. Comparison uses `fold`, which is
`bytes.lower`: a label length is at most 63 and 'A' is 65, so lowering the whole name never touches a length octet.
"""

from collections.abc import Iterator
from typing import Final

from protocol.constants import MAX_LABEL_OCTETS, MAX_NAME_OCTETS
from protocol.errors import DecodeError

ROOT: Final = b"\x00"
# What each octet of a label is written as.
_TEXT: Final = tuple(
    f"\\{chr(octet)}" if octet in b'.\\"();@$' else chr(octet) if 0x21 <= octet <= 0x7E else f"\\{octet:03d}"
    for octet in range(256)
)
# A name has at most 127 labels, so an honest sender has no use for more. Without this bound a message that is one long
# chain of pointers costs thousands of steps for every name that points at its end.
MAX_POINTERS: Final = 127

# Offset a pointer aims at -> (the name read from there, pointers followed on the way).
Suffixes = dict[int, tuple[bytes, int]]


def read_name(message: bytes, offset: int, suffixes: Suffixes | None = None) -> tuple[bytes, int]:
    """Read a possibly compressed name: (uncompressed name, offset after it in the message).

    Every pointer must point before the label sequence it is met in (so no loop and no forward jump is possible),
    and the name may have 255 octets and 127 pointers. Label types 01 and 10 are errors.

    `suffixes`, kept by the caller for one message, remembers what was found behind each pointer: reading all names of a
    message then takes time linear in its size. It changes no result.
    """
    end = len(message)
    position = offset
    after = -1
    barrier = offset  # pointers must aim below the start of the sequence now being read
    pieces: list[bytes] = []
    size = 0
    jumps: list[tuple[int, int]] = []  # (target, octets of the name read before it)
    while True:
        if position >= end:
            raise DecodeError("name runs past the end", position)
        length = message[position]
        if length == 0:
            pieces.append(ROOT)
            after = position + 1 if after < 0 else after
            pointers = len(jumps)
            break
        if length <= MAX_LABEL_OCTETS:
            stop = position + 1 + length
            if stop > end:
                raise DecodeError("label runs past the end", position)
            size += length + 1
            if size >= MAX_NAME_OCTETS:
                raise DecodeError("name longer than 255 octets", offset)
            pieces.append(message[position:stop])
            position = stop
        elif length >= 0xC0:
            if position + 2 > end:
                raise DecodeError("compression pointer runs past the end", position)
            target = (length & 0x3F) << 8 | message[position + 1]
            if after < 0:
                after = position + 2
            if target >= barrier:
                raise DecodeError("compression pointer does not point backward", position)
            if len(jumps) == MAX_POINTERS:
                raise DecodeError("name with more than 127 compression pointers", offset)
            if suffixes is not None and target in suffixes:
                suffix, more = suffixes[target]
                pointers = len(jumps) + 1 + more
                if size + len(suffix) > MAX_NAME_OCTETS:
                    raise DecodeError("name longer than 255 octets", offset)
                if pointers > MAX_POINTERS:
                    raise DecodeError("name with more than 127 compression pointers", offset)
                pieces.append(suffix)
                break
            jumps.append((target, size))
            barrier = position = target
        else:
            raise DecodeError("label type is not defined", position)
    name = b"".join(pieces) if len(pieces) > 1 else pieces[0]
    if suffixes is not None:
        for index, (target, before) in enumerate(jumps, start=1):
            suffixes[target] = name[before:], pointers - index
    return name, after


def fold(name: bytes) -> bytes:
    """The form to compare and index by: ASCII letters lowered (RFC 4343)."""
    return name.lower()


def label_starts(name: bytes) -> Iterator[int]:
    """Offsets of each label and, last, of the root label."""
    position = 0
    while name[position]:
        yield position
        position += name[position] + 1
    yield position


def parent(name: bytes) -> bytes:
    """The name without its first label; the root's parent is the root."""
    return name[name[0] + 1 :] if name[0] else name


def name_at(octets: bytes, start: int) -> bytes:
    """The uncompressed name at `start` of octets that may go on behind it; b"" when there is no whole one."""
    position = start
    while position < len(octets) and 0 < octets[position] <= MAX_LABEL_OCTETS:
        position += octets[position] + 1
    if position >= len(octets) or octets[position] or position - start >= MAX_NAME_OCTETS:
        return b""
    return octets[start : position + 1]


def label_count(name: bytes) -> int:
    """Number of labels, the root label not counted."""
    return sum(1 for _ in label_starts(name)) - 1


def is_at_or_below(name: bytes, ancestor: bytes) -> bool:
    """Whether folded `name` equals folded `ancestor` or lies below it, cut at label boundaries."""
    if not name.endswith(ancestor):
        return False
    boundary = len(name) - len(ancestor)
    position = 0
    while position < boundary:
        position += name[position] + 1
    return position == boundary


def to_text(name: bytes) -> str:
    """Presentation form with a final dot; octets that are not plain are escaped (RFC 4343 §2.1): safe to log."""
    if name == ROOT:
        return "."
    out: list[str] = []
    position = 0
    while name[position]:
        stop = position + 1 + name[position]
        out += map(_TEXT.__getitem__, name[position + 1 : stop])
        out.append(".")
        position = stop
    return "".join(out)


def from_text(text: str) -> bytes:
    """Wire form of a presentation name, taken as absolute with or without the final dot.

    `ValueError` for empty labels, labels over 63 octets, names over 255 octets, bad escapes and non-ASCII letters.
    """
    if text in (".", ""):
        return ROOT
    labels: list[bytes] = []
    label = bytearray()
    position = 0
    while position < len(text):
        char = text[position]
        if char == "\\":
            digits = text[position + 1 : position + 4]
            if len(digits) == 3 and digits.isascii() and digits.isdigit():
                if int(digits) > 255:
                    raise ValueError(f"escape above 255 in name {text!r}")
                label.append(int(digits))
                position += 4
                continue
            if position + 1 >= len(text):
                raise ValueError(f"name {text!r} ends in a backslash")
            position += 1
            char = text[position]
            if char.isascii() and char.isdigit():
                raise ValueError(f"escape of fewer than three digits in name {text!r}")
        elif char == ".":
            labels.append(bytes(label))
            label.clear()
            position += 1
            continue
        if not char.isascii():
            raise ValueError(f"name {text!r} has a letter outside ASCII (use its xn-- form)")
        label.append(ord(char))
        position += 1
    if label:
        labels.append(bytes(label))
    for item in labels:
        if not item:
            raise ValueError(f"empty label in name {text!r}")
        if len(item) > MAX_LABEL_OCTETS:
            raise ValueError(f"label longer than 63 octets in name {text!r}")
    name = b"".join(bytes((len(item),)) + item for item in labels) + ROOT
    if len(name) > MAX_NAME_OCTETS:
        raise ValueError(f"name longer than 255 octets: {text[:40]!r}...")
    return name


def canonical_key(name: bytes) -> tuple[bytes, ...]:
    """Sort key of canonical order: labels from the root down, folded (RFC 4034 §6.1)."""
    lowered = fold(name)
    return tuple(lowered[start + 1 : start + 1 + lowered[start]] for start in label_starts(lowered))[-2::-1]
