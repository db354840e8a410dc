"""A chunk: consecutive points of the channels of one metrology stream, under one index. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .rows import Position

# One line per channel. None is only where the policy is `null`, and then the lines are tuples.
Values = NDArray[np.float64] | tuple[tuple[float | None, ...], ...]


class Column(NamedTuple):
    """One channel's part of a chunk: as many values as the chunk has times, None only where the policy is `null`."""

    name: str
    unit: str | None
    values: tuple[float | None, ...] | NDArray[np.float64]


class Chunk(msgspec.Struct, frozen=True, eq=False):
    """Consecutive points of the channels of one metrology stream, under an index that never changes.

    The chunks of a stream share the tuples of their channels' names and units, so a chunk costs nothing per channel.
    """

    stream: int
    index: int
    times: tuple[float, ...]  # Unix seconds, in order of arrival
    names: tuple[str, ...]
    units: tuple[str | None, ...]
    values: Values
    first_row: int
    last_row: int
    position: Position  # the first row's place in the journal

    @property
    def points(self) -> int:
        """How many points each channel has."""
        return len(self.times)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The channels, one by one."""
        return tuple(map(Column, self.names, self.units, self.values))

    def with_channels(self, names: Iterable[str]) -> Chunk:
        """Return the chunk with only the named channels, in the chunk's own order."""
        wanted = frozenset(names)
        places = [place for place, name in enumerate(self.names) if name in wanted]
        return msgspec.structs.replace(
            self,
            names=tuple([self.names[place] for place in places]),
            units=tuple([self.units[place] for place in places]),
            values=_values_at(self.values, places),
        )

    def shifted(self, offset_s: float) -> Chunk:
        """Return the chunk with all times later by `offset_s`."""
        if not offset_s:
            return self
        return msgspec.structs.replace(self, times=tuple(time + offset_s for time in self.times))


def _values_at(values: Values, places: list[int]) -> Values:
    return values[places] if isinstance(values, np.ndarray) else tuple([values[place] for place in places])


class Span(NamedTuple):
    """Consecutive chunks of a stream, and the range of their rows; both ends included."""

    first_index: int
    last_index: int
    first_row: int
    last_row: int
