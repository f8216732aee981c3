"""Response rate limiting: who is watched, what is charged to what, what is held back; bounded whatever comes."""

import pytest

from protocol.constants import AA, TC, EdnsOption, Rcode
from protocol.edns import Opt
from server import response_limit
from server.addresses import packed
from server.metrics import Metrics
from server.response_limit import ResponseLimiter, ResponseLimits, Verdict, network_of
from tests.support.builders import ALICE, TCP, UDP, UDP_ADDRESS, Core, query_message, seen, signed, update_message

LIMITS = ResponseLimits(rate=10, total=50, slip=2, watch_seconds=15)
HERE = network_of(UDP_ADDRESS)
ALSO_HERE = network_of(packed("192.0.2.200"))
ELSEWHERE = network_of(packed("192.0.3.7"))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limiter(limits: ResponseLimits = LIMITS) -> tuple[ResponseLimiter, Clock]:
    clock = Clock()
    return ResponseLimiter(limits, clock, Metrics()), clock


def answer(owner: str = "mac", *, rcode: int = 0, count: int = 1) -> bytes:
    label = owner.encode()
    return bytes((0x84, rcode, 0, 1, 0, count, 0, 0, 0, 0, len(label))) + label + b"\0\0\1\0\1"


def verdicts(rrl: ResponseLimiter, number: int, reply: bytes, network: int = HERE) -> list[Verdict]:
    found = []
    for _ in range(number):
        rrl.note([network])
        found.append(rrl.decide(network, reply))
    return found


def test_networks() -> None:
    assert HERE == ALSO_HERE != ELSEWHERE
    assert network_of(packed("2001:db8:0:1100::1")) == network_of(packed("2001:db8:0:11ff:5::2%eth0"))
    assert network_of(packed("2001:db8:0:1100::1")) != network_of(packed("2001:db8:0:1200::1"))
    assert network_of(packed("c000:200::")) != network_of(packed("192.0.2.0"))
    assert network_of(packed("::ffff:192.0.2.9")) == HERE


def test_below_the_rate_nothing_is_watched() -> None:
    rrl, clock = limiter()
    for _ in range(60):
        rrl.note([HERE] * 5 + [ELSEWHERE] * 10)
        assert not rrl.watched
        clock.now += 1.01
    assert not rrl.watched


def test_over_the_rate_every_second_one_slips() -> None:
    rrl, _ = limiter()
    found = verdicts(rrl, 40, answer())
    assert found[:20] == [Verdict.SEND] * 20  # the second that was not watched yet, and one second's worth
    assert found[20:] == [Verdict.DROP, Verdict.SLIP] * 10


@pytest.mark.parametrize("slip", [0, 1, 3])
def test_slip(slip: int) -> None:
    rrl, _ = limiter(ResponseLimits(rate=10, total=50, slip=slip, watch_seconds=15))
    held = verdicts(rrl, 50, answer())[20:]
    assert held.count(Verdict.SLIP) == (30 // slip if slip else 0)
    assert Verdict.SEND not in held


def test_other_networks_are_not_touched() -> None:
    rrl, _ = limiter()
    verdicts(rrl, 100, answer())
    assert verdicts(rrl, 5, answer(), ELSEWHERE) == [Verdict.SEND] * 5


def test_classes_of_answers() -> None:
    """Other names are another class; absent names are one, errors are one, whatever the name."""
    rrl, _ = limiter(ResponseLimits(rate=10, total=10_000, slip=0, watch_seconds=15))
    verdicts(rrl, 100, answer("mac"))
    assert verdicts(rrl, 1, answer("MAC")) == [Verdict.DROP]
    assert verdicts(rrl, 1, answer("mini")) == [Verdict.SEND]
    absent = [rrl.decide(HERE, answer(f"x{number}", rcode=3, count=0)) for number in range(50)]
    assert absent.count(Verdict.SEND) == 10
    errors = [rrl.decide(HERE, answer(f"x{number}", rcode=1 + number % 2 * 4)) for number in range(50)]
    assert errors.count(Verdict.SEND) == 10
    empty = [rrl.decide(HERE, answer(f"x{number}", count=0)) for number in range(50)]
    assert empty.count(Verdict.SEND) == 10
    assert rrl.decide(HERE, b"\x84\x01" + bytes(8)) == Verdict.DROP  # a header alone


def test_names_made_up_below_a_wildcard_are_held_to_the_total() -> None:
    rrl, _ = limiter()
    found = [verdicts(rrl, 1, answer(f"x{number}"))[0] for number in range(500)]
    assert found.count(Verdict.SEND) == 10 + 50


def test_the_rate_is_kept_over_time_and_ends() -> None:
    rrl, clock = limiter()
    sent = 0
    for _ in range(1000):  # ten seconds of 100 a second
        sent += verdicts(rrl, 1, answer())[0] is Verdict.SEND
        clock.now += 0.01
    assert 100 <= sent <= 100 + 2 * 10
    clock.now += 14
    rrl.note([HERE])
    assert HERE in rrl.watched
    clock.now += 2
    rrl.note([ELSEWHERE])
    assert not rrl.watched


def test_exempt_networks() -> None:
    rrl, _ = limiter(ResponseLimits(rate=10, total=50, slip=2, watch_seconds=15, exempt=("192.0.0.0/20", "::1/128")))
    assert verdicts(rrl, 100, answer()) == [Verdict.SEND] * 100
    assert verdicts(rrl, 100, answer(), network_of(packed("::1"))) == [Verdict.SEND] * 100
    assert Verdict.DROP in verdicts(rrl, 100, answer(), network_of(packed("192.0.16.1")))


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_limit, "MAX_NETWORKS", 100)
    monkeypatch.setattr(response_limit, "MAX_WATCHED", 20)
    monkeypatch.setattr(response_limit, "MAX_BUCKETS", 30)
    rrl, clock = limiter(ResponseLimits(rate=10, total=50_000, slip=2, watch_seconds=15))
    for number in range(2000):
        rrl.note([number] * 12)
        rrl.decide(number, answer())
        rrl.decide(0, answer(f"n{number}"))
    assert len(rrl._counts) <= 101
    assert len(rrl.watched) == 20
    assert len(rrl._young) + len(rrl._old) <= 60
    clock.now += 20
    rrl.note([5])
    assert not rrl.watched


# What the dispatcher makes of it

TIGHT = ResponseLimits(rate=1, total=50, slip=1, watch_seconds=15)
MAC = "mac.alice.members.example."


def busy_core() -> Core:
    """A core whose client's network has had its share."""
    core = Core(limits=TIGHT)
    assert core.guard.limiter is not None
    core.guard.limiter.note([HERE] * 5)
    for owner, rtype in ((MAC, "A"), ("absent.members.example.", "A"), ("other.example.", "A"), (MAC, "SRV")):
        core.query(owner, rtype)
    return core


@pytest.mark.parametrize("edns", [None, Opt(1232, dnssec_ok=True)])
@pytest.mark.parametrize("owner", [MAC, "absent.members.example.", "other.example."])
def test_an_answer_over_the_rate_says_tc(owner: str, edns: Opt | None) -> None:
    wire = query_message(owner, edns=edns)
    reply = busy_core().ask(wire)
    assert (reply.flag(TC), reply.flag(AA), reply.rcode) == (True, False, Rcode.NOERROR)
    assert not reply.answers and not reply.authority
    assert len(reply.wire) <= len(wire)


def test_over_tcp_nothing_is_limited() -> None:
    assert busy_core().ask(query_message(MAC), TCP).answers


def test_signed_requests_are_free() -> None:
    core = busy_core()
    assert core.query(MAC, by=ALICE).answers


@pytest.mark.rfc("7873", "5.2.3")
def test_who_has_no_server_cookie_gets_one_with_badcookie_and_is_free_then() -> None:
    core = busy_core()
    first = core.query(MAC, edns=Opt(1232, options=((EdnsOption.COOKIE, b"12345678"),)))
    assert first.rcode == Rcode.BADCOOKIE
    assert first.message.opt is not None and not first.answers
    cookie = first.message.opt.all(EdnsOption.COOKIE)[0]
    again = core.query(MAC, edns=Opt(1232, options=((EdnsOption.COOKIE, cookie),)))
    assert again.rcode == Rcode.NOERROR and again.answers


def test_a_signature_that_does_not_hold_frees_nobody() -> None:
    core = busy_core()
    wire, _ = signed(query_message(MAC), ALICE, core.clock.unix())
    core.query("other.example.")
    sent = core.handle(wire[:-1] + bytes((wire[-1] ^ 1,)))
    assert seen(sent[0]).flag(TC)


def test_garbage_over_the_rate_is_dropped() -> None:
    core = Core(limits=ResponseLimits(rate=1, total=50, slip=0, watch_seconds=15))
    assert core.guard.limiter is not None
    core.guard.limiter.note([HERE] * 5)
    garbage = query_message(MAC)[:-3]
    assert seen(core.handle(garbage)[0]).rcode == Rcode.FORMERR
    assert core.handle(garbage) == [b""]
    assert core.handle(update_message([]), UDP) == [b""]
    assert core.metrics.requests.limited["drop"] == 2
