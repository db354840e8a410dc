"""Logs the errors of the deciding thread that nothing foresees, and decides how long it waits after each."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from . import backoff

_logger = logging.getLogger(__name__)

# Such errors are logged once in this time at most. After this time without one, the pauses are short again.
SAME_SERIES_S = 600.0


class UnforeseenErrors:
    """The errors of one uploader.

    Args:
        spool: The spool's folder, for the log.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._count = 0  # with less than `SAME_SERIES_S` between them
        self._last_at = self._logged_at = float("-inf")  # monotonic

    def note(self, error: Exception) -> float:
        """Note an error. Return for how many seconds to wait, which grows from one to the next."""
        now = time.monotonic()
        if now - self._last_at > SAME_SERIES_S:
            self._count = 0
        if now - self._logged_at > SAME_SERIES_S:
            self._logged_at = now
            _logger.error(
                "the uploader of spool %s failed unexpectedly, and starts again from the spool's files; please report "
                "this", self._spool, exc_info=error,
            )  # fmt: skip
        pause_s = backoff.RESTART.pause_s(self._count)
        self._count, self._last_at = self._count + 1, now
        return pause_s
