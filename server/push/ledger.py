"""What the store does not know yet of the subscriptions, and the rows that tell it. Pure.

A subscription has a row of its own: who, where, until when. What clients hold stands per topic as two bounds, for most
watchers of a question hold the same: so a change that reaches all of them is one row, not one each. After a restart
every watcher of a topic is taken to stand between its bounds, widened by what the journal has since; the events that
follow are right for each of them (see `events.py`), at worst they tell one again what it knows.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple

from server.push.events import Items
from server.push.subscriptions import AT_RISK_SECONDS, State, Subscription, Topic
from server.store.api import SubscriptionChanges, SubscriptionKey, SubscriptionRow, TopicRow
from server.store.packing import pack_items


class Bounds(NamedTuple):
    """What each watcher of a topic holds for `sure`, and what one `maybe` holds; settled when nothing is under way."""

    sure: Items
    maybe: Items
    is_settled: bool


def topic_bounds(topic: Topic, now: float) -> Bounds:
    """Of a topic that is not stale."""
    items = topic.items
    sure = maybe = items
    is_settled = topic.window_opened_at is None
    for subscription in topic.subscriptions:
        if subscription.sure is items and subscription.maybe is items and not subscription.recent_views:
            is_settled &= subscription.state is State.SETTLED
            continue
        if not subscription.is_lasting:
            continue
        sure &= subscription.sure
        maybe |= subscription.maybe
        is_settled &= subscription.is_current
        if subscription.outstanding is not None:
            sure &= subscription.outstanding.plan.sure
            maybe |= subscription.outstanding.plan.maybe
        for view in subscription.recent_views:
            if now - view.until <= AT_RISK_SECONDS:
                sure, maybe, is_settled = sure & view.sure, maybe | view.maybe, False
    return Bounds(sure, maybe, is_settled)


class Ledger:
    """Notes what changed since it was last taken. With `is_kept` false it notes nothing."""

    def __init__(self, *, is_kept: bool = True) -> None:
        self._is_kept = is_kept
        self._changed: dict[Subscription, None] = {}
        self._ended: dict[SubscriptionKey, None] = {}
        self._topics: dict[Topic, None] = {}

    def __len__(self) -> int:
        """Rows to write, at most."""
        return len(self._changed) + len(self._ended) + len(self._topics)

    def changed(self, subscription: Subscription) -> None:
        """It is new, moved, or has another lease."""
        if self._is_kept and subscription.is_lasting:
            self._changed[subscription] = None

    def ended(self, subscription: Subscription) -> None:
        self._changed.pop(subscription, None)
        if subscription.is_saved:
            self._ended[key_of(subscription)] = None
        self.touched(subscription.topic)

    def touched(self, topic: Topic) -> None:
        """What its watchers hold moves, or who watches it."""
        if self._is_kept and (topic.is_stored or topic.subscriptions):
            self._topics[topic] = None

    def take(
        self,
        bounds_of: Callable[[Topic], Bounds],
        row_of: Callable[[Subscription], SubscriptionRow],
        topic_at: Callable[[bytes, int], Topic | None],
        most: int,
    ) -> Generator["Page"]:
        """All that is noted now, in pages of at most `most` rows, each made when it is asked for.

        What is noted meanwhile is for the next time, and so are topics that are not settled. A page that could not be
        written goes to `put_back`; what follows it is kept when the iterator is closed.
        """
        topics, self._topics = self._topics, {}
        ended, self._ended = self._ended, {}
        changed, self._changed = self._changed, {}
        try:
            while topics:
                page = Page(SubscriptionChanges(), [], [])
                for _ in range(min(most, len(topics))):
                    self._add_topic(page, topics.popitem()[0], bounds_of, topic_at)
                yield page
            while ended or changed:
                gone = [ended.popitem()[0] for _ in range(min(most, len(ended)))]
                page = Page(SubscriptionChanges(ended=gone), [], [])
                for _ in range(min(most - len(gone), len(changed))):
                    subscription, _ = changed.popitem()
                    subscription.is_saved = True
                    page.subscriptions.append(subscription)
                    page.changes.rows.append(row_of(subscription))
                yield page
        finally:
            self._topics = {**topics, **self._topics}
            self._ended = {**ended, **self._ended}
            self._changed = {**changed, **self._changed}

    def _add_topic(
        self,
        page: "Page",
        topic: Topic,
        bounds_of: Callable[[Topic], Bounds],
        topic_at: Callable[[bytes, int], Topic | None],
    ) -> None:
        if not any(subscription.is_lasting for subscription in topic.subscriptions):
            successor = topic_at(topic.owner, topic.rtype)
            if successor is not None and successor is not topic:
                successor.is_stored |= topic.is_stored
            elif topic.is_stored:
                page.changes.deserted.append((topic.owner, topic.rtype))
                page.topics.append(topic)
            return
        bounds = bounds_of(topic)
        if not bounds.is_settled:
            self._topics[topic] = None
        if topic.saved != bounds[:2]:
            topic.saved, topic.is_stored = bounds[:2], True
            page.topics.append(topic)
            maybe = None if bounds.maybe == bounds.sure else pack_items(bounds.maybe)
            page.changes.topics.append(TopicRow(topic.owner, topic.rtype, pack_items(bounds.sure), maybe))

    def put_back(self, page: "Page") -> None:
        """Note again what a page had: it was not written."""
        for subscription in page.subscriptions:
            if subscription.state is State.GONE:
                self._ended[key_of(subscription)] = None
            else:
                self._changed[subscription] = None
        self._ended.update(dict.fromkeys(page.changes.ended))
        for topic in page.topics:
            topic.saved = None
            self._topics[topic] = None


class Page(NamedTuple):
    """Rows for one transaction, and whom they are about."""

    changes: SubscriptionChanges
    subscriptions: list[Subscription]
    topics: list[Topic]


def key_of(subscription: Subscription) -> SubscriptionKey:
    return subscription.topic.owner, subscription.topic.rtype, subscription.llq_id
