"""Bounds on what a key's updates lead to, through the pipeline and the writer."""

from collections.abc import Sequence

import pytest

from protocol.constants import Ede, Rcode
from protocol.name import fold
from server.keyring import Principal
from server.policy import Policy, Quota, compile_policy
from server.policy_settings import rule_from_text
from server.zone.census import Census
from tests.support.builders import (
    ALICE,
    CAROL,
    MEMBERS,
    UDP,
    ZONE,
    Core,
    Item,
    Seen,
    add,
    delete_name,
    delete_rr,
    name,
    seen,
    update_message,
)

DOMAIN = f"alice.{ZONE}"


def core_with(rule: str, signer: int = 1) -> Core:
    """A core in which one member's key has this rule."""
    core = Core()
    plain = MEMBERS[signer]
    assert plain.domain is not None
    own = (rule_from_text(rule, plain.domain),)
    policy = compile_policy(plain.key.name, plain.domain, own)
    narrowed = Principal(plain.key, plain.member_id, plain.domain, policy)
    core.keyring.replace([*(item for item in MEMBERS if item is not plain), narrowed])
    return core


def a(host: str, last: int = 1) -> Item:
    return add(f"{host}.{DOMAIN}", 60, "A", f"192.0.2.{last}")


def outcome(reply: Seen) -> tuple[Rcode, str]:
    """RCODE and the sentence; a refusal says that it is one of policy."""
    if reply.rcode == Rcode.NOERROR:
        return Rcode.NOERROR, ""
    ((code, text),) = reply.errors
    assert code == Ede.PROHIBITED
    return reply.rcode, text


def test_records_per_name() -> None:
    core = core_with("records_per_name = 2")

    def send(*ops: Item) -> tuple[Rcode, str]:
        return outcome(core.update(*ops, by=ALICE, lease=3600))

    assert send(a("mac", 9), a("mac", 2))[0] == Rcode.REFUSED, "with the one that was there"
    assert send(a("box", 1), a("box", 2))[0] == Rcode.NOERROR
    refused = send(a("box", 3))
    said = f"key alice-laptop.{ZONE} may keep 2 records a name (rule 1 of the key): box.{DOMAIN} would have 3"
    assert refused == (Rcode.REFUSED, said)
    assert send(add(f"box.{DOMAIN}", 60, "TXT", '"x"')) == refused
    assert send(delete_rr(f"box.{DOMAIN}", "A", "192.0.2.1"), a("box", 3))[0] == Rcode.NOERROR
    assert send(a("box", 3))[0] == Rcode.NOERROR, "a refresh adds nothing"


def test_a_name_with_too_much_may_shrink() -> None:
    core = core_with("records_per_name = 1")
    for last in (1, 2, 3):
        core.update(a("big", last))
    assert core.update(delete_rr(f"big.{DOMAIN}", "A", "192.0.2.1"), by=ALICE).rcode == Rcode.NOERROR
    assert core.update(a("big", 4), by=ALICE, lease=3600).rcode == Rcode.REFUSED


def test_names_per_member_are_counted_as_they_come_and_go() -> None:
    core = core_with("names_per_member = 3")

    def send(*ops: Item) -> Rcode:
        return core.update(*ops, by=ALICE, lease=3600).rcode

    assert send(a("one"), a("two")) == Rcode.NOERROR, "the discovery name that is there does not count"
    refused = core.update(a("three"), by=ALICE, lease=3600)
    said = f"key alice-laptop.{ZONE} may keep 3 names (rule 1 of the key): {DOMAIN} would have 4"
    assert outcome(refused) == (Rcode.REFUSED, said)
    assert send(a("one", 7)) == Rcode.NOERROR, "no new name"
    assert send(delete_name(f"two.{DOMAIN}"), a("three")) == Rcode.NOERROR
    assert send(a("four")) == Rcode.REFUSED
    core.clock.now += 7201
    core.write()
    assert send(a("four"), a("five")) == Rcode.NOERROR, "names that lapsed are counted no more"
    assert core.update(add(f"x.bob.{ZONE}", 60, "A", "192.0.2.1")).rcode == Rcode.NOERROR
    assert send(delete_name(f"mac.{DOMAIN}"), a("six")) == Rcode.NOERROR


def test_the_services_own_limits_hold_for_members_and_not_for_administrators() -> None:
    core = Core()
    policy = Policy(quota=Quota(2, 0, 0))
    core.keyring.replace(
        Principal(item.key, item.member_id, item.domain, compile_policy(item.key.name, item.domain, (), policy))
        for item in MEMBERS
    )
    ops = [a("box", last) for last in (1, 2, 3)]
    refused = core.update(*ops, by=ALICE, lease=3600)
    assert outcome(refused) == (
        Rcode.REFUSED,
        f"key alice-laptop.{ZONE} may keep 2 records a name (member default): box.{DOMAIN} would have 3",
    )
    assert core.update(*ops).rcode == Rcode.NOERROR


def test_names_are_counted_over_the_updates_of_one_batch() -> None:
    core = core_with("names_per_member = 3")
    sent: list[Seen] = []
    core.update(a("seen"), by=ALICE, lease=3600)
    wires = [_signed(core, a(host)) for host in ("b1", "b2", "b3")]
    for wire in wires:
        core.dispatcher.handle(wire, UDP, lambda reply: sent.append(seen(reply)))
    assert sent == []
    core.write()
    assert [reply.rcode for reply in sent] == [Rcode.NOERROR, Rcode.REFUSED, Rcode.REFUSED]


def _signed(core: Core, *ops: Item) -> bytes:
    return core.signed(update_message(ops, lease=3600), ALICE)


def test_a_private_member_is_counted_in_its_zone() -> None:
    core = core_with("names_per_member = 2", signer=3)
    zone = f"carol.{ZONE}"

    def send(*hosts: str) -> Rcode:
        ops: Sequence[Item] = [add(f"{host}.{zone}", 60, "A", "192.0.2.1") for host in hosts]
        return core.update(*ops, by=CAROL, lease=3600, zone=zone).rcode

    assert send("new") == Rcode.NOERROR
    assert send("newer") == Rcode.REFUSED
    assert core.update(add(zone, 60, "A", "192.0.2.1"), by=CAROL, lease=3600, zone=zone).rcode == Rcode.NOERROR


def test_updates_per_minute() -> None:
    core = core_with("updates_per_minute = 6")

    def send() -> tuple[Rcode, str]:
        core.clock.now += 0.001
        return outcome(core.update(a("mac"), by=ALICE, lease=3600))

    assert [send()[0] for _ in range(6)] == [Rcode.NOERROR] * 6
    said = f"key alice-laptop.{ZONE} may make 6 updates a minute (rule 1 of the key): try again in 10 s"
    assert send() == (Rcode.REFUSED, said)
    core.clock.now += 10
    assert send()[0] == Rcode.NOERROR
    assert send()[0] == Rcode.REFUSED
    core.clock.now += 3600
    assert [send()[0] for _ in range(7)] == [Rcode.NOERROR] * 6 + [Rcode.REFUSED], "no more than a minute's worth"


def test_a_repeated_update_is_counted_once() -> None:
    core = core_with("updates_per_minute = 1")
    wire = _signed(core, a("mac"))
    assert [core.ask(wire).rcode for _ in range(3)] == [Rcode.NOERROR] * 3


@pytest.mark.parametrize(
    ("owner", "domain"),
    [
        (ZONE, None),
        (f"alice.{ZONE}", f"alice.{ZONE}"),
        (f"a.b.alice.{ZONE}", f"alice.{ZONE}"),
        (f"_dns-update._udp.alice.{ZONE}", None),
        (f"_x._udp.alice.{ZONE}", f"alice.{ZONE}"),
    ],
)
def test_where_a_name_counts(owner: str, domain: str | None) -> None:
    census = Census(fold(name(ZONE)), (), is_private=False)
    assert census.domain_of(fold(name(owner))) == (None if domain is None else fold(name(domain)))
