"""The runs of a spool that no delivery has open: they wait for their turn, or rest. Holds no file open.

A run in the queue waits for its turn. Those that are being written in this process come first, then the oldest.

For a run that rests nothing can be done until its files change. What they looked like is remembered, and when they look
different the run gets into the queue. They are checked a few at a time, so a pile of thousands costs no more than a few
dozen: each within about a minute, and all at once when an order was given or a drain was asked for.
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

# How many resting runs one check looks at: at least so many, and all of them within so many checks.
PER_CHECK, CHECKS_PER_ROUND = 64, 30
# The same for those that are asked for by a lock or by opening their files, which takes some 20 times as long.
DEAR_PER_CHECK = 16

Marks = frozenset[tuple[str, int]]


class Why(Enum):
    """Why nothing can be done for a run now."""

    PERSON = "it is parked or refused"
    QUIET = "it is being written, and has nothing to send yet"
    ENDPOINT = "it goes to another endpoint"
    HELD = "another process delivers it"
    UNREADY = "it has no header yet"
    EMPTY = "its folder holds no run"
    BROKEN = "its files cannot be used"


# Whether these can go on is not told by the sizes of their files.
_DEAR = frozenset({Why.HELD, Why.UNREADY, Why.BROKEN})


class Rest(NamedTuple):
    """What is remembered of a run that rests."""

    why: Why
    marks: Marks = frozenset()
    written_elsewhere: bool = False  # another process writes it, and may die
    left: bool = False  # something of it waits for a person


class Waiting:
    """The runs that wait, by folder; belongs to the uploader's deciding thread."""

    def __init__(self) -> None:
        self._live: OrderedDict[Path, None] = OrderedDict()
        self._backlog: OrderedDict[Path, None] = OrderedDict()
        self._cheap: OrderedDict[Path, Rest] = OrderedDict()
        self._dear: OrderedDict[Path, Rest] = OrderedDict()
        self._counts: Counter[Why] = Counter()

    def __contains__(self, folder: Path) -> bool:
        return any(folder in kind for kind in (self._live, self._backlog, self._cheap, self._dear))

    def __iter__(self) -> Iterator[Path]:
        for kind in (self._live, self._backlog, self._cheap, self._dear):
            yield from list(kind)

    @property
    def live(self) -> bool:
        """Return True if a run that is being written here waits for its turn."""
        return bool(self._live)

    @property
    def backlog(self) -> bool:
        """Return True if another run waits for its turn."""
        return bool(self._backlog)

    def count(self, why: Why) -> int:
        """Return how many runs rest for this reason."""
        return self._counts[why]

    def why(self, folder: Path) -> Why | None:
        """Return why a run rests; None if it does not."""
        rest = self._cheap.get(folder) or self._dear.get(folder)
        return rest.why if rest else None

    @property
    def anything_left(self) -> bool:
        """Return True if a run waits for a person, or its files cannot be used. Looks at every run."""
        return self._counts[Why.BROKEN] > 0 or any(rest.left for rest in self._cheap.values())

    def queue(self, folder: Path, *, live: bool, first: bool = False) -> None:
        """Have a run wait for its turn, as the last one of its kind or as the first."""
        self.forget(folder)
        queue = self._live if live else self._backlog
        queue[folder] = None
        if first:
            queue.move_to_end(folder, last=False)

    def rest(self, folder: Path, rest: Rest) -> None:
        """Have a run rest until its files change."""
        self.forget(folder)
        dear = rest.why in _DEAR or rest.written_elsewhere
        (self._dear if dear else self._cheap)[folder] = rest
        self._counts[rest.why] += 1

    def forget(self, folder: Path) -> None:
        """Drop a run that is delivered or gone."""
        self._live.pop(folder, None)
        self._backlog.pop(folder, None)
        rest = self._cheap.pop(folder, None) or self._dear.pop(folder, None)
        if rest is not None:
            self._counts[rest.why] -= 1

    def next(self, *, live_first: bool) -> Path | None:
        """Take the run whose turn it is out of the queue; None if none waits for it."""
        for queue in (self._live, self._backlog) if live_first else (self._backlog, self._live):
            if queue:
                return queue.popitem(last=False)[0]
        return None

    def next_resting(self) -> Path | None:
        """Take out a run that can have a place that nobody else needs: one that is written, or waits for a person."""
        for why in (Why.QUIET, Why.PERSON):
            if self._counts[why]:
                for kind in (self._cheap, self._dear):
                    folder = next((folder for folder, rest in kind.items() if rest.why is why), None)
                    if folder is not None:
                        self.forget(folder)
                        return folder
        return None

    def resting(self, why: Why) -> list[Path]:
        """Return the runs that rest for a reason."""
        return [folder for kind in (self._cheap, self._dear) for folder, rest in kind.items() if rest.why is why]

    def check(self, is_due: Callable[[Path, Rest], bool], *, all_cheap: bool, all_dear: bool) -> list[Path]:
        """Return the runs for which something can be done again, of the next few or of all that rest."""
        found: list[Path] = []
        for kind, least, everything in (
            (self._cheap, PER_CHECK, all_cheap),
            (self._dear, DEAR_PER_CHECK, all_dear),
        ):
            share = len(kind) // CHECKS_PER_ROUND + 1 if kind is self._cheap else 0
            number = len(kind) if everything else max(least, share)
            for folder, rest in list(islice(kind.items(), number)):
                kind.move_to_end(folder)
                if is_due(folder, rest):
                    found.append(folder)
        return found


def marks_of(folder: Path) -> Marks:
    """Return what tells whether a run was written on or given an order: the sizes of its journal and its orders."""
    found: list[tuple[str, int]] = []
    try:
        for name in os.listdir(folder):
            if name == ORDERS or name.startswith("journal-"):
                found.append((name, os.stat(folder / name).st_size))  # noqa: PTH116 - a third of the price
    except OSError:  # it is being removed
        return frozenset()
    return frozenset(found)
