"""Long-Lived Queries through the pipeline: who must sign, what policy ends, what is counted."""

import pytest

from protocol.constants import Rcode
from protocol.edns import LlqError, LlqOpcode, LlqOption, Opt, llq_options
from protocol.tsig import Key
from server.config import LlqSettings
from server.peer import Peer
from server.push.service import PushService
from tests.support.builders import ADMIN, ALICE, BOB, TCP, UDP, Core, Seen, add, query_message
from tests.support.entropy import SeededEntropy


class Rig:
    """The server core with the real push service in it."""

    def __init__(self, **settings: object) -> None:
        self.core = Core()
        self.sent: list[tuple[Peer, bytes]] = []
        self.push = PushService(
            LlqSettings.model_validate(settings),
            zones=self.core.zones,
            keyring=self.core.keyring,
            clock=self.core.clock,
            entropy=SeededEntropy(1),
            metrics=self.core.metrics,
            send=lambda peers, alike: self.sent.extend(zip(peers, alike.each(), strict=True)),
            event_listener=lambda peer: 0,
        )
        self.core.dispatcher._push = self.push

    def ask(
        self, owner: str, option: LlqOption, by: Key | None = None, peer: Peer = UDP
    ) -> tuple[Seen, list[LlqOption]]:
        wire = query_message(owner, "A", edns=Opt(0, options=(option.encode(),)))
        seen = self.core.ask(self.core.signed(wire, by) if by else wire, peer)
        return seen, llq_options(seen.message.opt)

    def set_up(self, owner: str, by: Key | None = None, peer: Peer = UDP) -> Rcode:
        """Both round trips as far as they go; the RCODE of the last."""
        seen, options = self.ask(owner, LlqOption(1, LlqOpcode.SETUP, 0, 0, 7200), by, peer)
        if options and not options[0].error and peer.transport == "udp":
            seen, options = self.ask(owner, options[0], by, peer)
        return seen.rcode

    def metric(self, name: str, **labels: str) -> float | None:
        return self.core.metrics.registry.get_sample_value(name, labels)


ALICES = "mac.alice.members.example."
BOBS = "mac.bob.members.example."
CAROLS = "secret.carol.members.example."
SERVICE = "ns.members.example."


@pytest.mark.rfc("6281", "7.2")
@pytest.mark.parametrize(
    ("required", "unsigned", "refused"),
    [
        ([], [ALICES, BOBS, SERVICE], [CAROLS]),
        (["alice.members.example."], [BOBS, SERVICE], [ALICES, "alice.members.example.", CAROLS]),
        (["Alice.Members.Example", "bob.members.example"], [SERVICE], [ALICES, BOBS]),
        (["members.example."], [], [ALICES, BOBS, SERVICE, CAROLS]),
    ],
)
async def test_signatures_are_required_by_zone_and_by_member(
    required: list[str], unsigned: list[str], refused: list[str]
) -> None:
    rig = Rig(require_tsig=required)
    for peer in (UDP, TCP):
        for owner in unsigned:
            assert rig.set_up(owner, peer=peer) == Rcode.NOERROR
        for owner in refused:
            assert rig.set_up(owner, peer=peer) == Rcode.REFUSED
    live = rig.push.subscriptions
    assert live == 2 * len(unsigned)
    assert rig.set_up(ALICES, by=ALICE) == Rcode.NOERROR
    assert rig.push.subscriptions == live + 1
    assert rig.core.query(ALICES).rcode == Rcode.NOERROR, "ordinary queries are as open as ever"
    rig.push.close()


async def test_only_members_keys_watch_a_private_zone() -> None:
    rig = Rig()
    assert rig.set_up(CAROLS, by=BOB) == Rcode.REFUSED
    assert rig.set_up(CAROLS, by=ADMIN) == Rcode.NOERROR
    rig.push.close()


async def test_a_refresh_is_looked_at_by_policy_again() -> None:
    rig = Rig()
    _, options = rig.ask(ALICES, LlqOption(1, LlqOpcode.SETUP, 0, 0, 7200), peer=TCP)
    llq_id = options[0].llq_id
    refresh = LlqOption(1, LlqOpcode.REFRESH, 0, llq_id, 7200)
    assert rig.ask(ALICES, refresh, peer=TCP)[1] == [refresh]
    rig.push._signed_below = [b"\x05alice\x07members\x07example\x00"]
    assert rig.ask(ALICES, refresh, peer=TCP)[0].rcode == Rcode.REFUSED
    assert rig.push.subscriptions == 0
    rig.push.close()


async def test_every_limit_answers_serv_full_and_is_counted() -> None:
    cases: list[tuple[str, dict[str, object], str, Peer]] = [
        ("total", {"maximum_subscriptions": 1}, BOBS, UDP._replace(address="198.51.100.1")),
        ("per_address", {"maximum_per_address": 1}, BOBS, UDP._replace(port=1)),
        ("per_question", {"maximum_per_question": 1}, ALICES, UDP._replace(address="198.51.100.1")),
        ("rate", {"setup_burst": 1, "setups_per_second": 0.1}, BOBS, UDP._replace(address="198.51.100.1")),
    ]
    for limit, settings, owner, peer in cases:
        rig = Rig(retry_seconds=77, **settings)
        rig.set_up(ALICES)
        seen, options = rig.ask(owner, LlqOption(1, LlqOpcode.SETUP, 0, 0, 7200), peer=peer)
        assert (seen.rcode, options[0].error) == (Rcode.NOERROR, LlqError.SERV_FULL)
        assert options[0].lease == (10 if limit == "rate" else 77)
        assert len(seen.wire) <= len(query_message(owner, "A", edns=Opt(0, options=(options[0].encode(),))))
        assert rig.metric("homing_llq_limited_total", limit=limit) == 1
        assert rig.metric("homing_llq_setups_total", outcome="established") == 1
        assert rig.metric("homing_llq_subscriptions") == 1
        rig.push.close()


async def test_a_challenge_is_no_larger_than_the_request() -> None:
    """So that nobody is flooded with what he did not ask for (RFC 8764 §8)."""
    rig = Rig()
    for number in range(40):
        rig.core.update(add(ALICES, 60, "A", f"192.0.2.{number}"), by=ADMIN)
    wire = query_message(ALICES, "A", edns=Opt(0, options=(LlqOption(1, LlqOpcode.SETUP, 0, 0, 7200).encode(),)))
    assert len(rig.core.ask(wire).wire) <= len(wire)
    rig.push.close()


@pytest.mark.rfc("8764", "5.2.4")
async def test_answers_come_with_the_addresses_of_the_hosts_they_name_if_there_is_room() -> None:
    rig = Rig()
    service = "_http._tcp.alice.members.example."
    rig.core.update(add(service, 120, "SRV", f"0 0 80 {ALICES}"), add(service, 120, "SRV", f"0 0 81 {SERVICE}"))

    def ask(option: LlqOption) -> Seen:
        return rig.core.ask(query_message(service, "SRV", edns=Opt(0, options=(option.encode(),))))

    challenge = ask(LlqOption(1, LlqOpcode.SETUP, 0, 0, 7200))
    assert challenge.answers == challenge.additional == []
    reply = ask(llq_options(challenge.message.opt)[0])
    assert [(owner, rtype) for owner, _, rtype, _ in reply.additional] == [(ALICES, "A"), (SERVICE, "A")]
    many = [add(service, 120, "SRV", f"0 0 {port} {ALICES}") for port in range(100, 123)]
    rig.core.update(*many)
    again = ask(llq_options(challenge.message.opt)[0])
    assert len(again.answers) == 25 and len(again.wire) <= 1232
    assert len(again.additional) < 2, "what has no room is left out, and no answer for it"
