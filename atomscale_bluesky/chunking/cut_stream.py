"""A metrology stream while it is cut: its remaining channels, and the points of its unfinished chunk. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from ..model.chunk import Values
from ..model.rows import Position
from ..spool.journal_format import Layout
from ..spool.ledger_format import Previewed, Tried
from ..spool.stream_state import MetrologyStreamState


class Resumed(msgspec.Struct, frozen=True):
    """A metrology stream as its cutting continues. Its state is read at any later time, and never changed."""

    stream: MetrologyStreamState
    index: int = 0  # of the next chunk
    from_row: int = 0  # rows before this one are in earlier chunks
    takes_no_more: bool = False  # its last chunk was cut short at a preview


class Point(NamedTuple):
    """A row as a stream takes it."""

    position: Position
    number: int
    time: float
    values: Sequence[float | None]  # of the stream's channels, in their order


class CutStream:
    """A metrology stream while it is cut: its remaining channels, and the points of its unfinished chunk."""

    def __init__(self, resumed: Resumed, first_layout: Layout) -> None:
        self._state = resumed.stream
        self.opening = resumed.stream.opening
        self.channels = tuple(self.opening.channels or (channel.name for channel in first_layout.channels))
        self.points: list[Point] = []
        self.takes_no_more = resumed.takes_no_more
        self._confirmed_ahead = list(self._state.confirmed_ahead)
        self._places: dict[int, Sequence[int] | None] = {}  # layout → where its rows have the values of the channels
        self._units: tuple[str | None, ...] | None = None
        self.leaving: dict[str, int] = {}  # channels noted as leaving at a later row
        self.go_to(resumed.index, resumed.from_row)
        left = {name: self._state.left_at_row[name] for name in self.channels if name in self._state.left_at_row}
        self.keep_only(name for name in self.channels if left.get(name, self.from_row + 1) > self.from_row)
        self.leaving = {name: row for name, row in left.items() if name in self.channels}

    @property
    def tried_before(self) -> Tried | None:
        """The range of rows of this chunk if it was tried before: its boundary stays where it was."""
        return self._state.tried.get(self.index)

    @property
    def preview(self) -> Previewed | None:
        """What the last preview shows, or is about to show, of this chunk if it was not tried yet."""
        preview = self._state.last_preview
        return preview if preview is not None and preview.index == self.index and self.tried_before is None else None

    def go_to(self, index: int, from_row: int) -> None:
        """Go on with the chunk of this index, or with the next one that is not confirmed yet."""
        while self._confirmed_ahead and self._confirmed_ahead[0].first_index <= index:
            span = self._confirmed_ahead.pop(0)
            if span.last_index >= index:
                index, from_row = span.last_index + 1, span.last_row + 1
        self.index, self.from_row = index, from_row

    def add(self, point: Point) -> bool:
        """Add a point. Return True if the chunk is full."""
        self.points.append(point)
        noted = self._state.tried.get(self.index)
        if noted is None:
            return len(self.points) >= self.opening.points_per_chunk
        # The last row's number may occur twice.
        return point.number == noted.last_row and len(self.points) >= noted.points

    def keep_only(self, names: Iterable[str]) -> list[Point]:
        """Drop all other channels. Return their points of the unfinished chunk."""
        kept = frozenset(names)
        stay = [place for place, name in enumerate(self.channels) if name in kept]
        go = [place for place, name in enumerate(self.channels) if name not in kept]
        gone = [point._replace(values=[point.values[place] for place in go]) for point in self.points]
        self.points = [point._replace(values=[point.values[place] for place in stay]) for point in self.points]
        self.channels = tuple(self.channels[place] for place in stay)
        self.leaving = {name: row for name, row in self.leaving.items() if name in kept}
        self._places, self._units = {}, None
        return gone

    def places(self, layout: int, index: Mapping[str, int]) -> Sequence[int] | None:
        """Return where rows of a layout have the channels' values, or None if the layout lacks a channel.

        Args:
            layout: The layout's number.
            index: Where its rows have the value of each channel.
        """
        if layout not in self._places:
            self._places[layout] = self._find_places(index)
        return self._places[layout]

    def _find_places(self, index: Mapping[str, int]) -> Sequence[int] | None:
        if any(name not in index for name in self.channels):
            return None
        places = [index[name] for name in self.channels]
        whole_row = range(len(index))
        return whole_row if places == [*whole_row] else places

    def units(self, known: Mapping[str, str | None]) -> tuple[str | None, ...]:
        """Return the units of the channels, in their order."""
        if self._units is None:
            self._units = tuple([known[name] for name in self.channels])
        return self._units


def by_channel(points: list[Point]) -> Values:
    """Return the values of points, one line per channel."""
    if any(None in point.values for point in points):
        return tuple(zip(*(point.values for point in points), strict=True))
    return np.array([point.values for point in points], dtype=np.float64).T.copy()


def begins_with(points: list[Point], shown: Previewed) -> bool:
    """Return True if all rows that were shown are there, and False if some have been damaged since."""
    return sum(point.number <= shown.last_row for point in points) == shown.points
