"""The driver: one timer, slices, signatures, faults survived. The event loop is a list of calls to come."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from protocol.constants import TsigError
from protocol.message import decode
from protocol.name import from_text
from protocol.tsig import SHA256, Key, decode_tsig, verify
from server.peer import Peer
from server.push.driver import PushDriver
from server.push.events import make_plan
from server.transport.ports import Alike
from tests.support.llq import CLIENT, NAME, Host, a_record, ack_wire, question

KEY = Key(from_text("laptop"), SHA256, b"s" * 32)


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """Stands for the event loop and, with its time, for the clock."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.timers: list[Timer] = []

    def monotonic(self) -> float:
        return self.host.now

    def unix(self) -> int:
        return self.host.unix

    def lease(self) -> float:
        return float(self.host.unix)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        assert delay >= 0
        self.timers.append(Timer(self.host.now + delay, call))
        return self.timers[-1]

    def pending(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.is_cancelled]

    def turn(self) -> bool:
        """Run the next timer; False when there is none."""
        if not self.pending():
            return False
        timer = min(self.pending(), key=lambda item: item.at)
        self.timers = [item for item in self.pending() if item is not timer]
        self.host.now = max(self.host.now, timer.at)
        timer.call()
        return True


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, keys: dict[bytes, Key] | None = None) -> None:
        self.host = Host()
        self.loop = Loop(self.host)
        self.sent: list[tuple[float, Peer, bytes]] = []
        self.faults = 0
        monkeypatch.setattr("asyncio.get_running_loop", lambda: self.loop)
        self.driver = PushDriver(
            self.host.machine,
            self.send,
            self.loop,
            (keys or {}).get,
            self.fault,
        )

    def send(self, peers: Sequence[Peer], alike: Alike) -> None:
        for peer, wire in zip(peers, alike.each(), strict=True):
            self.sent.append((round(self.host.now - 100, 3), peer, wire))

    def fault(self) -> None:
        self.faults += 1

    def change(self, number: int) -> None:
        self.host.change(add=[a_record(number)])
        self.driver.wake()


def test_events_leave_at_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.host.establish()
    rig.change(1)
    assert len(rig.loop.pending()) == 1
    while rig.loop.turn():
        assert len(rig.loop.pending()) <= 1
    assert [at for at, _, _ in rig.sent] == [0.1, 2.1, 6.1]
    assert {peer for _, peer, _ in rig.sent} == {CLIENT}


def test_an_earlier_deadline_moves_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.host.establish()
    rig.driver.wake()
    assert [timer.at for timer in rig.loop.pending()] == [7300.0]
    rig.change(1)
    assert [round(timer.at, 3) for timer in rig.loop.pending()] == [100.1]


def test_a_crowd_leaves_in_slices_with_turns_between(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    for number in range(600):
        rig.host.establish(peer=CLIENT._replace(port=1 + number))
    rig.change(1)
    sizes = []
    while len(rig.sent) < 600:
        before = len(rig.sent)
        rig.loop.turn()
        sizes.append(len(rig.sent) - before)
    assert sizes == [255, 256, 89]


def test_signed_events_verify_as_requests_and_repeat_octet_for_octet(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, {KEY.name: KEY})
    rig.host.establish(key=KEY.name)
    rig.change(1)
    while rig.loop.turn():
        pass
    assert len(rig.sent) == 3
    assert len({wire for _, _, wire in rig.sent}) == 1
    message = decode(rig.sent[0][2])
    assert message.tsig is not None
    tsig = decode_tsig(message.tsig, message.wire)
    assert verify(message, tsig, KEY, now=rig.host.unix - int(rig.host.now - 100)).error == TsigError.NOERROR


def test_a_key_that_is_gone_ends_its_subscriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.host.establish(key=KEY.name)
    rig.host.establish()
    rig.change(1)
    while rig.loop.turn():
        pass
    assert {wire[2:4] for _, _, wire in rig.sent} == {b"\x84\x00"}
    assert len(rig.sent) == 3
    assert rig.host.machine.counters.revoked == 1


def test_a_fault_is_counted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a crowd cannot be told: those before and behind it are, and the next change takes it along."""
    rig = Rig(monkeypatch)
    ports = range(1, 6)
    for port in ports:
        name = NAME.upper() if port == 3 else NAME
        rig.host.establish(question(name), peer=CLIENT._replace(port=port))
    failed: list[bytes] = []

    def flaky(name: bytes, *rest: Any) -> Any:
        if name != NAME and not failed:
            failed.append(name)
            raise RuntimeError("for the test")
        return make_plan(name, *rest)

    monkeypatch.setattr("server.push.event_queue.make_plan", flaky)
    rig.change(1)
    for _ in range(2):
        rig.loop.turn()
    assert rig.faults == 1
    assert sorted(peer.port for _, peer, _ in rig.sent) == [1, 2, 4, 5]
    for event in rig.sent:
        assert rig.host.machine.ack(decode(ack_wire(event[2])), event[1], now=rig.host.now)
    rig.change(2)
    rig.loop.turn()
    assert sorted(peer.port for _, peer, _ in rig.sent[4:]) == list(ports)


def test_closed_it_sends_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.host.establish()
    rig.change(1)
    rig.driver.close()
    rig.driver.wake()
    assert not rig.loop.turn()
    assert rig.sent == []
