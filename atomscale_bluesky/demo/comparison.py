"""What the RunEngine emitted against what the API gives back, point by point. Pure.

The emitted side is collected by `Emitted`, a subscriber of its own that shares no code with the callback: it takes the
documents at their word. The other side is whatever the server hands out. A channel counts as equal when it has the same
points in the same order, each with exactly its value and its time to the millisecond that the API keeps, and its unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# The API keeps milliseconds; a hair more, since a time in seconds since 1970 as a float is good to 0.2 microseconds.
TIME_TOLERANCE_S = 0.001 + 1e-6


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one channel, in order."""

    unit: str | None = None
    times: list[float | None] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)


class Emitted:
    """Subscribe it: it keeps every number of the event stream `primary`, by data key."""

    def __init__(self) -> None:
        self.run_uid = ""
        self.started = 0.0
        self.channels: dict[str, Series] = {}
        self._descriptors: set[str] = set()

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take one document."""
        if name == "start":
            self.run_uid, self.started = doc["uid"], doc["time"]
        elif name == "descriptor" and doc["name"] == "primary":
            self._descriptors.add(doc["uid"])
            for key, described in doc["data_keys"].items():
                self.channels[key] = Series(unit=described.get("units"))
        elif name == "event" and doc["descriptor"] in self._descriptors:
            for key, value in doc["data"].items():
                self.channels[key].times.append(doc["time"])
                self.channels[key].values.append(value)

    @property
    def points(self) -> int:
        """How many numbers were emitted, over all channels."""
        return sum(map(len, self.channels.values()))

    @property
    def times(self) -> list[float]:
        """When the events were, Unix seconds."""
        series = next(iter(self.channels.values()), Series())
        return [time for time in series.times if time is not None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One channel, emitted and arrived."""

    channel: str
    emitted: Series
    arrived: Series
    difference: str | None
    """The first thing that is not equal; None where all is."""

    @property
    def equal(self) -> bool:
        """Whether every point arrived as it was emitted."""
        return self.difference is None


# As `Client.points` gives a stream: by channel, its unit, times and values.
Points = Mapping[str, tuple[str | None, list[float | None], list[float | None]]]


def joined(streams: Iterable[Points]) -> dict[str, Series]:
    """The channels of a run's metrology streams, each in the order of the streams."""
    found: dict[str, Series] = {}
    for stream in streams:
        for name, (unit, times, values) in stream.items():
            series = found.setdefault(name, Series(unit=unit))
            series.times.extend(times)
            series.values.extend(values)
    return found


def compare(emitted: Mapping[str, Series], arrived: Mapping[str, Series]) -> list[Comparison]:
    """Every channel of either side: those that were emitted, in their order, then those that were not."""
    names = [*emitted, *(name for name in arrived if name not in emitted)]
    return [
        Comparison(name, emitted.get(name, Series()), arrived.get(name, Series()), _difference(name, emitted, arrived))
        for name in names
    ]


def _difference(name: str, emitted: Mapping[str, Series], arrived: Mapping[str, Series]) -> str | None:
    if name not in emitted:
        return "was never emitted"
    if name not in arrived:
        return "did not arrive"
    ours, theirs = emitted[name], arrived[name]
    if ours.unit != theirs.unit:
        return f"unit {ours.unit!r} arrived as {theirs.unit!r}"
    for nth in range(min(len(ours), len(theirs))):
        if ours.values[nth] != theirs.values[nth]:
            return f"point {nth}: {ours.values[nth]!r} arrived as {theirs.values[nth]!r}"
        if not _same_time(ours.times[nth], theirs.times[nth]):
            return f"point {nth}: time {ours.times[nth]!r} arrived as {theirs.times[nth]!r}"
    if len(ours) != len(theirs):
        return f"{len(theirs)} of {len(ours)} points arrived"
    return None


def _same_time(ours: float | None, theirs: float | None) -> bool:
    return ours is not None and theirs is not None and abs(ours - theirs) <= TIME_TOLERANCE_S
