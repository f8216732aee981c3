"""The state file on a real disk."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import StartError, StoreError
from gateway.mappings import Filter, Key, Mapping, Origin, Transport
from gateway.state import TOGETHER, StateFile

A = Key(Transport.UDP, "192.168.1.10", 4500)
B = Key(Transport.UDP, "192.168.1.11", 4500)


def mapping(key: Key, external_port: int, expires_at: float = 5000.0) -> Mapping:
    return Mapping(key=key, external_port=external_port, origin=Origin.NATPMP, expires_at=expires_at)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.sqlite"


@pytest.fixture
def state(path: Path) -> Iterator[StateFile]:
    file = StateFile(path)
    yield file
    file.close()


def test_it_is_for_its_owner_alone(path: Path) -> None:
    """PCP's nonces are in it."""
    path.touch()
    path.chmod(0o644)
    with contextlib.closing(StateFile(path)):
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert "gateway.sqlite-wal" in modes


def test_nothing_saved_has_no_epoch(state: StateFile) -> None:
    saved = state.load(now=0.0, unix=0.0)
    assert (saved.epoch, saved.mappings, saved.damaged) == (None, (), None)


def test_times_follow_the_wall_clock_into_the_next_process(path: Path, state: StateFile) -> None:
    state.commit({A: mapping(A, 4500, expires_at=1600.0)}, epoch=100.5, now=1000.0, unix=1e9)
    other = StateFile(path)
    saved = other.load(now=7.0, unix=1e9 + 60)
    other.close()
    assert saved.epoch == 160.5
    assert saved.mappings == (mapping(A, 4500, expires_at=547.0),)


def test_a_wall_clock_before_the_saving_counts_no_time(state: StateFile) -> None:
    state.commit({A: mapping(A, 4500, expires_at=1600.0)}, epoch=100.0, now=1000.0, unix=1e9)
    saved = state.load(now=7.0, unix=12.0)
    assert saved.epoch == 100.0
    assert saved.mappings == (mapping(A, 4500, expires_at=607.0),)


def test_a_port_passes_from_one_mapping_to_another_in_one_commit(state: StateFile) -> None:
    state.commit({A: mapping(A, 1000), B: mapping(B, 2000)}, epoch=0.0, now=0.0, unix=0.0)
    state.commit({A: mapping(A, 2000), B: mapping(B, 1000)}, epoch=0.0, now=0.0, unix=0.0)
    ports = {each.key: each.external_port for each in state.load(now=0.0, unix=0.0).mappings}
    assert ports == {A: 2000, B: 1000}
    state.commit({A: None, B: mapping(B, 2000)}, epoch=0.0, now=0.0, unix=0.0)
    assert [each.key for each in state.load(now=0.0, unix=0.0).mappings] == [B]


def test_more_changes_than_one_statement_takes(state: StateFile) -> None:
    keys = [Key(Transport.UDP, "192.168.1.10", 4000 + number) for number in range(2 * TOGETHER + 3)]
    state.commit({key: mapping(key, key.port) for key in keys}, epoch=0.0, now=0.0, unix=0.0)
    assert {each.key for each in state.load(now=0.0, unix=0.0).mappings} == set(keys)
    state.commit(dict.fromkeys(keys[1:]), epoch=0.0, now=0.0, unix=0.0)
    assert [each.key for each in state.load(now=0.0, unix=0.0).mappings] == keys[:1]


def test_rewriting_replaces_all(state: StateFile) -> None:
    state.commit({A: mapping(A, 1000)}, epoch=0.0, now=0.0, unix=0.0)
    state.commit({B: mapping(B, 1000)}, epoch=5.0, now=0.0, unix=0.0, rewrite=True)
    saved = state.load(now=0.0, unix=0.0)
    assert (saved.epoch, [each.key for each in saved.mappings]) == (5.0, [B])


def test_a_failed_commit_changes_nothing(state: StateFile) -> None:
    state.commit({A: mapping(A, 1000)}, epoch=1.0, now=0.0, unix=0.0)
    with pytest.raises(StoreError):
        state.commit({A: None, B: mapping(B, 0)}, epoch=2.0, now=0.0, unix=0.0)
    saved = state.load(now=0.0, unix=0.0)
    assert (saved.epoch, [each.key for each in saved.mappings]) == (1.0, [A])


def test_a_commit_is_flushed_to_the_disk(state: StateFile) -> None:
    assert state._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_file_of_a_newer_format_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StartError, match="another version"):
        StateFile(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (99,)


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="missing"):
        StateFile(tmp_path / "missing" / "state")


def test_all_of_a_mapping_comes_back(state: StateFile) -> None:
    whole = Mapping(
        key=A,
        external_port=4500,
        origin=Origin.PCP,
        expires_at=600.0,
        nonce=b"\0nonce\xff12345",
        filters=(Filter("198.51.100.0/24", 0), Filter("203.0.113.9/32", 80)),
        description="Söhne & Töchter",
    )
    pinholes = [
        Mapping(key=Key(Transport.TCP, host, 22), external_port=22, origin=Origin.PCP, expires_at=700.0)
        for host in ("2001:db8::10", "2001:db8::11")
    ]
    changes = {each.key: each for each in (whole, *pinholes)}
    state.commit(changes, epoch=9.0, strict_epoch=5.0, address="203.0.113.7", now=0.0, unix=0.0)
    saved = state.load(now=0.0, unix=1.0)
    assert saved.epoch == 10.0
    assert (saved.strict_epoch, saved.address) == (6.0, "203.0.113.7")
    times = {each.expires_at for each in saved.mappings}
    assert times == {599.0, 699.0}
    assert {(each.key, each.nonce, each.filters, each.description) for each in saved.mappings} == {
        (each.key, each.nonce, each.filters, each.description) for each in (whole, *pinholes)
    }


def test_a_file_of_format_1_is_taken_over(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """
            CREATE TABLE epoch (
                id INTEGER PRIMARY KEY CHECK (id = 1), epoch REAL NOT NULL, saved_at REAL NOT NULL
            ) STRICT;
            CREATE TABLE mapping (
                transport INTEGER NOT NULL, host TEXT NOT NULL, internal_port INTEGER NOT NULL,
                external_port INTEGER NOT NULL, origin TEXT NOT NULL, expires_at REAL NOT NULL,
                PRIMARY KEY (transport, host, internal_port), UNIQUE (transport, external_port)
            ) STRICT, WITHOUT ROWID;
            INSERT INTO epoch VALUES (1, 50.0, 1000.0);
            INSERT INTO mapping VALUES (17, '192.168.1.10', 4500, 4501, 'natpmp', 2000.0);
            PRAGMA user_version = 1;
            """
        )
    file = StateFile(path)
    saved = file.load(now=0.0, unix=1000.0)
    assert (saved.epoch, saved.strict_epoch, saved.address) == (50.0, 0.0, None)
    assert saved.mappings == (mapping(A, 4501, expires_at=1000.0),)
    file.commit({B: mapping(B, 22)}, epoch=50.0, now=0.0, unix=1000.0)
    assert len(file.load(now=0.0, unix=1000.0).mappings) == 2
    file.close()


def test_the_device_keeps_its_name(path: Path, state: StateFile) -> None:
    name = state.device_uuid()
    assert state.device_uuid() == name
    other = StateFile(path)
    assert other.device_uuid() == name
    other.close()
