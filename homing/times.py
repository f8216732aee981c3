"""Durations and moments as people write them on a command line."""

import re
from datetime import UTC, datetime
from typing import Final

from homing.config_file import ConfigError

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhdw])")


def seconds(text: str, option: str) -> int:
    """`90d`, `12h`, `30m`, `45s`, `2w` in seconds; `ConfigError` naming `option` for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(f"{option} {text[:40]!r}: not a duration such as 90d, 12h or 30m")
    return int(match.group(1)) * _UNITS[match.group(2)]


def moment(text: str, option: str, *, now: int) -> int:
    """A duration from `now` on, or a time such as 2027-01-31 or 2027-01-31T12:00:00Z, in seconds since 1970."""
    if _DURATION.fullmatch(text):
        return now + seconds(text, option)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text[:40]!r}: neither a duration such as 90d nor a time such as 2027-01-31T12:00:00Z"
        ) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
