"""`homing status`: what a running server is doing, asked over its control socket."""

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

import typer

from homing.config_file import ConfigError
from homing.control import ask
from homing.database import settings_of
from homing.options import Config
from homing.running import SIGNALS

SAMPLE_SECONDS: Final = 1.0
_TOTALS: Final = ("queries", "updates", "updates_refused", "changes", "transfers")
Facts = Mapping[str, Any]


def status(
    config: Config,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on, once a second, until SIGINT or SIGTERM.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line each time.")] = False,
) -> None:
    """Show what the running server has and does: zones and serials, secondaries, leases, LLQs, rates.

    It is asked over its control socket, which only its own user can open, so run this as that user, on its machine.
    Rates are those of the last second.

    \b
    Example:
      homing status --config /etc/homing/server.toml
      homing status --watch --config /etc/homing/server.toml
      homing status --json --config /etc/homing/server.toml | jq .zones
    """
    from server.service_settings import control_socket

    path = control_socket(settings_of(config))
    if path is None:
        raise ConfigError(f"{config}: [control] socket is not set, and the database is no file to put one beside")
    for number in SIGNALS if watch else ():
        signal.signal(number, signal.default_int_handler)
    try:
        before = ask(path, "/status")
        while True:
            time.sleep(SAMPLE_SECONDS)
            found = ask(path, "/status")
            shown = {**found, "rates": rates(before, found)}
            _show(shown, as_json=as_json, is_live=watch)
            if not watch:
                return
            before = found
    except KeyboardInterrupt:
        return


def rates(before: Facts, after: Facts) -> dict[str, float]:
    """What happened a second between two answers of one process; of another process, nothing is said to have."""
    if before["pid"] != after["pid"]:
        return dict.fromkeys(_TOTALS, 0.0)
    return {name: (after["totals"][name] - before["totals"][name]) / SAMPLE_SECONDS for name in _TOTALS}


def _show(facts: Facts, *, as_json: bool, is_live: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        sys.stdout.flush()
        return
    if is_live and sys.stdout.isatty():
        typer.echo("\x1b[H\x1b[2J", nl=False)
    for line in lines(facts):
        typer.echo(line)


def lines(facts: Facts) -> Iterator[str]:
    """The same for people."""
    now = facts["now"]
    state = "ready" if facts["unready"] is None else f"not ready: {facts['unready']}"
    yield f"homing {facts['version']}, process {facts['pid']}, up {_span(now - facts['started_at'])}, {state}"
    yield ""
    width = max(4, *(len(zone["name"]) for zone in facts["zones"])) if facts["zones"] else 4
    yield f"{'zone':<{width}}  kind        serial    names  changed"
    for zone in facts["zones"]:
        at = zone["changed_at"]
        changed = "-" if at is None else f"{_span(now - at)} ago"
        yield f"{zone['name']:<{width}}  {zone['kind']:<7} {zone['serial']:>10} {zone['names']:>8}  {changed}"
        for other in zone["secondaries"]:
            told = "not told yet" if other["serial"] is None else f"told {other['serial']}"
            heard = "" if other["serial"] is None else ", answered" if other["answered"] else ", no answer yet"
            yield f"{'':<{width}}  to {other['address']}#{other['port']}: {told}{heard}"
    yield ""
    leases = facts["leases"]
    yield f"leases       {leases['names']} names, {leases['due_soon']} to look at within {leases['soon_seconds']} s"
    yield f"LLQs         {facts['llq']['subscriptions']}"
    streams = ", ".join(f"{number} {kind}" for kind, number in sorted(facts["streams"].items()))
    yield f"connections  {streams or 'none'}"
    webhook = facts["webhook"]
    if webhook is not None:
        failing = webhook["failing_since"]
        state = "taken" if failing is None else f"NOT TAKEN for {_span(now - failing)}: {webhook['error']}"
        yield f"webhook      told up to journal entry {webhook['told']}, {state}"
    yield ""
    yield f"{'':<16} {'a second':>10} {'since start':>12}"
    for name in _TOTALS:
        yield f"{name.replace('_', ' '):<16} {facts['rates'][name]:>10.1f} {facts['totals'][name]:>12}"


def _span(seconds: int) -> str:
    """A length of time in its two largest units."""
    parts: list[str] = []
    rest = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if rest >= size or (unit == "s" and not parts):
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])
