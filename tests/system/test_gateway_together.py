"""What changes together in a gateway: rounds of the back end, commits, lines of the log; and what fails together."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.backend.relay import Relay, RelayLimits
from gateway.errors import InstallRefusedError, StoreError
from gateway.mappings import Change, Changed, Install, Key, Mapping, Origin, Transport
from gateway.telling import IN_A_LINE, ONE_BY_ONE, Teller
from homing.logs import LONGEST_VALUE
from protocol.natpmp import MapRequest, MapResponse, Opcode, decode_response
from tests.support.gateways import HOST_A, WAIT, config, hear, map_port, running, udp, until


async def test_a_state_file_that_stops_taking_changes(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with running(settings) as gateway:
        kept = await map_port(gateway, 4500)
        lock = sqlite3.connect(settings.state.file, isolation_level=None)
        lock.execute("PRAGMA busy_timeout = 0")
        lock.execute("BEGIN IMMEDIATE")
        gateway._saving._state._connection.execute("PRAGMA busy_timeout = 0")  # type: ignore[union-attr]
        refused = await map_port(gateway, 4501)
        assert (refused.result, refused.external_port, refused.lifetime) == (4, 0, 0)
        lock.execute("ROLLBACK")
        lock.close()
        granted = await map_port(gateway, 4502)
        assert granted.result == 0
        assert {view.internal.port for view in gateway.mappings()} == {4500, 4502}
    async with running(settings) as gateway:
        ports = {view.internal.port: view.external_port for view in gateway.mappings()}
        assert ports == {4500: kept.external_port, 4502: granted.external_port}


async def test_what_comes_during_a_commit_is_carried_at_once_and_fails_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)
    async with running(settings) as gateway:
        (endpoint,) = gateway.natpmp_addresses
        state = gateway._saving._state
        assert state is not None
        begun, may_end = threading.Event(), threading.Event()
        held: list[list[int]] = []

        def full_disk(changes: dict[Key, Mapping | None], **_: object) -> None:
            held.append([key.port for key in changes])
            begun.set()
            assert may_end.wait(WAIT)
            raise StoreError("the disk is full")

        monkeypatch.setattr(state, "commit", full_disk)
        with udp(HOST_A) as sock:

            def send(port: int) -> None:
                request = MapRequest(opcode=Opcode.MAP_UDP, internal_port=port, suggested_port=0, lifetime=3600)
                sock.sendto(request.encode(), endpoint)

            send(4500)
            await until(begun.is_set)
            send(4500)
            send(4501)
            await until(lambda: len(gateway.mappings()) == 2)
            may_end.set()
            for _ in range(3):
                answer = decode_response((await hear(sock))[0])
                assert isinstance(answer, MapResponse)
                assert (answer.result, answer.external_port) == (4, 0)
        assert held[0] == [4500]
        await until(lambda: not gateway.mappings())
        monkeypatch.undo()
        granted = await map_port(gateway, 4502)
        assert granted.result == 0
    async with running(settings) as gateway:
        assert [view.internal.port for view in gateway.mappings()] == [4502]


class AllOrNothing(Relay):
    """Carries out a round together or not at all, as a kernel's transaction; one internal port it never carries."""

    IMPOSSIBLE = 4501

    def __init__(self) -> None:
        super().__init__(RelayLimits())
        self._round: list[int] | None = None
        self.rounds: list[list[int]] = []

    def install(self, install: Install) -> None:
        port = install.mapping.key.port
        if self._round is None and port == self.IMPOSSIBLE:
            raise InstallRefusedError("impossible")
        super().install(install)
        if self._round is not None:
            self._round.append(port)

    def hold(self) -> None:
        self._round = []

    def flush(self) -> None:
        ports, self._round = self._round or [], None
        self.rounds.append(ports)
        if self.IMPOSSIBLE in ports:
            raise InstallRefusedError("impossible")


async def test_what_cannot_be_carried_fails_alone_of_many_asked_at_once(tmp_path: Path) -> None:
    backend = AllOrNothing()
    async with running(config(tmp_path), backend=backend) as gateway:
        (endpoint,) = gateway.natpmp_addresses
        with udp(HOST_A) as sock:
            for port in (4500, 4501, 4502):
                request = MapRequest(opcode=Opcode.MAP_UDP, internal_port=port, suggested_port=0, lifetime=3600)
                sock.sendto(request.encode(), endpoint)
            answers = {}
            for _ in range(3):
                answer = decode_response((await hear(sock))[0])
                assert isinstance(answer, MapResponse)
                answers[answer.internal_port] = answer.result
        assert answers == {4500: 0, 4501: 4, 4502: 0}
        assert {view.internal.port for view in gateway.mappings()} == {4500, 4502}
        assert [4500, 4501, 4502] in backend.rounds
    async with running(config(tmp_path)) as gateway:
        assert {view.internal.port for view in gateway.mappings()} == {4500, 4502}


def test_no_address_is_too_long_for_a_shared_line() -> None:
    key = Key(Transport.UDP, "2001:db8:1111:2222:3333:4444:5555:6666", 65535)
    changed = Changed(Change.CREATED, Mapping(key=key, external_port=65535, origin=Origin.OPERATOR, expires_at=None))
    with capture_logs() as lines:
        Teller(None).mappings_changed([changed] * (ONE_BY_ONE + 1), address=None, now=0.0)
    assert [line["count"] for line in lines] == [IN_A_LINE, ONE_BY_ONE + 1 - IN_A_LINE]
    assert max(len(line["mappings"]) for line in lines) <= LONGEST_VALUE


async def test_changes_that_come_in_crowds_share_lines_of_the_log(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with running(config(tmp_path)) as gateway:
            (endpoint,) = gateway.natpmp_addresses
            with udp(HOST_A) as sock:
                for port in range(4500, 4500 + 2 * ONE_BY_ONE):
                    request = MapRequest(opcode=Opcode.MAP_UDP, internal_port=port, suggested_port=0, lifetime=3600)
                    sock.sendto(request.encode(), endpoint)
                for _ in range(2 * ONE_BY_ONE):
                    await hear(sock)
            await map_port(gateway, 4400)
    crowd = [line for line in lines if line["event"] == "mappings created"]
    assert sum(line["count"] for line in crowd) == 2 * ONE_BY_ONE
    named = " ".join(line["mappings"] for line in crowd)
    assert all(f"udp {HOST_A}:{port} at " in named for port in range(4500, 4500 + 2 * ONE_BY_ONE))
    (alone,) = [line for line in lines if line["event"] == "mapping created"]
    assert alone["inside"] == f"{HOST_A}:4400"
