"""Answers to plain queries from octets to octets: ready ones by one dictionary look-up, new ones joined from the zone.

What is asked and answered here leaves out the message ID: a key is a datagram from octet 2 on, an answer a reply from
octet 2 on. Only what depends on nothing but these octets, the zones and the time is answered: one question of class
IN, not signed, no LLQ. `None` stands for everything else, which the dispatcher answers; both give the same octets.

Ready answers are kept in two generations. A full young one becomes the old one, whose answers come back when asked
for; what nobody asked for goes with it. A key must be seen twice to be kept, so a flood of names that are asked once
pushes nothing out. An answer knows the owner names it was made from, or that it rests on the zone as a whole (its
serial, the absence of names), and is dropped in the step that publishes a change of these; and at the moment a lease
begins to cap its TTL.
"""

import heapq
from typing import Final

from protocol.constants import HEADER_OCTETS, MAX_NAME_OCTETS, EdnsOption, Rcode, Type, is_meta_type
from protocol.edns import Opt
from protocol.name import fold, label_starts
from protocol.rdata import soa_minimum
from server.answer import resolve
from server.metrics import Requests
from server.reply import UDP_PAYLOAD
from server.system import Clock
from server.zone.model import RR, Change
from server.zone.node import Node, RRset, find_rrset
from server.zone.zone import Zone, Zones

MAX_READY: Final = 32_768  # answers in one generation
MAX_READY_OCTETS: Final = 8 * 1024 * 1024  # keys and answers of one generation
MAX_SEEN: Final = 65_536  # keys remembered as asked once
QUIET_SECONDS: Final = 2  # a zone that changed within them has its negative answers computed, not kept
FOREVER: Final = 1 << 62

_PLAIN_UDP: Final = 512
_NAME_AT: Final = HEADER_OCTETS - 2
_COUNTS_PLAIN: Final = bytes.fromhex("0001 0000 0000 0000")
_COUNTS_EDNS: Final = bytes.fromhex("0001 0000 0000 0001")
_NOT_PLAIN: Final = 0xF8  # QR and opcode, in the first octet of the flags; its AA and TC mean nothing in a query
_RD: Final = 0x01
_IN: Final = b"\x00\x01"
_OPT_HEAD: Final = b"\x00\x00\x29"
_OPT_FIXED: Final = 11
_OPT_REPLIES: Final = (
    Opt(UDP_PAYLOAD, 0, 0, False).encode(),
    Opt(UDP_PAYLOAD, 0, 0, True).encode(),
)
_LLQ: Final = EdnsOption.LLQ.to_bytes(2, "big")
_CNAME: Final = Type.CNAME.to_bytes(2, "big")
_WILDCARD: Final = b"\x01*"
# Answered by the slow path whatever the zone holds: DS is asked of the parent's side, the others are no data.
_NEVER: Final = frozenset((0, Type.OPT, Type.DS, Type.SOA, *range(128, 256)))
_WITH_TARGETS: Final = frozenset((Type.NS, Type.SRV, Type.MX))  # their answers carry addresses of other names
_SHARED_RCODES: Final = (Rcode.NOERROR, Rcode.NXDOMAIN)


def _heads(rcode: int) -> tuple[bytes, bytes]:
    """Flags and QDCOUNT of authoritative replies, by RD."""
    return bytes((0x84, rcode, 0, 1)), bytes((0x85, rcode, 0, 1))


class _Generation:
    """Answers with what they depend on. `until`: the last second, since 1970, at which an answer is right."""

    __slots__ = ("answers", "by_name", "facts", "moments", "octets")

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {}
        self.facts: dict[bytes, tuple[tuple[bytes, ...], int]] = {}
        self.by_name: dict[bytes, bytes | set[bytes]] = {}
        self.moments: list[tuple[int, bytes]] = []
        self.octets = 0

    def put(self, key: bytes, answer: bytes, names: tuple[bytes, ...], until: int) -> None:
        self.drop(key)
        self.answers[key] = answer
        self.facts[key] = names, until
        self.octets += len(key) + len(answer)
        by_name = self.by_name
        for name in names:
            have = by_name.get(name)
            if have is None:
                by_name[name] = key
            elif isinstance(have, set):
                have.add(key)
            else:
                by_name[name] = {have, key}
        if until != FOREVER:
            heapq.heappush(self.moments, (until, key))
            if len(self.moments) > 2 * MAX_READY:  # mostly of answers dropped since
                self.moments = [(at, held) for held, (_, at) in self.facts.items() if at != FOREVER]
                heapq.heapify(self.moments)

    def drop(self, key: bytes) -> None:
        answer = self.answers.pop(key, None)
        if answer is None:
            return
        self.octets -= len(key) + len(answer)
        names, _ = self.facts.pop(key)
        for name in names:
            have = self.by_name.get(name)
            if isinstance(have, set):
                have.discard(key)
                if not have:
                    del self.by_name[name]
            elif have == key:
                del self.by_name[name]

    def drop_name(self, name: bytes) -> None:
        have = self.by_name.get(name)
        if have is None:
            return
        for key in list(have) if isinstance(have, set) else (have,):
            self.drop(key)

    def drop_ended(self, now: int) -> None:
        moments = self.moments
        while moments and moments[0][0] < now:
            until, key = heapq.heappop(moments)
            facts = self.facts.get(key)
            if facts is not None and facts[1] == until:
                self.drop(key)


class _Traced(Zone):
    """A zone that notes what an answer is made from: nodes by name, absence or the SOA.

    `until`: the last second at which the leases of what was looked at leave the answer as it is.
    """

    __slots__ = ("names", "now", "rests_on_zone", "until")

    def __init__(self, zone: Zone, now: int) -> None:
        super().__init__(
            zone.id,
            zone.apex,
            zone.serial,
            zone.soa_template,
            zone.soa_ttl,
            zone.member_id,
            zone.nodes,
            zone.children,
            zone.cuts,
        )
        self.now = now
        self.names: set[bytes] = set()
        self.rests_on_zone = False
        self.until = FOREVER

    def _note(self, rrset: RRset) -> None:
        coming = [at for at in rrset.expires if at > self.now]
        if coming:
            self.until = min(self.until, min(coming) - max(rrset.ttl, 1))

    def node(self, key: bytes) -> Node | None:
        self.names.add(key)
        node = super().node(key)
        for rrset in node.rrsets.values() if node else ():
            self._note(rrset)
        return node

    def rrset(self, key: bytes, rtype: int, now: int) -> RRset | None:
        self.names.add(key)
        if rtype == Type.SOA and key == self.apex:
            self.rests_on_zone = True
        blob = self.nodes.get(key)
        found = None if blob is None else find_rrset(blob, rtype)
        if found is not None:
            self._note(found)
        return Zone.rrset(self, key, rtype, now)

    def exists(self, key: bytes) -> bool:
        if key not in self.nodes:
            self.rests_on_zone = True
        return Zone.exists(self, key)

    def soa_rr(self) -> RR:
        self.rests_on_zone = True
        return Zone.soa_rr(self)


class FastPath:
    """Ready and computed answers over `zones`. `begin` before each batch; `changed` and `node_changed` on publish."""

    def __init__(self, zones: Zones, clock: Clock, requests: Requests) -> None:
        self._zones = zones
        self._zone_at = zones.by_apex.get
        self._clock = clock
        self._requests = requests
        self.rcodes = requests.rcodes
        self._young = _Generation()
        self._old = _Generation()
        self._seen: set[int] = set()
        self._soas: dict[bytes, tuple[int, bytes, int, bytes]] = {}
        self._changed_at: dict[bytes, int] = {}
        self._now = 0
        self._positive = _heads(Rcode.NOERROR)
        self._negative = _heads(Rcode.NXDOMAIN)
        self.ready = self._young.answers
        """Key -> answer: what the listener looks into first. Another one after each generation."""

    def begin(self) -> None:
        """Note the time; answers that were right until now are dropped. Once a batch of datagrams."""
        now = int(self._clock.lease())
        if now != self._now:
            self._now = now
            self._young.drop_ended(now)
            self._old.drop_ended(now)
            self._tell_size()

    def find(self, datagram: bytes) -> bytes | None:
        """The whole reply to one datagram, when there is one here: for listeners that take them one by one."""
        self.begin()
        key = datagram[2:]
        answer = self.ready.get(key) or self.answer(key)
        if answer is None:
            return None
        self.rcodes[answer[1]] += 1
        return datagram[:2] + answer

    def answer(self, key: bytes) -> bytes | None:
        """The answer to a key that is not `ready`; the caller counts its RCODE."""
        old = self._old.answers.get(key)
        if old is not None:
            names, until = self._old.facts[key]
            self._old.drop(key)
            self._keep(key, old, names, until)
            return old
        counts = key[2:_NAME_AT]
        end = key.find(0, _NAME_AT) + 1
        after = end + 4
        size = len(key)
        if (key and key[0] & _NOT_PLAIN) or not end or end - _NAME_AT > MAX_NAME_OCTETS:
            return None
        if counts == _COUNTS_PLAIN:
            if size != after:
                return None
            limit = _PLAIN_UDP
            opt = b""
        elif counts == _COUNTS_EDNS:
            fixed = after + _OPT_FIXED
            if size < fixed or key[after : after + 3] != _OPT_HEAD or key[after + 6]:
                return None
            options = key[fixed - 2] << 8 | key[fixed - 1]
            if size != fixed + options:
                return None
            if options:
                return self._without_options(key, fixed)
            limit = max(_PLAIN_UDP, min(key[after + 3] << 8 | key[after + 4], UDP_PAYLOAD))
            opt = _OPT_REPLIES[key[after + 7] >> 7]
        else:
            return None
        if key[end + 2 : after] != _IN:
            return None
        rtype = key[end] << 8 | key[end + 1]
        if rtype in _NEVER:
            return None
        try:
            return self._from_zone(key, end, rtype, limit, opt)
        except IndexError:
            return None  # labels that run past the name

    def _without_options(self, key: bytes, fixed: int) -> bytes | None:
        """An answer does not depend on options other than LLQ, so cookies and padding share one ready answer."""
        if not _has_harmless_options(key, fixed):
            return None
        plain = key[: fixed - 2] + b"\x00\x00"
        return self.ready.get(plain) or self.answer(plain)

    def _from_zone(self, key: bytes, end: int, rtype: int, limit: int, opt: bytes) -> bytes | None:
        """Walk the name up to its zone, then join the answer from the octets of its node or the zone's SOA."""
        name = key[_NAME_AT:end].lower()
        above = name
        zone = self._zone_at(above)
        while zone is None:
            length = above[0]
            if not length or length > 63:
                return None
            above = above[length + 1 :]
            zone = self._zone_at(above)
        if zone.member_id is not None or not name[0]:
            return None
        cuts, apex = zone.cuts, zone.apex
        if cuts:
            above = name
            while above not in cuts:
                if above == apex:
                    break
                above = above[above[0] + 1 :]
            else:
                return None
        until = FOREVER
        blob = zone.nodes.get(name)
        rcode: int = Rcode.NOERROR
        if blob is not None:
            at, until = self._look(blob, key[end : end + 2])
            if at < 0:
                return None
            if at:
                if rtype in _WITH_TARGETS:
                    return None
                return self._positive_answer(key, end, name, blob, at, limit, opt)
            names: tuple[bytes, ...] = (name, b"\xff" + apex)
        else:
            nodes, children = zone.nodes, zone.children
            if name not in children and name != apex:
                above = name[name[0] + 1 :]
                while above not in nodes and above not in children and above != apex:
                    above = above[above[0] + 1 :]
                wildcard = _WILDCARD + above
                if wildcard in nodes or wildcard in children:
                    return None
                rcode = Rcode.NXDOMAIN
            names = (b"\xff" + apex,)
        answer = b"".join(
            (
                (self._negative if rcode else self._positive)[key[0] & _RD],
                b"\x00\x00\x00\x01\x00\x01" if opt else b"\x00\x00\x00\x01\x00\x00",
                key[_NAME_AT : end + 4],
                self._soa(zone, key, end),
                opt,
            )
        )
        if len(answer) + 2 > limit:
            return None
        self._requests.computed += 1
        if self._is_second(key) and self._now - self._changed_at.get(apex, -QUIET_SECONDS) >= QUIET_SECONDS:
            self._keep(key, answer, names, until)
        return answer

    def _look(self, blob: bytes, wanted: bytes) -> tuple[int, int]:
        """Where in a node's blob the wanted RRset begins; 0 when it is not there, -1 when the slow path must look.

        With 0, the last second before anything of the node lapses: only then may another type, or none, be there.
        """
        position = 1 + blob[0]
        end = len(blob)
        until = FOREVER
        while position < end:
            rtype = blob[position : position + 2]
            if rtype == wanted:
                return position, until
            if rtype == _CNAME:
                return -1, until
            count = blob[position + 6] << 8 | blob[position + 7]
            position += 8
            for _ in range(count):
                expires = blob[position : position + 4]
                if expires != b"\x00\x00\x00\x00":
                    until = min(until, int.from_bytes(expires, "big") - 1)
                position += 6 + (blob[position + 4] << 8 | blob[position + 5])
        return (0, until) if until >= self._now else (-1, until)

    def _positive_answer(
        self, key: bytes, end: int, name: bytes, blob: bytes, at: int, limit: int, opt: bytes
    ) -> bytes | None:
        """One RRset under the name of the question: header, question, RRs with a pointer for their owner, OPT."""
        ttl = blob[at + 2 : at + 6]
        count = blob[at + 6 : at + 8]
        position = at + 8
        rdatas: list[tuple[int, int]] = []
        earliest = 0
        for _ in range(count[0] << 8 | count[1]):
            expires = blob[position : position + 4]
            if expires != b"\x00\x00\x00\x00":
                moment = int.from_bytes(expires, "big")
                if not earliest or moment < earliest:
                    earliest = moment
            stop = position + 6 + (blob[position + 4] << 8 | blob[position + 5])
            rdatas.append((position + 4, stop))
            position = stop
        until = FOREVER
        if earliest:
            if earliest <= self._now:
                return None
            whole = int.from_bytes(ttl, "big")
            until = earliest - max(whole, 1)
            ttl = min(whole, earliest - self._now).to_bytes(4, "big")
        head = b"\xc0\x0c" + key[end : end + 2] + _IN + ttl
        parts: list[bytes] = [
            self._positive[key[0] & _RD],
            count,
            b"\x00\x00\x00\x01" if opt else b"\x00\x00\x00\x00",
            key[_NAME_AT : end + 4],
        ]
        for start, stop in rdatas:
            parts += (head, blob[start:stop])
        parts.append(opt)
        answer = b"".join(parts)
        if len(answer) + 2 > limit:
            return None
        self._requests.computed += 1
        if until >= self._now and self._is_second(key):
            self._keep(key, answer, (name,), until)
        return answer

    def _soa(self, zone: Zone, key: bytes, end: int) -> bytes:
        """The SOA of a negative answer, its owner compressed against the question, letter case told apart."""
        apex = zone.apex
        held = self._soas.get(apex)
        if held is None or held[0] != zone.serial or held[1] is not zone.soa_template or held[2] != zone.soa_ttl:
            soa = zone.soa
            ttl = min(zone.soa_ttl, soa_minimum(soa))
            tail = b"\x00\x06\x00\x01" + ttl.to_bytes(4, "big") + len(soa).to_bytes(2, "big") + soa
            held = self._soas[apex] = zone.serial, zone.soa_template, zone.soa_ttl, tail
        at = end - len(apex)
        suffix = key[at:end]
        if suffix == apex:
            return (0xC000 | at + 2).to_bytes(2, "big") + held[3] if apex[0] else apex + held[3]
        for start in label_starts(apex):
            if suffix[start:] == apex[start:] and apex[start]:
                return apex[:start] + (0xC000 | at + 2 + start).to_bytes(2, "big") + held[3]
        return apex + held[3]

    def offer(self, key: bytes, reply: bytes) -> None:
        """Take what the dispatcher has just replied over UDP: kept if it may be shared and was asked before."""
        if len(reply) < HEADER_OCTETS or reply[3] & 0xF not in _SHARED_RCODES:
            return
        question = _question(key)
        if question is None:
            return
        plain, end = question
        rtype = key[end] << 8 | key[end + 1]
        if (is_meta_type(rtype) and rtype != Type.ANY) or not self._is_second(plain):
            return
        name = key[_NAME_AT:end]
        zone = self._zones.enclosing(fold(name), rtype)
        if zone is None:
            return
        traced = _Traced(zone, self._now)
        resolve(traced, name, rtype, self._now)
        if traced.until < self._now:
            return
        names = traced.names | {b"\xff" + zone.apex} if traced.rests_on_zone else traced.names
        self._keep(plain, reply[2:], tuple(names), traced.until)

    def changed(self, change: Change) -> None:
        """A change that queries already see: drop what rests on its zone as a whole or on a name it touches."""
        if not change.serial_from or not change.serial_to:
            self.clear()  # a zone came or went: other zones' names answer otherwise
            return
        self._changed_at[change.apex] = int(self._clock.lease())
        self._drop(b"\xff" + change.apex)
        for rr in (*change.removed, *change.added):
            if (rr.rtype in (Type.NS, Type.DNAME) and fold(rr.owner) != change.apex) or rr.rtype == Type.DNAME:
                self.clear()  # authority over everything below moves
                return
            self._drop(fold(rr.owner))
        self._tell_size()

    def node_changed(self, key: bytes) -> None:
        """A node was replaced, perhaps only in its leases. `key`: folded owner name."""
        self._drop(key)

    def clear(self) -> None:
        self._young, self._old = _Generation(), _Generation()
        self.ready = self._young.answers
        self._soas.clear()
        self._changed_at.clear()
        self._tell_size()

    def _drop(self, name: bytes) -> None:
        self._young.drop_name(name)
        self._old.drop_name(name)

    def _is_second(self, key: bytes) -> bool:
        """Whether a key was asked before; noted for next time if not."""
        mark = hash(key)
        seen = self._seen
        if mark in seen:
            return True
        if len(seen) >= MAX_SEEN:
            seen.clear()
        seen.add(mark)
        return False

    def _keep(self, key: bytes, answer: bytes, names: tuple[bytes, ...], until: int) -> None:
        young = self._young
        if len(young.answers) >= MAX_READY or young.octets >= MAX_READY_OCTETS:
            self._old = young
            young = self._young = _Generation()
            self.ready = young.answers
        young.put(key, answer, names, until)
        self._tell_size()

    def _tell_size(self) -> None:
        self._requests.ready = len(self._young.answers) + len(self._old.answers)
        self._requests.ready_octets = self._young.octets + self._old.octets


def _question(key: bytes) -> tuple[bytes, int] | None:
    """(key without EDNS options, where QTYPE begins) of a message whose reply may be shared; None for any other."""
    end = _NAME_AT
    size = len(key)
    if size < _NAME_AT + 5 or key[0] & _NOT_PLAIN:
        return None
    while key[end]:
        if key[end] > 63:
            return None
        end += key[end] + 1
        if end >= size:
            return None
    end += 1
    after = end + 4
    if key[end + 2 : after] != _IN:
        return None
    counts = key[2:_NAME_AT]
    if counts == _COUNTS_PLAIN:
        return (key, end) if size == after else None
    fixed = after + _OPT_FIXED
    if counts != _COUNTS_EDNS or size < fixed or key[after : after + 3] != _OPT_HEAD or key[after + 6]:
        return None
    options = key[fixed - 2] << 8 | key[fixed - 1]
    if size != fixed + options or not _has_harmless_options(key, fixed):
        return None
    return key[: fixed - 2] + b"\x00\x00", end


def _has_harmless_options(key: bytes, position: int) -> bool:
    """Whether the options from `position` to the end are well formed and none of them is LLQ."""
    end = len(key)
    while position < end:
        if position + 4 > end or key[position : position + 2] == _LLQ:
            return False
        position += 4 + (key[position + 2] << 8 | key[position + 3])
    return position == end
