"""Compares the expected points with those found: value, time to the millisecond, unit, order, count. Pure.

Verification knows only from here what counts as equal. A value has to be exactly the same. A time may differ by what
the milliseconds of the API cannot hold, whether they are rounded or cut. Differences come one by one, so a caller that
asks for the first few pays only for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..api.answers import PointsByChannel

# The API keeps milliseconds. A little is added, since a time in seconds since 1970 as a float is good to 0.2
# microseconds.
TIME_TOLERANCE_S = 0.001 + 1e-6


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one channel, in order."""

    unit: str | None = None
    times: list[float | None] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    @classmethod
    def of(cls, unit: str | None, times: Iterable[float | None], values: Iterable[float | None]) -> Series:
        """Return the points of one channel as they were read back."""
        return cls(unit, list(times), list(values))

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as expected."""

    channel: str
    what: str  # value, time, unit, points (their count) or channel
    index: int | None  # the point's index, counted from 0 within its channel; None if it is about the channel
    ours: float | str | None  # what is expected
    theirs: float | str | None  # what was found

    def __str__(self) -> str:
        """Return the difference in words, without the channel."""
        match self.what:
            case "channel":
                return "did not arrive" if self.theirs is None else "was never emitted"
            case "points":
                return f"{self.theirs} of {self.ours} points arrived"
            case "unit":
                return f"unit {self.ours!r} arrived as {self.theirs!r}"
            case "time":
                return f"point {self.index}: time {self.ours!r} arrived as {self.theirs!r}"
            case _:
                return f"point {self.index}: {self.ours!r} arrived as {self.theirs!r}"


def differences(channel: str, ours: Series | None, theirs: Series | None) -> Iterator[Difference]:
    """Yield every difference of a channel, lazily: its presence, its unit, its points in order, their count.

    Args:
        channel: Its name.
        ours: The expected points; None if the channel is not expected.
        theirs: The points found; None if the channel was not found.
    """
    if ours is None or theirs is None:
        if ours is not theirs:
            mine, other = None if ours is None else len(ours), None if theirs is None else len(theirs)
            yield Difference(channel, "channel", None, mine, other)
        return
    if ours.unit != theirs.unit:
        yield Difference(channel, "unit", None, ours.unit, theirs.unit)
    points = zip(ours.times, ours.values, theirs.times, theirs.values, strict=False)
    for index, (time, value, their_time, their_value) in enumerate(points):
        if value != their_value:
            yield Difference(channel, "value", index, value, their_value)
        elif not same_time(time, their_time):
            yield Difference(channel, "time", index, time, their_time)
    if len(ours) != len(theirs):
        yield Difference(channel, "points", None, len(ours), len(theirs))


class Part(NamedTuple):
    """Points of one channel that are in one chunk: all of them are there, or none."""

    points: int
    required: bool  # False: it was never answered, so it may be there
    times: Sequence[float | None] | None  # None: not known, because lines of the journal are damaged
    values: Sequence[float | None]
    shown: tuple[int, ...] = ()  # how many of its first points may be there instead, from a preview
    at_least: int = 0  # at least this many of them are there

    @property
    def choices(self) -> list[int]:
        """How many of its points may be there, in each possible case."""
        if self.required:
            return [self.points]
        return sorted({self.points, *self.shown, self.at_least}, reverse=True)


def arrangement(parts: Sequence[Part], theirs: Series, at: int = 0) -> list[int] | None:
    """Return how many points of each part are there, in a stream that holds chunks in the order of their indices.

    A point's place tells to which chunk it belongs, so points of equal time and value are told apart. The candidates
    are all choices that give the number of points found and in which each part that may be missing is either equal or
    missing. Of these the one with the most equal points is taken. If several have as many, the earliest parts are
    there.

    Args:
        parts: The parts that must or may be there, in the order of their indices.
        theirs: All points of the channel as they were read back.
        at: How many of these belong to chunks before the first part.

    Returns:
        None if no choice explains the points found.
    """
    reached: dict[int, tuple[int, tuple[int, ...]]] = {at: (0, ())}  # place → equal points, choices so far
    for part in parts:
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for place, (equal, chosen) in reached.items():
            for count in part.choices:
                end = place + count
                if end > len(theirs):
                    continue
                same = part.times is not None and same_points(
                    part.times[:count], part.values[:count], theirs.times[place:end], theirs.values[place:end]
                )
                if not (same or part.required or part.times is None):
                    continue
                found = (equal + count if same else equal, chosen if part.required else (*chosen, count))
                following[end] = max(found, following.get(end, found))
        reached = following
    if len(theirs) not in reached:
        return None
    chosen = iter(reached[len(theirs)][1])
    return [part.points if part.required else next(chosen) for part in parts]


def same_points(
    times: Sequence[float | None],
    values: Sequence[float | None],
    their_times: Sequence[float | None],
    their_values: Sequence[float | None],
) -> bool:
    """Return True if two sequences of points are equal."""
    return (
        len(times) == len(their_times)
        and list(values) == list(their_values)
        and all(map(same_time, times, their_times))
    )


def same_time(ours: float | None, theirs: float | None) -> bool:
    """Return True if a time that was read back is the one that was sent. None, a lost time, never is."""
    return ours is not None and theirs is not None and abs(ours - theirs) <= TIME_TOLERANCE_S


def join_streams(streams: Iterable[PointsByChannel]) -> dict[str, Series]:
    """Return the channels of a run's metrology streams, each joined in the order of the streams."""
    found: dict[str, Series] = {}
    for stream in streams:
        for name, (unit, times, values) in stream.items():
            series = found.setdefault(name, Series(unit=unit))
            series.times.extend(times)
            series.values.extend(values)
    return found
