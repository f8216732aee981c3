"""What the machine promises beyond RFC 8764: bounded work, bounded memory, shared work, fairness."""

import random

from protocol.edns import LlqError
from protocol.message import Question
from protocol.name import from_text
from server.peer import Peer
from server.push.challenge import Challenger
from tests.support.llq import CLIENT, NAME, SECRET, STREAM, UNIX, Host, a_record, question, refresh, setup


def crowd(host: Host, size: int) -> None:
    for number in range(size):
        host.establish(peer=Peer("udp", f"10.0.{number >> 8}.{number & 255}", 5000, 1))


def test_a_crowd_at_one_name_costs_one_lookup_and_one_body() -> None:
    host = Host()
    crowd(host, 300)
    host.lookups = 0
    host.change(add=[a_record(1)])
    events = host.settle()
    assert len(events) == 300
    assert host.lookups == 1
    assert len({event.wire[2:-12] for event in events}) == 1
    assert len({event.wire[-12:-4] for event in events}) == 300


def test_a_crowd_is_served_in_slices() -> None:
    host = Host()
    crowd(host, 100)
    host.change(add=[a_record(1)])
    host.now += 0.2
    sizes = []
    while host.machine.next_deadline() is not None and host.machine.next_deadline() <= host.now:  # type: ignore[operator]
        host.machine.handle_deadline(now=host.now, unix=host.unix, most=30)
        sizes.append(len(host.take()))
    assert sizes == [29, 30, 30, 11]


def test_changes_elsewhere_cost_nothing() -> None:
    host = Host()
    host.establish()
    deadline = host.machine.next_deadline()
    host.change(add=[a_record(1, from_text("other.members.example")), a_record(1)._replace(rtype=16)])
    assert host.machine.next_deadline() == deadline


def test_coming_and_going_leaves_nothing_behind() -> None:
    host = Host()
    for number in range(3000):
        peer = CLIENT._replace(port=1 + number)
        asked = question(bytes((4,)) + b"%04d" % number + NAME)
        llq_id = host.establish(asked, peer=peer)
        host.ask((asked, refresh(llq_id, 0)), peer=peer)
        host.establish(asked, peer=STREAM._replace(via=number))
        host.machine.stream_closed(number, now=host.now)
    assert len(host.machine) == 0
    assert len(host.machine._leases) <= 1100
    register = host.machine._register
    assert not any((register._topics, register._by_id, register._by_identity, register._by_stream))
    assert not len(host.machine._events._retries)
    assert not register._per_network


def test_events_acknowledged_at_once_leave_few_tries_behind() -> None:
    host = Host()
    crowd(host, 300)
    for number in range(12):  # all of them within the two seconds to the first repetition
        host.change(add=[a_record(number)])
        events = host.run(0.15)
        assert len(events) == 300
        assert all(host.acknowledge(event) for _, event in events)
    assert len(host.machine._events._retries) <= 1024 + 4 * 300
    assert host.run(20) == []
    assert not len(host.machine._events._retries)


def test_refreshing_leaves_one_timer_a_lease() -> None:
    host = Host()
    llq_id = host.establish()
    for _ in range(2000):
        host.now += 1
        assert host.ask((question(), refresh(llq_id))).options[0].error == 0
    assert len(host.machine._leases) == 1


def test_two_clients_with_the_same_id_for_one_question_are_kept_apart() -> None:
    """36 bits of MAC: a collision within one step is rare, and forced here by a weak machine-made one."""
    host = Host()

    class Weak(Challenger):
        def _make(self, step: int, peer: Peer, question: Question, lease: int, key_name: bytes | None) -> int:
            return step << 36 | 7

    host.machine._challenger = Weak(SECRET)
    host.establish()
    other = CLIENT._replace(port=9)
    challenge = host.ask((question(), setup()), peer=other).options[0]
    assert host.ask((question(), challenge), peer=other).options[0]._replace(opcode=1) == setup(
        error=LlqError.SERV_FULL, lease=1
    )
    host.establish(question(rtype=28), peer=other)
    assert len(host.machine) == 2


def test_challenges_survive_a_clock_that_steps_back_a_little() -> None:
    challenger = Challenger(SECRET)
    llq_id = challenger.issue(CLIENT, question(), 900, None, unix=UNIX)
    for step, good in ((-32, True), (-64, True), (-200, False), (0, True), (900, True), (1000, False), (10**9, False)):
        assert challenger.is_met(llq_id, CLIENT, question(), 900, None, unix=UNIX + step) is good


def test_a_reply_never_reported_written_is_made_good_by_the_next_change() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    challenge = host.ask((question(), setup())).options[0]
    host.raw([question()], [challenge.encode()])
    host.change(add=[a_record(2)])
    (event,) = host.settle()
    assert len(event.wire) > 100
    assert host.settle() == []


def test_signed_retransmissions_carry_the_first_signing_time() -> None:
    host = Host()
    host.establish(key=b"\3key\0")
    host.change(add=[a_record(1)])
    sent = [event for _, event in host.run(30)]
    assert len(sent) == 3
    assert {event.signed_at for event in sent} == {UNIX}


def test_random_octets_in_options_are_answered_with_errors() -> None:
    host = Host()
    chance = random.Random(5)
    for _ in range(2000):
        data = chance.randbytes(chance.choice((0, 17, 18, 18, 18, 19)))
        if len(data) == 18:
            data = chance.choice((data, b"\0\1" + data[2:], b"\0\1\0" + bytes((chance.randrange(4),)) + data[4:]))
        reply = host.raw([question(rtype=chance.randrange(300))], [(1, data)], chance.choice((CLIENT, STREAM)))
        host.machine.answered(reply, 0, now=host.now)
        assert len(reply.options) == 1
    host.settle()
