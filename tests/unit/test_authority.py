"""What another process commits while an update waits: it is asked for again before a second try."""

from protocol.constants import Ede, Rcode
from protocol.tsig import Key
from server.keyring import Principal
from server.policy import compile_policy
from server.policy_settings import rule_from_text
from server.store.api import Superseded
from tests.support.builders import ALICE, MEMBERS, ZONE, Core, Seen, add, delete_rrset, zone_of_text

MAC = f"mac.alice.{ZONE}"
OP = add(MAC, 60, "A", "192.0.2.8")


def overtaken(core: Core, *principals: Principal) -> Seen:
    """The reply to an update whose first commit finds that another process was there, and left these keys."""

    async def load_keys() -> None:
        core.keyring.replace(principals)
        core.writer.keys_changed()

    core.writer._on_overtaken = load_keys
    core.store.failures = [Superseded(1)]
    reply = core.update(OP, by=ALICE, lease=3600)
    assert core.store.failures == []
    return reply


def test_a_key_that_still_holds_is_let_in_again() -> None:
    core = Core()
    assert overtaken(core, *MEMBERS).rcode == Rcode.NOERROR
    assert core.zone.rrset(OP.owner.lower(), 1, 0)


def test_a_key_that_was_revoked_meanwhile_changes_nothing() -> None:
    core = Core()
    reply = overtaken(core, MEMBERS[0])
    assert (reply.rcode, reply.errors) == (
        Rcode.REFUSED,
        [(Ede.PROHIBITED, f"key alice-laptop.{ZONE} holds no more")],
    )
    assert core.changes == []


def test_nor_does_one_whose_name_was_given_to_another() -> None:
    core = Core()
    other = Principal(Key(ALICE.name, ALICE.algorithm, b"x" * 32), 1, MEMBERS[1].domain)
    assert overtaken(core, other).rcode == Rcode.REFUSED


def test_nor_one_that_was_narrowed() -> None:
    core = Core()
    domain = MEMBERS[1].domain
    assert domain is not None
    policy = compile_policy(ALICE.name, domain, (rule_from_text('owner = "nas"', domain),))
    reply = overtaken(core, Principal(ALICE, 1, domain, policy))
    assert reply.rcode == Rcode.REFUSED
    assert "narrowed" in reply.errors[0][1]


def test_a_member_that_became_private_meanwhile() -> None:
    """Its names are in a zone of their own now, which the reply names."""
    core = Core()
    alone = zone_of_text(f"alice.{ZONE} 3600 NS ns.{ZONE}", apex=f"alice.{ZONE}", member_id=1, zone_id=3)

    async def split() -> None:
        core.store.hold(alone)
        core.store.before_commit = None

    core.store.before_commit = split
    reply = overtaken(core, *MEMBERS)
    assert reply.rcode == Rcode.NOTZONE
    assert reply.errors == [(Ede.OTHER, f"{MAC} is in zone alice.{ZONE}, send it there")]
    parent_only = core.update(delete_rrset(MAC, "A"))
    assert parent_only.rcode == Rcode.NOTZONE, "not by an administrator either"
    assert core.update(OP, by=ALICE, lease=3600, zone=f"alice.{ZONE}").rcode == Rcode.NOERROR
