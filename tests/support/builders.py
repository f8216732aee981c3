"""Short ways to say zones, messages and keys in tests, and a server core without sockets to put them to.

Rdata is written as master-file text and encoded by dnspython, so that our own codecs do not vouch for themselves.
"""

import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final, NamedTuple, TypeVar

import dns.rdata
import dns.rdataclass
import dns.rdatatype

from protocol.constants import QR, RD, Class, Opcode, Rcode, Type, type_from_text, type_text
from protocol.edns import Opt, UpdateLease, extended_errors, update_lease
from protocol.message import Message, Question, Record, decode, encode
from protocol.name import fold, from_text, to_text
from protocol.rdata import canonical, soa_with_serial
from protocol.tsig import SHA256, Key, sign
from server.addresses import packed
from server.config import LeaseSettings
from server.cookies import Cookies
from server.dispatch import Dispatcher
from server.guard import Guard
from server.keyring import Keyring, Principal
from server.metrics import Metrics
from server.peer import Peer
from server.reply import Reply
from server.request import Authenticated
from server.response_limit import ResponseLimiter, ResponseLimits
from server.store.api import NodeMoved, StoreError, Superseded, ZoneRow
from server.store.packing import checked_nodes, decoded_nodes
from server.writer import Writer
from server.zone.leases import LeaseQueue
from server.zone.model import RR, Change, StoredRR, ZoneCommit
from server.zone.node import Node, StoredNode, encode_node
from server.zone.zone import Zone, Zones
from tests.support import simloop
from tests.support.zones import Rows, rows_of_nodes, stored_nodes

_T = TypeVar("_T")

ZONE: Final = "members.example."
T0: Final = 1_700_000_000
"""Where manual clocks start, seconds since 1970."""
SOA_TEXT: Final = "ns.members.example. hostmaster.members.example. {serial} 3600 600 86400 {minimum}"


def name(text: str) -> bytes:
    """Wire form of a presentation name."""
    return from_text(text)


def rdata(rtype: str, text: str) -> bytes:
    """Uncompressed rdata of master-file text, by dnspython; `TYPEnnn` takes RFC 3597 text."""
    kind = dns.rdatatype.from_text(rtype)
    return dns.rdata.from_text(dns.rdataclass.IN, kind, text, origin=None, relativize=False).to_wire() or b""


def soa_rdata(serial: int = 1, minimum: int = 60) -> bytes:
    return rdata("SOA", SOA_TEXT.format(serial=serial, minimum=minimum))


def stored(line: str, *, expires_at: int | None = None) -> StoredRR:
    """A record from `owner TTL TYPE rdata`."""
    owner, ttl, rtype, text = line.split(maxsplit=3)
    return StoredRR(name(owner), type_from_text(rtype), int(ttl), rdata(rtype, text), expires_at)


def zone_of_records(
    records: Iterable[StoredRR],
    *,
    apex: str = ZONE,
    serial: int = 1,
    minimum: int = 60,
    soa_ttl: int = 300,
    member_id: int | None = None,
    zone_id: int = 1,
) -> Zone:
    """A zone in memory; records of one owner need not stand together."""
    zone = Zone(zone_id, fold(name(apex)), serial, soa_rdata(serial, minimum), soa_ttl, member_id)
    zone.load(stored_nodes(records))
    return zone


def zone_of_text(text: str, **more: Any) -> Zone:
    """A zone from lines of `owner TTL TYPE rdata`; see `zone_of_records`."""
    return zone_of_records([stored(line) for line in text.strip().splitlines()], **more)


Content = dict[tuple[bytes, int], tuple[int, frozenset[bytes]]]
"""Folded owner and type -> TTL and canonical rdatas: what two zones of equal content agree on."""


def content(zone: Zone, now: int = 0) -> Content:
    """What a zone holds, its SOA with the serial left out."""
    found: dict[tuple[bytes, int], tuple[int, set[bytes]]] = {}
    for rr in zone.records(now):
        data = soa_with_serial(rr.rdata, 0) if rr.rtype == Type.SOA else rr.rdata
        found.setdefault((fold(rr.owner), rr.rtype), (rr.ttl, set()))[1].add(canonical(rr.rtype, data))
    return {key: (ttl, frozenset(datas)) for key, (ttl, datas) in found.items()}


# Messages


class Item(NamedTuple):
    """One RR of an UPDATE's prerequisite or update section, raw."""

    owner: bytes
    rtype: int
    rclass: int
    ttl: int
    rdata: bytes


def add(owner: str, ttl: int, rtype: str, text: str) -> Item:
    return Item(name(owner), type_from_text(rtype), Class.IN, ttl, rdata(rtype, text))


def delete_rr(owner: str, rtype: str, text: str) -> Item:
    return Item(name(owner), type_from_text(rtype), Class.NONE, 0, rdata(rtype, text))


def delete_rrset(owner: str, rtype: str) -> Item:
    return Item(name(owner), type_from_text(rtype), Class.ANY, 0, b"")


def delete_name(owner: str) -> Item:
    return Item(name(owner), Type.ANY, Class.ANY, 0, b"")


def name_in_use(owner: str) -> Item:
    return Item(name(owner), Type.ANY, Class.ANY, 0, b"")


def name_not_in_use(owner: str) -> Item:
    return Item(name(owner), Type.ANY, Class.NONE, 0, b"")


def rrset_exists(owner: str, rtype: str) -> Item:
    return Item(name(owner), type_from_text(rtype), Class.ANY, 0, b"")


def rrset_absent(owner: str, rtype: str) -> Item:
    return Item(name(owner), type_from_text(rtype), Class.NONE, 0, b"")


def rrset_equals(owner: str, rtype: str, text: str) -> Item:
    """One RR of a value-dependent prerequisite."""
    return Item(name(owner), type_from_text(rtype), Class.IN, 0, rdata(rtype, text))


def update_message(
    ops: Sequence[Item] = (),
    prerequisites: Sequence[Item] = (),
    *,
    zone: str = ZONE,
    lease: UpdateLease | int | None = None,
    edns: bool = True,
    id: int = 0x1234,
    flags: int = 0,
) -> bytes:
    """An unsigned UPDATE. `lease`: seconds in the 4-octet form, or the option."""
    wish = UpdateLease(lease) if isinstance(lease, int) and not isinstance(lease, tuple) else lease
    options = (wish.encode(),) if wish is not None else ()
    return encode(
        id,
        Opcode.UPDATE << 11 | flags,
        [Question(name(zone), Type.SOA, Class.IN)],
        prerequisites,
        ops,
        opt=Opt(1232, options=options) if edns or options else None,
    )


def query_message(
    owner: str,
    rtype: str | int = "A",
    *,
    rclass: int = Class.IN,
    edns: Opt | None = None,
    id: int = 0x4321,
    flags: int = RD,
) -> bytes:
    kind = rtype if isinstance(rtype, int) else int(dns.rdatatype.from_text(rtype))
    return encode(id, flags, [Question(name(owner), kind, rclass)], opt=edns)


def key(text: str, secret: bytes = b"") -> Key:
    """A hmac-sha256 key; its secret is made from its name unless given."""
    return Key(fold(name(text)), SHA256, secret or (text.encode() * 32)[:32])


def signed(wire: bytes, with_key: Key, now: int, **more: Any) -> tuple[bytes, bytes]:
    """(signed message, its MAC)."""
    return sign(wire, with_key, now=now, **more)


@dataclass(frozen=True)
class Seen:
    """A reply as a client sees it."""

    wire: bytes
    message: Message

    @property
    def rcode(self) -> Rcode:
        extended = self.message.opt.extended_rcode if self.message.opt else 0
        return Rcode(extended << 4 | self.message.header.rcode)

    def flag(self, bit: int) -> bool:
        return bool(self.message.header.flags & bit)

    def section(self, records: Sequence[Record]) -> list[tuple[str, int, str, bytes]]:
        return [(to_text(r.name), r.ttl, type_text(r.rtype), r.rdata(self.wire)) for r in records]

    @property
    def answers(self) -> list[tuple[str, int, str, bytes]]:
        """(owner, TTL, type, rdata) in order."""
        return self.section(self.message.answers)

    @property
    def authority(self) -> list[tuple[str, int, str, bytes]]:
        return self.section(self.message.authority)

    @property
    def additional(self) -> list[tuple[str, int, str, bytes]]:
        """Without OPT and TSIG."""
        return self.section([r for r in self.message.additional if r.rtype not in (Type.OPT, Type.TSIG)])

    @property
    def lease(self) -> UpdateLease | None:
        return update_lease(self.message.opt)

    @property
    def errors(self) -> list[tuple[int, str]]:
        """Extended DNS errors: (info code, text)."""
        return extended_errors(self.message.opt)


def seen(wire: bytes) -> Seen:
    """Take a reply apart; it must be a response."""
    message = decode(wire)
    assert message.header.flags & QR
    return Seen(wire, message)


# A server core without sockets

UDP: Final = Peer("udp", "192.0.2.7", 40000, 0)
UDP_ADDRESS: Final = packed(UDP.address)
TCP: Final = Peer("tcp", "192.0.2.7", 40000, 7)


class ManualClock:
    """All three readings from one number that a test moves."""

    def __init__(self, now: float = T0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def unix(self) -> int:
        return int(self.now)

    def lease(self) -> float:
        return self.now


class LoopClock(ManualClock):
    """A manual clock that also goes on with a loop's time."""

    def __init__(self, time: Callable[[], float], start: float = T0) -> None:
        self._time = time
        self._start = start

    @property
    def now(self) -> float:
        return self._start + self._time()

    @now.setter
    def now(self, value: float) -> None:
        self._start += value - self.now


@dataclass
class TableStore:
    """The nodes, serials and journal of zones, strict about what a ZoneCommit may say; fails on demand.

    `failures` are raised by the next commits, one each (None: that one works), `read_failures` by the
    next reads of zones. It does no more than the writer needs.
    """

    zones: dict[int, ZoneRow] = field(default_factory=dict)
    nodes: dict[int, dict[bytes, tuple[bytes, bytes]]] = field(default_factory=dict)  # owner and data by folded owner
    journal: dict[int, list[Change]] = field(default_factory=dict)
    commits: list[ZoneCommit] = field(default_factory=list)
    failures: list[StoreError | None] = field(default_factory=list)
    read_failures: list[StoreError] = field(default_factory=list)
    before_commit: Callable[[], Coroutine[Any, Any, None]] | None = None
    before_load: Callable[[], Coroutine[Any, Any, None]] | None = None

    def hold(self, zone: Zone) -> None:
        """Take a zone as it stands into the store."""
        kind = "service" if zone.member_id is None else "member"
        self.zones[zone.id] = ZoneRow(
            zone.id, zone.apex, kind, zone.member_id, zone.serial, zone.soa_template, zone.soa_ttl
        )
        self.nodes[zone.id] = {}
        for key in zone.nodes:
            node = zone.node(key)
            assert node is not None
            self.nodes[zone.id][key] = node.owner, encode_node(node)
        self.journal[zone.id] = []

    @property
    def rows(self) -> dict[int, Rows]:
        """The records of each zone."""
        return {
            zone_id: rows_of_nodes(node.decode() for node in checked_nodes(zone_id, nodes.values()))
            for zone_id, nodes in self.nodes.items()
        }

    async def commit(self, commits: Sequence[ZoneCommit]) -> None:
        if self.before_commit is not None:
            await self.before_commit()
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        for commit in commits:
            row = self.zones.get(commit.zone_id)
            if row is None or row.serial != commit.serial_from:
                raise Superseded(commit.zone_id)
            for change in commit.nodes:
                if self.nodes[commit.zone_id].get(change.key, (b"", None))[1] != change.before:
                    raise NodeMoved(commit.zone_id)
        for commit in commits:
            self._apply(commit)
        self.commits.extend(commits)

    def _apply(self, commit: ZoneCommit) -> None:
        nodes = self.nodes[commit.zone_id]
        keys = [change.key for change in commit.nodes]
        assert len(keys) == len(set(keys)), "a name stands twice in one commit"
        assert keys or commit.changes, "a commit of nothing"
        for key, owner, before, after, _ in commit.nodes:
            assert key == fold(owner)
            assert before != after, "a node that does not change"
            if after is None:
                del nodes[key]
            else:
                nodes[key] = owner, after
        serial = commit.serial_from
        for change in commit.changes:
            assert change.serial_from == serial != change.serial_to
            serial = change.serial_to
        assert serial == commit.serial_to
        self.journal[commit.zone_id].extend(commit.changes)
        row = self.zones[commit.zone_id]
        soa, ttl = commit.soa or (row.soa, row.soa_ttl)
        self.zones[commit.zone_id] = row._replace(serial=serial, soa=soa, soa_ttl=ttl)

    def reading(self) -> AbstractAsyncContextManager["TableStore"]:
        @asynccontextmanager
        async def reading() -> AsyncIterator[TableStore]:
            yield self

        return reading()

    async def load_zones(self) -> list[ZoneRow]:
        if self.read_failures:
            raise self.read_failures.pop(0)
        return list(self.zones.values())

    async def load_zone(self, zone_id: int) -> AsyncIterator[list[StoredNode]]:
        if self.before_load is not None:
            await self.before_load()
        yield checked_nodes(zone_id, (row for _, row in sorted(self.nodes[zone_id].items())))

    async def load_nodes(self, zone_id: int, owners: Iterable[bytes]) -> dict[bytes, Node]:
        rows = self.nodes[zone_id]
        return decoded_nodes(zone_id, (rows[owner] for owner in set(owners) if owner in rows))

    async def changes_since(self, zone_id: int, serial: int) -> list[Change] | None:
        journal = self.journal[zone_id]
        if serial == self.zones[zone_id].serial:
            return []
        for index, change in enumerate(journal):
            if change.serial_from == serial:
                return journal[index:]
        return None


def rows_of(zone: Zone) -> Rows:
    """The records a store holds for a zone as it stands."""
    return rows_of_nodes(node for node in map(zone.node, zone.nodes) if node is not None)


def rebuild(row: ZoneRow, rows: Rows) -> Zone:
    """A zone in memory from rows, as a restart would."""
    zone = Zone(row.id, row.apex, row.serial, row.soa, row.soa_ttl, row.member_id)
    zone.load(stored_nodes(rows.values()))
    return zone


def replay(first: Zone, changes: Iterable[Change]) -> Content:
    """What an IXFR client holds that started from `first` and follows the changes; asserts that each one fits."""
    records = {(fold(rr.owner), rr.rtype, canonical(rr.rtype, rr.rdata)): rr.ttl for rr in first.records(0)}
    serial = first.serial
    for change in changes:
        assert change.serial_from == serial
        assert change.removed[0].rtype == change.added[0].rtype == Type.SOA
        for rr in change.removed:
            assert records.pop(_identity(rr)) == rr.ttl
        for rr in change.added:
            assert _identity(rr) not in records
            records[_identity(rr)] = rr.ttl
        serial = change.serial_to
    found: dict[tuple[bytes, int], tuple[int, set[bytes]]] = {}
    for (owner_key, rtype, data), ttl in records.items():
        whole = soa_with_serial(data, 0) if rtype == Type.SOA else data
        at = found.setdefault((owner_key, rtype), (ttl, set()))
        assert at[0] == ttl, "an RRset has one TTL"
        at[1].add(whole)
    return {key: (ttl, frozenset(datas)) for key, (ttl, datas) in found.items()}


def _identity(rr: RR) -> tuple[bytes, int, bytes]:
    return fold(rr.owner), rr.rtype, canonical(rr.rtype, rr.rdata)


class SilentPush:
    """Stands for the push service: LLQ requests get NOTIMP, no response is an acknowledgement of anything."""

    def query(self, request: Authenticated, reply: Reply, *_: object) -> bytes:
        return reply.build(Rcode.NOTIMP)

    def acknowledge(self, message: Message, peer: Peer) -> bool:
        return False


def finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never has to wait, but may give others a turn, without a loop."""
    try:
        while work.send(None) is None:
            pass
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a coroutine's return value comes untyped
    work.close()
    raise AssertionError("it waits for something")


ADMIN: Final = key("admin.")
ALICE: Final = key("alice-laptop.members.example.")
BOB: Final = key("bob-phone.members.example.")
CAROL: Final = key("carol-desk.members.example.")
MEMBERS: Final = (
    Principal(ADMIN, None, None),
    Principal(ALICE, 1, fold(name("alice.members.example."))),
    Principal(BOB, 2, fold(name("bob.members.example."))),
    Principal(CAROL, 3, fold(name("carol.members.example."))),
)
SERVICE_TEXT: Final = """
    members.example. 3600 NS ns.members.example.
    ns.members.example. 3600 A 192.0.2.53
    _dns-update._udp.members.example. 3600 SRV 0 0 5300 ns.members.example.
    _dns-update._udp.alice.members.example. 3600 SRV 0 0 5300 ns.members.example.
    mac.alice.members.example. 120 A 192.0.2.1
    carol.members.example. 3600 NS ns.members.example.
"""
PRIVATE_TEXT: Final = """
    carol.members.example. 3600 NS ns.members.example.
    _dns-update._udp.carol.members.example. 3600 SRV 0 0 5300 ns.members.example.
    secret.carol.members.example. 120 A 192.0.2.99
"""


class Core:
    """Dispatcher, writer and zones over a TableStore: bytes in, bytes out, on a manual clock.

    The service zone holds open members alice and bob; carol is private and has a zone of her own.
    """

    def __init__(
        self,
        zones: Iterable[Zone] | None = None,
        *,
        allow_md5: bool = False,
        minimum_mac: int = 0,
        replay_window_seconds: int = 300,
        version: str | None = None,
        time: Callable[[], float] | None = None,
        limits: ResponseLimits | None = None,
    ) -> None:
        """`time`: the time of a virtual loop for the clock to follow, on top of T0. Cookies are on, limits as given."""
        if zones is None:
            carol = zone_of_text(PRIVATE_TEXT, apex="carol.members.example.", member_id=3, zone_id=2)
            zones = (zone_of_text(SERVICE_TEXT), carol)
        self._ids = cycle(range(1, 0x10000))
        self.clock = ManualClock() if time is None else LoopClock(time)
        self.zones = Zones(zones)
        self.store = TableStore()
        self.leases = LeaseQueue(self.zones)
        for zone in self.zones:
            self.store.hold(zone)
            for owner_key in zone.nodes:
                self.leases.watch(zone.apex, owner_key, zone.node(owner_key))
        self.metrics = Metrics()
        self.guard = Guard(Cookies(self.clock.unix, random.Random(7).getrandbits))
        if limits is not None:
            self.guard.limiter = ResponseLimiter(limits, self.clock.monotonic, self.metrics)
        self.changes: list[Change] = []
        self.keyring = Keyring(MEMBERS)
        self.push = SilentPush()
        self.writer = Writer(
            zones=self.zones,
            store=self.store,  # type: ignore[arg-type]  # the part of a store that the writer uses
            clock=self.clock,
            leases=self.leases,
            limits=LeaseSettings(),
            metrics=self.metrics,
            on_change=self.changes.append,
        )
        self.dispatcher = Dispatcher(
            zones=self.zones,
            keyring=self.keyring,
            writer=self.writer,
            push=self.push,  # type: ignore[arg-type]  # a stand-in
            clock=self.clock,
            metrics=self.metrics,
            allow_md5=allow_md5,
            minimum_mac=minimum_mac,
            replay_window_seconds=replay_window_seconds,
            guard=self.guard,
            idle_seconds=lambda: 15.0,
            version=version,
        )

    @property
    def zone(self) -> Zone:
        """The service zone."""
        zone = self.zones.at(fold(name(ZONE)))
        assert zone is not None
        return zone

    def handle(self, wire: bytes, peer: Peer = UDP) -> list[bytes]:
        """Everything that was sent for one message, the writer's turn included; b"" stands for nothing."""
        sent: list[bytes] = []
        self.dispatcher.handle(wire, peer, sent.append)
        self.write()
        return sent

    def write(self) -> None:
        """Give the writer one turn: lapses that are due, and the queue as one batch. Nothing when its task runs."""
        if isinstance(self.clock, LoopClock):
            return
        pending = list(self.writer._queue)
        self.writer._queue.clear()
        if self.store.failures:
            simloop.run(self.writer.step(pending))  # it pauses after a failure
        elif pending or self.writer._is_lapse_due():
            finish(self.writer.step(pending))

    def ask(self, wire: bytes, peer: Peer = UDP) -> Seen:
        """The one reply to a message."""
        sent = self.handle(wire, peer)
        assert len(sent) == 1, "a message has one reply"
        return seen(sent[0])

    def query(self, owner: str, rtype: str | int = "A", *, by: Key | None = None, edns: Opt | None = None) -> Seen:
        wire = query_message(owner, rtype, edns=edns)
        return self.ask(self.signed(wire, by) if by else wire)

    def update(
        self,
        *ops: Item,
        prerequisites: Sequence[Item] = (),
        by: Key | None = ADMIN,
        lease: UpdateLease | int | None = None,
        zone: str = ZONE,
    ) -> Seen:
        """Each with an ID of its own: the same octets would be taken for a repetition."""
        wire = update_message(ops, prerequisites, zone=zone, lease=lease, id=next(self._ids))
        return self.ask(self.signed(wire, by) if by else wire)

    def signed(self, wire: bytes, with_key: Key) -> bytes:
        return signed(wire, with_key, self.clock.unix())[0]
