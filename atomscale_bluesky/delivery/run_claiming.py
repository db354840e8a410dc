"""Claims runs for one uploader: takes a run's lock, reads its files, and says in the log which runs it cannot deliver.

A run is claimed through its lock, so no two uploaders have the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from ..spool.gil_yield import GilYield
from ..spool.leftovers import is_beginning
from ..spool.locks import RunLock
from ..spool.run_claim import FoundRun
from ..spool.spool import Spool
from .run_delivery import RunDelivery
from .run_orders import obey_orders
from .tasks.work import ServerFacts
from .waiting_runs import FileSizes, Reason, SetAside, file_sizes

_logger = logging.getLogger(__name__)


class Unclaimed(Enum):
    """What else can come of an attempt to claim a run, beside its delivery and a reason to set it aside."""

    GONE = "it has left the spool"
    MOVED_JUST_NOW = "it was moved to another endpoint during the attempt"


class RunClaiming:
    """Claims runs. Belongs to the deciding thread.

    Args:
        spool: Whose runs.
        endpoint: Where they are to go. Runs for another endpoint are left alone.
        server_facts: What is known about the server, shared by all runs.
        gil_yield: Makes way for a plan's thread.
        unix_time: Returns Unix seconds. A test passes its own.
    """

    def __init__(
        self,
        spool: Spool,
        endpoint: str,
        *,
        server_facts: ServerFacts,
        gil_yield: GilYield,
        unix_time: Callable[[], float],
    ) -> None:
        self._spool = spool
        self._endpoint = endpoint
        self._server_facts = server_facts
        self._gil_yield = gil_yield
        self._unix_time = unix_time
        self._logged_undelivered: set[Path] = set()  # runs that the log says are not delivered now
        self._logged_found: set[Path] = set()  # runs that the log says were found

    def claim(
        self, folder: Path, lock: RunLock | None, *, written_here: bool, begun_here: bool
    ) -> RunDelivery | SetAside | Unclaimed:
        """Claim the run in a folder, and note its orders and its interruption.

        Args:
            folder: The run's.
            lock: Its uploader lock, if this process holds it already. The caller releases it unless the run is claimed.
            written_here: True if its writer is in this process, so that it cannot have died.
            begun_here: True if it began in this process, so that it is no news that it was found.

        Returns:
            Its delivery, with its files open. Or why it is set aside, or what else came of it.

        Raises:
            OSError: The run's files cannot be used. A SpoolError is one. None of them stays open.
        """
        sizes = file_sizes(folder)
        found = self._spool.find_run(folder)
        if found is not None and found.endpoint != self._endpoint:
            self._log_other_endpoint(found, found.endpoint)
            return SetAside(Reason.OTHER_ENDPOINT, sizes)
        claim = self._spool.claim(folder, lock, found=found)
        if claim is None:
            return _why_unclaimed(folder, found, sizes)
        if claim.endpoint != self._endpoint:
            claim.close()
            found = self._spool.find_run(folder)
            if found is not None and found.endpoint == self._endpoint:  # the order itself is gone
                self._log_other_endpoint(found, claim.endpoint)
                return SetAside(Reason.OTHER_ENDPOINT, sizes)
            return Unclaimed.MOVED_JUST_NOW
        try:
            delivery = RunDelivery(
                claim, server_facts=self._server_facts, unix_time=self._unix_time, gil_yield=self._gil_yield
            )
            obey_orders(delivery.run)
            if not written_here:
                if not begun_here:
                    self._log_found(delivery)
                delivery.complete_if_interrupted()
        except BaseException:
            claim.close()  # tried again from scan to scan, so nothing may stay open
            raise
        return delivery

    def log_broken(self, folder: Path, error: Exception) -> None:
        """Log that a run cannot be delivered now, once until it leaves the spool."""
        if folder not in self._logged_undelivered:
            self._logged_undelivered.add(folder)
            expected = isinstance(error, OSError)  # a SpoolError is one
            _logger.error("run in %s cannot be delivered now, it is kept: %s", folder, error, exc_info=not expected)

    def forget(self, folder: Path) -> None:
        """Forget what was logged about a run that has left the spool."""
        self._logged_undelivered.discard(folder)
        self._logged_found.discard(folder)

    def _log_other_endpoint(self, found: FoundRun, endpoint: str) -> None:
        if found.folder not in self._logged_undelivered:
            self._logged_undelivered.add(found.folder)
            spooled = endpoint == found.header.endpoint
            _logger.warning(
                "run %s was %s %s and waits for an uploader with that endpoint",
                found.header.run_uid, "spooled for" if spooled else "moved to", endpoint,
            )  # fmt: skip

    def _log_found(self, delivery: RunDelivery) -> None:
        run = delivery.run
        if run.claim.folder not in self._logged_found:
            self._logged_found.add(run.claim.folder)
            parked = run.needs_operator_because or run.state.unresolved
            _logger.info(
                "run %s was found in the spool; %s", run.header.run_uid,
                f"it is parked and waits for the operator: {parked}" if parked else "its delivery goes on",
            )  # fmt: skip


def _why_unclaimed(folder: Path, found: FoundRun | None, sizes: FileSizes) -> SetAside | Unclaimed:
    """Return why the run in a folder cannot be claimed now."""
    if not folder.exists():
        return Unclaimed.GONE
    if found is not None:
        return SetAside(Reason.CLAIMED_ELSEWHERE)
    return SetAside(Reason.NO_HEADER_YET) if is_beginning(folder) else SetAside(Reason.EMPTY, sizes)
