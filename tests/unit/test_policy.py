"""Rules as data: patterns, the order in which they decide, and what narrows a key."""

import re
from ipaddress import IPv4Address, IPv6Address

import pytest

from client_stub.identity import autotunnel_label, host_names
from client_stub.updates import Registration, deregistration_message, registration_message
from protocol.constants import Ede, Rcode, type_from_text
from protocol.message import decode
from protocol.name import fold
from server.authz import may_read, may_transfer, may_update
from server.config import TransferRules
from server.keyring import Principal
from server.keys import host_rules
from server.policy import NO_POLICY, Action, Policy, Quota, compile_policy, pattern_matches, pattern_of
from server.policy_settings import PolicySettings, rule_from_text, rule_settings
from server.request import Refusal
from server.zone.update import read_update
from server.zone.zone import Zone
from tests.support.builders import (
    PRIVATE_TEXT,
    SERVICE_TEXT,
    ZONE,
    Item,
    add,
    delete_name,
    delete_rr,
    delete_rrset,
    key,
    name,
    name_in_use,
    rdata,
    update_message,
    zone_of_text,
)

OPEN = zone_of_text(SERVICE_TEXT)
PRIVATE = zone_of_text(PRIVATE_TEXT, apex="carol.members.example.", member_id=3, zone_id=2)
ALICE = f"alice.{ZONE}"
CAROL = f"carol.{ZONE}"
EUI = bytes.fromhex("02005efffe100001")
ACME = 'match = "pattern", owner = "_acme-challenge.**", types = ["TXT"], lease = "optional"'


def who(
    key_name: str, domain: str | None = ALICE, *rules: str, policy: Policy = NO_POLICY, member_id: int | None = 1
) -> Principal:
    """A principal with rules of its own, written as on the command line."""
    origin = fold(name(domain or ZONE))
    own = tuple(rule_from_text(text, origin) for text in rules)
    folded = None if domain is None else origin
    signer = key(key_name)
    compiled = compile_policy(signer.name, folded, own, policy)
    return Principal(signer, None if domain is None else member_id, folded, compiled)


def site(*rules: dict[str, object], **defaults: int) -> Policy:
    return PolicySettings.model_validate({"rules": list(rules), **defaults}).policy(fold(name(ZONE)))


def refusal(
    principal: Principal | None,
    *ops: Item,
    prerequisites: tuple[Item, ...] = (),
    zone: Zone = OPEN,
    leased: bool = True,
) -> str:
    """Empty, or the sentence of the refusal."""
    message = decode(update_message(ops, prerequisites))
    try:
        may_update(principal, zone, read_update(message, zone.apex), leased=leased)
    except Refusal as refused:
        assert (refused.rcode, refused.ede) == (Rcode.REFUSED, Ede.PROHIBITED)
        return refused.reason
    return ""


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a.example.", ["a.example.", "A.Example."], ["b.a.example.", "example."]),
        ("*.example.", ["a.example.", "*.example."], ["example.", "b.a.example."]),
        ("cam-*.example.", ["cam-1.example.", "cam-.example."], ["cam.example.", "xcam-1.example."]),
        ("a*b.example.", ["ab.example.", "axb.example."], ["a.example.", "b.example."]),
        ("ab*ba.example.", ["abba.example."], ["aba.example."]),
        ("**.example.", ["example.", "a.example.", "b.a.example."], ["org.", "xexample."]),
        (
            "_acme-challenge.**.alice.example.",
            ["_acme-challenge.alice.example.", "_acme-challenge.www.a.alice.example."],
            ["alice.example.", "www._acme-challenge.alice.example.", "_acme-challenge.bob.example."],
        ),
        ("x.**.*.example.", ["x.a.example.", "x.b.a.example."], ["x.example.", "a.example."]),
        ("**", [".", "a.", "b.a."], []),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = pattern_of(pattern)
    assert [text for text in (*matching, *others) if pattern_matches(compiled, fold(name(text)))] == matching


@pytest.mark.parametrize("pattern", ["a.**.b.**.example.", "*a*.example.", "a..b.", "é.example."])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|name"):
        pattern_of(pattern)


MAC = add(f"mac.{ALICE}", 60, "A", "192.0.2.1")
CHALLENGE = add(f"_acme-challenge.www.{ALICE}", 60, "TXT", '"token"')


@pytest.mark.rfc("3007", "3.1")
def test_a_key_narrowed_to_a_challenge_changes_nothing_else() -> None:
    certbot = who(f"certbot.{ALICE}", ALICE, ACME)
    assert refusal(certbot, CHALLENGE, leased=False) == ""
    assert refusal(certbot, delete_rr(f"_acme-challenge.{ALICE}", "TXT", '"token"')) == ""
    assert refusal(certbot, delete_rrset(f"_acme-challenge.{ALICE}", "TXT")) == ""
    narrowed = "it is narrowed, and no rule of it allows that"
    said = f"key certbot.{ALICE} may not update mac.{ALICE} A: {narrowed}"
    assert refusal(certbot, MAC) == said
    assert refusal(certbot, CHALLENGE, MAC) == said
    for op in (
        delete_name(f"_acme-challenge.{ALICE}"),
        add(f"_acme-challenge.{ALICE}", 60, "A", "192.0.2.1"),
        add(f"_acme-challenge.bob.{ZONE}", 60, "TXT", '"token"'),
        add(f"x._acme-challenge.{ALICE}", 60, "TXT", '"token"'),
        add(f"_dns-update._udp.{ALICE}", 60, "TXT", '"x"'),
    ):
        assert refusal(certbot, op) != ""


def test_prerequisites_ask_only_where_the_key_may_update() -> None:
    certbot = who(f"certbot.{ALICE}", ALICE, ACME)
    assert refusal(certbot, CHALLENGE, prerequisites=(name_in_use(f"_acme-challenge.www.{ALICE}"),), leased=False) == ""
    for other in (f"mac.{ALICE}", ALICE, f"bob.{ZONE}"):
        assert "may not ask about" in refusal(certbot, prerequisites=(name_in_use(other),))


def test_own_rules_of_a_member_reach_no_further_than_its_domain() -> None:
    for rule in ('match = "zone"', 'match = "pattern", owner = "**."', f'owner = "{ZONE}"', 'owner = "."'):
        wide = who(f"wide.{ALICE}", ALICE, rule)
        assert refusal(wide, MAC) == ""
        assert refusal(wide, add(f"mac.bob.{ZONE}", 60, "A", "192.0.2.1")) != ""
        assert refusal(wide, delete_name(ZONE)) != ""


@pytest.mark.rfc("3007", "3.1")
def test_the_first_rule_that_matches_decides() -> None:
    phone = who(f"phone.{ALICE}", ALICE, 'effect = "deny", owner = "nas"', 'effect = "deny", types = ["TXT"]', "")
    assert refusal(phone, MAC) == ""
    said = f"key phone.{ALICE} may not update x.nas.{ALICE} A: rule 1 of the key denies it"
    assert refusal(phone, add(f"x.nas.{ALICE}", 60, "A", "192.0.2.1")) == said
    assert "rule 2 of the key denies it" in refusal(phone, add(f"mac.{ALICE}", 60, "TXT", '"x"'))
    assert "may not ask about" in refusal(phone, prerequisites=(name_in_use(f"nas.{ALICE}"),))
    assert refusal(phone, prerequisites=(name_in_use(f"mac.{ALICE}"),)) == ""
    assert "narrowed" in refusal(phone, add(f"mac.{ALICE}", 60, "NS", "ns.example.")), "user types, as by default"


def test_a_host_key_keeps_its_host_and_what_points_to_it() -> None:
    mac = who(f"mac.{ALICE}", ALICE, 'owner = "mac"', 'types = ["PTR", "SRV"], target = "mac"', 'actions = ["llq"]')
    browse = f"_autotunnel._udp.{ALICE}"
    for op in (
        MAC,
        add(f"_autotunnel._udp.mac.{ALICE}", 60, "SRV", "0 0 4500 anywhere.example."),
        add(browse, 60, "PTR", f"_autotunnel._udp.MAC.{ALICE}"),
        delete_rr(browse, "PTR", f"mac.{ALICE}"),
        add(f"mac._ssh._tcp.{ALICE}", 60, "SRV", f"0 0 22 mac.{ALICE}"),
    ):
        assert refusal(mac, op) == ""
    for op in (
        add(f"nas.{ALICE}", 60, "A", "192.0.2.1"),
        add(browse, 60, "PTR", f"nas.{ALICE}"),
        delete_rr(browse, "PTR", f"nas.{ALICE}"),
        delete_rrset(browse, "PTR"),
        delete_name(browse),
        add(browse, 60, "TXT", f'"mac.{ALICE}"'),
        add(f"x._ssh._tcp.{ALICE}", 60, "SRV", f"0 0 22 nas.{ALICE}"),
    ):
        assert "narrowed" in refusal(mac, op)


@pytest.mark.rfc("3007", "3.1")
def test_match_self_is_the_keys_own_name() -> None:
    phone = who(f"phone.{ALICE}", ALICE, 'match = "self"')
    assert refusal(phone, add(f"PHONE.{ALICE}", 60, "A", "192.0.2.1")) == ""
    assert refusal(phone, add(f"x.phone.{ALICE}", 60, "A", "192.0.2.1")) != ""


def test_a_narrowed_administrator() -> None:
    zone_wide = who(f"certbot.{ZONE}", None, ACME)
    assert refusal(zone_wide, add(f"_acme-challenge.bob.{ZONE}", 60, "TXT", '"x"'), leased=False) == ""
    assert "narrowed" in refusal(zone_wide, MAC)
    here = who(f"dhcp.{ZONE}", None, f'match = "zone", owner = "{ZONE}"')
    assert refusal(here, MAC, leased=False) == ""
    there = add(f"x.{CAROL}", 60, "A", "192.0.2.1")
    assert "narrowed" in refusal(here, there, zone=PRIVATE, leased=False)
    assert "may not transfer" in _transfer(zone_wide, OPEN)


@pytest.mark.rfc("9664", "4")
def test_whether_a_lease_is_needed_is_the_rules_affair() -> None:
    said = f"must send an update lease (EDNS option 2) to add mac.{ALICE}"
    assert said in refusal(who(f"k.{ALICE}"), MAC, leased=False)
    assert said in refusal(who(f"k.{ALICE}", ALICE, ""), MAC, leased=False)
    assert refusal(who(f"k.{ALICE}", ALICE, 'lease = "optional"'), MAC, leased=False) == ""
    assert refusal(who("k.", None), MAC, leased=False) == ""
    assert said in refusal(who("k.", None, 'lease = "required"'), MAC, leased=False)
    assert refusal(who(f"k.{ALICE}"), delete_name(f"mac.{ALICE}"), leased=False) == ""


def test_what_an_update_runs_under_is_the_strictest_of_the_rules_that_let_it_in() -> None:
    device = who(
        f"k.{ALICE}",
        ALICE,
        'types = ["A"], lease = "optional", default_lease_seconds = 600, records_per_name = 4',
        'types = ["TXT"], lease = "optional", default_lease_seconds = 300, updates_per_minute = 0',
        policy=site(names_per_member=9, updates_per_minute=30),
    )

    def grant(*ops: Item) -> tuple[int, Quota]:
        update = read_update(decode(update_message(ops)), OPEN.apex)
        found = may_update(device, OPEN, update, leased=False)
        return found.default_lease, found.quota

    assert grant(MAC) == (600, Quota(4, 9, 30))
    assert grant(CHALLENGE) == (300, Quota(0, 9, 0))
    assert grant(MAC, CHALLENGE) == (300, Quota(4, 9, 30))


def test_rules_of_the_configuration_come_before_the_keys_own_and_the_default() -> None:
    policy = site(
        {"name": "no hinfo", "keys": ["**"], "effect": "deny", "types": ["HINFO"]},
        {"keys": ["boss.alice"], "match": "zone", "owner": ZONE, "types": ["NS", "A"], "lease": "optional"},
        {"keys": ["**"], "owner": "shared"},
    )
    hinfo = add(f"mac.{ALICE}", 60, "HINFO", "a b")
    shared = add(f"x.shared.{ZONE}", 60, "A", "192.0.2.1")
    plain = who(f"k.{ALICE}", policy=policy)
    assert refusal(plain, hinfo) == f"key k.{ALICE} may not update mac.{ALICE} HINFO: policy rule 'no hinfo' denies it"
    assert refusal(plain, shared) == refusal(plain, MAC) == ""
    narrowed = who(f"boss.{ALICE}", ALICE, ACME, policy=policy)
    assert "'no hinfo'" in refusal(narrowed, hinfo)
    assert refusal(narrowed, add(f"bob.{ZONE}", 60, "NS", "ns.example."), leased=False) == "", "named outright"
    assert "narrowed" in refusal(narrowed, add(f"x.shared.{ZONE}", 60, "TXT", '"x"')), "reached by a wildcard only"


def _transfer(principal: Principal | None, zone: Zone, rules: TransferRules | None = None) -> str:
    try:
        may_transfer(principal, zone, "192.0.2.7", rules or TransferRules())
    except Refusal as refused:
        return refused.reason
    return ""


def test_transfers_by_rule() -> None:
    policy = site({"keys": ["mirror.alice"], "actions": ["transfer"], "match": "zone", "owner": ZONE})
    assert _transfer(who(f"mirror.{ALICE}", policy=policy), OPEN) == ""
    assert "may not transfer" in _transfer(who(f"other.{ALICE}", policy=policy), OPEN)
    everything = site({"keys": ["**"], "actions": ["transfer"], "match": "zone"})
    assert "may not transfer" in _transfer(who(f"k.{ALICE}", policy=everything), PRIVATE), "whatever the rules say"
    never = site({"name": "never", "keys": ["**"], "actions": ["transfer"], "match": "zone", "effect": "deny"})
    anywhere = TransferRules(allow_addresses=["0.0.0.0/0"])
    assert "policy rule 'never' denies it" in _transfer(who(f"k.{ALICE}", policy=never), OPEN, anywhere)
    assert _transfer(who(f"k.{CAROL}", CAROL, member_id=3), PRIVATE) == ""
    assert _transfer(who(f"k.{CAROL}", CAROL, ACME, member_id=3), PRIVATE) != ""


def _read(principal: Principal | None, owner: str, rtype: str, action: Action = Action.QUERY) -> str:
    try:
        may_read(principal, PRIVATE, fold(name(owner)), type_from_text(rtype), action)
    except Refusal as refused:
        return refused.reason
    return ""


def test_a_rule_opens_part_of_a_private_zone_to_another_member() -> None:
    policy = site({"keys": ["**.alice"], "actions": ["query"], "owner": f"printer.{CAROL}"})
    alice = who(f"k.{ALICE}", policy=policy)
    uniform = _read(None, f"nas.{CAROL}", "A")
    assert uniform == f"{CAROL} is private: sign with one of its keys"
    assert _read(alice, f"printer.{CAROL}", "A") == _read(alice, f"x.printer.{CAROL}", "AAAA") == ""
    assert _read(alice, f"nas.{CAROL}", "A") == uniform
    assert _read(alice, f"printer.{CAROL}", "A", Action.LLQ) == uniform
    assert _read(who(f"k.bob.{ZONE}", f"bob.{ZONE}", policy=policy), f"printer.{CAROL}", "A") == uniform


def test_a_narrowed_key_reads_of_its_private_zone_what_its_rules_say() -> None:
    certbot = who(f"certbot.{CAROL}", CAROL, ACME, member_id=3)
    assert _read(certbot, f"_acme-challenge.{CAROL}", "TXT") == ""
    assert _read(certbot, f"_acme-challenge.www.{CAROL}", "SOA") == "", "how a client finds the zone"
    assert _read(certbot, CAROL, "SOA") == ""
    assert "narrowed" in _read(certbot, f"secret.{CAROL}", "A")
    assert "narrowed" in _read(certbot, f"_acme-challenge.{CAROL}", "A")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('match = "pattern"', 'match = "pattern" needs an owner'),
        ('match = "self", owner = "x"', "takes no owner"),
        ("nonsense = 1", "nonsense: "),
        ('types = ["OPT"]', "OPT is no type of records"),
        ('types = ["FOO"]', "unknown record type"),
        ('effect = "deny", lease = "optional"', "takes no lease"),
        ("default_lease_seconds = 60", 'goes with lease = "optional"'),
        ('actions = ["query"], updates_per_minute = 1', "are for updates"),
        ('actions = ["dance"]', "actions.0: must be"),
        ('types = ["A"], target = "x"', "target goes with types"),
        ("records_per_name = -1", "records_per_name"),
        ("owner = 'a..b'", "empty label"),
        ("types = ", "is not a rule such as"),
        (f'owner = "{"x." * 120}y"', "longer than 255"),
    ],
)
def test_a_rule_that_cannot_be_says_why(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        rule_from_text(text, fold(name(ALICE)))


def test_a_rule_is_read_back_as_it_is_written() -> None:
    origin = fold(name(ALICE))
    for text in (
        "",
        ACME,
        'effect = "deny", actions = ["update"], types = ["ANY", "TYPE65500"]',
        'types = ["PTR"], target = "mac", records_per_name = 0, names_per_member = 7, updates_per_minute = 8',
        'lease = "optional", default_lease_seconds = 60, match = "zone", owner = "@"',
    ):
        rule = rule_from_text(text, origin)
        values = ", ".join(f"{name} = {value!r}" for name, value in rule_settings(rule).items())
        assert rule_from_text(values, fold(name("elsewhere."))) == rule


def test_a_target_is_looked_for_where_the_type_has_it() -> None:
    (compiled,) = who(f"k.{ALICE}", ALICE, 'types = ["SRV", "PTR"], target = "mac"').policy.rules
    srv = rdata("SRV", f"0 0 1 mac.{ALICE}")
    assert compiled.points_well(type_from_text("SRV"), srv)
    assert not compiled.points_well(type_from_text("PTR"), srv)
    assert not compiled.points_well(type_from_text("A"), b"\x00" * 4)


def test_what_the_homing_client_sends_passes_with_a_key_of_its_host() -> None:
    """RFC 6281 §5.2: the host's names, the AutoTunnel name beside them, and the PTR that lists the host."""
    label = autotunnel_label(EUI)
    mac = who(f"mac.{ALICE}", ALICE, *host_rules("mac", label))

    def sends(machine: str, eui: bytes) -> list[str]:
        names = host_names(machine, ALICE, eui)
        place = Registration(
            names=names,
            inner=IPv6Address("fd00::1"),
            outer=IPv4Address("192.0.2.1"),
            port=4500,
            text=(b"x",),
        )
        outcomes = []
        for wire, leased in (
            (registration_message(1, name(ZONE), place, 7200), True),
            (deregistration_message(2, name(ZONE), names), False),
        ):
            try:
                may_update(mac, OPEN, read_update(decode(wire), OPEN.apex), leased=leased)
                outcomes.append("")
            except Refusal as refused:
                outcomes.append(refused.reason)
        return outcomes

    assert sends("Mac", EUI) == ["", ""]
    assert all("narrowed" in said for said in (*sends("nas", EUI), *sends("mac", EUI[:-1] + b"\x00")))
