"""Turns descriptors and events into channels and encoded rows. Pure: no file, socket, clock or thread.

An `EventStream` reads the documents of one event stream of one run. The values decide which data keys become channels,
because values are more reliable than the descriptor. Numbers, booleans, enums (by index) and the elements of short
one-dimensional arrays become channels. Text, tables, larger arrays and external data are left out, each with its
reason. A value that is not a finite number is a gap with a reason.

Nothing is decided for good. A key that comes later or turns numeric, an array that grows, a scalar that becomes an
array and a unit that changes give channels of their own from there on, in a new layout.

Keys that share their times form a time base, and rows are numbered within it. Which time a row has is decided by
`row_times`. Where readings have times of their own, an event stream may have several time bases (decision 0081).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import orjson

from ..errors import ChannelError
from ..model.loss import Loss
from ..model.text import sound
from ..spool.journal_format import DataKey, Layout, is_row
from ..spool.row_record import RECORD
from .accepted import Accepted
from .channels import Channels, Names
from .description import MAX_NAME, Description
from .descriptor import filled_in_page, mapping_of
from .event_page import EventPage, as_list, stamps_of
from .row_times import STILL_S, Own, RowTimes, Stretch, Way
from .selection import Selection
from .time_base import Source, TimeBase

# This many keys that first appear later are counted one by one, and the others together.
MAX_LATE_KEYS = 1000
OTHER_KEYS = "(other keys)"
# How often the values of an event stream may change its channels. A layout names all channels, so more would let the
# journal grow with the square of their number.
MAX_CHANGES = 100
# How many points of a page are in memory a second time while they are packed.
BLOCK_POINTS = 100_000


class EventStream:
    """Turns the documents of one event stream of one run into lines for its journal.

    `event` and `event_page` return JSON texts and number no row until `accepted` confirms that they were kept. So a
    line that could not be written leaves no hole.

    Args:
        description: What the first descriptor of the event stream says.
        selection: Which event streams and data keys to take.
        started: The run's start, Unix seconds.
        next_layout: Returns a number that no other layout of the run has.
        names: The channel names of the run, if its event streams share a metrology stream.
        earlier: The event stream's layouts in earlier journals of the run. Its channels keep their names, and keys
            that have been divided stay apart.
        collected: True if earlier journals show that its rows were collected, and not read by a plan.
    """

    def __init__(
        self,
        description: Description,
        selection: Selection,
        *,
        started: float,
        next_layout: Callable[[], int],
        names: Names | None = None,
        earlier: Iterable[Layout] = (),
        collected: bool = False,
    ) -> None:
        self.name = sound(description.line.event_stream)
        self.description = description
        self.begun = False  # True once a row of it was kept
        self.replaced_times = 0  # readings whose own time was impossible, so they got the event's time
        self._described: Mapping[str, DataKey] = description.line.data_keys
        earlier = list(earlier)
        self._channels = Channels(self.name, description, selection, names, earlier)
        self._next_layout = next_layout
        self._bases: list[TimeBase] = []
        self._events_before = 0  # of earlier journals that this object wrote
        self._watched: tuple[str, ...] = ()  # keys left out because of their values, which may become numbers later
        self._left_out: dict[str, str] = {}
        self._changes = 0
        self.late: Counter[str] = Counter()  # readings of keys that came after too many changes
        self._known: set[Any] = set()  # all other keys
        self.usual = -1  # how many keys an event has if all of its keys are known
        self.usually: Accepted | None = None  # the answer for such an event
        self._offered_late: dict[str, int] = {}
        self._time_bases: dict[str, str] = {}  # by data key: the time base that it had in an earlier journal
        own: bool | None = None
        for layout in earlier:
            own = layout.own_times
            for one in layout.channels:
                self._time_bases[one.key] = layout.time_base
        self.times = RowTimes(selection.way_of(self.name), started, resumed=own, certain=collected)
        self._own_times = bool(own)

    @property
    def left_out(self) -> Mapping[str, str]:
        """Data keys that do not become channels, with the reason of each."""
        return self._left_out

    @property
    def rows(self) -> int:
        """How many rows were accepted, over all time bases."""
        return sum(base.rows for base in self._bases)

    @property
    def events(self) -> int:
        """How many events have a row, in all journals that it was written to."""
        return self._events_before + (self._bases[0].rows if self._bases else 0)

    @property
    def has_external_data(self) -> bool:
        """Return True if some of its values are in files, which documents of other kinds name."""
        return any(key.external for key in self._described.values())

    @property
    def rounded(self) -> list[str]:
        """Channels in which an integer ever lost digits."""
        return sorted(name for base in self._bases for name in base.rounded)

    @property
    def rows_by_time_base(self) -> dict[str, int]:
        """How many rows each time base has."""
        return {base.layout.time_base: base.rows for base in self._bases}

    def saw(self, doc: Mapping[str, Any]) -> None:
        """Note the times of an event that is kept already: they tell how those of the next one are chosen."""
        self.times.of(self._finite(doc.get("time")), mapping_of(doc.get("timestamps")))

    def describe(self, description: Description) -> None:
        """Note that the documents that follow name another descriptor. Its units and choices apply to them."""
        self.description, self._described = description, description.line.data_keys
        self._channels.describe(description)
        self.usual, self.usually = -1, None
        bases: list[TimeBase] = []
        for base in self._bases:
            sources = list(map(self._channels.redescribed, base.sources))
            bases.append(base if sources == base.sources else self._changed(base, sources))
        self._bases = bases

    def event(self, doc: Mapping[str, Any]) -> list[bytes]:
        """Return the lines for one event: new layouts, then its row in each time base.

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
        times = self.times
        if not (times.by_event and time - times.last > STILL_S and len(data) == self.usual) or self._watched:
            return self._unusual(doc, time, None)
        out: list[bytes] = []
        gaps = False
        for base in self._bases:
            if not base.declared:
                base.declare(out)
            row = base.row(data, base.rows, time, uid)
            if row[0] != RECORD:
                gaps = True
            out.append(row)
            base.offered = base.rows + 1
        times.last = time  # only now: an event that cannot be used tells nothing about the next one's times
        if gaps and self._changes_with(data, mapping_of(doc.get("filled")), None, None):
            return self._lines(doc, time, None, None)
        return out

    def part(self, doc: Mapping[str, Any], keys: Set[str]) -> list[bytes]:
        """Return the same for the readings of these data keys alone. A time base without any of them has no row."""
        return self._unusual(doc, self._finite(doc.get("time")), keys)

    def _unusual(self, doc: Mapping[str, Any], time: float, only: Set[str] | None) -> list[bytes]:
        """Return the lines of an event of which anything may be new: its keys, or which of its times count."""
        data, times = doc["data"], self.times
        if type(data) is not dict and not isinstance(data, Mapping):
            raise ChannelError(f"the data of an event of event stream {self.name!r} are no mapping; it is left out")
        self._check_uids((doc["uid"],))
        own = times.of(time, mapping_of(doc.get("timestamps")))
        if len(data) != self.usual or self._watched or times.uneven or (own is None) == self._own_times or only:
            self._offered_late = {}
            self._prepare(data, mapping_of(doc.get("filled")), own, only)
        return self._lines(doc, time, own, only)

    def _lines(self, doc: Mapping[str, Any], time: float, own: Own | None, only: Set[str] | None) -> list[bytes]:
        """Return the lines for an event whose rows have times of their own, or gaps, or of which a part is wanted."""
        data, uid = doc["data"], doc["uid"]
        while True:
            out: list[bytes] = []
            gaps, replaced = False, 0
            for base in self._bases:
                at = time
                if own is not None and base.keys:
                    stamp = own.get(base.keys[0])
                    if stamp is None:
                        replaced += 1
                    else:
                        at = stamp
                if only and only.isdisjoint(base.keys):
                    base.offered = base.rows
                    continue
                if not base.declared:
                    base.declare(out)
                row = base.row(data, base.rows, at, uid)
                if row[0] != RECORD:
                    gaps = True
                out.append(row)
                base.offered = base.rows + 1
            if not gaps or not self._changes_with(data, mapping_of(doc.get("filled")), own, only):
                self.replaced_times += replaced
                return out

    def event_page(self, doc: Mapping[str, Any]) -> list[bytes]:
        """Return the lines for all rows of an event page: the same as for its events one by one, ordered by time base.

        Raises:
            ChannelError: Its data are no columns of one length, one of its times is not finite, or a uid is no text.
        """
        uids = as_list(doc["uid"])
        times = list(map(self._finite, as_list(doc["time"])))
        if not isinstance(doc.get("data"), Mapping):
            raise ChannelError(f"the data of a page of event stream {self.name!r} are no mapping; it is left out")
        columns = {key: as_list(column) for key, column in doc["data"].items()}
        for what, column in {"the times": times, **{f"data key {key!r}": columns[key] for key in columns}}.items():
            if len(column) != len(uids):
                raise ChannelError(
                    f"{what} of event stream {self.name!r} has {len(column)} values in a page of "
                    f"{len(uids)} events; the page is left out"
                )
        self._check_uids(uids)
        for base in self._bases:
            base.offered = base.rows
        self._offered_late = {}
        if not uids:
            return []
        self.usual = -1  # its keys may be others, even if they are as many as before
        stamps = {key: stamps_of(column, len(uids)) for key, column in mapping_of(doc.get("timestamps")).items()}
        page = EventPage(uids, times, columns, filled_in_page(doc.get("filled")))
        for stretch in self.times.page(times, {key: column for key, column in stamps.items() if column is not None}):
            self._take_stretch(page, stretch)
        return page.lines()

    def _take_stretch(self, page: EventPage, stretch: Stretch) -> None:
        row = stretch.begin
        while row < stretch.end:
            data = {key: column[row] for key, column in page.columns.items()}
            own = stretch.row(row)
            self._prepare(data, page.filled, own, None)
            points = sum(len(base.layout.channels) for base in self._bases)
            end = min(stretch.end, row + max(1, BLOCK_POINTS // max(1, points)))
            end = self._alike_until(page, stretch, row, end)
            values = {base.layout.layout: base.page(page.columns, row, end) for base in self._bases}
            if any(one is None for one in values.values()):
                grows = self._changes_at(page, row, end)
                if grows == row:
                    continue  # its channels have changed
                if grows < end:
                    end = grows
                    values = {base.layout.layout: base.page(page.columns, row, end) for base in self._bases}
            if end - row > 1:  # the first of these rows is counted
                self._count_late(page.columns, end - row)
            for base in self._bases:
                at: Sequence[float] = page.times[row:end]
                if stretch.own is not None and base.keys:
                    at, replaced = stretch.times(base.keys[0], row, end, page.times)
                    self.replaced_times += replaced
                page.add(base, at, row, values[base.layout.layout])
            row = end

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
            reason = self._left_out.get(sound(key) if isinstance(key, str) else sound(type(key).__name__))
            if reason is None and key not in self._known:
                reason = Loss.LATE
            if reason is not None:
                left_out[reason] += events
        rows = sum(map(is_row, payloads))
        found = Accepted(rows=rows, known=known, left_out=dict(left_out))
        if usual:
            self.usually = found
        return found

    def start_over(self) -> None:
        """Number the next rows from 0, under layouts that are declared again: they go into another journal."""
        self._events_before = self.events
        for base in self._bases:
            base.rows = base.offered = 0
            base.declared = False

    # ---- which keys become channels --------------------------------------------------------------------------------

    def _prepare(
        self, data: Mapping[Any, Any], filled: Mapping[str, Any], own: Own | None, only: Set[str] | None
    ) -> None:
        """Have the channels and time bases that an event needs."""
        if (own is not None) != self._own_times:
            before, self._own_times = self._own_times, own is not None
            try:
                if self.times.way is Way.EVIDENCE:
                    self._bases = [self._changed(base, base.sources) for base in self._bases]
            except BaseException:  # from a signal handler: the layouts are changed with the next event
                self._own_times = before
                raise
        if not self._bases:
            self._arrange(data, filled, own)
        if len(data) != self.usual:
            self._meet(data, filled)
        if self._watched:
            self._welcome({key: data[key] for key in self._watched if key in data}, filled)
        self._divide(own, only)

    def _divide(self, own: Own | None, only: Set[str] | None) -> None:
        if own is not None:
            self._split_where_times_differ(own)
        if only:
            for base in list(self._bases):
                if not only.isdisjoint(base.keys):
                    self._split(base, {key: key in only for key in base.keys})

    def _arrange(self, data: Mapping[Any, Any], filled: Mapping[str, Any], own: Own | None) -> None:
        """Decide, at the first event, which keys become channels, and which of these share their times."""
        sources: list[Source] = []
        left_out: dict[str, str] = {sound(kind): Loss.NAMELESS for kind in self.description.nameless}
        for key in dict.fromkeys([*self._described, *data]):
            source = self._channels.source(key, data.get(key), filled.get(key, True))
            if isinstance(source, str):
                left_out[_left_out_name(key)] = source
            else:
                sources.append(source)
        earlier = {key: self._time_bases.get(key, self.name) for key in {source.key for source in sources}}
        groups: list[list[Source]] = []
        for group in _sharing(sources, earlier):
            groups += [group] if own is None else _sharing(group, own)
        groups.sort(key=lambda group: earlier[group[0].key] != self.name)
        if groups and earlier[groups[0][0].key] != self.name:
            groups.insert(0, [])
        first, *others = groups or [[]]
        bases = [self._base(self.name, first, left_out)]
        for group in others:
            bases.append(self._further_base(group, bases))
        # The bases last: until then, an exception from a signal handler leaves it to the next event.
        watched = _watched(left_out, [*self._described, *data])
        self._left_out, self._watched, self._known = left_out, watched, {*self._described, *data}
        self._bases, self.usually = bases, None

    def _meet(self, data: Mapping[Any, Any], filled: Mapping[str, Any]) -> bool:
        """Take the keys that come for the first time. Return True if any did."""
        unknown = [key for key in data if key not in self._known]
        self.usual, self.usually = -1 if unknown else len(data), None
        if not unknown:
            return False
        if self._changes >= MAX_CHANGES:
            self._count_late(data, 1)
            return False
        self._changes += 1
        base, *others = self._bases
        sources, left_out = list(base.sources), dict(self._left_out)
        for key in unknown:
            source = self._channels.source(key, data[key], filled.get(key, True))
            if isinstance(source, str):
                left_out[_left_out_name(key)] = source
            else:
                sources.append(source)
        base = base.changed(sources, self._layout(base.layout.time_base, sources, left_out))
        watched = (*self._watched, *_watched(left_out, unknown))
        known = {*self._known, *unknown}
        self._left_out, self._bases, self._known, self._watched = left_out, [base, *others], known, watched
        self.usual = len(data)
        return True

    def _count_late(self, data: Mapping[Any, Any], rows: int) -> None:
        """Count the readings of keys that came too late, to be added once these rows are kept."""
        for key in data:
            if key in self._known:
                continue
            name = sound(key)[:MAX_NAME] if isinstance(key, str) else type(key).__name__
            if name not in self.late and len(self.late) >= MAX_LATE_KEYS:
                name = OTHER_KEYS
            self._offered_late[name] = self._offered_late.get(name, 0) + rows

    def _welcome(self, values: Mapping[str, Any], filled: Mapping[str, Any]) -> None:
        """Add keys that were not numeric until now, and are numbers in this event, in a new layout."""
        for key, value in values.items():
            if value is None or issubclass(type(value), str):
                continue
            source = self._channels.source(key, value, filled.get(key, True))
            if isinstance(source, str):
                continue
            base, *others = self._bases
            watched = tuple(other for other in self._watched if other != key)
            left_out = {other: reason for other, reason in self._left_out.items() if other != _left_out_name(key)}
            sources = [*base.sources, source]
            base = base.changed(sources, self._layout(base.layout.time_base, sources, left_out))
            self._left_out, self._watched, self._bases, self.usually = left_out, watched, [base, *others], None

    def _changes_with(
        self, data: Mapping[Any, Any], filled: Mapping[str, Any], own: Own | None, only: Set[str] | None
    ) -> bool:
        """Give an event with a gap the channels that it needs. Return True if there are new ones."""
        met = self.usual >= 0 and self._meet(data, filled)  # another key may have taken the place of a missing one
        if not (self._grow(data) or met):
            return False
        self._divide(own, only)
        return True

    def _grow(self, data: Mapping[Any, Any]) -> bool:
        """Give an array a channel for each element. Return True if there are new ones."""
        if self._changes >= MAX_CHANGES:
            return False
        changed: list[TimeBase] = []
        for base in self._bases:
            sources = [self._channels.grown(source, data.get(source.key)) for source in base.sources]
            changed.append(base if sources == base.sources else self._changed(base, sources))
        if changed == self._bases:
            return False
        self._changes += 1
        self._bases, self.usually = changed, None
        return True

    def _changes_at(self, page: EventPage, row: int, end: int) -> int:
        """Return the first of these rows whose arrays need more channels, or `end`. At `row` itself, add them."""
        arrays = [source for base in self._bases for source in base.sources if source.key in page.columns]
        for i in range(row, end):
            if any(source.outgrown_by(page.columns[source.key][i]) for source in arrays):
                if self._changes >= MAX_CHANGES:
                    return end
                if i == row:
                    self._grow({key: column[row] for key, column in page.columns.items()})
                return i
        return end

    def _alike_until(self, page: EventPage, stretch: Stretch, row: int, end: int) -> int:
        """Return the first row after `row` that needs other time bases, or a channel for a key that turns numeric."""
        if stretch.own is not None:
            for base in self._bases:
                end = min(end, stretch.differ(base.keys, row, end))
        for key in self._watched:
            column = page.columns.get(key, ())
            for i in range(row + 1, min(end, len(column))):
                value = column[i]
                if value is None or issubclass(type(value), str):
                    continue
                if not isinstance(self._channels.source(key, value, page.filled.get(key, True)), str):
                    end = i
                    break
        return end

    def _further_base(self, sources: list[Source], others: Iterable[TimeBase]) -> TimeBase:
        key = sources[0].key
        name = self._time_bases.get(key, self.name)
        taken = {base.layout.time_base for base in others}
        if name == self.name or name in taken:
            name = f"{self.name}/{sources[0].channels[0].key}"
        return self._base(name, sources, {})

    def _base(self, name: str, sources: list[Source], left_out: Mapping[str, str]) -> TimeBase:
        return TimeBase(self._layout(name, sources, left_out), sources)

    def _changed(self, base: TimeBase, sources: list[Source]) -> TimeBase:
        return base.changed(sources, self._layout(base.layout.time_base, sources, base.layout.left_out))

    def _layout(self, time_base: str, sources: Iterable[Source], left_out: Mapping[str, str]) -> Layout:
        return Layout(
            layout=self._next_layout(),
            event_stream=self.name,
            time_base=time_base,
            channels=tuple(channel for source in sources for channel in source.channels),
            left_out=dict(left_out),
            own_times=self._own_times and self.times.way is Way.EVIDENCE,
        )

    # ---- times -----------------------------------------------------------------------------------------------------

    def _split_where_times_differ(self, own: Own) -> None:
        """From here on, give a time base of its own to each key that no longer shares its time with the others."""
        for base in list(self._bases):
            if len(base.sources) > 1 and len(set(map(own.get, base.keys))) > 1:
                self._split(base, own)

    def _split(self, base: TimeBase, own: Mapping[str, Any]) -> None:
        groups = _sharing(base.sources, own)
        if len(groups) < 2:
            return
        stay, *leave = groups
        less = self._changed(base, stay)
        bases = [less if one is base else one for one in self._bases]
        for group in leave:
            bases.append(self._further_base(group, bases))
        self._bases = bases  # at once: an exception from a signal handler leaves the old ones or all new ones

    def _check_uids(self, uids: Sequence[Any]) -> None:
        """Check the uids of events before their times count.

        Raises:
            ChannelError: A uid cannot be written.
        """
        try:
            if not "".join(uids).isascii():
                orjson.dumps(uids)
        except (TypeError, ValueError):  # no text, or text that no file can hold
            for uid in uids:
                try:
                    orjson.dumps(uid)
                except (TypeError, ValueError):
                    raise ChannelError(
                        f"an event of event stream {self.name!r} has the uid {uid!r}, expected text; it is left out"
                    ) from None

    def _finite(self, time: Any) -> float:
        """Return an event's time as a float. Without a finite time its readings could not be placed."""
        try:
            at = float(time)
        except (TypeError, ValueError, OverflowError):
            at = math.nan
        if not math.isfinite(at):
            raise ChannelError(f"an event of event stream {self.name!r} has no finite time; it is left out")
        return at


def _sharing(sources: Iterable[Source], own: Mapping[str, Any]) -> list[list[Source]]:
    """Return the sources in groups that share their times."""
    groups: dict[Any, list[Source]] = {}
    for source in sources:
        groups.setdefault(own.get(source.key), []).append(source)
    return list(groups.values())


def _watched(left_out: Mapping[str, str], keys: Iterable[Any]) -> tuple[str, ...]:
    """Return the keys that are left out because of their values."""
    may_change = {Loss.TEXT, Loss.NOT_NUMERIC, Loss.ARRAY, Loss.LONG_ARRAY}
    return tuple(dict.fromkeys(key for key in keys if left_out.get(_left_out_name(key)) in may_change))


def _left_out_name(key: Any) -> str:
    return sound(key) if isinstance(key, str) else sound(type(key).__name__)
