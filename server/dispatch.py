"""The pipeline on one page: bytes in, at most one reply out. The only place that turns exceptions into RCODEs.

datagram -> decode -> authenticate -> authorise -> QUERY  : answer on the snapshot
                                                -> LLQ    : subscription state machine + answer
                                                -> AXFR, IXFR : transfer service, many messages on a stream
                                                -> UPDATE : writer queue, reply after the commit
opcode 6 on TLS -> DSO sessions and DNS Push, which have neither sections nor signatures
QR=1     -> acknowledgement of an event, else dropped (answering responses would make loops)
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Final

import structlog

from protocol.constants import (
    HEADER_OCTETS,
    Class,
    Ede,
    EdnsOption,
    Opcode,
    Rcode,
    Type,
    is_meta_type,
    rcode_text,
    type_text,
)
from protocol.edns import UpdateLease, extended_error, update_lease
from protocol.errors import DecodeError
from protocol.message import Message, OptError, Question, decode, decode_header
from protocol.name import fold, to_text
from protocol.tsig import Tsig
from server.addresses import packed
from server.answer import addresses, resolve
from server.authn import authenticate
from server.authority import Authority
from server.authz import may_read
from server.chaos import answer_version
from server.common_updates import CommonUpdates
from server.guard import Guard
from server.hop import PLAIN, Hop, look_at_hop
from server.keyring import Keyring, Principal
from server.lines import LineBudget
from server.metrics import Metrics
from server.peer import Peer
from server.push.dso_service import DsoService
from server.push.service import PushService
from server.quota import UpdateRates
from server.replays import Replays
from server.reply import Reply, header_only, opt_fault
from server.request import Authenticated, Decoded, Refusal, Send, SignatureRefusal
from server.response_limit import Verdict, network_of
from server.system import Clock
from server.transfer.service import TransferService
from server.writer import Outcome, PendingUpdate, Writer
from server.zone.model import RR, Actor
from server.zone.update import UpdateError, read_update, zone_of
from server.zone.zone import Zone, Zones

log = structlog.get_logger(__name__)

_KIND: Final = 0xF8  # QR and opcode in the third octet
_UPDATE: Final = Opcode.UPDATE << 3
_NOTHING: Final = b""  # what a stream is told when a message gets no reply


class Dispatcher:
    """Takes messages from every transport. Nothing here awaits; a reply to an update is sent by the writer."""

    def __init__(
        self,
        *,
        zones: Zones,
        keyring: Keyring,
        writer: Writer,
        push: PushService,
        clock: Clock,
        metrics: Metrics,
        allow_md5: bool,
        minimum_mac: int = 0,
        replay_window_seconds: int = 300,
        version: str | None = None,
        transfers: TransferService | None = None,
        guard: Guard | None = None,
        idle_seconds: Callable[[], float] = lambda: 0.0,
        dso: DsoService | None = None,
        on_refused: Callable[[bytes | None, Peer, Principal, Outcome], None] = lambda *_: None,
    ) -> None:
        """`on_refused` hears of each signed update that came to nothing: zone, peer, whose it was, why."""
        self._zones = zones
        self._keyring = keyring
        self._writer = writer
        self._push = push
        self._clock = clock
        self._metrics = metrics
        self._allow_md5 = allow_md5
        self._transfers = transfers
        self._dso = dso
        self._minimum_mac = minimum_mac
        self._version = version
        self._replays = Replays(replay_window_seconds)
        self._guard = guard or Guard()
        self._idle_seconds = idle_seconds
        self._authority = Authority(zones, keyring)
        self._rates = UpdateRates()
        self._lines = LineBudget()
        self._common = CommonUpdates(
            zones=zones,
            keyring=keyring,
            writer=writer,
            replays=self._replays,
            clock=clock,
            metrics=metrics,
            authority=self._authority,
            rates=self._rates,
            finish=self._finish_common,
            lines=self._lines,
            log_update=self._write_line,
        )
        self._on_refused = on_refused

    def handle(self, wire: bytes, peer: Peer, send: Send) -> None:
        """Take one message. `send` is called once: with the reply, or with b"" when there is none to wait for."""
        if len(wire) < HEADER_OCTETS:
            self._drop("short", send)
            return
        if peer.transport == "tls" and self._dso is not None and self._dso.is_leaving(peer.via):
            self._drop("session told to end", send)
            return
        if wire[2] & _KIND == _UPDATE and self._take_update(wire, peer, send):
            return
        header = decode_header(wire)
        if self._dso is not None and peer.transport == "tls":
            if header.opcode == Opcode.DSO and self._dso.takes(peer):
                self._dso.receive(wire, peer)
                self._metrics.requests.count(peer.transport, Opcode.DSO, Rcode.NOERROR)
                send(_NOTHING)
                return
            self._dso.note_message(peer.via)
        if header.is_response:
            self._acknowledge(wire, peer, send)
            return
        try:
            decoded = Decoded(decode(wire), peer, self._clock.monotonic())
        except DecodeError as error:
            log.debug("undecodable", peer=peer.address, reason=error.reason, offset=error.offset)
            if header.opcode == Opcode.UPDATE:
                self._charge(peer)
            is_stateful = header.opcode == Opcode.DSO and not any(header[2:])  # octets after it are TLVs, not sections
            rcode = Rcode.NOTIMP if is_stateful else Rcode.FORMERR
            if isinstance(error, OptError) and not is_stateful:
                bad = opt_fault(header, error.questions)
            else:
                bad = header_only(header, rcode)
            self._send(bad, peer, header.opcode, rcode, send)
            return
        opt = decoded.message.opt
        is_in_session = self._dso is not None and peer.transport == "tls" and self._dso.has_session(peer.via)
        if self._dso is not None and is_in_session and opt is not None and opt.all(EdnsOption.TCP_KEEPALIVE):
            self._dso.break_off(peer.via, "edns-tcp-keepalive within a session")  # RFC 8490 §7.1.2
            send(_NOTHING)
            return
        try:
            self._answer(decoded, send)
        except Exception:
            self._metrics.faults.labels("dispatch").inc()
            log.exception("fault while answering", peer=peer.address, opcode=header.opcode)
            self._send(header_only(header, Rcode.SERVFAIL), peer, header.opcode, Rcode.SERVFAIL, send)

    def _take_update(self, wire: bytes, peer: Peer, send: Send) -> bool:
        """Whether an update goes the short way or is not heard at all; after a fault the long way is tried."""
        now = self._clock.monotonic()
        strangers = self._guard.strangers
        if strangers is not None and not strangers.admits(peer, now):
            self._send(header_only(decode_header(wire), Rcode.REFUSED), peer, Opcode.UPDATE, Rcode.REFUSED, send)
            return True
        try:
            is_taken = self._common.take(wire, peer, send, now)
        except Exception:
            self._metrics.faults.labels("common updates").inc()
            log.exception("fault on the short way of updates", peer=peer.address)
            return False
        if is_taken and strangers is not None:
            strangers.welcome(peer, now)
        return is_taken

    def _answer(self, decoded: Decoded, send: Send) -> None:
        """The stages in order; every refusal of theirs is worded here."""
        message, peer = decoded.message, decoded.peer
        opcode = message.header.opcode
        unix = self._clock.unix()
        hop = look_at_hop(message, peer, self._guard, self._idle_seconds)
        reply = Reply(message, peer, unix=unix, hop=hop)
        try:
            if message.tsig is not None and opcode != Opcode.UPDATE and not self._admits(peer):
                raise Refusal(Rcode.REFUSED, "too many signatures from here did not hold", ede=Ede.NOT_READY)
            request = authenticate(
                decoded,
                self._keyring,
                self._replays,
                unix=unix,
                allow_md5=self._allow_md5,
                minimum_mac=self._minimum_mac,
            )
            reply = Reply(message, peer, unix=unix, principal=request.principal, tsig=request.tsig, hop=hop)
            if reply.is_proved:
                self._welcome(peer)
            if message.opt is not None and message.opt.version != 0:
                raise Refusal(Rcode.BADVERS, "EDNS version is not 0")
            if hop.fault:
                raise Refusal(Rcode.FORMERR, hop.fault)
            if opcode == Opcode.QUERY and self._transfers is not None and self._transfers.wants(message):
                self._transfers.start(
                    request, reply, lambda wire: self._send(wire, peer, opcode, Rcode.NOERROR, send, reply)
                )
            elif opcode == Opcode.QUERY:
                self._send(self._query(request, reply), peer, opcode, Rcode.NOERROR, send, reply)
            elif opcode == Opcode.UPDATE:
                self._update(request, reply, send)
            else:
                raise Refusal(Rcode.NOTIMP, f"opcode {opcode} is not spoken here", ede=Ede.NOT_SUPPORTED)
        except DecodeError as error:
            self._refuse(reply, decoded, Rcode.FORMERR, error.reason, Ede.OTHER, send)
        except UpdateError as error:
            self._refuse(reply, decoded, error.rcode, error.reason, Ede.OTHER, send)
        except Refusal as refusal:
            self._refuse(reply, decoded, refusal.rcode, refusal.reason, refusal.ede, send)
        except SignatureRefusal as refusal:
            signer = Reply(message, peer, unix=unix, principal=refusal.principal, tsig=refusal.tsig, hop=hop)
            log.debug("signature refused", peer=peer.address, reason=refusal.reason)
            self._charge(peer)
            options = [extended_error(Ede.PROHIBITED, refusal.reason)] if message.opt else []
            wire = signer.tsig_error(refusal.error, refusal.tsig, options)
            self._send(wire, peer, opcode, Rcode.NOTAUTH, send, reply)

    def _refuse(self, reply: Reply, decoded: Decoded, rcode: Rcode, reason: str, ede: int | None, send: Send) -> None:
        message, peer = decoded.message, decoded.peer
        if message.header.opcode == Opcode.UPDATE:
            self._log_update(_zone_name(message), peer, reply.principal, decoded.at, Outcome(rcode, reason))
            if reply.principal is None:
                self._charge(peer)
        options = [extended_error(Ede.OTHER if ede is None else ede, reason)]
        wire = reply.build(rcode, None, options)
        self._send(wire, peer, message.header.opcode, rcode, send, reply)

    def _query(self, request: Authenticated, reply: Reply) -> bytes:
        message = request.message
        if message.opt is not None and message.opt.all(EdnsOption.LLQ):
            return self._push.query(request, reply, self._lookup_zone, self._addresses)
        if not message.questions and reply.hop.has_cookie:  # only a cookie is wanted (RFC 7873 §5.4)
            return reply.build(Rcode.BADCOOKIE if reply.hop.is_bad else Rcode.NOERROR)
        if len(message.questions) != 1:
            raise Refusal(Rcode.FORMERR, "a query has one question")
        question = message.questions[0]
        if question.rclass == Class.CH:
            return answer_version(question, self._version, reply)
        zone = self._lookup_zone(question)
        key = fold(question.name)
        if is_meta_type(question.rtype) and question.rtype != Type.ANY:
            raise Refusal(Rcode.NOTIMP, f"{type_text(question.rtype)} is not served", ede=Ede.NOT_SUPPORTED)
        may_read(request.principal, zone, key, question.rtype)
        answer = resolve(zone, question.name, question.rtype, int(self._clock.lease()))
        looped = answer.rcode == Rcode.SERVFAIL
        return reply.build(
            answer.rcode, answer, [extended_error(Ede.INVALID_DATA, "aliases in a loop")] if looped else ()
        )

    def _lookup_zone(self, question: Question) -> Zone:
        """The zone a question is for; REFUSED when it is none of ours."""
        if question.rclass != Class.IN:
            raise Refusal(Rcode.REFUSED, "only class IN is served", ede=Ede.NOT_SUPPORTED)
        zone = self._zones.enclosing(fold(question.name), question.rtype)
        if zone is None:
            raise Refusal(
                Rcode.REFUSED, f"{to_text(question.name)} is in no zone served here", ede=Ede.NOT_AUTHORITATIVE
            )
        return zone

    def _addresses(self, records: Sequence[RR]) -> list[RR]:
        """Of the hosts that records name, each found in the zone that its record is of."""
        now = int(self._clock.lease())
        found: list[RR] = []
        for zone, group in groupby(records, key=lambda rr: self._zones.enclosing(fold(rr.owner), rr.rtype)):
            found += addresses(zone, list(group), now) if zone is not None else []
        return found

    def _update(self, request: Authenticated, reply: Reply, send: Send) -> None:
        """Form and policy here; prerequisites and the change in the writer, where they see what came before."""
        message = request.message
        apex = zone_of(message)
        zone = self._zones.at(apex)
        if zone is None or message.questions[0].rclass != Class.IN:
            raise Refusal(Rcode.NOTAUTH, f"{to_text(apex)} is no zone served here", ede=Ede.NOT_AUTHORITATIVE)
        tsig = request.tsig
        if request.principal is None or tsig is None:
            raise Refusal(Rcode.REFUSED, "updates must be signed", ede=Ede.PROHIBITED)
        lease = update_lease(message.opt)
        update = read_update(message, apex)
        leased = lease is not None and lease.lease > 0
        grant = self._authority.grant(request.principal, zone, update, leased=leased)
        actor = Actor("update", to_text(request.principal.key.name), request.peer.address)
        before = self._replays.begin(tsig, reply.unix)
        if before is not True:
            self._metrics.dropped.labels("repeated update").inc()
            send(message.wire[:2] + before[2:] if before else _NOTHING)
            return
        try:
            self._rates.check(request.principal, grant, request.decoded.at)
        except Refusal:
            self._replays.forget(tsig)
            raise

        def done(outcome: Outcome) -> None:
            self._finish(request, reply.hop, outcome, send)

        again = partial(self._authority.again, request.principal, update, leased)
        pending = PendingUpdate(apex, update, lease, grant, actor, done, again)
        if not self._writer.submit(pending):
            self._replays.forget(tsig)
            raise Refusal(Rcode.SERVFAIL, "too many updates are waiting, try again", ede=Ede.NOT_READY)

    def _finish(self, request: Authenticated, hop: Hop, outcome: Outcome, send: Send) -> None:
        """The reply to an update, once the writer is done with it."""
        message, peer, tsig = request.message, request.peer, request.tsig
        assert tsig is not None
        reply = Reply(message, peer, unix=self._clock.unix(), principal=request.principal, tsig=tsig, hop=hop)
        self._metrics.update_seconds.observe(self._clock.monotonic() - request.decoded.at)
        self._log_update(_zone_name(message), peer, request.principal, request.decoded.at, outcome)
        wire = reply.build(outcome.rcode, None, _update_options(outcome))
        if outcome.rcode == Rcode.SERVFAIL:
            self._replays.forget(tsig)
        else:
            self._replays.finish(tsig, wire)
        self._send(wire, peer, Opcode.UPDATE, outcome.rcode, send, reply)

    def _finish_common(
        self, wire: bytes, peer: Peer, principal: Principal, tsig: Tsig, at: float, outcome: Outcome, send: Send
    ) -> None:
        """The same for one that came the short way."""
        self._finish(Authenticated(Decoded(decode(wire), peer, at), principal, tsig), PLAIN, outcome, send)

    def _acknowledge(self, wire: bytes, peer: Peer, send: Send) -> None:
        try:
            message = decode(wire)
        except DecodeError:
            self._drop("response", send)
            return
        if message.header.opcode == Opcode.NOTIFY and self._transfers is not None:
            is_taken = self._transfers.notify_answered(message, peer)
        else:
            is_taken = self._push.acknowledge(message, peer)
        if not is_taken:
            self._drop("response", send)
            return
        send(_NOTHING)

    def _log_update(
        self, zone: bytes | None, peer: Peer, principal: Principal | None, at: float, outcome: Outcome
    ) -> None:
        """Not more lines than a log can bear."""
        if principal is not None and outcome.rcode != Rcode.NOERROR:
            self._on_refused(zone, peer, principal, outcome)
        now = self._clock.monotonic()
        if self._lines.take(now):
            self._write_line(zone, peer, principal, now - at, outcome)

    def _write_line(
        self, zone: bytes | None, peer: Peer, principal: Principal | None, seconds: float, outcome: Outcome
    ) -> None:
        """One line an update: who, what, outcome, serials, how long it took.

        Anyone can send what no key signed, so that is told on the debug level only.
        """
        tell = log.info if principal else log.debug
        tell(
            "update",
            zone="-" if zone is None else to_text(zone),
            peer=f"{peer.address}#{peer.port}/{peer.transport}",
            key=to_text(principal.key.name) if principal else "-",
            rcode=rcode_text(outcome.rcode),
            reason=outcome.reason or None,
            serial=f"{outcome.serial_from}->{outcome.serial_to}" if outcome.serial_to else None,
            ms=round(seconds * 1000, 2),
        )

    def _send(self, wire: bytes, peer: Peer, opcode: int, rcode: int, send: Send, reply: Reply | None = None) -> None:
        """Count and send. Over UDP what nobody signed or proved by cookie, as `reply` knows, is held to a rate."""
        if peer.transport == "udp" and not (reply is not None and reply.is_proved):
            verdict = self._verdict(wire, peer)
            if verdict is Verdict.DROP:
                self._drop("rate limit", send)
                return
            if verdict is Verdict.SLIP and reply is not None and opcode == Opcode.QUERY:
                wire, rcode = reply.shortened(), Rcode.BADCOOKIE if reply.hop.has_cookie else Rcode.NOERROR
        code = rcode if rcode != Rcode.NOERROR or len(wire) < HEADER_OCTETS else wire[3] & 0xF
        self._metrics.requests.count(peer.transport, opcode, code)
        send(wire)

    def _verdict(self, wire: bytes, peer: Peer) -> Verdict:
        limiter = self._guard.limiter
        if limiter is None or not limiter.watched or len(wire) < HEADER_OCTETS:
            return Verdict.SEND
        return limiter.decide(network_of(packed(peer.address)), wire[2:])

    def _admits(self, peer: Peer) -> bool:
        """Whether what must be verified first is heard from this peer."""
        strangers = self._guard.strangers
        return strangers is None or strangers.admits(peer, self._clock.monotonic())

    def _charge(self, peer: Peer) -> None:
        """It did not hold."""
        if self._guard.strangers is not None:
            self._guard.strangers.charge(peer, self._clock.monotonic())

    def _welcome(self, peer: Peer) -> None:
        """It held."""
        if self._guard.strangers is not None:
            self._guard.strangers.welcome(peer, self._clock.monotonic())

    def _drop(self, reason: str, send: Send) -> None:
        self._metrics.dropped.labels(reason).inc()
        send(_NOTHING)


def _zone_name(message: Message) -> bytes | None:
    return message.questions[0].name if message.questions else None


def _update_options(outcome: Outcome) -> list[tuple[int, bytes]]:
    """The granted lease on success only (RFC 9664 §4.3), the reason otherwise."""
    if outcome.rcode == Rcode.NOERROR:
        return [outcome.lease.encode()] if isinstance(outcome.lease, UpdateLease) else []
    return [extended_error(outcome.ede, outcome.reason)] if outcome.reason else []
