"""The whole gateway on loopback with real sockets: requests, traffic, announcements, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import struct
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.app import Gateway
from gateway.config import Endpoint
from gateway.errors import InstallRefusedError, StartError
from gateway.views import AddressEvent, Event, MappingEvent
from protocol import pcp
from protocol.natpmp import (
    AddressRequest,
    AddressResponse,
    MapResponse,
    Opcode,
    decode_response,
)
from tests.support.gateways import (
    EXTERNAL,
    HOST_A,
    HOST_B,
    SECOND_EXTERNAL,
    WAIT,
    ManualTime,
    ask,
    config,
    free_port,
    hear,
    map_port,
    running,
    udp,
)


def group_member(group: str, port: int) -> socket.socket:
    """Listen as RFC 6886 §3.2.1 says: bound to the group, address shared with other listeners of the machine."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((group, port))
    membership = struct.pack("=4s4s", socket.inet_aton(group), socket.inet_aton("127.0.0.1"))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock


async def test_address_request(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        response = await ask(gateway, AddressRequest())
        assert isinstance(response, AddressResponse)
        assert (response.result, response.address) == (0, IPv4Address(EXTERNAL))
        assert response.epoch in (0, 1)


@pytest.mark.rfc("6886", "3.9")
async def test_udp_travels_both_ways(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        with udp(HOST_A) as inside, udp("127.0.0.1") as first, udp("127.0.0.1") as second:
            mapped = await map_port(gateway, inside.getsockname()[1])
            outside = (EXTERNAL, mapped.external_port)
            flows = {}
            for sender, text in ((first, b"one"), (second, b"two"), (first, b"three")):
                sender.sendto(text, outside)
                datagram, flow = await hear(inside)
                assert datagram == text
                flows[text] = flow
            assert flows[b"one"] == flows[b"three"] != flows[b"two"]
            inside.sendto(b"answer two", flows[b"two"])
            inside.sendto(b"answer one", flows[b"one"])
            assert await hear(first) == (b"answer one", outside)
            assert await hear(second) == (b"answer two", outside)
            big = bytes(range(256)) * 200
            first.sendto(big, outside)
            assert (await hear(inside))[0] == big


async def echo_reversed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer only when the peer has ended its direction: works through half-closed connections alone."""
    content = await reader.read()
    writer.write(content[::-1])
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.rfc("6887", "15.1")
async def test_tcp_travels_both_ways_and_half_closes(tmp_path: Path) -> None:
    server = await asyncio.start_server(echo_reversed, HOST_A, 0)
    async with server, running(config(tmp_path)) as gateway:
        mapped = await map_port(gateway, server.sockets[0].getsockname()[1], tcp=True)
        content = bytes(range(251)) * 40_000
        reader, writer = await asyncio.open_connection(EXTERNAL, mapped.external_port)
        writer.write(content)
        writer.write_eof()
        async with asyncio.timeout(WAIT):
            assert await reader.read() == content[::-1]
        writer.close()
        await writer.wait_closed()


async def test_tcp_where_the_inside_speaks_first_and_ends_first(tmp_path: Path) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write_eof()
        await heard.put(await reader.read())
        writer.close()

    server = await asyncio.start_server(greet, HOST_A, 0)
    async with server, running(config(tmp_path)) as gateway:
        mapped = await map_port(gateway, server.sockets[0].getsockname()[1], tcp=True)
        reader, writer = await asyncio.open_connection(EXTERNAL, mapped.external_port)
        async with asyncio.timeout(WAIT):
            assert await reader.read() == b"220 hello\r\n"
            writer.write(b"still here")
            writer.close()
            await writer.wait_closed()
            assert await heard.get() == b"still here"


async def test_tcp_backpressure_holds_the_sender(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    total = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal total
        await go_on.wait()
        while block := await reader.read(1 << 16):
            total += len(block)
        writer.close()

    server = await asyncio.start_server(slow, HOST_A, 0, limit=1 << 16)
    async with server, running(config(tmp_path)) as gateway:
        mapped = await map_port(gateway, server.sockets[0].getsockname()[1], tcp=True)
        loop = asyncio.get_running_loop()
        with socket.socket() as sender:
            sender.setblocking(False)
            await loop.sock_connect(sender, (EXTERNAL, mapped.external_port))
            sent = 0
            size = 64 * 1024 * 1024
            with pytest.raises(TimeoutError):
                while sent < size:
                    async with asyncio.timeout(0.3):
                        await loop.sock_sendall(sender, bytes(1 << 16))
                    sent += 1 << 16
            assert sent < size
            go_on.set()
            # The block that timed out may have gone in part; what matters is that all that was accepted arrives.
            async with asyncio.timeout(WAIT):
                await loop.sock_sendall(sender, bytes(1 << 16))
                sender.shutdown(socket.SHUT_WR)
                assert await loop.sock_recv(sender, 1) == b""
            assert total >= sent + (1 << 16)


async def expect_reset(sock: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(WAIT):
            await asyncio.get_running_loop().sock_recv(sock, 1)


async def test_nobody_listening_inside_is_a_reset_outside(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        mapped = await map_port(gateway, free_port(HOST_A, socket.SOCK_STREAM), tcp=True)
        with socket.socket() as sock:
            sock.setblocking(False)
            with pytest.raises(ConnectionResetError):  # it may come before the connecting has been noticed
                await asyncio.get_running_loop().sock_connect(sock, (EXTERNAL, mapped.external_port))
                async with asyncio.timeout(WAIT):
                    await asyncio.get_running_loop().sock_recv(sock, 1)


@pytest.mark.rfc("6886", "3.3")
@pytest.mark.rfc("6886", "3.4")
async def test_deletion_closes_ports_and_resets_both_ends(tmp_path: Path) -> None:
    ended: asyncio.Queue[BaseException | bytes] = asyncio.Queue()

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            await ended.put(await reader.read())
        except ConnectionResetError as error:
            await ended.put(error)
        writer.close()

    server = await asyncio.start_server(inside, HOST_A, 0)
    async with server, running(config(tmp_path)) as gateway:
        port = server.sockets[0].getsockname()[1]
        mapped = await map_port(gateway, port, tcp=True)
        loop = asyncio.get_running_loop()
        with socket.socket() as sock, socket.socket() as late:
            sock.setblocking(False)
            late.setblocking(False)
            await loop.sock_connect(sock, (EXTERNAL, mapped.external_port))
            assert await loop.sock_recv(sock, 1) == b"x"
            assert await map_port(gateway, port, lifetime=0, tcp=True) == MapResponse(
                opcode=Opcode.MAP_TCP, result=0, epoch=gateway.epoch(), internal_port=port, external_port=0, lifetime=0
            )
            await expect_reset(sock)
            async with asyncio.timeout(WAIT):
                assert isinstance(await ended.get(), ConnectionResetError)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(late, (EXTERNAL, mapped.external_port))


async def test_a_port_of_another_program_is_not_given(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        with udp(EXTERNAL) as other:
            taken = other.getsockname()[1]
            mapped = await map_port(gateway, 4500, taken)
            assert mapped.result == 0
            assert mapped.external_port not in (0, taken)


@pytest.mark.rfc("6886", "3.3")
async def test_lapse_closes_the_port(tmp_path: Path) -> None:
    time = ManualTime()
    events: list[Event] = []
    async with running(config(tmp_path), events, time) as gateway:
        mapped = await map_port(gateway, 4500, lifetime=120)
        time.elapsed += 119
        assert len(gateway.mappings()) == 1
        time.elapsed += 1.01
        await ask(gateway, AddressRequest())
        await map_port(gateway, 9, lifetime=0)
        assert gateway.mappings() == []
        with udp(EXTERNAL, mapped.external_port):
            pass
    changes = [event.change for event in events if isinstance(event, MappingEvent)]
    assert changes == ["created", "lapsed"]


@pytest.mark.rfc("6886", "3.2.1")
async def test_announcements_reach_every_listener_of_the_machine(tmp_path: Path) -> None:
    settings = config(tmp_path)
    group = settings.natpmp.announce_to
    with group_member(*group) as first, group_member(*group) as second:
        async with running(settings) as gateway:
            for listener in (first, second):
                for _ in range(3):
                    datagram, peer = await hear(listener)
                    assert peer == gateway.natpmp_addresses[0]
                    announced = decode_response(datagram)
                    assert isinstance(announced, AddressResponse)
                    assert announced.address == IPv4Address(EXTERNAL)
                    datagram, peer = await hear(listener)
                    assert peer == gateway.natpmp_addresses[0]
                    also = pcp.decode_response(datagram)
                    assert (also.opcode, also.result, also.lifetime) == (pcp.Opcode.ANNOUNCE, 0, 0)
            await gateway.set_external_address(SECOND_EXTERNAL)
            for listener in (first, second):
                async with asyncio.timeout(WAIT):
                    while True:
                        datagram, _ = await hear(listener)
                        if datagram[0] == pcp.VERSION:
                            continue
                        announced = decode_response(datagram)
                        assert isinstance(announced, AddressResponse)
                        if announced.address == IPv4Address(SECOND_EXTERNAL):
                            break


async def test_renumbering_takes_traffic_along(tmp_path: Path) -> None:
    events: list[Event] = []
    async with running(config(tmp_path), events) as gateway:
        with udp(HOST_A) as inside, udp("127.0.0.1") as sender:
            mapped = await map_port(gateway, inside.getsockname()[1])
            await gateway.set_external_address(SECOND_EXTERNAL)
            sender.sendto(b"new", (SECOND_EXTERNAL, mapped.external_port))
            assert (await hear(inside))[0] == b"new"
            with udp(EXTERNAL, mapped.external_port):
                pass
            assert [view.external_address for view in gateway.mappings()] == [SECOND_EXTERNAL]
            await gateway.set_external_address(None)
            response = await ask(gateway, AddressRequest())
            assert isinstance(response, AddressResponse)
            assert (response.result, response.address) == (3, IPv4Address(0))
            assert (await map_port(gateway, 4500)).result == 3
            await gateway.set_external_address(EXTERNAL)
            sender.sendto(b"back", (EXTERNAL, mapped.external_port))
            assert (await hear(inside))[0] == b"back"
    addresses = [event.external_address for event in events if isinstance(event, AddressEvent)]
    assert addresses == [EXTERNAL, SECOND_EXTERNAL, None, EXTERNAL]


async def test_an_address_of_another_machine_changes_nothing(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        await map_port(gateway, 4500)
        with pytest.raises(InstallRefusedError):
            await gateway.set_external_address("192.0.2.1")
        assert gateway.external_address == EXTERNAL
        assert len(gateway.mappings()) == 1


@pytest.mark.rfc("6886", "3.6")
async def test_restart_keeps_mappings_and_epoch(tmp_path: Path) -> None:
    time = ManualTime()
    settings = config(tmp_path)
    with udp(HOST_A) as inside, udp("127.0.0.1") as sender:
        port = inside.getsockname()[1]
        async with running(settings, system=time) as gateway:
            mapped = await map_port(gateway, port, lifetime=600)
            await map_port(gateway, 4501, lifetime=200, host=HOST_B)
            time.elapsed += 100
        time.elapsed += 150
        async with running(settings, system=time) as gateway:
            assert 250 <= gateway.epoch() <= 253
            (view,) = gateway.mappings()
            assert (view.internal, view.external_port) == (Endpoint(HOST_A, port), mapped.external_port)
            assert view.remaining_seconds is not None
            assert 345 <= view.remaining_seconds <= 350
            sender.sendto(b"again", (EXTERNAL, mapped.external_port))
            assert (await hear(inside))[0] == b"again"
            assert (await map_port(gateway, port)).external_port == mapped.external_port


async def test_an_answered_mapping_is_in_the_file_before_any_stop(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with running(settings) as gateway:
        mapped = await map_port(gateway, 4500)
        with contextlib.closing(sqlite3.connect(settings.state.file)) as database:
            rows = database.execute("SELECT transport, host, internal_port, external_port FROM mapping").fetchall()
        assert rows == [(17, HOST_A, 4500, mapped.external_port)]
        await map_port(gateway, 4500, lifetime=0)
        with contextlib.closing(sqlite3.connect(settings.state.file)) as database:
            assert database.execute("SELECT count(*) FROM mapping").fetchone() == (0,)


@pytest.mark.rfc("6886", "3.6")
@pytest.mark.parametrize("loss", ["removed", "damaged"])
async def test_lost_state_begins_the_epoch_at_0(tmp_path: Path, loss: str) -> None:
    time = ManualTime()
    settings = config(tmp_path)
    async with running(settings, system=time) as gateway:
        await map_port(gateway, 4500)
        time.elapsed += 1000
    if loss == "removed":
        settings.state.file.unlink()
    else:
        settings.state.file.write_bytes(b"this is no database, but it is long enough to look at" * 100)
    async with running(settings, system=time) as gateway:
        assert gateway.epoch() <= 1
        assert gateway.mappings() == []
        await map_port(gateway, 4500)
    assert (tmp_path / "gateway.sqlite.damaged").exists() == (loss == "damaged")


@pytest.mark.rfc("6886", "3.6")
async def test_a_saved_port_taken_meanwhile_is_a_loss_that_clients_notice(tmp_path: Path) -> None:
    time = ManualTime()
    settings = config(tmp_path)
    async with running(settings, system=time) as gateway:
        mapped = await map_port(gateway, 4500)
        time.elapsed += 1000
    with udp(EXTERNAL, mapped.external_port):
        async with running(settings, system=time) as gateway:
            assert gateway.mappings() == []
            assert gateway.epoch() <= 1


async def test_a_wall_clock_set_right_while_running_does_not_kill_mappings(tmp_path: Path) -> None:
    time = ManualTime()
    settings = config(tmp_path)
    time.stepped = -40 * 365 * 86400.0
    async with running(settings, system=time) as gateway:
        await map_port(gateway, 4500, lifetime=3600)
        time.stepped = 0.0
        time.elapsed += 61
        await map_port(gateway, 9, lifetime=0)
        await gateway.set_external_address(SECOND_EXTERNAL)
        await gateway.set_external_address(EXTERNAL)
    async with running(settings, system=time) as gateway:
        assert len(gateway.mappings()) == 1
        assert 61 <= gateway.epoch() <= 65


async def test_static_mappings(tmp_path: Path) -> None:
    with udp(HOST_A) as inside, udp("127.0.0.1") as sender:
        port = inside.getsockname()[1]
        external = free_port(EXTERNAL)
        static = [{"transport": "udp", "external_port": external, "internal": f"{HOST_A}:{port}"}]
        async with running(config(tmp_path, static=static)) as gateway:
            sender.sendto(b"in", (EXTERNAL, external))
            assert (await hear(inside))[0] == b"in"
            response = await map_port(gateway, port, lifetime=0)
            assert (response.result, response.external_port, response.lifetime) == (2, external, 0)
            (view,) = gateway.mappings()
            assert (view.origin, view.remaining_seconds) == ("static", None)


@pytest.mark.rfc("6886", "3.3")
async def test_requests_for_other_destinations_get_no_answer(tmp_path: Path) -> None:
    """The external address has no socket: the kernel refuses, which tells clients there is no NAT-PMP."""
    async with running(config(tmp_path)) as gateway:
        (endpoint,) = gateway.natpmp_addresses
        with udp(HOST_A) as sock:
            sock.connect((EXTERNAL, endpoint.port))
            sock.send(b"\0\0")
            with pytest.raises(ConnectionRefusedError):
                async with asyncio.timeout(WAIT):
                    await asyncio.get_running_loop().sock_recv(sock, 100)


async def test_floods_of_one_host_do_not_keep_out_another(tmp_path: Path) -> None:
    settings = config(tmp_path)
    natpmp = settings.natpmp.model_copy(update={"requests_per_second": 5})
    async with running(settings.model_copy(update={"natpmp": natpmp})) as gateway:
        (endpoint,) = gateway.natpmp_addresses
        with udp(HOST_A) as flood:
            for _ in range(200):
                flood.sendto(b"\0\0", endpoint)
            assert isinstance(await ask(gateway, AddressRequest(), HOST_B), AddressResponse)
        assert gateway.counters["over rate"] >= 180


async def test_random_datagrams_change_nothing(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        (endpoint,) = gateway.natpmp_addresses
        with udp(HOST_A) as sock:
            for octet in range(256):
                for length in (0, 1, 2, 3, 11, 13, 1400):
                    sock.sendto(bytes([octet]) * length, endpoint)
        with udp(HOST_B) as sock:
            sock.sendto(bytes(9000), endpoint)
        assert isinstance(await ask(gateway, AddressRequest(), "127.0.0.13"), AddressResponse)
        assert gateway.mappings() == []


def pcp_map(internal: int, lifetime: int = 3600, nonce: bytes = b"a nonce here", host: str = HOST_A) -> bytes:
    return pcp.Request(
        opcode=pcp.Opcode.MAP,
        lifetime=lifetime,
        client=IPv4Address(host),
        body=pcp.MapBody(
            nonce=nonce, protocol=17, internal_port=internal, external_port=0, external_address=IPv4Address(0)
        ),
    ).encode()


async def exchange(gateway: Gateway, sock: socket.socket, request: bytes) -> bytes:
    (endpoint,) = gateway.natpmp_addresses
    sock.sendto(request, endpoint)
    reply, peer = await hear(sock)
    assert peer == endpoint
    return reply


@pytest.mark.rfc("6887", "11")
@pytest.mark.rfc("6887", "8")
async def test_pcp_maps_on_the_same_port_and_table(tmp_path: Path) -> None:
    events: list[Event] = []
    async with running(config(tmp_path), events) as gateway:
        with udp(HOST_A) as inside, udp("127.0.0.1") as sender:
            port = inside.getsockname()[1]
            response = pcp.decode_response(await exchange(gateway, inside, pcp_map(port)))
            assert response.result == 0
            assert response.body is not None
            assert response.body.external_address == IPv4Address(EXTERNAL)
            sender.sendto(b"in", (EXTERNAL, response.body.external_port))
            assert (await hear(inside))[0] == b"in"
            assert (await map_port(gateway, port)).external_port == response.body.external_port
            (view,) = gateway.mappings()
            assert view.origin == "pcp"
            assert pcp.decode_response(await exchange(gateway, inside, pcp_map(port, 0))).result == 0
            assert gateway.mappings() == []
    assert not any("nonce" in repr(event) for event in events)


@pytest.mark.rfc("6887", "9")
@pytest.mark.rfc("6887", "11")
@pytest.mark.parametrize(
    ("is_on", "request_", "head"),
    [
        (True, b"\0\0", "0080 0000"),
        (True, b"\1\0", "0280 0001 00000708"),
        (True, b"\2\0" + bytes(18) + b"\xff\xff" + bytes(2), "0280 000c 00000708"),
        (True, pcp_map(4500), "0281 0000 00000e10"),
        (True, b"\3\1" + bytes(10), "0281 0001 00000708"),
        (False, b"\0\0", "0080 0000"),
        (False, b"\1\0", "0000 0001"),
        (False, pcp_map(4500), "0081 0001"),
        (False, b"\3\1" + bytes(10), "0000 0001"),
    ],
)
async def test_every_version_gets_an_answer_it_understands(
    tmp_path: Path, is_on: bool, request_: bytes, head: str
) -> None:
    async with running(config(tmp_path, pcp={"enabled": is_on})) as gateway:
        with udp(HOST_A) as sock:
            reply = await exchange(gateway, sock, request_)
            assert reply.startswith(bytes.fromhex(head))


@pytest.mark.rfc("6887", "14.2")
async def test_pcp_clients_are_told_where_their_mappings_moved(tmp_path: Path) -> None:
    time = ManualTime()
    async with running(config(tmp_path), system=time) as gateway:
        with udp(HOST_A) as first, udp(HOST_B) as second:
            made = pcp.decode_response(await exchange(gateway, first, pcp_map(4500)))
            await exchange(gateway, second, pcp_map(4500, host=HOST_B))
            time.elapsed += 1000
            await gateway.set_external_address(SECOND_EXTERNAL)
            for _ in range(3):
                datagram, peer = await hear(first)
                assert peer == gateway.natpmp_addresses[0]
                update = pcp.decode_response(datagram)
                assert update.body is not None
                assert made.body is not None
                assert update.body.external_address == IPv4Address(SECOND_EXTERNAL)
                assert update.body.external_port == made.body.external_port
                assert (update.body.nonce, update.body.internal_port) == (b"a nonce here", 4500)
                assert update.epoch <= 5
                assert 2590 <= update.lifetime <= 2600
            assert gateway.counters["mapping updates"] == 6
            # One that has renewed knows already.
            await exchange(gateway, second, pcp_map(4500, 0, host=HOST_B))
            await gateway.set_external_address(EXTERNAL)
            await hear(first)
            assert pcp.decode_response(await exchange(gateway, first, pcp_map(4500))).result == 0
            sent = gateway.counters["mapping updates"]
            await asyncio.sleep(0.9)
            assert gateway.counters["mapping updates"] == sent < 9


@pytest.mark.rfc("6887", "8.5")
@pytest.mark.parametrize("moves", [False, True], ids=["same address", "another address"])
async def test_a_restart_keeps_nonces_and_the_epoch_of_pcp_unless_the_address_changed(
    tmp_path: Path, moves: bool
) -> None:
    time = ManualTime()
    settings = config(tmp_path)
    async with running(settings, system=time) as gateway:
        with udp(HOST_A) as sock:
            made = pcp.decode_response(await exchange(gateway, sock, pcp_map(4500)))
            time.elapsed += 1000
    if moves:
        settings = config(tmp_path, external={"address": SECOND_EXTERNAL})
    async with running(settings, system=time) as gateway:
        assert gateway.epoch() >= 1000
        with udp(HOST_A) as sock:
            stranger = pcp.decode_response(await exchange(gateway, sock, pcp_map(4500, nonce=b"not the same")))
            assert stranger.result == pcp.ResultCode.NOT_AUTHORIZED
            again = pcp.decode_response(await exchange(gateway, sock, pcp_map(4500)))
            assert (again.epoch <= 1) is moves
            assert moves or again.epoch >= 1000
            assert again.body is not None
            assert made.body is not None
            assert again.body.external_port == made.body.external_port


@pytest.mark.rfc("6886", "3.7")
@pytest.mark.rfc("6887", "14.1.3")
async def test_a_start_without_an_address_is_announced_to_pcp_clients(tmp_path: Path) -> None:
    settings = config(tmp_path, external={})
    with group_member(*settings.natpmp.announce_to) as listener:
        async with running(settings):
            heard = {(await hear(listener))[0][:4] for _ in range(2)}
    assert heard == {bytes.fromhex("00800003"), bytes.fromhex("02800000")}


@pytest.mark.parametrize("problem", ["listen", "external", "state", "static", "static twice"])
async def test_start_errors_are_one_line_and_leave_nothing_open(tmp_path: Path, problem: str) -> None:
    before = {task for task in asyncio.all_tasks() if not task.done()}
    settings = config(tmp_path)
    static = {"transport": "udp", "internal": f"{HOST_A}:4500"}
    with udp("127.0.0.1") as taken_inside, udp(EXTERNAL) as taken_outside:
        changes: dict[str, Any] = {
            "listen": {"natpmp": {"listen": [f"127.0.0.1:{taken_inside.getsockname()[1]}"]}},
            "external": {"external": {"address": "192.0.2.1"}},
            "state": {"state": {"file": tmp_path / "no such directory" / "state"}},
            "static": {"static": [static | {"external_port": taken_outside.getsockname()[1]}]},
            "static twice": {"static": [static | {"external_port": port} for port in (4500, 4501)]},
        }[problem]
        if problem == "static twice":
            changes["static"][1] = {"transport": "tcp", "internal": f"{HOST_B}:80", "external_port": 4500}
        with pytest.raises(StartError) as caught:
            await Gateway(config(tmp_path, **changes)).start()
        assert "\n" not in str(caught.value)
    assert {task for task in asyncio.all_tasks() if not task.done()} == before
    async with running(settings) as gateway:
        assert (await map_port(gateway, 4500)).result == 0


async def test_waiting_tells_a_stop_that_was_asked_for(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        waiting = asyncio.ensure_future(gateway.wait())
        await ask(gateway, AddressRequest())
        assert not waiting.done()
        gateway.request_stop()
        async with asyncio.timeout(WAIT):
            assert await waiting
    assert await gateway.wait()


async def test_waiting_tells_that_the_worker_died(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as gateway:
        worker = gateway._worker
        assert worker is not None
        worker.cancel()
        async with asyncio.timeout(WAIT):
            assert not await gateway.wait()


async def test_stop_leaves_no_task(tmp_path: Path) -> None:
    server = await asyncio.start_server(echo_reversed, HOST_A, 0)
    before = asyncio.all_tasks()
    async with server:
        async with running(config(tmp_path)) as gateway:
            mapped = await map_port(gateway, server.sockets[0].getsockname()[1], tcp=True)
            with socket.socket() as sock:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, (EXTERNAL, mapped.external_port))
                await asyncio.sleep(0.05)
        names = {task.get_name() for task in asyncio.all_tasks() - before if not task.done()}
        assert not {name for name in names if name.startswith(("relay", "gateway"))}


@pytest.mark.parametrize(
    "scenario",
    [
        test_udp_travels_both_ways,
        test_tcp_travels_both_ways_and_half_closes,
        test_tcp_where_the_inside_speaks_first_and_ends_first,
        test_tcp_backpressure_holds_the_sender,
        test_nobody_listening_inside_is_a_reset_outside,
        test_deletion_closes_ports_and_resets_both_ends,
        test_announcements_reach_every_listener_of_the_machine,
        test_renumbering_takes_traffic_along,
        test_stop_leaves_no_task,
    ],
)
def test_under_uvloop(scenario: Callable[[Path], Coroutine[Any, Any, None]], tmp_path: Path) -> None:
    """The two loops differ in when they read, pause and report, so what depends on that runs on both."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario(tmp_path))
