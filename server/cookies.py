"""DNS cookies (RFC 7873) as the server gives and checks them: secrets and their rotation, a memory for who comes back.

SipHash takes about ten microseconds in Python, more than a whole fast answer. A client sends the same cookie again and
again, so what it gets is remembered; only a first query, or one of a client that changes its cookie each time, pays.
"""

import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from protocol.cookies import CLIENT_OCTETS, FRESH_SECONDS, cookie_age, make_cookie
from protocol.siphash import KEY_OCTETS

ROTATE_SECONDS: Final = 24 * 3600  # a secret of our own signs for a day at most and is believed until the next goes
_JITTER: Final = 0.4  # of that, up to it, off each time: no two servers turn together, and nobody knows when (§7.1)
MEMORY_SECONDS: Final = 60
MAX_REMEMBERED: Final = 16_384
MAX_SECRETS: Final = 8


class CookieReply(NamedTuple):
    """The option's data for the reply, and whether the request proved that its sender has its address."""

    data: bytes
    is_proved: bool


class Cookies:
    """`secrets`: the first signs, all are believed (RFC 9018 §5). Without any, one is made up and rotated."""

    def __init__(self, unix: Callable[[], int], bits: Callable[[int], int], secrets: Sequence[bytes] = ()) -> None:
        self._unix = unix
        self._bits = bits
        self._secrets: tuple[bytes, ...] = ()
        self._rotate_at: float = 0
        self._remembered: dict[bytes, CookieReply] = {}
        self._forget_at = 0
        self.replace(secrets)

    def replace(self, secrets: Sequence[bytes]) -> None:
        """Other secrets from now on; cookies made with those left out are no longer believed."""
        if secrets:
            self._secrets = tuple(secrets)
            self._rotate_at = float("inf")
        elif self._rotate_at in (0, float("inf")):
            self._secrets = ()
            self._rotate_at = 0
        self._forget_at = 0

    def reply(self, cookie: bytes, address: bytes) -> CookieReply:
        """What a request with this option's data, of a valid length, from this address (4 or 16 octets) gets."""
        now = self._unix()
        if not self._forget_at - MEMORY_SECONDS <= now < self._forget_at or len(self._remembered) >= MAX_REMEMBERED:
            self._turn(now)
        key = cookie + address
        found = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = self._judge(cookie, address, now)
        return found

    def _judge(self, cookie: bytes, address: bytes, now: int) -> CookieReply:
        is_proved = False
        for number, secret in enumerate(self._secrets):
            age = cookie_age(secret, cookie, address, now)
            if age is not None:
                if not number and age < FRESH_SECONDS:
                    return CookieReply(cookie, True)
                is_proved = True
                break
        return CookieReply(make_cookie(self._secrets[0], cookie[:CLIENT_OCTETS], address, now), is_proved)

    def _turn(self, now: int) -> None:
        self._remembered.clear()
        self._forget_at = now + MEMORY_SECONDS
        if now >= self._rotate_at:
            self._secrets = (self._bits(8 * KEY_OCTETS).to_bytes(KEY_OCTETS, "big"), *self._secrets[:1])
            self._rotate_at = now + ROTATE_SECONDS * (1 - _JITTER * self._bits(16) / 0xFFFF)


def read_secrets(file: Path) -> list[bytes]:
    """Secrets of a file: one of 32 hexadecimal digits a line, `#` begins a comment.

    `OSError` when it cannot be read; `ValueError`, which tells no content, when it holds something else.
    """
    secrets: list[bytes] = []
    for number, line in enumerate(file.read_text("ascii", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            secret = bytes.fromhex(text)
        except ValueError:
            secret = b""
        if len(secret) != KEY_OCTETS:
            raise ValueError(f"line {number} is not a secret of 32 hexadecimal digits")
        if any(hmac.compare_digest(secret, other) for other in secrets):
            raise ValueError(f"line {number} repeats a secret")
        secrets.append(secret)
    if not 1 <= len(secrets) <= MAX_SECRETS:
        raise ValueError(f"it must hold 1 to {MAX_SECRETS} secrets")
    return secrets
