"""A member's key from a password (RFC 6281 wants one, and names no derivation).

scrypt (RFC 7914) over the password in UTF-8, NFC, with a random salt and nothing else mixed in; 32 octets out, used as
they are as the TSIG secret. Salt and cost are public and stand in a TXT record, so that a client needs the password
only:

    alice._homing-kdf.members.example. TXT "v=1 kdf=scrypt n=32768 r=8 p=1 salt=<base64>"
"""

import base64
import json
import unicodedata
from dataclasses import asdict, dataclass
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

SALT_OCTETS: Final = 16
SECRET_OCTETS: Final = 32
MIN_PASSWORD_LETTERS: Final = 8
_MAX_N: Final = 1 << 20  # bounds what a forged TXT makes a client spend: 128 * N * r octets, at most 1 GiB
_MAX_R: Final = 8
_MAX_P: Final = 4
_LABEL: Final = b"\x0b_homing-kdf"


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """Cost and salt of one key. `ValueError` for a cost outside the bounds or a salt outside 8..64 octets."""

    salt: bytes
    n: int = 1 << 15
    r: int = 8
    p: int = 1

    def __post_init__(self) -> None:
        if not (1 << 14 <= self.n <= _MAX_N and self.n & (self.n - 1) == 0):
            raise ValueError("scrypt n must be a power of two from 16384 to 1048576")
        if not (1 <= self.r <= _MAX_R and 1 <= self.p <= _MAX_P):
            raise ValueError(f"scrypt r must be 1 to {_MAX_R} and p 1 to {_MAX_P}")
        if not 8 <= len(self.salt) <= 64:
            raise ValueError("scrypt salt must have 8 to 64 octets")

    def to_text(self) -> str:
        """The published form."""
        salt = base64.b64encode(self.salt).decode()
        return f"v=1 kdf=scrypt n={self.n} r={self.r} p={self.p} salt={salt}"

    def to_json(self) -> str:
        """The stored form."""
        return json.dumps({"kdf": "scrypt", **asdict(self), "salt": base64.b64encode(self.salt).decode()})


def parse(text: str) -> KdfParameters:
    """Read the published form; `ValueError` for anything this version cannot derive from."""
    fields = dict(item.partition("=")[::2] for item in text.split())
    if fields.get("v") != "1" or fields.get("kdf") != "scrypt":
        raise ValueError("key derivation is not v=1 kdf=scrypt")
    numbers = {}
    for name in ("n", "r", "p"):
        value = fields.get(name, "")
        if not (value.isascii() and value.isdigit() and len(value) <= 7):
            raise ValueError(f"key derivation lacks a sound {name}=")
        numbers[name] = int(value)
    try:
        salt = base64.b64decode(fields.get("salt", ""), validate=True)
    except ValueError:
        raise ValueError("key derivation salt is not base64") from None
    return KdfParameters(salt, **numbers)


def derive(password: str, parameters: KdfParameters) -> bytes:
    """The TSIG secret: some 50 ms and 32 MiB with the default cost, so not for the event loop of a server.

    `ValueError` for a password under 8 letters.
    """
    if len(password) < MIN_PASSWORD_LETTERS:
        raise ValueError(f"a password must have at least {MIN_PASSWORD_LETTERS} letters")
    octets = unicodedata.normalize("NFC", password).encode()
    return Scrypt(parameters.salt, SECRET_OCTETS, parameters.n, parameters.r, parameters.p).derive(octets)


def owner_name(member_label: bytes, zone: bytes) -> bytes:
    """Where a member's parameters are published: `<member>._homing-kdf.<zone>`."""
    return bytes((len(member_label),)) + member_label + _LABEL + zone


def txt_rdata(parameters: KdfParameters) -> bytes:
    """TXT rdata of the published form, one character-string."""
    text = parameters.to_text().encode()
    return bytes((len(text),)) + text


def parse_txt(rdata: bytes) -> KdfParameters:
    """Read the published form out of TXT rdata, its character-strings joined; `ValueError` as `parse`."""
    pieces = []
    position = 0
    while position < len(rdata):
        pieces.append(rdata[position + 1 : position + 1 + rdata[position]])
        position += 1 + rdata[position]
    return parse(b"".join(pieces).decode("ascii", "replace"))
