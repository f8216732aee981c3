"""`homing member` and `homing key`: they work on the database, whether or not a server runs on it.

A running server notices within half a second. Keys are shown once, when they are made.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import typer
from dnslib import QTYPE, RDMAP, DNSBuffer

from homing.config_file import ConfigError, load, open_secret_files
from homing.logs import configure_logging
from homing.options import Config
from homing.running import OperationError
from protocol.constants import type_text
from protocol.name import canonical_key, fold, from_text, to_text
from protocol.tsig import MD5, Algorithm, Key, algorithm_from_text
from server import members
from server.config import ServerSettings, split_host_port
from server.service_settings import service_of
from server.store.api import KeyRow, MemberRow, Store, StoreError
from server.zone.model import StoredRR

Row = Sequence[str]
Result = TypeVar("Result")

_DNS_PORT: Final = 53
_LONGEST_PASSWORD: Final = 1024

member_app = typer.Typer(
    no_args_is_help=True,
    help="""Members: who has a domain below the zone.

    \b
    Example:
      homing member add alice --config /etc/homing/server.toml
      homing member list --config /etc/homing/server.toml
    """,
)
key_app = typer.Typer(
    no_args_is_help=True,
    help="""Keys: what members' devices sign their updates with.

    \b
    Example:
      homing key add alice --device phone --config /etc/homing/server.toml
      homing key revoke phone.alice.members.example. --config /etc/homing/server.toml
    """,
)

MemberName = Annotated[str, typer.Argument(metavar="NAME", help="The member's name: one label, such as alice.")]
AlgorithmName = Annotated[
    str, typer.Option("--algorithm", metavar="NAME", help="TSIG algorithm, such as hmac-sha256 or hmac-sha512.")
]
PasswordFromStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin", help="Derive the key from a password, the first line of stdin; asked for on a terminal."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# --- commands ---


@member_app.command("add")
def add_member(
    name: MemberName,
    config: Config,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--open",
            show_default=False,
            help="Private: a zone of its own, every query signed. Open: anyone may ask. Default: [members] default.",
        ),
    ] = None,
    password_stdin: PasswordFromStdin = False,
    algorithm: AlgorithmName = "hmac-sha256",
    as_json: Json = False,
) -> None:
    """Create a member and its first key, and print the key.

    It is printed this once, in the forms that programs take: a BIND key file, nsupdate's option, JSON.

    \b
    Example:
      homing member add alice --config /etc/homing/server.toml
      homing member add bob --private --json --config /etc/homing/server.toml
      pass show bob | homing member add bob --password-stdin --config /etc/homing/server.toml
    """
    settings = _settings(config)
    kind = settings.members.default == "private" if private is None else private
    chosen = _algorithm(algorithm, settings)
    password = _password() if password_stdin else None

    async def work(store: Store) -> Key:
        await _ensure_zone(store, settings)
        return await members.add_member(store, name, private=kind, now=_now(), password=password, algorithm=chosen)

    key = _with_store(settings, work)
    domain = to_text(key.name)
    what = "private" if kind else "open"
    more = {"member": name.lower(), "domain": domain, "private": kind}
    _print_key(key, f"Member {name.lower()} has the domain {domain} ({what}).", as_json, more)


@member_app.command("list")
def list_members(config: Config, as_json: Json = False) -> None:
    """List members with their keys' last use.

    \b
    Example:
      homing member list --config /etc/homing/server.toml
    """
    found = _with_store(_settings(config), members.list_members)
    if as_json:
        return _print_json([_member_json(row, keys) for row, keys in found])
    rows = [
        (row.name, to_text(row.domain), _kind(row), str(len(_valid(keys))), _last_used(keys), _minute(row.created_at))
        for row, keys in found
    ]
    return _print_table(("MEMBER", "DOMAIN", "KIND", "KEYS", "LAST USED", "CREATED"), rows)


@member_app.command("show")
def show_member(name: MemberName, config: Config, as_json: Json = False) -> None:
    """Show a member, its keys and the records it keeps.

    \b
    Example:
      homing member show alice --config /etc/homing/server.toml
    """
    detail = _with_store(_settings(config), lambda store: members.show_member(store, name))
    now = _now()
    if as_json:
        records = [_record_json(record) for record in detail.records]
        return _print_json({**_member_json(detail.row, detail.keys), "records": records})
    typer.echo(
        f"{detail.row.name}: {to_text(detail.row.domain)} ({_kind(detail.row)}), {_minute(detail.row.created_at)}"
    )
    typer.echo()
    _print_keys(detail.keys, {detail.row.id: detail.row})
    typer.echo()
    rows = [
        (to_text(record.owner), str(record.ttl), type_text(record.rtype), _lease(record, now), _rdata_text(record))
        for record in detail.records
    ]
    return _print_table(("OWNER", "TTL", "TYPE", "LEASE", "DATA"), rows)


@member_app.command("remove")
def remove_member(
    name: MemberName,
    config: Config,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a member, its keys, and everything at and below its domain.

    \b
    Example:
      homing member remove alice --config /etc/homing/server.toml
    """
    settings = _settings(config)
    if not yes:
        _confirm(f"Remove member {name}, its keys and all its records?")
    row = _with_store(settings, lambda store: members.remove_member(store, name, now=_now()))
    if as_json:
        _print_json({"removed": row.name, "domain": to_text(row.domain)})
    else:
        typer.echo(f"Removed member {row.name} and {to_text(row.domain)}")


@key_app.command("add")
def add_key(
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="Whose key it is to be.")],
    config: Config,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The device that gets it: one label. Without it, the key named like the domain."
        ),
    ] = None,
    password_stdin: PasswordFromStdin = False,
    algorithm: AlgorithmName = "hmac-sha256",
    as_json: Json = False,
) -> None:
    """Give a member one more key, and print it. Those it has stay valid.

    To replace a key: add one, put it on the device, then revoke the old one.

    \b
    Example:
      homing key add alice --device phone --config /etc/homing/server.toml
    """
    settings = _settings(config)
    chosen = _algorithm(algorithm, settings)
    password = _password() if password_stdin else None
    key = _with_store(
        settings,
        lambda store: members.add_key(store, member, device, now=_now(), password=password, algorithm=chosen),
    )
    _print_key(key, f"Member {member.lower()} has one more key.", as_json, {"member": member.lower()})


@key_app.command("list")
def list_keys(
    config: Config,
    member: Annotated[str | None, typer.Argument(metavar="[MEMBER]", help="Only this member's.")] = None,
    as_json: Json = False,
) -> None:
    """List keys, without their secrets. Administrators' keys belong to no member.

    \b
    Example:
      homing key list alice --config /etc/homing/server.toml
    """

    async def work(store: Store) -> tuple[list[KeyRow], dict[int, MemberRow]]:
        if member is not None:
            detail = await members.show_member(store, member)
            return list(detail.keys), {detail.row.id: detail.row}
        async with store.reading() as reader:
            return await reader.keys(), {row.id: row for row in await reader.members()}

    keys, owners = _with_store(_settings(config), work)
    if as_json:
        return _print_json([_key_row_json(row, owners) for row in sorted(keys, key=_key_order)])
    return _print_keys(keys, owners)


@key_app.command("revoke")
def revoke_key(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The key's name; what follows the member's may be left out.")
    ],
    config: Config,
    as_json: Json = False,
) -> None:
    """Make a key invalid at once. It stays in the list.

    \b
    Example:
      homing key revoke phone.alice.members.example. --config /etc/homing/server.toml
      homing key revoke phone.alice --config /etc/homing/server.toml
    """

    async def work(store: Store) -> bytes:
        full = await _full_key_name(store, name)
        await members.revoke_key(store, full, now=_now())
        return full

    revoked = to_text(_with_store(_settings(config), work))
    if as_json:
        _print_json({"revoked": revoked})
    else:
        typer.echo(f"Revoked key {revoked}")


# --- the database ---


def _settings(config: Any) -> ServerSettings:
    settings = load(ServerSettings, config)
    level = settings.log.level
    configure_logging("warning" if level == "info" else level)  # a migration on first use is no news here
    # a TLS key is none of our business, but whoever reads the master key reads every secret
    problems = [line for line in open_secret_files(settings) if "master_key_file" in line]
    if problems:
        raise OperationError("\n".join(problems))
    return settings


def _with_store(settings: ServerSettings, work: Callable[[Store], Awaitable[Result]]) -> Result:
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


async def _ensure_zone(store: Store, settings: ServerSettings) -> None:
    """Make the zone when no server has run on the database yet, so that members can be there before it does.

    What the server finds out when it starts, such as the number of a free port, it puts right then.
    """
    ports, tls_ports = (
        [port for _, port in map(split_host_port, listen) if port]
        for listen in (settings.dns.listen, settings.dns.listen_tls)
    )
    service = service_of(settings, next(iter(ports), _DNS_PORT), next(iter(tls_ports), None))
    try:
        present = (await members.read_service(store)).zone
    except ValueError:
        await members.ensure_service_zone(store, service, now=_now())
    else:
        if present != service.zone:
            raise ValueError(f"this database serves zone {to_text(present)}, not {settings.zone.name}")


async def _full_key_name(store: Store, text: str) -> bytes:
    """The folded wire name; `phone.alice` is completed with the zone when there is no key of just that name."""
    name = fold(from_text(text))
    if text.endswith("."):
        return name
    async with store.reading() as reader:
        known = {row.key.name for row in await reader.keys()}
        below_zone = name[:-1] + (await members.read_service(reader)).zone
    return below_zone if name not in known and below_zone in known else name


def _now() -> int:
    return int(time.time())


# --- what is asked for ---


def _algorithm(text: str, settings: ServerSettings) -> Algorithm:
    try:
        algorithm = algorithm_from_text(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--algorithm") from None
    if algorithm is MD5 and not settings.dns.allow_md5:
        raise ConfigError("hmac-md5 keys work only with allow_md5 = true in [dns] (RFC 8945 forbids them)")
    return algorithm


def _password() -> str:
    """From the terminal, twice and unseen, or the first line of stdin."""
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    try:
        line = sys.stdin.readline(_LONGEST_PASSWORD + 2)
    except UnicodeDecodeError:
        raise OperationError("the password on stdin is not UTF-8 text") from None
    password = line.rstrip("\r\n")
    if not password:
        raise OperationError("no password on stdin")
    if len(password) > _LONGEST_PASSWORD:
        raise OperationError(f"the password has more than {_LONGEST_PASSWORD} letters")
    return password


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on: say --yes")
    if not typer.confirm(question, err=True):
        raise OperationError("nothing was removed")


# --- what is printed ---


def _print_key(key: Key, text: str, as_json: bool, more: dict[str, Any]) -> None:
    shown = members.key_json(key)
    if as_json:
        return _print_json({**shown, **more})
    typer.echo(f"{text} This is the only time its key is shown.\n")
    typer.echo(f"In a BIND key file (nsupdate -k FILE, dig -k FILE):\n\n{members.key_file_text(key)}")
    typer.echo(f"On a command line:\n\n{members.nsupdate_line(key)}\n")
    return typer.echo(f"As JSON:\n\n{json.dumps(shown)}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_table(header: Row, rows: Sequence[Row]) -> None:
    """A table for people on a terminal, else columns of plain text."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in header:
            table.add_column(title, overflow="fold")  # a name that is cut off is of no use
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_keys(keys: Iterable[KeyRow], owners: dict[int, MemberRow]) -> None:
    rows = [
        (
            to_text(row.key.name),
            _owner(row, owners) or "(administrator)",
            row.key.algorithm.text,
            "valid" if row.revoked_at is None else "revoked",
            _last_used([row]),
        )
        for row in sorted(keys, key=_key_order)
    ]
    _print_table(("KEY", "MEMBER", "ALGORITHM", "STATE", "LAST USED"), rows)


def _member_json(row: MemberRow, keys: Iterable[KeyRow]) -> dict[str, Any]:
    return {
        "name": row.name,
        "domain": to_text(row.domain),
        "private": row.private,
        "created_at": _time(row.created_at),
        "keys": [_key_row_json(key, {row.id: row}) for key in keys],
    }


def _key_row_json(row: KeyRow, owners: dict[int, MemberRow]) -> dict[str, Any]:
    return {
        "name": to_text(row.key.name),
        "algorithm": row.key.algorithm.text,
        "member": _owner(row, owners),
        "from_password": row.kdf is not None,
        "created_at": _time(row.created_at),
        "revoked_at": None if row.revoked_at is None else _time(row.revoked_at),
        "last_used_at": None if row.last_used_at is None else _time(row.last_used_at),
    }


def _record_json(record: StoredRR) -> dict[str, Any]:
    return {
        "owner": to_text(record.owner),
        "ttl": record.ttl,
        "type": type_text(record.rtype),
        "data": _rdata_text(record),
        "expires_at": None if record.expires_at is None else _time(record.expires_at),
    }


def _key_order(row: KeyRow) -> tuple[bytes, ...]:
    """A member's keys together."""
    return canonical_key(row.key.name)


def _valid(keys: Iterable[KeyRow]) -> list[KeyRow]:
    return [row for row in keys if row.revoked_at is None]


def _kind(row: MemberRow) -> str:
    return "private" if row.private else "open"


def _owner(row: KeyRow, owners: dict[int, MemberRow]) -> str | None:
    member = owners.get(row.member_id) if row.member_id is not None else None
    return member.name if member else None


def _last_used(keys: Iterable[KeyRow]) -> str:
    used = [row.last_used_at for row in keys if row.last_used_at is not None]
    return _minute(max(used)) if used else "never"


def _time(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _minute(unix: int) -> str:
    """For people, in UTC."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _lease(record: StoredRR, now: int) -> str:
    return "permanent" if record.expires_at is None else f"{max(0, record.expires_at - now)} s"


def _rdata_text(record: StoredRR) -> str:
    """As in a zone file; types that dnslib does not know in the form of RFC 3597."""
    reader = RDMAP.get(QTYPE.forward.get(record.rtype, ""))
    if reader is not None:
        try:
            text = str(reader.parse(DNSBuffer(record.rdata), len(record.rdata)))
            if text.isprintable():
                return text
        except Exception:  # noqa: BLE001, S110  # whatever dnslib makes of what a peer stored, the other form is right
            pass
    return f"\\# {len(record.rdata)} {record.rdata.hex()}".rstrip()
