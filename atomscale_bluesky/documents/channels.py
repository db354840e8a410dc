"""Decides which channels a data key becomes, by its values, and how these are called. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..model.loss import Loss
from ..model.rows import Channel
from ..model.text import cut_to_bytes, encodable
from ..spool.journal_format import DataKey, Layout
from .conversion import choice, length_of, number
from .description import MAX_NAME, Description
from .selection import Selection
from .time_base import KeySource

# Channel names in lower case → event stream, data key, element and unit.
Names = dict[str, tuple[str, str, int | None, str | None]]

_UNDESCRIBED = DataKey()
# Reasons that do not show that a key is not numeric: its next value may be a number.
_NO_NUMBER_YET = {Loss.NO_VALUE, Loss.NOT_FINITE, Loss.TOO_LARGE}


class Channels:
    """The channels that an event stream may have.

    Args:
        event_stream: The event stream's name.
        description: What its descriptor says.
        selection: Which data keys to take.
        names: The channel names of the run, if its event streams share a metrology stream.
        earlier: The event stream's layouts in earlier journals of the run. Its channels keep their names.
    """

    def __init__(
        self,
        event_stream: str,
        description: Description,
        selection: Selection,
        names: Names | None,
        earlier: Iterable[Layout],
    ) -> None:
        self._event_stream = event_stream
        self._description = description
        self._selection = selection
        shares = selection.unprefixed is not None
        self._prefix = f"{event_stream}/" if shares and event_stream != selection.unprefixed else ""
        self._names: Names = names if shares and names is not None else {}
        self._units: dict[str, str | None] = {}  # by data key: the unit of its first channel
        self._lengths: dict[str, int] = {}  # by data key: how many elements its array had in an earlier journal
        for layout in earlier:
            for one in layout.channels:
                self._names.setdefault(one.name.lower(), (event_stream, one.key, one.element, one.unit))
                self._units.setdefault(one.key, one.unit)
                if one.element is not None:
                    self._lengths[one.key] = max(one.element + 1, self._lengths.get(one.key, 0))

    def describe(self, description: Description) -> None:
        """Note that the values that follow belong to another descriptor."""
        self._description = description

    def grow(self, source: KeySource, value: Any) -> KeySource:
        """Return a key's source with a channel for each element of an array, if it has too few."""
        length = source.outgrown_length(value)
        return source if length is None else self._elements(source.key, source.channels[0].unit, length)

    def is_external(self, key: str) -> bool:
        """Return True if a data key's present descriptor marks it as external."""
        return self._description.data_keys.get(key, _UNDESCRIBED).external

    def source_of(self, key: Any, value: Any) -> KeySource | Loss:
        """Return how a data key becomes channels, by its value, or the reason why it does not."""
        if not isinstance(key, str):
            return Loss.NAMELESS
        try:
            return self._decide(key, value)
        except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked what it is
            return Loss.NOT_NUMERIC

    def _decide(self, key: str, value: Any) -> KeySource | Loss:
        described = self._description.data_keys.get(key, _UNDESCRIBED)
        if not self._selection.takes_key(key, key in self._description.hinted):
            return Loss.KEY_NOT_SELECTED
        if described.external and (isinstance(value, str) or value is None):
            return Loss.EXTERNAL
        if isinstance(value, str):
            return self._text(key, described)
        length = length_of(value, described.length)
        if length is not None and length > self._selection.max_elements:
            return Loss.LONG_ARRAY
        first = number(value)
        may_be_number = not isinstance(first, str) or first in _NO_NUMBER_YET
        known_length = self._lengths.get(encodable(key), 0)
        if length is not None or (known_length and may_be_number):
            return self._elements(key, described.units, max(length or 0, known_length))
        if isinstance(first, str) and not may_be_number:
            return first
        if isinstance(first, str) and described.dtype == "string":
            return self._text(key, described)
        converts = isinstance(value, bool) or described.dtype == "boolean" or bool(described.choices)
        return self._scalar(key, described.units, described.choices if converts else None)

    def _text(self, key: str, described: DataKey) -> KeySource | Loss:
        """Return how a data key of text becomes a channel: by the indices of its choices, if it has any."""
        return self._scalar(key, described.units, described.choices) if described.choices else Loss.TEXT

    def redescribed(self, source: KeySource) -> KeySource:
        """Return a key's source with the unit and the choices that its present descriptor has."""
        described = self._description.data_keys.get(source.key)
        if described is None:
            return source
        if source.is_array:
            changed = described.units != source.channels[0].unit
            return self._elements(source.key, described.units, len(source.channels)) if changed else source
        choices = described.choices or source.choices
        if described.units == source.channels[0].unit and choices == source.choices:
            return source
        return self._scalar(source.key, described.units, choices)

    def _scalar(self, key: str, unit: str | None, choices: tuple[str, ...] | None) -> KeySource:
        channel = Channel(name=self._name(key, None, unit), key=encodable(key), unit=unit)
        convert = None if choices is None else choice(choices)
        return KeySource(key, (channel,), choices, convert, self._selection.max_elements)

    def _elements(self, key: str, unit: str | None, length: int) -> KeySource:
        channels = tuple(
            Channel(name=self._name(key, i, unit), key=encodable(key), unit=unit, element=i) for i in range(length)
        )
        return KeySource(key, channels, None, None, self._selection.max_elements)

    def _name(self, key: str, element: int | None, unit: str | None) -> str:
        """Return a name that the API takes and that no other channel of its metrology stream has, ignoring case."""
        wanted = f"{self._prefix}{encodable(self._selection.rename.get(key, key)).strip() or 'channel'}"
        suffix = "" if element is None else f"[{element}]"
        if self._units.setdefault(encodable(key), unit) != unit:
            suffix += f" ({cut_to_bytes(unit, 40) if unit else 'no unit'})"
        mine = (self._event_stream, encodable(key), element, unit)
        attempt = 1
        while True:
            end = suffix if attempt == 1 else f"{suffix} ({attempt})"
            name = cut_to_bytes(wanted, MAX_NAME - len(end.encode())) + end
            if self._names.setdefault(name.lower(), mine) == mine:
                return name
            attempt += 1
