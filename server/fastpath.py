"""Answers to plain queries from octets to octets: ready ones by one dictionary look-up, new ones joined from the zone.

What is asked and answered here leaves out the message ID: a key is a datagram from octet 2 on, an answer a reply from
octet 2 on. Only what depends on nothing but these octets, the zones and the time is answered: one question of class
IN, not signed, no LLQ. `None` stands for everything else, which the dispatcher answers; both give the same octets.
A cookie is the one thing of a request and its sender that goes into a reply: what is ready stops before it, and
`answer_with_cookie` writes it behind.

Ready answers are kept in two generations. A full young one becomes the old one, whose answers come back when asked
for; what nobody asked for goes with it. A key must be seen twice to be kept, so a flood of names that are asked once
pushes nothing out. An answer knows the owner names it was made from, or that it rests on the zone as a whole (its
serial, the absence of names), and is dropped in the step that publishes a change of these; and at the moment a lease
begins to cap its TTL.
"""

from collections.abc import Callable, Container
from typing import Final

from protocol.constants import HEADER_OCTETS, MAX_LABEL_OCTETS, MAX_NAME_OCTETS, META_TYPES, Rcode, Type, is_meta_type
from protocol.name import fold, is_at_or_below
from protocol.rdata import soa_minimum
from server.absent_names import AbsentNames
from server.answer import resolve
from server.fast_wire import (
    CLIENT_COOKIE,
    COUNTS_EDNS,
    COUNTS_PLAIN,
    IN,
    NAME_AT,
    NOT_PLAIN,
    OPT_FIXED,
    OPT_HEAD,
    OPT_REPLIES,
    PLAIN_UDP,
    POINTERS,
    RD,
    WHOLE_COOKIE,
    apex_owner,
    compressed,
    has_harmless_options,
    shareable_question,
    shortened,
)
from server.guard import Guard
from server.metrics import Requests
from server.ready_answers import Generation, TracedZone
from server.reply import UDP_PAYLOAD
from server.response_limit import Verdict, network_of
from server.system import Clock
from server.zone.model import Change
from server.zone.node import FOREVER, NEVER_LAPSES, live_records, locate
from server.zone.zone import Zone, Zones

MAX_SEEN: Final = 65_536  # keys remembered as asked once, looked at once a batch
MAX_PLACES: Final = 8192  # parents of names whose place in a zone is remembered
QUIET_SECONDS: Final = 2  # a zone that changed within them has its negative answers computed, not kept

_COUNTS: Final = slice(2, NAME_AT)
_TC: Final = 0x02
_AA_TC: Final = 0x06
_SHORTEST_EDNS: Final = NAME_AT + 5 + OPT_FIXED  # a key: the root's name, QTYPE, QCLASS, an empty OPT
_OPTION_OCTETS: Final = 28
_ONE: Final = b"\x00\x01"
_ONE_ANSWER: Final = bytes.fromhex("0001 0000 0000")
_ONE_ANSWER_EDNS: Final = bytes.fromhex("0001 0000 0001")
_WILDCARD: Final = b"\x01*"
# Answered by the slow path whatever the zone holds: asked of apexes and cuts, written compressed, or no data at all.
_NEVER: Final = META_TYPES | {Type.DS, Type.SOA, Type.NS, Type.CNAME}
_COMMON_TYPES: Final = {rtype.to_bytes(2, "big") + IN: rtype for rtype in range(256) if rtype not in _NEVER}
# Where the host stands in the rdata of types whose answers carry its addresses.
_WITH_TARGET: Final = {Type.SRV.to_bytes(2, "big"): 6, Type.MX.to_bytes(2, "big"): 2}
_RARE_TARGETS: Final = frozenset(
    rtype.to_bytes(2, "big") for rtype in (Type.AFSDB, Type.RT, Type.KX, Type.SVCB, Type.HTTPS)
)
_ADDRESSES: Final = (Type.A.to_bytes(2, "big"), Type.AAAA.to_bytes(2, "big"))
_CUTTING: Final = (int(Type.NS), int(Type.DNAME))
_SHARED_RCODES: Final = (Rcode.NOERROR, Rcode.NXDOMAIN)


# Flags and counts by RD: an absent name with one record in Authority, without and with OPT; flags and QDCOUNT alone.
_ABSENT: Final = (bytes.fromhex("8403 0001 0000 0001 0000"), bytes.fromhex("8503 0001 0000 0001 0000"))
_ABSENT_EDNS: Final = (bytes.fromhex("8403 0001 0000 0001 0001"), bytes.fromhex("8503 0001 0000 0001 0001"))
_PRESENT: Final = (bytes.fromhex("8400 0001"), bytes.fromhex("8500 0001"))

# Of a zone: nodes, what tells of names here whether they have children, cuts, its apex; whether a wildcard is at the
# encloser; the SOA RR less its owner.
_Place = tuple[dict[bytes, bytes], Container[bytes], set[bytes], bytes, bool, bytes]


class FastPath:
    """Ready and computed answers over `zones`. `begin` before each batch; `changed` and `node_changed` on publish."""

    def __init__(self, zones: Zones, clock: Clock, requests: Requests, guard: Guard | None = None) -> None:
        self.guard = guard or Guard()
        self._zones = zones
        self.apexes = zones.by_apex
        self._zone_at = zones.by_apex.get
        self._clock = clock
        self._requests = requests
        self.rcodes = requests.rcodes
        self._young = Generation()
        self._old = Generation()
        self._old_ready = self._old.answers.get
        self._seen: set[int] = set()
        self._places: dict[bytes, _Place] = {}
        self._denials: dict[bytes, bytes] = {}
        self.absent = AbsentNames()
        self._changed_at: dict[bytes, int] = {}
        self._now = 0
        self.unix = 0
        """The time signatures are judged by, as `begin` found it."""
        self.ready = self._young.answers
        """Key -> answer: what the listener looks into first. Another one after each generation."""
        self.answer_signed: Callable[[bytes], bytes | None] | None = None
        """The reply, from octet 2 on, to a whole datagram that is signed: see `signed_queries`."""

    def begin(self) -> None:
        """Note the time; answers that were right until now are dropped. Once a batch of datagrams."""
        self.unix = self._clock.unix()
        now = int(self._clock.lease())
        if now != self._now:
            self._now = now
            self._young.drop_ended(now)
            self._old.drop_ended(now)
            self._tell_size()
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()

    def find(self, datagram: bytes, address: bytes) -> bytes | None:
        """The whole reply to one datagram, when there is one here; b"" when there is to be none.

        For listeners that take datagrams one by one; `address`: 4 or 16 octets of the sender's.
        """
        self.begin()
        key = datagram[2:]
        network = network_of(address)
        limiter = self.guard.limiter
        if limiter is not None:
            limiter.note((network,))
        if limiter is not None and network in limiter.watched:
            answer = self.answer_watched(key, address, network)
        else:
            answer = self.ready.get(key) or self.answer(key) or self.answer_with_cookie(key, address)
        if answer is None and self.answer_signed is not None:
            answer = self.answer_signed(datagram)
        if not answer:
            return answer
        self.rcodes[answer[1]] += 1
        return datagram[:2] + answer

    def answer_with_cookie(self, key: bytes, address: bytes) -> bytes | None:
        """The answer to a key whose OPT holds a cookie and nothing else."""
        if key[-30:-24] == WHOLE_COOKIE:
            stem, cookie = key[:-30], key[-24:]
        elif key[-14:-8] == CLIENT_COOKIE:
            stem, cookie = key[:-14], key[-8:]
        else:
            return None
        plain = stem + b"\0\0"
        if len(plain) < _SHORTEST_EDNS:
            return None
        answer = self.ready.get(plain) or self.answer(plain)
        cookies = self.guard.cookies
        if cookies is None:
            return answer
        limit = max(PLAIN_UDP, min(plain[-8] << 8 | plain[-7], UDP_PAYLOAD))
        if answer is not None and len(answer) + 2 + _OPTION_OCTETS <= limit:
            answer = answer[:-2] + WHOLE_COOKIE
        else:
            own = stem + WHOLE_COOKIE
            answer = self.ready.get(own)
            if answer is None:
                old = self._old_ready(own)
                if old is None:
                    return None
                answer = self._renew(own, old)
        return answer + cookies.reply(cookie, address).data

    def answer_watched(self, key: bytes, address: bytes, network: int) -> bytes | None:
        """As above for a sender whose network is over the response rate: b"" when its answer is dropped."""
        cookies, limiter = self.guard.cookies, self.guard.limiter
        answer = self.ready.get(key) or self.answer(key) or self.answer_with_cookie(key, address)
        if answer is None or limiter is None:
            return answer
        has_server_cookie = answer[-30:-24] == key[-30:-24] == WHOLE_COOKIE
        if cookies is not None and has_server_cookie and cookies.reply(key[-24:], address).is_proved:
            return answer
        verdict = limiter.decide(network, answer)
        if verdict is Verdict.SEND:
            return answer
        return shortened(answer) if verdict is Verdict.SLIP else b""

    def answer(self, key: bytes) -> bytes | None:
        """The answer to a key that is not `ready`; the caller counts its RCODE.

        One long step, since a flood of new names comes this way: header, question and OPT, then the place of the name
        in its zone, then for an absent name the SOA joined to the question.
        """
        old = self._old_ready(key)
        if old is not None:
            return self._renew(key, old)
        end = key.find(0, NAME_AT) + 1
        after = end + 4
        if len(key) == after and key[_COUNTS] == COUNTS_PLAIN:
            limit = PLAIN_UDP
            opt = b""
            heads = _ABSENT
        else:
            fixed = after + OPT_FIXED
            if not end or len(key) < fixed or key[2:NAME_AT] != COUNTS_EDNS or key[after : after + 3] != OPT_HEAD:
                return None
            options = key[fixed - 2] << 8 | key[fixed - 1]
            if len(key) != fixed + options or key[after + 6]:
                return None
            if options:
                return self._without_options(key, fixed)
            limit = max(PLAIN_UDP, min(key[after + 3] << 8 | key[after + 4], UDP_PAYLOAD))
            opt = OPT_REPLIES[key[after + 7] >> 7]
            heads = _ABSENT_EDNS
        flags = key[0]
        if flags & NOT_PLAIN or end > NAME_AT + MAX_NAME_OCTETS:
            return None
        rtype = _COMMON_TYPES.get(key[end:after])
        if rtype is None:
            rtype = key[end] << 8 | key[end + 1]
            if rtype in _NEVER or key[end + 2 : after] != IN:
                return None
        name = key[NAME_AT:end].lower()
        first = name[0]
        if name in self.apexes or first > 63:  # MAX_LABEL_OCTETS
            return None
        known = self._places.get(name[first + 1 :])
        place = known or self._find_place(name)
        if place is None:
            return None
        nodes, children, cuts, apex, has_wildcard, soa = place
        blob = nodes.get(name)
        if blob is not None:
            if name in cuts:
                return None
            return self._at_node(key, end, name, blob, place, limit, opt)
        if name in children:
            return self._no_data(key, end, (b"\xff" + apex,), FOREVER, apex, soa, limit, opt)
        if has_wildcard:
            return None
        at = end - len(apex)
        if key[at:end] == apex:
            answer = heads[flags & RD] + key[NAME_AT:after] + POINTERS[at + 2] + soa + opt
        else:
            answer = heads[flags & RD] + key[NAME_AT:after] + apex_owner(key, end, apex) + soa + opt
        if len(answer) + 2 > limit:
            return None
        self._requests.computed += 1
        if self._is_new(key):
            if known is not None:  # the parent exists
                self.absent.asked(key, answer, after, nodes, children)
        elif self._is_quiet(apex):
            self._keep(key, answer, (b"\xff" + apex,), FOREVER)
        return answer

    def _renew(self, key: bytes, answer: bytes) -> bytes:
        """Move what is still asked for into the young generation."""
        names, until = self._old.facts[key]
        self._old.drop(key)
        self._keep(key, answer, names, until)
        return answer

    def _without_options(self, key: bytes, fixed: int) -> bytes | None:
        """An answer does not depend on most options, so with NSID or padding it is the ready one."""
        if not has_harmless_options(key, fixed):
            return None
        plain = key[: fixed - 2] + b"\x00\x00"
        return self.ready.get(plain) or self.answer(plain)

    def _find_place(self, name: bytes) -> _Place | None:
        """What an answer for a name needs of the zone, by the closest encloser of the name's parent.

        None when the name is in no public zone of ours, not well formed, or below a delegation or DNAME. Kept until the
        next change when the parent exists: names asked for are mostly neighbours.
        """
        above = name
        zone = None
        while zone is None:
            if not above or not above[0] or above[0] > MAX_LABEL_OCTETS:
                return None
            above = above[above[0] + 1 :]
            zone = self._zone_at(above)
        apex = zone.apex
        if not zone.is_open or not apex[0]:
            return None
        above = above_name = name[name[0] + 1 :]
        while zone.cuts:
            if above in zone.cuts:
                return None
            if above == apex:
                break
            above = above[above[0] + 1 :]
        above = above_name
        while not zone.exists(above):
            above = above[above[0] + 1 :]
        rest = self._denials.get(apex) or self._denial(zone)
        children = zone.children.below(above_name)
        place = zone.nodes, children, zone.cuts, apex, zone.exists(_WILDCARD + above), rest
        if above == above_name:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            self._places[above] = place
        return place

    def _denial(self, zone: Zone) -> bytes:
        """The zone's SOA RR less its owner, as negative answers have it (RFC 2308 §3); kept until the next change."""
        soa = zone.soa
        ttl = min(zone.soa_ttl, soa_minimum(soa))
        rest = b"\x00\x06\x00\x01" + ttl.to_bytes(4, "big") + len(soa).to_bytes(2, "big") + soa
        self._denials[zone.apex] = rest
        return rest

    def _at_node(
        self, key: bytes, end: int, name: bytes, blob: bytes, place: _Place, limit: int, opt: bytes
    ) -> bytes | None:
        at, until = locate(blob, key[end : end + 2], self._now)
        if at < 0:
            return None
        if not at:
            apex = place[3]
            return self._no_data(key, end, (name, b"\xff" + apex), until, apex, place[5], limit, opt)
        wanted = key[end : end + 2]
        if wanted in _RARE_TARGETS:
            return None
        target_at = _WITH_TARGET.get(wanted)
        if target_at is not None:
            return self._with_target(key, end, name, blob, at, target_at, place, limit, opt)
        return self._positive_answer(key, end, name, blob, at, limit, opt)

    def _with_target(
        self,
        key: bytes,
        end: int,
        name: bytes,
        blob: bytes,
        at: int,
        target_at: int,
        place: _Place,
        limit: int,
        opt: bytes,
    ) -> bytes | None:
        """One SRV or MX, and the addresses of its host in Additional as far as the zone has them."""
        now = self._now
        found = live_records(blob, at, now)
        if found is None or len(found[1]) != 1:
            return None
        ttl, (rdata,), until = found
        target = rdata[2 + target_at :]
        names = [name]
        parts = [key[NAME_AT : end + 4], b"\xc0\x0c", key[end : end + 4], ttl, rdata]
        size = HEADER_OCTETS + sum(map(len, parts))
        count = 0
        folded = target.lower()
        if is_at_or_below(folded, place[3]):
            names.append(folded)
            host = place[0].get(folded)
            if host is None or (place[2] and _is_cut_off(folded, place)):
                return None  # a wildcard may stand for it, or it is glue
            owner = compressed(target, key[NAME_AT:end])
            for kind in _ADDRESSES:
                at, _ = locate(host, kind, now)
                found = live_records(host, at, now) if at > 0 else None
                if found is None:
                    if at:
                        return None
                    continue
                head = kind + IN + found[0]
                until = min(until, found[2])
                for address in found[1]:
                    parts += (owner, head, address)
                    if not count and len(owner) > 2:
                        owner = (0xC000 | size).to_bytes(2, "big")
                    count += 1
        parts.append(opt)
        counts = b"\x00\x01\x00\x00" + (count + bool(opt)).to_bytes(2, "big")
        answer = b"".join((_PRESENT[key[0] & RD], counts, *parts))
        if len(answer) + 2 > limit:
            return None
        self._requests.computed += 1
        if until >= now and not self._is_new(key):
            self._keep(key, answer, tuple(names), until)
        return answer

    def _no_data(
        self,
        key: bytes,
        end: int,
        names: tuple[bytes, ...],
        until: int,
        apex: bytes,
        soa: bytes,
        limit: int,
        opt: bytes,
    ) -> bytes | None:
        answer = b"".join(
            (
                _PRESENT[key[0] & RD],
                b"\x00\x00\x00\x01\x00\x01" if opt else b"\x00\x00\x00\x01\x00\x00",
                key[NAME_AT : end + 4],
                apex_owner(key, end, apex),
                soa,
                opt,
            )
        )
        if len(answer) + 2 > limit:
            return None
        self._requests.computed += 1
        if not self._is_new(key) and self._is_quiet(apex):
            self._keep(key, answer, names, until)
        return answer

    def _positive_answer(
        self, key: bytes, end: int, name: bytes, blob: bytes, at: int, limit: int, opt: bytes
    ) -> bytes | None:
        """One RRset under the name of the question: header, question, RRs with a pointer for their owner, OPT."""
        ttl = blob[at + 2 : at + 6]
        count = blob[at + 6 : at + 8]
        position = at + 8
        if count == _ONE and blob[position : position + 4] == NEVER_LAPSES:  # most RRsets
            stop = position + 6 + (blob[position + 4] << 8 | blob[position + 5])
            head = _PRESENT[key[0] & RD] + (_ONE_ANSWER_EDNS if opt else _ONE_ANSWER) + key[NAME_AT : end + 4]
            answer = head + b"\xc0\x0c" + key[end : end + 4] + ttl + blob[position + 4 : stop] + opt
            if len(answer) + 2 > limit:
                return None
            self._requests.computed += 1
            if not self._is_new(key):
                self._keep(key, answer, (name,), FOREVER)
            return answer
        found = live_records(blob, at, self._now)
        if found is None:
            return None
        ttl, rdatas, until = found
        head = b"\xc0\x0c" + key[end : end + 2] + IN + ttl
        parts = [_PRESENT[key[0] & RD], count, b"\x00\x00\x00\x01" if opt else bytes(4), key[NAME_AT : end + 4]]
        for rdata in rdatas:
            parts += (head, rdata)
        parts.append(opt)
        answer = b"".join(parts)
        if len(answer) + 2 > limit:
            return None
        self._requests.computed += 1
        if until >= self._now and not self._is_new(key):
            self._keep(key, answer, (name,), until)
        return answer

    def offer(self, key: bytes, reply: bytes) -> None:
        """Take what the dispatcher has just replied over UDP: kept if it may be shared and was asked before."""
        if len(reply) < HEADER_OCTETS or reply[3] & 0xF not in _SHARED_RCODES:
            return
        if reply[2] & _AA_TC == _TC:  # perhaps cut short for one network's sake
            return
        shared = self._shared(key, reply)
        if shared is None:
            return
        plain, end, answer = shared
        rtype = key[end] << 8 | key[end + 1]
        if (is_meta_type(rtype) and rtype != Type.ANY) or self._is_new(plain):
            return
        name = key[NAME_AT:end]
        zone = self._zones.enclosing(fold(name), rtype)
        if zone is None:
            return
        traced = TracedZone(zone, self._now)
        resolve(traced, name, rtype, self._now)
        if traced.until < self._now:
            return
        names = traced.names | {b"\xff" + zone.apex} if traced.rests_on_zone else traced.names
        self._keep(plain, answer, tuple(names), traced.until)

    def _shared(self, key: bytes, reply: bytes) -> tuple[bytes, int, bytes] | None:
        """(key and answer without what is the sender's own, where QTYPE begins); None when they are not for others.

        What was said beside a cookie is kept apart, for it had less room; its key ends like the answers it stands for.
        """
        answer = reply[2:]
        is_whole = key[-30:-24] == WHOLE_COOKIE
        if (
            self.guard.cookies is not None
            and answer[-30:-24] == WHOLE_COOKIE
            and (is_whole or key[-14:-8] == CLIENT_COOKIE)
        ):
            stem = key[:-30] if is_whole else key[:-14]
            question = shareable_question(stem + b"\0\0")
            return (stem + WHOLE_COOKIE, question[1], answer[:-24]) if question else None
        question = shareable_question(key)
        if question is None:
            return None
        plain, end = question
        if plain[2:NAME_AT] == COUNTS_EDNS and not answer.endswith(OPT_REPLIES):
            return None
        return plain, end, answer

    def absent_told(self, number: int, last: bytes) -> None:
        """So many name errors came from what `absent` has, `last` the key of the last: kept ready if it comes often."""
        if not self._is_new(last) and self.answer(last) is not None:
            number -= 1
        self._requests.computed += number

    def overloaded(self) -> None:
        """A datagram was dropped, for there was neither an answer here nor time for the dispatcher's."""
        self._requests.overload += 1

    def changed(self, change: Change) -> None:
        """A change that queries already see: drop what rests on its zone as a whole. Names come by `node_changed`."""
        apex, before, after, _, _, removed, added = change
        if not before or not after:
            self.clear()  # a zone came or went: other zones' names answer otherwise
            return
        self._forget_places()
        self._changed_at[apex] = int(self._clock.lease())
        self._drop(b"\xff" + apex)
        for records in (removed, added):
            for owner, rtype, _, _ in records:
                if rtype in _CUTTING and (rtype == Type.DNAME or fold(owner) != apex):
                    self.clear()  # authority over everything below moves
                    return

    def node_changed(self, key: bytes) -> None:
        """A node was replaced, perhaps only in its leases. `key`: folded owner name."""
        self._drop(key)

    def clear(self) -> None:
        self._young, self._old = Generation(), Generation()
        self._old_ready = self._old.answers.get
        self.ready = self._young.answers
        self._forget_places()
        self._changed_at.clear()
        self._tell_size()

    def _forget_places(self) -> None:
        self._places.clear()
        self._denials.clear()
        self.absent.clear()

    def _drop(self, name: bytes) -> None:
        for generation in (self._young, self._old):
            if name in generation.by_name:
                generation.drop_name(name)
                self._tell_size()

    def _is_quiet(self, apex: bytes) -> bool:
        """Whether a zone has not changed for long enough that its negative answers are worth keeping."""
        return self._now - self._changed_at.get(apex, -QUIET_SECONDS) >= QUIET_SECONDS

    def _is_new(self, key: bytes) -> bool:
        """Whether a key was not asked before; noted for next time."""
        mark = hash(key)
        seen = self._seen
        if mark in seen:
            return False
        seen.add(mark)
        return True

    def _keep(self, key: bytes, answer: bytes, names: tuple[bytes, ...], until: int) -> None:
        young = self._young
        if young.is_full:
            self._old = young
            self._old_ready = young.answers.get
            young = self._young = Generation()
            self.ready = young.answers
        young.put(key, answer, names, until)
        self._tell_size()

    def _tell_size(self) -> None:
        self._requests.ready = len(self._young.answers) + len(self._old.answers)
        self._requests.ready_octets = self._young.octets + self._old.octets


def _is_cut_off(name: bytes, place: _Place) -> bool:
    """Whether a name of the zone lies at or below one of its cuts."""
    cuts, apex = place[2], place[3]
    while name != apex:
        if name in cuts:
            return True
        name = name[name[0] + 1 :]
    return False
