"""Server cookies: the published vectors, ages, secrets and their rotation."""

import random
from pathlib import Path

import pytest

from protocol.constants import EdnsOption
from protocol.cookies import cookie_age, make_cookie, request_cookie
from protocol.edns import Opt
from protocol.errors import DecodeError
from protocol.siphash import siphash
from server import cookies
from server.addresses import packed
from server.cookies import Cookies, read_secrets

KEY = bytes(range(16))
# Of the reference implementation: input octets 0, 1, 2... of that length under the key above.
SIPHASH = {
    0: "310e0edd47db6f72",
    1: "fd67dc93c539f874",
    7: "37d1018bf50002ab",
    8: "6224939a79f5f593",
    15: "e545be4961ca29a1",
    20: "98eea21af25cd6be",
    63: "724506eb4c328a95",
}
SECRET = bytes.fromhex("e5e973e5a6b2a43f48e7dc849e37bfcf")
CLIENT = bytes.fromhex("2464c4abcf10c957")
V4 = packed("198.51.100.100")


@pytest.mark.rfc("7873", "9.1")
@pytest.mark.rfc("9018", "4")
@pytest.mark.rfc("9018", "6")
@pytest.mark.parametrize("length", SIPHASH)
def test_siphash(length: int) -> None:
    assert siphash(KEY, bytes(range(length))).hex() == SIPHASH[length]


class At:
    """A clock to set."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def jar(now: int, *secrets: bytes, jitter: int | None = None) -> tuple[Cookies, At]:
    """`jitter`: the 16 bits that shorten the life of a secret, in place of random ones."""
    clock, bits = At(now), random.Random(1).getrandbits
    return Cookies(clock, lambda count: jitter if jitter is not None and count == 16 else bits(count), secrets), clock


@pytest.mark.rfc("9018", "A.1")
@pytest.mark.rfc("9018", "2")
@pytest.mark.rfc("9018", "4.2")
def test_a_new_cookie() -> None:
    server, _ = jar(1559731985, SECRET)
    reply = server.reply(CLIENT, V4)
    assert reply.data.hex() == "2464c4abcf10c957010000005cf79f111f8130c3eee29480"
    assert not reply.is_proved


@pytest.mark.rfc("9018", "A.2")
@pytest.mark.rfc("9018", "4.3")
def test_a_renewed_cookie() -> None:
    server, _ = jar(1559734385, SECRET)
    reply = server.reply(bytes.fromhex("2464c4abcf10c957010000005cf79f111f8130c3eee29480"), V4)
    assert reply.is_proved
    assert reply.data.hex() == "2464c4abcf10c957010000005cf7a871d4a564a1442aca77"


@pytest.mark.rfc("9018", "4.2")
def test_reserved_octets_are_hashed_as_they_came() -> None:
    cookie = bytes.fromhex("fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5")
    assert cookie_age(SECRET, cookie, packed("203.0.113.203"), 1559727985) == 0


@pytest.mark.rfc("9018", "A.4")
@pytest.mark.rfc("9018", "5")
def test_ipv6_and_a_secret_replaced() -> None:
    new, old = bytes.fromhex("445536bcd2513298075a5d379663c962"), bytes.fromhex("dd3bdf9344b678b185a6f5cb60fca715")
    server, _ = jar(1559741961, new, old)
    cookie = bytes.fromhex("22681ab97d52c298010000005cf7c57926556bd0934c72f8")
    reply = server.reply(cookie, packed("2001:db8:220:1:59de:d0f4:8769:82b8"))
    assert reply.is_proved
    assert reply.data.hex() == "22681ab97d52c298010000005cf7c609a6bb79d16625507a"
    server.replace([new])
    assert not server.reply(cookie, packed("2001:db8:220:1:59de:d0f4:8769:82b8")).is_proved


@pytest.mark.rfc("9018", "4.3")
@pytest.mark.parametrize(
    ("age", "is_proved", "is_kept"),
    [
        (0, True, True),
        (1799, True, True),
        (1800, True, False),
        (3600, True, False),
        (3601, False, False),
        (-300, True, True),
        (-301, False, False),
    ],
)
@pytest.mark.parametrize("issued", [1559731985, 0xFFFFFFFF, 0x100000010])
def test_ages(age: int, is_proved: bool, is_kept: bool, issued: int) -> None:
    server, _ = jar(issued + age, SECRET)
    cookie = make_cookie(SECRET, CLIENT, V4, issued)
    reply = server.reply(cookie, V4)
    assert (reply.is_proved, reply.data == cookie) == (is_proved, is_kept)


@pytest.mark.rfc("7873", "4.2")
@pytest.mark.rfc("9018", "4.4")
def test_a_cookie_belongs_to_its_client() -> None:
    server, _ = jar(1000, SECRET)
    cookie = server.reply(CLIENT, V4).data
    assert server.reply(cookie, V4).is_proved
    assert not server.reply(cookie, packed("198.51.100.101")).is_proved
    for at in range(len(cookie)):
        other = bytearray(cookie)
        other[at] ^= 1
        assert not server.reply(bytes(other), V4).is_proved, at
    for length in (16, 23, 25, 40):
        assert not server.reply((cookie + bytes(16))[:length], V4).is_proved


@pytest.mark.rfc("7873", "7.1")
@pytest.mark.rfc("7873", "4.2")
@pytest.mark.rfc("9018", "4")
@pytest.mark.rfc("9018", "5")
@pytest.mark.parametrize(("jitter", "hours"), [(0, 24), (0xFFFF, 14.4)])
def test_its_own_secret_is_rotated_and_the_last_one_still_believed(jitter: int, hours: float) -> None:
    """After a day at most, and up to 40 % before that."""
    server, clock = jar(10_000, jitter=jitter)
    first = server.reply(CLIENT, V4).data
    clock.now += int(hours * 3600) - 10
    late = server.reply(CLIENT, V4).data
    clock.now += cookies.MEMORY_SECONDS
    after = server.reply(late, V4)
    assert after.is_proved
    assert after.data != late  # made with the new secret at once
    assert not server.reply(first, V4).is_proved


def test_memory_is_bounded_and_forgets() -> None:
    server, clock = jar(1000, SECRET)
    for number in range(cookies.MAX_REMEMBERED + 100):
        server.reply(number.to_bytes(8, "big"), V4)
    assert len(server._remembered) <= cookies.MAX_REMEMBERED
    before = server.reply(CLIENT, V4).data
    clock.now += cookies.MEMORY_SECONDS
    assert server.reply(CLIENT, V4).data != before


@pytest.mark.rfc("9018", "4.4")
def test_secrets_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cookies"
    file.write_text(f"# signs\n{SECRET.hex()}\n\n{KEY.hex().upper()}  # the one before\n")
    assert read_secrets(file) == [SECRET, KEY]


@pytest.mark.parametrize(
    "text", ["", "# none\n", "abcd\n", "x" * 32, f"{KEY.hex()}\n{KEY.hex()}\n", (KEY.hex()[:-1] + "é")]
)
def test_a_bad_file_says_why_and_tells_no_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cookies"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"line|must hold") as raised:
        read_secrets(file)
    assert KEY.hex()[:8] not in str(raised.value)


def test_lengths() -> None:
    for length in range(45):
        opt = Opt(options=((EdnsOption.COOKIE, bytes(length)), (EdnsOption.COOKIE, b"second")))
        if length == 8 or 16 <= length <= 40:
            assert request_cookie(opt) == bytes(length)
        else:
            with pytest.raises(DecodeError):
                request_cookie(opt)
