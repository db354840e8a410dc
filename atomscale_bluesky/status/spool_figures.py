"""The numbers of one spool that monitoring reads, from its files alone.

Reading with thousands of runs takes a while. So a reading is kept for ten times as long as it took: however often
the numbers are asked for, at most a tenth of one core is used.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from ..spool.spool import Spool
from .account import Counts
from .clock_note import read_note
from .run_summary import was_discarded
from .running_totals import RunningTotals, Totals
from .spool_status import SpoolStatus, Status

_logger = logging.getLogger(__name__)

# How old a reading may be before the files are read again, and which part of the time reading may take.
FRESH_S, SHARE = 1.0, 0.1


class Figures(msgspec.Struct, frozen=True):
    """The numbers of a spool at one moment. Times are Unix seconds."""

    points: Counts  # of the runs in the spool
    runs: dict[str, int]  # runs in the spool, by state
    runs_for_operator: int  # runs of which something does not move by itself
    runs_without_uploader: int  # runs that are not finished, with no living process that delivers to their endpoint
    runs_not_kept: int  # runs of the last seven days that found no disk space
    oldest_waiting: float | None
    outage_since: float | None
    last_success: float | None  # when Atomscale last confirmed a chunk, as far as the files tell
    clock_offset_s: float | None  # what to add to this host's time to get the server's time
    used_bytes: int
    free_bytes: int
    takes_readings: bool  # False while new readings are left out for want of space
    totals: Totals  # since the first reading
    read_s: float  # how long reading took


class SpoolFigures:
    """Reads the numbers of a spool, which may not be there yet. Several threads may use it at once.

    Args:
        spool: Opens the spool for reading, or returns None while there is none. Called until it returns one.
    """

    def __init__(self, spool: Callable[[], Spool | None]) -> None:
        self._open = spool
        self._spool: Spool | None = None
        self._status: SpoolStatus | None = None
        self._totals = RunningTotals()
        self._marks: dict[tuple[int, int], int] = {}  # how far the history was read
        self._watched = False  # the first reading is over
        self._last_success: float | None = None
        self._last: Figures | None = None
        self._fresh_until = 0.0  # monotonic
        self._error = ""  # why the last reading failed
        self._lock = threading.Lock()

    def read(self) -> Figures | None:
        """Return the present numbers, or None if there is no spool or it cannot be read."""
        with self._lock:
            begin = time.monotonic()
            if begin < self._fresh_until:
                return self._last
            try:
                self._last = self._read(begin)
                self._error = ""
            except OSError as error:  # a SpoolError is one
                self._last = None
                if str(error) != self._error:
                    self._error = str(error)
                    _logger.warning("a spool cannot be read now: %s", error)
            end = time.monotonic()
            self._fresh_until = end + max(FRESH_S, (end - begin) / SHARE)
            return self._last

    def _read(self, begin: float) -> Figures | None:
        self._spool = self._spool or self._open()
        if self._spool is None:
            self._totals.take({}, ())  # what comes later is counted from its beginning
            self._watched = True
            return None
        spool = self._spool
        self._status = self._status or SpoolStatus(spool)
        status = self._status.status()
        while spool.disk_space.has_unmeasured_runs:
            spool.disk_space.update()
        self._count(spool, status)
        states = Counter(run.state for run in status)
        note = read_note(spool.path)
        unfinished = [run for run in status if run.unfinished]
        return Figures(
            points=status.points,
            runs=dict(states),
            runs_for_operator=sum(run.needs_operator for run in status),
            runs_without_uploader=sum(run.endpoint not in status.delivered_to for run in unfinished),
            runs_not_kept=len(status.not_kept),
            oldest_waiting=status.oldest_waiting,
            outage_since=None if status.trouble is None else status.trouble.since,
            last_success=self._last_success,
            clock_offset_s=None if note is None else note.offset_s,
            used_bytes=spool.disk_space.used_bytes,
            free_bytes=shutil.disk_usage(spool.path).free,
            takes_readings=not status.no_room,
            totals=self._totals.totals,
            read_s=time.monotonic() - begin,
        )

    def _count(self, spool: Spool, status: Status) -> None:
        """Add what is new to the totals. The history is read after the runs: a run that leaves is not missed."""
        times = [run.last_confirmed for run in status]
        entries: list[dict[str, Any]] = []
        for entry in spool.history.entries_added(self._marks):
            if not was_discarded(entry):
                times.append(float(entry.get("finished") or 0.0))
            if self._watched:
                entries.append(entry)
        self._totals.take({os.path.basename(run.folder): run for run in status}, entries)  # noqa: PTH119 - a tenth of the price
        self._watched = True
        self._last_success = max((t for t in (*times, self._last_success) if t), default=None)
