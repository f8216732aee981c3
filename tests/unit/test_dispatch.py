"""The pipeline, octets in and octets out: who gets which answer, and what gets none."""

import struct
from collections.abc import Callable

import pytest

from protocol.constants import AA, QR, RD, TC, Class, Ede, EdnsOption, Opcode, Rcode, Type
from protocol.dso import encode_dso, keepalive
from protocol.edns import Opt, UpdateLease
from protocol.message import Message, Question, decode, encode
from protocol.name import fold, to_text
from protocol.tsig import Key
from server.peer import Peer
from server.writer import MAX_QUEUE
from server.zone.zone import Zone
from tests.support.builders import (
    ADMIN,
    ALICE,
    BOB,
    CAROL,
    TCP,
    UDP,
    ZONE,
    Core,
    Item,
    add,
    content,
    delete_name,
    delete_rrset,
    name,
    name_in_use,
    query_message,
    rdata,
    seen,
    update_message,
    zone_of_text,
)

MAC = "mac.alice.members.example."
NEW = add("new.alice.members.example.", 60, "A", "192.0.2.9")
EDNS = Opt(1232)


@pytest.fixture
def core() -> Core:
    return Core()


def dropped(core: Core, reason: str) -> float:
    return float(core.metrics.dropped.labels(reason)._value.get())


def faults(core: Core) -> float:
    return float(core.metrics.faults.labels("dispatch")._value.get())


# What gets no reply


@pytest.mark.parametrize("size", range(12))
def test_what_is_shorter_than_a_header_is_dropped_and_counted(core: Core, size: int) -> None:
    assert core.handle(query_message(MAC)[:size]) == [b""]
    assert dropped(core, "short") == 1


@pytest.mark.parametrize("body", [b"", b"\xff" * 40])
@pytest.mark.parametrize("opcode", range(16))
def test_a_response_is_never_answered(core: Core, opcode: int, body: bytes) -> None:
    for flags in (QR, QR | 0x7FF):
        assert core.handle(struct.pack("!6H", 9, flags | opcode << 11, 0, 0, 0, 0) + body) == [b""]
    assert dropped(core, "response") == 2


def test_an_acknowledgement_is_taken_in_silence(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[Message, Peer]] = []

    def acknowledge(message: Message, peer: Peer) -> bool:
        taken.append((message, peer))
        return True

    monkeypatch.setattr(core.push, "acknowledge", acknowledge)
    assert core.handle(query_message(MAC, flags=QR), UDP) == [b""]
    assert [(message.id, peer) for message, peer in taken] == [(0x4321, UDP)]
    assert dropped(core, "response") == 0


# What cannot be read


@pytest.mark.rfc("1035", "4.1.1")
@pytest.mark.parametrize("size", range(12, len(query_message(MAC, edns=EDNS))))
def test_a_truncated_query_is_formerr_with_a_header_alone(core: Core, size: int) -> None:
    (wire,) = core.handle(query_message(MAC, edns=EDNS)[:size])
    assert wire == struct.pack("!6H", 0x4321, QR | RD | Rcode.FORMERR, 0, 0, 0, 0)


@pytest.mark.parametrize("opcode", range(16))
def test_an_unreadable_message_of_any_opcode_is_formerr(core: Core, opcode: int) -> None:
    (wire,) = core.handle(struct.pack("!6H", 9, opcode << 11, 1, 0, 0, 0) + b"\xc0\x0c\0\x01\0\x01")
    assert decode(wire).header[:2] == (9, QR | opcode << 11 | Rcode.FORMERR)


@pytest.mark.rfc("1035", "4.1.1")
@pytest.mark.rfc("1035", "6.4")
@pytest.mark.parametrize("opcode", [1, 2, 3, 4, 6, 7, 15])
def test_an_opcode_that_is_not_spoken_is_notimp(core: Core, opcode: int) -> None:
    reply = core.ask(query_message(MAC, flags=opcode << 11, edns=EDNS))
    assert (reply.rcode, reply.message.header.opcode) == (Rcode.NOTIMP, opcode)
    assert reply.errors[0][0] == Ede.NOT_SUPPORTED


@pytest.mark.parametrize("version", [1, 2, 255])
@pytest.mark.parametrize("opcode", [Opcode.QUERY, Opcode.UPDATE])
def test_another_edns_version_is_badvers(core: Core, version: int, opcode: int) -> None:
    reply = core.ask(query_message(MAC, edns=Opt(1232, version=version), flags=opcode << 11))
    assert reply.rcode == Rcode.BADVERS
    assert reply.message.opt is not None and reply.message.opt.version == 0
    assert reply.answers == []


# Queries


@pytest.mark.rfc("1035", "4.1.2")
@pytest.mark.parametrize(
    ("count", "rcode"), [(0, Rcode.FORMERR), (1, Rcode.NOERROR), (2, Rcode.FORMERR), (40, Rcode.FORMERR)]
)
def test_a_query_has_one_question(core: Core, count: int, rcode: Rcode) -> None:
    assert core.ask(encode(1, 0, [Question(name(MAC), Type.A, Class.IN)] * count)).rcode == rcode


@pytest.mark.rfc("1035", "3.2.4")
@pytest.mark.rfc("1035", "3.2.5")
@pytest.mark.parametrize(
    ("rclass", "rcode"), [(Class.IN, 0), (Class.ANY, 5), (Class.CH, 5), (Class.NONE, 5), (0, 5), (4711, 5)]
)
def test_only_class_in_is_served(core: Core, rclass: int, rcode: int) -> None:
    reply = core.ask(query_message(MAC, rclass=rclass))
    assert (reply.rcode, len(reply.answers)) == (rcode, 0 if rcode else 1)


@pytest.mark.rfc("1035", "4.1.1")
@pytest.mark.parametrize("owner", ["example.", ".", "www.example.net.", "version.bind.", "notmembers.example."])
def test_a_name_in_no_zone_of_ours_is_refused(core: Core, owner: str) -> None:
    reply = core.query(owner, edns=EDNS)
    assert reply.rcode == Rcode.REFUSED
    assert reply.errors[0][0] == Ede.NOT_AUTHORITATIVE
    assert not reply.flag(AA)


@pytest.mark.rfc("1035", "3.2.3")
@pytest.mark.parametrize("rtype", [0, 41, 128, 249, 250, 251, 252, 253, 254])
def test_a_type_that_is_no_data_is_notimp(core: Core, rtype: int) -> None:
    assert core.query(MAC, rtype).rcode == Rcode.NOTIMP


def test_the_update_lease_option_means_nothing_in_a_query(core: Core) -> None:
    reply = core.query(MAC, edns=Opt(1232, options=(UpdateLease(5400).encode(),)))
    assert reply.answers and reply.lease is None


def test_an_llq_option_goes_to_the_push_service(core: Core) -> None:
    reply = core.query(MAC, edns=Opt(0, options=((EdnsOption.LLQ, bytes(18)),)))
    assert reply.rcode == Rcode.NOTIMP, "the stand-in's answer"


@pytest.mark.rfc("7766", "5")
@pytest.mark.rfc("1035", "4.2.1")
def test_too_much_for_a_datagram_is_truncated_and_whole_on_a_stream() -> None:
    lines = [f"big.members.example. 60 AAAA 2001:db8::{number:x}" for number in range(1, 60)]
    core = Core([zone_of_text("\n".join(lines))])
    for edns, limit in ((None, 512), (Opt(4096), 1232)):
        reply = core.ask(query_message("big.members.example.", "AAAA", edns=edns))
        assert reply.flag(TC) and len(reply.wire) <= limit
    whole = core.ask(query_message("big.members.example.", "AAAA"), TCP)
    assert not whole.flag(TC) and len(whole.answers) == 59


# Private zones


SECRET = "secret.carol.members.example."


@pytest.mark.parametrize("by", [None, ALICE, BOB])
def test_a_private_zone_refuses_every_name_alike(core: Core, by: Key | None) -> None:
    """The same octets but for ID, name and signature, whether the name exists or not (RFC 6281 §7.2)."""
    shown = set()
    for owner in (SECRET, "absent.carol.members.example.", "a.b.carol.members.example.", "carol.members.example."):
        for rtype in ("A", "TXT", "ANY"):
            reply = core.query(owner, rtype, by=by, edns=EDNS)
            assert not reply.answers and not reply.authority and not reply.additional
            shown.add((reply.rcode, reply.message.header.flags, tuple(reply.errors)))
            assert (reply.message.tsig is not None) == (by is not None)
    assert len(shown) == 1
    ((rcode, _, ((code, text),)),) = shown
    assert (rcode, code) == (Rcode.REFUSED, Ede.PROHIBITED)
    assert "carol.members.example. is private" in text


@pytest.mark.parametrize("by", [CAROL, ADMIN])
def test_a_private_zone_answers_its_member(core: Core, by: Key | None) -> None:
    reply = core.query(SECRET, by=by)
    assert reply.answers == [(SECRET, 120, "A", rdata("A", "192.0.2.99"))]
    assert reply.message.tsig is not None
    assert core.query("absent.carol.members.example.", by=by).rcode == Rcode.NXDOMAIN


@pytest.mark.parametrize(
    ("owner", "rtype"),
    [
        ("carol.members.example.", "SOA"),
        ("carol.members.example.", "NS"),
        ("_dns-update._udp.carol.members.example.", "SRV"),
        ("_dns-update._udp.alice.members.example.", "SRV"),
        ("_dns-update._udp.members.example.", "SRV"),
    ],
)
def test_what_leads_to_a_service_is_read_without_a_key(core: Core, owner: str, rtype: str) -> None:
    reply = core.query(owner, rtype)
    assert reply.rcode == Rcode.NOERROR and len(reply.answers) == 1


def test_nothing_of_a_private_zone_comes_by_way_of_its_parent(core: Core) -> None:
    """A CNAME and an SRV in the open zone that point into the private one."""
    core.update(add("a.members.example.", 60, "CNAME", SECRET), add("s.members.example.", 60, "SRV", f"0 0 1 {SECRET}"))
    for owner, rtype in (("a.members.example.", "A"), ("s.members.example.", "SRV")):
        reply = core.query(owner, rtype)
        assert rdata("A", "192.0.2.99") not in reply.wire


# Updates: who, what, where


def update_lines(core: Core, *ops: Item, **more: object) -> tuple[Rcode, str]:
    """RCODE and the first sentence of the reply."""
    reply = core.update(*ops, **more)  # type: ignore[arg-type]  # passed on
    return reply.rcode, reply.errors[0][1] if reply.errors else ""


def test_a_leased_update_is_granted_signed_and_seen(core: Core) -> None:
    reply = core.update(NEW, by=ALICE, lease=5400)
    assert (reply.rcode, reply.lease, reply.errors) == (Rcode.NOERROR, UpdateLease(5400), [])
    assert reply.message.tsig is not None
    assert core.query("new.alice.members.example.").answers


@pytest.mark.parametrize(
    ("ops", "more", "words"),
    [
        ([NEW], {"by": ALICE}, "must send an update lease"),
        ([NEW], {"by": ALICE, "lease": 0}, "must send an update lease"),
        ([NEW], {"by": BOB, "lease": 5400}, "may touch bob.members.example. and below, not new.alice"),
        ([delete_name(MAC)], {"by": BOB}, "not mac.alice.members.example."),
        ([NEW], {"by": None, "lease": 5400}, "must be signed"),
        ([], {"by": BOB, "zone": "carol.members.example."}, "has no say in zone carol"),
        ([add(MAC, 60, "NS", "ns.x.")], {"by": ALICE, "lease": 5400}, "may not change type NS"),
        ([], {"by": BOB, "prerequisites": [name_in_use(MAC)]}, "not mac.alice.members.example."),
    ],
)
def test_a_refused_update_says_why_signed_and_changes_nothing(
    core: Core, ops: list[Item], more: dict[str, object], words: str
) -> None:
    before = content(core.zone)
    rcode, text = update_lines(core, *ops, **more)
    assert rcode == Rcode.REFUSED
    assert words in text
    reply = core.update(*ops, **more)  # type: ignore[arg-type]  # passed on
    assert (reply.message.tsig is not None) == (more["by"] is not None)
    assert reply.lease is None
    assert (content(core.zone), core.zone.serial, core.store.commits) == (before, 1, [])


@pytest.mark.parametrize("op", [delete_name("secret.carol.members.example."), add(SECRET, 60, "TXT", "x")])
def test_a_name_in_a_deeper_zone_of_ours_is_notzone_and_told_where(core: Core, op: Item) -> None:
    for by in (CAROL, ADMIN):
        rcode, text = update_lines(core, op, by=by, lease=5400)
        assert rcode == Rcode.NOTZONE
        assert "carol.members.example." in text


@pytest.mark.parametrize("op", [delete_name("carol.members.example."), delete_rrset("carol.members.example.", "A")])
def test_a_private_member_cannot_unhook_its_zone_from_the_parent(core: Core, op: Item) -> None:
    assert update_lines(core, op, by=CAROL)[0] == Rcode.NOTZONE
    assert core.query("x.carol.members.example.", "NS", by=CAROL).rcode == Rcode.NXDOMAIN
    assert core.zone.node(fold(name("carol.members.example."))) is not None


def test_an_admin_changes_the_delegation_in_the_parent(core: Core) -> None:
    assert core.update(add("carol.members.example.", 60, "NS", "ns2.members.example.")).rcode == Rcode.NOERROR
    assert core.update(delete_rrset("carol.members.example.", "NS")).rcode == Rcode.NOERROR
    assert core.zone.node(fold(name("carol.members.example."))) is None


@pytest.mark.parametrize("size", [0, 1, 3, 5, 7, 9, 12])
def test_a_lease_option_of_another_size_is_formerr(core: Core, size: int) -> None:
    options = ((int(EdnsOption.UPDATE_LEASE), b"\0" * size),)
    wire = encode(
        1, Opcode.UPDATE << 11, [Question(name(ZONE), Type.SOA, Class.IN)], (), [NEW], opt=Opt(1232, options=options)
    )
    reply = core.ask(core.signed(wire, ALICE))
    assert (reply.rcode, reply.message.tsig is not None) == (Rcode.FORMERR, True)


def test_a_second_lease_option_is_formerr(core: Core) -> None:
    options = (UpdateLease(1800).encode(), UpdateLease(7200).encode())
    wire = encode(1, Opcode.UPDATE << 11, [Question(name(ZONE), Type.SOA, Class.IN)], opt=Opt(1232, options=options))
    assert core.ask(core.signed(wire, ALICE)).rcode == Rcode.FORMERR


def test_an_update_without_edns_gets_a_reply_without(core: Core) -> None:
    wire = core.signed(update_message([delete_name(MAC)], edns=False), BOB)
    reply = core.ask(wire)
    assert (reply.rcode, reply.message.opt) == (Rcode.REFUSED, None)


def test_a_full_queue_is_servfail_at_once(core: Core) -> None:
    replies: list[bytes] = []
    for number in range(MAX_QUEUE):
        wire = core.signed(update_message([NEW], lease=1800, id=number), ALICE)
        core.dispatcher.handle(wire, UDP, replies.append)
    assert replies == []
    core.dispatcher.handle(core.signed(update_message([NEW], lease=1800, id=MAX_QUEUE), ALICE), UDP, replies.append)
    assert [(seen(reply).rcode, seen(reply).errors[0][0]) for reply in replies] == [(Rcode.SERVFAIL, Ede.NOT_READY)]


def test_the_reply_to_an_update_is_signed_with_the_time_of_the_reply(core: Core) -> None:
    wire = core.signed(update_message([NEW], lease=1800), ALICE)
    replies: list[bytes] = []
    core.dispatcher.handle(wire, UDP, replies.append)
    core.clock.now += 4
    core.write()
    record = decode(replies[0]).tsig
    assert record is not None
    at = record.rdata_offset + len(b"\x0bhmac-sha256\0")
    assert int.from_bytes(replies[0][at : at + 6], "big") == core.clock.unix()


# Faults of ours, logs and counts


@pytest.mark.rfc("1035", "4.1.1")
def test_a_fault_of_ours_is_servfail_once_counted_and_logged(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> Zone:
        raise RuntimeError("a bug")

    monkeypatch.setattr(core.zones, "enclosing", fault)
    reply = core.query(MAC)
    assert reply.rcode == Rcode.SERVFAIL and reply.message.questions == ()
    assert faults(core) == 1


def test_updates_are_told_one_line_each_without_secrets(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _heard(monkeypatch)
    core.update(NEW, by=ALICE, lease=5400)
    core.update(NEW, by=BOB, lease=5400)
    for _ in range(50):
        core.update(NEW, by=None, lease=5400)
    told = [(level, facts["rcode"], facts["key"]) for level, facts in lines if level == "info"]
    assert told == [
        ("info", "NOERROR", "alice-laptop.members.example."),
        ("info", "REFUSED", "bob-phone.members.example."),
    ], "strangers do not fill the log"
    assert len(lines) == 52
    assert ALICE.secret.decode() not in repr(lines)
    assert lines[0][1]["serial"] == "1->2"


def _heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    lines: list[tuple[str, dict[str, object]]] = []

    def level(kind: str) -> Callable[..., None]:
        return lambda _event, **facts: lines.append((kind, facts))

    class Ear:
        info = staticmethod(level("info"))
        debug = staticmethod(level("debug"))
        exception = staticmethod(level("exception"))

    monkeypatch.setattr("server.dispatch.log", Ear)
    return lines


def test_requests_are_counted_by_transport_opcode_and_rcode(core: Core) -> None:
    core.query(MAC)
    core.query("absent.members.example.")
    core.ask(query_message(MAC), TCP)
    core.update(NEW, by=BOB, lease=1800)
    counted = {
        tuple(sample.labels[label] for label in ("transport", "opcode", "rcode")): sample.value
        for metric in core.metrics.requests.collect()
        for sample in metric.samples
        if sample.name == "homing_requests_total"
    }
    assert counted == {
        ("udp", "0", "NOERROR"): 1,
        ("udp", "0", "NXDOMAIN"): 1,
        ("tcp", "0", "NOERROR"): 1,
        ("udp", "5", "REFUSED"): 1,
    }


@pytest.mark.parametrize(
    ("owner", "rtype", "rcode", "texts"),
    [
        ("version.bind.", "TXT", 0, [b"\x04mine"]),
        ("VERSION.Server.", "TXT", 0, [b"\x04mine"]),
        ("version.bind.", "ANY", 0, [b"\x04mine"]),
        ("version.bind.", "A", 0, []),
        ("hostname.bind.", "TXT", 5, []),
    ],
)
def test_the_version_is_told_in_class_ch_when_it_is_set(owner: str, rtype: str, rcode: int, texts: list[bytes]) -> None:
    for version, expected in (("mine", rcode), (None, 5)):
        core = Core(version=version)
        reply = core.ask(query_message(owner, rtype, rclass=Class.CH))
        assert reply.rcode == expected
        assert [(to_text(r.name), r.rclass, r.raw(reply.wire)) for r in reply.message.answers] == (
            [(owner, Class.CH, text) for text in texts] if version else []
        )


@pytest.mark.rfc("6604", "3")
def test_aliases_in_a_loop_are_servfail_and_say_so() -> None:
    core = Core(
        [
            zone_of_text(
                "one.members.example. 60 CNAME two.members.example.\ntwo.members.example. 60 CNAME one.members.example."
            )
        ]
    )
    reply = core.query("one.members.example.", edns=Opt(1232))
    assert (reply.rcode, len(reply.answers)) == (Rcode.SERVFAIL, 2)
    assert reply.errors == [(Ede.INVALID_DATA, "aliases in a loop")]


class Leaving:
    """Stateful operations whose every client was told to leave."""

    def is_leaving(self, via: int) -> bool:
        return True


@pytest.mark.rfc("8490", "6.6.1.1")
@pytest.mark.parametrize("wire", [query_message(MAC), update_message([]), encode_dso(1, [keepalive(1, 2)])])
def test_what_comes_on_a_session_that_was_told_to_end_is_ignored(core: Core, wire: bytes) -> None:
    core.dispatcher._dso = Leaving()  # type: ignore[assignment]  # a stand-in
    assert core.handle(wire, Peer("tls", "192.0.2.7", 40000, 9)) == [b""]
    assert core.handle(query_message(MAC), TCP) != [b""]
