"""A tiny resolver: asks one configured server over UDP, over TCP when truncated; finds zones and services.

No cache, no recursion of its own. Waits are seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from client_stub import clock
from client_stub.llq_client import answers_of
from client_stub.streams import FramedStream, Service
from protocol.constants import RD, TC, Class, Rcode, TsigError, Type, rcode_text
from protocol.edns import Opt
from protocol.errors import DecodeError
from protocol.message import Message, Question, Record, decode, encode
from protocol.name import fold, is_at_or_below, to_text
from protocol.tsig import Key, decode_tsig, sign, verify

UDP_WAITS: Final = (1.0, 2.0, 4.0)
TCP_WAIT: Final = 8.0
_MAX_QUEUE: Final = 16


class ResolveError(Exception):
    """The server did not answer, or not usefully."""


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue(_MAX_QUEUE)

    def datagram_received(self, data: bytes, addr: object) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # more answers than we ever wait for
            self.received.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there just now; the next transmission may find somebody."""


class Resolver:
    """Queries from `source` (an address of ours) to `server`."""

    def __init__(self, server: tuple[IPv4Address, int], source: IPv4Address, rng: random.Random) -> None:
        self._server = str(server[0]), server[1]
        self._source = str(source), 0
        self._rng = rng

    async def query(self, question: Question, key: Key | None = None) -> Message:
        """The server's response, its signature checked if `key` is given; `ResolveError` for none or RCODE above 3."""
        message_id = self._rng.getrandbits(16)
        unsigned = encode(message_id, RD, (question,), opt=Opt())
        wire, mac = sign(unsigned, key, now=clock.unix_seconds()) if key is not None else (unsigned, b"")
        try:
            response = await self._over_udp(wire, question, key, mac)
            if response.header.flags & TC:
                response = await self._over_tcp(wire, question, key, mac)
        except (OSError, EOFError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise ResolveError(f"no answer for {to_text(question.name)}: {reason}") from error
        if response.header.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
            raise ResolveError(f"{rcode_text(response.header.rcode)} for {to_text(question.name)}")
        return response

    async def answers(self, name: bytes, rtype: int, key: Key | None = None) -> list[bytes]:
        """Rdata of one RRset; empty when there is none."""
        question = Question(name, rtype, Class.IN)
        response = await self.query(question, key)
        try:
            return answers_of(response, question)
        except DecodeError as error:
            raise ResolveError(str(error)) from error

    async def zone_of(self, name: bytes, key: Key | None = None) -> bytes:
        """Apex of the zone that holds `name`: owner of the SOA in answer or authority (RFC 8764 §4).

        In a private zone only a signed question is answered below the apex.
        """
        while True:
            response = await self.query(Question(name, Type.SOA, Class.IN), key)
            for record in response.answers + response.authority:
                if record.rtype == Type.SOA and is_at_or_below(fold(name), fold(record.name)):
                    return record.name
            if name == b"\0":
                raise ResolveError("no zone found")
            name = name[name[0] + 1 :]

    async def service(self, name: bytes) -> Service | None:
        """The service at an SRV name: lowest priority, then highest weight; None without one that has an address."""
        response = await self.query(Question(name, Type.SRV, Class.IN))
        try:
            found = sorted(
                answers_of(response, Question(name, Type.SRV, Class.IN)),
                key=lambda rdata: (rdata[:2], -int.from_bytes(rdata[2:4], "big"), rdata),
            )
            for rdata in found[:_MAX_QUEUE]:
                port, target = int.from_bytes(rdata[4:6], "big"), rdata[6:]
                if port == 0 or target == b"\0":
                    continue
                addresses = _addresses(response, response.additional, target)
                if not addresses:
                    reply = await self.query(Question(target, Type.A, Class.IN))
                    addresses = _addresses(reply, reply.answers, target)
                if not addresses:
                    reply = await self.query(Question(target, Type.AAAA, Class.IN))
                    addresses = _addresses(reply, reply.answers, target)
                if addresses:
                    return Service(target, addresses, port)
        except DecodeError as error:
            raise ResolveError(str(error)) from error
        return None

    async def _over_udp(self, wire: bytes, question: Question, key: Key | None, mac: bytes) -> Message:
        loop = asyncio.get_running_loop()
        transport, datagrams = await loop.create_datagram_endpoint(
            _Datagrams, local_addr=self._source, remote_addr=self._server
        )
        try:
            for wait in UDP_WAITS:
                transport.sendto(wire)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        while True:
                            response = _accept(await datagrams.received.get(), wire, question, key, mac)
                            if response is not None:
                                return response
        finally:
            transport.abort()
        raise TimeoutError("timed out")

    async def _over_tcp(self, wire: bytes, question: Question, key: Key | None, mac: bytes) -> Message:
        async with asyncio.timeout(TCP_WAIT):
            reader, writer = await asyncio.open_connection(*self._server, local_addr=self._source)
            stream = FramedStream(reader, writer)
            try:
                stream.send(wire)
                response = _accept(await stream.receive(), wire, question, key, mac)
            finally:
                stream.abort()
        if response is None:
            raise OSError("an answer to something else over TCP")
        return response


def _accept(octets: bytes, request: bytes, question: Question, key: Key | None, mac: bytes) -> Message | None:
    """The message if it answers the request and is signed as asked; None for what is not ours."""
    try:
        message = decode(octets)
        if message.wire[:2] != request[:2] or not message.header.is_response:
            return None
        if [(fold(item.name), item.rtype, item.rclass) for item in message.questions] != [
            (fold(question.name), question.rtype, question.rclass)
        ]:
            return None
        if key is not None and not is_signed_by(message, key, mac, clock.unix_seconds()):
            return None
    except DecodeError:
        return None
    return message


def is_signed_by(message: Message, key: Key, request_mac: bytes, unix: int) -> bool:
    """Whether a response carries a good TSIG of `key` over this request; `DecodeError` for a malformed one."""
    if message.tsig is None:
        return False
    tsig = decode_tsig(message.tsig, message.wire)
    if tsig.key_name != key.name:
        return False
    return verify(message, tsig, key, now=unix, request_mac=request_mac).error == TsigError.NOERROR


def _addresses(message: Message, records: tuple[Record, ...], owner: bytes) -> tuple[IPv4Address | IPv6Address, ...]:
    found = [
        ip_address(record.rdata(message.wire))
        for record in records
        if record.rtype in (Type.A, Type.AAAA) and record.rclass == Class.IN and fold(record.name) == fold(owner)
    ]
    return tuple(sorted(found, key=lambda address: address.version))
