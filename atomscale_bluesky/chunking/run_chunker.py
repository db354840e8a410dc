"""Turns a run's journal into chunks: reads it as far as it is written, and cuts it for every metrology stream.

A `RunChunker` continues from the state in the ledger: confirmed chunks are skipped, and chunks that were tried before
get the same rows again. It opens metrology streams, with a line in the ledger before anything is done about them. It
also counts the rows for the run's account. Bounded: it holds the few chunks that are ready, and the rows of unfinished
ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

from ..model.chunk import Chunk
from ..model.labels import MAX_CHANNELS, join_names
from ..model.rows import Position
from ..spool.gil_yield import GilYield
from ..spool.journal_format import Header, Layout, decode_row, is_row
from ..spool.journal_reader import Line
from ..spool.ledger import Ledger
from ..spool.ledger_format import ChannelLeft, Tried
from ..spool.run_reader import RunReader
from ..spool.segments import START
from ..spool.stream_state import MetrologyStreamState
from ..status.account import Account
from .chunker import Chunker
from .cut_results import CutResults
from .cut_stream import Resumed
from .decisions import CutShort, Decision, Leave, Open, Outgrown
from .recut import cut_again
from .rows_ahead import RowsAhead
from .stream_openings import StreamOpenings

_logger = logging.getLogger(__name__)

# How many lines one call of `read_on` may read, so that a run with a long backlog does not delay the others.
LINES_AT_ONCE = 20_000


class RunChunker:
    """Reads and cuts one run's journal.

    Args:
        folder: The run's folder.
        header: The journal's first line.
        ledger: Records openings, and holds how far the run has got.
        synced_to: Up to where the journal is synced already.
        gil_yield: Yields to a plan's thread between two pieces of work.

    Raises:
        SpoolError: From every method: the run's files cannot be read or written, or contradict each other.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        ledger: Ledger,
        *,
        synced_to: Position = START,
        gil_yield: GilYield | None = None,
    ) -> None:
        self.ledger = ledger
        self.account = Account()
        self.openings = StreamOpenings(header, ledger, self.account)
        self.at_end = False  # the journal was read to its present end
        self.more_to_read = False  # the last call of `read_on` stopped before its end
        self.all_cut = False  # read up to the run's stop, and its last chunks cut
        self.results = CutResults(ledger.state)
        self._folder = folder
        self._header = header
        self._gil_yield = gil_yield or GilYield()
        self._cutters: dict[str, Chunker] = {}
        self._resume_points = {stream.opening.stream: stream.resume_point for stream in self.openings.open_streams()}
        self._cut_from = min((position for _, _, position in self._resume_points.values()), default=START)
        self._reader = RunReader(folder)
        self._rows_ahead = RowsAhead(self._reader, self._gil_yield)
        self._lines: Iterator[Line] = iter(())
        self._synced_to = synced_to
        self._last_layout: Layout | None = None  # the layout that the last row named
        self._lines_one_by_one = 0  # how many of the next lines must be decoded one by one
        self._too_few_ahead = False  # there are only rows ahead, and too few for a chunk

    def read_on(self, *, count_only: bool = False) -> None:
        """Read on until a chunk is ready, the journal's present end or `LINES_AT_ONCE`.

        With `count_only`, cut nothing and only count rows for the account.
        """
        self._read_on(count_only)
        if self.at_end:
            self._reader.close()  # so that idle runs hold no file open, however many there are

    def _read_on(self, count_only: bool) -> None:
        self.more_to_read = self.at_end = False
        ready = self.results.ready
        for _ in range(LINES_AT_ONCE):
            if not count_only and self._take_whole_chunk():
                if ready:
                    return
                continue
            if self._too_few_ahead and not count_only:
                self.at_end = True  # they are taken together when more lines follow
                return
            if self._count_ahead(count_only):
                break
            found = next(self._lines, None)
            if found is None:
                self._lines = self._reader.read()
                found = next(self._lines, None)
                if found is None:
                    self.at_end = True
                    return
            self._lines_one_by_one -= 1
            self._take_line(found, count_only)
            self._gil_yield.worked_through(len(found.payload))
            if not count_only and (ready or self.all_cut):
                self.at_end = self.all_cut
                return
        self.more_to_read = True

    def has_point(self, stream: MetrologyStreamState) -> bool:
        """Return True if a stream, or one that shares its metrology stream, has a point as far as the journal was read.

        There is no need to read on for that: a stream opens with its first point, or goes on where another one ended.
        """
        together = {one.opening.stream for one in stream.group}
        return (
            any(one.last_tried or one.last_preview for one in stream.group)
            or any(chunk.stream in together for chunk in self.results.ready)
            or any(number in together for number, _, _ in self.unfinished())
        )

    def everything_read(self) -> bool:
        """Return True if everything in the journal has been read."""
        return self.all_cut or self._reader.is_at_end()

    def sync(self) -> None:
        """Sync what was read so far: after a power cut the same rows have to make the same chunk."""
        if self._reader.position > self._synced_to:
            self._synced_to = self._reader.sync()

    def unfinished(self) -> Iterator[tuple[int, int, int]]:
        """Yield each stream with an unfinished chunk, that chunk's index, and the number of its newest row."""
        for chunker in self._cutters.values():
            yield from chunker.unfinished()

    def preview_of(self, stream: MetrologyStreamState) -> Chunk | None:
        """Return a stream's unfinished chunk as it is now, or None if it must not be shown."""
        chunker, shown = self._cutters[stream.opening.time_base], None
        for decision in chunker.preview_of(stream.opening.stream):
            if isinstance(decision, Chunk) and decision.stream == stream.opening.stream:
                shown = decision
            else:
                self._carry_out(chunker, stream.opening.time_base, decision)
        return shown

    def recut(self, stream: MetrologyStreamState, tried: Mapping[int, Tried]) -> Iterator[Chunk]:
        """Cut the tried chunks of a stream again. The journal is read from the first of them on."""
        layouts = self.account.layouts.values()
        for chunk in cut_again(
            self._folder, layouts, self._header.non_finite, stream.opening, stream.left_at_row, tried
        ):
            self._gil_yield.make_way()
            yield chunk

    def close(self) -> None:
        """Close the journal."""
        self._reader.close()

    def _take_whole_chunk(self) -> bool:
        """Read the next chunk's rows in one go if all of them are plain. Return True if that worked."""
        self._too_few_ahead = False
        layout, position = self._last_layout, self._reader.position
        if layout is None or self._lines_one_by_one > 0 or position < self._cut_from:
            return False
        chunker, number = self._cutters[layout.time_base], self.account.next_row[layout.time_base]
        wanted = chunker.rows_of_whole_chunk(layout.layout, number)
        if not wanted:
            return False
        ahead = self._rows_ahead.peek(wanted, len(layout.channels))
        # Rows that a preview may show are read at once, and so are rows that may complete a chunk of another time base.
        # So are rows that show that a stream has a point, before which it is not made.
        may_wait = len(self._cutters) == 1 and not self._header.max_latency_s and not self._waits_for_a_point()
        if ahead is None and may_wait and self._reader.ends_before(wanted, unless_containing=b'{"kind"'):
            self._too_few_ahead = True
            return False
        if ahead is None or (ahead.layout, ahead.number) != (layout.layout, number):
            self._lines_one_by_one = wanted
            return False
        rows = ahead.part(0, wanted)
        self._gil_yield.make_way()
        self._rows_ahead.skip(ahead, wanted)
        self.account.take_rows(rows)
        self._gil_yield.make_way()
        self.results.add_if_to_push(chunker.chunk_of(position, rows))
        return True

    def _waits_for_a_point(self) -> bool:
        """Return True if a stream is not made yet because it waits for its first point."""
        streams = self.ledger.state.streams.items()
        return any((number or self._header.part) and stream.is_not_requested for number, stream in streams)

    def _count_ahead(self, count_only: bool) -> bool:
        """Count rows together that are only to be counted. Return True if there were any."""
        if self._lines_one_by_one > 0 or not (count_only or self._reader.position < self._cut_from):
            return False
        before = self._reader.position
        self._lines_one_by_one = self.account.take_ahead(
            self._reader, self._gil_yield.worked_through, None if count_only else self._cut_from
        )
        return self._reader.position > before

    def _take_line(self, found: Line, count_only: bool) -> None:
        if is_row(found.payload) and found.position >= self._cut_from and not count_only:
            row = decode_row(found.payload)
            if self.account.take_row(row):
                self._last_layout = self.account.layouts[row.layout]
                time_base = self._last_layout.time_base
                self._carry_out_all(time_base, self._cutters[time_base].take_row(found.position, row))
            return
        line = self.account.take_line(found.payload)
        if line is not None:
            self._lines_one_by_one = 0  # the lines before the rows were special, not the rows
        if count_only:
            return
        if isinstance(line, Layout):
            self._take_layout(line)
        elif self.account.stop is not None:
            for time_base, chunker in self._cutters.items():
                self._carry_out_all(time_base, chunker.finish())
            self.all_cut = True
            repeated = self.account.rows_repeated.total()
            if repeated:
                _logger.error(
                    "run %s: %d rows of its journal repeat the number of an earlier row, which only damage can do; "
                    "those after the end of a chunk count as lost", self._header.run_uid, repeated,
                )  # fmt: skip

    def _take_layout(self, layout: Layout) -> None:
        self._last_layout = layout
        chunker = self._cutters.get(layout.time_base)
        if chunker is not None:
            chunker.take_layout(layout, from_row=self.account.next_row[layout.time_base])
            return
        streams, open_streams = self.openings.of_time_base(layout.time_base), self.openings.open_streams()
        self._cutters[layout.time_base] = Chunker(
            layout,
            non_finite=self._header.non_finite,
            streams=[self._resumed(stream) for stream in streams if stream in open_streams],
            waiting=self.openings.waits(streams),
            known={name for stream in streams for name in self.openings.channels_of(stream.opening)},
        )

    def _resumed(self, stream: MetrologyStreamState) -> Resumed:
        index, from_row, _ = self._resume_points.get(stream.opening.stream) or stream.resume_point
        over = stream.last_tried is not None and stream.last_tried.cut_short and index > stream.last_tried.index
        return Resumed(stream, index, from_row, over)

    def _carry_out_all(self, time_base: str, decisions: Iterable[Decision]) -> None:
        chunker = self._cutters[time_base]
        for decision in decisions:
            self._carry_out(chunker, time_base, decision)

    def _carry_out(self, chunker: Chunker, time_base: str, decision: Decision) -> None:
        """Note in the ledger what the rules decided for a time base, before anything is done about it."""
        match decision:
            case Chunk():
                self.results.add_if_to_push(decision)
            case Open():
                self._open(chunker, time_base, decision)
            case Leave(stream, channels, from_row):
                self._leave(stream, channels, from_row)
            case CutShort(stream):
                self.results.add_to_cut_short(stream)
            case Outgrown(stream):
                self.results.add_outgrown(stream)

    def _open(self, chunker: Chunker, time_base: str, decision: Open) -> None:
        with self.ledger.together() if decision.from_stream is not None else nullcontext():
            opening = self.openings.open(
                why=decision.why,
                time_base=time_base,
                from_row=decision.from_row,
                position=decision.position,
                channels=decision.channels,
                skip=decision.skip,
            )
            if decision.from_stream is not None:
                for name in decision.channels:
                    self.ledger.note(ChannelLeft(decision.from_stream, name, decision.from_row))
        _logger.info(
            "run %s has a further stream, %r (%s), which holds %s",
            self._header.run_uid, opening.label, decision.why, join_names(decision.channels, MAX_CHANNELS),
        )  # fmt: skip
        chunker.take_opened(self.ledger.state.streams[opening.stream])

    def _leave(self, stream: int, channels: tuple[str, ...], from_row: int) -> None:
        with self.ledger.together():
            for name in channels:
                self.ledger.note(ChannelLeft(stream, name, from_row))
