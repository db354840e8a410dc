"""What the RunEngine emitted, and for each channel whether it arrived.

`Emitted` collects the emitted side. It is a subscriber of its own that shares no code with the callback, and takes the
documents as they are. The other side is what the server returns. `comparison`, which `atomscale-bluesky verify` uses
too, decides what counts as equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks.comparison import Series, differences


class Emitted:
    """Keeps every number of the event stream `primary`, by data key. Subscribe it to the RunEngine."""

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
        """The times of the events, Unix seconds."""
        series = next(iter(self.channels.values()), Series())
        return [time for time in series.times if time is not None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One channel, as emitted and as arrived."""

    channel: str
    emitted: Series
    arrived: Series
    difference: str | None
    """The first thing that is not equal; None where all is."""

    @property
    def equal(self) -> bool:
        """Return True if every point arrived as it was emitted."""
        return self.difference is None


def compare(emitted: Mapping[str, Series], arrived: Mapping[str, Series]) -> list[Comparison]:
    """Return a comparison for every channel of either side: first the emitted ones, in their order, then the others."""
    names = [*emitted, *(name for name in arrived if name not in emitted)]
    return [
        Comparison(name, emitted.get(name, Series()), arrived.get(name, Series()), _difference(name, emitted, arrived))
        for name in names
    ]


def _difference(name: str, emitted: Mapping[str, Series], arrived: Mapping[str, Series]) -> str | None:
    first = next(differences(name, emitted.get(name), arrived.get(name)), None)
    return None if first is None else str(first)
