"""Decodes the next rows of a journal together, as long as nothing about them is special.

That takes a fraction of the time. Rows that are decoded and not taken yet are kept, so that none is decoded twice.
Bounded: the rows of one chunk, or of several small ones up to `POINTS_AT_ONCE` points.
"""

from __future__ import annotations

from ..model.rows import NO_ROWS, Rows
from ..spool.gil_yield import GilYield
from ..spool.journal_format import decode_lines, join_rows
from ..spool.run_reader import RunReader
from ..spool.segments import START

# How many points are decoded before another thread may have the interpreter: some tenths of a millisecond. Rows of
# several small chunks are decoded together, up to this number.
POINTS_AT_ONCE = 10_000


class RowsAhead:
    """The next rows of one run's journal.

    Args:
        reader: Reads the journal. Its position is where the next rows begin.
        gil_yield: Yields to a plan's thread between two pieces of work.
    """

    def __init__(self, reader: RunReader, gil_yield: GilYield) -> None:
        self._reader = reader
        self._gil_yield = gil_yield
        self._decoded = START, NO_ROWS  # rows that stand at this position, decoded already
        self._chunks_at_once = 1  # of how many chunks the rows are decoded together

    def peek(self, wanted: int, channels: int) -> Rows | None:
        """Return at least `wanted` of the next rows. None if they are not there, or have to be decoded one by one.

        The reader stays where it is.

        Args:
            wanted: How many rows make the next chunk.
            channels: How many values a row has.
        """
        position, rows = self._decoded
        if position == self._reader.position and len(rows.times) >= wanted:
            return rows
        found = self._decode(self._chunks_at_once * wanted, channels)
        if found is None and self._chunks_at_once > 1:
            self._chunks_at_once = 1
            return self._decode(wanted, channels)
        if found is not None:
            # Only now, since a run that is still written rarely has rows for a second chunk.
            self._chunks_at_once = min(2 * self._chunks_at_once, max(1, POINTS_AT_ONCE // max(1, wanted * channels)))
        return found

    def skip(self, rows: Rows, count: int) -> None:
        """Let the reader pass over the first `count` of the rows that `peek` has just returned. The others are kept."""
        self._reader.skip(count)
        self._decoded = self._reader.position, rows.part(count)

    def _decode(self, wanted: int, channels: int) -> Rows | None:
        lines = self._reader.peek(wanted)
        if lines is None:
            return None
        width = len(lines) // wanted
        at_once = max(1, POINTS_AT_ONCE // max(1, channels)) * width
        parts: list[Rows] = []
        for begin in range(0, len(lines), at_once):
            if begin:
                self._gil_yield.make_way()
            part = decode_lines(lines[begin : begin + at_once], width)
            if part is None:
                return None
            parts.append(part)
        return join_rows(parts)
