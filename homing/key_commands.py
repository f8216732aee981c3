"""`homing key`: what members' devices, foreign programs and administrators sign with.

They work on the database; a running server notices within half a second. A secret is shown when its key is made, and
by `homing key export`.
"""

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from homing.asking import AlgorithmName, PasswordFromStdin, checked_algorithm, read_password
from homing.config_file import ConfigError
from homing.database import ensure_zone, full_key_name, settings_of, unix_now, with_store
from homing.key_files import MAX_OCTETS, bind_text, key_json, keys_in, knot_text, nsupdate_line
from homing.key_rules import rule_app
from homing.options import Config
from homing.printing import minute_text, print_json, print_table
from homing.running import OperationError
from homing.times import moment, seconds
from protocol.name import canonical_key, to_text
from protocol.tsig import MD5, Key
from server import keys
from server.change_text import time_text
from server.config import ServerSettings
from server.members import show_member
from server.policy_settings import rule_settings
from server.store.api import KeyRow, MemberRow, Store

key_app = typer.Typer(
    no_args_is_help=True,
    help="""Keys: what devices, other programs and administrators sign with.

    \b
    Example:
      homing key add alice --device phone --config /etc/homing/server.toml
      homing key add alice --device certbot --acme --config /etc/homing/server.toml
      homing key rotate phone.alice --overlap 7d --config /etc/homing/server.toml
      homing key revoke phone.alice.members.example. --config /etc/homing/server.toml
    """,
)
key_app.add_typer(rule_app, name="rule")

KeyName = Annotated[
    str, typer.Argument(metavar="NAME", help="The key's name; what follows the member's may be left out.")
]
Expires = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help="When it ends: 90d, or a time such as 2027-01-31T12:00:00Z."),
]
RuleTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--rule", metavar="RULE", help="Narrow it to this; may be given several times. homing key rule add --help."
    ),
]
Acme = Annotated[
    bool, typer.Option("--acme", help="Narrow it to TXT records at _acme-challenge names, without update leases.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Format(StrEnum):
    """Whose key file."""

    BIND = "bind"
    KNOT = "knot"
    JSON = "json"


@key_app.command("add")
def add_key(
    config: Config,
    member: Annotated[str | None, typer.Argument(metavar="[MEMBER]", help="Whose key it is to be.")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The device that gets it: one label. Without it, the key named like the domain."
        ),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="An administrator's key of this label instead: it may change every zone."),
    ] = None,
    only_host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Narrow it to one host's names and what points to them; it may see the others."
        ),
    ] = None,
    mac: Annotated[
        str | None,
        typer.Option(
            "--mac", metavar="ADDRESS", help="With --only-host: its AutoTunnel name too, of this hardware address."
        ),
    ] = None,
    acme: Acme = False,
    rule: RuleTexts = None,
    expires: Expires = None,
    password_stdin: PasswordFromStdin = False,
    algorithm: AlgorithmName = "hmac-sha256",
    as_json: Json = False,
) -> None:
    """Give a member one more key, or make an administrator's, and print it. Those there are stay valid.

    To replace a key there is homing key rotate. What a key may do is in docs/policy.md.

    \b
    Example:
      homing key add alice --device phone --config /etc/homing/server.toml
      homing key add alice --device mac --only-host mac --mac 02:00:5e:10:00:01 --config /etc/homing/server.toml
      homing key add alice --device certbot --acme --expires 90d --config /etc/homing/server.toml
      homing key add --admin dhcp --rule 'owner = "lan.alice", lease = "optional"' --config /etc/homing/server.toml
    """
    if (member is None) == (admin is None):
        raise ConfigError("name a member, or --admin and a name")
    if admin is not None and (device is not None or password_stdin):
        raise ConfigError("--device and --password-stdin are for members' keys")
    if mac is not None and only_host is None:
        raise ConfigError("--mac goes with --only-host")
    settings = settings_of(config)
    host = keys.host_rules(only_host, _tunnel_label(mac)) if only_host else ()
    rules = (*host, *((keys.ACME_RULE,) if acme else ()), *(rule or ()))
    terms = keys.KeyTerms(
        algorithm=checked_algorithm(algorithm, settings),
        password=read_password() if password_stdin else None,
        expires_at=_expiry(expires),
        rules=rules,
    )

    async def work(store: Store) -> Key:
        await ensure_zone(store, settings)
        if admin is not None:
            return await keys.add_admin_key(store, admin, now=unix_now(), terms=terms)
        assert member is not None
        return await keys.add_key(store, member, device, now=unix_now(), terms=terms)

    key = with_store(settings, work)
    owner = None if member is None else member.lower()
    text = "Administrators have one more key." if owner is None else f"Member {owner} has one more key."
    print_key(key, text, as_json, {"member": owner})


@key_app.command("list")
def list_keys(
    config: Config,
    member: Annotated[str | None, typer.Argument(metavar="[MEMBER]", help="Only this member's.")] = None,
    as_json: Json = False,
) -> None:
    """List keys, without their secrets: state, end, last use. Administrators' keys belong to no member.

    \b
    Example:
      homing key list alice --config /etc/homing/server.toml
    """

    async def work(store: Store) -> tuple[list[KeyRow], dict[int, MemberRow]]:
        if member is not None:
            detail = await show_member(store, member)
            return list(detail.keys), {detail.row.id: detail.row}
        async with store.reading() as reader:
            return await reader.keys(), {row.id: row for row in await reader.members()}

    rows, owners = with_store(settings_of(config), work)
    if as_json:
        return print_json([key_row_json(row, owners) for row in sorted(rows, key=_key_order)])
    return print_keys(rows, owners)


@key_app.command("rotate")
def rotate_key(
    name: KeyName,
    config: Config,
    overlap: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the old key holds beside the new one; 0s: no more.")
    ] = "7d",
    expires: Expires = None,
    algorithm: AlgorithmName = "hmac-sha256",
    as_json: Json = False,
) -> None:
    """Make a key in the place of another, with a name and secret of its own, and print it.

    It has the same owner and the same rules. The old one holds until the overlap is over, then it expires.

    \b
    Example:
      homing key rotate phone.alice --config /etc/homing/server.toml
      homing key rotate certbot.alice --overlap 1d --expires 90d --json --config /etc/homing/server.toml
    """
    settings = settings_of(config)
    terms = keys.KeyTerms(algorithm=checked_algorithm(algorithm, settings), expires_at=_expiry(expires))
    overlap_seconds = seconds(overlap, "--overlap")

    async def work(store: Store) -> keys.Rotated:
        return await keys.rotate_key(
            store, await full_key_name(store, name), now=unix_now(), overlap_seconds=overlap_seconds, terms=terms
        )

    done = with_store(settings, work)
    old, ends = to_text(done.old), time_text(done.old_expires_at)
    text = f"It takes the place of {old}, which ends at {ends}."
    print_key(done.key, text, as_json, {"old": {"name": old, "expires_at": ends}})


@key_app.command("expire")
def expire_key(
    name: KeyName,
    when: Annotated[str, typer.Argument(metavar="WHEN", help="90d, 2027-01-31T12:00:00Z, or never.")],
    config: Config,
    as_json: Json = False,
) -> None:
    """Set when a key ends, or that it never does.

    \b
    Example:
      homing key expire phone.alice 30d --config /etc/homing/server.toml
      homing key expire phone.alice never --config /etc/homing/server.toml
    """
    at = None if when == "never" else moment(when, "WHEN", now=unix_now())

    async def work(store: Store) -> bytes:
        full = await full_key_name(store, name)
        await keys.set_key_expiry(store, full, at, now=unix_now())
        return full

    shown = to_text(with_store(settings_of(config), work))
    if as_json:
        return print_json({"name": shown, "expires_at": None if at is None else time_text(at)})
    return typer.echo(f"Key {shown} " + ("does not expire" if at is None else f"expires at {time_text(at)}"))


@key_app.command("revoke")
def revoke_key(name: KeyName, config: Config, as_json: Json = False) -> None:
    """Make a key invalid at once. It stays in the list.

    \b
    Example:
      homing key revoke phone.alice.members.example. --config /etc/homing/server.toml
      homing key revoke phone.alice --config /etc/homing/server.toml
    """

    async def work(store: Store) -> bytes:
        full = await full_key_name(store, name)
        await keys.revoke_key(store, full, now=unix_now())
        return full

    revoked = to_text(with_store(settings_of(config), work))
    if as_json:
        print_json({"revoked": revoked})
    else:
        typer.echo(f"Revoked key {revoked}")


@key_app.command("import")
def import_keys(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A key file of BIND or Knot DNS; - is stdin.")],
    config: Config,
    member: Annotated[str | None, typer.Option(metavar="NAME", help="Whose keys they are to be.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="They are to be administrators' keys.")] = False,
    acme: Acme = False,
    rule: RuleTexts = None,
    expires: Expires = None,
    as_json: Json = False,
) -> None:
    """Take over the keys in a file of BIND (tsig-keygen) or Knot DNS (keymgr -t), under their own names.

    \b
    Example:
      homing key import Kalice.key --member alice --config /etc/homing/server.toml
      tsig-keygen secondary. | homing key import - --admin --rule 'actions = ["transfer"], match = "zone"' \\
        --config /etc/homing/server.toml
    """
    if (member is None) != admin:
        raise ConfigError("say whose keys they are to be: --member NAME or --admin")
    settings = settings_of(config)
    found = _keys_of_file(file, settings)
    terms = keys.KeyTerms(expires_at=_expiry(expires), rules=(*((keys.ACME_RULE,) if acme else ()), *(rule or ())))

    async def work(store: Store) -> None:
        await ensure_zone(store, settings)
        for key in found:
            await keys.import_key(store, key, member, now=unix_now(), terms=terms)

    with_store(settings, work)
    names = [to_text(key.name) for key in found]
    if as_json:
        return print_json({"imported": names, "member": None if member is None else member.lower()})
    return typer.echo("\n".join(f"Imported key {shown}" for shown in names))


def _keys_of_file(file: str, settings: ServerSettings) -> list[Key]:
    try:
        if file == "-":
            octets = sys.stdin.buffer.read(MAX_OCTETS + 1)
        else:
            with Path(file).open("rb") as stream:
                octets = stream.read(MAX_OCTETS + 1)
        if len(octets) > MAX_OCTETS:
            raise OperationError(f"{file} is too large for a key file")
        found = keys_in(octets.decode())
    except OSError as error:
        raise OperationError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OperationError(f"{file} is no text") from None
    except ValueError as error:
        raise OperationError(f"{file}: {error}") from None
    if not found:
        raise OperationError(f"{file} has no key of BIND or Knot DNS in it")
    for key in found:
        if key.algorithm is MD5:
            checked_algorithm("hmac-md5", settings)
    return found


@key_app.command("export")
def export_key(
    name: KeyName,
    config: Config,
    form: Annotated[Format, typer.Option("--format", help="For which program.")] = Format.BIND,
) -> None:
    """Print a valid key with its secret, as a file of BIND or Knot DNS or as JSON.

    \b
    Example:
      homing key export phone.alice --config /etc/homing/server.toml > phone.key
      homing key export phone.alice --format knot --config /etc/homing/server.toml
    """

    async def work(store: Store) -> KeyRow:
        async with store.reading() as reader:
            row, _ = await keys.find_key(reader, await full_key_name(reader, name))
        if not row.is_valid(unix_now()):
            raise ValueError(f"key {to_text(row.key.name)} is {state(row)}")
        return row

    key = with_store(settings_of(config), work).key
    if form is Format.JSON:
        return print_json(key_json(key))
    return typer.echo(bind_text(key) if form is Format.BIND else knot_text(key), nl=False)


def _tunnel_label(mac: str | None) -> str | None:
    """The label under which the homing client publishes a machine's tunnel address (RFC 6281 §5.2)."""
    if mac is None:
        return None
    from client_stub.identity import autotunnel_label, eui64, parse_mac

    try:
        return autotunnel_label(eui64(parse_mac(mac)))
    except ValueError as error:
        raise ConfigError(f"--mac: {error}") from None


def _expiry(text: str | None) -> int | None:
    if text is None:
        return None
    now = unix_now()
    at = moment(text, "--expires", now=now)
    if at <= now:
        raise ConfigError(f"--expires {text[:40]!r} is past")
    return at


# --- what is printed ---


def print_key(key: Key, text: str, as_json: bool, more: dict[str, Any]) -> None:
    """A new key, the one time it is shown."""
    shown = key_json(key)
    if as_json:
        return print_json({**shown, **more})
    typer.echo(f"{text} This is the only time its key is shown.\n")
    typer.echo(f"In a BIND key file (nsupdate -k FILE, dig -k FILE):\n\n{bind_text(key)}")
    typer.echo(f"On a command line:\n\n{nsupdate_line(key)}\n")
    return typer.echo(f"As JSON:\n\n{json.dumps(shown)}")


def print_keys(rows: Iterable[KeyRow], owners: dict[int, MemberRow]) -> None:
    shown = [
        (
            to_text(row.key.name),
            _owner(row, owners) or "(administrator)",
            row.key.algorithm.text,
            state(row),
            str(len(row.rules)) if row.rules else "-",
            last_used([row]),
        )
        for row in sorted(rows, key=_key_order)
    ]
    print_table(("KEY", "MEMBER", "ALGORITHM", "STATE", "RULES", "LAST USED"), shown)


def key_row_json(row: KeyRow, owners: dict[int, MemberRow]) -> dict[str, Any]:
    return {
        "name": to_text(row.key.name),
        "algorithm": row.key.algorithm.text,
        "member": _owner(row, owners),
        "from_password": row.kdf is not None,
        "created_at": time_text(row.created_at),
        "expires_at": None if row.expires_at is None else time_text(row.expires_at),
        "revoked_at": None if row.revoked_at is None else time_text(row.revoked_at),
        "last_used_at": None if row.last_used_at is None else time_text(row.last_used_at),
        "valid": row.is_valid(unix_now()),
        "rules": [rule_settings(rule) for rule in row.rules],
    }


def state(row: KeyRow) -> str:
    """In words: valid and until when, expired, or revoked."""
    if row.revoked_at is not None:
        return "revoked"
    if row.expires_at is None:
        return "valid"
    return f"{'valid until' if row.is_valid(unix_now()) else 'expired'} {minute_text(row.expires_at)}"


def valid(rows: Iterable[KeyRow]) -> list[KeyRow]:
    now = unix_now()
    return [row for row in rows if row.is_valid(now)]


def last_used(rows: Iterable[KeyRow]) -> str:
    used = [row.last_used_at for row in rows if row.last_used_at is not None]
    return minute_text(max(used)) if used else "never"


def _key_order(row: KeyRow) -> tuple[bytes, ...]:
    """A member's keys together."""
    return canonical_key(row.key.name)


def _owner(row: KeyRow, owners: dict[int, MemberRow]) -> str | None:
    member = owners.get(row.member_id) if row.member_id is not None else None
    return member.name if member else None
