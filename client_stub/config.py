"""Configuration of one client: `[machine] [member] [dns] [nat] [watch] [timing]`, unknown keys are errors."""

from __future__ import annotations

import base64
import binascii
import stat
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from client_stub.identity import parse_mac
from protocol.name import fold, from_text
from protocol.tsig import Key, algorithm_from_text

Endpoint = tuple[IPv4Address, int]


def parse_endpoint(text: str) -> Endpoint:
    """`127.0.0.1:5300` as address and port; `ValueError` for anything else."""
    address, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"not an IPv4 address and port: {text!r}")
    return IPv4Address(address), int(port)


def _checked_endpoint(text: str) -> str:
    parse_endpoint(text)
    return text


def _checked_mac(text: str) -> str:
    parse_mac(text)
    return text


def _checked_name(text: str) -> str:
    if from_text(text) == b"\0":
        raise ValueError("the root is no member's domain")
    return text


def _checked_algorithm(text: str) -> str:
    algorithm_from_text(text)
    return text


EndpointText = Annotated[str, AfterValidator(_checked_endpoint)]
NameText = Annotated[str, AfterValidator(_checked_name)]
Seconds = Annotated[float, Field(ge=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineConfig(_Table):
    """This machine. `name` is one label."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")]
    mac: Annotated[str, AfterValidator(_checked_mac)] | None = None
    """Default: that of the interface with the internal address."""
    internal_address: IPv4Address | None = None
    """Address of all our sockets. Default: where packets to the gateway leave from, followed as it changes."""
    internal_port: Annotated[int, Field(ge=0, le=65535)] = 4500
    """UDP port that is mapped; 0 takes a free one."""
    flip_local_bit: bool = False
    """Use the modified EUI-64 of deployed clients instead of the form in RFC 6281's example."""
    text: list[Annotated[str, Field(max_length=200)]] = ["model=homing"]
    """Strings of the TXT record."""


class KeyConfig(_Table):
    """The member's TSIG key; the secret is base64, given here or in a file only its owner can read."""

    name: NameText
    algorithm: Annotated[str, AfterValidator(_checked_algorithm)] = "hmac-sha256"
    secret: SecretStr | None = None
    secret_file: Path | None = None

    @model_validator(mode="after")
    def _has_one_secret(self) -> KeyConfig:
        if (self.secret is None) == (self.secret_file is None):
            raise ValueError("give either secret or secret_file")
        self.load()
        return self

    def load(self) -> Key:
        """The key; `ValueError` for a file that others can read, or octets that are not base64."""
        if self.secret is not None:
            text = self.secret.get_secret_value()
        else:
            assert self.secret_file is not None
            text = _read_secret(self.secret_file)
        try:
            secret = base64.b64decode(text.strip(), validate=True)
        except binascii.Error:
            raise ValueError("the secret is not base64") from None
        if not secret:
            raise ValueError("the secret is empty")
        return Key(fold(from_text(self.name)), algorithm_from_text(self.algorithm), secret)


def _read_secret(path: Path) -> str:
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(f"{path} can be read by others: chmod 600 it")
        return path.read_text()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


class MemberConfig(_Table):
    domain: NameText
    key: KeyConfig


class DnsConfig(_Table):
    """`server` answers discovery and polls. `ca_file` is the only authority trusted for TLS; default: the system's."""

    server: EndpointText
    ca_file: Path | None = None
    tls_server: EndpointText | None = None
    """Use this server for updates and subscriptions instead of the one the SRV records name; the certificate must
    then be for this address."""


class NatConfig(_Table):
    """`auto` asks a gateway when the internal address is private (RFC 1918), `natpmp` always, `none` never."""

    mode: Literal["auto", "natpmp", "none"] = "auto"
    gateway: EndpointText | None = None
    """Default: the default route's gateway, port 5351."""
    announcements: EndpointText = "224.0.0.1:5350"
    interface: IPv4Address | None = None
    """Address of the interface that announcements come in on; default: the internal address."""
    suggested_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """External port to ask for; default: the internal port."""


class WatchConfig(_Table):
    """`hosts` are watched besides those the member's domain lists: one label each, or a whole name."""

    hosts: list[NameText] = []


class TimingConfig(_Table):
    """All in seconds. The defaults are those of the RFCs; a lab shortens the random delays."""

    update_lease: Annotated[int, Field(ge=1800, le=7200)] = 5400
    """RFC 6281 §5.2."""
    llq_lease: Annotated[int, Field(ge=900, le=7200)] = 7200
    """RFC 6281 §5.3."""
    mapping_lifetime: Annotated[int, Field(ge=120)] = 3600
    """RFC 6281 §4; renewed at half of what is granted."""
    registration_delay_max: Seconds = 3.0
    """RFC 9664 §4.2."""
    loss_delay_min: Seconds = 0.0
    loss_delay_max: Seconds = 5.0
    """RFC 6886 §3.7."""
    hello_every: Annotated[float, Field(gt=0)] = 5.0
    address_check_every: Annotated[float, Field(gt=0)] = 2.0
    stop_timeout: Annotated[float, Field(gt=0)] = 5.0
    """How long a clean stop may spend on deregistering and unmapping."""


class ClientConfig(_Table):
    machine: MachineConfig
    member: MemberConfig
    dns: DnsConfig
    nat: NatConfig = NatConfig()
    watch: WatchConfig = WatchConfig()
    timing: TimingConfig = TimingConfig()

    def watched_hosts(self) -> tuple[bytes, ...]:
        """Wire names of `[watch] hosts`; a single label is taken below the member's domain."""
        domain = from_text(self.member.domain)
        names = [from_text(text) for text in self.watch.hosts]
        return tuple(name[:-1] + domain if name[0] + 2 == len(name) else name for name in names)
