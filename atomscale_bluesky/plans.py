"""Plan stubs: what a plan may ask of the callback without blocking its RunEngine."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from .callback import AtomscaleCallback
from .errors import ApiUnavailableError

# How long the plan sleeps between two polls. Meanwhile the RunEngine is free to pause or abort the plan.
POLL_S = 0.2


def wait_until_delivered(
    callback: AtomscaleCallback, timeout_s: float, *, fail: bool = False
) -> Generator[Any, Any, bool]:
    """Sleep, as a plan does, until every stopped run of the callback is finalized in Atomscale.

    Use it between runs, if the next one should start only when the last has arrived:

        delivered = yield from wait_until_delivered(callback, timeout_s=60)

    Of a run that is still open, every full chunk counts.

    Args:
        callback: The callback that is subscribed.
        timeout_s: How long to sleep at most.
        fail: Fail the plan if the runs are not delivered in time.

    Returns:
        True if everything is delivered; False at the time-out, or as soon as waiting cannot help (no key, offline,
        parked, refused).

    Raises:
        ApiUnavailableError: With `fail`, instead of returning False. The text says whether the time ran out or
            waiting cannot help.
    """
    from bluesky.plan_stubs import sleep

    end = time.monotonic() + timeout_s
    question = callback.ask_whether_drained()
    try:
        while question is not None and question.answer is None and time.monotonic() < end:
            yield from sleep(POLL_S)
    finally:  # the plan may be aborted in its sleep
        if question is not None:
            question.given_up = True
    delivered = question is not None and question.answer is True
    if fail and not delivered:
        timed_out = question is not None and question.answer is None
        late = f"not everything was delivered within {timeout_s:g} s"
        why = late if timed_out else "what is left waits for an API key or for the operator"
        raise ApiUnavailableError(f"{why}; it stays spooled, see `atomscale-bluesky status`")
    return delivered
