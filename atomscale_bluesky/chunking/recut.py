"""Repeats chunks that were tried before: cuts the same rows from the journal again. Notes nothing and opens nothing.

The ledger says which rows make a chunk, so the same files give the same chunks at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..model.chunk import Chunk
from ..model.rows import Position
from ..spool.journal_format import Layout, decode_row, is_row
from ..spool.journal_reader import JournalReader
from ..spool.ledger_format import Opened, Tried
from ..spool.stream_state import MetrologyStreamState
from .chunker import Chunker
from .cut_stream import Resumed
from .decisions import Decision


def cut_again(
    folder: Path,
    layouts: Iterable[Layout],
    non_finite: str,
    opening: Opened,
    left_at_row: Mapping[str, int],
    tried: Mapping[int, Tried],
) -> Iterator[Chunk]:
    """Cut the chunks of one metrology stream again, as they were when they were tried.

    If lines of a chunk have been damaged since, it has fewer points than were noted, or is missing.

    Args:
        folder: The run's folder.
        layouts: All of the run's layouts, in order.
        non_finite: The run's policy for gaps.
        opening: The stream's opening.
        left_at_row: Channels that ended in the stream, and from which row on.
        tried: Which rows made its chunks, by index. Cutting begins with the first of them.

    Raises:
        SpoolError: A line of the journal cannot be decoded.
    """
    layouts_here = [layout for layout in layouts if layout.time_base == opening.time_base]
    if not tried or not layouts_here:
        return
    first, last_row = tried[min(tried)], max(one.last_row for one in tried.values())
    # As it was then: the boundary of a preview is like any other.
    state = MetrologyStreamState(opening, left_at_row=dict(left_at_row), tried=dict(tried))
    chunker = Chunker(
        layouts_here[0],
        non_finite=non_finite,
        streams=[Resumed(state, first.index, first.first_row)],
        known={channel.name for layout in layouts_here for channel in layout.channels},
    )
    for layout in layouts_here[1:]:
        chunker.take_layout(layout, from_row=0)
    numbers, newest = {layout.layout for layout in layouts_here}, 0
    for position, payload in _lines(folder, Position(first.segment, first.offset)):
        if not is_row(payload):
            continue
        row = decode_row(payload)
        if row.layout in numbers:
            if row.number > last_row:
                break
            if row.number < newest:  # damage: it was not sent
                continue
            newest = row.number
            yield from _only_chunks(chunker.take_row(position, row))
    yield from _only_chunks(chunker.finish())


def _only_chunks(decisions: Iterable[Decision]) -> Iterator[Chunk]:
    """Yield the chunks. What else was decided was noted then, and further rows are in another stream."""
    return (decision for decision in decisions if isinstance(decision, Chunk))


def _lines(folder: Path, position: Position) -> Iterator[tuple[Position, bytes]]:
    reader = JournalReader(folder, position)
    try:
        for found in reader.read():
            yield found.position, found.payload
    finally:
        reader.close()
