"""From the configuration to the service: which zone, and how the world reaches its server."""

from pathlib import Path

from protocol.name import fold, from_text
from server.config import ServerSettings, split_host_port
from server.discovery import NameServer, default_host
from server.operation import Service


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


def control_socket(settings: ServerSettings) -> Path | None:
    """Where `homing status` reaches the server; None for a database that is no file, unless one is set."""
    if settings.control.socket is not None:
        return settings.control.socket
    from server.store.sql import parse_url  # SQLAlchemy takes long to load, and every command passes here

    url = parse_url(settings.database.url)
    return Path(f"{url.database}.control") if url.drivername.startswith("sqlite") else None
