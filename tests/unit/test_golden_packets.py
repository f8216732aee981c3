"""What Apple's clients put on the wire (RFC 6281's clients of the field), read by us and carried out by a server."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from protocol import natpmp, pcp
from protocol.constants import Class, Opcode, Rcode, Type
from protocol.edns import Opt, UpdateLease
from protocol.message import Question, decode, encode
from protocol.name import from_text
from protocol.natpmp import AddressRequest, AddressResponse, ForeignVersionRequest, MapRequest, MapResponse
from protocol.tsig import MD5, Key, sign
from server.keyring import Principal
from tests.support import golden
from tests.support.builders import T0, Core
from tests.support.golden import DATA

OURS = Key(from_text("members.example."), MD5, b"0123456789abcdef")
SERVICE = "MyWeb._http._tcp.members.example."


def resigned(packet: str, number: int) -> bytes:
    """The message with the name of its key kept and a MAC that we can check: nobody has Apple's secret."""
    message = decode(golden.load(packet))
    assert message.tsig is not None
    body = message.wire[:10] + (message.header.arcount - 1).to_bytes(2, "big") + message.wire[12 : message.tsig.offset]
    return sign(number.to_bytes(2, "big") + body[2:], OURS, now=T0)[0]


@pytest.mark.rfc("6281", "7.2")
@pytest.mark.rfc("9664", "4.3")
@pytest.mark.rfc("6281", "5.2")
def test_an_apple_client_registers_its_service_and_refreshes_it() -> None:
    core = Core(allow_md5=True)
    core.keyring.replace([Principal(OURS, None, None)])
    reply = core.ask(resigned("update/apple-register", 1))
    assert reply.rcode == Rcode.NOERROR
    assert reply.lease == UpdateLease(7200), "answered in the form of 4 octets"
    assert decode(golden.load("update/dnsextd-register-reply")).header.flags == reply.message.header.flags
    srv = core.query(SERVICE, "SRV").answers
    assert [(owner, ttl) for owner, ttl, _, _ in srv] == [(SERVICE, 4500)]
    assert srv[0][3].endswith(from_text("client1.members.example."))
    assert core.query(SERVICE, "TXT").answers[0][3] == b"\x07path=/x"
    assert core.query("_http._tcp.members.example.", "PTR").answers[0][3] == from_text(SERVICE)
    assert core.query("_services._dns-sd._udp.members.example.", "PTR").answers
    serial = core.zone.serial
    core.clock.now += 5
    assert core.ask(resigned("update/apple-register", 2)).lease == UpdateLease(7200)
    assert core.zone.serial == serial, "the same again is a refresh: no event, no serial"


@pytest.mark.rfc("6281", "5.2")
def test_an_apple_client_takes_its_service_back() -> None:
    """Of its deregistration only the head, the class of its three deletions, lease and signature are on record."""
    core = Core(allow_md5=True)
    core.keyring.replace([Principal(OURS, None, None)])
    assert core.ask(resigned("update/apple-register", 1)).rcode == Rcode.NOERROR
    registered = decode(golden.load("update/apple-register"))
    added = [record for record in registered.authority if record.rclass == Class.IN]
    deletions = [
        (record.name, record.rtype, Class.NONE, 0, record.rdata(registered.wire))
        for record in added
        if from_text(SERVICE) in (record.name, record.rdata(registered.wire))
    ]
    zone = [Question(from_text("members.example."), Type.SOA, Class.IN)]
    opt = Opt(1440, options=(UpdateLease(7200).encode(),))
    wire = encode(0x5617, Opcode.UPDATE << 11, zone, [], deletions, opt=opt)
    assert wire[:12].hex(" ", 2) == "5617 2800 0001 0000 0003 0001"
    assert [record.rclass for record in decode(wire).authority] == [0x00FE] * 3
    assert wire.endswith(bytes.fromhex("00 0029 05a0 00000000 0008 0002 0004 00001c20"))
    reply = core.ask(sign(wire, OURS, now=T0)[0])
    assert (reply.rcode, reply.lease) == (Rcode.NOERROR, UpdateLease(7200))
    for owner, rtype in ((SERVICE, "SRV"), (SERVICE, "TXT"), ("_http._tcp.members.example.", "PTR")):
        assert core.query(owner, rtype).answers == []
    assert core.query("_services._dns-sd._udp.members.example.", "PTR").answers, "others may be of that kind"


@pytest.mark.rfc("6886", "3")
def test_nat_pmp_of_an_apple_client_and_its_gateway() -> None:
    def load(name: str) -> bytes:
        return golden.load(f"natpmp/{name}")

    assert natpmp.decode_request(load("address-request")) == AddressRequest()
    asked = natpmp.decode_request(load("map-tcp-request"))
    assert asked == MapRequest(opcode=natpmp.Opcode.MAP_TCP, internal_port=8080, suggested_port=9090, lifetime=600)
    gone = natpmp.decode_request(load("delete-request"))
    assert gone == MapRequest(opcode=natpmp.Opcode.MAP_TCP, internal_port=8080, suggested_port=0, lifetime=0)
    assert asked.encode() == load("map-tcp-request") and gone.encode() == load("delete-request")
    address = IPv4Address("198.51.100.7")
    for name, epoch in (("address-response", 0x138A), ("announcement", 0)):
        expected = AddressResponse(result=0, epoch=epoch, address=address)
        assert natpmp.decode_response(load(name)) == expected and expected.encode() == load(name)
    mapped = natpmp.decode_response(load("map-tcp-response"))
    assert isinstance(mapped, MapResponse)
    assert (mapped.internal_port, mapped.external_port, mapped.lifetime, mapped.epoch) == (8080, 9090, 600, 0x138A)
    assert mapped.encode() == load("map-tcp-response")
    ended = replace(mapped, external_port=0, lifetime=0)
    head, tail = bytes.fromhex("0082 0000"), bytes.fromhex("1f90 0000 00000000")  # all of it on record but the epoch
    assert ended.encode() == head + mapped.epoch.to_bytes(4, "big") + tail
    assert natpmp.decode_response(ended.encode()) == ended
    refused = natpmp.decode_response(load("unsupported-version"))
    assert refused == natpmp.ErrorResponse(opcode=0x81, result=1, epoch=0x138A)
    assert refused.encode() == load("unsupported-version")


@pytest.mark.rfc("6887", "11.1")
def test_pcp_of_an_apple_client() -> None:
    wire = golden.load("pcp/apple-map-request")
    assert len(wire) == 60
    assert natpmp.decode_request(wire) == ForeignVersionRequest(2, 1)
    asked = pcp.decode_request(wire)
    assert isinstance(asked, pcp.Request) and asked.body is not None
    assert (asked.lifetime, str(asked.client)) == (600, "10.77.0.2")
    assert (asked.body.protocol, asked.body.internal_port, asked.body.external_port) == (6, 8080, 9090)
    assert asked.fault is None


def test_every_packet_says_where_it_comes_from() -> None:
    folders = sorted({path.relative_to(DATA).parts[0] for path in DATA.rglob("*.hex")})
    packets = [packet for folder in folders for packet in golden.below(folder)]
    assert len(packets) > 30
    assert all(len(packet.provenance) > 20 for packet in packets)
