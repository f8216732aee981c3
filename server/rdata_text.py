"""Rdata between its wire form and the text of master files, both ways (RFC 1035 §5.1, RFC 3597 §5, RFC 9460 §2.1).

Pure. One row per type says how its fields are written. dnslib reads and writes LOC; the rest is our own: dnslib 0.9.26
splits SRV targets at escaped dots, leaves escapes in TXT as they are, and orders no SvcParams. A type without a row has
only the generic form, `\\# length hex`, which every type may have.

Tokens come from `homing.master_file`: a quoted one begins with `"`, and escapes are still in them.
"""

import base64
import binascii
import re
import socket
import struct
from calendar import timegm
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from dnslib import LOC, DNSBuffer

from protocol.constants import MAX_NAME_OCTETS, Type, type_from_text, type_text
from protocol.errors import DecodeError
from protocol.name import ROOT, from_text, read_name, to_text
from protocol.rdata import expand

MAX_TTL: Final = 0x7FFFFFFF  # RFC 2181 §8
_MORE_TYPES: Final = {
    "NULL": 10,
    "LOC": 29,
    "SMIMEA": 53,
    "OPENPGPKEY": 61,
    "ZONEMD": 63,
    "SPF": 99,
    "URI": 256,
    "DLV": 32769,
}
_MORE_NAMES: Final = {number: name for name, number in _MORE_TYPES.items()}
_LOC: Final = _MORE_TYPES["LOC"]
_SVCB: Final = "svcb"

# Fields: n name, 1 2 4 unsigned of so many octets, T seconds (units allowed), a IPv4, 6 IPv6, s character-string,
# S one or more of them, v the rest as one string, c a tag, h hex to the end, b base64 to the end, t a type mnemonic,
# d a date of RRSIG, x salt of NSEC3 ("-" for none), 3 base32hex with its length, B type bit maps.
_DIGEST: Final = "211h"
_KEY: Final = "211b"
_FORMS: Final[dict[int, str]] = {
    Type.A: "a",
    Type.NS: "n",
    Type.MD: "n",
    Type.MF: "n",
    Type.CNAME: "n",
    Type.SOA: "nn4TTTT",
    Type.MB: "n",
    Type.MG: "n",
    Type.MR: "n",
    Type.PTR: "n",
    Type.HINFO: "ss",
    Type.MINFO: "nn",
    Type.MX: "2n",
    Type.TXT: "S",
    Type.RP: "nn",
    Type.AFSDB: "2n",
    Type.RT: "2n",
    Type.SIG: "t114dd2nb",
    Type.KEY: _KEY,
    Type.PX: "2nn",
    Type.AAAA: "6",
    Type.SRV: "222n",
    Type.NAPTR: "22sssn",
    Type.KX: "2n",
    Type.DNAME: "n",
    Type.DS: _DIGEST,
    Type.SSHFP: "11h",
    Type.RRSIG: "t114dd2nb",
    Type.NSEC: "nB",
    Type.DNSKEY: _KEY,
    Type.DHCID: "b",
    Type.NSEC3: "112x3B",
    Type.NSEC3PARAM: "112x",
    Type.TLSA: "111h",
    _MORE_TYPES["SMIMEA"]: "111h",
    Type.CDS: _DIGEST,
    Type.CDNSKEY: _KEY,
    _MORE_TYPES["OPENPGPKEY"]: "b",
    _MORE_TYPES["ZONEMD"]: "411h",
    _MORE_TYPES["SPF"]: "S",
    _MORE_TYPES["URI"]: "22v",
    Type.CAA: "1cv",
    _MORE_TYPES["DLV"]: _DIGEST,
}
_SIZES: Final = {"1": 1, "2": 2, "4": 4, "T": 4}
_TIME_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TIME: Final = re.compile(r"(?:[0-9]{1,10}[smhdwSMHDW])+")
_TIME_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_SVC_KEYS: Final = ("mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint", "dohpath")
_MANDATORY, _ALPN, _NO_DEFAULT_ALPN, _PORT, _IPV4HINT, _ECH, _IPV6HINT, _DOHPATH = range(8)
_SVC_UNESCAPED: Final = (_MANDATORY, _PORT, _IPV4HINT, _IPV6HINT)  # values without escape sequences (RFC 9460 §7.2)
_BASE32_PLAIN: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_BASE32_HEX: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
_TO_HEX: Final = str.maketrans(_BASE32_PLAIN, _BASE32_HEX)
_FROM_HEX: Final = str.maketrans(_BASE32_HEX, _BASE32_PLAIN)


# --- types and times ---


def type_name(rtype: int) -> str:
    """The mnemonic that master files know, or TYPEnnn."""
    return _MORE_NAMES.get(rtype) or type_text(rtype)


def type_number(text: str) -> int:
    """The type of a mnemonic or TYPEnnn; `ValueError` for anything else."""
    more = _MORE_TYPES.get(text.upper())
    return type_from_text(text) if more is None else more


def is_seconds(text: str) -> bool:
    """Whether a token is a TTL: digits, or BIND's form with units such as 1h30m."""
    return (text.isascii() and text.isdigit()) or _TIME.fullmatch(text) is not None


def seconds(text: str) -> int:
    """A time in seconds; `ValueError` when it is none or above 2^31-1 (RFC 2181 §8)."""
    if text.isascii() and text.isdigit():
        value = int(text[:20])
    elif _TIME.fullmatch(text):
        value = sum(int(number) * _TIME_UNITS[unit] for number, unit in _TIME_PART.findall(text.lower()))
    else:
        raise ValueError(f"{_shown(text)} is not a time in seconds")
    if value > MAX_TTL:
        raise ValueError(f"{_shown(text)} is more than {MAX_TTL} seconds")
    return value


# --- names ---


def name_from(token: str, origin: bytes) -> bytes:
    """The wire form of a name as written: `@`, relative to `origin`, or ended by a dot."""
    if token[:1] == '"':
        raise ValueError("a name stands without quotation marks")
    if token == "@":  # noqa: S105  # a sign of master files, no secret
        return origin
    if token == ".":  # noqa: S105
        return ROOT
    if token.endswith("."):
        backslashes = len(token) - 1 - len(token[:-1].rstrip("\\"))
        is_absolute = backslashes % 2 == 0
    else:
        is_absolute = False
    if "\\" in token or not token.isascii():
        name = from_text(token)
    else:
        labels = token.encode().split(b".")
        if is_absolute:
            labels.pop()
        if b"" in labels or max(map(len, labels)) > 63:
            from_text(token)  # says what is wrong
            raise ValueError(f"{_shown(token)} is not a name")
        name = b"".join([bytes((len(label),)) + label for label in labels]) + ROOT
    if not is_absolute:
        name = name[:-1] + origin
    if len(name) > MAX_NAME_OCTETS:
        raise ValueError(f"name longer than 255 octets: {_shown(token)}")
    return name


# --- from text ---


def rdata_from(rtype: int, tokens: Sequence[str], origin: bytes) -> bytes:
    """Wire rdata of the tokens after the type; `ValueError` in one plain sentence when they are not of that type."""
    if tokens and tokens[0] == "\\#":
        return _generic(rtype, tokens[1:])
    if rtype == Type.A and len(tokens) == 1:
        return _address(socket.AF_INET, tokens[0])
    if rtype in (Type.SVCB, Type.HTTPS):
        return _svcb_from(tokens, origin)
    if rtype == _LOC:
        return _loc_from(tokens)
    form = _FORMS.get(rtype)
    if form is None:
        raise ValueError(f"type {type_name(rtype)} is only read in the form \\# LENGTH HEX (RFC 3597)")
    out: list[bytes] = []
    position = 0
    for field in form:
        if field in "Svhb" or field == "B":
            out.append(_REST[field](tokens[position:]))
            position = len(tokens)
            continue
        if position >= len(tokens):
            raise ValueError(f"rdata of {type_name(rtype)} is incomplete")
        token = tokens[position]
        position += 1
        if field == "n":
            out.append(name_from(token, origin))
        elif field == "T":
            out.append(seconds(token).to_bytes(4, "big"))
        elif field in _SIZES:
            out.append(_number(token, _SIZES[field]))
        else:
            out.append(_ONE[field](token))
    if position < len(tokens):
        raise ValueError(f"rdata of {type_name(rtype)} has more than it should: {_shown(tokens[position])}")
    return _checked(rtype, b"".join(out))


def _checked(rtype: int, rdata: bytes) -> bytes:
    if len(rdata) > 65535:
        raise ValueError("rdata has more than 65,535 octets")
    try:
        is_same = expand(rtype, rdata, 0, len(rdata)) == rdata
    except DecodeError as error:
        raise ValueError(f"rdata of {type_name(rtype)}: {error.reason}") from None
    if not is_same:
        raise ValueError(f"rdata of {type_name(rtype)} has a compressed name")
    return rdata


def _generic(rtype: int, tokens: Sequence[str]) -> bytes:
    """RFC 3597 §5."""
    if not tokens or not (tokens[0].isascii() and tokens[0].isdigit()):
        raise ValueError("\\# wants a length and as many octets in hex")
    rdata = _hex(tokens[1:])
    if len(rdata) != int(tokens[0][:20]):
        raise ValueError(f"\\# says {tokens[0][:20]} octets and {len(rdata)} follow")
    return _checked(rtype, rdata)


def octets(token: str) -> bytes:
    """What a token stands for, escapes undone, without its quotation marks (RFC 1035 §5.1)."""
    text = token[1:] if token[:1] == '"' else token
    if "\\" not in text:
        return text.encode("latin-1")
    out = bytearray()
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\":
            digits = text[position : position + 3]
            if len(digits) == 3 and digits.isascii() and digits.isdigit():
                if int(digits) > 255:
                    raise ValueError(f"escape \\{digits} is above 255")
                out.append(int(digits))
                position += 3
                continue
            char = text[position : position + 1]
            if not char or char.isdigit():
                raise ValueError("a backslash wants three digits or one other character after it")
            position += 1
        out.append(ord(char))
    return bytes(out)


def _string(token: str) -> bytes:
    value = octets(token)
    if len(value) > 255:
        raise ValueError(f"a string has {len(value)} octets, 255 are the most")
    return bytes((len(value),)) + value


def _strings(tokens: Sequence[str]) -> bytes:
    if not tokens:
        raise ValueError("a string is missing")
    return b"".join(map(_string, tokens))


def _value(tokens: Sequence[str]) -> bytes:
    if len(tokens) != 1:
        raise ValueError("one value is wanted, in quotation marks if it has spaces")
    return octets(tokens[0])


def _tag(token: str) -> bytes:
    if not (token.isascii() and token.isalnum() and len(token) < 256):
        raise ValueError(f"{_shown(token)} is not a tag of letters and digits")
    return bytes((len(token),)) + token.encode()


def _number(token: str, size: int) -> bytes:
    if not (token.isascii() and token.isdigit()):
        raise ValueError(f"{_shown(token)} is not a number")
    value = int(token[:20])
    if value >= 1 << 8 * size:
        raise ValueError(f"{_shown(token)} is more than {(1 << 8 * size) - 1}")
    return value.to_bytes(size, "big")


def _address(family: int, token: str) -> bytes:
    try:
        return socket.inet_pton(family, token)
    except (OSError, ValueError):
        kind = "an IPv4" if family == socket.AF_INET else "an IPv6"
        raise ValueError(f"{_shown(token)} is not {kind} address") from None


def _hex(tokens: Sequence[str]) -> bytes:
    try:
        return binascii.unhexlify("".join(tokens))
    except ValueError:
        raise ValueError("not an even number of hex digits") from None


def _base64(tokens: Sequence[str]) -> bytes:
    try:
        return base64.b64decode("".join(tokens), validate=True)
    except ValueError:
        raise ValueError("not base64") from None


def _salt(token: str) -> bytes:
    value = b"" if token == "-" else _hex([token])  # noqa: S105
    if len(value) > 255:
        raise ValueError("the salt is longer than 255 octets")
    return bytes((len(value),)) + value


def _base32(token: str) -> bytes:
    text = token.upper()
    if not text or len(text) > 255 or set(text) - set(_BASE32_HEX):
        raise ValueError(f"{_shown(token)} is not base32hex")
    try:
        value = base64.b32decode(text.translate(_FROM_HEX) + "=" * (-len(text) % 8))
    except ValueError:
        raise ValueError(f"{_shown(token)} is not base32hex") from None
    return bytes((len(value),)) + value


def _date(token: str) -> bytes:
    """YYYYMMDDHHmmSS, or seconds since 1970 (RFC 4034 §3.2)."""
    if len(token) != 14:
        return _number(token, 4)
    try:
        moment = datetime.strptime(token, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{_shown(token)} is not a date of the form YYYYMMDDHHmmSS") from None
    return (timegm(moment.utctimetuple()) & 0xFFFFFFFF).to_bytes(4, "big")


def _bitmaps(tokens: Sequence[str]) -> bytes:
    """RFC 4034 §4.1.2."""
    windows: dict[int, bytearray] = {}
    for token in tokens:
        number = type_number(token)
        window = windows.setdefault(number >> 8, bytearray(32))
        window[(number & 255) >> 3] |= 0x80 >> (number & 7)
    out = b""
    for index, window in sorted(windows.items()):
        bits = bytes(window).rstrip(b"\0")
        out += bytes((index, len(bits))) + bits
    return out


_ONE: Final[dict[str, Callable[[str], bytes]]] = {
    "a": lambda token: _address(socket.AF_INET, token),
    "6": lambda token: _address(socket.AF_INET6, token),
    "s": _string,
    "c": _tag,
    "t": lambda token: type_number(token).to_bytes(2, "big"),
    "d": _date,
    "x": _salt,
    "3": _base32,
}
_REST: Final[dict[str, Callable[[Sequence[str]], bytes]]] = {
    "S": _strings,
    "v": _value,
    "h": _hex,
    "b": _base64,
    "B": _bitmaps,
}


def _loc_from(tokens: Sequence[str]) -> bytes:
    """By dnslib, which takes the last character of a height for its `m`, so that it needs to be there (RFC 1876 §3)."""
    words = list(tokens)
    east = next((index for index, word in enumerate(words) if word.upper() in ("E", "W")), len(words))
    words = [word.upper() for word in words[: east + 1]] + [
        word.lower().removesuffix("m") + "m" for word in words[east + 1 :]
    ]
    buffer = DNSBuffer()
    try:
        LOC.fromZone(words).pack(buffer)
    except Exception:  # noqa: BLE001  # dnslib raises whatever its conversions raise
        raise ValueError("not a LOC: degrees [minutes [seconds]] N|S, the same E|W, height in metres") from None
    rdata = bytes(buffer.data)
    if len(rdata) != 16:
        raise ValueError("not a LOC")
    return rdata


# --- SVCB and HTTPS ---


def _svcb_from(tokens: Sequence[str], origin: bytes) -> bytes:
    """RFC 9460 §2.1, Appendix A. The tokenizer leaves `key="value"` in one token."""
    if len(tokens) < 2:
        raise ValueError("a priority and a target are wanted")
    out = [_number(tokens[0], 2), name_from(tokens[1], origin)]
    parameters: dict[int, bytes] = {}
    for token in tokens[2:]:
        word, has_value, value = token.partition("=")
        number = _svc_key(word)
        if number in parameters:
            raise ValueError(f"{_shown(word)} is there twice")
        text = value.replace('"', "", 1).removesuffix('"') if has_value else None
        is_by_number = word.lower() not in _SVC_KEYS  # then its octets are said, whatever the key (§2.1)
        parameters[number] = octets(text or "") if is_by_number else _svc_value(number, text)
    mandatory = parameters.get(_MANDATORY, b"")
    if len(mandatory) % 2:
        raise ValueError("mandatory wants numbers of 2 octets")
    for (number,) in struct.iter_unpack("!H", mandatory):
        if number not in parameters:
            raise ValueError(f"{_svc_name(number)} is mandatory and not there")
    if _NO_DEFAULT_ALPN in parameters and _ALPN not in parameters:
        raise ValueError("no-default-alpn wants alpn beside it")  # §7.1.1
    for number, wire in sorted(parameters.items()):
        out.append(struct.pack("!HH", number, len(wire)) + wire)
    return _checked(Type.SVCB, b"".join(out))


def _svc_key(word: str) -> int:
    if word.lower() in _SVC_KEYS:
        return _SVC_KEYS.index(word.lower())
    digits = word[3:]
    if word[:3].lower() == "key" and digits.isascii() and digits.isdigit():
        number = int(digits[:6])
        if number < 65535 and str(number) == digits:  # without leading zeros (§2.1)
            return number
    raise ValueError(f"{_shown(word)} is not a service parameter")


def _svc_name(number: int) -> str:
    return _SVC_KEYS[number] if number < len(_SVC_KEYS) else f"key{number}"


def _svc_value(number: int, text: str | None) -> bytes:
    if number == _NO_DEFAULT_ALPN:
        if text:
            raise ValueError("no-default-alpn has no value")
        return b""
    if number <= _DOHPATH and not text:
        raise ValueError(f"{_svc_name(number)} wants a value")
    if number in _SVC_UNESCAPED and "\\" in (text or ""):
        raise ValueError(f"{_svc_name(number)} takes no escapes")
    value = octets(text or "")
    if number > _DOHPATH or number == _DOHPATH:
        return value
    if number == _ECH:
        return _base64([value.decode("latin-1")])
    if number == _PORT:
        return _number(value.decode("latin-1"), 2)
    if number == _ALPN:
        items = _comma_list(value)
        if any(not 0 < len(item) < 256 for item in items):
            raise ValueError("alpn wants names of 1 to 255 octets")
        return b"".join(bytes((len(item),)) + item for item in items)
    words = value.decode("latin-1").split(",")
    if number == _MANDATORY:
        keys = sorted(map(_svc_key, words))
        if len(set(keys)) != len(keys) or _MANDATORY in keys:
            raise ValueError("mandatory names a parameter twice, or itself")
        return struct.pack(f"!{len(keys)}H", *keys)
    family = socket.AF_INET if number == _IPV4HINT else socket.AF_INET6
    return b"".join(_address(family, word) for word in words)


def _comma_list(value: bytes) -> list[bytes]:
    """Items between commas; a backslash makes the octet after it plain (RFC 9460 Appendix A.1)."""
    items = [bytearray()]
    octet_stream = iter(value)
    for octet in octet_stream:
        if octet == 0x5C:
            items[-1].append(next(octet_stream, 0x5C))
        elif octet == 0x2C:
            items.append(bytearray())
        else:
            items[-1].append(octet)
    return [bytes(item) for item in items]


def _svcb_text(rdata: bytes) -> str:
    target, position = read_name(rdata, 2)
    words = [str(int.from_bytes(rdata[:2], "big")), to_text(target)]
    while position < len(rdata):
        number, size = struct.unpack_from("!HH", rdata, position)
        value = rdata[position + 4 : position + 4 + size]
        position += 4 + size
        words.append(_svc_text(number, value))
    return " ".join(words)


def _svc_text(number: int, value: bytes) -> str:
    name = _svc_name(number)
    if number == _MANDATORY:
        return f"{name}={','.join(_svc_name(key) for (key,) in struct.iter_unpack('!H', value))}"
    if number == _ALPN:
        items = []
        while value:
            item, value = value[1 : 1 + value[0]], value[1 + value[0] :]
            items.append(item.replace(b"\\", b"\\\\").replace(b",", b"\\,"))
        return f"{name}={quoted(b','.join(items))}"
    if number == _NO_DEFAULT_ALPN:
        return name
    if number == _PORT:
        return f"{name}={int.from_bytes(value, 'big')}"
    if number == _ECH:
        return f'{name}="{base64.b64encode(value).decode()}"'
    if number in (_IPV4HINT, _IPV6HINT):
        size, family = (4, socket.AF_INET) if number == _IPV4HINT else (16, socket.AF_INET6)
        pieces = (value[start : start + size] for start in range(0, len(value), size))
        return f"{name}={','.join(socket.inet_ntop(family, piece) for piece in pieces)}"
    return f"{name}={quoted(value)}" if value else name


# --- to text ---


def rdata_text(rtype: int, rdata: bytes) -> str:
    """Rdata as in a master file, names absolute; the generic form where text would not bring the same octets back."""
    try:
        if rtype == Type.A:
            return socket.inet_ntop(socket.AF_INET, rdata)
        if rtype == Type.AAAA:
            return socket.inet_ntop(socket.AF_INET6, rdata)
        text = _text(rtype, rdata)
        if text is not None and (rtype in _PLAIN or rdata_from(rtype, split_words(text), ROOT) == rdata):
            return text
    except (ValueError, DecodeError, IndexError, struct.error, OSError):
        pass  # what a peer stored in an opaque type need not have its form
    return f"\\# {len(rdata)} {rdata.hex()}".rstrip()


_PLAIN: Final = frozenset((Type.NS, Type.CNAME, Type.PTR, Type.DNAME, Type.MX, Type.SRV, Type.SOA, Type.TXT))
"""Types whose form the store has checked, so that their text is right without a second look."""

_WORD: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|(?:[^ "\\]|\\.|(?<==)"(?:[^"\\]|\\.)*")+')


def split_words(text: str) -> list[str]:
    """Tokens of one line without comments and parentheses; see the module's docstring."""
    return ['"' + match[1] if match[1] is not None else match[0] for match in _WORD.finditer(text)]


def quoted(value: bytes) -> str:
    """A character-string in quotation marks."""
    out = []
    for octet in value:
        if octet in b'"\\':
            out.append("\\" + chr(octet))
        elif 0x20 <= octet <= 0x7E:
            out.append(chr(octet))
        else:
            out.append(f"\\{octet:03d}")
    return f'"{"".join(out)}"'


def _text(rtype: int, rdata: bytes) -> str | None:
    if rtype in (Type.SVCB, Type.HTTPS):
        return _svcb_text(rdata)
    if rtype == _LOC:
        return _loc_text(rdata)
    form = _FORMS.get(rtype)
    if form is None:
        return None
    words: list[str] = []
    position = 0
    for field in form:
        if field == "n":
            name, position = read_name(rdata, position)
            words.append(to_text(name))
        elif field in _SIZES:
            size = _SIZES[field]
            words.append(str(int.from_bytes(rdata[position : position + size], "big")))
            position += size
        elif field in "sc":
            value, position = _counted(rdata, position)
            words.append(quoted(value) if field == "s" else value.decode("ascii"))
        elif field in "x3":
            value, position = _counted(rdata, position)
            words.append((value.hex() or "-") if field == "x" else _base32_text(value))
        elif field == "t":
            words.append(type_name(int.from_bytes(rdata[position : position + 2], "big")))
            position += 2
        elif field == "d":
            moment = datetime.fromtimestamp(int.from_bytes(rdata[position : position + 4], "big"), UTC)
            words.append(moment.strftime("%Y%m%d%H%M%S"))
            position += 4
        else:
            words += _rest_text(field, rdata[position:])
            position = len(rdata)
    return " ".join(words) if position == len(rdata) else None


def _rest_text(field: str, rest: bytes) -> list[str]:
    if field == "h":
        return [rest.hex()] if rest else []
    if field == "b":
        return [base64.b64encode(rest).decode()] if rest else []
    if field == "v":
        return [quoted(rest)]
    words = []
    position = 0
    while position < len(rest):
        if field == "S":
            value, position = _counted(rest, position)
            words.append(quoted(value))
            continue
        window, size = rest[position], rest[position + 1]
        for index, bits in enumerate(rest[position + 2 : position + 2 + size]):
            words += [type_name(window << 8 | index << 3 | bit) for bit in range(8) if bits & 0x80 >> bit]
        position += 2 + size
    return words


def _counted(rdata: bytes, position: int) -> tuple[bytes, int]:
    stop = position + 1 + rdata[position]
    if stop > len(rdata):
        raise ValueError("a string runs past the rdata")
    return rdata[position + 1 : stop], stop


def _base32_text(value: bytes) -> str:
    return base64.b32encode(value).decode().rstrip("=").translate(_TO_HEX)


def _loc_text(rdata: bytes) -> str:
    try:
        return str(LOC.parse(DNSBuffer(rdata), len(rdata)))
    except Exception:  # noqa: BLE001  # dnslib raises whatever its conversions raise
        raise ValueError("not a LOC") from None


def _shown(text: str) -> str:
    """Part of a file in an error: one short printable line."""
    return ascii(text.removeprefix('"')[:60])
