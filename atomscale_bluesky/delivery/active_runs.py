"""The active runs of one uploader: claimed, with their files open. At most `MAX_ACTIVE`.

A run is claimed through its lock, so no two uploaders have the same one. If the files of a run cannot be used, only
that run is released. A later scan starts again from its files.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..spool.gil_yield import GilYield
from ..spool.leftovers import is_beginning
from ..spool.locks import RunLock
from ..spool.run_claim import FoundRun, RunClaim
from ..spool.spool import Spool
from .run_delivery import RunDelivery
from .run_end import finish, log_what_is_left
from .run_orders import obey_orders, settle_is_ordered
from .spool_listing import SpoolListing
from .tasks.work import ServerFacts
from .waiting_runs import FileSizes, Reason, SetAside, WaitingRuns, file_sizes

_logger = logging.getLogger(__name__)

# Runs delivered at the same time. Each has up to three files open: its lock, its ledger and its journal.
MAX_ACTIVE = 48

T = TypeVar("T")


class ActiveRuns:
    """The runs that one uploader delivers now. Belongs to its deciding thread.

    Args:
        spool: Whose runs.
        endpoint: Where they are to go. Runs for another endpoint are left alone.
        listing: Forgets the runs that leave the spool.
        server_facts: What is known about the server, shared by all runs.
        gil_yield: Makes way for a plan's thread.
        unix_time: Returns Unix seconds. A test passes its own.
        monotonic: Returns monotonic seconds. A test passes its own.
    """

    def __init__(
        self,
        spool: Spool,
        endpoint: str,
        *,
        listing: SpoolListing,
        server_facts: ServerFacts | None = None,
        gil_yield: GilYield | None = None,
        unix_time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.written_here: set[Path] = set()  # runs whose writer is in this process
        self.begun_here: set[Path] = set()  # runs that began in this process and are still in the spool
        self.waiting = WaitingRuns()
        self._spool = spool
        self._endpoint = endpoint
        self._listing = listing
        self._server_facts = server_facts or ServerFacts()
        self._gil_yield = gil_yield or GilYield()
        self._unix_time = unix_time
        self._monotonic = monotonic
        self._deliveries: dict[Path, RunDelivery] = {}
        self._task_order: deque[Path] = deque()  # whose task comes next
        self._ledger_sizes: dict[Path, tuple[int, float]] = {}  # how large each ledger was, and since when
        self._logged_undelivered: set[Path] = set()  # runs that the log says are not delivered now
        self._logged_found: set[Path] = set()  # runs that the log says were found

    def __iter__(self) -> Iterator[RunDelivery]:
        """Iterate over a copy, so that runs may be claimed and released meanwhile."""
        return iter(list(self._deliveries.values()))

    def __len__(self) -> int:
        return len(self._deliveries)

    def __contains__(self, folder: Path) -> bool:
        return folder in self._deliveries

    def get(self, folder: Path) -> RunDelivery | None:
        """Return the delivery of the run in a folder, or None if it is not active."""
        return self._deliveries.get(folder)

    def is_active(self, delivery: RunDelivery) -> bool:
        """Return True if the delivery is active: its run was not released, and not claimed again."""
        return self._deliveries.get(delivery.claim.folder) is delivery

    def next_delivery(self) -> RunDelivery:
        """Return the delivery whose turn it is. The next call returns the one after it."""
        folder = self._task_order[0]
        self._task_order.rotate(-1)
        return self._deliveries[folder]

    @property
    def free_places(self) -> int:
        """Return how many further runs can become active at once. Any thread may ask."""
        return MAX_ACTIVE - len(self._deliveries)

    def guarded(self, delivery: RunDelivery, step: Callable[[], T]) -> T | None:
        """Take a step of one run. If that fails, release the run: a later scan starts again from its files."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - one run's files, or a mistake of ours, must not stop all the others
            folder = delivery.claim.folder
            if folder in self._deliveries:
                self.release(delivery)
            self._set_broken_aside(folder, error)
            return None

    def is_to_settle(self, delivery: RunDelivery) -> bool:
        """Return True if the operator has ordered to complete an active run, and its writer is in this process."""
        written_here = self.is_active(delivery) and delivery.claim.folder in self.written_here
        return written_here and bool(self.guarded(delivery, lambda: settle_is_ordered(delivery.run)))

    def claim(self, folder: Path, lock: RunLock | None = None) -> None:
        """Begin to deliver the run in a folder, unless another process does, or it is for another endpoint.

        Args:
            folder: The run's.
            lock: Its uploader lock, if this process holds it already. Released unless the run becomes active.
        """
        if folder not in self._deliveries:
            try:
                self._claim(folder, lock)
            except Exception as error:  # noqa: BLE001 - as in `guarded`
                self._set_broken_aside(folder, error)
        if lock is not None and folder not in self._deliveries:
            lock.release()

    def reload(self, delivery: RunDelivery) -> None:
        """Read the files of an active run again from their beginning, without releasing its lock."""
        folder = delivery.claim.folder
        lock = self._deliveries.pop(folder).hand_over()
        self._task_order.remove(folder)
        self.claim(folder, lock)

    def release(self, delivery: RunDelivery) -> None:
        """Close the files of an active run and release its lock."""
        delivery.close()
        self._remove(delivery.claim.folder)

    def put_back(self, delivery: RunDelivery, *, first: bool = False) -> None:
        """Release a run and queue it."""
        folder = delivery.claim.folder
        self.release(delivery)
        self.waiting.queue(folder, live=folder in self.written_here, first=first)

    def set_aside(self, delivery: RunDelivery) -> bool:
        """Obey a run's orders. If nothing can be done for it then, release it until its files change.

        Return False if something can be done for it after all.
        """
        folder = delivery.claim.folder
        sizes = file_sizes(folder)
        self.guarded(delivery, partial(obey_orders, delivery.run))
        idle = delivery.idle and self.guarded(delivery, delivery.run.run_chunker.everything_read)
        if not self.is_active(delivery):
            return True  # its files cannot be used
        if not idle or self.is_to_settle(delivery):
            delivery.wake()
            return False
        self.guarded(delivery, partial(log_what_is_left, delivery.run))
        if self.is_active(delivery):
            self.release(delivery)
            no_more_comes = delivery.run.stopped or delivery.run.parked
            reason = Reason.NEEDS_OPERATOR if no_more_comes else Reason.NOTHING_TO_SEND
            written_elsewhere = not delivery.run.stopped and folder not in self.written_here
            self.waiting.set_aside(folder, SetAside(reason, sizes, written_elsewhere, delivery.needs_operator))
        return True

    def finish_runs(self) -> None:
        """Move the runs that are delivered whole into the history."""
        for delivery in self:
            run = delivery.run
            if not run.finished or run.unfinished_tasks.in_flight:
                continue
            if self.guarded(delivery, partial(finish, run, self._gil_yield)):
                self._remove(delivery.claim.folder)
                self.forget(delivery.claim.folder)

    def forget(self, folder: Path) -> None:
        """Forget a run that has left the spool."""
        self.waiting.forget(folder)
        self._listing.forget(folder)
        for known in (self.written_here, self.begun_here, self._logged_undelivered, self._logged_found):
            known.discard(folder)

    def note_progress(self) -> None:
        """Note which ledgers have grown."""
        now = self._monotonic()
        for delivery in self:
            folder, size = delivery.claim.folder, delivery.claim.ledger.size
            if self._ledger_sizes.get(folder, (-1, 0.0))[0] != size:
                self._ledger_sizes[folder] = (size, now)

    def quiet_s(self, delivery: RunDelivery) -> float:
        """Return for how long a run's ledger has not grown, as far as `note_progress` has seen."""
        return self._monotonic() - self._ledger_sizes[delivery.claim.folder][1]

    def close(self) -> None:
        """Release every run as it is."""
        for delivery in self:
            self.guarded(delivery, partial(log_what_is_left, delivery.run))
            delivery.close()

    def _claim(self, folder: Path, lock: RunLock | None) -> None:
        sizes = file_sizes(folder)
        found = self._spool.find_run(folder)
        if found is not None and found.endpoint != self._endpoint:
            self._leave_to_other_endpoint(found, sizes)
            return
        claim = self._spool.claim(folder, lock, found=found)
        if claim is None:
            self._set_unclaimed_aside(folder, found, sizes)
        elif claim.endpoint != self._endpoint:  # moved just now
            claim.close()
            self.waiting.queue(folder, live=folder in self.written_here)
        else:
            self._activate(claim)

    def _leave_to_other_endpoint(self, found: FoundRun, sizes: FileSizes) -> None:
        if found.folder not in self._logged_undelivered:
            self._logged_undelivered.add(found.folder)
            spooled = found.endpoint == found.header.endpoint
            _logger.warning(
                "run %s was %s %s and waits for an uploader with that endpoint",
                found.header.run_uid, "spooled for" if spooled else "moved to", found.endpoint,
            )  # fmt: skip
        self.waiting.set_aside(found.folder, SetAside(Reason.OTHER_ENDPOINT, sizes))

    def _set_unclaimed_aside(self, folder: Path, found: FoundRun | None, sizes: FileSizes) -> None:
        """Set a run aside that cannot be claimed now, or forget it if it is gone."""
        if not folder.exists():
            self.forget(folder)
        elif found is not None:
            self.waiting.set_aside(folder, SetAside(Reason.CLAIMED_ELSEWHERE))
        elif is_beginning(folder):
            self.waiting.set_aside(folder, SetAside(Reason.NO_HEADER_YET))
        else:
            self.waiting.set_aside(folder, SetAside(Reason.EMPTY, sizes))

    def _activate(self, claim: RunClaim) -> None:
        """Begin to deliver a claimed run. Closes the claim if that fails."""
        folder = claim.folder
        try:
            delivery = RunDelivery(
                claim, server_facts=self._server_facts, unix_time=self._unix_time, gil_yield=self._gil_yield
            )
            obey_orders(delivery.run)
            if folder not in self.written_here:
                if folder not in self._logged_found and folder not in self.begun_here:
                    self._logged_found.add(folder)
                    _logger.info("run %s was found in the spool; its delivery goes on", claim.header.run_uid)
                delivery.complete_if_interrupted()
        except BaseException:
            claim.close()  # tried again from scan to scan, so nothing may stay open
            raise
        self.waiting.forget(folder)
        self._deliveries[folder] = delivery
        self._task_order.append(folder)
        self._ledger_sizes[folder] = (claim.ledger.size, self._monotonic())

    def _remove(self, folder: Path) -> None:
        del self._deliveries[folder]
        self._task_order.remove(folder)
        self._ledger_sizes.pop(folder, None)

    def _set_broken_aside(self, folder: Path, error: Exception) -> None:
        self.waiting.set_aside(folder, SetAside(Reason.BROKEN))
        if folder not in self._logged_undelivered:
            self._logged_undelivered.add(folder)
            expected = isinstance(error, OSError)  # a SpoolError is one
            _logger.error("run in %s cannot be delivered now, it is kept: %s", folder, error, exc_info=not expected)
