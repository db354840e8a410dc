"""What happened to a spool's readings since a process began to watch it: numbers that never fall.

The counts of the runs in a spool fall when a finished run leaves it, and the history forgets its oldest runs. So
neither can be a counter of a monitoring system, which takes a fall for a restart and counts everything again. Here only
rises are added, run by run, and what a run had when it left comes from its entry in the history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .account import Counts
from .run_status import RunStatus


class Totals(msgspec.Struct, frozen=True):
    """What was added since the watch began. `waiting` and `refused` of `points` stay 0, because they can fall."""

    points: Counts = Counts()
    chunks_confirmed: int = 0
    runs_finished: int = 0


class _Known(msgspec.Struct, frozen=True):
    """What is counted of a run already."""

    points: Counts
    chunks: int


class RunningTotals:
    """Adds up what a spool's runs gain. Belongs to one thread at a time.

    The first runs that it takes are where the counting begins: what they have by then is not added.
    """

    def __init__(self) -> None:
        self._begun = False
        self._known: dict[str, _Known] = {}  # by folder name
        self._statuses: dict[str, Counts] = {}  # by folder name: the object that was compared last
        self._ended: set[str] = set()  # runs of the history that are still in the spool
        self._unread: set[str] = set()  # runs that could not be read at the beginning
        self._counts: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    @property
    def totals(self) -> Totals:
        """What was added so far."""
        counts = self._counts
        return Totals(
            Counts(
                seen=counts["seen"],
                delivered=counts["delivered"],
                discarded=counts["discarded"],
                lost=counts["lost"],
                left_out=dict(self._left_out),
            ),
            chunks_confirmed=counts["chunks"],
            runs_finished=counts["runs"],
        )

    def take(self, runs: Mapping[str, RunStatus], finished: Iterable[Mapping[str, Any]]) -> None:
        """Add what is new.

        Args:
            runs: The runs in the spool, by the name of their folder. Read before the history: a run that leaves in
                between is in both, and one that is in neither was removed by hand.
            finished: The history's entries since the last call. At the first call, none.
        """
        for name, run in runs.items():
            if self._statuses.get(name) is run.points or name in self._ended:
                continue  # nothing of it has changed
            if run.state == "unreadable":  # its counts are not known now
                if not self._begun:
                    self._unread.add(name)
                continue
            self._statuses[name] = run.points
            now = _Known(run.points, sum(stream.chunks_confirmed for stream in run.streams))
            self._add_rise(name, now, count=self._begun and name not in self._unread)
            self._unread.discard(name)
        for entry in finished:
            name = str(entry.get("folder") or entry.get("run_uid"))
            if name not in self._ended:
                self._ended.add(name)
                self._counts["runs"] += 1
                self._add_rise(name, _of_entry(entry), count=True)
        for gone in self._known.keys() - runs.keys():
            del self._known[gone]
            self._statuses.pop(gone, None)
        self._ended &= runs.keys()
        self._begun = True

    def _add_rise(self, name: str, now: _Known, *, count: bool) -> None:
        known = self._known.get(name, _Known(Counts(), 0))
        self._known[name] = now
        if not count:
            return
        for what in ("seen", "delivered", "discarded", "lost"):
            self._counts[what] += max(0, getattr(now.points, what) - getattr(known.points, what))
        self._counts["chunks"] += max(0, now.chunks - known.chunks)
        for reason, n in now.points.left_out.items():
            self._left_out[reason] += max(0, n - known.points.left_out.get(reason, 0))


def _of_entry(entry: Mapping[str, Any]) -> _Known:
    """Return what a run had when it left the spool."""
    numbers = {what: int(entry.get(what) or 0) for what in ("delivered", "discarded", "lost")}
    left_out = {str(reason): int(n) for reason, n in (entry.get("left_out") or {}).items()}
    points = Counts(seen=sum(numbers.values()) + sum(left_out.values()), left_out=left_out, **numbers)
    return _Known(points, sum(int(stream.get("chunks_confirmed") or 0) for stream in entry.get("streams") or ()))
