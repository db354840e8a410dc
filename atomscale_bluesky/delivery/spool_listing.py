"""Finds the runs that have come into the spool or gone. Lists the folder only when something says that it changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..spool.spool import Spool

# A folder's time of change may be as coarse as 2 s. So for this time after a change it is listed again.
COARSE_S = 3.0
# How often the folder is listed if nothing says that it has changed.
LIST_S = 60.0


class SpoolListing:
    """The runs in a spool as they were listed last. Belongs to the deciding thread.

    Args:
        spool: Whose runs.
        monotonic: Returns monotonic seconds. A test passes its own.
    """

    def __init__(self, spool: Spool, monotonic: Callable[[], float]) -> None:
        self._spool = spool
        self._monotonic = monotonic
        self._names: set[str] = set()
        self._listed_at = float("-inf")
        self._list_until = float("-inf")
        self._changed_at = -1

    def update(self) -> tuple[list[Path], list[Path]]:
        """Return the runs that have come since the last call, by name, and those that have gone.

        Raises:
            OSError: The spool cannot be read.
        """
        now, changed_at = self._monotonic(), self._spool.changed_at()
        if changed_at != self._changed_at:
            self._list_until = now + COARSE_S
        elif now >= self._list_until and now < self._listed_at + LIST_S:
            return [], []
        before, self._names = self._names, set(self._spool.run_names())
        self._changed_at, self._listed_at = changed_at, now
        come, gone = sorted(self._names - before), before - self._names
        return [self._spool.path / name for name in come], [self._spool.path / name for name in gone]

    def forget(self, folder: Path) -> None:
        """Forget a run that has left the spool, so that a further one of this name counts as new."""
        self._names.discard(folder.name)
