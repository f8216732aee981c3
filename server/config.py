"""What `homing serve` reads: one TOML file, every problem reported at once with its key (DESIGN §6-7)."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from protocol.name import fold, from_text, is_at_or_below, to_text
from server.policy_settings import PolicySettings


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


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


def _limit_network(text: str) -> str:
    network = ipaddress.ip_network(text)
    longest = 24 if network.version == 4 else 56
    if network.prefixlen > longest and not network.is_loopback:
        raise ValueError(f"{text!r}: client networks are told apart by /{longest}, not finer")
    return str(network)


HostPort = Annotated[str, AfterValidator(_host_port)]
Domain = Annotated[str, AfterValidator(_domain)]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
LimitNetwork = Annotated[str, AfterValidator(_limit_network)]


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
    rate_limit: int = Field(default=100, ge=0, le=1_000_000)
    """UDP answers a second of one kind to one client network (IPv4 /24, IPv6 /56); 0 is off. A kind is one question's
    answer, or all absent names, or all errors. Signed requests and those with a valid cookie are free."""
    rate_limit_total: int = Field(default=1000, ge=1, le=1_000_000)
    """UDP answers a second of all kinds to one client network that is over `rate_limit`."""
    rate_limit_slip: int = Field(default=2, ge=0, le=10)
    """Of the answers held back every so-many-th is sent truncated, so that honest clients use TCP; 0: none is."""
    rate_limit_watch_seconds: int = Field(default=15, ge=1, le=3600)
    """How long a network that was over the rate is looked at answer by answer."""
    rate_limit_exempt: list[LimitNetwork] = ["127.0.0.0/8", "::1/128"]
    """Networks never limited: of loopback nobody elsewhere can forge addresses."""
    strangers_per_address: int = Field(default=20, ge=0, le=1_000_000)
    """Updates and signed requests a second of one address (IPv6 /64) that do not hold: unsigned, unreadable, of an
    unknown key, a wrong signature. Beyond it that address's are refused before any is verified; 0 is off. Networks of
    `rate_limit_exempt` are free."""
    strangers_total: int = Field(default=1000, ge=0, le=1_000_000)
    """The same of all addresses together over UDP, where addresses are forged; those of which something held within
    the hour are heard all the same."""
    udp_slow_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the time that may go into UDP requests which no ready or computed answer fits. Beyond it those of
    addresses that have not proved themselves lately, by signature or cookie, are dropped; 1 is off."""
    cookies: bool = True
    """Give and check DNS cookies (RFC 7873, RFC 9018)."""
    cookie_secret_file: Path | None = None
    """For servers that share an address: 32 hexadecimal digits a line, the first signs, all are believed. Without it a
    secret is made up and changed daily."""
    tcp_idle_seconds: float = Field(default=15.0, gt=0, le=3600)
    """A connection without a whole message for so long is closed, unless an answer is owed or a subscription lives on
    it (RFC 7766 §6.2.3)."""
    tcp_read_seconds: float = Field(default=30.0, gt=0, le=3600)
    """So long may a peer not read what waits for it (256 kB and more) before its connection is closed."""
    tcp_connections: int = Field(default=1000, ge=1, le=1_000_000)
    """TCP and TLS connections, handshakes included. Beyond them the one that is silent for the longest is closed."""
    tcp_connections_per_address: int = Field(default=100, ge=1)
    """Of one IPv4 address or IPv6 /64; beyond them newcomers are closed at once."""
    tls_handshake_seconds: float = Field(default=10.0, gt=0, le=120)
    """From the connection to the end of the handshake."""
    tls_handshakes_per_second: int = Field(default=200, ge=1, le=100_000)
    """Those beyond it wait; a handshake takes about a millisecond of processor time."""
    version: str | None = Field(default=None, min_length=1, max_length=255)
    """What `version.bind` (TXT, class CH) is answered with; REFUSED when not set."""
    allow_md5: bool = False
    """Accept hmac-md5 keys: RFC 6281 demands it, RFC 8945 §6 forbids it."""
    minimum_mac_octets: int = Field(default=0, ge=0, le=64)
    """Shorter truncated MACs are answered BADTRUNC (RFC 8945 §5.2.4); whole ones always pass. 0: half, as the RFC."""
    replay_window_seconds: int = Field(default=300, ge=0, le=65535)
    """How far an update may have been signed before the latest one of its key (RFC 8945 §5.2.3); else BADTIME."""

    def limits(self) -> dict[str, float]:
        """Every bound of this table by its key, for the metrics."""
        families = ("rate_limit", "strangers_", "udp_", "tcp_", "tls_")
        values = {name: getattr(self, name) for name in type(self).model_fields if name.startswith(families)}
        return {name: value for name, value in values.items() if isinstance(value, int | float)}

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
    """An IPv6 /64 counts as one address."""
    maximum_per_question: int = Field(default=50_000, ge=1)
    setups_per_second: float = Field(default=2_000.0, gt=0)
    """Subscriptions that may be established per second once `setup_burst` is used up."""
    setup_burst: int = Field(default=10_000, ge=1)
    retry_seconds: int = Field(default=300, ge=1)
    """Told with SERV-FULL when a table is full; when only the burst is used up, the time to its next token is."""
    persistent: bool = True
    """Keep subscriptions in the database, so that they outlive a restart."""
    node: str = Field(default="", max_length=40)
    """Name of this server among several on one database: each keeps its own subscriptions."""
    require_tsig: list[Domain] = []
    """Zones and members' domains in and below which Long-Lived Queries must be signed. Private members' always must."""
    quiet_seconds: float = Field(default=0.1, ge=0)
    """An event waits for this much quiet, so that changes that belong together travel together."""
    longest_wait_seconds: float = Field(default=1.0, ge=0, le=30)


class PushSettings(_Section):
    """DNS Push (RFC 8765) on `listen_tls`, for names that anyone may ask for."""

    enabled: bool = True
    inactivity_seconds: int = Field(default=15, ge=5, le=86_400)
    """A session without a subscription should be closed by its client after this time (RFC 8490 §6.4)."""
    keepalive_seconds: int = Field(default=300, ge=10, le=86_400)
    """A client should be heard from this often (RFC 8490 §6.5); after twice that time it is taken for gone."""
    maximum_subscriptions: int = Field(default=100_000, ge=1)
    maximum_per_session: int = Field(default=1_000, ge=1)


class TransferRules(_Section):
    """Who may have a zone, and who is told when it changes. Nobody by default; an administrator's key always may."""

    allow_keys: list[Domain] = []
    """Names of keys, say those of a member that stands for a secondary."""
    allow_addresses: list[Network] = []
    """Addresses and networks that need no key."""
    also_notify: list[HostPort] = []
    xot_only: bool = False
    """By TLS 1.3 alone (RFC 9103), whoever asks."""


class ZoneTransferRules(TransferRules):
    name: Domain


class TransferSettings(TransferRules):
    """Secondaries. The rules of the table itself hold for every zone but those of private members."""

    notify_key: Domain | None = None
    """Key that signs each NOTIFY; unsigned when not set."""
    catalog: Domain | None = None
    """Name of a catalog zone of the public zones (RFC 9432); none when not set."""
    zones: list[ZoneTransferRules] = []
    """Rules in place of those above for single zones. A private member's still goes to nobody but its own keys."""

    @model_validator(mode="after")
    def _zones_once(self) -> "TransferSettings":
        names = [fold(from_text(rules.name)) for rules in self.zones]
        if len(names) != len(set(names)):
            raise ValueError("a zone has one [[transfer.zones]] table")
        return self

    def rules_for(self, apex: bytes, *, is_private: bool) -> TransferRules:
        """The rules for the zone at this folded apex."""
        for rules in self.zones:
            if fold(from_text(rules.name)) == apex:
                return rules
        return TransferRules() if is_private else self


class JournalSettings(_Section):
    """How much of the change journal is kept: what is older or more goes, oldest first. 0 is no bound."""

    keep_days: float = Field(default=365.0, ge=0, le=36_500)
    keep_changes: int = Field(default=1_000_000, ge=0)


class MembersSettings(_Section):
    default: Literal["open", "private"] = "open"


class MetricsSettings(_Section):
    listen: HostPort | None = None


class WebhookSettings(_Section):
    """Events told to a URL (docs/webhooks.md)."""

    url: str | None = None
    secret_file: Path | None = None
    """`whsec_` and 24 to 64 octets in base64; signs every delivery."""
    events: list[Literal["change", "lapse", "key", "refused"]] = ["change", "lapse", "key", "refused"]
    private: bool = False
    """Tell of changes in private members' zones, too."""
    ca_file: Path | None = None
    """Certificates to trust for https; the system's when not set."""

    @model_validator(mode="after")
    def _is_whole(self) -> "WebhookSettings":
        if self.url is None:
            return self
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = None
        if not usable:
            raise ValueError("url is not of the form https://HOST/PATH or http://HOST/PATH")
        if parts.username or parts.password:
            raise ValueError("url must not hold a user or password: deliveries are signed with secret_file")
        if self.secret_file is None:
            raise ValueError("url needs secret_file")
        return self


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    queries: float = Field(default=0.0, ge=0, le=1)
    """Share of all queries that are told of in a line each; 0 tells of none and costs nothing."""


class ControlSettings(_Section):
    socket: Path | None = None
    """Unix socket of `homing status`, mode 0600; beside a SQLite database when not set."""


class ServerSettings(_Section):
    """The whole file of `homing serve --config FILE`."""

    database: DatabaseSettings = DatabaseSettings()
    zone: ZoneSettings = ZoneSettings()
    dns: DnsSettings = DnsSettings()
    lease: LeaseSettings = LeaseSettings()
    llq: LlqSettings = LlqSettings()
    push: PushSettings = PushSettings()
    transfer: TransferSettings = TransferSettings()
    journal: JournalSettings = JournalSettings()
    members: MembersSettings = MembersSettings()
    policy: PolicySettings = PolicySettings()
    metrics: MetricsSettings = MetricsSettings()
    control: ControlSettings = ControlSettings()
    webhook: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _catalog_is_apart(self) -> "ServerSettings":
        if self.transfer.catalog is not None:
            catalog, zone = (fold(from_text(text)) for text in (self.transfer.catalog, self.zone.name))
            if is_at_or_below(catalog, zone) or is_at_or_below(zone, catalog):
                raise ValueError(
                    f"catalog {self.transfer.catalog} and zone {self.zone.name} must not lie in one another: "
                    "nobody resolves a catalog, so a name like catalog.invalid will do"
                )
        return self

    @model_validator(mode="after")
    def _xot_has_a_way(self) -> "ServerSettings":
        if not self.dns.listen_tls and any(rules.xot_only for rules in (self.transfer, *self.transfer.zones)):
            raise ValueError("xot_only needs listen_tls in [dns]")
        return self

    @model_validator(mode="after")
    def _policy_fits(self) -> "ServerSettings":
        self.policy.policy(from_text(self.zone.name))
        return self

    @model_validator(mode="after")
    def _notify_has_a_way(self) -> "ServerSettings":
        families = {ipaddress.ip_address(split_host_port(text)[0]).version for text in self.dns.listen}
        for rules in (self.transfer, *self.transfer.zones):
            for text in rules.also_notify:
                version = ipaddress.ip_address(split_host_port(text)[0]).version
                if version not in families:
                    raise ValueError(
                        f"also_notify {text} needs an IPv{version} address in [dns] listen to be sent from"
                    )
        return self
