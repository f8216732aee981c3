"""Many of one question told together: the same octets as one by one, and each its own life between the slices."""

import pytest

from protocol.message import decode
from protocol.name import from_text
from protocol.tsig import ALGORITHMS, Algorithm, Key, sign_common
from server.peer import Peer
from server.push.events import Item, make_plan
from server.push.sending import SendEvent, SendEvents
from server.push.subscriptions import State
from tests.support.llq import CLIENT, NAME, STREAM, UNIX, Host, a_record, ack_wire, edits, question, refresh, setup

SIZE = 150


def peer_of(number: int) -> Peer:
    return CLIENT._replace(port=1 + number)


def crowd() -> tuple[Host, list[int]]:
    host = Host()
    return host, [host.establish(peer=peer_of(number)) for number in range(SIZE)]


def slice_of(host: Host, most: int) -> list[SendEvent]:
    host.machine.handle_deadline(now=host.now, unix=host.unix, most=most)
    return host.take()


@pytest.mark.parametrize("algorithm", [None, *ALGORITHMS.values()], ids=lambda each: each and each.text)
@pytest.mark.parametrize("size", [1, 2, 64])
def test_together_they_have_the_octets_that_each_has_alone(algorithm: Algorithm | None, size: int) -> None:
    key = algorithm and Key(from_text("Laptop"), algorithm, b"s" * 20)
    items = frozenset((Item(1, b"\0\0\0\1"), Item(1, b"\0\0\0\2")))
    plan = make_plan(NAME, 1, frozenset(), frozenset(), dict.fromkeys(items, 60), items, 1000)
    ids = [0x0123456789ABCDEF * (number + 1) & 0xFFFFFFFFFFFFFFFF for number in range(size)]
    events = SendEvents(plan, key and key.name, UNIX * 16, UNIX, [peer_of(number) for number in range(size)], ids)
    alone = [event.wire for event in events.each()]
    if key is not None:
        alone = [sign_common(wire, key, now=UNIX, request_mac=None) for wire in alone]
    assert list(events.alike(key).each()) == alone
    assert len(set(alone)) == size


def test_who_stands_elsewhere_is_told_apart_and_the_others_together() -> None:
    """By key, by the case of the name, by listener, by stream, though one of the listener's number."""
    host = Host()
    for number in range(40):
        host.establish(
            question(NAME.upper() if number % 5 == 0 else NAME),
            peer=peer_of(number)._replace(via=1 + number % 2),
            key=b"\3key\0" if number % 3 == 0 else None,
        )
    host.ask((question(), setup()), peer=STREAM._replace(via=2), key=b"\3key\0")  # as the last, but for the transport
    host.change(add=[a_record(1)])
    host.now += 0.2
    host.machine.handle_deadline(now=host.now, unix=host.unix)
    effects = host.machine.take_effects()
    assert len(effects) == 2 * 2 * 2 + 1
    for effect in effects:
        assert len({(peer.transport, peer.via) for peer in effect.peers}) == 1
        for event in effect.each():
            number = event.peer.port - 1
            is_odd = event.peer.transport == "udp" and number % 5 == 0
            assert decode(event.wire).questions[0].name == (NAME.upper() if is_odd else NAME)
            is_signed = event.peer.transport != "udp" or number % 3 == 0
            assert event.key_name == (b"\3key\0" if is_signed else None)
            assert edits(event.wire) == ([], [a_record(1).rdata])
    assert sum(len(effect.peers) for effect in effects) == 41 == host.machine.counters.events


def test_each_is_told_what_it_lacks() -> None:
    """Clients of one crowd of whom more or less is known: what they hold for sure differs, or what they may hold."""
    host = Host()
    ids = [host.establish(peer=peer_of(number)) for number in range(9)]
    host.change(add=[a_record(1)])
    events = [event for _, event in host.run(0.2)]
    assert len(events) == 9
    host.change(add=[a_record(2)])
    for number, llq_id in enumerate(ids):
        if number % 3:  # its answer comes again: with all there is now, or with nothing
            host.ask((question(), setup(llq_id)), peer=peer_of(number), written=2 if number % 3 == 1 else 0)
    host.change(remove=[a_record(2)], add=[a_record(3)])
    assert all(host.acknowledge(event) for event in events)
    assert {held.state for held in host.machine._register} == {State.SETTLED}
    one, two, three = (a_record(number).rdata for number in (1, 2, 3))
    expected = [([], [three]), ([two], [three]), ([], [one, three])]
    told = {event.peer: edits(event.wire) for _, event in host.run(0.2)}
    assert told == {peer_of(number): expected[number % 3] for number in range(9)}


def test_whoever_was_told_within_this_second_gets_another_message_id() -> None:
    """Beside others of the same crowd who were not, as they had not acknowledged what came before."""
    host = Host()
    for number in range(20):
        host.establish(peer=peer_of(number))
    host.change(add=[a_record(1)])
    slow = [event for _, event in host.run(0.5)]
    host.run(0.6)
    for number in range(20, 40):  # in answers to them there was no room
        option = host.ask((question(), setup()), peer=peer_of(number)).options[0]
        host.ask((question(), option), peer=peer_of(number), written=0)
    quick = [event for _, event in host.run(0.2)]
    assert len(slow) == len(quick) == 20
    host.change(add=[a_record(2)])
    assert all(host.acknowledge(event) for event in slow + quick)
    before = {event.peer: event.message_id for event in slow + quick}
    after = [event for _, event in host.run(0.2)]
    assert len(after) == 40
    assert all(before[event.peer] != event.message_id for event in after)
    assert all(host.acknowledge(event) for event in after)


def test_tries_of_an_event_that_was_acknowledged_do_not_stand_for_the_next() -> None:
    host, _ = crowd()
    host.change(add=[a_record(1)])
    first = host.settle(1)
    assert len(first) == SIZE
    host.change(add=[a_record(2)])
    second = [event for _, event in host.run(0.5)]
    assert len(second) == SIZE
    assert host.run(1) == []  # the first would have been sent again
    again = [event for _, event in host.run(1)]
    assert [event.wire for event in again] == [event.wire for event in second]


def test_between_slices_each_has_its_own_life() -> None:
    """It acknowledges, refreshes, leaves, asks again, or the zone changes, before or after its turn."""
    host, ids = crowd()
    host.change(add=[a_record(1)])
    host.now += 0.2
    first = slice_of(host, 65)  # the window is one
    assert [event.peer for event in first] == [peer_of(number) for number in range(64)]
    assert host.acknowledge(first[0])
    host.ask((question(), refresh(ids[1], 0)), peer=peer_of(1))
    host.ask((question(), refresh(ids[2])), peer=peer_of(2))
    for number in (3, 4):  # their repeated answers had no room
        host.ask((question(), setup(ids[number])), peer=peer_of(number), written=0)
    host.ask((question(), refresh(ids[100], 0)), peer=peer_of(100))
    host.ask((question(), refresh(ids[101])), peer=peer_of(101))
    second = slice_of(host, 64)
    assert {event.peer for event in second} == {peer_of(number) for number in range(64, 128)} - {peer_of(100)}
    third = slice_of(host, 64)
    assert {event.peer for event in third} == {peer_of(number) for number in range(128, SIZE)}
    # 3 may have taken the empty answer for the truth: its ack settles nothing, and it is told again
    assert all(host.acknowledge(event) for event in first[2:] + second + third if event.peer != peer_of(4))
    again = host.run(1)
    assert [(event.peer, edits(event.wire)) for _, event in again] == [(peer_of(3), ([], [a_record(1).rdata]))]
    assert host.acknowledge(again[0][1])
    assert [event.wire for _, event in host.run(1.5)] == [first[4].wire]
    assert host.acknowledge(first[4])
    assert [(event.peer, edits(event.wire)) for event in host.settle(60)] == [(peer_of(4), ([], [a_record(1).rdata]))]
    assert {held.state for held in host.machine._register} == {State.SETTLED}
    assert len(host.machine) == SIZE - 2


def test_a_change_between_slices_reaches_who_was_told_before_it_and_who_was_not() -> None:
    host, _ = crowd()
    host.change(add=[a_record(1)])
    host.now += 0.2
    first = slice_of(host, 65)
    host.change(add=[a_record(2)])
    views = {event.peer: edits(event.wire)[1] for event in first}
    rest = slice_of(host, 200)
    assert len(rest) == SIZE - 64
    for event in first + rest:
        assert host.acknowledge(event)
    both = sorted((a_record(1).rdata, a_record(2).rdata))
    assert {tuple(sorted(edits(event.wire)[1])) for event in rest} == {tuple(both)}
    later = host.settle()
    assert {event.peer for event in later} == set(views)
    assert {tuple(edits(event.wire)[1]) for event in later} == {(a_record(2).rdata,)}


def test_tries_repeat_for_those_who_are_silent_until_they_end() -> None:
    """The crowd's place in the queues of tries is one; each of its members is looked at for itself, in slices."""
    host, _ = crowd()
    host.change(add=[a_record(1)])
    first = [event for _, event in host.run(0.5)]
    assert len(first) == SIZE
    silent = {peer_of(number) for number in range(0, SIZE, 3)}
    for event in first:
        assert event.peer in silent or host.acknowledge(event)
    assert host.machine.next_deadline() is not None
    host.now += 2
    second = slice_of(host, 40)
    assert len(second) < len(silent)
    second += [event for _, event in host.run(0)]
    assert {(event.peer, event.wire) for event in second} == {
        (event.peer, event.wire) for event in first if event.peer in silent
    }
    late = second[0]
    assert host.machine.ack(decode(ack_wire(late.wire)), late.peer, now=host.now)
    third = [event for _, event in host.run(5)]
    assert {event.peer for event in third} == silent - {late.peer}
    assert host.run(10) == []
    assert host.machine.counters.unreachable == len(silent) - 1
    assert len(host.machine) == SIZE - len(silent) + 1
    assert host.machine.counters.retransmissions == 2 * len(silent) - 1
    assert len(host.machine._events._retries) == 0


def test_a_slice_is_as_large_as_it_may_be_with_many_small_crowds() -> None:
    host = Host()
    names = [bytes((3,)) + b"%03d" % number + NAME for number in range(40)]
    for name in names:
        for number in range(3):
            host.establish(question(name), peer=peer_of(number))
    host.change(add=[a_record(1, name) for name in names])
    host.now += 0.2
    assert len(slice_of(host, 40 + 100)) == 100  # each window is one
    assert len(slice_of(host, 100)) == 20
