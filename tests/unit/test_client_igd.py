"""What the UPnP client sends, and how it reads answers of any kind."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

import pytest

from client_stub.igd_client import (
    BODY_OCTETS,
    SEARCHED,
    IgdError,
    Service,
    SoapError,
    call,
    mapping_arguments,
    read_call_answer,
    read_description,
    read_search_answer,
    search,
)

LOCATION: SplitResult = urlsplit("http://192.168.1.1:5000/rootDesc.xml")
WANIP = "urn:schemas-upnp-org:service:WANIPConnection:1"


def answer(location: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return f"{first}\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice\r\nLocation: {location}\r\n\r\n".encode()


def description(*services: tuple[str, str], head: str = "") -> bytes:
    listed = "".join(
        f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>" for kind, url in services
    )
    return (
        f'<?xml version="1.0"?>{head}<root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceList><device>'
        f"<serviceList>{listed}</serviceList></device></deviceList></device></root>"
    ).encode()


def test_a_search_asks_for_one_type() -> None:
    text = search(SEARCHED[0]).decode()
    assert text.startswith("M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n")
    assert 'MAN: "ssdp:discover"\r\nMX: 2\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n' in text


def test_a_responder_that_names_itself() -> None:
    assert read_search_answer(answer(LOCATION.geturl()), "192.168.1.1") == LOCATION


@pytest.mark.parametrize(
    "datagram",
    [
        answer("http://192.168.1.9:5000/rootDesc.xml"),  # another host than the one that answered
        answer("http://router.example/rootDesc.xml"),
        answer("https://192.168.1.1/rootDesc.xml"),
        answer("ftp://192.168.1.1/x"),
        answer("http://192.168.1.9@192.168.1.1/x"),
        answer("http://192.168.1.1:0/x"),
        answer("http://192.168.1.1:99999/x"),
        answer("http://192.168.1.1/a b"),
        answer("http://192.168.1.1/" + "x" * 1000),
        answer("http://[::1"),
        answer(""),
        answer(LOCATION.geturl(), "HTTP/1.1 404 Not Found"),
        answer(LOCATION.geturl(), "NOTIFY * HTTP/1.1"),
        b"",
        b"\xff" * 3000,
    ],
)
def test_other_answers_are_dropped(datagram: bytes) -> None:
    assert read_search_answer(datagram, "192.168.1.1") is None


def test_the_newest_connection_service_is_taken() -> None:
    ppp = "urn:schemas-upnp-org:service:WANPPPConnection:1"
    body = description(
        ("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3"), (ppp, "/ppp"), (WANIP, "ctl/IPConn?x=1")
    )
    assert read_description(body, LOCATION) == [
        Service(WANIP, "192.168.1.1", 5000, "/ctl/IPConn?x=1"),
        Service(ppp, "192.168.1.1", 5000, "/ppp"),
    ]


def test_a_control_url_on_another_host_is_not_used() -> None:
    body = description((WANIP, "http://192.168.1.9/ctl"), (WANIP, "http://[::1/"), (WANIP, "//192.168.1.9/ctl"))
    assert read_description(body, LOCATION) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml",
        b"<root>",
        b"\xff\xfe\xfd",
        description((WANIP, "&x;"), head='<!DOCTYPE r [<!ENTITY x "y">]>'),
        description(head='<!DOCTYPE r SYSTEM "file:///etc/passwd">'),
        b"<a>" * 100_000,
        b" " * (BODY_OCTETS + 1),
    ],
)
def test_descriptions_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(IgdError):
        read_description(body, LOCATION)


def test_a_call_is_escaped() -> None:
    arguments = mapping_arguments(
        external_port=8080, transport="tcp", internal=("192.168.1.20", 80), lease=3600, description="<&>"
    )
    headers, body = call(Service(WANIP, "192.168.1.1", 5000, "/ctl"), "AddPortMapping", arguments)
    assert headers["SOAPAction"] == f'"{WANIP}#AddPortMapping"'
    assert b"<NewPortMappingDescription>&lt;&amp;&gt;</NewPortMappingDescription>" in body
    assert b"<NewProtocol>TCP</NewProtocol><NewInternalPort>80</NewInternalPort>" in body


def soap(inner: str) -> bytes:
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>' + inner + "</s:Body></s:Envelope>"
    ).encode()


def test_results_of_a_call() -> None:
    body = soap(
        f'<u:GetExternalIPAddressResponse xmlns:u="{WANIP}"><NewExternalIPAddress> 203.0.113.7\n'
        "</NewExternalIPAddress><Empty/></u:GetExternalIPAddressResponse>"
    )
    found = read_call_answer(200, body, "GetExternalIPAddress")
    assert found == {"NewExternalIPAddress": "203.0.113.7", "Empty": ""}
    assert read_call_answer(200, body + b"\0\r\n", "GetExternalIPAddress") == found
    with pytest.raises(IgdError):
        read_call_answer(200, body, "GetStatusInfo")
    with pytest.raises(IgdError, match="404"):
        read_call_answer(404, body, "GetExternalIPAddress")


def fault(code: str) -> bytes:
    return soap(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>'
        "<errorDescription>Conflict</errorDescription></UPnPError></detail></s:Fault>"
    )


def test_a_refusal_has_its_code() -> None:
    with pytest.raises(SoapError, match=r"error 718 \(Conflict\)") as caught:
        read_call_answer(500, fault("718"), "AddPortMapping")
    assert caught.value.code == 718


@pytest.mark.parametrize("code", ["", "many", "99999", "٧١٨"])
def test_a_refusal_without_a_code_is_no_refusal(code: str) -> None:
    with pytest.raises(IgdError) as caught:
        read_call_answer(500, fault(code), "AddPortMapping")
    assert not isinstance(caught.value, SoapError)
