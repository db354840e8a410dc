"""Decides which of the spool's runs are active. Finds runs, obeys orders, and gives each run its turn.

    active_runs     the runs that are delivered now; run_claiming, how one becomes active
    waiting_runs    the others: queued, or set aside until their files change
    spool_listing   which runs have come and gone
    turns           which runs make way when more of them wait than there are places
    ledger_growth   which active runs make progress

Bounded: at most `MAX_ACTIVE` runs are active, including those of this process. Only active runs have files open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..spool.gil_yield import GilYield
from ..spool.locks import RunLock
from ..spool.orders import is_settle_ordered
from ..spool.spool import Spool
from .active_runs import ActiveRuns
from .run_orders import obey_orders
from .spool_listing import SpoolListing
from .tasks.work import ServerFacts
from .turns import Turns
from .waiting_runs import Reason, SetAside, file_sizes

_logger = logging.getLogger(__name__)


class RunScheduler:
    """Schedules the runs of one uploader. Belongs to its deciding thread.

    Args:
        spool: Whose runs.
        endpoint: Where they are to go. Runs for another endpoint are left alone.
        server_facts: What is known about the server, shared by all runs.
        complete_run: Has the writer in this process complete the run in a folder whose stop document never came.
        gil_yield: Makes way for a plan's thread.
        unix_time, monotonic: The clocks. A test passes its own.
    """

    def __init__(
        self,
        spool: Spool,
        endpoint: str,
        *,
        server_facts: ServerFacts | None = None,
        complete_run: Callable[[Path], None] = lambda folder: None,
        gil_yield: GilYield | None = None,
        unix_time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listing = SpoolListing(spool, monotonic)
        self.active = ActiveRuns(
            spool,
            endpoint,
            listing=self._listing,
            server_facts=server_facts,
            gil_yield=gil_yield,
            unix_time=unix_time,
            monotonic=monotonic,
        )
        self.turns = Turns(self.active, gil_yield, monotonic)
        self._spool = spool
        self._complete_run = complete_run
        self.knows_runs = False  # the last scan could read the spool
        self._ordered_at = -1
        self._check_all = True

    @property
    def others_deliver(self) -> bool:
        """Return True if another process, or another uploader of this one, delivers a run of the spool."""
        return self.active.waiting.count(Reason.CLAIMED_ELSEWHERE) > 0

    @property
    def needs_operator(self) -> bool:
        """Return True if a run cannot be delivered whole until the operator acts. Checks every run."""
        return self.active.waiting.needs_operator or any(delivery.needs_operator for delivery in self.active)

    @property
    def has_run_without_header(self) -> bool:
        """Return True if a run that is just beginning had no header yet."""
        return self.active.waiting.count(Reason.NO_HEADER_YET) > 0

    @property
    def anything_open(self) -> bool:
        """Return True if a run may still get readings."""
        return (
            self.has_run_without_header
            or self.active.waiting.count(Reason.NOTHING_TO_SEND) > 0
            or any(not (delivery.run.stopped or delivery.run.parked) for delivery in self.active)
        )

    def check_all(self) -> None:
        """Let the next scan check every run, because a drain waits for the answer."""
        self._check_all = True

    def scan(self, *, server_answers: bool = True) -> None:
        """Obey orders, complete runs whose writer has died, and find the runs that can be delivered.

        Args:
            server_answers: True while the server answers. While it does not, no run is preferred to another.
        """
        active = self.active
        for delivery in active:
            folder = delivery.claim.folder
            active.guarded(delivery, partial(obey_orders, delivery.run))
            if active.is_to_settle(delivery):
                active.guarded(delivery, partial(self._complete_run, folder))
            if folder not in self.active.written_here and not delivery.run.stopped and folder in active:
                active.guarded(delivery, delivery.complete_if_interrupted)
            if active.is_active(delivery) and delivery.idle:
                active.guarded(delivery, delivery.close_files)
        try:
            come, gone = self._listing.update()
        except OSError as error:
            _logger.warning("spool %s cannot be read: %s", self._spool.path, error)
            self.knows_runs = False
            return
        self.knows_runs = True
        for folder in come:
            if folder not in active and folder not in self.active.waiting:
                self.active.waiting.queue(folder, live=folder in self.active.written_here)
        for folder in gone:
            active.forget(folder)
        self._queue_where_possible()
        active.ledger_growth.update(active)
        self.turns.fill_places()
        if self.active.waiting.any_queued and active.free_places <= 0:
            self.turns.give_turns(server_answers=server_answers)
            self.turns.fill_places()

    def take_up(self, folder: Path, lock: RunLock | None) -> None:
        """Take up a run that begins in this process.

        Args:
            folder: The run's.
            lock: Its uploader lock, if this process holds it already. Released unless the run becomes active.
        """
        self.active.written_here.add(folder)
        self.active.begun_here.add(folder)
        if folder in self.active:  # a scan has found it before this message came
            return
        self.active.waiting.forget(folder)
        if self.active.free_places > 0 or self.turns.free_a_place():
            self.active.claim(folder, lock)
            return
        if lock is not None:
            lock.release()
        self.active.waiting.queue(folder, live=True)

    def note_written(self, folder: Path) -> None:
        """Note that a run of this process has something to send."""
        delivery = self.active.get(folder)
        if delivery is not None:
            delivery.wake()
        elif self.active.waiting.reason(folder) is Reason.NOTHING_TO_SEND:
            self.active.waiting.queue(folder, live=folder in self.active.written_here)

    def note_writer_gone(self, folder: Path) -> None:
        """Note that the writer in this process has finished with a run."""
        self.active.written_here.discard(folder)
        delivery = self.active.get(folder)
        if delivery is not None:
            delivery.wake()
        elif folder in self.active.waiting and self.active.waiting.reason(folder) in {None, Reason.NOTHING_TO_SEND}:
            self.active.waiting.queue(folder, live=False)

    def note_all_writers_gone(self) -> None:
        """Note that nothing writes in this process any more, and complete what was being written."""
        for folder in list(self.active.written_here):
            self.note_writer_gone(folder)
        for delivery in self.active:
            self.active.guarded(delivery, delivery.complete_if_interrupted)

    def reload_runs(self) -> bool:
        """Read the files of runs again for which that was requested. Return True if there were any."""
        again = [delivery for delivery in self.active if delivery.may_reload_now]
        for delivery in again:
            self.active.reload(delivery)
        return bool(again)

    def _queue_where_possible(self) -> None:
        """Queue the runs whose files have changed since they were set aside, and those whose pause is over."""
        ordered_at = self._spool.ordered_at()
        by_size = self._check_all or ordered_at != self._ordered_at
        by_opening = self._check_all
        self._check_all, self._ordered_at = False, ordered_at
        if by_size:  # the operator may have mended what was broken
            self.active.broken_pauses.end_all()
        for folder in self.active.waiting.find_due(self._is_due, all_by_size=by_size, all_by_opening=by_opening):
            self.active.waiting.queue(folder, live=folder in self.active.written_here)

    def _is_due(self, folder: Path, note: SetAside) -> bool:
        """Return True if something can be done for a run that is set aside, or if its files cannot be read."""
        try:
            return self._has_something_to_do(folder, note)
        except OSError:
            return True  # claiming it fails the same way: then it is logged, and set aside as broken

    def _has_something_to_do(self, folder: Path, note: SetAside) -> bool:
        if note.reason is Reason.CLAIMED_ELSEWHERE:
            if folder in self.active.written_here:
                self._complete_if_settled(folder)
            return not self._spool.uploader_alive(folder)
        if note.reason is Reason.BROKEN:
            return self.active.broken_pauses.is_over(folder)
        if note.reason is Reason.NO_HEADER_YET or file_sizes(folder) != note.sizes:
            return True
        return note.written_elsewhere and not self._spool.writer_alive(folder)

    def _complete_if_settled(self, folder: Path) -> None:
        """Obey the one order that only the writer can obey, also where another process delivers the run."""
        if is_settle_ordered(folder):
            self._complete_run(folder)
