"""SSDP and descriptions: what is said to whom."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from gateway.igd.description import ROOT_PATH, DeviceTree
from gateway.igd.services import URN, Service
from gateway.igd.ssdp import Discovery, read_search

UUID = "11111111-2222-4333-8444-555555555555"
LOCATION = "192.168.1.1:2869"
NAMESPACE = {"d": f"{URN}:device-1-0", "s": f"{URN}:service-1-0"}


def search(target: str = "upnp:rootdevice", wait: object = 2, **changes: str) -> bytes:
    headers = {"HOST": "239.255.255.250:1900", "MAN": '"ssdp:discover"', "MX": str(wait), "ST": target} | changes
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"M-SEARCH * HTTP/1.1\r\n{lines}\r\n".encode()


def found(target: str, version: int = 1) -> list[dict[str, str]]:
    discovery = Discovery(DeviceTree(UUID, version), boot_id=7)
    read = read_search(search(target), is_multicast=True)
    assert read is not None
    answers = [answer.decode().split("\r\n") for answer in discovery.answers(read, LOCATION)]
    assert all(lines[0] == "HTTP/1.1 200 OK" and lines[-2:] == ["", ""] for lines in answers)
    return [
        {name.upper(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        for lines in answers
    ]


def device(name: str, version: int = 1) -> str:
    return f"{URN}:device:{name}:{version}"


def service(name: str, version: int = 1) -> str:
    return f"{URN}:service:{name}:{version}"


@pytest.mark.parametrize(
    ("target", "first", "second"),
    [
        ("ssdp:all", 10, 10),
        ("upnp:rootdevice", 1, 1),
        (f"uuid:{UUID}", 1, 1),
        (device("InternetGatewayDevice"), 1, 1),
        (device("InternetGatewayDevice", 2), 0, 1),
        (device("InternetGatewayDevice", 3), 0, 0),
        (device("WANDevice"), 1, 1),
        (device("WANConnectionDevice"), 1, 1),
        (service("WANIPConnection"), 1, 1),
        (service("WANIPConnection", 2), 0, 1),
        (service("WANPPPConnection"), 1, 1),
        (service("WANPPPConnection", 2), 0, 0),
        (service("WANCommonInterfaceConfig"), 1, 1),
        (service("Layer3Forwarding"), 1, 1),
        (service("Layer3Forwarding", 2), 0, 0),
        (device("MediaServer"), 0, 0),
        ("uuid:00000000-0000-0000-0000-000000000000", 0, 0),
        ("upnp:all", 0, 0),
        (service("WANIPConnection").replace("urn:schemas-upnp-org", "urn:example-org"), 0, 0),
        (service("WANIPConnection") + "0000", 0, 0),
    ],
)
def test_search_targets(target: str, first: int, second: int) -> None:
    for version, count in ((1, first), (2, second)):
        answers = found(target, version)
        assert len(answers) == count
        for answer in answers:
            if target != "ssdp:all":
                assert answer["ST"] == target
            assert answer["USN"] == answer["ST"] or answer["USN"].endswith("::" + answer["ST"])
            assert answer["LOCATION"] == f"http://{LOCATION}{ROOT_PATH}"
            assert answer["CACHE-CONTROL"] == "max-age=1800"
            assert answer["EXT"] == ""
            assert answer["BOOTID.UPNP.ORG"] == "7"


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\0" * 40,
        search().replace(b"M-SEARCH", b"NOTIFY"),
        search().replace(b"HTTP/1.1", b"HTTP/1.0"),
        search(MAN="ssdp:discover"),
        search(MAN='"ssdp:other"'),
        search(ST=""),
        search(wait=""),
        search(wait="-1"),
        search(wait="1e3"),
        search(wait="99999"),
        search().replace(b"MX", b"MAX"),
        search()[:-2],
        search(X="y" * 1100),
        search().replace(b"MX: 2", b"MX 2"),
        search().replace(b"MX: 2", b"MX: 2\r\nmx: 3"),
        search(**{f"X{number}": "y" for number in range(40)}),
    ],
)
def test_what_is_no_search(datagram: bytes) -> None:
    assert read_search(datagram, is_multicast=True) is None


def test_a_search_as_libtorrent_writes_it() -> None:
    lines = ("HOST: 239.255.255.250:1900", "ST:upnp:rootdevice", 'MAN:"ssdp:discover"', "MX:3", "", "", "")
    datagram = "\r\n".join(("M-SEARCH * HTTP/1.1", *lines)).encode()
    read = read_search(datagram, is_multicast=True)
    assert read is not None
    assert (read.target, read.wait_seconds) == ("upnp:rootdevice", 3)


def test_how_long_an_answer_may_wait() -> None:
    for wait, expected in ((0, 0), (1, 1), (5, 5), (120, 5)):
        read = read_search(search(wait=wait), is_multicast=True)
        assert read is not None
        assert read.wait_seconds == expected
    alone = read_search(search().replace(b"MX: 2\r\n", b""), is_multicast=False)
    assert alone is not None
    assert alone.wait_seconds == 0
    lower = read_search(search().lower().replace(b"m-search", b"M-SEARCH").replace(b"http", b"HTTP"), is_multicast=True)
    assert lower is not None


@pytest.mark.parametrize("version", [1, 2])
def test_announcements(version: int) -> None:
    discovery = Discovery(DeviceTree(UUID, version), boot_id=7)
    alive = [datagram.decode() for datagram in discovery.alive(LOCATION)]
    byebye = [datagram.decode() for datagram in discovery.byebye()]
    assert len(alive) == len(byebye) == 10
    assert len(set(alive)) == 10
    for told in alive:
        assert told.startswith("NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nCACHE-CONTROL: max-age=1800\r\n")
        assert f"LOCATION: http://{LOCATION}{ROOT_PATH}\r\n" in told
        assert "NTS: ssdp:alive\r\n" in told
    for told in byebye:
        assert "NTS: ssdp:byebye\r\n" in told
        assert "LOCATION" not in told
    assert sum(f"NT: {device('InternetGatewayDevice', version)}\r\n" in told for told in alive) == 1
    assert sum("NT: upnp:rootdevice\r\n" in told for told in alive) == 1


def test_the_configuration_number_changes_with_the_description() -> None:
    assert DeviceTree(UUID, 1).config_id != DeviceTree(UUID, 2).config_id
    assert DeviceTree(UUID, 1).config_id < 1 << 24


@pytest.mark.parametrize("version", [1, 2])
def test_the_root_description(version: int) -> None:
    tree = DeviceTree(UUID, version)
    root = ET.fromstring(tree.documents[ROOT_PATH])
    types = [element.text for element in root.iterfind(".//d:deviceType", NAMESPACE)]
    names = ("InternetGatewayDevice", "WANDevice", "WANConnectionDevice")
    assert types == [device(name, version) for name in names]
    udns = {element.text for element in root.iterfind(".//d:UDN", NAMESPACE)}
    assert len(udns) == 3
    assert f"uuid:{UUID}" in udns
    paths = [element.text for element in root.iterfind(".//d:SCPDURL", NAMESPACE)]
    assert set(paths) | {ROOT_PATH} == set(tree.documents)
    assert [element.text for element in root.iterfind(".//d:serviceType", NAMESPACE)] == [
        service("Layer3Forwarding"),
        service("WANCommonInterfaceConfig"),
        service("WANIPConnection", version),
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_service_descriptions_name_variables_that_are_there(version: int) -> None:
    tree = DeviceTree(UUID, version)
    for each in tree.services.values():
        assert isinstance(each, Service)
        root = ET.fromstring(tree.documents[f"/scpd/{each.path}.xml"])
        variables = [element.text for element in root.iterfind(".//s:stateVariable/s:name", NAMESPACE)]
        used = {element.text for element in root.iterfind(".//s:relatedStateVariable", NAMESPACE)}
        assert len(variables) == len(set(variables))
        assert used <= set(variables)
        actions = [element.text for element in root.iterfind(".//s:action/s:name", NAMESPACE)]
        assert actions == [action.name for action in each.actions]


def test_the_second_version_adds_its_actions() -> None:
    first = DeviceTree(UUID, 1).services["WANIPConn1"].action_names
    second = DeviceTree(UUID, 2).services["WANIPConn1"].action_names
    assert second - first == {"AddAnyPortMapping", "DeletePortMappingRange", "GetListOfPortMappings"}
    assert first < second
