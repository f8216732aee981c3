"""TSIG at the door (RFC 8945 §5.2): which fault is found first, which reply is signed, what a verified key may expect.

dnspython signs and validates here as a second opinion.
"""

import struct
from collections.abc import Callable
from typing import Any

import dns.message
import dns.name
import dns.tsig
import pytest
from dns.rdtypes.ANY.TSIG import TSIG
from structlog.testing import capture_logs

from protocol.constants import QR, TC, Class, Opcode, Rcode, TsigError, Type
from protocol.edns import Opt, UpdateLease
from protocol.message import decode, encode_record
from protocol.name import fold
from protocol.tsig import ALGORITHMS, MD5, Algorithm, Key, Tsig, decode_tsig, sign, verify
from server.keyring import Principal
from server.peer import Peer
from tests.support.builders import (
    ADMIN,
    ALICE,
    MEMBERS,
    T0,
    TCP,
    UDP,
    ZONE,
    Core,
    Seen,
    add,
    content,
    delete_name,
    key,
    name,
    name_in_use,
    query_message,
    seen,
    signed,
    update_message,
    zone_of_text,
)

MAC = "mac.alice.members.example."
NEW_NAME = "new.alice.members.example."
NEW = add("new.alice.members.example.", 60, "A", "192.0.2.9")
EDNS = Opt(1232)


@pytest.fixture
def core() -> Core:
    return Core()


def tsig_of(reply: Seen) -> Tsig | None:
    record = reply.message.tsig
    return None if record is None else decode_tsig(record, reply.wire)


def is_good(reply: Seen, by: Key, request_mac: bytes, now: int = T0) -> bool:
    tsig = tsig_of(reply)
    assert tsig is not None
    return verify(reply.message, tsig, by, now=now, request_mac=request_mac).error == TsigError.NOERROR


def with_tsig(wire: bytes, by: Key, **fields: Any) -> bytes:
    """Append a TSIG record with the given fields in the place of good ones."""
    wire_signed, mac = sign(wire, by, now=T0)
    tsig = Tsig(by.name, by.algorithm.name, T0, 300, mac, int.from_bytes(wire[:2], "big"), 0, b"")
    tsig = tsig._replace(**fields)
    rdata = b"".join(
        (
            tsig.algorithm,
            struct.pack("!HIHH", 0, tsig.time_signed, tsig.fudge, len(tsig.mac)),
            tsig.mac,
            struct.pack("!3H", tsig.original_id, tsig.error, len(tsig.other)),
            tsig.other,
        )
    )
    count = struct.pack("!H", int.from_bytes(wire[10:12], "big") + 1)
    assert wire_signed[10:12] == count
    return wire[:10] + count + wire[12:] + encode_record(tsig.key_name, Type.TSIG, Class.ANY, 0, rdata)


# Signed requests


@pytest.mark.rfc("8945", "5.3")
@pytest.mark.rfc("8945", "5.4.1")
@pytest.mark.parametrize("make", [lambda: query_message(MAC), lambda: update_message([NEW], lease=1800)])
def test_a_signed_request_gets_a_signed_reply(core: Core, make: Callable[[], bytes]) -> None:
    wire, mac = signed(make(), ALICE, T0)
    reply = core.ask(wire)
    assert reply.rcode == Rcode.NOERROR
    assert is_good(reply, ALICE, mac)


@pytest.mark.rfc("8945", "5.3")
def test_an_unsigned_request_gets_an_unsigned_reply(core: Core) -> None:
    assert core.ask(query_message(MAC)).message.tsig is None
    assert core.ask(update_message([NEW])).message.tsig is None


@pytest.mark.rfc("8945", "4.3.3")
def test_dnspython_signs_for_us_and_validates_our_reply(core: Core) -> None:
    theirs = dns.tsig.Key(dns.name.from_wire(ALICE.name, 0)[0], ALICE.secret, dns.tsig.HMAC_SHA256)
    query = dns.message.make_query(MAC, "A", use_edns=0)
    blank = TSIG(Class.ANY, Type.TSIG, theirs.algorithm, T0, 300, b"", query.id, 0, b"")  # type: ignore[no-untyped-call]  # dnspython
    made, _ = dns.tsig.sign(query.to_wire(), theirs, blank, T0)  # type: ignore[no-untyped-call]  # dnspython
    wire = query.to_wire()
    wire = wire[:10] + b"\0\2" + wire[12:] + encode_record(ALICE.name, Type.TSIG, Class.ANY, 0, made.to_wire() or b"")
    reply = core.ask(wire)
    assert reply.rcode == Rcode.NOERROR
    answer, record = dns.message.from_wire(reply.wire, keyring=False), reply.message.tsig
    assert answer.tsig is not None and record is not None
    dns.tsig.validate(reply.wire, theirs, theirs.name, answer.tsig[0], T0, made.mac, record.offset)  # type: ignore[no-untyped-call]  # dnspython


@pytest.mark.rfc("8945", "5.3")
@pytest.mark.rfc("8945", "5.3.2")
@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (update_message([NEW]), Rcode.REFUSED),
        (update_message([NEW], zone="other.example."), Rcode.NOTAUTH),
        (update_message([NEW._replace(rclass=Class.CH)]), Rcode.FORMERR),
        (query_message("www.example.net."), Rcode.REFUSED),
        (query_message(MAC, flags=Opcode.NOTIFY << 11), Rcode.NOTIMP),
        (query_message("absent.members.example."), Rcode.NXDOMAIN),
        (query_message(MAC, edns=Opt(1232, version=1)), Rcode.BADVERS),
    ],
)
def test_errors_that_are_not_of_the_signature_are_signed(core: Core, wire: bytes, rcode: Rcode) -> None:
    request, mac = signed(wire, ALICE, T0)
    reply = core.ask(request)
    assert reply.rcode == rcode
    assert is_good(reply, ALICE, mac)


@pytest.mark.rfc("8945", "4.2")
def test_a_key_is_found_whatever_the_case_of_its_name(core: Core) -> None:
    wire = with_tsig(query_message(MAC), ALICE, key_name=name("ALICE-Laptop.Members.example."))
    assert core.ask(wire).rcode == Rcode.NOERROR


@pytest.mark.rfc("8945", "4.2")
@pytest.mark.rfc("8945", "4.3.2")
@pytest.mark.parametrize("by", [ALICE, key("stranger.example.")], ids=["known", "unknown key"])
@pytest.mark.parametrize("late", [0, 1000], ids=["in time", "late"])
def test_a_forwarder_may_change_the_id(core: Core, by: Key, late: int) -> None:
    wire, mac = signed(query_message(MAC, id=0x1111), by, T0)
    core.clock.now += late
    reply = core.ask(b"\x22\x22" + wire[2:])
    tsig = tsig_of(reply)
    assert tsig is not None and (reply.message.id, tsig.original_id) == (0x2222, 0x1111)
    assert is_good(reply, by, mac) if by is ALICE else tsig.mac == b""


# Form


@pytest.mark.rfc("8945", "5.2")
def test_two_signatures_or_one_that_is_not_last_are_formerr_unsigned(core: Core) -> None:
    once = signed(query_message(MAC), ALICE, T0)[0]
    twice = signed(once, ALICE, T0)[0]
    opt = Opt(1232).encode()
    before_opt = once[:10] + struct.pack("!H", 2) + once[12:] + opt
    for wire in (twice, before_opt):
        reply = core.ask(wire)
        assert (reply.rcode, reply.message.tsig) == (Rcode.FORMERR, None)


@pytest.mark.rfc("8945", "5.2.2.1")
@pytest.mark.parametrize("size", [0, 1, 9, 15, 33, 64])
def test_an_impossible_mac_size_is_formerr(core: Core, size: int) -> None:
    reply = core.ask(with_tsig(update_message([NEW], lease=1800), ALICE, mac=bytes(size)))
    assert (reply.rcode, reply.message.tsig) == (Rcode.FORMERR, None)


@pytest.mark.rfc("8945", "5.2.2.1")
@pytest.mark.rfc("8945", "7")
@pytest.mark.parametrize("size", [16, 20, 31])
def test_a_truncated_mac_is_verified_and_the_reply_signed_at_least_as_long(core: Core, size: int) -> None:
    wire = query_message(MAC)
    mac = sign(wire, ALICE, now=T0)[1][:size]
    reply = core.ask(with_tsig(wire, ALICE, mac=mac))
    tsig = tsig_of(reply)
    assert tsig is not None and len(tsig.mac) >= size
    assert is_good(reply, ALICE, mac)


@pytest.mark.rfc("8945", "5.2.4")
@pytest.mark.rfc("8945", "7")
@pytest.mark.rfc("8945", "5.3.2")
@pytest.mark.parametrize(("size", "error"), [(16, 22), (19, 22), (20, 0), (31, 0), (32, 0)])
@pytest.mark.parametrize("late", [0, 1000], ids=["in time", "late"])
def test_a_mac_shorter_than_policy_is_badtrunc_signed(size: int, error: int, late: int) -> None:
    core = Core(minimum_mac=20)
    core.clock.now += late
    wire = query_message(MAC)
    mac = sign(wire, ALICE, now=T0)[1][:size]
    reply = core.ask(with_tsig(wire, ALICE, mac=mac))
    tsig = tsig_of(reply)
    assert tsig is not None and tsig.error == (TsigError.BADTIME if late else error)
    assert reply.rcode == (Rcode.NOTAUTH if error or late else Rcode.NOERROR)
    assert len(tsig.mac) == 32 and is_good(reply, ALICE, mac, now=T0)


@pytest.mark.rfc("8945", "7")
def test_a_whole_mac_is_never_too_short_for_policy() -> None:
    core = Core(minimum_mac=32)
    for algorithm in ("hmac-sha1.", "hmac-sha256-128.", "hmac-sha256.", "hmac-sha512."):
        short = Key(name("short.example."), ALGORITHMS[name(algorithm)], b"s" * 20)
        core.keyring.replace([Principal(short, None, None)])
        assert core.query(MAC, by=short).rcode == Rcode.NOERROR


@pytest.mark.rfc("8945", "6")
@pytest.mark.parametrize("algorithm", [item for item in ALGORITHMS.values() if item is not MD5], ids=lambda a: a.text)
def test_every_algorithm_of_the_table_but_gss_is_served(core: Core, algorithm: Algorithm) -> None:
    chosen = Key(name("any.example."), algorithm, b"0123456789abcdef" * 4)
    core.keyring.replace([Principal(chosen, None, None)])
    wire, mac = signed(query_message(MAC), chosen, T0)
    reply = core.ask(wire)
    assert reply.rcode == Rcode.NOERROR and is_good(reply, chosen, mac)
    assert len(mac) == {"hmac-sha256-128": 16, "hmac-sha384-192": 24, "hmac-sha512-256": 32}.get(
        algorithm.text, algorithm.size
    )


@pytest.mark.rfc("8945", "4.2")
def test_an_error_set_in_a_request_is_formerr(core: Core) -> None:
    assert core.ask(with_tsig(query_message(MAC), ALICE, error=TsigError.BADSIG)).rcode == Rcode.FORMERR


@pytest.mark.rfc("8945", "5.2")
@pytest.mark.parametrize("cut", [1, 5, 20, 40, 60])
def test_a_signature_that_cannot_be_read_is_formerr_unsigned(core: Core, cut: int) -> None:
    message = decode(signed(query_message(MAC), ALICE, T0)[0])
    assert message.tsig is not None
    at, length = message.tsig.rdata_offset, message.tsig.rdlength - cut
    wire = message.wire[: at - 2] + struct.pack("!H", length) + message.wire[at : at + length]
    reply = core.ask(wire)
    assert (reply.rcode, reply.message.tsig) == (Rcode.FORMERR, None)


# Faults of the signature


def unsigned_error(reply: Seen) -> TsigError:
    """The error of an unsigned reply, which has an empty MAC."""
    tsig = tsig_of(reply)
    assert tsig is not None and tsig.mac == b"" and tsig.other == b""
    assert reply.message.header.rcode == Rcode.NOTAUTH
    assert reply.message.opt is None or reply.message.opt.extended_rcode == 0, "16 there would be BADVERS"
    return TsigError(tsig.error)


@pytest.mark.rfc("8945", "5.2.1")
@pytest.mark.rfc("8945", "5.3")
@pytest.mark.parametrize("edns", [True, False])
def test_an_unknown_key_is_badkey_unsigned(core: Core, edns: bool) -> None:
    stranger = key("stranger.example.")
    reply = core.ask(signed(update_message([NEW], edns=edns), stranger, T0)[0])
    assert unsigned_error(reply) == TsigError.BADKEY
    assert [text for _, text in reply.errors] == (["BADKEY for key stranger.example."] if edns else [])


@pytest.mark.rfc("8945", "5.2.1")
@pytest.mark.rfc("8945", "10")
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, name("gss-tsig."), name("hmac-md5.")])
def test_a_key_serves_one_algorithm(core: Core, algorithm: bytes) -> None:
    wire = with_tsig(query_message(MAC), ALICE, algorithm=algorithm)
    reply = core.ask(wire)
    if algorithm == ALICE.algorithm.name:
        assert reply.rcode == Rcode.NOERROR
    else:
        assert unsigned_error(reply) == TsigError.BADKEY
        tsig = tsig_of(reply)
        assert tsig is not None and tsig.algorithm == algorithm


@pytest.mark.rfc("8945", "5.2.2")
@pytest.mark.rfc("8945", "4.3.1")
@pytest.mark.rfc("8945", "5.3")
@pytest.mark.rfc("6281", "7.2")
def test_a_wrong_secret_is_badsig_unsigned(core: Core) -> None:
    forged = Key(ALICE.name, ALICE.algorithm, b"guess" * 8)
    before = content(core.zone)
    reply = core.ask(signed(update_message([NEW], lease=1800), forged, T0)[0])
    assert unsigned_error(reply) == TsigError.BADSIG
    assert content(core.zone) == before and not core.store.commits


@pytest.mark.rfc("8945", "5.2.2")
def test_any_changed_octet_is_found(core: Core) -> None:
    wire, _ = signed(update_message([NEW], lease=1800, id=7), ALICE, T0)
    message = decode(wire)
    assert message.tsig is not None
    for offset in range(2, message.tsig.offset):
        changed = wire[:offset] + bytes((wire[offset] ^ 1,)) + wire[offset + 1 :]
        sent = core.handle(changed)
        if sent != [b""]:
            assert seen(sent[0]).rcode in (Rcode.NOTAUTH, Rcode.FORMERR, Rcode.BADVERS)
    assert not core.store.commits


@pytest.mark.rfc("8945", "5.2.3")
@pytest.mark.rfc("8945", "5.3.2")
@pytest.mark.parametrize(("skew", "is_late"), [(0, False), (300, False), (-300, False), (301, True), (-301, True)])
def test_a_time_outside_the_fudge_is_badtime_signed_with_both_times(core: Core, skew: int, is_late: bool) -> None:
    core.clock.now += skew
    wire, mac = signed(update_message([NEW], lease=1800), ALICE, T0)
    reply = core.ask(wire)
    tsig = tsig_of(reply)
    assert tsig is not None
    if not is_late:
        assert reply.rcode == Rcode.NOERROR
        return
    assert (reply.rcode, tsig.error) == (Rcode.NOTAUTH, TsigError.BADTIME)
    assert (tsig.time_signed, tsig.fudge) == (T0, 300)
    assert tsig.other == (T0 + skew).to_bytes(6, "big")
    assert is_good(reply, ALICE, mac)
    assert not core.store.commits


@pytest.mark.rfc("8945", "5.2.3")
def test_the_fudge_is_the_clients(core: Core) -> None:
    core.clock.now += 11
    wire = sign(query_message(MAC), ALICE, now=T0, fudge=10)[0]
    tsig = tsig_of(core.ask(wire))
    assert tsig is not None and tsig.error == TsigError.BADTIME


@pytest.mark.rfc("8945", "5.2")
def test_the_mac_is_looked_at_before_the_time(core: Core) -> None:
    """Otherwise anyone has our signature over a time of his choice (CVE-2017-3142, CVE-2017-3143)."""
    forged = Key(ALICE.name, ALICE.algorithm, b"guess" * 8)
    core.clock.now += 100_000
    assert unsigned_error(core.ask(signed(query_message(MAC), forged, T0)[0])) == TsigError.BADSIG


@pytest.mark.rfc("8945", "5.2")
def test_the_key_is_looked_at_before_the_mac(core: Core) -> None:
    assert unsigned_error(core.ask(with_tsig(query_message(MAC), key("no.such."), mac=b""))) == TsigError.BADKEY


@pytest.mark.rfc("8945", "5.2")
@pytest.mark.parametrize("fault", ["key", "mac", "time"])
def test_nothing_is_told_to_one_whose_signature_does_not_hold(core: Core, fault: str) -> None:
    by = {"key": key("no.such."), "mac": Key(ALICE.name, ALICE.algorithm, b"x" * 32), "time": ALICE}[fault]
    wire = signed(query_message(MAC), by, T0 - (1000 if fault == "time" else 0))[0]
    reply = core.ask(wire)
    assert reply.rcode == Rcode.NOTAUTH and not reply.answers


@pytest.mark.rfc("8945", "5.2.1")
@pytest.mark.rfc("8945", "5.2.2")
@pytest.mark.rfc("8945", "5.2.3")
@pytest.mark.rfc("8945", "5.2.4")
@pytest.mark.parametrize("error", [TsigError.BADKEY, TsigError.BADSIG, TsigError.BADTIME, TsigError.BADTRUNC])
def test_what_does_not_hold_is_logged_for_who_looks(error: TsigError) -> None:
    """On the debug level, as anyone can send it in any number."""
    core = Core(minimum_mac=20)
    by = {TsigError.BADKEY: key("no.such."), TsigError.BADSIG: Key(ALICE.name, ALICE.algorithm, b"x" * 32)}
    wire = signed(query_message(MAC), by.get(error, ALICE), T0 - (1000 if error == TsigError.BADTIME else 0))[0]
    if error == TsigError.BADTRUNC:
        wire = with_tsig(query_message(MAC), ALICE, mac=sign(query_message(MAC), ALICE, now=T0)[1][:16])
    with capture_logs() as lines:
        core.ask(wire)
    told = [line for line in lines if line["event"] == "signature refused"]
    assert [(line["log_level"], line["reason"].split()[0]) for line in told] == [("debug", error.name)]


# Replays


@pytest.mark.rfc("8945", "5.2.3")
@pytest.mark.parametrize(("behind", "is_stale"), [(10, False), (11, True)])
def test_an_update_from_before_the_window_of_its_key_is_badtime_signed(behind: int, is_stale: bool) -> None:
    core = Core(replay_window_seconds=10)
    held = signed(update_message([NEW], lease=1800, id=1), ALICE, T0 - behind)
    assert core.ask(signed(update_message([delete_name(NEW_NAME)], id=2), ALICE, T0)[0]).rcode == Rcode.NOERROR
    reply = core.ask(held[0])
    tsig = tsig_of(reply)
    assert tsig is not None and is_good(reply, ALICE, held[1], now=T0 - behind)
    assert (reply.rcode, tsig.error) == ((Rcode.NOTAUTH, TsigError.BADTIME) if is_stale else (Rcode.NOERROR, 0))
    assert core.query(NEW_NAME).rcode == (Rcode.NXDOMAIN if is_stale else Rcode.NOERROR)
    by_another = signed(update_message([NEW], id=3), ADMIN, T0 - behind)
    assert core.ask(by_another[0]).rcode == Rcode.NOERROR, "each key has its own past"
    asked = signed(query_message(MAC), ALICE, T0 - behind)
    assert core.ask(asked[0]).rcode == Rcode.NOERROR, "a question that was late changes nothing"


@pytest.mark.rfc("8945", "5.2.3")
@pytest.mark.parametrize("peer", [UDP, UDP._replace(address="203.0.113.66"), TCP], ids=["udp", "stranger", "tcp"])
def test_a_recorded_update_sent_again_changes_nothing_and_tells_nothing_new(core: Core, peer: Peer) -> None:
    first = core.signed(update_message([NEW], lease=1800, id=1), ALICE)
    reply = core.ask(first)
    assert core.ask(core.signed(update_message([delete_name(NEW_NAME)], id=2), ALICE)).rcode == Rcode.NOERROR
    commits = len(core.store.commits)
    assert core.handle(first, peer) == [reply.wire]
    forwarded = core.handle(b"\x99\x99" + first[2:], peer)
    assert forwarded == [b"\x99\x99" + reply.wire[2:]]
    assert len(core.store.commits) == commits
    assert core.query(NEW_NAME).rcode == Rcode.NXDOMAIN


@pytest.mark.rfc("8945", "5.2.3")
def test_a_recorded_update_whose_prerequisite_failed_fails_again_though_it_holds_now(core: Core) -> None:
    wire = core.signed(update_message([NEW], [name_in_use(NEW_NAME)], lease=1800, id=1), ALICE)
    assert core.ask(wire).rcode == Rcode.NXDOMAIN
    assert core.update(NEW, by=ALICE, lease=1800).rcode == Rcode.NOERROR
    assert core.ask(wire).rcode == Rcode.NXDOMAIN


# Truncation


@pytest.mark.rfc("8945", "5.3")
def test_room_is_kept_for_the_signature() -> None:
    lines = "\n".join(f"big.members.example. 60 A 192.0.2.{last}" for last in range(1, 26))
    core = Core([zone_of_text(lines)])
    fits = core.ask(query_message("big.members.example."))
    assert len(fits.wire) < 512 and not fits.flag(TC)
    wire, mac = signed(query_message("big.members.example."), ALICE, T0)
    cut = core.ask(wire)
    assert cut.flag(TC) and cut.answers == [] and len(cut.wire) <= 512
    assert is_good(cut, ALICE, mac)
    whole = core.ask(wire, TCP)
    assert len(whole.answers) == 25 and is_good(whole, ALICE, mac)


@pytest.mark.rfc("8945", "5.3")
def test_a_reply_cut_for_its_signature_has_nothing_but_question_and_noerror() -> None:
    chain = "\n".join(f"{'x' * 50}{n}.members.example. 60 CNAME {'x' * 50}{n + 1}.members.example." for n in range(8))
    core = Core([zone_of_text(chain)])
    query = query_message(f"{'x' * 50}0.members.example.")
    unsigned = core.ask(query)
    assert unsigned.flag(TC) and unsigned.answers and unsigned.rcode == Rcode.NXDOMAIN
    wire, mac = signed(query, ALICE, T0)
    cut = core.ask(wire)
    assert (cut.rcode, cut.flag(TC), cut.answers, cut.authority) == (Rcode.NOERROR, True, [], [])
    assert is_good(cut, ALICE, mac)
    assert core.ask(wire, TCP).rcode == Rcode.NXDOMAIN


# MD5, and the use of keys


@pytest.mark.rfc("8945", "6")
@pytest.mark.parametrize("allowed", [False, True])
def test_md5_is_off_unless_it_is_switched_on(allowed: bool) -> None:
    core = Core(allow_md5=allowed)
    old = Key(fold(name("old.example.")), MD5, b"s" * 16)
    core.keyring.replace([Principal(old, None, None)])
    wire, mac = signed(query_message(MAC), old, T0)
    reply = core.ask(wire)
    if allowed:
        assert reply.rcode == Rcode.NOERROR and is_good(reply, old, mac)
    else:
        assert unsigned_error(reply) == TsigError.BADKEY


def test_the_use_of_a_key_is_noted_when_it_held(core: Core) -> None:
    core.query(MAC, by=ALICE)
    core.ask(signed(query_message(MAC), Key(ADMIN.name, ADMIN.algorithm, b"x" * 32), T0)[0])
    assert core.keyring.take_uses() == {ALICE.name: T0}
    assert core.keyring.take_uses() == {}


def test_a_key_that_was_revoked_is_unknown(core: Core) -> None:
    assert core.update(NEW, by=ALICE, lease=1800).lease == UpdateLease(1800)
    core.keyring.replace(principal for principal in MEMBERS if principal.key is not ALICE)
    assert unsigned_error(core.ask(core.signed(query_message(MAC), ALICE))) == TsigError.BADKEY


def test_a_signed_response_is_not_answered_either(core: Core) -> None:
    assert core.handle(signed(query_message(ZONE, "SOA", flags=QR), ALICE, T0)[0]) == [b""]


@pytest.mark.rfc("8945", "10")
def test_both_keys_of_a_rollover_hold_until_the_old_one_ends(core: Core) -> None:
    """A new key has a name of its own, so that one algorithm and one secret go with each name."""
    new = key("alice-laptop-2.members.example.")
    old_one, new_one = (Principal(each, 1, MEMBERS[1].domain) for each in (ALICE, new))
    core.keyring.replace([old_one, new_one])
    for number, by in enumerate((ALICE, new, ALICE)):
        wire, mac = signed(update_message([NEW], lease=1800, id=number), by, T0)
        assert is_good(core.ask(wire), by, mac)
    core.keyring.replace([new_one])
    assert unsigned_error(core.ask(signed(query_message(MAC), ALICE, T0)[0])) == TsigError.BADKEY
    wire, mac = signed(query_message(MAC), new, T0)
    assert is_good(core.ask(wire), new, mac)
