"""The gateway's configuration: one TOML file, unknown keys are errors.

backend = "relay"  # or "nftables", which needs its section
[nftables]
wan_interface = "eth0"
[natpmp]
listen = ["192.168.1.1:5351"]
[lan]
interfaces = ["br-lan"]  # instead of listen, or beside it
[pcp]
third_party = false
[igd]
enabled = true
[external]
interface = "eth0"  # or address = "203.0.113.7", or command = ["..."]
[state]
file = "/var/lib/homing/gateway.sqlite"
[[static]]
transport = "tcp"
external_port = 8080
internal = "192.168.1.20:80"
"""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from protocol.natpmp import GATEWAY_PORT

from .mappings import BARRED_PORTS, Limits


class Endpoint(NamedTuple):
    """An address and a port. Configured ones are IPv4."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _endpoint(lowest_port: int) -> BeforeValidator:
    def parse(value: object) -> Endpoint:
        if isinstance(value, Endpoint):
            return value
        if not isinstance(value, str):
            raise ValueError("must be text like 192.168.1.1:5351")
        host, colon, port = value.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or not lowest_port <= int(port) <= 65535:
            raise ValueError(f"must be ADDRESS:PORT with a port of {lowest_port} to 65535")
        return Endpoint(str(IPv4Address(host)), int(port))

    return BeforeValidator(parse)


Port = Annotated[int, Field(ge=1, le=65535)]
ListenEndpoint = Annotated[Endpoint, _endpoint(0)]
FullEndpoint = Annotated[Endpoint, _endpoint(1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NatPmpSection(_Section):
    """`[natpmp]`: where to answer."""

    listen: tuple[ListenEndpoint, ...] = ()
    """Internal addresses, each with a socket of its own; never 0.0.0.0 (RFC 6886 §3). Port 0 takes a free one."""
    announce_to: FullEndpoint = Endpoint("224.0.0.1", 5350)
    """RFC 6886 §3.2.1."""
    requests_per_second: Annotated[int, Field(ge=0)] = 100
    """Requests of one host that are read in a second, the rest is dropped; 0 sets no bound."""

    @model_validator(mode="after")
    def _internal(self) -> Self:
        for endpoint in self.listen:
            if IPv4Address(endpoint.host).is_unspecified or IPv4Address(endpoint.host).is_multicast:
                raise ValueError("listen: name each internal address, requests from outside must not be answered")
        return self


InterfaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@-]{1,15}$")]


class LanSection(_Section):
    """`[lan]`: internal interfaces, whose addresses are followed as they come and go."""

    interfaces: tuple[InterfaceName, ...] = ()
    port: Port = GATEWAY_PORT
    """Of NAT-PMP and PCP on those addresses."""


class PcpSection(_Section):
    """`[pcp]`: the protocol that shares its port with NAT-PMP (RFC 6887)."""

    enabled: bool = True
    """Off, requests of version 2 are refused as RFC 6886 §3.5 says, and clients go on to NAT-PMP."""
    third_party: bool = False
    """Whether a host may map ports for another one (THIRD_PARTY, RFC 6887 §13.1)."""


class IgdSection(_Section):
    """`[igd]`: UPnP InternetGatewayDevice, on the same internal addresses."""

    enabled: bool = False
    """Off, nothing of UPnP is opened or announced. Consoles and older programs know no other protocol."""
    version: Literal[1, 2] = 1
    """Some programs fail with version 2."""
    port: Annotated[int, Field(ge=0, le=65535)] = 2869
    """Of HTTP; 0 takes a free one with each start."""
    show_all: bool = False
    """Whether a host sees the mappings of others, too."""


class ExternalSection(_Section):
    """`[external]`: the address that mappings are on, from one source.

    Without any, the nftables back end follows its outer interface, and the relay has none until
    `Gateway.set_external_address` is told one.
    """

    address: IPv4Address | None = None
    """An address that never changes."""
    interface: InterfaceName | None = None
    """The outer interface, whose address is followed."""
    command: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """A program and its arguments; it prints the address, or nothing while there is none."""
    command_seconds: Annotated[int, Field(ge=1, le=86400)] = 60
    """Wait between two runs of the command."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.address is not None) + (self.interface is not None) + bool(self.command) > 1:
            raise ValueError("name one of address, interface and command")
        return self


class LimitsSection(_Section):
    """`[limits]`: bounds of the mapping table and of the relay."""

    shortest_lifetime_seconds: Annotated[int, Field(ge=1, le=86400)] = 120
    """Of PCP and UPnP (RFC 6887 §15). NAT-PMP never gets more than it asked for (RFC 6886 §3.3)."""
    longest_lifetime_seconds: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = 86400
    """A day, as RFC 6887 §15 recommends."""
    lowest_port: Port = 1024
    highest_port: Port = 65535
    reserved_ports: tuple[Port, ...] = ()
    """External ports never handed out, of either transport."""
    mappings_per_host: Annotated[int, Field(ge=1)] = 128
    mappings: Annotated[int, Field(ge=1, le=60000)] = 4096
    udp_idle_seconds: Annotated[int, Field(ge=120)] = 120
    """RFC 4787 §4.3 forbids less than two minutes."""
    udp_flows: Annotated[int, Field(ge=1)] = 512
    tcp_connections: Annotated[int, Field(ge=1)] = 256

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.shortest_lifetime_seconds > self.longest_lifetime_seconds:
            raise ValueError("shortest_lifetime_seconds is above longest_lifetime_seconds")
        if self.lowest_port > self.highest_port:
            raise ValueError("lowest_port is above highest_port")
        return self

    def table_limits(self, own_ports: frozenset[int]) -> Limits:
        """The bounds of the mapping table; `own_ports` are those that the gateway itself answers on."""
        return Limits(
            shortest_lifetime=self.shortest_lifetime_seconds,
            longest_lifetime=self.longest_lifetime_seconds,
            lowest_port=self.lowest_port,
            highest_port=self.highest_port,
            reserved_ports=BARRED_PORTS | frozenset(self.reserved_ports) | own_ports,
            per_host=self.mappings_per_host,
            total=self.mappings,
        )


class NftablesSection(_Section):
    """`[nftables]`: the back end of a Linux router."""

    wan_interface: InterfaceName
    """The outer one. It need not be there yet at the start."""
    lan_interfaces: tuple[InterfaceName, ...] = ()
    """The inner ones; if none is named, all but the outer one."""
    hairpin: bool = True
    """Whether inner hosts, and the router itself, reach mappings at the external address."""
    guard: bool = True
    """Whether IPv4 packets from outside are forwarded along mappings and answers only. Switch it off where public
    addresses are routed to the inside, or where another firewall sees to it."""
    ipv6: bool = False
    """Whether this is the IPv6 firewall: from outside come answers, ICMPv6 and what clients open by PCP, no more.
    PCP is answered on the IPv6 addresses of `[lan] interfaces` then."""
    pinhole_mark: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = 0
    """Conntrack mark of IPv6 flows through such openings, by which another firewall can let them pass; 0 sets none."""
    keep_on_stop: bool = False
    """Whether mappings go on carrying packets while the gateway does not run."""


class DhcpSection(_Section):
    """`[dhcp]`: a DHCP server on this machine; the end of a host's lease ends its mappings (RFC 6281 §4.2)."""

    server: Literal["dnsmasq", "kea"]
    lease_file: Path
    """dnsmasq: `/var/lib/misc/dnsmasq.leases`; Kea: the memfile, `/var/lib/kea/kea-leases4.csv`."""


class ControlSection(_Section):
    """`[control]`: where `homing gateway status` and its siblings ask."""

    socket: Path | None = None
    """A Unix socket of mode 0600. None set: nobody can ask."""


class MetricsSection(_Section):
    """`[metrics]`: counters for Prometheus."""

    listen: ListenEndpoint | None = None
    """`GET /metrics` is answered here; best on loopback."""


class StateSection(_Section):
    """`[state]`: what survives a restart."""

    file: Path


class StaticMapping(_Section):
    """`[[static]]`: a mapping that is always there and that clients cannot delete."""

    transport: Literal["udp", "tcp"]
    external_port: Port
    internal: FullEndpoint


class GatewayConfig(_Section):
    """The whole file."""

    backend: Literal["relay", "nftables"] = "relay"
    nftables: NftablesSection | None = None
    natpmp: NatPmpSection = NatPmpSection()
    lan: LanSection = LanSection()
    pcp: PcpSection = PcpSection()
    igd: IgdSection = IgdSection()
    external: ExternalSection = ExternalSection()
    limits: LimitsSection = LimitsSection()
    state: StateSection
    dhcp: DhcpSection | None = None
    control: ControlSection = ControlSection()
    metrics: MetricsSection = MetricsSection()
    static: tuple[StaticMapping, ...] = ()

    @model_validator(mode="after")
    def _backend_has_its_section(self) -> Self:
        if (self.backend == "nftables") != (self.nftables is not None):
            raise ValueError('backend = "nftables" and the section [nftables] go together')
        return self

    @model_validator(mode="after")
    def _has_an_inside(self) -> Self:
        if not self.natpmp.listen and not self.lan.interfaces:
            raise ValueError("name the inside: addresses in [natpmp] listen, or interfaces in [lan]")
        if self.external_interface in self.lan.interfaces:
            raise ValueError(f"{self.external_interface} is the external interface, it cannot be in [lan] as well")
        return self

    @property
    def external_interface(self) -> str | None:
        """The outer interface, where that is known: nothing is ever answered there."""
        if self.external.interface is not None:
            return self.external.interface
        return None if self.nftables is None else self.nftables.wan_interface

    @property
    def opens_pinholes(self) -> bool:
        """Whether PCP clients may open the IPv6 firewall."""
        return self.pcp.enabled and self.nftables is not None and self.nftables.ipv6

    @property
    def followed_interface(self) -> str | None:
        """The interface that the external address is read from, None if it comes from elsewhere."""
        return None if self.external.address is not None or self.external.command else self.external_interface
