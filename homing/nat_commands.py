"""`homing map` and `homing natcheck`: a port of this machine opened at whatever router there is, and what it offers."""

import asyncio
import json
import sys
from enum import StrEnum
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from homing.config_file import ConfigError
from homing.logs import configure_logging
from homing.running import SIGNALS, OperationError, loop_factory

if TYPE_CHECKING:
    from client_stub.mapping_core import NatState
    from client_stub.natcheck import Offer, Report
    from client_stub.portmap import Place, PortMapper

LONGEST_LIFETIME: Final = 604800
NAMES: Final = {"pcp": "PCP", "natpmp": "NAT-PMP", "igd": "UPnP IGD"}


class TransportName(StrEnum):
    TCP = "tcp"
    UDP = "udp"


GatewayOption = Annotated[
    str | None,
    typer.Option(
        "--gateway", metavar="ADDRESS", show_default=False, help="The router. Default: that of the default route."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def map_(
    port: Annotated[int, typer.Argument(min=1, max=65535, help="The port of this machine that is to be reached.")],
    proto: Annotated[TransportName, typer.Option("--proto", help="Which transport.")] = TransportName.TCP,
    gateway: GatewayOption = None,
    external: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            show_default=False,
            help="The external port that is wanted; another one may come of it. Default: PORT.",
        ),
    ] = None,
    lifetime: Annotated[
        int, typer.Option(min=1, max=LONGEST_LIFETIME, help="Seconds to ask for; it is renewed in time.")
    ] = 7200,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each change.")] = False,
) -> None:
    """Open a port at the router and keep it open until Ctrl-C.

    Tries PCP, then NAT-PMP, then UPnP IGD. The external address and port go to stdout, again whenever they change; the
    mapping is deleted at the end. Exit status 1 if no protocol gives one.

    \b
    Example:
      homing map 8080
      homing map 51820 --proto udp --external 51820 --json
    """
    from client_stub.portmap import PortMapper, Wanted

    configure_logging("warning")
    place = _place(gateway)
    wanted = Wanted(internal_port=port, transport=proto.value, external_port=external or port, lifetime=lifetime)

    def shown(mapper: "PortMapper", state: "NatState") -> None:
        values = _state_values(mapper, state, port, proto.value)
        print(json.dumps(values) if as_json else _state_line(values), flush=True)  # noqa: T201 (data)

    async def work() -> bool:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        mapper = PortMapper(place, wanted, on_state=lambda state: shown(mapper, state))
        opening = loop.create_task(mapper.open(), name="open")

        def on_signal() -> None:
            for each in SIGNALS:
                loop.remove_signal_handler(each)
            stop.set()
            opening.cancel()

        for number in SIGNALS:
            loop.add_signal_handler(number, on_signal)
        try:
            if not await opening:
                raise OperationError(_no_mapping(mapper))
        except asyncio.CancelledError:
            return True
        shown(mapper, mapper.state)
        await stop.wait()
        await mapper.close()
        return True

    _run(work())


def natcheck(gateway: GatewayOption = None, as_json: Json = False) -> None:
    """Show what the router offers: PCP, NAT-PMP, UPnP IGD, the external address as each tells it, NAT behind NAT.

    A port is mapped for a moment to see whether mapping works, and whether the external address works from inside.
    Exit status 1 if no protocol answers.

    \b
    Example:
      homing natcheck
      homing natcheck --gateway 192.168.1.1 --json
    """
    from client_stub.natcheck import check

    configure_logging("error")
    place = _place(gateway)
    with Progress(
        SpinnerColumn(), TextColumn("asking {task.description}"), console=Console(stderr=True), transient=True
    ) as progress:
        progress.add_task(str(place.gateway))
        report = _run(check(place))
    if as_json:
        print(json.dumps(_report_values(report)))  # noqa: T201 (data)
    else:
        _print_report(report)
    if not any(offer.answers for offer in report.offers):
        raise OperationError(f"{place.gateway} answers to none of PCP, NAT-PMP and UPnP IGD")


def _place(text: str | None) -> "Place":
    from client_stub.interfaces import default_gateway, primary_address
    from client_stub.portmap import Place
    from protocol.natpmp import GATEWAY_PORT

    port = GATEWAY_PORT
    if text is None:
        gateway = default_gateway()
        if gateway is None:
            raise OperationError("there is no default route; name the router with --gateway")
    else:
        try:
            gateway = IPv4Address(text)
        except ValueError:
            raise ConfigError(f"--gateway: not an IPv4 address: {text[:80]!r}") from None
    source = primary_address(gateway)
    if source is None:
        raise OperationError(f"no route to {gateway}")
    return Place(source, gateway, port)


def _run(work: Any) -> Any:
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(work)
    except OSError as error:
        raise OperationError(error.strerror or str(error)) from None


def _no_mapping(mapper: "PortMapper") -> str:
    reasons = (f"{NAMES[way]}: {reason or 'no answer'}" for way, reason in mapper.failures.items())
    return "\n".join(("no protocol gives a mapping", *reasons))


def _state_values(mapper: "PortMapper", state: "NatState", port: int, transport: str) -> dict[str, Any]:
    from client_stub.mapping_core import NatKind
    from client_stub.portmap import is_mapped

    there = is_mapped(state)
    return {
        "state": state.kind.value,
        "protocol": mapper.way,
        "transport": transport,
        "internal_port": port,
        "external_address": str(state.address) if there else None,
        "external_port": state.port if there else None,
        "nat_behind_nat": state.kind is NatKind.NAT_BEHIND_NAT,
        "reason": state.reason,
    }


def _state_line(values: dict[str, Any]) -> str:
    if values["external_port"] is None:
        return f"{values['state']}: {values['reason']}"
    note = "  (NAT behind NAT: not reachable from the Internet)" if values["nat_behind_nat"] else ""
    where = f"{values['external_address']}:{values['external_port']}"
    return f"{values['transport']} {where} -> port {values['internal_port']} by {NAMES[values['protocol']]}{note}"


def _report_values(report: "Report") -> dict[str, Any]:
    return {
        "address": str(report.source),
        "gateway": str(report.gateway),
        "protocols": {offer.way.value: _offer_values(offer) for offer in report.offers},
        "external_addresses": sorted(map(str, report.external_addresses)),
        "nat_behind_nat": report.double_nat,
        "mapping_works": report.mapped_port is not None,
        "mapping_by": report.mapping_by,
        "hairpin": report.hairpin,
    }


def _offer_values(offer: "Offer") -> dict[str, Any]:
    return {
        "answers": offer.answers,
        "external_address": None if offer.external_address is None else str(offer.external_address),
        "epoch": offer.epoch,
        "detail": offer.problem or offer.detail,
    }


def _print_report(report: "Report") -> None:
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(f"this machine {report.source}, router {report.gateway}")
    table = Table(box=None, pad_edge=False)
    for title in ("protocol", "answers", "external address", "epoch", ""):
        table.add_column(title)
    for offer in report.offers:
        values = _offer_values(offer)
        table.add_row(
            NAMES[offer.way],
            "yes" if offer.answers else "no",
            values["external_address"] or "-",
            "-" if offer.epoch is None else f"{offer.epoch} s",
            values["detail"],
        )
    console.print(table)
    for line in _verdicts(report):
        console.print(line)


def _verdicts(report: "Report") -> list[str]:
    lines = []
    if report.mapped_port is not None and report.mapping_by is not None:
        lines.append(f"a mapping works, by {NAMES[report.mapping_by]}")
    elif any(offer.answers for offer in report.offers):
        lines.append("no mapping was given")
    if report.hairpin is not None:
        lines.append(f"the external address {'works' if report.hairpin else 'does not work'} from inside")
    if len(report.external_addresses) > 1:
        lines.append("the protocols tell different external addresses")
    if report.double_nat:
        lines.append("NAT behind NAT: the router's external address is itself private; nobody outside reaches mappings")
    return lines
