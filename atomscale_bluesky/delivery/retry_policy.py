"""Decides what a task's outcome means: done, refused, parked, or tried again, and when.

The one retry loop is here and in nothing else: a failure that can clear is tried again without end, with a pause that
all runs share. If the key is refused, all tasks wait, with long pauses, and the log repeats it. The deciding thread
does the waiting. The task's file in `tasks` says what a result means for the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from ..errors import ApiError, ApiKeyError, ApiRefusedError
from . import backoff
from .backoff import Pause
from .outage_log import OutageLog
from .refusals import is_forbidden_alone
from .run_delivery import RunDelivery
from .task_runner import Outcome

_logger = logging.getLogger(__name__)


class RetryPolicy:
    """Applies outcomes, and remembers how the server answers, over all runs. Belongs to the deciding thread.

    Args:
        where: Endpoint and spool, as warnings name them.
        monotonic, jitter: The clock and the random number. A test passes its own.
    """

    def __init__(self, where: tuple[str, str], monotonic: Callable[[], float], jitter: Callable[[], float]) -> None:
        self.pause = Pause(jitter)
        self.key_refused_since: float | None = None  # monotonic. None while the key is taken, or was not tried yet.
        self._monotonic = monotonic
        self._outages = OutageLog(*where)
        self._accepted_at = -math.inf  # when the newest task was given out that shows that the key may write

    def apply_outcome(self, delivery: RunDelivery, outcome: Outcome) -> None:
        """Note a task's outcome in its run."""
        task, error, now = outcome.task, outcome.error, self._monotonic()
        if error is None:
            self._note_answer(now)
            task.forbidden_at = None
            if task.work.shows_write_access(outcome.result):
                self._accepted_at = max(self._accepted_at, task.given_out_at)
            delivery.apply_result(task, outcome.result, now)
        elif isinstance(error, ApiRefusedError):
            self._note_answer(now)
            task.forbidden_at = None
            delivery.apply_refusal(task, error, now)
        else:
            self._apply_failure(delivery, outcome, error, now)

    def note_failure(self, why: str) -> None:
        """Let the status say why nothing is delivered, although no request has failed."""
        self._outages.note_failure(why)

    def _apply_failure(self, delivery: RunDelivery, outcome: Outcome, error: ApiError, now: float) -> None:
        task = outcome.task
        task.unexplained += outcome.unexplained
        if is_forbidden_alone(error, task.forbidden_at, self._accepted_at):
            delivery.park(task, f"forbidden while other requests are accepted: {error}")
            return
        if error.status != 403:
            task.forbidden_at = None
        elif task.forbidden_at is None:
            task.forbidden_at = now
        if isinstance(error, ApiKeyError) and self.key_refused_since is None:
            self.key_refused_since = now
        not_before = self.pause.note_failure(now, error)
        spacing = backoff.LINK if task.unexplained else task.work.backoff
        if spacing is not None:
            not_before = max(not_before, now + spacing.pause_s(task.unexplained or task.attempts))
        if delivery.apply_failure(task, error, not_before, outcome.result):
            _logger.debug("attempt %d to %s failed: %s", task.attempts, task, error)
        self._outages.note_failed_request(now, error, pause_s=self.pause.until - now)

    def _note_answer(self, now: float) -> None:
        self.pause.note_success()
        self.key_refused_since = None
        self._outages.note_answer(now)
