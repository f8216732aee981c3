"""Garbage collection that does not stop a server: no pass looks at more than a bounded number of objects.

Python's cyclic collector visits every container there is, tens of milliseconds with a large zone or many
subscriptions. What outlives a full pass is frozen here, so that the next one visits only what came since. Reference
counting still frees nearly everything at once; a cycle that was frozen and then dropped is found again by `look_again`.
"""

import gc
from typing import Any, Final

THRESHOLDS: Final = (5_000, 5, 2)  # containers made, then passes over the young: a full pass visits some 50,000
FULL: Final = 2
LOOK_AGAIN_SECONDS: Final = 24 * 3600.0
MOST_LOOKED_AT_AGAIN: Final = 200_000  # frozen objects, most of them Python's own modules: some 20 ms once a day


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
    if phase == "stop" and details["generation"] == FULL:
        gc.freeze()


def look_again() -> None:
    """Let the next full pass visit all, unless so many live that it would be felt."""
    if gc.get_freeze_count() <= MOST_LOOKED_AT_AGAIN:
        gc.unfreeze()
