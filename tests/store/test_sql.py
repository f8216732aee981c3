"""What only the SQL store has: files, master key, pragmas, plain errors."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from protocol.name import from_text
from protocol.tsig import SHA256, Key
from server.store.api import KeyRow, StoreError
from server.store.sealing import Sealer, Secret, load_master_key
from server.store.sql import SqlStore, _plain_errors, parse_url
from tests.support.zones import aaaa, add_zone, all_records, commit_of

NAME = from_text("alice.members.example.")


async def _with_key(path: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{path}")
    async with store.transaction() as transaction:
        await transaction.add_key(KeyRow(Key(NAME, SHA256, b"very secret octets of the member!"), None, 1))
    await store.close()


async def test_files_are_for_their_owner_only_and_hold_no_secret_in_clear(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        await _with_key(tmp_path / "homing.db")
    finally:
        os.umask(old)
    files = {path.name: path for path in tmp_path.iterdir()}
    assert {"homing.db", "homing.db.key"} <= files.keys()
    for path in files.values():
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"very secret" not in path.read_bytes()
    assert files["homing.db.key"].stat().st_size == 32


async def test_another_master_key_is_noticed_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "homing.db"
    await _with_key(path)
    key_file = tmp_path / "homing.db.key"
    key_file.write_bytes(bytes(32))
    with pytest.raises(StoreError, match="not the one it was sealed with"):
        await SqlStore.open(f"sqlite:///{path}")


async def test_nothing_is_created_when_that_is_not_wanted(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot open database .*No such file"):
        await SqlStore.open(f"sqlite:///{tmp_path}/homing.db", create=False)
    await _with_key(tmp_path / "homing.db")
    (tmp_path / "homing.db.key").unlink()
    with pytest.raises(StoreError, match="is missing"):
        await SqlStore.open(f"sqlite:///{tmp_path}/homing.db", create=False)
    assert not (tmp_path / "homing.db.key").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////nowhere/at/all/homing.db", "cannot open database"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mysql://host/db", "names mysql"),
        ("homing.db", "not of the form"),
        ("postgresql://127.0.0.1:1/homing", "cannot reach database"),
    ],
)
async def test_a_database_that_cannot_be_had_is_one_plain_line(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        await SqlStore.open(url, tmp_path / "master.key")
    assert "\n" not in str(caught.value)


async def test_a_file_that_is_no_database_is_one_plain_line(tmp_path: Path) -> None:
    path = tmp_path / "homing.db"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="not a database") as caught:
        await SqlStore.open(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)
    assert path.read_bytes().startswith(b"something else")


def test_a_password_in_the_url_is_kept_and_never_in_an_error() -> None:
    url = parse_url("postgres://homing:hunter2@db/homing")
    assert url.drivername == "postgresql+asyncpg"
    assert "hunter2" not in repr(url)


async def test_sqlite_is_set_to_keep_what_it_acknowledged(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path}/homing.db")
    async with store._engine.connect() as connection:
        found = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    await store.close()
    assert found == ["wal", 2, 1, 5000]


async def test_a_locked_database_is_a_store_error_and_the_store_works_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.sql.BUSY_SECONDS", 0)
    url = f"sqlite:///{tmp_path}/homing.db"
    one, two = await SqlStore.open(url), await SqlStore.open(url)
    zone_id = await add_zone(one)
    commit = await commit_of(one, zone_id, 1, (aaaa("a.members.example.", 1),))
    async with one.transaction():
        with pytest.raises(StoreError, match="locked"):
            await two.commit([commit])
    await two.commit([commit])
    await one.close()
    await two.close()


def test_an_error_of_the_driver_itself_is_one_plain_line() -> None:
    with (
        pytest.raises(StoreError, match=r"^database postgresql.*: deadlock$"),
        _plain_errors(parse_url("postgres:///x")),
    ):
        raise asyncpg.PostgresError("deadlock\nmore")


async def test_a_damaged_row_is_one_plain_line(tmp_path: Path) -> None:
    path = tmp_path / "homing.db"
    store = await SqlStore.open(f"sqlite:///{path}")
    zone_id = await add_zone(store)
    await store.commit([await commit_of(store, zone_id, 1, (aaaa("a.members.example.", 1),))])
    for column, value in (("data", b"\2"), ("data", b"\1\0"), ("owner", b"\1a"), ("owner", "a")):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE node SET {column} = ?", (value,))
        for read in (all_records(store, zone_id), store.load_subtree(zone_id, from_text("members.example."))):
            with pytest.raises(StoreError, match="is damaged at") as caught:
                await read
            assert "\n" not in str(caught.value)
    await store.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_master_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    load_master_key(path, create=True)
    path.chmod(mode)
    with pytest.raises(StoreError, match="chmod 600"):
        load_master_key(path, create=True)


@pytest.mark.parametrize("size", [0, 31, 33, 100_000])
def test_a_master_key_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(StoreError, match="32 octets"):
        load_master_key(path, create=True)
    assert path.stat().st_size == size


def test_a_master_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    first = load_master_key(path, create=True)
    assert load_master_key(path, create=True) == first
    assert [item.name for item in tmp_path.iterdir()] == ["master.key"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_master_key_must_be_a_plain_file(tmp_path: Path, make: object) -> None:
    path = tmp_path / "master.key"
    make(path)  # type: ignore[operator]  # either takes a path
    path.chmod(0o600)
    with pytest.raises(StoreError, match="not a plain file"):
        load_master_key(path, create=False)


def test_a_sealed_secret_opens_under_its_name_and_whole_only() -> None:
    sealer = Sealer(Secret(bytes(32)))
    sealed = sealer.seal(NAME, b"secret")
    assert sealer.open(NAME, sealed) == b"secret"
    assert sealer.seal(NAME, b"secret") != sealed
    changed = [sealed[:-1], sealed[:5], b"", b"\x02" + sealed[1:], sealed[:-1] + bytes((sealed[-1] ^ 1,))]
    for octets in changed:
        with pytest.raises(StoreError):
            sealer.open(NAME, octets)
    with pytest.raises(StoreError):
        sealer.open(from_text("bob.members.example."), sealed)


def test_a_secret_does_not_show() -> None:
    secret = Secret(b"hunter2")
    for shown in (repr(secret), str(secret), f"{secret}", repr(Sealer(Secret(b"hunter2!" * 4)))):
        assert "hunter2" not in shown
