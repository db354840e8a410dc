"""What the rules of cutting decide about the rows of one time base. Pure."""

from __future__ import annotations

import msgspec

from ..model.chunk import Chunk
from ..model.rows import Position
from ..spool.ledger_format import OpeningReason

# Ranges of rows that an earlier stream holds: (first, last), both included.
Skip = tuple[tuple[int, int], ...]


class Open(msgspec.Struct, frozen=True):
    """A further metrology stream of this time base begins. `Chunker.take_opened` takes it, unless it is not made."""

    why: OpeningReason
    from_row: int
    position: Position
    channels: tuple[str, ...]
    skip: Skip = ()
    from_stream: int | None = None  # the stream that the channels leave at `from_row`


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
