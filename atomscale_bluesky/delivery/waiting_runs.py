"""The runs of a spool that are not active: they are queued, or set aside. Holds no file open.

A queued run waits for its turn. Those that are being written in this process come first, then the oldest.

A run is set aside when nothing can be done for it until its files change. The sizes of its files are remembered, and
when they differ the run is queued. Runs that are set aside are checked a few at a time, so thousands cost no more than
a few dozen. Each is checked within about a minute. When an order was given or a drain was asked for, all are checked at
once.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..spool.orders import ORDERS

# How many runs one call checks: at least `PER_CHECK`, and all of them within `CHECKS_PER_ROUND` checks.
PER_CHECK, CHECKS_PER_ROUND = 64, 30
# The same for runs that are checked by a lock or by opening their files, which takes some 20 times as long.
OPENED_PER_CHECK = 16

FileSizes = frozenset[tuple[str, int]]


class Reason(Enum):
    """Why a run is set aside."""

    NEEDS_OPERATOR = "it is parked or refused"
    NOTHING_TO_SEND = "it is being written, and has nothing to send yet"
    OTHER_ENDPOINT = "it goes to another endpoint"
    CLAIMED_ELSEWHERE = "another process delivers it"
    NO_HEADER_YET = "it has no header yet"
    EMPTY = "its folder holds no run"
    BROKEN = "its files cannot be used"


# For these the sizes of a run's files do not tell whether it can go on.
_BY_OPENING = frozenset({Reason.CLAIMED_ELSEWHERE, Reason.NO_HEADER_YET, Reason.BROKEN})


class SetAside(NamedTuple):
    """What is remembered of a run that is set aside."""

    reason: Reason
    sizes: FileSizes = frozenset()
    written_elsewhere: bool = False  # another process writes it, and may die
    needs_operator: bool = False  # a part of it waits for the operator


class WaitingRuns:
    """The runs that wait, by folder. Belongs to the uploader's deciding thread."""

    def __init__(self) -> None:
        self._live: OrderedDict[Path, None] = OrderedDict()
        self._backlog: OrderedDict[Path, None] = OrderedDict()
        self._by_size: OrderedDict[Path, SetAside] = OrderedDict()
        self._by_opening: OrderedDict[Path, SetAside] = OrderedDict()
        self._counts: Counter[Reason] = Counter()

    def __contains__(self, folder: Path) -> bool:
        return any(folder in kind for kind in (self._live, self._backlog, self._by_size, self._by_opening))

    def __iter__(self) -> Iterator[Path]:
        for kind in (self._live, self._backlog, self._by_size, self._by_opening):
            yield from list(kind)

    @property
    def any_live(self) -> bool:
        """Return True if a run that is being written here is queued."""
        return bool(self._live)

    @property
    def any_backlog(self) -> bool:
        """Return True if another run is queued."""
        return bool(self._backlog)

    @property
    def any_queued(self) -> bool:
        """Return True if any run is queued."""
        return bool(self._live or self._backlog)

    def count(self, reason: Reason) -> int:
        """Return how many runs are set aside for this reason."""
        return self._counts[reason]

    def reason(self, folder: Path) -> Reason | None:
        """Return why a run is set aside, or None if it is not."""
        note = self._by_size.get(folder) or self._by_opening.get(folder)
        return note.reason if note else None

    @property
    def needs_operator(self) -> bool:
        """Return True if a run waits for the operator, or its files cannot be used. Checks every run."""
        return self._counts[Reason.BROKEN] > 0 or any(note.needs_operator for note in self._by_size.values())

    def queue(self, folder: Path, *, live: bool, first: bool = False) -> None:
        """Queue a run, as the last one of its kind or as the first."""
        self.forget(folder)
        queue = self._live if live else self._backlog
        queue[folder] = None
        if first:
            queue.move_to_end(folder, last=False)

    def set_aside(self, folder: Path, note: SetAside) -> None:
        """Set a run aside until its files change."""
        self.forget(folder)
        by_opening = note.reason in _BY_OPENING or note.written_elsewhere
        (self._by_opening if by_opening else self._by_size)[folder] = note
        self._counts[note.reason] += 1

    def forget(self, folder: Path) -> None:
        """Forget a run that has become active, or is gone."""
        self._live.pop(folder, None)
        self._backlog.pop(folder, None)
        note = self._by_size.pop(folder, None) or self._by_opening.pop(folder, None)
        if note is not None:
            self._counts[note.reason] -= 1

    def pop_next(self, *, live_first: bool) -> Path | None:
        """Remove and return the queued run whose turn it is, or None if none is queued."""
        for queue in (self._live, self._backlog) if live_first else (self._backlog, self._live):
            if queue:
                return queue.popitem(last=False)[0]
        return None

    def pop_set_aside(self) -> Path | None:
        """Remove and return a run that is set aside, for a free place that no queued run needs.

        It is one that is being written, or waits for the operator. Return None if there is none.
        """
        for reason in (Reason.NOTHING_TO_SEND, Reason.NEEDS_OPERATOR):
            if self._counts[reason]:
                for kind in (self._by_size, self._by_opening):
                    folder = next((folder for folder, note in kind.items() if note.reason is reason), None)
                    if folder is not None:
                        self.forget(folder)
                        return folder
        return None

    def find_due(
        self, is_due: Callable[[Path, SetAside], bool], *, all_by_size: bool, all_by_opening: bool
    ) -> list[Path]:
        """Return the runs that can go on, out of the next few or of all that are set aside."""
        found: list[Path] = []
        for kind, minimum, everything in (
            (self._by_size, PER_CHECK, all_by_size),
            (self._by_opening, OPENED_PER_CHECK, all_by_opening),
        ):
            share = len(kind) // CHECKS_PER_ROUND + 1 if kind is self._by_size else 0
            number = len(kind) if everything else max(minimum, share)
            for folder, note in list(islice(kind.items(), number)):
                kind.move_to_end(folder)
                if is_due(folder, note):
                    found.append(folder)
        return found


def file_sizes(folder: Path) -> FileSizes:
    """Return the sizes of a run's journal and orders. They differ once the run was written on or given an order."""
    found: list[tuple[str, int]] = []
    try:
        for name in os.listdir(folder):
            if name == ORDERS or name.startswith("journal-"):
                found.append((name, os.stat(folder / name).st_size))  # noqa: PTH116 - a third of the price
    except OSError:  # it is being removed
        return frozenset()
    return frozenset(found)
