"""Rdata: names inside it made whole, its form checked, its canonical form for comparison.

Types of RFC 1035 and those RFC 3597 §4 lists may carry compressed names; we read compression in all of them and write
none. A type not described here is opaque octets (RFC 3597 §3).
"""

from typing import Final

from protocol.constants import Type
from protocol.errors import DecodeError
from protocol.name import fold, read_name

# Each field: an int is that many fixed octets, "n" a domain name, "s" a character-string, "S" one or more of them,
# "*" the rest (may be empty).
_FORMS: Final[dict[int, tuple[int | str, ...]]] = {
    Type.A: (4,),
    Type.NS: ("n",),
    Type.MD: ("n",),
    Type.MF: ("n",),
    Type.CNAME: ("n",),
    Type.SOA: ("n", "n", 20),
    Type.MB: ("n",),
    Type.MG: ("n",),
    Type.MR: ("n",),
    Type.WKS: (5, "*"),
    Type.PTR: ("n",),
    Type.HINFO: ("s", "s"),
    Type.MINFO: ("n", "n"),
    Type.MX: (2, "n"),
    Type.TXT: ("S",),
    Type.RP: ("n", "n"),
    Type.AFSDB: (2, "n"),
    Type.RT: (2, "n"),
    Type.SIG: (18, "n", "*"),
    Type.PX: (2, "n", "n"),
    Type.AAAA: (16,),
    Type.NXT: ("n", "*"),
    Type.SRV: (6, "n"),
    Type.NAPTR: (4, "s", "s", "s", "n"),
    Type.KX: (2, "n"),
    Type.DNAME: ("n",),
}
_NAMELESS_FIXED: Final = {Type.A: 4, Type.AAAA: 16}


def _walk(rtype: int, message: bytes, offset: int, length: int, *, folded: bool) -> bytes:
    end = offset + length
    position = offset
    out: list[bytes] = []
    for field in _FORMS[rtype]:
        if field == "n":
            name, position = read_name(message, position)
            out.append(fold(name) if folded else name)
        elif field == "*":
            out.append(message[position:end])
            position = end
        elif field in ("s", "S"):
            while True:
                stop = position + 1 + (message[position] if position < end else 0)
                if position >= end or stop > end:
                    raise DecodeError("character-string runs past the rdata", position)
                out.append(message[position:stop])
                position = stop
                if field == "s" or position == end:
                    break
        else:
            stop = position + int(field)
            out.append(message[position:stop])
            position = stop
        if position > end:
            raise DecodeError("rdata is shorter than its type needs", offset)
    if position != end:
        raise DecodeError("rdata is longer than its type needs", position)
    return b"".join(out)


def expand(rtype: int, message: bytes, offset: int, length: int) -> bytes:
    """Rdata at `offset` with names uncompressed and case kept; `DecodeError` when it lacks the form of its type."""
    if rtype in _FORMS:
        fixed = _NAMELESS_FIXED.get(rtype)  # type: ignore[call-overload]  # plain ints look up IntEnum keys
        if fixed is None:
            return _walk(rtype, message, offset, length, folded=False)
        if length != fixed:
            raise DecodeError("rdata has not the length of its type", offset)
    return message[offset : offset + length]


def canonical(rtype: int, rdata: bytes) -> bytes:
    """Form to compare by: names folded. `rdata` is uncompressed and well formed (RFC 4034 §6.2, RFC 2136 §1.1.1)."""
    form = _FORMS.get(rtype)
    if form is None or "n" not in form:
        return rdata
    if form == ("n",):
        return rdata.lower()
    return _walk(rtype, rdata, 0, len(rdata), folded=True)


def has_name(rtype: int) -> bool:
    """Whether rdata of this type holds a domain name that compares without case."""
    form = _FORMS.get(rtype)
    return form is not None and "n" in form


def soa_serial(rdata: bytes) -> int:
    """SERIAL of an uncompressed SOA rdata."""
    return int.from_bytes(rdata[-20:-16], "big")


def soa_with_serial(rdata: bytes, serial: int) -> bytes:
    return rdata[:-20] + serial.to_bytes(4, "big") + rdata[-16:]


def soa_minimum(rdata: bytes) -> int:
    """MINIMUM of an uncompressed SOA rdata: the TTL of negative answers, capped by the SOA's own (RFC 2308 §4)."""
    return int.from_bytes(rdata[-4:], "big")
