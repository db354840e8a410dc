"""Turns values into the encoded rows of one time base. Pure.

An ordinary row takes two steps: pick its values, and encode them. The encoded bytes show whether all of them are
floats, and finite. Integers, booleans and numpy's numbers take a third step between these, in which they become floats.
Any other row is converted value by value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from msgspec import ValidationError, convert

from ..model.loss import Loss
from ..model.rows import Channel
from ..spool.journal_format import Layout, encode_row, pack_values
from ..spool.lines import encode
from ..spool.row_record import encode_one, encode_rows, encoder
from .conversion import DATE_KINDS, Rounded, has_no_elements, length_of, number, numbers

_NUMBERS = list[float]


class KeySource(NamedTuple):
    """A data key that becomes channels."""

    key: str
    channels: tuple[Channel, ...]
    choices: tuple[str, ...] | None  # None: a plain number, or the elements of an array
    convert: Callable[[Any], float | Loss] | None  # what `choice` returns for these choices
    max_elements: int  # the largest number of elements that an array may have

    @property
    def is_array(self) -> bool:
        """Return True if its channels are the elements of an array."""
        return self.channels[0].element is not None

    def values(self, value: Any) -> list[float | Loss]:
        """Return a number for each channel, or the reason why there is none."""
        if value is _ABSENT:
            return [Loss.MISSING] * len(self.channels)
        try:
            if self.is_array:
                return numbers(value, len(self.channels))
            found = self.convert(value) if self.convert else number(value)
            return [Loss.NO_VALUE if found is Loss.ARRAY and has_no_elements(value) else found]
        except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked what it is
            return [Loss.NOT_NUMERIC] * len(self.channels)

    def outgrown_length(self, value: Any) -> int | None:
        """Return how many elements an array has that needs more channels than there are; None for any other value."""
        try:
            length = length_of(value)
        except Exception:  # noqa: BLE001 - a foreign object
            return None
        if length is None or length > self.max_elements or (self.is_array and length <= len(self.channels)):
            return None
        return length

    def values_to_pack(self, value: Any) -> Sequence[Any]:
        """Return a value for each channel, for packing.

        Anything but a number becomes None, which cannot be packed, so the caller converts the row value by value.
        """
        if self.convert:
            converted = self.convert(value)
            return (converted if type(converted) is float else None,)
        if isinstance(value, np.ndarray):
            if value.shape != (len(self.channels),) or value.dtype.kind in DATE_KINDS:
                return _NO_NUMBERS  # checked before it is made a list, which may be long, and whose dates are numbers
            value = value.tolist()
        return value if isinstance(value, list | tuple) and len(value) == len(self.channels) else _NO_NUMBERS


class TimeBase:
    """Channels that share their times, and how many rows they have so far."""

    def __init__(self, layout: Layout, sources: list[KeySource]) -> None:
        self.rows = 0
        self.rows_if_written = 0  # how many rows there are once the last lines returned are written
        self.rounded: set[str] = set()  # channels in which an integer ever lost digits
        self.sources = sources
        self.layout = layout
        self.layout_written = False  # in the journal that its rows go into
        self.keys = tuple(source.key for source in sources)
        self._pick = _picker(self.keys)
        self._encode = encoder(layout.layout, len(layout.channels))
        # From the end, so that replacing an array by its elements does not move the sources still to come.
        special = [(i, source) for i, source in enumerate(sources) if source.convert or source.is_array]
        self._special = special[::-1]

    def with_sources(self, sources: list[KeySource], layout: Layout) -> TimeBase:
        """Return a time base with other channels, whose rows continue the numbering.

        It is a new object, so that code interrupted meanwhile has either the old or the new one, and never a mixture.
        """
        other = TimeBase(layout, sources)
        other.rows, other.rows_if_written, other.rounded = self.rows, self.rows_if_written, self.rounded
        return other

    def add_layout_lines(self, out: list[bytes]) -> None:
        """Append the lines of the layout, before the first row that names it.

        It is written twice, for rows are worthless without it.
        """
        out += [encode(self.layout)] * 2

    def row_line(self, data: Mapping[str, Any], row_number: int, time: float, uid: Any) -> bytes:
        """Return the line for the row of one event: a record if each channel has a value, otherwise text."""
        try:
            values = self._pick(data)
            if self._special:
                values = list(values)
                for i, source in self._special:
                    values[i : i + 1] = source.values_to_pack(values[i])
            record = self._encode(float(row_number), time, uid, values)
            if record is None:
                record = self._encode(float(row_number), time, uid, _plain(values))
            if record is not None:
                return record
        except Exception:  # noqa: BLE001 - a key is missing, a value is no number, or a foreign object
            pass
        return self._value_by_value(data, row_number, time, uid)

    def page_records(
        self, data: Mapping[str, Sequence[Any]], begin: int, end: int, times: Sequence[float], uids: Sequence[Any]
    ) -> list[bytes] | None:
        """Return the records of these rows of a page. None unless each channel has a plain number in each row.

        Args:
            data: The page's columns.
            begin: The first row.
            end: The row after the last one.
            times: The rows' times.
            uids: The uids of their events.
        """
        columns = self._columns(data, begin, end)
        if not columns:
            return None
        layout, first = self.layout.layout, self.rows_if_written
        records = encode_rows(layout, first, times, uids, columns)
        if records is None:  # there are integers, say
            try:
                records = encode_rows(layout, first, times, uids, list(map(_plain, columns)))
            except Exception:  # noqa: BLE001 - a value is no number, or a foreign object
                return None
        return records

    def _columns(self, data: Mapping[str, Sequence[Any]], begin: int, end: int) -> list[Sequence[Any]] | None:
        """Return a column for each channel, ready to be packed; None if any value has to be converted on its own."""
        columns: list[Sequence[Any]] = []
        for source in self.sources:
            whole = data.get(source.key)
            if whole is None:
                return None
            column = whole[begin:end]
            if source.convert or source.is_array:
                try:
                    spread = list(map(source.values_to_pack, column))
                except Exception:  # noqa: BLE001 - a foreign object
                    return None
                if any(values is _NO_NUMBERS for values in spread):
                    return None
                columns += zip(*spread, strict=True)
            else:
                columns.append(column)
        return columns

    def _value_by_value(self, data: Mapping[str, Any], row_number: int, time: float, uid: Any) -> bytes:
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
        if not (gaps or rounded):
            record = encode_one(
                self.layout.layout, row_number, time, uid, [float(one) for one in row if one is not None]
            )
            if record is not None:
                return record
        return encode_row(self.layout.layout, row_number, time, uid, pack_values(row), gaps, rounded)


# Stands for the value of a key that is missing in the document.
_ABSENT: Any = object()
# Stands for an array whose length differs from its channels'; it cannot be packed.
_NO_NUMBERS = (None,)


def _plain(values: Sequence[Any]) -> Sequence[Any]:
    """Return the numbers as floats. Anything else becomes text, which cannot be packed: the row is converted singly."""
    try:
        return convert(values, _NUMBERS)
    except ValidationError:  # numpy's numbers, say, or a boolean
        return list(map(number, values))


def _picker(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda data: [data[key] for key in keys]
