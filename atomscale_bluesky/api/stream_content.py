"""Reads a stream's points while the answer comes in, keeping only the channels that are asked for. Pure.

There is no documented way to ask for a part of a stream, and Atomscale documents that it adds series of its own, some
of them text. So the answer is never held whole, but processed while it arrives (`json_parts`). The numbers of the
channels that are due are packed at once. Of everything else only the name and the number of values is noted.

Two shapes are known: a series per channel (`properties`), and the older list of rows (`series`). Times may be null, and
there may be fewer values than times: a missing one is None.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from .answers import AnswerError, PointsByChannel
from .json_parts import MAX_NAME_BYTES, JsonParts, TooMuchError

# Bounds for an answer's size. A point has a time in milliseconds, a relative time and a value: about 60 bytes with all
# digits. Atomscale documents eight series beside a channel, each as long as the channel and with a name that begins
# with the channel's. In the older shape every value comes with the name.
BYTES_PER_POINT, BYTES_PER_NAME_BYTE = 1024, 16
MIN_ANSWER_BYTES, MAX_ANSWER_BYTES = 4 * 2**20, 2**30
# How many points beyond the expected ones are kept of a channel, for a message that says how many there are.
_SPARE_POINTS = 1000
# Added series beyond this number are skipped and not noted.
MAX_ADDED = 1000
_ROW_BYTES = 2**20
# Each member of an object takes about 10 µs. A series has four members, and each channel comes with eight more
# series.
_MAX_MEMBERS, _MEMBERS_PER_CHANNEL = 10_000, 100

_UNITS = msgspec.json.Decoder(str | None)
_ROW = msgspec.json.Decoder(dict[str, Any])
_NO_CHANNELS = frozenset({"unix_timestamp_ms", "relative_time_seconds", "time_seconds"})


class StreamContent(NamedTuple):
    """The content of a metrology stream as it was read back."""

    points: PointsByChannel  # of the channels that are due and present
    added: dict[str, int]  # the other series: the names of the first `MAX_ADDED`, and how many values each has


def max_bytes(due: Mapping[str, int]) -> int:
    """Return how large the answer about a stream with these channels and points may be, in bytes.

    Generous: about fifteen times the size of the points, and at least 4 MiB.
    """
    points = sum(
        count * (BYTES_PER_POINT + BYTES_PER_NAME_BYTE * len(name.encode(errors="replace")))
        for name, count in due.items()
    )
    return min(MAX_ANSWER_BYTES, MIN_ANSWER_BYTES + points)


def read_points(
    parts: Iterable[bytes], due: Mapping[str, int], *, pause: Callable[[], object] = lambda: None
) -> StreamContent:
    """Read the points of the channels that are due from an answer's parts.

    Args:
        parts: The answer, in parts of any size.
        due: The channels to read, and how many points each may have.
        pause: Called after every `STEP_BYTES`.

    Raises:
        AnswerError: The answer has neither shape, or a channel that is due is no series of numbers.
        TooMuchError: A channel has more than twice the points that it may have plus a thousand, or there are far too
            many series.
    """
    text = JsonParts(parts, pause, _MAX_MEMBERS + _MEMBERS_PER_CHANNEL * len(due))
    try:
        return _read(text, due)
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise AnswerError(f"a series of the answer is not understood: {error!r:.300}") from error


def _read(text: JsonParts, due: Mapping[str, int]) -> StreamContent:
    columns: dict[str, _Column] | None = None
    rows: dict[str, _Column] | None = None
    added: dict[str, int] = {}
    for member in text.members():
        if member == "properties" and text.peek() == b"{":
            columns = _read_series(text, due, added)
        elif member == "series" and text.peek() == b"[":
            rows = _read_rows(text, due, added)
        else:
            text.skip()
    text.check_end()
    found = rows if columns is None else columns
    if found is None:
        raise AnswerError("the answer has no 'properties'")
    return StreamContent({name: column.points() for name, column in found.items()}, added)


class _Column:
    """The points of one channel."""

    def __init__(self, name: str, due: int) -> None:
        self.times: array[float] | list[float | None] = array("d")
        self.values: array[float] | list[float | None] = array("d")
        self.unit: str | None = None
        self._name = name
        self._max_points = 2 * due + _SPARE_POINTS

    def read(self, text: JsonParts) -> None:
        """Read the next value of the text as this channel's series."""
        members: set[str] = set()
        for member in text.members():
            members.add(member)
            if member == "unix_timestamp_ms":
                self.times = array("d")
                for block in text.numbers():
                    self.add_times(block)
            elif member == "values":
                self.values = array("d")
                for block in text.numbers():
                    self.add_values(block)
            elif member == "units":
                self.unit = _UNITS.decode(text.value(MAX_NAME_BYTES))
            else:
                text.skip()
        if not members.issuperset({"unix_timestamp_ms", "values"}):
            raise ValueError(f"channel {self._name!r:.80} has no times or no values")

    def add_times(self, milliseconds: list[float | None]) -> None:
        """Add times, in milliseconds as the API gives them."""
        self.times = self._with(self.times, [None if ms is None else ms / 1000 for ms in milliseconds])

    def add_values(self, values: list[float | None]) -> None:
        """Add values."""
        self.values = self._with(self.values, values)

    def points(self) -> tuple[str | None, array[float] | list[float | None], array[float] | list[float | None]]:
        """Return unit, times and values, one value for each time.

        Raises:
            ValueError: There are more values than times.
        """
        missing = len(self.times) - len(self.values)
        if missing < 0:
            raise ValueError(f"{len(self.values)} values have {len(self.times)} times")
        return self.unit, self.times, [*self.values, *[None] * missing] if missing else self.values

    def _with(
        self, numbers: array[float] | list[float | None], more: list[float | None]
    ) -> array[float] | list[float | None]:
        if len(numbers) + len(more) > self._max_points:
            raise TooMuchError(f"channel {self._name!r:.80} has more than {self._max_points} points")
        if isinstance(numbers, array) and None in more:
            numbers = list(numbers)  # rare: null comes back where a client sent null
        numbers.extend(more)  # type: ignore[arg-type]
        return numbers


def _read_series(text: JsonParts, due: Mapping[str, int], added: dict[str, int]) -> dict[str, _Column]:
    found: dict[str, _Column] = {}
    for name in text.members():
        if name in due:
            found[name] = _Column(name, due[name])
            found[name].read(text)
            continue
        count = 0
        if text.peek() == b"{":
            for member in text.members():
                passed = text.skip()
                count = passed if member == "values" else count
        else:
            text.skip()
        _note(added, name, count)
    return found


def _read_rows(text: JsonParts, due: Mapping[str, int], added: dict[str, int]) -> dict[str, _Column]:
    found: dict[str, _Column] = {}
    max_rows = 2 * sum(due.values()) + _SPARE_POINTS  # each channel may have rows of its own
    for count, _ in enumerate(text.elements()):
        if count >= max_rows:
            raise TooMuchError(f"the answer has more than {max_rows} rows")
        row = _ROW.decode(text.value(_ROW_BYTES))
        ms = row["unix_timestamp_ms"]
        for name, value in row.items():
            if name in due:
                column = found.setdefault(name, _Column(name, due[name]))
                column.add_times([ms])
                column.add_values([None if value is None else float(value)])
            elif name not in _NO_CHANNELS:
                _note(added, name, added.get(name, 0) + 1)
    return found


def _note(added: dict[str, int], name: str, count: int) -> None:
    """Note how many values an added series has. A name longer than a channel's may be is ignored."""
    if name in added or (len(added) < MAX_ADDED and len(name) <= MAX_NAME_BYTES):
        added[name] = count
