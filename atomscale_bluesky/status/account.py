"""What happened to every reading of a run: seen = delivered + waiting + refused + discarded + left out + lost.

An `Account` reads a run's journal and combines it with the ledger's
state. So the result is the same whether the run's own process, another one, or no process delivers the run, and there
is no separate bookkeeping that could be wrong. Points are counted per channel. Readings that never become points are
counted with their reason.

The account also prevents half a run from looking complete: while it does not add up, for whatever reason, no stream is
finalized and the run does not leave the spool.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from ..model.loss import Loss
from ..model.rows import Position, Row, Rows
from ..spool.journal_format import (
    Header,
    JournalLine,
    Layout,
    LeftOut,
    Stop,
    decode_journal,
    decode_lines,
    decode_row,
    is_row,
    start_of_row,
)
from ..spool.ledger_state import LedgerState
from ..spool.row_record import is_record
from ..spool.run_reader import RunReader
from ..spool.stream_state import MetrologyStreamState

# Stands for the channels of rows whose layout is lost. Each of these rows counts as one reading.
ROWS_WITHOUT_LAYOUT = "rows of a missing layout"


class Counts(msgspec.Struct, frozen=True):
    """Points by what happened to them."""

    seen: int = 0
    delivered: int = 0
    waiting: int = 0
    refused: int = 0
    discarded: int = 0
    lost: int = 0
    left_out: Mapping[str, int] = {}  # by reason

    def __add__(self, other: Counts) -> Counts:
        """Return the sum of both."""
        return Counts(
            seen=self.seen + other.seen,
            delivered=self.delivered + other.delivered,
            waiting=self.waiting + other.waiting,
            refused=self.refused + other.refused,
            discarded=self.discarded + other.discarded,
            lost=self.lost + other.lost,
            left_out=dict(Counter(self.left_out) + Counter(other.left_out))
            if self.left_out and other.left_out
            else self.left_out or other.left_out,
        )


class Account:
    """Reads a run's journal and counts what happened to its readings."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.layouts: dict[int, Layout] = {}
        self.stop: Stop | None = None
        self.rows: Counter[int] = Counter()  # by layout
        self.next_row: dict[str, int] = {}  # by time base
        self.first_times: dict[str, float] = {}  # by time base: the time of the first row
        self.newest_times: dict[str, float] = {}  # by time base: the latest time of a row
        self.rows_missing: Counter[int] = Counter()  # by layout: row numbers that are missing because of damage
        # Rows whose layout is not in the journal, and that no number or stop has counted yet.
        self.rows_without_layout = 0
        # By layout: rows whose number came before. No writer makes them on purpose. The first row of a number decides a
        # chunk's boundary. A row that repeats the number just before it is sent if it is within a chunk, and lost if it
        # is after one. A row whose number is lower than that is lost.
        self.rows_repeated: Counter[int] = Counter()
        self.rounded: Counter[str] = Counter()  # by channel
        self._gaps: Counter[tuple[int, str, str]] = Counter()  # layout, channel, reason
        self._left_out: Counter[tuple[str, str]] = Counter()  # key, reason
        # Time base and channel → its first layout. Channels that came together share a stream, and the rows dropped in
        # it.
        self._first_layout: dict[tuple[str, str], int] = {}

    def read_on(self, reader: RunReader, step: Callable[[int], object] = lambda size: None) -> None:
        """Count what was written to a journal since the last call.

        Args:
            reader: The journal's.
            step: Called with the number of bytes after each piece of work.

        Raises:
            SpoolError: A line cannot be decoded.
        """
        singly = 0
        for found in reader.read():
            self.take_line(found.payload)
            step(len(found.payload))
            singly -= 1
            if singly <= 0 and is_record(found.payload):
                singly = self.take_ahead(reader, step)

    def take_ahead(
        self, reader: RunReader, step: Callable[[int], object] = lambda size: None, before: Position | None = None
    ) -> int:
        """Count the rows that a reader has in memory, up to a position, if they can be counted together.

        Return how many lines must be taken one by one now. This takes a fraction of the time that taking them one by
        one takes.
        """
        lines, width = reader.peek_records(before)
        rows = decode_lines(lines, width) if lines else None
        if rows is None:
            return len(lines) // width if width else 0
        layout = self.layouts.get(rows.layout)
        if layout is None or self.next_row[layout.time_base] != rows.number:
            return len(rows.times)
        self.take_rows(rows)
        reader.skip(len(rows.times))
        step(len(lines))
        return 0

    def take_line(self, payload: bytes) -> JournalLine | None:
        """Count one line of the journal. Return it as its type, or None if it is a row.

        Raises:
            SpoolError: The line cannot be decoded.
        """
        if is_row(payload):
            if not is_record(payload) and payload.endswith((b"}]", b'"]]')):  # gaps, or integers that lost digits
                self.take_row(decode_row(payload))
            else:
                self._count_row(*start_of_row(payload))
            return None
        found = decode_journal(payload)
        match found:
            case Header():
                self.header = found
            case Layout():
                self.layouts[found.layout] = found
                self.next_row.setdefault(found.time_base, 0)
                for channel in found.channels:
                    self._first_layout.setdefault((found.time_base, channel.name), found.layout)
            case LeftOut():
                for key, n in found.keys.items():
                    self._left_out[key, found.reason] += n
            case Stop():
                self.stop = found
                for time_base, rows in found.rows.items():
                    self._count_missing_at_the_end(time_base, rows)
                if found.rows:  # names every time base, including one without a layout
                    self.rows_without_layout = 0
            case Row():
                self.take_row(found)
            case _:
                pass
        return found if not isinstance(found, Row) else None

    def take_row(self, row: Row) -> bool:
        """Count a row that is already decoded.

        Returns:
            False if the row is damage and belongs to no chunk: its number is lower than the last one, or the journal
            does not have its layout, so that its values have no meaning. Such a row costs only itself: it counts as
            lost.
        """
        if not self._count_row(row.layout, row.number, row.time):
            return False
        self.rounded.update(row.rounded)
        for name, reason in row.gaps.items():
            self._gaps[row.layout, name, reason] += 1
        if row.gaps and self.header is not None and self.header.non_finite == "drop_row":
            layout = self.layouts[row.layout]
            first = {channel.name: self._first_layout[layout.time_base, channel.name] for channel in layout.channels}
            dropped = {first[name] for name in row.gaps}
            for name in first:
                if name not in row.gaps and first[name] in dropped:
                    self._gaps[row.layout, name, Loss.ROW_DROPPED] += 1
        return True

    def take_rows(self, rows: Rows) -> None:
        """Count consecutive rows without a gap."""
        self.first_times.setdefault(self.layouts[rows.layout].time_base, rows.times[0])
        self._count_row(rows.layout, rows.number, max(rows.times))
        more = len(rows.times) - 1
        self.rows[rows.layout] += more
        self.next_row[self.layouts[rows.layout].time_base] += more

    def _count_missing_at_the_end(self, time_base: str, rows: int) -> None:
        layouts = [number for number, layout in self.layouts.items() if layout.time_base == time_base]
        missing = rows - self.next_row.get(time_base, 0)
        if layouts and missing > 0:
            self.rows_missing[layouts[-1]] += missing
            self.next_row[time_base] = rows

    def _count_row(self, layout: int, number: int, time: float) -> bool:
        """Count a row. Return False if its number is lower than the last one, or its layout is missing."""
        known = self.layouts.get(layout)
        if known is None:
            self.rows_without_layout += 1
            return False
        expected = self.next_row[known.time_base]
        if number < expected:
            self.rows_repeated[layout] += 1
            return number == expected - 1
        self.rows[layout] += 1
        if number > expected:
            self.rows_missing[layout] += number - expected
            self.rows_without_layout = max(0, self.rows_without_layout - (number - expected))
        self.next_row[known.time_base] = number + 1
        self.first_times.setdefault(known.time_base, time)
        if time > self.newest_times.get(known.time_base, -math.inf):
            self.newest_times[known.time_base] = time
        return True

    def contradictions(
        self, ledger: LedgerState, streams: Iterable[MetrologyStreamState] | None = None, beyond: Collection[int] = ()
    ) -> dict[int, str]:
        """Return why streams must not be finalized, by stream; empty if the account adds up.

        Call this when the whole journal was read and no request for these streams is in progress. A point may then wait
        only in a stream that waits for the operator, or that goes on in another one.

        Args:
            ledger: What happened to the run's chunks.
            streams: The streams about to be finalized; None for all, when the run is about to leave the spool.
            beyond: Streams after which the run goes on in streams that are not opened yet.
        """
        counts = self._by_channel(ledger)
        everything = streams is None
        found: dict[int, str] = {}
        for stream in ledger.streams.values() if streams is None else streams:
            keys = [(name, one.opening.time_base) for one in stream.group for name in self.channels_of(one)]
            together = {one.opening.stream for one in stream.group}
            others = [] if everything else [one for n, one in ledger.streams.items() if n not in together]
            for key in keys:
                here = counts.get(key, Counts())
                waiting = here.waiting and here.waiting - sum(
                    self._points_that_may_wait(one, *key, beyond=one.opening.stream in beyond) for one in others
                )
                if waiting > 0 or here.lost < 0 or (everything and here.refused):
                    found[stream.opening.stream] = f"channel {key[0]!r}: {_in_words(here)}"
                    break
        if everything and not found:
            unsent = next((key for key, count in counts.items() if count.waiting or count.refused), None)
            if unsent is not None:  # of a channel that no stream has
                found[0] = f"channel {unsent[0]!r}: {_in_words(counts[unsent])}"
        return found

    def _points_that_may_wait(self, stream: MetrologyStreamState, name: str, time_base: str, *, beyond: bool) -> int:
        """Return how many points of a channel may wait in a stream at most."""
        if stream.opening.time_base != time_base or stream.ended or name not in self.channels_of(stream):
            return 0
        points = sum(
            tried.points
            for index, tried in stream.tried.items()
            if name in tried.channels and index not in stream.refused
        )
        if stream.group_parked or beyond:
            points += max(0, self.next_row.get(time_base, 0) - stream.next_row)
        return points

    def channels_of(self, stream: MetrologyStreamState) -> tuple[str, ...]:
        """Return the names of a stream's channels."""
        if stream.opening.channels is not None:
            return stream.opening.channels
        layouts = (layout for layout in self.layouts.values() if layout.time_base == stream.opening.time_base)
        first = next(layouts, None)
        return tuple(channel.name for channel in first.channels) if first else ()

    def channels(self, ledger: LedgerState) -> dict[str, Counts]:
        """Return what happened to the points of each channel, and to each data key that is no channel, by name."""
        result: dict[str, Counts] = {}
        for (name, time_base), counts in self._by_channel(ledger).items():
            result[name if name not in result else f"{time_base}: {name}"] = counts
        for number, layout in self.layouts.items():
            n = self.rows[number] + self.rows_missing[number] + self.rows_repeated[number]
            for key, reason in layout.left_out.items():
                result[key] = result.get(key, Counts()) + Counts(seen=n, left_out={reason: n} if n else {})
        for time_base, n in (self.stop.rows if self.stop else {}).items():
            if n and time_base not in self.next_row:  # no line says what its rows were
                result[time_base] = result.get(time_base, Counts()) + Counts(seen=n, lost=n)
        if self.rows_without_layout:
            result[ROWS_WITHOUT_LAYOUT] = Counts(seen=self.rows_without_layout, lost=self.rows_without_layout)
        for (key, reason), n in self._left_out.items():
            result[key] = result.get(key, Counts()) + Counts(seen=n, left_out={reason: n})
        return result

    def _rows_damaged_at_the_end(self, ledger: LedgerState) -> Counter[int]:
        """Return, by layout, how many rows beyond the journal's last one the ledger has: they were damaged since."""
        gone = Counter[int]()
        if self.stop is None:
            return gone
        known: dict[str, int] = {}
        for stream in ledger.streams.values():
            time_base = stream.opening.time_base
            known[time_base] = max(known.get(time_base, 0), 0 if stream.last_tried is None else stream.next_row)
        for number, layout in reversed(self.layouts.items()):
            rows = known.pop(layout.time_base, 0)
            gone[number] = max(0, rows - self.next_row[layout.time_base])
        return gone

    def _by_channel(self, ledger: LedgerState) -> dict[tuple[str, str], Counts]:
        """Return what happened to the points of each channel, by name and time base."""
        delivered, refused = _answered_points(ledger)
        gaps = self._gaps_by_channel()
        damaged = self._rows_damaged_at_the_end(ledger)
        result: dict[tuple[str, str], Counts] = {}
        sums: dict[tuple[int, ...], tuple[int, int]] = {}  # rows seen and lost, by layouts, which many channels share
        for (name, time_base), numbers in self._layouts_by_channel().items():
            layouts = tuple(numbers)
            if layouts not in sums:
                away = sum(self.rows_missing[n] + self.rows_repeated[n] + damaged[n] for n in layouts)
                sums[layouts] = sum(self.rows[n] for n in layouts) + away, away
            seen, lost = sums[layouts]
            left_out = Counter[str]()
            for layout, reason, n in gaps.get(name, ()):
                if layout in layouts:
                    left_out[reason] += n
            done, no = delivered[name, time_base], refused[name, time_base]
            rest = seen - lost - left_out.total() - done - no
            if rest < 0:  # delivered before their rows were damaged here
                lost, rest = lost + rest, 0
            result[name, time_base] = Counts(
                seen=seen,
                delivered=done,
                waiting=0 if ledger.discarded else rest,
                refused=0 if ledger.discarded else no,
                discarded=rest + no if ledger.discarded else 0,
                lost=lost,
                left_out=dict(left_out),
            )
        return result

    def _layouts_by_channel(self) -> dict[tuple[str, str], list[int]]:
        """Return the numbers of the layouts that have a channel, by its name and time base."""
        found: dict[tuple[str, str], list[int]] = {}
        for number, layout in self.layouts.items():
            for channel in layout.channels:
                found.setdefault((channel.name, layout.time_base), []).append(number)
        return found

    def _gaps_by_channel(self) -> dict[str, list[tuple[int, str, int]]]:
        """Return the gaps that are left out, by channel name: layout, reason, count. None are if nulls are sent."""
        found: dict[str, list[tuple[int, str, int]]] = {}
        if self.header is None or self.header.non_finite != "null":
            for (layout, channel, reason), n in self._gaps.items():
                found.setdefault(channel, []).append((layout, reason, n))
        return found


def _answered_points(ledger: LedgerState) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Return how many points are delivered and how many are refused, each by channel name and time base."""
    delivered, refused = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for stream in ledger.streams.values():
        time_base = stream.opening.time_base
        for names, points in stream.delivered.items():
            for name in names:
                delivered[name, time_base] += points
        for index, refusal in stream.refused.items():
            for name in refusal.channels:
                refused[name, time_base] += stream.tried[index].points
    return delivered, refused


def _in_words(counts: Counts) -> str:
    """Return the counts in words, without those that are 0."""
    sums = {
        "seen": counts.seen,
        "delivered": counts.delivered,
        "waiting": counts.waiting,
        "refused": counts.refused,
        "left out": sum(counts.left_out.values()),
        "lost": counts.lost,
    }
    return ", ".join(f"{name} {n}" for name, n in sums.items() if n)
