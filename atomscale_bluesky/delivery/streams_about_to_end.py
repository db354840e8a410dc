"""How a metrology stream ends before its run does, and where the run goes on.

A stream takes no more points when the server has closed it, or when its chunks are too large, damaged, or cut short by
a preview. Once nothing of it is under way, it is read back if chunks are in doubt: they were pushed and perhaps taken.
Then, in one line of the ledger, the stream ends. The points that it does not hold go into continuations: one per
group of channels with the same missing rows.

For each channel a stream holds chunks in the order of their indices: all that were confirmed, and perhaps some of those
in doubt. So a chunk in doubt is found by its place among the others, never by its points alone: many rows may have the
same time and value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ..api.answers import PointsByChannel
from ..checks.comparison import Part, Series, arrangement
from ..chunking.run_chunker import RunChunker
from ..model.chunk import Chunk
from ..model.points import packed_column
from ..spool.ledger import Ledger
from ..spool.ledger_format import Confirmed, Ended, OpeningReason
from ..spool.stream_state import MetrologyStreamState

_logger = logging.getLogger(__name__)

_Numbers = Sequence[float | None]


class _StreamEnd(msgspec.Struct):
    """A stream that takes no more points, until nothing of it is under way."""

    why: OpeningReason
    points_per_chunk: int  # of the streams that go on
    doubtful: list[Chunk] = []  # pushed, and perhaps taken although no answer came


class StreamsAboutToEnd:
    """The streams of one run that are about to end. Belongs to the deciding thread.

    Args:
        ledger: Where each end is noted.
        run_chunker: Opens the streams that go on.
        unix_time: Returns Unix seconds. A test passes its own.
    """

    def __init__(self, ledger: Ledger, run_chunker: RunChunker, unix_time: Callable[[], float]) -> None:
        self._ledger = ledger
        self._run_chunker = run_chunker
        self._unix_time = unix_time
        self._ends: dict[int, _StreamEnd] = {}

    def __contains__(self, stream: int) -> bool:
        """Return True if a stream is about to end."""
        return stream in self._ends

    def begin(self, stream: int, why: OpeningReason, points_per_chunk: int, doubtful: Iterable[Chunk] = ()) -> None:
        """Let a stream take no more points. It is unknown whether the `doubtful` chunks were taken."""
        self._ends.setdefault(stream, _StreamEnd(why, points_per_chunk)).doubtful.extend(doubtful)

    def is_short(self, number: int, points: PointsByChannel) -> bool:
        """Return True if fewer points were read than are confirmed, because some may not be readable yet."""
        stream = self._ledger.state.streams[number]
        due = {name for names in stream.delivered for name in names}
        return any(_delivered(stream, name) > len(points[name][2] if name in points else ()) for name in due)

    def note_read_back(self, number: int, points: PointsByChannel) -> None:
        """Note the chunks in doubt that the stream holds as confirmed.

        If the points that were read do not fit those that were confirmed, no chunk of the channel counts as held.
        """
        doubtful, self._ends[number].doubtful = self._ends[number].doubtful, []
        if not doubtful:
            return
        stream = self._ledger.state.streams[number]
        chunks_in_doubt = {chunk.index: chunk for chunk in doubtful}
        parts = self._parts(stream, chunks_in_doubt)
        held: dict[int, list[str]] = {}  # chunks in doubt, with the channels of which the stream holds all points
        unclear: list[str] = []  # channels whose points fit no arrangement of these chunks
        for name in {name: None for chunk in doubtful for name in chunk.names}:
            ours = parts.get(name, {})
            theirs = Series.of(*points[name]) if name in points else Series()
            required = sum(part.points for part in ours.values() if part.required)
            counts = arrangement([*ours.values()], theirs, _delivered(stream, name) - required)
            if counts is None:
                unclear.append(name)
                continue
            for index, count in zip(ours, counts, strict=True):
                if index in chunks_in_doubt and not ours[index].required and count == ours[index].points:
                    held.setdefault(index, []).append(name)
        if unclear and points:
            _logger.warning(
                "%r holds other points than were confirmed (%s): its chunks in doubt are sent again",
                stream.opening.label, ", ".join(unclear[:5]),
            )  # fmt: skip
        for index, names in sorted(held.items()):
            self._ledger.note(Confirmed(number, index, self._unix_time(), tuple(names)))

    def _parts(self, stream: MetrologyStreamState, chunks_in_doubt: dict[int, Chunk]) -> dict[str, dict[int, Part]]:
        """Return the chunks from the first one in doubt on, by channel and index."""
        tried = self._ledger.tried_chunks(stream.opening.stream, min(chunks_in_doubt))
        confirmed = {index: noted for index, noted in tried.items() if index not in stream.tried}
        chunks = dict(chunks_in_doubt)
        clock = self._ledger.state.clock
        if confirmed or stream.confirmed_channels or tried.keys() - chunks_in_doubt.keys():
            for chunk in self._run_chunker.recut(stream, tried):
                chunks.setdefault(chunk.index, chunk.shifted(clock.offset_s) if clock else chunk)
        parts: dict[str, dict[int, Part]] = {}

        def add(name: str, index: int, points: int, required: bool, times: _Numbers | None, values: _Numbers) -> None:
            shown, at_least = _previewed_points(stream, index, name)
            parts.setdefault(name, {})[index] = Part(points, required, times, values, shown, at_least)

        for index, noted in tried.items():
            chunk = chunks.get(index)
            if chunk is not None and chunk.points != noted.points:
                chunk = None  # some of its lines are damaged, so its points are not known
            columns = {} if chunk is None else {column.name: column for column in chunk.columns}
            times = None if chunk is None else packed_column(chunk.times)
            refused = stream.refused[index].channels if index in stream.refused else ()
            for name in noted.channels:
                if name in refused:
                    continue
                required = index in confirmed or name in stream.confirmed_channels.get(index, ())
                if name in columns:
                    add(name, index, noted.points, required, times, packed_column(columns[name].values))
                else:
                    add(name, index, noted.points, required, None, ())
        preview = stream.last_preview
        if preview is not None and preview.index not in tried:
            for name in preview.channels:
                add(name, preview.index, preview.points, False, None, ())
        return parts

    def points_to_read(self, stream: int) -> dict[str, int]:
        """Return the channels that are confirmed or in doubt, and how many points of each the stream may hold."""
        doubtful = self._ends[stream].doubtful
        names = [name for names in self._ledger.state.streams[stream].delivered for name in names]
        max_points = sum(
            one.opening.points_per_chunk * (1 + max(one.next_index, one.last_tried.index if one.last_tried else 0))
            for one in self._ledger.state.streams[stream].group
        )
        return dict.fromkeys([*names, *(name for chunk in doubtful for name in chunk.names)], max_points)

    def end_streams(self, is_under_way: Callable[[int], bool], ended: Callable[[int], None]) -> int | None:
        """End the streams of which nothing is under way. Calls `ended` with each of them, just before.

        Returns:
            A stream that has to be read back before it can end, or None.
        """
        for number, end in list(self._ends.items()):
            stream = self._ledger.state.streams[number]
            together = [one.opening.stream for one in stream.group]
            if any(map(is_under_way, together)):
                continue
            for one in together:
                if one in self._ends and self._ends[one].doubtful:
                    return one
            del self._ends[number]
            ended(number)
            rests = stream.rows_not_held(self._run_chunker.openings.channels_of(stream.opening))
            with self._ledger.together():
                self._ledger.note(Ended(number, end.why))
                for (from_row, skip, position), channels in rests.items():
                    self._run_chunker.openings.open(
                        why=end.why,
                        time_base=stream.opening.time_base,
                        from_row=from_row,
                        position=position,
                        channels=channels or None,
                        skip=skip,
                        points_per_chunk=end.points_per_chunk,
                    )
            _logger.warning("%r ended (%s); its run goes on in a continuation", stream.opening.label, end.why)
        return None


def _delivered(stream: MetrologyStreamState, name: str) -> int:
    """Return how many points of a channel are confirmed in a stream."""
    return sum(points for names, points in stream.delivered.items() if name in names)


def _previewed_points(stream: MetrologyStreamState, index: int, name: str) -> tuple[tuple[int, ...], int]:
    """Return how many points of a chunk previews may have put into a stream, and how many are surely there."""
    sent = [
        one
        for one in (stream.last_preview, stream.last_preview_taken)
        if one and one.index == index and name in one.channels
    ]
    taken = [one.points for one in sent if one is stream.last_preview_taken]
    return tuple(one.points for one in sent), max(taken, default=0)
