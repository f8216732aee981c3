"""Two replies to one question, side by side: RCODE, AA, TC, and the RRsets of each section, read by dnspython."""

from dataclasses import dataclass
from typing import Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

RRsets = frozenset[tuple[str, int, int, int, frozenset[bytes]]]
"""(owner, class, type, TTL, rdata in canonical form) of a section."""
_SECTIONS: Final = ("answer", "authority", "additional")


@dataclass(frozen=True, slots=True)
class Reply:
    """What is compared of one reply; `rcode` is "-" for none at all."""

    rcode: str
    aa: bool = False
    tc: bool = False
    answer: RRsets = frozenset()
    authority: RRsets = frozenset()
    additional: RRsets = frozenset()
    size: int = 0
    ede: str = ""


def read(wire: bytes | None) -> Reply:
    """Take a reply apart; a cut one keeps its flags only when its sections cannot be read."""
    if not wire:
        return Reply("-")
    message = dns.message.from_wire(wire, ignore_trailing=False, raise_on_truncation=False, keyring=False)
    flags = message.flags
    return Reply(
        dns.rcode.to_text(message.rcode()),
        bool(flags & dns.flags.AA),
        bool(flags & dns.flags.TC),
        *(_rrsets(section) for section in (message.answer, message.authority, message.additional)),
        len(wire),
        " ".join(option.to_text() for option in message.options if option.otype == dns.edns.EDE),
    )


def _rrsets(section: list[dns.rrset.RRset]) -> RRsets:
    return frozenset(
        (
            rrset.name.to_text().lower(),
            int(rrset.rdclass),
            int(rrset.rdtype),
            rrset.ttl,
            frozenset(rdata.to_digestable() for rdata in rrset),
        )
        for rrset in section
        if rrset.rdtype not in (dns.rdatatype.OPT, dns.rdatatype.TSIG)
    )


def differences(ours: Reply, theirs: Reply) -> list[str]:
    """What differs, such as `rcode NOERROR/NXDOMAIN` (ours first). Sections of a cut reply are not compared."""
    found = [
        f"{field} {getattr(ours, field)}/{getattr(theirs, field)}"
        for field in ("rcode", "aa", "tc")
        if getattr(ours, field) != getattr(theirs, field)
    ]
    if not ours.tc and not theirs.tc:
        found += [name for name in _SECTIONS if getattr(ours, name) != getattr(theirs, name)]
    return found
