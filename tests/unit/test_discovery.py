"""The service's own records, checked against dnspython as an independent reader."""

import dns.name
import dns.rdata
import pytest

from protocol.constants import Type
from protocol.name import fold, from_text, to_text
from server.discovery import (
    NameServer,
    default_host,
    discovery_records,
    domain_records,
    is_discovery_name,
    service_records,
    soa_rdata,
)
from server.zone.model import RR

ZONE = from_text("members.example.")
ALICE = from_text("alice.members.example.")
SERVER = NameServer(default_host(ZONE), ("192.0.2.1", "2001:db8::1"), 53, 853, ttl=600)
PLAIN = NameServer(default_host(ZONE), ("192.0.2.1",), 5300, None)


def _text(record: RR) -> str:
    rdata = dns.rdata.from_wire(1, record.rtype, record.rdata, 0, len(record.rdata))
    return f"{to_text(record.owner)} {record.ttl} {rdata}"


@pytest.mark.rfc("8764", "4")
@pytest.mark.rfc("2782", "-")
@pytest.mark.rfc("6281", "5.2")
@pytest.mark.rfc("6281", "5.3")
def test_every_family_points_to_its_port() -> None:
    found = {_text(record) for record in discovery_records(ALICE, SERVER)}
    wanted = {"_dns-push-tls._tcp.alice.members.example. 600 0 0 0 ."}
    for service in ("_dns-update", "_dns-llq", "_dns-query"):
        for labels, port in (("._udp", 53), ("._tcp", 53), ("-tls._tcp", 853), ("-tls._udp", 853)):
            wanted.add(f"{service}{labels}.alice.members.example. 600 0 0 {port} ns.members.example.")
    assert found == wanted


@pytest.mark.rfc("2782", "-")
def test_without_tls_no_tls_name_points_anywhere() -> None:
    targets = {
        to_text(record.owner): record.rdata[6:] for record in discovery_records(ZONE, PLAIN) if b"-tls" in record.owner
    }
    assert targets == {"_dns-push-tls._tcp.members.example.": b"\0"}


@pytest.mark.parametrize("domain", [ZONE, ALICE])
def test_every_discovery_owner_is_known_as_one(domain: bytes) -> None:
    for record in discovery_records(domain, SERVER):
        assert is_discovery_name(fold(record.owner), domain)


@pytest.mark.parametrize(
    "name",
    [
        "members.example.",
        "_tcp.members.example.",
        "_http._tcp.members.example.",
        "_dns-update-tls._tcp.example.",
        "_dns-update-tls._tcp.alice.members.example.",
        "x._dns-update-tls._tcp.members.example.",
        "_dns-update-tls._sctp.members.example.",
        "_dns-update-tls\\._tcp.members.example.",
        "_dns-push._tcp.members.example.",
    ],
)
def test_other_names_are_no_discovery_names(name: str) -> None:
    assert not is_discovery_name(from_text(name), ZONE)


def test_the_zone_has_its_server_with_addresses() -> None:
    found = {_text(record) for record in service_records(ZONE, SERVER) if record.rtype != Type.SRV}
    assert found == {
        "members.example. 600 ns.members.example.",
        "ns.members.example. 600 192.0.2.1",
        "ns.members.example. 600 2001:db8::1",
    }


@pytest.mark.parametrize("host", ["ns.hosting.example.", "ns.notmembers.example."])
def test_addresses_of_a_host_elsewhere_are_not_ours_to_give(host: str) -> None:
    server = NameServer(from_text(host), ("192.0.2.1",), 53, None)
    found = {_text(record) for record in service_records(ZONE, server) if record.rtype != Type.SRV}
    assert found == {f"members.example. 3600 {host}"}


def test_a_private_domain_has_an_ns_of_its_own_and_no_addresses() -> None:
    open_records, private_records = (domain_records(ALICE, SERVER, is_zone=is_zone) for is_zone in (False, True))
    assert private_records == (RR(ALICE, Type.NS, 600, SERVER.host), *open_records)
    assert {record.rtype for record in open_records} == {Type.SRV}


def test_soa_names_the_server_and_a_mailbox() -> None:
    rdata = soa_rdata(ZONE, SERVER)
    text = str(dns.rdata.from_wire(1, Type.SOA, rdata, 0, len(rdata)))
    assert text == "ns.members.example. hostmaster.members.example. 0 3600 600 1209600 60"
