"""Values in, the packed rows of one time base out. Pure.

The common row costs a pick, a look at the types of what was picked, and packing it; a glance at the first byte of each
number then tells whether all are finite, and too small for an integer among them to have lost digits. Any other row
goes value by value. The rows of a page are packed by column.
"""

from __future__ import annotations

import struct
from binascii import hexlify
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from msgspec import ValidationError, convert

from ..model.loss import Loss
from ..model.rows import Channel
from ..spool.journal_format import Layout, packed
from ..spool.lines import encode
from .conversion import Rounded, number, numbers

# So many points of a page are in memory once more while they are packed.
BLOCK_POINTS = 100_000

_NUMBERS = list[float]
# How a 64-bit float below 2**49 begins: no integer up to there loses a digit, and what is not finite begins otherwise.
_COMMON = bytes([*range(0x43), *range(0x80, 0xC3)])


class Source(NamedTuple):
    """A data key that becomes channels."""

    key: str
    channels: tuple[Channel, ...]
    convert: Callable[[Any], float | Loss] | None  # None: a plain number, or the elements of an array

    @property
    def is_array(self) -> bool:
        """Whether its channels are the elements of an array."""
        return self.channels[0].element is not None

    def values(self, value: Any) -> list[float | Loss]:
        """A number, or the reason why there is none, for each channel."""
        if value is _ABSENT:
            return [Loss.MISSING] * len(self.channels)
        try:
            if self.is_array:
                return numbers(value, len(self.channels))
            return [self.convert(value) if self.convert else number(value)]
        except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked what it is
            return [Loss.NOT_NUMERIC] * len(self.channels)

    def spread(self, value: Any) -> Sequence[Any]:
        """The same for packing, which has an eye on all that is no number itself."""
        if self.convert:
            converted = self.convert(value)
            return (converted if type(converted) is float else None,)
        if isinstance(value, np.ndarray):
            if value.shape != (len(self.channels),):
                return _NO_NUMBERS  # before it is made a list, which may be a long one
            value = value.tolist()
        return value if isinstance(value, list | tuple) and len(value) == len(self.channels) else _NO_NUMBERS


# One row's values, packed; by channel, why one of them is none; channels whose integer lost digits.
Values = tuple[bytes, Mapping[str, str], Sequence[str]]
_NO_GAPS: Mapping[str, str] = {}


class TimeBase:
    """Channels that share their times, and how many rows of values they have given so far."""

    def __init__(self, layout: Layout, sources: list[Source]) -> None:
        self.rows = 0
        self.offered = 0  # how many there are once the lines that were given last are kept
        self.rounded: set[str] = set()  # channels of which an integer ever lost digits
        self.sources = sources
        self.layout = layout
        self.declared = False
        self.keys = tuple(source.key for source in sources)
        self._pick = _picker(self.keys)
        self._pack = struct.Struct(f">{len(layout.channels)}d").pack
        # From the back, so that the elements of an array do not move what is still to come.
        special = [(i, source) for i, source in enumerate(sources) if source.convert or source.is_array]
        self._special = special[::-1]

    def changed(self, sources: list[Source], layout: Layout) -> TimeBase:
        """Return one with other channels, whose rows are numbered on.

        One of its own, so that whoever is interrupted meanwhile has the one or the other, and none in between.
        """
        other = TimeBase(layout, sources)
        other.rows, other.offered, other.rounded = self.rows, self.offered, self.rounded
        return other

    def declare(self, out: list[bytes]) -> None:
        """Put the layout before the first row that names it; twice, for the rows are worth nothing without it."""
        out += [encode(self.layout)] * 2

    def packed(self, data: Mapping[str, Any]) -> Values:
        """The values of one event."""
        try:
            values = self._pick(data)
            if self._special:
                values = list(values)
                for i, source in self._special:
                    values[i : i + 1] = source.spread(values[i])
            row = self._pack(*_plain(values))
        except Exception:  # noqa: BLE001 - a key is missing, a value is no number, or a foreign object
            return self._value_by_value(data)
        if row[::8].translate(None, _COMMON):
            return self._value_by_value(data)
        return hexlify(row), _NO_GAPS, ()

    def page(self, data: Mapping[str, Sequence[Any]], rows: int) -> Iterator[Values]:
        """The values of each event of a page; `data` holds columns of this many rows."""
        columns = self._columns(data)
        size = max(1, BLOCK_POINTS // max(1, len(self.layout.channels)))
        for begin in range(0, rows, size):
            end = min(begin + size, rows)
            texts = _packed_rows([column[begin:end] for column in columns], end - begin) if columns else None
            if texts is not None:
                yield from ((text, _NO_GAPS, ()) for text in texts)
            else:
                held = [(key, data[key]) for key in self.keys if key in data]
                for i in range(begin, end):
                    yield self.packed({key: column[i] for key, column in held})

    def _columns(self, data: Mapping[str, Sequence[Any]]) -> list[Sequence[Any]] | None:
        """A column for each channel, to be packed; None where some value has to be looked at by itself."""
        columns: list[Sequence[Any]] = []
        for source in self.sources:
            column = data.get(source.key)
            if column is None:
                return None
            if source.convert or source.is_array:
                try:
                    spread = list(map(source.spread, column))
                except Exception:  # noqa: BLE001 - a foreign object
                    return None
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
        return packed(row), gaps, rounded


# Stands for the value of a key that the document does not have.
_ABSENT: Any = object()
# Stands for an array of another length than its channels; it cannot be packed.
_NO_NUMBERS = (None,)


def _plain(values: Sequence[Any]) -> Sequence[Any]:
    """The same numbers as floats; what is no number is something that cannot be packed."""
    try:
        return convert(values, _NUMBERS)
    except ValidationError:  # of numpy, say, or a boolean
        return list(map(number, values))


def _packed_rows(columns: list[Sequence[Any]], rows: int) -> list[bytes] | None:
    """The rows that columns make, packed; None unless all of it is plain numbers."""
    pack = struct.Struct(f">{rows}d").pack
    try:
        by_column = b"".join([pack(*_plain(column)) for column in columns])
    except Exception:  # noqa: BLE001 - a value is no number, or a foreign object
        return None
    if by_column[::8].translate(None, _COMMON):
        return None
    by_row = hexlify(np.ascontiguousarray(np.frombuffer(by_column, dtype=">f8").reshape(len(columns), rows).T).data)
    size = 16 * len(columns)
    return [by_row[begin : begin + size] for begin in range(0, len(by_row), size)]


def _picker(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda data: [data[key] for key in keys]
