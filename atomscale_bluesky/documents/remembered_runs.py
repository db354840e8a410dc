"""Which runs and descriptors are remembered although their runs are not open: of runs that ended, or are skipped.

Used by one thread at a time, which holds the recorder's lock.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable

# How many ended runs are remembered, to recognise a replay, how many runs that are skipped, and how many descriptors of
# each kind. What is forgotten is sought in the spool and its history again.
REMEMBERED_RUNS = 1000


class RememberedRuns:
    """The uids of runs that are not open, and of their descriptors. Of each kind the oldest are forgotten.

    A run is skipped from its start document to its stop document. A completed run is one without a stop document, whose
    journal says that it was interrupted: it may go on.
    """

    def __init__(self) -> None:
        self._ended: OrderedDict[str, None] = OrderedDict()  # uids of runs
        # By descriptor uid: the uid of its run.
        self._descriptors_of_ended: OrderedDict[str, str] = OrderedDict()
        self._descriptors_of_completed: OrderedDict[str, str] = OrderedDict()
        self._descriptors_of_skipped: OrderedDict[str, str] = OrderedDict()
        self._skipped: OrderedDict[str, None] = OrderedDict()  # uids of runs
        # By uid of a descriptor that was sought in the spool in vain: when to search again, monotonic.
        self._unknown_descriptors: OrderedDict[str, float] = OrderedDict()

    def skip(self, uid: str) -> None:
        """Note that a run is skipped: its documents are known, or another recorder takes them."""
        self._skipped[uid] = None
        _forget_oldest(self._skipped)

    def skips(self, uid: str) -> bool:
        """Return True if a run is skipped."""
        return uid in self._skipped

    def skip_descriptor(self, descriptor: str, uid: str) -> None:
        """Note a descriptor of a run that is skipped."""
        self._descriptors_of_skipped[descriptor] = uid
        _forget_oldest(self._descriptors_of_skipped)

    def skips_descriptor(self, descriptor: str) -> bool:
        """Return True if a descriptor belongs to a run that is skipped."""
        return descriptor in self._descriptors_of_skipped

    def end_skipped(self, uid: str) -> None:
        """Note that the stop document of a run that is skipped has come."""
        self._skipped.pop(uid, None)
        for descriptor in [key for key, run_uid in self._descriptors_of_skipped.items() if run_uid == uid]:
            self._descriptors_of_ended[descriptor] = self._descriptors_of_skipped.pop(descriptor)
        _forget_oldest(self._descriptors_of_ended)

    def note_ended(self, uid: str) -> None:
        """Note that a run was recorded up to its stop document."""
        self._ended[uid] = None
        _forget_oldest(self._ended)

    def has_ended(self, uid: str) -> bool:
        """Return True if a run was recorded here up to its stop document."""
        return uid in self._ended

    def note_descriptors(self, descriptors: Iterable[str], uid: str, *, ended: bool) -> None:
        """Note the descriptors of a run that has ended, or that was completed as interrupted."""
        remembered = self._descriptors_of_ended if ended else self._descriptors_of_completed
        for descriptor in descriptors:
            remembered[descriptor] = uid
        _forget_oldest(remembered)

    def ended_run_of(self, descriptor: str) -> str | None:
        """Return the uid of the ended run that a descriptor belonged to, or None."""
        return self._descriptors_of_ended.get(descriptor)

    def completed_run_of(self, descriptor: str) -> str | None:
        """Return the uid of the completed run that a descriptor belonged to, or None."""
        return self._descriptors_of_completed.get(descriptor)

    def note_unknown(self, descriptor: str, search_again_at: float = math.inf) -> None:
        """Note that a descriptor was sought in the spool in vain, and from when on that may be repeated, monotonic."""
        self._unknown_descriptors[descriptor] = search_again_at
        _forget_oldest(self._unknown_descriptors)

    def is_unknown(self, descriptor: str) -> bool:
        """Return True if a descriptor was sought in vain, and need not be sought again now."""
        return time.monotonic() < self._unknown_descriptors.get(descriptor, -math.inf)


def _forget_oldest(remembered: OrderedDict[str, str] | OrderedDict[str, None] | OrderedDict[str, float]) -> None:
    while len(remembered) > REMEMBERED_RUNS:
        remembered.popitem(last=False)
