"""Turns descriptors and events into channels and encoded rows. Pure: no file, socket, clock or thread.

An `EventStream` reads the documents of one event stream of one run. Its first event decides which data keys become
channels, because values are more reliable than the descriptor. Numbers, booleans, enums (by index) and the elements of
short one-dimensional arrays become channels. Text, tables, larger arrays and external data are left out, each with its
reason. A key that turns numeric later is added in a new layout. A value that is not a finite number is a gap with a
reason.

Keys that share their times form a time base, and rows are numbered within it. Events of a plan have one time for all
keys. Monitors and event pages have a time per key, so they may have several time bases (decision 0004).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from ..errors import ChannelError
from ..model.loss import Loss
from ..model.rows import Channel
from ..spool.journal_format import Layout, encode_row
from .accepted import Accepted
from .conversion import choice, length_of, number
from .descriptor import choices_of, event_stream_of, filled_in_page, hinted, is_filled, mapping_of
from .selection import Selection
from .time_base import Source, TimeBase

MAX_NAME = 255  # characters, and also bytes, since the API does not say which it counts
DAY_S = 86400.0
# This many keys that first appear later are counted one by one, and the others together.
MAX_LATE_KEYS = 1000
OTHER_KEYS = "(other keys)"


# Channel names in lower case → event stream, data key and element.
Names = dict[str, tuple[str, str, int | None]]


class EventStream:
    """Turns the documents of one event stream of one run into lines for its journal.

    `event` and `event_page` return JSON texts and change nothing until `accepted` confirms that they were kept. So a
    line that could not be written leaves no hole.

    Args:
        descriptor: The first descriptor of the event stream.
        selection: Which event streams and data keys to take.
        started: The run's start, Unix seconds.
        next_layout: Returns a number that no other layout of the run has.
        names: The channel names of the run, if its event streams share a metrology stream.
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
        self.name = event_stream_of(descriptor)
        self.begun = False  # True once a row of it was kept
        self.replaced_times = 0  # readings whose own time was impossible, so they got the event's time
        self._data_keys = mapping_of(descriptor.get("data_keys"))
        self._hinted = hinted(descriptor)
        self._selection = selection
        self.by_reading = selection.by_reading(self.name, page=False)  # points have their readings' times
        self._started = started
        self._next_layout = next_layout
        self._bases: list[TimeBase] = []
        self._watched: tuple[str, ...] = ()  # keys left out because of their values, which may become numbers later
        self._left_out: dict[str, str] = {}
        self.late: Counter[str] = Counter()  # readings of keys that are in neither the descriptor nor the first event
        self._known: set[Any] = set()  # all other keys
        self.usual = -1  # how many keys an event has if all of its keys are known
        self.usually: Accepted | None = None  # the answer for such an event
        self._offered_late: dict[str, int] = {}
        shares = selection.unprefixed is not None
        self._prefix = f"{self.name}/" if shares and self.name != selection.unprefixed else ""
        self._names: Names = names if shares and names is not None else {}

    @property
    def left_out(self) -> Mapping[str, str]:
        """Data keys that do not become channels, with the reason of each."""
        return self._left_out

    @property
    def rows(self) -> int:
        """How many rows were accepted, over all time bases."""
        return sum(base.rows for base in self._bases)

    @property
    def rounded(self) -> list[str]:
        """Channels in which an integer ever lost digits."""
        return sorted(name for base in self._bases for name in base.rounded)

    @property
    def rows_by_time_base(self) -> dict[str, int]:
        """How many rows each time base has."""
        return {base.layout.time_base: base.rows for base in self._bases}

    def event(self, doc: Mapping[str, Any], now: float) -> list[bytes]:
        """Return the lines for one event: new layouts, then its row in each time base.

        Args:
            doc: An `event` document of this event stream.
            now: The present time, to recognise an impossible time stamp. Used only if points are `by_reading`.

        Raises:
            ChannelError: The document lacks something that every event must have, such as a finite time.
        """
        try:
            data, time, uid = doc["data"], doc["time"], doc["uid"]
        except KeyError as error:
            raise ChannelError(
                f"an event of event stream {self.name!r} has no {error.args[0]!r}; it is left out"
            ) from None
        if type(time) is not float or not math.isfinite(time):
            time = self._finite(time)
        by_reading = self.by_reading
        stamps = mapping_of(doc.get("timestamps")) if by_reading else {}
        if not self._bases:
            if not isinstance(data, Mapping):
                raise ChannelError(f"the data of an event of event stream {self.name!r} are no mapping; it is left out")
            own = {key: self._own_time(stamp, now) for key, stamp in stamps.items()}
            self._arrange(data, mapping_of(doc.get("filled")), own if by_reading else None)
        if len(data) != self.usual:
            self._count_unknown(data, 1)
        if self._watched:
            self._welcome_late_channels({key: (data[key],) for key in self._watched if key in data})
        if by_reading:
            self._split_where_times_differ(stamps, now)
        out: list[bytes] = []
        for base in self._bases:
            at = time
            if by_reading and base.keys:
                own_time = self._own_time(stamps.get(base.keys[0]), now)
                if own_time is None:
                    self.replaced_times += 1
                else:
                    at = own_time
            if not base.declared:
                base.declare(out)
            values = base.packed(data)
            if values[1] and self.usual >= 0 and Loss.MISSING in values[1].values():
                self._count_unknown(data, 1)  # another key may have taken the place of a missing one
            out.append(encode_row(base.layout.layout, base.rows, at, uid, *values))
            base.offered = base.rows + 1
        return out

    def event_page(self, doc: Mapping[str, Any], now: float) -> list[bytes]:
        """Return the lines for all rows of an event page, after the new layouts.

        Raises:
            ChannelError: The columns of the page differ in length, or one of its times is not finite.
        """
        uids = _as_list(doc["uid"])
        times = list(map(self._finite, _as_list(doc["time"])))
        columns = {key: _as_list(column) for key, column in mapping_of(doc.get("data")).items()}
        for what, column in {"the times": times, **{f"data key {key!r}": columns[key] for key in columns}}.items():
            if len(column) != len(uids):
                raise ChannelError(
                    f"{what} of event stream {self.name!r} has {len(column)} values in a page of "
                    f"{len(uids)} events; the page is left out"
                )
        if not uids:
            return []
        by_reading = self._selection.by_reading(self.name, page=True)
        stamps = mapping_of(doc.get("timestamps")) if by_reading else {}
        own = self._own_times(stamps, len(uids), now)
        if not self._bases:
            first = {key: column[0] for key, column in columns.items()}
            self._arrange(first, filled_in_page(doc.get("filled")), own if by_reading else None)
        self._count_unknown(columns, len(uids))
        if self._watched:
            self._welcome_late_channels({key: columns[key] for key in self._watched if key in columns})
        if by_reading:
            for base in list(self._bases):
                self._split(base, own)
        out: list[bytes] = []
        for base in self._bases:
            at = times
            if by_reading and base.keys:
                own_times = own.get(base.keys[0]) or [None] * len(uids)
                self.replaced_times += own_times.count(None)
                at = [time if shown is None else shown for shown, time in zip(own_times, times, strict=True)]
            layout, row = base.layout.layout, base.rows
            for time, uid, values in zip(at, uids, base.page(columns, len(uids)), strict=True):
                if row == base.rows and not base.declared:
                    base.declare(out)
                out.append(encode_row(layout, row, time, uid, *values))
                row += 1
            base.offered = row
        return out

    def accepted(self, points_per_chunk: int = 1) -> bool:
        """Note that the result of the last `event` or `event_page` was kept, and number the next rows after it.

        Returns:
            True if a chunk of `points_per_chunk` rows became full.
        """
        self.begun = True
        if self._offered_late:
            self.late.update(self._offered_late)
            self._offered_late = {}
        full = False
        for base in self._bases:
            before, base.rows = base.rows, base.offered
            if base.rows > before:  # a time base without a row has not declared its layout either
                base.declared = True
                full = full or before // points_per_chunk != base.rows // points_per_chunk
        return full

    def accepted_of(
        self, payloads: Sequence[bytes], data: Mapping[Any, Any], events: int = 1, known: int = 0
    ) -> Accepted:
        """Return the answer for a document whose lines were written.

        It had the keys of `data`, and this many events.
        """
        usual = len(payloads) == events == 1 and len(data) == self.usual and not known
        left_out: Counter[str] = Counter()
        for key in data:
            reason = self._left_out.get(_sound(key) if isinstance(key, str) else _sound(type(key).__name__))
            if reason is None and key not in self._known:
                reason = Loss.LATE
            if reason is not None:
                left_out[reason] += events
        rows = sum(payload.startswith(b"[") for payload in payloads)
        found = Accepted(rows=rows, known=known, left_out=dict(left_out))
        if usual:
            self.usually = found
        return found

    def described_again(self) -> None:
        """Note that a further descriptor has come: the next event is checked for unknown keys."""
        self.usual = -1

    def start_over(self) -> None:
        """Number the next rows from 0, under layouts that are declared again: they go into another journal."""
        for base in self._bases:
            base.rows = base.offered = 0
            base.declared = False

    # ---- which keys become channels --------------------------------------------------------------------------------

    def _arrange(self, data: Mapping[Any, Any], filled: Mapping[str, Any], own: Mapping[str, Any] | None) -> None:
        """Decide, at the first event, which keys become channels, and which of these share their times."""
        sources: list[Source] = []
        left_out: dict[str, str] = {}
        for key in dict.fromkeys([*self._data_keys, *data]):
            if not isinstance(key, str):
                left_out[_sound(type(key).__name__)] = Loss.NAMELESS
                continue
            source = self._source(key, data.get(key), filled.get(key, True))
            if isinstance(source, str):
                left_out[_sound(key)] = source
            else:
                sources.append(source)
        self._known = {*self._data_keys, *data}
        watched = tuple(key for key, reason in left_out.items() if reason in {Loss.TEXT, Loss.NOT_NUMERIC, Loss.ARRAY})
        groups = [sources] if own is None else _sharing(sources, own)
        first, *others = groups or [[]]
        bases = [self._base(self.name, first, left_out), *map(self._further_base, others)]
        # Assigned in one statement, so that an exception from a signal handler leaves all of it or nothing.
        self._left_out, self._watched, self._bases, self.usually = left_out, watched, bases, None

    def _count_unknown(self, data: Mapping[Any, Any], rows: int) -> None:
        """Count the unknown keys, to be added once these rows are kept. An unknown key no longer becomes a channel."""
        unknown = [key for key in data if key not in self._known]
        self.usual, self.usually = -1 if unknown else len(data), None
        self._offered_late = {}
        for key in unknown:
            name = _sound(key)[:MAX_NAME] if isinstance(key, str) else type(key).__name__
            if name not in self.late and len(self.late) >= MAX_LATE_KEYS:
                name = OTHER_KEYS
            self._offered_late[name] = self._offered_late.get(name, 0) + rows

    def _further_base(self, sources: list[Source]) -> TimeBase:
        return self._base(f"{self.name}/{sources[0].channels[0].key}", sources, {})

    def _base(self, name: str, sources: list[Source], left_out: Mapping[str, str]) -> TimeBase:
        return TimeBase(self._layout(name, sources, left_out), sources)

    def _layout(self, time_base: str, sources: Iterable[Source], left_out: Mapping[str, str]) -> Layout:
        return Layout(
            layout=self._next_layout(),
            event_stream=self.name,
            time_base=time_base,
            channels=tuple(channel for source in sources for channel in source.channels),
            left_out=dict(left_out),
        )

    def _source(self, key: str, value: Any, filled: Any) -> Source | Loss:
        """Return how a data key becomes channels, by its value, or the reason why it does not."""
        try:
            return self._decide(key, value, filled)
        except Exception:  # noqa: BLE001 - a foreign object may do anything when it is asked what it is
            return Loss.NOT_NUMERIC

    def _decide(self, key: str, value: Any, filled: Any) -> Source | Loss:
        described = mapping_of(self._data_keys.get(key))
        if not self._selection.takes_key(key, key in self._hinted):
            return Loss.KEY_NOT_SELECTED
        if described.get("external") and (not is_filled(filled) or isinstance(value, str) or value is None):
            return Loss.EXTERNAL
        dtype, choices = described.get("dtype"), choices_of(described)
        units = described.get("units")
        unit = _fitting(_sound(units), MAX_NAME) if isinstance(units, str) and units.strip() else None
        if isinstance(value, str):
            return self._scalar(key, unit, choice(choices)) if choices else Loss.TEXT
        length = length_of(value, described)
        if length is not None:
            if length > self._selection.max_elements:
                return Loss.LONG_ARRAY
            return self._elements(key, unit, length)
        first = number(value)
        if isinstance(first, str):
            if first not in {Loss.NO_VALUE, Loss.NOT_FINITE, Loss.TOO_LARGE}:
                return first
            if dtype == "string":
                return self._scalar(key, unit, choice(choices)) if choices else Loss.TEXT
        special = isinstance(value, bool) or dtype == "boolean" or bool(choices)
        return self._scalar(key, unit, choice(choices) if special else None)

    def _scalar(self, key: str, unit: str | None, convert: Callable[[Any], float | Loss] | None) -> Source:
        return Source(key, (Channel(name=self._name(key, None), key=_sound(key), unit=unit),), convert)

    def _elements(self, key: str, unit: str | None, length: int) -> Source:
        return Source(
            key,
            tuple(Channel(name=self._name(key, i), key=_sound(key), unit=unit, element=i) for i in range(length)),
            None,
        )

    def _name(self, key: str, element: int | None) -> str:
        """Return a name that the API takes and that no other channel of its metrology stream has, ignoring case."""
        wanted = f"{self._prefix}{_sound(self._selection.rename.get(key, key)).strip() or 'channel'}"
        suffix = "" if element is None else f"[{element}]"
        attempt = 1
        while True:
            end = suffix if attempt == 1 else f"{suffix} ({attempt})"
            name = _fitting(wanted, MAX_NAME - len(end.encode())) + end
            mine = (self.name, key, element)
            if self._names.setdefault(name.lower(), mine) == mine:
                return name
            attempt += 1

    def _welcome_late_channels(self, columns: Mapping[str, Iterable[Any]]) -> None:
        """Add keys that were not numeric until now, and are numbers in these values, in a new layout."""
        for key, column in columns.items():
            for value in column:
                if value is None or issubclass(type(value), str):
                    continue
                source = self._source(key, value, True)
                if isinstance(source, str):
                    continue
                base, *others = self._bases
                watched = tuple(other for other in self._watched if other != key)
                left_out = {other: reason for other, reason in self._left_out.items() if other != key}
                sources = [*base.sources, source]
                base = base.changed(sources, self._layout(base.layout.time_base, sources, left_out))
                self._left_out, self._watched, self._bases, self.usually = left_out, watched, [base, *others], None
                break

    # ---- times -----------------------------------------------------------------------------------------------------

    def _split_where_times_differ(self, stamps: Mapping[str, Any], now: float) -> None:
        """From here on, give a time base of its own to each key that no longer shares its time with the others."""
        for base in list(self._bases):
            if len(base.sources) < 2:
                continue
            try:
                if len(set(map(stamps.get, base.keys))) == 1:
                    continue
            except TypeError:  # a stamp that is not a time
                pass
            self._split(base, {key: self._own_time(stamps.get(key), now) for key in base.keys})

    def _split(self, base: TimeBase, own: Mapping[str, Any]) -> None:
        groups = _sharing(base.sources, own)
        if len(groups) < 2:
            return
        stay, *leave = groups
        less = base.changed(stay, self._layout(base.layout.time_base, stay, base.layout.left_out))
        bases = [less if one is base else one for one in self._bases]
        self._bases = [*bases, *map(self._further_base, leave)]

    def _finite(self, time: Any) -> float:
        """Return an event's time as a float. Without a finite time its readings could not be placed."""
        try:
            at = float(time)
        except (TypeError, ValueError, OverflowError):
            at = math.nan
        if not math.isfinite(at):
            raise ChannelError(f"an event of event stream {self.name!r} has no finite time; it is left out")
        return at

    def _own_time(self, stamp: Any, now: float) -> float | None:
        """Return a reading's own time, or None if no clock could have shown it during this run."""
        if isinstance(stamp, np.generic):
            stamp = stamp.item()
        if isinstance(stamp, int | float) and self._started - DAY_S <= stamp <= now + 3600.0:
            return float(stamp)
        return None

    def _own_times(self, stamps: Mapping[str, Any], rows: int, now: float) -> dict[str, list[float | None]]:
        """Return the same for the columns of a page. Equal columns, as a flyer mostly has, are checked once."""
        own: dict[str, list[float | None]] = {}
        last: Sequence[Any] = ()
        times: list[float | None] = []
        for key, column in stamps.items():
            try:
                given = _as_list(column)
            except ChannelError:
                given = ()
            if given != last:
                last = given
                times = [self._own_time(stamp, now) for stamp in given] if len(given) == rows else [None] * rows
            own[key] = times
        return own


def _sharing(sources: Iterable[Source], own: Mapping[str, Any]) -> list[list[Source]]:
    """Return the sources in groups that share their times."""
    groups: list[tuple[Any, list[Source]]] = []
    for source in sources:
        times = own.get(source.key)
        for shared, members in groups:
            if shared is times or shared == times:
                members.append(source)
                break
        else:
            groups.append((times, [source]))
    return [members for _, members in groups]


def _fitting(name: str, limit: int) -> str:
    """Return a name cut to `limit` bytes, with an ellipsis if it was cut. Never cuts within a character."""
    if len(name.encode(errors="replace")) <= limit:
        return name
    return name.encode(errors="replace")[: limit - 3].decode(errors="ignore") + "…"


def _sound(text: str) -> str:
    """Return the text without lone surrogates, which a file cannot hold."""
    return text.encode(errors="replace").decode()


def _as_list(column: Any) -> Sequence[Any]:
    """Return a column of an event page as a list."""
    if isinstance(column, list | tuple):
        return column
    if not isinstance(column, np.ndarray) and hasattr(column, "__array__"):  # a column of pandas, xarray or dask
        column = np.asarray(column)
    if isinstance(column, np.ndarray):
        if column.ndim:
            # `tolist` would turn dates and records into bare numbers and arrays.
            return list(column) if column.dtype.kind in "mMV" else column.tolist()
    elif isinstance(column, Collection) and not isinstance(column, str | bytes | Mapping | Set):
        return list(column)
    raise ChannelError(f"a column of an event page is a {type(column).__name__}, expected a list; the page is left out")
