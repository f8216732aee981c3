"""The fast path gives what the slow path gives, octet for octet, or nothing: over a corpus and under random changes."""

import random
from itertools import product
from typing import Any, Final
from zlib import crc32

import hypothesis.strategies as st
import pytest
from cffi import FFI
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.constants import RD, EdnsOption, Rcode
from protocol.edns import LlqOption, Opt, UpdateLease
from protocol.message import decode
from protocol.name import from_text
from protocol.tsig import Key, algorithm_from_text
from server import absent_names
from server.fastpath import FastPath
from server.keyring import Principal
from server.policy import UNLIMITED
from server.response_limit import ResponseLimits, network_of
from server.signed_queries import SignedQueries
from server.transport.batch_answers import answer_batch
from server.writer import Outcome, PendingUpdate
from server.zone.model import Actor
from server.zone.update import read_update
from tests.support.builders import (
    ADMIN,
    ALICE,
    CAROL,
    MEMBERS,
    T0,
    UDP,
    UDP_ADDRESS,
    Core,
    Item,
    add,
    delete_name,
    delete_rrset,
    finish,
    key,
    name,
    query_message,
    seen,
    signed,
    stored,
    update_message,
    zone_of_records,
    zone_of_text,
)

APEX: Final = from_text("members.example.")
TEXT: Final = """
    members.example. 300 NS ns.members.example.
    ns.members.example. 300 A 192.0.2.53
    mac.members.example. 120 A 192.0.2.1
    mac.members.example. 120 AAAA 2001:db8::1
    mac.members.example. 120 TXT one
    mac.members.example. 120 TXT two
    deep.empty.members.example. 120 TXT below
    _srv._udp.members.example. 120 SRV 0 0 4500 Mac.members.example.
    out._udp.members.example. 120 SRV 0 0 4500 host.example.net.
    none._udp.members.example. 120 SRV 0 0 0 .
    self.members.example. 120 SRV 0 0 4500 self.members.example.
    self.members.example. 120 A 192.0.2.80
    self.members.example. 120 A 192.0.2.81
    both.members.example. 120 SRV 0 0 4500 mac.members.example.
    both.members.example. 120 SRV 0 0 4501 ns.members.example.
    near._udp.members.example. 120 SRV 0 0 4500 tunnel.near._udp.members.example.
    tunnel.near._udp.members.example. 120 A 192.0.2.82
    tunnel.near._udp.members.example. 120 AAAA 2001:db8::82
    big._udp.members.example. 120 SRV 0 0 4500 big.members.example.
    mx.members.example. 120 MX 10 mac.members.example.
    wild._udp.members.example. 120 SRV 0 0 1 any.hosts.members.example.
    *.hosts.members.example. 120 A 192.0.2.83
    glue._udp.members.example. 120 SRV 0 0 1 ns.cut.members.example.
    https.members.example. 120 HTTPS 1 mac.members.example.
    https.members.example. 120 SVCB 1 . port=53
    https.members.example. 120 AAAA 2001:db8::84
    afsdb.members.example. 120 AFSDB 1 mac.members.example.
    alias.members.example. 120 CNAME Mac.members.example.
    dangling.members.example. 120 CNAME absent.members.example.
    *.wild.members.example. 120 TXT wild
    cut.members.example. 300 NS ns.cut.members.example.
    ns.cut.members.example. 300 A 192.0.2.54
    old.members.example. 300 DNAME members.example.
    carol.members.example. 3600 NS ns.members.example.
"""
LEASED: Final = (
    ("leased.members.example. 120 A 192.0.2.60", 200),
    ("leased.members.example. 3600 TXT soon", 1800),
    ("leased.members.example. 60 AAAA 2001:db8::60", 1),
    ("two.members.example. 60 A 192.0.2.61", 50),
    ("lease._udp.members.example. 600 SRV 0 0 4500 Leased.members.example.", 700),
    *((f"big.members.example. 60 AAAA 2001:db8::{number}", 4000) for number in range(1, 40)),
    ("two.members.example. 60 A 192.0.2.62", 3600),
    ("gone.members.example. 60 A 192.0.2.63", -5),
    ("half.members.example. 60 A 192.0.2.64", -5),
    ("half.members.example. 60 TXT left", 3600),
    ("here.members.example. 60 A 192.0.2.65", 0),
)
PRIVATE: Final = """
    carol.members.example. 3600 NS ns.members.example.
    _dns-update._udp.carol.members.example. 3600 SRV 0 0 5300 ns.members.example.
    secret.carol.members.example. 120 A 192.0.2.99
"""
NAMES: Final = (
    *(
        "members.example.",
        "ns.members.example.",
        "mac.members.example.",
        "MAC.memBers.EXAMPLE.",
        "empty.members.example.",
    ),
    *("absent.members.example.", "aBsent.Members.example.", "x.mac.members.example.", "x.y.absent.members.example."),
    *("absent.members.EXAMPLE.", "_srv._udp.members.example.", "mx.members.example.", "alias.members.example."),
    *("dangling.members.example.", "wild.members.example.", "any.wild.members.example.", "*.wild.members.example."),
    *("cut.members.example.", "host.cut.members.example.", "ns.cut.members.example.", "old.members.example."),
    *("mac.old.members.example.", "carol.members.example.", "secret.carol.members.example.", "example.", "."),
    *("_dns-update._udp.carol.members.example.", "leased.members.example.", "two.members.example.", "other.example."),
    *("gone.members.example.", "half.members.example.", "here.members.example.", "a\\000b.members.example."),
    *("out._udp.members.example.", "none._udp.members.example.", "self.members.example.", "SELF.members.example."),
    *("both.members.example.", "near._udp.members.example.", "near._UDP.members.example.", "big._udp.members.example."),
    *(
        "lease._udp.members.example.",
        "big.members.example.",
        "wild._udp.members.example.",
        "glue._udp.members.example.",
    ),
    *("https.members.example.", "afsdb.members.example."),
    *("\\000.members.example.", "x" * 63 + ".members.example.", ".".join(["y" * 62] * 3) + ".members.example."),
)
TYPES: Final = (
    "A",
    "AAAA",
    "TXT",
    "SRV",
    "MX",
    "HTTPS",
    "SVCB",
    "AFSDB",
    "NS",
    "SOA",
    "CNAME",
    "DNAME",
    "DS",
    "ANY",
    "OPT",
    "AXFR",
    "TYPE0",
    "TYPE65500",
)
COOKIE: Final = (EdnsOption.COOKIE, b"12345678")
PADDING: Final = (EdnsOption.PADDING, bytes(40))
OPTS: Final = (
    None,
    Opt(1232),
    Opt(0),
    Opt(512, dnssec_ok=True),
    Opt(65535, extended_rcode=7),
    Opt(1232, version=1),
    Opt(1232, options=(COOKIE,)),
    Opt(4096, dnssec_ok=True, options=(PADDING, COOKIE)),
    Opt(1232, options=(PADDING,)),
    Opt(600, options=((EdnsOption.COOKIE, b"12345678" + bytes(16)),)),
    Opt(512, dnssec_ok=True, options=((EdnsOption.COOKIE, b"12345678" + bytes(32)),)),
    Opt(1232, options=((EdnsOption.COOKIE, b"1234567"),)),
    Opt(1232, options=(LlqOption(1, 1, 0, 0, 7200).encode(),)),
)


@pytest.fixture(autouse=True)
def answers_in_common_from_the_first_absent_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent_names, "MANY", 0)


class FastCore(Core):
    """A core whose writer tells a fast path, asked the way a listener asks."""

    def __init__(self, limits: ResponseLimits | None = None) -> None:
        leased = [stored(line, expires_at=T0 + seconds) for line, seconds in LEASED]
        permanent = [stored(line) for line in TEXT.strip().splitlines()]
        service = zone_of_records([*permanent, *leased])
        self.carol = zone_of_text(PRIVATE, apex="carol.members.example.", member_id=3, zone_id=2)
        super().__init__([service, self.carol], limits=limits)
        self.fast = FastPath(self.zones, self.clock, self.metrics.requests, self.guard)
        self.fast.answer_signed = SignedQueries(self.fast, self.keyring, self.metrics.requests).answer
        self.writer._on_change = self.fast.changed
        self.writer._on_node = self.fast.node_changed
        ffi: Any = FFI()
        self._slot = ffi.new("unsigned char[]", 65536)
        self._octets = ffi.buffer(self._slot)

    def batch(self, wire: bytes) -> bytes | None:
        """What the batch listener's loop writes over a datagram."""
        self._octets[: len(wire)] = wire
        self.fast.begin()
        sizes, _ = answer_batch(self.fast, self._octets, [2], [len(wire)], lambda slot: UDP_ADDRESS)
        return self._octets[: sizes[0]] or None

    def slow(self, wire: bytes) -> bytes:
        sent: list[bytes] = []
        self.dispatcher.handle(wire, UDP, sent.append)
        return sent[0] if sent else b""

    def listener(self, wire: bytes) -> bytes:
        """What a listener sends for a datagram, b"" for nothing."""
        found = self.fast.find(wire, UDP_ADDRESS)
        if found is None:
            found = self.slow(wire)
            if found:
                self.fast.offer(wire[2:], found)
        return found

    def compare(self, wire: bytes) -> int:
        """Ask often enough for every way to an answer; how often the fast path gave one."""
        given = 0
        for _ in range(4):
            expected = self.slow(wire)
            by_batch = self.batch(wire)
            found = self.fast.find(wire, UDP_ADDRESS)
            assert by_batch == expected or by_batch is found is None, wire.hex()
            if found is None:
                self.fast.offer(wire[2:], expected)
            else:
                given += 1
                assert found == expected, wire.hex()
        return given


def corpus() -> list[bytes]:
    return [
        query_message(owner, rtype if not rtype.startswith("TYPE") else int(rtype[4:]), edns=edns, flags=flags)
        for (owner, rtype), (edns, flags) in product(
            product(NAMES, TYPES), [(edns, RD if index % 2 else 0) for index, edns in enumerate(OPTS)]
        )
    ]


def test_the_whole_corpus_again_and_again() -> None:
    core = FastCore()
    given = [core.compare(wire) for wire in corpus()]
    assert given.count(4) > len(given) / 6
    assert given.count(2) > 100  # kept ready after the dispatcher's second reply
    for seconds in (0.5, 49.6, 30, 60, 20, 40, 1500, 100, 2000):
        core.clock.now += seconds
        for owner in ("leased", "two", "gone", "half", "here", "lease._udp"):
            for rtype, edns in product(("A", "AAAA", "TXT", "SRV", "ANY"), OPTS[:3]):
                core.compare(query_message(f"{owner}.members.example.", rtype, edns=edns))


FALSE: Final = Key(ALICE.name, ALICE.algorithm, b"not hers")
SHORT: Final = Key(name("short.example."), algorithm_from_text("hmac-sha256-128"), b"short")


@pytest.mark.parametrize("by", [ADMIN, CAROL, SHORT, FALSE, key("stranger.example.")], ids=lambda by: by.name[:6].hex())
def test_signed_queries(by: Key) -> None:
    core = FastCore()
    core.keyring.replace([*MEMBERS, Principal(SHORT, 1, name("alice.members.example."))])
    known = core.keyring.find(by.name)
    is_good = known is not None and known.key == by
    given = [core.compare(core.signed(wire, by)) for wire in corpus()[:: 7 if is_good else 97]]
    if not is_good:
        assert not any(given)
        return
    assert given.count(4) > len(given) / 8
    assert core.metrics.requests.signed == 2 * sum(given)  # in the batch too
    for seconds in (-299, -301, 299, 301):  # the fudge both ways
        wire = signed(query_message("mac.members.example."), by, core.clock.unix() + seconds)[0]
        assert core.compare(wire) == (4 if abs(seconds) < 300 else 0)


@pytest.mark.parametrize("at", range(2, 40))
def test_damaged_signed_queries(at: int) -> None:
    core = FastCore()
    for edns in (None, Opt(1232)):
        wire = core.signed(query_message("mac.members.example.", edns=edns), ADMIN)
        assert core.compare(wire) == 4
        for place in range(at, len(wire), 38):
            for octet in (0, 1, 0x3F, 0xC0, 0xFF):
                damaged = wire[:place] + bytes((octet,)) + wire[place + 1 :]
                if not damaged[2] & 0x80:
                    core.compare(damaged)
        core.compare(wire[:-at])
        core.compare(wire + bytes(at))


def test_a_signed_answer_that_leaves_no_room_for_its_signature_goes_the_long_way() -> None:
    core = FastCore()
    for number in range(1, 14):
        record = add("many.members.example.", 60, "AAAA", f"2001:db8::{number}")
        assert core.update(record).rcode == 0
        wire = query_message("many.members.example.", "AAAA")
        assert core.compare(wire) == 4
        core.compare(core.signed(wire, ADMIN))


def with_cookie(core: FastCore, owner: str, rtype: str, payload: int = 1232) -> bytes:
    """A query with the server cookie that a reply to its sender gave."""
    first = seen(core.slow(query_message(owner, rtype, edns=Opt(payload, options=(COOKIE,)))))
    assert first.message.opt is not None
    return query_message(owner, rtype, edns=Opt(payload, options=first.message.opt.options))


def test_cookies_at_every_size_of_answer() -> None:
    """An answer that fits only without its cookie is another one; one that fits is made fast."""
    core = FastCore()
    for payload in range(512, 1240, 4):
        for owner, rtype in (("big._udp.members.example.", "SRV"), ("big.members.example.", "AAAA")):
            for edns in (Opt(payload), Opt(payload, options=(COOKIE,))):
                core.compare(query_message(owner, rtype, edns=edns))
            core.compare(with_cookie(core, owner, rtype, payload))
    for owner, rtype in (("mac.members.example.", "A"), ("absent.members.example.", "A"), ("members.example.", "NS")):
        wire = with_cookie(core, owner, rtype)
        core.compare(wire)
        for seconds in (900, 1000, 1800, 10):  # fresh, renewed, no longer valid
            core.clock.now += seconds
            assert core.compare(wire) == 4


LIMITS: Final = ResponseLimits(rate=3, total=12, slip=2, watch_seconds=5)


@pytest.mark.parametrize("seed", range(20))
def test_limited_alike(seed: int) -> None:
    """Two servers get the same datagrams, one has a fast path: the same answers, cut short and dropped alike."""
    chance = random.Random(seed)
    fast, slow = FastCore(LIMITS), FastCore(LIMITS)
    proved = with_cookie(fast, "mac.members.example.", "A")
    assert proved == with_cookie(slow, "mac.members.example.", "A")
    some = [*chance.sample(corpus(), 5), *chance.sample(QUESTIONS, 5), proved]
    some.append(query_message("a\\000b.members.example.", "A", edns=Opt(1232, dnssec_ok=True)))
    told: dict[str, int] = {"drop": 0, "slip": 0}
    for _ in range(400):
        wire = chance.choice(some)
        assert slow.guard.limiter is not None
        slow.guard.limiter.note([network_of(UDP_ADDRESS)])
        expected = slow.slow(wire)
        assert fast.listener(wire) == expected, wire.hex()
        if wire == proved:
            assert expected[3] & 0xF == Rcode.NOERROR and not expected[2] & 0x02
        step = chance.choice((0.0, 0.01, 0.05, 0.05, 2.0))
        fast.clock.now += step
        slow.clock.now += step
    assert fast.metrics.requests.limited == slow.metrics.requests.limited != told


@pytest.mark.parametrize("change", ["flip", "cut", "append", "counts"])
def test_damaged_queries(change: str) -> None:
    core = FastCore()
    for wire in corpus()[:: 7 if change == "flip" else 3]:
        damaged = bytearray(wire)
        if change == "flip":
            damaged[2 + crc32(wire) % (len(wire) - 2)] ^= 1 << crc32(wire) % 7
        elif change == "cut":
            del damaged[12 + crc32(wire) % (len(wire) - 12) :]
        elif change == "append":
            damaged += b"\0"
        else:
            damaged[4 + crc32(wire) % 8] ^= 1
        if damaged[2] & 0x80:
            assert core.fast.find(bytes(damaged), UDP_ADDRESS) is None
        else:
            core.compare(bytes(damaged))


def test_any_one_octet_changed_in_plain_queries() -> None:
    core = FastCore()
    for edns in (None, Opt(1232, options=(COOKIE,))):
        wire = query_message("mac.members.example.", "A", edns=edns)
        for at, octet in product(range(2, len(wire)), (0, 1, 2, 0x3F, 0x40, 0xC0, 0xFF)):
            damaged = wire[:at] + bytes((octet,)) + wire[at + 1 :]
            if not damaged[2] & 0x80:
                core.compare(damaged)


OWNERS: Final = (
    *("mac.members.example.", "Mac.members.example.", "new.members.example.", "absent.members.example."),
    *("a.deep.new.members.example.", "*.wild.members.example.", "any.wild.members.example.", "*.members.example."),
    *("alias.members.example.", "leased.members.example.", "_srv._udp.members.example.", "members.example."),
)
DATA: Final = (
    *(
        ("A", "192.0.2.70"),
        ("A", "192.0.2.71"),
        ("AAAA", "2001:db8::70"),
        ("TXT", "text"),
        ("CNAME", "mac.members.example."),
    ),
    *(("SRV", "0 0 4500 new.members.example."), ("NS", "ns.elsewhere.example."), ("DNAME", "wild.members.example.")),
)
ITEMS: Final = st.one_of(
    st.builds(
        lambda owner, ttl, data: add(owner, ttl, *data),
        st.sampled_from(OWNERS),
        st.sampled_from([0, 60, 60, 2400]),
        st.sampled_from(DATA),
    ),
    st.builds(delete_name, st.sampled_from(OWNERS)),
    st.builds(lambda owner, data: delete_rrset(owner, data[0]), st.sampled_from(OWNERS), st.sampled_from(DATA)),
    st.builds(
        lambda serial: add("members.example.", 300, "SOA", f"a. b. {serial} 1 1 1 {serial % 90}"),
        st.integers(1, 1000),
    ),
)
QUESTIONS: Final = [
    query_message(owner, rtype, edns=edns)
    for owner, rtype, edns in product(
        (
            *OWNERS,
            "x.new.members.example.",
            "mac.absent.members.example.",
            "secret.carol.members.example.",
            "mx.members.example.",
        ),
        ("A", "TXT", "SRV", "MX", "NS", "ANY"),
        (None, Opt(1232)),
    )
]


class Changing(RuleBasedStateMachine):
    """Whatever is committed, lapses, comes or goes: what was ready before is not told when it is no longer so."""

    @initialize()
    def start(self) -> None:
        self.core = FastCore()

    @rule(ops=st.lists(ITEMS, min_size=1, max_size=3), lease=st.sampled_from([None, 1800, 7200]))
    def update(self, ops: list[Item], lease: int | None) -> None:
        parsed = read_update(decode(update_message(ops)), APEX)
        wish = None if lease is None else UpdateLease(lease)
        outcomes: list[Outcome] = []
        self.core.writer.submit(PendingUpdate(APEX, parsed, wish, UNLIMITED, Actor("update"), outcomes.append))
        self.core.write()
        assert outcomes

    @rule(seconds=st.sampled_from([0.3, 1.0, 60.0, 1740.0, 1800.0]))
    def wait(self, seconds: float) -> None:
        self.core.clock.now += seconds

    @rule()
    def sweep(self) -> None:
        self.core.write()

    @rule()
    def private_zone_comes_or_goes(self) -> None:
        if self.core.zones.at(self.core.carol.apex) is None:
            self.core.store.hold(self.core.carol)
        else:
            del self.core.store.zones[self.core.carol.id]
        finish(self.core.writer.catch_up())

    @invariant()
    def fast_equals_slow(self) -> None:
        if hasattr(self, "core"):
            for index, wire in enumerate(QUESTIONS):
                self.core.compare(wire)
                if index % 3 == 0:
                    self.core.compare(self.core.signed(wire, (ADMIN, CAROL)[index % 2]))


Changing.TestCase.settings = settings(max_examples=10, stateful_step_count=10, deadline=None)
TestChanging: Any = Changing.TestCase
