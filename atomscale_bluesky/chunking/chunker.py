"""Turns rows into decisions, above all into chunks: which rows make chunk k of which metrology stream. Pure.

A `Chunker` takes the rows of one time base in order and gives chunks of `points_per_chunk` points. Only a stream's last
chunk is shorter. Journal and ledger alone decide which rows make a chunk: every process that reads the same files cuts
the same chunks, so a chunk of a given index never changes.

A metrology stream takes the rows in which all its channels have a value, and passes over the rows in which none has.
At a row in which only some have a value, the stream parts: the channels without one leave it together, with their
points of the unfinished chunk, for a further stream that follows the same rule. So channels whose gaps are in the same
rows stay together, and a time base has at most one stream for each pattern of gaps, never more than one per channel. A
channel without a stream waits for its next value, and channels whose wait ends with the same row share the stream that
opens there. Channels that come late wait like that, too. So each stream has a point when it opens.

The run's policy says what a value is. With `own_stream` it is a finite number. With `null` a gap is a value as well,
and sent as null. With `drop_row` a row that has a gap has no value of any channel that came together with that one.

What a preview has shown neither vanishes nor changes. So if the stream would part, its unfinished chunk ends with the
preview instead, and the stream with it.

Memory holds at most the rows of one unfinished chunk per metrology stream.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from ..model.chunk import Chunk, Values
from ..model.rows import Position, Row, Rows
from ..spool.journal_format import Layout
from ..spool.ledger_format import OpeningReason, Previewed, Tried
from ..spool.stream_state import FOR_EVER, StreamState

# First and last rows of ranges that an earlier stream holds.
Skip = tuple[tuple[int, int], ...]

# ---- decisions -------------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True):
    """A further metrology stream of this time base begins. `Chunker.opened` takes it, unless it is not made."""

    why: OpeningReason
    from_row: int
    position: Position
    channels: tuple[str, ...]
    skip: Skip = ()
    leaves: int | None = None  # the stream that the channels leave at `from_row`


class Leave(msgspec.Struct, frozen=True):
    """Channels end in a stream: from `from_row` on, no row gives them a point there. They wait for their next value."""

    stream: int
    channels: tuple[str, ...]
    from_row: int


class CutShort(msgspec.Struct, frozen=True):
    """The unfinished chunk of a stream ends with the rows of its preview, and the stream takes no more."""

    stream: int


class Outgrown(msgspec.Struct, frozen=True):
    """There is a row for a stream that takes no more."""

    stream: int


Decision = Chunk | Open | Leave | CutShort | Outgrown


# ---- the rules -------------------------------------------------------------------------------------------------------


class Resumed(msgspec.Struct, frozen=True):
    """A metrology stream as its cutting continues. Its state is read at any later time, and never changed."""

    stream: StreamState
    index: int = 0  # of the next chunk
    from_row: int = 0  # rows before this one are in earlier chunks
    over: bool = False  # its last chunk was cut short, so it takes no more


class Waiting(msgspec.Struct, frozen=True):
    """What a channel without a stream waits for: the first row from `from_row` on that has a value of it."""

    from_row: int
    why: OpeningReason
    skip: Skip = ()


class _Point(NamedTuple):
    """A row as a stream takes it."""

    position: Position
    number: int
    time: float
    values: Sequence[float | None]  # of the stream's channels, in their order


class _Stream:
    """A metrology stream while it is cut: its remaining channels, and the points of its unfinished chunk."""

    def __init__(self, resumed: Resumed, first_layout: Layout) -> None:
        self._state = resumed.stream
        self.opening = resumed.stream.opening
        self.channels = tuple(self.opening.channels or (channel.name for channel in first_layout.channels))
        self.points: list[_Point] = []
        self.over = resumed.over
        self._ahead = list(self._state.ahead)
        self._places: dict[int, Sequence[int] | None] = {}  # layout → where its rows have the values of the channels
        self._units: tuple[str | None, ...] | None = None
        self.leaving: dict[str, int] = {}  # channels noted as leaving at a later row
        self.go_on(resumed.index, resumed.from_row)
        left = {name: self._state.left[name] for name in self.channels if name in self._state.left}
        self.keep(name for name in self.channels if left.get(name, self.from_row + 1) > self.from_row)
        self.leaving = {name: row for name, row in left.items() if name in self.channels}

    @property
    def noted(self) -> Tried | None:
        """The range of rows of this chunk if it was tried before: its boundary stays where it was."""
        return self._state.tried.get(self.index)

    @property
    def shown(self) -> Previewed | None:
        """What the last preview shows, or is about to show, of this chunk if it was not tried yet."""
        shown = self._state.previewed
        return shown if shown is not None and shown.index == self.index and self.noted is None else None

    def go_on(self, index: int, from_row: int) -> None:
        """Continue with this chunk, or with the next one that is not settled already."""
        while self._ahead and self._ahead[0].first_index <= index:
            span = self._ahead.pop(0)
            if span.last_index >= index:
                index, from_row = span.last_index + 1, span.last_row + 1
        self.index, self.from_row = index, from_row

    def take(self, point: _Point) -> bool:
        """Add a point. Return True if the chunk is full."""
        self.points.append(point)
        noted = self._state.tried.get(self.index)
        if noted is None:
            return len(self.points) >= self.opening.points_per_chunk
        # The last row's number may occur twice.
        return point.number == noted.last_row and len(self.points) >= noted.points

    def keep(self, names: Iterable[str]) -> list[_Point]:
        """Keep these channels only. Return the points of the others in the unfinished chunk."""
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
        """Return where rows of a layout have the channels' values, or None if the layout lacks a channel."""
        if layout not in self._places:
            places = [index[name] for name in self.channels if name in index]
            whole = range(len(index))  # all that a row has, in its order
            there = len(places) == len(self.channels)
            self._places[layout] = None if not there else whole if places == [*whole] else places
        return self._places[layout]

    def units(self, known: Mapping[str, str | None]) -> tuple[str | None, ...]:
        """Return the units of the channels, in their order."""
        if self._units is None:
            self._units = tuple([known[name] for name in self.channels])
        return self._units


class Chunker:
    """Turns rows of one time base into chunks of its metrology streams.

    What it decides comes in order, one decision at a time. Carry out each one before asking for the next: a stream
    that opens may take rows that were given before.

    Args:
        layout: The time base's first layout.
        non_finite: The policy for gaps: `own_stream`, `null` or `drop_row`.
        streams: The metrology streams of this time base that take further chunks.
        waiting: Channels that left a stream and have none now.
        known: Channels that were given a stream before, including one that has ended.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        non_finite: str,
        streams: Iterable[Resumed],
        waiting: Mapping[str, Waiting] | None = None,
        known: Iterable[str] = (),
    ) -> None:
        self._policy = non_finite
        self._opened: _Stream | None = None  # the stream of the last decision to open one
        self._index: dict[int, dict[str, int]] = {}  # layout → channel name → index in its rows' values
        self._units: dict[str, str | None] = {}
        self._came: dict[str, int] = {}  # channel name → its first layout
        self._waiting = dict(waiting or {})
        self._known = {*known, *self._waiting}
        self._first_layout = layout
        self._streams = [_Stream(resumed, layout) for resumed in streams]
        self._known.update(name for stream in self._streams for name in stream.channels)
        self._know(layout, Waiting(0, "event stream"))

    def layout(self, layout: Layout, *, from_row: int) -> None:
        """Know the layout that rows from `from_row` on name. Channels that it adds wait for their first value."""
        self._know(layout, Waiting(from_row, "late channel"))

    def opened(self, stream: StreamState) -> None:
        """Take rows for the stream of the last decision to open one."""
        self._opened = _Stream(Resumed(stream, from_row=stream.opening.from_row), self._first_layout)
        self._streams.append(self._opened)

    def row(self, position: Position, row: Row) -> Iterator[Decision]:
        """Yield what this row decides, above all the chunks that it completes. Rows come in order of their numbers."""
        for stream in tuple(self._streams):
            yield from self._add(stream, position, row)
        if self._waiting:
            yield from self._end_waits(position, row)

    def whole_chunk(self, layout: int, number: int) -> int:
        """Return how many `Rows` from `number` on make exactly the next chunk and nothing else; 0 if they do not."""
        taking = [stream for stream in self._streams if stream.channels]
        if len(taking) != 1 or self._waiting:
            return 0
        stream, opening = taking[0], taking[0].opening
        if stream.points or stream.over or stream.leaving or opening.skip or number < stream.from_row:
            return 0
        if stream.noted or stream.places(layout, self._index[layout]) is None:
            return 0
        return opening.points_per_chunk

    def rows(self, position: Position, rows: Rows) -> Chunk:
        """Return the chunk of these rows, after `whole_chunk` said that they make one. `row` would give the same."""
        stream = next(stream for stream in self._streams if stream.channels)
        places = stream.places(rows.layout, self._index[rows.layout])
        last_row = rows.number + len(rows.times) - 1
        chunk = Chunk(
            stream=stream.opening.stream,
            index=stream.index,
            times=rows.times,
            names=stream.channels,
            units=stream.units(self._units),
            values=np.ascontiguousarray(rows.values.T if isinstance(places, range) else rows.values.T[places]),
            first_row=rows.number,
            last_row=last_row,
            position=position,
        )
        stream.go_on(stream.index + 1, last_row + 1)
        return chunk

    def finish(self) -> Iterator[Decision]:
        """Yield the last, short chunks, and what else the run's end decides. Nothing comes after them."""
        for stream in self._streams:
            yield from self._cut(stream)

    def begun(self) -> Iterator[tuple[int, int, int]]:
        """Yield each stream with an unfinished chunk, that chunk's index, and the number of its newest row."""
        for stream in self._streams:
            if stream.points:
                yield stream.opening.stream, stream.index, stream.points[-1].number

    def so_far(self, number: int) -> Iterator[Decision]:
        """Yield a stream's unfinished chunk as it is now. It is missing if it must not be shown."""
        stream = next(stream for stream in self._streams if stream.opening.stream == number)
        return self._cut(stream, unfinished=True)

    def _know(self, layout: Layout, waiting: Waiting) -> None:
        self._index[layout.layout] = {channel.name: i for i, channel in enumerate(layout.channels)}
        for channel in layout.channels:
            self._units.setdefault(channel.name, channel.unit)
            self._came.setdefault(channel.name, layout.layout)
            if channel.name not in self._known:
                self._known.add(channel.name)
                self._waiting[channel.name] = waiting

    def _add(self, stream: _Stream, position: Position, row: Row) -> Iterator[Decision]:
        if row.number < stream.from_row or not stream.channels:
            return
        if stream.opening.skip and any(first <= row.number <= last for first, last in stream.opening.skip):
            return
        if stream.leaving:
            yield from self._leave_as_noted(stream, row.number)
        places = stream.places(row.layout, self._index[row.layout])
        without: tuple[str, ...] = ()
        if places is None or (None in row.values and self._policy != "null"):
            without = tuple(name for name in stream.channels if not self._has_value(row, name))
            if len(without) == len(stream.channels):
                return
        noted = stream.noted
        while noted and row.number > noted.last_row:  # the row that ended it then is damaged now
            if stream.points:
                yield from self._cut(stream)
            else:  # all of it is damaged, and no other rows may get its index
                stream.go_on(noted.index + 1, noted.last_row + 1)
            noted = stream.noted
        if row.number < stream.from_row:
            return
        if stream.over:
            yield Outgrown(stream.opening.stream)
            return
        if noted:
            without = tuple(name for name in stream.channels if name in without or name not in noted.channels)
        if without:
            if stream.shown:
                yield from self._cut_short(stream)
                return
            yield from self._part(stream, without, position, row.number)
        point = self._point(stream, position, row)
        if point is not None and stream.take(point):
            yield from self._cut(stream)

    def _point(self, stream: _Stream, position: Position, row: Row) -> _Point | None:
        """Return what a row gives a stream, or None if it lacks a channel."""
        places = stream.places(row.layout, self._index[row.layout])
        if places is None:
            return None
        values = row.values
        return _Point(position, row.number, row.time, [values[place] for place in places])

    def _cut(self, stream: _Stream, *, unfinished: bool = False) -> Iterator[Decision]:
        """Make a chunk of the collected points."""
        points, shown, noted = stream.points, stream.shown, stream.noted
        if not points:
            return
        if shown and not (set(stream.channels) >= set(shown.channels) and _begins_with(points, shown)):
            yield from self._cut_short(stream)
            return
        yield Chunk(
            stream=stream.opening.stream,
            index=stream.index,
            times=tuple([point.time for point in points]),
            names=stream.channels,
            units=stream.units(self._units),
            values=_by_channel(points),
            first_row=points[0].number,
            last_row=points[-1].number,
            position=points[0].position,
        )
        if not unfinished:
            stream.points = []
            stream.over = noted is not None and noted.cut_short
            stream.go_on(stream.index + 1, points[-1].number + 1)

    def _cut_short(self, stream: _Stream) -> Iterator[Decision]:
        """End a stream with what was shown of its chunk. Rows beyond it are read again, for a further stream."""
        stream.points, stream.over = [], True
        yield CutShort(stream.opening.stream)
        yield Outgrown(stream.opening.stream)

    # ---- channels that leave a stream, or have none ------------------------------------------------------------------

    def _part(
        self, stream: _Stream, names: tuple[str, ...], position: Position, number: int, skip: Skip = ()
    ) -> Iterator[Decision]:
        """Have channels leave a stream, with their points of its unfinished chunk, before the row of this number."""
        gone = stream.keep(name for name in stream.channels if name not in names)
        if gone:
            position, number = gone[0].position, gone[0].number
        skip = tuple(span for span in (*stream.opening.skip, *skip) if span[1] >= number)
        if not gone:
            yield Leave(stream.opening.stream, names, number)
            self._waiting.update(dict.fromkeys(names, Waiting(number, "gap", skip)))
            return
        opened = yield from self._open(Open("gap", number, position, names, skip, stream.opening.stream))
        if opened is not None:
            for point in gone:
                if opened.take(point):
                    yield from self._cut(opened)

    def _leave_as_noted(self, stream: _Stream, number: int) -> Iterator[Decision]:
        """Have channels leave that left at a row up to this one when the journal was read before."""
        names = tuple(name for name in stream.channels if stream.leaving.get(name, number + 1) <= number)
        if not names:
            return
        if not stream.points:
            stream.keep(name for name in stream.channels if name not in names)
            return
        # Rows have been damaged since, so the chunk has no end where the channels left. Their later points are in
        # another stream already.
        for row in sorted({stream.leaving[name] for name in names}):
            some = tuple(name for name in names if stream.leaving.get(name) == row)
            yield from self._part(stream, some, stream.points[0].position, row, ((row, FOR_EVER),))

    def _end_waits(self, position: Position, row: Row) -> Iterator[Decision]:
        """Open a stream for the channels that have a value again, or for the first time."""
        index = self._index[row.layout]
        together: dict[tuple[OpeningReason, int, Skip], list[str]] = {}
        for name in sorted(self._waiting.keys() & index.keys(), key=index.__getitem__):
            waiting = self._waiting[name]
            held = row.number < waiting.from_row or any(first <= row.number <= last for first, last in waiting.skip)
            if not held and self._has_value(row, name):
                together.setdefault((waiting.why, self._came[name], waiting.skip), []).append(name)
        for (why, _, skip), names in together.items():
            for name in names:
                del self._waiting[name]
            skip = tuple(span for span in skip if span[1] >= row.number)
            opened = yield from self._open(Open(why, row.number, position, tuple(names), skip))
            point = None if opened is None else self._point(opened, position, row)
            if opened is not None and point is not None and opened.take(point):
                yield from self._cut(opened)

    def _open(self, decision: Open) -> Generator[Decision, None, _Stream | None]:
        """Decide that a stream opens. Return it, or None if it is not made."""
        self._opened = None
        yield decision
        return self._opened

    # ---- values ------------------------------------------------------------------------------------------------------

    def _has_value(self, row: Row, name: str) -> bool:
        place = self._index[row.layout].get(name)
        if place is None or self._policy == "null":
            return place is not None
        return row.values[place] is not None and not self._is_dropped(row, name)

    def _is_dropped(self, row: Row, name: str) -> bool:
        """Return True if the policy skips the row: a channel that began together with this one has a gap in it."""
        if self._policy != "drop_row":
            return False
        index, came = self._index[row.layout], self._came[name]
        return any(row.values[place] is None and self._came[other] == came for other, place in index.items())


def _by_channel(points: list[_Point]) -> Values:
    """Return the values of points, one line per channel."""
    if any(None in point.values for point in points):
        return tuple(zip(*(point.values for point in points), strict=True))
    return np.array([point.values for point in points], dtype=np.float64).T.copy()


def _begins_with(points: list[_Point], shown: Previewed) -> bool:
    """Return True if all rows that were shown are there, and False if some have been damaged since."""
    return sum(point.number <= shown.last_row for point in points) == shown.points
