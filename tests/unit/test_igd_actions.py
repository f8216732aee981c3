"""Each action of UPnP IGD on a mapping table, calls and answers as octets, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.igd.actions import Actions, Caller, Pending, Traffic
from gateway.igd.description import DeviceTree
from gateway.igd.soap import SoapError, UpnpError, read_call, write_answer, write_fault
from gateway.mappings import Answer, Install, Key, Limits, MappingTable, Origin, Transport
from tests.support.igd import IP, URN, add, entry, envelope, read

A, B = "192.168.1.10", "192.168.1.11"
EXTERNAL = "203.0.113.7"
UUID = "11111111-2222-4333-8444-555555555555"


class Device:
    """A device on a table whose back end takes everything but `taken` ports."""

    def __init__(
        self, version: int = 1, *, address: str | None = EXTERNAL, limits: Limits | None = None, show_all: bool = False
    ) -> None:
        self.now = 1000.0
        self.taken: set[int] = set()
        self.table = MappingTable(limits or Limits(), now=self.now)
        self.table.set_external_address(address, now=self.now)
        self.tree = DeviceTree(UUID, version)
        traffic = Traffic(sent_octets=2**32 + 5, received_octets=7, sent_packets=3, received_packets=4, speed=10**9)
        self.actions = Actions(self.table, self.tree, show_all=show_all, traffic=lambda: traffic, now=self.now)
        self.settle()

    def settle(self) -> dict[object, Answer]:
        answers: dict[object, Answer] = {}
        while effects := self.table.take_effects():
            for effect in effects:
                if isinstance(effect, Install):
                    ok = effect.mapping.external_port not in self.taken
                    self.table.installed(effect.number, ok, now=self.now)
                elif isinstance(effect, Answer):
                    answers[effect.ticket] = effect
        return answers

    def call(
        self, action: str, host: str = A, service: str = IP, path: str = "WANIPConn1", **arguments: Any
    ) -> dict[str, str] | int:
        try:
            call = read_call(f'"{service}#{action}"', envelope(action, arguments, service))
            values = self.actions.call(path, call, Caller(host, "ticket", 12345, self.now))
            if isinstance(values, Pending):
                values = values.finish(self.settle()["ticket"])
        except UpnpError as error:
            return read(write_fault(error.code))
        return read(write_answer(call, values))

    def natpmp(self, key: Key, port: int, **more: Any) -> None:
        self.table.request(
            key,
            suggested_port=port,
            lifetime=3600,
            ticket=1,
            draw=1,
            now=self.now,
            **{"origin": Origin.NATPMP, **more},
        )
        self.settle()


def test_a_mapping_is_made_seen_renewed_and_deleted() -> None:
    device = Device()
    assert device.call("AddPortMapping", **add(8080, 80, A, NewLeaseDuration=100)) == {}
    assert device.call("GetSpecificPortMappingEntry", **entry(8080)) == {
        "NewInternalPort": "80",
        "NewInternalClient": A,
        "NewEnabled": "1",
        "NewPortMappingDescription": "game",
        "NewLeaseDuration": "120",
    }
    device.now += 60
    assert device.call("AddPortMapping", **add(8080, 80, A, NewLeaseDuration=600)) == {}
    found = device.call("GetGenericPortMappingEntry", NewPortMappingIndex=0)
    assert isinstance(found, dict)
    assert list(found.items())[:4] == [
        ("NewRemoteHost", ""),
        ("NewExternalPort", "8080"),
        ("NewProtocol", "TCP"),
        ("NewInternalPort", "80"),
    ]
    assert found["NewLeaseDuration"] == "600"
    assert device.call("GetGenericPortMappingEntry", NewPortMappingIndex=1) == 713
    assert device.call("DeletePortMapping", **entry(8080)) == {}
    assert device.call("DeletePortMapping", **entry(8080)) == 714
    assert device.call("GetSpecificPortMappingEntry", **entry(8080)) == 714


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("asked", "granted"), [(0, 604800), (604801, 604800), (0xFFFFFFFF, 604800), (1, 120)])
def test_leases(version: int, asked: int, granted: int) -> None:
    device = Device(version)
    assert device.call("AddPortMapping", **add(8080, 80, A, NewLeaseDuration=asked)) == {}
    found = device.call("GetSpecificPortMappingEntry", **entry(8080))
    assert isinstance(found, dict)
    assert found["NewLeaseDuration"] == str(granted)
    device.now += granted
    device.table.handle_deadline(now=device.now)
    assert device.call("GetSpecificPortMappingEntry", **entry(8080)) == 714


ADD_FAULTS: list[tuple[dict[str, object], int, int]] = [
    ({"NewRemoteHost": "198.51.100.9"}, 726, 726),
    ({"NewExternalPort": 0}, 716, 716),
    ({"NewInternalPort": 0}, 402, 732),
    ({"NewExternalPort": 65536}, 402, 402),
    ({"NewExternalPort": -1}, 402, 402),
    ({"NewExternalPort": "٤٢"}, 402, 402),
    ({"NewInternalPort": ""}, 402, 402),
    ({"NewProtocol": "SCTP"}, 402, 402),
    ({"NewEnabled": 0}, 501, 501),
    ({"NewEnabled": "maybe"}, 402, 402),
    ({"NewInternalClient": B}, 718, 606),
    ({"NewInternalClient": "router.example"}, 402, 402),
    ({"NewInternalClient": "127.0.0.1"}, 718, 606),
    ({"NewInternalClient": "255.255.255.255"}, 718, 606),
    ({"NewInternalClient": ""}, 402, 402),
    ({"NewLeaseDuration": 2**32}, 402, 402),
    ({"NewLeaseDuration": ""}, 402, 402),
    ({"NewExternalPort": 80}, 718, 606),
    ({"NewExternalPort": 5351}, 718, 606),
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("change", "first", "second"), ADD_FAULTS)
def test_what_is_refused(version: int, change: dict[str, object], first: int, second: int) -> None:
    device = Device(version)
    assert device.call("AddPortMapping", **add(8080, 80, A, **change)) == (first, second)[version - 1]
    assert device.table.mappings() == []


@pytest.mark.parametrize("left_out", ["NewExternalPort", "NewProtocol", "NewInternalClient", "NewLeaseDuration"])
def test_a_missing_argument(left_out: str) -> None:
    arguments = add(8080, 80, A)
    del arguments[left_out]
    assert Device().call("AddPortMapping", **arguments) == 402


def test_what_some_programs_leave_out_or_write_differently() -> None:
    device = Device()
    arguments = dict(reversed(add(8080, 80, f"  {A} ", NewProtocol="tcp", NewEnabled="True").items()))
    del arguments["NewRemoteHost"]
    del arguments["NewPortMappingDescription"]
    assert device.call("AddPortMapping", **arguments, NewUnknown="x") == {}
    assert device.call("DeletePortMapping", **entry(8080) | {"NewRemoteHost": "*"}) == {}
    ppp = f"{URN}:service:WANPPPConnection:1"
    assert device.call("AddPortMapping", service=ppp, **add(8080, 80, A)) == {}


@pytest.mark.parametrize("version", [1, 2])
def test_ports_that_others_have(version: int) -> None:
    device = Device(version)
    device.call("AddPortMapping", host=B, **add(8080, 80, B))
    device.natpmp(Key(Transport.TCP, B, 81), 8081)
    device.table.add_static(Key(Transport.TCP, "192.168.1.99", 22), 2222)
    device.settle()
    device.taken.add(8083)
    assert device.call("AddPortMapping", **add(8080, 80, A)) == 718
    assert device.call("AddPortMapping", **add(8080, 80, A, NewProtocol="UDP")) == 718
    assert device.call("AddPortMapping", **add(8081, 80, A)) == (718, 729)[version - 1]
    assert device.call("AddPortMapping", **add(2222, 80, A)) == (718, 729)[version - 1]
    assert device.call("AddPortMapping", **add(8083, 80, A)) == 718
    assert device.call("AddPortMapping", **add(8082, 80, A)) == {}


@pytest.mark.parametrize(
    ("limits", "address", "first", "second"),
    [
        (Limits(per_host=1), EXTERNAL, 501, 728),
        (Limits(total=1), EXTERNAL, 501, 728),
        (Limits(), None, 501, 501),
    ],
    ids=["host's quota", "table full", "no address"],
)
def test_what_cannot_be_done(limits: Limits, address: str | None, first: int, second: int) -> None:
    for version, code in ((1, first), (2, second)):
        device = Device(version, limits=limits, address=address)
        if address is not None:
            assert device.call("AddPortMapping", **add(8080, 80, A)) == {}
        assert device.call("AddPortMapping", **add(8081, 81, A)) == code


def test_the_external_address_itself_is_not_mapped() -> None:
    for version, code in ((1, 501), (2, 606)):
        assert Device(version).call("AddPortMapping", host=EXTERNAL, **add(8080, 80, EXTERNAL)) == code


def test_mappings_of_others_are_neither_seen_nor_deleted() -> None:
    for version, code in ((1, 714), (2, 606)):
        device = Device(version)
        device.call("AddPortMapping", host=B, **add(8080, 80, B))
        assert device.call("GetGenericPortMappingEntry", NewPortMappingIndex=0) == 713
        assert device.call("GetSpecificPortMappingEntry", **entry(8080)) == 714
        assert device.call("DeletePortMapping", **entry(8080)) == code
        assert len(device.table.mappings()) == 1
        seeing = Device(version, show_all=True)
        seeing.call("AddPortMapping", host=B, **add(8080, 80, B))
        assert isinstance(seeing.call("GetGenericPortMappingEntry", NewPortMappingIndex=0), dict)
        assert isinstance(seeing.call("GetSpecificPortMappingEntry", **entry(8080)), dict)
        assert seeing.call("DeletePortMapping", **entry(8080)) == code


def test_mappings_of_the_other_protocols_are_seen_and_kept() -> None:
    device = Device()
    device.natpmp(Key(Transport.UDP, A, 4500), 4500)
    device.natpmp(Key(Transport.UDP, A, 4501), 4501, origin=Origin.PCP, nonce=b"n" * 12)
    device.table.add_static(Key(Transport.TCP, A, 22), 2222)
    device.settle()
    seen = [device.call("GetGenericPortMappingEntry", NewPortMappingIndex=index) for index in range(4)]
    named = [found["NewPortMappingDescription"] for found in seen if isinstance(found, dict)]
    assert (named, seen[3]) == (["NAT-PMP", "PCP", "static"], 713)
    static = device.call("GetSpecificPortMappingEntry", **entry(2222))
    assert isinstance(static, dict)
    assert static["NewLeaseDuration"] == "0"
    # The same once more is no conflict; anything else is.
    assert device.call("AddPortMapping", **add(4500, 4500, A, NewProtocol="UDP")) == {}
    assert device.call("AddPortMapping", **add(4500, 4499, A, NewProtocol="UDP")) == 718
    assert device.call("DeletePortMapping", **entry(4500, "UDP")) == {}
    assert device.call("DeletePortMapping", **entry(4501, "UDP")) == 501
    assert device.call("DeletePortMapping", **entry(2222)) == 501


def test_pinholes_are_not_listed() -> None:
    device = Device(show_all=True)
    device.natpmp(Key(Transport.TCP, "2001:db8::1", 22), 22, origin=Origin.PCP, nonce=b"n" * 12)
    assert len(device.table.mappings()) == 1
    assert device.call("GetGenericPortMappingEntry", NewPortMappingIndex=0) == 713
    assert device.call("GetSpecificPortMappingEntry", **entry(22)) == 714


def test_any_port() -> None:
    device = Device(2)
    assert device.call("AddAnyPortMapping", **add(8080, 80, A)) == {"NewReservedPort": "8080"}
    other = device.call("AddAnyPortMapping", host=B, **add(8080, 80, B))
    assert isinstance(other, dict)
    assert other["NewReservedPort"] != "8080"
    assert device.call("AddAnyPortMapping", host=B, **add(9999, 80, B)) == other
    assert isinstance(device.call("AddAnyPortMapping", **add(80, 443, A)), dict)
    assert device.call("AddAnyPortMapping", **add(0, 80, A)) == 716
    assert Device(1).call("AddAnyPortMapping", **add(8080, 80, A)) == 401


def test_ranges() -> None:
    device = Device(2)
    for port in (8080, 8090, 8100):
        device.call("AddPortMapping", **add(port, port, A, NewPortMappingDescription="a&lt;b"))
    device.call("AddPortMapping", host=B, **add(8095, 80, B))
    some: dict[str, object] = {
        "NewStartPort": 8085, "NewEndPort": 8200, "NewProtocol": "TCP", "NewManage": 0, "NewNumberOfPorts": 0
    }  # fmt: skip
    found = device.call("GetListOfPortMappings", **some)
    assert isinstance(found, dict)
    listing = found["NewPortListing"]
    assert listing.count("<p:PortMappingEntry>") == 2
    assert "<p:NewExternalPort>8090</p:NewExternalPort>" in listing
    assert "<p:NewDescription>a&lt;b</p:NewDescription>" in listing
    one = device.call("GetListOfPortMappings", **some | {"NewNumberOfPorts": 1})
    assert isinstance(one, dict)
    assert one["NewPortListing"].count("<p:PortMappingEntry>") == 1
    assert device.call("GetListOfPortMappings", **some | {"NewProtocol": "UDP"}) == 730
    assert device.call("GetListOfPortMappings", **some | {"NewEndPort": 1}) == 733
    assert device.call("GetListOfPortMappings", **some | {"NewManage": "all"}) == 402
    del some["NewNumberOfPorts"]
    assert device.call("DeletePortMappingRange", **some | {"NewEndPort": 1}) == 733
    assert device.call("DeletePortMappingRange", **some) == {}
    assert device.call("DeletePortMappingRange", **some) == 730
    assert sorted(mapping.external_port for mapping in device.table.mappings()) == [8080, 8095]


def test_the_connection() -> None:
    device = Device()
    device.now += 77
    assert device.call("GetExternalIPAddress") == {"NewExternalIPAddress": EXTERNAL}
    assert device.call("GetStatusInfo") == {
        "NewConnectionStatus": "Connected",
        "NewLastConnectionError": "ERROR_NONE",
        "NewUptime": "77",
    }
    assert device.call("GetNATRSIPStatus") == {"NewRSIPAvailable": "0", "NewNATEnabled": "1"}
    assert device.call("GetConnectionTypeInfo") == {
        "NewConnectionType": "IP_Routed",
        "NewPossibleConnectionTypes": "IP_Routed",
    }
    assert device.call("SetConnectionType", NewConnectionType="IP_Bridged") == 731
    assert device.call("RequestConnection") == {}
    assert device.call("ForceTermination") == 501
    assert Device(2).call("ForceTermination") == 606
    away = Device(address=None)
    assert away.call("GetExternalIPAddress") == {"NewExternalIPAddress": ""}
    assert away.call("RequestConnection") == 704
    status = away.call("GetStatusInfo")
    assert isinstance(status, dict)
    assert (status["NewConnectionStatus"], status["NewUptime"]) == ("Disconnected", "0")


def test_the_other_services() -> None:
    device = Device()
    common = {"service": f"{URN}:service:WANCommonInterfaceConfig:1", "path": "WANCommonIFC1"}
    assert device.call("GetTotalBytesSent", **common) == {"NewTotalBytesSent": "5"}
    assert device.call("GetTotalBytesReceived", **common) == {"NewTotalBytesReceived": "7"}
    assert device.call("GetTotalPacketsSent", **common) == {"NewTotalPacketsSent": "3"}
    assert device.call("GetTotalPacketsReceived", **common) == {"NewTotalPacketsReceived": "4"}
    assert device.call("GetCommonLinkProperties", **common) == {
        "NewWANAccessType": "Ethernet",
        "NewLayer1UpstreamMaxBitRate": "1000000000",
        "NewLayer1DownstreamMaxBitRate": "1000000000",
        "NewPhysicalLinkStatus": "Up",
    }
    forwarding = {"service": f"{URN}:service:Layer3Forwarding:1", "path": "L3Forwarding1"}
    value = device.call("GetDefaultConnectionService", **forwarding)
    assert isinstance(value, dict)
    assert value["NewDefaultConnectionService"].endswith(":WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1")
    assert device.call("SetDefaultConnectionService", **forwarding, **value) == {}
    assert device.call("SetDefaultConnectionService", **forwarding, NewDefaultConnectionService="x") == 721


@pytest.mark.parametrize(
    ("service", "path", "action"),
    [
        (IP, "WANIPConn1", "NoSuchAction"),
        (IP, "L3Forwarding1", "GetStatusInfo"),
        (f"{URN}:service:WANIPConnection:2", "WANIPConn1", "GetStatusInfo"),
        (f"{URN}:service:WANCommonInterfaceConfig:1", "WANIPConn1", "GetTotalBytesSent"),
    ],
)
def test_actions_that_are_not_there(service: str, path: str, action: str) -> None:
    assert Device().call(action, service=service, path=path) == 401


def test_a_device_of_version_2_answers_callers_of_version_1_in_their_words() -> None:
    device = Device(2)
    call = read_call(f"{IP}#GetStatusInfo", envelope("GetStatusInfo", {}))
    values = device.actions.call("WANIPConn1", call, Caller(A, None, 1, device.now))
    assert isinstance(values, dict)
    assert f'<u:GetStatusInfoResponse xmlns:u="{IP}">'.encode() in write_answer(call, values)


def test_descriptions_go_out_escaped_and_bounded() -> None:
    device = Device()
    long = "&lt;script&gt; &amp; " + "x" * 500
    device.call("AddPortMapping", **add(8080, 80, A, NewPortMappingDescription=long))
    found = device.call("GetSpecificPortMappingEntry", **entry(8080))
    assert isinstance(found, dict)
    assert found["NewPortMappingDescription"] == ("<script> & " + "x" * 500)[:128]


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>&b;</s:Body></s:Envelope>"""
OUTSIDE = b"""<?xml version="1.0"?><!DOCTYPE x SYSTEM "file:///etc/passwd">
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body/></s:Envelope>"""


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (None, b""),
        (None, b"<"),
        (None, b"\xff\xfe\x00"),
        (None, b'<?xml version="1.0" encoding="no-such"?><x/>'),
        (None, BOMB),
        (None, OUTSIDE),
        (None, b"<x/>"),
        (None, envelope("Get Status", {})),
        (None, envelope("GetStatusInfo", {}, "urn:example:service:WANIPConnection:1")),
        (None, envelope("GetStatusInfo", {}, f"{URN}:service:WANIPConnection:01")),
        (f"{IP}#GetStatus", envelope("GetStatusInfo", {})),
        (IP, envelope("GetStatusInfo", {})),
        (None, envelope("A", {}).replace(b"</s:Body>", b"<b/></s:Body>")),
    ],
)
def test_what_is_no_call(header: str | None, body: bytes) -> None:
    with pytest.raises(SoapError):
        read_call(header, body)


@pytest.mark.parametrize(
    "content",
    [
        "<NewA>1</NewA><NewA>2</NewA>",
        "<NewA><b/></NewA>",
        f"<NewA>{'x' * 2000}</NewA>",
        "".join(f"<New{number}/>" for number in range(40)),
    ],
)
def test_arguments_out_of_bounds(content: str) -> None:
    body = envelope("GetStatusInfo", {}).replace(b"</u:GetStatusInfo>", content.encode() + b"</u:GetStatusInfo>")
    with pytest.raises(UpnpError) as caught:
        read_call(None, body)
    assert caught.value.code == 402


@pytest.mark.parametrize("header", [None, f"{IP}#GetStatusInfo", f'"{IP}#GetStatusInfo"', f' "{IP}#GetStatusInfo" '])
def test_headers_that_are_understood(header: str | None) -> None:
    call = read_call(header, envelope("GetStatusInfo", {}))
    assert (call.service, call.version, call.action) == ("WANIPConnection", 1, "GetStatusInfo")


def test_evented_variables() -> None:
    device = Device(2)
    device.call("AddPortMapping", **add(8080, 80, A))
    values = device.actions.evented("WANIPConnection", A)
    assert values == {
        "PossibleConnectionTypes": "IP_Routed",
        "ConnectionStatus": "Connected",
        "ExternalIPAddress": EXTERNAL,
        "PortMappingNumberOfEntries": "1",
        "SystemUpdateID": "0",
    }
    assert device.actions.evented("WANIPConnection", B)["PortMappingNumberOfEntries"] == "0"
    for service in device.tree.services.values():
        assert tuple(device.actions.evented(service.name, A)) == service.evented or service.name == "WANIPConnection"
    assert set(values) == set(device.tree.services["WANIPConn1"].evented)
