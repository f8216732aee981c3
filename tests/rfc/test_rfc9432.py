"""A catalog zone as its consumers and as everyone else see it."""

import dataclasses

import pytest

from protocol.constants import Rcode, Type
from protocol.edns import Opt
from server.peer import Peer
from server.zone.zone import Zone
from tests.support import simloop
from tests.support.builders import ADMIN, ALICE, SERVICE_TEXT, TCP, Seen, add, name, zone_of_text
from tests.support.transfers import TransferCore, axfr, records

CATALOG = "catalog.invalid."
TEXT = """
    catalog.invalid. 0 NS invalid.
    version.catalog.invalid. 0 TXT "2"
    z1.zones.catalog.invalid. 0 PTR members.example.
"""


def core() -> TransferCore:
    def catalog() -> Zone:
        return dataclasses.replace(zone_of_text(TEXT, apex=CATALOG, zone_id=9), is_catalog=True)

    return TransferCore([zone_of_text(SERVICE_TEXT), catalog()], {"allow_keys": ["alice-laptop.members.example."]})


@pytest.mark.rfc("9432", "6")
@pytest.mark.rfc("9432", "4.1")
@pytest.mark.rfc("9432", "7")
def test_it_is_transferred_to_those_who_may_have_it() -> None:
    async def fetch(wire: bytes, peer: Peer = TCP) -> list[Seen]:
        return await core().fetch(wire, peer)

    held = core()
    given = simloop.run(fetch(held.signed(axfr(CATALOG), ALICE)))
    assert [row[0] for row in records(given) if row[1] == Type.PTR] == [name("z1.zones.catalog.invalid.")]
    assert simloop.run(fetch(axfr(CATALOG, opt=Opt(1232))))[0].rcode == Rcode.REFUSED


@pytest.mark.rfc("9432", "6")
@pytest.mark.rfc("9432", "7")
def test_it_is_not_for_the_public() -> None:
    held = core()
    assert held.query(CATALOG, "SOA").rcode == Rcode.NOERROR, "what a secondary asks before it transfers"
    for owner, rtype in (("version", "TXT"), ("z1.zones", "PTR"), ("zones", "ANY"), ("none", "A")):
        assert held.query(f"{owner}.{CATALOG}", rtype).rcode == Rcode.REFUSED
        assert held.query(f"{owner}.{CATALOG}", rtype, by=ALICE).rcode == Rcode.REFUSED
    assert held.query(f"z1.zones.{CATALOG}", "PTR", by=ADMIN).rcode == Rcode.NOERROR


@pytest.mark.rfc("9432", "7")
def test_nobody_updates_it() -> None:
    held = core()
    op = add(f"z2.zones.{CATALOG}", 0, "PTR", "other.example.")
    assert held.update(op, zone=CATALOG, by=ADMIN).rcode == Rcode.REFUSED
