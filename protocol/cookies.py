"""DNS cookies (RFC 7873) with the interoperable server cookie of RFC 9018 §4.

Option:  client cookie, 8 octets | server cookie, none or 8..32 octets
Server:  version 1 | reserved, 3 octets | timestamp u32 | hash u64
Hash:    SipHash-2-4 of the client cookie, the server cookie's first 8 octets and the client's address
"""

import hmac
import struct
from typing import Final

from protocol.constants import EdnsOption
from protocol.edns import Opt
from protocol.errors import DecodeError
from protocol.siphash import siphash

CLIENT_OCTETS: Final = 8
COOKIE_OCTETS: Final = 24
"""An option of client cookie and RFC 9018's server cookie."""
OLDEST_SECONDS: Final = 3600
NEWEST_SECONDS: Final = 300
FRESH_SECONDS: Final = 1800
_LENGTHS: Final = (8, *range(16, 41))
_STAMP: Final = struct.Struct("!II")
_VERSION: Final = 1 << 24


def request_cookie(opt: Opt | None) -> bytes | None:
    """Data of the first COOKIE option; `DecodeError` for a length no cookie has (RFC 7873 §5.2.2)."""
    found = opt.all(EdnsOption.COOKIE) if opt else []
    if not found:
        return None
    if len(found[0]) not in _LENGTHS:
        raise DecodeError("a cookie has 8 or 16 to 40 octets", 0)
    return found[0]


def make_cookie(secret: bytes, client: bytes, address: bytes, unix: int) -> bytes:
    """The whole option for this client cookie and address (4 or 16 octets), issued at `unix`."""
    head = client + _STAMP.pack(_VERSION, unix & 0xFFFFFFFF)
    return head + siphash(secret, head + address)


def cookie_age(secret: bytes, cookie: bytes, address: bytes, unix: int) -> int | None:
    """Seconds since a server cookie was issued, below 0 for one from the future; None when it is not valid."""
    if len(cookie) != COOKIE_OCTETS or cookie[8] != 1:
        return None
    issued = int.from_bytes(cookie[12:16], "big")
    age = ((unix - issued + 0x80000000) & 0xFFFFFFFF) - 0x80000000  # RFC 1982 arithmetic, RFC 9018 §4.3
    if not -NEWEST_SECONDS <= age <= OLDEST_SECONDS:
        return None
    return age if hmac.compare_digest(siphash(secret, cookie[:16] + address), cookie[16:]) else None
