"""Which time each row has: its event's, or its readings' own. The bounds, and pages decided as their rows are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atomscale_bluesky.documents.row_times import (
    FRESH_STAMP_S,
    FRESH_STAMPS_BUSY_S,
    MAX_AHEAD_OF_EVENT_S,
    MAX_BEFORE_RUN_S,
    OLD_MONITOR_VALUE_S,
    SAME_COLLECTION_S,
    RowTimes,
    TimeRule,
)

START = 1_760_000_000.0
DAY, HOUR = 86400.0, 3600.0


def test_the_bounds_are_those_that_the_docs_tell() -> None:
    assert (SAME_COLLECTION_S, FRESH_STAMP_S, FRESH_STAMPS_BUSY_S, OLD_MONITOR_VALUE_S) == (0.0005, 0.25, 1.0, 1.0)
    assert (MAX_BEFORE_RUN_S, MAX_AHEAD_OF_EVENT_S) == (DAY, HOUR)


def test_with_the_events_times_nothing_is_asked_of_a_reading() -> None:
    times = RowTimes(TimeRule.EVENT, START)

    assert times.next_row(START + 5, {"x": START + 1, "y": START + 2}) is None
    assert (times.at_event_times, times.last_time, times.uneven) == (True, -math.inf, False)
    assert list(times.stretches([START, START + 1], {"x": [START, START]})) == [(0, 2, None)]


READINGS_OF = {
    "the run's time": (5.0, START + 4.5, START + 4.5),
    "a day before the run": (5.0, START - DAY, START - DAY),
    "more than a day before the run": (5.0, START - DAY - 1, None),
    "an hour ahead of its event": (5.0, START + 5 + HOUR, START + 5 + HOUR),
    "more than an hour ahead of its event": (5.0, START + 6 + HOUR, None),
    "no number": (5.0, "soon", None),
    "not finite": (5.0, math.nan, None),
    "too large for a float": (5.0, 10**400, None),
    "a number of numpy": (5.0, np.float32(4.5), START + 4.5),
    "an integer": (5.0, int(START) + 4, START + 4),
    "since the run's start": (5.0, 4.5, START + 4.5),
    "at the run's start": (5.0, 0.0, START),
    "since the run's start, at its event": (5.0, 5.0, START + 5),
    "since the run's start, behind its event": (5.0, 5.5, None),
    "negative": (5.0, -0.5, None),
}


@pytest.mark.parametrize("case", READINGS_OF)
@pytest.mark.parametrize("beside", [False, True])
def test_a_stamp_is_a_time_if_a_clock_can_have_shown_it_during_the_run(case: str, beside: bool) -> None:
    at, stamp, expected = READINGS_OF[case]
    times, page = (RowTimes(TimeRule.READING, START) for _ in range(2))
    stamps = {"x": stamp} | ({"y": START + 1.5} if beside else {})

    own = times.next_row(START + at, stamps)
    (stretch,) = page.stretches([START + at], {key: [one] for key, one in stamps.items()})

    assert own == {"x": expected} | ({"y": START + 1.5} if beside else {})
    assert stretch.own_times_of(0) == own
    relative = float(stamp) if expected is not None and stamp < START - DAY else None
    for one in (times, page):
        assert (one.first_relative_stamp, one.used_relative) == (relative, relative is not None)
    assert times.uneven == beside


MONITORS = {
    "taken during the run": (0.5, [0.25], [0.25], 0),
    "shortly before the run": (0.5, [-0.25], [-0.25], 0),
    "a second before its event": (0.5, [-0.5], [-0.5], 0),
    "long before the run": (0.5, [-0.75], [None], 1),
    "long before the run, several keys at once": (0.5, [-0.75, -0.75, -0.75], [None, None, None], 3),
    "long before the run, several keys": (0.5, [-0.75, -0.875, -0.25], [None, None, -0.25], 2),
    "long before its event, and in the run": (90.0, [0.0], [0.0], 0),
    "a day before the run and longer": (0.5, [-DAY - 1], [None], 0),
}


@pytest.mark.parametrize("case", MONITORS)
def test_a_monitors_first_value_is_not_put_where_its_signal_had_it_before_the_run(case: str) -> None:
    at, stamps, expected, before_the_run = MONITORS[case]
    readings = {f"key {n}": START + stamp for n, stamp in enumerate(stamps)}
    right = {f"key {n}": None if one is None else START + one for n, one in enumerate(expected)}
    times, page = (RowTimes(TimeRule.MONITOR, START) for _ in range(2))

    assert times.next_row(START + at, readings) == right
    (stretch,) = page.stretches([START + at], {key: [stamp] for key, stamp in readings.items()})
    assert stretch.own_times_of(0) == right
    assert (times.before_the_run, page.before_the_run) == (before_the_run, before_the_run)


def test_a_monitors_stamp_does_not_count_from_the_runs_start() -> None:
    times = RowTimes(TimeRule.MONITOR, START)

    assert times.next_row(START + 5, {"x": 4.5}) == {"x": None}
    assert (times.first_relative_stamp, times.used_relative, times.before_the_run) == (None, False, 0)


FIRST_ROWS = {  # stamps before their event, by which the first row is guessed → its time, None for the event's
    "fresh": ([0.25], None),
    "older": ([0.3125], -0.3125),
    "fresh on a busy host": ([1.0, 0.9375], None),
    "older, and near each other": ([1.25, 1.1875], -1.1875),
    "older, and far from each other": ([1.5, 1.125], None),
    "older than the run": ([9.75], None),
}


@pytest.mark.parametrize("case", FIRST_ROWS)
def test_a_first_row_has_its_readings_time_if_they_are_old_and_of_one_moment(case: str) -> None:
    ages, expected = FIRST_ROWS[case]
    event = START + 9.5
    times = RowTimes(TimeRule.EVIDENCE, START)

    own = times.next_row(event, {f"key {n}": event - age for n, age in enumerate(ages)})

    # From one row nobody can tell whether its readings' differences mean anything: all get the newest stamp.
    assert own == (
        None if expected is None else dict.fromkeys((f"key {n}" for n in range(len(ages))), event + expected)
    )
    assert times.uses_own_times == (expected is not None)
    assert (times.surely_collected, times.uneven, times.at_event_times) == (False, False, expected is None)


Row = tuple[float, float, bool]  # event and stamp, seconds from the run's start; whether the stamp is the row's time

SECOND_ROWS: dict[str, list[Row]] = {
    "collected at once": [(9.0, 2.0, True), (9.0003, 3.0, True), (9.0004, 4.0, True)],
    "composed apart": [(9.0, 2.0, True), (9.75, 9.5, False)],
    "fresh, then collected": [(9.0, 8.875, False), (9.0003, 8.9375, True)],
    "guessed, then later with a stamp older than the row before": [(9.0, 2.0, True), (9.75, 3.0, True)],
    "collected, then a plan that stands still": [(9.0, 2.0, True), (9.0003, 3.0, True), (9.5, 3.0, False)],
    "collected, then later with another stamp": [(9.0, 2.0, True), (9.0003, 3.0, True), (9.5, 9.25, True)],
    "at once, stamps that stand still": [(9.0, 8.875, False), (9.0003, 8.875, False)],
    "at once, a stamp younger than the row before": [(9.0, 8.875, False), (9.0003, 9.0001, False)],
    "at once, a stamp before the run": [(9.0, 8.875, False), (9.0003, -2.0, False)],
    "back in time": [(9.0, 8.875, False), (8.5, 8.25, False)],
}


@pytest.mark.parametrize("case", SECOND_ROWS)
def test_later_rows_show_whether_rows_were_collected(case: str) -> None:
    rows = SECOND_ROWS[case]
    times, page = (RowTimes(TimeRule.EVIDENCE, START) for _ in range(2))
    right = [{"x": START + stamp} if own else None for _, stamp, own in rows]

    assert [times.next_row(START + event, {"x": START + stamp}) for event, stamp, _ in rows] == right
    columns = {"x": [START + stamp for _, stamp, _ in rows]}
    assert decided(page, [START + event for event, _, _ in rows], columns) == right


def test_a_resumed_stream_goes_on_as_its_last_row_was_decided() -> None:
    event, old = START + 9, {"x": START + 2}

    assert RowTimes(TimeRule.EVIDENCE, START, resumed_own_times=True).next_row(event, old) == old
    assert RowTimes(TimeRule.EVIDENCE, START, resumed_own_times=False).next_row(event, old) is None
    collected = RowTimes(TimeRule.EVIDENCE, START, resumed_own_times=True, collected=True)
    assert collected.next_row(event, {"x": START + 2, "y": START + 3}) == {"x": START + 2, "y": START + 3}
    assert not RowTimes(TimeRule.EVIDENCE, START, resumed_own_times=False, collected=True).surely_collected


# ---- a page is decided as its rows are -------------------------------------------------------------------------------


def decided(times: RowTimes, events: Sequence[float], columns: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Each row's own times as the stretches of its page tell them."""
    stretches = list(times.stretches(events, columns))
    assert [one.begin for one in stretches] == [0, *(one.end for one in stretches[:-1])][: len(stretches)]
    assert not stretches or stretches[-1].end == len(events)
    return [one.own_times_of(row) for one in stretches for row in range(one.begin, one.end)]


def state(times: RowTimes) -> tuple[Any, ...]:
    return times.uses_own_times, times.surely_collected, times.at_event_times, times.before_the_run


STAMPS = st.sampled_from(
    [None, "text", math.nan, -1.0, 0.0, 2.0, 4.0, START - 2 * DAY, START - 2.0, START - 0.5, START]
    + [START + n / 4 for n in range(1, 24)]
    + [START + 2 * HOUR]
)
STEPS = st.sampled_from([0.0, 0.0003, 0.0005, 0.0006, 0.25, 1.0, -0.0003, -1.0])


@settings(max_examples=400)
@given(
    rule=st.sampled_from(list(TimeRule)),
    resumed=st.sampled_from([None, True, False]),
    collected=st.booleans(),
    begin=st.sampled_from([0.25, 2.0, 5.0]),
    rows=st.lists(st.tuples(STEPS, STAMPS, STAMPS), min_size=1, max_size=8),
    same=st.booleans(),
    at=st.integers(0, 8),
)
def test_a_page_is_decided_as_its_rows_are(
    rule: TimeRule,
    resumed: bool | None,
    collected: bool,
    begin: float,
    rows: list[tuple[float, Any, Any]],
    same: bool,
    at: int,
) -> None:
    one_by_one, in_pages = (RowTimes(rule, START, resumed_own_times=resumed, collected=collected) for _ in range(2))
    events = list(START + begin + np.cumsum([step for step, _, _ in rows]))
    columns = {"x": [x for _, x, _ in rows], "y": [x if same else y for _, x, y in rows]}
    columns["z"] = columns["x"]  # of one device, with the same stamps

    right = [one_by_one.next_row(time, {key: column[row] for key, column in columns.items()})
             for row, time in enumerate(events)]  # fmt: skip
    parts = [(0, min(at, len(events))), (min(at, len(events)), len(events))]
    found = [
        own
        for first, last in parts
        if last > first
        for own in decided(in_pages, events[first:last], {key: one[first:last] for key, one in columns.items()})
    ]

    assert [one or None for one in found] == [one or None for one in right]
    assert state(in_pages) == state(one_by_one)
