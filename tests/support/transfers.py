"""A server core that transfers zones, without sockets: streams are lists that a test may hold up."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.xfr
import dns.zone

from protocol.constants import Opcode, Type
from protocol.message import Question, encode
from protocol.name import fold
from protocol.tsig import Key
from server.config import TransferSettings
from server.dispatch import Dispatcher
from server.peer import Peer
from server.system import SystemEntropy
from server.transfer.notify import Notifier
from server.transfer.service import TransferService
from server.zone.zone import Zone
from tests.support.builders import TCP, ZONE, Core, Seen, name, seen, soa_rdata

Rows = frozenset[tuple[bytes, int, int, bytes]]
"""Folded owner, type, TTL, rdata."""


@dataclass
class FakeStreams:
    """Keeps what was sent by stream, and which streams were dropped."""

    sent: dict[int, list[bytes]] = field(default_factory=dict)
    aborted: list[int] = field(default_factory=list)
    tls_facts: tuple[str, str] = ("TLSv1.3", "dot")

    def send(self, peer: Peer, wire: bytes) -> bool:
        self.sent.setdefault(peer.via, []).append(wire)
        return True

    def abort(self, peer: Peer) -> None:
        self.aborted.append(peer.via)

    def tls(self, peer: Peer) -> tuple[str, str] | None:
        return self.tls_facts if peer.transport == "tls" else None


class TransferCore(Core):
    """`Core` with a transfer service. Everything that is sent to a peer stands in `streams.sent`, in order."""

    def __init__(self, zones: Sequence[Zone] | None = None, transfer: dict[str, Any] | None = None) -> None:
        super().__init__(zones)
        self.streams = FakeStreams()
        self.notified: list[tuple[Peer, bytes]] = []
        rules = TransferSettings.model_validate(transfer or {})
        self.transfers = TransferService(
            rules,
            zones=self.zones,
            store=self.store,  # type: ignore[arg-type]  # the part of a store that transfers use
            clock=self.clock,
            metrics=self.metrics,
            notifier=Notifier(
                rules,
                zones=self.zones,
                keyring=self.keyring,
                clock=self.clock,
                entropy=SystemEntropy(),
                send=lambda peer, wire: self.notified.append((peer, wire)),
                listener_for=lambda host: 0,
            ),
            streams=lambda: self.streams,
        )
        self.dispatcher = Dispatcher(
            zones=self.zones,
            keyring=self.keyring,
            writer=self.writer,
            push=self.push,  # type: ignore[arg-type]  # a stand-in
            clock=self.clock,
            metrics=self.metrics,
            allow_md5=False,
            transfers=self.transfers,
        )

    def begin(self, wire: bytes, peer: Peer = TCP) -> None:
        """Send a request; what comes of it is sent while the loop runs."""
        self.dispatcher.handle(wire, peer, lambda reply: bool(self.streams.send(peer, reply)) and None)

    async def fetch(self, wire: bytes, peer: Peer = TCP) -> list[Seen]:
        """Every message that answers a request."""
        before = len(self.streams.sent.get(peer.via, []))
        self.begin(wire, peer)
        await self.settle()
        return [seen(wire) for wire in self.streams.sent.get(peer.via, [])[before:]]

    async def settle(self) -> None:
        """Until every transfer has ended or waits for its peer."""
        for _ in range(2000):
            await asyncio.sleep(0)


ID: Final = 0x2345


def axfr(zone: str = ZONE, **more: Any) -> bytes:
    return _request(zone, Type.AXFR, None, **more)


def ixfr(serial: int | None, zone: str = ZONE, **more: Any) -> bytes:
    """An IXFR request; serial None leaves Authority empty."""
    return _request(zone, Type.IXFR, serial, **more)


def _request(zone: str, rtype: int, serial: int | None, *, id: int = ID, rclass: int = 1, **more: Any) -> bytes:
    soa = [] if serial is None else [(name(zone), Type.SOA, 1, 0, soa_rdata(serial))]
    return encode(id, Opcode.QUERY << 11, [Question(name(zone), rtype, rclass)], (), soa, **more)


def records(messages: Sequence[Seen]) -> list[tuple[bytes, int, int, bytes]]:
    """The answer records of all messages in order; names folded."""
    return [
        (fold(record.name), record.rtype, record.ttl, record.rdata(item.wire))
        for item in messages
        for record in item.message.answers
    ]


def rows(zone: Zone, now: int = 0) -> Rows:
    """What a zone holds, SOA included."""
    return frozenset((fold(rr.owner), rr.rtype, rr.ttl, rr.rdata) for rr in zone.records(now))


def client(zone: str, key: Key | None = None) -> tuple[dns.zone.Zone, Any]:
    """An empty zone of dnspython's and a keyring for it."""
    held = dns.zone.Zone(dns.name.from_text(zone), relativize=False)
    if key is None:
        return held, None
    return held, dns.tsig.Key(dns.name.from_wire(key.name, 0)[0], key.secret, key.algorithm.text)


def parsed(messages: Sequence[Seen]) -> list[dns.message.Message]:
    """Unsigned messages as dnspython reads them."""
    return [dns.message.from_wire(item.wire, xfr=True) for item in messages]


def take(
    held: dns.zone.Zone,
    messages: Sequence[dns.message.Message],
    rtype: str,
    serial: int | None,
    *,
    is_udp: bool = False,
) -> bool:
    """Give an answer to dnspython's transfer client; whether it ended there. Its exceptions mean it is not content."""
    kind = dns.rdatatype.from_text(rtype)
    with dns.xfr.Inbound(held, kind, serial, is_udp) as inbound:
        done = False
        for item in messages:
            assert not done, "messages after the end"
            done = inbound.process_message(item)
        return done


def held_rows(held: dns.zone.Zone) -> Rows:
    """What dnspython holds."""
    return frozenset(
        (fold(owner.to_wire() or b""), int(rdata.rdtype), ttl, rdata.to_wire() or b"")
        for owner, ttl, rdata in held.iterate_rdatas()
    )
