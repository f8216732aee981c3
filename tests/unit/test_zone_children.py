"""Which names exist only because of names below them, for members with few names and with many."""

from protocol.name import fold
from server.zone.children import MAX_SHARED, Children
from tests.support.builders import name

APEX = fold(name("members.example."))
MEMBER = b"\x05user1" + APEX


class Index:
    """Names with records, linked and unlinked as a zone does it."""

    def __init__(self) -> None:
        self.nodes: set[bytes] = set()
        self.children = Children(APEX)

    def add(self, *keys: bytes) -> None:
        for key in keys:
            self.children.link(key, self.nodes)
            self.nodes.add(key)

    def remove(self, *keys: bytes) -> None:
        for key in keys:
            self.nodes.remove(key)
            self.children.unlink(key, self.nodes)


def test_members_of_one_shape_hold_one_value() -> None:
    index = Index()
    for member in (b"\x05user1" + APEX, b"\x05user2" + APEX):
        index.add(b"\x06laptop" + member, b"\x0b_autotunnel\x04_udp\x06laptop" + member)
    one, other = index.children.members.values()
    assert one is other
    assert index.children.count(APEX) == 2


def test_a_member_with_very_many_names_is_counted_alike() -> None:
    index = Index()
    many = [b"\x04" + str(number).zfill(4).encode() for number in range(2 * MAX_SHARED)]
    deep = [b"\x02up" + label + MEMBER for label in many]
    index.add(*deep)
    assert index.children.count(MEMBER) == len(many)
    assert all(index.children.count(label + MEMBER) == 1 for label in many)
    index.add(*(label + MEMBER for label in many[:10]))
    assert index.children.count(MEMBER) == len(many), "they existed already"
    index.remove(*deep)
    assert dict(index.children.items()) == {APEX: 1, MEMBER: 10}
    index.remove(*(label + MEMBER for label in many[:10]))
    assert dict(index.children.items()) == {}


def test_a_name_below_the_apex_is_looked_up_among_the_members() -> None:
    index = Index()
    index.add(b"\x03mac" + MEMBER)
    assert MEMBER in index.children.below(APEX)
    assert b"\x03mac" + MEMBER not in index.children.below(MEMBER)
    index.add(b"\x04_udp\x03mac" + MEMBER)
    assert b"\x03mac" + MEMBER in index.children.below(MEMBER)


def test_names_linked_together_are_counted_as_one_by_one() -> None:
    shapes = (
        (b"\x06laptop", b"\x0b_autotunnel\x04_udp\x06laptop"),
        (b"\x01a", b"\x01b\x01a", b"\x01c\x01x\x01b\x01a"),
        (b"", b"\x01a"),
        (b"\x01x\x01y\x01z",),
        tuple(b"\x02%02d\x01m" % number for number in range(20)),
    )
    members = [(b"\x02%02d" % number + APEX, shape) for number, shape in enumerate(shapes * 2)]
    keys = [label + member for member, shape in members for label in shape]
    single, together = Index(), Index()
    single.add(*keys)
    for part in ([APEX, *keys[:5]], keys[:4:-1]):  # in any order, a member's names in more than one part
        together.nodes.update(part)
        together.children.link_all(part, together.nodes)
    assert dict(together.children.items()) == dict(single.children.items())
