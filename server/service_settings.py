"""From the configuration to the service: which zone, and how the world reaches its server."""

from protocol.name import fold, from_text
from server.config import ServerSettings, split_host_port
from server.discovery import NameServer, default_host
from server.members import Service


def service_of(settings: ServerSettings, port: int, tls_port: int | None) -> Service:
    """The service as configured; `port` and `tls_port` are those listened on, told unless others are to be."""
    zone = settings.zone
    apex = fold(from_text(zone.name))
    host = from_text(zone.name_server) if zone.name_server else default_host(apex)
    addresses = zone.addresses or [
        address for address, _ in map(split_host_port, settings.dns.listen) if address not in ("0.0.0.0", "::")
    ]
    return Service(
        apex,
        NameServer(
            host,
            tuple(addresses),
            zone.advertise_port or port,
            zone.advertise_tls_port or tls_port,
            push=settings.push.enabled,
        ),
    )
