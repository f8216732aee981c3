"""Runs the LLQ machine on asyncio: clocks in, signed events out, one timer."""

from collections.abc import Callable

import structlog

from protocol.name import to_text
from protocol.tsig import Key
from server.push.llq_machine import LlqMachine
from server.push.sending import SendEvents
from server.push.timer import DeadlineTimer
from server.system import Clock
from server.transport.ports import SendAlike

log = structlog.get_logger(__name__)


class PushDriver:
    """Sends what one machine has to send, when it is due; nothing here awaits.

    `send` puts messages on their way at once, one to each peer, all by one transport and `via`; `keys` finds a key by
    its folded name. Whoever calls the machine calls `wake` afterwards. Events leave in slices, one a turn of the event
    loop, so that queries are answered in between. `on_fault` is called when a slice failed through a fault of ours; the
    next one follows all the same.
    """

    def __init__(
        self,
        machine: LlqMachine,
        send: SendAlike,
        clock: Clock,
        keys: Callable[[bytes], Key | None],
        on_fault: Callable[[], None] = lambda: None,
    ) -> None:
        self._machine = machine
        self._send = send
        self._clock = clock
        self._keys = keys
        self._on_fault = on_fault
        self._timer = DeadlineTimer(clock, self._fire)

    def wake(self) -> None:
        """Send what the machine has ready and set the timer for what comes next."""
        for events in self._machine.take_effects():
            self._transmit(events)
        self._timer.arm(self._machine.next_deadline())

    def close(self) -> None:
        """Send no more events."""
        self._timer.close()

    def _transmit(self, events: SendEvents) -> None:
        key = None
        if events.key_name is not None:
            key = self._keys(events.key_name)
            if key is None:
                log.info("key gone, its subscriptions end", key=to_text(events.key_name))
                self._machine.revoke_key(events.key_name)
                return
        self._send(events.peers, events.alike(key))

    def _fire(self) -> None:
        try:
            try:
                self._machine.handle_deadline(now=self._clock.monotonic(), unix=self._clock.unix())
            finally:
                self.wake()  # what was made before a fault leaves too
        except Exception:
            self._on_fault()
            log.exception("fault while sending events")
            self._timer.arm(self._machine.next_deadline())
