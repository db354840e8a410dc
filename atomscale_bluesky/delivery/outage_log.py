"""Logs outages: at once, again at growing intervals, and when they are over.

If an outage begins soon after another one was over, the two count as one outage.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import NamedTuple

from ..errors import ApiError, ApiKeyError
from ..status.outage import NEW_KEY, OutageNote

_logger = logging.getLogger(__name__)

# After how long the same outage is logged again.
LOG_AGAIN_S = (60.0, 300.0, 900.0, 3600.0)
# A failure after which nothing is tried for this time shows in the status at once: a refused key, say.
LASTING_S = 2.0
# An outage that begins within this time after the last one is the same one. But if it lasts for the first of the
# intervals above, it is logged, whatever was logged before.
SAME_OUTAGE_S = 300.0


class _LastOutage(NamedTuple):
    ended: float  # monotonic
    series_since: float  # monotonic: when the series of outages that come and go began, to which it belongs


class OutageLog:
    """Reports the outages of one server in the log and the status. Belongs to the deciding thread.

    Args:
        endpoint: The server.
        spool: Where the readings are kept meanwhile, as the log names it.
    """

    def __init__(self, endpoint: str, spool: str) -> None:
        self._endpoint = endpoint
        self._spool = spool
        self._note = OutageNote(Path(spool), endpoint)
        self._since: float | None = None  # monotonic, as all times here; None while Atomscale answers
        self._last_outage = _LastOutage(-math.inf, 0.0)
        self._on_and_off_since = 0.0  # the present outage's beginning, or that of the first of its series
        self._logged = False  # the present outage was logged
        self._times_logged = 0
        self._log_again_at = 0.0

    def note_failed_request(self, now: float, error: ApiError, *, pause_s: float = 0.0) -> None:
        """Note a failed request. Logs the first one, and further ones at growing intervals.

        Args:
            now: Monotonic.
            error: The failure.
            pause_s: For how long nothing is sent now.
        """
        key_refused = isinstance(error, ApiKeyError)
        self._note.note_failure(str(error), lasting=pause_s >= LASTING_S, key_refused=key_refused)
        if self._since is None:
            self._since = now
            last = self._last_outage
            self._on_and_off_since = last.series_since if now - last.ended < SAME_OUTAGE_S else now
            if self._on_and_off_since == now:
                self._times_logged, self._log_again_at = 0, now
        if now < self._log_again_at and (self._logged or now - self._since < LOG_AGAIN_S[0]):
            return
        advice = f"check the API key; {NEW_KEY}" if key_refused else "sending is tried again until it works"
        on_and_off = "on and off " if self._on_and_off_since < self._since else ""
        lasts_s = round(now - self._on_and_off_since)
        _logger.warning(
            "Atomscale at %s does not take data%s; readings are kept in %s, %s: %s",
            self._endpoint, f" ({on_and_off}for {lasts_s} s now)" if lasts_s else "", self._spool, advice, error,
        )  # fmt: skip
        self._logged = True
        self._log_again_at = now + LOG_AGAIN_S[min(self._times_logged, len(LOG_AGAIN_S) - 1)]
        self._times_logged += 1

    def note_failure(self, why: str) -> None:
        """Let the status say why nothing is delivered, until Atomscale answers again. The caller logs it."""
        self._note.note_failure(why)

    def note_answer(self, now: float) -> None:
        """Note an answer. Logs that the outage is over, if its beginning was logged."""
        self._note.note_answer()
        if self._since is not None:
            if self._logged:
                _logger.info("Atomscale at %s takes data again", self._endpoint)
            self._since, self._logged = None, False
            self._last_outage = _LastOutage(now, self._on_and_off_since)
