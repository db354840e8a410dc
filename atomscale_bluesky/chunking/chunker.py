"""Turns rows into chunks: which rows make chunk k of which metrology stream. Pure.

A `Chunker` takes the rows of one time base in order and gives chunks of `points_per_chunk` points. Only a stream's last
chunk is shorter. Journal and ledger alone decide which rows make a chunk: every process that reads the same files cuts
the same chunks, so a chunk of a given index never changes.

The run's policy decides about a channel's gaps. With `own_stream` a channel leaves its stream at the boundary before
the chunk in which it has a gap, and goes on, without the gaps, in a stream of its own that opens with its next finite
value. A channel that never has one opens nothing. If a preview has already shown the beginning of that chunk, the chunk
and its stream end with the preview instead: shown points neither vanish nor change. With `null` gaps are sent as null.
With `drop_row` rows that have a gap are skipped. Channels that appear late share a stream that begins with them.

Memory holds at most the rows of one unfinished chunk per metrology stream.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping

import msgspec
import numpy as np

from ..model.chunk import Chunk, Column
from ..model.rows import Position, Row, Rows
from ..spool.journal_format import Layout
from ..spool.ledger_format import Previewed, Tried, Why
from ..spool.ledger_state import StreamState

# ---- decisions -------------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True):
    """A further metrology stream of this time base begins. `Chunker.opened` takes it, unless it is not made."""

    why: Why
    from_row: int
    position: Position
    channels: tuple[str, ...]
    own: bool  # for one channel that has gaps: its points are the rows where the channel has none


class Leave(msgspec.Struct, frozen=True):
    """A channel ends in a stream: from `from_row` on, no row gives it a point there."""

    stream: int
    channel: str
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


class _Stream:
    """A metrology stream while it is cut: its remaining channels, and the rows of its unfinished chunk."""

    def __init__(self, resumed: Resumed, first_layout: Layout) -> None:
        self._state = resumed.stream
        self.opening = resumed.stream.opening
        self.channels = list(self.opening.channels or (channel.name for channel in first_layout.channels))
        self.rows: list[tuple[Position, Row]] = []
        self.over = resumed.over
        self._ahead = list(self._state.ahead)
        self.go_on(resumed.index, resumed.from_row)

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
        left = self._state.left
        self.channels = [name for name in self.channels if left.get(name, from_row + 1) > from_row]


class Chunker:
    """Turns rows of one time base into chunks of its metrology streams.

    What it decides comes in order, one decision at a time. Carry out each one before asking for the next: a stream
    that opens may take rows that were given before.

    Args:
        layout: The time base's first layout.
        non_finite: The policy for gaps: `own_stream`, `null` or `drop_row`.
        streams: The metrology streams of this time base that take further chunks.
        waiting: Channels that left a stream and have none of their own yet → the row from which on they want one.
        known: Channels that were given a stream before, including one that has ended.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        non_finite: str,
        streams: Iterable[Resumed],
        waiting: Mapping[str, int] | None = None,
        known: Iterable[str] = (),
    ) -> None:
        self._policy = non_finite
        self._opened: _Stream | None = None  # the stream of the last decision to open one
        self._index: dict[int, dict[str, int]] = {}  # layout → channel name → index in its rows' values
        self._units: dict[str, str | None] = {}
        self._came: dict[str, int] = {}  # channel name → its first layout
        self._waiting = dict(waiting or {})
        self._known = set(known)
        self._first_layout = layout
        self._know(layout)
        self._streams = [_Stream(resumed, layout) for resumed in streams]
        self._own = {stream.channels[0] for stream in self._streams if stream.opening.own}

    def layout(self, layout: Layout, *, from_row: int, position: Position) -> Iterator[Decision]:
        """Know the layout that rows from `from_row` on name.

        Channels that it adds share a stream that begins there.
        """
        late = tuple(channel.name for channel in layout.channels if channel.name not in self._units)
        self._know(layout)
        late = tuple(name for name in late if name not in self._known)
        return self._open("late channel", from_row, position, late, own=False) if late else iter(())

    def opened(self, stream: StreamState) -> None:
        """Take rows for the stream of the last decision to open one."""
        self._opened = _Stream(Resumed(stream, from_row=stream.opening.from_row), self._first_layout)
        self._streams.append(self._opened)
        self._own.update(self._opened.channels if stream.opening.own else ())
        self._known.update(self._opened.channels)

    def row(self, position: Position, row: Row) -> Iterator[Decision]:
        """Yield what this row decides, above all the chunks that it completes. Rows come in order of their numbers."""
        wanting = [name for name, from_row in self._waiting.items() if row.number >= from_row]
        for name in [name for name in wanting if self._has_point(row, name)]:
            yield from self._open("gap", row.number, position, (name,), own=True)
        for stream in tuple(self._streams):
            yield from self._add(stream, position, row)

    def whole_chunk(self, layout: int, number: int) -> int:
        """Return how many `Rows` from `number` on make exactly the next chunk and nothing else; 0 if they do not."""
        taking = [stream for stream in self._streams if stream.channels]
        if len(taking) != 1 or self._waiting:
            return 0
        stream, opening = taking[0], taking[0].opening
        if stream.rows or stream.over or opening.own or opening.skip or number < stream.from_row:
            return 0
        if stream.noted or not self._index[layout].keys() >= {*stream.channels}:
            return 0
        return opening.points_per_chunk

    def rows(self, position: Position, rows: Rows) -> Chunk:
        """Return the chunk of these rows, after `whole_chunk` said that they make one. `row` would give the same."""
        stream = next(stream for stream in self._streams if stream.channels)
        columns, index = list(np.ascontiguousarray(rows.values.T)), self._index[rows.layout]
        last_row = rows.number + len(rows.times) - 1
        chunk = Chunk(
            stream=stream.opening.stream,
            index=stream.index,
            times=rows.times,
            columns=tuple([Column(name, self._units[name], columns[index[name]]) for name in stream.channels]),
            first_row=rows.number,
            last_row=last_row,
            position=position,
        )
        stream.go_on(stream.index + 1, last_row + 1)
        return chunk

    def finish(self) -> Iterator[Decision]:
        """Yield the last, short chunks, and what else the run's end decides. Nothing comes after them."""
        for stream in self._streams:  # grows while a last chunk moves channels to streams of their own
            yield from self._cut(stream)

    def begun(self) -> Iterator[tuple[int, int, int]]:
        """Yield each stream with an unfinished chunk, that chunk's index, and the number of its newest row."""
        for stream in self._streams:
            if stream.rows:
                yield stream.opening.stream, stream.index, stream.rows[-1][1].number

    def so_far(self, number: int) -> Iterator[Decision]:
        """Yield a stream's unfinished chunk as it is now, and what making it decides.

        The unfinished chunk is missing if it must not be shown.
        """
        stream = next(stream for stream in self._streams if stream.opening.stream == number)
        return self._cut(stream, unfinished=True)

    def _know(self, layout: Layout) -> None:
        self._index[layout.layout] = {channel.name: i for i, channel in enumerate(layout.channels)}
        for channel in layout.channels:
            self._units.setdefault(channel.name, channel.unit)
            self._came.setdefault(channel.name, layout.layout)

    def _open(
        self, why: Why, from_row: int, position: Position, channels: tuple[str, ...], *, own: bool
    ) -> Generator[Decision, None, _Stream | None]:
        """Decide that a stream opens. Return it, or None if it was not made."""
        self._opened = None
        yield Open(why, from_row, position, channels, own)
        for name in channels:
            self._waiting.pop(name, None)
        return self._opened

    def _add(self, stream: _Stream, position: Position, row: Row) -> Iterator[Decision]:
        if row.number < stream.from_row or not stream.channels:
            return
        if any(first <= row.number <= last for first, last in stream.opening.skip):
            return
        if stream.opening.own:
            if not self._has_point(row, stream.channels[0]):
                return
            row = Row(_OWN, row.number, row.time, row.event_uid, [self._value(row, stream.channels[0])])
        elif self._is_dropped(row, stream.channels[0]):
            return
        noted = stream.noted
        while noted and row.number > noted.last_row:  # the row that ended it then is damaged now
            if stream.rows:
                yield from self._cut(stream)
            else:  # all of it is damaged, and no other rows may get its index
                stream.go_on(noted.index + 1, noted.last_row + 1)
            noted = stream.noted
        if row.number < stream.from_row:
            return
        if stream.over:
            yield Outgrown(stream.opening.stream)
            return
        stream.rows.append((position, row))
        if noted is None:
            full = len(stream.rows) >= stream.opening.points_per_chunk
        else:  # the last row's number may occur twice
            full = row.number == noted.last_row and len(stream.rows) >= noted.points
        if full:
            yield from self._cut(stream)

    def _cut(self, stream: _Stream, *, unfinished: bool = False) -> Iterator[Decision]:
        """Make a chunk of the collected rows. Channels with a gap in them leave before it, or before it is shown."""
        rows, stream.rows = stream.rows, []
        if not rows:
            return
        noted = stream.noted
        columns = self._transposed(stream, [row for _, row in rows])
        first_position, first = rows[0]
        last = rows[-1][1]
        present = set(columns).intersection(*(self._index[row.layout] for _, row in rows if row.layout != _OWN))
        staying = [name for name in columns if self._stays(name, columns[name], noted, name in present)]
        leaving = [name for name in columns if name not in staying and name not in self._own]
        shown = stream.shown
        if shown and not (set(staying) >= set(shown.channels) and _begins_with(rows, shown)):
            stream.over = True  # and rows beyond it are read again, for a further stream
            yield CutShort(stream.opening.stream)
            yield Outgrown(stream.opening.stream)
            return
        for name in leaving:
            yield Leave(stream.opening.stream, name, first.number)
            self._waiting[name] = last.number + 1
        stream.channels = staying
        if staying:
            yield Chunk(
                stream=stream.opening.stream,
                index=stream.index,
                times=tuple(row.time for _, row in rows),
                columns=tuple(Column(name, self._units[name], columns[name]) for name in staying),
                first_row=first.number,
                last_row=last.number,
                position=first_position,
            )
        if unfinished and staying:
            stream.rows = rows
        else:
            stream.over = noted is not None and noted.cut_short
            stream.go_on(stream.index + bool(staying), last.number + 1)
        yield from self._again(rows, leaving)

    def _stays(self, name: str, values: tuple[float | None, ...], noted: Tried | None, present: bool) -> bool:
        if noted:
            return name in noted.channels
        # A channel that moved to another time base leaves whatever the policy: it has no more values here.
        return present and (self._policy != "own_stream" or None not in values)

    def _again(self, rows: list[tuple[Position, Row]], names: Iterable[str]) -> Iterator[Decision]:
        """Pass the points that these channels have in rows already seen to streams of their own."""
        for name in names:
            own: _Stream | None = None
            for position, row in rows:
                if own is None:
                    if not self._has_point(row, name):
                        continue
                    own = yield from self._open("gap", row.number, position, (name,), own=True)
                    if own is None:
                        break
                yield from self._add(own, position, row)

    def _transposed(self, stream: _Stream, rows: list[Row]) -> dict[str, tuple[float | None, ...]]:
        layouts = {row.layout for row in rows}
        if layouts == {_OWN}:
            return {stream.channels[0]: tuple(row.values[0] for row in rows)}
        if len(layouts) == 1:
            index = self._index[rows[0].layout]
            if all(name in index for name in stream.channels):
                columns = tuple(zip(*(row.values for row in rows), strict=True))
                return {name: columns[index[name]] for name in stream.channels}
        return {name: tuple(self._value(row, name) for row in rows) for name in stream.channels}

    def _has_point(self, row: Row, name: str) -> bool:
        """Return True if a stream of the channel's own has this row."""
        if self._policy == "null":
            return name in self._index[row.layout]
        return self._value(row, name) is not None and not self._is_dropped(row, name)

    def _is_dropped(self, row: Row, name: str) -> bool:
        """Return True if the policy skips the row: a channel that began together with this one has a gap in it."""
        if self._policy != "drop_row":
            return False
        index, came = self._index[row.layout], self._came[name]
        return any(row.values[place] is None and self._came[other] == came for other, place in index.items())

    def _value(self, row: Row, name: str) -> float | None:
        place = self._index[row.layout].get(name)
        return None if place is None else row.values[place]


def _begins_with(rows: list[tuple[Position, Row]], shown: Previewed) -> bool:
    """Return True if all rows that were shown are there, and False if some have been damaged since."""
    return sum(row.number <= shown.last_row for _, row in rows) == shown.points


# Stands for the layout of a row that was reduced to the one value of a single-channel stream.
_OWN = -1
