"""The `homing` command line. Data on stdout, logs on stderr; exit codes 0 fine, 1 failed, 2 usage or configuration."""

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from homing.config_file import ConfigError, effective, load, open_secret_files, to_toml
from homing.logs import configure_logging
from homing.member_commands import key_app, member_app
from homing.options import Config
from homing.running import OperationError, Program, run

if TYPE_CHECKING:
    from pydantic import BaseModel

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


class LogLevel(StrEnum):
    """How much goes to stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Role(StrEnum):
    """Whose configuration a file is."""

    SERVER = "server"
    GATEWAY = "gateway"
    CLIENT = "client"


Level = Annotated[
    LogLevel | None,
    typer.Option("--log-level", help="How much to log on stderr, instead of HOMING_LOG_LEVEL and [log] level."),
]


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


def _start_logging(settings: Any) -> None:
    configure_logging(settings.log.level)


def _refuse_open_secrets(settings: "BaseModel") -> None:
    problems = open_secret_files(settings)
    if problems:
        raise OperationError("\n".join(problems))


@app.command()
def serve(config: Config, log_level: Level = None) -> None:
    """Run the DNS server until SIGTERM or SIGINT.

    Prints `ready` on stdout when it answers, then a line for each listener. The smallest useful file:

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
    """
    from server.app import Server, StartError
    from server.config import ServerSettings

    settings = load(ServerSettings, config, flags=_flags(log_level))
    configure_logging(settings.log.level)
    _refuse_open_secrets(settings)
    _run(lambda: Server(settings), _server_listeners, StartError)


def _run(make: Any, listening: Any, *start_errors: type[Exception]) -> None:
    try:
        asked_for = run(make, listening)
    except start_errors as error:
        raise OperationError(str(error)) from None
    if not asked_for:
        raise OperationError("stopped by a fault of its own, see the log")


def _server_listeners(program: Program) -> Iterable[str]:
    from server.app import Server
    from server.config import split_host_port

    assert isinstance(program, Server)
    dns = program.settings.dns
    for number, text in enumerate(dns.listen):
        address, port = split_host_port(text)
        port = program.port if number == 0 else port
        yield f"listening udp {_host_port(address, port)}"
        yield f"listening tcp {_host_port(address, port)}"
    for number, text in enumerate(dns.listen_tls):
        address, port = split_host_port(text)
        yield f"listening tls {_host_port(address, program.tls_port or port if number == 0 else port)}"
    if program.settings.metrics.listen and program.metrics_port:
        address, _ = split_host_port(program.settings.metrics.listen)
        yield f"listening metrics {_host_port(address, program.metrics_port)}"


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


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
    _refuse_open_secrets(settings)
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
