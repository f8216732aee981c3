"""SOAP as UPnP uses it: a call read from a request, an answer or a fault written (UDA 1.1 §3).

Pure. The XML is read without entities, document types and external references; a call is small, so its size is bounded
by the driver and its arguments here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from .description import HEAD
from .services import URN

ENVELOPE: Final = "http://schemas.xmlsoap.org/soap/envelope/"
ENCODING: Final = "http://schemas.xmlsoap.org/soap/encoding/"
ARGUMENT_LIMIT: Final = 32
ARGUMENT_OCTETS: Final = 1024
_SERVICE: Final = re.compile(rf"{URN}:service:([A-Za-z0-9]{{1,40}}):([1-9][0-9]?)", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}", re.ASCII)
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ErrorCode(IntEnum):
    """UDA 1.1 §3.3.2, WANIPConnection:1 §2.4, WANIPConnection:2 §2.5, Layer3Forwarding:1 §2.4."""

    INVALID_ACTION = 401
    INVALID_ARGS = 402
    ACTION_FAILED = 501
    ACTION_NOT_AUTHORIZED = 606
    CONNECTION_SETUP_FAILED = 704
    SPECIFIED_ARRAY_INDEX_INVALID = 713
    NO_SUCH_ENTRY_IN_ARRAY = 714
    WILDCARD_NOT_PERMITTED_IN_EXT_PORT = 716
    CONFLICT_IN_MAPPING_ENTRY = 718
    INVALID_SERVICE_ID = 721
    REMOTE_HOST_ONLY_SUPPORTS_WILDCARD = 726
    NO_PORT_MAPS_AVAILABLE = 728
    CONFLICT_WITH_OTHER_MECHANISMS = 729
    PORT_MAPPING_NOT_FOUND = 730
    READ_ONLY = 731
    WILDCARD_NOT_PERMITTED_IN_INT_PORT = 732
    INCONSISTENT_PARAMETERS = 733


DESCRIPTIONS: Final = {
    ErrorCode.INVALID_ACTION: "Invalid Action",
    ErrorCode.INVALID_ARGS: "Invalid Args",
    ErrorCode.ACTION_FAILED: "Action Failed",
    ErrorCode.ACTION_NOT_AUTHORIZED: "Action not authorized",
    ErrorCode.CONNECTION_SETUP_FAILED: "ConnectionSetupFailed",
    ErrorCode.SPECIFIED_ARRAY_INDEX_INVALID: "SpecifiedArrayIndexInvalid",
    ErrorCode.NO_SUCH_ENTRY_IN_ARRAY: "NoSuchEntryInArray",
    ErrorCode.WILDCARD_NOT_PERMITTED_IN_EXT_PORT: "WildCardNotPermittedInExtPort",
    ErrorCode.CONFLICT_IN_MAPPING_ENTRY: "ConflictInMappingEntry",
    ErrorCode.INVALID_SERVICE_ID: "InvalidServiceID",
    ErrorCode.REMOTE_HOST_ONLY_SUPPORTS_WILDCARD: "RemoteHostOnlySupportsWildcard",
    ErrorCode.NO_PORT_MAPS_AVAILABLE: "NoPortMapsAvailable",
    ErrorCode.CONFLICT_WITH_OTHER_MECHANISMS: "ConflictWithOtherMechanisms",
    ErrorCode.PORT_MAPPING_NOT_FOUND: "PortMappingNotFound",
    ErrorCode.READ_ONLY: "ReadOnly",
    ErrorCode.WILDCARD_NOT_PERMITTED_IN_INT_PORT: "WildCardNotPermittedInIntPort",
    ErrorCode.INCONSISTENT_PARAMETERS: "InconsistentParameters",
}


class UpnpError(Exception):
    """A call ended with this code."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.code = code


class SoapError(Exception):
    """What came is no call; the text says why. There is no UPnP code for it, so HTTP refuses it."""


@dataclass(frozen=True, slots=True)
class Call:
    """An action called on a service; `service_type` is what the caller wrote, and what the answer repeats."""

    service_type: str
    service: str
    version: int
    action: str
    arguments: Mapping[str, str]


def read_call(header: str | None, body: bytes) -> Call:
    """Read a call from the SOAPACTION header, if there is one, and the body.

    Order of arguments, namespace prefixes and blanks around values do not matter, nor do quotes around the header.
    Raises `SoapError`; `UpnpError` for an argument given twice or too long.
    """
    element = _action_element(body)
    namespace, _, name = element.tag.rpartition("}")
    service_type = namespace.removeprefix("{")
    if header is not None:
        service_type, separator, named = header.strip().strip('"').strip().partition("#")
        if not separator or named != name:
            raise SoapError("SOAPACTION and body differ")
    match = _SERVICE.fullmatch(service_type)
    if match is None or not _NAME.fullmatch(name):
        raise SoapError("no action of a UPnP service")
    return Call(service_type, match[1], int(match[2]), name, _arguments(element))


def _action_element(body: bytes) -> Element:
    try:
        root = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise SoapError(f"not well-formed: {type(error).__name__}") from None
    content = root.find(f"{{{ENVELOPE}}}Body")
    if root.tag != f"{{{ENVELOPE}}}Envelope" or content is None or len(content) != 1:
        raise SoapError("no envelope with one action")
    element: Element = content[0]
    return element


def _arguments(element: Element) -> dict[str, str]:
    arguments: dict[str, str] = {}
    for child in element:
        name = child.tag.rpartition("}")[2]
        value = (child.text or "").strip()
        if name in arguments or len(child) or len(value) > ARGUMENT_OCTETS or len(arguments) >= ARGUMENT_LIMIT:
            raise UpnpError(ErrorCode.INVALID_ARGS)
        arguments[name] = value
    return arguments


def write_answer(call: Call, values: Mapping[str, str]) -> bytes:
    """The answer to a call, values in order."""
    content = "".join(f"<{name}>{_written(name, value)}</{name}>" for name, value in values.items())
    return _envelope(f'<u:{call.action}Response xmlns:u="{call.service_type}">{content}</u:{call.action}Response>')


def _written(name: str, value: str) -> str:
    """A value; the XML in a listing is set off as a whole, for there are clients that do not read it otherwise."""
    return f"<![CDATA[{value}]]>" if name == "NewPortListing" else escape_text(value)


def write_fault(code: ErrorCode) -> bytes:
    """The fault with a UPnP error; it travels with HTTP status 500."""
    return _envelope(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring>"
        f'<detail><UPnPError xmlns="{URN}:control-1-0"><errorCode>{int(code)}</errorCode>'
        f"<errorDescription>{DESCRIPTIONS[code]}</errorDescription></UPnPError></detail></s:Fault>"
    )


def escape_text(text: str) -> str:
    """Text for XML; what XML cannot hold at all is left out."""
    return escape(_NOT_XML.sub("", text))


def _envelope(content: str) -> bytes:
    return (
        f'{HEAD}<s:Envelope xmlns:s="{ENVELOPE}" s:encodingStyle="{ENCODING}">'
        f"<s:Body>{content}</s:Body></s:Envelope>\r\n"
    ).encode()
