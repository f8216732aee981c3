"""`homing member`: who has a domain. It works on the database, whether or not a server runs on it.

A running server notices within half a second. Keys are shown once, when they are made.
"""

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from homing.asking import AlgorithmName, PasswordFromStdin, checked_algorithm, confirm, read_password
from homing.database import ensure_zone, settings_of, unix_now, with_store
from homing.key_commands import key_row_json, last_used, print_key, print_keys, valid
from homing.options import Config
from homing.printing import minute_text, print_json, print_table
from protocol.name import to_text
from protocol.tsig import Key
from server import members
from server.change_text import time_text
from server.private import set_private
from server.rdata_text import rdata_text, type_name
from server.store.api import KeyRow, MemberRow, Store
from server.zone.model import StoredRR

member_app = typer.Typer(
    no_args_is_help=True,
    help="""Members: who has a domain below the zone.

    \b
    Example:
      homing member add alice --config /etc/homing/server.toml
      homing member list --config /etc/homing/server.toml
      homing member private alice on --config /etc/homing/server.toml
    """,
)

MemberName = Annotated[str, typer.Argument(metavar="NAME", help="The member's name: one label, such as alice.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


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
    settings = settings_of(config)
    kind = settings.members.default == "private" if private is None else private
    chosen = checked_algorithm(algorithm, settings)
    password = read_password() if password_stdin else None

    async def work(store: Store) -> Key:
        await ensure_zone(store, settings)
        return await members.add_member(store, name, private=kind, now=unix_now(), password=password, algorithm=chosen)

    key = with_store(settings, work)
    domain = to_text(key.name)
    what = "private" if kind else "open"
    more = {"member": name.lower(), "domain": domain, "private": kind}
    print_key(key, f"Member {name.lower()} has the domain {domain} ({what}).", as_json, more)


@member_app.command("list")
def list_members(config: Config, as_json: Json = False) -> None:
    """List members with their keys' last use.

    \b
    Example:
      homing member list --config /etc/homing/server.toml
    """
    found = with_store(settings_of(config), members.list_members)
    if as_json:
        return print_json([_member_json(row, keys) for row, keys in found])
    rows = [
        (row.name, to_text(row.domain), _kind(row), str(len(valid(keys))), last_used(keys), minute_text(row.created_at))
        for row, keys in found
    ]
    return print_table(("MEMBER", "DOMAIN", "KIND", "KEYS", "LAST USED", "CREATED"), rows)


@member_app.command("show")
def show_member(name: MemberName, config: Config, as_json: Json = False) -> None:
    """Show a member, its keys and the records it keeps.

    \b
    Example:
      homing member show alice --config /etc/homing/server.toml
    """
    detail = with_store(settings_of(config), lambda store: members.show_member(store, name))
    now = unix_now()
    if as_json:
        records = [_record_json(record) for record in detail.records]
        return print_json({**_member_json(detail.row, detail.keys), "records": records})
    created = minute_text(detail.row.created_at)
    typer.echo(f"{detail.row.name}: {to_text(detail.row.domain)} ({_kind(detail.row)}), {created}")
    typer.echo()
    print_keys(detail.keys, {detail.row.id: detail.row})
    typer.echo()
    rows = [
        (to_text(record.owner), str(record.ttl), type_name(record.rtype), _lease(record, now), _data(record))
        for record in detail.records
    ]
    return print_table(("OWNER", "TTL", "TYPE", "LEASE", "DATA"), rows)


@member_app.command("private")
def make_private(
    name: MemberName,
    state: Annotated[str, typer.Argument(metavar="on|off", help="on: a zone of its own. off: open to all.")],
    config: Config,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make a member private, or open again. Its records, their leases and its keys stay.

    Private: the domain becomes a zone of its own, and only its keys may ask for what is in it. Clients that find the
    zone by asking (nsupdate, homing client) go on; a zone name written down somewhere must be changed there.

    \b
    Example:
      homing member private alice on --config /etc/homing/server.toml
      homing member private alice off --yes --config /etc/homing/server.toml
    """
    if state not in ("on", "off"):
        raise typer.BadParameter("must be on or off", param_hint="on|off")
    wanted = state == "on"
    settings = settings_of(config)
    if not wanted and not yes:
        confirm(f"Let anyone ask for all that member {name} keeps?", "nothing was changed")
    moved = with_store(settings, lambda store: set_private(store, name, wanted, now=unix_now()))
    domain = to_text(moved.row.domain)
    if as_json:
        return print_json(
            {"member": moved.row.name, "domain": domain, "private": wanted, "records_moved": moved.records}
        )
    what = "a zone of its own" if wanted else "part of its parent zone"
    return typer.echo(f"Member {moved.row.name} is {_state(wanted)}: {domain} is {what}, {moved.records} records moved")


def _state(private: bool) -> str:
    return "private" if private else "open"


@member_app.command("remove")
def remove_member(name: MemberName, config: Config, yes: Yes = False, as_json: Json = False) -> None:
    """Remove a member, its keys, and everything at and below its domain.

    \b
    Example:
      homing member remove alice --config /etc/homing/server.toml
    """
    settings = settings_of(config)
    if not yes:
        confirm(f"Remove member {name}, its keys and all its records?", "nothing was removed")
    row = with_store(settings, lambda store: members.remove_member(store, name, now=unix_now()))
    if as_json:
        print_json({"removed": row.name, "domain": to_text(row.domain)})
    else:
        typer.echo(f"Removed member {row.name} and {to_text(row.domain)}")


# --- what is printed ---


def _member_json(row: MemberRow, keys: Iterable[KeyRow]) -> dict[str, Any]:
    return {
        "name": row.name,
        "domain": to_text(row.domain),
        "private": row.private,
        "created_at": time_text(row.created_at),
        "keys": [key_row_json(key, {row.id: row}) for key in keys],
    }


def _record_json(record: StoredRR) -> dict[str, Any]:
    return {
        "owner": to_text(record.owner),
        "ttl": record.ttl,
        "type": type_name(record.rtype),
        "data": _data(record),
        "expires_at": None if record.expires_at is None else time_text(record.expires_at),
    }


def _kind(row: MemberRow) -> str:
    return _state(row.private)


def _lease(record: StoredRR, now: int) -> str:
    return "permanent" if record.expires_at is None else f"{max(0, record.expires_at - now)} s"


def _data(record: StoredRR) -> str:
    return rdata_text(record.rtype, record.rdata)
