"""The points of a channel for a plot, thinned so that extremes stay visible. Pure.

A plot of some thousand pixels shows no more than two points per pixel: the lowest and the highest. So a `Trace` keeps a
bounded number of points however long the stream is. When it is full, each four of its points become the lowest and the
highest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# How many points of a channel are kept, and how many are sent to the browser at a time.
MAX_KEPT = 100_000
MAX_SENT = 2_000

Numbers = NDArray[np.float64]


class Trace:
    """The points of one channel, in order."""

    def __init__(self) -> None:
        self.count = 0  # how many points were added
        self.thinned = False
        self._times: Numbers = np.empty(0)
        self._values: Numbers = np.empty(0)

    def extend(self, times: Sequence[float] | Numbers, values: Sequence[float | None] | Numbers) -> None:
        """Add points. None and NaN are gaps."""
        self._times = np.concatenate((self._times, np.asarray(times, dtype=np.float64)))
        self._values = np.concatenate((self._values, np.asarray(values, dtype=np.float64)))
        self.count += len(times)
        if len(self._times) > MAX_KEPT:
            self._times, self._values = _thin(self._times, self._values, MAX_KEPT // 2)
            self.thinned = True

    def window(
        self, begin: float = -math.inf, end: float = math.inf, max_points: int = MAX_SENT
    ) -> tuple[list[float], list[float | None], bool]:
        """Return times and values from `begin` to `end`, with a neighbour on each side, and True if some are left out.

        At most about `max_points` points are returned.
        """
        # Times of a stream may step back when a clock is set, so this is no bisection.
        inside = np.flatnonzero((self._times >= begin) & (self._times <= end))
        if len(inside) == 0:
            return [], [], self.thinned
        first, last = max(0, int(inside[0]) - 1), min(len(self._times), int(inside[-1]) + 2)
        times, values = self._times[first:last], self._values[first:last]
        left_out = self.thinned or len(times) > max_points
        if len(times) > max_points:
            times, values = _thin(times, values, max_points)
        return times.tolist(), _with_gaps(values), left_out

    def spark(self) -> list[float | None]:
        """Return some tens of values that show its course."""
        return sparkline(self._values)


def sparkline(values: Sequence[float | None] | Numbers, max_points: int = 80) -> list[float | None]:
    """Return at most about `max_points` values that show the course of these."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) > max_points:
        numbers = _thin(np.arange(len(numbers), dtype=np.float64), numbers, max_points)[1]
    return _with_gaps(numbers)


def _thin(times: Numbers, values: Numbers, max_points: int) -> tuple[Numbers, Numbers]:
    """Return the lowest and the highest point of each of `max_points` / 2 equal parts, in order; a gap stays a gap."""
    size = math.ceil(len(times) / max(1, max_points // 2))
    whole = len(times) // size * size
    blocks = values[:whole].reshape(-1, size)
    gaps = np.isnan(blocks)
    low = np.where(gaps, np.inf, blocks).argmin(axis=1)
    high = np.where(gaps, -np.inf, blocks).argmax(axis=1)
    some = gaps.any(axis=1)
    at = np.arange(len(blocks)) * size
    gap = (at + gaps.argmax(axis=1))[some]
    kept = np.unique(np.concatenate((at + low, at + high, gap, np.arange(whole, len(times)), [0, len(times) - 1])))
    return times[kept], values[kept]


def _with_gaps(values: Numbers) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
