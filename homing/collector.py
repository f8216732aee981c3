"""Garbage collection that does not stop a server: no pass looks at more than a bounded number of objects.

Python's cyclic collector visits every container there is, tens of milliseconds with a large zone or many
subscriptions. What outlives a full pass is frozen here, so that the next one visits only what came since, and so is
what outlives one that took long. Reference counting still frees nearly everything at once; a cycle that was frozen and
then dropped is found again by `look_again`.

When passes begin, Python decides by containers made less containers freed. Where new ones take the place of old ones,
as in a full cache, none would begin until very many are new; and a full pass waits until a quarter of all is new.
`tick` sees to it that they are looked at in time.
"""

import gc
import time
from typing import Any, Final

THRESHOLDS: Final = (2_000, 4, 2)  # containers made, then passes over the young: one over the middle visits some 10,000
MIDDLE: Final = 1
FULL: Final = 2
FULL_AFTER: Final = 2  # passes over the middle, whose survivors a full pass visits
LONG_SECONDS: Final = 0.002
TICK_SECONDS: Final = 0.2
LOOK_AGAIN_SECONDS: Final = 24 * 3600.0
MOST_LOOKED_AT_AGAIN: Final = 200_000  # frozen objects, most of them Python's own modules: some 20 ms once a day

_begun = 0.0
_middle_passes = 0


def pause() -> None:
    """While a program starts, nothing it makes is garbage."""
    gc.disable()


def settle() -> None:
    """What is there when a program answers stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    if _freeze_survivors not in gc.callbacks:
        gc.callbacks.append(_freeze_survivors)
    gc.enable()


def _freeze_survivors(phase: str, details: dict[str, Any]) -> None:
    global _begun, _middle_passes
    if phase == "start":
        _begun = time.perf_counter()
        return
    _middle_passes += details["generation"] == MIDDLE
    is_long = time.perf_counter() - _begun > LONG_SECONDS
    if details["generation"] == FULL or is_long or _middle_passes > 2 * FULL_AFTER:
        gc.freeze()
        _middle_passes = 0


def tick() -> None:
    """Look at the youngest, a few times a second, and at all that is not frozen once that has grown."""
    gc.collect(FULL if _middle_passes >= FULL_AFTER else 0)


def look_again() -> None:
    """Let the next full pass visit all, unless so many live that it would be felt."""
    if gc.get_freeze_count() <= MOST_LOOKED_AT_AGAIN:
        gc.unfreeze()
