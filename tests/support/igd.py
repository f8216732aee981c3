"""UPnP calls as a control point makes them, and what comes back, read without our own parser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

URN = "urn:schemas-upnp-org"
IP = f"{URN}:service:WANIPConnection:1"


def envelope(action: str, arguments: Mapping[str, object], service: str = IP) -> bytes:
    """The body of a call."""
    content = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service}">{content}</u:{action}></s:Body></s:Envelope>'
    ).encode()


def add(external: int, internal: int, client: str, **changes: object) -> dict[str, object]:
    """The arguments of AddPortMapping, in order."""
    return {
        "NewRemoteHost": "",
        "NewExternalPort": external,
        "NewProtocol": "TCP",
        "NewInternalPort": internal,
        "NewInternalClient": client,
        "NewEnabled": 1,
        "NewPortMappingDescription": "game",
        "NewLeaseDuration": 3600,
    } | changes


def entry(external: int, protocol: str = "TCP") -> dict[str, object]:
    """The arguments that name a mapping."""
    return {"NewRemoteHost": "", "NewExternalPort": external, "NewProtocol": protocol}


def read(body: bytes) -> dict[str, str] | int:
    """The values of an answer, or the code of a fault."""
    root = ET.fromstring(body)
    (content,) = root[0]
    if content.tag.endswith("}Fault"):
        return int(re.findall(rb"<errorCode>(\d+)</errorCode>", body)[0])
    return {child.tag: child.text or "" for child in content}
