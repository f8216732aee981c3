"""Octets and text of any kind at the gateway's side doors and in the client's answers: read, or refused in one way."""

from __future__ import annotations

import contextlib
import random
from ipaddress import IPv4Address
from urllib.parse import urlsplit

from hypothesis import given
from hypothesis import strategies as st

from client_stub.igd_client import IgdError, read_call_answer, read_description, read_search_answer
from client_stub.pcp_client import PcpClient, PcpSettings
from gateway import netlink
from gateway.dhcp import UnreadableLeases, read_dnsmasq, read_kea
from gateway.interfaces import _addresses, _links
from gateway.wan import CommandFailed, read_output
from protocol import pcp

SERVER, SOURCE = IPv4Address("192.168.1.1"), IPv4Address("192.168.1.20")
KEA_HEAD = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state\n"
XML = st.text("<>/&;! xABu:=\"'\n0", max_size=80)


@given(st.binary(max_size=400))
def test_netlink(octets: bytes) -> None:
    for kind in (16, 20):
        listing = [(kind, octets), *((kind, content) for _, _, content in netlink.messages(octets))]
        links = dict(_links(listing))
        list(_addresses(listing, links | dict.fromkeys(range(4), ("eth0", True))))


@given(st.text(), st.text("0123456789abcdef:., \n", max_size=200))
def test_lease_files(anything: str, alike: str) -> None:
    for text in (anything, alike, f"1 aa {alike}"):
        read_dnsmasq(text)
        with contextlib.suppress(UnreadableLeases):
            read_kea([text])
        with contextlib.suppress(UnreadableLeases):
            read_kea([KEA_HEAD + text])


@given(st.binary(max_size=300))
def test_address_commands(output: bytes) -> None:
    with contextlib.suppress(CommandFailed):
        address = read_output(output)
        assert address is None or str(IPv4Address(address)) == address


@given(st.binary(max_size=300), st.text("htp:/1923456780.@[]%?#\\ ", max_size=60))
def test_search_answers(octets: bytes, url: str) -> None:
    read_search_answer(octets, "192.168.1.1")
    found = read_search_answer(f"HTTP/1.1 200 OK\r\nLOCATION: {url}\r\n\r\n".encode(), "192.168.1.1")
    assert found is None or (found.hostname, found.scheme) == ("192.168.1.1", "http")


@given(st.binary(max_size=300), XML)
def test_descriptions_and_soap(octets: bytes, text: str) -> None:
    location = urlsplit("http://192.168.1.1:5000/desc.xml")
    for body in (octets, text.encode(), b"<a>" + text.encode() + b"</a>"):
        with contextlib.suppress(IgdError):
            read_description(body, location)
        with contextlib.suppress(IgdError):
            read_call_answer(200, body, "GetStatusInfo")


@given(st.lists(st.binary(max_size=100), max_size=5), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_pcp_answers(datagrams: list[bytes], result: int, epoch: int) -> None:
    client = PcpClient(SERVER, SOURCE, PcpSettings(internal_port=4500), random.Random(1), bytes(12))
    client.start(now=0.0)
    body = pcp.MapBody(nonce=bytes(12), protocol=17, internal_port=4500, external_port=1, external_address=SOURCE)
    ours = pcp.Response(opcode=1, result=result, lifetime=epoch, epoch=epoch, body=body).encode()
    for number, datagram in enumerate([*datagrams, ours, *datagrams]):
        client.receive(datagram, SERVER, now=float(number))
        client.receive(b"\2\x81" + datagram, SERVER, now=float(number))
        client.receive(ours[:24] + datagram, SERVER, now=float(number))
        client.handle_deadline(now=float(number))
        assert len(client.take_effects()) < 10
        deadline = client.next_deadline()
        assert deadline is None or deadline > number
