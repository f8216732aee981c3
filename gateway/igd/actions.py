"""What each action does, on the mapping table (WANIPConnection:1 §2.4, WANIPConnection:2 §2.5).

Pure: host, time and entropy come in as arguments. A caller maps ports for itself only, and sees and deletes its own
mappings only, whoever made them. Answers are known at once, or when the table answers (`Pending`).

| outcome of the table   | IGD:1 | IGD:2      |
| refused by policy      | 501   | 606        |
| no external address    | 501   | 501        |
| table or ports full    | 501   | 728        |
| external port not free | 718   | 718 or 729 |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Final

from gateway.mappings import Answer, Key, MappingTable, Origin, Transport, Verdict
from gateway.mappings import Mapping as PortMapping

from .description import DeviceTree
from .services import COMMON, FORWARDING, IP_CONNECTION, PPP_CONNECTION, URN
from .soap import Call, ErrorCode, UpnpError, escape_text

WEEK_SECONDS: Final = 604800
"""What lease 0 means in WANIPConnection:2, and the longest lease; here in version 1, too, where it means for ever."""
DESCRIPTION_LIMIT: Final = 128
"""Characters of a client's description that are kept."""
WILDCARDS: Final = frozenset({"", "*"})
_TRUE: Final = frozenset({"1", "true", "yes"})
_FALSE: Final = frozenset({"0", "false", "no"})
_LIST_NAMESPACE: Final = f"{URN}:gw:WANIPConnection"

Values = dict[str, str]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through the outer interface since it was made: octets and packets; and its speed in bit/s."""

    sent_octets: int = 0
    received_octets: int = 0
    sent_packets: int = 0
    received_packets: int = 0
    speed: int = 0
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class Pending:
    """The call waits for the table's answer to its ticket; `finish` makes the values of it, or raises `UpnpError`."""

    finish: Callable[[Answer], Values]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what the call may use: a ticket for the table, a random number, the time."""

    host: str
    ticket: object
    draw: int
    now: float


class Actions:
    """Carries out calls. `traffic` reads the counters of the outer interface when somebody asks for them."""

    def __init__(
        self,
        table: MappingTable,
        tree: DeviceTree,
        *,
        show_all: bool = False,
        traffic: Callable[[], Traffic] = Traffic,
        now: float,
    ) -> None:
        self._table = table
        self._tree = tree
        self._show_all = show_all
        self._traffic = traffic
        self._address_since = now
        self.update_id = 0
        """SystemUpdateID: grows with each change of the table (WANIPConnection:2 §2.3.22)."""
        self._handlers: dict[str, Callable[[Values, Caller], Values | Pending]] = {
            "SetConnectionType": self._set_connection_type,
            "GetConnectionTypeInfo": self._get_connection_type,
            "RequestConnection": self._request_connection,
            "ForceTermination": self._force_termination,
            "GetStatusInfo": self._get_status,
            "GetNATRSIPStatus": lambda arguments, caller: {"NewRSIPAvailable": "0", "NewNATEnabled": "1"},
            "GetExternalIPAddress": lambda arguments, caller: {"NewExternalIPAddress": self.external_address},
            "AddPortMapping": self._add,
            "AddAnyPortMapping": self._add_any,
            "DeletePortMapping": self._delete,
            "DeletePortMappingRange": self._delete_range,
            "GetGenericPortMappingEntry": self._get_generic,
            "GetSpecificPortMappingEntry": self._get_specific,
            "GetListOfPortMappings": self._get_list,
            "GetCommonLinkProperties": self._get_link,
            "GetTotalBytesSent": lambda *_: {"NewTotalBytesSent": _u32(self._traffic().sent_octets)},
            "GetTotalBytesReceived": lambda *_: {"NewTotalBytesReceived": _u32(self._traffic().received_octets)},
            "GetTotalPacketsSent": lambda *_: {"NewTotalPacketsSent": _u32(self._traffic().sent_packets)},
            "GetTotalPacketsReceived": lambda *_: {"NewTotalPacketsReceived": _u32(self._traffic().received_packets)},
            "SetDefaultConnectionService": self._set_default_service,
            "GetDefaultConnectionService": lambda *_: {"NewDefaultConnectionService": tree.connection_service},
        }

    # -- state variables -------------------------------------------------------------------------------------------

    @property
    def external_address(self) -> str:
        """Empty while there is none."""
        return self._table.external_address or ""

    @property
    def status(self) -> str:
        """ConnectionStatus."""
        return "Connected" if self._table.external_address else "Disconnected"

    def note_address(self, now: float) -> None:
        """The external address is another one from now on, or gone."""
        self._address_since = now

    def evented(self, service: str, host: str) -> Values:
        """The evented variables of a service as one host is told them."""
        if service == FORWARDING:
            return {"DefaultConnectionService": self._tree.connection_service}
        if service == COMMON:
            return {"PhysicalLinkStatus": "Up" if self._traffic().is_up else "Down"}
        values = {
            "PossibleConnectionTypes": "IP_Routed",
            "ConnectionStatus": self.status,
            "ExternalIPAddress": self.external_address,
            "PortMappingNumberOfEntries": str(len(self._visible(host))),
        }
        if self._tree.version > 1:
            values["SystemUpdateID"] = _u32(self.update_id)
        return values

    # -- calls -----------------------------------------------------------------------------------------------------

    def call(self, path: str, call: Call, caller: Caller) -> Values | Pending:
        """Carry out a call that came in at the control URL of `path`. Raises `UpnpError`."""
        service = self._tree.services[path]
        named = IP_CONNECTION if call.service == PPP_CONNECTION else call.service
        if named != service.name or call.version > service.version or call.action not in service.action_names:
            raise UpnpError(ErrorCode.INVALID_ACTION)
        arguments = {}
        for argument in service.action(call.action).inputs:
            value = call.arguments.get(argument.name)
            if value is None and argument.name not in ("NewRemoteHost", "NewPortMappingDescription"):
                raise UpnpError(ErrorCode.INVALID_ARGS)
            arguments[argument.name] = value or ""
        return self._handlers[call.action](arguments, caller)

    def _is_second(self) -> bool:
        return self._tree.version > 1

    def _refused(self) -> UpnpError:
        return UpnpError(ErrorCode.ACTION_NOT_AUTHORIZED if self._is_second() else ErrorCode.ACTION_FAILED)

    # -- the connection --------------------------------------------------------------------------------------------

    def _set_connection_type(self, arguments: Values, caller: Caller) -> Values:
        raise UpnpError(ErrorCode.READ_ONLY)

    def _get_connection_type(self, arguments: Values, caller: Caller) -> Values:
        return {"NewConnectionType": "IP_Routed", "NewPossibleConnectionTypes": "IP_Routed"}

    def _request_connection(self, arguments: Values, caller: Caller) -> Values:
        if self._table.external_address is None:
            raise UpnpError(ErrorCode.CONNECTION_SETUP_FAILED)
        return {}

    def _force_termination(self, arguments: Values, caller: Caller) -> Values:
        raise self._refused()

    def _get_status(self, arguments: Values, caller: Caller) -> Values:
        connected = self._table.external_address is not None
        return {
            "NewConnectionStatus": self.status,
            "NewLastConnectionError": "ERROR_NONE",
            "NewUptime": _u32(int(caller.now - self._address_since) if connected else 0),
        }

    def _get_link(self, arguments: Values, caller: Caller) -> Values:
        traffic = self._traffic()
        speed = str(min(traffic.speed, 0xFFFFFFFF))
        return {
            "NewWANAccessType": "Ethernet",
            "NewLayer1UpstreamMaxBitRate": speed,
            "NewLayer1DownstreamMaxBitRate": speed,
            "NewPhysicalLinkStatus": "Up" if traffic.is_up else "Down",
        }

    def _set_default_service(self, arguments: Values, caller: Caller) -> Values:
        if arguments["NewDefaultConnectionService"] != self._tree.connection_service:
            raise UpnpError(ErrorCode.INVALID_SERVICE_ID)
        return {}

    # -- making mappings -------------------------------------------------------------------------------------------

    def _add(self, arguments: Values, caller: Caller) -> Pending:
        self._request(arguments, caller, exact=True)
        external = _transport(arguments["NewProtocol"]), _number(arguments["NewExternalPort"], 0xFFFF)
        return Pending(lambda answer: self._added(answer, external))

    def _add_any(self, arguments: Values, caller: Caller) -> Pending:
        self._request(arguments, caller, exact=False)
        return Pending(lambda answer: {**self._added(answer, None), "NewReservedPort": str(answer.external_port)})

    def _request(self, arguments: Values, caller: Caller, *, exact: bool) -> None:
        _must_be_wildcard(arguments["NewRemoteHost"], ErrorCode.REMOTE_HOST_ONLY_SUPPORTS_WILDCARD)
        transport = _transport(arguments["NewProtocol"])
        external_port = _number(arguments["NewExternalPort"], 0xFFFF)
        internal_port = _number(arguments["NewInternalPort"], 0xFFFF)
        lease = _number(arguments["NewLeaseDuration"], 0xFFFFFFFF)
        enabled = arguments["NewEnabled"].lower()
        if external_port == 0:
            raise UpnpError(ErrorCode.WILDCARD_NOT_PERMITTED_IN_EXT_PORT)
        if internal_port == 0:
            second = ErrorCode.WILDCARD_NOT_PERMITTED_IN_INT_PORT
            raise UpnpError(second if self._is_second() else ErrorCode.INVALID_ARGS)
        if enabled not in _TRUE:
            # A mapping that is there and carries nothing has no use for anybody.
            raise UpnpError(ErrorCode.ACTION_FAILED if enabled in _FALSE else ErrorCode.INVALID_ARGS)
        if _address(arguments["NewInternalClient"]) != caller.host:
            refusal = ErrorCode.ACTION_NOT_AUTHORIZED if self._is_second() else ErrorCode.CONFLICT_IN_MAPPING_ENTRY
            raise UpnpError(refusal)
        if exact and self._is_second() and not self._table.is_grantable(external_port):
            raise UpnpError(ErrorCode.ACTION_NOT_AUTHORIZED)
        self._table.request(
            Key(transport, caller.host, internal_port),
            suggested_port=external_port,
            lifetime=min(lease or WEEK_SECONDS, WEEK_SECONDS),
            origin=Origin.IGD,
            exact=exact,
            description=arguments["NewPortMappingDescription"][:DESCRIPTION_LIMIT],
            ticket=caller.ticket,
            draw=caller.draw,
            now=caller.now,
        )

    def _added(self, answer: Answer, external: tuple[Transport, int] | None) -> Values:
        match answer.verdict:
            case Verdict.DONE:
                return {}
            case Verdict.NOT_AS_ASKED:
                holder = None if external is None else self._table.find_external(*external)
                is_anothers = holder is not None and holder.origin is not Origin.IGD
                if self._is_second() and is_anothers:
                    raise UpnpError(ErrorCode.CONFLICT_WITH_OTHER_MECHANISMS)
                raise UpnpError(ErrorCode.CONFLICT_IN_MAPPING_ENTRY)
            case Verdict.NO_EXTERNAL_ADDRESS:
                raise UpnpError(ErrorCode.ACTION_FAILED)
            case Verdict.NO_RESOURCES | Verdict.OVER_QUOTA | Verdict.TOO_MANY_FILTERS:
                second = ErrorCode.NO_PORT_MAPS_AVAILABLE
                raise UpnpError(second if self._is_second() else ErrorCode.ACTION_FAILED)
            case Verdict.NOT_PERMITTED:
                raise self._refused()

    # -- ending them -----------------------------------------------------------------------------------------------

    def _delete(self, arguments: Values, caller: Caller) -> Pending:
        mapping = self._find(arguments)
        if mapping.key.host != caller.host:
            second = ErrorCode.ACTION_NOT_AUTHORIZED
            raise UpnpError(second if self._is_second() else ErrorCode.NO_SUCH_ENTRY_IN_ARRAY)
        self._table.delete(mapping.key, ticket=caller.ticket, now=caller.now)
        return Pending(self._deleted)

    def _delete_range(self, arguments: Values, caller: Caller) -> Values | Pending:
        found = self._in_range(arguments, self._table.mappings_of(caller.host))
        *others, last = [mapping.key for mapping in found]
        for key in others:
            self._table.delete(key, ticket=None, now=caller.now)
        self._table.delete(last, ticket=caller.ticket, now=caller.now)
        return Pending(self._deleted)

    def _deleted(self, answer: Answer) -> Values:
        if answer.verdict is not Verdict.DONE:
            raise self._refused()
        return {}

    # -- looking at them -------------------------------------------------------------------------------------------

    def _visible(self, host: str) -> list[PortMapping]:
        """What a host may see: its own mappings, or all if the configuration says so; pinholes have no place here."""
        mappings = self._table.mappings() if self._show_all else self._table.mappings_of(host)
        return [mapping for mapping in mappings if not mapping.key.is_pinhole]

    def _find(self, arguments: Values) -> PortMapping:
        _must_be_wildcard(arguments["NewRemoteHost"], ErrorCode.NO_SUCH_ENTRY_IN_ARRAY)
        transport = _transport(arguments["NewProtocol"])
        mapping = self._table.find_external(transport, _number(arguments["NewExternalPort"], 0xFFFF))
        if mapping is None:
            raise UpnpError(ErrorCode.NO_SUCH_ENTRY_IN_ARRAY)
        return mapping

    def _get_specific(self, arguments: Values, caller: Caller) -> Values:
        mapping = self._find(arguments)
        if mapping.key.host != caller.host and not self._show_all:
            raise UpnpError(ErrorCode.NO_SUCH_ENTRY_IN_ARRAY)
        return _inside(mapping, caller.now)

    def _get_generic(self, arguments: Values, caller: Caller) -> Values:
        index = _number(arguments["NewPortMappingIndex"], 0xFFFF)
        visible = self._visible(caller.host)
        if index >= len(visible):
            raise UpnpError(ErrorCode.SPECIFIED_ARRAY_INDEX_INVALID)
        mapping = visible[index]
        outside = {
            "NewRemoteHost": "",
            "NewExternalPort": str(mapping.external_port),
            "NewProtocol": mapping.key.transport.name,
        }
        return outside | _inside(mapping, caller.now)

    def _get_list(self, arguments: Values, caller: Caller) -> Values:
        count = _number(arguments["NewNumberOfPorts"], 0xFFFF)
        found = self._in_range(arguments, self._visible(caller.host))
        entries = "".join(_list_entry(mapping, caller.now) for mapping in found[: count or None])
        listing = f'<p:PortMappingList xmlns:p="{_LIST_NAMESPACE}">{entries}</p:PortMappingList>'
        return {"NewPortListing": listing}

    def _in_range(self, arguments: Values, mappings: list[PortMapping]) -> list[PortMapping]:
        transport = _transport(arguments["NewProtocol"])
        start = _number(arguments["NewStartPort"], 0xFFFF)
        end = _number(arguments["NewEndPort"], 0xFFFF)
        if arguments["NewManage"].lower() not in _TRUE | _FALSE:
            raise UpnpError(ErrorCode.INVALID_ARGS)
        if start > end:
            raise UpnpError(ErrorCode.INCONSISTENT_PARAMETERS)
        found = [
            mapping
            for mapping in mappings
            if mapping.key.transport is transport and start <= mapping.external_port <= end
        ]
        if not found:
            raise UpnpError(ErrorCode.PORT_MAPPING_NOT_FOUND)
        return sorted(found, key=lambda mapping: mapping.external_port)


def _inside(mapping: PortMapping, now: float) -> Values:
    return {
        "NewInternalPort": str(mapping.key.port),
        "NewInternalClient": mapping.key.host,
        "NewEnabled": "1",
        "NewPortMappingDescription": _described(mapping),
        "NewLeaseDuration": str(_lease(mapping, now)),
    }


def _list_entry(mapping: PortMapping, now: float) -> str:
    values = {
        "NewRemoteHost": "",
        "NewExternalPort": mapping.external_port,
        "NewProtocol": mapping.key.transport.name,
        "NewInternalPort": mapping.key.port,
        "NewInternalClient": mapping.key.host,
        "NewEnabled": 1,
        "NewDescription": _described(mapping),
        "NewLeaseTime": _lease(mapping, now),
    }
    fields = "".join(f"<p:{name}>{escape_text(str(value))}</p:{name}>" for name, value in values.items())
    return f"<p:PortMappingEntry>{fields}</p:PortMappingEntry>"


def _described(mapping: PortMapping) -> str:
    names = {Origin.NATPMP: "NAT-PMP", Origin.PCP: "PCP", Origin.STATIC: "static", Origin.OPERATOR: "by the owner"}
    return mapping.description or names.get(mapping.origin, "")


def _lease(mapping: PortMapping, now: float) -> int:
    """Whole seconds left, rounded up; 0 for a static mapping, which is there for ever."""
    return 0 if mapping.expires_at is None else max(1, math.ceil(mapping.expires_at - now))


def _must_be_wildcard(remote_host: str, code: ErrorCode) -> None:
    if remote_host not in WILDCARDS:
        raise UpnpError(code)


def _transport(text: str) -> Transport:
    try:
        return Transport[text.upper()]
    except KeyError:
        raise UpnpError(ErrorCode.INVALID_ARGS) from None


def _number(text: str, highest: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > highest:
        raise UpnpError(ErrorCode.INVALID_ARGS)
    return int(text)


def _address(text: str) -> str:
    """An address in its usual form. Names are not looked up: who resolved them could lead anywhere."""
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise UpnpError(ErrorCode.INVALID_ARGS) from None


def _u32(number: int) -> str:
    """Counters of UPnP have 32 bits and go round."""
    return str(number & 0xFFFFFFFF)
