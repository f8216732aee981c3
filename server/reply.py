"""Writing replies: flags, sections within the size limit, OPT, signature. Order of additions: OPT, then TSIG last."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final

from protocol.constants import (
    AA,
    MAX_MESSAGE_OCTETS,
    OPCODE_MASK,
    QR,
    RCODE_MASK,
    RD,
    TC,
    EdnsOption,
    Rcode,
    TsigError,
    Type,
)
from protocol.edns import Opt
from protocol.message import Builder, Header, Message, Question
from protocol.tsig import Tsig, sign, unsigned_error
from server.answer import Answer
from server.hop import PLAIN, Hop
from server.keyring import Principal
from server.peer import Peer
from server.zone.model import RR

UDP_PAYLOAD: Final = 1232  # what we advertise and the most we send over UDP (DNS flag day 2020)
_PLAIN_UDP: Final = 512
PADDING_BLOCK: Final = 468  # octets a padded reply is a multiple of (RFC 8467 §4.1)
_OPT_FIXED: Final = 11

Options = Sequence[tuple[int, bytes]]


def size_limit(message: Message, peer: Peer) -> int:
    """Octets a reply may have. A payload size below 512 counts as 512; 0 from an LLQ client is no size at all."""
    if peer.transport != "udp":
        return MAX_MESSAGE_OCTETS
    if message.opt is None:
        return _PLAIN_UDP
    if message.opt.payload_size == 0 and message.opt.all(EdnsOption.LLQ):
        return UDP_PAYLOAD
    return max(_PLAIN_UDP, min(message.opt.payload_size, UDP_PAYLOAD))


def header_only(header: Header, rcode: Rcode) -> bytes:
    """Twelve octets: for a request whose body cannot be read."""
    return Builder(header.id, QR | (header.flags & (OPCODE_MASK | RD)) | rcode).finish()


def opt_fault(header: Header, questions: Sequence[Question]) -> bytes:
    """FORMERR to a request whose OPT is at fault: header, question and an OPT (RFC 6891 §7)."""
    builder = Builder(header.id, QR | (header.flags & (OPCODE_MASK | RD)) | Rcode.FORMERR)
    for question in questions[:1]:  # more than one could be long, behind pointers
        builder.question(*question)
    builder.opt(Opt(UDP_PAYLOAD))
    return builder.finish()


class Reply:
    """One reply under way. `principal` and `tsig` are the request's when the reply is to be signed."""

    def __init__(
        self,
        message: Message,
        peer: Peer,
        *,
        unix: int,
        principal: Principal | None = None,
        tsig: Tsig | None = None,
        hop: Hop = PLAIN,
    ) -> None:
        self.message = message
        self.hop = hop
        self._is_padded = (
            peer.transport == "tls" and message.opt is not None and bool(message.opt.all(EdnsOption.PADDING))
        )
        self.limit = size_limit(message, peer)
        self.unix = unix
        self.principal = principal
        self.tsig = tsig if principal else None

    @property
    def is_proved(self) -> bool:
        """Whether the request came from where it says: its signature or its cookie held."""
        return self.principal is not None or self.hop.is_proved

    def _room(self, options: Options) -> int:
        room = self.limit
        if self.message.opt is not None:
            room -= _OPT_FIXED + sum(4 + len(data) for _, data in (*options, *self.hop.options))
        if self.principal is not None:
            room -= self.principal.key.record_octets
        return room

    def build(self, rcode: int, answer: Answer | None = None, options: Options = (), *, flags: int = 0) -> bytes:
        """The whole reply: question echoed, sections of `answer` as far as they fit, TC when answers did not."""
        message = self.message
        base = QR | (message.header.flags & (OPCODE_MASK | RD)) | flags
        if answer is not None and answer.is_authoritative:
            base |= AA
        room = self._room(options)
        builder = self._start(base, rcode, room)
        if builder.size > room and options:
            options = [(code, data[:2] if code == EdnsOption.EDE else data) for code, data in options]
            builder = self._start(base, rcode, self._room(options))
        if answer is not None:
            start = builder.checkpoint()
            whole = write_section(builder, 1, answer.answers) and write_section(builder, 2, answer.authority)
            if not whole and self.principal is not None:
                builder.rollback(start)  # the question, the signature, TC and NOERROR alone (RFC 8945 §5.3)
                builder.flags = builder.flags & ~RCODE_MASK | TC
            elif not whole:
                builder.flags |= TC
            else:
                for _, group in groupby(answer.additional, key=lambda rr: (rr.owner, rr.rtype)):
                    if not write_section(builder, 3, group):
                        if answer.authority and answer.authority[0].rtype == Type.NS:
                            builder.flags |= TC  # a referral without all of its glue (RFC 9471 §3.1)
                        break
        return self.finish(builder, rcode, options)

    def _start(self, base: int, rcode: int, room: int) -> Builder:
        """Header and question. Several that would not fit are left out: behind pointers they grow in copying."""
        builder = Builder(self.message.id, base | (rcode & 0xF), limit=room)
        start = builder.checkpoint()
        for question in self.message.questions:
            builder.question(*question)
            if builder.size > room and len(self.message.questions) > 1:
                builder.rollback(start)
                break
        return builder

    def builder(self, options: Options, *, flags: int = 0) -> Builder:
        """A builder with the questions echoed and the room for `options` and signature kept back."""
        return self._start(QR | (self.message.header.flags & (OPCODE_MASK | RD)) | flags, 0, self._room(options))

    def finish(self, builder: Builder, rcode: int, options: Options) -> bytes:
        """OPT when the request had one, then the signature when it had one."""
        principal, tsig = self.principal, self.tsig
        if principal is None or tsig is None:
            return self._close(builder, rcode, options, lambda wire: wire)

        def seal(wire: bytes) -> bytes:
            return sign(
                wire,
                principal.key,
                now=self.unix,
                request_mac=tsig.mac,
                original_id=_forwarded_id(tsig, self.message),
            )[0]

        return self._close(builder, rcode, options, seal)

    def tsig_error(self, error: TsigError, tsig: Tsig, options: Options = ()) -> bytes:
        """NOTAUTH with the TSIG error; signed for BADTIME and BADTRUNC when the key is known (RFC 8945 §5.3.2)."""

        def seal(wire: bytes) -> bytes:
            if self.principal is None:
                return unsigned_error(wire, tsig, error)
            if error == TsigError.BADTIME:
                return sign(
                    wire,
                    self.principal.key,
                    now=tsig.time_signed,
                    fudge=tsig.fudge,
                    request_mac=tsig.mac,
                    error=error,
                    other=self.unix.to_bytes(6, "big"),
                    original_id=_forwarded_id(tsig, self.message),
                )[0]
            return sign(
                wire,
                self.principal.key,
                now=self.unix,
                request_mac=tsig.mac,
                error=error,
                original_id=_forwarded_id(tsig, self.message),
            )[0]

        builder = self.builder(options)
        builder.flags |= Rcode.NOTAUTH
        return self._close(builder, Rcode.NOTAUTH, options, seal)

    def shortened(self) -> bytes:
        """What a client gets in place of an answer over its network's rate: TC, or BADCOOKIE if it knows cookies."""
        if self.hop.has_cookie:
            return self.build(Rcode.BADCOOKIE)
        return self.build(Rcode.NOERROR, flags=TC)

    def _close(self, builder: Builder, rcode: int, options: Options, seal: Callable[[bytes], bytes]) -> bytes:
        """The OPT, if any, and the seal. Over TLS padded to whole blocks with the seal counted, when that was asked.

        Sealed twice then: only so is its size known whatever the signature holds (RFC 8467 §4.1, RFC 7830 §4).
        """
        asked = self.message.opt
        if asked is None:
            return seal(builder.finish())
        whole = (*options, *self.hop.options)
        point = builder.checkpoint()
        builder.opt(Opt(UDP_PAYLOAD, rcode >> 4, 0, asked.dnssec_ok, whole))
        wire = seal(builder.finish())
        room = MAX_MESSAGE_OCTETS - len(wire) - 4
        if not self._is_padded or room < 0:
            return wire
        padding = min(-(len(wire) + 4) % PADDING_BLOCK, room)
        builder.rollback(point)
        builder.opt(Opt(UDP_PAYLOAD, rcode >> 4, 0, asked.dnssec_ok, (*whole, (EdnsOption.PADDING, bytes(padding)))))
        return seal(builder.finish())


def _forwarded_id(tsig: Tsig, message: Message) -> int | None:
    """The ID a request was signed under, when a forwarder gave it another since (RFC 8945 §4.2)."""
    return None if tsig.original_id == message.id else tsig.original_id


def write_section(builder: Builder, section: int, records: Iterable[RR]) -> bool:
    """Write whole RRsets (neighbours of one owner and type); False at the first that does not fit, left out whole."""
    for _, group in groupby(records, key=lambda rr: (rr.owner, rr.rtype)):
        point = builder.checkpoint()
        for rr in group:
            if rr.rtype in (Type.CNAME, Type.NS):
                fits = builder.add_alias(section, rr.owner, rr.rtype, rr.ttl, rr.rdata)
            else:
                fits = builder.add(section, rr.owner, rr.rtype, 1, rr.ttl, rr.rdata)
            if not fits:
                builder.rollback(point)
                return False
    return True
