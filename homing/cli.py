"""The `homing` command line. Data on stdout, logs on stderr; exit codes 0 fine, 1 failed, 2 usage or configuration."""

import json
import signal
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import structlog
import typer

from homing import collector
from homing.cert_command import cert
from homing.config_file import ConfigError, effective, load, to_toml
from homing.explain_command import explain_
from homing.gateway_commands import gateway_app
from homing.journal_commands import history, tail, undo
from homing.key_commands import key_app
from homing.lab_command import lab
from homing.logs import configure_logging
from homing.member_commands import member_app
from homing.nat_commands import map_, natcheck
from homing.options import Config, Level, LogLevel, bare_level, refuse_open_secrets
from homing.running import OperationError, UntilAsked, run
from homing.status_command import status
from homing.watch_command import watch
from homing.zone_commands import zone_app

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from server.app import Server

app = typer.Typer(
    name="homing",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Names that follow your machines home.

    An authoritative DNS server with leased updates and Long-Lived Queries, a NAT-PMP gateway, and the client that
    drives them (RFC 6281).

    \b
    Try all of it on this machine:
      homing lab
    Serve a members domain:
      homing serve --config /etc/homing/server.toml
      homing member add alice --config /etc/homing/server.toml
    """,
)
app.add_typer(member_app, name="member")
app.add_typer(key_app, name="key")
app.add_typer(zone_app, name="zone")
app.add_typer(gateway_app, name="gateway")
app.command()(lab)
app.command("explain")(explain_)
app.command()(history)
app.command()(undo)
app.command()(tail)
app.command()(watch)
app.command()(status)
app.command()(cert)
app.command("map")(map_)
app.command()(natcheck)


class Role(StrEnum):
    """Whose configuration a file is."""

    SERVER = "server"
    GATEWAY = "gateway"
    CLIENT = "client"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"homing {version('homing')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _model(role: Role) -> "type[BaseModel]":
    if role is Role.SERVER:
        from server.config import ServerSettings

        return ServerSettings
    if role is Role.GATEWAY:
        from gateway.config import GatewayConfig

        return GatewayConfig
    from client_stub.config import ClientConfig

    return ClientConfig


def _flags(level: LogLevel | None) -> dict[str, dict[str, object]]:
    return {"log": {"level": level.value if level else None}}


@app.command()
def serve(config: Config, log_level: Level = None) -> None:
    """Run the DNS server until SIGTERM or SIGINT.

    Prints `ready` on stdout when it answers, then a line for each listener. SIGHUP reads the file again and takes over
    certificate, keys, policy, transfer rules and limits, all of them or, when something is wrong, none. The smallest
    useful file:

    \b
      [database]
      url = "sqlite+aiosqlite:////var/lib/homing/homing.db"
      [zone]
      name = "members.example."
      [dns]
      listen = ["192.0.2.1:53"]

    \b
    Example:
      homing serve --config /etc/homing/server.toml
      kill -HUP "$(pidof -x homing)"
    """
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # whoever asks before it runs gets what it then reads
    try:
        _serve(config, log_level)
    finally:
        signal.signal(signal.SIGHUP, hang_up)


def _serve(config: Path, log_level: LogLevel | None) -> None:
    from server.config import ServerSettings

    settings = load(ServerSettings, config, flags=_flags(log_level))
    configure_logging(settings.log.level)
    refuse_open_secrets(settings)
    collector.pause()
    from server.app import Server
    from server.startup import StartError

    async def reload(server: Server) -> None:
        try:
            read = load(ServerSettings, config, flags=_flags(log_level))
            refuse_open_secrets(read)
            waiting = await server.reconfigure(read)
        except ConfigError as error:
            log.error("not reloaded, nothing has changed", reason="; ".join(error.problems))
        except (OperationError, StartError) as error:
            log.error("not reloaded, nothing has changed", reason="; ".join(str(error).splitlines()))
        else:
            log.info("reloaded", keys=len(server.keyring.names()), needs_restart=", ".join(waiting) or None)

    run(lambda: Server(settings), _server_listeners, (StartError,), reload)


def _server_listeners(server: "Server") -> Iterator[str]:
    for kind, address, port in server.listening():
        yield f"{kind} {_host_port(address, port)}"


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@app.command()
def client(config: Config, log_level: Level = None) -> None:
    """Keep this machine's name pointing at it until SIGTERM or SIGINT.

    Maps a port, publishes address and port under a lease, and follows the member's other machines. Prints `ready` on
    stdout when it works. The smallest useful file:

    \b
      [machine]
      name = "mac"
      [member]
      domain = "alice.members.example."
      [member.key]
      name = "alice.members.example."
      secret_file = "/etc/homing/alice.secret"
      [dns]
      server = "192.0.2.1:53"

    \b
    Example:
      homing client --config /etc/homing/client.toml
    """
    from client_stub.agent import Agent, AgentError
    from client_stub.config import ClientConfig

    settings = load(ClientConfig, config)
    configure_logging(bare_level(log_level))
    refuse_open_secrets(settings)
    run(
        lambda: UntilAsked(Agent(settings)), lambda program: [f"hello {program.inner.status().internal}"], (AgentError,)
    )


@app.command("check-config")
def check_config(
    config: Config,
    role: Annotated[Role, typer.Option(help="Whose configuration the file is.")] = Role.SERVER,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of TOML.")] = False,
) -> None:
    """Check a configuration file and print what is in effect, secrets hidden.

    All problems are reported at once, and the exit code is 2.

    \b
    Example:
      homing check-config --config /etc/homing/server.toml
      homing check-config --role gateway --config /etc/homing/gateway.toml --json
    """
    settings = load(_model(role), config)
    refuse_open_secrets(settings)
    values = effective(settings)
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False) if as_json else to_toml(values), nl=as_json)


def main() -> NoReturn:
    """The entry point: operators' mistakes end in plain lines, never in a traceback."""
    try:
        app()
    except ConfigError as error:
        _complain(error.problems)
        sys.exit(2)
    except OperationError as error:
        _complain(str(error).splitlines())
        sys.exit(1)
    sys.exit(0)


def _complain(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(f"homing: {line}", err=True)
