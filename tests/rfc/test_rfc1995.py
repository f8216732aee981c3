"""IXFR: what changed since the client's serial, from the journal; dnspython's client follows it."""

import random
from typing import Any

import pytest

from protocol.constants import AA, TC, Rcode, Type
from protocol.edns import Opt
from protocol.message import Question, encode
from protocol.name import fold
from server.peer import Peer
from server.store.api import StoreError
from server.transfer.ixfr import MAX_STEPS, difference
from server.zone.model import RR, Actor, Change
from tests.support import simloop
from tests.support.builders import (
    ADMIN,
    ALICE,
    TCP,
    UDP,
    ZONE,
    Item,
    Seen,
    add,
    delete_name,
    delete_rr,
    delete_rrset,
    name,
    rdata,
    soa_rdata,
)
from tests.support.transfers import TransferCore, axfr, client, held_rows, ixfr, parsed, records, rows, take

HOST = "new.alice.members.example."
MAC = "mac.alice.members.example."
OPEN = {"allow_addresses": ["192.0.2.7"]}
EDNS = Opt(1232)


def fetch(core: TransferCore, wire: bytes, peer: Peer = TCP) -> list[Seen]:
    async def run() -> list[Seen]:
        return await core.fetch(wire, peer)

    return simloop.run(run())


def types(found: list[Any]) -> list[int]:
    return [row[1] for row in found]


@pytest.fixture
def core() -> TransferCore:
    return TransferCore(transfer=OPEN)


def changed(core: TransferCore, *ops: Item) -> int:
    """Make an update; the serial before it."""
    before = core.zone.serial
    assert core.update(*ops).rcode == Rcode.NOERROR
    return before


@pytest.mark.rfc("1995", "2")
@pytest.mark.parametrize("ahead", [0, 1, 0x7FFFFFFF, 0x80000000])
@pytest.mark.parametrize("peer", [TCP, UDP], ids=["tcp", "udp"])
def test_a_client_that_has_it_gets_the_single_soa(core: TransferCore, ahead: int, peer: Peer) -> None:
    serial = core.zone.serial
    (reply,) = fetch(core, ixfr((serial + ahead) & 0xFFFFFFFF), peer)
    assert [row[3] for row in records([reply])] == [soa_rdata(serial)]
    assert reply.flag(AA) and not reply.flag(TC)


@pytest.mark.rfc("1995", "4")
@pytest.mark.rfc("1995", "2")
@pytest.mark.parametrize("peer", [TCP, UDP], ids=["tcp", "udp"])
def test_one_step(core: TransferCore, peer: Peer) -> None:
    old = changed(core, add(HOST, 60, "A", "192.0.2.9"), delete_name(MAC))
    (reply,) = fetch(core, ixfr(old), peer)
    apex = name(ZONE)
    soa = [(apex, Type.SOA, 300, soa_rdata(serial)) for serial in (old + 1, old, old + 1, old + 1)]
    gone = (name(MAC), Type.A, 120, rdata("A", "192.0.2.1"))
    come = (name(HOST), Type.A, 60, rdata("A", "192.0.2.9"))
    assert records([reply]) == [soa[0], soa[1], gone, soa[2], come, soa[3]]


@pytest.mark.rfc("1995", "6")
def test_several_steps_are_condensed_to_their_net_effect(core: TransferCore) -> None:
    old = changed(core, add(HOST, 60, "A", "192.0.2.9"))
    changed(core, delete_rrset(HOST, "A"))
    changed(core, delete_rr(MAC, "A", "192.0.2.1"))
    changed(core, add(MAC, 120, "A", "192.0.2.1"))
    changed(core, add(HOST, 60, "TXT", "stays"))
    found = records(fetch(core, ixfr(old)))
    assert types(found) == [Type.SOA, Type.SOA, Type.SOA, Type.TXT, Type.SOA]
    assert [row[3] for row in found if row[1] == Type.SOA] == [soa_rdata(n) for n in (old + 5, old, old + 5, old + 5)]


@pytest.mark.rfc("1995", "4")
def test_another_ttl_is_a_removal_and_an_addition(core: TransferCore) -> None:
    old = changed(core, add(MAC, 77, "A", "192.0.2.1"))
    found = records(fetch(core, ixfr(old)))
    assert [(row[1], row[2]) for row in found[2:5]] == [(Type.A, 120), (Type.SOA, 300), (Type.A, 77)]


def test_a_record_that_came_back_in_other_case_is_told() -> None:
    soa = [RR(name(ZONE), Type.SOA, 300, soa_rdata(serial)) for serial in (1, 2, 3)]
    low, high = (RR(name(text), Type.PTR, 60, name("x.")) for text in ("a.members.example.", "A.members.example."))
    steps = [
        Change(name(ZONE), 1, 2, 0, Actor("update"), (soa[0], low), (soa[1],)),
        Change(name(ZONE), 2, 3, 0, Actor("update"), (soa[1],), (soa[2], high)),
    ]
    assert difference(steps) == [soa[2], soa[0], low, soa[2], high, soa[2]]


@pytest.mark.rfc("1995", "4")
@pytest.mark.parametrize("seed", range(8))
def test_dnspython_follows_random_updates_from_any_serial(seed: int) -> None:
    core = TransferCore(transfer=OPEN)
    dice = random.Random(seed)
    held, _ = client(ZONE)
    assert take(held, parsed(fetch(core, axfr())), "AXFR", None)
    serial = core.zone.serial
    for _ in range(60):
        owner = f"r{dice.randrange(5)}.alice.members.example."
        ops = [
            add(owner, dice.choice((60, 300)), "A", f"192.0.2.{dice.randrange(4)}"),
            add(owner, 60, "PTR", dice.choice(("Mac.alice.members.example.", "mac.alice.members.example."))),
            delete_rrset(owner, "A"),
            delete_rr(owner, "A", f"192.0.2.{dice.randrange(4)}"),
            delete_name(owner),
            add(ZONE, 300, "SOA", f"ns.members.example. h.members.example. {core.zone.serial + 5} 3600 600 86400 60"),
        ]
        core.update(*dice.choices(ops, weights=(4, 2, 1, 2, 1, 0.2), k=dice.randint(1, 3)))
        if dice.random() < 0.2:
            assert take(held, parsed(fetch(core, ixfr(serial))), "IXFR", serial)
            serial = core.zone.serial
            assert held_rows(held) == rows(core.zone)
    assert take(held, parsed(fetch(core, ixfr(serial))), "IXFR", serial)
    assert held_rows(held) == rows(core.zone)


@pytest.mark.rfc("1995", "4")
@pytest.mark.rfc("1995", "6")
def test_a_serial_the_journal_does_not_reach_gets_the_zone(core: TransferCore) -> None:
    changed(core, add(HOST, 60, "A", "192.0.2.9"))
    found = records(fetch(core, ixfr(core.zone.serial - 2)))
    assert found == records(fetch(core, axfr()))
    assert types(found)[1] != Type.SOA, "which tells the client that it is the zone"


def test_a_serial_too_far_back_does_not_ask_the_journal(core: TransferCore) -> None:
    serial = core.zone.serial
    far = f"ns.members.example. h.members.example. {serial + MAX_STEPS + 1} 3600 600 86400 60"
    changed(core, add(ZONE, 300, "SOA", far))
    core.store.journal.clear()
    assert records(fetch(core, ixfr(serial))) == records(fetch(core, axfr()))


@pytest.mark.rfc("1995", "5")
def test_more_changes_than_zone_are_sent_as_the_zone(core: TransferCore) -> None:
    old = core.zone.serial
    for part in range(4):
        changed(core, *(add(f"h{n}.alice.members.example.", 60, "A", f"10.{part}.0.{n % 256}") for n in range(300)))
        if part < 3:
            changed(core, *(delete_name(f"h{n}.alice.members.example.") for n in range(300)))
    assert types(records(fetch(core, ixfr(old))))[1] == Type.SOA, "the net effect counts"
    changed(core, *(add(f"h{n}.alice.members.example.", 60, "TXT", f"x{n}") for n in range(900)))
    assert records(fetch(core, ixfr(old))) == records(fetch(core, axfr()))


@pytest.mark.rfc("1995", "2")
def test_over_udp_what_does_not_fit_is_the_single_soa(core: TransferCore) -> None:
    old = changed(core, *(add(f"h{n}.alice.members.example.", 60, "A", "192.0.2.1") for n in range(80)))
    for wire, is_whole in (
        (ixfr(old), False),
        (ixfr(old, opt=EDNS), False),
        (ixfr((old - 7) & 0xFFFFFFFF, opt=EDNS), False),
    ):
        (reply,) = fetch(core, wire, UDP)
        assert (len(reply.answers) > 1) is is_whole and len(reply.wire) <= 1232
        assert reply.answers[0][3] == soa_rdata(core.zone.serial) and not reply.flag(TC)
    small = changed(core, *(delete_name(f"h{n}.alice.members.example.") for n in range(40)))
    assert len(fetch(core, ixfr(small), UDP)[0].answers) == 1
    assert len(fetch(core, ixfr(small, opt=EDNS), UDP)[0].answers) == 44


@pytest.mark.rfc("8945", "5.3")
@pytest.mark.parametrize("peer", [TCP, UDP], ids=["tcp", "udp"])
def test_a_signed_request_has_a_signed_answer_and_an_unknown_one_a_refusal(peer: Peer) -> None:
    core = TransferCore()
    old = changed(core, add(HOST, 60, "A", "192.0.2.9"))
    (reply,) = fetch(core, core.signed(ixfr(old), ADMIN), peer)
    assert reply.message.tsig is not None and len(reply.answers) == 5
    (refused,) = fetch(core, core.signed(ixfr(old), ALICE), peer)
    assert refused.rcode == Rcode.REFUSED and refused.message.tsig is not None


@pytest.mark.rfc("1995", "3")
def test_without_the_clients_soa_it_is_formerr(core: TransferCore) -> None:
    other = encode(1, 0, [Question(name(ZONE), Type.IXFR, 1)], (), [(name("example."), Type.SOA, 1, 0, soa_rdata(1))])
    for wire in (ixfr(None), other):
        (reply,) = fetch(core, wire)
        assert reply.rcode == Rcode.FORMERR


@pytest.mark.parametrize("peer", [TCP, UDP], ids=["tcp", "udp"])
def test_a_database_that_fails_is_servfail(core: TransferCore, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    old = changed(core, add(HOST, 60, "A", "192.0.2.9"))

    async def fail(zone_id: int, serial: int) -> None:
        raise StoreError("the disk is gone")

    monkeypatch.setattr(core.store, "changes_since", fail)
    (reply,) = fetch(core, ixfr(old), peer)
    assert reply.rcode == Rcode.SERVFAIL and not reply.answers
    assert fold(reply.message.questions[0].name) == name(ZONE)
