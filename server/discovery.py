"""Records the service itself keeps: where to send updates, queries and LLQs, and the name server's own (RFC 6281).

RFC 6281 prints `_dns-update-tls._udp`, Apple's clients ask `_dns-update-tls._tcp`, public ones `_dns-update._udp`: all
families are published at the zone and at every member's domain. Where DNS Push is not served (without TLS, switched
off, in a private zone: it carries no signatures) it is said not to be there (RFC 2782: target "."), so that a client
that looks for it first goes on to LLQ at once. Pure: no clock, no I/O.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

from protocol.constants import Type
from protocol.name import ROOT, fold, from_text, is_at_or_below
from server.zone.model import RR

_SERVICES: Final = ("_dns-update", "_dns-llq", "_dns-query")


def _prefix(service: str, protocol: str) -> bytes:
    return from_text(f"{service}.{protocol}")[:-1]


_PLAIN: Final = tuple(_prefix(service, protocol) for service in _SERVICES for protocol in ("_udp", "_tcp"))
_TLS: Final = tuple(_prefix(f"{service}-tls", protocol) for service in _SERVICES for protocol in ("_tcp", "_udp"))
_PUSH: Final = _prefix("_dns-push-tls", "_tcp")
_PREFIXES: Final = frozenset((*_PLAIN, *_TLS, _PUSH))
_LENGTHS: Final = tuple(sorted({len(prefix) for prefix in _PREFIXES}))

SOA_REFRESH_SECONDS: Final = 3600
SOA_RETRY_SECONDS: Final = 600
SOA_EXPIRE_SECONDS: Final = 1_209_600
NEGATIVE_TTL_SECONDS: Final = 60  # a machine that comes home is seen within a minute by whoever asked too early


@dataclass(frozen=True, slots=True)
class NameServer:
    """How the world reaches this server: `host` a wire name, `addresses` in text, `tls_port` None without TLS.

    `push`: whether DNS Push is served on the TLS port.
    """

    host: bytes
    addresses: tuple[str, ...]
    port: int
    tls_port: int | None
    ttl: int = 3600
    push: bool = False


def default_host(zone: bytes) -> bytes:
    """`ns.<zone>`."""
    return b"\x02ns" + zone


def is_discovery_name(key: bytes, domain: bytes) -> bool:
    """Whether the folded owner name `key` is one of those `discovery_records` gives for the folded `domain`."""
    size = len(key) - len(domain)
    return size in _LENGTHS and key.endswith(domain) and key[:size] in _PREFIXES


def discovery_records(domain: bytes, server: NameServer) -> tuple[RR, ...]:
    """The discovery SRVs of a domain, the zone's or a member's."""

    def srv(prefix: bytes, port: int, target: bytes) -> RR:
        return RR(prefix + domain, Type.SRV, server.ttl, struct.pack("!3H", 0, 0, port) + target)

    records = [srv(prefix, server.port, server.host) for prefix in _PLAIN]
    if server.tls_port is not None:
        records += [srv(prefix, server.tls_port, server.host) for prefix in _TLS]
    has_push = server.push and server.tls_port is not None
    records.append(srv(_PUSH, server.tls_port or 0, server.host) if has_push else srv(_PUSH, 0, ROOT))
    return tuple(records)


def name_server_records(zone: bytes, server: NameServer) -> tuple[RR, ...]:
    """NS of a zone, and the addresses of its host where that lies inside `zone`."""
    records = [RR(zone, Type.NS, server.ttl, server.host)]
    if is_at_or_below(fold(server.host), fold(zone)):
        for text in server.addresses:
            address = ip_address(text)
            rtype = Type.A if address.version == 4 else Type.AAAA
            records.append(RR(server.host, rtype, server.ttl, address.packed))
    return tuple(records)


def soa_rdata(zone: bytes, server: NameServer) -> bytes:
    """SOA rdata with serial 0: `hostmaster.<zone>` is responsible."""
    times = (0, SOA_REFRESH_SECONDS, SOA_RETRY_SECONDS, SOA_EXPIRE_SECONDS, NEGATIVE_TTL_SECONDS)
    return server.host + b"\x0ahostmaster" + zone + struct.pack("!5I", *times)


def domain_records(domain: bytes, server: NameServer, *, is_zone: bool) -> tuple[RR, ...]:
    """All the service keeps at a member's domain: discovery, and NS where it is a zone of its own."""
    discovery = discovery_records(domain, replace(server, push=False) if is_zone else server)
    return (RR(domain, Type.NS, server.ttl, server.host), *discovery) if is_zone else discovery


def service_records(zone: bytes, server: NameServer) -> tuple[RR, ...]:
    """All the service keeps at the apex of the service zone and at its own host."""
    return (*name_server_records(zone, server), *discovery_records(zone, server))


def without(records: Iterable[RR], others: Iterable[RR]) -> tuple[RR, ...]:
    """Those of `records` that are not among `others`, in order."""
    known = frozenset(others)
    return tuple(record for record in records if record not in known)
