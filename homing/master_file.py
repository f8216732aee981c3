"""Master files (RFC 1035 §5, RFC 2308 §4, RFC 3597 §5): read as a stream, one record at a time, and written.

Pure: lines in, records out. Memory is bounded by the longest record allowed, whatever the size of the file.
$GENERATE is refused, and $INCLUDE unless the caller says how to open files: a file says all that is in it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from protocol.constants import Type, is_meta_type
from protocol.name import fold, is_at_or_below, to_text
from protocol.rdata import soa_minimum
from server.rdata_text import is_seconds, name_from, rdata_from, rdata_text, seconds, type_name, type_number
from server.zone.model import RR
from server.zone.update import MAX_RDATA_OCTETS

MAX_RECORD_OCTETS: Final = 512 * 1024  # of text: 65,535 octets of rdata, each as \DDD, are a quarter of a megabyte
MAX_INCLUDES: Final = 8  # files within each other
Include = Callable[[str], Iterable[bytes]]
_SPECIAL: Final = re.compile(r'["();\\]')
_OTHER_CLASSES: Final = frozenset(("CH", "CS", "HS", "NONE", "ANY"))
_TOKEN: Final = re.compile(
    r'[ \t\r\n\f\v]+|;[^\n]*|"((?:[^"\\\n]|\\.)*)"|([()])|((?:[^ \t\r\n\f\v"();\\]|\\[^\n]|(?<==)"(?:[^"\\\n]|\\.)*")+)'
)


class Record(NamedTuple):
    """A record and the line on which it begins, from 1."""

    line: int
    rr: RR


class Problem(NamedTuple):
    """What is wrong, and the line. A warning does not keep the file from being taken."""

    line: int
    text: str
    is_warning: bool = False


class _Wrong(Exception):
    pass


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of a file; one that is too long comes in pieces, of which the parser refuses the first."""
    while line := stream.readline(MAX_RECORD_OCTETS + 1):
        yield line


class Parser:
    """Reads one file. `origin` is the zone's name, folded or not; names outside it are problems.

    `include` gives the lines of a file that $INCLUDE names; its `OSError` is a problem on that line.
    """

    def __init__(self, origin: bytes, include: Include | None = None) -> None:
        self._zone = fold(origin)
        self._origin = origin
        self._owner: bytes | None = None
        self._owner_token = ""
        self._ttl: int | None = None  # of the last record that said one
        self._default_ttl: int | None = None  # $TTL
        self._include = include
        self._depth = 0

    def read(self, lines: Iterable[bytes]) -> Iterator[Record | Problem]:
        """What is in the file, in its order. After a problem it goes on with the next record."""
        tokens: list[str] = []
        depth = size = first = 0
        is_blank_owner = False
        number = 0
        for raw in lines:
            number += 1
            text = raw.decode("latin-1")  # each octet one letter; what is not ASCII is fine in strings only
            if not depth:
                first, size, tokens = number, 0, []
                is_blank_owner = text[:1] in (" ", "\t")
            size += len(text)
            try:
                if size > MAX_RECORD_OCTETS:
                    depth = 0
                    raise _Wrong(f"a record longer than {MAX_RECORD_OCTETS} octets")
                if _SPECIAL.search(text):
                    depth = self._tokens(text, tokens, depth)
                else:
                    tokens += text.split()
                if depth or not tokens:
                    continue
                if tokens[0].upper() == "$INCLUDE" and not is_blank_owner:
                    yield from self._included(first, tokens)
                    continue
                record = self._entry(tokens, is_blank_owner)
            except (_Wrong, ValueError) as error:
                depth = 0
                yield Problem(first if size <= MAX_RECORD_OCTETS else number, str(error))
                continue
            if record is not None:
                yield Record(first, record)
        if depth:
            yield Problem(first, "a parenthesis is not closed")

    def _included(self, line: int, tokens: list[str]) -> Iterator[Record | Problem]:
        """The records of another file, as if they stood on this line. Its origin and owner end with it (RFC 1035 §5.1).

        What is wrong in it is told with its own line.
        """
        if self._include is None:
            raise _Wrong("$INCLUDE is refused: put what it makes into the file, or say --include")
        if len(tokens) not in (2, 3):
            raise _Wrong("$INCLUDE wants a file, and perhaps an origin")
        if self._depth == MAX_INCLUDES:
            raise _Wrong(f"$INCLUDE within {MAX_INCLUDES} others: does a file include itself?")
        name = tokens[1].removeprefix('"')
        before = self._origin, self._owner, self._owner_token
        if len(tokens) == 3:
            self._origin = name_from(tokens[2], self._origin)
        self._depth += 1
        try:
            for item in self.read(self._include(name)):
                if isinstance(item, Problem):
                    yield Problem(line, f"{name[:80]}:{item.line}: {item.text}", item.is_warning)
                else:
                    yield Record(line, item.rr)
        except OSError as error:
            raise _Wrong(f"cannot read {name[:80]!a}: {error.strerror or error}") from None
        finally:
            self._depth -= 1
            self._origin, self._owner, self._owner_token = before

    @staticmethod
    def _tokens(text: str, tokens: list[str], depth: int) -> int:
        """Take a line apart; the number of parentheses open after it."""
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                what = (
                    "a quotation mark is not closed" if text[position] == '"' else "a backslash with nothing after it"
                )
                raise _Wrong(what)
            position = match.end()
            string, parenthesis, word = match.groups()
            if word is not None:
                tokens.append(word)
            elif string is not None:
                tokens.append('"' + string)
            elif parenthesis == "(":
                depth += 1
            elif parenthesis == ")":
                depth -= 1
                if depth < 0:
                    raise _Wrong("a parenthesis is closed that was not opened")
        return depth

    def _entry(self, tokens: list[str], is_blank_owner: bool) -> RR | None:
        if tokens[0][0] == "$" and not is_blank_owner:
            self._directive(tokens)
            return None
        position = 0
        if not is_blank_owner:
            token = tokens[0]
            if token != self._owner_token or self._owner is None:
                self._owner_token, self._owner = token, None  # what follows a wrong owner is not another's
                self._owner = name_from(token, self._origin)
            position = 1
        owner = self._owner
        if owner is None:
            raise _Wrong("there is no owner name before this record")
        rtype, ttl, position = self._type(tokens, position)
        if is_meta_type(rtype):
            raise _Wrong(f"{type_name(rtype)} is no type of data")
        rdata = rdata_from(rtype, tokens[position:], self._origin)
        if len(rdata) > MAX_RDATA_OCTETS:
            raise _Wrong("rdata too long for any answer")
        if not is_at_or_below(fold(owner), self._zone):
            raise _Wrong(f"{to_text(owner)} is outside the zone {to_text(self._zone)}")
        if rtype == Type.SOA and fold(owner) != self._zone:
            raise _Wrong(f"an SOA belongs to {to_text(self._zone)} only")
        if ttl is not None:
            self._ttl = ttl
        elif self._default_ttl is not None:
            ttl = self._default_ttl
        elif self._ttl is not None:
            ttl = self._ttl
        elif rtype == Type.SOA:
            self._ttl = ttl = soa_minimum(rdata)
        else:
            raise _Wrong("no TTL here, before, or by $TTL")
        return RR(owner, rtype, ttl, rdata)

    @staticmethod
    def _type(tokens: list[str], position: int) -> tuple[int, int | None, int]:
        """Class and TTL in either order, then the type; the position after it."""
        ttl: int | None = None
        has_class = False
        while position < len(tokens):
            token = tokens[position]
            position += 1
            if ttl is None and is_seconds(token):
                ttl = seconds(token)
                continue
            upper = token.upper()
            if not has_class and upper in ("IN", "CLASS1"):
                has_class = True
                continue
            if upper in _OTHER_CLASSES or (upper.startswith("CLASS") and upper[5:].isdigit()):
                raise _Wrong(f"class {upper[:20]}: only IN is served")
            return type_number(token), ttl, position
        raise _Wrong("a type is missing")

    def _directive(self, tokens: list[str]) -> None:
        word = tokens[0].upper()
        if word == "$GENERATE":
            raise _Wrong("$GENERATE is refused: put what it makes into the file")
        if word not in ("$ORIGIN", "$TTL"):
            raise _Wrong(f"{tokens[0][:40]!a} is no directive")
        if len(tokens) != 2:
            raise _Wrong(f"{word} wants one value")
        if word == "$TTL":
            self._default_ttl = seconds(tokens[1])
        else:
            self._origin = name_from(tokens[1], self._origin)
            self._owner_token = ""  # the same word is another name now


def record_text(owner: bytes, ttl: int, rtype: int, rdata: bytes) -> str:
    """One record as a line, without its end: owner, TTL, class, type, rdata between tabs."""
    return f"{to_text(owner)}\t{ttl}\tIN\t{type_name(rtype)}\t{rdata_text(rtype, rdata)}"
