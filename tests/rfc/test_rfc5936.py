"""AXFR: the zone as one serial in signed messages, at the pace of its reader, to those who may have it."""

import asyncio
from typing import Any

import dns.message
import dns.name
import dns.tsig
import pytest

from protocol.constants import AA, QR, RA, RD, TC, Ede, Rcode, Type
from protocol.edns import Opt
from protocol.message import Question, encode
from protocol.name import fold
from protocol.tsig import Key
from server.peer import Peer
from server.transfer.service import MAX_STREAMS, STALL_SECONDS
from tests.support import simloop
from tests.support.builders import (
    ADMIN,
    ALICE,
    BOB,
    CAROL,
    SERVICE_TEXT,
    T0,
    TCP,
    UDP,
    ZONE,
    Seen,
    add,
    name,
    stored,
    zone_of_records,
    zone_of_text,
)
from tests.support.transfers import ID, TransferCore, axfr, client, held_rows, records, rows, take

CAROLS = "carol.members.example."
LARGE = SERVICE_TEXT + "\n".join(
    f"host{number}.alice.members.example. 120 A 10.0.{number >> 8}.{number & 255}" for number in range(3000)
)
EDNS = Opt(1232)


def fetch(core: TransferCore, wire: bytes, peer: Peer = TCP) -> list[Seen]:
    async def run() -> list[Seen]:
        return await core.fetch(wire, peer)

    return simloop.run(run())


def large(transfer: dict[str, Any] | None = None) -> TransferCore:
    return TransferCore([zone_of_text(LARGE)], transfer)


# The answer


@pytest.mark.rfc("5936", "2.2")
@pytest.mark.rfc("9103", "7.9.1")
def test_the_soa_stands_first_and_last_and_nowhere_else() -> None:
    core = TransferCore()
    (reply,) = fetch(core, core.signed(axfr(), ADMIN))
    found = records([reply])
    assert found[0] == found[-1]
    assert [index for index, row in enumerate(found) if row[1] == Type.SOA] == [0, len(found) - 1]
    assert frozenset(found) == rows(core.zone)
    assert len(found) == len(rows(core.zone)) + 1, "no record twice"


@pytest.mark.rfc("5936", "2.2.1")
@pytest.mark.rfc("5936", "2.1.1")
@pytest.mark.rfc("5936", "2.2")
@pytest.mark.rfc("5936", "2.2.2")
@pytest.mark.rfc("5936", "2.2.3")
@pytest.mark.rfc("5936", "2.2.4")
@pytest.mark.rfc("5936", "2.2.5")
@pytest.mark.rfc("5936", "7.1")
@pytest.mark.rfc("9103", "6.3.4")
@pytest.mark.rfc("9103", "7.9.1")
def test_header_and_question() -> None:
    core = large()
    messages = fetch(core, core.signed(axfr(opt=EDNS), ADMIN))
    assert len(messages) > 3
    for number, reply in enumerate(messages):
        assert reply.message.id == ID and reply.rcode == Rcode.NOERROR
        assert not reply.message.header.flags & 0x70, "Z, AD and CD"
        assert reply.flag(AA) and not reply.flag(TC) and not reply.flag(RA) and not reply.flag(RD)
        assert reply.message.questions == (() if number else (Question(name(ZONE), Type.AXFR, 1),))
        assert reply.message.opt is not None
        assert len(reply.wire) <= 16 * 1024 and not reply.authority
    assert frozenset(records(messages)) == rows(core.zone)
    assert all(len(reply.wire) > 15 * 1024 for reply in messages[:-1]), "messages are filled"
    assert all(reply.message.opt is None for reply in fetch(core, core.signed(axfr(id=1), ADMIN)))


@pytest.mark.rfc("5936", "2.1.1")
@pytest.mark.rfc("5936", "2.2.1")
def test_bits_of_a_query_that_mean_nothing_are_ignored() -> None:
    """AA, RA, Z, AD and CD; RD comes back."""
    core = TransferCore()
    wire = bytearray(axfr())
    wire[2] |= 0x05
    wire[3] |= 0xF0
    (reply,) = fetch(core, core.signed(bytes(wire), ADMIN))
    assert reply.message.header.flags == QR | AA | RD and frozenset(records([reply])) == rows(core.zone)


@pytest.mark.rfc("5936", "3.1")
@pytest.mark.rfc("5936", "3.2")
@pytest.mark.rfc("5936", "3.3")
@pytest.mark.rfc("5936", "3.5")
@pytest.mark.rfc("4035", "3.1.5")
def test_glue_occluded_names_and_unknown_types_belong_to_it() -> None:
    text = """
        members.example. 300 NS ns.members.example.
        cut.members.example. 300 NS ns.cut.members.example.
        cut.members.example. 300 DS 1 13 2 0000000000000000000000000000000000000000000000000000000000000000
        cut.members.example. 300 NSEC members.example. NS DS RRSIG NSEC
        cut.members.example. 300 RRSIG DS 13 3 300 20300101000000 20200101000000 1 members.example. AAAA
        ns.cut.members.example. 300 A 192.0.2.54
        hidden.cut.members.example. 300 TXT hidden
        *.wild.members.example. 60 TYPE65280 \\# 3 010203
    """
    core = TransferCore([zone_of_text(text)])
    assert frozenset(records(fetch(core, core.signed(axfr(), ADMIN)))) == rows(core.zone)


def test_a_record_larger_than_a_usual_message_travels_alone() -> None:
    big = stored("big.alice.members.example. 60 TXT " + " ".join(['"' + "x" * 250 + '"'] * 250))
    core = TransferCore([zone_of_records([stored("members.example. 60 NS ns.members.example."), big])])
    messages = fetch(core, core.signed(axfr(opt=EDNS), ADMIN))
    assert frozenset(records(messages)) == rows(core.zone)
    assert [len(reply.message.answers) for reply in messages if len(reply.wire) > 16 * 1024] == [1]


@pytest.mark.rfc("9664", "4.3")
def test_what_has_lapsed_is_left_out() -> None:
    lines = [stored("members.example. 60 NS ns.members.example.")]
    lines += [stored(f"h{at}.alice.members.example. 60 A 192.0.2.1", expires_at=T0 + at) for at in (-1, 0, 1)]
    core = TransferCore([zone_of_records(lines)])
    owners = {row[0] for row in records(fetch(core, core.signed(axfr(), ADMIN)))}
    assert owners == {fold(name(ZONE)), name("h1.alice.members.example.")}


@pytest.mark.rfc("8945", "5.3.1")
@pytest.mark.rfc("5936", "2.2.5")
@pytest.mark.rfc("5936", "6")
@pytest.mark.parametrize("with_key", [ADMIN, CAROL])
def test_every_message_is_signed_in_a_chain_and_dnspython_agrees(
    with_key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = large({"allow_keys": [CAROLS, "carol-desk.members.example."]})
    monkeypatch.setattr("time.time", lambda: float(T0))
    held, ring = client(ZONE, with_key)
    request = core.signed(axfr(), with_key)
    mac = dns.message.from_wire(request, keyring=ring).mac
    messages = fetch(core, request)
    assert len(messages) > 3
    context, read = None, []
    for reply in messages:
        theirs = dns.message.from_wire(
            reply.wire, keyring=ring, request_mac=mac, xfr=True, tsig_ctx=context, multi=True
        )
        assert theirs.had_tsig
        context = theirs.tsig_ctx
        read.append(theirs)
    with pytest.raises(dns.tsig.BadSignature):
        dns.message.from_wire(messages[1].wire, keyring=ring, request_mac=mac, xfr=True, multi=True)
    assert take(held, read, "AXFR", None)
    assert held_rows(held) == rows(core.zone)


# One serial, at the reader's pace


@pytest.mark.rfc("5936", "2.2")
@pytest.mark.rfc("5936", "4.1.2")
@pytest.mark.rfc("9103", "6.1")
@pytest.mark.rfc("9103", "6.2")
def test_commits_during_a_transfer_are_not_seen() -> None:
    core = large()

    async def run() -> None:
        before = rows(core.zone)
        core.transfers.stream_paused(TCP.via)
        core.begin(core.signed(axfr(), ADMIN))
        await core.settle()
        assert core.update(add("new.alice.members.example.", 60, "A", "192.0.2.1")).rcode == Rcode.NOERROR
        assert rows(core.zone) != before
        core.transfers.stream_resumed(TCP.via)
        messages = await core.fetch(core.signed(axfr(id=1), ADMIN))
        first = [reply for reply in messages if reply.message.id == ID]
        second = [reply for reply in messages if reply.message.id == 1]
        assert messages == first + second, "one after the other on a stream"
        assert frozenset(records(first)) == before
        assert frozenset(records(second)) == rows(core.zone)

    simloop.run(run())


def test_a_slow_reader_gets_no_more_until_it_has_read_and_others_are_served() -> None:
    core = large()
    other = TCP._replace(via=8)

    async def run() -> None:
        core.transfers.stream_paused(TCP.via)
        core.begin(core.signed(axfr(), ADMIN))
        assert len(await core.fetch(core.signed(axfr(), ADMIN), other)) > 3
        assert core.streams.sent.get(TCP.via, []) == []
        core.transfers.stream_resumed(TCP.via)
        await core.settle()
        assert core.streams.sent[TCP.via] == core.streams.sent[other.via]

    simloop.run(run())


@pytest.mark.rfc("5936", "4.1.2")
def test_a_reader_that_stalls_loses_its_connection() -> None:
    core = large()

    async def run() -> float:
        core.transfers.stream_paused(TCP.via)
        core.begin(core.signed(axfr(), ADMIN))
        while not core.streams.aborted:
            await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    assert STALL_SECONDS <= simloop.run(run()) <= STALL_SECONDS + 2
    assert core.streams.aborted == [TCP.via]


@pytest.mark.rfc("5936", "4.1.2")
def test_a_connection_that_closes_ends_its_transfers_without_a_fault() -> None:
    core = large()

    async def run() -> None:
        core.transfers.stream_paused(TCP.via)
        core.begin(core.signed(axfr(), ADMIN))
        core.begin(core.signed(axfr(), ADMIN))
        await core.settle()
        core.transfers.stream_closed(TCP.via)
        await core.settle()
        assert TCP.via not in core.streams.sent and not core.streams.aborted
        assert len(await core.fetch(core.signed(axfr(), ADMIN))) > 3, "the number can be used again"

    simloop.run(run())
    assert core.metrics.registry.get_sample_value("homing_faults_total", {"where": "transfer"}) is None


@pytest.mark.rfc("9103", "6.3.3")
def test_only_so_many_streams_transfer_at_a_time() -> None:
    core = large()

    async def run() -> None:
        for via in range(MAX_STREAMS):
            core.transfers.stream_paused(via)
            core.begin(core.signed(axfr(), ADMIN), TCP._replace(via=via))
        (refused,) = await core.fetch(core.signed(axfr(opt=EDNS), ADMIN), TCP._replace(via=99))
        assert (refused.rcode, refused.errors[0][0]) == (Rcode.SERVFAIL, Ede.NOT_READY)
        core.transfers.stream_resumed(0)
        await core.settle()
        assert len(await core.fetch(core.signed(axfr(), ADMIN), TCP._replace(via=99))) > 3
        await core.transfers.close()

    simloop.run(run())


# Who may


@pytest.mark.rfc("5936", "5")
@pytest.mark.rfc("9103", "7.5")
@pytest.mark.rfc("9432", "7")
@pytest.mark.parametrize(
    ("zone", "by", "settings", "is_served"),
    [
        (ZONE, ADMIN, {}, True),
        (ZONE, None, {}, False),
        (ZONE, ALICE, {}, False),
        (ZONE, CAROL, {}, False),
        (ZONE, ALICE, {"allow_keys": ["Alice-Laptop.members.example"]}, True),
        (ZONE, BOB, {"allow_keys": ["alice-laptop.members.example."]}, False),
        (ZONE, None, {"allow_keys": ["alice-laptop.members.example."]}, False),
        (ZONE, None, {"allow_addresses": ["192.0.2.7"]}, True),
        (ZONE, None, {"allow_addresses": ["192.0.2.0/24"]}, True),
        (ZONE, None, {"allow_addresses": ["2001:db8::/32", "192.0.2.8"]}, False),
        (ZONE, BOB, {"allow_addresses": ["192.0.2.7"]}, True),
        (ZONE, None, {"zones": [{"name": "Members.example", "allow_addresses": ["192.0.2.7"]}]}, True),
        (ZONE, None, {"allow_addresses": ["192.0.2.7"], "zones": [{"name": ZONE}]}, False),
        (ZONE, None, {"allow_addresses": ["192.0.2.7"], "zones": [{"name": CAROLS}]}, True),
        (CAROLS, ADMIN, {}, True),
        (CAROLS, CAROL, {}, True),
        (CAROLS, ALICE, {}, False),
        (CAROLS, ALICE, {"allow_keys": ["alice-laptop.members.example."]}, False),
        (CAROLS, None, {"allow_addresses": ["192.0.2.7"]}, False),
        (CAROLS, None, {"zones": [{"name": CAROLS, "allow_addresses": ["192.0.2.7"]}]}, False),
        (CAROLS, ALICE, {"zones": [{"name": CAROLS, "allow_keys": ["alice-laptop.members.example."]}]}, False),
    ],
)
def test_who_may_have_a_zone(zone: str, by: Key | None, settings: dict[str, Any], is_served: bool) -> None:
    core = TransferCore(transfer=settings)
    wire = axfr(zone, opt=EDNS)
    (reply,) = fetch(core, core.signed(wire, by) if by else wire)
    if is_served:
        held = core.zones.at(fold(name(zone)))
        assert held is not None and frozenset(records([reply])) == rows(held)
    else:
        assert reply.rcode == Rcode.REFUSED and not reply.answers
        assert reply.errors[0][0] == Ede.PROHIBITED and "may not transfer zone" in reply.errors[0][1]
    assert (reply.message.tsig is not None) == (by is not None)


@pytest.mark.rfc("5936", "5")
def test_an_ipv6_peer_is_matched_and_a_mapped_one_is_its_ipv4_self() -> None:
    for address, rule, is_served in (
        ("2001:db8::1", "2001:db8::/32", True),
        ("fe80::1%eth0", "fe80::/64", True),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("2001:db8::1", "192.0.2.0/24", False),
    ):
        core = TransferCore(transfer={"allow_addresses": [rule]})
        (reply,) = fetch(core, axfr(), TCP._replace(address=address))
        assert (reply.rcode == Rcode.NOERROR) is is_served, address


@pytest.mark.rfc("5936", "4.2")
@pytest.mark.rfc("1035", "3.2.3")
def test_over_udp_it_is_refused() -> None:
    core = TransferCore()
    (reply,) = fetch(core, core.signed(axfr(opt=EDNS), ADMIN), UDP)
    assert (reply.rcode, reply.errors[0][0]) == (Rcode.REFUSED, Ede.NOT_SUPPORTED)


@pytest.mark.rfc("5936", "2.2.1")
@pytest.mark.rfc("5936", "2.2")
@pytest.mark.rfc("5936", "2.2.2")
@pytest.mark.rfc("5936", "4.1.2")
@pytest.mark.parametrize(
    ("zone", "rclass"), [("example.", 1), ("mac.alice.members.example.", 1), (ZONE, 3), (ZONE, 255), (".", 1)]
)
def test_no_zone_of_ours_is_notauth(zone: str, rclass: int) -> None:
    core = TransferCore()
    (reply,) = fetch(core, core.signed(axfr(zone, rclass=rclass, opt=EDNS), ADMIN))
    assert (reply.rcode, reply.errors[0][0]) == (Rcode.NOTAUTH, Ede.NOT_AUTHORITATIVE)


@pytest.mark.rfc("5936", "2.1.2")
def test_two_questions_are_formerr() -> None:
    core = TransferCore()
    both = [Question(name(ZONE), Type.A, 1), Question(name(ZONE), Type.AXFR, 1)]
    (reply,) = fetch(core, core.signed(encode(1, 0, both), ADMIN))
    assert reply.rcode == Rcode.FORMERR


def test_a_wrong_signature_gets_nothing() -> None:
    core = TransferCore()
    wrong = Key(ADMIN.name, ADMIN.algorithm, b"y" * 32)
    (reply,) = fetch(core, core.signed(axfr(), wrong))
    assert reply.rcode == Rcode.NOTAUTH and not reply.answers
