"""Zone transfers and NOTIFY as the rest of the server sees them: checks, one job after another a stream, pacing."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from protocol.constants import AA, Class, Ede, Rcode, Type
from protocol.edns import extended_error
from protocol.message import Message
from protocol.name import fold, to_text
from server.authz import may_transfer
from server.config import TransferRules, TransferSettings
from server.metrics import Metrics
from server.peer import Peer
from server.reply import Reply
from server.request import Authenticated, Refusal
from server.store.api import Store, StoreError
from server.system import Clock
from server.transfer import axfr, ixfr
from server.transfer.notify import Notifier
from server.zone.model import RR
from server.zone.zone import Zone, Zones

MAX_STREAMS: Final = 32  # streams with a transfer at a time, and IXFRs over UDP at a time
XOT: Final = ("TLSv1.3", "dot")
STALL_SECONDS: Final = 60.0  # a peer that reads nothing for this long loses its connection

log = structlog.get_logger(__name__)

Done = Callable[[bytes], None]
"""Sends the last message of an answer; the request counts as answered."""


class Streams(Protocol):
    """What a transfer needs of the stream server."""

    def send(self, peer: Peer, wire: bytes) -> bool: ...
    def abort(self, peer: Peer) -> None: ...
    def tls(self, peer: Peer) -> tuple[str, str] | None:
        """Version and ALPN protocol of a stream over TLS."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    """One transfer that was allowed. `serial` is the client's for an IXFR, None for an AXFR."""

    request: Authenticated
    reply: Reply
    apex: bytes
    serial: int | None
    done: Done


class TransferService:
    """Answers AXFR and IXFR, tells secondaries of changes."""

    def __init__(
        self,
        settings: TransferSettings,
        *,
        zones: Zones,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        notifier: Notifier,
        streams: Callable[[], Streams],
    ) -> None:
        self._settings = settings
        self._zones = zones
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._streams = streams
        self._notifier = notifier
        self._queues: dict[int, deque[_Job]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._datagrams: set[asyncio.Task[None]] = set()
        self._paused: dict[int, asyncio.Event] = {}  # by stream; set when its peer has read enough again

    # -- requests ----------------------------------------------------------------------------------

    def replace(self, settings: TransferSettings) -> None:
        """Other rules from now on; transfers under way go on."""
        self._settings = settings
        self._notifier.replace(settings)

    @staticmethod
    def wants(message: Message) -> bool:
        """Whether a query asks for a transfer."""
        return any(question.rtype in (Type.AXFR, Type.IXFR) for question in message.questions)

    def start(self, request: Authenticated, reply: Reply, done: Done) -> None:
        """Begin a transfer; `done` is called once, with its last message. `Refusal` when it may not be."""
        try:
            job = self._admit(request, reply, done)
        except Refusal as refusal:
            tell = log.info if request.principal else log.debug
            tell("transfer refused", reason=refusal.reason, **_who(request))
            raise
        if request.peer.transport == "udp":
            self._start_datagram(job)
            return
        via = request.peer.via
        if via in self._queues:
            self._queues[via].append(job)
            return
        if len(self._queues) >= MAX_STREAMS:
            raise Refusal(Rcode.SERVFAIL, "too many transfers at a time, try again", ede=Ede.NOT_READY)
        self._queues[via] = deque((job,))
        self._tasks[via] = asyncio.get_running_loop().create_task(self._serve(via, request.peer))

    def _admit(self, request: Authenticated, reply: Reply, done: Done) -> _Job:
        message, peer = request.message, request.peer
        if len(message.questions) != 1:
            raise Refusal(Rcode.FORMERR, "a transfer has one question")
        question = message.questions[0]
        zone = self._zones.at(fold(question.name))
        if zone is None or question.rclass != Class.IN:
            raise Refusal(Rcode.NOTAUTH, f"{to_text(question.name)} is no zone served here", ede=Ede.NOT_AUTHORITATIVE)
        rules = self._settings.rules_for(zone.apex, is_private=zone.is_private)
        may_transfer(request.principal, zone, peer.address, rules)
        self._check_way(zone, peer, rules)
        if question.rtype == Type.IXFR:
            return _Job(request, reply, zone.apex, ixfr.client_serial(message, zone.apex), done)
        if peer.transport == "udp":
            raise Refusal(Rcode.REFUSED, "a whole zone goes over TCP or TLS", ede=Ede.NOT_SUPPORTED)
        return _Job(request, reply, zone.apex, None, done)

    def _check_way(self, zone: Zone, peer: Peer, rules: TransferRules) -> None:
        """What goes over TLS goes as RFC 9103 §7.1 and §7.2 say: TLS 1.3, ALPN "dot"."""
        tls = self._streams().tls(peer) if peer.transport == "tls" else None
        if tls is not None and tls != XOT:
            raise Refusal(
                Rcode.REFUSED, "a transfer over TLS needs TLS 1.3 and ALPN dot (RFC 9103)", ede=Ede.NOT_SUPPORTED
            )
        if rules.xot_only and tls is None:
            raise Refusal(
                Rcode.REFUSED, f"zone {to_text(zone.apex)} is transferred over TLS only", ede=Ede.NOT_SUPPORTED
            )

    async def _difference(self, zone: Zone, serial: int) -> list[RR] | None:
        """What changed since `serial`; None when the zone itself is the better answer."""
        if not ixfr.is_near(zone, serial):
            return None
        changes = await self._store.changes_since(zone.id, serial)
        if not changes:
            return None
        records = ixfr.difference(changes)
        return records if ixfr.is_worth_it(records, zone) else None

    # -- over streams ------------------------------------------------------------------------------

    async def _serve(self, via: int, peer: Peer) -> None:
        """The transfers of one stream in order. After a fault of ours the stream ends, so that the client knows."""
        queue = self._queues[via]
        try:
            while queue:
                await self._transfer(queue[0])
                queue.popleft()
        except TimeoutError:
            log.info("transfer stalled, connection dropped", **_who(queue[0].request))
            self._streams().abort(peer)
        except Exception:
            self._metrics.faults.labels("transfer").inc()
            log.exception("fault in a transfer", **_who(queue[0].request))
            self._streams().abort(peer)
        finally:
            del self._queues[via], self._tasks[via]

    async def _transfer(self, job: _Job) -> None:
        """One whole transfer. One message is made at a time, when the peer has read enough of those before."""
        peer, started = job.request.peer, self._clock.monotonic()
        try:
            kind, records = await self._records(job)
        except StoreError as error:
            self._metrics.store_errors.inc()
            log.error("transfer failed, the journal cannot be read", error=str(error))
            job.done(_failure(job.reply, "the database cannot be read"))
            return
        except Refusal as refusal:
            job.done(_failure(job.reply, refusal.reason))
            return
        held = b""
        count = octets = 0
        for wire in axfr.messages(job.request, records, self._clock.unix):
            if held:
                self._streams().send(peer, held)
            held = wire
            count, octets = count + 1, octets + len(wire)
            await self._turn(peer.via)
        job.done(held)
        ms = round((self._clock.monotonic() - started) * 1000, 2)
        self._metrics.transferred(kind)
        log.info("transfer", kind=kind, messages=count, octets=octets, ms=ms, **_who(job.request))

    async def _records(self, job: _Job) -> tuple[str, Iterable[RR]]:
        """Name of the form of the answer, and its records."""
        changed: list[RR] | None = None
        zone = self._zones.at(job.apex)
        if zone is not None and job.serial is not None:
            if ixfr.is_current(zone, job.serial):
                return "current", (zone.soa_rr(),)
            changed = await self._difference(zone, job.serial)
            zone = self._zones.at(job.apex)
        if zone is None:
            raise Refusal(Rcode.SERVFAIL, f"zone {to_text(job.apex)} is gone")
        if changed is not None:
            return "ixfr", changed
        return "axfr", axfr.zone_stream(zone, int(self._clock.lease()))

    async def _turn(self, via: int) -> None:
        """Let others have the loop, and the peer read; `TimeoutError` when it does not."""
        await asyncio.sleep(0)
        event = self._paused.get(via)
        if event is not None:
            async with asyncio.timeout(STALL_SECONDS):
                await event.wait()

    def stream_paused(self, via: int) -> None:
        """The peer does not keep up with reading: its transfer waits."""
        self._paused.setdefault(via, asyncio.Event())

    def stream_resumed(self, via: int) -> None:
        event = self._paused.pop(via, None)
        if event is not None:
            event.set()

    def stream_closed(self, via: int) -> None:
        self._paused.pop(via, None)
        task = self._tasks.get(via)
        if task is not None:
            task.cancel()

    # -- over UDP ----------------------------------------------------------------------------------

    def _start_datagram(self, job: _Job) -> None:
        """An IXFR that fits a packet, else the single SOA, at which the client comes by TCP (RFC 1995 §2)."""
        zone = self._zones.at(job.apex)
        assert zone is not None and job.serial is not None
        if ixfr.is_current(zone, job.serial) or len(self._datagrams) >= MAX_STREAMS:
            job.done(_packet(job.reply, zone, None))
            return
        task = asyncio.get_running_loop().create_task(self._datagram(job, zone, job.serial))
        self._datagrams.add(task)
        task.add_done_callback(self._datagrams.discard)

    async def _datagram(self, job: _Job, zone: Zone, serial: int) -> None:
        try:
            changed = await self._difference(zone, serial)
            job.done(_packet(job.reply, zone, changed))
        except StoreError as error:
            self._metrics.store_errors.inc()
            log.error("transfer failed, the journal cannot be read", error=str(error))
            job.done(_failure(job.reply, "the database cannot be read"))
        except Exception:
            self._metrics.faults.labels("transfer").inc()
            log.exception("fault in a transfer", **_who(job.request))

    # -- changes -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Serving from now on: tell secondaries, who may have waited for us (RFC 1996 §4.1)."""
        self._notifier.begin()

    def publish(self, apex: bytes) -> None:
        """A zone changed, came or went; queries see it already."""
        self._notifier.publish(apex)

    def told(self, apex: bytes) -> list[dict[str, Any]]:
        """See `Notifier.told`."""
        return self._notifier.told(apex)

    def notify_answered(self, message: Message, peer: Peer) -> bool:
        """Whether a response was the answer to a NOTIFY of ours."""
        return self._notifier.answered(message, peer)

    async def close(self) -> None:
        """Break off what is under way; the streams close after this."""
        self._notifier.close()
        tasks = [*self._tasks.values(), *self._datagrams]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _packet(reply: Reply, zone: Zone, changed: list[RR] | None) -> bytes:
    builder = reply.builder((), flags=AA)
    start = builder.checkpoint()
    if changed is None or not all(builder.answer(rr.owner, rr.rtype, rr.ttl, rr.rdata) for rr in changed):
        builder.rollback(start)
        soa = zone.soa_rr()
        builder.answer(soa.owner, soa.rtype, soa.ttl, soa.rdata)
    return reply.finish(builder, Rcode.NOERROR, ())


def _failure(reply: Reply, reason: str) -> bytes:
    return reply.build(Rcode.SERVFAIL, None, [extended_error(Ede.NOT_READY, reason)])


def _who(request: Authenticated) -> dict[str, str]:
    """Zone, peer and key for a log line."""
    questions, peer = request.message.questions, request.peer
    return {
        "zone": to_text(questions[0].name) if questions else "-",
        "peer": f"{peer.address}#{peer.port}/{peer.transport}",
        "key": to_text(request.principal.key.name) if request.principal else "-",
    }
