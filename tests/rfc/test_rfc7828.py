"""The edns-tcp-keepalive option (RFC 7828) and padding (RFC 7830, RFC 8467)."""

import pytest

from protocol.constants import EdnsOption, Rcode
from protocol.edns import Opt
from server.peer import Peer
from server.reply import PADDING_BLOCK
from tests.support.builders import ALICE, TCP, UDP, Core, query_message, signed, update_message

TLS = Peer("tls", "192.0.2.7", 40000, 8)
MAC = "mac.alice.members.example."
KEEPALIVE = (EdnsOption.TCP_KEEPALIVE, b"")
PADDING = (EdnsOption.PADDING, bytes(17))


@pytest.mark.rfc("7828", "3.3.2")
@pytest.mark.parametrize("peer", [TCP, TLS])
@pytest.mark.parametrize("owner", [MAC, "absent.members.example.", "elsewhere.example."])
def test_the_idle_time_is_told_to_who_asks(peer: Peer, owner: str) -> None:
    reply = Core().ask(query_message(owner, edns=Opt(options=(KEEPALIVE,))), peer)
    assert reply.message.opt is not None
    assert reply.message.opt.all(EdnsOption.TCP_KEEPALIVE) == [(150).to_bytes(2, "big")]


def test_who_does_not_ask_is_not_told() -> None:
    reply = Core().ask(query_message(MAC, edns=Opt()), TCP)
    assert reply.message.opt is not None and not reply.message.opt.options


@pytest.mark.rfc("7828", "3.4")
def test_who_sent_no_opt_is_told_nothing_on_a_stream_either() -> None:
    assert Core().ask(query_message(MAC), TCP).message.opt is None


@pytest.mark.rfc("7828", "3.3.1")
@pytest.mark.parametrize("data", [b"", b"\0\1"])
def test_over_udp_it_is_ignored(data: bytes) -> None:
    reply = Core().ask(query_message(MAC, edns=Opt(options=((EdnsOption.TCP_KEEPALIVE, data),))), UDP)
    assert reply.answers
    assert reply.message.opt is not None and not reply.message.opt.options


@pytest.mark.rfc("7828", "3.2.1")
def test_a_client_has_no_timeout_to_tell() -> None:
    reply = Core().ask(query_message(MAC, edns=Opt(options=((EdnsOption.TCP_KEEPALIVE, b"\0\1"),))), TCP)
    assert reply.rcode == Rcode.FORMERR


@pytest.mark.rfc("8467", "4.1")
@pytest.mark.rfc("7830", "3")
@pytest.mark.rfc("7830", "4")
@pytest.mark.rfc("8467", "3")
@pytest.mark.rfc("8467", "4.2.1")
@pytest.mark.rfc("8467", "4.2.2")
@pytest.mark.rfc("8467", "A.1")
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize(
    "owner", [MAC, "absent.members.example.", "elsewhere.example.", f"{'x' * 60}.{'y' * 63}.{MAC}"]
)
def test_padded_replies_are_whole_blocks_signature_included(owner: str, is_signed: bool) -> None:
    core = Core()
    for options in ((PADDING,), (PADDING, KEEPALIVE, (EdnsOption.COOKIE, b"12345678"))):
        wire = query_message(owner, edns=Opt(options=options))
        if is_signed:
            wire, _ = signed(wire, ALICE, core.clock.unix())
        reply = core.ask(wire, TLS)
        assert len(reply.wire) == PADDING_BLOCK
        assert (reply.message.tsig is not None) is is_signed
        assert reply.message.opt is not None
        assert reply.message.opt.options[-1][0] == EdnsOption.PADDING
        assert not any(reply.message.opt.options[-1][1])


@pytest.mark.rfc("7830", "3")
def test_padding_of_any_content_is_taken() -> None:
    for padding in (b"", b"\xff" * 40):
        reply = Core().ask(query_message(MAC, edns=Opt(options=((EdnsOption.PADDING, padding),))), TLS)
        assert reply.answers and len(reply.wire) == PADDING_BLOCK


@pytest.mark.rfc("8467", "4.1")
@pytest.mark.rfc("7830", "4")
def test_refused_signatures_and_updates_are_padded_too() -> None:
    core = Core()
    late, _ = signed(query_message(MAC, edns=Opt(options=(PADDING,))), ALICE, core.clock.unix() - 1000)
    assert len(core.ask(late, TLS).wire) == PADDING_BLOCK
    wire = bytearray(signed(query_message(MAC, edns=Opt(options=(PADDING,))), ALICE, core.clock.unix())[0])
    wire[-20] ^= 1
    assert len(core.ask(bytes(wire), TLS).wire) == PADDING_BLOCK
    assert core.ask(update_message([]), TLS).rcode == Rcode.REFUSED


@pytest.mark.rfc("7830", "4")
@pytest.mark.rfc("7830", "6")
@pytest.mark.parametrize(("peer", "options"), [(TCP, (PADDING,)), (UDP, (PADDING,)), (TLS, ())])
def test_no_padding_in_the_clear_nor_unasked(peer: Peer, options: tuple[tuple[int, bytes], ...]) -> None:
    reply = Core().ask(query_message(MAC, edns=Opt(options=options)), peer)
    assert reply.message.opt is not None and not reply.message.opt.all(EdnsOption.PADDING)
