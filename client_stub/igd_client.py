"""UPnP IGD from the asking side: what is sent, how answers are read (UPnP Device Architecture 1.1, WANIPConnection:1).

Pure. Answers come from whoever likes to answer, so every one is bounded, XML is read without entities, and an address
in it counts only if it is the responder's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

GROUP: Final = (IPv4Address("239.255.255.250"), 1900)
SEARCH_SECONDS: Final = 2
"""MX: devices wait up to this long before they answer."""
DATAGRAM_OCTETS: Final = 2048
BODY_OCTETS: Final = 256 * 1024
URL_LIMIT: Final = 512
SERVICE_LIMIT: Final = 64
WEEK: Final = 604800
"""The longest lease of IGD:2."""
CONNECTION_SERVICES: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
SEARCHED: Final = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    *CONNECTION_SERVICES,
)
_SOAP: Final = "{http://schemas.xmlsoap.org/soap/envelope/}"
_DEVICE: Final = "{urn:schemas-upnp-org:device-1-0}"
_CONTROL: Final = "{urn:schemas-upnp-org:control-1-0}"


class IgdError(Exception):
    """An answer that is of no use; the text says why."""


class SoapError(IgdError):
    """The device refused an action."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"error {code}{f' ({description})' if description else ''}")
        self.code = code


class Code:
    """Error codes that have a consequence (igd: WANIPConnection §2.4)."""

    CONFLICT = 718
    SAME_PORT_VALUES_REQUIRED = 724
    ONLY_PERMANENT_LEASES = 725
    CONFLICT_WITH_OTHER_MECHANISMS = 729
    NO_SUCH_ENTRY = 714


@dataclass(frozen=True, slots=True)
class Service:
    """A connection service of a device: its type, and where it is controlled."""

    kind: str
    host: str
    port: int
    path: str


def search(kind: str) -> bytes:
    """The M-SEARCH datagram for one device or service type."""
    return (
        "M-SEARCH * HTTP/1.1\r\n"
        f"HOST: {GROUP[0]}:{GROUP[1]}\r\n"
        'MAN: "ssdp:discover"\r\n'
        f"MX: {SEARCH_SECONDS}\r\n"
        f"ST: {kind}\r\n\r\n"
    ).encode()


def read_search_answer(datagram: bytes, source: str) -> SplitResult | None:
    """Where a responder describes itself; None if it is no answer, or names another host than itself."""
    lines = datagram[:DATAGRAM_OCTETS].decode("latin-1").split("\r\n")
    if not lines[0].startswith(("HTTP/1.1 200", "HTTP/1.0 200")):
        return None
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return _own_url(headers.get("location", ""), source)


def read_description(body: bytes, location: SplitResult) -> list[Service]:
    """The connection services of a device description, the newest version first. Raises `IgdError`."""
    root = _xml(body)
    base = root.findtext(f"{_DEVICE}URLBase") or location.geturl()
    found = []
    for element in list(root.iter(f"{_DEVICE}service"))[:SERVICE_LIMIT]:
        kind = (element.findtext(f"{_DEVICE}serviceType") or "").strip()
        if kind not in CONNECTION_SERVICES:
            continue
        try:
            control = urljoin(base, (element.findtext(f"{_DEVICE}controlURL") or "").strip())
        except ValueError:
            continue
        url = _own_url(control, location.hostname or "")
        if url is not None:
            found.append(Service(kind, url.hostname or "", url.port or 80, _path(url)))
    return sorted(found, key=lambda service: CONNECTION_SERVICES.index(service.kind))


def call(service: Service, action: str, arguments: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a SOAP request."""
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service.kind}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    )
    headers = {"SOAPAction": f'"{service.kind}#{action}"', "Content-Type": 'text/xml; charset="utf-8"'}
    return headers, body.encode()


def read_call_answer(status: int, body: bytes, action: str) -> dict[str, str]:
    """The results of an action by name. Raises `SoapError` for a refusal, `IgdError` for anything unreadable."""
    if status not in (200, 500):
        raise IgdError(f"HTTP status {status}")
    root = _xml(body)
    if (fault := root.find(f".//{_CONTROL}UPnPError")) is not None:
        code = (fault.findtext(f"{_CONTROL}errorCode") or "").strip()
        if not (code.isascii() and code.isdigit() and len(code) <= 4):
            raise IgdError("a refusal without a code")
        raise SoapError(int(code), (fault.findtext(f"{_CONTROL}errorDescription") or "").strip()[:80])
    envelope_body = root.find(f"{_SOAP}Body")
    for element in () if envelope_body is None else envelope_body:
        if element.tag.rpartition("}")[2] == f"{action}Response":
            return {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in element}
    raise IgdError("no response in the answer")


def mapping_arguments(
    *, external_port: int, transport: str, internal: tuple[str, int], lease: int, description: str
) -> dict[str, str]:
    """The arguments of AddPortMapping in the order of its description."""
    return {
        "NewRemoteHost": "",
        "NewExternalPort": str(external_port),
        "NewProtocol": transport.upper(),
        "NewInternalPort": str(internal[1]),
        "NewInternalClient": internal[0],
        "NewEnabled": "1",
        "NewPortMappingDescription": description,
        "NewLeaseDuration": str(lease),
    }


def _xml(body: bytes) -> Element:
    if len(body) > BODY_OCTETS:
        raise IgdError(f"more than {BODY_OCTETS} octets")
    try:
        root: Element = fromstring(body.strip(b" \t\r\n\0"), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError) as error:
        raise IgdError(f"not the XML that was expected ({type(error).__name__})") from None
    return root


def _own_url(text: str, host: str) -> SplitResult | None:
    """An http URL on the very host it came from."""
    if len(text) > URL_LIMIT or not text.isascii() or not text.isprintable() or " " in text:
        return None
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return None
    if url.scheme != "http" or url.hostname != host or "@" in url.netloc or port == 0:
        return None
    return url


def _path(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")
