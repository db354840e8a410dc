"""Reads a stream's points while the answer comes in, keeping only the channels that are asked for. Pure.

There is no documented way to ask for a part of a stream, and Atomscale documents that it adds series of its own, some
of them text. So the answer is never held whole. Its parts are processed as they arrive, up to `STEP_BYTES` between two
pauses. The numbers of the channels that are due are packed at once. Of everything else only the name and the number of
values is noted.

Two shapes are known: a series per channel (`properties`), and the older list of rows (`series`). Times may be null, and
there may be fewer values than times: a missing one is None. Skipped parts are not checked, except that their brackets
close.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from .wire import AnswerError, Points

# How much is processed between two pauses: about 0.2 ms of work, in which no other thread can run.
STEP_BYTES = 8192
# Bounds for an answer's size. A point has a time in milliseconds, a relative time and a value: about 60 bytes with all
# digits. Atomscale documents eight series beside a channel, each as long as the channel and with a name that begins
# with the channel's. In the older shape every value comes with the name.
BYTES_PER_POINT, BYTES_PER_NAME_BYTE = 1024, 16
LEAST_BYTES, MOST_BYTES = 4 * 2**20, 2**30
# How many points beyond the expected ones are kept of a channel, for a message that says how many there are.
_SPARE_POINTS = 1000
# Added series beyond this number are skipped and not noted.
MOST_ADDED = 1000
# A channel name has up to 255 characters, of up to 12 bytes each if they are written as escapes.
_NAME_BYTES = 4096
_ROW_BYTES = 2**20
# Each member of an object takes about 10 µs. A series has four of them, and eight other series beside it.
_MOST_MEMBERS, _MEMBERS_PER_CHANNEL = 10_000, 100
# What a member, a row or a number costs in addition to its bytes, counted in bytes.
_STEP_AT_LEAST = 32

_COLUMN = msgspec.json.Decoder(list[float | None])
_NAME = msgspec.json.Decoder(str)
_UNITS = msgspec.json.Decoder(str | None)
_ROW = msgspec.json.Decoder(dict[str, Any])
_BLANKS = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,:"\[\]{}]*+')
_STRINGS = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)  # text in which every string is whole
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_QUOTE, _COMMA = ord('"'), ord(",")
_DEEPER = np.zeros(256, dtype=np.int64)
_DEEPER[list(b"[{")], _DEEPER[list(b"]}")] = 1, -1
_NO_CHANNELS = frozenset({"unix_timestamp_ms", "relative_time_seconds", "time_seconds"})


class TooMuchError(AnswerError):
    """An answer holds far more than there can be."""


class ReadBack(NamedTuple):
    """The content of a metrology stream as it was read back."""

    points: Points  # of the channels that are due and present
    added: dict[str, int]  # the other series: the names of the first `MOST_ADDED`, and how many values each has


def max_bytes(due: Mapping[str, int]) -> int:
    """Return how large the answer about a stream with these channels and points may be, in bytes.

    Generous: about fifteen times the size of the points, and at least 4 MiB.
    """
    points = sum(
        count * (BYTES_PER_POINT + BYTES_PER_NAME_BYTE * len(name.encode(errors="replace")))
        for name, count in due.items()
    )
    return min(MOST_BYTES, LEAST_BYTES + points)


def read_points(
    parts: Iterable[bytes], due: Mapping[str, int], *, pause: Callable[[], object] = lambda: None
) -> ReadBack:
    """Read the points of the channels that are due from an answer's parts.

    Args:
        parts: The answer, in parts of any size.
        due: The channels to read, and how many points each should have.
        pause: Called after every `STEP_BYTES`.

    Raises:
        AnswerError: The answer has neither shape, or a channel that is due is no series of numbers.
        TooMuchError: A channel has more than twice the points that it should have plus a thousand, or there are far too
            many series.
    """
    text = _Text(parts, pause, _MOST_MEMBERS + _MEMBERS_PER_CHANNEL * len(due))
    try:
        return _read(text, due)
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise AnswerError(f"a series of the answer is not understood: {error!r:.300}") from error


def _read(text: _Text, due: Mapping[str, int]) -> ReadBack:
    columns: dict[str, _Column] | None = None
    rows: dict[str, _Column] | None = None
    added: dict[str, int] = {}
    for member in text.members():
        if member == "properties" and text.next() == b"{":
            columns = _read_series(text, due, added)
        elif member == "series" and text.next() == b"[":
            rows = _read_rows(text, due, added)
        else:
            text.skip()
    text.end()
    found = rows if columns is None else columns
    if found is None:
        raise AnswerError("the answer has no 'properties'")
    return ReadBack({name: column.points() for name, column in found.items()}, added)


class _Column:
    """The points of one channel."""

    def __init__(self, name: str, due: int) -> None:
        self.times: array[float] | list[float | None] = array("d")
        self.values: array[float] | list[float | None] = array("d")
        self.unit: str | None = None
        self._name = name
        self._most = 2 * due + _SPARE_POINTS

    def read(self, text: _Text) -> None:
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
                self.unit = _UNITS.decode(text.value(_NAME_BYTES))
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
        if len(numbers) + len(more) > self._most:
            raise TooMuchError(f"channel {self._name!r:.80} has more than {self._most} points")
        if isinstance(numbers, array) and None in more:
            numbers = list(numbers)  # rare: null comes back where a client sent null
        numbers.extend(more)  # type: ignore[arg-type]
        return numbers


def _read_series(text: _Text, due: Mapping[str, int], added: dict[str, int]) -> dict[str, _Column]:
    found: dict[str, _Column] = {}
    for name in text.members():
        if name in due:
            found[name] = _Column(name, due[name])
            found[name].read(text)
            continue
        count = 0
        if text.next() == b"{":
            for member in text.members():
                passed = text.skip()
                count = passed if member == "values" else count
        else:
            text.skip()
        _note(added, name, count)
    return found


def _read_rows(text: _Text, due: Mapping[str, int], added: dict[str, int]) -> dict[str, _Column]:
    found: dict[str, _Column] = {}
    most = 2 * sum(due.values()) + _SPARE_POINTS  # each channel may have rows of its own
    for count, _ in enumerate(text.elements()):
        if count >= most:
            raise TooMuchError(f"the answer has more than {most} rows")
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
    if name in added or (len(added) < MOST_ADDED and len(name) <= _NAME_BYTES):
        added[name] = count


class _Text:
    """JSON text that arrives in parts. Text that was read is not kept."""

    def __init__(self, parts: Iterable[bytes], pause: Callable[[], object], most_members: int) -> None:
        self._parts = iter(parts)
        self._members_left = most_members
        self._pause = pause
        self._held = b""
        self._at = 0  # up to here it was read
        self._since = 0  # bytes read since the last pause

    def members(self) -> Iterator[str]:
        """Read an object: yields the name of each member. The caller must read its value before the next one."""
        for _ in self._items(b"{", b"}"):
            self._members_left -= 1
            if self._members_left < 0:
                raise TooMuchError("the answer has more series than a stream can have")
            if self.next() != b'"':
                raise AnswerError("the answer has a member without a name")
            found = _STRING.match(self._held, self._at, self._at + _NAME_BYTES)
            if found:
                self._advance(len(found.group()))
            name = _NAME.decode(found.group() if found else self.value(_NAME_BYTES))
            self._take(b":")
            yield name

    def elements(self) -> Iterator[None]:
        """Read an array: yields once per element, which the caller must read."""
        return self._items(b"[", b"]")

    def _items(self, opening: bytes, closing: bytes) -> Iterator[None]:
        self._take(opening)
        if self.next() == closing:
            self._advance(1)
            return
        while True:
            yield
            if self.next() == closing:
                self._advance(1)
                return
            self._take(b",")

    def numbers(self) -> Iterator[list[float | None]]:
        """Read an array of numbers and nulls, and yield them block by block."""
        self._take(b"[")
        begun = False
        while True:
            limit = self._at + STEP_BYTES
            end = self._held.find(b"]", self._at, limit)
            if end < 0 and len(self._held) < limit and self._more():
                continue
            cut = end if end >= 0 else self._held.rfind(b",", self._at, limit)
            if cut < 0:
                raise AnswerError("the answer ends within a series, or has what is no number in it")
            block = self._held[self._at : cut]
            if begun and not block.strip():
                raise AnswerError("a series of the answer ends with a comma")
            self._advance(cut + 1 - self._at)
            yield _COLUMN.decode(b"[%b]" % block)
            if end >= 0:
                return
            begun = True

    def value(self, most_bytes: int) -> bytes:
        """Read one value and return its whole text."""
        taken = bytearray()
        for piece, _ in self._value():
            taken += piece
            if len(taken) > most_bytes:
                raise AnswerError(f"a member of the answer has more than {most_bytes} bytes")
        return bytes(taken)

    def skip(self) -> int:
        """Skip one value of any kind and depth. Return its number of elements if it is an array, else 0."""
        if self.next() != b"[":
            for _ in self._value():
                pass
            return 0
        self._advance(1)
        empty = self.next() == b"]"
        commas = sum(commas for _, commas in self._inside())
        return 0 if empty else commas + 1

    def next(self) -> bytes:
        """Return the next character that is not a blank, without reading it."""
        char = self._held[self._at : self._at + 1]
        if char > b" ":
            return char
        while True:
            found = _BLANKS.match(self._held, self._at, self._at + STEP_BYTES)
            self._advance(found.end() - self._at if found else 0)
            if self._at < len(self._held):
                char = self._held[self._at : self._at + 1]
                if char not in b" \t\r\n":  # JSON's blanks; Python has more
                    return char
            elif not self._more():
                raise AnswerError("the answer ends too early")

    def end(self) -> None:
        """Check that only blanks follow."""
        while not self._held[self._at :].strip():
            self._advance(len(self._held) - self._at)
            if not self._more():
                return
        raise AnswerError("the answer goes on after its end")

    def _value(self) -> Iterator[tuple[bytes, int]]:
        """Read one value: yields the pieces of its text, and how many commas at its own depth each has."""
        first = self.next()
        if first in b"[{":
            self._advance(1)
            yield first, 0
            yield from self._inside()
        elif first == b'"':
            yield from self._string()
        else:
            empty = True
            while (found := _SCALAR.match(self._held, self._at, self._at + STEP_BYTES)) and found.group():
                empty = False
                self._advance(len(found.group()))
                yield found.group(), 0
                if self._at < len(self._held) or not self._more():
                    return
            if empty:
                raise AnswerError(f"the answer has {first!r} where a value was expected")

    def _inside(self) -> Iterator[tuple[bytes, int]]:
        """Read to the end of an array or object that has begun, however deep it is."""
        depth = 1
        while depth:
            found = _STRINGS.match(self._held, self._at, self._at + STEP_BYTES)
            piece = found.group() if found else b""
            if not piece and self._at < len(self._held):
                yield from self._string()  # a long string, or one that is in two parts
            elif piece:
                text = np.frombuffer(_ESCAPED.sub(b"??", piece) if b"\\" in piece else piece, dtype=np.uint8)
                outside = (np.cumsum(text == _QUOTE) & 1) == 0
                depths = depth + np.cumsum(np.where(outside, _DEEPER[text], 0))
                size = int(np.argmax(depths == 0)) + 1 if (depths == 0).any() else len(piece)
                commas = np.count_nonzero(outside[:size] & (text[:size] == _COMMA) & (depths[:size] == 1))
                depth = int(depths[size - 1])
                self._advance(size)
                yield piece[:size], int(commas)
            elif not self._more():
                raise AnswerError("the answer ends too early")

    def _string(self) -> Iterator[tuple[bytes, int]]:
        self._advance(1)
        yield b'"', 0
        while True:
            found = _IN_STRING.match(self._held, self._at, self._at + STEP_BYTES)
            piece = found.group() if found else b""
            self._advance(len(piece))
            yield piece, 0
            if self._held[self._at : self._at + 1] == b'"':
                self._advance(1)
                yield b'"', 0
                return
            if not piece and not self._more():
                raise AnswerError("the answer ends within a text")

    def _take(self, char: bytes) -> None:
        if self.next() != char:
            raise AnswerError(f"the answer has {self.next()!r} where {char!r} was expected")
        self._advance(1)

    def _advance(self, size: int) -> None:
        self._at += size
        self._since += size + _STEP_AT_LEAST
        if self._since >= STEP_BYTES // 2:  # a step ends at the end of a number or a string
            self._since = 0
            self._pause()

    def _more(self) -> bool:
        """Get more of the text and drop the part already read. Return False if there is no more."""
        parts = [self._held[self._at :]]
        size = 0
        while size < STEP_BYTES and (part := next(self._parts, b"")):
            parts.append(part)
            size += len(part)
        self._held, self._at = b"".join(parts), 0
        return size > 0
