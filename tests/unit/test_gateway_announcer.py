"""The series of ten announcements in virtual time (RFC 6886 §3.2.1)."""

from __future__ import annotations

import pytest

from gateway.announcer import Announcer


def play(announcer: Announcer, until: float) -> list[float]:
    """Serve every deadline on time; returns when copies were sent."""
    sent = []
    while (at := announcer.next_deadline()) is not None and at <= until:
        announcer.handle_deadline(now=at)
        if announcer.take_due():
            sent.append(at)
    return sent


@pytest.mark.rfc("6886", "3.2.1")
def test_ten_copies_with_doubling_gaps() -> None:
    announcer = Announcer()
    assert announcer.next_deadline() is None
    announcer.restart(now=1000.0)
    sent = [at - 1000.0 for at in play(announcer, 1e9)]
    assert sent == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 15.75, 31.75, 63.75, 127.75]
    assert announcer.next_deadline() is None


def test_a_new_event_begins_the_series_anew() -> None:
    announcer = Announcer()
    announcer.restart(now=0.0)
    assert len(play(announcer, 5.0)) == 5
    announcer.restart(now=6.0)
    sent = play(announcer, 1e9)
    assert len(sent) == 10
    assert sent[:3] == [6.0, 6.25, 6.75]


def test_a_late_timer_causes_no_burst() -> None:
    announcer = Announcer()
    announcer.restart(now=0.0)
    play(announcer, 0.0)
    announcer.handle_deadline(now=600.0)
    assert announcer.take_due()
    announcer.handle_deadline(now=600.0)
    assert not announcer.take_due()
    assert announcer.next_deadline() == 600.5


def test_nothing_is_due_before_its_time() -> None:
    announcer = Announcer()
    announcer.restart(now=10.0)
    announcer.handle_deadline(now=9.9)
    assert not announcer.take_due()
