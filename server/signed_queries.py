"""Signed queries over UDP from octets to octets: the plain answer, with one MAC looked at and one made.

An open zone answers whoever asks alike, so what a TSIG adds to a plain query is the signature alone. `None` stands for
everything else (another form, a signature that does not hold, a zone that is not open, no room), which the dispatcher
answers; `tests/property/test_fast_equals_slow.py` holds both to the same octets.
"""

from typing import Final, Protocol

from protocol.constants import HEADER_OCTETS
from protocol.tsig import MD5, common_mac, common_name, sign_reply
from server.keyring import Keyring
from server.metrics import Requests
from server.reply import UDP_PAYLOAD

_PLAIN_UDP: Final = 512
_ONE_QUESTION: Final = bytes.fromhex("0001 0000 0000")
_OPT_HEAD: Final = b"\x00\x00\x29"
_OPT_FIXED: Final = 11
_COUNTS: Final = {b"\x00\x01": b"\x00\x00", b"\x00\x02": b"\x00\x01"}  # of Additional: with the TSIG, and without


class PlainAnswers(Protocol):
    """Answers to what is left of a query without its ID and TSIG."""

    ready: dict[bytes, bytes]
    unix: int

    def answer(self, key: bytes) -> bytes | None: ...


class SignedQueries:
    """What `plain` answers, signed for those with a key."""

    def __init__(self, plain: PlainAnswers, keyring: Keyring, requests: Requests) -> None:
        self._plain = plain
        self._keyring = keyring
        self._requests = requests

    def answer(self, datagram: bytes) -> bytes | None:
        """The reply from octet 2 on; the caller counts its RCODE."""
        count = _COUNTS.get(datagram[10:12])
        if count is None or datagram[4:10] != _ONE_QUESTION:
            return None
        start = datagram.find(0, HEADER_OCTETS) + 5  # behind the root label, type and class
        limit = _PLAIN_UDP
        if count != b"\x00\x00":
            fixed = start + _OPT_FIXED
            if len(datagram) < fixed or datagram[start : start + 3] != _OPT_HEAD:
                return None
            limit = max(_PLAIN_UDP, min(datagram[start + 3] << 8 | datagram[start + 4], UDP_PAYLOAD))
            start = fixed + (datagram[fixed - 2] << 8 | datagram[fixed - 1])
        name = common_name(datagram, start)
        principal = self._keyring.find(name)
        if principal is None or principal.key.algorithm is MD5:
            return None
        key = principal.key
        now = self._plain.unix
        mac = common_mac(datagram, start, key, now=now)
        if mac is None:
            return None
        query = datagram[2:10] + count + datagram[12:start]
        answer = self._plain.ready.get(query) or self._plain.answer(query)
        if answer is None or len(answer) + 2 + key.record_octets > limit:
            return None
        self._keyring.note_use(name, now)
        self._requests.signed += 1
        return sign_reply(datagram[:2], answer, key, now=now, request_mac=mac)
