"""Which points must be in Atomscale, by what a run's files in the spool say.

The ledger says which rows made each chunk that was tried, and the journal has the rows. They are cut again by the same
rules as when they were sent. A confirmed chunk must be there. A chunk that was tried and never answered may be there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..api.answers import PointsByChannel
from ..chunking.recut import cut_again
from ..errors import SpoolError
from ..model.points import packed_column
from ..spool.ledger import LedgerReader, facts_of
from ..spool.ledger_format import Confirmed, Moved, Tried
from ..spool.run_reader import LEDGER, RunReader
from ..spool.stream_state import MetrologyStreamState
from ..status.account import Account, Counts
from .comparison import Part, Series, arrangement, same_points


@dataclass(slots=True)
class StreamPoints:
    """The points that must be in one metrology stream."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    units: dict[str, str | None] = field(default_factory=dict)
    uncompared: int = 0


class ExpectedPoints:
    """What a run's files say at the moment when this is made.

    The ledger is read first, because the rows it refers to are already in the journal.

    Raises:
        SpoolError: The folder holds no run that can be read.
        FileNotFoundError: The run has left the spool.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.state = LedgerReader(folder / LEDGER).read_on()
        self._tried: dict[int, dict[int, Tried]] = {}  # by stream and index
        self._confirmed: dict[tuple[int, int], set[str]] = {}
        for fact in facts_of(folder / LEDGER):
            if isinstance(fact, Moved):
                self._tried, self._confirmed = {}, {}
            elif isinstance(fact, Tried):
                self._tried.setdefault(fact.stream, {})[fact.index] = fact
            elif isinstance(fact, Confirmed):
                noted = self._tried.get(fact.stream, {}).get(fact.index)
                names = fact.channels or (noted.channels if noted else ())
                self._confirmed.setdefault((fact.stream, fact.index), set()).update(names)
        for number, stream in self.state.streams.items():
            shown = stream.last_preview_taken or stream.last_preview
            if shown is not None and shown.index == stream.next_index:  # there, and confirmed only with its chunk
                self._tried.setdefault(number, {})[shown.index] = shown.as_tried(cut_short=False)
        account = Account()
        reader = RunReader(folder)
        try:
            account.read_on(reader)
        finally:
            reader.close()
        if account.header is None:
            raise SpoolError(f"{folder} holds no run")
        self.header = account.header
        self.stopped = account.stop is not None  # also if it was completed as interrupted
        self._layouts = account.layouts
        self.counts = sum(account.channels(self.state).values(), Counts())

    def must_be_there(self, stream: MetrologyStreamState) -> StreamPoints:
        """Return the points that a metrology stream must hold, channel by channel, in the order of its chunks."""
        due = StreamPoints()
        for one in stream.group:
            self._collect(one, due)
        return due

    def _collect(self, stream: MetrologyStreamState, due: StreamPoints) -> None:
        """Add the points that one opening has put into its metrology stream."""
        opening = stream.opening
        tried = self._tried.get(opening.stream, {})
        offset_s = self.state.clock.offset_s if self.state.clock else 0.0
        cut = cut_again(
            self._folder, self._layouts.values(), self.header.non_finite, opening, stream.left_at_row, tried
        )
        again = {chunk.index: chunk.shifted(offset_s) for chunk in cut}
        units = {channel.name: channel.unit for one in reversed(self._layouts.values()) for channel in one.channels}
        for index, noted in tried.items():
            chunk = again.pop(index, None)
            confirmed = self._confirmed.get((opening.stream, index), set())
            whole = chunk is not None and chunk.points == noted.points
            columns = {column.name: column for column in chunk.columns} if chunk is not None and whole else {}
            times = packed_column(chunk.times) if chunk is not None and whole else None
            for name in noted.channels:
                due.units[name] = units.get(name)
                values = packed_column(columns[name].values) if name in columns else ()
                part = Part(noted.points, name in confirmed, times if name in columns else None, values)
                due.parts.setdefault(name, []).append(part)
                due.uncompared += noted.points if part.times is None and part.required else 0


def expected_series(parts: list[Part], theirs: Series) -> Series:
    """Return what must be there of a channel, as far as that is known.

    Parts that may be missing and are missing are left out. Parts that are not known are taken from the points found.
    """
    ours = Series(theirs.unit)
    there = None if all(part.required for part in parts) else arrangement(parts, theirs)
    required = sum(part.points for part in parts if part.required)  # in the parts from this one on
    for i, part in enumerate(parts):
        at, end = len(ours), len(ours) + part.points
        if part.times is None:
            is_there = part.required or len(theirs) - at > required
            times, values = theirs.times[at:end], theirs.values[at:end]
        else:
            times, values = part.times, part.values
            is_there = part.required or same_points(times, values, theirs.times[at:end], theirs.values[at:end])
        if is_there if there is None else there[i]:
            ours.times.extend(times)
            ours.values.extend(values)
        required -= part.points if part.required else 0
    return ours


def is_long_enough(parts: dict[str, list[Part]], points: PointsByChannel) -> bool:
    """Return True if every channel has as many points as it must have."""
    return all(
        sum(part.points for part in ours if part.required) <= len(points[name][1] if name in points else ())
        for name, ours in parts.items()
    )
