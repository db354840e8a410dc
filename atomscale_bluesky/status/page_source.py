"""What the page shows of spools: their runs, with every reading that is on this disk, delivered or not.

It only reads, like `SpoolStatus`, and needs no network. The points of a bounded number of runs are kept, thinned. A run
that is delivered leaves the spool; as long as its points are kept, they are still shown.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import SpoolError
from ..model.rows import Position
from ..page import Channel, Mark, Outage, Overview, Stream, StreamLine, Trace
from ..spool.journal_format import decode_row, is_row
from ..spool.journal_reader import JournalReader
from ..spool.ledger import LedgerReader
from ..spool.run_reader import LEDGER
from ..spool.spool import Spool
from ..spool.stream_state import MetrologyStreamState
from .run_rows import RunRows
from .run_status import RunStatus
from .run_summary import was_discarded
from .spool_status import SpoolStatus, bad_ending

# How many runs are listed, and how many of those that have left the spool.
MAX_LISTED, MAX_FINISHED = 100, 50
# Of how many runs the points are kept, and how many of these are read for the list's small pictures at a time.
MAX_KEPT_RUNS, MAX_READ = 16, 2
# How old an overview may be before the files are read again. Several browsers share it. With thousands of runs it gets
# older, so that reading takes a tenth of the time at most. The points of the run that is shown are always new.
FRESH_S, SHARE = 0.3, 0.1

_TONES = {
    "running": "live",
    "delivering": "wait",
    "waiting": "wait",
    "interrupted": "wait",
    "finalized": "done",
    "discarded": "done",
}


class SpoolSource:
    """The runs of some spools.

    Args:
        spools: Opens the spools that are there by now, in order. Called until each has been found.
        places: Their folders.
    """

    def __init__(self, spools: Callable[[], Sequence[Spool]], places: Sequence[Path]) -> None:
        self._open = spools
        self._places = places
        self._watches: dict[Path, tuple[Spool, SpoolStatus]] = {}
        self._points: OrderedDict[str, _RunPoints] = OrderedDict()
        self._sparks: dict[str, list[float | None]] = {}
        self._entries_of: dict[Path, tuple[int, list[dict[str, Any]]]] = {}
        self._overview: Overview | None = None
        self._fresh_until = 0.0  # monotonic
        self._lock = threading.Lock()  # one thread at a time reads on

    async def overview(self) -> Overview:
        """Return the newest runs and the present outage."""
        return await asyncio.to_thread(self._read_overview)

    async def stream(self, identity: str, begin: float, end: float, version: str) -> Stream | None:
        """Return a run's points from `begin` to `end`."""
        return await asyncio.to_thread(self._read_stream, identity, begin, end, version)

    def _read_overview(self) -> Overview:
        with self._lock:
            now = time.time()
            if self._overview is not None and time.monotonic() < self._fresh_until:
                return self._overview
            begin = time.monotonic()
            if len(self._watches) < len(self._places):
                for spool in self._open():
                    self._watches.setdefault(spool.path, (spool, SpoolStatus(spool)))
            runs: list[tuple[float, StreamLine]] = []
            outage, more = None, 0
            for place, (spool, watch) in self._watches.items():
                status = watch.status()
                if status.trouble is not None and outage is None:
                    outage = Outage(status.trouble.since, status.trouble.error)
                more += max(0, len(status) - MAX_LISTED)
                listed = status[-MAX_LISTED:]
                self._read_some(listed)
                runs += [(run.started, self._line(run, now)) for run in listed]
                runs += [
                    (float(entry.get("started") or 0.0), self._finished(place, entry)) for entry in self._entries(spool)
                ]
            runs.sort(key=lambda found: found[0], reverse=True)
            listed_ids = {line.id for _, line in runs}
            self._sparks = {identity: spark for identity, spark in self._sparks.items() if identity in listed_ids}
            self._overview = Overview(
                title="Runs on this machine",
                place=", ".join(map(str, self._places)),
                now=now,
                streams=[line for _, line in runs],
                more=more,
                outage=outage,
            )
            end = time.monotonic()
            self._fresh_until = end + max(FRESH_S, (end - begin) / SHARE)
            return self._overview

    def _entries(self, spool: Spool) -> list[dict[str, Any]]:
        """Return the newest entries of the history, which is read again only when a run has left the spool."""
        present = spool.changed_at()
        known = self._entries_of.get(spool.path)
        if known is None or known[0] != present:
            known = self._entries_of[spool.path] = present, spool.history.entries()[-MAX_FINISHED:]
        return known[1]

    def _read_some(self, runs: Sequence[RunStatus]) -> None:
        """Read on in the runs that are written, and in a few others that have no small picture yet."""
        budget = MAX_READ
        for run in reversed(runs):
            known = self._points.get(run.folder)
            if run.state == "unreadable":
                continue
            live = run.state == "running" and (known is not None or len(self._points) < MAX_KEPT_RUNS)
            if live or (run.folder not in self._sparks and budget):
                budget -= not live
                self._read_on(run.folder)

    def _read_on(self, folder: str) -> _RunPoints:
        points = self._points.setdefault(folder, _RunPoints(Path(folder)))
        self._points.move_to_end(folder)
        while len(self._points) > MAX_KEPT_RUNS:
            self._points.popitem(last=False)
        points.read_on()
        self._sparks[folder] = points.spark()
        return points

    def _line(self, run: RunStatus, now: float) -> StreamLine:
        waiting = run.points.waiting
        notes = [f"{waiting} waiting"] if waiting else []
        notes += [ended] if (ended := bad_ending(run.exit_status)) else []
        if run.points.refused:
            notes.append(f"{run.points.refused} refused")
        if left_out := sum(run.points.left_out.values()):
            notes.append(f"{left_out} left out")
        if run.problem:
            notes.append(run.problem)
        return StreamLine(
            id=run.folder,
            name=run.label or run.run_uid,
            status=run.state,
            tone=_TONES.get(run.state, "bad"),
            updated=now if run.state == "running" else run.started,
            points=run.points.seen,
            channels=len(run.channels),
            note=" · ".join(notes),
            spark=self._sparks.get(run.folder, []),
        )

    def _finished(self, place: Path, entry: dict[str, Any]) -> StreamLine:
        folder = str(place / str(entry.get("folder") or entry.get("run_uid")))
        lost, discarded = int(entry.get("lost") or 0), int(entry.get("discarded") or 0)
        notes = [f"{n} {what}" for n, what in ((lost, "lost"), (discarded, "discarded")) if n]
        notes += [ended] if (ended := bad_ending(str(entry.get("exit_status") or ""))) else []
        return StreamLine(
            id=folder,
            name=str(entry.get("label") or entry.get("run_uid")),
            status="discarded" if was_discarded(entry) else "delivered",
            tone="bad" if lost else "done",
            updated=float(entry.get("finished") or 0.0),
            points=int(entry.get("delivered") or 0),
            channels=len(entry.get("channels") or ()),
            note=" · ".join(notes),
            spark=self._sparks.get(folder, []),
        )

    def _read_stream(self, identity: str, begin: float, end: float, version: str) -> Stream | None:
        line = next((line for line in self._read_overview().streams if line.id == identity), None)
        if line is None and identity not in self._points:
            return None
        name = line.name if line is not None else identity
        with self._lock:
            facts: list[tuple[str, str]] = []
            try:
                points = self._read_on(identity)
            except (OSError, SpoolError) as error:
                return Stream(identity, name, "", [], facts=[("problem", str(error))])
            facts.append(("run", points.run_uid or "not known here"))
            if line is not None:
                facts += [("points", f"{line.points}"), ("note", line.note or "none")]
            if not points.count:
                facts.append(("hint", "Its points are in Atomscale and no more on this disk."))
            present = f"{points.count} {points.marked} {begin} {end}"
            if present == version:
                return Stream(identity, name, present, [], facts=facts)
            channels, thinned = points.channels(begin, end)
            return Stream(identity, name, present, channels, points.marks(), facts, thinned)


class _RunPoints:
    """The points of one run, read block by block from its journal, and what its ledger says about them."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self.marked = 0  # changes with the marks
        self._folder = folder
        self._rows = RunRows(folder)
        self._ledger = LedgerReader(folder / LEDGER)
        self._traces: dict[tuple[str, str], tuple[str | None, Trace]] = {}  # by time base and channel
        self._begins: dict[int, float] = {}  # by metrology stream: the time of its first row
        self._delivered: float | None = None

    @property
    def run_uid(self) -> str:
        """The run's uid; empty if it has no header here."""
        return self._rows.header.run_uid if self._rows.header else ""

    def read_on(self) -> None:
        """Read what was written since the last call.

        Raises:
            SpoolError: A line cannot be decoded.
        """
        if not self._folder.exists():  # delivered: what was read stays
            self._delivered = None
            return
        state = self._ledger.read_on()
        for block in self._rows.read():
            self.count += block.values.size
            for i, channel in enumerate(block.layout.channels):
                key = (block.layout.time_base, channel.name)
                _, trace = self._traces.setdefault(key, (channel.unit, Trace()))
                trace.extend(block.times, block.values[:, i])
        for number, stream in state.streams.items():
            if stream.opening.from_row and not self._begins.get(number):
                self._begins[number] = self._time_of_first_row(stream)
        ends = [chunk.first_time or chunk.last_time for one in state.streams.values() for chunk in one.tried.values()]
        lasts = [stream.last_tried.last_time for stream in state.streams.values() if stream.last_tried is not None]
        self._delivered = min(ends) if ends else max(lasts, default=None)
        self.marked = hash((self._delivered, *self._begins.values()))

    def channels(self, begin: float, end: float) -> tuple[list[Channel], bool]:
        """Return the points from `begin` to `end`, and True if some of them are left out."""
        several = len({time_base for time_base, _ in self._traces}) > 1
        found, any_left_out = [], False
        for (time_base, name), (unit, trace) in self._traces.items():
            times, values, left_out = trace.window(begin, end)
            found.append(Channel(f"{time_base}: {name}" if several else name, unit, trace.count, times, values))
            any_left_out = any_left_out or left_out
        return found, any_left_out

    def spark(self) -> list[float | None]:
        """Return the course of its first channel."""
        return next((trace.spark() for _, trace in self._traces.values()), [])

    def marks(self) -> list[Mark]:
        """Return where further metrology streams begin, and up to where the run is delivered."""
        openings = {number: stream.opening for number, stream in self._ledger.state.streams.items()}
        marks = [
            Mark(at, f"a further stream: {openings[number].why}")
            for number, at in self._begins.items()
            if number in openings and at
        ]
        if self._delivered is not None:
            marks.append(Mark(self._delivered, "delivered up to here"))
        return marks

    def _time_of_first_row(self, stream: MetrologyStreamState) -> float:
        """Return the time of a stream's first row, or 0 if there is none yet."""
        opening = stream.opening
        reader = JournalReader(self._folder, Position(opening.segment, opening.offset))
        try:
            for line in reader.read():
                row = decode_row(line.payload) if is_row(line.payload) else None
                layout = None if row is None else self._rows.layouts.get(row.layout)
                if row is None or layout is None or layout.time_base != opening.time_base:
                    continue
                if row.number >= opening.from_row:
                    return row.time
        finally:
            reader.close()
        return 0.0
