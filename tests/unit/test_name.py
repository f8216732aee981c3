"""Names: reading with compression, text, comparison, order."""

import itertools

import pytest

from protocol import name as names
from protocol.constants import MAX_NAME_OCTETS
from protocol.errors import DecodeError
from protocol.name import ROOT, from_text, name_at, read_name, to_text

# RFC 1035 §4.1.4 draws these names at octets 20, 40, 64 and 92 of a message.
RFC_1035_FIGURE = (
    bytes(20)
    + b"\x01F\x03ISI\x04ARPA\x00"
    + bytes(8)
    + b"\x03FOO\xc0\x14"
    + bytes(18)
    + b"\xc0\x1a"
    + bytes(26)
    + b"\x00"
)


def name_of_octets(size: int) -> bytes:
    """A name of exactly `size` octets, in labels of up to 63."""
    out = b""
    left = size - 1
    while left:
        take = min(left, 64)
        if left - take == 1:
            take -= 1
        out += bytes((take - 1,)) + b"x" * (take - 1)
        left -= take
    return out + ROOT


@pytest.mark.rfc("1035", "4.1.4")
@pytest.mark.parametrize(
    ("offset", "text", "after"),
    [(20, "F.ISI.ARPA.", 32), (40, "FOO.F.ISI.ARPA.", 46), (64, "ARPA.", 66), (92, ".", 93)],
)
def test_the_compressed_names_of_the_rfc_are_read(offset: int, text: str, after: int) -> None:
    name, end = read_name(RFC_1035_FIGURE, offset)
    assert (to_text(name), end) == (text, after)


@pytest.mark.rfc("1035", "4.1.4")
@pytest.mark.rfc("6891", "5")
@pytest.mark.rfc("1035", "2.3.4")
@pytest.mark.parametrize(
    ("message", "offset", "reason"),
    [
        (b"\xc0\x00", 0, "does not point backward"),
        (b"\x00\x00\xc0\x02", 2, "does not point backward"),
        (b"\xc0\x02\x00", 0, "does not point backward"),
        (b"\x01a\xc0\x00", 0, "does not point backward"),  # into the labels it ends
        (b"\x01a\xc0\x04\xc0\x00", 2, "does not point backward"),  # two pointers at each other
        (b"\x00\xc0", 1, "pointer runs past the end"),
        (b"", 0, "name runs past the end"),
        (b"\x01a", 0, "name runs past the end"),
        (b"\x00", 5, "name runs past the end"),
        (b"\x05ab", 0, "label runs past the end"),
        (b"\x40" + bytes(70), 0, "label type"),
        (b"\x80" + bytes(130), 0, "label type"),
        (b"\xbf" + bytes(200), 0, "label type"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_names_that_cannot_be_are_refused(message: bytes, offset: int, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        read_name(message, offset)


def test_a_pointer_into_the_header_reads_what_stands_there() -> None:
    """Nothing in RFC 1035 forbids it; the ID and flags are octets like others, and the walk stays bounded."""
    message = b"\x01a\x00" + bytes(9) + b"\x01b\xc0\x00"
    assert read_name(message, 12) == (b"\x01b\x01a\x00", 16)


@pytest.mark.rfc("1035", "3.1")
@pytest.mark.parametrize("size", [1, 3, 64, 65, 66, 128, 129, 192, 254, MAX_NAME_OCTETS])
def test_names_up_to_255_octets_are_read_whole(size: int) -> None:
    name = name_of_octets(size)
    assert len(name) == size
    assert read_name(name, 0) == (name, size)
    assert from_text(to_text(name)) == name


@pytest.mark.rfc("1035", "3.1")
@pytest.mark.rfc("1035", "2.3.4")
@pytest.mark.parametrize("size", [256, 257, 320, 4000])
def test_longer_names_are_refused(size: int) -> None:
    with pytest.raises(DecodeError, match="longer than 255"):
        read_name(name_of_octets(size), 0)


@pytest.mark.rfc("1035", "3.1")
def test_the_limit_counts_what_pointers_add() -> None:
    tail = name_of_octets(200)
    fits = tail + b"\x36" + b"y" * 54 + b"\xc0\x00"
    assert len(read_name(fits, 200)[0]) == 255
    for suffixes in (None, {0: (tail, 0)}):
        with pytest.raises(DecodeError, match="longer than 255"):
            read_name(tail + b"\x37" + b"y" * 55 + b"\xc0\x00", 200, suffixes)


def test_127_labels_are_the_most_a_name_has() -> None:
    name = b"\x01a" * 127 + ROOT
    assert read_name(name, 0) == (name, 255)
    assert names.label_count(name) == 127
    with pytest.raises(DecodeError, match="longer than 255"):
        read_name(b"\x01a" * 128 + ROOT, 0)


def pointer_chain(length: int) -> tuple[bytes, int]:
    """A root label and `length` pointers, each at the one before; the offset of the last."""
    out = bytearray(1)
    target = 0
    for _ in range(length):
        here = len(out)
        out += (0xC000 | target).to_bytes(2, "big")
        target = here
    return bytes(out), target


def test_pointers_to_pointers_are_followed_127_times_and_no_more() -> None:
    message, last = pointer_chain(128)
    assert read_name(message, last - 2) == (ROOT, last)
    with pytest.raises(DecodeError, match="more than 127"):
        read_name(message, last)


def test_remembered_suffixes_change_no_result() -> None:
    """The memo of one message gives each name it gave without, also where the limit on pointers bites."""
    message, last = pointer_chain(140)
    suffixes: names.Suffixes = {}
    for offset in itertools.chain(range(1, last + 1, 2), range(last, 0, -2)):
        try:
            expected = read_name(message, offset)
        except DecodeError:
            with pytest.raises(DecodeError):
                read_name(message, offset, suffixes)
        else:
            assert read_name(message, offset, suffixes) == expected


def test_each_suffix_is_remembered_from_its_own_label() -> None:
    message = b"\x01c\x00\x01b\xc0\x00\x01a\xc0\x03"
    suffixes: names.Suffixes = {}
    assert read_name(message, 7, suffixes) == (b"\x01a\x01b\x01c\x00", 11)
    assert suffixes == {3: (b"\x01b\x01c\x00", 1), 0: (b"\x01c\x00", 0)}


@pytest.mark.rfc("4343", "2.1")
@pytest.mark.rfc("2181", "11")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (ROOT, "."),
        (b"\x03Foo\x00", "Foo."),
        (b"\x03a.b\x00", "a\\.b."),
        (b'\x08\\";()@$ \x00', '\\\\\\"\\;\\(\\)\\@\\$\\032.'),
        (b"\x03\x00\x7f\xff\x00", "\\000\\127\\255."),
        (b"\x01\n\x04_tcp\x00", "\\010._tcp."),
    ],
)
def test_text_and_octets_are_two_forms_of_one_name(name: bytes, text: str) -> None:
    assert to_text(name) == text
    assert from_text(text) == name
    assert text.isprintable()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", ROOT),
        ("a", b"\x01a\x00"),
        ("a.B", b"\x01a\x01B\x00"),
        ("\\097\\b.", b"\x02ab\x00"),
        ("x" * 63, b"\x3f" + b"x" * 63 + ROOT),
    ],
)
def test_text_need_not_be_in_normal_form(text: str, name: bytes) -> None:
    assert from_text(text) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a..b", "empty label"),
        (".a", "empty label"),
        ("..", "empty label"),
        ("x" * 64, "longer than 63"),
        (".".join(["x" * 63] * 4), "longer than 255"),
        ("a\\", "ends in a backslash"),
        ("\\256", "escape above 255"),
        ("\\25", "fewer than three digits"),
        ("\\1a2", "fewer than three digits"),
        ("bücher", "outside ASCII"),
        ("\\ü", "outside ASCII"),
        ("\\١٢٣", "outside ASCII"),
    ],
)
def test_text_that_is_no_name_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_text(text)


@pytest.mark.rfc("4343", "3")
def test_folding_lowers_ascii_letters_and_nothing_else() -> None:
    every_octet = bytes(range(1, 64))
    assert names.fold(b"\x3f" + every_octet + b"\x00") == b"\x3f" + every_octet + b"\x00"
    assert names.fold(b"\x04AZ\xc4\xdf\x00") == b"\x04az\xc4\xdf\x00"
    assert names.fold(b"\x3f" + b"A" * 63 + ROOT) == b"\x3f" + b"a" * 63 + ROOT


def test_parents_lead_to_the_root_and_stay_there() -> None:
    name = from_text("a.bc.d")
    walk = [name]
    for _ in range(4):
        walk.append(names.parent(walk[-1]))
    assert [to_text(item) for item in walk] == ["a.bc.d.", "bc.d.", "d.", ".", "."]
    assert list(names.label_starts(name)) == [0, 2, 5, 7]
    assert [names.label_count(item) for item in walk] == [3, 2, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "ancestor", "expected"),
    [
        (b"\x01a\x01b\x00", b"\x01b\x00", True),
        (b"\x01a\x01b\x00", b"\x01a\x01b\x00", True),
        (b"\x01a\x01b\x00", ROOT, True),
        (ROOT, ROOT, True),
        (ROOT, b"\x01b\x00", False),
        (b"\x02ab\x00", b"\x01b\x00", False),
        (b"\x03a\x01b\x00", b"\x01b\x00", False),  # the octets end alike, the labels do not
        (b"\x01b\x00", b"\x01a\x01b\x00", False),
    ],
)
def test_below_is_cut_at_labels(name: bytes, ancestor: bytes, expected: bool) -> None:
    assert names.is_at_or_below(name, ancestor) is expected


@pytest.mark.rfc("4034", "6.1")
def test_canonical_order_is_the_one_of_the_rfc() -> None:
    ordered = [
        "example",
        "a.example",
        "yljkjljk.a.example",
        "Z.a.example",
        "zABC.a.EXAMPLE",
        "z.example",
        "\\001.z.example",
        "*.z.example",
        "\\200.z.example",
    ]
    wire = [from_text(text) for text in ordered]
    assert sorted(set(wire), key=names.canonical_key) == wire
    assert names.canonical_key(ROOT) == ()


@pytest.mark.parametrize(
    ("octets", "start", "expected"),
    [
        (b"\0\1\3www\0alpn", 2, b"\3www\0"),
        (b"\0\1\0\0\1", 2, b"\0"),
        (b"\3ww", 0, b""),
        (b"\3www", 0, b""),
        (b"", 0, b""),
        (b"\0", 2, b""),
        (b"\xc0\x00", 0, b""),
        (b"\x40" + bytes(70), 0, b""),
        ((b"\x3f" + b"x" * 63) * 4 + b"\0", 0, b""),
    ],
)
def test_a_name_within_other_octets_is_whole_or_none(octets: bytes, start: int, expected: bytes) -> None:
    assert name_at(octets, start) == expected
