"""The UPnP client's driver against a device that refuses, forgets and breaks off as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from client_stub import igd
from client_stub.igd import Device, IgdDriver, external_address, invoke
from client_stub.igd_client import BODY_OCTETS, IgdError, Service
from client_stub.mapping_core import NatKind, NatState
from tests.support.gateways import until

KIND = "urn:schemas-upnp-org:service:WANIPConnection:1"
ADDRESS = "203.0.113.7"


def soap(inner: str) -> str:
    return f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{inner}</s:Body></s:Envelope>'


class Router:
    """Keeps mappings by protocol and port; `refusals` are the codes of the next AddPortMappings."""

    def __init__(self) -> None:
        self.address = ADDRESS
        self.mappings: dict[tuple[str, int], dict[str, str]] = {}
        self.refusals: list[int] = []
        self.calls: list[str] = []
        self.raw: bytes | None = None
        self.service = Service(KIND, "127.0.0.1", 0, "/ctl")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"Content-Length: (\d+)", head)
            body = (await reader.readexactly(int(length[1]))).decode() if length else ""
            writer.write(self.raw if self.raw is not None else self.answer(body))
            await writer.drain()
        writer.close()

    def answer(self, body: str) -> bytes:
        action = re.search(r"<u:(\w+) ", body)
        assert action is not None
        arguments = dict(re.findall(r"<(New\w+)>([^<]*)</", body))
        self.calls.append(action[1])
        code, results = self.act(action[1], arguments)
        if code:
            error = f"<errorCode>{code}</errorCode><errorDescription>no</errorDescription>"
            inner = f'<s:Fault><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0">{error}</UPnPError></detail>'
            inner += "</s:Fault>"
        else:
            values = "".join(f"<{name}>{value}</{name}>" for name, value in results.items())
            inner = f'<u:{action[1]}Response xmlns:u="{KIND}">{values}</u:{action[1]}Response>'
        text = soap(inner).encode()
        # In pieces, as some devices do it.
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text)
        status = b"500 Internal Server Error" if code else b"200 OK"
        return b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks

    def act(self, action: str, arguments: dict[str, str]) -> tuple[int, dict[str, str]]:
        if action == "GetExternalIPAddress":
            return 0, {"NewExternalIPAddress": self.address}
        key = (arguments["NewProtocol"], int(arguments["NewExternalPort"]))
        if action == "AddPortMapping":
            if self.refusals:
                return self.refusals.pop(0), {}
            self.mappings[key] = arguments
            return 0, {}
        if key not in self.mappings:
            return 714, {}
        if action == "DeletePortMapping":
            del self.mappings[key]
            return 0, {}
        return 0, {"NewInternalClient": self.mappings[key]["NewInternalClient"]}


@contextlib.asynccontextmanager
async def routing() -> AsyncIterator[Router]:
    router = Router()
    server = await asyncio.start_server(router.serve, "127.0.0.1", 0)
    async with server:
        router.service = Service(KIND, "127.0.0.1", server.sockets[0].getsockname()[1], "/ctl")
        yield router


@contextlib.asynccontextmanager
async def mapping(
    router: Router, monkeypatch: pytest.MonkeyPatch, *, port: int = 0, lifetime: int = 3600
) -> AsyncIterator[tuple[IgdDriver, list[NatState]]]:
    async def found(source: IPv4Address, gateway: IPv4Address | None) -> Device:
        return Device("http://127.0.0.1/", router.service)

    monkeypatch.setattr(igd, "find", found)
    monkeypatch.setattr(igd, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(igd, "RETRY_SECONDS", 0.1)
    said: list[NatState] = []
    driver = IgdDriver(
        gateway=None,
        source=IPv4Address("127.0.0.1"),
        internal_port=8080,
        transport="tcp",
        external_port=port,
        lifetime=lifetime,
        rng=random.Random(1),
        on_state=said.append,
    )
    await driver.start()
    try:
        yield driver, said
    finally:
        driver.abort()


async def test_a_mapping_is_kept_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routing() as router, mapping(router, monkeypatch) as (driver, said):
        await until(lambda: said)
        assert said == [NatState(NatKind.MAPPED, IPv4Address(ADDRESS), 8080)]
        assert router.mappings["TCP", 8080]["NewLeaseDuration"] == "3600"
        router.mappings.clear()  # it was switched off and on
        await until(lambda: router.mappings)
        router.address = "203.0.113.8"
        await until(lambda: said[-1].address == IPv4Address("203.0.113.8"))
        await driver.close()
        assert router.mappings == {}


async def test_a_lease_is_renewed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routing() as router, mapping(router, monkeypatch, lifetime=1):
        await until(lambda: router.calls.count("AddPortMapping") >= 3)


async def test_a_port_of_somebody_else_is_not_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routing() as router:
        router.refusals = [718, 729, 718]
        async with mapping(router, monkeypatch, port=80) as (_, said):
            await until(lambda: said)
            assert said[0].kind is NatKind.MAPPED
            assert said[0].port not in (80, 8080)
            assert set(router.mappings) == {("TCP", said[0].port)}


async def test_old_routers_have_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routing() as router:
        router.refusals = [725, 724]
        async with mapping(router, monkeypatch, port=80) as (driver, said):
            await until(lambda: said)
            assert router.mappings["TCP", 8080]["NewLeaseDuration"] == "0"
            assert driver.lapses_at is None


async def test_a_refusal_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routing() as router:
        router.refusals = [606]
        async with mapping(router, monkeypatch) as (_, said):
            await until(lambda: len(said) == 2)
            assert said[0] == NatState(NatKind.FAILED, reason="UPnP: error 606 (no)")
            assert said[1].kind is NatKind.MAPPED


async def test_all_ports_taken_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routing() as router:
        router.refusals = [718] * igd.PORT_TRIES
        async with mapping(router, monkeypatch) as (_, said):
            await until(lambda: said)
            assert said[0].kind is NatKind.FAILED


async def test_no_external_address_is_no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    async with routing() as router:
        router.address = "0.0.0.0"
        async with mapping(router, monkeypatch) as (_, said):
            await until(lambda: said)
            assert said[0].kind is NatKind.FAILED
            router.address = "192.168.5.5"
            await until(lambda: len(said) == 2)
            assert said[1].kind is NatKind.NAT_BEHIND_NAT


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BODY_OCTETS + 100),
        b"HTTP/1.1 200 OK\r\n\r\n" + soap("").encode(),
    ],
)
async def test_answers_of_any_kind_are_bounded(raw: bytes) -> None:
    async with routing() as router:
        router.raw = raw
        with pytest.raises((IgdError, ConnectionError)):
            await invoke(router.service, "GetExternalIPAddress")


async def test_an_address_that_is_none() -> None:
    async with routing() as router:
        router.address = "home"
        with pytest.raises(IgdError):
            await external_address(router.service)
        router.address = ""
        assert await external_address(router.service) is None
