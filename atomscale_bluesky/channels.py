"""Descriptors and events in, channels and encoded rows out. Pure: no file, socket, clock or thread.

An `EventStream` reads the documents of one event stream of one run. Its first event decides which data keys become
channels, because values tell more than the descriptor promises: numbers, booleans, enums (by index) and the elements of
short one-dimensional arrays do; text, tables, larger arrays and external data are left out, each with its reason. A key
that turns numeric later joins in a new layout; a value that is no finite number is a gap with a reason.

Keys that share their times form a time base, and rows are numbered within it. Events of a plan have one time for all
keys; monitors and event pages have a time per key, so that there may be several time bases (decision 0004).

The common row costs one pick, one encoding and a look at what the encoder wrote: text without a quote, a bracket or a
literal is numbers only, and an encoder writes a non-finite number as `null`. Any other row goes value by value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import orjson

from .errors import ChannelError
from .lines import Channel, Layout, encode, encode_row

MAX_NAME = 255  # characters, and bytes too, since the API does not say which it counts
DAY_S = 86400.0

# Why a reading does not become a point. These texts stand in the account of every run.
NOT_FINITE = "not finite"
NO_VALUE = "no value"
TEXT = "text"
NOT_NUMERIC = "not numeric"
TOO_LARGE = "number too large"
EXTERNAL = "external data"
NOT_SELECTED = "not selected"
ARRAY = "array"
LONG_ARRAY = "array too long"
MISSING = "missing"


# Channel names in lower case → event stream, data key and element.
Names = dict[str, tuple[str, str, int | None]]


class Selection(NamedTuple):
    """Which event streams and data keys to take, and how; the settings that this module needs."""

    event_streams: Sequence[str] = ("*", "!baseline", "!interruptions")
    channels: Sequence[str] = ("*",)
    monitors: Sequence[str] = ("*_monitor",)
    rename: Mapping[str, str] = {}
    max_elements: int = 16
    timestamps: str = "auto"
    # Where all event streams of a run share a metrology stream, the one whose channels are named as they are.
    unprefixed: str | None = None

    def takes_event_stream(self, name: str) -> bool:
        """Whether readings of this event stream are wanted."""
        return _matches(name, self.event_streams)

    def takes_key(self, key: str, hinted: bool) -> bool:
        """Whether this data key is wanted."""
        if list(self.channels) == ["hints"]:
            return hinted
        return _matches(key, self.channels)

    def by_reading(self, event_stream: str, page: bool) -> bool:
        """Whether points have the readings' own times rather than the event's."""
        if self.timestamps == "auto":
            return page or _matches(event_stream, self.monitors)
        return self.timestamps == "reading"


def number(value: Any) -> float | str:
    """A value as a finite float, or the reason why it is none.

    Booleans are 0 and 1; numpy scalars and arrays or lists of one element are that element.
    """
    if isinstance(value, np.datetime64 | np.timedelta64):
        return NOT_NUMERIC  # before `item`, which makes a bare count of nanoseconds of some
    if isinstance(value, np.generic):
        value = value.item()
        if isinstance(value, np.generic):  # a longdouble stays what it is
            value = float(value) if isinstance(value, np.floating) else NOT_NUMERIC
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else NOT_FINITE
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return TOO_LARGE
    if value is None:
        return NO_VALUE
    if isinstance(value, str):
        return TEXT
    if isinstance(value, np.ndarray):
        if value.size != 1:
            return ARRAY
        # Of a subclass, a masked array or one with units, an element may be an array again.
        return NO_VALUE if np.ma.is_masked(value) else number(np.asarray(value).reshape(-1)[0])
    if isinstance(value, list | tuple):
        return number(value[0]) if len(value) == 1 else ARRAY
    return NOT_NUMERIC


class EventStream:
    """The documents of one event stream of one run in, lines for its journal out.

    Each of `event` and `event_page` gives JSON texts and changes nothing until `accepted` says that they were kept;
    so what could not be written leaves no hole.
    """

    def __init__(
        self,
        descriptor: Mapping[str, Any],
        selection: Selection,
        *,
        started: float,
        next_layout: Callable[[], int],
        names: Names | None = None,
    ) -> None:
        self.name = str(descriptor.get("name") or "")
        self.replaced_times = 0  # readings whose own time was impossible and which got the event's instead
        self._data_keys: Mapping[str, Any] = descriptor.get("data_keys") or {}
        self._hinted = _hinted(descriptor)
        self._selection = selection
        self._events_by_reading = selection.by_reading(self.name, page=False)
        self._started = started
        self._next_layout = next_layout
        self._bases: list[_TimeBase] = []
        self._watched: tuple[str, ...] = ()  # left out for their values, which may yet become numbers
        self._left_out: dict[str, str] = {}
        shares = selection.unprefixed is not None
        self._prefix = f"{self.name}/" if shares and self.name != selection.unprefixed else ""
        self._names: Names = names if shares and names is not None else {}

    @property
    def left_out(self) -> Mapping[str, str]:
        """Data keys that do not become channels, with the reason."""
        return self._left_out

    @property
    def rows(self) -> int:
        """How many rows were accepted, over all time bases."""
        return sum(base.rows for base in self._bases)

    @property
    def rows_by_time_base(self) -> dict[str, int]:
        """How many rows each time base has given."""
        return {base.layout.time_base: base.rows for base in self._bases}

    def event(self, doc: Mapping[str, Any], now: float) -> list[bytes]:
        """The lines for one event: its row in each time base, after the layouts that are new.

        Args:
            doc: An `event` document of this event stream.
            now: The present time, to tell an impossible time stamp.

        Raises:
            ChannelError: The document lacks what an event must have, a finite time among it.
        """
        try:
            data, time, uid = doc["data"], self._finite(doc["time"]), doc["uid"]
        except KeyError as error:
            raise ChannelError(
                f"an event of event stream {self.name!r} has no {error.args[0]!r}; it is left out"
            ) from None
        by_reading = self._events_by_reading
        stamps = doc.get("timestamps") or {}
        if not self._bases:
            self._arrange(data, doc.get("filled") or {}, stamps if by_reading else None)
        self._welcome_late_channels(data)
        if by_reading:
            self._split_where_times_differ(stamps)
        out: list[bytes] = []
        for base in self._bases:
            at = self._time(stamps.get(base.keys[0]), time, now) if by_reading and base.keys else time
            base.declare(out)
            text, gaps = base.encoded(data)
            out.append(encode_row(base.layout.layout, base.rows, float(at), uid, text, gaps))
            base.offered = 1
        return out

    def event_page(self, doc: Mapping[str, Any], now: float) -> list[bytes]:
        """The lines for all rows of an event page, after the layouts that are new.

        Raises:
            ChannelError: The columns of the page are not of one length, or one of its times is not finite.
        """
        uids, times = doc["uid"], [self._finite(time) for time in _as_list(doc["time"])]
        columns = {key: _as_list(column) for key, column in (doc.get("data") or {}).items()}
        stamps = {key: _as_list(column) for key, column in (doc.get("timestamps") or {}).items()}
        for key, column in columns.items():
            if len(column) != len(uids):
                raise ChannelError(
                    f"data key {key!r} of event stream {self.name!r} has {len(column)} values in a page of "
                    f"{len(uids)} events; the page is left out"
                )
        if not uids:
            return []
        by_reading = self._selection.by_reading(self.name, page=True)
        first = {key: column[0] for key, column in columns.items()}
        if not self._bases:
            filled = {key: all(_as_list(flags)) for key, flags in (doc.get("filled") or {}).items()}
            self._arrange(first, filled, stamps if by_reading else None)
        for i in range(len(uids) if self._watched else 0):
            self._welcome_late_channels({key: columns[key][i] for key in self._watched if key in columns})
        if by_reading:
            self._split_where_times_differ(stamps)
        out: list[bytes] = []
        for base in self._bases:
            base.declare(out)
            own = stamps.get(base.keys[0]) if by_reading and base.keys else None
            keys = [key for key in base.keys if key in columns]
            for i, values in enumerate(zip(*(columns[key] for key in keys), strict=True) if keys else [()] * len(uids)):
                at = times[i] if own is None else self._time(own[i], times[i], now)
                text, gaps = base.encoded(dict(zip(keys, values, strict=True)))
                out.append(encode_row(base.layout.layout, base.rows + i, float(at), uids[i], text, gaps))
            base.offered = len(uids)
        return out

    def accepted(self) -> None:
        """What the last `event` or `event_page` gave was kept: the next one goes on from there."""
        for base in self._bases:
            base.rows += base.offered
            base.offered = 0
            base.declared = True

    def start_over(self) -> None:
        """The next rows go to another journal: number them from 0, under layouts that are declared again."""
        for base in self._bases:
            base.rows = base.offered = 0
            base.declared = False

    # ---- which keys become channels --------------------------------------------------------------------------------

    def _arrange(self, data: Mapping[str, Any], filled: Mapping[str, Any], stamps: Mapping[str, Any] | None) -> None:
        """Decide, at the first event, which keys become channels, and which of them share their times."""
        groups: dict[object, list[_Source]] = {}
        for key in dict.fromkeys([*self._data_keys, *data]):
            source = self._source(key, data.get(key), filled.get(key, True))
            if isinstance(source, str):
                self._left_out[key] = source
            else:
                shared = None if stamps is None else _hashable(stamps.get(key))
                groups.setdefault(shared, []).append(source)
        self._watched = tuple(key for key, reason in self._left_out.items() if reason in {TEXT, NOT_NUMERIC})
        for i, sources in enumerate(groups.values() or [[]]):
            self._add_base(sources, self._left_out if i == 0 else {})

    def _add_base(self, sources: list[_Source], left_out: Mapping[str, str]) -> None:
        name = self.name if not self._bases else f"{self.name}/{sources[0].key}"
        self._bases.append(_TimeBase(self._layout(name, sources, left_out), sources))

    def _layout(self, time_base: str, sources: Iterable[_Source], left_out: Mapping[str, str]) -> Layout:
        return Layout(
            layout=self._next_layout(),
            event_stream=self.name,
            time_base=time_base,
            channels=tuple(channel for source in sources for channel in source.channels),
            left_out=dict(left_out),
        )

    def _source(self, key: str, value: Any, filled: Any) -> _Source | str:
        """How a data key becomes channels, decided by its value, or the reason why it does not."""
        described: Mapping[str, Any] = self._data_keys.get(key) or {}
        if not self._selection.takes_key(key, key in self._hinted):
            return NOT_SELECTED
        if described.get("external") and (filled is not True or isinstance(value, str) or value is None):
            return EXTERNAL
        dtype, choices = described.get("dtype"), described.get("choices") or ()
        unit = _fitting(units, MAX_NAME) if isinstance(units := described.get("units"), str) else None
        if isinstance(value, str):
            is_choice = _plain(value) in choices
            return self._scalar(key, unit, _choice(choices)) if is_choice else TEXT
        length = _length(value, described)
        if length is not None:
            if length > self._selection.max_elements:
                return LONG_ARRAY
            return self._elements(key, unit, length)
        first = number(value)
        if isinstance(first, str):
            if first not in {NO_VALUE, NOT_FINITE, TOO_LARGE}:
                return first
            if dtype == "string":
                return self._scalar(key, unit, _choice(choices)) if choices else TEXT
        special = isinstance(value, bool) or dtype == "boolean" or bool(choices)
        return self._scalar(key, unit, _choice(choices) if special else None)

    def _scalar(self, key: str, unit: str | None, convert: Callable[[Any], float | str] | None) -> _Source:
        return _Source(key, (Channel(name=self._name(key, None), key=key, unit=unit),), convert)

    def _elements(self, key: str, unit: str | None, length: int) -> _Source:
        return _Source(
            key,
            tuple(Channel(name=self._name(key, i), key=key, unit=unit, element=i) for i in range(length)),
            None,
        )

    def _name(self, key: str, element: int | None) -> str:
        """A name that the API takes and that no other channel of its metrology stream has, whatever the case."""
        wanted = f"{self._prefix}{self._selection.rename.get(key, key).strip() or 'channel'}"
        suffix = "" if element is None else f"[{element}]"
        attempt = 1
        while True:
            end = suffix if attempt == 1 else f"{suffix} ({attempt})"
            name = _fitting(wanted, MAX_NAME - len(end.encode())) + end
            mine = (self.name, key, element)
            if self._names.setdefault(name.lower(), mine) == mine:
                return name
            attempt += 1

    def _welcome_late_channels(self, data: Mapping[str, Any]) -> None:
        """Give keys that were text until now, and are numbers in this event, a place in a new layout."""
        for key in self._watched:
            value = data.get(key)
            if value is None or isinstance(value, str):
                continue
            source = self._source(key, value, True)
            if isinstance(source, str):
                continue
            base = self._bases[0]
            self._watched = tuple(other for other in self._watched if other != key)
            del self._left_out[key]
            base.change(
                [*base.sources, source], self._layout(base.layout.time_base, [*base.sources, source], self._left_out)
            )

    # ---- times -----------------------------------------------------------------------------------------------------

    def _split_where_times_differ(self, stamps: Mapping[str, Any]) -> None:
        """Keys that shared their times until now and no longer do get time bases of their own from here on."""
        for base in list(self._bases):
            if len(base.sources) < 2:
                continue
            groups: dict[object, list[_Source]] = {}
            for source in base.sources:
                groups.setdefault(_hashable(stamps.get(source.key)), []).append(source)
            if len(groups) < 2:
                continue
            stay, *leave = groups.values()
            base.change(stay, self._layout(base.layout.time_base, stay, base.layout.left_out))
            for sources in leave:
                self._add_base(sources, {})

    def _finite(self, time: Any) -> float:
        """An event's time; without one its readings would stand nowhere."""
        try:
            at = float(time)
        except (TypeError, ValueError, OverflowError):
            at = math.nan
        if not math.isfinite(at):
            raise ChannelError(f"an event of event stream {self.name!r} has no finite time; it is left out")
        return at

    def _time(self, own: Any, event_time: float, now: float) -> float:
        """A reading's own time, unless no clock could have shown it during this run."""
        if isinstance(own, int | float) and self._started - DAY_S <= own <= now + 3600.0:
            return own
        self.replaced_times += 1
        return event_time


class _Source(NamedTuple):
    """A data key that becomes channels."""

    key: str
    channels: tuple[Channel, ...]
    convert: Callable[[Any], float | str] | None  # None: a plain number, or the elements of an array

    @property
    def is_array(self) -> bool:
        return self.channels[0].element is not None


class _TimeBase:
    """Channels that share their times, and the rows of values they have given so far."""

    def __init__(self, layout: Layout, sources: list[_Source]) -> None:
        self.rows = 0
        self.offered = 0
        self.change(sources, layout)

    def change(self, sources: list[_Source], layout: Layout) -> None:
        """Go on with other channels; rows are numbered on."""
        self.sources = sources
        self.layout = layout
        self.declared = False
        self.keys = tuple(source.key for source in sources)
        self._pick = _picker(self.keys)
        self._converted = [(i, source) for i, source in enumerate(sources) if source.convert]
        self._has_arrays = any(source.is_array for source in sources)

    def declare(self, out: list[bytes]) -> None:
        """Put the layout before the first row that names it; twice, for the rows are worth nothing without it."""
        if not self.declared:
            out += [encode(self.layout)] * 2

    def encoded(self, data: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
        """One row's values as a JSON array, and the gaps in it: channel name → reason."""
        if self._has_arrays:
            return self._value_by_value(data)
        try:
            values = self._pick(data)
            if self._converted:
                values = list(values)
                for i, source in self._converted:
                    converted = source.convert(values[i])  # type: ignore[misc] # _converted holds those that have one
                    values[i] = None if isinstance(converted, str) else converted
            text = orjson.dumps(values, default=_number_or_text)
        except (KeyError, TypeError):  # a key is missing, or a value is beyond what JSON can say
            return self._value_by_value(data)
        if _only_numbers(text):
            return text, {}
        return self._value_by_value(data)

    def _value_by_value(self, data: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
        row: list[float | None] = []
        gaps: dict[str, str] = {}
        for source in self.sources:
            value = data.get(source.key, _Absent)
            for channel, converted in zip(source.channels, _converted(source, value), strict=True):
                if isinstance(converted, str):
                    gaps[channel.name] = converted
                    row.append(None)
                else:
                    row.append(converted)
        return orjson.dumps(row), gaps


class _Absent:
    """Stands for the value of a key that the document does not have."""


def _converted(source: _Source, value: Any) -> list[float | str]:
    """The numbers of all channels of a source, or the reasons why they are none."""
    if value is _Absent:
        return [MISSING] * len(source.channels)
    if source.is_array:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            return [number(value) if len(source.channels) == 1 else MISSING] * len(source.channels)
        return [number(value[i]) if i < len(value) else MISSING for i in range(len(source.channels))]
    return [source.convert(value) if source.convert else number(value)]


def _only_numbers(text: bytes) -> bool:
    """Whether an encoded array holds finite numbers only: text, objects, literals and nested arrays leave traces."""
    return (
        text.find(b'"') < 0
        and text.find(b"u") < 0  # null, true
        and text.find(b"l") < 0  # false
        and text.find(b"[", 1) < 0
        and text.find(b"{") < 0
    )


def _number_or_text(value: Any) -> float | str:
    """What the encoder writes for a value that it does not know: a number, or text that gives the row away."""
    return number(value)


def _picker(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda data: [data[key] for key in keys]


def _choice(choices: Sequence[str]) -> Callable[[Any], float | str]:
    indices = {choice: float(i) for i, choice in enumerate(choices)}

    def index(value: Any) -> float | str:
        return indices.get(_plain(value), TEXT) if isinstance(value, str) else number(value)

    return index


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _length(value: Any, described: Mapping[str, Any]) -> int | None:
    """How many channels a one-dimensional array of numbers gives; None for what is no array, or one of one element."""
    length = 0
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf":
        length = int(value.size)
    elif isinstance(value, list | tuple) and not any(isinstance(item, list | tuple | str | dict) for item in value[:1]):
        length = len(value)
    elif value is not None:
        return None
    shape = described.get("shape")
    if not length and described.get("dtype") == "array" and isinstance(shape, list | tuple) and len(shape) == 1:
        length = shape[0] if isinstance(shape[0], int) else 0  # nothing was seen yet, so the promise has to do
    return length if length > 1 else None


def _hinted(descriptor: Mapping[str, Any]) -> set[str]:
    hints = descriptor.get("hints") or {}
    return {field for hint in hints.values() if isinstance(hint, Mapping) for field in hint.get("fields", ())}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the last pattern that matches takes the name; `!pattern` leaves out. With `!` only, all start in."""
    taken = bool(patterns) and all(pattern.startswith("!") for pattern in patterns)
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            taken = not pattern.startswith("!")
    return taken


def _fitting(name: str, limit: int) -> str:
    """A name cut to `limit` bytes, with a visible mark; never in the middle of a character."""
    if len(name.encode(errors="replace")) <= limit:
        return name
    return name.encode(errors="replace")[: limit - 3].decode(errors="ignore") + "…"


def _as_list(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def _hashable(stamp: Any) -> object:
    return tuple(stamp) if isinstance(stamp, list) else stamp
