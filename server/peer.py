"""Who sent it and by which way: the key of a client everywhere in the server."""

from typing import NamedTuple


class Peer(NamedTuple):
    """One end of a conversation as seen here.

    `transport`: "udp", "tcp" or "tls". `address`: the IP address in text. `via`: the number of the UDP listener or
    of the stream connection; a reply or an event leaves by the same way.
    """

    transport: str
    address: str
    port: int
    via: int
