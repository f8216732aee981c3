"""Names from DHCP (RFC 4703): two hosts that want one name, by the requests that the updater of each sends."""

import pytest

from protocol.constants import Rcode
from tests.support.builders import (
    Core,
    Item,
    add,
    delete_name,
    delete_rr,
    delete_rrset,
    name_in_use,
    name_not_in_use,
    rrset_absent,
    rrset_equals,
)

BOX = "box.members.example."
MINE, OTHER = "000101" + "ab" * 32, "000101" + "cd" * 32


def dhcid(identity: str) -> str:
    return rf"\# 35 {identity}"


def claim(core: Core, identity: str, address: str) -> Rcode:
    """§5.3.1: the name is nobody's yet."""
    ops = (add(BOX, 60, "A", address), add(BOX, 60, "DHCID", dhcid(identity)))
    return core.update(*ops, prerequisites=[name_not_in_use(BOX)]).rcode


def replace(core: Core, identity: str, address: str) -> Rcode:
    """§5.3.2: it is this client's."""
    ops = (delete_rrset(BOX, "A"), add(BOX, 60, "A", address))
    return core.update(*ops, prerequisites=[name_in_use(BOX), is_of(identity)]).rcode


def is_of(identity: str) -> Item:
    return rrset_equals(BOX, "DHCID", dhcid(identity))


def count(core: Core, rtype: str) -> int:
    return len(core.query(BOX, rtype).answers)


@pytest.mark.rfc("4703", "5.3.1")
@pytest.mark.rfc("4703", "5.3.2")
@pytest.mark.rfc("4703", "4")
def test_a_name_is_taken_once_and_changed_by_who_has_it() -> None:
    core = Core()
    assert replace(core, MINE, "192.0.2.31") == Rcode.NXDOMAIN, "not there: back to §5.3.1"
    assert claim(core, MINE, "192.0.2.31") == Rcode.NOERROR
    assert claim(core, OTHER, "192.0.2.99") == Rcode.YXDOMAIN
    assert replace(core, OTHER, "192.0.2.99") == Rcode.NXRRSET
    assert replace(core, MINE, "192.0.2.32") == Rcode.NOERROR
    assert (count(core, "A"), count(core, "DHCID")) == (1, 1)
    core.update(add("mac.members.example.", 60, "A", "192.0.2.1"))
    alone = core.update(prerequisites=[rrset_equals("mac.members.example.", "DHCID", dhcid(MINE))])
    assert alone.rcode == Rcode.NXRRSET, "a name that has no DHCID is nobody's to take"


@pytest.mark.rfc("4703", "5.5")
def test_a_name_is_given_back_by_who_has_it_when_no_address_is_left() -> None:
    core = Core()
    claim(core, MINE, "192.0.2.31")
    core.update(add(BOX, 60, "AAAA", "2001:db8::31"))
    gone = [rrset_absent(BOX, "A"), rrset_absent(BOX, "AAAA")]
    assert core.update(delete_rr(BOX, "A", "192.0.2.31"), prerequisites=[is_of(OTHER)]).rcode == Rcode.NXRRSET
    assert core.update(delete_rr(BOX, "A", "192.0.2.31"), prerequisites=[is_of(MINE)]).rcode == Rcode.NOERROR
    assert core.update(delete_name(BOX), prerequisites=[is_of(MINE), *gone]).rcode == Rcode.YXRRSET
    core.update(delete_rr(BOX, "AAAA", "2001:db8::31"), prerequisites=[is_of(MINE)])
    assert core.update(delete_name(BOX), prerequisites=[is_of(MINE), *gone]).rcode == Rcode.NOERROR
    assert core.query(BOX, "DHCID").rcode == Rcode.NXDOMAIN
