"""The budget of requests per host and second."""

from __future__ import annotations

from gateway.ratelimit import HOST_LIMIT, RateLimit


def test_each_host_has_its_own_budget_each_second() -> None:
    limit = RateLimit(2)
    assert [limit.admits("a", now=1.0), limit.admits("a", now=1.5), limit.admits("a", now=1.9)] == [True, True, False]
    assert limit.admits("b", now=1.9)
    assert limit.admits("a", now=2.0)


def test_zero_is_no_bound() -> None:
    limit = RateLimit(0)
    assert all(limit.admits("a", now=1.0) for _ in range(1000))


def test_invented_hosts_take_no_memory_and_do_not_keep_out_known_ones() -> None:
    limit = RateLimit(10)
    assert limit.admits("real", now=1.0)
    admitted = sum(limit.admits(f"invented {number}", now=1.0) for number in range(2 * HOST_LIMIT))
    assert admitted == HOST_LIMIT - 1
    assert limit.admits("real", now=1.0)
    assert limit.admits("newcomer", now=2.0)
