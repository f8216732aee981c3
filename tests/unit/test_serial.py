"""Serial number arithmetic."""

import pytest

from protocol.serial import is_newer, next_serial

TOP = 2**32 - 1


@pytest.mark.rfc("1982", "3.2")
@pytest.mark.parametrize(
    ("candidate", "current", "expected"),
    [
        (1, 0, True),
        (0, 1, False),
        (0, 0, False),
        (44, 44, False),
        (100, 0, True),
        (0, TOP, True),
        (TOP, 0, False),
        (2**31 - 1, 0, True),
        (2**31, 0, False),  # undefined by the RFC, not newer here
        (0, 2**31, False),
        (2**31 + 1, 0, False),
        (0, 2**31 + 1, True),
        (5, TOP - 5, True),
    ],
)
def test_newer_goes_round_the_circle(candidate: int, current: int, expected: bool) -> None:
    assert is_newer(candidate, current) is expected


@pytest.mark.rfc("1982", "3.1")
@pytest.mark.parametrize(("current", "following"), [(0, 1), (1, 2), (2**31 - 1, 2**31), (TOP - 1, TOP), (TOP, 1)])
def test_the_next_serial_is_newer_and_never_zero(current: int, following: int) -> None:
    assert next_serial(current) == following
    assert is_newer(following, current)
