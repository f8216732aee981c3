"""Places for connections: the total, the share of an address, and who goes for a newcomer."""

import pytest

from server.addresses import sharer
from server.transport import stream_table
from server.transport.stream_table import StreamTable


class One:
    """A connection that is owed something or not."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.idle = True
        self.looked_at = 0

    def is_idle(self) -> bool:
        self.looked_at += 1
        return self.idle


class Hall:
    def __init__(self, total: int, per_address: int = 1000) -> None:
        self.table: StreamTable[One] = StreamTable(total, per_address)
        self.evicted: list[int] = []
        self.ones: dict[int, One] = {}

    def come(self, number: int, address: str = "") -> str:
        one = self.ones[number] = One(number)
        return self.table.admit(
            number, one, address or f"10.0.{number >> 8}.{number & 255}", lambda gone: self.evicted.append(gone.number)
        )


@pytest.mark.rfc("7766", "6.2.2")
@pytest.mark.rfc("8490", "9.3")
def test_an_address_has_its_share_and_gets_it_back() -> None:
    hall = Hall(100, 2)
    assert [hall.come(number, "192.0.2.1") for number in (1, 2, 3)] == ["", "", "per_address"]
    assert hall.come(4, "192.0.2.2") == ""
    hall.table.leave(3)  # it had no place
    assert hall.come(5, "192.0.2.1") == "per_address"
    hall.table.leave(1)
    assert hall.come(6, "192.0.2.1") == ""
    assert len(hall.table) == 3
    assert [one.number for one in hall.table] == [2, 4, 6]


def test_an_ipv6_customer_has_one_share() -> None:
    hall = Hall(100, 2)
    assert hall.come(1, "2001:db8:1:2::1") == hall.come(2, "2001:db8:1:2:ffff::2") == ""
    assert hall.come(3, "2001:db8:1:2:3::1") == "per_address"
    assert hall.come(4, "2001:db8:1:3::1") == ""
    assert sharer("fe80::1%eth0") == sharer("fe80::2%eth1")


def test_the_longest_silent_goes_for_a_newcomer() -> None:
    hall = Hall(4)
    for number in range(4):
        assert hall.come(number) == ""
        hall.table.spoke(number)
    hall.table.spoke(0)
    assert hall.come(4) == ""
    assert hall.evicted == [1]
    assert hall.table.get(1) is None and hall.table.get(0) is hall.ones[0]
    hall.table.leave(1)
    assert len(hall.table) == 4


def test_an_evicted_one_has_its_share_until_it_is_gone() -> None:
    hall = Hall(1, 1)
    assert hall.come(1, "192.0.2.1") == hall.come(2, "192.0.2.2") == ""
    assert hall.come(3, "192.0.2.1") == "per_address"
    hall.table.leave(1)
    assert hall.come(4, "192.0.2.1") == ""
    assert hall.evicted == [1, 2]


def test_who_is_owed_something_stays_and_is_not_looked_at_again_and_again() -> None:
    hall = Hall(200)
    for number in range(200):
        hall.come(number)
        hall.table.spoke(number)
        hall.ones[number].idle = number >= 100
    for number in range(200, 300):
        refused = hall.come(number)
        assert refused in ("", "total")
    assert set(hall.evicted) <= set(range(100, 300))
    assert len(hall.evicted) > 90
    assert sum(hall.ones[number].looked_at for number in range(100)) <= 3 * stream_table.MAX_LOOKED_AT


def test_when_all_are_owed_something_a_newcomer_is_refused() -> None:
    hall = Hall(3)
    for number in range(3):
        hall.come(number)
        hall.ones[number].idle = False
    assert hall.come(3) == "total"
    assert not hall.evicted and len(hall.table) == 3


def test_a_crowd_that_never_speaks_does_not_push_out_who_did() -> None:
    hall = Hall(80)
    for number in range(60):
        hall.come(number)
        hall.table.spoke(number)
    for number in range(100, 1100):
        assert hall.come(number) == ""
    assert all(hall.table.get(number) for number in range(60))
    assert len(hall.table) == 80


def test_crowded() -> None:
    hall = Hall(4)
    hall.come(1)
    hall.come(2)
    assert not hall.table.is_crowded
    hall.come(3)
    assert hall.table.is_crowded
