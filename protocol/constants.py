"""Numbers assigned by IANA that this system speaks: classes, types, opcodes, RCODEs, EDNS options."""

from enum import IntEnum
from typing import Final

HEADER_OCTETS: Final = 12
MAX_MESSAGE_OCTETS: Final = 65535
MAX_NAME_OCTETS: Final = 255
MAX_LABEL_OCTETS: Final = 63

# Flag bits of the second header word (RFC 1035 §4.1.1)
QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
Z: Final = 0x0040
AD: Final = 0x0020
CD: Final = 0x0010
OPCODE_MASK: Final = 0x7800
OPCODE_SHIFT: Final = 11
RCODE_MASK: Final = 0x000F


class Opcode(IntEnum):
    QUERY = 0
    NOTIFY = 4
    UPDATE = 5
    DSO = 6


class Class(IntEnum):
    IN = 1
    CH = 3
    NONE = 254
    ANY = 255


class Type(IntEnum):
    A = 1
    NS = 2
    MD = 3
    MF = 4
    CNAME = 5
    SOA = 6
    MB = 7
    MG = 8
    MR = 9
    WKS = 11
    PTR = 12
    HINFO = 13
    MINFO = 14
    MX = 15
    TXT = 16
    RP = 17
    AFSDB = 18
    RT = 21
    SIG = 24
    KEY = 25
    PX = 26
    AAAA = 28
    NXT = 30
    SRV = 33
    NAPTR = 35
    KX = 36
    DNAME = 39
    OPT = 41
    DS = 43
    SSHFP = 44
    RRSIG = 46
    NSEC = 47
    DNSKEY = 48
    DHCID = 49
    NSEC3 = 50
    NSEC3PARAM = 51
    TLSA = 52
    CDS = 59
    CDNSKEY = 60
    SVCB = 64
    HTTPS = 65
    TKEY = 249
    TSIG = 250
    IXFR = 251
    AXFR = 252
    MAILB = 253
    MAILA = 254
    ANY = 255
    CAA = 257


META_TYPES: Final = frozenset((0, Type.OPT, *range(128, 256)))


def is_meta_type(rtype: int) -> bool:
    """Whether `rtype` can never be data in a zone: 0, OPT, and the Q and meta range 128..255 (RFC 6895 §3.1)."""
    return rtype in META_TYPES


class Rcode(IntEnum):
    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    YXDOMAIN = 6
    YXRRSET = 7
    NXRRSET = 8
    NOTAUTH = 9
    NOTZONE = 10
    DSOTYPENI = 11
    BADVERS = 16
    BADCOOKIE = 23


class TsigError(IntEnum):
    """Codes of the TSIG error field only; 16 there is BADSIG, in EDNS it is BADVERS (RFC 8945 §3)."""

    NOERROR = 0
    BADSIG = 16
    BADKEY = 17
    BADTIME = 18
    BADTRUNC = 22


class EdnsOption(IntEnum):
    LLQ = 1
    UPDATE_LEASE = 2
    NSID = 3
    COOKIE = 10
    TCP_KEEPALIVE = 11
    PADDING = 12
    EDE = 15


class Ede(IntEnum):
    """Extended DNS error codes (RFC 8914 §4)."""

    OTHER = 0
    NOT_READY = 14
    PROHIBITED = 18
    NOT_AUTHORITATIVE = 20
    NOT_SUPPORTED = 21
    INVALID_DATA = 24


_TYPE_NAMES: Final = {int(value): value.name for value in Type}
_RCODE_NAMES: Final = {int(value): value.name for value in Rcode}


def type_text(rtype: int) -> str:
    """Mnemonic, or TYPEnnn (RFC 3597 §5)."""
    return _TYPE_NAMES.get(rtype) or f"TYPE{rtype}"


def type_from_text(text: str) -> int:
    """Type of a mnemonic or TYPEnnn; `ValueError` for anything else."""
    upper = text.upper()
    if upper in Type.__members__:
        return int(Type[upper])
    if upper.startswith("TYPE") and upper[4:].isascii() and upper[4:].isdigit() and int(upper[4:]) < 65536:
        return int(upper[4:])
    raise ValueError(f"unknown record type {text!r}")


def rcode_text(rcode: int) -> str:
    return _RCODE_NAMES.get(rcode) or f"RCODE{rcode}"
