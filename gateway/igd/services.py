"""The services of the device, their actions and variables (WANIPConnection:1 and :2, WANCommonInterfaceConfig:1).

Listed is what `actions` carries out, nothing else, with arguments in the order of the standards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

URN: Final = "urn:schemas-upnp-org"
IP_CONNECTION: Final = "WANIPConnection"
PPP_CONNECTION: Final = "WANPPPConnection"
"""Not offered, but some programs ask for it first, or only: they are led to the IP connection."""
COMMON: Final = "WANCommonInterfaceConfig"
FORWARDING: Final = "Layer3Forwarding"


class Argument(NamedTuple):
    """One argument of an action and the state variable that gives it its type."""

    name: str
    variable: str


@dataclass(frozen=True, slots=True)
class Action:
    """An action with its arguments in order."""

    name: str
    inputs: tuple[Argument, ...] = ()
    outputs: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """A state variable; its changes are told to subscribers if `is_evented`."""

    name: str
    type: str
    is_evented: bool = False
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """A service: `path` is the last part of its three URLs."""

    name: str
    version: int
    id: str
    path: str
    actions: tuple[Action, ...]
    variables: tuple[Variable, ...]
    action_names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "action_names", frozenset(action.name for action in self.actions))

    @property
    def type(self) -> str:
        return f"{URN}:service:{self.name}:{self.version}"

    def action(self, name: str) -> Action:
        """Raises KeyError."""
        return next(action for action in self.actions if action.name == name)

    @property
    def evented(self) -> tuple[str, ...]:
        """Names of the variables that subscribers are told of."""
        return tuple(variable.name for variable in self.variables if variable.is_evented)


def _arguments(text: str) -> tuple[Argument, ...]:
    """`Name=Variable` pairs; a variable left out has the argument's name without `New`."""
    parsed = []
    for part in text.split():
        name, _, variable = part.partition("=")
        parsed.append(Argument(name, variable or name.removeprefix("New")))
    return tuple(parsed)


def _action(name: str, inputs: str = "", outputs: str = "") -> Action:
    return Action(name, _arguments(inputs), _arguments(outputs))


_ENTRY = "NewRemoteHost NewExternalPort NewProtocol=PortMappingProtocol"
_INSIDE = (
    "NewInternalPort NewInternalClient NewEnabled=PortMappingEnabled "
    "NewPortMappingDescription NewLeaseDuration=PortMappingLeaseDuration"
)
_RANGE = "NewStartPort=ExternalPort NewEndPort=ExternalPort NewProtocol=PortMappingProtocol NewManage=A_ARG_TYPE_Manage"

_IP_ACTIONS = (
    _action("SetConnectionType", "NewConnectionType"),
    _action("GetConnectionTypeInfo", outputs="NewConnectionType NewPossibleConnectionTypes"),
    _action("RequestConnection"),
    _action("ForceTermination"),
    _action(
        "GetStatusInfo",
        outputs="NewConnectionStatus NewLastConnectionError NewUptime",
    ),
    _action("GetNATRSIPStatus", outputs="NewRSIPAvailable NewNATEnabled"),
    _action(
        "GetGenericPortMappingEntry",
        "NewPortMappingIndex=PortMappingNumberOfEntries",
        f"{_ENTRY} {_INSIDE}",
    ),
    _action("GetSpecificPortMappingEntry", _ENTRY, _INSIDE),
    _action("AddPortMapping", f"{_ENTRY} {_INSIDE}"),
    _action("DeletePortMapping", _ENTRY),
    _action("GetExternalIPAddress", outputs="NewExternalIPAddress"),
)
_IP_ACTIONS_2 = (
    _action("AddAnyPortMapping", f"{_ENTRY} {_INSIDE}", "NewReservedPort=ExternalPort"),
    _action("DeletePortMappingRange", _RANGE),
    _action(
        "GetListOfPortMappings",
        f"{_RANGE} NewNumberOfPorts=PortMappingNumberOfEntries",
        "NewPortListing=A_ARG_TYPE_PortListing",
    ),
)
_IP_VARIABLES = (
    Variable("ConnectionType", "string"),
    Variable("PossibleConnectionTypes", "string", True, ("Unconfigured", "IP_Routed", "IP_Bridged")),
    Variable(
        "ConnectionStatus",
        "string",
        True,
        ("Unconfigured", "Connecting", "Connected", "PendingDisconnect", "Disconnecting", "Disconnected"),
    ),
    Variable("Uptime", "ui4"),
    Variable("LastConnectionError", "string", False, ("ERROR_NONE",)),
    Variable("RSIPAvailable", "boolean"),
    Variable("NATEnabled", "boolean"),
    Variable("ExternalIPAddress", "string", True),
    Variable("PortMappingNumberOfEntries", "ui2", True),
    Variable("PortMappingEnabled", "boolean"),
    Variable("PortMappingLeaseDuration", "ui4"),
    Variable("RemoteHost", "string"),
    Variable("ExternalPort", "ui2"),
    Variable("InternalPort", "ui2"),
    Variable("PortMappingProtocol", "string", False, ("TCP", "UDP")),
    Variable("InternalClient", "string"),
    Variable("PortMappingDescription", "string"),
)
_IP_VARIABLES_2 = (
    Variable("SystemUpdateID", "ui4", True),
    Variable("A_ARG_TYPE_Manage", "boolean"),
    Variable("A_ARG_TYPE_PortListing", "string"),
)
_COMMON_ACTIONS = (
    _action(
        "GetCommonLinkProperties",
        outputs="NewWANAccessType NewLayer1UpstreamMaxBitRate NewLayer1DownstreamMaxBitRate NewPhysicalLinkStatus",
    ),
    _action("GetTotalBytesSent", outputs="NewTotalBytesSent"),
    _action("GetTotalBytesReceived", outputs="NewTotalBytesReceived"),
    _action("GetTotalPacketsSent", outputs="NewTotalPacketsSent"),
    _action("GetTotalPacketsReceived", outputs="NewTotalPacketsReceived"),
)
_COMMON_VARIABLES = (
    Variable("WANAccessType", "string", False, ("DSL", "POTS", "Cable", "Ethernet")),
    Variable("Layer1UpstreamMaxBitRate", "ui4"),
    Variable("Layer1DownstreamMaxBitRate", "ui4"),
    Variable("PhysicalLinkStatus", "string", True, ("Up", "Down")),
    Variable("TotalBytesSent", "ui4"),
    Variable("TotalBytesReceived", "ui4"),
    Variable("TotalPacketsSent", "ui4"),
    Variable("TotalPacketsReceived", "ui4"),
)
_FORWARDING_ACTIONS = (
    _action("SetDefaultConnectionService", "NewDefaultConnectionService"),
    _action("GetDefaultConnectionService", outputs="NewDefaultConnectionService"),
)
_FORWARDING_VARIABLES = (Variable("DefaultConnectionService", "string", True),)


def ip_connection(version: int) -> Service:
    """WANIPConnection in version 1 or 2."""
    actions = _IP_ACTIONS + (_IP_ACTIONS_2 if version > 1 else ())
    variables = _IP_VARIABLES + (_IP_VARIABLES_2 if version > 1 else ())
    return Service(IP_CONNECTION, version, "urn:upnp-org:serviceId:WANIPConn1", "WANIPConn1", actions, variables)


COMMON_SERVICE: Final = Service(
    COMMON, 1, "urn:upnp-org:serviceId:WANCommonIFC1", "WANCommonIFC1", _COMMON_ACTIONS, _COMMON_VARIABLES
)
FORWARDING_SERVICE: Final = Service(
    FORWARDING, 1, "urn:upnp-org:serviceId:L3Forwarding1", "L3Forwarding1", _FORWARDING_ACTIONS, _FORWARDING_VARIABLES
)
