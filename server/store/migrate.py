"""Brings a database to the revision this program knows, before anything reads it."""

from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

import migrations
from server.store.api import StoreError
from server.store.schema import HEAD

_ADVISORY_LOCK: Final = 0x686F6D696E67  # "homing": two programs starting at once migrate one after the other

log = structlog.get_logger(__name__)


async def upgrade(engine: AsyncEngine) -> None:
    """Apply missing revisions in one transaction; `StoreError` when the database is from a newer version.

    On SQLite the engine must begin with BEGIN IMMEDIATE when `execution_options(homing_write=True)` is set.
    """
    async with engine.connect() as connection:
        present = await connection.run_sync(_revision)
    if present == HEAD:
        return
    async with engine.connect() as connection:
        await connection.execution_options(homing_write=True)
        async with connection.begin():
            if engine.dialect.name == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADVISORY_LOCK})
            await connection.run_sync(_upgrade)


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration, made here: there is no alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    present = _revision(connection)
    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in known:
        raise StoreError(f"the database is at revision {present}, made by a newer version of this program")
    command.upgrade(config, "head")
    log.info("database upgraded", revision_from=present or "none", revision_to=HEAD)
