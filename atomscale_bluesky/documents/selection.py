"""Which event streams and data keys are taken, by the patterns of the settings. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from .row_times import TimeRule


class Selection(NamedTuple):
    """Which event streams and data keys to take, and how: the settings that this module needs."""

    event_streams: Sequence[str] = ("*", "!baseline", "!interruptions")
    channels: Sequence[str] = ("*",)
    monitors: Sequence[str] = ("*_monitor",)
    rename: Mapping[str, str] = {}
    max_elements: int = 16
    timestamps: str = "auto"
    # If all event streams of a run share a metrology stream: the one whose channel names get no prefix.
    unprefixed: str | None = None

    def takes_event_stream(self, name: str) -> bool:
        """Return True if readings of this event stream are wanted."""
        return matches(name, self.event_streams)

    def takes_key(self, key: str, hinted: bool) -> bool:
        """Return True if this data key is wanted."""
        if list(self.channels) == ["hints"]:
            return hinted
        return matches(key, self.channels)

    def time_rule_of(self, event_stream: str) -> TimeRule:
        """Return how the times of an event stream's rows are chosen."""
        if self.timestamps == "auto":
            return TimeRule.MONITOR if matches(event_stream, self.monitors) else TimeRule.EVIDENCE
        return TimeRule(self.timestamps)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return True if the last matching pattern takes the name.

    `!pattern` excludes. With `!` only, all others are taken.
    """
    taken = bool(patterns) and all(pattern.startswith("!") for pattern in patterns)
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            taken = not pattern.startswith("!")
    return taken
