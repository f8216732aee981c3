"""Requests and answers of the fast path as octets: see `fastpath`, which counts both from octet 2 on. Pure."""

from typing import Final

from protocol.constants import HEADER_OCTETS, MAX_NAME_OCTETS, EdnsOption
from protocol.edns import Opt
from protocol.name import is_at_or_below
from server.reply import UDP_PAYLOAD

PLAIN_UDP: Final = 512
NAME_AT: Final = HEADER_OCTETS - 2
COUNTS_PLAIN: Final = bytes.fromhex("0001 0000 0000 0000")
COUNTS_EDNS: Final = bytes.fromhex("0001 0000 0000 0001")
NOT_PLAIN: Final = 0xF8  # QR and opcode, in the first octet of the flags; its AA and TC mean nothing in a query
RD: Final = 0x01
IN: Final = b"\x00\x01"
OPT_HEAD: Final = b"\x00\x00\x29"
OPT_FIXED: Final = 11
OPT_REPLIES: Final = (
    Opt(UDP_PAYLOAD, 0, 0, False).encode(),
    Opt(UDP_PAYLOAD, 0, 0, True).encode(),
)
# Options that make an answer another one; and an OPT's end that is a cookie alone: client's, client's and server's.
TELLING: Final = (EdnsOption.LLQ.to_bytes(2, "big"), EdnsOption.COOKIE.to_bytes(2, "big"))
CLIENT_COOKIE: Final = bytes.fromhex("000c 000a 0008")
WHOLE_COOKIE: Final = bytes.fromhex("001c 000a 0018")
BADCOOKIE: Final = 7  # the part of 23 that stands in the header
POINTERS: Final = tuple((0xC000 | at).to_bytes(2, "big") for at in range(HEADER_OCTETS + MAX_NAME_OCTETS))


def apex_owner(key: bytes, end: int, apex: bytes) -> bytes:
    """The apex as owner name, compressed against the question's, letter case told apart."""
    suffix = key[end - len(apex) : end]
    start = 0
    while apex[start]:
        if suffix[start:] == apex[start:]:
            return apex[:start] + POINTERS[end - len(apex) + start + 2]
        start += apex[start] + 1
    return apex


def compressed(name: bytes, question: bytes) -> bytes:
    """A name after the question's, its longest suffix that stands there too, in the same case, as a pointer."""
    at = 0
    while name[at]:
        rest = name[at:]
        if question.endswith(rest) and is_at_or_below(question, rest):
            return name[:at] + POINTERS[HEADER_OCTETS + len(question) - len(rest)]
        at += name[at] + 1
    return name


def shareable_question(key: bytes) -> tuple[bytes, int] | None:
    """(key without EDNS options, where QTYPE begins) of a message whose reply may be shared; None for any other."""
    end = NAME_AT
    size = len(key)
    if size < NAME_AT + 5 or key[0] & NOT_PLAIN:
        return None
    while key[end]:
        if key[end] > 63:
            return None
        end += key[end] + 1
        if end >= size:
            return None
    end += 1
    after = end + 4
    if key[end + 2 : after] != IN:
        return None
    counts = key[2:NAME_AT]
    if counts == COUNTS_PLAIN:
        return (key, end) if size == after else None
    fixed = after + OPT_FIXED
    if counts != COUNTS_EDNS or size < fixed or key[after : after + 3] != OPT_HEAD or key[after + 6]:
        return None
    options = key[fixed - 2] << 8 | key[fixed - 1]
    if size != fixed + options or not has_harmless_options(key, fixed):
        return None
    return key[: fixed - 2] + b"\x00\x00", end


def shortened(answer: bytes) -> bytes:
    """A truncated answer, or BADCOOKIE where it carries a cookie: header, question and OPT, no records."""
    after = NAME_AT
    while answer[after]:
        after += answer[after] + 1
    after += 5
    rd = answer[0] & RD
    if answer[-30:-24] == WHOLE_COOKIE:
        head = bytes((0x80 | rd, BADCOOKIE)) + COUNTS_EDNS
        return head + answer[NAME_AT:after] + answer[-39:-34] + b"\x01" + answer[-33:]
    has_opt = answer.endswith(OPT_REPLIES)
    head = bytes((0x82 | rd, 0)) + (COUNTS_EDNS if has_opt else COUNTS_PLAIN)
    return head + answer[NAME_AT:after] + (answer[-OPT_FIXED:] if has_opt else b"")


def has_harmless_options(key: bytes, position: int) -> bool:
    """Whether the options from `position` to the end are well formed and none of them makes another answer."""
    end = len(key)
    while position < end:
        if position + 4 > end or key[position : position + 2] in TELLING:
            return False
        position += 4 + (key[position + 2] << 8 | key[position + 3])
    return position == end
