"""Decides, for each row of an event stream, whether its readings get their own times or their event's. Pure.

The time of a reading itself is called its stamp. A plan reads its devices and composes the event at once. So if a stamp
has changed, it is younger than the previous event. A flyer's rows are collected later, all at once. So their events
have nearly the same time, while the stamps change from row to row and are older than the previous event. This
difference shows where a row came from. The kind of document, and how many rows it has, do not matter (decision 0081).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .conversion import DATES

# The times of events that were composed one after the other, in one collection, differ by less than this.
SAME_COLLECTION_S = 0.0005
# A plan's event is composed within this time after the newest of its readings was taken, if that was taken for it.
FRESH_STAMP_S = 0.25
# On a busy host it may take this long. Only readings with different times get it: a flyer's row mostly has one time.
FRESH_STAMPS_BUSY_S = 1.0
# No clock can have given a stamp that is further before the run than this …
MAX_BEFORE_RUN_S = 86400.0
# … or further ahead of its event than this.
MAX_AHEAD_OF_EVENT_S = 3600.0
# A monitor's reading that is older than this, and than the run, is the value that its signal had before.
OLD_MONITOR_VALUE_S = 1.0


class TimeRule(Enum):
    """How the times of an event stream's rows are chosen."""

    EVENT = "event"  # always the event's, by the setting `timestamps`
    READING = "reading"  # always the readings', by the same setting
    MONITOR = "monitor"  # the readings', by the setting `monitors`
    EVIDENCE = "evidence"  # as the times tell


# By data key: the reading's own time; None for the event's time.
OwnTimes = Mapping[str, float | None]


class Stretch(NamedTuple):
    """Consecutive rows of a page whose times are chosen in the same way."""

    begin: int
    end: int
    # These rows' own times, by data key, with NaN for None; None if all rows are at their event's.
    own_times: Mapping[str, NDArray[np.float64]] | None

    def own_times_of(self, row: int) -> OwnTimes | None:
        """Return one row's times as `RowTimes.next_row` does."""
        if self.own_times is None:
            return None
        return {key: _none_if_nan(column[row - self.begin]) for key, column in self.own_times.items()}

    def times_of(self, key: str, begin: int, end: int, events: Sequence[float]) -> tuple[list[float], int]:
        """Return the times of rows of a key, and how many of them are their event's because the reading has none."""
        column = None if self.own_times is None else self.own_times.get(key)
        if column is None:
            return list(events[begin:end]), end - begin
        found: list[float] = column[begin - self.begin : end - self.begin].tolist()
        none = int(np.isnan(column[begin - self.begin : end - self.begin]).sum())
        if none:
            found = [event if math.isnan(at) else at for at, event in zip(found, events[begin:end], strict=True)]
        return found, none

    def first_difference(self, keys: Sequence[str], row: int, end: int) -> int:
        """Return the first row after `row` and before `end` in which the keys have different times; `end` if none."""
        if self.own_times is None or len(keys) < 2:
            return end
        part = slice(row + 1 - self.begin, end - self.begin)
        none = np.full(max(0, end - row - 1), math.nan)
        first, *others = [self.own_times[key][part] if key in self.own_times else none for key in keys]
        where = np.zeros(len(none), dtype=bool)
        for other in others:
            if other is not first:
                where |= (first != other) & ~(np.isnan(first) & np.isnan(other))
        return row + 1 + _first_true(where)


class RowTimes:
    """The rule for one event stream, and what it has to remember of the row before.

    Args:
        rule: How the times are chosen.
        started: The run's start, Unix seconds.
        resumed_own_times: True if the last row of the earlier journals has its readings' own times, False if it has its
            event's; None if there is no such row.
        collected: True if that journal shows that the rows were collected.
    """

    def __init__(
        self,
        rule: TimeRule,
        started: float,
        *,
        resumed_own_times: bool | None = None,
        collected: bool = False,
    ) -> None:
        self.rule = rule
        # As the last row was decided.
        self.uses_own_times = bool(resumed_own_times) or rule in {TimeRule.READING, TimeRule.MONITOR}
        # Rows were collected: that was seen, and not only guessed from the first row.
        self.surely_collected = collected and self.uses_own_times
        # The last row's event time. While `at_event_times` is True, a caller need not ask about a row that is more than
        # `SAME_COLLECTION_S` later: it stands at its event's time.
        self.last_time = -math.inf if rule is TimeRule.EVENT else math.nan
        self.at_event_times = rule is TimeRule.EVENT or (rule is TimeRule.EVIDENCE and resumed_own_times is False)
        self.first_relative_stamp: float | None = None  # the first stamp that counts from the run's start
        self.used_relative = False  # some readings stand where such stamps put them
        self.uneven = False  # the readings of the last row may have different times
        self.before_the_run = 0  # readings of a monitor that were taken long before the run
        self.started = started
        self._stamps_before: OwnTimes = {}  # the stamps of the last row whose stamps were used …
        self._stamps_before_at = math.nan  # … and its event's time
        self._is_resumed = resumed_own_times is not None
        self._own_by_rule = rule in {TimeRule.READING, TimeRule.MONITOR}

    def next_row(self, time: float, stamps: Mapping[str, Any]) -> OwnTimes | None:
        """Return the times of the next row's readings, by data key; None if all have its event's time."""
        if self._own_by_rule:
            try:
                values = set(stamps.values())
            except TypeError:  # a stamp that is no number
                values = ()
            if len(values) == 1:
                (stamp,) = values
                # An ordinary monitor's stamp.
                if type(stamp) is float and self.started <= stamp <= time + MAX_AHEAD_OF_EVENT_S:
                    self.uneven = False
                    return dict.fromkeys(stamps, stamp)
        if self.rule is TimeRule.EVENT:
            return None
        if self.at_event_times and time - self.last_time > SAME_COLLECTION_S:
            self.last_time = time
            return None
        own_times = self._times_from_stamps(time, stamps)
        if self.rule is TimeRule.EVIDENCE:
            newest = self._judge_evidence(time, own_times)
            self.at_event_times = not self.uses_own_times
            if not self.uses_own_times:
                self.uneven = False
                return None
            if not self.surely_collected and newest is not None:
                own_times, self.uneven = dict.fromkeys(own_times, newest), False
        if self.first_relative_stamp is not None:
            self.used_relative = True
        return own_times

    def _times_from_stamps(self, time: float, stamps: Mapping[str, Any]) -> OwnTimes:
        """Return the readings' own times, each None if no clock could have shown it during this run."""
        try:
            self.uneven = len(set(stamps.values())) > 1
        except TypeError:  # a stamp that is no number
            self.uneven = True
        if self.uneven:
            return {key: self._time_from_stamp(stamp, time) for key, stamp in stamps.items()}
        if not stamps:
            return {}
        before = self.before_the_run
        own_time = self._time_from_stamp(next(iter(stamps.values())), time)
        if self.before_the_run > before:  # that is not one reading, but all of them
            self.before_the_run = before + len(stamps)
        return dict.fromkeys(stamps, own_time)

    def stretches(self, times: Sequence[float], columns: Mapping[str, Sequence[Any]]) -> Iterator[Stretch]:
        """Yield the rows of a page in stretches. Each row is decided as `next_row` decides it."""
        rows = len(times)
        if self.rule is TimeRule.EVENT:
            yield Stretch(0, rows, None)
            return
        if self.rule is TimeRule.EVIDENCE:
            yield from self._stretches_by_evidence(times, columns)
            return
        own_times = self._columns_from_stamps(columns, np.array(times))
        self.used_relative = self.first_relative_stamp is not None
        yield Stretch(0, rows, own_times)

    def _stretches_by_evidence(self, times: Sequence[float], columns: Mapping[str, Sequence[Any]]) -> Iterator[Stretch]:
        """Yield the stretches of a page under the rule `EVIDENCE`.

        Rows that `next_row` would decide as the row before them are taken together. Any other is a stretch of its own.
        """
        rows, at = len(times), np.array(times)
        since = np.empty(rows)  # how long after the event before it each event came
        since[:1] = at[:1] - self.last_time
        np.subtract(at[1:], at[:-1], out=since[1:])
        own_times: Mapping[str, NDArray[np.float64]] | None = None  # of all rows, once they are needed
        stays_collected = np.zeros(0, dtype=bool)  # then: False for a later event with the stamps of the one before it
        begin = 0
        while begin < rows:
            alike, part = 0, None
            if self.at_event_times:
                alike = _first_true(~(since[begin:] > SAME_COLLECTION_S))
            elif self.surely_collected and begin:
                if own_times is None:
                    own_times = self._columns_from_stamps(columns, at)
                    composed_together = (since >= 0) & (since <= SAME_COLLECTION_S)
                    stays_collected = composed_together | _changed_or_none(own_times, rows)
                alike = _first_true(~stays_collected[begin:])
                if alike:
                    part = _rows_of(own_times, begin, begin + alike)
            end = begin + max(alike, 1)
            if alike:
                self._note_last_row(times[end - 1], part)
            else:
                one = self.next_row(times[begin], {key: column[begin] for key, column in columns.items()})
                part = None if one is None else {
                    key: np.array([math.nan if value is None else value]) for key, value in one.items()
                }  # fmt: skip
            yield Stretch(begin, end, part)
            begin = end

    def _note_last_row(self, time: float, own_times: Mapping[str, NDArray[np.float64]] | None) -> None:
        """Note the last of some rows that were decided as the row before them, as `next_row` does."""
        self.last_time = time
        if own_times is not None:
            self._stamps_before = {key: _none_if_nan(column[-1]) for key, column in own_times.items()}
            self._stamps_before_at = time
            self.used_relative = self.first_relative_stamp is not None

    def _judge_evidence(self, time: float, own_times: OwnTimes) -> float | None:
        """Decide by a row's times whether readings have their own. Return its newest stamp, or None if it has none."""
        stamps = [stamp for stamp in own_times.values() if stamp is not None]
        before = self._stamps_before if self._stamps_before_at == self.last_time else None
        previous, self.last_time = self.last_time, time
        self._stamps_before, self._stamps_before_at = own_times, time
        if not stamps:
            return None
        newest = max(stamps)
        if math.isnan(previous):  # the first row: only a guess, from how old its stamps are
            if not self._is_resumed:
                oldest, age = min(stamps), time - newest
                old = age > (FRESH_STAMP_S if newest == oldest else FRESH_STAMPS_BUSY_S)
                self.uses_own_times = oldest >= self.started and old and newest - oldest <= age / 10
            return newest
        if before is None:  # the row before had no stamps that were used: nothing to compare with
            return newest
        changed = [stamp for key, stamp in own_times.items() if stamp is not None and stamp != before.get(key)]
        if 0 <= time - previous <= SAME_COLLECTION_S:  # composed together with the row before
            if changed and min(changed) >= self.started and max(changed) < previous:
                self.uses_own_times = self.surely_collected = True  # and its stamps are others, older than that row
        elif not changed:  # a later event with the same stamps: a plan reads devices that stand still
            self.uses_own_times = self.surely_collected = False
        elif not self.surely_collected and newest > previous:  # taken since the row before: a plan's reading
            self.uses_own_times = False
        return newest

    def _time_from_stamp(self, stamp: Any, time: float) -> float | None:
        """Return a reading's own time by its stamp; None if no clock could have shown it during this run."""
        at = number_of(stamp)
        if at is None:
            return None
        started = self.started
        if started - MAX_BEFORE_RUN_S <= at <= time + MAX_AHEAD_OF_EVENT_S:
            if self.rule is TimeRule.MONITOR and at < started and time - at > OLD_MONITOR_VALUE_S:
                self.before_the_run += 1
                return None
            return at
        if self.rule is TimeRule.MONITOR or not 0 <= at <= time - started:
            return None
        self.first_relative_stamp = at if self.first_relative_stamp is None else self.first_relative_stamp
        return started + at

    def _long_before(self, stamps: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self.rule is not TimeRule.MONITOR:
            return np.zeros(len(at), dtype=bool)
        started = self.started
        return (started - MAX_BEFORE_RUN_S <= stamps) & (stamps < started) & (at - stamps > OLD_MONITOR_VALUE_S)

    def _columns_from_stamps(
        self, columns: Mapping[str, Sequence[Any]], at: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return where a page's readings stand by their stamps, NaN for None. Equal columns share one array."""
        own_times: dict[str, NDArray[np.float64]] = {}
        last_column: Sequence[Any] = ()
        column_times, before_the_run = np.zeros(0), 0
        for key, column in columns.items():
            if not _surely_equal(column, last_column):
                last_column = column
                stamps = _as_floats(column)
                column_times = self._column_from_stamps(stamps, at)
                before_the_run = int(self._long_before(stamps, at).sum())
            own_times[key] = column_times
            self.before_the_run += before_the_run
        return own_times

    def _column_from_stamps(self, stamps: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where the readings of one column stand by their stamps, NaN for None. Counts nothing."""
        absolute = (self.started - MAX_BEFORE_RUN_S <= stamps) & (stamps <= at + MAX_AHEAD_OF_EVENT_S)
        own_times = np.where(absolute & ~self._long_before(stamps, at), stamps, math.nan)
        relative = ~absolute & (stamps >= 0) & (stamps <= at - self.started)
        if self.rule is not TimeRule.MONITOR and relative.any():
            self.first_relative_stamp = (
                float(stamps[relative.argmax()]) if self.first_relative_stamp is None else self.first_relative_stamp
            )
            own_times = np.where(relative, self.started + stamps, own_times)
        return own_times


def number_of(stamp: Any) -> float | None:
    """Return a stamp as a float, or None if it is no finite number."""
    if isinstance(stamp, np.generic):
        stamp = None if isinstance(stamp, DATES) else stamp.item()
    if not isinstance(stamp, int | float):
        return None
    try:
        at = float(stamp)
    except OverflowError:
        return None
    return at if math.isfinite(at) else None


def _as_floats(column: Sequence[Any]) -> NDArray[np.float64]:
    """Return a column of stamps as floats, with NaN for what is no finite number."""
    try:
        array = np.array(column)
    except (ValueError, OverflowError):  # columns of arrays of different lengths, say
        array = np.array([], dtype=object)
    if array.dtype.kind not in "fiub" or array.ndim != 1:
        numbers = [number_of(stamp) for stamp in column]
        return np.array([math.nan if one is None else one for one in numbers], dtype=np.float64)
    array = array.astype(np.float64)
    array[~np.isfinite(array)] = math.nan
    return array


def _surely_equal(column: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return True if two columns of stamps are surely equal."""
    try:
        return column is other or bool(column == other)
    except (TypeError, ValueError):  # of stamps that are arrays, or of pandas' NA
        return False


def _rows_of(columns: Mapping[str, NDArray[np.float64]], begin: int, end: int) -> dict[str, NDArray[np.float64]]:
    """Return some rows of columns. Columns that are one object stay one."""
    parts = {id(column): column[begin:end] for column in columns.values()}
    return {key: parts[id(column)] for key, column in columns.items()}


def _changed_or_none(own_times: Mapping[str, NDArray[np.float64]], rows: int) -> NDArray[np.bool_]:
    """Return in which rows a stamp has changed since the row before, or there is none."""
    changed = np.zeros(rows, dtype=bool)
    stamped = np.zeros(rows, dtype=bool)
    for column in {id(column): column for column in own_times.values()}.values():
        there = ~np.isnan(column)
        stamped |= there
        changed[1:] |= (column[1:] != column[:-1]) & there[1:]
    return changed | ~stamped


def _first_true(where: NDArray[np.bool_]) -> int:
    """Return the first place that is True, or the length if there is none."""
    return int(where.argmax()) if where.any() else len(where)


def _none_if_nan(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
