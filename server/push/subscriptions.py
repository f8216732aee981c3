"""What the LLQ machine remembers: subscriptions, the questions they watch, and the indexes over both. Pure."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from protocol.constants import Class, Type
from protocol.message import Question
from protocol.name import fold
from server.peer import Peer
from server.push.events import NOTHING, Item, Items, Plan, event_id
from server.zone.model import RR

AT_RISK_SECONDS: Final = 30.0  # events older than this on a stream that still lived are taken as received


class State(Enum):
    """Of one subscription. ABSENT costs no memory: a challenge is under way at most."""

    ABSENT = "absent"
    SETTLED = "settled"
    DUE = "due"
    UNACKED = "unacked"
    GONE = "gone"

    __hash__ = object.__hash__  # by identity: Enum's own is a Python call, and every step looks states up


@dataclass(slots=True, eq=False)
class Topic:
    """A question someone watches, and what the zone last said to it."""

    owner: bytes  # folded
    rtype: int
    subscriptions: dict["Subscription", None] = field(default_factory=dict)  # a set that keeps order
    items: Items = NOTHING
    ttls: dict[Item, int] = field(default_factory=dict)
    is_stale: bool = True
    window_opened_at: float | None = None
    last_change_at: float = 0.0
    plans: dict[tuple[bytes, Items, Items, int], Plan] = field(default_factory=dict)
    saved: tuple[Items, Items] | None = None
    """What the store says its watchers hold for sure, and may hold; None when it must be told."""
    is_stored: bool = False

    @property
    def question(self) -> Question:
        return Question(self.owner, self.rtype, Class.IN)

    def spelling(self, name: bytes) -> bytes:
        """Its name in a client's case: of most clients the same object."""
        return self.owner if name == self.owner else name

    def own(self, records: list[RR]) -> list[RR]:
        """The records that stand at this very name and are of this type, or the alias in their place."""
        return [rr for rr in records if rr.rtype in (self.rtype, Type.CNAME) and fold(rr.owner) == self.owner]

    def renew(self, records: list[RR]) -> None:
        """Take what the zone says now. The same content keeps the same object, so that views compare by identity."""
        ttls = {Item(rr.rtype, rr.rdata): rr.ttl for rr in records}
        items = frozenset(ttls)
        if items != self.items:
            self.items = items
            self.plans.clear()
        self.ttls = ttls
        self.is_stale = False


@dataclass(frozen=True, slots=True, eq=False)
class Outstanding:
    """An event sent over UDP and not yet acknowledged, the same object for all who were sent it at once.

    `signed_at` makes each transmission the same octets. `stamp` is that of the subscription as long as it waits.
    """

    plan: Plan
    stamp: int
    signed_at: int

    def known_up_to(self, sure: Items, maybe: Items) -> "Outstanding":
        """For one of whom less is certain than of the others: what it holds after its ack lies further apart."""
        plan = replace(self.plan, sure=self.plan.sure & sure, maybe=self.plan.maybe | maybe)
        return replace(self, plan=plan)


@dataclass(frozen=True, slots=True)
class View:
    """What a client certainly and possibly held before an event on its stream, should that event get lost."""

    until: float
    sure: Items
    maybe: Items


@dataclass(slots=True, eq=False)
class Subscription:
    """One LLQ. `peer` is where events go now; `name` the owner name in the client's case. Times are monotonic."""

    llq_id: int
    topic: Topic
    name: bytes
    peer: Peer
    network: str
    key_name: bytes | None
    expires_at: float
    event_port: int = 0
    """UDP port for events once the stream is gone; 0 none. Set only for those set up on a stream."""
    is_stream_born: bool = False
    state: State = State.ABSENT
    sure: Items = NOTHING
    maybe: Items = NOTHING
    outstanding: Outstanding | None = None
    stamp: int = 0
    """Of its last event, from which the message ID was made; 0 before the first of all."""
    recent_views: tuple[View, ...] = ()
    alarm_at: float = 0.0
    """The heap entry that watches the lease."""
    is_saved: bool = False
    """Whether the store may have a row of it."""
    inherited: View | None = None
    """What its client held when this process took it over, for as long as events of the former one may be under way."""

    def awaits(self, event: Outstanding) -> bool:
        """Whether it has not acknowledged this event: each has another stamp."""
        return self.outstanding is not None and self.stamp == event.stamp

    @property
    def is_on_stream(self) -> bool:
        return self.peer.transport != "udp"

    @property
    def is_lasting(self) -> bool:
        """Whether it outlives this process: on a stream only if the client told where events go after it."""
        return not self.is_on_stream or self.event_port != 0

    @property
    def is_current(self) -> bool:
        """Whether the client certainly holds what the topic was last seen to say."""
        items = self.topic.items
        return not self.topic.is_stale and self.sure is items and self.maybe is items


Identity = tuple[str | int, int, Topic, bytes | None]


def identity(peer: Peer, topic: Topic, key_name: bytes | None) -> Identity:
    """Who asks what: a client may hold each question once. On a stream the client is the connection."""
    if peer.transport == "udp":
        return peer.address, peer.port, topic, key_name
    return peer.via, -1, topic, key_name


def network_of(address: str) -> str:
    """What the limit per address counts: an IPv4 address, or the /64 an IPv6 host chooses its own from."""
    if ":" not in address:
        return address
    packed = ipaddress.IPv6Address(address.partition("%")[0])
    if packed.ipv4_mapped is not None:
        return str(packed.ipv4_mapped)
    return packed.exploded[:19]


class Register:
    """Every live subscription, by each thing it is looked up by."""

    def __init__(self) -> None:
        self._topics: dict[bytes, dict[int, Topic]] = {}
        self._by_id: dict[int, tuple[Subscription, ...]] = {}  # nearly always one: numbers differ by question at least
        self._count = 0
        self._by_identity: dict[Identity, Subscription] = {}
        self._by_stream: dict[int, dict[Subscription, None]] = {}
        self._per_network: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Subscription]:
        return iter([held for same in self._by_id.values() for held in same])

    def topic(self, owner: bytes, rtype: int) -> Topic | None:
        """The topic of a folded owner name and type, if watched."""
        return self._topics.get(owner, {}).get(rtype)

    def topics_at(self, owner: bytes) -> dict[int, Topic]:
        """Topics by type at a folded owner name."""
        return self._topics.get(owner, {})

    def find(self, llq_id: int, question: Question) -> Subscription | None:
        topic = self.topic(fold(question.name), question.rtype)
        if topic is None or question.rclass != Class.IN:
            return None
        return next((held for held in self._by_id.get(llq_id, ()) if held.topic is topic), None)

    def of(self, peer: Peer, question: Question, key_name: bytes | None) -> Subscription | None:
        """The subscription this client already holds for this question."""
        topic = self.topic(fold(question.name), question.rtype)
        return None if topic is None else self._by_identity.get(identity(peer, topic, key_name))

    def has_stream(self, via: int) -> bool:
        return via in self._by_stream

    def on_stream(self, via: int) -> list[Subscription]:
        return list(self._by_stream.get(via, ()))

    def count_of_network(self, network: str) -> int:
        return self._per_network.get(network, 0)

    def topic_for(self, question: Question) -> Topic:
        """The topic of a question, made if nobody watched it; it lives on only once a subscription is added."""
        owner = fold(question.name)
        return self.topic(owner, question.rtype) or Topic(owner, question.rtype)

    def add(self, subscription: Subscription) -> None:
        topic = subscription.topic
        self._topics.setdefault(topic.owner, {})[topic.rtype] = topic
        topic.subscriptions[subscription] = None
        self._by_id[subscription.llq_id] = (*self._by_id.get(subscription.llq_id, ()), subscription)
        self._count += 1
        self._per_network[subscription.network] = self.count_of_network(subscription.network) + 1
        self._attach(subscription)

    def remove(self, subscription: Subscription) -> None:
        subscription.outstanding = None
        self._detach(subscription)
        topic = subscription.topic
        others = tuple(held for held in self._by_id[subscription.llq_id] if held is not subscription)
        if others:
            self._by_id[subscription.llq_id] = others
        else:
            del self._by_id[subscription.llq_id]
        self._count -= 1
        del topic.subscriptions[subscription]
        if not topic.subscriptions:
            types = self._topics[topic.owner]
            del types[topic.rtype]
            if not types:
                del self._topics[topic.owner]
        left = self._per_network[subscription.network] - 1
        if left:
            self._per_network[subscription.network] = left
        else:
            del self._per_network[subscription.network]

    def move(self, subscription: Subscription, peer: Peer) -> None:
        """Let events go to `peer` from now on; nothing may be outstanding and its place there must be free."""
        self._detach(subscription)
        subscription.peer = peer
        self._attach(subscription)

    def awaiting(self, message_id: int, llq_id: int, peer: Peer) -> Subscription | None:
        """The one whose event of this message ID, sent to `peer`, is not acknowledged yet."""
        for held in self._by_id.get(llq_id, ()):
            event = held.outstanding
            if event is None or held.peer[1:3] != peer[1:3]:
                continue
            if event_id(event.stamp, llq_id) == message_id:
                return held
        return None

    def _attach(self, subscription: Subscription) -> None:
        peer = subscription.peer
        self._by_identity[identity(peer, subscription.topic, subscription.key_name)] = subscription
        if subscription.is_on_stream:
            self._by_stream.setdefault(peer.via, {})[subscription] = None

    def _detach(self, subscription: Subscription) -> None:
        peer = subscription.peer
        del self._by_identity[identity(peer, subscription.topic, subscription.key_name)]
        if subscription.is_on_stream:
            there = self._by_stream[peer.via]
            del there[subscription]
            if not there:
                del self._by_stream[peer.via]
