"""RFC 8764 sentence by sentence, put to the machine; RFC 6281 §5.3 where it sets bounds."""

import pytest

from protocol.constants import AA, QR, Class, Type
from protocol.edns import LlqError, LlqOpcode, LlqOption, Opt, llq_options
from protocol.message import Question, decode, encode
from protocol.name import from_text
from server.peer import Peer
from server.push.limits import LlqLimits
from tests.support.llq import (
    CLIENT,
    NAME,
    OTHER,
    STREAM,
    Host,
    a_record,
    ack_wire,
    edits,
    question,
    refresh,
    setup,
)

KEY = from_text("laptop.alice.members.example")
ELSEWHERE = from_text("nas.alice.members.example")


def wire_of(*pairs: tuple[Question, LlqOption], id: int = 7, payload: int = 0) -> bytes:
    options = tuple(option.encode() for _, option in pairs)
    return encode(id, 0x0100, [asked for asked, _ in pairs], opt=Opt(payload_size=payload, options=options))


# Set-up


@pytest.mark.rfc("8764", "5.2.2")
@pytest.mark.rfc("8764", "5.1")
@pytest.mark.rfc("8764", "A")
def test_a_set_up_is_challenged_and_leaves_no_memory() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    reply = host.ask((question(), setup()))
    (option,) = reply.options
    assert option._replace(llq_id=0) == LlqOption(1, LlqOpcode.SETUP, LlqError.NO_ERROR, 0, 7200)
    assert option.llq_id
    assert (reply.answers, len(host.machine), host.machine.next_deadline()) == ([], 0, None)


@pytest.mark.rfc("8764", "5.2.2")
def test_ids_differ_between_peers_questions_leases_and_keys() -> None:
    host = Host()
    asked = [
        host.ask((question(), setup())),
        host.ask((question(), setup()), peer=OTHER),
        host.ask((question(), setup()), peer=CLIENT._replace(port=1)),
        host.ask((question(ELSEWHERE), setup())),
        host.ask((question(rtype=28), setup())),
        host.ask((question(), setup(lease=900))),
        host.ask((question(), setup()), key=KEY),
        Host().ask((question(), setup())),
    ]
    ids = [reply.options[0].llq_id for reply in asked]
    assert len(set(ids[:-1])) == 7
    assert ids[-1] == ids[0]


@pytest.mark.rfc("8764", "5.2.4")
def test_the_answer_to_a_challenge_response_has_all_records_and_the_lease() -> None:
    host = Host()
    records = [a_record(1), a_record(2)]
    host.change(add=[*records, a_record(3, ELSEWHERE)])
    challenge = host.ask((question(), setup())).options[0]
    reply = host.ask((question(), challenge))
    assert reply.options == [challenge]
    assert reply.answers == records
    assert host.settle() == []


@pytest.mark.rfc("8764", "5.2")
def test_the_message_has_question_and_llq_option_and_no_error() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    challenge = decode(host.handle(wire_of((question(), setup())), CLIENT) or b"")
    (option,) = llq_options(challenge.opt)
    ack = decode(host.handle(wire_of((question(), option), id=8), CLIENT) or b"")
    for message, id, records in ((challenge, 7, 0), (ack, 8, 1)):
        assert (message.id, message.header.flags, message.questions) == (id, QR | AA | 0x0100, (question(),))
        assert (len(message.answers), len(llq_options(message.opt))) == (records, 1)


@pytest.mark.rfc("8764", "5.2.2")
@pytest.mark.rfc("6281", "5.3")
@pytest.mark.parametrize(
    ("wish", "granted"), [(0, 900), (1, 900), (900, 900), (5000, 5000), (7200, 7200), (2**32 - 1, 7200)]
)
def test_leases_are_held_to_rfc_6281_bounds(wish: int, granted: int) -> None:
    host = Host()
    assert host.ask((question(), setup(lease=wish))).options[0].lease == granted
    llq_id = host.establish()
    if wish:
        assert host.ask((question(), refresh(llq_id, wish))).options[0].lease == granted


@pytest.mark.rfc("8764", "5.2")
@pytest.mark.rfc("8764", "5.2.1")
@pytest.mark.rfc("8764", "5.2.2")
@pytest.mark.parametrize(
    ("asked", "option", "expected"),
    [
        (question(rtype=Type.ANY), setup(), LlqError.FORMAT_ERR),
        (question(rtype=Type.AXFR), setup(), LlqError.FORMAT_ERR),
        (question(rclass=Class.ANY), setup(), LlqError.FORMAT_ERR),
        (question(rclass=Class.NONE), setup(), LlqError.FORMAT_ERR),
        (question(rclass=0), setup(), LlqError.FORMAT_ERR),
        (question(rclass=Class.CH), setup(), LlqError.UNKNOWN_ERR),
        (question(), setup(error=5353), LlqError.FORMAT_ERR),
        (question(), setup(version=2), LlqError.BAD_VERS),
        (question(), setup(version=0), LlqError.BAD_VERS),
        (question(), LlqOption(1, 0, 0, 0, 7200), LlqError.FORMAT_ERR),
        (question(), LlqOption(1, LlqOpcode.EVENT, 0, 0, 7200), LlqError.FORMAT_ERR),
        (question(), LlqOption(1, 77, 0, 5, 7200), LlqError.FORMAT_ERR),
        (question(), setup(llq_id=1234), LlqError.UNKNOWN_ERR),
    ],
)
def test_refused_set_ups_have_id_0_and_lease_0(asked: Question, option: LlqOption, expected: LlqError) -> None:
    host = Host()
    assert host.ask((asked, option)).options == [LlqOption(1, LlqOpcode.SETUP, expected, 0, 0)]
    assert len(host.machine) == 0
    assert host.machine.counters.refused == 1


@pytest.mark.rfc("8764", "5.2")
@pytest.mark.rfc("8764", "5.2.1")
@pytest.mark.rfc("8764", "5.2.2")
@pytest.mark.parametrize(
    ("questions", "options", "told"),
    [
        ([question(), question(rtype=28)], [setup().encode()], 1),
        ([question()], [setup().encode(), setup().encode()], 1),
        ([], [setup().encode()], 1),
        ([question()], [(1, b"short")], 1),
        ([question()], [(1, b"\0" * 19)], 1),
        ([question(rtype=n) for n in range(1, 120)], [setup().encode()] * 2, 2),
    ],
)
def test_a_malformed_llq_part_is_an_llq_error(
    questions: list[Question], options: list[tuple[int, bytes]], told: int
) -> None:
    assert Host().raw(questions, options).options == [LlqOption(1, LlqOpcode.SETUP, LlqError.FORMAT_ERR, 0, 0)] * told


@pytest.mark.rfc("8764", "5.2")
@pytest.mark.rfc("8764", "5.2.1")
@pytest.mark.rfc("8764", "5.2.2")
@pytest.mark.rfc("8764", "5.2.3")
def test_several_questions_succeed_and_fail_each_for_itself() -> None:
    host = Host()
    host.verdicts[ELSEWHERE] = LlqError.UNKNOWN_ERR
    host.change(add=[a_record(1)])
    asked = [question(), question(ELSEWHERE), question(rtype=Type.ANY), question(rtype=28)]
    challenge = host.ask(*[(one, setup()) for one in asked])
    errors = [LlqError.NO_ERROR, LlqError.UNKNOWN_ERR, LlqError.FORMAT_ERR, LlqError.NO_ERROR]
    assert [option.error for option in challenge.options] == errors
    reply = host.ask((asked[0], challenge.options[0]), (asked[3], challenge.options[3]))
    assert [option.error for option in reply.options] == [0, 0]
    assert [rr.rdata for rr in reply.answers] == [a_record(1).rdata]
    assert len(host.machine) == 2


@pytest.mark.rfc("8764", "5.2.1")
def test_the_same_question_twice_in_a_message_is_set_up_once() -> None:
    upper = question(NAME.replace(b"mac", b"MAC"))
    reply = Host().ask((question(), setup()), (upper, setup()))
    assert [option.error for option in reply.options] == [LlqError.NO_ERROR, LlqError.FORMAT_ERR]


@pytest.mark.rfc("8764", "5.2.2")
def test_a_static_name_is_answered_with_its_records() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    host.verdicts[NAME] = LlqError.STATIC
    reply = host.ask((question(), setup()))
    assert reply.options == [LlqOption(1, LlqOpcode.SETUP, LlqError.STATIC, 0, 0)]
    assert reply.answers == [a_record(1)]
    assert len(host.machine) == 0


@pytest.mark.rfc("8764", "5.2.2")
@pytest.mark.parametrize(
    ("limits", "peer", "asked"),
    [
        (LlqLimits(maximum_subscriptions=1), OTHER, question(ELSEWHERE)),
        (LlqLimits(maximum_per_address=1), CLIENT._replace(port=2), question(ELSEWHERE)),
        (LlqLimits(maximum_per_question=1), OTHER, question()),
    ],
)
def test_a_full_table_tells_when_to_come_again(limits: LlqLimits, peer: Peer, asked: Question) -> None:
    host = Host(limits=limits)
    late = host.ask((asked, setup()), peer=peer).options[0]  # challenged while there was room
    first = host.establish()
    full = LlqOption(1, LlqOpcode.SETUP, LlqError.SERV_FULL, 0, 300)
    assert host.ask((asked, setup()), peer=peer).options == [full]
    assert host.ask((asked, late), peer=peer).options == [full]
    assert host.ask((asked, setup()), peer=STREAM._replace(address=peer.address)).options == [full]
    assert host.ask((question(), setup())).options[0].error == 0  # a restart needs no room
    host.ask((question(), refresh(first, 0)))
    assert host.ask((asked, late), peer=peer).options[0].error == 0


@pytest.mark.rfc("8764", "8")
def test_set_ups_per_second_are_bounded_and_the_wait_is_told() -> None:
    host = Host(limits=LlqLimits(setup_burst=2, setups_per_second=0.25))
    first = host.establish()
    host.establish(question(rtype=28))
    assert host.ask((question(rtype=33), setup())).options == [LlqOption(1, 1, LlqError.SERV_FULL, 0, 4)]
    assert host.ask((question(), refresh(first))).options[0].error == 0
    host.now += 3.9
    assert host.ask((question(rtype=33), setup())).options[0].error == LlqError.SERV_FULL
    host.now += 0.1
    host.establish(question(rtype=33))


def test_ipv6_addresses_are_counted_by_their_64() -> None:
    host = Host(limits=LlqLimits(maximum_per_address=1))
    host.establish(peer=Peer("udp", "2001:db8::1", 1, 1))
    assert host.ask((question(), setup()), peer=Peer("udp", "2001:db8::2", 1, 1)).options[0].error == LlqError.SERV_FULL
    host.establish(peer=Peer("udp", "2001:db8:0:1::1", 1, 1))


# Duplicates, restarts, strangers


@pytest.mark.rfc("8764", "5.1")
def test_a_repeated_set_up_gets_the_same_challenge() -> None:
    host = Host()
    host.now = 103.0
    first = host.ask((question(), setup())).options
    host.now += 6
    assert host.ask((question(), setup())).options == first


def test_challenges_of_two_steps_are_both_good() -> None:
    host = Host()
    first = host.ask((question(), setup())).options[0]
    host.now += 40
    second = host.ask((question(), setup())).options[0]
    assert first != second
    assert host.ask((question(), first)).options == [first]
    assert host.ask((question(), second)).options == [second]
    assert len(host.machine) == 1


@pytest.mark.rfc("8764", "5.1")
def test_a_challenge_is_good_until_its_lease_is_over() -> None:
    for age, error in ((900, 0), (1000, LlqError.UNKNOWN_ERR)):
        host = Host()
        challenge = host.ask((question(), setup(lease=900))).options[0]
        host.now += age
        assert host.ask((question(), challenge)).options[0].error == error


@pytest.mark.rfc("8764", "5.2.3")
@pytest.mark.rfc("6281", "5.3")
def test_a_challenge_must_come_back_from_where_it_went_unchanged() -> None:
    host = Host()
    challenge = host.ask((question(), setup())).options[0]
    for asked, option, peer, key in (
        (question(), challenge, OTHER, None),
        (question(), challenge, CLIENT._replace(port=1), None),
        (question(ELSEWHERE), challenge, CLIENT, None),
        (question(rtype=28), challenge, CLIENT, None),
        (question(), challenge, CLIENT, KEY),
        (question(), challenge._replace(lease=7199), CLIENT, None),
        (question(), challenge._replace(lease=0), CLIENT, None),
        (question(), challenge._replace(llq_id=challenge.llq_id ^ 1), CLIENT, None),
        (question(), challenge._replace(llq_id=challenge.llq_id ^ 1 << 40), CLIENT, None),
        (question(), challenge, STREAM._replace(port=CLIENT.port), None),
    ):
        assert host.ask((asked, option), peer=peer, key=key).options[0].error == LlqError.UNKNOWN_ERR
    assert len(host.machine) == 0
    assert host.ask((question(NAME.upper()), challenge)).options == [challenge]


@pytest.mark.rfc("8764", "5.1")
def test_a_repeated_challenge_response_gets_current_answers_and_the_lease_left() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    challenge = host.ask((question(), setup())).options[0]
    host.ask((question(), challenge))
    host.now += 10
    host.change(remove=[a_record(1)], add=[a_record(2)])
    reply = host.ask((question(), challenge))
    assert reply.options == [challenge._replace(lease=7190)]
    assert reply.answers == [a_record(2)]
    assert len(host.machine) == 1
    # The client may have taken either answer: the event makes both right.
    (event,) = host.settle()
    assert edits(event.wire) == ([a_record(1).rdata], [a_record(2).rdata])
    assert host.settle() == []


def test_a_restart_on_the_same_port_replaces_only_once_confirmed() -> None:
    host = Host()
    old = host.establish()
    challenge = host.ask((question(), setup())).options[0]
    assert challenge.llq_id != old
    host.change(add=[a_record(1)])
    (event,) = host.settle()
    assert llq_options(decode(event.wire).opt)[0].llq_id == old
    host.ask((question(), challenge))
    assert len(host.machine) == 1
    assert host.machine.counters.replaced == 1
    host.change(remove=[a_record(1)])
    (event,) = host.settle()
    assert llq_options(decode(event.wire).opt)[0].llq_id == challenge.llq_id


def test_a_straggling_challenge_response_does_not_replace_a_newer_subscription() -> None:
    host = Host()
    first = host.ask((question(), setup())).options[0]
    host.ask((question(), first))
    second = host.ask((question(), setup())).options[0]
    host.ask((question(), second))
    assert host.ask((question(), first)).options[0].error == LlqError.UNKNOWN_ERR
    assert host.ask((question(), refresh(second.llq_id))).options[0].error == 0


@pytest.mark.rfc("8764", "5.2.1")
def test_other_ports_are_other_clients() -> None:
    host = Host()
    ids = {host.establish(peer=CLIENT._replace(port=port)) for port in (1, 2, 3)}
    assert len(ids) == len(host.machine) == 3


# Refresh and cancel


@pytest.mark.rfc("8764", "7.2")
def test_refresh_copies_id_grants_a_lease_and_has_no_answers() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    llq_id = host.establish(lease=1000)
    host.now += 990
    reply = host.ask((question(), refresh(llq_id, 1000)))
    assert (reply.options, reply.answers) == ([refresh(llq_id, 1000)], [])
    host.run(999)
    assert len(host.machine) == 1
    host.run(1.5)
    assert (len(host.machine), host.machine.counters.lapsed) == (0, 1)


@pytest.mark.rfc("8764", "7.1")
def test_one_message_renews_cancels_and_misses() -> None:
    host = Host()
    one, two = host.establish(), host.establish(question(rtype=28))
    reply = host.ask(
        (question(), refresh(one, 1800)), (question(rtype=28), refresh(two, 0)), (question(rtype=33), refresh(99, 1800))
    )
    assert reply.options == [
        refresh(one, 1800),
        refresh(two, 0),
        LlqOption(1, LlqOpcode.REFRESH, LlqError.NO_SUCH_LLQ, 99, 0),
    ]
    assert (len(host.machine), host.machine.counters.cancelled) == (1, 1)
    assert host.ask((question(rtype=28), refresh(two, 0))).options[0].error == LlqError.NO_SUCH_LLQ


@pytest.mark.rfc("8764", "7.1")
def test_refresh_needs_the_question_and_the_address_or_the_key() -> None:
    host = Host()
    plain = host.establish()
    signed = host.establish(question(rtype=28), key=KEY)
    moved = CLIENT._replace(port=9)
    cases = [
        (question(rtype=33), plain, CLIENT, None, False),
        (question(ELSEWHERE), plain, CLIENT, None, False),
        (question(), plain, OTHER, None, False),
        (question(), plain, CLIENT, KEY, False),
        (question(), signed, CLIENT, KEY, False),
        (question(rtype=28), signed, CLIENT, None, False),
        (question(rtype=28), signed, CLIENT, from_text("other"), False),
        (question(), plain, CLIENT, None, True),
        (question(), plain, moved, None, True),
        (question(), plain, STREAM, None, True),
        (question(rtype=28), signed, OTHER, KEY, True),
    ]
    for asked, llq_id, peer, key, good in cases:
        for option in (refresh(llq_id, 0), refresh(llq_id)) if not good else (refresh(llq_id),):
            error = host.ask((asked, option), peer=peer, key=key).options[0].error
            assert error == (LlqError.NO_ERROR if good else LlqError.NO_SUCH_LLQ)
    assert len(host.machine) == 2


@pytest.mark.rfc("8764", "7.2")
def test_an_expired_llq_is_unknown_even_before_the_timer_ran() -> None:
    host = Host()
    llq_id = host.establish(lease=900)
    host.now += 900
    reply = host.ask((question(), refresh(llq_id)))
    assert reply.options == [LlqOption(1, LlqOpcode.REFRESH, LlqError.NO_SUCH_LLQ, llq_id, 0)]
    assert host.machine.counters.lapsed == 1


@pytest.mark.rfc("8764", "7.2")
def test_a_refresh_of_a_wrong_version_echoes_the_id() -> None:
    option = refresh(5)._replace(version=9)
    assert Host().ask((question(), option)).options == [LlqOption(1, LlqOpcode.REFRESH, LlqError.BAD_VERS, 5, 0)]


def test_early_refreshes_are_fine_and_a_shorter_lease_counts() -> None:
    host = Host()
    llq_id = host.establish()
    for _ in range(5):
        host.now += 10
        assert host.ask((question(), refresh(llq_id))).options[0].error == 0
    host.ask((question(), refresh(llq_id, 900)))
    host.run(901)
    assert len(host.machine) == 0


# Events


@pytest.mark.rfc("8764", "6")
@pytest.mark.rfc("6281", "5.3")
def test_an_event_is_a_response_with_question_records_and_option() -> None:
    host = Host()
    llq_id = host.establish()
    host.change(add=[a_record(1), a_record(2, ELSEWHERE), a_record(3)._replace(rtype=28, rdata=b"\0" * 16)])
    (event,) = host.settle()
    message = decode(event.wire)
    assert (message.header.flags, message.questions) == (QR | AA, (question(),))
    assert [(rr.name, rr.rtype, rr.rclass, rr.ttl) for rr in message.answers] == [(NAME, 1, 1, 60)]
    assert llq_options(message.opt) == [LlqOption(1, LlqOpcode.EVENT, LlqError.NO_ERROR, llq_id, 0)]
    assert message.opt is not None
    assert len(message.opt.options) == 1
    assert (event.peer, event.message_id) == (CLIENT, message.id)


@pytest.mark.rfc("8764", "6.2")
@pytest.mark.rfc("6281", "5.3")
def test_a_removed_record_is_whole_with_ttl_minus_1_and_comes_first() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    host.establish()
    host.change(remove=[a_record(1)], add=[a_record(2)])
    (event,) = host.settle()
    ttls = [(rr.ttl, rr.rdata(event.wire)) for rr in decode(event.wire).answers]
    assert ttls == [(0xFFFFFFFF, a_record(1).rdata), (60, a_record(2).rdata)]


@pytest.mark.rfc("8764", "6")
def test_what_cancels_within_the_window_is_not_sent() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    host.establish()
    host.change(add=[a_record(2)])
    host.change(remove=[a_record(2)])
    host.change(remove=[a_record(1)])
    host.change(add=[a_record(1, ttl=5)])
    assert host.settle() == []


@pytest.mark.rfc("8764", "6")
def test_changes_are_gathered_for_a_moment_but_not_for_long() -> None:
    host = Host()
    host.establish()
    host.change(add=[a_record(1)])
    assert [at for at, _ in host.run(0.2)][:1] == [0.1]
    host = Host()
    host.establish()
    sent: list[float] = []
    for step in range(40):
        host.change(add=[a_record(step)])
        sent += [step * 0.05 + at for at, _ in host.run(0.05)]
    assert sent == [1.0]


@pytest.mark.rfc("8764", "6")
@pytest.mark.rfc("6281", "5.3")
def test_an_event_is_sent_three_times_and_then_the_llq_is_gone() -> None:
    host = Host()
    host.establish()
    host.change(add=[a_record(1)])
    sent = host.run(30)
    assert [at for at, _ in sent] == [0.1, 2.1, 6.1]
    assert len({event for _, event in sent}) == 1
    assert (len(host.machine), host.machine.counters.unreachable) == (0, 1)


@pytest.mark.rfc("8764", "6")
def test_the_llq_lives_until_14_seconds_and_an_ack_to_the_last_try_saves_it() -> None:
    host = Host()
    host.establish()
    host.change(add=[a_record(1)])
    sent = host.run(14.05)
    assert len(host.machine) == 1
    assert host.acknowledge(sent[0][1])
    host.run(100)
    assert (len(host.machine), host.machine.counters.acks) == (1, 1)


@pytest.mark.rfc("8764", "6.3")
def test_an_ack_counts_only_from_the_right_place_with_both_ids() -> None:
    host = Host()
    host.establish()
    host.change(add=[a_record(1)])
    ((_, event),) = host.run(0.2)
    message = decode(event.wire)
    (option,) = llq_options(message.opt)

    def answer(id: int = message.id, option: LlqOption = option, peer: Peer = CLIENT) -> bool:
        wire = encode(id, QR | AA, opt=Opt(options=(option.encode(),)))
        return host.machine.ack(decode(wire), peer, now=host.now)

    assert not answer(peer=OTHER)
    assert not answer(peer=CLIENT._replace(port=1))
    assert not answer(id=message.id ^ 1)
    assert not answer(option=option._replace(llq_id=1))
    assert not answer(option=option._replace(opcode=LlqOpcode.REFRESH))
    assert not host.machine.ack(decode(encode(message.id, QR)), CLIENT, now=host.now)
    assert answer()  # without a question
    assert not answer()  # once only
    assert host.machine.counters.stray_acks == 7


@pytest.mark.rfc("8764", "6")
def test_one_event_is_outstanding_and_later_changes_merge_behind_it() -> None:
    host = Host()
    host.establish()
    host.change(add=[a_record(1)])
    ((_, first),) = host.run(0.2)
    host.change(add=[a_record(2)])
    host.run(0.5)
    host.change(remove=[a_record(1), a_record(2)], add=[a_record(3)])
    ((_, again),) = host.run(2)
    assert again == first
    host.acknowledge(first)
    ((_, second),) = host.run(1)
    assert edits(second.wire) == ([a_record(1).rdata], [a_record(3).rdata])
    assert second.message_id != first.message_id


def test_a_refresh_does_not_stop_retransmission() -> None:
    host = Host()
    llq_id = host.establish()
    host.change(add=[a_record(1)])
    host.run(1)
    host.ask((question(), refresh(llq_id)))
    host.run(30)
    assert host.machine.counters.unreachable == 1


@pytest.mark.rfc("8764", "7")
@pytest.mark.rfc("8764", "5.2.2")
def test_no_event_for_an_expired_llq() -> None:
    host = Host()
    host.establish(lease=900)
    host.now += 899.95
    host.change(add=[a_record(1)])
    assert host.run(30) == []


@pytest.mark.rfc("8764", "6")
def test_names_match_in_any_case_and_come_back_in_the_clients() -> None:
    host = Host()
    asked = question(NAME.upper())
    host.establish(asked)
    host.change(add=[a_record(1)])
    (event,) = host.settle()
    message = decode(event.wire)
    assert (message.questions[0].name, message.answers[0].name) == (asked.name, asked.name)


def test_an_alias_at_the_name_takes_the_place_of_its_records() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    host.establish()
    alias = a_record(0)._replace(rtype=Type.CNAME, rdata=ELSEWHERE)
    host.change(remove=[a_record(1)], add=[alias])
    (event,) = host.settle()
    assert edits(event.wire) == ([a_record(1).rdata], [ELSEWHERE])
    host.change(remove=[alias], add=[a_record(2)])
    (event,) = host.settle()
    assert edits(event.wire) == ([ELSEWHERE], [a_record(2).rdata])


# Size


@pytest.mark.rfc("8764", "5.2.4")
def test_answers_left_out_of_the_packet_follow_at_once_as_adds() -> None:
    host = Host()
    records = [a_record(n) for n in range(300)]
    host.change(add=records)
    option = decode(host.handle(wire_of((question(), setup()), payload=4096), CLIENT) or b"").opt
    ack = host.handle(wire_of((question(), llq_options(option)[0])), CLIENT)
    assert ack is not None
    view = {rr.rdata(ack) for rr in decode(ack).answers}
    assert 0 < len(view) < 300
    assert len(ack) <= 1232
    began = host.now
    for event in host.settle():
        assert len(event.wire) <= 1232
        removed, added = edits(event.wire)
        assert not removed
        assert not view & set(added)
        view |= set(added)
    assert view == {rr.rdata for rr in records}
    assert host.now == began + 5


@pytest.mark.rfc("8764", "6")
@pytest.mark.parametrize("key", [None, KEY, from_text(".".join(["k" * 63, "k" * 63, "k" * 63, "k" * 61]))])
def test_events_keep_to_one_packet_with_room_for_their_signature(key: bytes | None) -> None:
    host = Host()
    old = [a_record(n) for n in range(200)]
    host.change(add=old)
    host.establish(key=key)
    host.change(remove=old, add=[a_record(n) for n in range(1000, 1200)])
    events = host.settle()
    edited = [edits(event.wire) for event in events]
    assert sum(len(removed) for removed, _ in edited) == sum(len(added) for _, added in edited) == 200
    room = 0 if key is None else len(key) + 10 + 26 + 16 + 64 + 6
    assert 1100 < max(len(event.wire) + room for event in events) <= 1232


def test_a_record_no_packet_can_hold_is_left_out_and_counted() -> None:
    host = Host()
    host.establish()
    big = a_record(0)._replace(rdata=b"x" * 1300)
    host.change(add=[big, a_record(1)])
    (event,) = host.settle()
    assert edits(event.wire) == ([], [a_record(1).rdata])
    assert host.machine.counters.oversized == 1
    host.establish(peer=STREAM)
    host.change(remove=[big])
    (event,) = host.settle()
    assert (event.peer, edits(event.wire)) == (STREAM, ([big.rdata], []))


# Streams (what deployed clients do; not in RFC 8764)


def test_on_a_stream_answers_come_at_once_without_challenge() -> None:
    host = Host()
    host.change(add=[a_record(1)])
    reply = host.ask((question(), setup(error=5353)), peer=STREAM)
    (option,) = reply.options
    assert (option.error, option.lease, option.llq_id > 0) == (0, 7200, True)
    assert reply.answers == [a_record(1)]
    assert host.ask((question(), setup(option.llq_id)), peer=STREAM).options == [option]


def test_stream_events_need_no_ack_and_none_is_repeated() -> None:
    host = Host()
    host.establish(peer=STREAM)
    for number in range(3):
        host.change(add=[a_record(number)])
        ((_, event),) = host.run(30)
        assert (event.peer, edits(event.wire)) == (STREAM, ([], [a_record(number).rdata]))
    assert len(host.machine) == 1


def test_an_ack_of_a_stream_event_by_udp_is_taken_quietly() -> None:
    host = Host()
    host.establish(peer=STREAM)
    host.change(add=[a_record(1)])
    ((_, event),) = host.run(1)
    ack = decode(ack_wire(event.wire))
    assert host.machine.ack(ack, Peer("udp", STREAM.address, 5353, 4), now=host.now)
    assert not host.machine.ack(ack, OTHER, now=host.now)
    assert host.machine.counters.stray_acks == 1


def test_without_event_port_the_end_of_the_stream_is_the_end() -> None:
    host = Host()
    host.establish(peer=STREAM)
    assert host.machine.has_stream(STREAM.via)
    host.machine.stream_closed(STREAM.via, now=host.now)
    assert not host.machine.has_stream(STREAM.via)
    assert (len(host.machine), host.machine.counters.closed) == (0, 1)


def test_with_event_port_events_go_on_by_udp_with_acks() -> None:
    host = Host(listener=3)
    host.ask((question(), setup(error=5353)), peer=STREAM)
    host.machine.stream_closed(STREAM.via, now=host.now)
    host.change(add=[a_record(1)])
    sent = host.run(30)
    assert [at for at, _ in sent] == [0.1, 2.1, 6.1]
    assert sent[0][1].peer == Peer("udp", STREAM.address, 5353, 3)
    assert host.machine.counters.unreachable == 1


def test_without_a_udp_listener_an_event_port_is_no_use() -> None:
    host = Host(listener=None)
    host.ask((question(), setup(error=5353)), peer=STREAM)
    host.machine.stream_closed(STREAM.via, now=host.now)
    assert host.machine.counters.closed == 1


def test_what_a_broken_stream_may_have_lost_is_told_again() -> None:
    host = Host()
    host.change(add=[a_record(1), a_record(2)])
    host.ask((question(), setup(error=5353)), peer=STREAM)
    host.change(remove=[a_record(1)], add=[a_record(3)])
    host.run(1)
    host.machine.stream_closed(STREAM.via, now=host.now)
    (event,) = host.settle()
    assert edits(event.wire) == ([a_record(1).rdata], [a_record(3).rdata])
    assert host.settle() == []


def test_a_stream_that_ended_in_peace_has_nothing_to_tell_again() -> None:
    host = Host()
    host.ask((question(), setup(error=5353)), peer=STREAM)
    host.change(add=[a_record(1)])
    host.run(60)
    host.machine.stream_closed(STREAM.via, now=host.now)
    assert host.settle() == []


def test_a_refresh_on_another_stream_brings_events_there() -> None:
    host = Host()
    llq_id = host.ask((question(), setup(error=5353)), peer=STREAM).options[0].llq_id
    host.machine.stream_closed(STREAM.via, now=host.now)
    host.change(add=[a_record(1)])
    ((_, by_udp),) = host.run(0.5)
    later = STREAM._replace(via=10, port=50001)
    host.ask((question(), refresh(llq_id, error=6000)), peer=later)
    (again,) = host.take()
    assert (again.peer, again.wire) == (later, by_udp.wire)
    host.change(add=[a_record(2)])
    ((_, event),) = host.run(20)
    assert (event.peer, edits(event.wire)) == (later, ([], [a_record(2).rdata]))
    host.machine.stream_closed(later.via, now=host.now)
    assert {event.peer.port for event in host.settle()} == {6000}


def test_a_new_stream_set_up_replaces_what_fell_back_to_its_event_port() -> None:
    host = Host()
    for via in (20, 21):
        host.ask((question(), setup(error=5353)), peer=STREAM._replace(via=via))
        host.machine.stream_closed(via, now=host.now)
    assert (len(host.machine), host.machine.counters.replaced) == (1, 1)


def test_a_second_set_up_on_the_same_stream_replaces_the_first() -> None:
    host = Host()
    first, second = host.establish(peer=STREAM), host.establish(peer=STREAM)
    assert first != second
    assert (len(host.machine), host.machine.counters.replaced) == (1, 1)


def test_a_full_stream_gathers_changes_until_it_drains() -> None:
    host = Host()
    host.establish(peer=STREAM)
    host.machine.stream_paused(STREAM.via)
    for number in range(5):
        host.change(add=[a_record(number)])
        assert host.run(2) == []
        if number < 4:
            host.change(remove=[a_record(number)])
    host.machine.stream_resumed(STREAM.via, now=host.now)
    ((_, event),) = host.run(2)
    assert edits(event.wire) == ([], [a_record(4).rdata])


# Keys


@pytest.mark.rfc("6281", "7.2")
def test_the_key_is_part_of_who_subscribed() -> None:
    host = Host()
    host.establish()
    host.establish(key=KEY)
    assert len(host.machine) == 2
    host.change(add=[a_record(1)])
    assert {event.key_name for event in host.settle()} == {None, KEY}
    host.machine.revoke_key(KEY)
    assert (len(host.machine), host.machine.counters.revoked) == (1, 1)
