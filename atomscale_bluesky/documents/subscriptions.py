"""Finds mistakes with subscriptions, and makes a closed callback, or an older one, leave a run to a newer one.

Bluesky does not tell a callback when it is subscribed or unsubscribed, so this is checked at the start of each run.
Nothing of Bluesky is changed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..errors import DocumentError
from ..status.commands import with_option
from .accepted import KNOWN

_logger = logging.getLogger("atomscale_bluesky.callback")

# How many frames of the stack are searched for the dispatcher. It is five frames up.
_FRAMES = 12
# The warnings about a callback that is not subscribed as it should be.
NOT_AN_INSTANCE = (
    "the class AtomscaleCallback is subscribed, so nothing of this run is recorded: subscribe an instance, with "
    "parentheses, as in `RE.subscribe(AtomscaleCallback())`"
)
TWICE = (
    "the callback is subscribed to its RunEngine %d times. Each document is taken once, but when one of these "
    "subscriptions ends, Bluesky ends all of them. One made by `RE(plan, callback)` ends when the next call begins, "
    "and then no later run is recorded. So after this call: `RE([])`, then `RE.subscribe(callback)`, and from then on "
    "`RE(plan)` without the callback"
)
CLOSED = (
    "the callback is closed and still subscribed: run %s is kept in the spool, and is sent by the next session or by "
    "`atomscale-bluesky upload`. Unsubscribe it, `RE.unsubscribe(token)`, and subscribe a new AtomscaleCallback"
)
CLOSED_WITHIN = (
    "the callback was closed within a run: the run's further documents are kept in the spool, and are sent by the next "
    "session or by `atomscale-bluesky upload`"
)


def double_subscription_warning() -> str | None:
    """Return a warning if the callback that is being called is subscribed more than once to its RunEngine.

    Bluesky gives a callable that is subscribed again the same place in its list, so that it is called once, and frees
    that place when any of the subscriptions ends. The dispatcher's own list of tokens is the only place where this can
    be seen. It is only read. If another version of Bluesky does not have it, there is no warning.
    """
    place = None
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to see one's callers
    for _ in range(_FRAMES):
        if frame is None:
            return None
        module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
        if (module, function) == ("bluesky.utils", "process"):
            place = frame.f_locals.get("cid")
        elif (module, function) == ("bluesky.run_engine", "process"):
            tokens = getattr(frame.f_locals.get("self"), "_token_mapping", None)
            if not isinstance(tokens, dict) or place is None:
                return None
            times = sum(place in places for places in list(tokens.values()) if isinstance(places, list))
            return TWICE % times if times > 1 else None
        frame = frame.f_back
    return None


def was_class_called(arguments: tuple[object, ...]) -> bool:
    """Return True if a class was called with a document, in the place of an instance; log an error then, once per run.

    It raises nothing, because an exception would end the plan.
    """
    if len(arguments) != 2 or not isinstance(arguments[0], str) or not isinstance(arguments[1], Mapping):
        return False
    if arguments[0] == "start":
        with suppress(Exception):  # a log handler that fails must not end the plan
            _logger.error("%s", NOT_AN_INSTANCE)
    return True


class YoungerFirst:
    """Takes documents for a callback that leaves runs to a younger one, or that is closed.

    A RunEngine gives each document to all of its callbacks, so a younger one gets the start document before the older
    one gets the next document. Until then the older one puts the start document aside. If a younger one has taken the
    run by then, the recorder knows that.

    Args:
        take: The recorder's `take`.
        closed: Warn that the callback is closed.
        spool_option: Appended to the command that the warning names, such as ` --spool-dir /data/spool`.
    """

    def __init__(self, take: Callable[[str, Mapping[str, Any]], Any], *, closed: bool, spool_option: str = "") -> None:
        self._take = take
        self._spool_option = spool_option
        self.closed = closed  # may be set later
        # By identity. Each stays until it is taken, so that neither an interruption nor another thread loses it.
        self._aside: dict[int, Mapping[str, Any]] = {}
        self._warned = False
        self.used = False  # True once something was recorded after `close`

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document. Raises what the recorder raises."""
        self.flush()
        if name == "start":
            start = dict(doc) if isinstance(doc, Mapping) else doc
            self._aside[id(start)] = start
            return
        accepted = self._take(name, doc)
        if self.closed and (accepted.rows or accepted.left_out):
            self.used = True
            if not self._warned:
                self._warned = True
                _logger.warning("%s", with_option(CLOSED_WITHIN, self._spool_option))

    def flush(self) -> None:
        """Take the start documents that were put aside, unless a younger callback records their runs.

        Two threads, or a signal's handler, may take the same one: the recorder knows the second.
        """
        for key, start in list(self._aside.items()):
            try:
                accepted = self._take("start", start)
            except DocumentError:  # counted and logged where it was raised; other documents are not affected
                accepted = KNOWN
            self._aside.pop(key, None)
            if self.closed and not accepted.known:
                self.used = self._warned = True
                _logger.warning(with_option(CLOSED, self._spool_option.replace("%", "%%")), start.get("uid"))
