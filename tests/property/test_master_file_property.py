"""Master files and imports with anything in them."""

import asyncio
import io
from typing import Final
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from homing import zone_import
from homing.journal import as_of, entries, find_step, plan_undo, read_history
from homing.master_file import Parser, Problem, Record, bounded_lines, record_text
from homing.zone_import import Problems, ZoneFile, compare, write
from protocol.constants import Type, is_meta_type
from protocol.errors import DecodeError
from protocol.name import ROOT, fold, from_text
from protocol.rdata import canonical, expand
from server.rdata_text import rdata_from, rdata_text, split_words
from server.store.api import ZoneRow
from server.store.memory import MemoryStore
from server.zone.model import RR, StoredRR
from tests.support.zones import APEX, SOA, add_zone, all_records

KNOWN: Final = [
    1,
    2,
    5,
    6,
    12,
    13,
    15,
    16,
    17,
    24,
    25,
    28,
    29,
    33,
    35,
    43,
    44,
    46,
    47,
    48,
    50,
    51,
    52,
    61,
    63,
    64,
    65,
    256,
    257,
]

_labels = st.lists(st.binary(min_size=1, max_size=20), max_size=4)
_names = _labels.map(lambda labels: b"".join(bytes((len(label),)) + label for label in labels) + b"\0")
_rdatas = st.lists(
    st.one_of(st.binary(max_size=20), _names, st.integers(0, 2**32 - 1).map(lambda n: n.to_bytes(4, "big")))
)


@given(rtype=st.one_of(st.sampled_from(KNOWN), st.integers(1, 65535)), pieces=_rdatas)
@settings(max_examples=500)
def test_any_rdata_is_one_printable_line_and_comes_back(rtype: int, pieces: list[bytes]) -> None:
    rdata = b"".join(pieces)
    try:
        is_sound = expand(rtype, rdata, 0, len(rdata)) == rdata
    except DecodeError:
        is_sound = False
    if not is_sound or is_meta_type(rtype):
        return
    text = rdata_text(rtype, rdata)
    assert text.isascii()
    assert text.isprintable()
    assert rdata_from(rtype, split_words(text), ROOT) == rdata
    if rtype == Type.SOA:
        return
    line = record_text(b"\x01\x20" + APEX, 5, rtype, rdata).encode() + b"\n"
    assert list(Parser(APEX).read(bounded_lines(io.BytesIO(line)))) == [
        Record(1, RR(b"\x01\x20" + APEX, rtype, 5, rdata))
    ]


_WORDS: Final = (
    b'@ a IN 60 1h A 192.0.2.1 TXT NS $TTL $ORIGIN HTTPS alpn=h2 SOA LOC CAA NSEC3 RRSIG DS . \\# 00 \\300 \\ " ( ) ;'
)
_words = st.sampled_from([*_WORDS.split(), b" ", b"\n", b"\t", b"\0"])


@given(pieces=st.lists(st.one_of(_words, _words.map(lambda word: word + b" "), st.binary(max_size=4)), max_size=60))
@settings(max_examples=500)
@example(pieces=[b"a 1 LOC 1 N 1 E nanm"])
def test_anything_is_records_and_problems_and_what_is_read_can_be_written(pieces: list[bytes]) -> None:
    found = list(Parser(APEX).read(bounded_lines(io.BytesIO(b"".join(pieces)))))
    for item in found:
        if isinstance(item, Problem):
            assert "\n" not in item.text
            continue
        line = record_text(item.rr.owner, item.rr.ttl, item.rr.rtype, item.rr.rdata)
        assert list(Parser(APEX).read([line.encode()])) == [Record(1, item.rr)]


# --- imports ---

_OWNERS: Final = ["", "a.", "A.", "b.a.", "_x._udp.", "zz."]
_row = st.tuples(st.sampled_from(_OWNERS), st.sampled_from(["A 192.0.2.1", "A 192.0.2.2", "TXT x", "PTR Q.", "PTR q."]))
_files = st.lists(st.tuples(_row, st.integers(0, 2)), max_size=12)
_Content = dict[tuple[bytes, int, bytes], int]


def text_of(rows: list[tuple[tuple[str, str], int]]) -> str:
    return "".join(f"{owner}members.example. {ttl} {data}\n" for (owner, data), ttl in rows)


def model(rows: list[tuple[tuple[str, str], int]]) -> _Content:
    """What a file says: the smallest TTL of an RRset is that of all."""
    found: dict[tuple[bytes, int], tuple[int, set[bytes]]] = {}
    for (owner, data), ttl in rows:
        kind, word = data.split()
        rtype = {"A": 1, "TXT": 16, "PTR": 12}[kind]
        rdata = canonical(rtype, rdata_from(rtype, [word], ROOT))
        key = fold(from_text(f"{owner}members.example."))
        least, rdatas = found.get((key, rtype), (ttl, set()))
        found[key, rtype] = (min(least, ttl), rdatas | {rdata})
    return {(key, rtype, rdata): ttl for (key, rtype), (ttl, rdatas) in found.items() for rdata in rdatas}


async def content(store: MemoryStore, zone_id: int) -> dict[tuple[bytes, int, bytes], StoredRR]:
    return {
        (fold(row.owner), row.rtype, canonical(row.rtype, row.rdata)): row for row in await all_records(store, zone_id)
    }


async def zone_of(store: MemoryStore) -> ZoneRow:
    return (await store.load_zones())[0]


async def take(store: MemoryStore, text: str, now: int) -> bool:
    """Import; whether there was a difference."""
    problems = Problems()
    with ZoneFile(APEX) as file:
        file.read(io.BytesIO(text.encode()), problems, lambda _: None)
        difference = await compare(
            file, store, await zone_of(store), frozenset(), problems, now=now, advance=lambda _: None
        )
    assert not problems.errors
    try:
        if not difference.is_empty:
            async with store.transaction() as transaction:
                await write(transaction, difference, now=now, advance=lambda _: None)
        return not difference.is_empty
    finally:
        difference.close()


@given(files=st.lists(_files, min_size=1, max_size=4), step=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_an_import_makes_the_zone_what_the_file_says(files: list[list[tuple[tuple[str, str], int]]], step: int) -> None:
    asyncio.run(_imports(files, step))


async def _imports(files: list[list[tuple[tuple[str, str], int]]], step: int) -> None:
    store = MemoryStore()
    await add_zone(store)
    past: list[tuple[int, int, _Content]] = []
    sizes = {"STEP_RECORDS": step, "_RUN_RECORDS": 3, "_BLOCK_RECORDS": 2}
    with patch.multiple(zone_import, **sizes):
        for number, rows in enumerate(files):
            now = 1000 * (number + 1)
            is_different = await take(store, text_of(rows), now)
            row = await zone_of(store)
            stored = await content(store, row.id)
            assert {key: found.ttl for key, found in stored.items()} == model(rows)
            assert not await take(store, text_of(rows), now)
            assert (await zone_of(store)).serial == row.serial
            if is_different:
                past.append((row.serial, now, model(rows)))
    row = await zone_of(store)
    await _check_past(store, row, past)
    if past and step == 5 and await _steps_of(store, row, past[-1][1]) == 1:
        await _check_undo(store, row, past)


async def _steps_of(store: MemoryStore, row: ZoneRow, at: int) -> int:
    return len([entry async for entry in entries(store, row.id) if entry.change.at == at])


async def _check_past(store: MemoryStore, row: ZoneRow, past: list[tuple[int, int, _Content]]) -> None:
    """The journal leads from the beginning to the present, and every name back to what it was."""
    chain = [entry.change async for entry in entries(store, row.id)]
    assert [change.serial_to for change in chain] == list(range(2, row.serial + 1))
    assert [change.serial_from for change in chain] == list(range(1, row.serial))
    ids = [entry.id async for entry in entries(store)] or [0]
    assert await store.journal_span() == (ids[0], ids[-1])
    for _, at, wanted in past:
        for owner in _OWNERS:
            key = fold(from_text(f"{owner}members.example."))
            then = as_of(await read_history(store, row, key), at)
            found = {(key, rr.rtype, canonical(rr.rtype, rr.rdata)): rr.ttl for rr in then if rr.rtype != Type.SOA}
            assert found == {one: ttl for one, ttl in wanted.items() if one[0] == key}


async def _check_undo(store: MemoryStore, row: ZoneRow, past: list[tuple[int, int, _Content]]) -> None:
    before = past[-2][2] if len(past) > 1 else {}
    with patch("homing.journal._check_name"):  # these zones have no NS
        plan = await plan_undo(store, row, await find_step(store, row, row.serial), now=9999)
    await store.commit([plan.commit])
    stored = await content(store, row.id)
    assert {key: found.ttl for key, found in stored.items()} == before
    assert (await zone_of(store)).soa == SOA
