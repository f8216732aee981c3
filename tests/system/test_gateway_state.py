"""The state file on a real disk."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import StartError, StoreError
from gateway.mappings import Key, Mapping, Origin, Transport
from gateway.state import StateFile

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
