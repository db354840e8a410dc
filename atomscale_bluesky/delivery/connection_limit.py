"""How many requests are under way at a time: a number that follows from how the server answers. Pure.

The rule is that of TCP: the number grows by one at a time, and shrinks by a part of itself (additive increase,
multiplicative decrease).

    at first                                    doubled with each block of answers
    all connections in use, answers as quick    one more, `GROW_S` after the last change at the earliest
    answers take `SLOW_FACTOR` times as long    down to three quarters
    50 % more connections, hardly more answers  back to the number before; that high again only after a while
    429, or `Retry-After`                       down to half; that high again only after a while
    many requests fail otherwise                the same; if as many fail with half, the number was not the reason
    nothing but failures, and then an answer    as at first

A block is as many answers as there are connections, and at least `BLOCK_ANSWERS`. To compare speeds, the fastest
quarter of the answers of each block is used, for bodies of about the same size. So a few late answers on a bad link do
not count as an overloaded server.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

# The first number of connections.
FIRST = 4
# At least as many answers are compared with earlier ones, and half as many while the number doubles.
BLOCK_ANSWERS = 16
# Answers that take this many times as long as with few connections mean that requests wait in the server.
SLOW_FACTOR = 2.0
# The number grows this long after its last change at the earliest, so that a quick server has time to object.
GROW_S = 0.25
# When the number has grown by this factor, the answers per second must have grown by this share of that. Otherwise
# something else bounds them, such as this process, and further threads would only be in each other's way.
GROWTH_FACTOR, MIN_GAIN_SHARE = 1.5, 0.25
# How much of a shorter time of a quick answer counts at once. Single blocks may be quick by chance.
SMOOTHING = 0.25
# How often the time of a quick answer is measured again, with a quarter of the connections. All uploaders of a host do
# that at the same moment by its monotonic clock, so that each sees the server without the others' requests.
MEASURE_S, QUIET_BEFORE_MEASURING_S = 60.0, 0.5
# After this long it is too late to measure with the others.
MISSED_S = 15.0
# How long the number stays below one that was refused. It doubles with each refusal that follows.
HOLD_S, MAX_HOLD_S = 5.0, 60.0
# This many failures in the last `WINDOW` requests, beyond twice those by chance, suggest too many connections.
WINDOW, FAILURES_THAT_COUNT = 64, 6
# If at least this share of the failures remains with half the connections, they are chance, up to `MAX_CHANCE_SHARE`
# of all requests.
REMAINING_SHARE, MAX_CHANCE_SHARE = 0.5, 0.3
# After nothing but failures for this long the server was not there, which says nothing about how much it takes.
OUTAGE_S = 2.0


class Worth(NamedTuple):
    """A number of connections that was worth it: compared with fewer, it brought enough more answers."""

    number: int
    rate: float  # answers per second


class ConnectionLimit:
    """The number of connections to one server. Belongs to the deciding thread. All times are monotonic.

    Args:
        maximum: The number is never larger.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._number = min(FIRST, maximum)
        self._still_doubles = True  # nothing has spoken against more
        self._changed_at = 0.0  # when the number last changed
        self._times_by_size: dict[int, list[float]] = {}  # of the present block, by class of size
        self._answers = self._in_use = 0  # of the present block; those that came while all connections were in use
        self._answers_since = 0  # since `_counted_since`, also those to requests that left before the last change
        self._counted_since = 0.0
        self._last_worth_it: Worth | None = None
        self._quickest: dict[int, float] = {}  # the quick quarter of the quickest block, by class of size
        self._measure_at: float | None = None
        self._number_before_measuring = 0  # while the quickest times are measured: the number before
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)  # of the last requests, True for those that failed
        self._chance_failures = 0.0  # the share of requests that fails whatever the number is
        # While it is found out whether halving the number helps: the number before, and the share that failed then.
        self._before_halving: tuple[int, float] | None = None
        # Nothing has succeeded since. Infinite if the server said that it is overloaded: then it is no outage, however
        # long it lasts.
        self._failing_since: float | None = None
        self._refused_number: int | None = None  # was refused, and not tried since
        self._hold_s = HOLD_S
        self._hold_until = 0.0
        self._halved_at = -math.inf

    @property
    def number(self) -> int:
        """How many requests may be under way now, from 1 to `maximum`."""
        return min(self._number, self._maximum)

    @property
    def maximum(self) -> int:
        """The largest number permitted now."""
        return self._maximum

    @maximum.setter
    def maximum(self, maximum: int) -> None:
        if maximum < self._number:
            self._number, self._number_before_measuring = maximum, 0
        self._maximum = maximum

    def note_answer(self, now: float, took_s: float, size: int, *, in_use: bool) -> None:
        """Take a request that the server has done or refused for its content.

        Args:
            now: When the answer came.
            took_s: How long that took from the request's first byte on.
            size: Bytes of the request.
            in_use: True if as many requests were under way as permitted.
        """
        if self._failing_since is not None and now - self._failing_since >= OUTAGE_S:
            self._begin_as_at_first(now)
        self._failing_since = None
        if not self._answers_since:
            self._counted_since = max(self._counted_since, now - took_s)  # nothing was under way before
        self._answers_since += 1
        if now - took_s < self._changed_at and not self._still_doubles:
            return  # it left under another number
        self._note_outcome(now, failed=False)
        self._times_by_size.setdefault(size.bit_length(), []).append(took_s)
        self._answers += 1
        self._in_use += in_use
        if self._block_is_over(now):
            self._end_block(now)

    def _block_is_over(self, now: float) -> bool:
        if self._number_before_measuring:
            return self._answers >= BLOCK_ANSWERS // 2 and now >= self._changed_at + QUIET_BEFORE_MEASURING_S
        return self._answers >= max(self.number, BLOCK_ANSWERS // 2 if self._still_doubles else BLOCK_ANSWERS)

    def note_failure(self, now: float, took_s: float, *, overloaded: bool) -> None:
        """Take a request that failed in a way that can clear.

        Args:
            now: When it failed.
            took_s: How long that took.
            overloaded: True if the failure says that the server has too much to do, rather than may mean it.
        """
        first_in_row = self._failing_since is None
        if first_in_row or overloaded:
            self._failing_since = math.inf if overloaded else now
        if now - took_s < self._changed_at:
            return  # it left before the last change, which was for others of its kind
        self._note_outcome(now, failed=True)
        if not first_in_row:
            return  # now one request at a time finds out whether the server is there
        failed = sum(self._outcomes)
        if overloaded:
            if now - self._halved_at >= GROW_S:  # the server may need a moment to get over what it has refused
                self._halve(now)
        elif self._before_halving is None and failed >= FAILURES_THAT_COUNT + 2 * self._chance_failures * WINDOW:
            self._before_halving = self.number, failed / len(self._outcomes)
            self._halve(now)

    def _note_outcome(self, now: float, *, failed: bool) -> None:
        self._outcomes.append(failed)
        if self._before_halving is None or len(self._outcomes) < WINDOW:
            return
        (number, share), self._before_halving = self._before_halving, None
        remains = sum(self._outcomes) / WINDOW
        if REMAINING_SHARE * share <= remains <= MAX_CHANCE_SHARE:
            self._chance_failures, self._refused_number = remains, None
            self._change(now, number)

    def _begin_as_at_first(self, now: float) -> None:
        self._still_doubles, self._number_before_measuring = True, 0
        self._refused_number = self._last_worth_it = None
        self._outcomes.clear()
        self._begin_block(now)
        self._change(now, min(self._number, FIRST))

    def _end_block(self, now: float) -> None:
        """Change the number at the end of a block of answers, if they speak for that."""
        if self._measure_at is None or now > self._measure_at + MISSED_S:
            self._measure_at = (now // MEASURE_S + 1) * MEASURE_S
        in_use = 2 * self._in_use >= self._answers
        rate = self._answers_since / max(now - self._counted_since, 1e-6)
        times = sorted(took for times in self._times_by_size.values() for took in times)
        usual_s = times[len(times) // 2]
        slowdown = self._update_slowdown(replace=bool(self._number_before_measuring))
        self._begin_block(now)
        if self._number_before_measuring:
            self._change(now, self._number_before_measuring)
            self._number_before_measuring = 0
        elif not in_use:
            return
        elif not self._judge_growth(rate):
            self._still_doubles = False
            self._hold_below(now, self.number)
            self._change(now, self._last_worth_it.number if self._last_worth_it else self.number)
        elif now >= self._measure_at and not self._still_doubles:
            self._begin_to_measure(now, self._measure_at, usual_s)
        elif slowdown >= SLOW_FACTOR:
            self._still_doubles = False
            self._change(now, max(self.number * 3 // 4, min(self.number, FIRST)))
        elif self._still_doubles:
            self._change(now, 2 * self.number)
            self._still_doubles = self.number < self._maximum
        elif now - self._changed_at >= GROW_S:
            self._grow(now)

    def _begin_to_measure(self, now: float, planned_at: float, usual_s: float) -> None:
        """Use a quarter of the connections until the time of a quick answer is measured."""
        # Until then the server is busy with what left before, also from others.
        quiet_at = max(now + usual_s, planned_at + QUIET_BEFORE_MEASURING_S)
        self._measure_at = (now // MEASURE_S + 1) * MEASURE_S
        self._number_before_measuring = self.number
        self._change(now, self.number // 4)
        self._changed_at = quiet_at

    def _judge_growth(self, rate: float) -> bool:
        """Return False if more connections than before have brought too few more answers per second.

        Otherwise remember the number and its answers per second, unless too few connections were added to judge.
        """
        last = self._last_worth_it
        if last is None or self.number <= last.number:
            if last is not None and self.number == last.number:
                rate = last.rate + SMOOTHING * (rate - last.rate)
            self._last_worth_it = Worth(self.number, rate)
            return True
        factor = self.number / last.number
        if factor < GROWTH_FACTOR:
            return True
        if rate < last.rate * (1.0 + MIN_GAIN_SHARE * (factor - 1.0)):
            return False
        self._last_worth_it = Worth(self.number, rate)
        return True

    def _hold_below(self, now: float, number: int) -> None:
        """Keep the number of connections below `number` for a while, longer each time."""
        if self._refused_number is not None:
            self._hold_s = min(2 * self._hold_s, MAX_HOLD_S)
        self._refused_number, self._hold_until = number, now + self._hold_s

    def _grow(self, now: float) -> None:
        refused = self._refused_number
        if refused is not None and self.number + 1 >= refused:
            if now < self._hold_until:
                return
            if self.number > refused:
                self._refused_number, self._hold_s = None, HOLD_S
        self._change(now, self.number + 1)

    def _halve(self, now: float) -> None:
        refused = self._number_before_measuring or self.number
        self._hold_below(now, refused)
        self._still_doubles, self._number_before_measuring = False, 0
        self._outcomes.clear()
        self._begin_block(now)
        self._halved_at = now
        self._change(now, refused // 2)

    def _change(self, now: float, number: int) -> None:
        self._number = max(1, min(number, self._maximum))
        self._changed_at = self._counted_since = now
        self._answers_since = 0

    def _begin_block(self, now: float) -> None:
        self._answers_since, self._counted_since = 0, now
        self._times_by_size.clear()
        self._answers = self._in_use = 0

    def _update_slowdown(self, *, replace: bool) -> float:
        """Update the quickest times. Return how many times as long as these the answers of the block took."""
        total = 0.0
        for size, times in self._times_by_size.items():
            quick = sorted(times)[len(times) // 4]
            known = self._quickest.get(size, quick)
            quickest = quick if replace else known + SMOOTHING * min(0.0, quick - known)
            self._quickest[size] = quickest
            total += len(times) * (quick / quickest if quickest > 0 else 1.0)
        return total / self._answers
