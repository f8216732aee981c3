"""`homing gateway`: runs the gateway; its subcommands ask a running one over its control socket."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from homing.config_file import ConfigError, load
from homing.lab_view import duration
from homing.logs import configure_logging
from homing.options import Level, bare_level, refuse_open_secrets
from homing.running import OperationError, run

if TYPE_CHECKING:
    from gateway.app import Gateway

SOCKET: Final = Path("/run/homing/gateway.sock")
ANSWER_SECONDS: Final = 15.0
ANSWER_OCTETS: Final = 64 * 1024 * 1024
WATCH_SECONDS: Final = 1.0
PLAIN_COLUMNS: Final = 200
"""For a pipe, so that no line is broken."""

gateway_app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="""Run the gateway for NAT-PMP, PCP and UPnP, or ask a running one.

    With --config and no subcommand it runs until SIGTERM or SIGINT. It prints `ready` on stdout when it answers, then a
    line for each listener. Mappings are carried by the gateway itself, without root, or by nftables. The smallest
    useful file for a router:

    \b
      backend = "nftables"
      [nftables]
      wan_interface = "eth0"
      [lan]
      interfaces = ["br-lan"]
      [state]
      file = "/var/lib/homing/gateway.sqlite"
      [control]
      socket = "/run/homing/gateway.sock"

    \b
    Example:
      homing gateway --config /etc/homing/gateway.toml
      homing gateway status
      homing gateway list --watch
      homing gateway add tcp 8080 192.168.1.20:80
      homing gateway host-gone 192.168.1.20
    """,
)


class TransportName(StrEnum):
    TCP = "tcp"
    UDP = "udp"


SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        envvar="HOMING_GATEWAY_SOCKET",
        metavar="PATH",
        show_default=False,
        help=f"Where the gateway listens: its [control] socket. Default: {SOCKET}",
    ),
]
OptionalConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="HOMING_CONFIG",
        metavar="FILE",
        show_default=False,
        help="The TOML configuration file.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")]
Transport = Annotated[TransportName, typer.Argument(help="tcp or udp")]
ExternalPort = Annotated[int, typer.Argument(min=1, max=65535, metavar="EXTERNAL_PORT")]


@gateway_app.callback()
def gateway(context: typer.Context, config: OptionalConfig = None, log_level: Level = None) -> None:
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise ConfigError("gateway: --config FILE runs it; see homing gateway --help for what asks a running one")
    from gateway.app import Gateway
    from gateway.config import GatewayConfig
    from gateway.errors import StartError

    settings = load(GatewayConfig, config)
    configure_logging(bare_level(log_level))
    refuse_open_secrets(settings)
    run(lambda: Gateway(settings), _listening, (StartError,))


def _listening(program: "Gateway") -> list[str]:
    return program.listening


@gateway_app.command()
def status(path: SocketOption = None, as_json: Json = False, watch: Watch = False) -> None:
    """Show the external address, whether it is behind another NAT, epochs and counters.

    \b
    Example:
      homing gateway status
      homing gateway status --json
    """
    _show(path, {"do": "status"}, "status", _draw_status, as_json=as_json, watch=watch)


@gateway_app.command("list")
def list_(path: SocketOption = None, as_json: Json = False, watch: Watch = False) -> None:
    """Show all mappings by external port; with --watch as a live table, with both as one JSON line a second.

    \b
    Example:
      homing gateway list --watch
      homing gateway list --json
    """
    _show(path, {"do": "list"}, "mappings", _draw_mappings, as_json=as_json, watch=watch)


@gateway_app.command()
def add(
    transport: Transport,
    external_port: ExternalPort,
    internal: Annotated[str, typer.Argument(metavar="ADDRESS:PORT", help="Where it leads.")],
    path: SocketOption = None,
) -> None:
    """Add a mapping that stays, restarts included, until it is deleted. Clients cannot delete it.

    \b
    Example:
      homing gateway add tcp 8080 192.168.1.20:80
    """
    with _asking(path) as ask:
        ask({"do": "add", "transport": transport.value, "external_port": external_port, "internal": internal})


@gateway_app.command()
def delete(transport: Transport, external_port: ExternalPort, path: SocketOption = None) -> None:
    """End a mapping, whoever made it; its client may ask for it again. Those of the configuration file stay.

    \b
    Example:
      homing gateway delete tcp 8080
    """
    with _asking(path) as ask:
        ask({"do": "delete", "transport": transport.value, "external_port": external_port})


@gateway_app.command("host-gone")
def host_gone(
    host: Annotated[str, typer.Argument(metavar="ADDRESS", help="The internal address that nobody has any more.")],
    path: SocketOption = None,
) -> None:
    """End all that a host has mapped, because its DHCP lease ended or it left. For hooks of DHCP servers.

    Prints how many mappings that were. Those of the owner stay.

    \b
    Example:
      homing gateway host-gone 192.168.1.20
    """
    with _asking(path) as ask:
        typer.echo(ask({"do": "host-gone", "host": host})["deleted"])


# --- asking ---

_Ask = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def _asking(path: Path | None) -> Iterator[_Ask]:
    """A connection to a running gateway; `OperationError` when there is none, or for what it refuses."""
    path = path or SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(str(path))
            with sock.makefile("rb") as answers:

                def ask(request: dict[str, Any]) -> dict[str, Any]:
                    sock.sendall(json.dumps(request).encode() + b"\n")
                    return _understood(answers.readline(ANSWER_OCTETS))

                yield ask
    except (FileNotFoundError, ConnectionRefusedError):
        raise OperationError(f'no gateway answers at {path}; has its file [control] socket = "{path}"?') from None
    except TimeoutError:
        raise OperationError(f"the gateway at {path} does not answer in {ANSWER_SECONDS:g} s") from None
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror or error}") from None


def _understood(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise OperationError("the gateway hung up")
    if not answer.get("ok"):
        raise OperationError(str(answer.get("error", "refused")))
    return answer


# --- showing ---


def _show(
    path: Path | None,
    request: dict[str, Any],
    part: str,
    draw: Callable[[Any, int | None], RenderableType],
    *,
    as_json: bool,
    watch: bool,
) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_COLUMNS
    with _asking(path) as ask:
        if not watch:
            found = ask(request)[part]
            typer.echo(json.dumps(found)) if as_json else console.print(draw(found, None))
            return
        try:
            if as_json:
                while True:
                    typer.echo(json.dumps(ask(request)[part]))
                    time.sleep(WATCH_SECONDS)
            while not console.is_terminal:
                console.print(draw(ask(request)[part], None))
                time.sleep(WATCH_SECONDS)
            with Live(console=console, auto_refresh=False, screen=True) as live:
                while True:
                    live.update(draw(ask(request)[part], console.height), refresh=True)
                    time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return


def _draw_status(found: dict[str, Any], _height: int | None) -> RenderableType:
    address = found["external_address"] or "none"
    lines = Table(box=None, show_header=False, pad_edge=False)
    lines.add_row("external address", Text(f"{address}  (from {found['external_source']})"))
    if found["nat_behind_nat"]:
        lines.add_row("", "NAT behind NAT: nobody outside reaches mappings")
    lines.add_row("listening", ", ".join(found["listening"]) or "nowhere")
    lines.add_row("back end", found["backend"])
    lines.add_row("mappings", _counts(found["mappings"]) or "none")
    lines.add_row("changes", _counts(found["changes"]) or "none")
    lines.add_row("epochs", f"NAT-PMP {found['epoch']} s, PCP {found['pcp_epoch']} s")
    lines.add_row("running", duration(found["running_seconds"]))
    for part, counts in found["events"].items():
        if counts:
            lines.add_row(part, Text(_counts(counts)))
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _draw_mappings(found: list[dict[str, Any]], height: int | None) -> RenderableType:
    """All of them, or as many as a screen of `height` lines has room for."""
    table = Table(box=None, pad_edge=False)
    for title in ("external", "", "internal", "left", "by", "description"):
        table.add_column(title)
    room = len(found) if height is None else max(1, height - 3)
    for mapping in found[:room]:
        left = mapping["remaining_seconds"]
        table.add_row(
            f"{mapping['external_address'] or '-'}:{mapping['external_port']}",
            mapping["transport"],
            mapping["internal"],
            "stays" if left is None else duration(left),
            mapping["origin"],
            Text("".join(c if c.isprintable() else "?" for c in mapping["description"][:60])),
        )
    count = len(found)
    hidden = f", {count - room} of them not shown" if count > room else ""
    return Group(table, Text(f"{count} mapping{'' if count == 1 else 's'}{hidden}"))
