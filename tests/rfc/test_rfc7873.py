"""DNS cookies through the whole pipeline (RFC 7873 §5.2, §5.4)."""

import pytest

from protocol.constants import EdnsOption, Rcode
from protocol.edns import Opt
from protocol.message import encode
from server.guard import Guard
from tests.support.builders import ALICE, TCP, UDP, Core, Seen, add, query_message, seen, signed, update_message

CLIENT = b"12345678"
MAC = "mac.alice.members.example."


def with_cookie(data: bytes, owner: str = MAC) -> bytes:
    return query_message(owner, edns=Opt(1232, options=((EdnsOption.COOKIE, data),)))


def cookie(reply: Seen) -> bytes:
    assert reply.message.opt is not None
    found = reply.message.opt.all(EdnsOption.COOKIE)
    assert len(found) == 1
    return found[0]


@pytest.mark.rfc("7873", "5.2.2")
@pytest.mark.parametrize("length", [0, 7, 9, 15, 41])
def test_a_cookie_of_no_possible_length_is_a_format_error(length: int) -> None:
    core = Core()
    reply = core.ask(with_cookie(bytes(length)))
    assert reply.rcode == Rcode.FORMERR
    assert reply.message.opt is not None and not reply.message.opt.all(EdnsOption.COOKIE)


@pytest.mark.rfc("7873", "5.2.3")
@pytest.mark.rfc("7873", "5")
@pytest.mark.parametrize("peer", [UDP, TCP])
@pytest.mark.parametrize("owner", [MAC, "absent.members.example.", "elsewhere.example."])
def test_a_client_cookie_alone_is_answered_with_a_server_cookie(peer: object, owner: str) -> None:
    core = Core()
    reply = core.ask(with_cookie(CLIENT, owner), peer)  # type: ignore[arg-type]
    assert cookie(reply)[:8] == CLIENT
    assert len(cookie(reply)) == 24
    assert reply.rcode == core.ask(query_message(owner)).rcode


@pytest.mark.rfc("7873", "5.2.4")
@pytest.mark.parametrize("length", [8, 16, 32])
def test_an_invalid_server_cookie_is_as_none(length: int) -> None:
    core = Core()
    reply = core.ask(with_cookie(CLIENT + bytes(length)))
    assert reply.answers
    assert cookie(reply) == cookie(core.ask(with_cookie(CLIENT)))


@pytest.mark.rfc("7873", "5.2.5")
def test_a_valid_cookie_comes_back() -> None:
    core = Core()
    given = cookie(core.ask(with_cookie(CLIENT)))
    core.clock.now += 100
    assert cookie(core.ask(with_cookie(given))) == given


@pytest.mark.rfc("7873", "5.4")
def test_a_question_for_nothing_but_a_cookie() -> None:
    core = Core()

    def ask(data: bytes) -> Seen:
        return core.ask(encode(7, 0, opt=Opt(1232, options=((EdnsOption.COOKIE, data),))))

    fresh = ask(CLIENT)
    assert (fresh.rcode, fresh.message.questions, fresh.answers) == (Rcode.NOERROR, (), [])
    assert ask(cookie(fresh)).rcode == Rcode.NOERROR
    wrong = ask(CLIENT + bytes(16))
    assert wrong.rcode == Rcode.BADCOOKIE
    assert cookie(wrong) == cookie(fresh)
    assert core.ask(encode(7, 0, opt=Opt(1232))).rcode == Rcode.FORMERR


@pytest.mark.rfc("7873", "5.3")
def test_the_first_of_several_cookies_counts() -> None:
    core = Core()
    options = ((EdnsOption.COOKIE, CLIENT), (EdnsOption.COOKIE, b"87654321"))
    assert cookie(core.ask(query_message(MAC, edns=Opt(1232, options=options))))[:8] == CLIENT


def test_signed_messages_and_updates_carry_cookies_too() -> None:
    core = Core()
    opt = Opt(1232, options=((EdnsOption.COOKIE, CLIENT),))
    wire, _ = signed(query_message(MAC, edns=opt), ALICE, core.clock.unix())
    assert cookie(core.ask(wire))[:8] == CLIENT
    broken = seen(core.handle(wire[:-1] + b"\x07")[0])
    assert broken.rcode in (Rcode.FORMERR, Rcode.NOTAUTH)
    update = update_message([add(MAC, 60, "TXT", "x")], lease=3600)
    assert core.ask(signed(update, ALICE, core.clock.unix())[0]).rcode == Rcode.NOERROR


def test_switched_off_cookies_are_ignored() -> None:
    core = Core()
    core.dispatcher._guard = Guard()
    for data in (CLIENT, b"short"):
        reply = core.ask(with_cookie(data))
        assert reply.answers
        assert reply.message.opt is not None and not reply.message.opt.options
