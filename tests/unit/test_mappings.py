"""The mapping table in virtual time, without any back end but the one played here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.mappings import (
    FILTER_LIMIT,
    INSTALL_TRIES,
    AddressChanged,
    Answer,
    Change,
    Changed,
    Effect,
    EpochReset,
    Filter,
    FilterChange,
    Install,
    Key,
    Limits,
    Mapping,
    MappingTable,
    Moved,
    Origin,
    Remove,
    Restrict,
    Transport,
    Verdict,
)

TCP, UDP = Transport.TCP, Transport.UDP
A, B = "192.168.1.10", "192.168.1.11"
EXTERNAL = "203.0.113.7"


class Played:
    """A table with a back end that accepts what `accepts` says; records what happened."""

    def __init__(self, limits: Limits | None = None, *, address: str | None = EXTERNAL, epoch: float = 0.0) -> None:
        self.now = 1000.0
        self.table = MappingTable(limits or Limits(), epoch=epoch, now=self.now)
        self.accepts: Callable[[Install], bool] = lambda install: True
        self.carried: dict[int, Install] = {}
        self.changes: list[tuple[Change, Mapping]] = []
        self.restricted: dict[int, tuple[Filter, ...]] = {}
        self.others: list[Effect] = []
        self.answers: dict[object, Answer] = {}
        self._ticket = 0
        self.table.set_external_address(address, now=self.now)
        self.settle()
        self.others.clear()

    def settle(self) -> None:
        while effects := self.table.take_effects():
            for effect in effects:
                match effect:
                    case Install():
                        ok = self.accepts(effect)
                        if ok:
                            self.carried[effect.number] = effect
                        self.table.installed(effect.number, ok, now=self.now)
                    case Restrict(number, filters):
                        self.restricted[number] = filters
                    case Remove(number):
                        del self.carried[number]
                    case Changed(change, mapping):
                        self.changes.append((change, mapping))
                    case Answer(ticket):
                        assert ticket not in self.answers
                        self.answers[ticket] = effect
                    case _:
                        self.others.append(effect)

    def ask(
        self, key: Key, suggested: int = 0, lifetime: int = 3600, draw: int = 7, **more: Any
    ) -> tuple[Verdict, int, int]:
        self._ticket += 1
        self.table.request(
            key,
            suggested_port=suggested,
            lifetime=lifetime,
            ticket=self._ticket,
            draw=draw,
            now=self.now,
            **{"origin": Origin.NATPMP, **more},
        )
        return self._answer()

    def delete(self, key: Key) -> tuple[Verdict, int, int]:
        self._ticket += 1
        self.table.delete(key, ticket=self._ticket, now=self.now)
        return self._answer()

    def delete_all(self, transport: Transport, host: str) -> tuple[Verdict, int, int]:
        self._ticket += 1
        self.table.delete_all(transport, host, ticket=self._ticket, now=self.now)
        return self._answer()

    def external_ports(self) -> dict[Key, int]:
        return {mapping.key: mapping.external_port for mapping in self.table.mappings()}

    def _answer(self) -> tuple[Verdict, int, int]:
        self.settle()
        answer = self.answers[self._ticket]
        return answer.verdict, answer.external_port, answer.lifetime


@pytest.mark.rfc("6886", "3.3")
def test_a_free_suggestion_is_granted() -> None:
    played = Played()
    assert played.ask(Key(UDP, A, 4500), 4500) == (Verdict.DONE, 4500, 3600)
    (install,) = played.carried.values()
    assert (install.mapping.external_port, install.external_address) == (4500, EXTERNAL)
    assert [change for change, _ in played.changes] == [Change.CREATED]


@pytest.mark.rfc("6886", "3.3")
def test_a_repeated_request_keeps_the_port_and_renews() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500), 4500)
    played.now += 1800
    assert played.ask(Key(UDP, A, 4500), 9999) == (Verdict.DONE, 4500, 3600)
    assert len(played.carried) == 1
    assert [change for change, _ in played.changes] == [Change.CREATED, Change.RENEWED]
    mapping = played.table.find(Key(UDP, A, 4500))
    assert mapping is not None
    assert mapping.expires_at == played.now + 3600


@pytest.mark.rfc("6886", "3.3")
def test_a_second_host_gets_another_port_for_the_same_suggestion() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500), 4500)
    verdict, port, _ = played.ask(Key(UDP, B, 4500), 4500)
    assert verdict is Verdict.DONE
    assert port not in (0, 4500)


@pytest.mark.rfc("6886", "3.3")
def test_companion_port_is_kept_for_its_host() -> None:
    played = Played()
    played.ask(Key(TCP, A, 80), 8080)
    assert played.ask(Key(UDP, B, 80), 8080)[1] != 8080
    assert played.ask(Key(UDP, A, 81), 8080) == (Verdict.DONE, 8080, 3600)
    assert len(played.external_ports()) == 3


def test_companion_port_binds_the_drawn_port_too() -> None:
    played = Played(Limits(lowest_port=2000, highest_port=2001))
    played.ask(Key(TCP, A, 80), 2000)
    assert played.ask(Key(UDP, B, 80), 0, draw=0) == (Verdict.DONE, 2001, 3600)
    assert played.ask(Key(UDP, B, 81), 0, draw=0) == (Verdict.NO_RESOURCES, 0, 0)
    assert played.ask(Key(UDP, A, 81), 0, draw=0) == (Verdict.DONE, 2000, 3600)


@pytest.mark.parametrize("suggested", [0, 1, 1023, 5350, 5351, 7777])
def test_ports_that_are_not_handed_out(suggested: int) -> None:
    played = Played(Limits(reserved_ports=frozenset({7777})))
    verdict, port, _ = played.ask(Key(TCP, A, 80), suggested)
    assert verdict is Verdict.DONE
    assert port >= 1024
    assert port != suggested


def test_the_draw_decides_among_free_ports() -> None:
    played = Played(Limits(lowest_port=2000, highest_port=2009, reserved_ports=frozenset({2003})))
    assert played.ask(Key(UDP, A, 1), draw=3)[1] == 2004
    assert played.ask(Key(UDP, A, 2), draw=13)[1] == 2005
    assert played.ask(Key(UDP, A, 3), draw=9)[1] == 2009
    assert played.ask(Key(UDP, A, 4), draw=9)[1] == 2000


@pytest.mark.rfc("6886", "3.3")
@pytest.mark.parametrize(
    ("asked", "granted"),
    [(1, 1), (119, 119), (120, 120), (3600, 3600), (86400, 86400), (86401, 86400), (0xFFFFFFFF, 86400)],
)
def test_lifetime_bounds(asked: int, granted: int) -> None:
    assert Played().ask(Key(UDP, A, 4500), lifetime=asked)[2] == granted


@pytest.mark.rfc("6886", "3.3")
@pytest.mark.rfc("6886", "3.4")
def test_a_mapping_lapses_at_its_time_and_frees_the_port() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500), 4500, lifetime=200)
    assert played.table.next_deadline() == 1200.0
    played.table.handle_deadline(now=1199.9)
    played.settle()
    assert played.carried
    played.table.handle_deadline(now=1200.0)
    played.settle()
    assert not played.carried
    assert played.changes[-1][0] is Change.LAPSED
    played.now = 1320.0
    assert played.ask(Key(UDP, B, 4500), 4500) == (Verdict.DONE, 4500, 3600)


def test_a_request_after_the_lapse_is_a_new_mapping_even_if_no_timer_ran() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500), 4500, lifetime=200)
    played.now += 200
    assert played.ask(Key(UDP, A, 4500), 6000)[1] == 6000
    assert [change for change, _ in played.changes] == [Change.CREATED, Change.LAPSED, Change.CREATED]


def test_a_renewed_mapping_does_not_lapse_at_its_old_time() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500), lifetime=200)
    played.now += 100
    played.ask(Key(UDP, A, 4500), lifetime=200)
    played.table.handle_deadline(now=1200.0)
    played.settle()
    assert len(played.table.mappings()) == 1
    played.table.handle_deadline(now=1300.0)
    assert not played.table.mappings()


def test_many_renewals_do_not_pile_up_deadlines() -> None:
    played = Played()
    for _ in range(2000):
        played.now += 1
        played.ask(Key(UDP, A, 4500))
    assert len(played.table._rows._deadlines) <= 70
    assert played.table.next_deadline() is not None


@pytest.mark.rfc("6886", "3.4")
@pytest.mark.rfc("6281", "4.2")
def test_deletion_and_its_repetition_succeed() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500))
    assert played.delete(Key(UDP, A, 4500)) == (Verdict.DONE, 0, 0)
    assert not played.carried
    assert played.delete(Key(UDP, A, 4500)) == (Verdict.DONE, 0, 0)
    assert [change for change, _ in played.changes] == [Change.CREATED, Change.DELETED]


@pytest.mark.rfc("6886", "3.4")
def test_delete_all_is_for_one_host_and_one_transport() -> None:
    played = Played()
    for key in (Key(UDP, A, 1), Key(UDP, A, 2), Key(TCP, A, 1), Key(UDP, B, 1)):
        played.ask(key)
    assert played.delete_all(UDP, A) == (Verdict.DONE, 0, 0)
    assert set(played.external_ports()) == {Key(TCP, A, 1), Key(UDP, B, 1)}
    assert played.delete_all(UDP, A) == (Verdict.DONE, 0, 0)


@pytest.mark.rfc("6886", "3.4")
def test_static_mappings_cannot_be_deleted() -> None:
    played = Played()
    assert played.table.add_static(Key(TCP, A, 80), 8080)
    played.settle()
    played.ask(Key(TCP, A, 81))
    assert played.delete(Key(TCP, A, 80)) == (Verdict.NOT_PERMITTED, 8080, 0)
    assert played.delete_all(TCP, A) == (Verdict.NOT_PERMITTED, 0, 0)
    assert played.external_ports() == {Key(TCP, A, 80): 8080}


@pytest.mark.rfc("6886", "3.3")
def test_a_static_mapping_is_what_a_request_for_it_gets() -> None:
    played = Played()
    played.table.add_static(Key(TCP, A, 80), 443)
    played.settle()
    assert played.ask(Key(TCP, A, 80), 9000, lifetime=600) == (Verdict.DONE, 443, 600)
    played.table.handle_deadline(now=played.now + 1e9)
    assert played.external_ports() == {Key(TCP, A, 80): 443}


def test_static_mappings_do_not_share_ports() -> None:
    played = Played()
    assert played.table.add_static(Key(TCP, A, 80), 8080)
    assert played.table.add_static(Key(TCP, A, 80), 8080)
    assert not played.table.add_static(Key(TCP, B, 80), 8080)
    assert not played.table.add_static(Key(UDP, B, 80), 8080)
    assert played.table.add_static(Key(UDP, A, 80), 8080)


def test_a_static_mapping_takes_the_place_of_a_clients() -> None:
    played = Played()
    played.ask(Key(TCP, A, 80), 8080)
    assert played.table.add_static(Key(TCP, A, 80), 8080)
    played.settle()
    assert [mapping.origin for mapping in played.table.mappings()] == [Origin.STATIC]
    assert len(played.carried) == 1


def test_quotas_per_host_and_in_total() -> None:
    played = Played(Limits(per_host=2, total=3))
    assert played.ask(Key(UDP, A, 1))[0] is Verdict.DONE
    assert played.ask(Key(UDP, A, 2))[0] is Verdict.DONE
    assert played.ask(Key(TCP, A, 3)) == (Verdict.OVER_QUOTA, 0, 0)
    assert played.ask(Key(UDP, A, 2))[0] is Verdict.DONE
    assert played.ask(Key(UDP, B, 1))[0] is Verdict.DONE
    assert played.ask(Key(UDP, B, 2)) == (Verdict.NO_RESOURCES, 0, 0)
    played.delete(Key(UDP, A, 1))
    assert played.ask(Key(UDP, B, 2))[0] is Verdict.DONE


def test_a_refused_port_is_replaced_by_another() -> None:
    played = Played()
    tried: list[int] = []

    def accepts(install: Install) -> bool:
        tried.append(install.mapping.external_port)
        return len(tried) == 3

    played.accepts = accepts
    verdict, port, _ = played.ask(Key(UDP, A, 4500), 4500)
    assert verdict is Verdict.DONE
    assert len(set(tried)) == 3
    assert tried[0] == 4500
    assert tried[2] == port
    assert played.external_ports() == {Key(UDP, A, 4500): port}


def test_refusals_end_in_no_resources_and_leave_nothing() -> None:
    played = Played()
    tried: list[int] = []
    played.accepts = lambda install: bool(tried.append(install.mapping.external_port))
    assert played.ask(Key(UDP, A, 4500), 4500) == (Verdict.NO_RESOURCES, 0, 0)
    assert len(tried) == len(set(tried)) == INSTALL_TRIES
    assert played.changes == []
    assert not played.table.mappings()
    played.accepts = lambda install: True
    assert played.ask(Key(UDP, B, 4500), 4500)[1] == 4500


def test_repetitions_during_an_installation_share_it() -> None:
    played = Played()
    for ticket in range(100, 110):
        played.table.request(
            Key(UDP, A, 4500),
            suggested_port=4500,
            lifetime=3600,
            origin=Origin.NATPMP,
            ticket=ticket,
            draw=0,
            now=played.now,
        )
    played.settle()
    assert len(played.carried) == 1
    assert [played.answers[ticket].external_port for ticket in sorted(played.answers, key=str)] == [4500] * 4


def test_asking_for_a_static_mapping_while_it_moves_is_no_renewal() -> None:
    played = Played()
    played.table.add_static(Key(TCP, A, 80), 8080)
    played.settle()
    played.table.set_external_address("203.0.113.99", now=played.now)
    assert played.ask(Key(TCP, A, 80)) == (Verdict.DONE, 8080, 3600)
    assert played.changes == []


def test_a_deletion_during_an_installation_wins() -> None:
    played = Played()
    key = Key(UDP, A, 4500)
    played.table.request(
        key, suggested_port=4500, lifetime=3600, origin=Origin.NATPMP, ticket="map", draw=0, now=played.now
    )
    played.table.delete(key, ticket="delete", now=played.now)
    played.settle()
    assert played.answers["delete"].verdict is Verdict.DONE
    assert played.answers["map"].verdict is Verdict.NO_RESOURCES
    assert not played.carried
    assert played.changes == []


def test_without_external_address_nothing_is_granted_but_deletion_works() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500))
    played.table.set_external_address(None, now=played.now)
    played.settle()
    assert played.others == [AddressChanged(None)]
    assert not played.carried
    assert played.ask(Key(UDP, A, 4500)) == (Verdict.NO_EXTERNAL_ADDRESS, 0, 0)
    assert played.ask(Key(UDP, B, 4500)) == (Verdict.NO_EXTERNAL_ADDRESS, 0, 0)
    assert played.delete(Key(UDP, A, 4500)) == (Verdict.DONE, 0, 0)
    assert not played.table.mappings()


def test_a_new_external_address_takes_the_mappings_along() -> None:
    played = Played(epoch=500)
    played.ask(Key(UDP, A, 4500), 4500)
    played.ask(Key(TCP, B, 80), 8080)
    before = set(played.carried)
    played.table.set_external_address("203.0.113.99", now=played.now)
    played.settle()
    assert {install.external_address for install in played.carried.values()} == {"203.0.113.99"}
    assert len(played.carried) == 2
    assert not before & set(played.carried)
    assert played.external_ports() == {Key(UDP, A, 4500): 4500, Key(TCP, B, 80): 8080}
    assert played.others == [AddressChanged("203.0.113.99")]
    assert played.table.epoch(played.now) == 500


@pytest.mark.rfc("6886", "3.6")
def test_a_mapping_lost_at_the_new_address_begins_the_epoch_anew() -> None:
    played = Played(epoch=500)
    played.ask(Key(UDP, A, 4500), 4500)
    played.ask(Key(TCP, B, 80), 8080)
    played.accepts = lambda install: install.mapping.external_port != 4500
    played.now += 10
    played.table.set_external_address("203.0.113.99", now=played.now)
    played.settle()
    assert played.others == [AddressChanged("203.0.113.99"), EpochReset()]
    assert played.table.epoch(played.now) == 0
    assert played.external_ports() == {Key(TCP, B, 80): 8080}
    assert played.changes[-1][0] is Change.LOST


@pytest.mark.rfc("6887", "8.5")
def test_the_strict_epoch_begins_anew_with_table_loss_and_another_address() -> None:
    played = Played(epoch=500)
    epochs = []
    for address in (None, EXTERNAL, None, "203.0.113.99", EXTERNAL):
        played.now += 10
        played.table.set_external_address(address, now=played.now)
        epochs.append((played.table.epoch(played.now), played.table.strict_epoch(played.now)))
    assert epochs == [(510, 10), (520, 20), (530, 30), (540, 0), (550, 0)]
    played.now += 10
    played.table.reset_epoch(now=played.now)
    assert (played.table.epoch(played.now), played.table.strict_epoch(played.now)) == (0, 0)


def test_an_address_change_during_an_installation() -> None:
    played = Played()
    played.table.request(
        Key(UDP, A, 4500), suggested_port=4500, lifetime=3600, origin=Origin.NATPMP, ticket=1, draw=0, now=played.now
    )
    played.table.set_external_address("203.0.113.99", now=played.now)
    played.settle()
    assert [install.external_address for install in played.carried.values()] == ["203.0.113.99"]
    assert played.answers[1].verdict is Verdict.DONE


def ask_pcp(played: Played, port: int, ticket: int, *, exact: bool = False) -> None:
    played.table.request(
        Key(UDP, A, 4500),
        suggested_port=port,
        lifetime=3600,
        origin=Origin.PCP,
        nonce=b"a nonce here",
        exact=exact,
        requester="whoever asked",
        ticket=ticket,
        draw=0,
        now=played.now,
    )


@pytest.mark.rfc("6887", "13.2")
def test_who_wants_one_port_or_none_is_not_given_another_while_it_is_sought() -> None:
    played = Played()
    played.accepts = lambda install: install.mapping.external_port != 4500
    ask_pcp(played, 4500, 1)
    ask_pcp(played, 4500, 2, exact=True)
    played.settle()
    assert played.answers[1].verdict is Verdict.DONE
    assert played.answers[1].external_port != 4500
    assert played.answers[2] == Answer(2, Verdict.NOT_AS_ASKED)


@pytest.mark.rfc("6887", "14.2")
def test_who_asks_while_the_mapping_moves_is_answered_and_not_told_again() -> None:
    played = Played()
    ask_pcp(played, 4500, 1)
    played.settle()
    played.table.set_external_address("203.0.113.99", now=played.now)
    ask_pcp(played, 4500, 2)
    played.settle()
    assert played.answers[2].external_address == "203.0.113.99"
    assert played.others == [AddressChanged("203.0.113.99")]
    played.table.set_external_address(EXTERNAL, now=played.now)
    played.settle()
    mapping = played.table.find(Key(UDP, A, 4500))
    assert mapping is not None
    assert played.others[1:] == [AddressChanged(EXTERNAL), Moved(mapping, EXTERNAL, "whoever asked")]


def test_nothing_leads_from_the_external_address_to_itself() -> None:
    played = Played()
    assert played.ask(Key(UDP, EXTERNAL, 4500), 4500) == (Verdict.NOT_PERMITTED, 0, 0)
    assert not played.carried


def test_the_same_address_again_is_no_event() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500))
    played.table.set_external_address(EXTERNAL, now=played.now)
    assert played.table.take_effects() == []


def test_restored_mappings_are_installed_without_being_told_as_new() -> None:
    played = Played(address=None)
    kept = Mapping(key=Key(UDP, A, 4500), external_port=4500, origin=Origin.NATPMP, expires_at=played.now + 50)
    clash = Mapping(key=Key(TCP, B, 4500), external_port=4500, origin=Origin.NATPMP, expires_at=played.now + 50)
    lapsed = Mapping(key=Key(UDP, A, 4501), external_port=4501, origin=Origin.NATPMP, expires_at=played.now)
    assert played.table.restore([kept, clash, lapsed], now=played.now) == [clash, lapsed]
    played.table.set_external_address(EXTERNAL, now=played.now)
    played.settle()
    assert [install.mapping for install in played.carried.values()] == [kept]
    assert played.changes == []
    assert played.table.next_deadline() == played.now + 50


def test_a_mapping_that_cannot_be_stored_is_taken_back() -> None:
    played = Played()
    played.ask(Key(UDP, A, 4500))
    played.table.discard(Key(UDP, A, 4500))
    played.table.discard(Key(UDP, B, 4500))
    played.settle()
    assert not played.carried
    assert not played.table.mappings()


@pytest.mark.rfc("6886", "3.6")
def test_epoch_counts_seconds_on() -> None:
    table = MappingTable(Limits(), epoch=41.5, now=10.0)
    assert [table.epoch(10.0), table.epoch(10.5), table.epoch(1010.0)] == [41, 42, 1041]


IGD = {"origin": Origin.IGD, "exact": True}


def test_upnp_takes_its_own_hosts_port_for_another_inside() -> None:
    played = Played()
    played.ask(Key(TCP, A, 80), 8080, **IGD)
    assert played.ask(Key(TCP, A, 81), 8080, **IGD) == (Verdict.DONE, 8080, 3600)
    assert played.external_ports() == {Key(TCP, A, 81): 8080}
    assert [install.mapping.key.port for install in played.carried.values()] == [81]


def test_upnp_moves_its_own_mapping_to_another_port() -> None:
    played = Played()
    played.ask(Key(TCP, A, 80), 8080, **IGD)
    assert played.ask(Key(TCP, A, 80), 8081, **IGD) == (Verdict.DONE, 8081, 3600)
    assert played.external_ports() == {Key(TCP, A, 80): 8081}
    # The port that it left rests for others, not for the same host.
    assert played.ask(Key(TCP, B, 80), 8080, **IGD)[0] is Verdict.NOT_AS_ASKED
    assert played.ask(Key(TCP, A, 99), 8080, **IGD) == (Verdict.DONE, 8080, 3600)


@pytest.mark.parametrize("origin", [Origin.NATPMP, Origin.PCP])
def test_upnp_leaves_alone_what_others_made(origin: Origin) -> None:
    played = Played()
    played.ask(Key(TCP, A, 80), 8080, origin=origin)
    played.ask(Key(TCP, A, 90), 9090, **IGD)
    for key, port in ((Key(TCP, A, 81), 8080), (Key(TCP, A, 80), 8081), (Key(TCP, A, 80), 9090)):
        assert played.ask(key, port, **IGD)[0] is Verdict.NOT_AS_ASKED
    assert played.external_ports() == {Key(TCP, A, 80): 8080, Key(TCP, A, 90): 9090}
    assert played.ask(Key(TCP, A, 80), 8080, **IGD)[0] is Verdict.DONE


def test_upnp_never_takes_another_hosts_port() -> None:
    played = Played()
    played.ask(Key(TCP, A, 80), 8080, **IGD)
    assert played.ask(Key(TCP, B, 80), 8080, **IGD)[0] is Verdict.NOT_AS_ASKED
    assert played.ask(Key(UDP, B, 80), 8080, **IGD)[0] is Verdict.NOT_AS_ASKED
    played.ask(Key(TCP, B, 80), 9090, **IGD)
    # What it has already stays when what it wants cannot be had.
    assert played.ask(Key(TCP, B, 80), 8080, **IGD)[0] is Verdict.NOT_AS_ASKED
    assert played.external_ports() == {Key(TCP, A, 80): 8080, Key(TCP, B, 80): 9090}


def test_upnp_may_have_a_week_and_others_do_not_shorten_it() -> None:
    played = Played()
    assert played.ask(Key(TCP, A, 80), 8080, 604800, **IGD)[2] == 604800
    assert played.ask(Key(TCP, A, 80), 8080, 3600) == (Verdict.DONE, 8080, 3600)
    (mapping,) = played.table.mappings_of(A)
    assert mapping.expires_at == played.now + 604800
    assert played.ask(Key(TCP, A, 80), 8080, 3600, **IGD)[2] == 3600
    (mapping,) = played.table.mappings_of(A)
    assert mapping.expires_at == played.now + 3600


def test_a_description_is_that_of_its_maker() -> None:
    played = Played()
    played.ask(Key(TCP, A, 80), 8080, description="game", **IGD)
    played.ask(Key(TCP, A, 80), 8080)
    played.ask(Key(TCP, A, 81), 8081)
    played.ask(Key(TCP, A, 81), 8081, description="mine", **IGD)
    assert [mapping.description for mapping in played.table.mappings_of(A)] == ["game", ""]
    played.ask(Key(TCP, A, 80), 8080, description="other game", **IGD)
    assert [mapping.description for mapping in played.table.mappings_of(A)] == ["other game", ""]


def test_the_order_of_a_hosts_mappings_stays_while_they_are_renewed() -> None:
    played = Played()
    for port in (90, 80, 85):
        played.ask(Key(TCP, A, port), 8000 + port, **IGD)
    played.ask(Key(TCP, A, 90), 8090, **IGD)
    assert [mapping.key.port for mapping in played.table.mappings_of(A)] == [90, 80, 85]
    found = played.table.find_external(TCP, 8085)
    assert found is not None
    assert found.key == Key(TCP, A, 85)
    assert played.table.find_external(UDP, 8085) is None


def test_a_host_that_left_takes_its_mappings_along_but_not_static_ones() -> None:
    played = Played()
    played.table.add_static(Key(TCP, A, 22), 2222)
    played.ask(Key(TCP, A, 80), 8080, origin=Origin.PCP, nonce=b"n" * 12)
    played.ask(Key(UDP, A, 80), 8080)
    played.ask(Key(UDP, B, 80), 8081)
    assert played.table.host_gone(A, now=played.now) == 2
    played.settle()
    assert played.external_ports() == {Key(TCP, A, 22): 2222, Key(UDP, B, 80): 8081}


NET = Filter("198.51.100.0/24", 0)


@pytest.mark.rfc("6887", "13.3")
def test_filters_add_up_until_they_are_cleared() -> None:
    played = Played()
    key = Key(UDP, A, 4500)
    played.ask(key, 4500, origin=Origin.PCP, nonce=b"n" * 12, filters=FilterChange(False, (NET,)))
    (number, install) = next(iter(played.carried.items()))
    assert install.mapping.filters == (NET,)
    other = Filter("203.0.113.9/32", 80)
    played.ask(key, 4500, origin=Origin.PCP, nonce=b"n" * 12, filters=FilterChange(False, (other, NET)))
    assert played.restricted == {number: (NET, other)}
    played.ask(key, 4500)  # NAT-PMP has no word for them, so they stay
    assert played.table.mappings()[0].filters == (NET, other)
    played.ask(key, 4500, origin=Origin.PCP, nonce=b"n" * 12, filters=FilterChange(True, ()))
    assert played.restricted == {number: ()}
    many = tuple(Filter(f"198.51.100.{number}/32", 0) for number in range(FILTER_LIMIT + 1))
    asked = played.ask(key, 4500, origin=Origin.PCP, nonce=b"n" * 12, filters=FilterChange(False, many))
    assert asked == (Verdict.TOO_MANY_FILTERS, 0, 0)
    assert played.restricted == {number: ()}


SIX = "2001:db8::10"


@pytest.mark.rfc("6887", "11")
def test_pinholes_have_no_port_of_the_external_address() -> None:
    played = Played(address=None)
    assert played.ask(Key(TCP, SIX, 22), 0, origin=Origin.PCP, nonce=b"n" * 12) == (Verdict.DONE, 22, 3600)
    assert played.ask(Key(TCP, "2001:db8::11", 22), 22, origin=Origin.PCP)[:2] == (Verdict.DONE, 22)
    assert [install.external_address for install in played.carried.values()] == [SIX, "2001:db8::11"]
    carried = dict(played.carried)
    played.table.set_external_address(EXTERNAL, now=played.now)
    played.settle()
    assert played.carried == carried
    assert played.ask(Key(TCP, SIX, 23), 24, origin=Origin.PCP, exact=True)[0] is Verdict.NOT_AS_ASKED
    assert played.ask(Key(TCP, A, 22), 2222)[0] is Verdict.DONE
    assert played.delete(Key(TCP, "2001:db8::11", 22))[0] is Verdict.DONE
    played.now += 3600
    played.table.handle_deadline(now=played.now)
    played.settle()
    assert played.table.mappings() == []


def test_a_pinhole_that_cannot_be_opened_is_refused_at_once() -> None:
    played = Played()
    played.accepts = lambda install: False
    assert played.ask(Key(TCP, SIX, 22), 0, origin=Origin.PCP)[0] is Verdict.NO_RESOURCES
    assert played.table.mappings() == []
