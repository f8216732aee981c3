"""NOTIFY: who is told when, what it looks like, and what ends it."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.tsig
import pytest

from protocol.constants import AA, QR, Opcode, Rcode, Type
from protocol.message import Question, decode, encode
from protocol.name import fold
from server.config import ServerSettings, TransferSettings
from server.peer import Peer
from server.transfer.notify import MAX_SENDS, Notifier, NotifyMachine, SendNotify, Target, notify_message
from tests.support import simloop
from tests.support.builders import ADMIN, UDP, ZONE, Core, LoopClock, add, name, query_message, soa_rdata
from tests.support.entropy import SeededEntropy
from tests.support.transfers import TransferCore

APEX = fold(name(ZONE))
CAROLS = fold(name("carol.members.example."))
ONE, TWO = Target("192.0.2.1", 53), Target("2001:db8::1", 5353)


def machine() -> NotifyMachine:
    numbers = count(100)
    return NotifyMachine(lambda: next(numbers))


def sent(core: NotifyMachine, *, until: float) -> list[tuple[float, SendNotify]]:
    """Everything sent at its deadlines up to a moment, with the moment."""
    found: list[tuple[float, SendNotify]] = [(0.0, effect) for effect in core.take_effects()]
    while (deadline := core.next_deadline()) is not None and deadline <= until:
        core.handle_deadline(now=deadline)
        found += [(deadline, effect) for effect in core.take_effects()]
    return found


# When


@pytest.mark.rfc("1996", "3.6")
@pytest.mark.rfc("1996", "3.4")
def test_it_is_sent_at_once_and_five_times_more_after_60_seconds_each() -> None:
    core = machine()
    core.changed(APEX, 2, [ONE], now=0.0)
    found = sent(core, until=10_000)
    assert [at for at, _ in found] == [0.0, 60.0, 120.0, 180.0, 240.0, 300.0]
    assert {effect for _, effect in found} == {SendNotify(APEX, ONE, 100)}
    assert len(found) == MAX_SENDS and core.next_deadline() is None


@pytest.mark.rfc("1996", "3.6")
@pytest.mark.rfc("1996", "3.3")
@pytest.mark.rfc("1996", "4.8")
def test_an_answer_with_its_id_from_there_ends_it() -> None:
    core = machine()
    core.changed(APEX, 2, [ONE, TWO], now=0.0)
    assert [effect.id for effect in core.take_effects()] == [100, 101]
    assert not core.answered(101, ONE) and not core.answered(100, Target(ONE.host, 54)) and not core.answered(7, TWO)
    assert core.answered(100, ONE)
    assert not core.answered(100, ONE)
    assert {effect.target for _, effect in sent(core, until=1000)} == {TWO}


def test_changes_within_a_second_are_one_notify() -> None:
    core = machine()
    for serial in range(2, 50):
        core.changed(APEX, serial, [ONE], now=serial / 100)
    first, *rest = sent(core, until=30.0)
    assert first[1].id == 100
    assert [(round(at, 2), effect.id) for at, effect in rest] == [(1.02, 101)]


def test_a_serial_that_was_told_is_not_told_again() -> None:
    core = machine()
    core.changed(APEX, 2, [ONE], now=0.0)
    core.changed(APEX, 2, [ONE], now=0.0)
    core.changed(APEX, 2, [ONE], now=5.0)
    assert len(core.take_effects()) == 1 and core.next_deadline() == 60.0


def test_a_new_serial_starts_anew_and_zones_do_not_wait_for_each_other() -> None:
    core = machine()
    core.changed(APEX, 2, [ONE], now=0.0)
    core.changed(CAROLS, 9, [ONE], now=0.1)
    assert [effect.apex for effect in core.take_effects()] == [APEX, CAROLS]
    core.changed(APEX, 3, [ONE], now=50.0)
    again = [(at, effect.id) for at, effect in sent(core, until=1000) if effect.apex == APEX]
    assert again == [(0.0, 102), (110.0, 102), (170.0, 102), (230.0, 102), (290.0, 102), (350.0, 102)]
    assert not core.answered(100, ONE)


def test_a_zone_that_is_gone_is_told_of_no_more() -> None:
    core = machine()
    core.changed(APEX, 2, [ONE], now=0.0)
    core.changed(APEX, 3, [ONE], now=0.5)
    core.take_effects()
    core.forget(APEX)
    assert core.next_deadline() is None


def test_without_targets_nothing_happens() -> None:
    core = machine()
    core.changed(APEX, 2, [], now=0.0)
    assert core.take_effects() == [] and core.next_deadline() is None


# What


@pytest.mark.rfc("1996", "3.7")
@pytest.mark.rfc("1996", "3.2")
@pytest.mark.rfc("1996", "3.9")
@pytest.mark.rfc("1996", "4.5")
def test_the_message_as_dnspython_reads_it() -> None:
    zone = Core().zone
    read = dns.message.from_wire(notify_message(zone, 77))
    assert (read.id, read.opcode(), read.flags & dns.flags.AA) == (77, dns.opcode.NOTIFY, dns.flags.AA)
    assert read.question[0].to_text() == "members.example. IN SOA"
    assert read.answer[0][0].serial == zone.serial and read.answer[0].ttl == zone.soa_ttl


# The driver


def run(scenario: Callable[[Core, Notifier, list[tuple[float, Peer, bytes]]], Any], **transfer: Any) -> None:
    """A scenario in virtual time with a core and its notifier; what is sent goes to the list."""

    async def play() -> None:
        loop = asyncio.get_running_loop()
        core = Core()
        clock = LoopClock(loop.time)
        datagrams: list[tuple[float, Peer, bytes]] = []
        notifier = Notifier(
            TransferSettings.model_validate(transfer),
            zones=core.zones,
            keyring=core.keyring,
            clock=clock,
            entropy=SeededEntropy(1),
            send=lambda peer, wire: datagrams.append((loop.time(), peer, wire)),
            listener_for=lambda host: 4 if ":" not in host else 6,
        )
        await scenario(core, notifier, datagrams)
        notifier.close()
        before = len(datagrams)
        await asyncio.sleep(1000)
        assert len(datagrams) == before, "closed, it is silent"

    simloop.run(play())


def answer(wire: bytes, rcode: int = Rcode.NOERROR) -> bytes:
    """What a secondary says to a NOTIFY."""
    request = decode(wire)
    return encode(request.id, QR | AA | Opcode.NOTIFY << 11 | rcode, request.questions)


@pytest.mark.rfc("1996", "3.6")
@pytest.mark.rfc("1996", "3.12")
@pytest.mark.parametrize("rcode", [Rcode.NOERROR, Rcode.NOTIMP, Rcode.REFUSED])
def test_any_answer_ends_the_repetition(rcode: int) -> None:
    async def scenario(core: Core, notifier: Notifier, datagrams: list[tuple[float, Peer, bytes]]) -> None:
        notifier.begin()
        (first,) = datagrams
        at, peer, wire = first
        assert (at, peer.address, peer.port, peer.via) == (0.0, "192.0.2.1", 53, 4)
        assert decode(wire).questions == (Question(name(ZONE), Type.SOA, 1),)
        await asyncio.sleep(61)
        assert [(at, wire) for at, _, wire in datagrams[1:]] == [(60.0, wire)]
        assert not notifier.answered(decode(answer(wire, rcode)), peer._replace(address="192.0.2.2"))
        assert not notifier.answered(decode(answer(wire, rcode)), peer._replace(transport="tcp"))
        assert notifier.answered(decode(answer(wire, rcode)), peer)
        await asyncio.sleep(1000)
        assert len(datagrams) == 2

    run(scenario, also_notify=["192.0.2.1:53"])


def test_a_burst_of_changes_is_told_at_once_and_a_second_later() -> None:
    async def scenario(core: Core, notifier: Notifier, datagrams: list[tuple[float, Peer, bytes]]) -> None:
        notifier.begin()
        await asyncio.sleep(10)
        datagrams.clear()
        for number in range(20):
            core.update(add(f"h{number}.alice.members.example.", 60, "A", "192.0.2.1"))
            notifier.publish(APEX)
            await asyncio.sleep(0.01)
        await asyncio.sleep(10)
        assert [round(at, 2) for at, _, _ in datagrams] == [10.0, 11.0]
        serials = [decode(wire).answers[0].rdata(wire) for _, _, wire in datagrams]
        assert serials == [soa_rdata(2), soa_rdata(21)]

    run(scenario, also_notify=["192.0.2.1:53"])


@pytest.mark.rfc("1996", "4.1")
def test_private_zones_are_told_of_only_where_a_table_says_so() -> None:
    async def scenario(core: Core, notifier: Notifier, datagrams: list[tuple[float, Peer, bytes]]) -> None:
        notifier.publish(APEX)
        assert datagrams == [], "nothing before it began"
        notifier.begin()
        notifier.publish(CAROLS)
        told = {(peer.address, peer.via, decode(wire).questions[0].name) for _, peer, wire in datagrams}
        assert told == {("192.0.2.1", 4, APEX), ("2001:db8::1", 6, APEX), ("192.0.2.9", 4, CAROLS)}
        core.zones.remove(CAROLS)
        notifier.publish(CAROLS)
        datagrams.clear()
        await asyncio.sleep(100)
        assert {decode(wire).questions[0].name for _, _, wire in datagrams} == {APEX}

    zones = [{"name": "Carol.members.example", "also_notify": ["192.0.2.9:53"]}]
    run(scenario, also_notify=["192.0.2.1:53", "[2001:db8::1]:53"], zones=zones)


@pytest.mark.rfc("8945", "5.1")
def test_signed_with_the_key_that_is_named() -> None:
    async def scenario(core: Core, notifier: Notifier, datagrams: list[tuple[float, Peer, bytes]]) -> None:
        notifier.begin()
        ring = dns.tsig.Key(dns.name.from_text("admin."), ADMIN.secret, "hmac-sha256")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda: float(LoopClock(lambda: 0.0).now))
            assert dns.message.from_wire(datagrams[0][2], keyring=ring).had_tsig

    run(scenario, also_notify=["192.0.2.1:53"], notify_key="Admin.")


def test_a_key_that_is_not_there_sends_nothing() -> None:
    async def scenario(core: Core, notifier: Notifier, datagrams: list[tuple[float, Peer, bytes]]) -> None:
        notifier.begin()
        assert datagrams == []

    run(scenario, also_notify=["192.0.2.1:53"], notify_key="nobody.")


# At the server


def test_an_answer_to_a_notify_is_taken_from_udp_and_one_to_nothing_is_dropped() -> None:
    core = TransferCore(transfer={"also_notify": ["192.0.2.7:40000"]})

    async def scenario() -> None:
        core.transfers.begin()
        ((peer, wire),) = core.notified
        assert core.handle(answer(wire)[:12] + b"x", UDP) == [b""]
        assert core.handle(answer(wire), peer) == [b""]
        dropped = core.metrics.registry.get_sample_value("homing_dropped_total", {"reason": "response"})
        assert dropped == 1, "the broken one only"
        assert core.handle(answer(wire), peer) == [b""]
        dropped = core.metrics.registry.get_sample_value("homing_dropped_total", {"reason": "response"})
        assert dropped == 2
        await core.transfers.close()

    simloop.run(scenario())


@pytest.mark.rfc("1996", "3.12")
def test_a_notify_to_us_is_notimp() -> None:
    assert Core().ask(query_message(ZONE, "SOA", flags=Opcode.NOTIFY << 11)).rcode == Rcode.NOTIMP


@pytest.mark.parametrize(
    ("listen", "target", "is_good"),
    [
        (["127.0.0.1:0"], "192.0.2.1:53", True),
        (["127.0.0.1:0"], "[::1]:53", False),
        (["127.0.0.1:0", "[::1]:0"], "[::1]:53", True),
    ],
)
def test_a_target_needs_a_listener_of_its_family(listen: list[str], target: str, is_good: bool) -> None:
    for transfer in ({"also_notify": [target]}, {"zones": [{"name": ZONE, "also_notify": [target]}]}):
        values = {"dns": {"listen": listen}, "transfer": transfer}
        if is_good:
            assert ServerSettings.model_validate(values).transfer
        else:
            with pytest.raises(ValueError, match="needs an IPv6 address"):
                ServerSettings.model_validate(values)


def test_a_zone_has_one_table() -> None:
    with pytest.raises(ValueError, match="a zone has one"):
        TransferSettings.model_validate({"zones": [{"name": ZONE}, {"name": "Members.Example"}]})
