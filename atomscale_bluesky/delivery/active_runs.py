"""The active runs of one uploader: claimed, with their files open. At most `MAX_ACTIVE`.

If the files of a run cannot be used, only that run is released. A later scan starts again from its files, after a pause
that grows from failure to failure.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..spool.gil_yield import GilYield
from ..spool.locks import RunLock
from ..spool.spool import Spool
from .backoff import RunPauses
from .ledger_growth import LedgerGrowth
from .run_claiming import RunClaiming, Unclaimed
from .run_delivery import RunDelivery
from .run_end import finish, log_what_is_left
from .run_orders import obey_orders, settle_is_ordered
from .spool_listing import SpoolListing
from .tasks.work import ServerFacts
from .waiting_runs import Reason, SetAside, WaitingRuns, file_sizes

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
        self.broken_pauses = RunPauses(monotonic)
        self.ledger_growth = LedgerGrowth(monotonic)
        self._listing = listing
        self._gil_yield = gil_yield or GilYield()
        self._claiming = RunClaiming(
            spool,
            endpoint,
            server_facts=server_facts or ServerFacts(),
            gil_yield=self._gil_yield,
            unix_time=unix_time,
        )
        self._deliveries: dict[Path, RunDelivery] = {}
        self._run_order: deque[Path] = deque()  # the run at the beginning is asked for a task next

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
        folder = self._run_order[0]
        self._run_order.rotate(-1)
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
        self._remove(folder)
        self.claim(folder, delivery.hand_over())

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
        self.broken_pauses.forget(folder)
        self._listing.forget(folder)
        self._claiming.forget(folder)
        self.written_here.discard(folder)
        self.begun_here.discard(folder)

    def close(self) -> None:
        """Release every run as it is."""
        for delivery in self:
            self.guarded(delivery, partial(log_what_is_left, delivery.run))
            delivery.close()

    def _claim(self, folder: Path, lock: RunLock | None) -> None:
        claimed = self._claiming.claim(
            folder, lock, written_here=folder in self.written_here, begun_here=folder in self.begun_here
        )
        match claimed:
            case RunDelivery():
                self.waiting.forget(folder)
                self._deliveries[folder] = claimed
                self._run_order.append(folder)
                self.ledger_growth.begin(claimed)
            case SetAside():
                self.waiting.set_aside(folder, claimed)
            case Unclaimed.MOVED_JUST_NOW:
                self.waiting.queue(folder, live=folder in self.written_here)
            case Unclaimed.GONE:
                self.forget(folder)

    def _remove(self, folder: Path) -> None:
        del self._deliveries[folder]
        self._run_order.remove(folder)
        self.ledger_growth.forget(folder)

    def _set_broken_aside(self, folder: Path, error: Exception) -> None:
        self.waiting.set_aside(folder, SetAside(Reason.BROKEN))
        self.broken_pauses.note_failure(folder)
        self._claiming.log_broken(folder, error)
