"""The spool's runs in, everything that was accepted at Atomscale out; owns the threads.

One thread, the deciding thread, owns every run that is delivered: it reads the journals, cuts chunks, writes the
ledgers and decides what is tried when. Up to `max_connections` worker threads do one task each and report its result.
The threads talk through queues, so there is no lock, and the RunEngine's thread never waits here: `wake` and `add` only
put a message into a queue.

    active_runs    which runs are delivered now
    run_delivery   what can be done for one run: its tasks
    worker_pool    the worker threads
    outcomes       what a result means, and when a task is tried again

Nothing is given up. While nothing succeeds, one request at a time finds out whether the server takes data again.

Bounded: twice as many chunks in memory as there are connections, and those of failed attempts.
"""

from __future__ import annotations

import logging
import queue
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..api.client import ClockReading
from ..settings import Settings
from ..spool.gil_yield import GilYield
from ..spool.locks import RunLock
from ..spool.run_writer import RunWriter
from ..spool.spool import Spool
from ..status.clock_note import ClockNote, write_note
from .active_runs import ActiveRuns
from .drain import Drain
from .outcomes import Answers
from .run_delivery import RunDelivery
from .task_runner import Outcome
from .tasks.work import Knowledge
from .worker_pool import WorkerPool

_logger = logging.getLogger(__name__)

# How often the journals of runs are looked at without having been asked to: for points of other processes.
POLL_S = 0.5
# How often where all the journals are written by other processes: while one of their runs is open, and otherwise.
FOLLOW_OPEN_S = 0.05
FOLLOW_S = 0.2
# How often the spool is searched for runs that nobody delivers, and for writers that are gone.
SCAN_S = 2.0
# A finished run's files are closed by their writer a moment after its stop.
FINISH_S = 0.02


class Uploader:
    """Delivers the runs of a spool to the settings' endpoint.

    Args:
        spool: Whose runs; several uploaders may share one, each run has one deliverer.
        settings: Endpoint, key and limits.
        follow: Whether it serves other processes, which say nothing when they begin a run or write on: so it looks.
        settle: Has the writer in this process complete the run in a folder whose stop document never came.
        now, monotonic, jitter: The clocks and the chance that tests hand in.
    """

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        *,
        follow: bool = False,
        settle: Callable[[Path], None] = lambda folder: None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._spool = spool
        self._settings = settings
        self._follow = follow
        self._spool_changed_at = 0
        self.idle_since: float | None = None  # monotonic: since when nothing moves, and nobody writes a run of these
        self._monotonic = monotonic
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._knowledge = Knowledge(None if settings.api == "auto" else settings.api)
        self._gil_yield = GilYield()
        self._active_runs = ActiveRuns(
            spool,
            settings.endpoint,
            knowledge=self._knowledge,
            settle=settle,
            now=now,
            monotonic=monotonic,
            gil_yield=self._gil_yield,
        )
        self._told, self._heard = 0, 0  # runs that began here, as `add` was called and as the deciding thread has seen
        self._answers = Answers((settings.endpoint, str(spool.path)), monotonic, jitter)
        self._workers = WorkerPool(
            settings,
            self._knowledge,
            lambda *done: self._inbox.put(_Done(*done)),
            self._inbox.put,
            gil_yield=self._gil_yield,
        )
        self._next_scan = 0.0
        self._retired = False
        self._over = False  # the deciding thread has ended and takes no further message
        self._drains: list[Drain] = []
        self._thread: threading.Thread | None = None

    # ---- from any thread -------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the deciding thread lives."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def _is_here(self) -> bool:
        """Whether a thread of its own asks, in which a handler of the log has called the callback."""
        return self._thread is threading.current_thread() or self._workers.is_here

    @property
    def key_refused_s(self) -> float:
        """For how long the server has taken nothing because of the API key; 0 if it is not so."""
        since = self._answers.key_refused_since
        return 0.0 if since is None else self._monotonic() - since

    def start(self) -> None:
        """Start delivering; idempotent until `stop`."""
        if self._thread is None:
            self._workers.hire()  # at the interpreter's exit, when the last chunks leave, no thread starts any more
            self._thread = threading.Thread(target=self._loop, name="atomscale-uploader", daemon=True)
            self._thread.start()

    @property
    def takes_up(self) -> bool:
        """Return True if there is a place for a run that begins now: then its lock is to be taken with its folder."""
        return self._told - self._heard < self._active_runs.places

    def add(self, writer: RunWriter) -> None:
        """A run of this process begins; does not wait."""
        self._told += 1
        self._inbox.put(_Added(writer.folder, writer.delivering))
        if self._over:
            self._see_to_what_came_late()

    def wake(self, folder: Path | None = None) -> None:
        """A journal has grown by something worth a look; does not wait."""
        self._inbox.put(folder)

    def stopped(self, folder: Path) -> None:
        """The writer in this process is done with the run; does not wait."""
        self._inbox.put(_WriterGone(folder))

    def retire(self) -> None:
        """The callback is gone: complete what it left, then end. May be called by the garbage collector."""
        self._inbox.put(_RETIRE)

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing can move any more.

        Returns:
            Whether every stopped run is finalized, and every full chunk of the others confirmed; False at the time-out
            too, and at once when what is left waits for a person.
        """
        drain = None if self._is_here else self.ask_whether_drained()
        if drain is None:
            return False
        if not drain.answered.wait(timeout_s):
            drain.given_up = True
        return drain.answer is True

    def ask_whether_drained(self) -> Drain | None:
        """Ask what `drain` waits for and go on; None if the uploader does not run."""
        if not self.running:
            return None
        drain = Drain()
        self._inbox.put(drain)
        if self._over:
            self._see_to_what_came_late()
        return drain

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop after the requests under way; True if the threads ended in time. What waits stays spooled."""
        if self._thread is None:
            return True
        deadline = self._monotonic() + timeout_s
        self._inbox.put(_STOP)
        if self._is_here:
            return False
        self._thread.join(timeout_s)
        sent = self._workers.join(max(0.0, deadline - self._monotonic()))
        return sent and not self._thread.is_alive()

    def close_at_exit(self) -> None:
        """Drain and stop at the interpreter's exit, within `exit_timeout_s`; a terminal is told if it takes long."""
        limit_s = self._settings.exit_timeout_s
        soon_s = min(0.5, limit_s)
        if self.running and not self.drain(soon_s) and limit_s > soon_s:
            if sys.stderr is not None and sys.stderr.isatty():
                sys.stderr.write(f"atomscale: up to {limit_s:g} s for what is under way; the rest stays spooled\n")
            self.drain(limit_s - soon_s)
        self.stop(0.5)

    def after_fork_in_child(self) -> None:
        """The threads are the parent's: there is nothing to do."""

    # ---- the deciding thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while self._step():
                pass
        finally:
            try:
                self._workers.take_back()  # it stays in the spool
                self._workers.dismiss()
                self._active_runs.close()
            finally:
                self._answer_all(False)
                self._over = True
                self._see_to_what_came_late()

    def _step(self) -> bool:
        """Take the messages that are there, hand out what can be done, and wait for the next; False to end."""
        self._gil_yield.asked = bool(self._active_runs.own)
        self._workers.cut_if_late()
        if self._monotonic() >= self._next_scan or (self._follow and self._spool_has_changed()):
            self._active_runs.scan(calm=not self._answers.pause.failures)
            self._next_scan = self._monotonic() + SCAN_S
        busy = self._hand_out()
        self._active_runs.finish_runs()
        if self._active_runs.start_again_where_due():
            self.wake()
        if self._active_runs.fill():
            self.wake()
        can_move = self._can_move(busy)
        self._answer_drains(can_move)
        if can_move or self._active_runs.anything_open:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = self._monotonic()
        if self._retired and not can_move:
            return False
        try:
            message = self._inbox.get(timeout=self._wait_s(busy))
            while True:
                if message is _STOP:
                    return False
                self._receive(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True

    def _see_to_what_came_late(self) -> None:
        """Leave runs that nobody here delivers any more to others, and nobody without an answer."""
        with suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message, _Added) and message.delivering is not None:
                    message.delivering.release()
                elif isinstance(message, Drain):
                    message.reply(False)

    def _receive(self, message: object) -> None:
        match message:
            case _Done(delivery, outcome):
                self._workers.returned()
                if self._active_runs.holds(delivery):  # else let go of meanwhile; whoever goes on with it asks again
                    self._active_runs.guarded(delivery, lambda: self._answers.came_back(delivery, outcome))
                if outcome.error is not None:
                    if self._answers.pause.failures:
                        self._take_back()
                    self._workers.go_on()
            case Path():
                self._active_runs.written(message)
            case _Added():
                self._heard += 1
                self._active_runs.begin(message.folder, message.delivering)
            case _Retire():
                self._retired = True
                self._spool.writers.close_all()
                self._active_runs.writers_gone()
            case _WriterGone():
                self._active_runs.writer_gone(message.folder)
            case ClockReading():
                self._note_clock(message)
            case Drain():
                self._drains.append(message)
                self._active_runs.check_all()
                self._next_scan = 0.0  # somebody else may just have let go of a run
            case _:
                pass

    def _note_clock(self, reading: ClockReading) -> None:
        note = ClockNote(self._settings.endpoint, reading.offset_s, reading.delay_s, time.time())
        try:
            write_note(self._spool.path, note)
        except OSError as error:
            _logger.debug("the clock's offset could not be noted: %s", error)

    def _hand_out(self) -> bool:
        """Give tasks to senders while there are tasks and senders; whether anything is under way or may be at once."""
        now = self._monotonic()
        pause = self._answers.pause
        idle_turns = 0
        while self._workers.in_flight < self._limit and idle_turns < len(self._active_runs) and pause.over(now):
            delivery = self._active_runs.in_turn()
            task = self._active_runs.guarded(delivery, lambda delivery=delivery: delivery.next_task(now))
            if task is None:
                idle_turns += 1
                continue
            idle_turns = 0
            self._workers.give(delivery, task)
        return self._workers.in_flight > 0 or self._more_to_read

    def _take_back(self) -> None:
        """The server does not do well: what no sender has begun waits with the rest."""
        for delivery, task in self._workers.take_back():
            if self._active_runs.holds(delivery):
                self._active_runs.guarded(delivery, lambda delivery=delivery, task=task: delivery.put_back(task))

    @property
    def _limit(self) -> int:
        """How many tasks may be given to the senders: one each, and one that lies ready."""
        return 2 * self._settings.max_connections if not self._answers.pause.failures else 1

    @property
    def _more_to_read(self) -> bool:
        return any(delivery.more_to_read for delivery in self._active_runs)

    def _spool_has_changed(self) -> bool:
        """Whether a run has come or gone since the last call, or one that came has no header yet."""
        before, self._spool_changed_at = self._spool_changed_at, self._spool.changed_at()
        return before != self._spool_changed_at or self._active_runs.unready

    def _poll_s(self) -> float:
        if not self._follow:
            return POLL_S
        return FOLLOW_OPEN_S if self._active_runs.anything_open else FOLLOW_S

    def _wait_s(self, busy: bool) -> float:
        """How long nothing needs to be done unless a message comes."""
        now = self._monotonic()
        pause = self._answers.pause
        if not pause.over(now):
            return max(0.0, min(pause.until - now, self._poll_s()))
        if self._workers.in_flight >= self._limit:
            return self._poll_s()  # a message comes when one is done
        if self._more_to_read:
            return 0.0
        times = [self._poll_s()]
        times += [due - now for delivery in self._active_runs if (due := delivery.due()) is not None]
        if not busy and any(delivery.finished for delivery in self._active_runs):
            times.append(FINISH_S)
        return max(0.0, min(times))

    def _can_move(self, busy: bool) -> bool:
        """Whether anything will change without a new document or a person."""
        if busy or self._active_runs.more_runs or not self._answers.pause.over(self._monotonic()):
            return True
        return any(
            delivery.run.book.is_busy or delivery.finished or not delivery.run.run_chunker.at_end
            for delivery in self._active_runs
        )

    def _answer_drains(self, can_move: bool) -> None:
        if can_move or self._spool.writers.has_unended or (self._drains and self._active_runs.others_deliver_ours):
            self._drains = [drain for drain in self._drains if not drain.given_up]
        elif self._drains:
            self._answer_all(not self._active_runs.anything_left)

    def _answer_all(self, answer: bool) -> None:
        for drain in self._drains:
            drain.reply(answer)
        self._drains = []


class _Done(NamedTuple):
    delivery: RunDelivery
    outcome: Outcome


class _Added(NamedTuple):
    folder: Path
    delivering: RunLock | None


class _WriterGone(NamedTuple):
    folder: Path


class _Retire:
    """Nobody writes any more."""


_STOP = object()
_RETIRE = _Retire()
