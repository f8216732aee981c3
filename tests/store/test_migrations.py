"""The revisions make exactly the tables of schema.py, and unmake them, on filled tables too."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, text

from server.store import schema
from server.store.api import StoreError
from server.store.migrate import alembic_config
from server.store.sql import SqlStore
from tests.store.conftest import BACKENDS
from tests.support.zones import aaaa, add_zone, commit_of


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
    await store.commit([commit_of(zone_id, 1, (aaaa("a.members.example.", 1),))])
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


async def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await _filled(path)
    _with_connection(path, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9'")))
    with pytest.raises(StoreError, match="newer version"):
        await SqlStore.open(f"sqlite:///{path}")
