"""What a run's ledger says about one metrology stream: where it stands, and what happened to its chunks. Pure."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import NamedTuple

import msgspec

from ..model.chunk import Span
from ..model.rows import Position
from .ledger_format import Opened, Previewed, Tried


class Life(Enum):
    """Where a metrology stream stands."""

    OPENED = "opened"
    INITIALIZING = "initializing"
    INITIALIZED = "initialized"
    FINALIZING = "finalizing"
    FINALIZED = "finalized"
    CLOSED = "closed"


class Refusal(msgspec.Struct):
    """Channels of a chunk that Atomscale does not take as they are."""

    channels: frozenset[str]
    status: int | None
    reason: str


class RowsNotHeld(NamedTuple):
    """The rows of a channel that a stream does not hold: from a row on, except some. With that row's position."""

    from_row: int
    skip: tuple[tuple[int, int], ...]
    position: Position


NO_END = 2**62  # a row number that no run reaches


class MetrologyStreamState(msgspec.Struct, eq=False):
    """One metrology stream, as far as the ledger describes it."""

    opening: Opened
    life: Life = Life.OPENED
    data_id: str | None = None
    family: str | None = None
    parked: str | None = None
    ended: str | None = None  # why it takes no further chunk; NO_POINT if it was never made
    left_at_row: dict[str, int] = {}  # channel → the row from which on it is no longer here
    tried: dict[int, Tried] = {}  # chunks that are not wholly confirmed
    refused: dict[int, Refusal] = {}
    confirmed_channels: dict[int, set[str]] = {}  # of partly confirmed chunks
    confirmed_ahead: list[Span] = []  # confirmed chunks above one that is not
    next_index: int = 0
    last_tried: Tried | None = None  # the chunk with the highest index
    last_preview: Previewed | None = None  # the last preview of the chunk that is not confirmed yet …
    last_preview_taken: Previewed | None = None  # … and the last one that Atomscale has taken
    # Points, by the channels that have them.
    delivered: Counter[tuple[str, ...]] = msgspec.field(default_factory=Counter)
    chunks_confirmed: int = 0
    confirmed_at: float | None = None
    finalized_at: float | None = None
    linked: set[tuple[str, str]] = set()  # the kind of each link made, and its target
    links_refused: dict[tuple[str, str], str] = {}  # kind and target → the reason
    renamed: str | None = None  # its name in Atomscale, if that was changed after it was made
    # All openings that share one metrology stream of Atomscale's. The first has initialized it and finalizes it.
    group: list[MetrologyStreamState] = []

    @property
    def is_done(self) -> bool:
        """Return True if nothing is left to do for this stream."""
        left_open = self.all_confirmed and any(stream.life is Life.CLOSED for stream in self.group)
        return left_open or self.life in {Life.FINALIZED, Life.CLOSED}

    @property
    def is_not_requested(self) -> bool:
        """Return True if it is opened, and no request has been made for a metrology stream of its own."""
        return self.life is Life.OPENED and self.opening.joins is None

    @property
    def group_parked(self) -> str | None:
        """Why this stream, or one that shares its metrology stream, waits for the operator; None if none waits."""
        return next((stream.parked for stream in self.group if stream.parked), None)

    @property
    def all_confirmed(self) -> bool:
        """Return True if every chunk tried so far is wholly confirmed."""
        return not self.tried and not self.refused

    @property
    def next_row(self) -> int:
        """The row after the last chunk that was tried."""
        return self._end_of_tried()[0]

    @property
    def has_an_answer(self) -> bool:
        """Return True if Atomscale has confirmed or refused any chunk."""
        return bool(self.chunks_confirmed or self.confirmed_channels or self.refused)

    def rows_not_held(self, channels: tuple[str, ...]) -> dict[RowsNotHeld, tuple[str, ...]]:
        """Return the rows of these channels that this stream does not hold, with the channels that share each range.

        With no channels, because none came yet, the rest is all rows.
        """
        if not channels:
            from_row, position = self._end_of_tried()
            return {RowsNotHeld(from_row, (), position): ()}
        rows_not_held: dict[RowsNotHeld, tuple[str, ...]] = {}
        for name in channels:
            rest = self._rows_not_held_of(name)
            if rest is not None:
                rows_not_held[rest] = (*rows_not_held.get(rest, ()), name)
        return rows_not_held

    def _rows_not_held_of(self, name: str) -> RowsNotHeld | None:
        """Return the rows of a channel from its first chunk on that is not held; None if the channel left before.

        Later chunks that are held are skipped.
        """
        left_at, first = self.left_at_row.get(name), self._first_not_held(name)
        skip = [*self.opening.skip]
        if first is not None:
            skip += self._held_after(first, name)
            from_row, position = first.first_row, Position(first.segment, first.offset)
        elif left_at is not None and left_at <= self.next_row:
            return None
        else:
            from_row, position = self._end_of_tried()
        if left_at is not None:
            skip.append((left_at, NO_END))
        return RowsNotHeld(from_row, tuple(skip), position)

    @property
    def has_hole(self) -> bool:
        """Return True if it holds rows of a channel, and does not hold some of the rows before them."""
        names = {name for tried in self.tried.values() for name in tried.channels}
        firsts = [(self._first_not_held(name), name) for name in names]
        return any(first is not None and self._held_after(first, name) for first, name in firsts)

    def may_be_cut_short_before(self, index: int) -> bool:
        """Return True if an earlier chunk was shown and has no answer yet, so that it may become the last one."""
        shown = self.last_preview
        return shown is not None and shown.index < index and shown.index not in self.refused

    def _first_not_held(self, name: str) -> Tried | None:
        """Return the first tried chunk of which this stream does not hold the channel's rows."""
        for index, tried in sorted(self.tried.items()):
            if name in tried.channels and name not in self.confirmed_channels.get(index, ()):
                return tried
        return None

    def _held_after(self, chunk: Tried, name: str) -> list[tuple[int, int]]:
        """Return the row ranges of a channel that this stream holds after a chunk."""
        ranges = [(span.first_row, span.last_row) for span in self.confirmed_ahead]
        for index, tried in self.tried.items():
            if name in self.confirmed_channels.get(index, ()):
                ranges.append((tried.first_row, tried.last_row))
        return sorted(held for held in ranges if held[0] > chunk.first_row)

    def _end_of_tried(self) -> tuple[int, Position]:
        """Return the row after the last chunk that was tried, and its position in the journal."""
        if self.last_tried is None:
            return self.opening.from_row, Position(self.opening.segment, self.opening.offset)
        return self.last_tried.last_row + 1, Position(self.last_tried.segment, self.last_tried.offset)

    @property
    def resume_point(self) -> tuple[int, int, Position]:
        """The next chunk's index, its first row, and the journal position to read from."""
        unconfirmed = [tried for index, tried in self.tried.items() if index not in self.refused]
        if unconfirmed:
            first = min(unconfirmed, key=lambda tried: tried.index)
            return first.index, first.first_row, Position(first.segment, first.offset)
        return self.next_index, *self._end_of_tried()

    def confirm(self, tried: Tried) -> None:
        """Note that the whole chunk is confirmed."""
        del self.tried[tried.index]
        if self.last_preview is not None and self.last_preview.index == tried.index:
            self.last_preview = self.last_preview_taken = None
        self.chunks_confirmed += 1
        merged = Span(tried.index, tried.index, tried.first_row, tried.last_row)
        apart: list[Span] = []
        for span in self.confirmed_ahead:
            if span.last_index + 1 == merged.first_index:
                merged = Span(span.first_index, merged.last_index, span.first_row, merged.last_row)
            elif merged.last_index + 1 == span.first_index:
                merged = Span(merged.first_index, span.last_index, merged.first_row, span.last_row)
            else:
                apart.append(span)
        lowest = min(self.tried, default=self.next_index)
        self.confirmed_ahead = sorted(span for span in [*apart, merged] if span.last_index > lowest)
