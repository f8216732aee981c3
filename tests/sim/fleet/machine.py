"""A light machine: publishes its records with a lease, watches others, moves, crashes and comes back."""

from collections import Counter
from random import Random
from typing import Any, Final, NamedTuple, Protocol

from protocol.constants import QR, Class, Opcode, Rcode, Type
from protocol.edns import LLQ_EVENT_REMOVE_TTL, LlqOpcode, LlqOption, Opt, UpdateLease, llq_options, update_lease
from protocol.message import Message, Question, Record, decode, encode
from protocol.name import fold
from protocol.rdata import canonical
from protocol.tsig import Key, sign
from tests.sim.fleet.air import LATE_SECONDS, Air
from tests.sim.fleet.loop import FleetLoop
from tests.sim.fleet.truth import Truth
from tests.support.clock import START_UNIX
from tests.support.simloop import Address
from tests.support.zones import RowKey

HOSTS_A_MEMBER: Final = 10
UPDATE_LEASES: Final = (2 * 3600, 24 * 3600)
"""Seconds, drawn by each life of a machine: from what RFC 6281 has to what RFC 9664 makes usual, rather the latter."""
WATCH_LEASES: Final = (8 * 3600, 20 * 3600)
REMEMBERED_SECONDS: Final = 60.0  # message IDs of events applied

Item = tuple[int, bytes]


class Op(NamedTuple):
    """A record of an update section."""

    name: bytes
    rtype: int
    rclass: int
    ttl: int
    rdata: bytes

    def row_key(self) -> RowKey:
        return RowKey(fold(self.name), self.rtype, canonical(self.rtype, self.rdata))


def _acknowledgement(event: Message, wire: bytes) -> bytes:
    """ID, question and OPT of the event as they stand there (RFC 8764 §6)."""
    opt = next(record for record in event.additional if record.rtype == Type.OPT)
    header = wire[:2] + QR.to_bytes(2, "big") + bytes((0, 1, 0, 0, 0, 0, 0, 1))
    return header + wire[12 : event.answers[0].offset] + wire[opt.offset : opt.rdata_offset + opt.rdlength]


class Member:
    def __init__(self, domain: bytes, zone: bytes, key: Key, *, is_private: bool) -> None:
        self.domain, self.zone, self.key, self.is_private = domain, zone, key, is_private
        self.machines: list[Machine] = []


class World(Protocol):
    """What a machine knows of the world around it."""

    rng: Random
    loop: FleetLoop
    air: Air
    truth: Truth
    counts: Counter[str]

    def new_place(self) -> Address: ...


class Sub:
    """One question a machine watches."""

    __slots__ = ("expires_at", "is_live", "lease", "llq_id", "place", "question", "seen", "view")

    def __init__(self, question: Question, lease: int) -> None:
        self.question = question
        self.place = fold(question.name), question.rtype
        self.llq_id = 0
        self.lease = lease
        self.view: set[Item] = set()
        self.is_live = False
        self.expires_at = 0.0
        self.seen: dict[int, float] = {}


class _Update(NamedTuple):
    id: int
    wire: bytes
    added: list[RowKey]
    lease: int
    sent_at: float


class Machine:
    """Publishes its address, service and place in the member's list; watches news, and the list or another machine."""

    def __init__(self, world: World, member: Member, number: int) -> None:
        self._world = world
        self._rng = world.rng
        self._loop = world.loop
        self._member = member
        member.machines.append(self)
        self.name = b"\x04" + b"h%03d" % number + member.domain
        self.service = b"\x0b_autotunnel\x04_udp" + self.name
        self.browse = b"\x0b_autotunnel\x04_udp" + member.domain
        self.is_up = False
        self.lives = 0
        self.place: Address = ("0.0.0.0", 0)
        self.port = 4500
        self.subs: list[Sub] = []
        self.update_lease = self.watch_lease = 0
        self._update: _Update | None = None
        self._wants_update = False
        self._renewal = 0
        self._llq_id = -1
        self._stage: list[Sub] = []
        self._is_met = False
        self._is_set_up = False
        self._refresh_id = -1
        self._refreshed: list[Sub] = []
        self._refresh_turn = 0

    def _later(self, seconds: float, what: Any, *more: Any) -> None:
        self._loop.after(seconds, self._wake, self.lives, what, more)

    def _wake(self, life: int, what: Any, more: tuple[Any, ...]) -> None:
        if self.is_up and self.lives == life:
            what(*more)

    def start(self) -> None:
        """Wake up somewhere, knowing nothing."""
        self.is_up = True
        self.lives += 1
        self.update_lease = round(self._rng.triangular(*UPDATE_LEASES, UPDATE_LEASES[1]))
        self.watch_lease = self._rng.randint(*WATCH_LEASES)
        self._update, self._is_set_up, self._wants_update = None, False, False
        self.subs = [Sub(Question(name, rtype, Class.IN), self.watch_lease) for name, rtype in self._interests()]
        self._move_in()
        self._later(self._rng.uniform(0.0, 3.0), self.publish)
        self._later(self._rng.uniform(0.0, 5.0), self._set_up)

    def _interests(self) -> list[tuple[bytes, int]]:
        other = self._rng.choice([other for other in self._member.machines if other is not self])
        one = self._rng.choice(((self.browse, Type.PTR), (other.name, Type.A), (other.service, Type.SRV)))
        return [one, (b"\x04news" + self._member.domain, Type.TXT)]

    def _move_in(self) -> None:
        self._world.air.machines.pop(self.place, None)
        self.place = self._world.new_place()
        self._world.air.machines[self.place] = self.receive

    def move(self) -> None:
        """Another network: another address, another mapped port, all set up anew from there."""
        self._move_in()
        self.port = self._rng.randrange(1024, 65536)
        for sub in self.subs:
            sub.is_live = False
        self._is_set_up = False
        self.publish()
        self._later(self._rng.uniform(0.0, 1.0), self._set_up)

    def crash(self) -> None:
        """Stop without a word."""
        self.is_up = False
        self._world.air.machines.pop(self.place, None)

    # Publication

    def records(self) -> list[tuple[bytes, int, bytes]]:
        address = bytes(int(part) for part in self.place[0].split("."))
        return [
            (self.name, Type.A, address),
            (self.service, Type.SRV, bytes(4) + self.port.to_bytes(2, "big") + self.name),
            (self.browse, Type.PTR, self.service),
        ]

    def publish(self) -> None:
        """One update at a time, so that none overtakes another."""
        if self._update is not None:
            self._wants_update = True
            return
        self._wants_update = False
        ops = [
            Op(self.name, Type.A, Class.ANY, 0, b""),
            Op(self.service, Type.SRV, Class.ANY, 0, b""),
            *(Op(owner, rtype, Class.IN, 120, rdata) for owner, rtype, rdata in self.records()),
        ]
        self._send_update(ops, self.update_lease)

    def withdraw(self) -> None:
        """Say goodbye, if nothing else is under way."""
        if self._update is None:
            self._send_update([Op(owner, rtype, Class.NONE, 0, rdata) for owner, rtype, rdata in self.records()], 0)

    def _send_update(self, ops: list[Op], lease: int) -> None:
        id = self._rng.getrandbits(16)
        opt = Opt(options=(UpdateLease(lease).encode(),) if lease else ())
        wire = encode(id, Opcode.UPDATE << 11, [Question(self._member.zone, Type.SOA, Class.IN)], (), ops, opt=opt)
        added = [op.row_key() for op in ops if op.rclass == Class.IN]
        gone = [op.row_key() for op in ops if op.rclass == Class.NONE]
        replaced = [(fold(op.name), op.rtype) for op in ops if op.rclass == Class.ANY]
        self._world.truth.update_sent(gone, replaced, added, lease)
        self._renewal += 1
        self._update = _Update(id, self._sign(wire), added, lease, self._loop.time())
        self._try_update(self._update, 0)

    def _try_update(self, update: _Update, tries: int) -> None:
        if self._update is not update:
            return
        if tries == 5:
            self._later(LATE_SECONDS + 1, self._update_over)
            return
        self._world.truth.underway(self.place, update.id, update.added, update.lease)  # it may have moved meanwhile
        self._world.air.to_server(self.place, update.wire)
        self._later(2.0 * 2**tries, self._try_update, update, tries + 1)

    def _update_over(self) -> None:
        self._update = None
        self._later(self._rng.uniform(1.0, 30.0), self.publish)

    def _updated(self, message: Message) -> None:
        update = self._update
        if update is None or message.id != update.id:
            return
        granted = update_lease(message.opt)
        self._update = None
        if message.header.rcode != Rcode.NOERROR:
            self._world.counts[f"updates answered {message.header.rcode}"] += 1
            self._later(LATE_SECONDS + self._rng.uniform(1.0, 300.0), self.publish)
            return
        if granted is not None:
            self._world.truth.acknowledged(update.added, update.sent_at, granted.lease)
            self._later(granted.lease * self._rng.uniform(0.7, 0.85), self._renew, self._renewal)
        if self._wants_update:
            # A copy of the last one may still be under way: overtaken by the next, it would undo that.
            self._later(LATE_SECONDS, self.publish)

    def _renew(self, renewal: int) -> None:
        if renewal == self._renewal:  # else something newer was sent since
            self.publish()

    def _sign(self, wire: bytes) -> bytes:
        return sign(wire, self._member.key, now=int(START_UNIX + self._loop.time()))[0]

    # Watching

    def _say(self, stage: list[Sub], options: list[LlqOption], id: int) -> None:
        opt = Opt(0, options=tuple(item.encode() for item in options))
        wire = encode(id, 0x0100, [sub.question for sub in stage], opt=opt)
        self._world.air.to_server(self.place, self._sign(wire) if self._member.is_private else wire)

    def _set_up(self) -> None:
        """All that is not established, in one message; a challenge is answered in the same way."""
        self._begin([sub for sub in self.subs if not sub.is_live], is_met=False)

    def _begin(self, stage: list[Sub], *, is_met: bool) -> None:
        self._stage = stage
        if stage:
            self._is_met = is_met
            self._llq_id = self._rng.getrandbits(16)
            self._try_set_up(self._llq_id, 0)

    def _try_set_up(self, id: int, tries: int) -> None:
        if id != self._llq_id or not self._stage:
            return
        if tries == 3:
            self._stage = []
            self._later(self._rng.uniform(60.0, 900.0), self._set_up)
            return
        options = [
            LlqOption(1, LlqOpcode.SETUP, 0, sub.llq_id, sub.lease)
            if self._is_met
            else LlqOption(1, LlqOpcode.SETUP, 0, 0, self.watch_lease)
            for sub in self._stage
        ]
        self._say(self._stage, options, id)
        self._later((2.0, 4.0, 8.0)[tries], self._try_set_up, id, tries + 1)

    def _answered(self, message: Message, wire: bytes, options: list[LlqOption]) -> None:
        if message.id != self._llq_id or not self._stage or len(options) != len(self._stage):
            return
        stage, self._stage = self._stage, []
        good = [sub for sub, option in zip(stage, options, strict=True) if not option.error]
        if len(good) < len(stage):
            self._world.counts["refused set-ups"] += len(stage) - len(good)
            self._later(self._rng.uniform(1.0, 5.0), self._set_up)
        for sub, option in zip(stage, options, strict=True):
            if not option.error:
                sub.llq_id, sub.lease = option.llq_id, option.lease
        if not self._is_met:
            self._begin(good, is_met=True)
            return
        found = self._by_question(message.answers, wire)
        for sub in good:
            sub.view = found.get(sub.place, set())
            sub.is_live = True
            sub.seen = {}
            sub.expires_at = self._loop.time() + sub.lease
        self._world.counts["established"] += len(good)
        if good and not self._is_set_up:
            self._is_set_up = True
            self._refresh_later(0.8 * good[0].lease, 0)

    @staticmethod
    def _by_question(records: tuple[Record, ...], wire: bytes) -> dict[tuple[bytes, int], set[Item]]:
        found: dict[tuple[bytes, int], set[Item]] = {}
        for record in records:
            found.setdefault((fold(record.name), record.rtype), set()).add((record.rtype, record.rdata(wire)))
        return found

    def _refresh_later(self, seconds: float, tries: int) -> None:
        """In place of any refresh intended before."""
        self._refresh_turn += 1
        self._later(seconds, self._refresh, self._refresh_turn, tries)

    def _refresh(self, turn: int, tries: int) -> None:
        """At 80, 85, 90 and 95 % of the lease; then it has to be set up anew."""
        if turn != self._refresh_turn:
            return
        now = self._loop.time()
        for sub in self.subs:
            if sub.is_live and now >= sub.expires_at - 0.001:
                sub.is_live = False
        live = [sub for sub in self.subs if sub.is_live]
        if len(live) < len(self.subs):
            self._is_set_up = False
            self._set_up()
            return
        self._refresh_id = self._rng.getrandbits(16)
        self._refreshed = live
        self._say(live, [LlqOption(1, LlqOpcode.REFRESH, 0, sub.llq_id, sub.lease) for sub in live], self._refresh_id)
        self._refresh_later(0.05 * live[0].lease, tries + 1)

    def _renewed(self, message: Message, options: list[LlqOption]) -> None:
        if message.id != self._refresh_id or len(options) != len(self._refreshed):
            return
        self._refresh_id = -1
        for sub, option in zip(self._refreshed, options, strict=True):
            if sub.llq_id != option.llq_id or not sub.is_live:
                continue
            if option.error:
                sub.is_live = False
                self._world.counts["no such LLQ"] += 1
            else:
                sub.lease, sub.expires_at = option.lease, self._loop.time() + option.lease
        if not all(sub.is_live for sub in self.subs):
            self._set_up()
        live = [sub for sub in self.subs if sub.is_live]
        self._is_set_up = bool(live)
        if live:
            self._refresh_later(0.8 * live[0].lease, 0)

    def _event(self, message: Message, wire: bytes, option: LlqOption) -> None:
        sub = next((sub for sub in self.subs if sub.is_live and sub.llq_id == option.llq_id), None)
        if sub is None:
            return
        now = self._loop.time()
        counts = self._world.counts
        if sub.seen.get(message.id, 0.0) > now:
            counts["events again"] += 1
        else:
            sub.seen = {id: until for id, until in sub.seen.items() if until > now}
            sub.seen[message.id] = now + REMEMBERED_SECONDS
            counts["events"] += 1
            for record in message.answers:
                item = (record.rtype, record.rdata(wire))
                if record.ttl == LLQ_EVENT_REMOVE_TTL:
                    sub.view.discard(item)
                else:
                    counts["known adds"] += item in sub.view
                    sub.view.add(item)
        self._world.air.to_server(self.place, _acknowledgement(message, wire))

    def receive(self, wire: bytes, sent_at: float) -> None:
        message = decode(wire)
        if message.header.opcode == Opcode.UPDATE:
            self._updated(message)
            return
        options = llq_options(message.opt)
        is_event = bool(options) and options[0].opcode == LlqOpcode.EVENT
        self._world.truth.told(message, wire, sent_at, is_event=is_event)
        if not options:
            return
        if is_event:
            self._event(message, wire, options[0])
        elif options[0].opcode == LlqOpcode.REFRESH:
            self._renewed(message, options)
        else:
            self._answered(message, wire, options)
