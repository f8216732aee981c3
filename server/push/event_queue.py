"""When and to whom LLQ events are sent: windows of changes, the turns of subscribers, tries, acknowledgements. Pure.

It is driven by levels, not edges: a change only marks a question; when its window closes the zone is asked what it says
now, and each client is sent the difference to what it holds. Merging and cancelling need no bookkeeping of their own.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from operator import length_hint
from typing import Final

from protocol.constants import MAX_MESSAGE_OCTETS
from protocol.message import Question
from server.push.events import NOTHING, Items, Plan, event_room, make_plan, next_stamp
from server.push.limits import Counters, LlqLimits
from server.push.llq_states import Input, after, step
from server.push.retries import LAST_TRY, Retries
from server.push.sending import SendEvents
from server.push.subscriptions import AT_RISK_SECONDS, Outstanding, Register, State, Subscription, Topic, View
from server.zone.model import RR

_TURN: Final = 64  # of a crowd at a time: what one call of `sendmmsg` takes
_PLANS_KEPT: Final = 64
_VIEWS_KEPT: Final = 31
_TOLD: Final = after(State.SETTLED, Input.CHANGED, Input.SENT)

Lookup = Callable[[Question], list[RR]]
_Views = tuple[Items, Items, bytes, bytes | None, int, int]  # what is alike in those who are sent one event


@dataclass(slots=True, eq=False)
class _Crowd:
    """Those of one question whose window closed, not yet looked at."""

    topic: Topic
    members: Iterator[Subscription]


class EventQueue:
    """What subscribers are still to be told. `end` ends a subscription whose client cannot be reached."""

    def __init__(
        self,
        limits: LlqLimits,
        counters: Counters,
        register: Register,
        *,
        lookup: Lookup,
        end: Callable[[Subscription, Input], None],
    ) -> None:
        self._limits = limits
        self._counters = counters
        self._register = register
        self._lookup = lookup
        self._end = end
        # One entry for each open window; of a topic that nobody watches any more it stays until its time.
        self._windows: list[tuple[float, int, Topic]] = []
        self._ticket = count()
        self._ready: deque[tuple[float, Subscription | _Crowd]] = deque()
        self._parked: dict[int, list[Subscription]] = {}
        self._retries = Retries()
        self._effects: list[SendEvents] = []

    def moments(self) -> list[float]:
        """The earliest of them is when something is due."""
        queues = (self._windows, self._ready)
        return [entries[0][0] for entries in queues if entries] + self._retries.moments()

    def take_effects(self) -> list[SendEvents]:
        effects, self._effects = self._effects, []
        return effects

    # What happens

    def touch(self, topic: Topic, now: float) -> None:
        """What the zone says to this question changed: open or prolong its window."""
        topic.is_stale = True
        topic.last_change_at = now
        if topic.window_opened_at is None:
            topic.window_opened_at = now
            heapq.heappush(self._windows, (self._window_end(topic), next(self._ticket), topic))

    def review(self, subscription: Subscription, now: float) -> None:
        """What its client holds is known better or worse than before: tell it, unless a window is open anyway."""
        if subscription.topic.window_opened_at is None and not subscription.is_current:
            self.make_due(subscription, now)

    def make_due(self, subscription: Subscription, now: float) -> None:
        """Only a settled one: what awaits an ack is looked at again when that comes."""
        if subscription.state is State.SETTLED:
            step(subscription, Input.CHANGED)
            self._ready.append((now, subscription))

    def acked(self, subscription: Subscription, now: float) -> None:
        event = subscription.outstanding
        assert event is not None
        subscription.outstanding = None
        subscription.sure, subscription.maybe = event.plan.sure, event.plan.maybe
        step(subscription, Input.ACKED)
        self._counters.acks += 1
        self.review(subscription, now)

    def renew(self, topic: Topic) -> None:
        if topic.is_stale:
            topic.renew(topic.own(self._lookup(topic.question)))

    def moved(self, subscription: Subscription, now: float) -> None:
        """It left its stream: what waited for that goes on."""
        if subscription.state is State.DUE:
            self._ready.append((now, subscription))
        else:
            self.review(subscription, now)

    def pause(self, via: int) -> None:
        """A stream takes no more for now."""
        self._parked.setdefault(via, [])

    def resume(self, via: int, now: float) -> None:
        for subscription in self._parked.pop(via, ()):
            if subscription.state is State.DUE:
                self._ready.append((now, subscription))

    def forget_stream(self, via: int) -> None:
        self._parked.pop(via, None)

    # Time

    def handle(self, now: float, unix: int, most: int) -> None:
        """Do what is due, at most `most` things."""
        while most > 0 and self._windows and self._windows[0][0] <= now:
            self._window_due(heapq.heappop(self._windows)[2], now)
            most -= 1
        while most > 0 and (due := self._retries.take_due(now, most)) is not None:
            self._retry_due(due.number, due.event, due.members, now)
            most -= len(due.members)
        while most > 0 and self._ready:
            at, who = self._ready.popleft()
            if isinstance(who, Subscription):
                most -= 1
                if who.state is State.DUE:
                    self._flush_safely(who, now, unix)
                continue
            turn = min(most, _TURN, length_hint(who.members))
            most -= turn
            try:
                self._tell(who.topic, islice(who.members, turn), now, unix)
            finally:
                if length_hint(who.members):
                    self._ready.append((at, who))

    def _window_end(self, topic: Topic) -> float:
        assert topic.window_opened_at is not None
        limits = self._limits
        return min(topic.last_change_at + limits.quiet_seconds, topic.window_opened_at + limits.longest_wait_seconds)

    def _window_due(self, topic: Topic, now: float) -> None:
        end = self._window_end(topic)
        if end > now:
            heapq.heappush(self._windows, (end, next(self._ticket), topic))
            return
        topic.window_opened_at = None
        if not topic.subscriptions:
            return
        self.renew(topic)
        if len(topic.subscriptions) > 1:
            self._ready.append((now, _Crowd(topic, iter(list(topic.subscriptions)))))
        else:
            self.review(next(iter(topic.subscriptions)), now)

    def _retry_due(self, number: int, event: Outstanding, members: list[Subscription], now: float) -> None:
        waiting = [held for held in members if held.awaits(event)]
        if not waiting:
            return
        if number == LAST_TRY:
            for held in waiting:
                self._end(held, Input.UNREACHABLE)
            return
        for held in waiting:
            step(held, Input.RETRY)
        self._counters.retransmissions += len(waiting)
        self._transmit(number + 1, event, waiting, now)

    # Sending

    def _tell(self, topic: Topic, members: Iterator[Subscription], now: float, unix: int) -> None:
        """Tell some of a crowd. What `_flush` does for one, done for those together who share an event.

        Whoever is due already has a turn of its own.
        """
        self.renew(topic)
        groups: dict[_Views, tuple[Outstanding, list[Subscription]]] = {}
        stamps: dict[int, int] = {}  # the last of a subscription, and the next
        event: Outstanding | None = None  # of the group that the one before was in, as are these
        together: list[Subscription] = []
        sure, maybe, name, key_name, via = NOTHING, NOTHING, b"", None, 0
        settled, told = State.SETTLED, _TOLD
        try:
            for held in members:
                if held.state is not settled:
                    continue
                stamp = stamps.get(held.stamp)
                if stamp is None:
                    stamp = stamps[held.stamp] = next_stamp(held.stamp, unix)
                peer = held.peer
                if (
                    event is None
                    or stamp != event.stamp
                    or held.sure is not sure
                    or held.maybe is not maybe
                    or held.name != name
                    or held.key_name != key_name
                    or peer.via != via
                    or peer.transport != "udp"
                ):
                    if held.is_current:
                        continue
                    plan = None if held.is_on_stream else self._plan(held)
                    if plan is None or not plan.records:
                        step(held, Input.CHANGED)
                        self._flush_safely(held, now, unix)
                        continue
                    sure, maybe, name, key_name, via = held.sure, held.maybe, held.name, held.key_name, peer.via
                    views = (sure, maybe, name, key_name, via, stamp)
                    group = groups.get(views)
                    if group is None:
                        group = groups[views] = (Outstanding(plan, stamp, unix), [])
                    event, together = group
                held.stamp = stamp
                held.state = told
                held.outstanding = event
                together.append(held)
        finally:
            for event, together in groups.values():
                self._counters.events += len(together)
                self._counters.oversized += event.plan.oversized * len(together)
                self._transmit(0, event, together, now)

    def _flush_safely(self, subscription: Subscription, now: float, unix: int) -> None:
        """A fault of ours (in `lookup`, say) goes up, but leaves the subscription where the next change moves it on."""
        try:
            self._flush(subscription, now, unix)
        except Exception:
            if subscription.state is State.DUE:
                step(subscription, Input.NOTHING_NEW)
            raise

    def _flush(self, subscription: Subscription, now: float, unix: int) -> None:
        """Send the difference between what the client holds and what the zone says, as far as one message goes."""
        via = subscription.peer.via
        if subscription.is_on_stream and via in self._parked:
            self._parked[via].append(subscription)
            return
        self.renew(subscription.topic)
        if subscription.is_current:
            step(subscription, Input.NOTHING_NEW)
            return
        plan = self._plan(subscription)
        self._counters.oversized += plan.oversized
        if not plan.records:
            subscription.sure, subscription.maybe = plan.sure, plan.maybe
            step(subscription, Input.NOTHING_NEW)
            return
        self._counters.events += 1
        subscription.stamp = next_stamp(subscription.stamp, unix)
        event = Outstanding(plan, subscription.stamp, unix)
        if subscription.is_on_stream:
            self.send_on_stream(subscription, event, now)
        else:
            step(subscription, Input.SENT)
            subscription.outstanding = event
            self._transmit(0, event, [subscription], now)

    def _plan(self, subscription: Subscription) -> Plan:
        """What to tell it, made once for all who stand where it does."""
        topic, sure, maybe = subscription.topic, subscription.sure, subscription.maybe
        limit = MAX_MESSAGE_OCTETS if subscription.is_on_stream else self._limits.udp_octets
        room = event_room(limit, subscription.key_name)
        views = (subscription.name, sure, maybe, room)
        plan = topic.plans.get(views)
        if plan is None:
            if len(topic.plans) >= _PLANS_KEPT:
                topic.plans.clear()
            plan = make_plan(subscription.name, topic.rtype, sure, maybe, topic.ttls, topic.items, room)
            topic.plans[views] = plan
        return plan

    def _emit(self, event: Outstanding, members: list[Subscription]) -> None:
        peers, llq_ids = [held.peer for held in members], [held.llq_id for held in members]
        key_name = members[0].key_name
        self._effects.append(SendEvents(event.plan, key_name, event.stamp, event.signed_at, peers, llq_ids))

    def _transmit(self, number: int, event: Outstanding, members: list[Subscription], now: float) -> None:
        """Send it over UDP, `number` tries having been made, and look at it again."""
        self._emit(event, members)
        self._retries.add(number, event, members, now=now, live=len(self._register))

    def send_on_stream(self, subscription: Subscription, event: Outstanding, now: float) -> None:
        """A stream delivers in order or breaks: the event counts as received, but may yet be lost for a while."""
        self._emit(event, [subscription])
        view = View(now, subscription.sure, subscription.maybe)
        recent = [item for item in subscription.recent_views if now - item.until <= AT_RISK_SECONDS]
        subscription.recent_views = (*recent[-_VIEWS_KEPT:], view)
        subscription.sure, subscription.maybe = event.plan.sure, event.plan.maybe
        step(subscription, Input.SENT_ON_STREAM)
        self.review(subscription, now)
