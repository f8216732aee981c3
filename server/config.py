"""What `homing serve` reads: one TOML file, every problem reported at once with its key (DESIGN §6-7)."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from protocol.name import from_text, to_text


def _host_port(text: str) -> str:
    split_host_port(text)
    return text


def split_host_port(text: str) -> tuple[str, int]:
    """`127.0.0.1:5300` or `[::1]:5300` as (address, port); `ValueError` in words for anything else."""
    host, separator, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    ipaddress.ip_address(host)
    return host, int(port)


def _domain(text: str) -> str:
    return to_text(from_text(text))


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


HostPort = Annotated[str, AfterValidator(_host_port)]
Domain = Annotated[str, AfterValidator(_domain)]
Address = Annotated[str, AfterValidator(_address)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Section):
    url: str = "sqlite+aiosqlite:///homing.db"
    master_key_file: Path | None = None
    """32 octets that seal the key secrets; made on first start beside a SQLite database when not set."""


class ZoneSettings(_Section):
    name: Domain = "members.example."
    name_server: Domain | None = None
    """Host name in NS and discovery SRVs; default `ns.` below the zone."""
    addresses: list[Address] = []
    """A and AAAA of that host; default the addresses of `[dns] listen` that are not wildcards."""
    advertise_port: int | None = Field(default=None, ge=1, le=65535)
    """Port in discovery SRVs; default the first UDP listener's."""
    advertise_tls_port: int | None = Field(default=None, ge=1, le=65535)


class DnsSettings(_Section):
    listen: list[HostPort] = ["127.0.0.1:5300"]
    """UDP and TCP."""
    listen_tls: list[HostPort] = []
    certificate_file: Path | None = None
    key_file: Path | None = None
    rate_limit: int = Field(default=0, ge=0, le=0)
    """Responses a second per client network; 0 is off, the only value until rate limiting exists."""
    tcp_idle_seconds: float = Field(default=15.0, gt=0, le=3600)
    tcp_connections: int = Field(default=1000, ge=1)
    tcp_connections_per_address: int = Field(default=100, ge=1)
    allow_md5: bool = False
    """Accept hmac-md5 keys: RFC 6281 demands it, RFC 8945 §6 forbids it."""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "DnsSettings":
        if self.listen_tls and not (self.certificate_file and self.key_file):
            raise ValueError("listen_tls needs certificate_file and key_file")
        return self


class LeaseSettings(_Section):
    """Update leases in seconds (RFC 6281 §5.2: 30 minutes to 2 hours)."""

    minimum_seconds: int = Field(default=1800, ge=1)
    maximum_seconds: int = Field(default=7200, ge=1)
    key_maximum_seconds: int = Field(default=7200, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "LeaseSettings":
        if self.minimum_seconds > min(self.maximum_seconds, self.key_maximum_seconds):
            raise ValueError("minimum_seconds must not exceed maximum_seconds or key_maximum_seconds")
        return self


class LlqSettings(_Section):
    """Long-Lived Queries (RFC 6281 §5.3: leases of 15 minutes to 2 hours)."""

    minimum_lease_seconds: int = Field(default=900, ge=1)
    maximum_lease_seconds: int = Field(default=7200, ge=1)
    maximum_subscriptions: int = Field(default=200_000, ge=1)
    maximum_per_address: int = Field(default=2_000, ge=1)
    quiet_seconds: float = Field(default=0.1, ge=0)
    """An event waits for this much quiet, so that changes that belong together travel together."""
    longest_wait_seconds: float = Field(default=1.0, ge=0, le=30)


class MembersSettings(_Section):
    default: Literal["open", "private"] = "open"


class MetricsSettings(_Section):
    listen: HostPort | None = None


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"


class ServerSettings(_Section):
    """The whole file of `homing serve --config FILE`."""

    database: DatabaseSettings = DatabaseSettings()
    zone: ZoneSettings = ZoneSettings()
    dns: DnsSettings = DnsSettings()
    lease: LeaseSettings = LeaseSettings()
    llq: LlqSettings = LlqSettings()
    members: MembersSettings = MembersSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
