"""Delivers a spool's runs from this process: starts, wakes and stops the deciding thread, and asks it questions.

The RunEngine's thread never waits here: `add` and `wake` put a message into the deciding thread's queue. The code of
that thread is in `delivery_loop`.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..settings import Settings, spool_option
from ..spool.run_writer import RunWriter
from ..spool.spool import Spool
from ..status.outage import key_for_upload
from .deliverer import Deliverer
from .delivery_loop import DeliveryLoop, EndLoop, Retire, RunBegun, WriterGone
from .drain import DrainQuestion
from .terminal import is_terminal, print_line

_logger = logging.getLogger(__name__)


class Uploader(Deliverer):
    """Delivers the runs of a spool to the settings' endpoint.

    Args:
        spool: Whose runs. Several uploaders may share one. Each run has one deliverer.
        settings: Endpoint, key and limits.
        follow: True if it serves other processes, which send no message when they begin a run or write. Then it polls.
        complete_run: Has the writer in this process complete the run in a folder whose stop document never came.
        unix_time, monotonic, jitter: The clocks and the random number. A test passes its own.
    """

    def __init__(
        self,
        spool: Spool,
        settings: Settings,
        *,
        follow: bool = False,
        complete_run: Callable[[Path], None] = lambda folder: None,
        unix_time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if settings.keep == "verified":
            # Here and not in a thread: a process forked during the import would wait for it for ever.
            from ..checks import verify_run  # noqa: F401
        self._exit_timeout_s = settings.exit_timeout_s
        self._spool_option = spool_option(settings)
        self._monotonic = monotonic
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._loop = DeliveryLoop(
            spool,
            settings,
            self._inbox,
            follow=follow,
            complete_run=complete_run,
            unix_time=unix_time,
            monotonic=monotonic,
            jitter=jitter,
        )
        self._runs_begun = 0  # as `add` was called. The loop counts those that it has seen.
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Return True if the deciding thread lives."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def delivers_new_runs(self) -> bool:
        """Return True if there is a place for a run that begins now."""
        return self._runs_begun - self._loop.runs_begun < self._loop.runs.active.free_places

    @property
    def _is_own_thread(self) -> bool:
        return self._thread is threading.current_thread() or self._loop.workers.is_own_thread

    @property
    def idle_since(self) -> float | None:
        """Since when nothing moves and none of its runs is being written, monotonic; None while something does."""
        return self._loop.idle_since

    @property
    def key_refused_s(self) -> float:
        """For how long the server has refused the API key; 0 while the key is taken, or was not tried yet."""
        since = self._loop.retries.key_refused_since
        return 0.0 if since is None else self._monotonic() - since

    def start(self) -> None:
        """Start delivering. Idempotent until `stop`."""
        if self._thread is None:
            self._loop.workers.start_thread()  # now: at the interpreter's exit no thread can start
            self._thread = threading.Thread(target=self._deliver, name="atomscale-uploader", daemon=True)
            self._thread.start()

    def add(self, writer: RunWriter) -> None:
        """Take up a run that begins in this process. Does not wait."""
        self._runs_begun += 1
        self._inbox.put(RunBegun(writer.folder, writer.uploader_lock))
        if self._loop.has_ended:
            self._loop.refuse_messages()

    def wake(self, folder: Path | None = None) -> None:
        """Note that a journal has new lines that can be sent. Does not wait."""
        self._inbox.put(folder)

    def writer_done(self, folder: Path) -> None:
        """Note that the writer in this process has finished with a run. Does not wait."""
        self._inbox.put(WriterGone(folder))

    def retire(self) -> None:
        """Complete what the callback left, because it is gone, then end. The garbage collector may call this."""
        self._inbox.put(Retire())

    def ask_whether_drained(self) -> DrainQuestion | None:
        """Return the question that `drain` asks, without waiting. Return None if the uploader does not run."""
        return self._ask(DrainQuestion())

    def drain_own(self, timeout_s: float) -> bool:
        """Wait as `drain` does, but not for runs that other uploaders of the spool have. Return the same."""
        drain = None if self._is_own_thread else self._ask(DrainQuestion(with_others=False))
        return drain is not None and drain.wait(timeout_s)

    def _ask(self, drain: DrainQuestion) -> DrainQuestion | None:
        if not self.running:
            return None
        self._inbox.put(drain)
        if self._loop.has_ended:
            self._loop.refuse_messages()
        return drain

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Stop after the requests under way. Return True if the threads ended in time. What waits stays spooled."""
        if self._thread is None:
            return True
        deadline = self._monotonic() + timeout_s
        self._inbox.put(EndLoop())
        if self._is_own_thread:
            return False
        self._thread.join(timeout_s)
        sent = self._loop.workers.join(max(0.0, deadline - self._monotonic()))
        return sent and not self._thread.is_alive()

    def close_at_exit(self) -> None:
        """Drain and stop at the interpreter's exit, within `exit_timeout_s`. Tell a terminal if it takes long.

        Does not wait for a server that refuses the API key: nothing can change that before the process ends.
        """
        limit_s = self._exit_timeout_s
        soon_s = min(0.5, limit_s)
        drain = None if self._is_own_thread else self._ask(DrainQuestion(with_others=False))
        if drain is not None and not drain.wait(soon_s):
            helps = drain.answer is None and not self.key_refused_s  # else it was answered: no wait can help
            if self.key_refused_s:
                _logger.warning("the API key is refused, and this session ends; %s", key_for_upload(self._spool_option))
            if helps and limit_s > soon_s:
                if is_terminal():
                    print_line(f"atomscale: up to {limit_s:g} s for what is under way; the rest stays spooled")
                self.drain_own(limit_s - soon_s)
        self.stop(0.5)

    def after_fork_in_child(self) -> None:
        """Do nothing: the threads are the parent's."""

    def _deliver(self) -> None:
        """Run the loop. The thread refers to the uploader, so that one without a callback is still closed at exit."""
        self._loop.run()
