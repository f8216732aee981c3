"""Which queries are told of, and what of them."""

import random

import pytest
from structlog.testing import capture_logs

from protocol.constants import QR
from protocol.message import Question, encode
from server.peer import Peer
from server.querylog import MAX_LINES, QueryLog
from tests.support.builders import ManualClock, name, query_message


class Dice:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)


def made(share: float, seed: int = 1) -> QueryLog:
    return QueryLog(share, clock=ManualClock(), entropy=Dice(seed))


def reply(owner: str = "mac.members.example.", flags: int = QR) -> bytes:
    return encode(7, flags, [Question(name(owner), 28, 1)])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_each_query_has_the_same_chance_in_whatever_batches_they_come(share: float) -> None:
    dice = random.Random(5)
    log, total, drawn = made(share), 0, 0
    while total < 200_000:
        count = dice.randint(1, 64)
        found = list(log.drawn(count))
        assert found == sorted(set(found)) and all(0 <= position < count for position in found)
        total += count
        drawn += len(found)
    assert abs(drawn / total - share) < 4 * (share * (1 - share) / total) ** 0.5 + 1e-12


def test_a_line_says_who_asked_what_and_what_came_of_it() -> None:
    with capture_logs() as lines:
        made(1.0).offer(reply(flags=QR | 3), "udp", "192.0.2.7", 4242)
    (line,) = lines
    assert (line["event"], line["name"], line["type"], line["rcode"]) == (
        "query",
        "mac.members.example.",
        "AAAA",
        "NXDOMAIN",
    )
    assert line["peer"] == "192.0.2.7#4242/udp"


def test_only_replies_to_queries_that_have_a_question_are_told() -> None:
    log = made(1.0)
    with capture_logs() as lines:
        for wire in (b"", b"short", query_message("a."), reply(flags=QR | 5 << 11), encode(7, QR), reply()[:14]):
            log.tell(wire, "udp", "192.0.2.7", 1)
    assert lines == []


def test_lines_are_bounded_by_the_second() -> None:
    clock = ManualClock()
    log = QueryLog(1.0, clock=clock, entropy=Dice(1))
    with capture_logs() as lines:
        for _ in range(MAX_LINES + 50):
            log.offer(reply(), "udp", "192.0.2.7", 1)
        clock.now += 1
        log.offer(reply(), "udp", "192.0.2.7", 1)
    assert [line["event"] for line in lines].count("query") == MAX_LINES + 1
    assert [line["queries"] for line in lines if "queries" in line] == [50]


def test_streams_offer_every_reply() -> None:
    sent: list[bytes] = []
    handle = made(1.0).over(lambda wire, peer, send: send(reply()))
    with capture_logs() as lines:
        handle(query_message("mac.members.example."), Peer("tls", "192.0.2.7", 9, 1), sent.append)
    assert sent == [reply()] and lines[0]["peer"] == "192.0.2.7#9/tls"
