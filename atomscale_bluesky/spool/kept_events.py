"""Which readings of an interrupted run its journals hold, so that a replay delivers each reading once.

A reading is its run's uid, its event's uid and its data key. A journal's rows have the uids, and their layouts the
keys. If a kill cost an event its last rows, only those are taken again.

Some sources, above all catalogues, make up new uids for every replay, or keep only the last of several events with one
number. Then an event is recognised if a journal has a row with the same event stream, exact time and values. If it has
n such rows, n such events are recognised.

When an interrupted run leaves the spool, digests of its rows stay in a file beside the history (`stored_events`), with
the lines that the run needs to go on: its header, its descriptors and its layouts.

Bounded: up to `MAX_ROWS` rows of a run, 22 bytes each in memory and 18 on disk.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from typing import Any

import msgspec
import numpy as np

from .journal_events import MAX_ROWS, WHOLE, Events, digest_of, print_of
from .journal_format import Described, Header, Layout

# The last events that were recognised by time and values are also remembered by uid, up to this many: an event whose
# call was interrupted comes again, and its row has already been counted.
MAX_TOLD = 100_000


class Kept(msgspec.Struct, frozen=True):
    """What earlier journals hold of an event."""

    keys: Set[str]  # the data keys whose readings they hold
    decided: Set[str]  # data keys that are no channels, and are counted with it
    whole: bool  # all of the event, whatever its keys

    def lacks(self, data: Iterable[Any]) -> Set[str]:
        """Return the data keys of an event whose readings are not kept."""
        if self.whole:
            return frozenset()
        return {key for key in data if isinstance(key, str) and key not in self.keys and key not in self.decided}


# Given a layout, yields the times that an event's row may have under it, and its packed values.
Alternatives = Callable[[Layout], Iterator[tuple[float, bytes]]]


class KeptEvents:
    """The events of a run that earlier journals hold.

    Args:
        parts: The events of these journals.
        until: By event stream, the time of the last row of a journal that is gone, if nothing else is known of its
            events.
        by_uid: The events of a journal that are recognised only by uid, because the same process sends them again.
        uids_alone: Recognise no event by its time, unless it came from a catalogue: the source goes on where it was,
            so it keeps uids.
    """

    def __init__(
        self,
        parts: Iterable[Events] = (),
        until: dict[str, float] | None = None,
        *,
        by_uid: Events | None = None,
        uids_alone: bool = False,
    ) -> None:
        self.by_time = 0  # how many events were recognised only by time and values
        self.in_doubt = 0  # how many events were taken although a journal that is gone may have had them
        self.beyond = 0  # how many rows are not remembered, because there are too many
        self.layouts: list[Layout] = []  # of all journals
        self.descriptors: dict[str, Described] = {}  # by uid
        self.header: Header | None = None
        # By reason and data key: readings that the journals count as left out, and that a replay brings again.
        self.left_out: Counter[tuple[str, str]] = Counter()
        self._until = dict(until or {})
        self._latest: dict[str, float] = {}
        self._set_back: set[str] = set()
        self._told: dict[int, Kept] = {}  # events recognised by time, by digest of their new uid: the youngest …
        self._told_before: dict[int, Kept] = {}  # … and those before them
        self._journals: list[_Journal] = []
        self.part = 0  # the number of the next journal
        room = MAX_ROWS
        journals = list(parts)
        if by_uid is not None:
            journals.append(by_uid)
        for part in sorted(journals, key=_part_of):
            self.part = max(self.part, _part_of(part) + 1)
            self.beyond += part.beyond + max(0, len(part.uids) - room)
            self._journals.append(_Journal(part, room, by_uid=part is by_uid or (uids_alone and not part.made_up)))
            self.layouts += part.known
            self.descriptors |= part.descriptors
            for line in () if uids_alone else part.left_out:
                self.left_out.update({(line.reason, key): readings for key, readings in line.keys.items()})
            self.header = part.header or self.header
            room -= min(room, len(part.uids))

    def shows_collected(self, event_stream: str) -> bool:
        """Return True if more than the first row of an event stream stands at its readings' own times."""
        return sum(journal.rows_at_own_times(event_stream) for journal in self._journals) > 1

    def events_of(self, event_stream: str) -> int | None:
        """Return how many events of an event stream the journals hold, or None if that is not known."""
        counts = [journal.events_of(event_stream) for journal in self._journals]
        return None if self.beyond or self._until or None in counts else sum(filter(None, counts))

    def layouts_of(self, event_stream: str) -> list[Layout]:
        """Return the layouts of an event stream, in the order in which they were written."""
        return [layout for layout in self.layouts if layout.event_stream == event_stream]

    def of(
        self,
        event_stream: str,
        uid: Any,
        keys: Collection[Any],
        times: Sequence[float],
        alternatives: Alternatives,
    ) -> Kept | None:
        """Return what was kept of an event before, or None if it is new.

        Args:
            event_stream: The event stream's name.
            uid: The event's uid.
            keys: Its data keys.
            times: The event's own time and those of its readings. A journal of which only the times are known has one.
            alternatives: Gives the rows that the event may have made.
        """
        digest = digest_of(uid)
        found = self._with_uid(digest)
        if found is not None:
            for journal in self._journals:
                journal.note_uid(digest)
            found = self._completed(found, event_stream, keys, alternatives)
            if found.lacks(keys) and not self._has_event(digest):
                # A part alone: the event's first row may be known under another uid, by its time and values.
                first = self._told_of(digest) or self._like(event_stream, digest, times, alternatives)
                found = found if first is None else _together([found, first])
            return found
        told = self._told_of(digest)
        if told is not None:
            return told
        kept = self._like(event_stream, digest, times, alternatives)
        if kept is not None:
            return self._completed(kept, event_stream, keys, alternatives)
        if self._was_before(event_stream, times):
            self.by_time += 1
            return _ALL
        return None

    def _told_of(self, digest: int) -> Kept | None:
        """Return what was found before of an event that was recognised by its time and values."""
        return self._told.get(digest) or self._told_before.get(digest)

    def _like(self, event_stream: str, digest: int, times: Sequence[float], alternatives: Alternatives) -> Kept | None:
        """Return what a journal holds of an event with this time and these values, and count it as recognised."""
        for journal in self._journals:
            kept = journal.like(event_stream, alternatives, times, lambda known: self._tell(digest, known))
            if kept is not None:
                self.by_time += 1
                return kept
        return None

    def _completed(self, kept: Kept, event_stream: str, keys: Collection[Any], alternatives: Alternatives) -> Kept:
        """Add the parts of an event that a replay with made-up uids has brought."""
        for journal in self._journals:
            if journal.has_parts and kept.lacks(keys):
                kept = _together([kept, *journal.parts_of(event_stream, alternatives, self._has_event)])
        return kept

    def _has_event(self, digest: int) -> bool:
        """Return True if an event with this uid was kept, and not only a part under a uid that was made up."""
        return any(journal.has_event(digest) for journal in self._journals)

    def _with_uid(self, digest: int) -> Kept | None:
        """Return what all journals hold of an event: after two interruptions, more than one may hold a part of it."""
        found = [kept for journal in self._journals if (kept := journal.rows_of(digest)) is not None]
        return _together(found) if found else None

    def _tell(self, digest: int, known: int | None) -> Kept:
        """Remember an event that was recognised: by the uid under which it is known, or None for one known by time."""
        kept = _ALL if known is None else self._with_uid(known) or _ALL
        self._told[digest] = kept
        if len(self._told) > MAX_TOLD:
            self._told, self._told_before = {}, self._told
        return kept

    def _was_before(self, event_stream: str, times: Sequence[float]) -> bool:
        """Return True if the event is not later than the last row of a journal of which only that time is known.

        The comparison means nothing once the clock was set back. From then on every event is taken.
        """
        until = self._until.get(event_stream)
        if until is None or not times:
            return False
        at = min(times)
        if at < self._latest.get(event_stream, at):
            self._set_back.add(event_stream)
        self._latest[event_stream] = at
        if at > until:
            return False
        self.in_doubt += event_stream in self._set_back
        return event_stream not in self._set_back


class _Journal:
    """The rows of one journal: up to `room` of them, sorted by uid, and those of whole events by time and values.

    Once a uid is recognised, the source is known to keep uids, and times are no longer compared: two rows may be alike.
    That holds for this journal only, because another journal may come from a replay with made-up uids.
    """

    def __init__(self, events: Events, room: int, *, by_uid: bool) -> None:
        self._keeps_uids = by_uid
        self._known = events.known
        self._keys = [frozenset(channel.key for channel in layout.channels) for layout in events.known]
        uids = np.array(events.uids[:room], dtype=np.uint64)
        layouts = np.array(events.layouts[:room], dtype=np.uint16)
        order = np.argsort(uids, kind="stable")
        self._uids = array("Q", uids[order].tobytes())
        self._layouts = array("H", layouts[order].tobytes())
        self._prints, self._rows, self._taken = array("Q"), array("Q"), array("I")
        self._times: dict[str, array[float]] = {}
        self._times_taken: dict[str, array[int]] = {}
        first = [place for place, layout in enumerate(events.known) if layout.time_base == layout.event_stream]
        prints = np.array(events.prints[:room], dtype=np.uint64)
        self._first = frozenset(first)
        self.has_parts = bool((prints[~np.isin(layouts, first)] != 0).any())
        if not by_uid or self.has_parts:
            of_events = np.flatnonzero(prints)
            order = of_events[np.argsort(prints[of_events], kind="stable")]
            self._prints, self._rows = array("Q", prints[order].tobytes()), array("Q", uids[order].tobytes())
            self._taken = array("I", bytes(4 * len(order)))
            for name, times in events.times.items():
                self._times[name] = array("d", np.sort(np.array(times[:room], dtype=np.float64)).tobytes())
                self._times_taken[name] = array("I", bytes(4 * len(self._times[name])))

    def events_of(self, event_stream: str) -> int | None:
        """Return how many events of an event stream have their first row here; None in files of earlier versions."""
        if self._times or WHOLE in self._layouts:
            return None
        places = [place for place in self._first if self._known[place].event_stream == event_stream]
        return sum(self._layouts.count(place) for place in places)

    def rows_at_own_times(self, event_stream: str) -> int:
        """Return how many events of an event stream have rows at their readings' own times."""
        places = [
            place
            for place, layout in enumerate(self._known)
            if layout.own_times and layout.event_stream == layout.time_base == event_stream
        ]
        return sum(self._layouts.count(place) for place in places)

    def note_uid(self, digest: int) -> None:
        """Note that an event with this uid came: if the journal has it, its source keeps uids."""
        if not self._keeps_uids and self.rows_of(digest) is not None:
            self._keeps_uids = True

    def like(
        self,
        event_stream: str,
        alternatives: Alternatives,
        times: Sequence[float],
        tell: Callable[[int | None], Kept],
    ) -> Kept | None:
        """Return what the journal holds of an event with this time and these values, and count it as recognised.

        `tell` gets the digest under which it is known, and is called before it is counted: after an interruption in
        between, one row too few is counted.
        """
        if self._keeps_uids:
            return None
        place = self._time_of(event_stream, times)
        if place is not None:
            kept = tell(None)
            place[0][place[1]] += 1
            return kept
        for layout in self._known:
            if layout.event_stream != event_stream or layout.time_base != event_stream:
                continue
            at = self._place_of(layout, alternatives)
            if at is not None:
                kept = tell(self._rows[at])
                self._taken[at] += 1
                return kept
        return None

    def parts_of(
        self, event_stream: str, alternatives: Alternatives, has_event: Callable[[int], bool]
    ) -> Iterator[Kept]:
        """Yield rows with this time and these values that are parts of events, and count them as recognised.

        `has_event` tells whether a row's uid is an event's own: then the row is a part of that event and of no other.
        """
        for layout in self._known:
            if layout.event_stream == event_stream and layout.time_base != event_stream:
                at = self._place_of(layout, alternatives, has_event)
                if at is not None:
                    self._taken[at] += 1
                    yield Kept({channel.key for channel in layout.channels}, frozenset(), whole=False)

    def _place_of(
        self, layout: Layout, alternatives: Alternatives, but: Callable[[int], bool] = lambda _: False
    ) -> int | None:
        """Return the place of a row that an event may have made, and that was not recognised before.

        Rows for whose uid `but` returns True are passed over.
        """
        for time, values in alternatives(layout):
            sought = print_of(layout, time, values)
            at = bisect_left(self._prints, sought)
            while at < len(self._prints) and self._prints[at] == sought:
                if not self._taken[at] and not but(self._rows[at]):
                    return at
                at += 1
        return None

    def has_event(self, digest: int) -> bool:
        """Return True if the journal has the first row of an event with this uid."""
        at = bisect_left(self._uids, digest)
        while at < len(self._uids) and self._uids[at] == digest:
            if self._layouts[at] in self._first:
                return True
            at += 1
        return False

    def rows_of(self, digest: int) -> Kept | None:
        """Return what the journal holds of an event with this uid."""
        at = bisect_left(self._uids, digest)
        keys: set[str] = set()
        decided: set[str] = set()
        found = False
        while at < len(self._uids) and self._uids[at] == digest:
            layout = self._layouts[at]
            if layout == WHOLE:
                return _ALL
            keys |= self._keys[layout]
            decided |= self._known[layout].left_out.keys()
            found = True
            at += 1
        return Kept(keys, decided - keys, whole=False) if found else None

    def _time_of(self, event_stream: str, times: Sequence[float]) -> tuple[array[int], int] | None:
        """Return where to count an event with one of these times, of a journal of which only the times are known."""
        if event_stream not in self._times:
            return None
        kept, taken = self._times[event_stream], self._times_taken[event_stream]
        for time in times:
            first = bisect_left(kept, time)
            if first < len(kept) and kept[first] == time and taken[first] < bisect_right(kept, time) - first:
                return taken, first
        return None


def _part_of(events: Events) -> int:
    return 0 if events.header is None else events.header.part


_ALL = Kept(frozenset(), frozenset(), whole=True)


def _together(found: list[Kept]) -> Kept:
    if len(found) == 1:
        return found[0]
    keys = frozenset[str]().union(*(kept.keys for kept in found))
    decided = frozenset[str]().union(*(kept.decided for kept in found))
    return Kept(keys, decided - keys, whole=any(kept.whole for kept in found))
