"""Stores under the one contract: SQLite, memory, and PostgreSQL, which is started for the run."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from server.store.api import Store
from server.store.memory import MemoryStore
from server.store.sql import SqlStore, parse_url
from tests.support.postgres import start_postgres

Opener = Callable[[], Awaitable[Store]]
"""Opens the same data once more, as another process would."""

BACKENDS = ["sqlite", "memory", "postgresql"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with start_postgres() as url:
        yield url


async def _empty_postgresql(url: str) -> None:
    engine = create_async_engine(parse_url(url))
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await engine.dispose()


@pytest.fixture(params=BACKENDS)
async def opener(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opener]:
    opened: list[Store] = []
    first = MemoryStore()

    async def open_store() -> Store:
        store: Store
        if request.param == "memory":
            store = first.sibling()
        elif request.param == "sqlite":
            store = await SqlStore.open(f"sqlite:///{tmp_path}/homing.db")
        else:
            store = await SqlStore.open(request.getfixturevalue("postgres"), tmp_path / "master.key")
        opened.append(store)
        return store

    if request.param == "postgresql":
        await _empty_postgresql(request.getfixturevalue("postgres"))
    yield open_store
    for store in opened:
        await store.close()


@pytest.fixture
async def store(opener: Opener) -> Store:
    return await opener()
