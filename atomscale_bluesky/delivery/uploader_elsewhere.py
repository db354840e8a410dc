"""The callback's end of an uploader in another process: `uploader = "process"` or `"none"`.

Nothing passes between the two but the spool's files, so either may be killed at any time. With "process" a thread here
starts the process and watches it (`uploader_watcher`). With "none" the facility runs one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ..settings import Settings
from ..spool.locks import Bell
from ..spool.orders import is_settle_ordered
from ..spool.run_writer import RunWriter
from ..spool.spool import Spool
from .deliverer import Deliverer
from .drain import DrainQuestion, OpenQuestions
from .drain_check import DrainCheck
from .uploader_watcher import UploaderWatcher

_logger = logging.getLogger(__name__)

# How often the process and the orders are polled, and how often the files while a drain waits.
POLL_S = 1.0
DRAIN_POLL_S = 0.05
# After this many polls every open run is checked for an order, even if nothing says that there is a new one.
POLLS_PER_CHECK = 30


class UploaderElsewhere(Deliverer):
    """What the callback knows of an uploader in another process.

    Args:
        spool: The callback's.
        settings: Its settings. A process that is started gets the same.
        start: True to start a process if none serves the spool.
        complete_run: Completes the run in a folder whose stop document never came.
    """

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        *,
        start: bool,
        complete_run: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self._spool = spool
        self._complete_run = complete_run
        self._written_here: set[Path] = set()  # runs that are open here
        self._ordered_at = 0  # when the last order that was seen was given
        self._polls = 0
        self._drains = OpenQuestions()
        self._drain_check = DrainCheck(spool, settings.endpoint)
        self._watcher = UploaderWatcher(spool.path, settings, self._log_error) if start else None
        self._retired = False
        self._wake = Bell()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_error = ""  # as it was logged

    @property
    def running(self) -> bool:
        """Return True while the thread lives that watches the process and answers drains."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def delivers_new_runs(self) -> bool:
        """Return False: the other process takes the lock of a run."""
        return False

    @property
    def _is_own_thread(self) -> bool:
        return self._thread is threading.current_thread()

    def start(self) -> None:
        """Start the process if none serves the spool, and watch it from now on. Idempotent."""
        if self._thread is None:
            if self._watcher is not None:
                self._watcher.start_if_due()
            self._thread = threading.Thread(target=self._loop, name="atomscale-elsewhere", daemon=True)
            self._thread.start()

    def add(self, writer: RunWriter) -> None:
        """Take note of a run that begins in this process. Does not wait."""
        self._written_here.add(writer.folder)

    def wake(self, folder: Path | None = None) -> None:
        """Do nothing: the other process polls the journals."""

    def writer_done(self, folder: Path) -> None:
        """Note that the writer in this process has finished with a run. Does not wait."""
        self._written_here.discard(folder)

    def retire(self) -> None:
        """Release what the callback left, because it is gone, then end. The garbage collector may call this."""
        self._retired = True

    def ask_whether_drained(self) -> DrainQuestion | None:
        """Return the question that `drain` asks, without waiting. Return None if the thread does not run."""
        if not self.running:
            return None
        drain = DrainQuestion()
        self._drains.add(drain)
        self._wake.ring()
        return drain

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop watching. Return True if the thread ended in time. The other process finishes the rest."""
        self._ending.set()
        self._wake.ring()
        if self._thread is not None and not self._is_own_thread:
            self._thread.join(timeout_s)
        return not self.running

    def close_at_exit(self) -> None:
        """Leave the rest to the other process at the interpreter's exit, without waiting for it."""
        if not self._ending.is_set() and self._watcher is not None:
            self._watcher.start_if_due()  # the last one may have died, and the rest must not wait for the next session
        self.stop(0.5)

    def after_fork_in_child(self) -> None:
        """Hold nothing of the process, which belongs to the parent."""
        if self._watcher is not None:
            self._watcher.after_fork_in_child()

    def _loop(self) -> None:
        try:
            while not (self._ending.is_set() or self._retired):
                self._poll()
                self._wake.wait(DRAIN_POLL_S if self._drains else POLL_S)
        finally:
            if self._retired:
                self._spool.writers.close_writers()
            self._drains.answer(self._drains.still_open(), False)
            if self._watcher is not None:
                self._watcher.release()

    def _poll(self) -> None:
        try:
            if self._watcher is not None:
                self._watcher.start_if_due()
                self._watcher.pass_on_log()
            self._complete_where_settled()
            self._answer_drains()
        except OSError as error:  # a SpoolError is one
            self._log_error(error)

    def _log_error(self, error: OSError) -> None:
        """Log an error that keeps the process from being watched, unless it is the same as the last one."""
        if str(error) != self._last_error:
            self._last_error = str(error)
            _logger.warning("the uploader's process cannot be watched now: %s", error)

    def _complete_where_settled(self) -> None:
        ordered_at = self._spool.ordered_at()
        self._polls += 1
        if ordered_at == self._ordered_at and self._polls % POLLS_PER_CHECK:
            return
        self._ordered_at = ordered_at
        for folder in list(self._written_here):
            if is_settle_ordered(folder):
                self._complete_run(folder)

    def _answer_drains(self) -> None:
        if not self._drains:
            return
        drains = self._drains.still_open()
        if drains and (answer := self._drain_check.answer()) is not None:
            self._drains.answer(drains, answer)
