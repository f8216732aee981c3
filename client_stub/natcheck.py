"""What the network offers to who wants to be reached: which protocols answer, which address, behind how many NATs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from client_stub import clock
from client_stub.igd import external_address, find, invoke
from client_stub.igd_client import IgdError
from client_stub.portmap import Place, PortMapper, Wanted, Way
from protocol import natpmp, pcp
from protocol.addresses import is_behind_a_nat
from protocol.errors import DecodeError

WAITS: Final = (0.25, 0.5, 1.0, 2.0)
"""Seconds after each transmission of a question."""
HAIRPIN_SECONDS: Final = 1.0
CHECK_LIFETIME: Final = 120


@dataclass(slots=True, kw_only=True)
class Offer:
    """What one protocol says. `problem` is empty when it answers."""

    way: Way
    problem: str = ""
    external_address: IPv4Address | None = None
    epoch: int | None = None
    detail: str = ""

    @property
    def answers(self) -> bool:
        return not self.problem


@dataclass(slots=True, kw_only=True)
class Report:
    """The whole picture. `hairpin` is None where there was no mapping to try it with."""

    source: IPv4Address
    gateway: IPv4Address
    offers: list[Offer] = field(default_factory=list)
    mapping_by: Way | None = None
    mapped_port: int | None = None
    hairpin: bool | None = None

    @property
    def external_addresses(self) -> set[IPv4Address]:
        """More than one: the protocols contradict each other."""
        return {offer.external_address for offer in self.offers if offer.external_address is not None}

    @property
    def double_nat(self) -> bool:
        """Whether the gateway is itself behind a NAT (RFC 6281 §4.4.1)."""
        return any(map(is_behind_a_nat, self.external_addresses))


async def check(place: Place) -> Report:
    """Ask by every protocol, then map a port for a moment. Raises OSError if we cannot send."""
    report = Report(source=place.source, gateway=place.gateway)
    report.offers = list(await asyncio.gather(_ask_pcp(place), _ask_natpmp(place), _ask_igd(place)))
    ways = tuple(offer.way for offer in report.offers if offer.answers)
    if ways:
        await _try_mapping(place, ways, report)
    return report


async def _ask_pcp(place: Place) -> Offer:
    offer = Offer(way=Way.PCP)
    request = pcp.Request(opcode=pcp.Opcode.ANNOUNCE, lifetime=0, client=place.source).encode()
    answer = await _question(place, request)
    if isinstance(answer, str):
        offer.problem = answer
        return offer
    try:
        if answer[:1] == b"\0":
            offer.problem = "the gateway speaks NAT-PMP only"
            return offer
        response = pcp.decode_response(answer)
    except DecodeError as error:
        offer.problem = f"an answer that cannot be read: {error}"
        return offer
    if response.result == pcp.ResultCode.UNSUPP_VERSION:
        offer.problem = "the gateway refuses PCP version 2"
    else:
        offer.epoch = response.epoch
    return offer


async def _ask_natpmp(place: Place) -> Offer:
    offer = Offer(way=Way.NATPMP)
    answer = await _question(place, natpmp.AddressRequest().encode())
    if isinstance(answer, str):
        offer.problem = answer
        return offer
    try:
        response = natpmp.decode_response(answer)
    except DecodeError:
        offer.problem = "the gateway does not speak NAT-PMP"
        return offer
    match response:
        case natpmp.AddressResponse(result=natpmp.ResultCode.SUCCESS):
            offer.external_address, offer.epoch = response.address, response.epoch
        case natpmp.AddressResponse():
            offer.epoch = response.epoch
            offer.detail = f"no external address (result {response.result})"
        case _:
            offer.problem = "the gateway refuses"
    return offer


async def _ask_igd(place: Place) -> Offer:
    offer = Offer(way=Way.IGD)
    try:
        device = await find(place.source, place.gateway)
        if device is None:
            offer.problem = "no answer"
            return offer
        offer.detail = device.service.kind.removeprefix("urn:schemas-upnp-org:service:")
        offer.external_address = await external_address(device.service)
        with contextlib.suppress(IgdError):
            status = (await invoke(device.service, "GetStatusInfo")).get("NewConnectionStatus", "")
            offer.detail += f", {status[:40]}" if status.isprintable() and status else ""
    except (IgdError, OSError) as error:
        offer.problem = str(error)
    return offer


async def _question(place: Place, request: bytes) -> bytes | str:
    """The gateway's answer, or why there is none."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if not answer.done():
                answer.set_result(data)

        def error_received(self, exc: Exception) -> None:
            if not answer.done():
                answer.set_exception(exc)

    transport, _ = await loop.create_datagram_endpoint(
        Client, local_addr=(str(place.source), 0), remote_addr=(str(place.gateway), place.port)
    )
    try:
        for wait in WAITS:
            transport.sendto(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    return await asyncio.shield(answer)
    except ConnectionRefusedError:
        return "nobody listens there"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        transport.abort()
        answer.cancel()
    return "no answer"


async def _try_mapping(place: Place, ways: tuple[Way, ...], report: Report) -> None:
    """Map a port of ours for a moment: only that shows PCP's address, and whether hairpins work."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as inside:
        inside.bind((str(place.source), 0))
        wanted = Wanted(internal_port=inside.getsockname()[1], lifetime=CHECK_LIFETIME)
        mapper = PortMapper(place, wanted, ways=ways)
        try:
            if not await mapper.open():
                for offer in report.offers:
                    offer.detail = offer.detail or mapper.failures.get(offer.way, "")
                return
            report.mapping_by, report.mapped_port = mapper.way, mapper.state.port
            for offer in report.offers:
                if offer.way is mapper.way:
                    offer.external_address = mapper.state.address
            report.hairpin = await _hairpins(inside, place.source, (str(mapper.state.address), mapper.state.port))
        finally:
            await mapper.close()


async def _hairpins(inside: socket.socket, source: IPv4Address, outside: tuple[str, int]) -> bool:
    """Whether what we send to our own external endpoint comes back to us."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    mark = f"homing natcheck {clock.monotonic()}".encode()

    def read() -> None:
        with contextlib.suppress(OSError):
            if inside.recv(2048) == mark:
                heard.set()

    loop.add_reader(inside, read)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other:
            other.bind((str(source), 0))
            for _ in range(4):
                with contextlib.suppress(OSError):
                    other.sendto(mark, outside)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HAIRPIN_SECONDS / 4):
                        await heard.wait()
                        return True
        return False
    finally:
        loop.remove_reader(inside)
