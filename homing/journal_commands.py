"""`homing history`, `homing undo` and `homing tail`: the change journal for people and scripts.

They work on the database, whether or not a server runs on it.
"""

import asyncio
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from homing.asking import confirm
from homing.config_file import ConfigError
from homing.database import settings_of, unix_now, with_store
from homing.journal import (
    NameHistory,
    as_of,
    enclosing,
    entries,
    find_step,
    plan_undo,
    read_history,
    rr_text,
)
from homing.options import Config
from homing.printing import print_json
from homing.running import SIGNALS, OperationError
from homing.zone_import import changeable_row, zone_row
from protocol.name import fold, from_text, is_at_or_below, to_text
from server.change_text import change_json, rr_json, time_text, told
from server.operation import read_service
from server.store.api import PRUNED, Reader, Store
from server.zone.model import RR, Actor, Change, Renewal

POLL_SECONDS: Final = 0.5  # as often as a server looks

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# --- history ---


def history(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A domain name; without a final dot the zone's is added.")
    ],
    config: Config,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What the name was then: 2026-11-23T10:00:00Z, or seconds since 1970."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show who changed a name, when, and what it was before and after. Nothing is said of the names below it.

    A lease that is renewed changes nothing: of renewals only the last is told. One that ends is told as lapse.

    \b
    Example:
      homing history mac.alice --config /etc/homing/server.toml
      homing history mac.alice --at 2026-11-23T10:00:00Z --config /etc/homing/server.toml
    """
    moment = None if at is None else _moment(at)
    settings = settings_of(config)

    async def work(store: Store) -> NameHistory:
        async with store.reading() as reader:
            key = await _full_name(reader, name)
            zone = enclosing(await reader.load_zones(), key)
            if zone is None:
                raise ValueError(f"{to_text(key)} is in no zone of this database")
            return await read_history(reader, zone, key)

    found = with_store(settings, work)
    if moment is None:
        _print_history(found, as_json)
    else:
        _print_then(found, moment, as_json)


async def _full_name(reader: Reader, text: str) -> bytes:
    key = fold(from_text(text))
    apex = (await read_service(reader)).zone
    return key if text.endswith(".") or is_at_or_below(key, apex) else fold(from_text(f"{text}.{to_text(apex)}"))


def _print_history(found: NameHistory, as_json: bool) -> None:
    now = unix_now()
    renewal = found.renewal
    live = [row for row in found.present if row.expires_at is None or row.expires_at > now]
    if as_json:
        changes = [change_json(past.change, past.removed, past.added) for past in found.steps]
        records = [{**rr_json(RR(*row[:4])), "expires_at": _expiry(row.expires_at)} for row in live]
        return print_json(
            {
                "name": to_text(found.key),
                "zone": to_text(found.zone.apex),
                "journal": {
                    "since": None if found.begins_at is None else time_text(found.begins_at),
                    "serial_from": found.begins_from,
                    "pruned": found.is_pruned,
                },
                "changes": changes,
                "renewed": None if renewal is None else _renewal_json(renewal),
                "now": records,
            }
        )
    for past in found.steps:
        if renewal is not None and renewal.at < past.change.at:
            _print_renewal(found, renewal)
            renewal = None
        _print_change(past.change, past.removed, past.added)
    if renewal is not None:
        _print_renewal(found, renewal)
    if not found.steps:
        typer.echo(f"The journal says nothing of {to_text(found.key)}")
    if found.is_pruned:
        reach = "is empty" if found.begins_at is None else f"reaches back to {time_text(found.begins_at)}"
        typer.echo(f"(what is older was pruned: the journal of {to_text(found.zone.apex)} {reach})")
    typer.echo(f"now: {'' if live else 'no records'}".rstrip())
    for row in live:
        lease = "" if row.expires_at is None else f"\t; lease ends in {row.expires_at - now} s"
        typer.echo(f"  {rr_text(RR(*row[:4]))}{lease}")
    return None


def _print_renewal(found: NameHistory, renewal: Renewal) -> None:
    who = _actor_text(Actor("lease renewed", renewal.key, renewal.peer))
    typer.echo(f"{time_text(renewal.at)} {to_text(found.zone.apex)} {who}, the last time")


def _renewal_json(renewal: Renewal) -> dict[str, str]:
    return {"at": time_text(renewal.at), "key": renewal.key, "peer": renewal.peer}


def _print_then(found: NameHistory, moment: int, as_json: bool) -> None:
    try:
        records = as_of(found, moment)
    except ValueError:
        begins = "is empty" if found.begins_at is None else f"begins at {time_text(found.begins_at)}"
        raise OperationError(f"the journal of {to_text(found.zone.apex)} {begins}") from None
    if as_json:
        return print_json(
            {
                "name": to_text(found.key),
                "zone": to_text(found.zone.apex),
                "at": time_text(moment),
                "records": list(map(rr_json, records)),
            }
        )
    typer.echo(f"{time_text(moment)}: {'' if records else 'no records'}".rstrip())
    for rr in records:
        typer.echo(f"  {rr_text(rr)}")
    return None


def _moment(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"--at {text[:40]!r}: neither a time like 2026-11-23T10:00:00Z nor seconds since 1970"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


# --- undo ---


def undo(
    serial: Annotated[int, typer.Argument(metavar="SERIAL", min=0, help="The serial that the step led to.")],
    config: Config,
    zone: Annotated[
        str | None, typer.Option("--zone", metavar="NAME", help="A private member's zone instead of the service's.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take one step of a zone back, as a new change. Shows it and asks first.

    Refused when a later step changed the same records. What comes back is permanent, whatever lease it had.

    \b
    Example:
      homing history mac.alice --config /etc/homing/server.toml
      homing undo 1795435731 --config /etc/homing/server.toml
    """
    settings = settings_of(config)
    apex = _apex(zone or settings.zone.name)

    async def work(store: Store) -> tuple[int, int]:
        async with store.reading() as reader:
            row = await changeable_row(reader, apex)
            shown = await plan_undo(reader, row, await find_step(reader, row, serial), now=unix_now())
        for line in shown.lines:
            typer.echo(line)
        if not yes:
            confirm("Undo this?", "nothing was undone")
        async with store.transaction() as transaction:
            row = await changeable_row(transaction, apex)  # others may have gone on while this one was looked at
            agreed = await plan_undo(transaction, row, shown.entry, now=unix_now())
            if agreed.lines != shown.lines:
                raise ValueError("the zone changed meanwhile: look again")
            await transaction.apply([agreed.commit])
        return agreed.commit.serial_from, agreed.commit.serial_to

    before, after = with_store(settings, work)
    typer.echo(f"Undone: {to_text(apex)} went from serial {before} to {after}")


# --- tail ---


def tail(
    config: Config,
    zone: Annotated[str | None, typer.Option("--zone", metavar="NAME", help="Only this zone's changes.")] = None,
    since: Annotated[
        int | None,
        typer.Option(metavar="SERIAL", min=0, help="Begin with the step from this serial; needs --zone."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print committed changes as they come, until SIGINT or SIGTERM.

    Without --since it begins with the next change. To go on later, give the last serial that was seen.

    \b
    Example:
      homing tail --config /etc/homing/server.toml
      homing tail --zone members.example. --since 1795435731 --json --config /etc/homing/server.toml
    """
    if since is not None and zone is None:
        raise ConfigError("--since needs --zone: a serial is one zone's")
    settings = settings_of(config)
    apex = None if zone is None else _apex(zone)
    with_store(settings, lambda store: _tail(store, apex, since, as_json))


async def _tail(store: Store, apex: bytes | None, since: int | None, as_json: bool) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    seen: int | None = None
    async with store.reading() as reader:
        zone_id = None if apex is None else (await zone_row(reader, apex)).id
        newest = (await reader.journal_span())[1]
        after = newest if since is None or apex is None else await _id_before(reader, apex, since)
    while not stopping.is_set():
        generation = await store.generation()  # before reading: what is committed meanwhile shows the next time
        if generation != seen:
            seen = generation
            pruned = int(await store.meta(PRUNED) or 0)
            if after and pruned > after:
                typer.echo("homing: the journal was pruned past what was shown: changes are missing here", err=True)
                after = pruned
            async for entry in entries(store, zone_id, after):
                after = entry.id
                _print_committed(entry.change, as_json)
                if stopping.is_set():
                    return
            sys.stdout.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await stopping.wait()


async def _id_before(reader: Reader, apex: bytes, since: int) -> int:
    """The id after which the last steps from serial `since` on are."""
    row = await zone_row(reader, apex)
    if row.serial == since:
        return (await reader.journal_span())[1]
    found = None
    async for entry in entries(reader, row.id):
        if entry.change.serial_from == since:
            found = entry.id - 1
    if found is None:
        raise ValueError(f"the journal of {to_text(apex)} does not reach back to serial {since}")
    return found


def _print_committed(change: Change, as_json: bool) -> None:
    if not as_json:
        return _print_change(change, *told(change))
    line = {"zone": to_text(change.apex), **change_json(change, *told(change))}
    return typer.echo(json.dumps(line))


# --- what is printed ---


def _print_change(change: Change, removed: Iterable[RR], added: Iterable[RR]) -> None:
    typer.echo(
        f"{time_text(change.at)} {to_text(change.apex)} serial {change.serial_from} to {change.serial_to}, "
        f"{_actor_text(change.actor)}"
    )
    for rr in removed:
        typer.echo(f"  -{rr_text(rr)}")
    for rr in added:
        typer.echo(f"  +{rr_text(rr)}")


def _actor_text(actor: Actor) -> str:
    return actor.kind + (f" by {actor.key}" if actor.key else "") + (f" from {actor.peer}" if actor.peer else "")


def _expiry(at: int | None) -> str | None:
    return None if at is None else time_text(at)


def _apex(name: str) -> bytes:
    try:
        return fold(from_text(name))
    except ValueError as error:
        raise ConfigError(str(error)) from None
