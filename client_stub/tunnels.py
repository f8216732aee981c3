"""The tunnel table: Figure 3 of RFC 6281 as a pure reducer from watched RRsets to rows.

    PTR browse -> peers' host names -> AAAA (inner address) -> SRV (port, target) -> A of the target (outer address)

Each step's answer names the next question, watched as long as the step before it stands. A peer that moves keeps its
inner address, so AAAA alone would tell nothing: SRV and A stay watched too. Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeVar

from client_stub.identity import HostNames, host_of_service, service_name
from protocol.constants import Class, Type
from protocol.message import Question
from protocol.name import fold, is_at_or_below

MAX_PEERS: Final = 256
_Address = TypeVar("_Address", IPv4Address, IPv6Address)


class TunnelState(Enum):
    RESOLVING = "resolving"
    UP = "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """One row. `outer_address` and `outer_port` are None and 0 until SRV and A are known."""

    peer: bytes
    inner: IPv6Address
    outer_address: IPv4Address | None
    outer_port: int
    state: TunnelState
    since: float


@dataclass(frozen=True, slots=True)
class Watch:
    question: Question


@dataclass(frozen=True, slots=True)
class Unwatch:
    question: Question


@dataclass(frozen=True, slots=True)
class TunnelChanged:
    """A row is new or another one; `tunnel` is None when it is gone."""

    peer: bytes
    tunnel: Tunnel | None


Effect = Watch | Unwatch | TunnelChanged


@dataclass(slots=True)
class _Peer:
    host: bytes
    is_configured: bool
    inner: IPv6Address | None = None
    port: int = 0
    target: bytes | None = None
    outer: IPv4Address | None = None
    questions: dict[int, Question] = field(default_factory=dict)


class TunnelTable:
    """All tunnels of one machine. Feed it every changed view; do what the effects say."""

    def __init__(self, names: HostNames, own_inner: IPv6Address) -> None:
        self._names = names
        self._own_inner = own_inner
        self._peers: dict[bytes, _Peer] = {}
        self._rows: dict[bytes, Tunnel] = {}
        self._effects: list[Effect] = []
        self.local_outer: tuple[IPv4Address, int] | None = None
        """The outer end on our side, as every established tunnel has it (RFC 6281 §5.1 step 4)."""

    def start(self, hosts: tuple[bytes, ...]) -> None:
        """Watch the member's list of hosts, and these hosts in any case."""
        self._effects.append(Watch(self.browse_question))
        for host in hosts:
            self._add_peer(host, is_configured=True)

    @property
    def browse_question(self) -> Question:
        return Question(self._names.browse, Type.PTR, Class.IN)

    def rows(self) -> tuple[Tunnel, ...]:
        return tuple(self._rows[key] for key in sorted(self._rows))

    def move_local(self, inner: IPv6Address, outer: tuple[IPv4Address, int] | None) -> int:
        """Put the current local addresses into all tunnels: the number of established tunnels that changed."""
        if (inner, outer) == (self._own_inner, self.local_outer):
            return 0
        self._own_inner, self.local_outer = inner, outer
        return sum(row.state is TunnelState.UP for row in self._rows.values())

    def update(self, question: Question, rdatas: tuple[bytes, ...], *, now: float) -> None:
        """Take the whole RRset that now answers a watched question."""
        if fold(question.name) == fold(self._names.browse) and question.rtype == Type.PTR:
            self._update_peers(rdatas)
            return
        for peer in list(self._peers.values()):
            watched = peer.questions.get(question.rtype)
            if watched is not None and fold(watched.name) == fold(question.name):
                self._update_peer(peer, question.rtype, rdatas, now)

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # Who the peers are

    def _update_peers(self, rdatas: tuple[bytes, ...]) -> None:
        listed: dict[bytes, bytes] = {}
        domain = fold(self._names.domain)
        for rdata in rdatas:
            host = host_of_service(rdata)
            if host is not None and is_at_or_below(fold(host), domain):
                listed[fold(host)] = host
        for key, peer in list(self._peers.items()):
            if key not in listed and not peer.is_configured:
                self._drop_from(peer, Type.AAAA)
                del self._peers[key]
        for host in listed.values():
            self._add_peer(host, is_configured=False)

    def _add_peer(self, host: bytes, *, is_configured: bool) -> None:
        key = fold(host)
        if key == fold(self._names.host) or key in self._peers or len(self._peers) >= MAX_PEERS:
            return
        peer = self._peers[key] = _Peer(host, is_configured)
        self._watch(peer, Question(host, Type.AAAA, Class.IN))

    # Figure 3

    def _update_peer(self, peer: _Peer, rtype: int, rdatas: tuple[bytes, ...], now: float) -> None:
        if rtype == Type.AAAA:
            addresses = [IPv6Address(rdata) for rdata in rdatas]
            peer.inner = _choose(peer.inner, addresses)
            if peer.inner is None or peer.inner == self._own_inner:  # a tunnel to ourselves is none
                peer.inner = None
                self._drop_from(peer, Type.SRV)
            else:
                self._watch(peer, Question(service_name(peer.host), Type.SRV, Class.IN))
        elif rtype == Type.SRV:
            self._update_service(peer, rdatas)
        else:
            peer.outer = _choose(peer.outer, [IPv4Address(rdata) for rdata in rdatas])
        self._settle(peer, now)

    def _update_service(self, peer: _Peer, rdatas: tuple[bytes, ...]) -> None:
        if not rdatas:
            peer.port, peer.target = 0, None
            self._drop_from(peer, Type.A)
            return
        best = min(rdatas, key=lambda rdata: (rdata[:2], rdata))
        peer.port, peer.target = int.from_bytes(best[4:6], "big"), best[6:]
        watched = peer.questions.get(Type.A)
        if watched is None or fold(watched.name) != fold(peer.target):
            self._drop_from(peer, Type.A)
            self._watch(peer, Question(peer.target, Type.A, Class.IN))

    def _settle(self, peer: _Peer, now: float) -> None:
        """Bring the row in line with what is known of the peer."""
        key = fold(peer.host)
        before = self._rows.get(key)
        if peer.inner is None:
            self._remove_row(key)
            return
        is_up = peer.outer is not None and peer.port > 0
        row = Tunnel(
            peer=peer.host,
            inner=peer.inner,
            outer_address=peer.outer,
            outer_port=peer.port,
            state=TunnelState.UP if is_up else TunnelState.RESOLVING,
            since=now,
        )
        if before is None or replace(row, since=before.since) != before:
            self._rows[key] = row
            self._effects.append(TunnelChanged(peer.host, row))

    def _remove_row(self, key: bytes) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._effects.append(TunnelChanged(row.peer, None))

    def _watch(self, peer: _Peer, question: Question) -> None:
        if question.rtype not in peer.questions:
            peer.questions[question.rtype] = question
            self._effects.append(Watch(question))

    def _drop_from(self, peer: _Peer, step: int) -> None:
        """Stop watching from this step of the chain on and forget what it told."""
        chain = (Type.AAAA, Type.SRV, Type.A)
        for rtype in chain[chain.index(Type(step)) :]:
            question = peer.questions.pop(rtype, None)
            if question is not None:
                self._effects.append(Unwatch(question))
        peer.outer = None
        if step != Type.A:
            peer.port, peer.target = 0, None
        if step == Type.AAAA:
            peer.inner = None
            self._remove_row(fold(peer.host))


def _choose(current: _Address | None, addresses: list[_Address]) -> _Address | None:
    """The address in use while it is still there, else the lowest."""
    return current if current in addresses else min(addresses, default=None)
