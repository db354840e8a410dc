"""The thinned points: extremes and gaps stay, and what is kept and sent is bounded."""

from __future__ import annotations

import math

from atomscale_bluesky.page import MAX_KEPT, MAX_SENT, Trace, sparkline


def test_a_short_trace_is_returned_as_it_is() -> None:
    trace = Trace()
    trace.extend([1.0, 2.0, 3.0], [5.0, None, 7.0])

    assert trace.window() == ([1.0, 2.0, 3.0], [5.0, None, 7.0], False)


def test_a_spike_and_a_gap_stay_however_much_is_left_out() -> None:
    trace = Trace()
    for block in range(30):
        values = [math.sin(i / 50) for i in range(10_000)]
        if block == 7:
            values[1234], values[4321], values[4322] = 99.0, -99.0, None
        trace.extend([block * 10_000.0 + i for i in range(10_000)], values)

    times, values, left_out = trace.window()
    assert left_out
    assert trace.count == 300_000
    assert len(times) <= MAX_SENT * 1.6
    assert sorted(times) == times
    assert 99.0 in values
    assert -99.0 in values
    assert None in values
    everything, _, _ = trace.window(max_points=10 * MAX_KEPT)
    assert len(everything) <= MAX_KEPT


def test_a_window_shows_each_point_where_the_whole_is_thinned() -> None:
    trace = Trace()
    trace.extend([float(i) for i in range(50_000)], [float(i % 7) for i in range(50_000)])

    times, values, left_out = trace.window(1000.0, 1500.0)
    assert not left_out
    assert times == [float(i) for i in range(999, 1502)]  # with a neighbour on each side
    assert values == [float(i % 7) for i in range(999, 1502)]
    assert trace.window(-5.0, -1.0) == ([], [], False)


def test_a_sparkline_has_some_tens_of_values() -> None:
    assert sparkline([]) == []
    assert sparkline([1.0, math.nan, 2.0]) == [1.0, None, 2.0]
    assert 20 < len(sparkline([float(i) for i in range(100_000)])) < 150
