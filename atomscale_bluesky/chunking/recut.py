"""Chunks that were tried, cut from the journal once more, with nothing noted and nothing opened.

Which rows make a chunk is told by the ledger, so the same files give the same chunks at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..model.chunk import Chunk
from ..model.rows import Position, Row
from ..spool.journal import JournalReader
from ..spool.journal_format import Layout, decode_journal
from ..spool.ledger_format import Left, Opened, Previewed, Tried
from .chunker import Cutter, Resumed


def cut_again(
    folder: Path,
    layouts: Iterable[Layout],
    non_finite: str,
    opening: Opened,
    left: Mapping[str, int],
    tried: Mapping[int, Tried],
) -> Iterator[Chunk]:
    """Cut the chunks of one metrology stream as they were cut when they were tried.

    A chunk of which lines are damaged since has fewer points than were noted, or does not come.

    Args:
        folder: The run's.
        layouts: All of the run's, in order.
        non_finite: The run's policy for gaps.
        opening: The stream's.
        left: Channels that ended in it, and from which row on.
        tried: Which rows made its chunks, by index; the first one that is given is the first one that is cut.

    Raises:
        SpoolError: A line of the journal is not understood.
    """
    own = [layout for layout in layouts if layout.time_base == opening.time_base]
    if not tried or not own:
        return
    first, last_row = tried[min(tried)], max(one.last_row for one in tried.values())
    cutter = Cutter(
        own[0],
        non_finite=non_finite,
        decisions=_Noted(tried),
        streams=[Resumed(opening, first.index, first.first_row, left)],
        known={channel.name for layout in own for channel in layout.channels},
    )
    for layout in own[1:]:
        cutter.layout(layout, from_row=0, position=Position(1, 0))
    numbers, last = {layout.layout for layout in own}, 0
    for position, payload in _lines(folder, Position(first.segment, first.offset)):
        if not payload.startswith(b"["):
            continue
        row = decode_journal(payload)
        if isinstance(row, Row) and row.layout in numbers:
            if row.number > last_row:
                break
            if row.number < last:  # damage: it was not sent
                continue
            last = row.number
            yield from cutter.row(position, row)
    yield from cutter.finish()


@dataclass(slots=True)
class _Noted:
    """What was decided when the chunks were cut first."""

    tried: Mapping[int, Tried]

    def open(self, **_: object) -> None:
        """Nothing opens any more."""

    def leave(self, left: Left) -> None:
        """It was noted then."""

    def noted(self, stream: int, index: int) -> Tried | None:
        """The boundary that a chunk had."""
        return self.tried.get(index)

    def shown(self, stream: int, index: int) -> Previewed | None:
        """What was shown is a boundary like any other here."""

    def cut_short(self, stream: int) -> None:
        """It was noted then."""

    def outgrown(self, stream: int) -> None:
        """What follows is in another stream."""


def _lines(folder: Path, position: Position) -> Iterator[tuple[Position, bytes]]:
    reader = JournalReader(folder, position)
    try:
        for found in reader.read():
            yield found.position, found.payload
    finally:
        reader.close()
