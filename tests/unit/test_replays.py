"""A repeated update is answered the same and done once."""

from server.peer import Peer
from server.replays import KEPT_SECONDS, MOST_KEPT, RecentUpdates

PEER = Peer("udp", "192.0.2.1", 5000, 0)


def test_the_same_octets_from_the_same_peer_get_the_same_reply() -> None:
    recent = RecentUpdates()
    assert recent.begin(PEER, b"request", 0.0) is True
    assert recent.begin(PEER, b"request", 1.0) is False
    recent.finish(PEER, b"request", b"reply")
    assert recent.begin(PEER, b"request", 2.0) == b"reply"
    assert recent.begin(PEER._replace(port=5001), b"request", 2.0) is True
    assert recent.begin(PEER, b"another", 2.0) is True


def test_it_is_forgotten_in_time_and_when_it_was_not_done() -> None:
    recent = RecentUpdates()
    assert recent.begin(PEER, b"request", 0.0) is True
    recent.finish(PEER, b"request", b"reply")
    assert recent.begin(PEER, b"request", KEPT_SECONDS) is True
    recent.forget(PEER, b"request")
    assert recent.begin(PEER, b"request", KEPT_SECONDS) is True


def test_a_flood_of_requests_is_bounded() -> None:
    recent = RecentUpdates()
    for number in range(MOST_KEPT + 100):
        assert recent.begin(PEER, b"%d" % number, 0.0) is True
    assert len(recent._entries) == MOST_KEPT
