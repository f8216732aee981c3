"""After every quiet period each client's view is the zone, whatever was changed, lost, doubled, late or restarted."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.edns import LLQ_EVENT_REMOVE_TTL
from protocol.errors import DecodeError
from protocol.message import decode
from protocol.name import from_text
from server.peer import Peer
from server.push.sending import SendEvent
from server.zone.model import RR
from tests.support.llq import CLIENT, NAME, STREAM, Client, Host, Wire, a_record, question, refresh, setup

NAMES = [from_text(f"{label}.members.example") for label in ("a", "b")]
SIZES = st.sampled_from([1, 1, 1, 2, 40, 120])

change = st.tuples(st.just("change"), st.integers(0, 1), SIZES, SIZES, st.integers(0, 2**32))
wait = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.05, 0.3, 2.0, 7.0, 20.0, 700.0]))
restart = st.tuples(st.just("restart"), st.integers(0, 2))
weather = st.tuples(st.just("weather"), st.sampled_from([0.0, 0.2, 0.6, 1.0]), st.sampled_from([0.0, 0.3]))
story = st.lists(st.one_of(change, change, wait, wait, wait, restart, weather), min_size=15, max_size=50)


def churn(host: Host, name: bytes, removes: int, adds: int, seed: int) -> None:
    """Remove some of what is there and add some of a small world, so that records come back."""
    chance = random.Random(seed)
    there = host.zone.get(name, [])
    world = [RR(name, rtype, 60, number.to_bytes(4, "big")) for rtype in (1, 5) for number in range(150)]
    absent = [rr for rr in world if rr not in there]
    gone = chance.sample(there, min(removes, len(there)))
    new = chance.sample(absent, min(adds, len(absent)))
    host.change(remove=gone, add=new)


def truth(host: Host, name: bytes) -> set[tuple[int, bytes]]:
    return {(rr.rtype, rr.rdata) for rr in host.lookup(question(name))}


@settings(max_examples=150, deadline=None)
@given(story, st.integers(0, 2**32))
def test_over_udp(steps: list[tuple[object, ...]], seed: int) -> None:
    host = Host(seed=seed)
    clients: dict[Peer, Client] = {
        CLIENT._replace(port=5000 + number): Client(question(NAMES[number % 2]), seed + number) for number in range(3)
    }
    wire = Wire(host, clients, seed)
    for step in steps:
        match step:
            case ("change", int(at), int(removes), int(adds), int(chance)):
                churn(host, NAMES[at], removes, adds, chance)
            case ("wait", float(seconds)):
                wire.run(seconds)
            case ("restart", int(which)):
                list(clients.values())[which].restart(host.now)
            case ("weather", float(loss), float(duplication)):
                wire.loss, wire.duplication = loss, duplication
    wire.run(0.5)
    wire.loss = wire.duplication = 0.0
    wire.run(7300)  # long enough for whoever was given up to notice it at its refresh
    for client in clients.values():
        assert client.state == "established"
        assert client.view == truth(host, client.question.name)
    assert len(host.machine) == 3


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            change,
            st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.3, 2.0, 40.0])),
            st.tuples(st.just("break"), st.integers(0, 5)),
            st.tuples(st.just("return")),
            st.tuples(st.just("pause")),
        ),
        min_size=10,
        max_size=40,
    )
)
def test_over_streams_that_break(steps: list[tuple[object, ...]]) -> None:
    host = Host()
    churn(host, NAMES[0], 0, 3, 1)
    reply = host.ask((question(NAMES[0]), setup(error=5353)), peer=STREAM)
    llq_id = reply.options[0].llq_id
    view = {(rr.rtype, rr.rdata) for rr in reply.answers}
    via = STREAM.via
    is_open = True
    unread: list[SendEvent] = []

    def read(event: SendEvent) -> None:
        for rr in decode(event.wire).answers:
            item = (rr.rtype, rr.raw(event.wire))
            if rr.ttl == LLQ_EVENT_REMOVE_TTL:
                view.discard(item)
            else:
                view.add(item)

    def take(events: list[SendEvent]) -> None:
        for event in events:
            if event.peer.transport == "udp":
                read(event)
            else:
                unread.append(event)

    for step in steps:
        match step:
            case ("change", _, int(removes), int(adds), int(chance)):
                churn(host, NAMES[0], removes, adds, chance)
            case ("wait", float(seconds)):
                take(host.settle(seconds))
                if seconds > 30:
                    for event in unread:
                        read(event)
                    unread.clear()
            case ("pause",) if is_open:
                host.machine.stream_paused(via)
            case ("break", int(lost)) if is_open:
                for event in unread[: max(0, len(unread) - lost)]:
                    read(event)
                unread.clear()
                host.machine.stream_closed(via, now=host.now)
                is_open = False
            case ("return",) if not is_open:
                via += 1
                is_open = True
                option = host.ask((question(NAMES[0]), refresh(llq_id)), peer=STREAM._replace(via=via)).options[0]
                assert option.error == 0
                take(host.take())
    host.machine.stream_resumed(via, now=host.now)
    take(host.settle(100))
    for event in unread:
        read(event)
    assert view == truth(host, NAMES[0])
    assert len(host.machine) == 1


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 200), st.booleans(), st.integers(0, 2))
def test_no_octets_break_it(noise: bytes, at: int, is_insertion: bool, which: int) -> None:
    """Mutations of good messages at every phase: an answer, an ack or an error, and no one else is hurt."""
    host = Host()
    bystander = host.establish(peer=CLIENT._replace(port=1))
    client = Client(question(NAME), 1)
    client.restart(host.now)
    (first,) = client.awake(host.now)
    challenge = host.handle(first, CLIENT)
    assert challenge is not None
    (second,) = client.receive(challenge, host.now)
    host.handle(second, CLIENT)
    host.change(add=[a_record(1)])
    events = [event for _, event in host.run(1) if event.peer == CLIENT]
    good = [first, second, events[0].wire][which]
    at = min(at, len(good))
    bad = good[:at] + noise + (good[at:] if is_insertion else good[at + len(noise) :])
    try:
        message = decode(bad)
    except DecodeError:
        message = None
    if message is not None and (message.header.is_response or message.opt is not None):
        for peer in (CLIENT, STREAM):
            host.handle(bad, peer)
    host.settle()
    asked = host.ask((question(), refresh(bystander)), peer=CLIENT._replace(port=1))
    assert asked.options[0].error == 0
