"""The revisions make exactly the tables of schema.py, and unmake them, on filled tables too."""

import struct
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text

from protocol.constants import Type
from protocol.name import fold, from_text
from server.store import schema
from server.store.api import StoreError
from server.store.migrate import alembic_config
from server.store.packing import order_key
from server.store.sql import SqlStore
from server.zone.model import Renewal, StoredRR
from tests.store.conftest import BACKENDS
from tests.support.zones import APEX, LONG_TEXT, aaaa, add_zone, all_records, commit_of, renewal_of


def _with_connection(path: Path, work: Any) -> Any:
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.begin() as connection:
            return work(connection)
    finally:
        engine.dispose()


async def _filled(path: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{path}")
    zone_id = await add_zone(store)
    await store.commit([await commit_of(store, zone_id, 1, (aaaa("a.members.example.", 1),))])
    await store.close()


async def test_the_head_in_the_code_is_the_last_revision(tmp_path: Path) -> None:
    def head(connection: Connection) -> Any:
        return ScriptDirectory.from_config(alembic_config(connection)).get_heads()

    assert _with_connection(tmp_path / "x.db", head) == [schema.HEAD]


@pytest.mark.parametrize("opener", [name for name in BACKENDS if name != "memory"], indirect=True)
async def test_migrated_tables_equal_the_schema(store: SqlStore) -> None:
    def differences(connection: Connection) -> Any:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), schema.metadata)

    async with store._engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_constraints_of_the_revision_are_those_of_the_schema(tmp_path: Path) -> None:
    """What compare_metadata does not look at: checks, names, and SQLite's table options."""
    await _filled(tmp_path / "migrated.db")

    def shape(connection: Connection) -> Any:
        inspector = inspect(connection)
        tables = sorted(schema.metadata.tables)
        return {
            table: (
                sorted((check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table)),
                inspector.get_pk_constraint(table),
                sorted(map(str, inspector.get_foreign_keys(table))),
                sorted(map(str, inspector.get_unique_constraints(table))),
                inspector.get_table_options(table),
            )
            for table in tables
        }

    def made(connection: Connection) -> Any:
        schema.metadata.create_all(connection)
        return shape(connection)

    assert _with_connection(tmp_path / "migrated.db", shape) == _with_connection(tmp_path / "made.db", made)


async def test_down_and_up_again(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await _filled(path)
    _with_connection(path, lambda connection: command.downgrade(alembic_config(connection), "base"))
    assert _with_connection(path, lambda connection: inspect(connection).get_table_names()) == ["alembic_version"]
    await _filled(path)


RECORDS = [  # as the table that is no more had them: by owner, type and canonical rdata
    StoredRR(APEX, Type.AAAA, 60, bytes(16), None),
    aaaa("a.members.example.", 1, 5000),
    aaaa("Mac.alice.members.example.", 1, 2**32 - 1),
    aaaa("Mac.alice.members.example.", 2),
    StoredRR(from_text("Mac.alice.members.example."), Type.SRV, 4294967295, bytes(6) + from_text("NAS.example."), 7),
    *(StoredRR(from_text("z.members.example."), Type.TXT, 60, bytes((1, last)), None) for last in range(7)),
    StoredRR(from_text("z.members.example."), Type.TXT, 60, LONG_TEXT * 30, 8000),
    StoredRR(from_text("\\255.\\000.z.members.example."), Type.NS, 90, from_text("ns.example."), None),
]


@pytest.mark.parametrize("opener", [name for name in BACKENDS if name != "memory"], indirect=True)
async def test_records_become_nodes_and_nodes_records(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = import_module("migrations.versions.0006_nodes")
    monkeypatch.setattr(revision, "_PAGE", 3)  # names begin, end and go on at the edges of pages

    async def run(work: Callable[[Connection], Any]) -> Any:
        async with store._engine.begin() as connection:
            return await connection.run_sync(work)

    def revise(step: Callable[[], None]) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            with Operations.context(MigrationContext.configure(connection)):
                step()

        return work

    def fill(connection: Connection) -> None:
        names = [(zone_id, order_key(fold(record.owner)), record) for zone_id in zones for record in RECORDS]
        connection.execute(
            sa.text("INSERT INTO record VALUES (:zone, :key, :rtype, :rdata_key, :owner, :ttl, :rdata, :expires_at)"),
            [
                {"zone": zone_id, "key": key, "rdata_key": revision._rdata_key(rr.rtype, rr.rdata), **rr._asdict()}
                for zone_id, key, rr in names
            ],
        )

    def rows(connection: Connection) -> list[Any]:
        return list(connection.execute(sa.text("SELECT * FROM record ORDER BY zone_id, owner_key, rtype, rdata_key")))

    zones = [await add_zone(store), await add_zone(store, from_text("other.example."))]
    await run(revise(revision.downgrade))
    await run(fill)
    before = await run(rows)
    await run(revise(revision.upgrade))
    for zone_id in zones:
        assert await all_records(store, zone_id) == RECORDS
    renewal = Renewal(1000, "k.", "192.0.2.1")
    await store.commit([await renewal_of(store, zones[0], 1, [RECORDS[1]._replace(expires_at=6000)], renewal)])
    await store.commit([await renewal_of(store, zones[0], 1, [RECORDS[1]])])
    await run(revise(revision.downgrade))
    assert await run(rows) == before
    await run(revise(revision.upgrade))
    assert await store.renewal(zones[0], RECORDS[1].owner) == renewal


def test_long_rdata_was_keyed_by_its_beginning_and_a_digest() -> None:
    revision = import_module("migrations.versions.0006_nodes")
    assert revision._rdata_key(Type.TXT, LONG_TEXT[:256]) == LONG_TEXT[:256]
    assert revision._rdata_key(Type.TXT, LONG_TEXT) == LONG_TEXT[:225] + sha256(LONG_TEXT).digest()


async def test_an_upgrade_that_ends_halfway_has_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await _filled(path)
    _with_connection(path, lambda connection: command.downgrade(alembic_config(connection), "0005"))

    def spoil(connection: Connection) -> None:
        connection.execute(
            sa.text("INSERT INTO record SELECT zone_id, X'ff', 1, X'00', owner, ttl, zeroblob(65536), NULL FROM record")
        )

    _with_connection(path, spoil)
    with pytest.raises(struct.error):
        await SqlStore.open(f"sqlite:///{path}")
    _with_connection(path, lambda connection: connection.execute(sa.text("DELETE FROM record WHERE owner_key = X'ff'")))
    store = await SqlStore.open(f"sqlite:///{path}")
    (zone,) = await store.load_zones()
    assert await all_records(store, zone.id) == [aaaa("a.members.example.", 1)]
    await store.close()


async def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await _filled(path)
    _with_connection(path, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9'")))
    with pytest.raises(StoreError, match="newer version"):
        await SqlStore.open(f"sqlite:///{path}")
