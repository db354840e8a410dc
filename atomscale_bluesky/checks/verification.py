"""What comes out when a run is read back from Atomscale: how each of its metrology streams compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..model.text import safe
from ..model.uids import shown_uid
from ..status.notebook import html_table
from .comparison import Difference

# How many differences are reported. Further ones are only counted.
MAX_DIFFERENCES = 20


@dataclass(frozen=True, slots=True)
class StreamDifference(Difference):
    """One thing that is not as expected, and where."""

    data_id: str


@dataclass(frozen=True, slots=True)
class StreamVerified:
    """One metrology stream as it was read back."""

    data_id: str
    label: str
    channels: int
    points: int  # how many points were compared, over all channels
    different: int  # how many things were not equal
    uncompared: int = 0  # points whose lines in the journal are damaged
    problem: str | None = None  # why it could not be read
    added: dict[str, int] = field(default_factory=dict)  # series of the service's own: name, and how many values


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """The result of reading a run back."""

    run_uid: str
    label: str
    streams: tuple[StreamVerified, ...]
    differences: tuple[StreamDifference, ...]  # the first ones
    waiting: int = 0  # points that are not confirmed, so they cannot be checked
    refused: int = 0
    discarded: int = 0
    lost: int = 0
    read_before: int = 0  # points of parts of the run that were read back, were equal, and have left the spool
    unread: int = 0  # points of parts that have left the spool and were not read back
    stopped: bool = True  # False while a stop document, or the note that the run was interrupted, may still come

    @property
    def points(self) -> int:
        """How many points were compared."""
        return sum(stream.points for stream in self.streams)

    @property
    def different(self) -> int:
        """How many things were not equal, including those beyond the reported `differences`."""
        return sum(stream.different for stream in self.streams)

    @property
    def uncompared(self) -> int:
        """How many points could not be compared, because their lines in the journal are damaged."""
        return sum(stream.uncompared for stream in self.streams)

    @property
    def problem(self) -> str | None:
        """Why a stream could not be read."""
        return next((stream.problem for stream in self.streams if stream.problem), None)

    @property
    def added(self) -> dict[str, int]:
        """Series that the service has added to the run's streams, with the number of values of each.

        Not differences.
        """
        found: dict[str, int] = {}
        for stream in self.streams:
            for name, values in stream.added.items():
                found[name] = found.get(name, 0) + values
        return found

    @property
    def arrived(self) -> bool:
        """Return True if everything confirmed could be read and is equal."""
        return not (self.different or self.uncompared or self.problem)

    @property
    def equal(self) -> bool:
        """Return True if the run has stopped, the whole of it is in Atomscale, and all of it is equal."""
        left = self.waiting or self.refused or self.discarded or self.lost or self.unread
        return self.arrived and self.stopped and not left

    def __repr__(self) -> str:
        """Return a line that says which run it is and how it compared."""
        return f"<Verification of run {shown_uid(self.run_uid)}: {safe(str(self))}>"

    def _repr_html_(self) -> str:
        """Return the streams as a table for a notebook."""
        columns = ("stream", "channels", "points compared", "differences", "not compared", "problem")
        rows = ((s.data_id, s.channels, s.points, s.different, s.uncompared, s.problem) for s in self.streams)
        return html_table(f"Run {shown_uid(self.run_uid)} ({self.label}): {self}", columns, rows)

    def __str__(self) -> str:
        """Return the result as one line of text."""
        if self.problem:
            return f"it could not be read back: {self.problem}"
        if self.different:
            first = self.differences[0]
            more = f", and {_number(self.different - 1)} further differences" if self.different > 1 else ""
            return f"channel {first.channel!r} of {first.data_id}: {first}{more}"
        if self.uncompared:
            return f"{_number(self.uncompared)} points could not be compared, their lines in the journal are damaged"
        rest = {"waiting": self.waiting, "refused": self.refused, "discarded": self.discarded, "lost": self.lost}
        left = ", ".join(f"{_number(n)} {what}" for what, n in rest.items() if n)
        said = "no point is confirmed"
        if self.points:
            said = f"all {_number(self.points)} points that were confirmed are equal"
        if self.read_before:
            said += f"; {_number(self.read_before)} were read back before and were equal"
        if self.unread:
            said += f"; {_number(self.unread)} of a part that has left the spool were not read back"
        if not (left or self.stopped):
            left = "the run still goes on, or its process has ended without a stop document"
        return said + (f"; {left}" if left else "")


def _number(count: int) -> str:
    """Return a count with its thousands set apart, by plain blanks: the text may go anywhere."""
    return f"{count:,}".replace(",", " ")


def add_differences(data_id: str, found: Iterator[Difference], told: list[StreamDifference]) -> int:
    """Add the first differences to `told`, up to the limit over all streams, and return how many there are."""
    count = 0
    for one in found:
        count += 1
        if len(told) < MAX_DIFFERENCES:
            told.append(StreamDifference(one.channel, one.what, one.index, one.ours, one.theirs, data_id))
    return count
