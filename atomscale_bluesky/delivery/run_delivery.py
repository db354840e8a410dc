"""Delivers one run: gives out its next task, and takes the task's result.

A `RunDelivery` owns a claimed run and belongs to the deciding thread. `next_task` returns a task that can run now, and
notes in the ledger what must be known after a crash. `task_order` decides which one. `apply_result`, `apply_refusal`
and `apply_failure` take its outcome. Nothing here waits or sends, or decides when to try again after an outage.

After any crash the next process that opens the run reads its journal and its ledger, and goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ..errors import ApiError, ApiRefusedError
from ..spool.gil_yield import GilYield
from ..spool.locks import RunLock
from ..spool.run_claim import RunClaim
from . import task_order
from .claimed_run import ClaimedRun
from .tasks.work import RetryAfter, ServerFacts
from .unfinished_tasks import Task

_logger = logging.getLogger(__name__)


class RunDelivery:
    """Delivers a claimed run, beginning in the state that its files tell.

    Args:
        claim: The run. It belongs to this object from now on.
        server_facts: What is known about the server, shared by all runs.
        unix_time: Returns Unix seconds. A test passes its own.
        gil_yield: Makes way for a plan's thread.

    Raises:
        SpoolError: From every method: the run's files cannot be read or written, or contradict each other.
    """

    def __init__(
        self,
        claim: RunClaim,
        *,
        server_facts: ServerFacts | None = None,
        unix_time: Callable[[], float] = time.time,
        gil_yield: GilYield | None = None,
    ) -> None:
        self.claim = claim
        self.run = ClaimedRun(claim, server_facts or ServerFacts(), unix_time, gil_yield)
        self.run_uid = claim.header.run_uid
        self.released = False  # its files are closed: tasks of it that still lie ready are not to be begun
        self._idle = False  # `next_task` returned None, and nothing has happened since

    @property
    def may_reload_now(self) -> bool:
        """Return True if the run has to be read again from its files, and nothing of it is under way."""
        return self.run.must_reload and self.run.unfinished_tasks.in_flight == 0

    @property
    def more_to_read(self) -> bool:
        """Return True if the journal was not read to its present end, and can be read on at once."""
        run = self.run
        if not run.run_chunker.more_to_read or run.must_reload:
            return False
        counts_only = run.parked or run.state.discarded
        return bool(counts_only) or run.unfinished_tasks.may_begin_chunk

    @property
    def idle(self) -> bool:
        """Return True if nothing can be done until more is written, the operator acts, or minutes have passed."""
        run = self.run
        moves = run.unfinished_tasks.is_busy or run.finished or run.must_reload or not run.run_chunker.at_end
        return self._idle and not moves and run.previews.next_due() is None

    @property
    def needs_operator(self) -> bool:
        """Return True if the operator has to act before all of the run is delivered."""
        run = self.run
        if run.stopped or run.parked:
            return True
        return any(stream.parked or stream.refused or stream.links_refused for stream in run.streams.values())

    def wake(self) -> None:
        """Note that more may have been written. The run is not idle until it was asked for a task again."""
        self._idle = False

    def close_files(self) -> None:
        """Close the run's files until they are needed again, but keep its lock."""
        self.run.run_chunker.close()
        self.run.ledger.close_until_needed()

    def complete_if_interrupted(self) -> bool:
        """Note that the run was interrupted, if its writer has died without a stop. Return True if so."""
        if self.run.stopped or not self.claim.complete_if_interrupted():
            return False
        _logger.info("run %s was interrupted: no stop document came; it is being completed", self.run.header.run_uid)
        return True

    # ---- what can be done ------------------------------------------------------------------------------------------

    def next_task(self, now: float) -> Task | None:
        """Return a task that can run now, or None. The caller lets a worker perform it, and reports the result.

        Args:
            now: Monotonic. Failed tasks come again when their pause is over.
        """
        self.run.previews.asked_at = now
        task = task_order.next_task(self.run, now)
        self._idle = task is None
        if task is not None:
            task.given_out_at = now
        return task

    def next_due(self) -> float | None:
        """Return when a failed task or a preview is due, monotonic, or None if there is none."""
        if self.run.must_reload:
            return None
        times = [self.run.unfinished_tasks.next_due(), self.run.previews.next_due()]
        return min((time for time in times if time is not None), default=None)

    # ---- its result ------------------------------------------------------------------------------------------------

    def apply_result(self, task: Task, result: Any, now: float) -> None:
        """Take a task's result. `now` is monotonic."""
        self._note_returned(task)
        self._finish_or_retry(task, task.work.apply_result(self.run, result), now)

    def apply_refusal(self, task: Task, error: ApiRefusedError, now: float) -> None:
        """Take a refusal. `now` is monotonic."""
        self._note_returned(task)
        self._finish_or_retry(task, task.work.apply_refusal(self.run, error), now)

    def park(self, task: Task, reason: str) -> None:
        """Park what a task is about, until the operator acts or what is missing appears. Data are kept."""
        self._note_returned(task)
        task.work.park(self.run, reason)
        self.run.unfinished_tasks.finish(task)

    def apply_failure(self, task: Task, error: ApiError, not_before: float, part: Any = None) -> bool:
        """Take a failure that can clear. Return True if `next_task` will return the task again.

        Args:
            task: The task that failed.
            error: Its failure.
            not_before: When it may be tried again, monotonic.
            part: The result of the part that was done before it failed.
        """
        self._note_returned(task)
        work = task.work.apply_failure(self.run, error, part)
        self._finish_or_retry(task, None if work is None else RetryAfter(work, 0.0), not_before)
        return work is not None

    def put_back(self, task: Task) -> None:
        """Take back a task that no worker has begun. `next_task` will return it again."""
        self._note_returned(task)
        work = task.work.put_back(self.run)
        if work is None:
            self.run.unfinished_tasks.finish(task)
        else:
            self.run.unfinished_tasks.keep_for_retry(task)

    def _note_returned(self, task: Task) -> None:
        self._idle = False
        self.run.unfinished_tasks.note_returned(task)

    def _finish_or_retry(self, task: Task, again: RetryAfter | None, now: float) -> None:
        if again is None:
            self.run.unfinished_tasks.finish(task)
            return
        task.work = again.work
        task.attempts += 1
        task.not_before = now + again.after_s
        self.run.unfinished_tasks.keep_for_retry(task)

    # ---- its release -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the run's files and release its lock."""
        self.released = True
        self.run.run_chunker.close()
        self.claim.close()

    def hand_over(self) -> RunLock:
        """Close the run's files, and return its uploader lock, still held."""
        self.released = True
        self.run.run_chunker.close()
        return self.claim.hand_over()
