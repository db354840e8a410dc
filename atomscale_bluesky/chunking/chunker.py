"""Turns rows into decisions, above all into chunks: which rows make chunk k of which metrology stream. Pure.

A `Chunker` takes the rows of one time base in order and gives chunks of `points_per_chunk` points. Only a stream's last
chunk is shorter. Journal and ledger alone decide which rows make a chunk: every process that reads the same files cuts
the same chunks, so a chunk of a given index never changes.

A metrology stream takes the rows in which all its channels have a value, and passes over the rows in which none has.
At a row in which only some have a value, the stream splits: the channels without one leave it together, with their
points of the unfinished chunk, for a further stream that follows the same rule. Three rows of the channels a and b, for
example, none of them in a full chunk:

    row  a  b
    0    1  1
    1    2  -    the stream splits: b leaves, with its point of row 0
    2    3  3    the first stream holds a: 1, 2, 3; the further one holds b: 1, 3

So channels whose gaps are in the same rows stay together, and a time base has at most one stream for each pattern of
gaps, never more than one per channel. A channel without a stream waits for its next value, and channels whose wait ends
with the same row share the stream that opens there. A channel that comes late waits for its first value in the same
way. So each stream has a point when it opens.

The run's policy says what a value is. With `own_stream` it is a finite number. With `null` a gap is a value as well,
and sent as null. With `drop_row`, if one channel has a gap in a row, the row has no value for any of the channels that
came together with it, in one layout.

Points that a preview has shown neither vanish nor change. So if the stream would split after a preview, its unfinished
chunk ends where the preview ended, and the stream ends there too.

Memory holds at most the rows of one unfinished chunk per metrology stream.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping

import msgspec
import numpy as np

from ..model.chunk import Chunk
from ..model.rows import Position, Row, Rows
from ..spool.journal_format import Layout
from ..spool.ledger_format import OpeningReason
from ..spool.stream_state import NO_END, MetrologyStreamState
from .cut_stream import CutStream, Point, Resumed, begins_with, by_channel
from .decisions import CutShort, Decision, Leave, Open, Outgrown, Skip


class ChannelWait(msgspec.Struct, frozen=True):
    """What a channel without a stream waits for: the first row from `from_row` on that has a value of it."""

    from_row: int
    why: OpeningReason
    skip: Skip = ()


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
        waiting: Mapping[str, ChannelWait] | None = None,
        known: Iterable[str] = (),
    ) -> None:
        self._policy = non_finite
        self._stream_opened: CutStream | None = None  # the stream of the last decision to open one
        self._places: dict[int, dict[str, int]] = {}  # layout → channel name → index in its rows' values
        self._units: dict[str, str | None] = {}
        self._first_layouts: dict[str, int] = {}  # channel name → its first layout
        self._waiting = dict(waiting or {})
        self._known_channels = {*known, *self._waiting}
        self._first_layout = layout
        self._streams = [CutStream(resumed, layout) for resumed in streams]
        self._known_channels.update(name for stream in self._streams for name in stream.channels)
        self._note_channels(layout, ChannelWait(0, "event stream"))

    def take_layout(self, layout: Layout, *, from_row: int) -> None:
        """Note the layout that rows from `from_row` on name. Channels that it adds wait for their first value."""
        self._note_channels(layout, ChannelWait(from_row, "late channel"))

    def take_opened(self, stream: MetrologyStreamState) -> None:
        """Take rows for the stream of the last decision to open one."""
        self._stream_opened = CutStream(Resumed(stream, from_row=stream.opening.from_row), self._first_layout)
        self._streams.append(self._stream_opened)

    def take_row(self, position: Position, row: Row) -> Iterator[Decision]:
        """Yield what this row decides, above all the chunks that it completes. Rows come in order of their numbers."""
        for stream in tuple(self._streams):
            yield from self._take_row_for(stream, position, row)
        if self._waiting:
            yield from self._end_waits(position, row)

    def rows_of_whole_chunk(self, layout: int, number: int) -> int:
        """Return how many `Rows` from `number` on are exactly the next chunk of one stream; 0 if they decide more."""
        taking = [stream for stream in self._streams if stream.channels]
        if len(taking) != 1 or self._waiting:
            return 0
        stream, opening = taking[0], taking[0].opening
        if stream.points or stream.takes_no_more or stream.leaving or opening.skip or number < stream.from_row:
            return 0
        if stream.tried_before or stream.places(layout, self._places[layout]) is None:
            return 0
        return opening.points_per_chunk

    def chunk_of(self, position: Position, rows: Rows) -> Chunk:
        """Return the chunk of as many rows as `rows_of_whole_chunk` has said. `take_row` would give the same."""
        stream = next(stream for stream in self._streams if stream.channels)
        places = stream.places(rows.layout, self._places[rows.layout])
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
        stream.go_to(stream.index + 1, last_row + 1)
        return chunk

    def finish(self) -> Iterator[Decision]:
        """Yield the last, short chunks, and what else the run's end decides. Nothing comes after them."""
        for stream in self._streams:
            yield from self._cut(stream)

    def unfinished(self) -> Iterator[tuple[int, int, int]]:
        """Yield each stream with an unfinished chunk, that chunk's index, and the number of its newest row."""
        for stream in self._streams:
            if stream.points:
                yield stream.opening.stream, stream.index, stream.points[-1].number

    def preview_of(self, number: int) -> Iterator[Decision]:
        """Yield a stream's unfinished chunk as it is now, but not if it must not be shown."""
        stream = next(stream for stream in self._streams if stream.opening.stream == number)
        return self._cut(stream, unfinished=True)

    def _note_channels(self, layout: Layout, waiting: ChannelWait) -> None:
        self._places[layout.layout] = {channel.name: i for i, channel in enumerate(layout.channels)}
        for channel in layout.channels:
            self._units.setdefault(channel.name, channel.unit)
            self._first_layouts.setdefault(channel.name, layout.layout)
            if channel.name not in self._known_channels:
                self._known_channels.add(channel.name)
                self._waiting[channel.name] = waiting

    def _take_row_for(self, stream: CutStream, position: Position, row: Row) -> Iterator[Decision]:
        if row.number < stream.from_row or not stream.channels:
            return
        if stream.opening.skip and any(first <= row.number <= last for first, last in stream.opening.skip):
            return
        if stream.leaving:
            yield from self._leave_as_noted(stream, row.number)
        without = self._channels_without_value(stream, row)
        if without and len(without) == len(stream.channels):
            return
        if stream.tried_before is not None:
            yield from self._end_damaged_chunks(stream, row.number)
            if row.number < stream.from_row:
                return
        if stream.takes_no_more:
            yield Outgrown(stream.opening.stream)
            return
        tried = stream.tried_before
        if tried is not None:
            without = tuple(name for name in stream.channels if name in without or name not in tried.channels)
        if without:
            if stream.preview:
                yield from self._cut_short(stream)
                return
            yield from self._split_off(stream, without, position, row.number)
        point = self._point(stream, position, row)
        if point is not None and stream.add(point):
            yield from self._cut(stream)

    def _channels_without_value(self, stream: CutStream, row: Row) -> tuple[str, ...]:
        """Return the channels of a stream to which a row gives no point."""
        has_all_channels = stream.places(row.layout, self._places[row.layout]) is not None
        if has_all_channels and (self._policy == "null" or None not in row.values):
            return ()
        return tuple(name for name in stream.channels if not self._has_value(row, name))

    def _end_damaged_chunks(self, stream: CutStream, number: int) -> Iterator[Decision]:
        """End the tried chunks that are not full before this row: the rows that ended them are damaged now."""
        tried = stream.tried_before
        while tried is not None and number > tried.last_row:
            if stream.points:
                yield from self._cut(stream)
            else:  # all of it is damaged, and no other rows may get its index
                stream.go_to(tried.index + 1, tried.last_row + 1)
            tried = stream.tried_before

    def _point(self, stream: CutStream, position: Position, row: Row) -> Point | None:
        """Return what a row gives a stream, or None if it lacks a channel."""
        places = stream.places(row.layout, self._places[row.layout])
        if places is None:
            return None
        values = row.values
        return Point(position, row.number, row.time, [values[place] for place in places])

    def _cut(self, stream: CutStream, *, unfinished: bool = False) -> Iterator[Decision]:
        """Make a chunk of the collected points."""
        points, shown, noted = stream.points, stream.preview, stream.tried_before
        if not points:
            return
        if shown and not (set(stream.channels) >= set(shown.channels) and begins_with(points, shown)):
            yield from self._cut_short(stream)
            return
        yield Chunk(
            stream=stream.opening.stream,
            index=stream.index,
            times=tuple([point.time for point in points]),
            names=stream.channels,
            units=stream.units(self._units),
            values=by_channel(points),
            first_row=points[0].number,
            last_row=points[-1].number,
            position=points[0].position,
        )
        if not unfinished:
            stream.points = []
            stream.takes_no_more = noted is not None and noted.cut_short
            stream.go_to(stream.index + 1, points[-1].number + 1)

    def _cut_short(self, stream: CutStream) -> Iterator[Decision]:
        """End a stream with what was shown of its chunk. Rows beyond it are read again, for a further stream."""
        stream.points, stream.takes_no_more = [], True
        yield CutShort(stream.opening.stream)
        yield Outgrown(stream.opening.stream)

    # ---- channels that leave a stream, or have none ------------------------------------------------------------------

    def _split_off(
        self, stream: CutStream, names: tuple[str, ...], position: Position, number: int, skip: Skip = ()
    ) -> Iterator[Decision]:
        """Have channels leave a stream, with their points of its unfinished chunk, before the row of this number."""
        gone = stream.keep_only(name for name in stream.channels if name not in names)
        if gone:
            position, number = gone[0].position, gone[0].number
        skip = tuple(span for span in (*stream.opening.skip, *skip) if span[1] >= number)
        if not gone:
            yield Leave(stream.opening.stream, names, number)
            self._waiting.update(dict.fromkeys(names, ChannelWait(number, "gap", skip)))
            return
        opened = yield from self._open(Open("gap", number, position, names, skip, stream.opening.stream))
        if opened is not None:
            for point in gone:
                if opened.add(point):
                    yield from self._cut(opened)

    def _leave_as_noted(self, stream: CutStream, number: int) -> Iterator[Decision]:
        """Have channels leave again that, in an earlier reading of the journal, left at this row or before."""
        names = tuple(name for name in stream.channels if stream.leaving.get(name, number + 1) <= number)
        if not names:
            return
        if not stream.points:
            stream.keep_only(name for name in stream.channels if name not in names)
            return
        # Rows have been damaged since, so the chunk has no end where the channels left. Their later points are in
        # another stream already.
        for row in sorted({stream.leaving[name] for name in names}):
            some = tuple(name for name in names if stream.leaving.get(name) == row)
            yield from self._split_off(stream, some, stream.points[0].position, row, ((row, NO_END),))

    def _end_waits(self, position: Position, row: Row) -> Iterator[Decision]:
        """Open a stream for the channels that have a value again, or for the first time."""
        index = self._places[row.layout]
        together: dict[tuple[OpeningReason, int, Skip], list[str]] = {}
        for name in sorted(self._waiting.keys() & index.keys(), key=index.__getitem__):
            waiting = self._waiting[name]
            held = row.number < waiting.from_row or any(first <= row.number <= last for first, last in waiting.skip)
            if not held and self._has_value(row, name):
                together.setdefault((waiting.why, self._first_layouts[name], waiting.skip), []).append(name)
        for (why, _, skip), names in together.items():
            for name in names:
                del self._waiting[name]
            skip = tuple(span for span in skip if span[1] >= row.number)
            opened = yield from self._open(Open(why, row.number, position, tuple(names), skip))
            point = None if opened is None else self._point(opened, position, row)
            if opened is not None and point is not None and opened.add(point):
                yield from self._cut(opened)

    def _open(self, decision: Open) -> Generator[Decision, None, CutStream | None]:
        """Decide that a stream opens. Return it, or None if it is not made."""
        self._stream_opened = None
        # While this waits, the caller opens the stream and calls `take_opened`, or does not if the stream is not made.
        yield decision
        return self._stream_opened

    # ---- values ------------------------------------------------------------------------------------------------------

    def _has_value(self, row: Row, name: str) -> bool:
        place = self._places[row.layout].get(name)
        if place is None or self._policy == "null":
            return place is not None
        return row.values[place] is not None and not self._is_dropped(row, name)

    def _is_dropped(self, row: Row, name: str) -> bool:
        """Return True if the policy skips the row: a channel that began together with this one has a gap in it."""
        if self._policy != "drop_row":
            return False
        index, came = self._places[row.layout], self._first_layouts[name]
        return any(row.values[place] is None and self._first_layouts[other] == came for other, place in index.items())
