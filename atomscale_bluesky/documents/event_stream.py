"""Turns events into encoded rows. Pure: no file, socket, clock or thread.

An `EventStream` reads the documents of one event stream of one run. Which of its keys are channels is decided by
`layout_chooser`. A value that is not a finite number is a gap with a reason.

Keys that share their times form a time base, and rows are numbered within it. Which time a row has is decided by
`row_times`. Where readings have times of their own, an event stream may have several time bases (decision 0081).
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import orjson

from ..errors import ChannelError
from ..model.text import encodable
from ..spool.journal_format import Layout
from ..spool.row_record import RECORD
from .channels import Names
from .conversion import DATES
from .description import Description
from .descriptor import is_flag, mapping_of, reading_of
from .event_page import EventPage, as_list, stamps_of
from .layout_chooser import LayoutChooser
from .row_times import SAME_COLLECTION_S, OwnTimes, RowTimes, Stretch
from .selection import Selection

# How many points of a page are in memory a second time while they are packed.
BLOCK_POINTS = 100_000
_DATES = frozenset(DATES)


class EventStream:
    """Turns the documents of one event stream of one run into lines for its journal.

    `lines_of_event` and `lines_of_page` number no row until `note_written` says that their lines were written. So a
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
        all_time_base_names: As `LayoutChooser` has it.
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
        all_time_base_names: Callable[[str], Set[str]] = lambda _: frozenset(),
    ) -> None:
        self.name = encodable(description.event_stream)
        self.description = description
        self._external = _external_keys(description)
        self.has_rows = False  # True once a row of it was written
        self.replaced_times = 0  # readings whose own time was impossible, so they got the event's time
        earlier, rule = list(earlier), selection.time_rule_of(self.name)
        self.chooser = LayoutChooser(
            self.name,
            description,
            selection,
            next_layout=next_layout,
            names=names,
            earlier=earlier,
            rule=rule,
            all_time_base_names=all_time_base_names,
        )
        resumed = earlier[-1].own_times if earlier else None
        self.times = RowTimes(rule, started, resumed_own_times=resumed, collected=collected)
        self._events_before = 0  # of earlier journals that this object wrote

    @property
    def left_out(self) -> Mapping[str, str]:
        """Data keys that do not become channels, with the reason of each."""
        return self.chooser.left_out

    @property
    def late(self) -> Counter[str]:
        """Readings of keys that came after too many changes, by key."""
        return self.chooser.late

    @property
    def events(self) -> int:
        """How many events have a row, in all journals that it was written to."""
        bases = self.chooser.bases
        return self._events_before + (bases[0].rows if bases else 0)

    @property
    def has_external_data(self) -> bool:
        """Return True if some of its values are in files, which documents of other kinds name."""
        return bool(self._external)

    @property
    def rounded(self) -> list[str]:
        """Channels in which an integer ever lost digits."""
        return sorted(name for base in self.chooser.bases for name in base.rounded)

    @property
    def rows_by_time_base(self) -> dict[str, int]:
        """How many rows each time base has."""
        return {base.layout.time_base: base.rows for base in self.chooser.bases}

    def note_times(self, doc: Mapping[str, Any]) -> None:
        """Note the times of an event that is kept already. They decide how the next event's times are chosen."""
        self.times.next_row(self._finite_time(doc.get("time")), mapping_of(doc.get("timestamps")))

    def describe(self, description: Description) -> None:
        """Note that the documents that follow name another descriptor. Its units and choices apply to them."""
        self.chooser.describe(description)
        self._external = _external_keys(description)
        self.description = description  # last: after an exception from a signal handler all of it is done again

    def readings_of(self, doc: Mapping[str, Any]) -> Mapping[Any, Any]:
        """Return the data of an event. An external number that is not filled in is replaced by text."""
        data = mapping_of(doc.get("data"))
        if not self._external:
            return data
        filled = mapping_of(doc.get("filled"))
        readings = {key: reading_of(data[key], filled.get(key, True)) for key in self._external if key in data}
        return {**data, **readings}

    def lines_of_event(self, doc: Mapping[str, Any]) -> list[bytes]:
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
            time = self._finite_time(time)
        times = self.times
        chooser = self.chooser
        if (
            not times.at_event_times
            or not time - times.last_time > SAME_COLLECTION_S
            or len(data) != chooser.usual_keys
            # A channel that is missing is a gap, but a key that is left out may have made place for another one.
            or (chooser.left_out and (not chooser.has_usual_keys(data) or chooser.has_turned_numeric(data)))
        ):
            return self._lines_of_unusual(doc, time, None)
        out: list[bytes] = []
        gaps = False
        for base in chooser.bases:
            if not base.layout_written:
                base.add_layout_lines(out)
            row = base.row_line(data, base.rows, time, uid)
            if row[0] != RECORD:
                gaps = True
            out.append(row)
            base.rows_if_written = base.rows + 1
        times.last_time = time  # only now: an event that cannot be used tells nothing about the next one's times
        if gaps:
            data = self.readings_of(doc)  # a key in the place of a missing one may be external
            if chooser.add_channels_for(data, None, None):
                return self._lines(data, uid, time, None, None)
        return out

    def lines_of_keys(self, doc: Mapping[str, Any], keys: Set[str]) -> list[bytes]:
        """Return the lines for an event's readings of these data keys only. A time base without any has no row."""
        return self._lines_of_unusual(doc, self._finite_time(doc.get("time")), keys)

    def _lines_of_unusual(self, doc: Mapping[str, Any], time: float, only: Set[str] | None) -> list[bytes]:
        """Return the lines of an event of which anything may be new: its keys, or which of its times count."""
        data = doc["data"]
        times = self.times
        chooser = self.chooser
        if type(data) is not dict and not isinstance(data, Mapping):
            raise ChannelError(f"the data of an event of event stream {self.name!r} are not a mapping; it is left out")
        uid = doc["uid"]
        self._check_uids((uid,))
        data = self.readings_of(doc)
        own_times = times.next_row(time, mapping_of(doc.get("timestamps")))
        if (
            chooser.watched
            or not chooser.has_usual_keys(data)
            or times.uneven
            or (own_times is not None and chooser.lacks_a_time(own_times))
            or (own_times is None) == chooser.at_own_times
            or only
        ):
            chooser.late_if_written = {}
            chooser.prepare(data, own_times, only)
        return self._lines(data, uid, time, own_times, only)

    def _lines(
        self, data: Mapping[Any, Any], uid: Any, time: float, own_times: OwnTimes | None, only: Set[str] | None
    ) -> list[bytes]:
        """Return the lines for an event whose rows have times of their own, or gaps, or of which a part is wanted."""
        chooser = self.chooser
        while True:
            out: list[bytes] = []
            gaps, replaced = False, 0
            for base in chooser.bases:
                if only and only.isdisjoint(base.keys):
                    base.rows_if_written = base.rows
                    continue
                at = time
                if own_times is not None and base.keys:
                    stamp = own_times.get(base.keys[0])
                    if stamp is None:
                        replaced += sum(map(data.__contains__, base.keys))
                    else:
                        at = stamp
                if not base.layout_written:
                    base.add_layout_lines(out)
                row = base.row_line(data, base.rows, at, uid)
                if row[0] != RECORD:
                    gaps = True
                out.append(row)
                base.rows_if_written = base.rows + 1
            if not gaps or not chooser.add_channels_for(data, own_times, only):
                self.replaced_times += replaced
                return out

    def lines_of_page(self, doc: Mapping[str, Any]) -> list[bytes]:
        """Return the lines for all rows of an event page: the same as for its events one by one, ordered by time base.

        Raises:
            ChannelError: Its data are no columns of one length, one of its times is not finite, or a uid is no text.
        """
        uids = as_list(doc["uid"])
        times = self._finite_times(as_list(doc["time"]))
        if not isinstance(doc.get("data"), Mapping):
            raise ChannelError(f"the data of a page of event stream {self.name!r} are not a mapping; it is left out")
        columns = {key: as_list(column) for key, column in doc["data"].items()}
        for what, column in {"the times": times, **{f"data key {key!r}": columns[key] for key in columns}}.items():
            if len(column) != len(uids):
                raise ChannelError(
                    f"{what} of event stream {self.name!r} has {len(column)} values in a page of "
                    f"{len(uids)} events; the page is left out"
                )
        self._check_uids(uids)
        chooser = self.chooser
        for base in chooser.bases:
            base.rows_if_written = base.rows
        chooser.late_if_written = {}
        if not uids:
            return []
        chooser.usual_keys = -1  # its keys may be others, even if they are as many as before
        stamps = {key: stamps_of(column, len(uids)) for key, column in mapping_of(doc.get("timestamps")).items()}
        filled = mapping_of(doc.get("filled"))
        columns |= {key: _column_of(columns[key], filled.get(key, True)) for key in self._external if key in columns}
        page = EventPage(uids, times, columns)
        for stretch in self.times.stretches(
            times, {key: column for key, column in stamps.items() if column is not None}
        ):
            self._add_stretch(page, stretch)
        return page.lines()

    def _add_stretch(self, page: EventPage, stretch: Stretch) -> None:
        row, chooser = stretch.begin, self.chooser
        while row < stretch.end:
            data = {key: column[row] for key, column in page.columns.items()}
            own_times = stretch.own_times_of(row)
            chooser.prepare(data, own_times, None)
            points = sum(len(base.layout.channels) for base in chooser.bases)
            end = min(stretch.end, row + max(1, BLOCK_POINTS // max(1, points)))
            end = chooser.alike_until(page, stretch, row, end)
            rows = self._rows_of_page(page, stretch, row, end)
            if any(records is None for _, _, records in rows):
                outgrown = chooser.first_outgrown(page, row, end)
                if outgrown == row:
                    chooser.grow_arrays(data)
                    continue
                if outgrown < end:
                    end = outgrown
                    rows = self._rows_of_page(page, stretch, row, end)
            if end - row > 1:  # the first of these rows is counted
                chooser.count_late(page.columns, end - row - 1)
            for base, (at, replaced, records) in zip(chooser.bases, rows, strict=True):
                self.replaced_times += replaced
                page.add_rows(base, at, row, records)
            row = end

    def _rows_of_page(
        self, page: EventPage, stretch: Stretch, begin: int, end: int
    ) -> list[tuple[Sequence[float], int, list[bytes] | None]]:
        """Return for each time base the times of these rows, how many readings have their event's, and the records.

        The records are None if a row has to be made on its own.
        """
        found: list[tuple[Sequence[float], int, list[bytes] | None]] = []
        uids = page.uids[begin:end]
        for base in self.chooser.bases:
            at, replaced = page.times[begin:end], 0
            if stretch.own_times is not None and base.keys:
                at, rows = stretch.times_of(base.keys[0], begin, end, page.times)
                replaced = rows * sum(map(page.columns.__contains__, base.keys))
            found.append((at, replaced, base.page_records(page.columns, begin, end, at, uids)))
        return found

    def note_written(self, points_per_chunk: int = 1) -> bool:
        """Note that the last lines returned were written, and number the next rows after them.

        Returns:
            True if a chunk of `points_per_chunk` rows became full.
        """
        self.has_rows = True
        chooser = self.chooser
        if chooser.late_if_written:
            chooser.late.update(chooser.late_if_written)
            chooser.late_if_written = {}
        full = False
        for base in chooser.bases:
            before = base.rows
            rows = base.rows_if_written
            if rows > before:  # the layout of a time base without a row is not written either
                base.rows = rows
                base.layout_written = True
                if before // points_per_chunk != rows // points_per_chunk:
                    full = True
        return full

    def restart_numbering(self) -> None:
        """Number the next rows from 0, and write their layouts again: they go into another journal."""
        self._events_before = self.events
        for base in self.chooser.bases:
            base.rows = base.rows_if_written = 0
            base.layout_written = False

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

    def _finite_times(self, times: Sequence[Any]) -> list[float]:
        """Return the events' times as floats."""
        try:
            floats = array("d", times) if _DATES.isdisjoint(map(type, times)) else None
        except (TypeError, OverflowError):  # texts, say
            floats = None
        if floats is not None and all(map(math.isfinite, floats)):
            return floats.tolist()
        return list(map(self._finite_time, times))

    def _finite_time(self, time: Any) -> float:
        """Return an event's time as a float. Without a finite time its readings could not be placed."""
        try:
            at = math.nan if isinstance(time, DATES) else float(time)
        except (TypeError, ValueError, OverflowError):
            at = math.nan
        if not math.isfinite(at):
            raise ChannelError(f"an event of event stream {self.name!r} has no finite time; it is left out")
        return at


def _external_keys(description: Description) -> tuple[str, ...]:
    return tuple(key for key, described in description.data_keys.items() if described.external)


def _column_of(column: Sequence[Any], filled: Any) -> list[Any]:
    """Return a page's column of external data, without the numbers that are not filled in.

    Args:
        column: The values.
        filled: What the page's `filled` has for them: a flag for each, or one for all.
    """
    flags = None if is_flag(filled) else stamps_of(filled, len(column))
    if flags is None:
        flags = [is_flag(filled) and filled] * len(column)  # what is neither a flag nor a column of them is no True
    return list(map(reading_of, column, flags))
