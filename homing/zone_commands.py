"""`homing zone`: a zone as a master file, in and out.

They work on the database, whether or not a server runs on it: a running server follows an import by the journal.
"""

import errno
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from homing.asking import confirm
from homing.config_file import ConfigError
from homing.database import ensure_zone, settings_of, unix_now, with_store
from homing.master_file import Include, bounded_lines, record_text
from homing.options import Config
from homing.printing import print_json
from homing.running import OperationError
from homing.zone_import import (
    SAMPLE_LINES,
    Difference,
    Problems,
    ZoneFile,
    changeable_row,
    compare,
    kept_rrsets,
    write,
    zone_row,
)
from protocol.constants import Type
from protocol.name import fold, from_text, to_text
from protocol.rdata import soa_with_serial
from server.operation import read_service
from server.store.api import Store, Superseded

Advance = Callable[[int], None]

_ATTEMPTS: Final = 8  # comparisons when the zone keeps moving meanwhile
_STANDARD: Final = "-"

zone_app = typer.Typer(
    no_args_is_help=True,
    help="""A zone as a master file, in and out.

    \b
    Example:
      homing zone export members.zone --config /etc/homing/server.toml
      homing zone diff members.zone --config /etc/homing/server.toml
      homing zone import members.zone --config /etc/homing/server.toml
    """,
)

File = Annotated[str, typer.Argument(metavar="FILE", help="The master file; - is stdin.")]
Target = Annotated[
    str | None, typer.Option("--zone", metavar="NAME", help="A private member's zone instead of the service's.")
]
Including = Annotated[
    bool, typer.Option("--include", help="Take $INCLUDE, of files in FILE's directory and below; refused without it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@zone_app.command("export")
def export_zone(
    config: Config,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; - is stdout.")] = _STANDARD,
    zone: Target = None,
) -> None:
    """Write a zone as a master file, in canonical order, SOA first.

    A file is replaced when the whole zone is written. Leases have no form in master files: what is leased and has not
    lapsed is there like the rest.

    \b
    Example:
      homing zone export --config /etc/homing/server.toml
      homing zone export members.zone --config /etc/homing/server.toml
    """
    settings = settings_of(config)
    apex = _apex(zone or settings.zone.name)
    now = unix_now()

    async def work(store: Store) -> None:
        async with store.reading() as reader:
            row = await zone_row(reader, apex)
            with _output(file) as put:
                put(record_text(row.apex, row.soa_ttl, Type.SOA, soa_with_serial(row.soa, row.serial)) + "\n")
                with _progress("exporting", None, "records") as advance:
                    async for nodes in reader.load_zone(row.id):
                        records = [record for stored in nodes for record in stored.decode().records()]
                        live = (found for found in records if found.expires_at is None or found.expires_at > now)
                        for found in live:
                            put(record_text(found.owner, found.ttl, found.rtype, found.rdata) + "\n")
                        advance(len(records))

    with_store(settings, work)


@zone_app.command("check")
def check_zone(
    file: File,
    zone: Annotated[
        str | None, typer.Option("--zone", metavar="NAME", help="The zone it is of; else that of the configuration.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="HOMING_CONFIG", metavar="FILE", help="The TOML configuration file."),
    ] = None,
    include: Including = False,
) -> None:
    """Check a master file without a database. Problems come as FILE:LINE: problem, and the exit code is 1.

    \b
    Example:
      homing zone check members.zone --zone members.example.
    """
    if zone is None:
        if config is None:
            raise ConfigError("say which zone the file is of: --zone NAME, or --config FILE")
        zone = settings_of(config).zone.name
    apex = _apex(zone)
    problems = Problems()
    with _read(file, apex, problems, include=include) as found:
        found.check(problems)
        _refuse(file, problems)
        typer.echo(f"{file}: {found.records} records of {to_text(apex)} and {'an' if found.soa else 'no'} SOA")


@zone_app.command("diff")
def diff_zone(file: File, config: Config, zone: Target = None, include: Including = False) -> None:
    """Show what importing a master file would change: lines with - go, lines with + come. Writes nothing.

    \b
    Example:
      homing zone diff members.zone --config /etc/homing/server.toml
    """
    settings = settings_of(config)
    apex = _apex(zone or settings.zone.name)

    async def work(store: Store) -> None:
        async with _comparison(store, found, apex, file) as difference:
            for line in difference.lines():
                typer.echo(line)
            typer.echo(_counts(difference), err=True)

    problems = Problems()
    with _read(file, apex, problems, include=include) as found:
        _refuse(file, problems)
        with_store(settings, work)


@zone_app.command("import")
def import_zone(
    file: File,
    config: Config,
    zone: Target = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    include: Including = False,
    as_json: Json = False,
) -> None:
    """Make a zone what a master file says, in one transaction. Shows what changes and asks first.

    Records that stay keep their leases, new ones are permanent. What the service keeps itself (NS of the zone,
    discovery names, delegations) stays unless the file has it. The serial only moves forward: to the file's when that
    is newer.

    \b
    Example:
      homing zone import members.zone --config /etc/homing/server.toml
      homing zone import members.zone --yes --json --config /etc/homing/server.toml
    """
    settings = settings_of(config)
    apex = _apex(zone or settings.zone.name)
    problems = Problems()

    async def work(store: Store) -> dict[str, Any]:
        await ensure_zone(store, settings)
        return await _import(store, found, apex, file, is_quiet=as_json, yes=yes)

    with _read(file, apex, problems, include=include) as found:
        _refuse(file, problems)
        done = with_store(settings, work)
    if as_json:
        print_json(done)
    elif done["serial_from"] == done["serial_to"]:
        typer.echo("Nothing to import: the zone is what the file says")
    else:
        typer.echo(f"Imported into {done['zone']}, serial {done['serial_from']} to {done['serial_to']}")


async def _import(
    store: Store, found: ZoneFile, apex: bytes, file: str, *, is_quiet: bool, yes: bool
) -> dict[str, Any]:
    """Compare, ask, write; again when the zone moved in between, asking only if that changed what would be done."""
    agreed = b""
    for attempt in range(1, _ATTEMPTS + 1):
        async with _comparison(store, found, apex, file) as difference:
            serial = difference.zone.serial
            if not difference.is_empty and difference.digest != agreed:
                if not is_quiet:
                    _show(difference)
                if not yes:
                    confirm("Import this?", "nothing was imported")
                agreed = difference.digest
            if not difference.is_empty:
                try:
                    total = difference.added + difference.removed + 2 * difference.changed
                    with _progress("writing", total, "records") as advance:
                        async with store.transaction() as transaction:
                            serial = await write(transaction, difference, now=unix_now(), advance=advance)
                except Superseded:
                    if attempt == _ATTEMPTS:
                        raise
                    continue
            return {
                "zone": to_text(apex),
                "serial_from": difference.zone.serial,
                "serial_to": serial,
                "steps": 0 if difference.is_empty else difference.step_count,
                "added": difference.added,
                "removed": difference.removed,
                "changed": difference.changed,
                "unchanged": difference.unchanged,
                "kept": difference.kept,
            }
    raise AssertionError("unreachable")


@asynccontextmanager
async def _comparison(store: Store, found: ZoneFile, apex: bytes, file: str) -> AsyncIterator[Difference]:
    problems = Problems()
    with _progress("comparing", None, "names") as advance:
        async with store.reading() as reader:
            row = await changeable_row(reader, apex)
            kept = await kept_rrsets(reader, row, await read_service(reader))
            difference = await compare(found, reader, row, kept, problems, now=unix_now(), advance=advance)
    try:
        _refuse(file, problems)
        yield difference
    finally:
        difference.close()


def _show(difference: Difference) -> None:
    for number, line in enumerate(difference.lines()):
        if number == SAMPLE_LINES:
            typer.echo("... (homing zone diff shows all)")
            break
        typer.echo(line)
    typer.echo(_counts(difference))


def _counts(difference: Difference) -> str:
    soa = ", the SOA changes" if difference.soa or difference.serial is not None else ""
    return (
        f"{to_text(difference.zone.apex)} at serial {difference.zone.serial}: {difference.added} to add, "
        f"{difference.removed} to remove, {difference.changed} to change, {difference.unchanged} as they are, "
        f"{difference.kept} of the service kept{soa}"
    )


def _apex(name: str) -> bytes:
    try:
        return fold(from_text(name))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _refuse(file: str, problems: Problems) -> None:
    """Warnings to stderr; `OperationError` with all that is shown when there is an error among them."""
    shown = list(problems.lines(file))
    if problems.errors:
        raise OperationError("\n".join(shown))
    for line in shown:
        typer.echo(line, err=True)


@contextmanager
def _read(file: str, apex: bytes, problems: Problems, *, include: bool) -> Iterator[ZoneFile]:
    if include and file == _STANDARD:
        raise ConfigError("--include needs a file: stdin lies in no directory")
    with ZoneFile(apex, _including(Path(file)) if include else None) as found:
        try:
            if file == _STANDARD:
                with _progress("reading", None, "octets") as advance:
                    found.read(sys.stdin.buffer, problems, advance)
            else:
                _read_file(Path(file), found, problems)
        except OSError as error:
            raise OperationError(f"cannot read {file}: {error.strerror}") from None
        yield found


def _including(path: Path) -> Include:
    """Opens what lies in the master file's directory or below, and nothing else: problems quote what they find."""
    root = path.parent.resolve()

    def lines(name: str) -> Iterator[bytes]:
        target = (root / name).resolve()
        if not target.is_relative_to(root):
            raise PermissionError(errno.EACCES, f"it lies outside {root}")
        with target.open("rb") as stream:
            yield from bounded_lines(stream)

    return lines


def _read_file(path: Path, found: ZoneFile, problems: Problems) -> None:
    stream: BinaryIO
    with path.open("rb") as stream, _progress("reading", path.stat().st_size, "octets") as advance:
        found.read(stream, problems, advance)


@contextmanager
def _output(file: str) -> Iterator[Callable[[str], object]]:
    """Where an export goes: stdout, or a file that takes its name when it is whole."""
    if file == _STANDARD:
        yield sys.stdout.write
        sys.stdout.flush()
        return
    path = Path(file)
    part = path.with_name(path.name + ".part")
    try:
        try:
            with part.open("w", encoding="ascii") as stream:
                yield stream.write
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OperationError(f"cannot write {file}: {error.strerror}") from None


@contextmanager
def _progress(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, unit=unit)
        yield lambda count: progress.advance(task, count)
