"""What the RunEngine emitted, and per channel whether it arrived.

The emitted side is collected by `Emitted`, a subscriber of its own that shares no code with the callback: it takes the
documents at their word. The other side is whatever the server hands out. What counts as equal is said by
`comparison`, which `atomscale-bluesky verify` goes by too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks.comparison import Series, differences


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


def compare(emitted: Mapping[str, Series], arrived: Mapping[str, Series]) -> list[Comparison]:
    """Every channel of either side: those that were emitted, in their order, then those that were not."""
    names = [*emitted, *(name for name in arrived if name not in emitted)]
    return [
        Comparison(name, emitted.get(name, Series()), arrived.get(name, Series()), _difference(name, emitted, arrived))
        for name in names
    ]


def _difference(name: str, emitted: Mapping[str, Series], arrived: Mapping[str, Series]) -> str | None:
    first = next(differences(name, emitted.get(name), arrived.get(name)), None)
    return None if first is None else str(first)
