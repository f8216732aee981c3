"""How a client's stream ends on the wire."""

import asyncio

import pytest

from client_stub.streams import FramedStream


@pytest.mark.rfc("8490", "5.3")
@pytest.mark.parametrize("is_fatal", [False, True])
async def test_a_reset_is_a_reset_and_an_end_an_end(is_fatal: bool) -> None:
    seen: asyncio.Future[bytes | type[BaseException]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            seen.set_result(await reader.read())
        except ConnectionResetError as error:
            seen.set_result(type(error))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        stream = FramedStream(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        if is_fatal:
            stream.abort()
        else:
            await stream.close()
        async with asyncio.timeout(10):
            assert await seen == (ConnectionResetError if is_fatal else b"")
