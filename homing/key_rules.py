"""`homing key rule`: what one key is narrowed to. A key without rules has the default of its kind."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from homing.database import full_key_name, settings_of, with_store
from homing.options import Config
from homing.printing import print_json, print_table
from protocol.name import to_text
from server.keys import change_rules, find_key
from server.policy import Rule
from server.policy_settings import rule_from_text, rule_settings
from server.store.api import KeyRow, Store

rule_app = typer.Typer(
    no_args_is_help=True,
    help="""Rules of one key: it may do what the first that matches allows, and nothing else (docs/policy.md).

    \b
    Example:
      homing key rule list certbot.alice --config /etc/homing/server.toml
      homing key rule add nas.alice 'owner = "nas", types = ["A", "AAAA"]' --config /etc/homing/server.toml
      homing key rule remove nas.alice 1 --config /etc/homing/server.toml
    """,
)

KeyName = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's name; what follows the member's may be left out.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@rule_app.command("list")
def list_rules(key: KeyName, config: Config, as_json: Json = False) -> None:
    """List a key's rules in order, in the words of homing key rule add.

    \b
    Example:
      homing key rule list certbot.alice --config /etc/homing/server.toml
    """

    async def work(store: Store) -> KeyRow:
        async with store.reading() as reader:
            row, _ = await find_key(reader, await full_key_name(reader, key))
            return row

    row = with_store(settings_of(config), work)
    _print_rules(to_text(row.key.name), row.rules, as_json)


@rule_app.command("add")
def add_rule(
    key: KeyName,
    rule: Annotated[str, typer.Argument(metavar="RULE", help="Words of a [[policy.rules]] table, on one line.")],
    config: Config,
    at: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=1, help="Its place among the rules; the last when not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add a rule to a key. With its first rule a key loses the default of its kind: it is narrowed.

    Words: effect, actions, match (self, subtree, pattern, zone), owner, types, target, lease, default_lease_seconds,
    records_per_name, names_per_member, updates_per_minute. Names without a final dot are the member's.

    \b
    Example:
      homing key rule add nas.alice 'owner = "nas", types = ["A", "AAAA"]' --config /etc/homing/server.toml
      homing key rule add nas.alice 'actions = ["query", "llq"]' --config /etc/homing/server.toml
      homing key rule add nas.alice 'effect = "deny", types = ["TXT"]' --at 1 --config /etc/homing/server.toml
    """

    def change(rules: tuple[Rule, ...], origin: bytes) -> Sequence[Rule]:
        place = len(rules) if at is None else min(at - 1, len(rules))
        return [*rules[:place], rule_from_text(rule, origin), *rules[place:]]

    async def work(store: Store) -> tuple[bytes, tuple[Rule, ...]]:
        name = await full_key_name(store, key)
        return name, await change_rules(store, name, change)

    name, rules = with_store(settings_of(config), work)
    _print_rules(to_text(name), rules, as_json)


@rule_app.command("remove")
def remove_rule(
    key: KeyName,
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="As homing key rule list tells it.")],
    config: Config,
    as_json: Json = False,
) -> None:
    """Take a rule away from a key. Without any it has the default of its kind again.

    \b
    Example:
      homing key rule remove nas.alice 1 --config /etc/homing/server.toml
    """

    def change(rules: tuple[Rule, ...], origin: bytes) -> Sequence[Rule]:
        if number > len(rules):
            raise ValueError(f"the key has {len(rules)} rules")
        return [*rules[: number - 1], *rules[number:]]

    async def work(store: Store) -> tuple[bytes, tuple[Rule, ...]]:
        name = await full_key_name(store, key)
        return name, await change_rules(store, name, change)

    name, rules = with_store(settings_of(config), work)
    _print_rules(to_text(name), rules, as_json)


def _print_rules(name: str, rules: Sequence[Rule], as_json: bool) -> None:
    if as_json:
        return print_json({"key": name, "rules": [rule_settings(rule) for rule in rules]})
    if not rules:
        return typer.echo(f"Key {name} has no rules of its own: the default of its kind holds")
    return print_table(("RULE", "WORDS"), [(str(number), rule_words(rule)) for number, rule in enumerate(rules, 1)])


def rule_words(rule: Rule) -> str:
    """As `homing key rule add` takes it."""
    return ", ".join(f"{name} = {_toml(value)}" for name, value in rule_settings(rule).items())


def _toml(value: Any) -> str:
    return json.dumps(value)  # names, words and numbers are written alike in both
