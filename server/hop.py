"""What a request says of the way it came by, and what its reply says back: cookie and keepalive options.

Padding is the reply's own affair (see `reply`): it needs the size of all the rest.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from protocol.constants import EdnsOption
from protocol.cookies import CLIENT_OCTETS, request_cookie
from protocol.errors import DecodeError
from protocol.message import Message
from server.addresses import packed
from server.guard import Guard
from server.peer import Peer


class Hop(NamedTuple):
    """`options` go into the reply. `is_proved`: a valid cookie shows that the sender has its address."""

    options: tuple[tuple[int, bytes], ...] = ()
    has_cookie: bool = False
    is_proved: bool = False
    is_bad: bool = False
    """A server cookie was sent, and is not valid."""
    fault: str = ""
    """Why the request is a format error: an option of a length it never has (RFC 7873 §5.2.2, RFC 7828 §3.2.1)."""


PLAIN: Final = Hop()


def look_at_hop(message: Message, peer: Peer, guard: Guard, idle_seconds: Callable[[], float]) -> Hop:
    if message.opt is None or not message.opt.options:
        return PLAIN
    options: list[tuple[int, bytes]] = []
    has_cookie = is_proved = is_bad = False
    if guard.cookies is not None:
        try:
            cookie = request_cookie(message.opt)
        except DecodeError as error:
            return Hop(fault=error.reason)
        if cookie is not None:
            reply = guard.cookies.reply(cookie, packed(peer.address))
            options.append((EdnsOption.COOKIE, reply.data))
            has_cookie, is_proved = True, reply.is_proved
            is_bad = len(cookie) > CLIENT_OCTETS and not is_proved
    if peer.transport != "udp":
        keepalive = message.opt.all(EdnsOption.TCP_KEEPALIVE)
        if any(keepalive):
            return Hop(fault="a client's keepalive option is empty")
        if keepalive:
            tenths = min(0xFFFF, int(idle_seconds() * 10))
            options.append((EdnsOption.TCP_KEEPALIVE, tenths.to_bytes(2, "big")))
    return Hop(tuple(options), has_cookie, is_proved, is_bad)
