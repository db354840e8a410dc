"""Chunks as tests write them down: channel by channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from atomscale_bluesky.model.chunk import Chunk, Column
from atomscale_bluesky.model.rows import Position


def chunk_of(
    index: int,
    times: Sequence[float],
    columns: Iterable[Column],
    *,
    first_row: int = 0,
    last_row: int | None = None,
) -> Chunk:
    """A chunk of metrology stream 0. Its rows follow each other from `first_row` on, if no `last_row` is given."""
    names, units, values = tuple(zip(*columns, strict=True)) or ((), (), ())
    last = first_row + len(times) - 1 if last_row is None else last_row
    return Chunk(0, index, tuple(times), names, units, values, first_row, last, Position(1, 0))


def spelled(chunk: Chunk) -> tuple[object, ...]:
    """All that a chunk holds, in values that compare."""
    columns = [(name, unit, [*values]) for name, unit, values in chunk.columns]
    return (chunk.stream, chunk.index, chunk.times, columns, chunk.first_row, chunk.last_row, chunk.position)
