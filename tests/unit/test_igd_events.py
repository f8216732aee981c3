"""Subscriptions: who may have one, what they are told, when they end."""

from __future__ import annotations

import pytest

from gateway.igd.events import (
    FAILURE_LIMIT,
    PER_HOST,
    SUBSCRIPTION_LIMIT,
    Callback,
    RefusedError,
    Subscription,
    Subscriptions,
    read_callback,
)

A, B, ROUTER = "192.168.1.10", "192.168.1.11", "192.168.1.1"
PATH = "WANIPConn1"


def subscribe(subscriptions: Subscriptions, host: str = A, sid: str = "uuid:1", now: float = 0.0) -> Subscription:
    headers = {"nt": "upnp:event", "callback": f"<http://{host}:5000/events>", "timeout": "Second-600"}
    subscription, seconds = subscriptions.subscribe(PATH, headers, host, local=ROUTER, sid=sid, now=now)
    assert seconds == 600
    return subscription


@pytest.mark.parametrize(
    "callback",
    [
        "",
        "http://192.168.1.10:5000/",
        "<http://192.168.1.11:5000/>",
        "<http://203.0.113.9/>",
        "<http://evil.example/>",
        "<https://192.168.1.10/>",
        "<http://192.168.1.10:0/>",
        "<http://192.168.1.10:65536/>",
        "<http://192.168.1.10@203.0.113.9/>",
        "<http://192.168.1.10.evil.example/>",
        "<http://3232235786/>",
        "<http://192.168.1.10/\r\nX: y>",
        "<http://192.168.1.10/a b>",
        "<http://192.168.1.010:5000/>",
        "<http://192.168.1.10/" + "x" * 600 + ">",
    ],
)
def test_events_go_to_nobody_but_the_subscriber(callback: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_callback(callback, A)
    assert caught.value.status == 412


def test_callbacks_that_are_taken() -> None:
    assert read_callback("<http://192.168.1.10>", A) == Callback(A, 80, "/")
    assert read_callback(f"<http://203.0.113.9/x><http://{A}:5000/y?z=1>", A) == Callback(A, 5000, "/y?z=1")


def test_what_a_subscriber_is_told() -> None:
    subscriptions = Subscriptions()
    subscription = subscribe(subscriptions)
    first = subscriptions.event(subscription, {"ExternalIPAddress": "203.0.113.7", "Count": "0"})
    assert first is not None
    headers, body = first.request()
    assert ("SEQ", "0") in headers
    assert ("SID", "uuid:1") in headers
    assert b"<e:property><ExternalIPAddress>203.0.113.7</ExternalIPAddress></e:property>" in body
    assert subscriptions.idle(now=1.0) == []
    subscriptions.delivered(first, ok=True)
    assert subscriptions.idle(now=1.0) == [subscription]
    assert subscriptions.event(subscription, {"ExternalIPAddress": "203.0.113.7", "Count": "0"}) is None
    second = subscriptions.event(subscription, {"ExternalIPAddress": "203.0.113.7", "Count": "1"})
    assert second is not None
    assert (second.sequence, second.values) == (1, {"Count": "1"})


def test_the_number_after_the_highest_is_1() -> None:
    subscriptions = Subscriptions()
    subscription = subscribe(subscriptions)
    subscription.sequence = 0xFFFFFFFF
    assert subscriptions.event(subscription, {"a": "1"}) is not None
    assert subscription.sequence == 1


def test_a_subscription_is_renewed_by_its_host_only_and_ends() -> None:
    subscriptions = Subscriptions()
    subscribe(subscriptions)
    for host, path in ((B, PATH), (A, "L3Forwarding1")):
        with pytest.raises(RefusedError) as caught:
            subscriptions.subscribe(path, {"sid": "uuid:1"}, host, local=ROUTER, sid="uuid:x", now=500.0)
        assert caught.value.status == 412
        with pytest.raises(RefusedError):
            subscriptions.unsubscribe(path, {"sid": "uuid:1"}, host, now=500.0)
    renewed, seconds = subscriptions.subscribe(
        PATH, {"sid": "uuid:1", "timeout": "Second-infinite"}, A, local=ROUTER, sid="uuid:x", now=500.0
    )
    assert (renewed.sid, seconds) == ("uuid:1", 1800)
    assert len(subscriptions.idle(now=2299.0)) == 1
    assert subscriptions.idle(now=2300.0) == []
    with pytest.raises(RefusedError):
        subscriptions.subscribe(PATH, {"sid": "uuid:1"}, A, local=ROUTER, sid="uuid:x", now=2300.0)
    subscribe(subscriptions, now=2300.0)
    subscriptions.unsubscribe(PATH, {"sid": "uuid:1"}, A, now=2301.0)
    assert len(subscriptions) == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sid": "uuid:1", "nt": "upnp:event"}, 400),
        ({"sid": "uuid:1", "callback": f"<http://{A}/>"}, 400),
        ({"callback": f"<http://{A}/>"}, 412),
        ({"callback": f"<http://{A}/>", "nt": "upnp:other"}, 412),
        ({"nt": "upnp:event"}, 412),
    ],
)
def test_refusals(headers: dict[str, str], status: int) -> None:
    subscriptions = Subscriptions()
    subscribe(subscriptions)
    with pytest.raises(RefusedError) as caught:
        subscriptions.subscribe(PATH, headers, A, local=ROUTER, sid="uuid:2", now=1.0)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("asked", "granted"), [("Second-1", 60), ("Second-999999999", 1800), ("second-300", 300), ("x", 1800)]
)
def test_times(asked: str, granted: int) -> None:
    headers = {"nt": "upnp:event", "callback": f"<http://{A}/>", "timeout": asked}
    assert Subscriptions().subscribe(PATH, headers, A, local=ROUTER, sid="uuid:1", now=0.0)[1] == granted


def test_bounds() -> None:
    subscriptions = Subscriptions()
    for number in range(PER_HOST):
        subscribe(subscriptions, sid=f"uuid:{number}")
    with pytest.raises(RefusedError) as caught:
        subscribe(subscriptions, sid="uuid:more")
    assert caught.value.status == 503
    for number in range(SUBSCRIPTION_LIMIT - PER_HOST):
        subscribe(subscriptions, host=f"192.168.2.{number + 1}", sid=f"uuid:other{number}")
    with pytest.raises(RefusedError):
        subscribe(subscriptions, host="192.168.3.1", sid="uuid:more")
    assert len(subscriptions) == SUBSCRIPTION_LIMIT


def test_who_cannot_be_reached_is_given_up() -> None:
    subscriptions = Subscriptions()
    subscription = subscribe(subscriptions)
    for number in range(FAILURE_LIMIT):
        assert len(subscriptions) == 1
        event = subscriptions.event(subscription, {"n": str(number)})
        assert event is not None
        subscriptions.delivered(event, ok=False)
    assert len(subscriptions) == 0
