"""A machine on a dict for a zone, a scripted LLQ client, and a wire between them that loses, doubles and delays."""

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from protocol.constants import AA, QR, RD, Class
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LlqError, LlqOpcode, LlqOption, Opt, llq_options
from protocol.message import Builder, Message, Question, decode, encode
from protocol.name import fold, from_text
from server.peer import Peer
from server.push.limits import LlqLimits
from server.push.llq_machine import LlqMachine, LlqReply
from server.push.sending import SendEvent
from server.zone.model import RR, Actor, Change

UNIX: Final = 1_800_000_000
SECRET: Final = b"only for tests"
CLIENT: Final = Peer("udp", "192.0.2.7", 40000, 1)
STREAM: Final = Peer("tls", "192.0.2.7", 50000, 9)
OTHER: Final = Peer("udp", "198.51.100.9", 40000, 1)
NAME: Final = from_text("mac.alice.members.example")


def a_record(number: int, owner: bytes = NAME, ttl: int = 60) -> RR:
    return RR(owner, 1, ttl, number.to_bytes(4, "big"))


def question(name: bytes = NAME, rtype: int = 1, rclass: int = Class.IN) -> Question:
    return Question(name, rtype, rclass)


def setup(llq_id: int = 0, lease: int = 7200, error: int = 0, version: int = 1) -> LlqOption:
    return LlqOption(version, LlqOpcode.SETUP, error, llq_id, lease)


def refresh(llq_id: int, lease: int = 7200, error: int = 0) -> LlqOption:
    return LlqOption(1, LlqOpcode.REFRESH, error, llq_id, lease)


def ack_wire(event: bytes | Message) -> bytes:
    """What a client answers to an event: its question and OPT back, as Apple's does."""
    message = decode(event) if isinstance(event, bytes) else event
    assert message.opt is not None
    return encode(message.id, QR | AA, message.questions, opt=message.opt)


@dataclass
class Host:
    """A machine with its zone and clock. Every reply is encoded and reported back as the server does."""

    limits: LlqLimits = field(default_factory=LlqLimits)
    listener: int | None = 1
    seed: int = 1

    def __post_init__(self) -> None:
        self.now = 100.0
        self.zone: dict[bytes, list[RR]] = {}
        self.lookups = 0
        self.verdicts: dict[bytes, LlqError] = {}
        self.serial = 1
        entropy = random.Random(self.seed)
        self.machine = LlqMachine(
            self.limits,
            SECRET,
            lookup=self.lookup,
            entropy=lambda: entropy.getrandbits(64),
            event_listener=lambda peer: self.listener,
        )

    @property
    def unix(self) -> int:
        return UNIX + int(self.now - 100)

    def lookup(self, asked: Question) -> list[RR]:
        self.lookups += 1
        records = self.zone.get(fold(asked.name), [])
        return [rr for rr in records if rr.rtype == asked.rtype] or [rr for rr in records if rr.rtype == 5]

    def change(self, *, remove: Iterable[RR] = (), add: Iterable[RR] = ()) -> None:
        """Commit: queries see it first, then the machine is told."""
        gone, new = tuple(remove), tuple(add)
        for rr in gone:
            self.zone[fold(rr.owner)].remove(rr)
        for rr in new:
            self.zone.setdefault(fold(rr.owner), []).append(rr)
        self.serial += 1
        self.machine.publish(
            Change(from_text("members.example"), self.serial - 1, self.serial, 0, Actor("update"), gone, new),
            now=self.now,
        )

    def raw(
        self,
        questions: Sequence[Question],
        options: Sequence[tuple[int, bytes]],
        peer: Peer = CLIENT,
        key: bytes | None = None,
    ) -> LlqReply:
        return self.machine.query(
            questions,
            Opt(options=tuple(options)),
            peer,
            key,
            admit=lambda asked: self.verdicts.get(fold(asked.name), LlqError.NO_ERROR),
            now=self.now,
            unix=self.unix,
        )

    def ask(
        self,
        *pairs: tuple[Question, LlqOption],
        peer: Peer = CLIENT,
        key: bytes | None = None,
        written: int | None = None,
    ) -> LlqReply:
        """One request, one (question, option) pair per LLQ; all answers fit unless `written` says otherwise."""
        reply = self.raw([asked for asked, _ in pairs], [option.encode() for _, option in pairs], peer, key)
        self.machine.answered(reply, len(reply.answers) if written is None else written, now=self.now)
        return reply

    def handle(self, wire: bytes, peer: Peer, limit: int = 1232) -> bytes | None:
        """A datagram or stream message in, the reply out, as the server's pipeline does it."""
        message = decode(wire)
        if message.header.is_response:
            self.machine.ack(message, peer, now=self.now)
            return None
        assert message.opt is not None
        reply = self.raw(message.questions, message.opt.options, peer)
        builder = Builder(message.id, QR | AA | (message.header.flags & RD), limit=limit - 11 - 22 * len(reply.options))
        for item in message.questions:
            builder.question(*item)
        written = 0
        for rr in reply.answers:
            if not builder.answer(*rr):
                break
            written += 1
        builder.opt(Opt(options=tuple(option.encode() for option in reply.options)))
        self.machine.answered(reply, written, now=self.now)
        return builder.finish()

    def establish(
        self, asked: Question | None = None, *, peer: Peer = CLIENT, key: bytes | None = None, lease: int = 7200
    ) -> int:
        """Four-way handshake, or the one exchange of a stream; returns the LLQ-ID."""
        asked = asked or question()
        option = self.ask((asked, setup(lease=lease)), peer=peer, key=key).options[0]
        assert option.error == 0
        if peer.transport == "udp":
            option = self.ask((asked, option), peer=peer, key=key).options[0]
            assert option.error == 0
        return option.llq_id

    def take(self) -> list[SendEvent]:
        """What is to be sent, each by itself."""
        return [event for events in self.machine.take_effects() for event in events.each()]

    def run(self, seconds: float) -> list[tuple[float, SendEvent]]:
        """Let time pass; what was sent, and when (seconds from the call)."""
        start, end = self.now, self.now + seconds
        sent: list[tuple[float, SendEvent]] = []
        while True:
            deadline = self.machine.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.machine.handle_deadline(now=self.now, unix=self.unix)
            sent += [(round(self.now - start, 3), event) for event in self.take()]
        self.now = end
        return sent

    def acknowledge(self, event: SendEvent, peer: Peer | None = None) -> bool:
        return self.machine.ack(decode(ack_wire(event.wire)), peer or event.peer, now=self.now)

    def settle(self, seconds: float = 5.0) -> list[SendEvent]:
        """Let time pass with a client that acknowledges everything; the events."""
        seen: list[SendEvent] = []
        end = self.now + seconds
        while True:
            deadline = self.machine.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.machine.handle_deadline(now=self.now, unix=self.unix)
            for event in self.take():
                seen.append(event)
                if event.peer.transport == "udp":
                    self.acknowledge(event)
        self.now = end
        return seen


def edits(wire: bytes) -> tuple[list[bytes], list[bytes]]:
    """(removed, added) rdata of an event, in order; removes must come first."""
    message = decode(wire)
    ttls = [rr.ttl == LLQ_EVENT_REMOVE_TTL for rr in message.answers]
    assert ttls == sorted(ttls, reverse=True)
    removed = [rr.raw(wire) for rr in message.answers if rr.ttl == LLQ_EVENT_REMOVE_TTL]
    return removed, [rr.raw(wire) for rr in message.answers if rr.ttl != LLQ_EVENT_REMOVE_TTL]


class Client:
    """An RFC 8764 client of one question over UDP, reduced to what the server can tell apart.

    It retries set-up at 0, 2, 6 s, refreshes at 80 % of the lease, applies no event twice, and starts anew when its
    lease ran out or the server does not know it.
    """

    def __init__(self, asked: Question, seed: int) -> None:
        self.question = asked
        self.random = random.Random(seed)
        self.restart(0.0)

    def restart(self, now: float) -> None:
        self.state = "start"
        self.llq_id = 0
        self.lease = 7200
        self.view: set[tuple[int, bytes]] = set()
        self.seen: list[int] = []
        self.expires = self.wake = now
        self.tries = 0
        self.pending_id = 0

    def next_wake(self) -> float:
        return self.wake

    def awake(self, now: float) -> list[bytes]:
        if self.state == "established":
            if now >= self.expires:
                self.restart(now)
                return self.awake(now)
            self.wake = min(self.expires, now + self.lease * 0.05)
            self.pending_id = self.random.getrandbits(16)
            return [self._encode(refresh(self.llq_id, self.lease))]
        if self.tries == 3:
            self.restart(now)
        if self.state == "start" or self.tries == 0:
            self.pending_id = self.random.getrandbits(16)
        self.wake = now + (2.0, 4.0, 8.0)[self.tries]
        self.tries += 1
        return [self._encode(setup(self.llq_id, self.lease))]

    def receive(self, wire: bytes, now: float) -> list[bytes]:
        message = decode(wire)
        (option,) = llq_options(message.opt)
        if option.opcode == LlqOpcode.EVENT:
            return self._event(message, wire, option)
        if message.id != self.pending_id:
            return []
        if option.opcode == LlqOpcode.REFRESH:
            self._refreshed(option, now)
            return []
        if option.error:
            self.restart(now)
            self.wake = now + 1
            return []
        if self.state == "start":
            self.state, self.llq_id, self.lease, self.tries = "challenged", option.llq_id, option.lease, 0
            return self.awake(now)
        if self.state == "challenged" and option.llq_id == self.llq_id and message.id == self.pending_id:
            self.state = "established"
            self.view = {(rr.rtype, rr.raw(wire)) for rr in message.answers}
            self.lease = option.lease
            self.expires, self.wake = now + option.lease, now + option.lease * 0.8
        return []

    def _refreshed(self, option: LlqOption, now: float) -> None:
        if self.state != "established" or option.llq_id != self.llq_id:
            return
        if option.error:
            self.restart(now)
        else:
            self.expires, self.wake = now + option.lease, now + option.lease * 0.8

    def _event(self, message: Message, wire: bytes, option: LlqOption) -> list[bytes]:
        if self.state != "established" or option.llq_id != self.llq_id:
            return []
        if message.id not in self.seen:
            self.seen = [*self.seen[-20:], message.id]
            for rr in message.answers:
                item = (rr.rtype, rr.raw(wire))
                if rr.ttl == LLQ_EVENT_REMOVE_TTL:
                    self.view.discard(item)
                else:
                    self.view.add(item)
        return [ack_wire(message)]

    def _encode(self, option: LlqOption) -> bytes:
        return encode(self.pending_id, RD, [self.question], opt=Opt(payload_size=0, options=(option.encode(),)))


class Wire:
    """Host and clients joined by datagrams that may be lost, doubled and late, in virtual time."""

    def __init__(self, host: Host, clients: dict[Peer, Client], seed: int) -> None:
        self.host = host
        self.clients = clients
        self.random = random.Random(seed)
        self.loss = self.duplication = 0.0
        self.flight: list[tuple[float, int, Peer, bool, bytes]] = []
        self.ticket = count()
        for client in clients.values():
            client.restart(host.now)

    def put(self, peer: Peer, to_host: bool, wire: bytes) -> None:
        copies = 0 if self.random.random() < self.loss else 1 + (self.random.random() < self.duplication)
        for _ in range(copies):
            delay = self.random.uniform(0.001, 0.4 if self.duplication else 0.01)
            heapq.heappush(self.flight, (self.host.now + delay, next(self.ticket), peer, to_host, wire))

    def take(self) -> list[SendEvent]:
        """What is to be sent, each by itself."""
        return [event for events in self.machine.take_effects() for event in events.each()]

    def run(self, seconds: float) -> None:
        host, end = self.host, self.host.now + seconds
        while True:
            deadline = host.machine.next_deadline()
            moments = [] if deadline is None else [deadline]
            moments += [self.flight[0][0]] if self.flight else []
            moments += [client.next_wake() for client in self.clients.values()]
            moment = max(host.now, min(moments))
            if moment > end:
                host.now = end
                return
            host.now = moment
            self._step()

    def _step(self) -> None:
        host = self.host
        while self.flight and self.flight[0][0] <= host.now:
            _, _, peer, to_host, wire = heapq.heappop(self.flight)
            if to_host:
                reply = host.handle(wire, peer)
                if reply is not None:
                    self.put(peer, False, reply)
            else:
                for answer in self.clients[peer].receive(wire, host.now):
                    self.put(peer, True, answer)
        for peer, client in self.clients.items():
            if client.next_wake() <= host.now:
                for wire in client.awake(host.now):
                    self.put(peer, True, wire)
        host.machine.handle_deadline(now=host.now, unix=host.unix)
        for event in host.take():
            if event.peer in self.clients:
                self.put(event.peer, False, event.wire)
