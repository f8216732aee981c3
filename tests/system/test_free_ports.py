"""Port 0 means one port free for UDP and TCP both, whatever stands on TCP already."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from server.app import Server
from server.config import ServerSettings
from server.transport.stream import StreamServer


async def test_a_port_taken_on_tcp_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([True, True])
    listen = StreamServer.listen

    async def refuse_twice(self: StreamServer, address: str, port: int, **more: Any) -> int:
        if next(refusals, False):
            raise OSError(98, "Address already in use")
        return await listen(self, address, port, **more)

    monkeypatch.setattr(StreamServer, "listen", refuse_twice)
    settings = {"database": {"url": f"sqlite+aiosqlite:///{tmp_path}/db"}, "dns": {"listen": ["127.0.0.1:0"]}}
    server = Server(ServerSettings.model_validate(settings))
    await server.start()
    try:
        assert [kind for kind, _, _ in server.listening()] == ["udp", "tcp"]
        assert len({port for _, _, port in server.listening()}) == 1
        with socket.create_connection(("127.0.0.1", server.port), timeout=5):
            await asyncio.sleep(0)
    finally:
        await server.stop()
