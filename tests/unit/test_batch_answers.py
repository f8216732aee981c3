"""A batch answered where it lies: absent names from what they have in common, and the octets are right in any case."""

from typing import Any, Final

import pytest
from cffi import FFI

from protocol.constants import Rcode
from protocol.edns import Opt
from server import absent_names
from server.transport.batch_answers import answer_batch
from tests.support.builders import UDP, UDP_ADDRESS, add, delete_name, query_message, zone_of_text
from tests.unit.test_fastpath import FastCore

_SLOT: Final = 1024
_SLOTS: Final = 16


class Batches(FastCore):
    """Asked as the batch listener asks; `computed_one_by_one` counts what did not come from `absent_names`."""

    def __init__(self) -> None:
        super().__init__()
        ffi: Any = FFI()
        self._slots = ffi.new("unsigned char[]", _SLOT * _SLOTS)
        self._octets = ffi.buffer(self._slots)
        self.computed_one_by_one = 0
        answer = self.fast.answer

        def counted(key: bytes) -> bytes | None:
            self.computed_one_by_one += 1
            return answer(key)

        self.fast.answer = counted  # type: ignore[method-assign]

    def batch(self, *wires: bytes) -> list[bytes | None]:
        """The replies to up to 16 datagrams, None for those left to the dispatcher."""
        for slot, wire in enumerate(wires):
            self._octets[slot * _SLOT : slot * _SLOT + len(wire)] = wire
        self.fast.begin()
        starts = [slot * _SLOT + 2 for slot in range(len(wires))]
        sizes, slow = answer_batch(self.fast, self._octets, starts, [*map(len, wires)], lambda slot: UDP_ADDRESS)
        assert slow == [slot for slot, size in enumerate(sizes) if not size]
        return [self._octets[slot * _SLOT : slot * _SLOT + size] or None for slot, size in enumerate(sizes)]

    def told(self, *owners: str, rtype: str = "A", edns: Opt | None = None) -> int:
        """How many of these were looked at one by one; whatever is answered is what the dispatcher answers."""
        before = self.computed_one_by_one
        wires = [query_message(owner, rtype, id=number, edns=edns) for number, owner in enumerate(owners)]
        for wire, reply in zip(wires, self.batch(*wires), strict=True):
            expected: list[bytes] = []
            self.dispatcher.handle(wire, UDP, expected.append)
            assert reply in (None, expected[0])
        return self.computed_one_by_one - before


def flood(core: Batches, parent: str, **query: Any) -> None:
    """So many names below a parent that the next ones have their answers in common. The first finds it."""
    for number in range(absent_names.MANY + 2):
        core.told(f"f{number % 10}.{parent}", **query)


@pytest.fixture
def core() -> Batches:
    core = Batches()
    flood(core, "members.example.")
    return core


def test_absent_names_have_their_answers_in_common(core: Batches) -> None:
    assert core.told("n1.members.example.", "x2.members.example.", "Y3.members.example.") == 0
    computed, told = core.metrics.requests.computed, core.metrics.requests.rcodes[Rcode.NXDOMAIN]
    core.batch(*[query_message(f"m{number}.members.example.") for number in range(5)])
    assert core.metrics.requests.computed == computed + 5
    assert core.metrics.requests.rcodes[Rcode.NXDOMAIN] == told  # by whoever sends the batch, from what stands in it


def test_each_length_and_way_of_asking_has_its_own(core: Batches) -> None:
    assert core.told("longer.members.example.") == 1
    assert core.told("ronger.members.example.") == 0
    for other in ({"edns": Opt(1232)}, {"edns": Opt(512, dnssec_ok=True)}, {"rtype": "AAAA"}):
        assert core.told("n2.members.example.", **other) == 1
        flood(core, "members.example.", **other)
        assert core.told("n3.members.example.", **other) == 0
    assert core.told("n3.MEMBERS.example.") == 1
    flood(core, "MEMBERS.example.")
    assert core.told("n4.MEMBERS.example.", "n5.members.example.") == 0


def test_what_is_there_is_not_absent(core: Batches) -> None:
    assert core.told("ns.members.example.", "NS.members.example.", "alice.members.example.") == 3
    assert core.batch(query_message("carol.members.example."), query_message("x.carol.members.example.")) == [None] * 2
    flood(core, "alice.members.example.")
    assert core.told("mac.alice.members.example.", "g1.alice.members.example.") == 1


def test_a_change_of_the_zone_drops_it(core: Batches) -> None:
    core.update(add("n6.members.example.", 60, "A", "192.0.2.7"), add("b.n7.members.example.", 60, "A", "192.0.2.7"))
    assert not core.fast.absent.found
    assert core.told("n6.members.example.", "n7.members.example.", "n8.members.example.", "n9.members.example.") >= 3
    assert core.told("k0.members.example.") == 0  # what was counted stays
    assert core.told("n6.members.example.", "n7.members.example.") == 2
    core.update(delete_name("n6.members.example."), add("*.members.example.", 60, "A", "192.0.2.8"))
    assert core.told("n6.members.example.", "k1.members.example.") == 2


def test_the_apex_of_another_zone_is_not_absent_even_without_its_delegation(core: Batches) -> None:
    core.zones.add(zone_of_text("do.members.example. 60 A 192.0.2.9", apex="do.members.example.", zone_id=9))
    assert core.told("do.members.example.") == 1


def test_an_absent_name_that_comes_again_becomes_ready(core: Batches) -> None:
    core.clock.now += 60
    for _ in range(2):
        core.told("k2.members.example.")
    before = core.metrics.requests.computed
    assert core.told("k2.members.example.") == 0
    assert core.metrics.requests.computed == before


def test_octets_that_are_no_name(core: Batches) -> None:
    """Labels of any octets, labels that are too long or run over the end, and datagrams of any size."""
    wire = query_message("n1.members.example.")
    tail = wire[15:]
    for label in (b"\0", b"a\0", b"\xff\x80", b"A-", b"x" * 62, b"x" * 63):
        asked = wire[:12] + bytes((len(label),)) + label + tail
        (reply,) = core.batch(asked)
        expected: list[bytes] = []
        core.dispatcher.handle(asked, UDP, expected.append)
        assert reply in (None, expected[0])
    for size in (0, 64, 0x80, 0xC0, 0xFF):
        assert core.batch(wire[:12] + bytes((size,)) + b"x" * size + tail) == [None]
    for size in range(len(wire)):
        assert core.batch(wire[:size]) == [None]


def test_what_is_kept_is_bounded(core: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent_names, "MAX_COMMON", 3)
    monkeypatch.setattr(absent_names, "MAX_COUNTED", 5)
    for payload in range(512, 540):
        flood(core, "members.example.", edns=Opt(payload))
        assert core.told("n1.members.example.", edns=Opt(payload)) == 0
        assert len(core.fast.absent.found) <= 3
        assert len(core.fast.absent._counted) <= 6
