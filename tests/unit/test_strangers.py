"""What requests that prove nothing may cost: budgets, who is known, and what the pipeline makes of it."""

import pytest

from protocol.constants import Rcode
from protocol.tsig import SHA256, Key
from server import strangers
from server.metrics import Metrics
from server.peer import Peer
from server.strangers import StrangerLimits, Strangers
from tests.support.builders import ALICE, Core, add, query_message, seen, signed, update_message

LIMITS = StrangerLimits(per_address=10, total=100)
MAC = "mac.alice.members.example."


def peer(address: str = "192.0.2.7", transport: str = "udp") -> Peer:
    return Peer(transport, address, 40000, 1)


def test_a_spent_budget_comes_back() -> None:
    those = Strangers(LIMITS, Metrics())
    for _ in range(20):
        assert those.admits(peer(), 5.0)
        those.charge(peer(), 5.0)
    assert not those.admits(peer(), 5.0)
    assert not those.admits(peer(), 5.05)
    assert those.admits(peer(), 5.15)
    assert those.admits(peer("192.0.2.8"), 5.0)
    assert those.admits(peer(transport="tcp"), 5.0)  # there it is nobody else's doing
    assert those.admits(peer(), 100.0)
    assert not those._young


def test_an_ipv6_customer_has_one_budget() -> None:
    those = Strangers(LIMITS, Metrics())
    for number in range(20):
        those.charge(peer(f"2001:db8::{number:x}"), 5.0)
    assert not those.admits(peer("2001:db8::ffff"), 5.0)
    assert those.admits(peer("2001:db8:0:1::1"), 5.0)


def test_when_all_is_spent_the_known_are_heard_and_so_are_streams() -> None:
    those = Strangers(LIMITS, Metrics())
    those.welcome(peer("198.51.100.1"), 1.0)
    for number in range(200):
        those.charge(peer(f"203.0.{number >> 4}.{number & 15}"), 5.0)
    assert not those.admits(peer("192.0.2.9"), 5.0)
    assert those.admits(peer("198.51.100.1"), 5.0)
    assert those.admits(peer("192.0.2.9", "tls"), 5.0)
    assert those.admits(peer("192.0.2.9"), 5.02)


def test_exempt_and_switched_off() -> None:
    for limits in (StrangerLimits(10, 100, ("192.0.2.0/24",)), StrangerLimits(0, 0)):
        those = Strangers(limits, Metrics())
        for _ in range(1000):
            those.charge(peer(), 5.0)
        assert those.admits(peer(), 5.0)


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "MAX_ADDRESSES", 50)
    monkeypatch.setattr(strangers, "MAX_KNOWN", 50)
    those = Strangers(LIMITS, Metrics())
    for number in range(1000):
        address = f"10.1.{number >> 8}.{number & 255}"
        those.charge(peer(address), 5.0)
        those.welcome(peer(address), 5.0)
    assert len(those._young) + len(those._old) <= 100
    assert len(those._known) + len(those._known_before) <= 100


# Through the pipeline


def guarded() -> Core:
    core = Core()
    core.guard.strangers = Strangers(StrangerLimits(5, 1000), core.metrics)
    return core


def update(text: str = "x") -> bytes:
    return update_message([add(MAC, 60, "TXT", text)], lease=3600)


def test_unsigned_unreadable_and_wrongly_signed_updates_are_charged() -> None:
    wrong = Key(ALICE.name, SHA256, b"another secret" * 3)
    for number in range(3):
        core = guarded()
        wire = (update(), update()[:-3], signed(update(), wrong, core.clock.unix())[0])[number]
        first = core.ask(wire)
        assert first.rcode in (Rcode.REFUSED, Rcode.FORMERR, Rcode.NOTAUTH)
        for _ in range(9):
            core.handle(wire)
        spent = core.ask(wire)
        assert spent.rcode == Rcode.REFUSED and len(spent.wire) == 12
        core.clock.now += 1
        assert core.ask(wire).rcode == first.rcode


def test_what_holds_costs_nothing() -> None:
    core = guarded()
    for number in range(30):
        assert core.ask(signed(update(str(number)), ALICE, core.clock.unix())[0]).rcode == Rcode.NOERROR
    assert core.query(MAC, "TXT").answers


def test_no_mac_is_made_for_who_has_spent_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    core = guarded()
    wrong = Key(ALICE.name, SHA256, b"another secret" * 3)
    bad, _ = signed(query_message(MAC), wrong, core.clock.unix())
    for _ in range(10):
        assert core.ask(bad).rcode == Rcode.NOTAUTH
    monkeypatch.setattr("server.authn.verify", None)
    monkeypatch.setattr("server.common_updates.verify_common", None)
    assert core.ask(bad).rcode == Rcode.REFUSED
    good, _ = signed(update(), ALICE, core.clock.unix())
    assert seen(core.handle(good)[0]).rcode == Rcode.REFUSED
    assert core.query(MAC).answers  # unsigned questions are another matter
    refused = core.metrics.registry.get_sample_value("homing_strangers_refused_total", {"limit": "address"})
    assert refused == 2
