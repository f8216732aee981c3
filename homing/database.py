"""The database a configuration names, for commands that work on it beside a running server or without one."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

from homing.config_file import load, open_secret_files
from homing.logs import configure_logging
from homing.running import OperationError
from protocol.name import fold, from_text, to_text
from server.config import ServerSettings, split_host_port
from server.operation import read_service
from server.service_settings import service_of
from server.store.api import Reader, Store, StoreError

Result = TypeVar("Result")

_DNS_PORT: Final = 53


def settings_of(config: Path) -> ServerSettings:
    """The settings in a server's file, with logging as they say; refuses a master key that others may read."""
    settings = load(ServerSettings, config)
    level = settings.log.level
    configure_logging("warning" if level == "info" else level)  # a migration on first use is no news here
    # a TLS key is none of our business, but whoever reads the master key reads every secret
    problems = [line for line in open_secret_files(settings) if "master_key_file" in line]
    if problems:
        raise OperationError("\n".join(problems))
    return settings


def with_store(settings: ServerSettings, work: Callable[[Store], Awaitable[Result]]) -> Result:
    """Do `work` on the database; `OperationError` in one line when it cannot be done."""
    from server.store.sql import SqlStore  # SQLAlchemy takes long to load: not for `--help`

    async def run() -> Result:
        store = await SqlStore.open(settings.database.url, settings.database.master_key_file)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except (StoreError, ValueError) as error:
        raise OperationError(str(error)) from None


async def ensure_zone(store: Store, settings: ServerSettings) -> None:
    """Make the zone when no server has run on the database yet, so that members can be there before it does.

    What the server finds out when it starts, such as the number of a free port, it puts right then.
    """
    from server.members import ensure_service_zone

    ports, tls_ports = (
        [port for _, port in map(split_host_port, listen) if port]
        for listen in (settings.dns.listen, settings.dns.listen_tls)
    )
    service = service_of(settings, next(iter(ports), _DNS_PORT), next(iter(tls_ports), None))
    try:
        present = (await read_service(store)).zone
    except ValueError:
        await ensure_service_zone(store, service, now=unix_now())
    else:
        if present != service.zone:
            raise ValueError(f"this database serves zone {to_text(present)}, not {settings.zone.name}")


async def full_key_name(reader: Reader, text: str) -> bytes:
    """The folded wire name; `phone.alice` is completed with the zone when there is no key of just that name."""
    name = fold(from_text(text))
    if text.endswith("."):
        return name
    known = {row.key.name for row in await reader.keys()}
    below_zone = fold(from_text(f"{text}.{to_text((await read_service(reader)).zone)}"))
    return below_zone if name not in known and below_zone in known else name


def unix_now() -> int:
    """Seconds since 1970."""
    return int(time.time())
