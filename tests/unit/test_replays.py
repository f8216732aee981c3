"""A repeated update is answered the same and done once; one from the past of its key is refused."""

import pytest

from protocol.name import from_text
from protocol.tsig import SHA256, Tsig
from server.replays import MOST_KEPT, Replays

NOW = 1_700_000_000
KEY = from_text("alice.members.example.")
OTHER = from_text("bob.members.example.")


def update(number: int = 0, *, at: int = NOW, key: bytes = KEY, fudge: int = 300) -> Tsig:
    return Tsig(key, SHA256.name, at, fudge, number.to_bytes(32, "big"), 1, 0, b"")


def test_a_repetition_gets_the_reply_of_the_first() -> None:
    replays = Replays()
    assert replays.begin(update(), NOW) is True
    assert replays.begin(update(), NOW) is False
    replays.finish(update(), b"reply")
    assert replays.begin(update(), NOW + 200) == b"reply"
    assert replays.begin(update(1), NOW) is True
    assert replays.begin(update(key=OTHER), NOW) is True


def test_it_is_remembered_for_as_long_as_its_time_could_be_good() -> None:
    replays = Replays()
    replays.begin(update(fudge=300), NOW)
    replays.finish(update(), b"reply")
    assert replays.begin(update(1, at=NOW + 300), NOW + 300) is True
    assert replays.begin(update(), NOW + 300) == b"reply"
    assert replays.begin(update(2, at=NOW + 301), NOW + 301) is True
    assert len(replays._entries) == 2, "the clock refuses the first from now on"


def test_what_was_not_carried_out_may_be_tried_again() -> None:
    replays = Replays()
    assert replays.begin(update(), NOW) is True
    replays.forget(update())
    assert replays.begin(update(), NOW) is True


@pytest.mark.rfc("8945", "5.2.3")
@pytest.mark.parametrize(
    ("window", "behind", "is_stale"),
    [(0, 0, False), (0, 1, True), (300, 299, False), (300, 300, False), (300, 301, True)],
)
def test_signed_before_the_window_of_its_key_is_stale(window: int, behind: int, is_stale: bool) -> None:
    replays = Replays(window)
    assert not replays.is_stale(update(at=0)), "a key that has sent nothing has no past"
    replays.begin(update(), NOW)
    assert replays.is_stale(update(1, at=NOW - behind)) == is_stale
    assert not replays.is_stale(update(1, at=NOW - behind, key=OTHER))
    replays.begin(update(2, at=NOW - 100), NOW)
    assert replays.is_stale(update(1, at=NOW - behind)) == is_stale, "the window moves forward only"


def test_memory_is_bounded_and_what_is_forgotten_cannot_be_replayed() -> None:
    replays = Replays()
    for number in range(MOST_KEPT + 100):
        assert replays.begin(update(number, at=NOW + number // 1000), NOW) is True
    assert len(replays._entries) == MOST_KEPT
    assert replays.begin(update(200, at=NOW), NOW) is False
    later = MOST_KEPT + 1500
    for number in range(MOST_KEPT + 100, later):
        replays.begin(update(number, at=NOW + number // 1000), NOW)
    assert replays.is_stale(update(0, at=NOW))
    assert not replays.is_stale(update(later, at=NOW + 1))
