"""`homing explain`: which rule decides on a request."""

from typing import Annotated, Any

import typer

from homing.config_file import ConfigError
from homing.database import full_key_name, settings_of, unix_now, with_store
from homing.options import Config
from homing.printing import print_json
from protocol.name import from_text, is_at_or_below, to_text
from server.explain import Asked, Explanation, explain
from server.operation import read_service
from server.policy import Action
from server.rdata_text import rdata_from, split_words, type_number
from server.store.api import Store


def explain_(
    config: Config,
    name: Annotated[str, typer.Option(metavar="NAME", help="The owner name; without a final dot the zone's is added.")],
    rtype: Annotated[str, typer.Option("--type", metavar="TYPE", help="The record type; ANY deletes a whole name.")],
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The key that signs; without it the request is unsigned.")
    ] = None,
    action: Annotated[Action, typer.Option(help="What is asked for.")] = Action.UPDATE,
    zone: Annotated[
        str | None, typer.Option(metavar="NAME", help="The zone that the update names; else the deepest that fits.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="RDATA", help="The record's data as in a zone file, for rules with a target.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="An update that deletes instead of one that adds.")] = False,
    no_lease: Annotated[bool, typer.Option("--no-lease", help="An update without the update lease option.")] = False,
    address: Annotated[str, typer.Option(metavar="IP", help="Whence a transfer is asked for.")] = "127.0.0.1",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell whether a key may do something, and which rule decides, by the database and the configuration.

    The sentence is the one that the peer reads in an Extended DNS Error (dig and kdig print it) and that the server
    logs. What a key has used of its updates a minute is known to the running server only.

    \b
    Example:
      homing explain --key phone.alice --name mac.alice --type A --config /etc/homing/server.toml
      homing explain --key certbot.alice --name _acme-challenge.alice --type TXT --no-lease -c /etc/homing/server.toml
      homing explain --name nas.bob --type A --action query --json --config /etc/homing/server.toml
    """
    settings = settings_of(config)
    try:
        kind = type_number(rtype)
        rdata = b"" if data is None else rdata_from(kind, split_words(data), from_text(settings.zone.name))
    except ValueError as error:
        raise ConfigError(str(error)) from None

    async def work(store: Store) -> tuple[Asked, Explanation]:
        async with store.reading() as reader:
            origin = (await read_service(reader)).zone
            asked = Asked(
                key=None if key is None else await full_key_name(reader, key),
                name=_full(name, origin),
                rtype=kind,
                action=action,
                zone=None if zone is None else _full(zone, origin),
                rdata=rdata,
                deletes=delete,
                leased=not no_lease,
                address=address,
            )
            return asked, await explain(reader, settings, asked, now=unix_now())

    asked, found = with_store(settings, work)
    if as_json:
        return print_json(_as_json(asked, found))
    typer.echo("allowed" if found.is_allowed else f"refused with {found.rcode}")
    typer.echo(f"  {found.sentence}")
    if found.zone is not None:
        typer.echo(f"zone: {to_text(found.zone.apex)} ({'open' if found.zone.is_open else 'not open'})")
    if found.rule is not None:
        typer.echo(f"rule: {found.rule.text()}")
    for rule in found.narrowed_to:
        typer.echo(f"has: {rule.text()}")
    if found.lease is not None:
        typer.echo(f"lease: {found.lease.value}")
    for words, limit in _limits(found).items():
        typer.echo(f"limit: {limit} {words.replace('_', ' ')}")
    return None


def _full(text: str, origin: bytes) -> bytes:
    name = from_text(text)
    if text.endswith(".") or is_at_or_below(name.lower(), origin):
        return name
    return from_text(f"{text}.{to_text(origin)}")


def _limits(found: Explanation) -> dict[str, int]:
    if found.grant is None:
        return {}
    return {name: limit for name, limit in found.grant.quota._asdict().items() if limit}


def _as_json(asked: Asked, found: Explanation) -> dict[str, Any]:
    return {
        "allowed": found.is_allowed,
        "rcode": found.rcode,
        "sentence": found.sentence,
        "key": None if asked.key is None else to_text(asked.key),
        "action": asked.action.value,
        "name": to_text(asked.name),
        "zone": None if found.zone is None else to_text(found.zone.apex),
        "rule": None if found.rule is None else found.rule.label,
        "rule_text": None if found.rule is None else found.rule.rule.text(),
        "narrowed_to": [rule.text() for rule in found.narrowed_to],
        "lease": None if found.lease is None else found.lease.value,
        "default_lease_seconds": None if found.grant is None else found.grant.default_lease,
        "limits": _limits(found),
    }
