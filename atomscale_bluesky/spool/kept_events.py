"""Which readings of an interrupted run its journals hold, so that a replay delivers each reading once.

A reading is its run's uid, its event's uid and its data key. A journal's rows have the uids, and their layouts the
keys. If a kill cost an event its last rows, only those are taken again.

Some sources, above all catalogues, make up new uids for every replay, or keep only the last of several events with one
number. Then an event is recognised if a journal has a row with the same event stream, exact time and values. If it has
n such rows, n such events are recognised.

When an interrupted run leaves the spool, digests of its rows stay in a file beside the history (`stored_events`), with
the lines that the run needs to go on: its header, its descriptors and its layouts.

Bounded: up to `MAX_ROWS` rows of a run, 18 bytes each on disk. In memory each has 10, and an event's first row 20 more
unless its journal's events are recognised by uid only.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .journal_events import MAX_ROWS, WHOLE_EVENT, EventDigests, digest_of, fingerprint_of, is_first_row
from .journal_format import Described, Header, Layout

# The last events that were recognised by time and values are also remembered by uid, up to this many: an event whose
# call was interrupted comes again, and its row has already been counted.
MAX_RECOGNISED = 100_000


class KeptReadings(msgspec.Struct, frozen=True):
    """What earlier journals hold of an event."""

    keys: Set[str]  # the data keys whose readings they hold
    left_out_keys: Set[str]  # data keys that are no channels, and are counted with it
    whole: bool  # all of the event, whatever its keys

    def lacks(self, data: Iterable[Any]) -> Set[str]:
        """Return the data keys of an event whose readings are not kept."""
        if self.whole:
            return frozenset()
        return {key for key in data if isinstance(key, str) and key not in self.keys and key not in self.left_out_keys}


# Given a layout, yields the times that an event's row may have under it, and its packed values.
PossibleRows = Callable[[Layout], Iterator[tuple[float, bytes]]]


class KeptSpan(msgspec.Struct):
    """The times of the first and the last row of a journal that is gone. Nothing else is known of its events.

    From the event that has the first time to the last time, events count as kept, as long as the clock runs forward. So
    a replay is recognised if it comes from the journal's beginning. The rest of a run that comes alone is new, even if
    the clock was set back before it. In doubt an event is taken again: twice is better than lost.
    """

    first: float  # not a number if it is not known
    last: float
    entered: bool = False
    left: bool = False
    latest: float = -math.inf

    def holds(self, times: Sequence[float]) -> bool:
        """Return True if the next event of the replay counts as kept, by its own time and those of its readings."""
        self.entered = self.entered or self.first in times
        if self.entered:
            at = max(times)
            self.left = self.left or not self.latest <= at <= self.last
            self.latest = at
        return self.entered and not self.left


class KeptEvents:
    """The events of a run that earlier journals hold.

    Args:
        parts: The events of these journals.
        spans: By event stream, what is left of journals of which only two times are known.
        resent: The events of a journal that are recognised only by uid, because the same process sends them again.
        uids_alone: Recognise events by uid only, because the source continues where it was and keeps uids. Journals
            recorded from a catalogue are still searched by time.
    """

    def __init__(
        self,
        parts: Iterable[EventDigests] = (),
        spans: Mapping[str, Sequence[KeptSpan]] | None = None,
        *,
        resent: EventDigests | None = None,
        uids_alone: bool = False,
    ) -> None:
        self.recognised_by_time = 0  # how many events were recognised only by time and values
        self.possibly_taken_twice = 0  # how many events were taken although a journal that is gone may have had them
        self.rows_not_remembered = 0  # how many rows are not remembered, because there are too many
        self.layouts: list[Layout] = []  # of all journals
        self.descriptors: dict[str, Described] = {}  # by uid
        self.header: Header | None = None
        # By reason and data key: readings that the journals count as left out, and that a replay brings again.
        self.left_out: Counter[tuple[str, str]] = Counter()
        self._spans = dict(spans or {})
        # Events recognised by time, by digest of their new uid: the youngest, and those before them.
        self._recognised: dict[int, KeptReadings] = {}
        self._recognised_before: dict[int, KeptReadings] = {}
        self._journals: list[_Journal] = []
        self.part = 0  # the number of the next journal
        room = MAX_ROWS
        journals = list(parts)
        if resent is not None:
            journals.append(resent)
        for part in sorted(journals, key=_part_number):
            self.part = max(self.part, _part_number(part) + 1)
            self.rows_not_remembered += part.rows_not_remembered + max(0, len(part.uids) - room)
            self._journals.append(_Journal(part, room, only_by_uid=part is resent or (uids_alone and not part.made_up)))
            self.layouts += part.layouts
            self.descriptors |= part.descriptors
            for line in () if uids_alone else part.left_out:
                self.left_out.update({(line.reason, key): readings for key, readings in line.keys.items()})
            self.header = part.header or self.header
            room -= min(room, len(part.uids))

    def shows_collected(self, event_stream: str) -> bool:
        """Return True if more than the first row of an event stream stands at its readings' own times."""
        return sum(journal.rows_at_own_times(event_stream) for journal in self._journals) > 1

    def events_of(self, event_stream: str, *, before_part: int) -> int | None:
        """Return how many events of an event stream the journals hold, or None if that is not known.

        Args:
            event_stream: The event stream's name.
            before_part: Count only journals whose header has a smaller `part`.
        """
        counts = [journal.events_of(event_stream) for journal in self._journals if journal.part < before_part]
        return None if self.rows_not_remembered or self._spans or None in counts else sum(filter(None, counts))

    def layouts_of(self, event_stream: str) -> list[Layout]:
        """Return the layouts of an event stream, in the order in which they were written."""
        return [layout for layout in self.layouts if layout.event_stream == event_stream]

    def recognise(
        self,
        event_stream: str,
        uid: Any,
        keys: Collection[Any],
        times: Sequence[float],
        possible_rows: PossibleRows,
    ) -> KeptReadings | None:
        """Return what was kept of an event before, or None if it is new.

        Counts what it recognises: call it once per event.

        Args:
            event_stream: The event stream's name.
            uid: The event's uid.
            keys: Its data keys.
            times: The event's own time and those of its readings.
            possible_rows: Gives the rows that the event may have made.
        """
        digest = digest_of(uid)
        found = self._readings_with_uid(digest)
        if found is not None:
            for journal in self._journals:
                journal.note_uid(digest)
            found = self._with_parts(found, event_stream, keys, possible_rows)
            if found.lacks(keys) and not self._has_event(digest):
                # A part alone: the event's first row may be known under another uid, by its time and values.
                first = self._remembered(digest) or self._recognise_by_time(event_stream, digest, times, possible_rows)
                found = found if first is None else _sum_of([found, first])
            return found
        remembered = self._remembered(digest)
        if remembered is not None:
            return remembered
        kept = self._recognise_by_time(event_stream, digest, times, possible_rows)
        if kept is not None:
            return self._with_parts(kept, event_stream, keys, possible_rows)
        spans = self._spans.get(event_stream, ()) if times else ()
        held = [span.holds(times) for span in spans]  # each of them has to see each event
        if any(held):
            self.recognised_by_time += 1
            return _ALL
        self.possibly_taken_twice += any(max(times) <= span.last for span in spans)
        return None

    def _remembered(self, digest: int) -> KeptReadings | None:
        """Return what was found before of an event that was recognised by its time and values."""
        return self._recognised.get(digest) or self._recognised_before.get(digest)

    def _recognise_by_time(
        self, event_stream: str, digest: int, times: Sequence[float], possible_rows: PossibleRows
    ) -> KeptReadings | None:
        """Return what a journal holds of an event with this time and these values, and count it as recognised."""
        for journal in self._journals:
            kept = journal.recognise(event_stream, possible_rows, times, lambda known: self._remember(digest, known))
            if kept is not None:
                self.recognised_by_time += 1
                return kept
        return None

    def _with_parts(
        self, kept: KeptReadings, event_stream: str, keys: Collection[Any], possible_rows: PossibleRows
    ) -> KeptReadings:
        """Add the parts of an event that a replay with made-up uids has brought."""
        for journal in self._journals:
            if journal.has_parts and kept.lacks(keys):
                kept = _sum_of([kept, *journal.parts_of(event_stream, possible_rows, self._has_event)])
        return kept

    def _has_event(self, digest: int) -> bool:
        """Return True if an event with this uid was kept, and not only a part under a uid that was made up."""
        return any(journal.has_event(digest) for journal in self._journals)

    def _readings_with_uid(self, digest: int) -> KeptReadings | None:
        """Return what all journals hold of an event: after two interruptions, more than one may hold a part of it."""
        found = [kept for journal in self._journals if (kept := journal.readings_with_uid(digest)) is not None]
        return _sum_of(found) if found else None

    def _remember(self, digest: int, known: int | None) -> KeptReadings:
        """Remember an event that was recognised: by the uid under which it is known, or None for one known by time."""
        kept = _ALL if known is None else self._readings_with_uid(known) or _ALL
        self._recognised[digest] = kept
        if len(self._recognised) > MAX_RECOGNISED:
            self._recognised, self._recognised_before = {}, self._recognised
        return kept


class _Journal:
    """The rows of one journal: up to `room` of them, sorted by uid, and those of whole events by time and values.

    Once a uid is recognised, the source is known to keep uids, and times are no longer compared: two rows may be alike.
    That holds for this journal only, because another journal may come from a replay with made-up uids.
    """

    def __init__(self, events: EventDigests, room: int, *, only_by_uid: bool) -> None:
        self.part = _part_number(events)
        self._keeps_uids = only_by_uid
        self._layouts = events.layouts
        self._keys = [frozenset(channel.key for channel in layout.channels) for layout in events.layouts]
        uids = np.array(events.uids[:room], dtype=np.uint64)
        layouts = np.array(events.layout_places[:room], dtype=np.uint16)
        order = np.argsort(uids, kind="stable")
        self._uids = array("Q", uids[order].tobytes())
        self._layout_places = array("H", layouts[order].tobytes())
        self._fingerprints, self._uids_by_fingerprint = array("Q"), array("Q")
        self._recognised_counts = array("I")
        self._times: dict[str, array[float]] = {}
        self._time_counts: dict[str, array[int]] = {}
        fingerprints = np.array(events.fingerprints[:room], dtype=np.uint64)
        self._first_row_layouts = frozenset(
            place for place, layout in enumerate(events.layouts) if layout.has_first_rows
        )
        self.has_parts = bool((fingerprints[~is_first_row(events.layouts, layouts)] != 0).any())
        if not only_by_uid or self.has_parts:
            self._sort_by_fingerprint(fingerprints, uids)
            for name, times in events.times.items():
                self._times[name] = array("d", np.sort(np.array(times[:room], dtype=np.float64)).tobytes())
                self._time_counts[name] = array("I", bytes(4 * len(self._times[name])))

    def _sort_by_fingerprint(self, fingerprints: NDArray[np.uint64], uids: NDArray[np.uint64]) -> None:
        """Keep the rows that have a fingerprint in its order, each with its uid and how often it was recognised."""
        with_one = np.flatnonzero(fingerprints)
        order = with_one[np.argsort(fingerprints[with_one], kind="stable")]
        self._fingerprints = array("Q", fingerprints[order].tobytes())
        self._uids_by_fingerprint = array("Q", uids[order].tobytes())
        self._recognised_counts = array("I", bytes(4 * len(order)))

    def events_of(self, event_stream: str) -> int | None:
        """Return how many events of an event stream have their first row here; None in files of earlier versions."""
        if self._times or WHOLE_EVENT in self._layout_places:
            return None
        places = [place for place in self._first_row_layouts if self._layouts[place].event_stream == event_stream]
        return sum(self._layout_places.count(place) for place in places)

    def rows_at_own_times(self, event_stream: str) -> int:
        """Return how many events of an event stream have rows at their readings' own times."""
        places = [
            place
            for place, layout in enumerate(self._layouts)
            if layout.own_times and layout.event_stream == event_stream and layout.has_first_rows
        ]
        return sum(self._layout_places.count(place) for place in places)

    def note_uid(self, digest: int) -> None:
        """Note that an event with this uid came: if the journal has it, its source keeps uids."""
        if not self._keeps_uids and self.readings_with_uid(digest) is not None:
            self._keeps_uids = True

    def recognise(
        self,
        event_stream: str,
        possible_rows: PossibleRows,
        times: Sequence[float],
        remember: Callable[[int | None], KeptReadings],
    ) -> KeptReadings | None:
        """Return what the journal holds of an event with this time and these values, and count it as recognised.

        `remember` gets the digest under which it is known, and is called before the row is counted. An interruption
        between the two leaves one row uncounted, which can only repeat a recognition.
        """
        if self._keeps_uids:
            return None
        place = self._place_of_time(event_stream, times)
        if place is not None:
            kept = remember(None)
            place[0][place[1]] += 1
            return kept
        for layout in self._layouts:
            if layout.event_stream != event_stream or not layout.has_first_rows:
                continue
            at = self._place_of(layout, possible_rows)
            if at is not None:
                kept = remember(self._uids_by_fingerprint[at])
                self._recognised_counts[at] += 1
                return kept
        return None

    def parts_of(
        self, event_stream: str, possible_rows: PossibleRows, has_event: Callable[[int], bool]
    ) -> Iterator[KeptReadings]:
        """Yield rows with this time and these values that are parts of events, and count them as recognised.

        `has_event` tells whether a row's uid is an event's own: then the row is a part of that event and of no other.
        """
        for layout in self._layouts:
            if layout.event_stream == event_stream and not layout.has_first_rows:
                at = self._place_of(layout, possible_rows, has_event)
                if at is not None:
                    self._recognised_counts[at] += 1
                    yield KeptReadings({channel.key for channel in layout.channels}, frozenset(), whole=False)

    def _place_of(
        self, layout: Layout, possible_rows: PossibleRows, is_excluded: Callable[[int], bool] = lambda _: False
    ) -> int | None:
        """Return the place of a row that an event may have made, and that was not recognised before.

        Rows of other event streams are passed over, and those whose uid `is_excluded` returns True for.
        """
        for time, values in possible_rows(layout):
            sought = fingerprint_of(layout, time, values)
            at = bisect_left(self._fingerprints, sought)
            while at < len(self._fingerprints) and self._fingerprints[at] == sought:
                uid = self._uids_by_fingerprint[at]
                if not self._recognised_counts[at] and self._is_of(uid, layout.event_stream) and not is_excluded(uid):
                    return at
                at += 1
        return None

    def _is_of(self, digest: int, event_stream: str) -> bool:
        """Return True if the event with this uid belongs to the event stream.

        Fingerprints do not tell: a monitor's row and that of a plan that reads the same signal may be alike.
        """
        at = bisect_left(self._uids, digest)
        return self._layouts[self._layout_places[at]].event_stream == event_stream

    def has_event(self, digest: int) -> bool:
        """Return True if the journal has the first row of an event with this uid."""
        at = bisect_left(self._uids, digest)
        while at < len(self._uids) and self._uids[at] == digest:
            if self._layout_places[at] in self._first_row_layouts:
                return True
            at += 1
        return False

    def readings_with_uid(self, digest: int) -> KeptReadings | None:
        """Return what the journal holds of an event with this uid."""
        at = bisect_left(self._uids, digest)
        keys: set[str] = set()
        left_out: set[str] = set()
        found = False
        while at < len(self._uids) and self._uids[at] == digest:
            layout = self._layout_places[at]
            if layout == WHOLE_EVENT:
                return _ALL
            keys |= self._keys[layout]
            left_out |= self._layouts[layout].left_out.keys()
            found = True
            at += 1
        return KeptReadings(keys, left_out - keys, whole=False) if found else None

    def _place_of_time(self, event_stream: str, times: Sequence[float]) -> tuple[array[int], int] | None:
        """Return where to count an event with one of these times, of a journal of which only the times are known."""
        if event_stream not in self._times:
            return None
        kept, taken = self._times[event_stream], self._time_counts[event_stream]
        for time in times:
            first = bisect_left(kept, time)
            if first < len(kept) and kept[first] == time and taken[first] < bisect_right(kept, time) - first:
                return taken, first
        return None


def _part_number(events: EventDigests) -> int:
    return 0 if events.header is None else events.header.part


_ALL = KeptReadings(frozenset(), frozenset(), whole=True)


def _sum_of(found: list[KeptReadings]) -> KeptReadings:
    if len(found) == 1:
        return found[0]
    keys = frozenset[str]().union(*(kept.keys for kept in found))
    left_out = frozenset[str]().union(*(kept.left_out_keys for kept in found))
    return KeptReadings(keys, left_out - keys, whole=any(kept.whole for kept in found))
