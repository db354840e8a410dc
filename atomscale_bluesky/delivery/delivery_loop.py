"""The deciding thread: takes messages, gives tasks to the worker threads, and waits for the next message.

It owns every run that is delivered: it reads the journals, makes chunks, writes the ledgers and decides what is tried
when. Worker threads do one task each and report its result. All threads talk through one queue, so there is no lock.

    run_scheduler  which runs are delivered now
    run_delivery   what can be done for one run: its tasks
    worker_pool    the worker threads; connection_limit, how many of them send at a time
    retry_policy   what a result means, and when a task is tried again

Nothing is given up. While nothing succeeds, one request at a time finds out whether the server takes data again.

Bounded: as many chunks in memory as there are connections, `READY` more, and those of failed attempts.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..api.client import ClockReading
from ..errors import ApiUnavailableError
from ..settings import Settings, spool_option
from ..spool.gil_yield import GilYield
from ..spool.locks import RunLock
from ..spool.spool import Spool
from ..status.clock_note import ClockNote, write_note
from .connection_limit import ConnectionLimit
from .drain import DrainQuestion, OpenQuestions
from .drain_check import DrainCheck
from .retry_policy import RetryPolicy
from .run_delivery import RunDelivery
from .run_scheduler import RunScheduler
from .tasks.work import Kind, ServerFacts
from .unfinished_tasks import Task
from .unforeseen_errors import UnforeseenErrors
from .worker_pool import Report, WorkerPool

_logger = logging.getLogger(__name__)

# How often journals are read on without a message: for points that other processes write.
POLL_S = 0.5
# The same where all journals are written by other processes: while one of their runs is open, and otherwise.
FOLLOW_OPEN_S = 0.05
FOLLOW_S = 0.2
# How often the spool is searched for runs that no process delivers, and for writers that have died.
SCAN_S = 2.0
# No more connections than this while a plan runs in this process: each is a thread that the plan's thread waits for.
MAX_BESIDE_A_PLAN = 8
# Up to this many further tasks lie ready, and no more than there are connections.
MAX_READY = 8
# Up to this many tasks are begun before the first of them is given to a worker: one write then notes all their chunks.
# Beside a plan each is given away at once, so that few threads at a time compute and make the plan's thread wait.
MAX_TOGETHER = 8
# A finished run's files are closed by their writer a moment after its stop.
FINISH_S = 0.02


class RunBegun(NamedTuple):
    """The message that a run of this process begins. Its uploader lock may have been taken with its folder."""

    folder: Path
    lock: RunLock | None


class WriterGone(NamedTuple):
    """The message that the writer in this process has finished with a run."""

    folder: Path


class Retire:
    """The message that nothing writes in this process any more."""


class EndLoop:
    """The message to end."""


class DeliveryLoop:
    """The deciding thread of an uploader: `run` is what it does.

    Args:
        spool: Whose runs.
        settings: Endpoint, key and limits.
        inbox: The messages: the classes above, `Report`, `ClockReading`, `DrainQuestion`, and the folder of a run that
            was written on, or None to take another step.
        follow: True if it serves other processes, which send no messages. Then it polls.
        complete_run: Has the writer in this process complete the run in a folder whose stop document never came.
        unix_time, monotonic, jitter: The clocks and the random number. A test passes its own.
    """

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        inbox: queue.SimpleQueue[object],
        *,
        follow: bool,
        complete_run: Callable[[Path], None],
        unix_time: Callable[[], float],
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self.idle_since: float | None = None  # monotonic: since when nothing moves and none of its runs is written
        self.runs_begun = 0  # how many `RunBegun` it has received
        self.has_ended = False  # it has ended and receives no further message
        self._spool = spool
        self._settings = settings
        self._inbox = inbox
        self._follow = follow
        self._monotonic = monotonic
        self._spool_changed_at = 0
        self._next_scan = 0.0
        self._retired = False
        self._system_refused = False  # the system refused something at the last step
        self._unforeseen = UnforeseenErrors(spool.path)
        self._held_messages: deque[object] = deque()  # messages that came while it waited after an unforeseen error
        self._drains = OpenQuestions()
        self._drain_check = DrainCheck(spool, settings.endpoint)  # for runs that others deliver
        self._gil_yield = GilYield()
        family = None if settings.api == "auto" else settings.api
        server_facts = ServerFacts(family, spool_option=spool_option(settings), monotonic=monotonic)
        self._make_scheduler = partial(
            RunScheduler,
            spool,
            settings.endpoint,
            server_facts=server_facts,
            complete_run=complete_run,
            unix_time=unix_time,
            monotonic=monotonic,
            gil_yield=self._gil_yield,
        )
        self.runs: RunScheduler = self._make_scheduler()
        self._active = self.runs.active
        self.retries = RetryPolicy((settings.endpoint, str(spool.path)), monotonic, jitter)
        self.workers = WorkerPool(settings, server_facts, inbox.put, gil_yield=self._gil_yield)
        self._connections = ConnectionLimit(settings.max_connections)

    def run(self) -> None:
        """Deliver until `EndLoop` comes, or until nothing can move after `Retire`."""
        try:
            while self._step_or_wait():
                pass
        finally:
            try:
                self.workers.take_back_tasks()  # it stays in the spool
                self.workers.end_threads()
                self._active.close()
            finally:
                self._drains.answer(self._drains.still_open(), False)
                self.has_ended = True
                self.refuse_messages()

    def refuse_messages(self) -> None:
        """Release the locks of runs that began too late, and answer the drains that came too late. Any thread may."""
        with suppress(queue.Empty, IndexError):
            while True:
                message = self._held_messages.popleft() if self._held_messages else self._inbox.get_nowait()
                if isinstance(message, RunBegun) and message.lock is not None:
                    message.lock.release()
                elif isinstance(message, DrainQuestion):
                    message.reply(False)

    def _step_or_wait(self) -> bool:
        """Take a step. Return False to end.

        If the system refuses something, such as another open file, wait and go on. After an error that nothing
        foresees, wait and begin again from the files.
        """
        try:
            goes_on = self._step()
        except OSError as error:
            if not self._system_refused:
                _logger.warning("the uploader waits, because the operating system refused a call: %s", error)
            self._system_refused = True
            time.sleep(POLL_S)
            return True
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not end all delivery: it is logged
            if not self._wait_after(error):
                return False
            self._restart()
            return True
        self._system_refused = False
        return goes_on

    def _wait_after(self, error: Exception) -> bool:
        """Report an error that nothing foresees, and wait. Return False to end.

        The runs stay claimed until no request for one of them is under way.
        """
        self.idle_since = None
        end = time.monotonic() + self._unforeseen.note(error)
        self.retries.note_failure(f"the uploader failed unexpectedly, see the log: {type(error).__name__}: {error}")
        self.workers.take_back_tasks()
        while (left_s := end - time.monotonic()) > 0 or self.workers.in_flight:
            self.workers.cut_if_late()
            try:
                message = self._inbox.get(timeout=min(left_s, POLL_S) if left_s > 0 else POLL_S)
            except queue.Empty:
                continue
            match message:
                case EndLoop():
                    return False
                case Report():  # the files tell what to do again
                    self.workers.note_returned()
                    if message.outcome.error is not None:
                        self.workers.resume_failed()
                case _:
                    self._held_messages.append(message)
        return True

    def _restart(self) -> None:
        """Release every run, and forget all that was read of the spool."""
        before = self._active
        for delivery in before:
            with suppress(Exception):  # its lock is free at the latest when nothing refers to it any more
                delivery.close()
        self.runs = self._make_scheduler()
        self._active = self.runs.active
        self._active.written_here |= before.written_here
        self._active.begun_here |= before.begun_here
        self._next_scan = 0.0

    def _step(self) -> bool:
        """Give out what can be done, receive the messages that are there or the next one. Return False to end."""
        while self._held_messages:
            self._receive(self._held_messages.popleft())
        beside_a_plan = bool(self._active.written_here)
        self._gil_yield.enabled = beside_a_plan
        permitted = self._settings.max_connections
        self._connections.maximum = min(permitted, MAX_BESIDE_A_PLAN) if beside_a_plan else permitted
        self.workers.permit(self._connections.number)
        self.workers.cut_if_late()
        if self._monotonic() >= self._next_scan or (self._follow and self._spool_has_changed()):
            self.runs.scan(server_answers=not self.retries.pause.failures)
            self._next_scan = self._monotonic() + SCAN_S
        busy = self._give_out_tasks()
        self._active.finish_runs()
        if self.runs.reload_runs():
            self._inbox.put(None)
        if self.runs.turns.fill_places():
            self._inbox.put(None)
        can_move = self._can_move(busy)
        self._answer_drains(can_move)
        if can_move or self.runs.anything_open:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = self._monotonic()
        if self._retired and not can_move:
            return False
        try:
            message = self._inbox.get(timeout=self._wait_s(busy))
            while True:
                if isinstance(message, EndLoop):
                    return False
                self._receive(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _receive(self, message: object) -> None:
        match message:
            case Report(delivery, outcome):
                try:
                    self._adapt_connections(message)
                finally:
                    self.workers.note_returned()
                if self._active.is_active(delivery):  # if it was released meanwhile, its files tell what to do again
                    self._active.guarded(delivery, lambda: self.retries.apply_outcome(delivery, outcome))
                if outcome.error is not None:
                    if self.retries.pause.failures:
                        self._take_back()
                    self.workers.resume_failed()
            case Path():
                self.runs.note_written(message)
            case RunBegun():
                self.runs_begun += 1
                self.runs.take_up(message.folder, message.lock)
            case Retire():
                self._retired = True
                self._spool.writers.close_writers()
                self.runs.note_all_writers_gone()
            case WriterGone():
                self.runs.note_writer_gone(message.folder)
            case ClockReading():
                self._note_clock(message)
            case DrainQuestion():
                self._drains.add(message)
                self.runs.check_all()
                self._next_scan = 0.0  # another process may just have released a run
            case _:
                pass

    def _adapt_connections(self, report: Report) -> None:
        """Let the number of connections follow from how the server has answered."""
        traffic, error = report.traffic, report.outcome.error
        if not traffic.requests:
            return
        now, each_s = self._monotonic(), traffic.waited_s / traffic.requests
        if isinstance(error, ApiUnavailableError):
            self._connections.note_failure(now, each_s, overloaded=error.status == 429 or bool(error.retry_after_s))
        elif report.outcome.task.kind is Kind.PUSH:  # other requests take other times
            in_use = self.workers.in_flight >= self._connections.number
            self._connections.note_answer(now, each_s, traffic.sent_bytes // traffic.requests, in_use=in_use)
        self.workers.permit(self._connections.number)

    def _note_clock(self, reading: ClockReading) -> None:
        note = ClockNote(self._settings.endpoint, reading.offset_s, reading.delay_s, time.time())
        try:
            write_note(self._spool.path, note)
        except OSError as error:
            _logger.debug("the clock's offset could not be noted: %s", error)

    def _give_out_tasks(self) -> bool:
        """Give tasks to workers while there are both. Return True if anything is under way or can be at once."""
        now = self._monotonic()
        pause = self.retries.pause
        without_task = 0
        max_together = 1 if self._gil_yield.enabled else MAX_TOGETHER
        tasks: list[tuple[RunDelivery, Task]] = []
        while (
            self.workers.in_flight + len(tasks) < self._max_in_flight
            and without_task < len(self._active)
            and pause.is_over(now)
        ):
            delivery = self._active.next_delivery()
            task = self._active.guarded(delivery, lambda delivery=delivery: delivery.next_task(now))
            if task is None:
                without_task += 1
                continue
            without_task = 0
            tasks.append((delivery, task))
            if len(tasks) == max_together:
                self._hand_over(tasks)
        self._hand_over(tasks)
        return self.workers.in_flight > 0 or self._more_to_read

    def _hand_over(self, tasks: list[tuple[RunDelivery, Task]]) -> None:
        """Write what the ledgers of all runs have noted, then give the tasks to workers. Empties the list."""
        for delivery in self._active:
            self._active.guarded(delivery, delivery.run.ledger.write)
        for delivery, task in tasks:
            if self._active.is_active(delivery):
                self.workers.queue_task(delivery, task)
        tasks.clear()

    def _take_back(self) -> None:
        """Take back the tasks that no worker has begun: the server fails, so they wait with the rest."""
        for delivery, task in self.workers.take_back_tasks():
            if self._active.is_active(delivery):
                self._active.guarded(delivery, lambda delivery=delivery, task=task: delivery.put_back(task))

    @property
    def _max_in_flight(self) -> int:
        """Return how many tasks the workers may have: one for each connection, and some that lie ready."""
        if self.retries.pause.failures:
            return 1
        number = self._connections.number
        return number + min(number, MAX_READY)

    @property
    def _more_to_read(self) -> bool:
        return any(delivery.more_to_read for delivery in self._active)

    def _spool_has_changed(self) -> bool:
        """Return True if a run has come or gone since the last call, or one that came has no header yet."""
        before, self._spool_changed_at = self._spool_changed_at, self._spool.changed_at()
        return before != self._spool_changed_at or self.runs.has_run_without_header

    def _poll_s(self) -> float:
        if not self._follow:
            return POLL_S
        return FOLLOW_OPEN_S if self.runs.anything_open else FOLLOW_S

    def _wait_s(self, busy: bool) -> float:
        """Return for how long nothing needs to be done unless a message comes."""
        now = self._monotonic()
        pause = self.retries.pause
        if not pause.is_over(now):
            return max(0.0, min(pause.until - now, self._poll_s()))
        if self.workers.in_flight >= self._max_in_flight:
            return self._poll_s()  # a message comes when one is done
        if self._more_to_read:
            return 0.0
        times = [self._poll_s()]
        times += [due - now for delivery in self._active if (due := delivery.next_due()) is not None]
        if not busy and any(delivery.run.finished for delivery in self._active):
            times.append(FINISH_S)
        return max(0.0, min(times))

    def _can_move(self, busy: bool) -> bool:
        """Return True if anything will change without a new document or the operator."""
        if busy or self._active.waiting.any_queued or not self.retries.pause.is_over(self._monotonic()):
            return True
        return any(
            delivery.run.unfinished_tasks.is_busy or delivery.run.finished or not delivery.run.run_chunker.at_end
            for delivery in self._active
        )

    def _answer_drains(self, can_move: bool) -> None:
        if not self._drains:
            return
        drains = self._drains.still_open()
        if can_move or self._spool.writers.has_unended or not self.runs.knows_runs:
            return
        delivered = not self.runs.needs_operator
        if self.runs.others_deliver:
            self._drains.answer([drain for drain in drains if not drain.with_others], delivered)
            drains = [drain for drain in drains if drain.with_others]
            theirs = self._drain_check.answer() if drains else None
            if theirs is None:
                return
            delivered = delivered and theirs
        self._drains.answer(drains, delivered)
