"""Ready answers: kept on second sight, within bounds, dropped by the names and moments they depend on; counted."""

from collections.abc import Iterator

import pytest

from protocol.constants import EdnsOption
from protocol.edns import LlqOption, Opt
from server import fastpath, ready_answers
from server.fastpath import FastPath
from tests.support.builders import (
    ADMIN,
    ALICE,
    TCP,
    UDP,
    UDP_ADDRESS,
    Core,
    add,
    delete_name,
    delete_rrset,
    key,
    query_message,
    signed,
)

MAC = "mac.alice.members.example."
SRV = "_dns-update._udp.members.example."
ABSENT = "absent.members.example."
PRIVATE = "_dns-update._udp.carol.members.example."


class FastCore(Core):
    """A core with a fast path, asked as a listener asks: ready, computed, or the dispatcher's."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = FastPath(self.zones, self.clock, self.metrics.requests, self.guard)
        self.writer._on_change = self.fast.changed
        self.writer._on_node = self.fast.node_changed
        self.clock.now += fastpath.QUIET_SECONDS

    def way(self, owner: str, rtype: str = "A", edns: Opt | None = None) -> str:
        """How one query is answered; the octets are right in any case."""
        wire = query_message(owner, rtype, edns=edns)
        expected: list[bytes] = []
        self.dispatcher.handle(wire, UDP, expected.append)
        computed = self.metrics.requests.computed
        found = self.fast.find(wire, UDP_ADDRESS)
        if found is None:
            self.fast.offer(wire[2:], expected[0])
            return "slow"
        assert found == expected[0]
        return "computed" if self.metrics.requests.computed > computed else "ready"

    def ways(self, owner: str, rtype: str = "A", edns: Opt | None = None) -> list[str]:
        return [self.way(owner, rtype, edns) for _ in range(3)]

    def __len__(self) -> int:
        return self.metrics.requests.ready


COMPUTED = ["computed", "computed", "ready"]
SLOW = ["slow", "slow", "ready"]


@pytest.fixture
def core() -> FastCore:
    return FastCore()


@pytest.mark.parametrize(
    ("owner", "rtype", "expected"),
    [
        (MAC, "A", COMPUTED),
        (MAC.upper(), "A", COMPUTED),
        (MAC, "AAAA", COMPUTED),
        (ABSENT, "A", COMPUTED),
        ("alice.members.example.", "A", COMPUTED),
        (SRV, "SRV", COMPUTED),
        ("members.example.", "NS", SLOW),
        ("members.example.", "SOA", SLOW),
        ("x.carol.members.example.", "A", ["slow"] * 3),
        (PRIVATE, "SRV", SLOW),
        ("elsewhere.example.", "A", ["slow"] * 3),
    ],
)
def test_the_second_sight_makes_it_ready(core: FastCore, owner: str, rtype: str, expected: list[str]) -> None:
    assert core.ways(owner, rtype) == expected
    assert len(core) == int(expected[-1] == "ready")


def test_cookies_and_padding_share_one_answer(core: FastCore) -> None:
    assert core.ways(MAC, edns=Opt(1232)) == COMPUTED
    for number in range(5):
        assert core.way(MAC, edns=Opt(1232, options=((EdnsOption.COOKIE, bytes((number,)) * 8),))) == "ready"
    for size in (9, 8):
        assert core.way("members.example.", "NS", Opt(1232, options=((EdnsOption.PADDING, bytes(size)),))) == "slow"
    assert core.way("members.example.", "NS", Opt(1232)) == "ready"
    assert core.ways(MAC, edns=Opt(1232, options=(LlqOption(1, 1, 0, 0, 7200).encode(),))) == ["slow"] * 3
    assert len(core) == 2


@pytest.mark.parametrize("size", range(13, 60))
def test_what_ends_like_a_cookie_and_is_no_query_is_left_to_the_dispatcher(core: FastCore, size: int) -> None:
    """21 octets of this kind broke the whole batch that they came in."""
    for cookie in (bytes.fromhex("000c 000a 0008") + bytes(8), bytes.fromhex("001c 000a 0018") + bytes(24)):
        datagram = (bytes(size) + cookie)[-size:]
        assert core.fast.find(datagram, bytes(4)) is None


def test_what_only_the_dispatcher_can_answer_is_kept_apart_beside_a_cookie(core: FastCore) -> None:
    """It may have been cut to the room that a cookie leaves."""
    one, other = (Opt(1232, options=((EdnsOption.COOKIE, client),)) for client in (b"12345678", b"abcdefgh"))
    assert core.ways("members.example.", "NS", one) == ["slow", "slow", "ready"]
    assert core.way("members.example.", "NS", other) == "ready"
    assert core.way("members.example.", "NS", Opt(1232)) == "slow"


def test_signed_queries_and_updates_are_never_kept(core: FastCore) -> None:
    for by in (ALICE, ADMIN, key("stranger.")):
        wire, _ = signed(query_message(MAC), by, core.clock.unix())
        for _ in range(3):
            expected: list[bytes] = []
            core.dispatcher.handle(wire, UDP, expected.append)
            assert core.fast.find(wire, UDP_ADDRESS) is None
            core.fast.offer(wire[2:], expected[0])
    assert len(core) == 0


def test_a_change_drops_what_depends_on_it_and_nothing_else(core: FastCore) -> None:
    other = "ns.members.example."
    for owner, rtype in ((MAC, "A"), (MAC, "AAAA"), (SRV, "SRV"), (ABSENT, "A"), (other, "A")):
        assert core.ways(owner, rtype)[-1] == "ready"
    core.update(add(MAC, 120, "A", "192.0.2.2"), by=ADMIN)
    assert core.way(MAC) == "computed"
    assert core.way(MAC, "AAAA") == "computed"  # negative, has the serial
    assert core.way(ABSENT) == "computed"
    assert core.way(other) == "ready"
    assert core.way(SRV, "SRV") == "ready"
    core.update(add(other, 120, "AAAA", "2001:db8::1"), by=ADMIN)
    assert core.way(SRV, "SRV") == "computed"  # its additional section names the host
    core.update(delete_name(MAC), by=ADMIN)
    assert core.way(MAC) == "computed"


def test_negative_answers_of_a_zone_that_changes_are_not_kept(core: FastCore) -> None:
    core.update(add(MAC, 120, "A", "192.0.2.2"), by=ADMIN)
    assert core.ways(ABSENT) == ["computed"] * 3
    core.clock.now += fastpath.QUIET_SECONDS
    assert core.ways(ABSENT)[-1] == "ready"


def test_a_refresh_that_changes_nothing_but_a_lease(core: FastCore) -> None:
    item = add("new.alice.members.example.", 3000, "A", "192.0.2.3")
    core.update(item, by=ALICE, lease=7200)
    assert core.ways("new.alice.members.example.") == COMPUTED
    serial = core.zone.serial
    core.update(item, by=ALICE, lease=1800)
    assert core.zone.serial == serial
    assert core.ways("new.alice.members.example.") == ["computed"] * 3  # its TTL now falls second by second


def test_leases_end_ready_answers_in_time(core: FastCore) -> None:
    owner = "new.alice.members.example."
    core.update(add(owner, 600, "A", "192.0.2.3"), by=ALICE, lease=1800)
    core.clock.now = int(core.clock.now)
    assert core.ways(owner) == COMPUTED
    assert core.ways(owner, "TXT")[0] == "computed"
    core.clock.now += 1199
    assert core.way(owner) == "ready"
    core.clock.now += 2
    assert core.ways(owner) == ["computed"] * 3
    core.clock.now += 598
    assert core.way(owner) == "computed"
    core.clock.now += 5
    assert core.way(owner) == "slow"  # lapsed, and not yet swept
    core.write()
    assert core.way(owner) == "computed"


def test_a_new_cut_takes_names_away(core: FastCore) -> None:
    assert core.ways(MAC) == COMPUTED
    core.update(add("alice.members.example.", 120, "NS", "ns.elsewhere.example."), by=ADMIN)
    assert core.way(MAC) == "slow"
    assert core.ways(MAC)[-1] == "ready"
    core.update(delete_rrset("alice.members.example.", "NS"), by=ADMIN)
    assert core.way(MAC) == "computed"


def test_a_new_serial_is_told(core: FastCore) -> None:
    assert core.ways("members.example.", "SOA") == SLOW
    core.update(add(MAC, 120, "A", "192.0.2.2"), by=ADMIN)
    assert core.way("members.example.", "SOA") == "slow"


def test_a_label_type_is_no_length(core: FastCore) -> None:
    """An octet of 0xC0 at the start of a name that would be right if it were a length."""
    assert core.way(ABSENT) == "computed"
    wire = query_message("members.example.")
    wire = wire[:12] + b"\xc0" + b"x" * 192 + wire[12:]
    assert core.fast.find(wire, UDP_ADDRESS) is None


def test_a_flood_of_new_names_pushes_nothing_out(core: FastCore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_answers, "MAX_READY", 10)
    monkeypatch.setattr(fastpath, "MAX_SEEN", 100)
    assert core.ways(MAC) == COMPUTED
    for number in range(1000):
        core.way(f"n{number}.members.example.")
        assert len(core.fast._seen) <= 100
    assert core.way(MAC) == "ready"
    assert len(core) == 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[FastCore]:
    monkeypatch.setattr(ready_answers, "MAX_READY", 10)
    yield FastCore()


def test_what_is_asked_for_survives_those_that_were_asked_twice(small: FastCore) -> None:
    assert small.ways(MAC) == COMPUTED
    for number in range(100):
        assert small.ways(f"n{number}.members.example.")[-1] == "ready"
        assert small.way(MAC) == "ready"
        assert len(small) <= 20
    assert small.way("n1.members.example.") == "computed"
    small.fast.clear()
    assert len(small) == 0
    assert small.way(MAC) == "computed"


def test_octets_are_bounded_too(core: FastCore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_answers, "MAX_READY_OCTETS", 2000)
    for number in range(100):
        core.ways(f"n{number}.members.example.")
        assert core.metrics.requests.ready_octets < 2 * (2000 + 200)
    core.fast.clear()
    assert core.metrics.requests.ready_octets == 0


def test_a_change_drops_a_bounded_number(core: FastCore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_answers, "MAX_PER_NAME", 5)
    for number in range(20):
        assert core.ways(f"n{number}.members.example.")[-1] == ("ready" if number < 5 else "computed")
    assert len(core) == 5
    assert core.ways(MAC)[-1] == "ready"
    core.update(add(MAC, 120, "A", "192.0.2.2"), by=ADMIN)
    assert len(core) == 0


def test_nothing_is_left_of_dropped_answers(core: FastCore) -> None:
    names = [f"h{number}.alice.members.example." for number in range(20)]
    for turn in range(5):
        for owner in names:
            core.update(add(owner, 60 + turn, "A", "192.0.2.3"), by=ALICE, lease=1800)
            for rtype in ("A", "TXT", "ANY"):
                core.ways(owner, rtype)
    for owner in names:
        core.update(delete_name(owner), by=ALICE)
    young = core.fast._young
    assert (young.answers, young.facts, young.by_name, young.octets) == ({}, {}, {}, 0)


def test_moments_of_answers_dropped_long_ago_do_not_pile_up(small: FastCore) -> None:
    owner = "new.alice.members.example."
    for turn in range(60):
        small.update(add(owner, 60 + turn, "A", "192.0.2.3"), by=ALICE, lease=1800)
        small.ways(owner)
    assert len(small.fast._young.moments) <= 21
    small.clock.now += 1795
    assert small.way(owner) == "computed"


def test_requests_are_counted_whichever_way_they_went(core: FastCore) -> None:
    for owner, rtype in ((MAC, "A"), (ABSENT, "A"), ("members.example.", "NS")):
        wire = query_message(owner, rtype)
        for _ in range(4):
            if core.fast.find(wire, UDP_ADDRESS) is None:
                core.dispatcher.handle(wire, UDP, lambda reply, wire=wire: core.fast.offer(wire[2:], reply))  # type: ignore[misc]
    core.ask(query_message(MAC), TCP)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in core.metrics.requests.collect()
        for sample in metric.samples
    }
    assert samples == {
        ("homing_requests_total", "udp", "0", "NOERROR"): 8,
        ("homing_requests_total", "udp", "0", "NXDOMAIN"): 4,
        ("homing_requests_total", "tcp", "0", "NOERROR"): 1,
        ("homing_fast_answers_total", "ready"): 2 + 2 + 2,
        ("homing_fast_answers_total", "computed"): 2 + 2,
        ("homing_rate_limited_total", "drop"): 0,
        ("homing_rate_limited_total", "slip"): 0,
        ("homing_overload_total",): 0,
        ("homing_fast_signed_answers_total",): 0,
        ("homing_common_updates_total",): 0,
        ("homing_ready_answers",): 3,
        ("homing_ready_octets",): samples["homing_ready_octets",],
    }
    assert b"homing_ready_answers 3.0" in core.metrics.exposition()
