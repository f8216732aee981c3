"""Each way in which policy refuses, as a peer sees it, as the log tells it, and as `homing explain` foretells it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update
import pytest

from tests.support.processes import Finished, Running, homing_here, start_server

ZONE = "members.example."
NOTICED_SECONDS = 5.0
BADKEY = 17


@dataclass
class House:
    """A server with open alice and private carol, and keys of every kind."""

    server: Running
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, *arguments: str | Path, stdin: str = "") -> Finished:
        done = homing_here(*arguments, "--config", self.server.config, stdin=stdin)
        assert done.code == 0, done.err
        return done

    def make(self, nickname: str, *arguments: str) -> None:
        self.keys[nickname] = self.run(*arguments, "--json").json

    def signer(self, nickname: str) -> dns.tsig.Key:
        key = self.keys[nickname]
        return dns.tsig.Key(dns.name.from_text(key["name"]), key["secret"], key["algorithm"])

    def send(self, message: dns.message.Message, nickname: str | None) -> dns.message.Message:
        if nickname is not None:
            message.use_tsig(self.signer(nickname))
        return dns.query.tcp(message, "127.0.0.1", port=self.server.port, timeout=10)

    def update(self, nickname: str | None, owner: str, rtype: str, data: str, **more: Any) -> dns.message.Message:
        """Add one record, or delete it with no data."""
        update = dns.update.UpdateMessage(more.get("zone", ZONE))
        if data:
            update.add(owner, 60, rtype, data)
        elif rtype == "ANY":
            update.delete(owner)
        else:
            update.delete(owner, rtype)
        leased = more.get("leased", True)
        update.use_edns(0, options=[dns.edns.GenericOption(2, (3600).to_bytes(4, "big"))] if leased else [])
        return self.send(update, nickname)

    def query(self, nickname: str | None, owner: str, rtype: str) -> dns.message.Message:
        query = dns.message.make_query(owner, rtype, use_edns=0)
        return self.send(query, nickname)

    def explain(self, nickname: str | None, owner: str, rtype: str, *more: str) -> dict[str, Any]:
        signed = () if nickname is None else ("--key", self.keys[nickname]["name"])
        found: dict[str, Any] = self.run("explain", *signed, "--name", owner, "--type", rtype, *more, "--json").json
        return found


def sentence(reply: dns.message.Message) -> str:
    texts = [option.text for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    return texts[0] or "" if texts else ""


POLICY = {
    "names_per_member": 40,
    "rules": [
        {"name": "no hinfo", "keys": ["**"], "effect": "deny", "actions": ["update"], "types": ["HINFO"]},
        {"keys": ["**.alice"], "actions": ["query"], "owner": "printer.carol"},
    ],
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with start_house(tmp_path_factory.mktemp("house")) as made:
        yield made


@contextmanager
def start_house(directory: Path) -> Iterator[House]:
    with start_server(directory, policy=POLICY) as server:
        house = House(server)
        house.make("alice", "member", "add", "alice")
        house.make("carol", "member", "add", "carol", "--private")
        house.make("certbot", "key", "add", "alice", "--device", "certbot", "--acme")
        house.make("mac", "key", "add", "carol", "--device", "mac", "--only-host", "mac")
        house.make("slow", "key", "add", "alice", "--device", "slow", "--rule", "updates_per_minute = 1")
        house.make("small", "key", "add", "alice", "--device", "small", "--rule", "records_per_name = 1")
        house.make("few", "key", "add", "alice", "--device", "few", "--rule", "names_per_member = 1")
        house.make("gone", "key", "add", "alice", "--device", "gone")
        house.run("key", "revoke", house.keys["gone"]["name"])
        house.make("admin", "key", "add", "--admin", "ops")
        assert _eventually(lambda: house.update("admin", f"ready.{ZONE}", "A", "192.0.2.1").rcode() == 0)
        yield house


def _eventually(check: Any) -> bool:
    deadline = time.monotonic() + NOTICED_SECONDS
    while time.monotonic() < deadline:
        try:
            if check():
                return True
        except dns.tsig.PeerError:
            pass
        time.sleep(0.1)
    return False


A, TXT, ORG = "192.0.2.7", '"x"', "example.org."
ALICE, CAROL = f"alice.{ZONE}", f"carol.{ZONE}"


@pytest.mark.parametrize(
    ("who", "owner", "rtype", "data", "more", "options", "rcode", "words"),
    [
        (None, f"mac.{ALICE}", "A", A, {}, [], "REFUSED", "updates must be signed"),
        ("alice", f"mac.bob.{ZONE}", "A", A, {}, [], "REFUSED", f"may touch {ALICE} and below, not mac.bob."),
        ("alice", f"mac.{ALICE}", "NS", "ns.example.", {}, [], "REFUSED", "may not change type NS"),
        ("alice", f"mac.{ALICE}", "DS", "1 13 2 " + "00" * 32, {}, [], "REFUSED", "may not change type DS"),
        ("alice", f"_dns-llq._udp.{ALICE}", "SRV", "0 0 1 x.", {}, [], "REFUSED", "is kept by the service"),
        ("alice", f"mac.{ALICE}", "A", A, {"leased": False}, ["--no-lease"], "REFUSED", "must send an update lease"),
        ("alice", f"mac.{ALICE}", "HINFO", "a b", {}, [], "REFUSED", "policy rule 'no hinfo' denies it"),
        ("certbot", f"mac.{ALICE}", "A", A, {}, [], "REFUSED", "it is narrowed, and no rule of it allows that"),
        ("certbot", f"_acme-challenge.{ALICE}", "ANY", "", {}, ["--delete"], "REFUSED", "it is narrowed"),
        ("mac", f"nas.{CAROL}", "A", A, {"zone": CAROL}, [], "REFUSED", "it is narrowed"),
        ("alice", f"x.{CAROL}", "A", A, {}, ["--zone", ZONE], "NOTZONE", f"is in zone {CAROL}, send it there"),
        ("admin", f"x.{CAROL}", "A", A, {}, ["--zone", ZONE], "NOTZONE", f"is in zone {CAROL}, send it there"),
        ("alice", f"x.{CAROL}", "A", A, {"zone": CAROL}, [], "REFUSED", f"may touch {ALICE} and below, not x.{CAROL}"),
        (
            "alice",
            "x.example.org.",
            "A",
            A,
            {"zone": "example.org."},
            ["--zone", "example.org."],
            "NOTAUTH",
            "is no zone served here",
        ),
        ("admin", "x.example.org.", "A", A, {}, ["--zone", ZONE], "NOTZONE", "name outside the zone"),
        ("few", f"second.{ALICE}", "A", A, {}, [], "REFUSED", "may keep 1 names (rule 1 of the key)"),
        ("small", f"first.{ALICE}", "TXT", TXT, {}, [], "REFUSED", "may keep 1 records a name (rule 1 of the key)"),
    ],
)
def test_refused_updates(
    house: House,
    who: str | None,
    owner: str,
    rtype: str,
    data: str,
    more: dict[str, Any],
    options: list[str],
    rcode: str,
    words: str,
) -> None:
    assert house.update("alice", f"first.{ALICE}", "A", A).rcode() == dns.rcode.NOERROR
    reply = house.update(who, owner, rtype, data, **more)
    assert dns.rcode.to_text(reply.rcode()) == rcode
    assert words in sentence(reply)
    given = ("--data", data) if data else ()
    explained = house.explain(who, owner, rtype, *given, *options)
    assert (explained["rcode"], explained["sentence"]) == (rcode, sentence(reply))
    assert explained["allowed"] is False
    if who is not None:
        assert _eventually(lambda: sentence(reply) in _unescaped(house.server.log)), "the log says it in these words"


def _unescaped(log: str) -> str:
    return log.replace("\\'", "'")


def test_more_updates_a_minute_than_a_rule_allows(house: House) -> None:
    replies = [house.update("slow", f"slow.{ALICE}", "A", A) for _ in range(2)]
    assert [reply.rcode() for reply in replies] == [dns.rcode.NOERROR, dns.rcode.REFUSED]
    assert "may make 1 updates a minute (rule 1 of the key): try again in" in sentence(replies[1])
    explained = house.explain("slow", f"slow.{ALICE}", "A")
    assert (explained["rule"], explained["limits"]["updates_per_minute"]) == ("rule 1 of the key", 1)


@pytest.mark.parametrize(
    ("who", "owner", "rtype", "words"),
    [
        (None, f"secret.{CAROL}", "A", f"{CAROL} is private: sign with one of its keys"),
        ("alice", f"secret.{CAROL}", "A", f"{CAROL} is private: sign with one of its keys"),
        ("alice", "x.example.org.", "A", "is in no zone served here"),
    ],
)
def test_refused_queries(house: House, who: str | None, owner: str, rtype: str, words: str) -> None:
    reply = house.query(who, owner, rtype)
    assert (dns.rcode.to_text(reply.rcode()), words in sentence(reply)) == ("REFUSED", True)
    explained = house.explain(who, owner, rtype, "--action", "query")
    assert (explained["rcode"], explained["sentence"]) == ("REFUSED", sentence(reply))


@pytest.mark.parametrize(
    ("who", "zone", "words"),
    [
        (None, ZONE, f"an unsigned request from 127.0.0.1 may not transfer zone {ZONE}"),
        ("alice", ZONE, f"may not transfer zone {ZONE}"),
        ("alice", CAROL, f"may not transfer zone {CAROL}"),
        ("mac", CAROL, f"may not transfer zone {CAROL}"),
    ],
)
def test_refused_transfers(house: House, who: str | None, zone: str, words: str) -> None:
    reply = house.query(who, zone, "AXFR")
    assert (dns.rcode.to_text(reply.rcode()), words in sentence(reply)) == ("REFUSED", True)
    explained = house.explain(who, zone, "SOA", "--action", "transfer")
    assert (explained["rcode"], explained["sentence"]) == ("REFUSED", sentence(reply))


def test_a_key_that_holds_no_more(house: House) -> None:
    explained = house.explain("gone", f"mac.{ALICE}", "A")
    assert explained["rcode"] == "BADKEY"
    update = dns.update.UpdateMessage(ZONE)
    update.add(f"mac.{ALICE}", 60, "A", A)
    update.use_edns(0)
    update.use_tsig(house.signer("gone"))
    wire = update.to_wire()
    with dns.query.make_socket(2, 2, None) as channel:  # AF_INET, SOCK_DGRAM
        channel.connect(("127.0.0.1", house.server.port))
        channel.settimeout(10)
        channel.send(wire)
        reply = dns.message.from_wire(channel.recv(4096), ignore_trailing=True, keyring=False)
    assert reply.rcode() == dns.rcode.NOTAUTH
    assert reply.tsig_error == BADKEY
    assert sentence(reply) == explained["sentence"]


@pytest.mark.parametrize(
    ("who", "owner", "rtype", "options", "rule"),
    [
        ("alice", f"mac.{ALICE}", "A", [], "member default"),
        ("admin", f"mac.{ALICE}", "NS", ["--no-lease"], "administrator default"),
        ("certbot", f"_acme-challenge.www.{ALICE}", "TXT", ["--no-lease"], "rule 1 of the key"),
        ("mac", f"_autotunnel._udp.{CAROL}", "PTR", ["--data", f"mac.{CAROL}"], "rule 2 of the key"),
        ("mac", f"nas.{CAROL}", "A", ["--action", "query"], "rule 3 of the key"),
        ("mac", f"nas.{CAROL}", "A", ["--action", "llq"], "rule 3 of the key"),
        ("alice", f"printer.{CAROL}", "A", ["--action", "query"], "policy rule 2"),
        ("carol", CAROL, "SOA", ["--action", "transfer"], "member default"),
        (None, f"mac.{ALICE}", "A", ["--action", "query"], None),
        (None, CAROL, "SOA", ["--action", "query"], None),
    ],
)
def test_what_is_allowed_and_why(
    house: House, who: str | None, owner: str, rtype: str, options: list[str], rule: str | None
) -> None:
    explained = house.explain(who, owner, rtype, *options)
    assert (explained["allowed"], explained["rule"]) == (True, rule)


def test_the_words_for_people(house: House) -> None:
    done = house.run("explain", "--key", "certbot.alice", "--name", "mac.alice", "--type", "A")
    assert done.out.startswith(
        f"refused with REFUSED\n  key certbot.{ALICE} may not update mac.{ALICE} A: it is narrowed"
    )
    done = house.run("explain", "--key", "few.alice", "--name", f"first.{ALICE}", "--type", "A")
    assert "\nrule: rule 1 of the key: allow query, update, llq in the member's domain, at most 1 names\n" in done.out
    assert done.out.endswith("lease: required\nlimit: 1 names per member\n")


def test_rules_of_a_key_change_beside_a_running_server(house: House) -> None:
    house.make("nas", "key", "add", "alice", "--device", "nas")
    assert _eventually(lambda: house.update("nas", f"mac.{ALICE}", "A", A).rcode() == dns.rcode.NOERROR)
    narrow = house.run("key", "rule", "add", "nas.alice", 'owner = "nas"', "--json").json
    assert narrow["rules"] == [{"actions": ["query", "update", "llq"], "owner": f"nas.{ALICE}"}]
    assert _eventually(lambda: house.update("nas", f"mac.{ALICE}", "A", A).rcode() == dns.rcode.REFUSED)
    assert house.update("nas", f"nas.{ALICE}", "A", A).rcode() == dns.rcode.NOERROR
    house.run("key", "rule", "add", "nas.alice", 'effect = "deny", types = ["TXT"]', "--at", "1")
    listed = house.run("key", "rule", "list", "nas.alice").out
    assert listed.splitlines()[1].split(maxsplit=1)[1].startswith('effect = "deny"')
    words = listed.splitlines()[2].split(maxsplit=1)[1]
    for _ in range(2):
        house.run("key", "rule", "remove", "nas.alice", "1")
    house.run("key", "rule", "add", "nas.alice", words)
    assert house.run("key", "rule", "list", "nas.alice", "--json").json["rules"] == narrow["rules"]
    assert json.loads(house.run("key", "list", "alice", "--json").out)
