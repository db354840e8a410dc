"""Rows: the values of some channels at one instant, and their places in a journal. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class Position(NamedTuple):
    """A place in a journal: a segment's number, from 1, and an offset in bytes; positions compare in journal order."""

    segment: int
    offset: int


class Channel(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One named scalar series, made from one data key (or one element of an array-valued one)."""

    name: str  # as Atomscale shows it
    key: str  # the data key
    unit: str | None = None
    element: int | None = None  # index into a one-dimensional array, None for a scalar


class Row(msgspec.Struct, frozen=True):
    """The values of all channels of a layout at one instant; None for a gap."""

    layout: int
    number: int  # counts from 0 within its time base
    time: float  # Unix seconds
    event_uid: str
    values: list[float | None]
    gaps: dict[str, str] = {}  # channel name → why its value is None
    rounded: list[str] = []  # channels whose value was an integer that a float cannot hold exactly


class Rows(NamedTuple):
    """Consecutive rows of one layout, each with a value for every channel."""

    layout: int
    number: int  # the number of the first row
    times: tuple[float, ...]
    values: NDArray[np.float64]  # one row per line, one channel per column

    def part(self, begin: int, end: int | None = None) -> Rows:
        """Return the rows from the index `begin` up to `end`, which is not included."""
        return Rows(self.layout, self.number + begin, self.times[begin:end], self.values[begin:end])


NO_ROWS = Rows(0, 0, (), np.empty((0, 0)))
