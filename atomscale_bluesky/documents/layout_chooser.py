"""Decides the layouts of one event stream: which of its data keys are channels, and which of these share their times.

The values decide which data keys become channels, because values are more reliable than the descriptor. Numbers,
booleans, enums (by index) and the elements of short one-dimensional arrays become channels. Text, tables, larger arrays
and external data are left out, each with its reason.

Nothing is decided for good. A key that comes later or turns numeric, an array that grows, a scalar that becomes an
array and a unit that changes give channels of their own from there on, in a new layout. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from ..model.loss import Loss
from ..model.text import encodable
from ..spool.journal_format import Layout, is_row
from ..spool.row_record import RECORD
from .accepted import Accepted
from .channels import Channels, Names
from .description import MAX_NAME, Description
from .event_page import EventPage
from .row_times import OwnTimes, Stretch, TimeRule
from .selection import Selection
from .time_base import KeySource, TimeBase

# This many keys that first appear later are counted one by one, and the others together.
MAX_LATE_KEYS = 1000
OTHER_KEYS = "(other keys)"
# How many times new keys and growing arrays may change the channels of an event stream. A layout names all channels, so
# more would let the journal grow with the square of their number. Other changes are not counted: a key turns numeric,
# or gets times of its own, only once. Another unit, or a switch between the event's times and the readings' own, comes
# with a row, which has a value for each channel.
MAX_CHANGES = 100


class LayoutChooser:
    """The time bases of one event stream, each with its present layout, and the keys that are no channels.

    An exception from a signal handler may interrupt any method. It leaves the old time bases or the new ones.

    Args:
        event_stream: The event stream's name.
        description: What its first descriptor says.
        selection: Which data keys to take.
        next_layout: Returns a number that no other layout of the run has.
        names: The channel names of the run, if its event streams share a metrology stream.
        earlier: The event stream's layouts in earlier journals of the run. Its channels keep their names, and keys
            that have been divided stay apart.
        rule: How the times of its rows are chosen.
        all_time_base_names: Returns the names of all time bases of the run. Each has another one. Those of event
            streams without a row count too, except that of the event stream it is called with.
    """

    def __init__(
        self,
        event_stream: str,
        description: Description,
        selection: Selection,
        *,
        next_layout: Callable[[], int],
        names: Names | None,
        earlier: Sequence[Layout],
        rule: TimeRule,
        all_time_base_names: Callable[[str], Set[str]],
    ) -> None:
        self.bases: list[TimeBase] = []
        self.left_out: Mapping[str, str] = {}  # data keys that do not become channels, with the reason of each
        self.watched: tuple[str, ...] = ()  # keys left out because of their values, which may become numbers later
        self.usual_keys = -1  # how many keys a usual event has: one whose keys are those of the last one prepared for
        self.usual_left_out: Set[Any] = frozenset()  # those of its keys that are left out
        self.usual_answer: Accepted | None = None  # the answer for such an event
        self.at_own_times = bool(earlier and earlier[-1].own_times)  # the last row stands at its readings' own times
        self.late: Counter[str] = Counter()  # readings of keys that came after too many changes
        self.late_if_written: dict[
            str, int
        ] = {}  # those of the last document; added to `late` once its lines are written
        self._event_stream = event_stream
        self._description = description
        self._channels = Channels(event_stream, description, selection, names, earlier)
        self._next_layout = next_layout
        self._all_time_base_names = all_time_base_names
        self._by_evidence = rule is TimeRule.EVIDENCE
        self._known_keys: set[Any] = set()  # all keys that came
        self._changes = 0
        # By data key: the time base that it had in an earlier journal.
        self._earlier_time_base = {
            one.key: event_stream if layout.has_first_rows else layout.time_base
            for layout in earlier
            for one in layout.channels
        }

    def describe(self, description: Description) -> None:
        """Note that the documents that follow name another descriptor. Its units and choices apply to them."""
        self._description = description
        self._channels.describe(description)
        self.usual_keys, self.usual_answer = -1, None
        bases: list[TimeBase] = []
        for base in self.bases:
            sources = list(map(self._channels.redescribed, base.sources))
            bases.append(base if sources == base.sources else self._with_sources(base, sources))
        self.bases = bases

    def has_turned_numeric(self, data: Mapping[Any, Any]) -> bool:
        """Return True if a key that was left out because of its value may be a number in this event."""
        for key in self.watched:
            value = data.get(key)
            if value is not None and not issubclass(type(value), str):
                return True
        return False

    def has_usual_keys(self, data: Mapping[Any, Any]) -> bool:
        """Return True if an event has as many keys as a usual one, and all of those that are left out.

        If another of its keys is new, it then lacks a channel, which is a gap.
        """
        return len(data) == self.usual_keys and (not self.left_out or data.keys() >= self.usual_left_out)

    def lacks_a_time(self, own_times: OwnTimes) -> bool:
        """Return True if keys that share their times do not all have a stamp in this event."""
        return any(len(base.keys) > 1 and not all(map(own_times.__contains__, base.keys)) for base in self.bases)

    def prepare(self, data: Mapping[Any, Any], own_times: OwnTimes | None, only: Set[str] | None) -> None:
        """Make the channels and time bases that an event needs, or only those of the keys in `only`."""
        if (own_times is not None) != self.at_own_times:
            before, self.at_own_times = self.at_own_times, own_times is not None
            try:
                if self._by_evidence:
                    self.bases = [self._with_sources(base, base.sources) for base in self.bases]
            except BaseException:  # from a signal handler: the layouts are changed with the next event
                self.at_own_times = before
                raise
        if not self.bases:
            self._choose_at_first_event(data, own_times)
        # A new key in the place of a channel: what follows may hide the gap by which it would be found.
        if not self.has_usual_keys(data) or not data.keys() <= self._known_keys:
            self._take_new_keys(data)
        if self.watched:
            self._take_keys_turned_numeric(data)
        self._split_where_needed(own_times, only)

    def add_channels_for(self, data: Mapping[Any, Any], own_times: OwnTimes | None, only: Set[str] | None) -> bool:
        """Give an event with a gap the channels that it needs. Return True if there are new ones."""
        # Another key may have taken the place of a missing one.
        any_new_keys = self.usual_keys >= 0 and self._take_new_keys(data)
        if not (self.grow_arrays(data) or any_new_keys):
            return False
        self._split_where_needed(own_times, only)
        return True

    def first_outgrown(self, page: EventPage, row: int, end: int) -> int:
        """Return the first of these rows whose arrays need more channels and may get them; `end` if there is none."""
        if self._changes >= MAX_CHANGES:
            return end
        sources = [source for base in self.bases for source in base.sources if source.key in page.columns]
        for i in range(row, end):
            if any(source.outgrown_length(page.columns[source.key][i]) for source in sources):
                return i
        return end

    def alike_until(self, page: EventPage, stretch: Stretch, row: int, end: int) -> int:
        """Return the first row after `row` that needs other time bases, or a channel for a key that turns numeric."""
        if stretch.own_times is not None:
            for base in self.bases:
                end = min(end, stretch.first_difference(base.keys, row, end))
        for key in self.watched:
            column = page.columns.get(key, ())
            for i in range(row + 1, min(end, len(column))):
                value = column[i]
                if value is None or issubclass(type(value), str):
                    continue
                if not isinstance(self._channels.source_of(key, value), str):
                    end = i
                    break
        return end

    def count_late(self, data: Mapping[Any, Any], rows: int) -> None:
        """Count the readings of keys that came too late, to be added once these rows are written."""
        for key in data:
            if key in self._known_keys:
                continue
            name = _left_out_name(key)[:MAX_NAME]
            if name not in self.late and len(self.late) >= MAX_LATE_KEYS:
                name = OTHER_KEYS
            self.late_if_written[name] = self.late_if_written.get(name, 0) + rows

    def answer(self, payloads: Sequence[bytes], data: Mapping[Any, Any], events: int = 1) -> Accepted:
        """Return the answer for a document whose lines were written, and keep it if such a document is usual.

        Args:
            payloads: The lines.
            data: Has the document's keys.
            events: How many events the document holds.
        """
        reasons, met = self.left_out, self._known_keys
        left_out: Counter[str] = Counter()
        for key in data:
            reason = reasons.get(_left_out_name(key))
            if reason is None and key not in met:
                reason = Loss.LATE
            if reason is not None:
                left_out[reason] += events
        found = Accepted(rows=sum([line[0] == RECORD or is_row(line) for line in payloads]), left_out=dict(left_out))
        if len(payloads) == events == 1 and len(data) == self.usual_keys:
            self.usual_answer = found
        return found

    def _choose_at_first_event(self, data: Mapping[Any, Any], own_times: OwnTimes | None) -> None:
        """Decide, at the first event, which keys become channels, and which of these share their times."""
        sources: list[KeySource] = []
        left_out: dict[str, str] = {encodable(kind): Loss.NAMELESS for kind in self._description.nameless}
        for key in dict.fromkeys([*self._description.data_keys, *data]):
            source = self._channels.source_of(key, data.get(key))
            if isinstance(source, str):
                left_out[_left_out_name(key)] = source
            else:
                sources.append(source)
        keys = {source.key for source in sources}
        earlier = {key: self._earlier_time_base.get(key, self._event_stream) for key in keys}
        groups: list[list[KeySource]] = []
        for group in _sharing(sources, earlier):
            groups += [group] if own_times is None else _sharing(group, own_times)
        own = [group for group in groups if earlier[group[0].key] == self._event_stream]
        others = [group for group in groups if earlier[group[0].key] != self._event_stream]
        first = own[0] if own else []  # the event stream's own time base is always the first, if need be an empty one
        name = _free_name(self._event_stream, self._all_time_base_names(self._event_stream))
        bases = self._with_further([self._base(name, first, left_out)], [*own[1:], *others])
        # `bases` last: if a signal handler raises before that, `bases` is still empty and the next event decides again.
        watched = _watched(left_out, [*self._description.data_keys, *data])
        self.left_out, self.watched, self._known_keys = left_out, watched, {*self._description.data_keys, *data}
        self.bases, self.usual_answer = bases, None

    def _take_new_keys(self, data: Mapping[Any, Any]) -> bool:
        """Take the keys that come for the first time. Return True if any did."""
        unknown = [key for key in data if key not in self._known_keys]
        if not unknown:
            self._note_usual_keys(data)
            return False
        self.usual_keys, self.usual_answer = -1, None
        if self._changes >= MAX_CHANGES:
            self.count_late(data, 1)
            return False
        self._changes += 1
        base, *others = self.bases
        sources, left_out = list(base.sources), dict(self.left_out)
        for key in unknown:
            source = self._channels.source_of(key, data[key])
            if isinstance(source, str):
                left_out[_left_out_name(key)] = source
            else:
                sources.append(source)
        base = base.with_sources(sources, self._layout(base.layout.time_base, sources, left_out))
        watched = (*self.watched, *_watched(left_out, unknown))
        known = {*self._known_keys, *unknown}
        self.left_out, self.bases, self._known_keys, self.watched = left_out, [base, *others], known, watched
        self._note_usual_keys(data)
        return True

    def _note_usual_keys(self, data: Mapping[Any, Any]) -> None:
        """Note that an event with these keys is a usual one. All of them are known.

        None is, if channels have external data: each event says whether their numbers are filled in.
        """
        if any(self._channels.is_external(key) for base in self.bases for key in base.keys):
            self.usual_keys, self.usual_answer = -1, None
            return
        left_out: Set[Any] = frozenset()
        if self.left_out:
            left_out = data.keys() - set().union(*[base.keys for base in self.bases])
        self.usual_keys, self.usual_left_out, self.usual_answer = len(data), left_out, None

    def _take_keys_turned_numeric(self, data: Mapping[Any, Any]) -> None:
        """Add keys that were not numeric until now, and are numbers in this event, in a new layout."""
        for key in self.watched:
            value = data.get(key)
            if value is None or issubclass(type(value), str):
                continue
            source = self._channels.source_of(key, value)
            if isinstance(source, str):
                continue
            base, *others = self.bases
            watched = tuple(other for other in self.watched if other != key)
            left_out = {other: reason for other, reason in self.left_out.items() if other != _left_out_name(key)}
            sources = [*base.sources, source]
            base = base.with_sources(sources, self._layout(base.layout.time_base, sources, left_out))
            self.left_out, self.watched, self.bases = left_out, watched, [base, *others]
            # The next event notes what is usual now. If the key's data are external, no event is.
            self.usual_keys, self.usual_answer = -1, None

    def grow_arrays(self, data: Mapping[Any, Any]) -> bool:
        """Give an array a channel for each element. Return True if there are new ones."""
        if self._changes >= MAX_CHANGES:
            return False
        changed: list[TimeBase] = []
        for base in self.bases:
            sources = [self._channels.grow(source, data.get(source.key)) for source in base.sources]
            changed.append(base if sources == base.sources else self._with_sources(base, sources))
        if changed == self.bases:
            return False
        self._changes += 1
        self.bases, self.usual_answer = changed, None
        return True

    def _split_where_needed(self, own_times: OwnTimes | None, only: Set[str] | None) -> None:
        if own_times is not None:
            self._split_where_times_differ(own_times)
        if only:
            for base in list(self.bases):
                if not only.isdisjoint(base.keys):
                    self._split(base, {key: key in only for key in base.keys})

    def _split_where_times_differ(self, own_times: OwnTimes) -> None:
        """From here on, give a time base of its own to each key that no longer shares its time with the others."""
        for base in list(self.bases):
            if len(base.sources) > 1 and len(set(map(own_times.get, base.keys))) > 1:
                self._split(base, own_times)

    def _split(self, base: TimeBase, shared_by: Mapping[str, Any]) -> None:
        groups = _sharing(base.sources, shared_by)
        if len(groups) < 2:
            return
        stay, *leave = groups
        less = self._with_sources(base, stay)
        bases = self._with_further([less if one is base else one for one in self.bases], leave)
        # At once: an exception from a signal handler leaves the old ones or all new ones.
        self.bases, self.usual_answer = bases, None

    def _with_further(self, bases: list[TimeBase], groups: Iterable[list[KeySource]]) -> list[TimeBase]:
        """Return time bases with one more for each group of sources. Each has a name of its own in the run."""
        found = list(bases)
        taken = {*self._all_time_base_names(""), *(base.layout.time_base for base in bases)}
        for group in groups:
            found.append(self._further_base(group, taken))
            taken.add(found[-1].layout.time_base)
        return found

    def _further_base(self, sources: list[KeySource], taken: Set[str]) -> TimeBase:
        key = sources[0].key
        name = self._earlier_time_base.get(key, self._event_stream)
        if name == self._event_stream or name in taken:
            # An event stream may be called so, or there are two keys that differ in what no file can hold.
            name = _free_name(f"{self._event_stream}/{sources[0].channels[0].key}", taken)
        return self._base(name, sources, {})

    def _base(self, name: str, sources: list[KeySource], left_out: Mapping[str, str]) -> TimeBase:
        return TimeBase(self._layout(name, sources, left_out), sources)

    def _with_sources(self, base: TimeBase, sources: list[KeySource]) -> TimeBase:
        return base.with_sources(sources, self._layout(base.layout.time_base, sources, base.layout.left_out))

    def _layout(self, time_base: str, sources: Iterable[KeySource], left_out: Mapping[str, str]) -> Layout:
        return Layout(
            layout=self._next_layout(),
            event_stream=self._event_stream,
            time_base=time_base,
            channels=tuple(channel for source in sources for channel in source.channels),
            left_out=dict(left_out),
            own_times=self.at_own_times and self._by_evidence,
        )


def _free_name(wanted: str, taken: Set[str]) -> str:
    """Return the name that is wanted, with a number behind it if it is taken."""
    name, attempt = wanted, 1
    while name in taken:
        attempt += 1
        name = f"{wanted} ({attempt})"
    return name


def _sharing(sources: Iterable[KeySource], shared_by: Mapping[str, Any]) -> list[list[KeySource]]:
    """Return the sources in groups: those of one group have the same value in `shared_by`."""
    groups: dict[Any, list[KeySource]] = {}
    for source in sources:
        groups.setdefault(shared_by.get(source.key), []).append(source)
    return list(groups.values())


def _watched(left_out: Mapping[str, str], keys: Iterable[Any]) -> tuple[str, ...]:
    """Return the keys that are left out because of their values."""
    may_change = {Loss.TEXT, Loss.NOT_NUMERIC, Loss.ARRAY, Loss.LONG_ARRAY, Loss.EXTERNAL}
    return tuple(dict.fromkeys(key for key in keys if left_out.get(_left_out_name(key)) in may_change))


def _left_out_name(key: Any) -> str:
    return encodable(key) if isinstance(key, str) else encodable(type(key).__name__)
