"""The device and what it says of itself in XML: root description and service descriptions (UDA 1.1 §2).

InternetGatewayDevice | Layer3Forwarding
  WANDevice           | WANCommonInterfaceConfig
    WANConnectionDevice | WANIPConnection
"""

from __future__ import annotations

import uuid
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from xml.sax.saxutils import escape

from .services import COMMON_SERVICE, FORWARDING_SERVICE, URN, Service, ip_connection

ROOT_PATH: Final = "/rootDesc.xml"
SERVER: Final = "Linux UPnP/1.1 homing/1"
"""No version numbers of ours: they would help nobody but who looks for old ones."""
HEAD: Final = '<?xml version="1.0" encoding="utf-8"?>\n'


@dataclass(frozen=True)
class Device:
    """One of the three nested devices."""

    name: str
    version: int
    uuid: str
    service: Service

    @property
    def type(self) -> str:
        return f"{URN}:device:{self.name}:{self.version}"

    @property
    def udn(self) -> str:
        return f"uuid:{self.uuid}"


@dataclass(frozen=True)
class DeviceTree:
    """The whole device; `version` is 1 or 2 and counts for all that has two versions."""

    uuid: str
    version: int = 1

    @cached_property
    def devices(self) -> tuple[Device, Device, Device]:
        """Root, WAN device, WAN connection device."""
        own = uuid.UUID(self.uuid)
        return (
            Device("InternetGatewayDevice", self.version, self.uuid, FORWARDING_SERVICE),
            Device("WANDevice", self.version, str(uuid.uuid5(own, "WANDevice")), COMMON_SERVICE),
            Device(
                "WANConnectionDevice",
                self.version,
                str(uuid.uuid5(own, "WANConnectionDevice")),
                ip_connection(self.version),
            ),
        )

    @cached_property
    def services(self) -> dict[str, Service]:
        """By path."""
        return {device.service.path: device.service for device in self.devices}

    @property
    def connection_service(self) -> str:
        """The value of DefaultConnectionService."""
        device = self.devices[2]
        return f"{device.udn}:WANConnectionDevice:{device.version},{device.service.id}"

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """All that can be fetched, by path."""
        documents = {ROOT_PATH: (HEAD + self._root()).encode()}
        for service in self.services.values():
            documents[f"/scpd/{service.path}.xml"] = (HEAD + _scpd(service)).encode()
        return documents

    @cached_property
    def config_id(self) -> int:
        """A number that is another one when the documents are (UDA 1.1 §1.2.2: below 2^24)."""
        return zlib.crc32(b"".join(self.documents.values())) & 0xFFFFFF

    def _root(self) -> str:
        inner = ""
        for device in reversed(self.devices):
            inner = _device(device, inner)
        version = f"<specVersion><major>1</major><minor>{0 if self.version == 1 else 1}</minor></specVersion>"
        return f'<root xmlns="{URN}:device-1-0">{version}{inner}</root>'


def _device(device: Device, inner: str) -> str:
    service = device.service
    nested = f"<deviceList>{inner}</deviceList>" if inner else ""
    return (
        f"<device><deviceType>{device.type}</deviceType>"
        "<friendlyName>homing gateway</friendlyName><manufacturer>homing</manufacturer>"
        f"<modelName>homing gateway</modelName><UDN>{device.udn}</UDN>"
        f"<serviceList><service><serviceType>{service.type}</serviceType><serviceId>{service.id}</serviceId>"
        f"<SCPDURL>/scpd/{service.path}.xml</SCPDURL><controlURL>/control/{service.path}</controlURL>"
        f"<eventSubURL>/event/{service.path}</eventSubURL></service></serviceList>{nested}</device>"
    )


def _scpd(service: Service) -> str:
    actions = ""
    for action in service.actions:
        arguments = "".join(
            f"<argument><name>{argument.name}</name><direction>{direction}</direction>"
            f"<relatedStateVariable>{argument.variable}</relatedStateVariable></argument>"
            for direction, listed in (("in", action.inputs), ("out", action.outputs))
            for argument in listed
        )
        arguments = f"<argumentList>{arguments}</argumentList>" if arguments else ""
        actions += f"<action><name>{action.name}</name>{arguments}</action>"
    variables = ""
    for variable in service.variables:
        allowed = "".join(f"<allowedValue>{escape(value)}</allowedValue>" for value in variable.allowed)
        allowed = f"<allowedValueList>{allowed}</allowedValueList>" if allowed else ""
        variables += (
            f'<stateVariable sendEvents="{"yes" if variable.is_evented else "no"}"><name>{variable.name}</name>'
            f"<dataType>{variable.type}</dataType>{allowed}</stateVariable>"
        )
    return (
        f'<scpd xmlns="{URN}:service-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>'
        f"<actionList>{actions}</actionList><serviceStateTable>{variables}</serviceStateTable></scpd>"
    )
