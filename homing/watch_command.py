"""`homing watch`: an RRset followed on any server that speaks DNS Push or Long-Lived Queries, or by polls."""

import asyncio
import json
import random
import ssl
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Annotated, Final

import typer

from client_stub.llq_client import LlqClient, LlqSettings, StateChanged
from client_stub.push_client import PushClient, PushSettings
from client_stub.resolver import ResolveError, Resolver
from client_stub.streams import Service, client_context
from client_stub.watcher import Watcher, WatcherSettings, Way
from homing.config_file import ConfigError
from homing.key_files import read_key_file
from homing.logs import configure_logging
from homing.running import SIGNALS, OperationError
from protocol.constants import Class, is_meta_type
from protocol.message import Question
from protocol.name import from_text, to_text
from protocol.tsig import Key
from server.rdata_text import rdata_text, type_name, type_number

RESOLV_CONF: Final = Path("/etc/resolv.conf")
DNS_PORT: Final = 53


class Via(StrEnum):
    """How to be told of changes."""

    AUTO = "auto"
    PUSH = "push"
    LLQ_TLS = "llq-tls"
    LLQ_UDP = "llq-udp"
    POLL = "poll"


def watch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The owner name to watch.")],
    types: Annotated[list[str], typer.Argument(metavar="TYPE...", help="Record types, say A, AAAA, SRV.")],
    server: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS[:PORT]",
            help="Whom to ask where subscriptions are served, and for polls. Default: the system's resolver.",
        ),
    ] = None,
    via: Annotated[Via, typer.Option(help="One way only, instead of the best that is announced.")] = Via.AUTO,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sign with the key in this BIND or Knot DNS file (no DNS Push then)."),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust this authority for TLS, not the system's.")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Take any certificate: for laboratories only.")] = False,
    lease: Annotated[int, typer.Option(min=1, help="Seconds of lease to ask for in Long-Lived Queries.")] = 7200,
    poll_every: Annotated[float, typer.Option(min=1, help="Seconds between polls (RFC 8764: 900).")] = 900.0,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many changes.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after this time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print records of a name as they come (+) and go (-), until it is interrupted.

    Ways are tried in this order: DNS Push over TLS (RFC 8765), Long-Lived Queries over TLS and over UDP (RFC 8764),
    polls. Where the service is comes from the SRV records of the zone that holds the name. What way is used, and what
    becomes of it, is told on stderr, with --json as objects on stdout.

    \b
    Examples:
      homing watch mac.alice.members.example A AAAA
      homing watch mac.bob.members.example SRV --key-file bob.key --server 192.0.2.1
      homing watch printer.members.example A --via llq-udp --json
    """
    questions = [Question(_name(name), rtype, Class.IN) for rtype in dict.fromkeys(map(_type, types))]
    resolver_at = _system_resolver() if server is None else _endpoint(server)
    try:
        key = None if key_file is None else read_key_file(key_file)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if key is not None and via is Via.PUSH:
        raise ConfigError("DNS Push carries no signatures: leave out --key-file, or choose another way")
    try:
        context = client_context(ca_file)
    except OSError as error:
        raise ConfigError(f"{ca_file}: {error.strerror or error}") from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    configure_logging("info")
    printer = _Printer(count, as_json=as_json)
    settings = LlqSettings(lease=lease, poll_every=poll_every)
    try:
        asyncio.run(_watch(questions, resolver_at, _ways(via, key), key, context, settings, printer, seconds))
    except ResolveError as error:
        raise OperationError(str(error)) from None


async def _watch(
    questions: list[Question],
    resolver_at: tuple[IPv4Address, int],
    ways: tuple[Way, ...],
    key: Key | None,
    context: ssl.SSLContext,
    settings: LlqSettings,
    printer: "_Printer",
    seconds: float | None,
) -> None:
    rng = random.SystemRandom()
    source = IPv4Address("0.0.0.0")
    resolver = Resolver(resolver_at, source, rng)
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    printer.on_end = stop.set
    domain = await resolver.zone_of(questions[0].name, key)
    watcher = Watcher(
        WatcherSettings(domain=domain, key=key, context=context, source=source, ways=ways),
        LlqClient(settings, rng, key),
        resolver,
        rng,
        printer.on_view,
        printer.on_state,
        push=PushClient(PushSettings(), rng) if Way.PUSH in ways else None,
        on_way=printer.on_way,
    )
    for question in questions:
        watcher.subscribe(question)
    work = asyncio.get_running_loop().create_task(watcher.run(), name="watcher")
    ended = asyncio.get_running_loop().create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({work, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for question in questions:
            watcher.unsubscribe(question)  # frees the server's side while the way is still open
        if work.done():
            work.result()
    finally:
        for task in (work, ended):
            task.cancel()
        await asyncio.wait({work, ended})


class _Printer:
    """Changes of views as lines."""

    def __init__(self, count: int | None, *, as_json: bool) -> None:
        self._left = count
        self._as_json = as_json
        self._known: dict[Question, tuple[bytes, ...]] = {}
        self.on_end: Callable[[], None] = lambda: None

    def on_view(self, question: Question, rdatas: tuple[bytes, ...]) -> None:
        before = self._known.get(question, ())
        self._known[question] = rdatas
        self._print(question, "remove", (rdata for rdata in before if rdata not in rdatas))
        self._print(question, "add", (rdata for rdata in rdatas if rdata not in before))

    def _print(self, question: Question, event: str, rdatas: Iterable[bytes]) -> None:
        for rdata in rdatas:
            if self._left == 0:
                return
            if self._left is not None:
                self._left -= 1
            owner, rtype = to_text(question.name), type_name(question.rtype)
            text = rdata_text(question.rtype, rdata)
            if self._as_json:
                _tell({"at": _now(), "event": event, "name": owner, "type": rtype, "rdata": text})
            else:
                typer.echo(f"{_now()} {'+' if event == 'add' else '-'} {owner} {rtype} {text}")
                sys.stdout.flush()
            if self._left == 0:
                self.on_end()

    def on_state(self, changed: StateChanged) -> None:
        rtype = type_name(changed.question.rtype)
        if self._as_json:
            _tell({"at": _now(), "event": "state", "type": rtype, "state": changed.state.value, "why": changed.reason})
        else:
            reason = f": {changed.reason}" if changed.reason else ""
            typer.echo(f"{_now()} {rtype} {changed.state.value}{reason}", err=True)

    def on_way(self, way: Way, service: Service | None) -> None:
        where = "" if service is None else f"{to_text(service.target)} port {service.port}"
        if self._as_json:
            _tell({"at": _now(), "event": "way", "via": way.value, "server": where})
        else:
            typer.echo(f"{_now()} watching by {way.value}{' at ' + where if where else ''}", err=True)


def _tell(value: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ways(via: Via, key: Key | None) -> tuple[Way, ...]:
    if via is not Via.AUTO:
        return (Way(via.value),)
    ways = (Way.PUSH, Way.LLQ_TLS, Way.LLQ_UDP)
    return ways if key is None else ways[1:]


def _name(text: str) -> bytes:
    try:
        return from_text(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no domain name: {error}") from None


def _type(text: str) -> int:
    try:
        rtype = type_number(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if is_meta_type(rtype):
        raise ConfigError(f"{text} is not the type of a record")
    return rtype


def _endpoint(text: str) -> tuple[IPv4Address, int]:
    host, _, port = text.partition(":")
    try:
        number = int(port) if port else DNS_PORT
        if not 1 <= number <= 65535:
            raise ValueError
        return IPv4Address(host), number
    except ValueError:
        raise ConfigError(f"--server {text!r}: give an IPv4 address, and a port if it is not 53") from None


def _system_resolver() -> tuple[IPv4Address, int]:
    """The first IPv4 name server of resolv.conf."""
    try:
        lines = RESOLV_CONF.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]:
            address = ip_address(words[1])
            if isinstance(address, IPv4Address):
                return address, DNS_PORT
    raise ConfigError(f"{RESOLV_CONF} names no IPv4 resolver: give --server")
