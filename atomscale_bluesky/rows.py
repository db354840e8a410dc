"""Values in, the encoded rows of one time base out. Pure.

The common row costs one pick, one encoding and a look at what the encoder wrote: text without a quote, a bracket or a
literal is numbers only, and an encoder writes a non-finite number as `null` and refuses an integer that a float cannot
tell from its neighbours. Any other row goes value by value. The rows of a page are
looked at many at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import orjson

from .lines import Channel, Layout, encode
from .values import MISSING, NOT_NUMERIC, Rounded, number, numbers

# So many points of a page are encoded in one call, which is how long other threads have to wait for the interpreter.
BLOCK_POINTS = 10_000

_STRICT = orjson.OPT_STRICT_INTEGER


class Source(NamedTuple):
    """A data key that becomes channels."""

    key: str
    channels: tuple[Channel, ...]
    convert: Callable[[Any], float | str] | None  # None: a plain number, or the elements of an array

    @property
    def is_array(self) -> bool:
        """Whether its channels are the elements of an array."""
        return self.channels[0].element is not None

    def values(self, value: Any) -> list[float | str]:
        """A number, or the reason why there is none, for each channel."""
        if value is _ABSENT:
            return [MISSING] * len(self.channels)
        try:
            if self.is_array:
                return numbers(value, len(self.channels))
            return [self.convert(value) if self.convert else number(value)]
        except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked what it is
            return [NOT_NUMERIC] * len(self.channels)

    def spread(self, value: Any) -> Sequence[Any]:
        """The same for the encoder, which has an eye on all that is no number itself."""
        if self.convert:
            converted = self.convert(value)
            return (converted if type(converted) is float else None,)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        return value if isinstance(value, list | tuple) and len(value) == len(self.channels) else _NO_NUMBERS


# One row's values as a JSON array; by channel, why one of them is null; channels whose integer lost digits.
Values = tuple[bytes, Mapping[str, str], Sequence[str]]
_NO_GAPS: Mapping[str, str] = {}


class TimeBase:
    """Channels that share their times, and how many rows of values they have given so far."""

    def __init__(self, layout: Layout, sources: list[Source]) -> None:
        self.rows = 0
        self.offered = 0
        self.rounded: set[str] = set()  # channels of which an integer ever lost digits
        self.after = -math.inf  # rows up to this time were kept before
        self.change(sources, layout)

    def change(self, sources: list[Source], layout: Layout) -> None:
        """Go on with other channels; rows are numbered on."""
        self.sources = sources
        self.layout = layout
        self.declared = False
        self.keys = tuple(source.key for source in sources)
        self._pick = _picker(self.keys)
        # From the back, so that the elements of an array do not move what is still to come.
        special = [(i, source) for i, source in enumerate(sources) if source.convert or source.is_array]
        self._special = special[::-1]

    def declare(self, out: list[bytes]) -> None:
        """Put the layout before the first row that names it; twice, for the rows are worth nothing without it."""
        if not self.declared:
            out += [encode(self.layout)] * 2

    def encoded(self, data: Mapping[str, Any]) -> Values:
        """The values of one event."""
        try:
            values = self._pick(data)
            if self._special:
                values = list(values)
                for i, source in self._special:
                    values[i : i + 1] = source.spread(values[i])
            text = orjson.dumps(values, _number_or_text, _STRICT)
        except (KeyError, TypeError):  # a key is missing, or a value is beyond what JSON can say
            return self._value_by_value(data)
        if _are_numbers(text) and not text.rfind(b"["):  # no array within the array either
            return text, _NO_GAPS, ()
        return self._value_by_value(data)

    def page(self, data: Mapping[str, Sequence[Any]], rows: int) -> Iterator[Values]:
        """The values of each event of a page; `data` holds columns of this many rows."""
        columns = self._columns(data)
        size = max(1, BLOCK_POINTS // max(1, len(self.layout.channels)))
        for begin in range(0, rows, size):
            end = min(begin + size, rows)
            texts = _texts([column[begin:end] for column in columns], end - begin) if columns else None
            if texts is not None:
                yield from ((text, _NO_GAPS, ()) for text in texts)
            else:
                held = [(key, data[key]) for key in self.keys if key in data]
                for i in range(begin, end):
                    yield self._value_by_value({key: column[i] for key, column in held})

    def _columns(self, data: Mapping[str, Sequence[Any]]) -> list[Sequence[Any]] | None:
        """A column for each channel, as the encoder takes them; None where some value has to be looked at by itself."""
        columns: list[Sequence[Any]] = []
        for source in self.sources:
            column = data.get(source.key)
            if column is None:
                return None
            if source.convert or source.is_array:
                spread = list(map(source.spread, column))
                if any(values is _NO_NUMBERS for values in spread):
                    return None
                columns += zip(*spread, strict=True)
            else:
                columns.append(column)
        return columns

    def _value_by_value(self, data: Mapping[str, Any]) -> Values:
        row: list[float | None] = []
        gaps: dict[str, str] = {}
        rounded: list[str] = []
        for source in self.sources:
            for channel, value in zip(source.channels, source.values(data.get(source.key, _ABSENT)), strict=True):
                if isinstance(value, str):
                    gaps[channel.name] = value
                    row.append(None)
                elif type(value) is Rounded:
                    rounded.append(channel.name)
                    self.rounded.add(channel.name)
                    row.append(float(value))
                else:
                    row.append(value)
        return orjson.dumps(row), gaps, rounded


# Stands for the value of a key that the document does not have.
_ABSENT: Any = object()
# Stands for an array of another length than its channels; the encoder makes a mark of it that is seen.
_NO_NUMBERS = (None,)


def _texts(columns: list[Sequence[Any]], rows: int) -> list[bytes] | None:
    """The rows that columns make, encoded; None unless all of it is finite numbers."""
    try:
        texts = [orjson.dumps(row, _number_or_text, _STRICT) for row in zip(*columns, strict=True)]
    except TypeError:
        return None
    all_of_it = b"".join(texts)
    return texts if _are_numbers(all_of_it) and all_of_it.count(b"[") == rows else None


def _are_numbers(text: bytes) -> bool:
    """Whether there is no trace of text, null, true, false or an object in what was encoded."""
    return not (b'"' in text or b"u" in text or b"l" in text or b"{" in text)


def _number_or_text(value: Any) -> float | str:
    """What the encoder writes for a value that it does not know: a number, or text that gives the row away."""
    found = number(value)
    return "rounded" if type(found) is Rounded else found


def _picker(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda data: [data[key] for key in keys]
